package tpm

import (
	"bytes"
	"crypto/aes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"unsafe"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// direction says which parameters a session encrypts.
type direction int

const (
	outOnly direction = iota // for commands whose first parameter is no buffer
	inOut
	policy      // a policy session, for a bound seal; encrypts as outOnly does
	unencrypted // for commands without a secret, whose answer is no buffer
	policyPlain // both
)

func (d direction) kind() tpm2.TPMSE {
	if d == policy || d == policyPlain {
		return tpm2.TPMSEPolicy
	}
	return tpm2.TPMSEHMAC
}

// nonceSize is that of a session's nonces, in bytes.
const nonceSize = 16

// hmacSession is an HMAC or policy session with SHA-256, salted to a key, which
// encrypts parameters by AES-128 in CFB mode (Part 1, 17, 19 and 21). It stays
// until it is closed.
//
// It is a [tpm2.Session], in the place of go-tpm's own: those keep the session
// key on the Go heap, and copy it and the authorisation value there for each
// command. This one has both in secret memory and computes with them on the
// stack, in [secmem.Compute].
type hmacSession struct {
	dir         direction
	handle      tpm2.TPMHandle
	attributes  tpm2.TPMASession
	page        *secmem.Buffer
	secret      *sessionSecret // in page
	nonceCaller [nonceSize]byte
	nonceTPM    [nonceSize]byte
	// useless: from a command until its answer was found authentic the TPM's
	// nonce is not known, nor whether the TPM has ended the session. An error has
	// no proof of being the TPM's.
	useless bool

	// Room for what is computed, none of it secret.
	hash   hash.Hash
	digest [sha256.Size]byte
	mac    [sha256.Size]byte
	number [4]byte
}

// sessionSecret is the layout of a session's secret page.
type sessionSecret struct {
	// value is the session key and the authorisation value, without zero bytes at its end.
	value [sha256.Size + maxPassword]byte
	auth  int      // bytes of value that are the authorisation value
	salt  [64]byte // until the session has started
	block [aes.BlockSize]byte
	saved [aes.BlockSize]byte
}

// key is the key of HMACs, and of the derivation of others.
func (s *sessionSecret) key() []byte { return s.value[:sha256.Size+s.auth] }

// startSession starts a session that knows an authorisation value.
func startSession(t transport.TPM, salt *rootKey, auth []byte, dir direction) (*hmacSession, error) {
	auth = bytes.TrimRight(auth, "\x00") // Part 1, 19.6.4.3
	if len(auth) > maxPassword {
		return nil, fmt.Errorf("an authorisation value of %d bytes, at most %d are possible", len(auth), maxPassword)
	}
	s, err := newSession(dir)
	if err != nil {
		return nil, err
	}
	if err := s.start(t, salt, auth); err != nil {
		s.destroy()
		return nil, fmt.Errorf("starting a session: %w", err)
	}
	return s, nil
}

func newSession(dir direction) (*hmacSession, error) {
	page, err := secmem.New(int(unsafe.Sizeof(sessionSecret{})))
	if err != nil {
		return nil, err
	}
	return &hmacSession{dir: dir, page: page, hash: sha256.New(),
		attributes: tpm2.TPMASession{
			ContinueSession: true, Decrypt: dir == inOut, Encrypt: dir == inOut || dir == outOnly || dir == policy,
		},
		// A page is aligned for any type.
		secret: (*sessionSecret)(unsafe.Pointer(unsafe.SliceData(page.Bytes())))}, nil
}

// start is TPM2_StartAuthSession (Part 3, 11.1).
func (s *hmacSession) start(t transport.TPM, salt *rootKey, auth []byte) (err error) {
	symmetric := tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull}
	if s.attributes.Encrypt {
		symmetric = tpm2.TPMTSymDef{
			Algorithm: tpm2.TPMAlgAES,
			KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
			Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
		}
	}
	key, err := tpm2.ImportEncapsulationKey(&salt.public)
	if err != nil {
		return err
	}
	var encrypted []byte
	var n int
	secmem.Compute(func() {
		s.secret.auth = copy(s.secret.value[sha256.Size:], auth)
		n, encrypted, err = s.encryptSalt(key)
	})
	if err != nil {
		return err
	}
	if err := s.NewNonceCaller(); err != nil {
		return err
	}
	r, err := tpm2.StartAuthSession{
		TPMKey: salt.handle, Bind: tpm2.TPMRHNull, NonceCaller: tpm2.TPM2BNonce{Buffer: s.nonceCaller[:]},
		EncryptedSalt: tpm2.TPM2BEncryptedSecret{Buffer: encrypted},
		SessionType:   s.dir.kind(), Symmetric: symmetric, AuthHash: tpm2.TPMAlgSHA256,
	}.Execute(t)
	if err != nil {
		return err
	}
	s.handle = tpm2.TPMHandle(r.SessionHandle.HandleValue())
	if err := s.newNonceTPM(r.NonceTPM.Buffer); err != nil {
		tpm2.FlushContext{FlushHandle: s.handle}.Execute(t)
		return err
	}
	secmem.Compute(func() {
		key := kdfa(s.secret.salt[:n], "ATH", &s.nonceTPM, &s.nonceCaller)
		copy(s.secret.value[:], key[:])
		secmem.Wipe(key[:])
		secmem.Wipe(s.secret.salt[:])
	})
	return nil
}

// encryptSalt makes the salt, of n bytes.
func (s *hmacSession) encryptSalt(to tpm2.LabeledEncapsulationKey) (n int, encrypted []byte, err error) {
	salt, encrypted, err := tpm2.CreateEncryptedSalt(rand.Reader, to)
	if err != nil {
		return 0, nil, err
	}
	n = copy(s.secret.salt[:], salt)
	secmem.Wipe(salt)
	return n, encrypted, nil
}

func (s *hmacSession) destroy() {
	s.secret = nil
	s.page.Destroy()
}

// knows tells whether the session has an authorisation value.
func (s *hmacSession) knows(auth []byte) (same bool) {
	secmem.Compute(func() {
		same = subtle.ConstantTimeCompare(s.secret.key()[sha256.Size:], auth) == 1
	})
	return same
}

// mac is HMAC-SHA256 (RFC 2104) of some parts of at most maxMAC bytes in all.
// It has no copy of the key on the heap, as crypto/hmac would.
func mac(key []byte, parts ...[]byte) (sum [sha256.Size]byte) {
	var inner [sha256.BlockSize + maxMAC]byte
	var outer [sha256.BlockSize + sha256.Size]byte
	if len(key) > sha256.BlockSize {
		sum = sha256.Sum256(key)
		copy(inner[:], sum[:])
	} else {
		copy(inner[:], key)
	}
	copy(outer[:], inner[:sha256.BlockSize])
	for i := range sha256.BlockSize {
		inner[i] ^= 0x36
		outer[i] ^= 0x5c
	}
	n := sha256.BlockSize
	for _, p := range parts {
		if len(p) > len(inner)-n {
			panic("tpm: too much to authenticate")
		}
		n += copy(inner[n:], p)
	}
	sum = sha256.Sum256(inner[:n])
	copy(outer[sha256.BlockSize:], sum[:])
	sum = sha256.Sum256(outer[:])
	secmem.Wipe(inner[:])
	secmem.Wipe(outer[:])
	return sum
}

// maxMAC is the length of the longest input of mac: a digest, two nonces and
// the attributes.
const maxMAC = sha256.Size + 2*nonceSize + 1

// kdfa is KDFa with SHA-256 (Part 1, 11.4.10.2), for 256 bits.
func kdfa(key []byte, label string, u, v *[nonceSize]byte) [sha256.Size]byte {
	var name [4]byte // a label of three letters and its end
	copy(name[:], label)
	return mac(key, []byte{0, 0, 0, 1}, name[:], u[:], v[:], []byte{0, 0, 1, 0})
}

// Init does nothing: a session has been started.
func (s *hmacSession) Init(transport.TPM) error { return nil }

// CleanupFailure does nothing: a session stays until it is closed.
func (s *hmacSession) CleanupFailure(transport.TPM) error { return nil }

// NonceTPM is the TPM's last nonce.
func (s *hmacSession) NonceTPM() tpm2.TPM2BNonce { return tpm2.TPM2BNonce{Buffer: s.nonceTPM[:]} }

// NewNonceCaller makes the nonce of the next command.
func (s *hmacSession) NewNonceCaller() error {
	rand.Read(s.nonceCaller[:]) // never fails since Go 1.24
	return nil
}

func (s *hmacSession) newNonceTPM(nonce []byte) error {
	if len(nonce) != nonceSize {
		return fmt.Errorf("a nonce of %d bytes", len(nonce))
	}
	copy(s.nonceTPM[:], nonce)
	return nil
}

var errUseless = errors.New("the session has ended")

// Authorize authorises a command (Part 1, 19.6.5). The result is good until
// the next one. There are no other sessions, so that addNonces must be empty;
// nor is this one bound, so that authIndex does not matter.
func (s *hmacSession) Authorize(cc tpm2.TPMCC, params, addNonces []byte, names []tpm2.TPM2BName, _ int) (*tpm2.TPMSAuthCommand, error) {
	if s.useless {
		return nil, errUseless
	}
	if len(addNonces) != 0 {
		return nil, errors.New("a session beside another one")
	}
	s.hash.Reset()
	s.add(uint32(cc)) // cpHash (Part 1, 18.7)
	for _, n := range names {
		s.hash.Write(n.Buffer)
	}
	s.hash.Write(params)
	s.authenticate(&s.nonceCaller, &s.nonceTPM, s.attributes)
	s.useless = true
	return &tpm2.TPMSAuthCommand{
		Handle: s.handle, Nonce: tpm2.TPM2BNonce{Buffer: s.nonceCaller[:]}, Attributes: s.attributes,
		Authorization: tpm2.TPM2BData{Buffer: s.mac[:]},
	}, nil
}

// Validate checks the authorisation of an answer (Part 1, 19.6.5), with the
// parameters as they were sent.
func (s *hmacSession) Validate(rc tpm2.TPMRC, cc tpm2.TPMCC, params []byte, _ []tpm2.TPM2BName, _ int, auth *tpm2.TPMSAuthResponse) error {
	if err := s.newNonceTPM(auth.Nonce.Buffer); err != nil {
		return err
	}
	s.hash.Reset()
	s.add(uint32(rc)) // rpHash (Part 1, 18.8)
	s.add(uint32(cc))
	s.hash.Write(params)
	s.authenticate(&s.nonceTPM, &s.nonceCaller, auth.Attributes)
	if !hmac.Equal(s.mac[:], auth.Authorization.Buffer) {
		return errors.New("the answer is not authentic")
	}
	s.useless = !auth.Attributes.ContinueSession
	return nil
}

// add hashes a number.
func (s *hmacSession) add(n uint32) {
	binary.BigEndian.PutUint32(s.number[:], n)
	s.hash.Write(s.number[:])
}

// authenticate computes the HMAC of what was hashed.
func (s *hmacSession) authenticate(newer, older *[nonceSize]byte, a tpm2.TPMASession) {
	s.hash.Sum(s.digest[:0])
	secmem.Compute(func() {
		s.mac = mac(s.secret.key(), s.digest[:], newer[:], older[:], []byte{sessionBits(a)})
	})
}

// IsEncryption tells whether the first parameter of answers is encrypted.
func (s *hmacSession) IsEncryption() bool { return s.attributes.Encrypt }

// IsDecryption tells whether the first parameter of commands is encrypted.
func (s *hmacSession) IsDecryption() bool { return s.attributes.Decrypt }

// Encrypt encrypts the first parameter of a command in place, where the
// session is one that does (Part 1, 21.3).
func (s *hmacSession) Encrypt(parameter []byte) error {
	if !s.attributes.Decrypt {
		return nil
	}
	return s.cfb(parameter, &s.nonceCaller, &s.nonceTPM, false)
}

// Decrypt decrypts the first parameter of an answer in place, where the
// session is one that encrypts it.
func (s *hmacSession) Decrypt(parameter []byte) error {
	if !s.attributes.Encrypt {
		return nil
	}
	return s.cfb(parameter, &s.nonceTPM, &s.nonceCaller, true)
}

// cfb encrypts or decrypts p with AES-128 in CFB mode. (crypto/cipher has it,
// deprecated for new designs, which this is not.)
func (s *hmacSession) cfb(p []byte, newer, older *[nonceSize]byte, decrypt bool) (err error) {
	secmem.Compute(func() {
		k := kdfa(s.secret.key(), "CFB", newer, older)
		defer secmem.Wipe(k[:])
		block, e := aes.NewCipher(k[:16])
		if err = e; err != nil {
			return
		}
		x, saved := &s.secret.block, &s.secret.saved
		copy(x[:], k[16:])
		for len(p) > 0 {
			block.Encrypt(x[:], x[:])
			n := min(len(x), len(p))
			copy(saved[:n], p) // the ciphertext, of what is decrypted
			subtle.XORBytes(p[:n], p[:n], x[:n])
			if !decrypt {
				copy(saved[:n], p)
			}
			*x = *saved
			p = p[n:]
		}
	})
	return err
}

// Handle is the session's.
func (s *hmacSession) Handle() tpm2.TPMHandle { return s.handle }
