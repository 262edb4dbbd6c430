package tpm

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// keyCurve is a curve that the TPM may have keys on.
type keyCurve struct {
	id   tpm2.TPMECCCurve
	hash tpm2.TPMIAlgHash // of the size of a coordinate
	size int              // of a coordinate, in bytes
}

var keyCurves = map[string]keyCurve{
	"P-256": {tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256, 32},
	"P-384": {tpm2.TPMECCNistP384, tpm2.TPMAlgSHA384, 48},
}

// NewKey implements sealstore.Sealer with TPM2_Create: a signing key whose
// private part the TPM makes and keeps.
func (t *TPM) NewKey(parent []byte, curve string, auth []byte, o sealstore.SealOptions) (b sealstore.Blob, point []byte, err error) {
	c, ok := keyCurves[curve]
	if !ok {
		return b, nil, fmt.Errorf("%s: %w", curve, sealstore.ErrCurve)
	}
	if err := checkAuth(auth); err != nil {
		return b, nil, err
	}
	template := tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: !o.DictionaryAttack, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
			Scheme:    tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull},
			CurveID:   c.id,
			KDF:       tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
	b, err = t.createUnder(parent, nil, auth, template, o)
	if errors.Is(err, tpm2.TPMRCCurve) || errors.Is(err, tpm2.TPMRCValue) || errors.Is(err, tpm2.TPMRCHash) {
		err = fmt.Errorf("%s: %w: %w", curve, sealstore.ErrCurve, err)
	}
	if err != nil {
		return b, nil, err
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](b.Public)
	if err != nil {
		return b, nil, errFrame
	}
	unique, err := public.Unique.ECC()
	if err != nil || len(unique.X.Buffer) > c.size || len(unique.Y.Buffer) > c.size {
		return b, nil, errFrame
	}
	point = make([]byte, 1+2*c.size)
	point[0] = 4
	copy(point[1+c.size-len(unique.X.Buffer):], unique.X.Buffer)
	copy(point[1+2*c.size-len(unique.Y.Buffer):], unique.Y.Buffer)
	return b, point, nil
}

// Sign implements sealstore.Sealer with TPM2_Sign.
func (t *TPM) Sign(parent []byte, b sealstore.Blob, auth []byte, digest []byte) (signature []byte, err error) {
	if err := checkAuth(auth); err != nil {
		return nil, err
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](b.Public)
	if err != nil {
		return nil, fmt.Errorf("%w: its public area is malformed", sealstore.ErrBlob)
	}
	params, err := public.Parameters.ECCDetail()
	if err != nil {
		return nil, fmt.Errorf("%w: it is no ECDSA key", sealstore.ErrBlob)
	}
	var c keyCurve
	for _, k := range keyCurves {
		if k.id == params.CurveID {
			c = k
		}
	}
	if c.size == 0 || len(digest) != c.size {
		return nil, fmt.Errorf("a digest of %d bytes for a key of %d", len(digest), c.size)
	}
	err = t.do("signing", func() error {
		srk, key, err := t.load(parent, b)
		if err != nil {
			return err
		}
		page, err := secmem.New(secmem.Max)
		if err != nil {
			return err
		}
		defer page.Destroy()
		s, err := t.authorise(srk, key, b.Binding, auth, false)
		if err != nil {
			return err
		}
		scheme := tpm2.Marshal(tpm2.TPMTSigScheme{
			Scheme:  tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: c.hash}),
		})
		ticket := tpm2.Marshal(tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull})
		w := writer{buf: page.Bytes()}
		w.sized(digest)
		w.raw(scheme)
		w.raw(ticket)
		out, err := t.exec(command{
			code: tpm2.TPMCCSign, handles: []tpm2.TPMHandle{key.handle}, names: []tpm2.TPM2BName{key.name},
			params: w.buf[:w.n],
		}, s, page.Bytes())
		if err != nil && !key.byAuth {
			t.dropSession(s)
		}
		if err != nil {
			return err
		}
		r := reader{out[min(4, len(out)):]} // behind the algorithm of the signature and of the hash
		x, y := bytes.Clone(r.sized()), bytes.Clone(r.sized())
		if r.buf == nil || len(r.buf) != 0 || len(x) > c.size || len(y) > c.size {
			return errFrame
		}
		pad := func(v []byte) []byte { return append(make([]byte, c.size-len(v)), v...) }
		signature = slices.Concat(pad(x), pad(y))
		return nil
	})
	return signature, err
}
