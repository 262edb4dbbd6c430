package sealstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Watch tells when the tokens of a store may have changed, whoever changed
// them. It sees what this machine does to the files: a store on a network file
// system may change unseen.
type Watch struct {
	store *Store
	file  *os.File
	buf   [4096]byte
}

// watched are the events that can make, remove or repair a token: names that
// come and go, files that were written, rights that changed.
const watched = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_CLOSE_WRITE |
	unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// Watch begins to watch the store, which need not exist. What changes from now
// on ends the next Wait, so whoever looks at the store between the two misses
// nothing.
func (s *Store) Watch() (*Watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watching %s: %w", s.dir, err)
	}
	w := &Watch{store: s, file: os.NewFile(uintptr(fd), "inotify")}
	if err := w.arrange(); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// Wait returns when something may have changed, or with an error, for which
// [os.ErrClosed] stands in the chain after Close.
func (w *Watch) Wait() error {
	// Which events they were does not matter: after any, the store is read.
	if _, err := w.file.Read(w.buf[:]); err != nil {
		return fmt.Errorf("watching %s: %w", w.store.dir, err)
	}
	return w.arrange()
}

// Close ends the watch and a Wait that is under way.
func (w *Watch) Close() error { return w.file.Close() }

// arrange watches every directory that matters and exists: the tokens, the
// directory of tokens, the store, and the place where the store is or will be
// made. A directory that is watched already stays so.
func (w *Watch) arrange() error {
	// From the deepest up to one that exists, and down again as far as
	// others have appeared since.
	chain := []string{w.store.tokensDir()}
	for dir := w.store.dir; ; dir = filepath.Dir(dir) {
		chain = append(chain, dir)
		if dir == filepath.Dir(dir) {
			break
		}
	}
	at := 0
	for ; at < len(chain); at++ {
		if ok, err := w.add(chain[at]); err != nil {
			return err
		} else if ok {
			break
		}
	}
	for at > 0 {
		ok, err := w.add(chain[at-1])
		if err != nil {
			return err
		}
		if !ok {
			return nil
		}
		at--
	}
	// The store and what it lies in, too: they may be moved away.
	for _, dir := range chain[1:min(3, len(chain))] {
		if _, err := w.add(dir); err != nil {
			return err
		}
	}
	return w.addTokens()
}

// addTokens watches each token, of which a file may still be on its way.
func (w *Watch) addTokens() error {
	names, err := os.ReadDir(w.store.tokensDir())
	if err != nil {
		return nil // it is unreadable, and watched
	}
	for _, n := range names {
		if !ValidSerial(n.Name()) {
			continue
		}
		if _, err := w.add(w.store.tokenDir(n.Name())); err != nil {
			return err
		}
	}
	return nil
}

// add watches a directory; ok tells whether there is one that can be.
func (w *Watch) add(dir string) (ok bool, err error) {
	// Control keeps the descriptor from being closed, and its number from
	// being another file's, meanwhile.
	conn, err := w.file.SyscallConn()
	if err == nil {
		var failed error
		err = conn.Control(func(fd uintptr) { _, failed = unix.InotifyAddWatch(int(fd), dir, watched) })
		if err == nil {
			err = failed
		}
	}
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EACCES):
		return false, nil
	}
	return false, fmt.Errorf("watching %s: %w", dir, err)
}
