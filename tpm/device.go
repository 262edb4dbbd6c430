package tpm

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/account"
	"github.com/InterCooperative-Network/icn-p11/internal/advice"
)

// CheckDevice tells what is wrong with a device_path.
func CheckDevice(s string) error {
	_, err := parseOpener(s)
	return err
}

// parseDevice reads a device_path.
func parseDevice(s string) (opener, error) {
	o, err := parseOpener(s)
	if err != nil {
		return nil, fmt.Errorf("device_path %q: %w", s, err)
	}
	return o, nil
}

func parseOpener(s string) (opener, error) {
	kind, rest, _ := strings.Cut(s, ":")
	switch {
	case s == "":
		return &device{}, nil
	case strings.HasPrefix(s, "/"):
		return &device{s}, nil
	case kind == "device" && strings.HasPrefix(rest, "/"):
		return &device{rest}, nil
	case kind == "device", strings.HasPrefix(s, "dev/"):
		return nil, errors.New("the path of the device must be absolute")
	case kind == "swtpm":
		return parseSwtpm(rest)
	case kind == "mssim":
		return parseMssim(rest)
	case kind == "tabrmd" || s == "tabrmd":
		return parseTabrmd(rest)
	case kind == "cmd" && strings.TrimSpace(rest) != "":
		return &program{strings.TrimSpace(rest)}, nil
	case kind == "cmd":
		return nil, errors.New("a command is expected behind cmd:, such as tpm2_send")
	}
	return nil, errors.New("not /dev/tpmrm0, device:PATH, swtpm:path=PATH, swtpm:host=HOST,port=PORT, swtpm:HOST:PORT, " +
		"mssim:host=HOST,port=PORT, tabrmd:bus_type=system or cmd:PROGRAM ARGS")
}

// parseOptions reads KEY=VALUE,KEY=VALUE.
func parseOptions(parts []string, keys ...string) (map[string]string, error) {
	options := map[string]string{}
	for _, part := range parts {
		key, value, _ := strings.Cut(part, "=")
		switch _, twice := options[key]; {
		case !slices.Contains(keys, key):
			return nil, fmt.Errorf("unknown option %q", part)
		case twice:
			return nil, fmt.Errorf("%s is given twice", key)
		}
		options[key] = value
	}
	return options, nil
}

// hostAndPort checks the options of a TCP address.
func hostAndPort(options map[string]string) (host string, port uint16, err error) {
	if options["host"] == "" {
		return "", 0, errors.New("the host is missing")
	}
	if strings.ContainsAny(options["host"], "[]") {
		return "", 0, errors.New("brackets are for swtpm:[ADDRESS]:PORT; host= takes an address without them")
	}
	n, err := strconv.ParseUint(options["port"], 10, 16)
	if err != nil || n == 0 {
		return "", 0, errors.New("a port between 1 and 65535 is expected")
	}
	return options["host"], uint16(n), nil
}

func parseSwtpm(s string) (opener, error) {
	o := &swtpm{}
	parts := strings.Split(s, ",")
	if first := parts[0]; !strings.Contains(first, "=") {
		host, port, err := net.SplitHostPort(first)
		if err != nil {
			return nil, errors.New("swtpm: needs path=PATH, host=HOST,port=PORT or HOST:PORT")
		}
		parts = append([]string{"host=" + host, "port=" + port}, parts[1:]...)
	}
	n := len(parts)
	parts = slices.DeleteFunc(parts, func(p string) bool { return p == "exclusive" })
	o.exclusive = len(parts) < n
	options, err := parseOptions(parts, "path", "host", "port")
	if err != nil {
		return nil, err
	}
	if path, ok := options["path"]; ok {
		switch {
		case len(options) > 1:
			return nil, errors.New("path excludes host and port")
		case !strings.HasPrefix(path, "/"):
			return nil, errors.New("the path of the socket must be absolute")
		}
		o.network, o.address = "unix", path
		return o, nil
	}
	host, port, err := hostAndPort(options)
	if err != nil {
		return nil, err
	}
	o.network, o.address = "tcp", net.JoinHostPort(host, strconv.Itoa(int(port)))
	return o, nil
}

func parseMssim(s string) (opener, error) {
	options, err := parseOptions(strings.Split(s, ","), "host", "port")
	if err != nil {
		return nil, err
	}
	m := &mssim{}
	if m.host, m.port, err = hostAndPort(options); err != nil {
		return nil, err
	}
	if m.port == 65535 {
		return nil, errors.New("the port behind it is the simulator's platform, so that 65534 is the last")
	}
	return m, nil
}

func parseTabrmd(s string) (opener, error) {
	var parts []string
	if s != "" {
		parts = strings.Split(s, ",")
	}
	options, err := parseOptions(parts, "bus_type", "bus_name")
	if err != nil {
		return nil, err
	}
	b := &tabrmd{name: tabrmdName}
	switch bus, given := options["bus_type"]; {
	case bus == "session":
		b.session = true
	case given && bus != "system":
		return nil, errors.New("bus_type is session or system")
	}
	if name, given := options["bus_name"]; given {
		if !strings.Contains(name, ".") {
			return nil, errors.New("bus_name is a name on D-Bus, such as " + tabrmdName)
		}
		b.name = name
	}
	return b, nil
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

// alone is true where nobody can use the TPM through the kernel's resource
// manager meanwhile, whose clients' sessions we would see.
func (d *device) alone() bool {
	path := d.resolve()
	n, ok := strings.CutPrefix(path, strings.TrimSuffix(barePath, "0"))
	if !ok || d.managed() {
		return false
	}
	_, err := os.Stat(strings.TrimSuffix(managerPath, "0") + n)
	return err != nil
}
func (d *device) startup() bool { return false }

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
				return nil, &lostError{advice.With(fmt.Errorf("%s is not a device", path), "correct device_path"), false}
			}
			return &charDevice{fd, path}, nil
		}
		if errors.Is(err, unix.EBUSY) && time.Since(start) < timeout {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		return nil, &lostError{d.openError(path, err), false}
	}
}

// openError says why the device cannot be opened, and what to do about it.
func (d *device) openError(path string, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return advice.With(fmt.Errorf("%s is in use by another program", path), "use "+managerPath+", which can be shared")
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		cure := "switch the TPM (PTT, fTPM) on in the firmware; in a virtual machine add one"
		if d.path != "" {
			cure = "correct device_path; " + cure
		} else {
			cure += "; or set device_path"
		}
		return advice.With(fmt.Errorf("%s does not exist", path), cure)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return d.denied(path)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// denied names the group that has access, which is tss only where the udev
// rules of tpm-udev are in effect.
func (d *device) denied(path string) error {
	user := account.UserName(uint32(os.Geteuid()))
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return advice.With(fmt.Errorf("permission denied on %s", path), "let "+user+" search the directories above it")
	}
	group, mode := account.GroupName(st.Gid), st.Mode&0o777
	if mode&0o060 == 0o060 && st.Gid != 0 {
		return advice.With(fmt.Errorf("permission denied on %s: %s is not in group %s", path, user, group),
			fmt.Sprintf("usermod -aG %s %s, then log in again or restart the service", group, user))
	}
	return advice.With(fmt.Errorf("permission denied on %s: it belongs to %s and group %s, with mode %04o", path, account.UserName(st.Uid), group, mode),
		fmt.Sprintf("give it to a group that may read and write it (the udev rules of tpm-udev take tss), and %s to that group", user))
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
