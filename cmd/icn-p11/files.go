package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// openInput opens what FILE stands for: a path, fd:N, or - for standard input.
func openInput(name string) (io.ReadCloser, error) {
	if number, ok := strings.CutPrefix(name, "fd:"); ok {
		fd, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return nil, usage("fd: takes the number of an open file descriptor")
		}
		return os.NewFile(uintptr(fd), name), nil
	}
	if name == "-" {
		return io.NopCloser(os.Stdin), nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, pathCause(name, err)
	}
	return f, nil
}

// readInput reads the whole of a FILE that is not confidential.
func readInput(name string, limit int64) ([]byte, error) {
	f, err := openInput(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, pathCause(name, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: more than %d KiB", name, limit>>10)
	}
	return data, nil
}

// parseFile reads a FILE of a strict format, which has at most limit bytes.
func parseFile[T any](name string, limit int64, parse func([]byte) (T, error)) (v T, err error) {
	data, err := readInput(name, limit)
	if err != nil {
		return v, err
	}
	if v, err = parse(data); err != nil {
		return v, fmt.Errorf("%s: %w", name, err)
	}
	return v, nil
}

// readSecret reads a FILE into secret memory, which the caller destroys.
func readSecret(name string) (*secmem.Buffer, error) {
	f, err := openInput(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	room, err := secmem.New(secmem.Max)
	if err != nil {
		return nil, err
	}
	defer room.Destroy()
	n, err := io.ReadFull(f, room.Bytes())
	switch {
	case err == nil:
		return nil, fmt.Errorf("%s: more than %d bytes: this is no key", name, secmem.Max-1)
	case err == io.EOF:
		return nil, fmt.Errorf("%s is empty", name)
	case err != io.ErrUnexpectedEOF:
		return nil, pathCause(name, err)
	}
	b, err := secmem.New(n)
	if err == nil {
		secmem.Copy(b.Bytes(), room.Bytes())
	}
	return b, err
}

// pathCause names a path once, and without what was done to it. nil stays nil.
func pathCause(path string, err error) error {
	var p *fs.PathError
	var l *os.LinkError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &p):
		err = p.Err
	case errors.As(err, &l):
		err = l.Err
	}
	return fmt.Errorf("%s: %w", path, err)
}

// target is a file that is about to be written.
type target struct {
	path    string
	replace bool
	final   bool // nothing lets the command replace a file
}

// check tells beforehand why it cannot be written.
func (t target) check() error {
	switch st, err := os.Lstat(t.path); {
	case err == nil && !st.Mode().IsRegular():
		return fmt.Errorf("%s is there, and is no file", t.path)
	case err == nil && !t.replace:
		return t.exists()
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return pathCause(t.path, err)
	}
	dir := filepath.Dir(t.path)
	if st, err := os.Stat(dir); err != nil {
		return pathCause(dir, err)
	} else if !st.IsDir() {
		return pathCause(dir, unix.ENOTDIR)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return pathCause(dir, err)
	}
	return nil
}

func (t target) exists() error {
	if t.final {
		return fmt.Errorf("%s is there already: choose another name", t.path)
	}
	return fmt.Errorf("%s is there already: choose another name, or insist with --force", t.path)
}

// write stores data, readable by its owner alone, and durably. It is read back
// from the disk and shown to good before it gets its name: there is a complete
// file afterwards, or none.
func (t target) write(data []byte, good func([]byte) error) error {
	dir := filepath.Dir(t.path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(t.path)+".*") // with mode 0600
	if err != nil {
		return pathCause(t.path, err)
	}
	temp := f.Name()
	defer os.Remove(temp) // in vain, once it has its name
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		// What is read next shall come from the disk, as far as the system does that.
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	if e := f.Close(); err == nil {
		err = e
	}
	var back []byte
	if err == nil {
		back, err = os.ReadFile(temp)
	}
	if err != nil {
		return pathCause(t.path, err)
	}
	if err := good(back); err != nil {
		return pathCause(t.path, err)
	}
	if err := t.name(temp); errors.Is(err, fs.ErrExist) {
		return t.exists()
	} else if err != nil {
		return pathCause(t.path, err)
	}
	return pathCause(dir, syncDir(dir))
}

// name gives the file its name. What cannot rename without replacing can often
// link; on a plain memory stick that can neither, looking first must do.
func (t target) name(temp string) error {
	if t.replace {
		return os.Rename(temp, t.path)
	}
	err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, t.path, unix.RENAME_NOREPLACE)
	if err != unix.EINVAL && err != unix.ENOSYS {
		return err
	}
	if err := os.Link(temp, t.path); err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	if _, err := os.Lstat(t.path); err == nil {
		return fs.ErrExist
	}
	return os.Rename(temp, t.path)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

// oneFile checks the arguments of a command that takes FILE.
func oneFile(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usage("one FILE is expected (a PIN or passphrase is never an argument)")
	}
	return nil
}

// exactlyOne checks the arguments of a command that takes one thing and needs no
// secret.
func exactlyOne(name string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usage("one %s is expected", name)
		}
		return nil
	}
}
