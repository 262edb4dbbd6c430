package bootlog

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
)

func read(t testing.TB) []byte {
	data, err := os.ReadFile("testdata/secure_boot.bin")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func parse(t *testing.T, data []byte) *Log {
	t.Helper()
	l, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// replay computes what a PCR has after the events of a log.
func replay(l *Log, pcr int) []byte {
	v := make([]byte, sha256.Size)
	for _, e := range l.of("sha256", pcr) {
		d := sha256.Sum256(slices.Concat(v, e.Digest))
		v = d[:]
	}
	return v
}

func TestCheck(t *testing.T) {
	l := parse(t, read(t))
	pcrs := []int{0, 4, 7, 16}
	var values [][]byte
	for _, n := range pcrs {
		values = append(values, replay(l, n))
	}
	if err := l.Check("sha256", pcrs, values); err != nil {
		t.Error(err)
	}
	for i := range values {
		other := slices.Clone(values)
		other[i] = bytes.Repeat([]byte{1}, sha256.Size)
		if err := l.Check("sha256", pcrs, other); !errors.Is(err, ErrOther) {
			t.Errorf("another PCR %d: %v", pcrs[i], err)
		}
	}
	if err := l.Check("sha512", pcrs, values); err == nil || errors.Is(err, ErrOther) {
		t.Errorf("sha512: %v", err)
	}
}

func TestDiff(t *testing.T) {
	before := read(t)
	// A byte of the SecureBoot variable's value, and of its digest.
	l := parse(t, before)
	e := l.of("sha256", 7)[0]
	now := bytes.Clone(before)
	at := bytes.Index(now, e.Digest)
	now[at] ^= 1
	gone, added := Diff(l, parse(t, now), "sha256", 7)
	if len(gone) != 1 || len(added) != 1 || gone[0] != "EV_EFI_VARIABLE_DRIVER_CONFIG \"SecureBoot\" (digest ccfc4bb32888a345…)" || added[0] == gone[0] {
		t.Errorf("gone %q, added %q", gone, added)
	}
	if gone, added := Diff(l, parse(t, now), "sha256", 4); gone != nil || added != nil {
		t.Errorf("gone %q, added %q", gone, added)
	}
	if gone, added := Diff(l, l, "sha256", 7); gone != nil || added != nil {
		t.Errorf("gone %q, added %q", gone, added)
	}
}

func TestDescribe(t *testing.T) {
	l := parse(t, read(t))
	var all []string
	for _, e := range l.events.Events(register.HashSHA256) {
		all = append(all, describe(e))
	}
	for i, want := range []string{
		"EV_S_CRTM_VERSION (digest 96a296d224f285c6…)",
		"EV_EFI_VARIABLE_DRIVER_CONFIG \"SecureBoot\" (digest ccfc4bb32888a345…)",
	} {
		if all[i] != want {
			t.Errorf("event %d is %s, not %s", i, all[i], want)
		}
	}
	if !slices.ContainsFunc(all, func(s string) bool {
		return strings.HasPrefix(s, `EV_EFI_BOOT_SERVICES_APPLICATION "\EFI\BOOT\BOOTX64.EFI"`)
	}) {
		t.Errorf("no boot loader in %q", all)
	}
	for data, want := range map[string]string{
		"Booting":                 `"Booting"`,
		"B\x00o\x00o\x00\x00\x00": `"Boo"`,
		"\x1b[31m":                "",
		"\xff\xfe":                "",
		"":                        "",
	} {
		if got := subject(tcg.Event{Type: tcg.Ipl, Data: []byte(data)}); got != want {
			t.Errorf("%q is described as %s, not %s", data, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(read(f))
	f.Add(read(f)[:100])
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := Parse(data)
		if err != nil {
			return
		}
		for pcr := range 24 {
			Diff(l, l, "sha256", pcr)
			l.Check("sha256", []int{pcr}, [][]byte{make([]byte, sha256.Size)})
			for _, e := range l.of("sha256", pcr) {
				describe(e)
			}
		}
	})
}
