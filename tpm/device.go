package tpm

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// parseDevice reads a device_path.
func parseDevice(s string) (opener, error) {
	kind, rest, _ := strings.Cut(s, ":")
	switch {
	case s == "":
		return &device{}, nil
	case strings.HasPrefix(s, "/"):
		return &device{s}, nil
	case kind == "device" && strings.HasPrefix(rest, "/"):
		return &device{rest}, nil
	case kind == "swtpm":
		if o, err := parseSwtpm(rest); err == nil {
			return o, nil
		}
	}
	return nil, fmt.Errorf("device_path %q: not /dev/tpmrm0, device:PATH, swtpm:path=PATH, swtpm:host=HOST,port=PORT or swtpm:HOST:PORT", s)
}

func parseSwtpm(s string) (*swtpm, error) {
	bad := errors.New("malformed")
	o := &swtpm{}
	var host, port string
	parts := strings.Split(s, ",")
	if first := parts[0]; !strings.Contains(first, "=") {
		var err error
		if host, port, err = net.SplitHostPort(first); err != nil {
			return nil, bad
		}
		parts = parts[1:]
	}
	for _, part := range parts {
		key, value, has := strings.Cut(part, "=")
		switch {
		case part == "exclusive":
			o.exclusive = true
		case key == "path" && strings.HasPrefix(value, "/") && o.address == "":
			o.network, o.address = "unix", value
		case key == "host" && has && host == "":
			host = value
		case key == "port" && has && port == "":
			port = value
		default:
			return nil, bad
		}
	}
	if o.address != "" {
		if host != "" || port != "" {
			return nil, bad
		}
		return o, nil
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
		return nil, bad
	}
	o.network, o.address = "tcp", net.JoinHostPort(host, port)
	return o, nil
}

const (
	managerPath = "/dev/tpmrm0"
	barePath    = "/dev/tpm0"
)

// device is a TPM of the kernel. /dev/tpmrm0 has the kernel's resource
// manager; /dev/tpm0 has none, and lets one program in at a time.
type device struct{ path string }

func (d *device) resolve() string {
	if d.path != "" {
		return d.path
	}
	if _, err := os.Stat(managerPath); err != nil {
		if _, err := os.Stat(barePath); err == nil {
			return barePath
		}
	}
	return managerPath
}

func (d *device) String() string { return d.resolve() }
func (d *device) managed() bool  { return strings.HasPrefix(d.resolve(), "/dev/tpmrm") }
func (d *device) keep() bool     { return d.managed() }
func (d *device) alone() bool    { return !d.managed() }
func (d *device) startup() bool  { return false }

func (d *device) open(timeout time.Duration) (conn, error) {
	path, start := d.resolve(), time.Now()
	for {
		// With O_NONBLOCK the driver runs the command in the background, so
		// the wait for it can end.
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err == nil {
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
				unix.Close(fd)
				return nil, &lostError{fmt.Errorf("%s is not a device; correct device_path", path), false}
			}
			return &charDevice{fd, path}, nil
		}
		if errors.Is(err, unix.EBUSY) && time.Since(start) < timeout {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		switch {
		case errors.Is(err, unix.EBUSY):
			err = fmt.Errorf("%s is in use by another program: use %s, which can be shared", path, managerPath)
		case errors.Is(err, unix.ENOENT):
			err = fmt.Errorf("%s does not exist: switch the TPM on in the firmware, or set device_path", path)
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
			err = fmt.Errorf("permission denied on %s: add the user to group tss", path)
		default:
			err = fmt.Errorf("%s: %w", path, err)
		}
		return nil, &lostError{err, false}
	}
}

type charDevice struct {
	fd   int
	path string
}

func (c *charDevice) exchange(command []byte, timeout time.Duration) ([]byte, error) {
	if _, err := unix.Write(c.fd, command); err != nil {
		return nil, fmt.Errorf("writing to %s: %w", c.path, err)
	}
	deadline := time.Now().Add(timeout)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return nil, &lostError{fmt.Errorf("no answer from %s within %v", c.path, timeout), false}
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("waiting for %s: %w", c.path, err)
		}
		if err == nil && n > 0 {
			break
		}
	}
	// The driver discards what one read does not take.
	answer := make([]byte, maxFrame)
	n, err := unix.Read(c.fd, answer)
	if err != nil {
		return nil, fmt.Errorf("reading from %s: %w", c.path, err)
	}
	return answer[:n], nil
}

func (c *charDevice) Close() error { return unix.Close(c.fd) }
