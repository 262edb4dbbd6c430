package sshagent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/environment"
)

// DefaultSocket is where the agent listens unless it is told otherwise.
func DefaultSocket() (string, error) {
	dir := environment.Get("XDG_RUNTIME_DIR")
	if !filepath.IsAbs(dir) {
		if os.Geteuid() != 0 {
			return "", advice.With(errors.New("there is no place for the socket: XDG_RUNTIME_DIR is not set"), "name one by --socket")
		}
		dir = "/run"
	}
	return filepath.Join(dir, "icn-p11", "agent.sock"), nil
}

// CheckSocket makes sure that a socket can be made: it makes the directory
// where that is missing, and removes a socket that a dead agent has left.
func CheckSocket(path string) error {
	if most := len(unix.RawSockaddrUnix{}.Path) - 1; len(path) > most {
		return fmt.Errorf("%s: the path of a socket has at most %d bytes", path, most)
	}
	if err := checkDirectory(filepath.Dir(path)); err != nil {
		return err
	}
	return removeStale(path)
}

// Listen makes a socket as [CheckSocket] allows. It is for this user alone,
// unless it is to be open to other users, whom the agent then has to tell
// apart.
func Listen(path string, open bool) (*net.UnixListener, error) {
	if err := CheckSocket(path); err != nil {
		return nil, err
	}
	// The mode must be right from the first instant on.
	mask := 0o177
	if open {
		mask = 0o111
	}
	old := unix.Umask(mask)
	defer unix.Umask(old)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// removeStale removes a socket at which nobody listens any more.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return advice.With(fmt.Errorf("%s is there already, and is no socket", path), "name another place by --socket")
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return advice.With(fmt.Errorf("another agent listens at %s", path), "end that one, or name another place by --socket")
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// checkDirectory makes sure that nobody else can put a socket of his own in
// the place of the agent's.
func checkDirectory(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is not a directory", dir)
	case st.Uid != 0 && st.Uid != uint32(os.Geteuid()):
		return advice.With(fmt.Errorf("%s is another user's", dir), "name a directory of your own by --socket")
	case st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0:
		return advice.With(fmt.Errorf("others may write to %s", dir), "take that right from them, or name another directory by --socket")
	}
	return nil
}

// The environment of a service that systemd starts (sd_listen_fds(3),
// sd_notify(3)).
const (
	listenPID    = "LISTEN_PID"
	listenFDs    = "LISTEN_FDS"
	listenNames  = "LISTEN_FDNAMES"
	firstFD      = 3
	notifySocket = "NOTIFY_SOCKET"
)

// Inherited gives the socket that systemd passes to the service that it
// starts, nil where it passes none. It can be taken once.
func Inherited() (*net.UnixListener, error) {
	pid, n := environment.Get(listenPID), environment.Get(listenFDs)
	for _, name := range []string{listenPID, listenFDs, listenNames} {
		os.Unsetenv(name) // they are not for programs that this one starts
	}
	if pid == "" || pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	if n != "1" {
		return nil, fmt.Errorf("%s=%s: the agent takes one socket", listenFDs, text(n))
	}
	unix.CloseOnExec(firstFD)
	f := os.NewFile(firstFD, "socket of systemd")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("the socket of systemd: %w", err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, errors.New("the socket of systemd is not a Unix stream socket (ListenStream=)")
	}
	return u, nil
}

// Notify tells systemd, where that has started the agent, how it is.
func Notify(state ...string) error {
	name := environment.Get(notifySocket)
	if name == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("%s: %w", notifySocket, err)
	}
	defer c.Close()
	_, err = c.Write([]byte(strings.Join(state, "\n")))
	return err
}
