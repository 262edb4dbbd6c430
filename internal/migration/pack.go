package migration

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// Pack makes the parcel of a token for an offer, and says what proves that it
// has arrived.
func Pack(o *Offer, c *sealstore.Contents, move bool, progress sealstore.Progress) (*Parcel, Expected, error) {
	k, err := newKeys()
	if err != nil {
		return nil, Expected{}, err
	}
	defer k.destroy()
	p := &Parcel{Header: Header{Move: move, Offer: o.ID, RootName: o.RootName}}
	serial, err := hex.DecodeString(c.Serial)
	if err != nil || copy(p.Serial[:], serial) != len(p.Serial) {
		return nil, Expected{}, fmt.Errorf("the serial number %q is malformed", c.Serial)
	}
	if _, err := rand.Read(k.activated()); err != nil {
		return nil, Expected{}, err
	}
	if p.Credential, err = tpm.Credential(o.Endorsement.Public, o.RootName, k.activated()); err != nil {
		return nil, Expected{}, err
	}
	public, err := k.agree(nil, o.Key)
	if err != nil {
		return nil, Expected{}, err
	}
	copy(p.Key[:], public)
	if err := k.derive(p.Key, o.Key); err != nil {
		return nil, Expected{}, err
	}
	var keys [][]byte
	for i := range c.Objects {
		if err := checkKey(&c.Objects[i]); err != nil {
			return nil, Expected{}, fmt.Errorf("object %x: %w", c.Objects[i].ID, err)
		}
		if isKey(c.Objects[i].About) {
			keys = append(keys, c.Objects[i].About)
		}
	}
	if move && len(keys) == 0 {
		return nil, Expected{}, ErrNoKey
	}
	w, err := wrap(o, c, k.auth(), progress)
	if err != nil {
		return nil, Expected{}, err
	}
	plain, err := w.encode()
	if err != nil {
		return nil, Expected{}, err
	}
	defer secmem.Wipe(plain)
	if err := p.close(k, plain); err != nil {
		return nil, Expected{}, err
	}
	if n := p.size(); n > MaxParcel {
		return nil, Expected{}, fmt.Errorf("the token is too large to be sent: %d MiB, and %d are possible", n>>20, MaxParcel>>20)
	}
	e := Expected{Offer: o.ID, Serial: p.Serial, RootName: o.RootName, Nonce: sha256.Sum256(w.nonce[:]), Keys: keysDigest(keys)}
	return p, e, nil
}

// wrap turns a token's secrets into what only the target's TPM imports.
func wrap(o *Offer, c *sealstore.Contents, auth []byte, progress sealstore.Progress) (*contents, error) {
	w := &contents{
		label: c.Label, slot: c.Slot, created: uint64(c.Created.Unix()), userPIN: c.UserPIN, noPIN: c.NoPIN,
	}
	if _, err := rand.Read(w.nonce[:]); err != nil {
		return nil, err
	}
	if c.Binding != nil {
		w.binding = &sealstore.BindingSpec{Bank: c.Binding.Bank, PCRs: slices.Sorted(slices.Values(c.Binding.PCRs))}
	}
	for i, x := range c.Objects {
		w.objects = append(w.objects, object{id: x.ID, private: x.Private, body: x.Body, about: x.About})
		if x.Secret != nil {
			d, err := tpm.WrapFor(o.RootPublic, x.Secret, auth)
			if err != nil {
				return nil, fmt.Errorf("object %x: %w", x.ID, err)
			}
			w.objects[i].seal = &d
		}
		if progress != nil {
			progress(i+1, len(c.Objects))
		}
	}
	slices.SortFunc(w.objects, func(a, b object) int { return bytes.Compare(a.id[:], b.id[:]) })
	return w, nil
}

// Opened is a parcel that its target has opened. Its secrets are still wrapped
// to the target's TPM.
type Opened struct {
	Header
	keys keys
	in   *contents
	data []byte
}

// Open opens a parcel: with secret, the private half of the offer's key, and
// activate, which opens the credential on the target's TPM and writes what it
// finds to secret memory. The caller destroys the result.
func (p *Parcel) Open(secret []byte, activate func(credential, dst []byte) (int, error)) (*Opened, error) {
	k, err := newKeys()
	if err != nil {
		return nil, err
	}
	x, err := p.unlock(k, secret, activate)
	if err != nil {
		k.destroy()
		return nil, err
	}
	return x, nil
}

func (p *Parcel) unlock(k keys, secret []byte, activate func(credential, dst []byte) (int, error)) (*Opened, error) {
	n, err := activate(p.Credential, k.activated())
	if err != nil {
		return nil, err
	}
	if n != len(k.activated()) {
		return nil, errAltered
	}
	public, err := k.agree(secret, p.Key)
	if err != nil {
		return nil, errAltered
	}
	if err := k.derive(p.Key, [KeySize]byte(public)); err != nil {
		return nil, err
	}
	data, err := p.open(k)
	if err != nil {
		return nil, err
	}
	in, err := decodeContents(data)
	if err != nil {
		secmem.Wipe(data)
		return nil, fmt.Errorf("what was sent is malformed: %w", err)
	}
	return &Opened{p.Header, k, in, data}, nil
}

// Destroy wipes what was opened.
func (x *Opened) Destroy() {
	x.keys.destroy()
	secmem.Wipe(x.data)
}

// Contents gives the token with its secrets, which importer has the TPM import,
// and checks for each key that it is the one that it is said to be. The caller
// destroys the result.
func (x *Opened) Contents(importer func(d tpm.Duplicate, auth, dst []byte) (int, error), progress sealstore.Progress) (*sealstore.Contents, error) {
	c := x.Describe()
	for i := range x.in.objects {
		if err := x.unwrap(c, i, importer); err != nil {
			c.Destroy()
			return nil, fmt.Errorf("object %x: %w", x.in.objects[i].id, err)
		}
		if progress != nil {
			progress(i+1, len(x.in.objects))
		}
	}
	return c, nil
}

// Describe gives the token as far as it is known without its secrets.
func (x *Opened) Describe() *sealstore.Contents {
	in := x.in
	c := &sealstore.Contents{
		Serial: x.Serial.String(), Label: in.label, Slot: in.slot, Created: time.Unix(int64(in.created), 0).UTC(),
		UserPIN: in.userPIN, NoPIN: in.noPIN, Binding: in.binding,
	}
	for _, o := range in.objects {
		c.Objects = append(c.Objects, sealstore.Content{ID: o.id, Private: o.private, Body: bytes.Clone(o.body)})
	}
	return c
}

func (x *Opened) unwrap(c *sealstore.Contents, i int, importer func(d tpm.Duplicate, auth, dst []byte) (int, error)) error {
	o := &x.in.objects[i]
	if o.seal == nil {
		return nil
	}
	secret, err := c.SecretBuffer(sealstore.MaxSecret)
	if err != nil {
		return err
	}
	n, err := importer(*o.seal, x.keys.auth(), secret)
	if err != nil {
		return err
	}
	c.Objects[i].Secret, c.Objects[i].About = secret[:n], bytes.Clone(o.about)
	return checkKey(&c.Objects[i])
}

// Has tells whether a key was sent.
func (x *Opened) Has(public [ed25519.PublicKeySize]byte) bool {
	return slices.ContainsFunc(x.in.objects, func(o object) bool { return bytes.Equal(o.about, public[:]) })
}

// Same tells whether these are the objects that were sent, but for their
// secrets.
func (x *Opened) Same(objects []sealstore.Object) bool {
	return slices.EqualFunc(x.in.objects, objects, func(o object, p sealstore.Object) bool {
		return o.id == p.ID && o.private == p.Private && (o.seal != nil) == p.Sealed && bytes.Equal(o.body, p.Body)
	})
}
