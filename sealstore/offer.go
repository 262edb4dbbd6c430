package sealstore

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// OfferID names an offer to receive a token from another machine.
type OfferID [16]byte

// Offer is what a store keeps of such an offer: a secret, without which nothing
// that was sent to the offer can be opened, sealed to this TPM. It goes when
// the token has arrived, so that what was sent serves nobody afterwards.
type Offer struct {
	ID      OfferID
	Created time.Time
}

const (
	offersName   = "offers"
	offerMagic   = "ICNP11F"
	maxOfferFile = 7 + 1 + 16 + 8 + 2 + maxName + 2*(2+maxBlobPart)
)

// offerFile is the content of an offer's file.
type offerFile struct {
	ID      OfferID
	Created uint64 // seconds since 1970
	Parent  []byte // Name of the storage root key
	Blob    Blob
}

func (f *offerFile) encode() []byte {
	b := append([]byte(offerMagic), formatVersion)
	b = append(b, f.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, f.Created)
	return appendBlob(appendSized(b, f.Parent), f.Blob)
}

func decodeOffer(p []byte) (*offerFile, error) {
	d := decoder{rest: p}
	d.magic(offerMagic)
	f := new(offerFile)
	copy(f.ID[:], d.take(len(f.ID)))
	if f.Created = d.uint64(); f.Created > MaxCreated {
		d.fail("creation time %d", f.Created)
	}
	f.Parent = d.sized(maxName)
	f.Blob = d.blob()
	if err := d.end(); err != nil {
		return nil, err
	}
	return f, nil
}

func (s *Store) offersDir() string { return filepath.Join(s.dir, offersName) }
func (s *Store) offerPath(id OfferID) string {
	return filepath.Join(s.offersDir(), hex.EncodeToString(id[:]))
}

// KeepOffer seals the secret of an offer, 1 to 128 bytes.
func (s *Store) KeepOffer(id OfferID, secret []byte) error {
	if err := s.prepare(); err != nil {
		return err
	}
	f := &offerFile{ID: id, Created: uint64(time.Now().Unix())}
	var err error
	if f.Parent, err = s.sealer.Parent(); err != nil {
		return err
	}
	if f.Blob, err = s.sealer.Seal(f.Parent, secret, nil, SealOptions{}); err == nil {
		err = s.verifySeal(f.Parent, f.Blob, nil, secret)
	}
	if err != nil {
		return fmt.Errorf("sealing the secret of an offer: %w", err)
	}
	l, err := s.lock()
	if err != nil {
		return err
	}
	defer l.unlock()
	// It is the owner's alone, also where a group may read the store.
	if err := makeDir(s.offersDir()); err != nil {
		return writeError(s.offersDir(), err)
	}
	removeTemps(s.offersDir())
	if err := writeFile(s.offersDir(), hex.EncodeToString(id[:]), f.encode(), false); err != nil {
		return writeError(s.offerPath(id), err)
	}
	return nil
}

func (s *Store) readOffer(id OfferID) (*offerFile, error) {
	path := s.offerPath(id)
	p, err := readFile(s.offersDir(), filepath.Base(path), maxOfferFile)
	if err != nil {
		return nil, err
	}
	f, err := decodeOffer(p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if f.ID != id {
		return nil, fmt.Errorf("%s: %w: it is the file of offer %x", path, ErrIntegrity, f.ID)
	}
	return f, nil
}

// HasOffer fails with ErrNotFound if there is no such offer, and otherwise
// where its file is damaged. It does not trouble the TPM.
func (s *Store) HasOffer(id OfferID) error {
	_, err := s.readOffer(id)
	return err
}

// OpenOffer writes the secret of an offer to dst, which is secret memory, and
// gives its length.
func (s *Store) OpenOffer(id OfferID, dst []byte) (int, error) {
	f, err := s.readOffer(id)
	if err != nil {
		return 0, err
	}
	n, err := s.sealer.Unseal(f.Parent, f.Blob, nil, dst)
	if err != nil {
		return 0, fmt.Errorf("unsealing the secret of offer %x: %w", id, err)
	}
	return n, nil
}

// DropOffer destroys the secret of an offer.
func (s *Store) DropOffer(id OfferID) error {
	if err := s.ours(); err != nil {
		return err
	}
	l, err := s.lock()
	if err != nil {
		return err
	}
	defer l.unlock()
	removeTemps(s.offersDir())
	return removeFile(s.offersDir(), hex.EncodeToString(id[:]))
}

// Offers lists the offers whose secrets are kept, the oldest first. Files that
// are none are logged and left out.
func (s *Store) Offers() (all []Offer, err error) {
	names, err := os.ReadDir(s.offersDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, readError(s.offersDir(), err)
	}
	for _, n := range names {
		id, ok := parseID(n.Name())
		if !ok {
			continue
		}
		f, err := s.readOffer(OfferID(id))
		if err != nil {
			s.report(filepath.Join(s.offersDir(), n.Name()), fileID{}, "offer left out", err)
			continue
		}
		all = append(all, Offer{f.ID, time.Unix(int64(f.Created), 0).UTC()})
	}
	slices.SortFunc(all, func(a, b Offer) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return bytes.Compare(a.ID[:], b.ID[:])
	})
	return all, nil
}
