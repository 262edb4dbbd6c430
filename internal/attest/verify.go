package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/did"
)

// Policy is what a verifier knows already, and asks of evidence.
type Policy struct {
	Nonce []byte // that was sent to the machine
	// AnyNonce has the nonce not looked at, where it will be later.
	AnyNonce bool
	DID      *[ed25519.PublicKeySize]byte // the identity that it should be; nil: any
	PCRs     map[int][]byte               // values that PCRs should have
	// CA are the certificates of those whose TPMs are trusted; nil: of nobody.
	CA  []*x509.Certificate
	Now time.Time // at which certificates have to be valid
	// State and Response are of a challenge; nil: there was none.
	State    *State
	Response *Response
	// Require are IDs of points that have failed unless they are proved.
	Require []string
}

// Provable lists the points that evidence can prove, besides "pcr-N".
func Provable() []string {
	return []string{
		"evidence", "nonce", "did", "identity-signature", "attestation-key", "quote", "pcr-values", "boot", "creation", "seal",
		"seal-fixed", "seal-bound", "ek-certificate", "attestation-key-in-tpm", "genuine-tpm",
	}
}

// Result is what became of a point.
type Result string

const (
	Proved    Result = "proved"
	Failed    Result = "failed"
	NotProved Result = "not proved"
)

// Point is one thing that evidence proves, or does not.
type Point struct {
	ID     string `json:"id"`
	Result Result `json:"result"`
	Text   string `json:"text"`
}

// Report says point by point what evidence proves.
type Report struct {
	Type    string `json:"type"`
	Version int    `json:"version"`
	// OK: no point has failed.
	OK     bool    `json:"ok"`
	Points []Point `json:"points"`
	// What the evidence states; nil where it cannot be read.
	Stated *Stated `json:"stated,omitempty"`
}

// Stated is what evidence states, whether or not it is proved.
type Stated struct {
	Evidence       Hex    `json:"evidence"` // its digest
	DID            string `json:"did"`
	EndorsementKey Hex    `json:"endorsement_key"` // Name
	AttestationKey Hex    `json:"attestation_key"` // Name
	Parent         Hex    `json:"storage_root_key"`
	Bank           string `json:"pcr_bank"`
	PCRs           []PCR  `json:"pcrs"`
	Clock          Clock  `json:"clock"`
}

// Clock is the TPM's.
type Clock struct {
	Milliseconds uint64 `json:"milliseconds"` // it was powered for so long, in all
	Resets       uint32 `json:"resets"`       // starts of the machine
	Restarts     uint32 `json:"restarts"`     // times that it was suspended, since the last of them
	Safe         bool   `json:"safe"`         // the clock has not gone back
	Firmware     Hex    `json:"firmware"`     // the TPM's own version number
}

// Point gives one by its ID.
func (r *Report) Point(id string) (Point, bool) {
	for _, p := range r.Points {
		if p.ID == id {
			return p, true
		}
	}
	return Point{}, false
}

func (r *Report) proved(id string) bool {
	p, ok := r.Point(id)
	return ok && p.Result == Proved
}

// Count counts the points with a result.
func (r *Report) Count(result Result) (n int) {
	for _, p := range r.Points {
		if p.Result == result {
			n++
		}
	}
	return n
}

// add adds a point that is proved unless err says why it has failed.
func (r *Report) add(id string, err error, text string, args ...any) {
	if err != nil {
		r.Points = append(r.Points, Point{id, Failed, err.Error()})
		r.OK = false
		return
	}
	r.Points = append(r.Points, Point{id, Proved, fmt.Sprintf(text, args...)})
}

// open adds a point that nothing proves.
func (r *Report) open(id, text string, args ...any) {
	r.Points = append(r.Points, Point{id, NotProved, fmt.Sprintf(text, args...)})
}

// Verify checks evidence.
func Verify(data []byte, policy Policy) *Report {
	r := &Report{Type: reportType, Version: Version, OK: true}
	e, err := parse(data)
	r.add("evidence", err, "the file is evidence of version %d", Version)
	if err != nil {
		return r
	}
	digest, err := e.Digest()
	if err != nil {
		r.add("evidence", err, "")
		return r
	}
	r.Stated = e.stated(digest)

	if policy.AnyNonce {
		r.open("nonce", "that the evidence is fresh: no nonce was named")
	} else {
		r.add("nonce", e.checkNonce(policy.Nonce), "the evidence was made for this nonce")
	}
	if policy.DID == nil {
		r.open("did", "that the identity is the expected one: none was named; it is %s", e.DID)
	} else {
		r.add("did", e.checkDID(policy.DID), "the identity is the expected one, %s", e.DID)
	}
	r.add("identity-signature", e.checkSignature(), "the identity has signed this evidence, all of it")
	r.add("attestation-key", checkAttestationKey(e.ak), "the attestation key is of the kind that, in a TPM, signs nothing but what the TPM itself states, and that no TPM lets out")
	r.add("quote", e.checkQuote(), "the attestation key has signed PCR values for this nonce and this identity")
	r.add("pcr-values", e.checkValues(), "the signed PCR values are those listed")
	e.expected(r, policy.PCRs)
	r.add("boot", e.checkBoot(), "both statements are of one start of the machine: its TPM's number %d, after %d restarts", e.quote.ClockInfo.ResetCount, e.quote.ClockInfo.RestartCount)
	r.add("creation", e.checkCreation(), "the attestation key has signed, for this nonce, that its TPM made the seal, and that whoever had it made said it is of this identity's key")
	r.add("seal", e.checkSeal(), "what was made is a sealed object of the kind that icn-p11 keeps a key in, under the storage root key with the Name %x", e.data.ParentName.Buffer)
	e.fixed(r)
	e.bound(r)
	e.certificate(r, policy)
	e.inTPM(r, digest, policy)
	if needed := r.lacks("attestation-key", "ek-certificate", "attestation-key-in-tpm"); len(needed) > 0 {
		r.open("genuine-tpm", "that a real TPM has made the statements, and no program that acts as one: %s not proved", strings.Join(needed, ", "))
	} else {
		r.add("genuine-tpm", nil, "a TPM of a maker that is trusted has made the statements that the attestation key has signed")
	}
	r.require(policy.Require)
	r.open("seed", "that the sealed bytes are the seed of this identity's key: the TPM does not know Ed25519, and signs what it was told")
	r.open("copies", "that no copy of the key exists elsewhere, made before it was sealed or by whoever unsealed it")
	return r
}

// require has points fail that are not proved.
func (r *Report) require(ids []string) {
	for _, id := range ids {
		i := slices.IndexFunc(r.Points, func(p Point) bool { return p.ID == id })
		switch {
		case i < 0:
			r.add(id, errors.New("it is required, but there is no such point"), "")
		case r.Points[i].Result == NotProved:
			r.Points[i].Result, r.Points[i].Text = Failed, "required, but not proved: "+r.Points[i].Text
			r.OK = false
		}
	}
}

// lacks lists those of some points that are not proved.
func (r *Report) lacks(ids ...string) (missing []string) {
	for _, id := range ids {
		if !r.proved(id) {
			missing = append(missing, id)
		}
	}
	return missing
}

func (e *parsed) stated(digest []byte) *Stated {
	c := e.quote.ClockInfo
	return &Stated{
		Evidence: digest, DID: e.DID, EndorsementKey: e.ekName, AttestationKey: e.akName, Parent: e.data.ParentName.Buffer,
		Bank: e.Quote.Bank, PCRs: e.Quote.PCRs,
		Clock: Clock{c.Clock, c.ResetCount, c.RestartCount, bool(c.Safe), binary.BigEndian.AppendUint64(nil, e.quote.FirmwareVersion)},
	}
}

func (e *parsed) checkNonce(want []byte) error {
	if !bytes.Equal(e.Nonce, want) {
		return fmt.Errorf("the evidence was made for another nonce, %x: it may be an old one that is shown again", []byte(e.Nonce))
	}
	return nil
}

func (e *parsed) checkDID(want *[ed25519.PublicKeySize]byte) error {
	if !bytes.Equal(e.public, want[:]) {
		return fmt.Errorf("the identity is another one, %s, and not %s", e.DID, did.Encode(*want))
	}
	return nil
}

func (e *parsed) checkSignature() error {
	message, err := e.Message()
	if err != nil {
		return err
	}
	if !ed25519.Verify(e.public, message, e.Signature) {
		return errors.New("the identity has not signed this evidence as it stands")
	}
	return nil
}

// checkAttestationKey checks that a key is of the kind that a TPM uses for
// nothing but its own statements (Part 1, 25.1.2 and 31.2).
func checkAttestationKey(public *tpm2.TPMTPublic) error {
	a := public.ObjectAttributes
	switch {
	case !a.Restricted || !a.SignEncrypt || a.Decrypt:
		return errors.New("the attestation key is no restricted signing key: it may have signed what no TPM has stated")
	case !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin:
		return errors.New("the attestation key may exist outside of its TPM")
	}
	if _, err := signingKey(public); err != nil {
		return err
	}
	return nil
}

// signingKey is an attestation key for crypto/ecdsa.
func signingKey(public *tpm2.TPMTPublic) (*ecdsa.PublicKey, error) {
	errKind := errors.New("the attestation key is not one for ECDSA over P-256 with SHA-256")
	if public.Type != tpm2.TPMAlgECC || public.NameAlg != tpm2.TPMAlgSHA256 {
		return nil, errKind
	}
	parameters, err := public.Parameters.ECCDetail()
	if err != nil || parameters.CurveID != tpm2.TPMECCNistP256 || parameters.Scheme.Scheme != tpm2.TPMAlgECDSA {
		return nil, errKind
	}
	scheme, err := parameters.Scheme.Details.ECDSA()
	if err != nil || scheme.HashAlg != tpm2.TPMAlgSHA256 {
		return nil, errKind
	}
	point, err := public.Unique.ECC()
	if err != nil {
		return nil, errKind
	}
	key, err := tpm2.ECDSAPub(parameters, point)
	if err != nil {
		return nil, errKind
	}
	if _, err := key.ECDH(); err != nil {
		return nil, errors.New("the attestation key is no point of its curve")
	}
	return key, nil
}

// checkStatement checks what all statements have in common: that the
// attestation key has signed it, as a primary key of the endorsement
// hierarchy, and for what.
func (e *parsed) checkStatement(statement []byte, s *tpm2.TPMSAttest, sig *tpm2.TPMTSignature, kind tpm2.TPMISTAttest, extra []byte) error {
	key, err := signingKey(e.ak)
	if err != nil {
		return err
	}
	ecc, err := sig.Signature.ECDSA()
	if err != nil || ecc.Hash != tpm2.TPMAlgSHA256 {
		return errors.New("its signature is not ECDSA with SHA-256")
	}
	digest := sha256.Sum256(statement)
	if !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(ecc.SignatureR.Buffer), new(big.Int).SetBytes(ecc.SignatureS.Buffer)) {
		return errors.New("the attestation key has not signed it")
	}
	switch {
	case s.Magic != tpm2.TPMGeneratedValue || s.Type != kind:
		return errors.New("it is a statement of another kind")
	case !bytes.Equal(s.ExtraData.Buffer, extra):
		return errors.New("it was made for another nonce, or another identity")
	case !bytes.Equal(s.QualifiedSigner.Buffer, qualified(tpm2.TPMRHEndorsement, e.akName)):
		return errors.New("the attestation key is no primary key of the endorsement hierarchy")
	}
	return nil
}

// qualified is the Qualified Name of a primary key (Part 1, 16.5).
func qualified(hierarchy tpm2.TPMHandle, name []byte) []byte {
	d := sha256.Sum256(append(tpm2.HandleName(hierarchy).Buffer, name...))
	return append([]byte{byte(tpm2.TPMAlgSHA256 >> 8), byte(tpm2.TPMAlgSHA256)}, d[:]...)
}

func (e *parsed) checkQuote() error {
	err := e.checkStatement(e.Quote.Statement, e.quote, e.quoteSig, tpm2.TPMSTAttestQuote, QuoteData(e.Nonce, [ed25519.PublicKeySize]byte(e.public)))
	if err != nil {
		return fmt.Errorf("the quote is of no worth: %w", err)
	}
	return nil
}

// checkValues compares the listed PCRs with the digest in the quote.
func (e *parsed) checkValues() error {
	info, err := e.quote.Attested.Quote()
	if err != nil {
		return errors.New("the quote states no PCRs")
	}
	var listed [3]byte
	var values []byte
	for _, r := range e.Quote.PCRs {
		listed[r.PCR/8] |= 1 << (r.PCR % 8)
		values = append(values, r.Value...)
	}
	sel := info.PCRSelect.PCRSelections
	if len(sel) != 1 || sel[0].Hash != banks[e.Quote.Bank] || !bytes.Equal(bytes.TrimRight(sel[0].PCRSelect, "\x00"), bytes.TrimRight(listed[:], "\x00")) {
		return errors.New("the quote is about other PCRs than those listed")
	}
	if d := sha256.Sum256(values); !bytes.Equal(info.PCRDigest.Buffer, d[:]) {
		return errors.New("the quote is about other values than those listed")
	}
	return nil
}

// expected compares PCRs with the values that the verifier expects.
func (e *parsed) expected(r *Report, want map[int][]byte) {
	if len(want) == 0 {
		r.open("pcr-expected", "that the machine runs what it should: no PCR values were expected")
		return
	}
	for _, n := range slices.Sorted(maps.Keys(want)) {
		i := slices.IndexFunc(e.Quote.PCRs, func(p PCR) bool { return p.PCR == n })
		var err error
		switch {
		case i < 0:
			err = fmt.Errorf("PCR %d is expected, but the evidence does not have it", n)
		case !bytes.Equal(e.Quote.PCRs[i].Value, want[n]):
			err = fmt.Errorf("PCR %d is %x, and not %x as expected", n, []byte(e.Quote.PCRs[i].Value), want[n])
		case !r.proved("quote") || !r.proved("pcr-values"):
			err = fmt.Errorf("PCR %d has the expected value in the list only, which is not the signed one", n)
		}
		r.add(fmt.Sprintf("pcr-%d", n), err, "PCR %d of the %s bank has the expected value, %x", n, e.Quote.Bank, want[n])
	}
}

// checkBoot checks that the machine was not started anew between the two
// statements.
func (e *parsed) checkBoot() error {
	q, c := e.quote, e.creation
	if q.ClockInfo.ResetCount != c.ClockInfo.ResetCount || q.ClockInfo.RestartCount != c.ClockInfo.RestartCount || q.FirmwareVersion != c.FirmwareVersion {
		return errors.New("the two statements are of two starts of the machine, or of two TPMs")
	}
	return nil
}

func (e *parsed) checkCreation() error {
	err := e.checkStatement(e.Creation.Statement, e.creation, e.creationSig, tpm2.TPMSTAttestCreation, CreationData(e.Nonce, [ed25519.PublicKeySize]byte(e.public)))
	if err != nil {
		return fmt.Errorf("the certificate of the seal's creation is of no worth: %w", err)
	}
	info, err := e.creation.Attested.Creation()
	if err != nil {
		return errors.New("the certificate of the seal's creation is about no object")
	}
	hash := sha256.Sum256(e.Creation.Data)
	switch {
	case !bytes.Equal(info.ObjectName.Buffer, e.sealName):
		return errors.New("what the TPM certifies is the creation of another object than the seal")
	case !bytes.Equal(info.CreationHash.Buffer, hash[:]):
		return errors.New("the seal was made in another way than the creation data says")
	case !bytes.Equal(e.data.OutsideInfo.Buffer, e.public):
		return errors.New("the seal was made for another key than the identity's")
	}
	return nil
}

// checkSeal checks that an object is sealed data, and under a storage root key.
func (e *parsed) checkSeal() error {
	a := e.seal.ObjectAttributes
	parameters, err := e.seal.Parameters.KeyedHashDetail()
	switch {
	case e.seal.Type != tpm2.TPMAlgKeyedHash || e.seal.NameAlg != tpm2.TPMAlgSHA256 || err != nil || parameters.Scheme.Scheme != tpm2.TPMAlgNull,
		a.SignEncrypt || a.Decrypt || a.Restricted || a.SensitiveDataOrigin || a.AdminWithPolicy || a.EncryptedDuplication || a.STClear || a.FixedTPM != a.FixedParent:
		return errors.New("the object is not sealed data as icn-p11 makes it")
	case len(e.data.PCRSelect.PCRSelections) != 0 || e.data.ParentNameAlg != tpm2.TPMAlgSHA256,
		!bytes.Equal(e.data.ParentQualifiedName.Buffer, qualified(tpm2.TPMRHOwner, e.data.ParentName.Buffer)):
		return errors.New("the seal was not made under a storage root key")
	}
	return nil
}

// fixed tells whether the seal may leave its TPM.
func (e *parsed) fixed(r *Report) {
	switch {
	case !r.proved("creation") || !r.proved("seal"):
		r.open("seal-fixed", "that the seal cannot leave its TPM: what is said of the seal has failed")
	case e.seal.ObjectAttributes.FixedTPM:
		r.add("seal-fixed", nil, "the seal cannot leave its TPM")
	default:
		r.open("seal-fixed", "that the key is on this machine alone: its token is recoverable, so that backups and copies on other TPMs may exist")
	}
}

// bound tells whether the seal opens in approved states of the platform only.
func (e *parsed) bound(r *Report) {
	policy := e.seal.AuthPolicy.Buffer
	byAuth := e.seal.ObjectAttributes.UserWithAuth
	switch {
	case len(policy) == 0 && byAuth && e.approver == nil:
		r.open("seal-bound", "that the key needs an approved state of the platform: its token is not bound to PCRs")
		return
	case len(policy) == 0 || byAuth || e.approver == nil:
		r.add("seal-bound", errors.New("the seal is bound to the platform in a way that icn-p11 does not"), "")
		return
	}
	name, want, err := authorizePolicy(e.approver)
	if err == nil && !bytes.Equal(policy, want) {
		err = errors.New("the seal is bound to the approval of another key than the approver's")
	}
	if err == nil && (!r.proved("creation") || !r.proved("seal")) {
		r.open("seal-bound", "that the key needs an approved state of the platform: what is said of the seal has failed")
		return
	}
	r.add("seal-bound", err, "the seal opens in states of the platform alone that the key with the Name %x has approved, as whoever knows the SO PIN may", name)
}

// authorizePolicy computes the policy of a seal that is bound to an approver:
// PolicyAuthorize, then PolicyAuthValue.
func authorizePolicy(approver *tpm2.TPMTPublic) (name, policy []byte, err error) {
	n, err := tpm2.ObjectName(approver)
	if err != nil {
		return nil, nil, err
	}
	calc, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, nil, err
	}
	err = errors.Join(tpm2.PolicyAuthorize{KeySign: *n}.Update(calc), tpm2.PolicyAuthValue{}.Update(calc))
	return n.Buffer, calc.Hash().Digest, err
}

// inTPM tells whether the attestation key is in the TPM of the endorsement
// key, which the answer to a challenge shows.
func (e *parsed) inTPM(r *Report, digest []byte, policy Policy) {
	if policy.State == nil || policy.Response == nil {
		r.open("attestation-key-in-tpm", "that the attestation key is in the TPM of this endorsement key: \"icn-p11 attest challenge\" finds out")
		return
	}
	r.add("attestation-key-in-tpm", policy.State.check(digest, policy.Response), "the attestation key is in the TPM of the endorsement key with the Name %s", hex.EncodeToString(e.ekName))
}
