package p11

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/config"
	"github.com/InterCooperative-Network/icn-p11/internal/pinsource"
	"github.com/InterCooperative-Network/icn-p11/sealstore/memseal"
)

// TestAutomaticLoginAfterReinit: another process makes the token anew, which
// ends every login; the module logs in to the new one.
func TestAutomaticLoginAfterReinit(t *testing.T) {
	dir := t.TempDir()
	pin := filepath.Join(dir, "pin")
	must(t, os.WriteFile(pin, []byte(userPIN), 0o600))
	src, err := pinsource.Parse("file:" + pin)
	must(t, err)
	store := filepath.Join(dir, "store")
	sealer := memseal.New()
	a, b := NewModule(), NewModule()
	startWith(t, a, sealer, store, nil)
	ha := token(t, a)
	_, _, err = a.GenerateKeyPair(ha, keygen, pubTemplate, privTemplate)
	must(t, err)
	startWith(t, b, sealer, store, func(c *config.Config) {
		c.Tokens = map[string]config.Token{"test": {PINSource: &src}}
	})
	hb := open(t, b, 0)
	keys := func() int {
		return len(find(t, b, hb, Attribute{CKA_CLASS, ulong(CKO_PRIVATE_KEY)}))
	}
	if n := keys(); n != 1 {
		t.Fatalf("%d private keys", n)
	}

	must(t, a.CloseAllSessions(0))
	ha = token(t, a)
	if n := keys(); n != 0 {
		t.Fatalf("%d private keys in the new token", n)
	}
	_, _, err = a.GenerateKeyPair(ha, keygen, pubTemplate, privTemplate)
	must(t, err)
	if n := keys(); n != 1 {
		t.Fatalf("%d private keys after the other made one", n)
	}
	_, _, err = b.GenerateKeyPair(hb, keygen, pubTemplate, privTemplate)
	must(t, err)
}

// TestFalseNoPIN: whoever writes to the store makes a token look as if it
// needed no PIN. Its seal counts wrong tries, and one is enough to know.
func TestFalseNoPIN(t *testing.T) {
	dir, sealer := t.TempDir(), memseal.New()
	a, b := NewModule(), NewModule()
	startWith(t, a, sealer, dir, nil)
	h := token(t, a)
	_, _, err := a.GenerateKeyPair(h, keygen, pubTemplate, privTemplate)
	must(t, err)
	files, err := filepath.Glob(filepath.Join(dir, "tokens", "*", "token"))
	must(t, err)
	data, err := os.ReadFile(files[0])
	must(t, err)
	const kdf = 16 + 4 + 4 + 1
	at := 7 + 1 + 8 + 4 + 8 + 1 + 32 // the name of the storage root key (docs/format.md)
	skip := func() { at += 2 + int(data[at])<<8 + int(data[at+1]) }
	skip()
	skip() // and that of the endorsement key
	at += kdf
	skip()
	skip()
	if data[at] != 1 {
		t.Fatalf("no user PIN at %d", at)
	}
	data[at] = 2
	must(t, os.WriteFile(files[0], slices.Delete(data, at+1, at+1+kdf), 0o600))

	startWith(t, b, sealer, dir, nil)
	h = open(t, b, 0)
	for range 5 {
		want(t, CKR_USER_NOT_LOGGED_IN, b.FindObjectsInit(h, []Attribute{{CKA_CLASS, ulong(CKO_PRIVATE_KEY)}}))
	}
	l, err := sealer.Lockout()
	must(t, err)
	if l.Counter != 1 {
		t.Errorf("%d tries were used up, want 1", l.Counter)
	}
}
