// Package memscantest searches the memory of processes for secrets, for tests.
package memscantest

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

const (
	mask = 0x5a
	page = 4096
)

// Needle is a secret to look for. It is kept masked, so that a search of this
// process does not find the needle itself.
type Needle struct {
	name   string
	masked []byte
}

// Mask makes a needle of a secret of at least 16 bytes. It leaves no copy.
func Mask(name string, secret []byte) Needle {
	m := make([]byte, len(secret))
	for i, b := range secret {
		m[i] = b ^ mask
	}
	return Needle{name, m}
}

// halves are what is looked for: a register or a half-overwritten buffer holds
// as much, and of a secret that lies across two pages one half is in one.
func (n Needle) halves() [2][]byte {
	h := len(n.masked) / 2
	return [2][]byte{n.masked[:h], n.masked[h:]}
}

// Hit is a page with a secret in it.
type Hit struct {
	Name, Where string
	// Locked: in memory that is neither dumped nor inherited. The kernels that
	// have memfd_secret do not let that be read; others do.
	Locked bool
}

func (h Hit) String() string { return h.Name + " in " + h.Where }

// index finds the needles whose halves begin with two bytes.
type index map[uint16][]half

type half struct {
	name   string
	masked []byte
}

func newIndex(needles []Needle) (index, [1 << 16]bool) {
	ix, has := index{}, [1 << 16]bool{}
	for _, n := range needles {
		for _, h := range n.halves() {
			k := binary.LittleEndian.Uint16(h)
			ix[k] = append(ix[k], half{n.name, h})
			has[k^mask^mask<<8] = true
		}
	}
	return ix, has
}

// Search gives the names of the needles that are in b.
func Search(b []byte, needles []Needle) (names []string) {
	ix, has := newIndex(needles)
	return search(b, ix, &has)
}

func search(b []byte, ix index, has *[1 << 16]bool) (names []string) {
	for i := 0; i+2 <= len(b); i++ {
		k := uint16(b[i]) | uint16(b[i+1])<<8
		if !has[k] {
			continue
		}
		for _, h := range ix[k^mask^mask<<8] {
			if matches(b[i:], h.masked) {
				names = append(names, h.name)
			}
		}
	}
	return names
}

func matches(b, masked []byte) bool {
	if len(b) < len(masked) {
		return false
	}
	for i, m := range masked {
		if b[i] != m^mask {
			return false
		}
	}
	return true
}

// walk hands every page of a process that is in memory and can be read to f,
// which must not keep it. It leaves out what of a program or library is as it is
// in the file: a page that is written to becomes the process's own.
func walk(t testing.TB, pid int, f func(p []byte, where string, locked bool)) {
	t.Helper()
	open := func(name string) *os.File {
		f, err := os.Open(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	smaps, mem, pagemap := open("smaps"), open("mem"), open("pagemap")
	defer smaps.Close()
	defer mem.Close()
	defer pagemap.Close()
	const batch = 256
	buf, entries := make([]byte, batch*page), make([]byte, batch*8)
	var lo, hi int64
	var where string
	var program bool // a private mapping of one
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(smaps); s.Scan(); {
		var l, h int64
		var perm string
		if k, _ := fmt.Sscanf(s.Text(), "%x-%x %s", &l, &h, &perm); k == 3 {
			if lo, hi, where = l, h, s.Text(); perm[0] != 'r' {
				hi = lo
			}
			program = perm[3] == 'p' && (strings.HasSuffix(where, " "+exe) || strings.Contains(where, ".so"))
			continue
		}
		flags, ok := strings.CutPrefix(s.Text(), "VmFlags:")
		if !ok {
			continue
		}
		locked := strings.Contains(flags, " dd") && strings.Contains(flags, " dc")
		for at := lo; at < hi; at += batch * page {
			n := min(hi-at, batch*page)
			e := entries[:n/page*8]
			if _, err := pagemap.ReadAt(e, at/page*8); err != nil {
				break // [vsyscall] is outside of it
			}
			// Bit 63: in memory, bit 62: in swap, bit 61: of a file or shared
			// (proc_pid_pagemap(5)).
			there := func(i int64) bool { b := e[i*8+7]; return b>>6 != 0 && !(program && b>>5&1 != 0) }
			for i, j := int64(0), int64(0); i < n/page; i = j + 1 {
				for j = i; j < n/page && there(j); j++ {
				}
				k, _ := mem.ReadAt(buf[:(j-i)*page], at+i*page)
				for p := buf[:k/page*page]; len(p) > 0; p = p[page:] {
					f(p[:page], where, locked)
				}
				clear(buf[:k])
			}
		}
	}
}

// Scan searches the memory of a process.
func Scan(t testing.TB, pid int, needles []Needle) (hits []Hit) {
	t.Helper()
	ix, has := newIndex(needles)
	walk(t, pid, func(p []byte, where string, locked bool) {
		for _, name := range search(p, ix, &has) {
			if h := (Hit{name, where, locked}); !slices.Contains(hits, h) {
				hits = append(hits, h)
			}
		}
	})
	return hits
}

// Interrupt has a signal come to the calling thread, which is locked: Go's own for
// preemption, which the runtime ignores uncalled for. It comes before the call
// returns, unless it is held back. Nothing here touches a vector register.
func Interrupt() {
	unix.RawSyscall(unix.SYS_TGKILL, uintptr(unix.Getpid()), uintptr(unix.Gettid()), uintptr(unix.SIGURG))
}

// Interrupted has a signal come while the registers hold a secret in what run runs,
// and gives where copies are left.
func Interrupted(t testing.TB, run func(func())) (hits []Hit) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	page, err := secmem.New(32)
	if err != nil {
		t.Fatal(err)
	}
	defer page.Destroy()
	rand.Read(page.Bytes())
	needle := Mask("secret", page.Bytes())
	run(func() {
		var on [32]byte
		copy(on[:], page.Bytes())
		Interrupt()
		runtime.KeepAlive(&on)
	})
	for _, h := range Scan(t, os.Getpid(), []Needle{needle}) {
		if !h.Locked {
			hits = append(hits, h)
		}
	}
	return hits
}

// Memory is what the memory of a process has held, to be searched for secrets
// that get known later.
type Memory struct {
	pages map[[page]byte]Hit // without a name
}

// Take adds what the memory of a process holds now.
func (m *Memory) Take(t testing.TB, pid int, when string) {
	t.Helper()
	if m.pages == nil {
		m.pages = map[[page]byte]Hit{}
	}
	walk(t, pid, func(p []byte, where string, locked bool) {
		if _, ok := m.pages[[page]byte(p)]; !ok {
			m.pages[[page]byte(p)] = Hit{Where: where + ", " + when, Locked: locked}
		}
	})
}

// Search searches what was taken.
func (m *Memory) Search(needles []Needle) (hits []Hit) {
	ix, has := newIndex(needles)
	for p, h := range m.pages {
		for _, name := range search(p[:], ix, &has) {
			h.Name = name
			hits = append(hits, h)
		}
	}
	return hits
}

// AuthValue names the authorisation values that a Recorder has seen.
const AuthValue = "an authorisation value"

// Recorder is a Sealer that keeps needles of all secrets that pass it: what
// is sealed and unsealed, authorisation values, and approver's secrets.
type Recorder struct {
	sealstore.Sealer
	mu   sync.Mutex
	seen []Needle
}

// Needles gives what has passed so far.
func (r *Recorder) Needles() []Needle {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.seen)
}

func (r *Recorder) see(name string, secret []byte) {
	n := Mask(name, secret)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(secret) >= 16 && !slices.ContainsFunc(r.seen, func(s Needle) bool { return string(s.masked) == string(n.masked) }) {
		r.seen = append(r.seen, n)
	}
}

// parts splits what the SO's seal holds: the root's and the approver's secret.
func (r *Recorder) parts(secret []byte) {
	for i := 0; i < len(secret); i += 32 {
		r.see("a sealed secret", secret[i:min(i+32, len(secret))])
	}
}

func (r *Recorder) Seal(parent []byte, secret, auth []byte, o sealstore.SealOptions) (sealstore.Blob, error) {
	r.parts(secret)
	r.see(AuthValue, auth)
	return r.Sealer.Seal(parent, secret, auth, o)
}

func (r *Recorder) Unseal(parent []byte, b sealstore.Blob, auth []byte, dst []byte) (int, error) {
	n, err := r.Sealer.Unseal(parent, b, auth, dst)
	if err == nil {
		r.parts(dst[:n])
		r.see(AuthValue, auth)
	}
	return n, err
}

func (r *Recorder) ChangeAuth(parent []byte, b sealstore.Blob, oldAuth, newAuth []byte) (sealstore.Blob, error) {
	r.see(AuthValue, oldAuth)
	r.see(AuthValue, newAuth)
	return r.Sealer.ChangeAuth(parent, b, oldAuth, newAuth)
}
