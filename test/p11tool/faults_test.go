package p11tool

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/miekg/pkcs11"
)

// longEnv makes the tests of faults and of many processes take their time, as
// before a release.
const longEnv = "ICN_P11_LONG"

func responseCode(rc uint32) fault {
	return func(func() []byte) ([]byte, bool) {
		return binary.BigEndian.AppendUint32([]byte{0x80, 0x01, 0, 0, 0, 10}, rc), false
	}
}

// faults are what befalls a command, with the codes that the function may
// return: where the command can be repeated, or was only to clear up, the
// function succeeds.
var faults = []struct {
	name  string
	f     fault
	codes []uint
}{
	{"connection reset before the command", func(func() []byte) ([]byte, bool) { return nil, true }, broken},
	{"connection reset after the command", func(forward func() []byte) ([]byte, bool) { forward(); return nil, true }, broken},
	{"short frame", func(forward func() []byte) ([]byte, bool) {
		a := forward()
		return a[:len(a)-1], true
	}, broken},
	{"shorter than a header", func(forward func() []byte) ([]byte, bool) {
		forward()
		return []byte{0x80, 0x01, 0, 0, 0, 6, 0, 0, 0, 0}, false
	}, broken},
	{"noise", func(forward func() []byte) ([]byte, bool) {
		forward()
		return bytes.Repeat([]byte{0xa5, 0x3c, 0xff}, 30), false
	}, broken},
	{"garbage in a frame", func(forward func() []byte) ([]byte, bool) {
		a := forward()
		for i := 10; i < len(a); i++ {
			a[i] ^= byte(0x5b * i)
		}
		return a, false
	}, broken},
	{"RETRY", responseCode(0x922), []uint{pkcs11.CKR_OK}},
	{"FAILURE", responseCode(0x101), broken},
	{"OBJECT_MEMORY", responseCode(0x902), []uint{pkcs11.CKR_OK}},
	{"LOCKOUT", responseCode(0x921), []uint{pkcs11.CKR_OK, pkcs11.CKR_PIN_LOCKED}},
}

var broken = []uint{pkcs11.CKR_OK, pkcs11.CKR_DEVICE_ERROR}

// stage is a token with a key, and what the flows do to it.
type stage struct {
	*client
	p         *place
	key       pkcs11.ObjectHandle
	pub       ed25519.PublicKey
	pin, next string
	isBound   bool
}

// prepared logs in, whatever was before.
func (s *stage) prepared() {
	s.t.Helper()
	s.Logout(s.s)
	ok(s.t, "C_Login", s.Login(s.s, pkcs11.CKU_USER, s.pin))
	found := s.find(attr(pkcs11.CKA_LABEL, "key"), attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY))
	if len(found) != 1 {
		s.t.Fatalf("%d keys are there", len(found))
	}
	s.key = found[0]
}

// flow is one call under fault: prepare comes before it, settle after it, with
// its error.
type flow struct {
	name    string
	min     int // TPM commands that it takes at least
	prepare func(*stage)
	run     func(*stage) error
	settle  func(*stage, error)
}

var flows = []flow{
	{"init", 10, nil, func(s *stage) error {
		slot, err := freeSlot(s.Ctx)
		ok(s.t, "free slot", err)
		return s.InitToken(slot, soPIN, "made under fault")
	}, func(s *stage, err error) {
		_, found := findToken(s.Ctx, "made under fault")
		if (err == nil) != (found == nil) {
			s.t.Errorf("C_InitToken: %v; the token: %v", err, found)
		}
		all, _ := filepath.Glob(filepath.Join(s.p.store(), "tokens", "*"))
		info, err := s.GetTokenInfo(s.slot)
		ok(s.t, "C_GetTokenInfo", err)
		for _, dir := range all {
			if filepath.Base(dir) != info.SerialNumber {
				ok(s.t, "remove", os.RemoveAll(dir))
			}
		}
	}},
	{"login", 4, func(s *stage) { ok(s.t, "C_Logout", s.Logout(s.s)) }, func(s *stage) error {
		return s.Login(s.s, pkcs11.CKU_USER, s.pin)
	}, nil},
	{"generate", 3, nil, func(s *stage) error {
		_, _, err := generate(s.Ctx, s.s, "made under fault", true)
		return err
	}, halves},
	{"import", 2, nil, func(s *stage) error {
		_, err := s.CreateObject(s.s, privateTemplate(bytes.Repeat([]byte{7}, 32), true, attr(pkcs11.CKA_LABEL, "made under fault")))
		return err
	}, halves},
	{"sign cold", 3, (*stage).prepared, (*stage).sign, nil},
	{"sign warm", 1, nil, (*stage).sign, nil},
	{"PIN change", 4, nil, func(s *stage) error {
		return s.SetPIN(s.s, s.pin, s.next)
	}, func(s *stage, err error) {
		if err == nil {
			s.pin, s.next = s.next, s.pin
		}
	}},
	{"unblock", 4, func(s *stage) {
		s.Logout(s.s)
		ok(s.t, "C_Login as SO", s.Login(s.s, pkcs11.CKU_SO, soPIN))
	}, func(s *stage) error {
		return s.InitPIN(s.s, s.next)
	}, func(s *stage, err error) {
		if err == nil {
			s.pin, s.next = s.next, s.pin
		}
	}},
	{"SO login", 3, func(s *stage) { s.Logout(s.s) }, func(s *stage) error {
		return s.Login(s.s, pkcs11.CKU_SO, soPIN)
	}, nil},
	{"destroy", 0, func(s *stage) {
		s.generate("to be destroyed", true)
	}, func(s *stage) error {
		for _, o := range s.find(attr(pkcs11.CKA_LABEL, "to be destroyed")) {
			if err := s.DestroyObject(s.s, o); err != nil {
				return err
			}
		}
		return nil
	}, nil},
	{"random", 1, nil, func(s *stage) error {
		_, err := s.GenerateRandom(s.s, 16)
		return err
	}, nil},
}

// bindings are done by the command, in a process of its own each time. Each has a
// token of its own: one that is to be bound again stays bound.
var (
	bind   = flow{"bind", 20, (*stage).leave, func(s *stage) error { return s.pcr("bind", "--pcrs", "7", "--pin-source", "env:PIN") }, (*stage).unbind}
	rebind = flow{"rebind", 8, (*stage).bound, func(s *stage) error { return s.pcr("rebind") }, nil}
	unbind = flow{"unbind", 16, (*stage).bind, func(s *stage) error { return s.pcr("unbind", "--pin-source", "env:PIN") }, (*stage).unbind}
)

func (s *stage) sign() error { return signChecked(s.Ctx, s.s, s.key, s.pub, []byte("a message")) }

// halves removes what a flow made: all that it reported, and no half that
// cannot be used.
func halves(s *stage, err error) {
	made := s.find(attr(pkcs11.CKA_LABEL, "made under fault"))
	if (err == nil) != (len(made) > 0) {
		s.t.Errorf("made: %v; %d objects are there", err, len(made))
	}
	for _, o := range made {
		if c := s.get(o, pkcs11.CKA_CLASS); c[0] == pkcs11.CKO_PRIVATE_KEY {
			pub, err := point(s.Ctx, s.s, o)
			ok(s.t, "public key", err)
			ok(s.t, "sign", signChecked(s.Ctx, s.s, o, pub, []byte("x")))
		}
		ok(s.t, "C_DestroyObject", s.DestroyObject(s.s, o))
	}
}

// leave has the module leave the TPM to the command.
func (s *stage) leave() { s.Logout(s.s) }

func (s *stage) bind() {
	s.leave()
	ok(s.t, "pcr bind", s.pcr("bind", "--pcrs", "7", "--pin-source", "env:PIN"))
}

// bound is bind once.
func (s *stage) bound() {
	if !s.isBound {
		s.bind()
		s.isBound = true
	}
	s.leave()
}

// unbind sees that the key is usable whatever came of the flow, and ends it.
func (s *stage) unbind(error) {
	s.prepared()
	ok(s.t, "sign", s.sign())
	s.leave()
	s.pcr("unbind", "--pin-source", "env:PIN") // an error where it is not bound
}

// pcr runs the command, which says no return code.
func (s *stage) pcr(args ...string) error {
	path := os.Getenv("ICN_P11_COMMAND")
	if path == "" {
		path = filepath.Join("..", "..", "build", "icn-p11")
	}
	args = slices.Concat([]string{"pcr", args[0], "test token"}, args[1:], []string{"--so-pin-source", "env:SOPIN"})
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "PIN="+s.pin, "SOPIN="+soPIN)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() < 1 || bytes.Contains(out, []byte("goroutine "))) {
		s.t.Fatalf("icn-p11 %q: %v: %s", args, err, out)
	}
	if err != nil {
		return fmt.Errorf("%w: %s", errCommand, out)
	}
	return nil
}

var errCommand = errors.New("icn-p11 failed")

// TestTPMFaults has each command of each flow fail once in each way: the right
// code, nothing lost, and what comes next works. Where time is short the faults
// take turns at the commands.
func TestTPMFaults(t *testing.T) { befall(t, flows, 5, 1) }

func TestTPMFaultsOfBinding(t *testing.T) { befall(t, []flow{bind}, 10, 3) }

func TestTPMFaultsOfRebinding(t *testing.T) { befall(t, []flow{rebind}, 10, 3) }

func TestTPMFaultsOfUnbinding(t *testing.T) { befall(t, []flow{unbind}, 10, 3) }

func befall(t *testing.T, flows []flow, turns, longTurns int) {
	isolated(t, setup{proxy: true, exclusive: true}, func(t *testing.T, p *place) {
		s := &stage{client: newToken(t), p: p, pin: userPIN, next: "the next user pin"}
		pub, _ := s.client.generate("key", true)
		var err error
		s.pub, err = point(s.Ctx, s.s, pub)
		ok(t, "point", err)
		if os.Getenv(longEnv) != "" {
			turns = longTurns
		}
		s.prepared()
		ok(t, "sign", s.sign())

		runs := 0
		for _, f := range flows {
			once := func(at int, what string, fl fault, codes []uint) int {
				if f.prepare != nil {
					f.prepare(s)
				}
				p.proxy.take()
				lost := false
				p.proxy.inject(at, func(forward func() []byte) ([]byte, bool) {
					answer, cut := fl(func() []byte { lost = true; return forward() })
					lost = lost || cut
					return answer, cut
				})
				err := f.run(s)
				p.proxy.inject(0, nil)
				n := len(p.proxy.take())
				switch {
				case errors.Is(err, errCommand):
					if slices.Equal(codes, []uint{pkcs11.CKR_OK}) {
						t.Errorf("%s: %v", what, err)
					}
				default:
					// signChecked wraps the code.
					var code pkcs11.Error
					if errors.As(err, &code) {
						err = code
					}
					want(t, what, err, codes...)
				}
				if f.settle != nil {
					f.settle(s, err)
				}
				s.prepared()
				if err := s.sign(); err != nil {
					t.Fatalf("%s, then signing: %v", what, err)
				}
				if t.Failed() {
					log, _ := os.ReadFile(p.log())
					t.Fatalf("the log: %s", tail(log, 3000))
				}
				// What is left by a command whose answer was lost would be found
				// at some later one, which would then count other commands.
				if lost {
					s.leave()
					_, err = tool("swtpm:path="+p.tpm, "tpm2_flushcontext", "-t")
					ok(t, "tpm2_flushcontext", err)
					_, err = tool("swtpm:path="+p.tpm, "tpm2_flushcontext", "-l")
					ok(t, "tpm2_flushcontext", err)
					s.prepared()
					ok(t, "sign", s.sign())
				}
				runs++
				return n
			}
			commands := once(0, f.name, nil, []uint{pkcs11.CKR_OK})
			if commands < f.min {
				t.Fatalf("%s took %d commands", f.name, commands)
			}
			for at := 1; at <= commands; at++ {
				for i, x := range faults {
					if (at+i)%turns != 0 {
						continue
					}
					once(at, fmt.Sprintf("%s, command %d of %d: %s", f.name, at, commands, x.name), x.f, x.codes)
				}
			}
		}
		t.Logf("%d runs", runs)
	})
}
