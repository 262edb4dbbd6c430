package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/environment"
)

// tabrmd is the resource manager tpm2-abrmd. It hands a socket out over D-Bus,
// on which commands are bare frames; each connection has its own handles.
type tabrmd struct {
	session bool // the session bus instead of the system bus
	name    string
}

const tabrmdName = "com.intel.tss2.Tabrmd"

func (b *tabrmd) bus() string {
	if b.session {
		return "session"
	}
	return "system"
}

func (b *tabrmd) String() string {
	return fmt.Sprintf("tabrmd:bus_type=%s,bus_name=%s", b.bus(), b.name)
}

func (b *tabrmd) keep() bool    { return true }
func (b *tabrmd) alone() bool   { return false }
func (b *tabrmd) managed() bool { return true }
func (b *tabrmd) startup() bool { return false }

func (b *tabrmd) open(timeout time.Duration) (conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	bus, err := dialBus(ctx, b.address())
	if err != nil {
		return nil, &lostError{advice.With(fmt.Errorf("%s: connecting to the bus: %w", b, plain(err)), "start D-Bus, or correct bus_type in device_path"), false}
	}
	fd, err := bus.connection(b.name)
	if err != nil {
		bus.Close()
		return nil, &lostError{b.openError(err, timeout), false}
	}
	c, err := newSocket(fd)
	if err != nil {
		bus.Close()
		return nil, &lostError{fmt.Errorf("%s: %w", b, err), false}
	}
	return &brokered{stream{c}, bus}, nil
}

func (b *tabrmd) openError(err error, timeout time.Duration) error {
	if timedOut(err) {
		return advice.With(fmt.Errorf("%s: no answer within %v", b, timeout), "restart tpm2-abrmd; it may be waiting for the TPM")
	}
	err = fmt.Errorf("%s: %w", b, err)
	var refused busError
	if errors.As(err, &refused) {
		switch refused.name {
		case "org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner":
			return advice.With(err, "start tpm2-abrmd, or correct bus_name in device_path")
		case "org.freedesktop.DBus.Error.AccessDenied":
			return advice.With(err, "the policy of the bus lets only some users in, usually group tss")
		}
	}
	return err
}

// address finds the bus (D-Bus Specification, "Well-known Message Bus
// Instances").
func (b *tabrmd) address() string {
	if b.session {
		if a := environment.Get("DBUS_SESSION_BUS_ADDRESS"); a != "" {
			return a
		}
		return "unix:path=" + filepath.Join("/", environment.Get("XDG_RUNTIME_DIR"), "bus")
	}
	if a := environment.Get("DBUS_SYSTEM_BUS_ADDRESS"); a != "" {
		return a
	}
	return "unix:path=/run/dbus/system_bus_socket"
}

// brokered is a connection of the broker. It ends the connection when its
// client leaves the bus.
type brokered struct {
	stream
	bus *bus
}

// layerMask takes away what says which layer a response code is from: the
// broker's own carry 11 there (TSS 2.0 Overview, 2.3).
const layerMask = 0xffff

func (c *brokered) exchange(command []byte, timeout time.Duration) ([]byte, error) {
	answer, err := c.stream.exchange(command, timeout)
	if err == nil {
		rc := binary.BigEndian.Uint32(answer[6:])
		binary.BigEndian.PutUint32(answer[6:], rc&layerMask)
	}
	return answer, err
}

func (c *brokered) Close() error { return errors.Join(c.stream.Close(), c.bus.Close()) }

// bus is a connection to a message bus, for a call or two. The well-kept
// library drops a descriptor that comes beside a message rather than in it,
// which is how this one comes, so here it only encodes and decodes.
type bus struct {
	stream
	socket *socket
	serial uint32
	read   []byte // received and not yet taken apart
	fds    []int  // received
}

// dialBus connects to the first address of a list that answers.
func dialBus(ctx context.Context, addresses string) (*bus, error) {
	err := errors.New("no address of a bus is known")
	for a := range strings.SplitSeq(addresses, ";") {
		var path string
		if path, err = unixAddress(a); err != nil {
			continue
		}
		var d net.Dialer
		var c net.Conn
		if c, err = d.DialContext(ctx, "unix", path); err != nil {
			continue
		}
		var s *socket
		if s, err = detach(c); err != nil {
			continue
		}
		b := &bus{stream: stream{s}, socket: s}
		if deadline, ok := ctx.Deadline(); ok {
			b.SetDeadline(deadline)
		}
		if err = b.authenticate(); err == nil {
			return b, nil
		}
		b.Close()
	}
	return nil, err
}

// unixAddress reads an address of a bus (D-Bus Specification, "Server
// Addresses").
func unixAddress(s string) (string, error) {
	options, ok := strings.CutPrefix(s, "unix:")
	if !ok {
		return "", fmt.Errorf("the bus address %q is not on a Unix socket", s)
	}
	for o := range strings.SplitSeq(options, ",") {
		key, value, _ := strings.Cut(o, "=")
		value, err := url.PathUnescape(value)
		if err != nil {
			return "", fmt.Errorf("the bus address %q is malformed", s)
		}
		switch key {
		case "path":
			return value, nil
		case "abstract":
			return "@" + value, nil
		}
	}
	return "", fmt.Errorf("the bus address %q names no socket", s)
}

// authenticate logs in as the user that the kernel tells the bus, and asks for
// descriptors to be passed (D-Bus Specification, "Authentication Protocol").
func (b *bus) authenticate() error {
	uid := hex.EncodeToString([]byte(strconv.Itoa(os.Geteuid())))
	for _, step := range []struct{ say, hear string }{
		{"\x00AUTH EXTERNAL " + uid, "OK "},
		{"NEGOTIATE_UNIX_FD", "AGREE_UNIX_FD"},
	} {
		if _, err := b.Write([]byte(step.say + "\r\n")); err != nil {
			return err
		}
		line, err := b.line()
		if err != nil {
			return err
		}
		if !strings.HasPrefix(line, step.hear) {
			return fmt.Errorf("the bus answers %q to %q", line, strings.Trim(step.say, "\x00"))
		}
	}
	_, err := b.Write([]byte("BEGIN\r\n"))
	return err
}

// line reads a line byte by byte: what comes behind it is not text.
func (b *bus) line() (string, error) {
	const most = 512
	var line []byte
	var one [1]byte
	for len(line) < most {
		if _, err := io.ReadFull(b, one[:]); err != nil {
			return "", err
		}
		if line = append(line, one[0]); bytes.HasSuffix(line, []byte("\r\n")) {
			return string(line[:len(line)-2]), nil
		}
	}
	return "", errors.New("the bus sends no end of a line")
}

// connection asks the broker for a connection.
func (b *bus) connection(name string) (fd int, err error) {
	defer func() {
		for _, fd := range b.fds {
			unix.Close(fd)
		}
		b.fds = nil
	}()
	if err := b.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello"); err != nil {
		return -1, err
	}
	if err := b.call(name, "/com/intel/tss2/Tabrmd/Tcti", "com.intel.tss2.TctiTabrmd", "CreateConnection"); err != nil {
		return -1, err
	}
	if len(b.fds) == 0 {
		return -1, errors.New("the resource manager handed out no connection")
	}
	fd, b.fds = b.fds[0], b.fds[1:]
	return fd, nil
}

// busError is an error that the bus or the broker answers with.
type busError struct{ name, text string }

func (e busError) Error() string { return e.name + ": " + e.text }

// call calls a method without arguments, and waits for the answer.
func (b *bus) call(destination, path, iface, member string) error {
	m := dbus.Message{Type: dbus.TypeMethodCall, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldDestination: dbus.MakeVariant(destination),
		dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath(path)),
		dbus.FieldInterface:   dbus.MakeVariant(iface),
		dbus.FieldMember:      dbus.MakeVariant(member),
	}}
	var out bytes.Buffer
	if err := m.EncodeTo(&out, binary.LittleEndian); err != nil {
		return err
	}
	// The library gives out no serial numbers but its own connections'.
	b.serial++
	binary.LittleEndian.PutUint32(out.Bytes()[8:], b.serial)
	if _, err := b.Write(out.Bytes()); err != nil {
		return err
	}
	for {
		m, err := b.message()
		if err != nil {
			return err
		}
		if serial, _ := m.Headers[dbus.FieldReplySerial].Value().(uint32); serial != b.serial {
			continue // a signal
		}
		switch m.Type {
		case dbus.TypeMethodReply:
			return nil
		case dbus.TypeError:
			e := busError{}
			e.name, _ = m.Headers[dbus.FieldErrorName].Value().(string)
			if len(m.Body) > 0 {
				e.text, _ = m.Body[0].(string)
			}
			return e
		}
	}
}

// message reads one message; descriptors that come with it go to b.fds.
func (b *bus) message() (*dbus.Message, error) {
	const most = 1 << 16
	for {
		if n := messageSize(b.read); n > most {
			return nil, errors.New("the bus sends too much")
		} else if n > 0 && len(b.read) >= n {
			m, err := dbus.DecodeMessage(bytes.NewReader(b.read[:n]))
			b.read = b.read[n:]
			return m, err
		}
		data, control := make([]byte, 4096), make([]byte, unix.CmsgSpace(8*4))
		var n, cn int
		if err := b.socket.receive(func(fd int) (err error) {
			n, cn, _, _, err = unix.Recvmsg(fd, data, control, unix.MSG_CMSG_CLOEXEC)
			return err
		}); err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, io.EOF
		}
		b.read = append(b.read, data[:n]...)
		messages, err := unix.ParseSocketControlMessage(control[:cn])
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			if fds, err := unix.ParseUnixRights(&m); err == nil {
				b.fds = append(b.fds, fds...)
			}
		}
	}
}

// messageSize is the length of the message that b begins with, 0 where too
// little is there to know (D-Bus Specification, "Message Format").
func messageSize(b []byte) int {
	if len(b) < 16 {
		return 0
	}
	var order binary.ByteOrder = binary.LittleEndian
	if b[0] == 'B' {
		order = binary.BigEndian
	}
	body, fields := uint64(order.Uint32(b[4:])), uint64(order.Uint32(b[12:]))
	return int(min(16+(fields+7)&^7+body, 1<<30))
}
