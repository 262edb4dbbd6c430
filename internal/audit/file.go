package audit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
)

// file appends lines of JSON. Each is one write(2) with O_APPEND, so that
// processes do not mix theirs.
type file struct {
	path string
	fd   int
	open bool
	is   identity // what fd is
	torn bool     // the last line of ours has no end
}

// identity tells whether a path still leads to the file that is open.
type identity struct{ dev, ino uint64 }

func (f *file) write(r *Record) error {
	line, err := r.line()
	if err != nil {
		return err
	}
	if err := f.ready(); err != nil {
		return err
	}
	if f.torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := write(f.fd, line)
	if err == nil && n < len(line) {
		err = io.ErrShortWrite
	}
	if err == nil {
		f.torn = false
		return nil
	}
	if n > 0 {
		// The next record, whosever it is, shall begin on a line of its own.
		_, err := write(f.fd, []byte{'\n'})
		f.torn = err != nil
	}
	return f.failed("writing", err)
}

func write(fd int, b []byte) (n int, err error) {
	for {
		if n, err = unix.Write(fd, b); err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// ready opens the file where it is not, or where another has taken its place
// since: logs are rotated.
func (f *file) ready() error {
	if f.open {
		var st unix.Stat_t
		if err := unix.Stat(f.path, &st); err == nil && f.is == (identity{st.Dev, st.Ino}) {
			return nil
		}
		f.close()
	}
	return f.openFile(unix.O_CREAT)
}

// openFile opens the file, or fails where it is none that can be appended to.
func (f *file) openFile(create int) error {
	// O_NONBLOCK: a FIFO somebody put there must not make the host wait.
	const flags = unix.O_WRONLY | unix.O_APPEND | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
	var fd int
	var err error
	for {
		if fd, err = unix.Open(f.path, flags|create, 0o600); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return f.failed("opening", err)
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("not a regular file")
	}
	if err != nil {
		unix.Close(fd)
		return f.failed("opening", err)
	}
	f.fd, f.open, f.torn, f.is = fd, true, false, identity{st.Dev, st.Ino}
	return nil
}

func (f *file) check() error {
	err := f.openFile(0)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir := filepath.Dir(f.path)
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return f.failed("opening", err)
	}
	return nil
}

func (f *file) close() {
	if f.open {
		unix.Close(f.fd)
		f.open = false
	}
}

// failed says what is wrong and that it has to be put right.
func (f *file) failed(what string, err error) error {
	err = fmt.Errorf("%s %s: %w", what, f.path, err)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, io.ErrShortWrite) {
		return advice.With(err, "free some space: nothing is signed that cannot be written down")
	}
	return advice.With(err, "let this user write audit_log, or name another file: nothing is signed meanwhile")
}
