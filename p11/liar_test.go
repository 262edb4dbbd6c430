package p11

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/config"
	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
	"github.com/InterCooperative-Network/icn-p11/internal/stats"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/memseal"
)

// liar is a TPM that draws nothing but zeros and, once it is told to, unseals
// something else than what was sealed.
type liar struct {
	*memseal.Sealer
	lies bool
}

func (l *liar) Random(dst []byte) error {
	clear(dst)
	return nil
}

func (l *liar) Unseal(parent []byte, b sealstore.Blob, auth, dst []byte) (int, error) {
	n, err := l.Sealer.Unseal(parent, b, auth, dst)
	if err == nil && l.lies {
		dst[0] ^= 1
	}
	return n, err
}

// A TPM that lies has no signature made by another key, and no random bytes of
// its choice.
func TestTPMThatLies(t *testing.T) {
	m, s := NewModule(), &liar{Sealer: memseal.New()}
	cfg := config.Default()
	cfg.SealedBlobDir = t.TempDir()
	log := slog.New(slog.DiscardHandler)
	m.start(cfg, log, nopCloser{}, s, stats.New(cfg.Statistics, log))
	t.Cleanup(func() { must(t, m.Finalize()) })
	h := token(t, m)

	a, b := make([]byte, 64), make([]byte, 64)
	must(t, m.GenerateRandom(h, a))
	must(t, m.GenerateRandom(h, b))
	if bytes.Equal(a, b) || bytes.Contains(a, make([]byte, 16)) {
		t.Errorf("random bytes of a TPM that gives zeros: %x, %x", a, b)
	}
	pub, priv, err := m.GenerateKeyPair(h, keygen, pubTemplate, privTemplate)
	must(t, err)
	other, fresh, err := m.GenerateKeyPair(h, keygen, pubTemplate, privTemplate)
	must(t, err)
	if bytes.Equal(get(t, m, h, pub, CKA_EC_POINT), get(t, m, h, other, CKA_EC_POINT)) {
		t.Error("two keys of a TPM that gives zeros are the same")
	}
	// Nor are those that the module makes for other mechanisms.
	values := map[string]bool{string(make([]byte, 32)): true}
	for range 2 {
		x, _, err := m.GenerateKeyPair(h, Mechanism{Type: CKM_EC_MONTGOMERY_KEY_PAIR_GEN}, []Attribute{{CKA_EC_PARAMS, montgomeryOID}}, nil)
		must(t, err)
		key, err := m.GenerateKey(h, Mechanism{Type: CKM_AES_KEY_GEN}, []Attribute{{CKA_VALUE_LEN, ulong(uint(32))}, {CKA_SENSITIVE, no}, {CKA_EXTRACTABLE, yes}})
		must(t, err)
		for _, v := range [][]byte{get(t, m, h, x, CKA_EC_POINT)[2:], get(t, m, h, key, CKA_VALUE)} {
			if values[string(v)] {
				t.Errorf("a TPM that gives zeros chooses the key %x", v)
			}
			values[string(v)] = true
		}
	}

	sign := func(key ObjectHandle) ([]byte, error) {
		must(t, m.SignInit(h, pure, key))
		out := Output{Buf: make([]byte, eddsa.SignatureSize)}
		err := m.Sign(h, []byte("message"), &out)
		return out.Buf, err
	}
	_, err = sign(priv)
	must(t, err)
	s.lies = true
	for _, key := range []ObjectHandle{priv, fresh} { // one that was unsealed before, and one that was not
		sig, err := sign(key)
		want(t, CKR_DEVICE_ERROR, err)
		if !bytes.Equal(sig, make([]byte, len(sig))) {
			t.Errorf("a signature of another key: %x", sig)
		}
	}
	s.lies = false
	for i, key := range []ObjectHandle{priv, fresh} {
		sig, err := sign(key)
		must(t, err)
		must(t, m.VerifyInit(h, pure, []ObjectHandle{pub, other}[i]))
		must(t, m.Verify(h, []byte("message"), sig))
	}
}
