package sealstore

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"fmt"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

const (
	secretSize = 32
	// An authorisation value is base64url of 24 bytes: 32 ASCII characters,
	// since sessions of other programs (go-tpm's) cut one at a zero byte.
	authBytes = 24
	authSize  = 32
)

// Labels of HKDF-Expand (RFC 5869, 2.3) and of the PIN's prehash. The number
// is the format version.
const (
	labelRoot         = "icn-p11 1 root secret"
	labelPublic       = "icn-p11 1 public secret"
	labelApprover     = "icn-p11 1 approver secret"
	labelMAC          = "icn-p11 1 token file"
	labelPrivateBody  = "icn-p11 1 private object"
	labelPublicBody   = "icn-p11 1 public object"
	labelPrivateSeal  = "icn-p11 1 private seal"
	labelPublicSeal   = "icn-p11 1 public seal"
	labelUserPIN      = "icn-p11 1 user PIN"
	labelSOPIN        = "icn-p11 1 SO PIN"
	prehashBlock      = 128 // of SHA-512
	prehashSize       = 3 * prehashBlock
	keyringSize       = secretSize + 3*32 + secretSize
	keyringBody       = secretSize
	keyringAuth       = keyringBody + 32
	keyringMAC        = keyringAuth + authSize
	keyringApprover   = keyringMAC + 32
	instanceSeparator = "icn-p11 1 instance\x00"
)

// keyring holds a token's root or public secret and the keys derived from it,
// in secret memory.
type keyring struct {
	buf      *secmem.Buffer
	instance instance
}

// instance tells one initialisation of a token from the next: the hash of the
// public part of its public seal, which no change of a PIN touches.
type instance [sha256.Size]byte

func (f *tokenFile) instance() instance {
	return sha256.Sum256(append([]byte(instanceSeparator), f.Public.Public...))
}

func newKeyring() (*keyring, error) {
	b, err := secmem.New(keyringSize)
	if err != nil {
		return nil, fmt.Errorf("secret memory: %w", err)
	}
	return &keyring{buf: b}, nil
}

// destroy wipes the keyring. The nil keyring may be destroyed.
func (k *keyring) destroy() {
	if k != nil {
		k.buf.Destroy()
	}
}

func (k *keyring) part(from, n int) []byte { return k.buf.Bytes()[from : from+n : from+n] }
func (k *keyring) secret() []byte          { return k.part(0, secretSize) }
func (k *keyring) bodyKey() []byte         { return k.part(keyringBody, 32) }
func (k *keyring) auth() []byte            { return k.part(keyringAuth, authSize) }
func (k *keyring) macKey() []byte          { return k.part(keyringMAC, macSize) }

// approver is the secret of who approves PCR values. The root secret's keyring
// has it only when the SO's PIN opened it.
func (k *keyring) approver() []byte { return k.part(keyringApprover, secretSize) }

// derive fills the keyring from its secret.
func (k *keyring) derive(private bool) error {
	body, seal := labelPublicBody, labelPublicSeal
	if private {
		body, seal = labelPrivateBody, labelPrivateSeal
	}
	var err error
	secmem.Compute(func() {
		var auth []byte
		if auth, err = hkdf.Expand(sha256.New, k.secret(), seal, authBytes); err != nil {
			return
		}
		base64.RawURLEncoding.Encode(k.auth(), auth)
		secmem.Wipe(auth)
		for _, x := range []struct {
			label string
			to    []byte
		}{{body, k.bodyKey()}, {labelMAC, k.macKey()}} {
			var key []byte
			if key, err = hkdf.Expand(sha256.New, k.secret(), x.label, len(x.to)); err != nil {
				return
			}
			copy(x.to, key)
			secmem.Wipe(key)
		}
	})
	return err
}

// mac computes the token file's MAC under a root secret's keyring.
func (k *keyring) mac(f *tokenFile) (sum [macSize]byte) {
	data := f.authenticated()
	secmem.Compute(func() {
		h := hmac.New(sha256.New, k.macKey())
		h.Write(data)
		h.Sum(sum[:0])
	})
	return sum
}

func (k *keyring) checkMAC(f *tokenFile) error {
	sum := k.mac(f)
	if subtle.ConstantTimeCompare(sum[:], f.MAC[:]) != 1 {
		return fmt.Errorf("%w: the token file's MAC is wrong", ErrIntegrity)
	}
	return nil
}

// seal encrypts a body into f. The cipher copies its key to the heap, so it
// lives for one call only, inside secmem.Compute.
func (k *keyring) seal(f *objectFile, body []byte) error {
	if _, err := rand.Read(f.Nonce[:]); err != nil {
		return err
	}
	ad := f.appendHeader(nil, len(body)+overhead)
	out := make([]byte, 0, len(body)+overhead)
	var err error
	secmem.Compute(func() {
		c, e := chacha20poly1305.NewX(k.bodyKey())
		if e != nil {
			err = e
			return
		}
		out = c.Seal(out, f.Nonce[:], body, ad)
	})
	f.Ciphertext = out
	return err
}

// open decrypts the body of f.
func (k *keyring) open(f *objectFile) ([]byte, error) {
	b := []sealedBody{{file: f}}
	k.openAll(b)
	return b[0].body, b[0].err
}

// sealedBody is a body that openAll decrypts.
type sealedBody struct {
	file   *objectFile
	header []byte
	body   []byte // nil with err
	err    error
}

// openAll decrypts bodies, for which it sets up the cipher and holds signals
// back once.
func (k *keyring) openAll(bodies []sealedBody) {
	headers := make([]byte, 0, len(bodies)*headerSize)
	for i := range bodies {
		b := &bodies[i]
		from := len(headers)
		headers = b.file.appendHeader(headers, len(b.file.Ciphertext))
		b.header = headers[from:]
		b.body = make([]byte, 0, len(b.file.Ciphertext)-overhead)
	}
	secmem.Compute(func() {
		c, err := chacha20poly1305.NewX(k.bodyKey())
		for i := range bodies {
			b := &bodies[i]
			if b.err = err; err == nil {
				b.body, b.err = c.Open(b.body, b.file.Nonce[:], b.file.Ciphertext, b.header)
			}
		}
	})
	for i := range bodies {
		if bodies[i].err != nil {
			bodies[i].body, bodies[i].err = nil, fmt.Errorf("%w: the object does not authenticate", ErrIntegrity)
		}
	}
}

// with runs use with the body of o, and wipes a private one afterwards.
func (k *keyring) with(o *objectFile, use func(body []byte) error) error {
	body, err := k.open(o)
	if err != nil {
		return err
	}
	if o.private() {
		defer secmem.Wipe(body)
	}
	return use(body)
}

// newSecret makes a keyring with a fresh secret: for the root secret, with a
// fresh approver's secret too.
func newSecret(s Sealer, private bool) (*keyring, error) {
	k, err := newKeyring()
	if err != nil {
		return nil, err
	}
	if private {
		if err = draw(s, labelRoot, k.secret()); err == nil {
			err = draw(s, labelApprover, k.approver())
		}
	} else {
		err = draw(s, labelPublic, k.secret())
	}
	if err == nil {
		err = k.derive(private)
	}
	if err != nil {
		k.destroy()
		return nil, fmt.Errorf("drawing a secret: %w", err)
	}
	return k, nil
}

// draw fills dst, in secret memory, from the system's and the TPM's generator
// so that one of them may be bad.
func draw(s Sealer, label string, dst []byte) error {
	// Two draws of 32 bytes fill one block of SHA-256, so that the hash reads
	// them where they are and keeps none of it in its own buffer.
	draws, err := secmem.New(2 * secretSize)
	if err != nil {
		return fmt.Errorf("secret memory: %w", err)
	}
	defer draws.Destroy()
	if _, err := rand.Read(draws.Bytes()[:secretSize]); err != nil {
		return err
	}
	if err := s.Random(draws.Bytes()[secretSize:]); err != nil {
		return err
	}
	secmem.Compute(func() {
		var prk []byte
		if prk, err = hkdf.Extract(sha256.New, draws.Bytes(), []byte(label)); err == nil {
			copy(dst, prk)
			secmem.Wipe(prk)
		}
	})
	return err
}

func newKDF() (kdf, error) {
	k := pinCost
	_, err := rand.Read(k.Salt[:])
	return k, err
}

// pinAuth turns a PIN into the authorisation value of a seal.
//
// Argon2 keeps its input in buffers that nobody can wipe, so it gets a SHA-512
// hash of the PIN. That hash in turn sees whole blocks in secret memory only,
// which it compresses in place: one that holds the role and the salt, two that
// hold the PIN.
func pinAuth(r Role, k kdf, pin []byte) (*secmem.Buffer, error) {
	if len(pin) > MaxPIN {
		return nil, ErrPINLength
	}
	in, err := secmem.New(prehashSize + sha512.Size)
	if err != nil {
		return nil, fmt.Errorf("secret memory: %w", err)
	}
	defer in.Destroy()
	auth, err := secmem.New(authSize)
	if err != nil {
		return nil, fmt.Errorf("secret memory: %w", err)
	}
	var sum []byte
	secmem.Compute(func() {
		b := in.Bytes()
		label := labelUserPIN
		if r == SO {
			label = labelSOPIN
		}
		copy(b, label)
		copy(b[prehashBlock-saltSize:], k.Salt[:])
		b[prehashBlock] = byte(len(pin))
		copy(b[prehashBlock+1:], pin)
		h := sha512.New()
		h.Write(b[:prehashSize])
		sum = h.Sum(b[prehashSize:prehashSize])
	})
	secmem.Do(func() {
		key := argon2.IDKey(sum, k.Salt[:], k.Passes, k.Memory, k.Lanes, authBytes)
		base64.RawURLEncoding.Encode(auth.Bytes(), key)
		secmem.Wipe(key)
	})
	return auth, nil
}
