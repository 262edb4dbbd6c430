package sealstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// statisticsName is a file beside the tokens with figures about their use. It
// is neither secret nor authenticated, and no token depends on it.
const statisticsName = "statistics"

// MaxStatistics is the largest file of that kind that is read, in bytes.
const MaxStatistics = 4 << 20

// Statistics reads the statistics as they were written last, nil where there
// are none.
func (s *Store) Statistics() ([]byte, error) {
	p, err := readFile(s.dir, statisticsName, MaxStatistics)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	return p, err
}

// UpdateStatistics replaces the statistics by what change makes of them, while
// no other process does, for which it waits at most for as long as patience.
// old is nil where there are none and, with the reason
// in damage, where they cannot be read. Only the store's owner may, so that
// the owner can go on doing so; nothing is synced, since a power failure may
// cost figures, never a token.
func (s *Store) UpdateStatistics(patience time.Duration, change func(old []byte, damage error) ([]byte, error)) error {
	if err := s.countable(); err != nil {
		return err
	}
	path := filepath.Join(s.dir, statisticsName)
	// The file is its own lock: a new one in its place is noticed by lock.
	l, err := lockWithin(path, patience)
	if err != nil {
		return writeError(path, err)
	}
	defer l.unlock()
	old, err := s.Statistics()
	if err != nil && !errors.Is(err, ErrIntegrity) {
		return err
	}
	next, err := change(old, err)
	if err != nil {
		return err
	}
	removeTemps(s.dir)
	if err := writeLoose(s.dir, statisticsName, next); err != nil {
		return writeError(path, err)
	}
	return nil
}

// countable tells why statistics are not written.
func (s *Store) countable() error {
	if err := owned(s.dir); err != nil {
		return err
	}
	return writable(s.dir)
}

// owned tells why a file that anybody could make again, and nobody needs, is not
// written in a directory: only its owner does, so that the owner can go on
// doing so.
func owned(dir string) error {
	st, err := os.Stat(dir)
	if err != nil {
		return readError(dir, err)
	}
	if uid, ok := owner(st); ok && int(uid) != os.Geteuid() {
		return fmt.Errorf("%s: %w by another user than its owner", dir, ErrReadOnly)
	}
	return nil
}

// Holds tells whether the store has a token, readable or not.
func (s *Store) Holds(serial string) bool {
	if !ValidSerial(serial) {
		return false
	}
	_, err := os.Lstat(s.tokenDir(serial))
	return err == nil
}
