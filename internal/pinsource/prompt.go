package pinsource

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// terminal is where a person answers, whatever standard input is.
const terminal = "/dev/tty"

// errNoTerminal tells an unattended caller what to do instead.
var errNoTerminal = errors.New("there is no terminal to ask on: name another PIN source (file:PATH, env:NAME, fd:N or credential:NAME)")

// prompt asks for a PIN; a fresh one twice, unless it is refused anyway, having
// fewer than least bytes or too many.
func prompt(dst []byte, what string, fresh bool, least int) (int, error) {
	// os.OpenFile would make the terminal non-blocking, for everybody on it.
	fd, err := unix.Open(terminal, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, errNoTerminal
	}
	tty := os.NewFile(uintptr(fd), terminal)
	defer tty.Close()
	if !fresh {
		return ask(tty, strings.ToUpper(what[:1])+what[1:], dst)
	}
	n, err := ask(tty, "New "+what, dst)
	if err != nil || n < least || n > MaxPIN {
		return n, err
	}
	again, err := secmem.New(room)
	if err != nil {
		return 0, err
	}
	defer again.Destroy()
	m, err := ask(tty, "Repeat "+what, again.Bytes())
	if err != nil {
		return 0, err
	}
	var same bool
	secmem.Compute(func() { same = bytes.Equal(dst[:n], again.Bytes()[:m]) })
	if !same {
		return 0, errors.New("the two entries differ")
	}
	return n, nil
}

// ask reads a line without echo. term.ReadPassword would leave copies of the
// PIN on the heap, so only the terminal's state is the library's business
// here, and the line goes from the kernel into secret memory.
func ask(tty *os.File, what string, dst []byte) (int, error) {
	fd := int(tty.Fd())
	state, err := term.GetState(fd)
	if err != nil {
		return 0, errNoTerminal
	}
	// An interrupt must not leave the shell without echo.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	done := make(chan struct{})
	defer close(done)
	defer signal.Stop(stop)
	go func() {
		select {
		case s := <-stop:
			term.Restore(fd, state)
			fmt.Fprintln(tty)
			// Die of it as if it had never been caught.
			signal.Reset(s)
			unix.Kill(os.Getpid(), s.(unix.Signal))
		case <-done:
		}
	}()
	mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return 0, errNoTerminal
	}
	mode.Lflag &^= unix.ECHO
	mode.Lflag |= unix.ICANON | unix.ISIG
	mode.Iflag |= unix.ICRNL
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, mode); err != nil {
		return 0, err
	}
	defer term.Restore(fd, state)
	fmt.Fprintf(tty, "%s: ", what)
	n, err := readLine(fd, dst)
	fmt.Fprintln(tty)
	if n > MaxPIN {
		// What is left of the line is not for the shell.
		unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCIFLUSH)
	}
	return n, err
}
