package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"io"
	"log/slog"
	"math/big"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// replay is a TPM that says what it is given, whatever it is asked, one answer
// for each command.
type replay struct {
	answers []byte
	left    int // of the present answer
}

func (*replay) String() string                     { return "replay" }
func (r *replay) open(time.Duration) (conn, error) { return &stream{r}, nil }
func (*replay) keep() bool                         { return true }
func (*replay) alone() bool                        { return true }
func (*replay) managed() bool                      { return false }
func (*replay) startup() bool                      { return true }
func (*replay) Close() error                       { return nil }
func (*replay) SetDeadline(time.Time) error        { return nil }

func (r *replay) Write(p []byte) (int, error) {
	r.left = len(r.answers)
	if r.left >= 10 {
		r.left = int(min(int64(r.left), max(10, int64(binary.BigEndian.Uint32(r.answers[2:])))))
	}
	return len(p), nil
}

func (r *replay) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.answers[:r.left])
	r.answers, r.left = r.answers[n:], r.left-n
	return n, nil
}

// tape records what a TPM answers.
type tape struct {
	opener
	answers []byte
}

func (t *tape) open(limit time.Duration) (conn, error) {
	c, err := t.opener.open(limit)
	return &taped{c, t}, err
}

type taped struct {
	conn
	t *tape
}

func (c *taped) exchange(command []byte, limit time.Duration) ([]byte, error) {
	a, err := c.conn.exchange(command, limit)
	c.t.answers = append(c.t.answers, a...)
	return a, err
}

// sealed is what the operations work on.
type sealed struct {
	parent      []byte
	free, bound sealstore.Blob
	binding     *sealstore.Binding
	about       sealstore.Blob // with its creation
	credential  []byte
	wrapped     Duplicate
	foreign     Foreign
}

var (
	fuzzAuth   = bytes.Repeat([]byte("a"), authSize)
	fuzzSecret = bytes.Repeat([]byte("s"), 32)
)

// operations are all that a TPM is asked for.
var operations = []func(t *TPM, s *sealed) error{
	func(t *TPM, s *sealed) error { _, err := t.Parent(); return err },
	func(t *TPM, s *sealed) error {
		_, err := t.Seal(s.parent, fuzzSecret, fuzzAuth, sealstore.SealOptions{})
		return err
	},
	func(t *TPM, s *sealed) error { return fuzzUnseal(t, s.parent, s.free) },
	func(t *TPM, s *sealed) error { return fuzzUnseal(t, s.parent, s.bound) },
	func(t *TPM, s *sealed) error {
		b := s.bound
		b.Binding = &sealstore.Binding{Bank: b.Binding.Bank, PCRs: b.Binding.PCRs, Approver: b.Binding.Approver, Approvals: slices.Clone(b.Binding.Approvals)}
		b.Binding.Approvals[0].Ticket = nil
		return fuzzUnseal(t, s.parent, b)
	},
	func(t *TPM, s *sealed) error {
		_, err := t.ChangeAuth(s.parent, s.free, fuzzAuth, fuzzAuth)
		return err
	},
	func(t *TPM, s *sealed) error { return t.TryLoad(s.parent, s.free) },
	func(t *TPM, s *sealed) error { return t.Random(make([]byte, 40)) },
	func(t *TPM, s *sealed) error { _, err := t.Lockout(); return err },
	func(t *TPM, s *sealed) error { _, err := t.PCRs("sha256", []int{0, 7}); return err },
	func(t *TPM, s *sealed) error {
		_, err := t.Approve(s.binding, [][]byte{fuzzSecret, fuzzSecret}, fuzzSecret)
		return err
	},
	func(t *TPM, s *sealed) error { _, err := t.Check(); return err },
	func(t *TPM, s *sealed) error { _, err := t.Device(); return err },
	func(t *TPM, s *sealed) error {
		return t.do("flushing", func() error { t.flushStale(); return nil })
	},
	func(t *TPM, s *sealed) error { _, err := t.Endorsement(); return err },
	func(t *TPM, s *sealed) error {
		_, err := t.Attest(AttestParams{
			Parent: s.parent, Serial: "0123456789abcdef", Seal: s.about, Bank: "sha256", PCRs: []int{0, 7}, QuoteData: fuzzSecret, CreationData: fuzzSecret,
		})
		return err
	},
	func(t *TPM, s *sealed) error {
		page, err := secmem.New(MaxCredential)
		if err != nil {
			return err
		}
		defer page.Destroy()
		_, err = t.ActivateRoot(s.parent, s.credential, page.Bytes())
		return err
	},
	func(t *TPM, s *sealed) error { _, _, err := t.Root(); return err },
	func(t *TPM, s *sealed) error {
		page, err := secmem.New(maxSecret)
		if err != nil {
			return err
		}
		defer page.Destroy()
		_, err = t.ImportWrapped(s.parent, s.wrapped, fuzzAuth, page.Bytes())
		return err
	},
	func(t *TPM, s *sealed) error {
		f := s.foreign
		f.Parent.templates = []tpm2.TPMTPublic{tpm2.ECCSRKTemplate, icnTemplate()}
		return fuzzForeign(t, s.parent, f)
	},
	func(t *TPM, s *sealed) error {
		_, err := t.SealForeign(s.parent, ICNParent(), nil, fuzzSecret)
		return err
	},
}

func fuzzForeign(t *TPM, parent []byte, f Foreign) error {
	page, err := secmem.New(maxSecret)
	if err != nil {
		return err
	}
	defer page.Destroy()
	_, err = t.UnsealForeign(parent, f, nil, nil, page.Bytes())
	return err
}

func fuzzUnseal(t *TPM, parent []byte, b sealstore.Blob) error {
	page, err := secmem.New(maxSecret)
	if err != nil {
		return err
	}
	defer page.Destroy()
	_, err = t.Unseal(parent, b, fuzzAuth, page.Bytes())
	return err
}

// recorded makes seals in a software TPM, and records its answers to each
// operation.
func recorded(t testing.TB) (s *sealed, answers [][]byte) {
	t.Helper()
	swtpm := swtpmtest.Start(t)
	device := swtpm.Device()
	fresh := func() (*TPM, *tape) {
		d, err := New(Config{Device: device, KeyHandle: 0x81000001})
		if err != nil {
			t.Fatal(err)
		}
		x := &tape{opener: d.opener}
		d.opener = x
		return d, x
	}
	d, _ := fresh()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s = &sealed{binding: &sealstore.Binding{Bank: "sha256", PCRs: []int{0, 7}}}
	var err error
	s.parent, err = d.Parent()
	must(err)
	s.free, err = d.Seal(s.parent, fuzzSecret, fuzzAuth, sealstore.SealOptions{})
	must(err)
	root, _, err := d.Root()
	must(err)
	s.wrapped, err = WrapFor(root, fuzzSecret, fuzzAuth)
	must(err)
	s.binding.Approver, err = d.Approver(fuzzSecret)
	must(err)
	values, err := d.PCRs(s.binding.Bank, s.binding.PCRs)
	must(err)
	a, err := d.Approve(s.binding, values, fuzzSecret)
	must(err)
	s.binding.Approvals = []sealstore.Approval{a}
	s.bound, err = d.Seal(s.parent, fuzzSecret, fuzzAuth, sealstore.SealOptions{Binding: s.binding})
	must(err)
	s.about, err = d.Seal(s.parent, fuzzSecret, fuzzAuth, sealstore.SealOptions{About: fuzzSecret})
	must(err)
	e, err := d.Endorsement()
	must(err)
	s.credential, err = Credential(e.Public, s.parent, fuzzSecret)
	must(err)
	s.foreign, err = d.SealForeign(s.parent, ICNParent(), nil, fuzzSecret)
	must(err)
	must(d.Close())
	swtpm.Define(ekECC256, fuzzCertificate(t, e.Public))
	swtpm.Define(ekChain, fuzzCertificate(t, e.Public))
	for _, op := range operations {
		d, x := fresh()
		must(op(d, s))
		must(d.Close())
		answers = append(answers, x.answers)
	}
	return s, answers
}

// fuzzCertificate makes a certificate for an endorsement key.
func fuzzCertificate(t testing.TB, ek []byte) []byte {
	t.Helper()
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](ek)
	if err != nil {
		t.Fatal(err)
	}
	key, err := tpm2.Pub(*public)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key, issuer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// answered runs an operation on a TPM that answers so. Whatever it says, there
// is no panic, no large allocation, and an end.
func answered(t *testing.T, s *sealed, op int, answers []byte) error {
	t.Helper()
	d := &TPM{cfg: Config{KeyHandle: 0x81000001, Timeout: time.Second, Idle: time.Hour, Log: slog.New(slog.DiscardHandler)},
		opener: &replay{answers: answers}}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	err := operations[op](d, s)
	d.Close()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20+64*uint64(len(answers)) {
		t.Errorf("operation %d took %d bytes for %d bytes of answers: %x", op, n, len(answers), answers)
	}
	if took := time.Since(start); took > 2*patience {
		t.Errorf("operation %d took %v: %x", op, took, answers)
	}
	return err
}

func FuzzAnswers(f *testing.F) {
	s, answers := recorded(f)
	for op, a := range answers {
		f.Add(op, a)
	}
	f.Fuzz(func(t *testing.T, op int, a []byte) {
		if op >= 0 && op < len(operations) && len(a) < 1<<16 {
			answered(t, s, op, a)
		}
	})
}

// TestHostileAnswers alters recorded answers in each place. The ways to do it
// take turns at the places; with ICN_P11_LONG each place meets all of them.
func TestHostileAnswers(t *testing.T) {
	overwrite := func(size int, v byte) func([]byte, int) []byte {
		return func(answers []byte, at int) []byte {
			bad := bytes.Clone(answers)
			for k := at; k < min(at+size, len(bad)); k++ {
				bad[k] = v
			}
			return bad
		}
	}
	ways := []func(answers []byte, at int) []byte{
		overwrite(1, 0), overwrite(1, 0xff), overwrite(2, 0), overwrite(2, 0xff), overwrite(4, 0), overwrite(4, 0xff),
		func(answers []byte, at int) []byte { return answers[:at] },
	}
	long := os.Getenv("ICN_P11_LONG") != ""
	s, recordings := recorded(t)
	for op, all := range recordings {
		// What a session authenticates is refused when it is replayed; all else
		// is as good as the first time.
		err := answered(t, s, op, all)
		if op >= 6 && op <= 10 && err != nil {
			t.Errorf("operation %d, unaltered: %v", op, err)
		}
		for n, i := 0, 0; i < len(all); n, i = n+1, i+max(3, len(all)/400) {
			for w, alter := range ways {
				if long || w == n%len(ways) {
					answered(t, s, op, alter(all, i))
				}
			}
		}
	}
}

// FuzzSplitAnswer feeds the reader of answers that carry secrets.
func FuzzSplitAnswer(f *testing.F) {
	for _, s := range [][]byte{nil, make([]byte, 10), {0x80, 0x02, 0, 0, 0, 14, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
		{0x80, 0x02, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0, 4, 0, 2, 1, 2}, {0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x09, 0x21}} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, a []byte) {
		params, auths, err := splitAnswer(a)
		if err != nil {
			if params != nil || auths != nil {
				t.Error("an error and a result")
			}
			return
		}
		if len(params)+len(auths)+14 != len(a) || binary.BigEndian.Uint32(a[10:]) != uint32(len(params)) {
			t.Errorf("%x: %x, %x", a, params, auths)
		}
		r := reader{params}
		for n := 0; len(r.buf) > 0; n++ {
			if p := r.sized(); r.buf != nil && len(p) > len(params) || n > len(params) {
				t.Errorf("%x: %x", params, p)
			}
		}
		tpm2.Unmarshal[tpm2.TPMSAuthResponse](auths)
	})
}
