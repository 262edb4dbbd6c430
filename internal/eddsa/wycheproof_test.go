package eddsa

import (
	"bytes"
	"testing"
)

func TestWycheproof(t *testing.T) {
	var file struct {
		NumberOfTests int
		TestGroups    []struct {
			Key   struct{ PK, SK string }
			Tests []struct {
				TcID                      int
				Comment, Msg, Sig, Result string
			}
		}
	}
	load(t, "wycheproof_ed25519.json", &file)
	n := 0
	for _, g := range file.TestGroups {
		k, pub := newKey(t, unhex(t, g.Key.SK)), unhex(t, g.Key.PK)
		if got := k.Public(); !bytes.Equal(got[:], pub) {
			t.Errorf("public key %x, want %x", got, pub)
		}
		for _, v := range g.Tests {
			n++
			msg, sig := unhex(t, v.Msg), unhex(t, v.Sig)
			if got := Verify(pub, msg, sig, Params{}); got != (v.Result == "valid") {
				t.Errorf("%d (%s): verifies: %v, want %s", v.TcID, v.Comment, got, v.Result)
			}
			if v.Result != "valid" {
				continue
			}
			own := make([]byte, SignatureSize)
			if err := k.Sign(own, Params{}, msg); err != nil || !bytes.Equal(own, sig) {
				t.Errorf("%d: signature %x, %v", v.TcID, own, err)
			}
		}
	}
	if n != file.NumberOfTests || n < 100 {
		t.Errorf("ran %d of %d tests", n, file.NumberOfTests)
	}
}
