package tpm

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-tpm/tpm2"
)

// FuzzDevice reads device_path. The name that what is read goes by in messages
// and in the log means the same again.
func FuzzDevice(f *testing.F) {
	for _, s := range []string{"", "/dev/tpmrm0", "device:/dev/tpm0", "swtpm:path=/run/s,exclusive", "swtpm:host=localhost,port=2321", "swtpm:[::1]:2321",
		"mssim:host=h,port=65535", "mssim:", "tabrmd:bus_type=session,bus_name=com.example.Tabrmd", "tabrmd", "cmd: tpm2_send -T x", "swtpm:path=/a,path=/b", "swtpm:host=[,port=1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := parseOpener(s)
		if (err == nil) != (CheckDevice(s) == nil) || (o == nil) == (err == nil) {
			t.Fatalf("%q: %v, %v", s, o, err)
		}
		if err != nil || s == "" {
			return
		}
		if sw, ok := o.(*swtpm); ok && strings.Contains(sw.address, "=") {
			return // a host, which cannot be called so
		}
		again, err := parseOpener(o.String())
		if err != nil || again.String() != o.String() {
			t.Errorf("%q is called %q, which is %v, %v", s, o, again, err)
		}
	})
}

// FuzzPublic reads public areas of foreign objects and of storage root keys,
// which come from files and from other machines.
func FuzzPublic(f *testing.F) {
	sealed := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{UserWithAuth: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{}),
	}
	f.Add(tpm2.Marshal(sealed))
	root := tpm2.ECCSRKTemplate
	root.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: bytes.Repeat([]byte{1}, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: bytes.Repeat([]byte{2}, 32)},
	})
	f.Add(tpm2.Marshal(root))
	f.Add(tpm2.Marshal(tpm2.RSAEKTemplate))
	f.Fuzz(func(t *testing.T, public []byte) {
		if p, err := (&Foreign{Public: public}).public(); err == nil && !bytes.Equal(tpm2.Marshal(*p), public) {
			t.Errorf("%x is written %x", public, tpm2.Marshal(*p))
		}
		if p, err := rootPublic(public); err == nil {
			if !bytes.Equal(tpm2.Marshal(*p), public) {
				t.Errorf("%x is written %x", public, tpm2.Marshal(*p))
			}
			if _, err := tpm2.ObjectName(p); err != nil {
				t.Errorf("%x: no Name: %v", public, err)
			}
		}
	})
}

// FuzzFrames plays the simulator that answers a command: with a whole answer, or
// with an error.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 0, 0, 10, 0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, sent []byte) {
		for _, mssim := range []bool{true, false} {
			here, there := net.Pipe()
			go io.Copy(io.Discard, there)
			go func() {
				there.Write(sent)
				there.Close()
			}()
			var c conn = &stream{here}
			if mssim {
				c = &envelope{stream{here}}
			}
			answer, err := c.exchange(make([]byte, 10), 5*time.Second)
			here.Close()
			if err != nil {
				continue
			}
			whole := sent
			if mssim {
				whole = sent[4:]
			}
			if len(answer) > maxFrame || !bytes.HasPrefix(whole, answer) {
				t.Errorf("%x (mssim %v): %x", sent, mssim, answer)
			}
			if !mssim && (len(answer) < 10 || int(binary.BigEndian.Uint32(answer[2:])) != len(answer)) {
				t.Errorf("%x: a frame of %d bytes", sent, len(answer))
			}
		}
	})
}

// FuzzBus plays the message bus, and the broker on it.
func FuzzBus(f *testing.F) {
	reply := func(serial uint32, typ dbus.Type) []byte {
		m := dbus.Message{Type: typ, Headers: map[dbus.HeaderField]dbus.Variant{dbus.FieldReplySerial: dbus.MakeVariant(serial)}}
		if typ == dbus.TypeError {
			m.Headers[dbus.FieldErrorName] = dbus.MakeVariant("com.example.No")
		}
		var b bytes.Buffer
		if err := m.EncodeTo(&b, binary.LittleEndian); err != nil {
			f.Fatal(err)
		}
		binary.LittleEndian.PutUint32(b.Bytes()[8:], serial)
		return b.Bytes()
	}
	login := []byte("OK 0123\r\nAGREE_UNIX_FD\r\n")
	f.Add(append(bytes.Clone(login), append(reply(1, dbus.TypeMethodReply), reply(2, dbus.TypeMethodReply)...)...))
	f.Add(append(bytes.Clone(login), append(reply(1, dbus.TypeMethodReply), reply(2, dbus.TypeError)...)...))
	f.Add(append(bytes.Clone(login), 'l', 2, 1, 1, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff))
	f.Add([]byte("REJECTED\r\n"))
	path := filepath.Join(f.TempDir(), "bus")
	l, err := net.Listen("unix", path)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { l.Close() })
	served := make(chan []byte)
	go func() {
		for sent := range served {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write(sent)
			c.(*net.UnixConn).CloseWrite()
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	f.Cleanup(func() { close(served) })
	f.Fuzz(func(t *testing.T, sent []byte) {
		served <- sent
		b, err := dialBus(t.Context(), "unix:path="+path)
		if err != nil {
			return
		}
		defer b.Close()
		if fd, err := b.connection("com.example.Tabrmd"); err == nil {
			// No descriptor was ever sent.
			os.NewFile(uintptr(fd), "").Close()
			t.Errorf("%q: descriptor %d", sent, fd)
		}
	})
}
