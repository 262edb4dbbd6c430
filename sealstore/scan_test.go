package sealstore_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// count searches all memory of this process that can be read for a value that
// is given XORed with 0x5a, so that the search does not find what it looks for.
func count(t *testing.T, masked []byte) (n int) {
	t.Helper()
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	const chunk = 1 << 20
	buf := make([]byte, chunk)
	for s := bufio.NewScanner(maps); s.Scan(); {
		var lo, hi int64
		var perm string
		if k, _ := fmt.Sscanf(s.Text(), "%x-%x %s", &lo, &hi, &perm); k != 3 || !strings.HasPrefix(perm, "r") {
			continue
		}
		for at := lo; at < hi; at += chunk - int64(len(masked)) {
			m, err := mem.ReadAt(buf[:min(chunk, hi-at)], at)
			if err != nil && err != io.EOF {
				break // secret memory, or a page of the kernel's
			}
			for rest := buf[:m]; ; rest = rest[1:] {
				i := bytes.IndexByte(rest, masked[0]^0x5a)
				if i < 0 || len(rest)-i < len(masked) {
					break
				}
				if rest = rest[i:]; same(rest, masked) {
					t.Logf("found in %s", s.Text())
					n++
				}
			}
			clear(buf)
		}
	}
	return n
}

func same(b, masked []byte) bool {
	for i, m := range masked {
		if b[i] != m^0x5a {
			return false
		}
	}
	return true
}

// After a login and use, and after the logout, neither secret of the token is
// in memory that anybody could read.
func TestSecretsAreNotInMemory(t *testing.T) {
	d, err := tpm.New(tpm.Config{Device: swtpmtest.Start(t).Device(), KeyHandle: 0x81000001})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s := sealstore.Open(t.TempDir(), d, nil)
	defer s.Close()
	info, err := s.Create(sealstore.InitParams{Label: "t", SOPIN: []byte("so-pin")})
	if err != nil {
		t.Fatal(err)
	}
	token, err := s.Token(info.Serial)
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(token.Login(sealstore.SO, []byte("so-pin")))
	must(token.InitUserPIN([]byte("user-pin")))
	token.Logout()
	must(token.Login(sealstore.User, []byte("user-pin")))
	_, err = token.CreateObject(false, []byte("public"), nil)
	must(err)
	o, err := token.CreateObject(true, []byte("private"), bytes.Repeat([]byte{7}, 32))
	must(err)
	buf, err := secmem.New(32)
	must(err)
	defer buf.Destroy()
	for range 20 {
		_, err = token.Unseal(o.ID, buf.Bytes())
		must(err)
	}
	root, public := sealstore.MaskedSecrets(token)
	if len(root) != 32 || len(public) != 32 {
		t.Fatalf("secrets of %d and %d bytes", len(root), len(public))
	}
	scan := func(when string) {
		t.Helper()
		if n := count(t, root); n != 0 {
			t.Errorf("%s: %d copies of the root secret", when, n)
		}
		if n := count(t, public); n != 0 {
			t.Errorf("%s: %d copies of the public secret", when, n)
		}
	}
	if secmem.Kind() == "memfd_secret" {
		scan("logged in")
	}
	token.Logout()
	s.Close()
	scan("logged out")

	// The search finds what is there to be found.
	plain := make([]byte, len(root))
	for i, b := range root {
		plain[i] = b ^ 0x5a
	}
	if count(t, root) == 0 {
		t.Error("the search is blind")
	}
	clear(plain)
}
