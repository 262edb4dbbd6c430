package sealstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Move is the pending move of a token to another TPM: what has to be proved
// before the token is deleted here.
type Move struct {
	Offer   OfferID
	Target  []byte            // Name of the other TPM's storage root key
	Nonce   [sha256.Size]byte // SHA-256 of the challenge
	Keys    [sha256.Size]byte // of the keys that have to sign it
	State   [sha256.Size]byte // of the token when it was sent, as State gives it
	Started time.Time
}

const (
	moveName    = "migration"
	moveMagic   = "ICNP11V"
	maxMoveFile = 7 + 1 + 16 + 8 + 3*sha256.Size + 2 + maxName
)

// ErrStale: the token was changed after it was sent, so that the other TPM has
// not got all of it.
var ErrStale = errors.New("the token was changed since it was sent")

func (m *Move) encode() []byte {
	b := append([]byte(moveMagic), formatVersion)
	b = append(b, m.Offer[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(m.Started.Unix()))
	b = append(b, m.Nonce[:]...)
	b = append(b, m.Keys[:]...)
	b = append(b, m.State[:]...)
	return appendSized(b, m.Target)
}

func decodeMove(p []byte) (*Move, error) {
	d := decoder{rest: p}
	d.magic(moveMagic)
	m := new(Move)
	copy(m.Offer[:], d.take(len(m.Offer)))
	started := d.uint64()
	if started > MaxCreated {
		d.fail("creation time %d", started)
	}
	m.Started = time.Unix(int64(started), 0).UTC()
	for _, sum := range []*[sha256.Size]byte{&m.Nonce, &m.Keys, &m.State} {
		copy(sum[:], d.take(sha256.Size))
	}
	m.Target = d.sized(maxName)
	if err := d.end(); err != nil {
		return nil, err
	}
	return m, nil
}

// State is a digest of all objects of a token, as their files are. Whatever
// changes one of them changes it; a change of PINs, label or approved states of
// the platform does not.
func (t *Token) State() (sum [sha256.Size]byte, err error) {
	path := filepath.Join(t.path, objectsName)
	dir, err := openDir(unix.AT_FDCWD, path, path)
	if err != nil {
		return sum, readError(path, err)
	}
	defer dir.Close()
	ids, _, err := listObjects(dir)
	if err != nil {
		return sum, readError(path, err)
	}
	all := sha256.New()
	for _, id := range ids {
		n := idName(id)
		p, _, err := readAt(dir, n, maxObjectFile)
		if err != nil {
			return sum, readError(filepath.Join(path, n), err)
		}
		one := sha256.Sum256(p)
		all.Write([]byte(n))
		all.Write(one[:])
	}
	return [sha256.Size]byte(all.Sum(nil)), nil
}

// StartMove remembers a move, instead of one that was pending.
func (t *Token) StartMove(m *Move) error {
	return t.locked(func(*tokenFile) error {
		if err := writeFile(t.path, moveName, m.encode(), true); err != nil {
			return writeError(filepath.Join(t.path, moveName), err)
		}
		return nil
	})
}

// Move gives the pending move; nil: there is none.
func (t *Token) Move() (*Move, error) {
	path := filepath.Join(t.path, moveName)
	dir, err := openDir(unix.AT_FDCWD, t.path, t.path)
	if err != nil {
		return nil, readError(t.path, err)
	}
	defer dir.Close()
	p, _, err := readAt(dir, moveName, maxMoveFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, readError(path, err)
	}
	m, err := decodeMove(p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// CancelMove forgets a pending move. It fails with ErrNotFound if there is none.
func (t *Token) CancelMove() error {
	return t.locked(func(*tokenFile) error {
		return removeFile(t.path, moveName)
	})
}

// FinishMove deletes a token that has arrived elsewhere, as Delete does. It
// fails, and deletes nothing, if m is not pending any more, and with ErrStale if
// the token is not the one that was sent.
func (s *Store) FinishMove(serial string, soPIN []byte, m *Move) error {
	return s.delete(serial, soPIN, func(t *Token) error {
		now, err := t.Move()
		if err != nil {
			return err
		}
		if now == nil || !bytes.Equal(now.encode(), m.encode()) {
			return fmt.Errorf("token %s: its pending move: %w", serial, ErrChanged)
		}
		state, err := t.State()
		if err != nil {
			return err
		}
		if state != m.State {
			return fmt.Errorf("token %s: %w", serial, ErrStale)
		}
		return nil
	})
}
