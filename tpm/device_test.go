package tpm_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/account"
	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// TestDeviceMistakes: each mistake in a device_path is called by its name.
func TestDeviceMistakes(t *testing.T) {
	for s, want := range map[string]string{
		"tpm":                     "not /dev/tpmrm0, device:PATH, swtpm:path=PATH, ",
		"dev/tpmrm0":              "the path of the device must be absolute",
		"device:dev/tpmrm0":       "the path of the device must be absolute",
		"swtpm:":                  "swtpm: needs path=PATH",
		"swtpm:path=rel":          "the path of the socket must be absolute",
		"swtpm:path=":             "the path of the socket must be absolute",
		"swtpm:path=/a,path=/b":   "path is given twice",
		"swtpm:path=/a,port=1":    "path excludes host and port",
		"swtpm:port=1":            "the host is missing",
		"swtpm:host=h":            "a port between 1 and 65535 is expected",
		"swtpm:h:70000":           "a port between 1 and 65535 is expected",
		"swtpm:h:1,host=h":        "host is given twice",
		"swtpm:h:1,exclusiv":      `unknown option "exclusiv"`,
		"swtpm:path=/a,socket=b":  `unknown option "socket=b"`,
		"mssim:host=h":            "a port between 1 and 65535 is expected",
		"mssim:port=1":            "the host is missing",
		"mssim:h:1":               `unknown option "h:1"`,
		"mssim:host=h,port=65535": "65534 is the last",
		"tabrmd:bus_type=my":      "bus_type is session or system",
		"tabrmd:bus_name=x":       "bus_name is a name on D-Bus",
		"tabrmd:what=1":           `unknown option "what=1"`,
		"cmd:":                    "a command is expected behind cmd:",
		"cmd: ":                   "a command is expected behind cmd:",
	} {
		_, err := tpm.New(tpm.Config{Device: s})
		if err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("device_path %q: ", s)) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", s, err, want)
		}
	}
}

// TestAdvice: what is wrong is said once, without what the TPM was wanted for,
// and the cure fits it.
func TestAdvice(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changing users needs root")
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	const nobody, group = 65534, 12345
	path := filepath.Join(dir, "device")
	check := func(device, what, cure string) {
		t.Helper()
		if err := syscall.Seteuid(nobody); err != nil {
			t.Fatal(err)
		}
		defer syscall.Seteuid(0)
		_, err := open(t, device).Lockout()
		if err == nil {
			t.Errorf("%s opens", device)
			return
		}
		if w, c := advice.Split(err); w != what || c != cure {
			t.Errorf("%s:\n got %q -> %q\nwant %q -> %q", device, w, c, what, cure)
		}
	}
	user := account.UserName(nobody)
	file := func(mode os.FileMode, gid int) {
		t.Helper()
		os.Remove(path)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, 0, gid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	file(0o660, group)
	check(path, fmt.Sprintf("permission denied on %s: %s is not in group %d", path, user, group),
		fmt.Sprintf("usermod -aG %d %s, then log in again or restart the service", group, user))
	file(0o600, 0)
	check(path, fmt.Sprintf("permission denied on %s: it belongs to root and group root, with mode 0600", path),
		"give it to a group that may read and write it (the udev rules of tpm-udev take tss), and "+user+" to that group")
	file(0o666, 0)
	check(path, path+" is not a device", "correct device_path")
	check(path+"9", path+"9 does not exist",
		"correct device_path; switch the TPM (PTT, fTPM) on in the firmware; in a virtual machine add one")
	check("swtpm:path="+path+"9", "swtpm:path="+path+"9: connect: no such file or directory", "start swtpm there, or correct device_path")
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := unix.Chmod(socket, 0o600); err != nil {
		t.Fatal(err)
	}
	check("swtpm:path="+socket, "swtpm:path="+socket+": connect: permission denied", "give this user access to the socket")
}
