// Package pinsource reads PINs from where an administrator keeps them. A PIN
// goes straight into secret memory, and never stands on a command line, which
// every user of the machine can read.
package pinsource

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/environment"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// Length of a PIN in bytes.
const (
	MinPIN = sealstore.MinPIN
	MaxPIN = sealstore.MaxPIN
)

// Forms tells an operator what a source looks like.
const Forms = "file:PATH, env:NAME, fd:N, credential:NAME or prompt"

// Source is where a PIN comes from. The zero value is the prompt.
type Source struct {
	kind string
	arg  string
}

// Parse reads the text of a source. Its errors do not repeat the text, which
// may be a PIN that was given by mistake.
func Parse(s string) (Source, error) {
	if s == "prompt" {
		return Source{}, nil
	}
	kind, arg, _ := strings.Cut(s, ":")
	switch kind {
	case "file", "env", "credential":
		if arg == "" {
			return Source{}, fmt.Errorf("a PIN source %s: needs a name behind the colon", kind)
		}
		if kind == "env" && strings.Contains(arg, "=") {
			return Source{}, errors.New("a PIN source env: takes the name of a variable, not its value")
		}
		if kind == "credential" && (strings.Contains(arg, "/") || arg == "." || arg == "..") {
			return Source{}, errors.New("a PIN source credential: takes the name of a credential, not a path")
		}
	case "fd":
		if n, err := strconv.ParseUint(arg, 10, 16); err != nil || strconv.FormatUint(n, 10) != arg {
			return Source{}, errors.New("a PIN source fd: takes the number of an open file descriptor")
		}
	default:
		return Source{}, fmt.Errorf("a PIN source is %s, never the PIN itself", Forms)
	}
	return Source{kind, arg}, nil
}

// String gives the text that Parse reads.
func (s Source) String() string {
	if s.kind == "" {
		return "prompt"
	}
	return s.kind + ":" + s.arg
}

// Set is Parse for a command-line flag.
func (s *Source) Set(text string) (err error) {
	*s, err = Parse(text)
	return err
}

// Type names the value in a command's help.
func (s *Source) Type() string { return "SRC" }

// Prompt reports whether the PIN is asked for on the terminal.
func (s Source) Prompt() bool { return s.kind == "" }

// Variable names the environment variable that the source depends on, if any.
func (s Source) Variable() string {
	switch s.kind {
	case "env":
		return s.arg
	case "credential":
		return credentials
	}
	return ""
}

// credentials is set by systemd.
const credentials = "CREDENTIALS_DIRECTORY"

// room is what is read at most: a PIN of any permitted length, a newline, and
// one byte that shows that there is more.
const room = MaxPIN + 2

// Read gets the PIN into secret memory, which the caller destroys. what names
// the PIN in prompts and errors ("user PIN"); fresh tells that it is a new
// one, for which a prompt asks twice.
func (s Source) Read(what string, fresh bool) (*secmem.Buffer, error) {
	return s.get(what, fresh, MinPIN, "a PIN")
}

// ReadPassword is Read for a password that exists and is no PIN, such as that
// of a hierarchy of the TPM. An empty one is a nil buffer.
func (s Source) ReadPassword(what string) (*secmem.Buffer, error) {
	return s.get(what, false, 0, "a password")
}

// minPassphrase is the length of the shortest new passphrase, in bytes. Unlike
// a PIN, whose tries the TPM counts, it can be guessed at for ever.
const minPassphrase = 8

// ReadNewPassphrase is Read for a passphrase that something is encrypted under
// from now on.
func (s Source) ReadNewPassphrase(what string) (*secmem.Buffer, error) {
	return s.get(what, true, minPassphrase, "a passphrase")
}

func (s Source) get(what string, fresh bool, least int, kind string) (*secmem.Buffer, error) {
	buf, err := secmem.New(room)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	defer buf.Destroy()
	n, err := s.read(buf.Bytes(), what, fresh, least)
	if err != nil {
		return nil, fmt.Errorf("%s from %s: %w", what, s, err)
	}
	if n < least || n > MaxPIN {
		return nil, fmt.Errorf("%s from %s: %s has %d to %d bytes", what, s, kind, least, MaxPIN)
	}
	if n == 0 {
		return nil, nil
	}
	// Most often a stray line end, which would have to be typed at every login.
	if fresh && bytes.ContainsFunc(buf.Bytes()[:n], unicode.IsControl) {
		return nil, fmt.Errorf("%s from %s: %s that is new has no control characters (a file may end with one newline, and no carriage return)", what, s, kind)
	}
	pin, err := secmem.New(n)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	secmem.Copy(pin.Bytes(), buf.Bytes())
	return pin, nil
}

// read fills dst and returns the length of the PIN, or more than MaxPIN where
// it is too long.
func (s Source) read(dst []byte, what string, fresh bool, least int) (int, error) {
	switch s.kind {
	case "file":
		return readFile(s.arg, dst)
	case "credential":
		dir := environment.Get(credentials)
		if dir == "" {
			return 0, errors.New("CREDENTIALS_DIRECTORY is not set: the service needs LoadCredential= or SetCredentialEncrypted= (systemd.exec(5))")
		}
		return readFile(filepath.Join(dir, s.arg), dst)
	case "env":
		v, ok := environment.Lookup(s.arg)
		if !ok {
			return 0, errors.New("the variable is not set")
		}
		var n int
		secmem.Compute(func() { n = copy(dst, v) })
		return n, nil
	case "fd":
		fd, err := strconv.Atoi(s.arg)
		if err != nil {
			return 0, err
		}
		return readLine(fd, dst)
	}
	return prompt(dst, what, fresh, least)
}

// readFile reads a whole file, without the newline that editors put at its end.
func readFile(path string, dst []byte) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, cause(err)
	}
	defer f.Close()
	n, err := io.ReadFull(f, dst)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, cause(err)
	}
	if n > 0 && n < len(dst) && dst[n-1] == '\n' {
		n--
	}
	return n, nil
}

// cause leaves out the path, which the source names already.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// readLine reads one line of a descriptor and not a byte more, so that one
// descriptor can give several PINs.
func readLine(fd int, dst []byte) (int, error) {
	for n := range dst {
		m, err := readByte(fd, dst[n:n+1])
		if err != nil {
			if errors.Is(err, unix.EBADF) {
				return 0, errors.New("the descriptor is not open for reading")
			}
			return 0, err
		}
		if m == 0 && n == 0 {
			return 0, errors.New("the input has ended before the PIN (each PIN takes a line)")
		}
		if m == 0 || dst[n] == '\n' {
			return n, nil
		}
	}
	return len(dst), nil
}

func readByte(fd int, dst []byte) (int, error) {
	for {
		n, err := unix.Read(fd, dst)
		switch err {
		case unix.EINTR:
		case unix.EAGAIN: // whoever opened it made it non-blocking
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		default:
			return n, err
		}
	}
}
