package tpm_test

import (
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

func benchUnseal(b *testing.B, options string) {
	s := swtpmtest.Start(b)
	d := open(b, s.Device()+options)
	p := parent(b, d)
	blob := seal(b, d, p, secret(), auth, false)
	buf, err := secmem.New(128)
	if err != nil {
		b.Fatal(err)
	}
	defer buf.Destroy()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Unseal(p, blob, auth, buf.Bytes()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnseal(b *testing.B) { benchUnseal(b, ",exclusive") }

// Of a TPM that others may use in between: nothing stays loaded.
func BenchmarkUnsealShared(b *testing.B) { benchUnseal(b, "") }

func BenchmarkSeal(b *testing.B) {
	s := swtpmtest.Start(b)
	d := open(b, s.Device()+",exclusive")
	p, data := parent(b, d), secret()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Seal(p, data, auth, sealstore.SealOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRandom(b *testing.B) {
	s := swtpmtest.Start(b)
	d := open(b, s.Device()+",exclusive")
	p := make([]byte, 32)
	b.ReportAllocs()
	for b.Loop() {
		if err := d.Random(p); err != nil {
			b.Fatal(err)
		}
	}
}
