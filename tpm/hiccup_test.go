package tpm_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// An answer that comes after we stopped waiting for it is not taken for that
// of a later command.
func TestLateAnswer(t *testing.T) {
	for _, late := range []tpm2.TPMCC{tpm2.TPMCCPolicyAuthorize, tpm2.TPMCCPolicyPCR, tpm2.TPMCCUnseal} {
		s := swtpmtest.Start(t)
		h := swtpmtest.StartProxy(t, s)
		d, err := tpm.New(tpm.Config{Device: h.Device() + ",exclusive", KeyHandle: handle, Timeout: 2 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		p, data := parent(t, d), secret()
		b := bind(t, d, secret())
		blob := bound(t, d, p, data, b)
		wantSecret(t, d, p, blob, auth, data)
		h.Decide(swtpmtest.Once(late, func(answer []byte) []byte {
			time.Sleep(2500 * time.Millisecond)
			return answer
		}))
		if _, err := unseal(d, p, blob, auth); !errors.Is(err, sealstore.ErrUnavailable) {
			t.Errorf("%v: %v", late, err)
		}
		for range 3 {
			wantSecret(t, d, p, blob, auth, data)
			values(t, d, b)
		}
		d.Close()
		if left := handles(t, s); len(left) != 0 && late != tpm2.TPMCCUnseal {
			// What was loaded on the connection that failed is found stale, and
			// flushed when slots run out.
			t.Logf("left in the TPM: %x", left)
		}
	}
}

// An answer that somebody has changed on the bus is not taken, and what comes
// after it is.
func TestChangedAnswer(t *testing.T) {
	h := swtpmtest.StartProxy(t, swtpmtest.Start(t))
	d := open(t, h.Device()+",exclusive")
	p, data := parent(t, d), secret()
	blob := seal(t, d, p, data, auth, false)
	wantSecret(t, d, p, blob, auth, data)
	// Of all parts: the tag, the length of the parameters, the sealed object behind
	// its length, nonce, attributes and HMAC with the lengths of theirs.
	const head, params, nonce = 10 + 4, 2 + 32, 2 + 16
	const auths = head + params
	change := map[string]func([]byte) []byte{"an error": func([]byte) []byte { return swtpmtest.Code(0x084) }}
	for _, at := range []int{0, 13, head + 2, auths - 1, auths + 1, auths + 2, auths + nonce, auths + nonce + 2, auths + nonce + 3} {
		change[fmt.Sprintf("byte %d", at)] = func(answer []byte) []byte {
			answer[at] ^= 1
			return answer
		}
	}
	for what, f := range change {
		h.Decide(swtpmtest.Once(tpm2.TPMCCUnseal, f))
		if got, err := unseal(d, p, blob, auth); err == nil {
			t.Errorf("%s: %x is unsealed", what, got)
		}
		for range 2 {
			wantSecret(t, d, p, blob, auth, data)
		}
	}
}

// The same of what seals with the storage root key: it is not taken for
// unusable.
func TestChangedAnswerOfCreate(t *testing.T) {
	const owner = "the owner's password"
	s := swtpmtest.Start(t)
	setPassword(t, s, tpm2.TPMRHOwner, owner)
	h := swtpmtest.StartProxy(t, s)
	d := open(t, h.Device()+",exclusive")
	if _, _, err := d.Persist([]byte(owner)); err != nil {
		t.Fatal(err)
	}
	p, data := parent(t, d), secret()
	blob := seal(t, d, p, data, auth, false)
	for _, f := range []func([]byte) []byte{
		func(answer []byte) []byte { answer[0] ^= 1; return answer },
		func([]byte) []byte { return swtpmtest.Code(0x084) },
	} {
		h.Decide(swtpmtest.Once(tpm2.TPMCCCreate, f))
		if _, err := d.Seal(p, data, auth, sealstore.SealOptions{}); err == nil {
			t.Error("sealed by an answer that was changed")
		}
		wantSecret(t, d, p, blob, auth, data)
		wantSecret(t, d, p, seal(t, d, p, data, auth, false), auth, data)
	}
}

// A PIN whose answer is lost is not tried again: the TPM may have counted it.
func TestPINIsTriedOnce(t *testing.T) {
	for _, mode := range []string{"", ",exclusive"} {
		s := swtpmtest.Start(t)
		h := swtpmtest.StartProxy(t, s)
		d := open(t, h.Device()+mode)
		p, data := parent(t, d), secret()
		pin, key := seal(t, d, p, data, auth, true), seal(t, d, p, data, auth, false)
		counter := func() uint32 {
			t.Helper()
			l, err := d.Lockout()
			if err != nil {
				t.Fatal(err)
			}
			return l.Counter
		}
		hangUp := func([]byte) []byte { return nil }
		wantSecret(t, d, p, pin, auth, data) // the first use is answered by RETRY

		h.Decide(swtpmtest.Once(tpm2.TPMCCUnseal, hangUp))
		if _, err := unseal(d, p, pin, wrong); !errors.Is(err, sealstore.ErrUnavailable) {
			t.Errorf("unsealing with a PIN: %v", err)
		}
		if n := h.Count(tpm2.TPMCCUnseal); n != 1 || counter() != 1 {
			t.Errorf("a wrong PIN was tried %d times, %d were counted", n, counter())
		}
		h.Decide(swtpmtest.Once(tpm2.TPMCCObjectChangeAuth, hangUp))
		if _, err := d.ChangeAuth(p, pin, wrong, auth); !errors.Is(err, sealstore.ErrUnavailable) {
			t.Errorf("changing a PIN: %v", err)
		}
		if n := h.Count(tpm2.TPMCCObjectChangeAuth); n != 1 || counter() != 2 {
			t.Errorf("a wrong PIN was tried %d times for another, %d were counted", n, counter())
		}
		// Where nothing is counted, and nothing was changed, it is repeated.
		for _, code := range []tpm2.TPMCC{tpm2.TPMCCUnseal, tpm2.TPMCCStartAuthSession, tpm2.TPMCCLoad} {
			d.Release()
			h.Decide(swtpmtest.Once(code, hangUp))
			wantSecret(t, d, p, key, auth, data)
		}
		for _, code := range []tpm2.TPMCC{tpm2.TPMCCStartAuthSession, tpm2.TPMCCLoad} {
			d.Release()
			h.Decide(swtpmtest.Once(code, hangUp))
			wantSecret(t, d, p, pin, auth, data)
		}
		// A PIN is in no session that is kept.
		d.Release()
		wantSecret(t, d, p, pin, auth, data)
		h.Decide(nil)
		wantSecret(t, d, p, pin, auth, data)
		if n := h.Count(tpm2.TPMCCStartAuthSession); n != 1 {
			t.Errorf("%d sessions were started for a second login", n)
		}
	}
}

// Whoever still asks after Close gets an error, and leaves no connection.
func TestClosed(t *testing.T) {
	s := swtpmtest.Start(t)
	d := open(t, s.Device()+",exclusive")
	parent(t, d)
	before := descriptors(t)
	d.Close()
	if _, err := d.Lockout(); !errors.Is(err, sealstore.ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
	if after := descriptors(t); after >= before {
		t.Errorf("%d descriptors, %d before Close", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// Release leaves nothing behind, and does not wait for a TPM that is busy.
func TestRelease(t *testing.T) {
	s := swtpmtest.Start(t)
	h := swtpmtest.StartProxy(t, s)
	d := open(t, h.Device()+",exclusive")
	p, data := parent(t, d), secret()
	b := seal(t, d, p, data, auth, false)
	wantSecret(t, d, p, b, auth, data)
	d.Release()
	if left := handles(t, s); len(left) != 0 {
		t.Errorf("left in the TPM: %x", left)
	}
	wantSecret(t, d, p, b, auth, data)
	running, goOn := make(chan bool), make(chan bool)
	h.Decide(swtpmtest.Once(tpm2.TPMCCUnseal, func(answer []byte) []byte {
		running <- true
		<-goOn
		return answer
	}))
	var wg sync.WaitGroup
	wg.Go(func() { wantSecret(t, d, p, b, auth, data) })
	<-running
	d.Release()
	goOn <- true
	wg.Wait()
	if left := handles(t, s); len(left) != 0 {
		t.Errorf("left in the TPM after the operation: %x", left)
	}
}

// A TPM that asks for it gets a command again, and not for ever.
func TestRepeatedCommands(t *testing.T) {
	t.Parallel()
	s := swtpmtest.Start(t)
	h := swtpmtest.StartProxy(t, s)
	d := open(t, h.Device()+",exclusive")
	p, data := parent(t, d), secret()
	b := seal(t, d, p, data, auth, false)
	wantSecret(t, d, p, b, auth, data)
	for _, rc := range []uint32{0x922, 0x908, 0x90A, 0x920} { // RETRY, YIELDED, TESTING, NV_RATE
		left := 4
		h.Decide(func(c tpm2.TPMCC, answer []byte) []byte {
			if c == tpm2.TPMCCGetRandom && left > 0 {
				left--
				return swtpmtest.Code(rc)
			}
			return answer
		})
		if err := d.Random(make([]byte, 8)); err != nil || left != 0 {
			t.Errorf("%#x: %v, %d answers left", rc, err, left)
		}
	}
	h.Decide(func(tpm2.TPMCC, []byte) []byte { return swtpmtest.Code(0x90A) })
	if err := d.Random(make([]byte, 8)); !errors.Is(err, sealstore.ErrUnavailable) || !strings.Contains(err.Error(), "the TPM asked for 10s to repeat the command (0x90a)") {
		t.Errorf("a TPM that tests itself for ever: %v", err)
	}
	h.Decide(nil)
	wantSecret(t, d, p, b, auth, data)
}

// That unsealing is slow is said once, with what helps.
func TestSlowUnseal(t *testing.T) {
	t.Parallel()
	s := swtpmtest.Start(t)
	h := swtpmtest.StartProxy(t, s)
	var log bytes.Buffer
	d, err := tpm.New(tpm.Config{Device: h.Device(), KeyHandle: handle, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p, data := parent(t, d), secret()
	b := seal(t, d, p, data, auth, false)
	wantSecret(t, d, p, b, auth, data)
	if strings.Contains(log.String(), "slow") {
		t.Errorf("logged: %s", &log)
	}
	for range 2 {
		h.Decide(swtpmtest.Once(tpm2.TPMCCUnseal, func(answer []byte) []byte { time.Sleep(1100 * time.Millisecond); return answer }))
		wantSecret(t, d, p, b, auth, data)
	}
	if n := strings.Count(log.String(), "auto_lock_timeout_secs"); n != 1 || !strings.Contains(log.String(), "took=1.") {
		t.Errorf("said %d times: %s", n, &log)
	}
}
