package conformance

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	ck "github.com/miekg/pkcs11"
)

const noSlot = 4711

// slots are the rows of slots and tokens that need no session.
func slots() (rows []row) {
	for _, name := range withSlot {
		rows = append(rows, row{"5.1.6", "a slot that is not there comes before bad arguments", name, ck.CKR_SLOT_ID_INVALID,
			func(e *env) rv { return e.call(name, noSlot) }})
		if name != "C_CloseAllSessions" {
			rows = append(rows, row{"5.1.6", "a slot without a place for the answer", name, ck.CKR_ARGUMENTS_BAD,
				func(e *env) rv { return e.call(name, e.f.token) }})
		}
	}
	list := func(section, rule string, want rv, do func(e *env, n *uint) rv) row {
		return row{section, rule, "", want, func(e *env) rv {
			var n uint
			return do(e, &n)
		}}
	}
	return append(rows,
		// The three tokens and the free slot.
		list("5.5.1", "C_GetSlotList with NULL for the list tells the number", ck.CKR_OK, func(e *env, n *uint) rv {
			r := e.call("C_GetSlotList", false, nil, n)
			e.check(*n == 4, "%d slots", *n)
			return r
		}),
		list("5.5.1", "C_GetSlotList without room tells the number and writes nothing", ck.CKR_BUFFER_TOO_SMALL, func(e *env, n *uint) rv {
			w := words{99, 99, 99}
			*n = 3
			r := e.call("C_GetSlotList", false, w, n)
			e.check(*n == 4 && slices.Equal(w, words{99, 99, 99}), "%d slots, %v", *n, w)
			return r
		}),
		list("5.5.1", "C_GetSlotList with just enough room", ck.CKR_OK, func(e *env, n *uint) rv {
			w := make(words, 4)
			*n = 4
			r := e.call("C_GetSlotList", true, w, n)
			e.check(*n == 4 && slices.Contains(w, e.f.token) && slices.Contains(w, e.f.free), "%d slots: %v", *n, w)
			return r
		}),
		list("5.5.1", "C_GetSlotList with more room than slots", ck.CKR_OK, func(e *env, n *uint) rv {
			w := make(words, 9)
			*n = 9
			r := e.call("C_GetSlotList", false, w, n)
			e.check(*n == 4, "%d slots: %v", *n, w)
			return r
		}),
		list("5.5.1", "every slot that C_GetSlotList tells is one for C_GetSlotInfo", ck.CKR_OK, func(e *env, n *uint) rv {
			w := make(words, 9)
			*n = 9
			e.ok("C_GetSlotList", false, w, n)
			for _, s := range w[:*n] {
				e.ok("C_GetSlotInfo", s, make([]byte, 112))
			}
			return ck.CKR_OK
		}),
		row{"5.5.1", "C_GetSlotList without a place for the number", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_GetSlotList", false, nil, nil) }},
		row{"5.5.2", "C_GetSlotInfo: a token is always present in a slot that is not removable; texts end in blanks", "", ck.CKR_OK, func(e *env) rv {
			b := make([]byte, 112)
			r := e.call("C_GetSlotInfo", e.f.token, b)
			e.check(number(b[96:])&(ck.CKF_TOKEN_PRESENT|ck.CKF_REMOVABLE_DEVICE) == ck.CKF_TOKEN_PRESENT, "flags %x", number(b[96:]))
			e.check(!bytes.Contains(b[:96], []byte{0}), "texts %q", b[:96])
			return r
		}},
		row{"5.5.3", "C_GetTokenInfo of a token with both PINs", "", ck.CKR_OK, func(e *env) rv {
			i := e.token(e.f.token)
			const flags = ck.CKF_RNG | ck.CKF_LOGIN_REQUIRED | ck.CKF_USER_PIN_INITIALIZED | ck.CKF_RESTORE_KEY_NOT_NEEDED | ck.CKF_DUAL_CRYPTO_OPERATIONS | ck.CKF_TOKEN_INITIALIZED
			e.check(i.flags == flags, "flags %x", i.flags)
			e.check(i.label == fmt.Sprintf("%-32s", "conformance"), "label %q", i.label)
			e.check(i.maxPIN == 255 && i.minPIN == 4, "PINs of %d to %d bytes", i.minPIN, i.maxPIN)
			e.check(i.memory == [4]uint{unavailable, unavailable, unavailable, unavailable}, "memory %v", i.memory)
			e.check(i.sessions == [4]uint{0, 0, 0, 0}, "sessions %v", i.sessions)
			return i.rv
		}},
		row{"5.5.3", "C_GetTokenInfo of a token without a user PIN", "", ck.CKR_OK, func(e *env) rv {
			i := e.token(e.f.fresh)
			e.check(i.flags&ck.CKF_USER_PIN_INITIALIZED == 0 && i.flags&ck.CKF_TOKEN_INITIALIZED != 0, "flags %x", i.flags)
			return i.rv
		}},
		row{"5.5.3", "C_GetTokenInfo of a token that is not initialised", "", ck.CKR_OK, func(e *env) rv {
			i := e.token(e.f.free)
			e.check(i.flags&(ck.CKF_USER_PIN_INITIALIZED|ck.CKF_TOKEN_INITIALIZED) == 0, "flags %x", i.flags)
			e.check(strings.TrimSpace(i.label) == "", "label %q", i.label)
			return i.rv
		}},
		row{"5.5.3", "C_GetTokenInfo of a token that is write-protected", "", ck.CKR_OK, func(e *env) rv {
			i := e.token(e.f.prot)
			e.check(i.flags&ck.CKF_WRITE_PROTECTED != 0, "flags %x", i.flags)
			return i.rv
		}},
		row{"5.5.3", "C_GetTokenInfo counts the application's sessions", "", ck.CKR_OK, func(e *env) rv {
			e.open(ro)
			e.open(rw)
			e.open(rw)
			i := e.token(e.f.token)
			e.check(i.sessions == [4]uint{0, 3, 0, 2}, "sessions %v", i.sessions)
			return i.rv
		}},
		row{"v3.2 5.5.3", "CKF_ASYNC_SESSION_SUPPORTED is clear: no session is asynchronous", "", ck.CKR_OK, func(e *env) rv {
			i := e.token(e.f.token)
			e.check(i.flags&ckfAsyncToken == 0, "flags %x", i.flags)
			return i.rv
		}},
		row{"5.5.4", "C_WaitForSlotEvent without an event", "", ck.CKR_NO_EVENT, func(e *env) rv {
			var slot uint
			return e.call("C_WaitForSlotEvent", ck.CKF_DONT_BLOCK, &slot, nil)
		}},
		row{"5.5.4", "C_WaitForSlotEvent without a place for the slot", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_WaitForSlotEvent", ck.CKF_DONT_BLOCK, nil, nil) }},
		row{"5.5.4", "C_WaitForSlotEvent with pReserved", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv {
			var slot uint
			return e.call("C_WaitForSlotEvent", ck.CKF_DONT_BLOCK, &slot, make([]byte, 8))
		}},
		list("5.5.5", "C_GetMechanismList with NULL for the list tells the number", ck.CKR_OK, func(e *env, n *uint) rv {
			r := e.call("C_GetMechanismList", e.f.token, nil, n)
			e.check(*n >= 13, "%d mechanisms", *n)
			return r
		}),
		list("5.5.5", "C_GetMechanismList without room tells the number", ck.CKR_BUFFER_TOO_SMALL, func(e *env, n *uint) rv {
			*n = 1
			r := e.call("C_GetMechanismList", e.f.token, make(words, 1), n)
			e.check(*n >= 13, "%d mechanisms", *n)
			return r
		}),
		list("5.5.5", "C_GetMechanismList gives each mechanism once, and C_GetMechanismInfo knows it", ck.CKR_OK, func(e *env, n *uint) rv {
			list := e.mechanisms()
			slices.Sort(list)
			e.check(len(slices.Compact(slices.Clone(list))) == len(list), "%x", list)
			for _, m := range list {
				e.ok("C_GetMechanismInfo", e.f.token, m, make([]byte, 24))
			}
			return ck.CKR_OK
		}),
		list("5.5.5", "C_GetMechanismList of a token that is not initialised", ck.CKR_OK, func(e *env, n *uint) rv { return e.call("C_GetMechanismList", e.f.free, nil, n) }),
		row{"5.5.6", "C_GetMechanismInfo of a mechanism that is not there", "", ck.CKR_MECHANISM_INVALID, func(e *env) rv {
			return e.call("C_GetMechanismInfo", e.f.token, ck.CKM_RSA_PKCS, make([]byte, 24))
		}},
		mechanismInfo("6.3.14", ckmEdDSA, 255, ck.CKF_SIGN|ck.CKF_VERIFY|ckfMessageSign|ckfMessageVerify|ckfMultiMessage),
		mechanismInfo("6.3.10", ckmEdwards, 255, ck.CKF_GENERATE_KEY_PAIR),
	)
}

func mechanismInfo(section string, m, size, flags uint) row {
	return row{section, "C_GetMechanismInfo tells sizes and functions", fmt.Sprintf("mechanism %#x", m), ck.CKR_OK, func(e *env) rv {
		b := make([]byte, 24)
		r := e.call("C_GetMechanismInfo", e.f.token, m, b)
		const functions = 0xFFFFF // all but those of elliptic curves
		e.check(number(b) == size && number(b[8:]) == size && number(b[16:])&functions == flags, "sizes %d to %d, flags %x", number(b), number(b[8:]), number(b[16:]))
		return r
	}}
}

// mechanisms is C_GetMechanismList.
func (e *env) mechanisms() words {
	var n uint
	e.ok("C_GetMechanismList", e.f.token, nil, &n)
	list := make(words, n)
	e.ok("C_GetMechanismList", e.f.token, list, &n)
	return list
}

type tokenInfo struct {
	rv
	label, serial    string
	flags            uint
	sessions, memory [4]uint
	maxPIN, minPIN   uint
}

// token is C_GetTokenInfo.
func (e *env) token(slot uint) (i tokenInfo) {
	b := make([]byte, 208)
	i.rv = e.call("C_GetTokenInfo", slot, b)
	i.label, i.serial, i.flags = string(b[:32]), string(b[80:96]), number(b[96:])
	for k := range 4 {
		i.sessions[k], i.memory[k] = number(b[104+8*k:]), number(b[152+8*k:])
	}
	i.maxPIN, i.minPIN = number(b[136:]), number(b[144:])
	return i
}

// events are the rows of C_WaitForSlotEvent, which change the tokens.
func events() []row {
	event := func(e *env, flags uint) (slot uint) {
		e.ok("C_WaitForSlotEvent", flags, &slot, nil)
		return slot
	}
	return []row{
		{"5.5.4", "a token that this application makes is no event", "", ck.CKR_NO_EVENT, func(e *env) rv {
			var n, slot uint
			e.ok("C_GetSlotList", true, nil, &n)
			e.ok("C_InitToken", e.f.free, in(soPIN), label("own"))
			e.ok("C_GetSlotList", true, nil, &n)
			return e.call("C_WaitForSlotEvent", ck.CKF_DONT_BLOCK, &slot, nil)
		}},
		{"5.5.4", "C_WaitForSlotEvent tells once of a token that another process makes, in a slot that is valid", "", ck.CKR_NO_EVENT, func(e *env) rv {
			made := e.another()
			slot := event(e, ck.CKF_DONT_BLOCK)
			e.check(fmt.Sprint(slot) == made, "slot %d, not %s", slot, made)
			e.ok("C_GetSlotInfo", slot, make([]byte, 112))
			return e.call("C_WaitForSlotEvent", ck.CKF_DONT_BLOCK, &slot, nil)
		}},
		{"5.5.4", "C_WaitForSlotEvent blocks until another process makes a token", "", ck.CKR_OK, func(e *env) rv {
			slots := make(chan uint)
			go func() {
				var slot uint
				e.Call("C_WaitForSlotEvent", 0, &slot, nil)
				slots <- slot
			}()
			made := e.another()
			select {
			case slot := <-slots:
				e.check(fmt.Sprint(slot) == made, "slot %d, not %s", slot, made)
				return ck.CKR_OK
			case <-time.After(time.Minute):
				return ck.CKR_FUNCTION_FAILED
			}
		}},
		{"5.5.4", "C_WaitForSlotEvent tells of a token that another process removes", "", ck.CKR_TOKEN_NOT_PRESENT, func(e *env) rv {
			var slot uint
			i := e.token(e.f.fresh)
			e.check(os.Rename(filepath.Join(e.f.dir, "store", "tokens", i.serial), filepath.Join(e.f.dir, "away")) == nil, "it cannot be moved")
			slot = event(e, 0)
			e.check(slot == e.f.fresh, "slot %d, not %d", slot, e.f.fresh)
			return e.call("C_GetTokenInfo", slot, make([]byte, 208))
		}},
		{"5.5.1", "a slot whose token is gone is there until the number of slots is asked for", "", ck.CKR_SLOT_ID_INVALID, func(e *env) rv {
			var n uint
			e.ok("C_GetSlotInfo", e.f.fresh, make([]byte, 112))
			e.ok("C_GetSlotList", true, nil, &n)
			return e.call("C_GetSlotInfo", e.f.fresh, make([]byte, 112))
		}},
		{"5.4.2", "C_Finalize wakes C_WaitForSlotEvent", "", ck.CKR_CRYPTOKI_NOT_INITIALIZED, func(e *env) rv {
			answers := make(chan rv)
			go func() {
				var slot uint
				answers <- e.call("C_WaitForSlotEvent", 0, &slot, nil)
			}()
			e.ok("C_Finalize", nil)
			defer e.ok("C_Initialize", nil)
			select {
			case r := <-answers:
				return r
			case <-time.After(time.Minute):
				return ck.CKR_FUNCTION_FAILED
			}
		}},
	}
}

// another has another process make a token, and tells its slot.
func (e *env) another() string {
	e.Helper()
	out, err := exec.CommandContext(e.Context(), os.Args[0], "make-token").Output()
	if err != nil {
		e.Fatalf("another process: %v", err)
	}
	return strings.TrimSpace(string(out))
}
