package sealstore

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// tempPrefix starts the name of everything unfinished. A writer that is killed
// leaves it behind; the next one removes it.
const tempPrefix = ".tmp-"

// lockPatience bounds the wait for another process that holds a lock, which
// it does for some file operations and a few TPM commands.
const lockPatience = 60 * time.Second

// racyWindow is how old a file has to be before its times can be trusted to
// differ from those of a later version: file systems stamp with a coarse clock.
// It is a variable for tests that cannot wait so long so often.
var racyWindow = 2 * time.Second

// fileID is what tells two versions of a file apart without reading it.
type fileID struct {
	dev, ino           uint64
	size, mtime, ctime int64 // the times in nanoseconds
}

func identify(st *unix.Stat_t) fileID {
	return fileID{st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}
}

// settled reports that a file seen at t cannot have changed since without its
// times showing it.
func (f fileID) settled(t time.Time) bool {
	return t.Sub(time.Unix(0, f.ctime)) > racyWindow
}

// renameat2 is a variable for the tests of file systems that lack it.
var renameat2 = unix.Renameat2

func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// openDir opens the directory name relative to another; path is what messages
// call it.
func openDir(at int, name, path string) (*os.File, error) {
	fd := -1
	err := retry(func() (err error) {
		fd, err = unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func statAt(dir *os.File, name string) (fileID, error) { return stat(int(dir.Fd()), name) }

func statPath(path string) (fileID, error) { return stat(unix.AT_FDCWD, path) }

func stat(dir int, name string) (fileID, error) {
	var st unix.Stat_t
	if err := retry(func() error {
		return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	}); err != nil {
		return fileID{}, err
	}
	return identify(&st), nil
}

// readFile reads a file of a directory that nothing has opened yet.
func readFile(dir, name string, limit int) ([]byte, error) {
	path := filepath.Join(dir, name)
	d, err := openDir(unix.AT_FDCWD, dir, dir)
	if err != nil {
		return nil, readError(path, err)
	}
	defer d.Close()
	p, _, err := readAt(d, name, limit)
	if err != nil {
		return nil, readError(path, err)
	}
	return p, nil
}

// removeFile removes a file of a directory durably.
func removeFile(dir, name string) error {
	path := filepath.Join(dir, name)
	err := os.Remove(path)
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return writeError(path, err)
	}
	return nil
}

// readAt reads a regular file of at most limit bytes.
func readAt(dir *os.File, name string, limit int) ([]byte, fileID, error) {
	return readInto(dir, name, limit, func(n int) []byte { return make([]byte, n) })
}

// othersFiles: the kernel has refused O_NOATIME, which is for the owner of a file.
var othersFiles atomic.Bool

// readInto is readAt into memory of the caller's.
func readInto(dir *os.File, name string, limit int, room func(n int) []byte) ([]byte, fileID, error) {
	fd := -1
	open := func(flags int) error {
		return retry(func() (err error) {
			fd, err = unix.Openat(int(dir.Fd()), name, flags, 0)
			return err
		})
	}
	// O_NONBLOCK: a FIFO somebody put there must not make the host wait.
	const flags = unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK
	// To write down when it was read can take as long as all else about a file.
	var err error = unix.EPERM
	if !othersFiles.Load() {
		err = open(flags | unix.O_NOATIME)
	}
	if err == unix.EPERM {
		if err = open(flags); err == nil {
			othersFiles.Store(true)
		}
	}
	if err == unix.ELOOP {
		return nil, fileID{}, fmt.Errorf("%w: a symbolic link", ErrIntegrity)
	}
	if err != nil {
		return nil, fileID{}, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fileID{}, err
	}
	id := identify(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, id, fmt.Errorf("%w: not a regular file", ErrIntegrity)
	}
	if st.Size > int64(limit) {
		return nil, id, fmt.Errorf("%w: %d bytes, at most %d are possible", ErrIntegrity, st.Size, limit)
	}
	p := room(int(st.Size))
	for n := 0; n < len(p); {
		m := 0
		if err := retry(func() (err error) { m, err = unix.Read(fd, p[n:]); return err }); err != nil {
			return nil, id, err
		}
		if m == 0 {
			return p[:n], id, nil
		}
		n += m
	}
	return p, id, nil
}

// tempName names an unfinished file or directory.
func tempName() string {
	var b [8]byte
	rand.Read(b[:]) // never fails since Go 1.24
	return tempPrefix + hex.EncodeToString(b[:])
}

// writeFile stores data as dir/name so that after a crash at any instant there
// is the old state or the new, and that the new is on the medium when it
// returns. Unless replace is set, a file of that name stays and it fails.
func writeFile(dir, name string, data []byte, replace bool) error {
	temp := filepath.Join(dir, tempName())
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = inherit(dir, temp)
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	target := filepath.Join(dir, name)
	if err == nil {
		if replace {
			err = os.Rename(temp, target)
		} else {
			err = renameNew(temp, target)
		}
	}
	if err != nil {
		os.Remove(temp)
		return err
	}
	if err := syncDir(dir); err != nil {
		if !replace {
			// It was not reported as stored, so it must not appear either.
			os.Remove(target)
		}
		return err
	}
	return nil
}

// writeLoose replaces dir/name by data as a whole, but takes no care that it is
// on the medium: it is for what can be made again.
func writeLoose(dir, name string, data []byte) error {
	// Beyond its limit the kernel would send SIGXFSZ, which ends a host.
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err == nil && limit.Cur < uint64(len(data)) {
		return wrapPath("write", filepath.Join(dir, name), unix.EFBIG)
	}
	temp := filepath.Join(dir, tempName())
	err := os.WriteFile(temp, data, 0o600)
	if err == nil {
		err = inherit(dir, temp)
	}
	if err == nil {
		err = os.Rename(temp, filepath.Join(dir, name))
	}
	if err != nil {
		os.Remove(temp)
	}
	return err
}

// renameNew renames without replacing. Where the file system cannot do that in
// one step a hard link can, for files; the last resort is to look first, which
// the lock that the caller holds makes safe among processes of this program.
func renameNew(from, to string) error {
	err := retry(func() error {
		return renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	})
	if err == nil || !unsupported(err) {
		return wrapPath("rename", to, err)
	}
	if err = os.Link(from, to); err == nil {
		return os.Remove(from)
	}
	if errors.Is(err, fs.ErrExist) {
		return err
	}
	if _, err = os.Lstat(to); err == nil {
		return wrapPath("rename", to, unix.EEXIST)
	}
	return os.Rename(from, to)
}

func wrapPath(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// unsupported reports that the kernel or file system lacks renameat2 or a flag of it.
func unsupported(err error) bool {
	return err == unix.EINVAL || err == unix.ENOSYS || err == unix.EOPNOTSUPP
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = f.Sync()
	// Some network file systems cannot sync a directory and need no telling.
	if errors.Is(err, unix.EINVAL) {
		err = nil
	}
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

// makeDir makes a directory with its parents, durably.
func makeDir(dir string) error {
	if st, err := os.Stat(dir); err == nil {
		if !st.IsDir() {
			return wrapPath("mkdir", dir, unix.ENOTDIR)
		}
		return nil
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// removeTemps removes what killed writers left in dir. The caller holds the
// lock under which all temporaries there are made.
func removeTemps(dir string) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(256)
		for _, n := range names {
			if strings.HasPrefix(n, tempPrefix) {
				os.RemoveAll(filepath.Join(dir, n))
			}
		}
		if err != nil {
			return
		}
	}
}

// fileLock is an exclusive flock(2), between processes and between goroutines.
type fileLock struct{ f *os.File }

// lock takes the lock at path, which is made if it is missing. A lock file that
// was exchanged together with its directory during the wait is not the one to
// hold, so path is looked up again afterwards.
func lock(path string) (*fileLock, error) { return lockWithin(path, lockPatience) }

func lockWithin(path string, patience time.Duration) (*fileLock, error) {
	deadline := time.Now().Add(patience)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := wait(f, deadline, patience); err != nil {
			f.Close()
			return nil, err
		}
		held, err := f.Stat()
		if err == nil {
			var now fs.FileInfo
			if now, err = os.Lstat(path); err == nil && os.SameFile(held, now) {
				return &fileLock{f}, nil
			}
		}
		(&fileLock{f}).unlock()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

func wait(f *os.File, deadline time.Time, patience time.Duration) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 10*time.Millisecond) {
		err := retry(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
		if err != unix.EWOULDBLOCK {
			return wrapPath("flock", f.Name(), err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("another process has held %s for %v; see fuser(1) for which", f.Name(), patience)
		}
		time.Sleep(pause)
	}
}

// unlock releases the lock. Closing would not do: a child that the host forked
// meanwhile has the descriptor too.
func (l *fileLock) unlock() {
	_ = unix.Flock(int(l.f.Fd()), unix.LOCK_UN)
	l.f.Close()
}

// list returns the names in an open directory.
func list(dir *os.File) ([]string, error) {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return dir.Readdirnames(-1)
}

// listObjects lists the objects whose files are in a directory, in order, and
// the names of what no object's file is called.
func listObjects(dir *os.File) (ids []ID, foreign []string, err error) {
	names, err := list(dir)
	if err != nil {
		return nil, nil, err
	}
	ids = make([]ID, 0, len(names))
	for _, n := range names {
		if id, ok := parseID(n); ok {
			ids = append(ids, id)
		} else if !strings.HasPrefix(n, tempPrefix) {
			foreign = append(foreign, n)
		}
	}
	slices.SortFunc(ids, ID.compare)
	return ids, foreign, nil
}
