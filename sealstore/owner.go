package sealstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/account"
	"github.com/InterCooperative-Network/icn-p11/internal/advice"
)

// Writable tells why nothing could be stored, as far as that can be known
// beforehand: the store, or the directory that it would be made in, belongs to
// somebody else or cannot be written. It changes nothing.
func (s *Store) Writable() error {
	if err := s.ours(); err != nil {
		return err
	}
	dir, st, err := existing(s.tokensDir())
	switch {
	case err != nil:
		return readError(dir, err)
	case !st.IsDir():
		return writeError(dir, unix.ENOTDIR)
	}
	return writable(dir)
}

// Writable tells why nothing in the token could be changed, as far as that can
// be known beforehand. It changes nothing.
func (t *Token) Writable() error {
	if err := t.store.ours(); err != nil {
		return err
	}
	if err := writable(t.path); err != nil {
		return err
	}
	return writable(filepath.Join(t.path, objectsName))
}

func writable(dir string) error {
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return writeError(dir, err)
	}
	return nil
}

// inherit lets the group that may read dir read path as well, which was just
// made in it. Where this user may not give it to that group, it stays the
// user's alone.
func inherit(dir, path string) error {
	from, err := os.Stat(dir)
	if err != nil {
		return err
	}
	to, err := os.Lstat(path)
	if err != nil || from.Mode().Perm()&0o050 != 0o050 {
		return err
	}
	if gid := group(from); gid != group(to) {
		if err := os.Lchown(path, -1, gid); err != nil {
			if errors.Is(err, fs.ErrPermission) {
				err = nil
			}
			return err
		}
	}
	read := fs.FileMode(0o040)
	if to.IsDir() {
		read = 0o050
	}
	return os.Chmod(path, to.Mode()|read)
}

func group(st fs.FileInfo) int {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(sys.Gid)
	}
	return -1
}

// ours refuses to write as root what another user's programs have to read:
// the files would be root's, and the store would break for its owner.
func (s *Store) ours() error {
	if os.Geteuid() != 0 {
		return nil
	}
	st, err := os.Stat(s.dir)
	if err != nil {
		return nil // made by us then, or told by what comes next
	}
	if uid, ok := owner(st); ok && uid != 0 {
		return advice.With(fmt.Errorf("%s: %w by root: it belongs to %s, who could not use what root makes there",
			s.dir, ErrReadOnly, account.UserName(uid)), asOwner(uid))
	}
	return nil
}

func asOwner(uid uint32) string {
	return fmt.Sprintf("run this as %s, or set sealed_blob_dir", account.UserName(uid))
}

func owner(st fs.FileInfo) (uid uint32, ok bool) {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return sys.Uid, true
}

// existing finds the path itself or the nearest directory above it that is there.
func existing(path string) (string, fs.FileInfo, error) {
	for {
		st, err := os.Stat(path)
		if err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) || path == filepath.Dir(path) {
			return path, st, err
		}
		path = filepath.Dir(path)
	}
}

// accessAdvice says who may do what this process may not.
func accessAdvice(path string) string {
	path, st, err := existing(path)
	for errors.Is(err, fs.ErrPermission) && path != filepath.Dir(path) {
		path = filepath.Dir(path)
		st, err = os.Stat(path)
	}
	if err != nil {
		return "set sealed_blob_dir to a directory that this user has access to"
	}
	uid, ok := owner(st)
	switch {
	case ok && int(uid) != os.Geteuid():
		return asOwner(uid)
	case st.IsDir():
		return "chmod u=rwx " + path
	}
	return "chmod u=rw " + path
}

// expose warns once of a directory that others may look into, or its group may
// write to. The seals hold all the same, but who may write here can destroy the
// store. That the group may read it is the owner's choice.
func (s *Store) expose(path string) {
	st, err := os.Lstat(path)
	if err != nil || !st.IsDir() || st.Mode().Perm()&0o027 == 0 {
		return
	}
	s.report(path, fileID{}, "the store is open to other users", fmt.Errorf("its mode is %04o: chmod -R u=rwX,g-w,o= %s", st.Mode().Perm(), s.dir))
}
