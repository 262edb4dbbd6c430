package p11

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/config"
)

// benchToken is a token with a key pair, whose key stays unlocked or does not.
func benchToken(b *testing.B, idle time.Duration) (m *Module, h SessionHandle, pub, priv ObjectHandle) {
	b.Helper()
	m, _ = start(b, func(c *config.Config) { c.AutoLockTimeout = idle })
	h = token(b, m)
	pub, priv, err := m.GenerateKeyPair(h, keygen, pubTemplate, privTemplate)
	must(b, err)
	b.ReportAllocs()
	return m, h, pub, priv
}

func benchSign(b *testing.B, idle time.Duration) {
	m, h, _, priv := benchToken(b, idle)
	msg, buf := make([]byte, 32), make([]byte, 64)
	for b.Loop() {
		out := Output{Buf: buf}
		if m.SignInit(h, pure, priv) != nil || m.Sign(h, msg, &out) != nil {
			b.Fatal("no signature")
		}
	}
}

func BenchmarkSignUnlocked(b *testing.B) { benchSign(b, time.Hour) }

// With a TPM in memory: what the module does besides.
func BenchmarkSignUnsealed(b *testing.B) { benchSign(b, 0) }

func BenchmarkVerify(b *testing.B) {
	m, h, pub, priv := benchToken(b, time.Hour)
	msg, out := make([]byte, 32), Output{Buf: make([]byte, 64)}
	must(b, m.SignInit(h, pure, priv))
	must(b, m.Sign(h, msg, &out))
	for b.Loop() {
		if m.VerifyInit(h, pure, pub) != nil || m.Verify(h, msg, out.Buf) != nil {
			b.Fatal("does not verify")
		}
	}
}

func BenchmarkSession(b *testing.B) {
	m, _, _, _ := benchToken(b, 0)
	for b.Loop() {
		h, err := m.OpenSession(0, CKF_SERIAL_SESSION|CKF_RW_SESSION)
		must(b, err)
		must(b, m.CloseSession(h))
	}
}

func BenchmarkAttributes(b *testing.B) {
	m, h, pub, _ := benchToken(b, 0)
	q := []AttributeOut{{Type: CKA_CLASS, Buf: make([]byte, 8)}, {Type: CKA_LABEL, Buf: make([]byte, 64)}, {Type: CKA_EC_POINT, Buf: make([]byte, 64)}}
	for b.Loop() {
		must(b, m.GetAttributeValue(h, pub, q))
	}
}

func BenchmarkFind(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := filepath.Join(b.TempDir(), "store")
			m, _ := start(b, func(c *config.Config) { c.SealedBlobDir = dir })
			h := token(b, m)
			for i := range n {
				_, err := m.CreateObject(h, []Attribute{{CKA_CLASS, ulong(uint(CKO_DATA))}, {CKA_TOKEN, yes}, {CKA_LABEL, fmt.Appendf(nil, "object %d", i)}})
				must(b, err)
			}
			time.Sleep(2500 * time.Millisecond) // files that are new are read again
			b.ReportAllocs()
			for b.Loop() {
				if len(find(b, m, h, Attribute{CKA_LABEL, []byte("object 7")})) != 1 {
					b.Fatal("not found")
				}
			}
		})
	}
}
