package tpm

import (
	"bytes"
	"crypto/aes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// Duplicate is a secret as a sealed object that one TPM imports: wrapped to its
// storage root key (Part 1, 23.3, outer wrapper), outside of any TPM. All parts
// are without their two-byte size prefix.
type Duplicate struct {
	Public  []byte // TPMT_PUBLIC
	Private []byte // the wrapped sensitive area
	Seed    []byte // TPM2B_ENCRYPTED_SECRET, for the storage root key
}

// RootName checks that a TPMT_PUBLIC is a storage root key of the template that
// is used here, whose private part no TPM gives away and which decrypts nothing
// but its children, and computes its Name.
func RootName(public []byte) ([]byte, error) {
	p, err := rootPublic(public)
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(p)
	if err != nil {
		return nil, err
	}
	return name.Buffer, nil
}

func rootPublic(public []byte) (*tpm2.TPMTPublic, error) {
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil || !bytes.Equal(tpm2.Marshal(*p), public) {
		return nil, errors.New("the storage root key's public area is malformed")
	}
	if !isRootTemplate(p) {
		return nil, errors.New("the key is no storage root key of the template that is used here")
	}
	parms, err := p.Parameters.ECCDetail()
	if err != nil {
		return nil, err
	}
	point, err := p.Unique.ECC()
	if err != nil || len(point.X.Buffer) != p256Size || len(point.Y.Buffer) != p256Size {
		return nil, errors.New("the storage root key's point is malformed")
	}
	if _, err := tpm2.ECDHPub(parms, point); err != nil {
		return nil, fmt.Errorf("the storage root key: %w", err)
	}
	return p, nil
}

// p256Size is the length of a coordinate on P-256, in bytes.
const p256Size = 32

// Root gives the public part of the storage root key that Parent names.
func (t *TPM) Root() (public, name []byte, err error) {
	if name, err = t.Parent(); err != nil {
		return nil, nil, err
	}
	err = t.do("reading the storage root key", func() error {
		srk, err := t.root(name)
		if err == nil {
			public = tpm2.Marshal(srk.public)
		}
		return err
	})
	return public, name, err
}

// WrapFor wraps a secret, of 1 to 128 bytes, for the TPM with a storage root
// key: only that imports it, and opens it by auth. The secret is read, and
// encrypted, in secret memory.
func WrapFor(root, secret, auth []byte) (d Duplicate, err error) {
	if err := checkAuth(auth); err != nil {
		return d, err
	}
	if len(secret) < 1 || len(secret) > maxSecret {
		return d, fmt.Errorf("a sealed secret has 1 to %d bytes, not %d", maxSecret, len(secret))
	}
	parent, err := rootPublic(root)
	if err != nil {
		return d, err
	}
	page, err := secmem.New(secmem.Max)
	if err != nil {
		return d, err
	}
	defer page.Destroy()
	secmem.Compute(func() { d, err = wrap(parent, secret, auth, page.Bytes()) })
	return d, err
}

func wrap(parent *tpm2.TPMTPublic, secret, auth, page []byte) (d Duplicate, err error) {
	// The value that hides the secret in the public area's hash (Part 1, 27.5.3.2).
	w := writer{buf: page}
	hidden := page[len(page)-sha256.Size-len(secret):]
	if _, err := rand.Read(hidden[:sha256.Size]); err != nil {
		return d, err
	}
	secmem.Copy(hidden[sha256.Size:], secret)
	var unique [sha256.Size]byte
	secmem.Compute(func() { unique = sha256.Sum256(hidden) })
	public := sealTemplate(sealstore.SealOptions{Movable: true})
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: unique[:]})
	name, err := tpm2.ObjectName(&public)
	if err != nil {
		return d, err
	}

	// TPM2B_SENSITIVE (Part 2, 12.3.2.4).
	w.u16(2 + 2 + len(auth) + 2 + sha256.Size + 2 + len(secret))
	w.u16(int(tpm2.TPMAlgKeyedHash))
	w.sized(auth)
	w.sized(hidden[:sha256.Size])
	w.sized(secret)
	if w.full {
		return d, errors.New("wrapped secret too large")
	}
	sensitive := w.buf[:w.n]

	kem, err := tpm2.ImportEncapsulationKey(parent)
	if err != nil {
		return d, fmt.Errorf("the storage root key: %w", err)
	}
	seed, encrypted, err := kem.Encapsulate(rand.Reader, "DUPLICATE")
	if err != nil {
		return d, err
	}
	defer secmem.Wipe(seed)
	hash, err := parent.NameAlg.Hash()
	if err != nil {
		return d, err
	}
	if err := encryptCFB(tpm2.KDFa(hash, seed, "STORAGE", name.Buffer, nil, rootKeyBits), sensitive); err != nil {
		return d, err
	}
	mac := hmac.New(hash.New, tpm2.KDFa(hash, seed, "INTEGRITY", nil, nil, 8*hash.Size()))
	mac.Write(sensitive) // encrypted by now
	mac.Write(name.Buffer)
	return Duplicate{
		Public:  tpm2.Marshal(public),
		Private: append(tpm2.Marshal(tpm2.TPM2BDigest{Buffer: mac.Sum(nil)}), sensitive...),
		Seed:    encrypted,
	}, nil
}

// rootKeyBits is the size of the storage root key's AES keys.
const rootKeyBits = 128

// encryptCFB encrypts p where it is, with an initialisation vector of zeros as
// every storage key does (Part 1, 22.4).
func encryptCFB(key, p []byte) error {
	block, err := aes.NewCipher(key)
	secmem.Wipe(key)
	if err != nil {
		return err
	}
	var v [aes.BlockSize]byte
	for len(p) > 0 {
		block.Encrypt(v[:], v[:])
		n := subtle.XORBytes(p, p, v[:])
		copy(v[:], p[:n])
		p = p[n:]
	}
	return nil
}

// ImportWrapped imports what WrapFor has wrapped for this TPM (TPM2_Import),
// and writes the secret to dst, in secret memory. The object does not stay.
func (t *TPM) ImportWrapped(parent []byte, d Duplicate, auth, dst []byte) (n int, err error) {
	if err := checkAuth(auth); err != nil {
		return 0, err
	}
	public := tpm2.BytesAs2B[tpm2.TPMTPublic](d.Public)
	err = t.do("importing a secret", func() error {
		srk, err := t.root(parent)
		if err != nil {
			return err
		}
		r, err := tpm2.Import{
			ParentHandle: tpm2.AuthHandle{Handle: srk.handle, Name: srk.name, Auth: tpm2.PasswordAuth(nil)},
			ObjectPublic: public,
			Duplicate:    tpm2.TPM2BPrivate{Buffer: d.Private},
			InSymSeed:    tpm2.TPM2BEncryptedSecret{Buffer: d.Seed},
			Symmetric:    tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
		}.Execute(t.link)
		if err = t.rootError(srk, err); err != nil {
			return blobError(err)
		}
		defer t.unload()
		n, err = t.unseal(parent, sealstore.Blob{Public: d.Public, Private: r.OutPrivate.Buffer}, auth, dst)
		return err
	})
	return n, err
}

// unload flushes the sealed object that is loaded.
func (t *TPM) unload() {
	if t.loaded != nil {
		t.flush(t.loaded.handle)
		t.loaded = nil
	}
}
