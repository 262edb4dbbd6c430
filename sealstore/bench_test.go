package sealstore_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/sealtest"
)

func BenchmarkCreateObject(b *testing.B) {
	_, tok, _, _ := newToken(b, b.TempDir())
	b.ReportAllocs()
	for b.Loop() {
		_, err := tok.CreateObject(false, make([]byte, 500), nil, nil)
		must(b, err)
	}
}

func BenchmarkObjects(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			_, tok, _, _ := newToken(b, b.TempDir())
			for range n {
				_, err := tok.CreateObject(false, make([]byte, 500), nil, nil)
				must(b, err)
			}
			time.Sleep(2500 * time.Millisecond) // files that are new are read again
			b.ReportAllocs()
			for b.Loop() {
				_, err := tok.Objects()
				must(b, err)
			}
		})
	}
}

// A program that has just started: all files are read.
func BenchmarkFirstObjects(b *testing.B) {
	dir := b.TempDir()
	_, tok, dev, _ := newToken(b, dir)
	for range 1000 {
		_, err := tok.CreateObject(false, make([]byte, 500), nil, nil)
		must(b, err)
	}
	info, err := tok.Info()
	must(b, err)
	b.ReportAllocs()
	for b.Loop() {
		st := sealstore.Open(dir, dev, nil)
		tok, err := st.Token(info.Serial)
		must(b, err)
		if list, err := tok.Objects(); err != nil || len(list) != 1000 {
			b.Fatalf("%d objects, %v", len(list), err)
		}
		st.Close()
	}
}

// With a TPM in memory: what the store does besides.
func BenchmarkUnseal(b *testing.B) {
	_, tok, _, _ := newToken(b, b.TempDir())
	o, err := tok.CreateObject(true, make([]byte, 500), make([]byte, 32), nil)
	must(b, err)
	buf, err := secmem.New(32)
	must(b, err)
	defer buf.Destroy()
	time.Sleep(2500 * time.Millisecond)
	b.ReportAllocs()
	for b.Loop() {
		_, err := tok.Unseal(o.ID, buf.Bytes())
		must(b, err)
	}
}

func BenchmarkLogin(b *testing.B) {
	_, tok, _, _ := newToken(b, b.TempDir())
	b.ReportAllocs()
	for b.Loop() {
		must(b, tok.Login(0, sealtest.UserPIN))
	}
}
