//go:build !race

package p11

import (
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/config"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// fault is what can go wrong with a command, and the codes that may come of it.
type fault struct {
	name   string
	refuse []byte                     // the answer, without the TPM having seen the command
	answer func(answer []byte) []byte // or what becomes of the TPM's answer
	codes  []RV
}

var faults = []fault{
	{"connection reset", nil, func([]byte) []byte { return nil }, []RV{CKR_OK, CKR_DEVICE_ERROR}},
	{"short frame", nil, func(a []byte) []byte { return append(slices.Clone(a[:2]), 0, 0, 0, 10, 0, 0, 0, 0) }, []RV{CKR_OK, CKR_DEVICE_ERROR}},
	{"garbage frame", nil, func(a []byte) []byte {
		b := make([]byte, len(a))
		for i := range b {
			b[i] = byte(0xa5 ^ i)
		}
		return b
	}, []RV{CKR_OK, CKR_DEVICE_ERROR}},
	{"TPM_RC_RETRY", swtpmtest.Code(0x922), nil, []RV{CKR_OK}},
	{"TPM_RC_FAILURE", swtpmtest.Code(0x101), nil, []RV{CKR_OK, CKR_DEVICE_ERROR}},
	{"TPM_RC_OBJECT_MEMORY", swtpmtest.Code(0x902), nil, []RV{CKR_OK}},
	{"TPM_RC_LOCKOUT", swtpmtest.Code(0x921), nil, []RV{CKR_OK, CKR_PIN_LOCKED}},
}

// faultPlace is a token on a TPM behind a proxy, and what should be in it.
type faultPlace struct {
	t    *testing.T
	m    *Module
	bus  *swtpmtest.Proxy
	h    SessionHandle
	pins []string // the user PIN; two where it is not known which holds
	keys int
}

// flows are what is disturbed: the work itself, after what it needs.
var flows = map[string]struct{ before, work func(p *faultPlace) error }{
	"C_InitToken": {nil, func(p *faultPlace) error {
		if _, err := p.m.GetSlotList(false, nil, true); err != nil {
			return err
		}
		ids := make([]SlotID, 1000)
		n, err := p.m.GetSlotList(false, ids, false)
		if err != nil {
			return err
		}
		return p.m.InitToken(ids[n-1], []byte(soPIN), label("another"))
	}},
	"C_Login": {func(p *faultPlace) error { return p.m.Logout(p.h) }, func(p *faultPlace) error { return p.m.Login(p.h, CKU_USER, []byte(p.pins[0])) }},
	"C_GenerateKeyPair": {nil, func(p *faultPlace) error {
		_, _, err := p.m.GenerateKeyPair(p.h, keygen, pubTemplate, privTemplate)
		if err == nil {
			p.keys++
		}
		return err
	}},
	"C_Sign":       {nil, func(p *faultPlace) error { return p.signs() }},
	"C_Sign, cold": {func(p *faultPlace) error { p.m.lib.Load().tpm.Release(); return nil }, func(p *faultPlace) error { return p.signs() }},
	"C_SetPIN": {nil, func(p *faultPlace) error {
		p.pins = []string{p.pins[0], fmt.Sprintf("pin-%d", time.Now().UnixNano())}
		err := p.m.SetPIN(p.h, []byte(p.pins[0]), []byte(p.pins[1]))
		if err == nil {
			p.pins = p.pins[1:]
		}
		return err
	}},
	"C_InitPIN": {func(p *faultPlace) error {
		if err := p.m.Logout(p.h); err != nil {
			return err
		}
		return p.m.Login(p.h, CKU_SO, []byte(soPIN))
	}, func(p *faultPlace) error {
		p.pins = []string{p.pins[0], fmt.Sprintf("pin-%d", time.Now().UnixNano())}
		err := p.m.InitPIN(p.h, []byte(p.pins[1]))
		if err == nil {
			p.pins = p.pins[1:]
		}
		return err
	}},
	"C_DestroyObject": {func(p *faultPlace) error {
		_, _, err := p.m.GenerateKeyPair(p.h, keygen, pubTemplate, privTemplate)
		if err == nil {
			p.keys++
		}
		return err
	}, func(p *faultPlace) error {
		found, err := p.private()
		if err != nil {
			return err
		}
		if err := p.m.DestroyObject(p.h, slices.Max(found)); err != nil {
			return err
		}
		p.keys--
		return nil
	}},
	"C_GenerateRandom": {func(p *faultPlace) error { p.m.lib.Load().pool.wipe(); return nil }, func(p *faultPlace) error {
		return p.m.GenerateRandom(p.h, make([]byte, 2000))
	}},
	"bind": {nil, func(p *faultPlace) error {
		return p.m.lib.Load().fail("bind", "", p.token().Bind([]byte(p.pins[0]), []byte(soPIN), sealstore.BindingSpec{Bank: "sha256", PCRs: []int{7}}, nil))
	}},
	"rebind": {func(p *faultPlace) error {
		if b, _, err := p.token().Binding(); b != nil || err != nil {
			return err
		}
		return p.token().Bind([]byte(p.pins[0]), []byte(soPIN), sealstore.BindingSpec{Bank: "sha256", PCRs: []int{7}}, nil)
	}, func(p *faultPlace) error {
		return p.m.lib.Load().fail("rebind", "", p.token().Rebind([]byte(soPIN), nil))
	}},
}

func (p *faultPlace) token() *sealstore.Token { return p.m.lib.Load().slots[0].token }

func (p *faultPlace) private() ([]ObjectHandle, error) {
	if err := p.m.FindObjectsInit(p.h, []Attribute{{CKA_CLASS, ulong(CKO_PRIVATE_KEY)}}); err != nil {
		return nil, err
	}
	defer p.m.FindObjectsFinal(p.h)
	var all [200]ObjectHandle
	n, err := p.m.FindObjects(p.h, all[:])
	return slices.Clone(all[:n]), err
}

// signs makes one signature.
func (p *faultPlace) signs() error {
	found, err := p.private()
	if err != nil {
		return err
	}
	if err := p.m.SignInit(p.h, pure, slices.Min(found)); err != nil {
		return err
	}
	return p.m.Sign(p.h, []byte("m"), &Output{Buf: make([]byte, 64)})
}

// sound checks, without any fault, that the user gets in and every key that
// was reported made is there and signs.
func (p *faultPlace) sound(what string) {
	p.t.Helper()
	p.bus.Decide(nil)
	p.m.Logout(p.h)
	err := p.m.Login(p.h, CKU_USER, []byte(p.pins[0]))
	if err != nil && len(p.pins) == 2 {
		p.pins = p.pins[1:]
		err = p.m.Login(p.h, CKU_USER, []byte(p.pins[0]))
	}
	p.pins = p.pins[:1]
	if err != nil {
		p.t.Fatalf("%s: the next login: %v", what, err)
	}
	found, err := p.private()
	if err != nil || len(found) < p.keys {
		p.t.Fatalf("%s: %d keys are there, %d were made: %v", what, len(found), p.keys, err)
	}
	p.keys = len(found) // one that was made and not reported may stay
	for _, o := range found[:min(2, len(found))] {
		pub := get(p.t, p.m, p.h, o, CKA_EC_POINT)
		if err := p.m.SignInit(p.h, pure, o); err != nil {
			p.t.Fatalf("%s: the next signature: %v", what, err)
		}
		out := Output{Buf: make([]byte, 64)}
		if err := p.m.Sign(p.h, []byte(what), &out); err != nil || !ed25519.Verify(pub[2:], []byte(what), out.Buf) {
			p.t.Fatalf("%s: the next signature: %v", what, err)
		}
	}
}

// long runs the long flows with every fault at every command; otherwise each
// command meets two of them.
var long = os.Getenv("ICN_P11_LONG") != ""

// TestTPMFaults has each command of each flow go wrong in each way: what comes
// of it is a code that fits, nothing is lost, and the next operation works.
func TestTPMFaults(t *testing.T) {
	for name, flow := range flows {
		for _, mode := range []string{"", ",exclusive"} {
			if mode == "" && name == "bind" && !long {
				continue
			}
			t.Run(name+mode, func(t *testing.T) {
				t.Parallel()
				s := swtpmtest.Start(t)
				// Some of the faults cost a try.
				dictionary := exec.Command("tpm2_dictionarylockout", "--setup-parameters", "--max-tries=100000", "--recovery-time=1000", "--lockout-recovery-time=1000")
				dictionary.Env = append(os.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+s.Path())
				if out, err := dictionary.CombinedOutput(); err != nil {
					t.Fatalf("%v (Debian package tpm2-tools): %s", err, out)
				}
				p := &faultPlace{t: t, m: NewModule(), bus: swtpmtest.StartProxy(t, s), pins: []string{userPIN}, keys: 1}
				dev, err := tpm.New(tpm.Config{Device: p.bus.Device() + mode, KeyHandle: 0x81000001, Timeout: 5 * time.Second})
				must(t, err)
				cfg := config.Default()
				cfg.SealedBlobDir = t.TempDir()
				p.m.start(cfg, slog.New(slog.DiscardHandler), nopCloser{}, dev, nil)
				defer p.m.Finalize()
				p.h = token(t, p.m)
				_, _, err = p.m.GenerateKeyPair(p.h, keygen, pubTemplate, privTemplate)
				must(t, err)

				run := func(set func()) error {
					if flow.before != nil {
						must(t, flow.before(p))
					}
					set()
					return flow.work(p)
				}
				must(t, run(func() { p.bus.Decide(nil) }))
				commands := len(p.bus.Sent())
				p.sound("undisturbed")
				if commands == 0 != (name == "C_DestroyObject") {
					t.Fatalf("the flow sends %d commands", commands)
				}
				for i, f := range faults {
					for at := range commands {
						if commands > 5 && !long && (at+i)%len(faults) > 1 {
							continue
						}
						n := 0
						hit := func() bool { n++; return n == at+1 }
						err := run(func() {
							if f.refuse != nil {
								p.bus.Refuse(func(tpm2.TPMCC) []byte {
									if hit() {
										return f.refuse
									}
									return nil
								})
								return
							}
							p.bus.Decide(func(_ tpm2.TPMCC, answer []byte) []byte {
								if hit() {
									return f.answer(answer)
								}
								return answer
							})
						})
						what := fmt.Sprintf("%s at command %d of %d", f.name, at+1, commands)
						rv := CKR_OK
						if err != nil {
							rv = RVOf(err)
						}
						if !slices.Contains(f.codes, rv) {
							t.Errorf("%s: %v", what, err)
						}
						p.sound(what)
					}
				}
				t.Logf("%d commands", commands)
			})
		}
	}
}
