// Package conformance checks the built module against OASIS PKCS#11 v3.1, and
// v3.2 where a row says so: a table with a row for each rule, which names the
// section that the rule comes from. docs/conformance.md is made of the table.
//
// The rows run in one process, one after the other, on one TPM, through the
// module's C functions alone.
package conformance

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ck "github.com/miekg/pkcs11"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/test/p11tool"
)

// Short names for the arguments of calls.
type (
	in       = p11tool.In
	words    = p11tool.Words
	buffer   = p11tool.Buffer
	template = p11tool.Template
	value    = p11tool.Value
)

// rv is a CK_RV.
type rv uint

func (r rv) String() string {
	for name, code := range newCodes {
		if code == r {
			return name
		}
	}
	text := ck.Error(r).Error()
	return text[strings.LastIndex(text, ": ")+2:]
}

// row is one rule.
type row struct {
	section string // of v3.1; "v3.2 5.15.7" is one of v3.2
	rule    string
	what    string // which of several things that the rule is for
	want    rv
	do      func(*env) rv
}

// scene is a state of the module and the rows that are true in it.
type scene struct {
	name  string
	slot  func(*fixture) uint
	alone bool // no session is open when a row begins
	user  uint // who is logged in; nobody
	flags uint // of the session that each row gets
	rows  []row
}

const (
	nobody = ck.CKU_CONTEXT_SPECIFIC // which nobody is logged in as

	ro = ck.CKF_SERIAL_SESSION
	rw = ck.CKF_SERIAL_SESSION | ck.CKF_RW_SESSION

	soPIN   = "so pin 73-alpha"
	userPIN = "user pin 41-beta"
)

// env is what a row works with.
type env struct {
	*testing.T
	*p11tool.Table
	f *fixture
	s uint // the row's session
}

// call is one call of a function of the module.
func (e *env) call(name string, args ...any) rv { return rv(e.Call(name, args...)) }

// ok is a call that must succeed, for a row to go on.
func (e *env) ok(name string, args ...any) {
	e.Helper()
	if r := e.call(name, args...); r != ck.CKR_OK {
		e.Fatalf("%s: %v", name, r)
	}
}

// gives is a call in a row's course that must answer with a certain code.
func (e *env) gives(want rv, name string, args ...any) {
	e.Helper()
	if r := e.call(name, args...); r != want {
		e.Fatalf("%s: %v, not %v", name, r, want)
	}
}

// check reports what is not as it should be.
func (e *env) check(ok bool, format string, args ...any) {
	e.Helper()
	if !ok {
		e.Errorf(format, args...)
	}
}

// fixture is what the rows find: the slots, and objects of the first token.
type fixture struct {
	dir   string
	tpm   *swtpmtest.TPM
	token uint // with both PINs and the objects
	fresh uint // without a user PIN
	prot  uint // write-protected
	free  uint // no token yet
	obj   map[string]uint
}

// pub and priv are the halves of the pair that may do everything.
func (f *fixture) pub() uint  { return f.obj["pair pub"] }
func (f *fixture) priv() uint { return f.obj["pair priv"] }

func ofToken(f *fixture) uint { return f.token }
func ofFresh(f *fixture) uint { return f.fresh }
func ofProt(f *fixture) uint  { return f.prot }

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "make-token" {
		os.Exit(makeToken())
	}
	os.Exit(m.Run())
}

// modulePath is the module under test.
func modulePath() (string, error) {
	path := os.Getenv("ICN_P11_MODULE")
	if path == "" {
		path = filepath.Join("..", "..", "build", "icn-p11.so")
	}
	path, err := filepath.Abs(path)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		return "", fmt.Errorf("the module under test is missing (build it with make, or set ICN_P11_MODULE): %w", err)
	}
	return path, nil
}

// makeToken is another process that makes a token.
func makeToken() int {
	path, err := modulePath()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	m, err := p11tool.OpenTable(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var n uint
	if r := m.Call("C_Initialize", nil); r != ck.CKR_OK {
		fmt.Fprintln(os.Stderr, "C_Initialize", rv(r))
		return 1
	}
	m.Call("C_GetSlotList", true, nil, &n)
	slots := make(words, n)
	m.Call("C_GetSlotList", true, slots, &n)
	// The free slot is the last one.
	if r := m.Call("C_InitToken", slots[n-1], in(soPIN), label("made by another process")); r != ck.CKR_OK {
		fmt.Fprintln(os.Stderr, "C_InitToken", rv(r))
		return 1
	}
	fmt.Println(slots[n-1])
	return 0
}

// TestConformance runs the table.
func TestConformance(t *testing.T) {
	path, err := modulePath()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "conformance")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fixture{dir: dir, tpm: swtpmtest.Start(t), obj: map[string]uint{}}
	conf := fmt.Sprintf("device_path = \"swtpm:path=%s\"\nsealed_blob_dir = %q\nlog_file = %q\n[token.protected]\nread_only = true\n",
		f.tpm.Path(), filepath.Join(dir, "store"), filepath.Join(dir, "log"))
	file := filepath.Join(dir, "icn-p11.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ICN_P11_CONF", file)
	m, err := p11tool.OpenTable(path)
	if err != nil {
		t.Fatal(err)
	}
	e := &env{T: t, Table: m, f: f}
	t.Run("before C_Initialize", func(t *testing.T) { runAlone(t, e, before()) })
	e.ok("C_Initialize", nil)
	f.make(e)
	for _, s := range scenes() {
		t.Run(s.name, func(t *testing.T) { s.run(t, e) })
	}
	e.call("C_Finalize", nil)
	t.Run("after C_Finalize", func(t *testing.T) { runAlone(t, e, notInitialised("after C_Finalize")) })
	if t.Failed() {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		t.Logf("the module's log ends with:\n%s", log[max(0, len(log)-3000):])
	}
}

// runAlone runs rows that need no token.
func runAlone(t *testing.T, e *env, rows []row) {
	for _, r := range rows {
		e := &env{T: t, Table: e.Table, f: e.f}
		e.row(r)
	}
}

// row runs one rule.
func (e *env) row(r row) {
	e.T.Run(strings.TrimSpace(r.section+" "+r.rule+" "+r.what), func(t *testing.T) {
		e := &env{T: t, Table: e.Table, f: e.f, s: e.s}
		if got := r.do(e); got != r.want {
			e.Errorf("%s %s %s: %v, not %v", r.section, r.rule, r.what, got, r.want)
		}
	})
}

// run brings about the state of a scene and runs its rows in it, each in a
// session of its own. A row may change who is logged in.
func (s scene) run(t *testing.T, e *env) {
	e = &env{T: t, Table: e.Table, f: e.f}
	slot := s.slot(e.f)
	if s.alone {
		for _, r := range s.rows {
			e.row(r)
			e.call("C_CloseAllSessions", slot)
		}
		return
	}
	anchor := e.enter(s, slot)
	for _, r := range s.rows {
		e.ok("C_OpenSession", slot, s.flags, nil, nil, &e.s)
		e.row(r)
		e.call("C_CloseSession", e.s)
		if info := e.session(anchor); info.rv != ck.CKR_OK || info.state != s.state() {
			e.call("C_CloseAllSessions", slot)
			anchor = e.enter(s, slot)
		} else if slot == e.f.token && s.user == ck.CKU_USER && e.call("C_GetObjectSize", anchor, e.f.priv(), new(uint)) != ck.CKR_OK {
			// The row logged out and in again.
			e.f.find(e, anchor)
		}
	}
	e.call("C_CloseAllSessions", slot)
}

// state is that of the session which keeps a scene's login.
func (s scene) state() uint {
	readOnly := s.flags == ro
	switch {
	case s.user == ck.CKU_SO:
		return ck.CKS_RW_SO_FUNCTIONS
	case s.user == ck.CKU_USER && readOnly:
		return ck.CKS_RO_USER_FUNCTIONS
	case s.user == ck.CKU_USER:
		return ck.CKS_RW_USER_FUNCTIONS
	case readOnly:
		return ck.CKS_RO_PUBLIC_SESSION
	}
	return ck.CKS_RW_PUBLIC_SESSION
}

// enter opens a session that keeps the scene's user logged in.
func (e *env) enter(s scene, slot uint) (anchor uint) {
	flags := uint(rw)
	if s.flags == ro {
		flags = ro
	}
	e.ok("C_OpenSession", slot, flags, nil, nil, &anchor)
	switch s.user {
	case ck.CKU_USER:
		e.ok("C_Login", anchor, ck.CKU_USER, in(userPIN))
	case ck.CKU_SO:
		e.ok("C_Login", anchor, ck.CKU_SO, in(soPIN))
	}
	if slot == e.f.token {
		e.f.find(e, anchor)
	}
	return anchor
}

type sessionInfo struct {
	rv
	slot, state, flags, deviceError uint
}

// session is C_GetSessionInfo.
func (e *env) session(s uint) sessionInfo {
	b := make([]byte, 4*8)
	r := e.call("C_GetSessionInfo", s, b)
	return sessionInfo{r, number(b), number(b[8:]), number(b[16:]), number(b[24:])}
}

// open opens a session that is closed with the row's.
func (e *env) open(flags uint) (s uint) {
	e.Helper()
	e.ok("C_OpenSession", e.f.token, flags, nil, nil, &s)
	e.Cleanup(func() { e.Call("C_CloseSession", s) })
	return s
}

// number reads a CK_ULONG, ul writes one.
func number(b []byte) uint { return uint(binary.NativeEndian.Uint64(b)) }

func ul(n uint) []byte { return binary.NativeEndian.AppendUint64(nil, uint64(n)) }

// label is a token's label as C_InitToken takes it.
func label(s string) []byte { return []byte(fmt.Sprintf("%-32s", s)) }

var yes, no = []byte{1}, []byte{0}

// attr is one attribute of a template; a number is a CK_ULONG.
func attr(typ uint, v any) p11tool.Attribute {
	switch v := v.(type) {
	case bool:
		if v {
			return p11tool.Attribute{Type: typ, Value: yes}
		}
		return p11tool.Attribute{Type: typ, Value: no}
	case int:
		return p11tool.Attribute{Type: typ, Value: ul(uint(v))}
	case uint:
		return p11tool.Attribute{Type: typ, Value: ul(v)}
	case string:
		return p11tool.Attribute{Type: typ, Value: []byte(v)}
	}
	return p11tool.Attribute{Type: typ, Value: v.([]byte)}
}

// with is a template with more entries.
func with(t template, more ...p11tool.Attribute) template {
	return append(append(template{}, t...), more...)
}

// without is a template that lacks an attribute.
func without(t template, typ uint) template {
	out := template{}
	for _, a := range t {
		if a.Type != typ {
			out = append(out, a)
		}
	}
	return out
}

// mech is a mechanism without a parameter.
func mech(typ uint) *p11tool.Mechanism { return &p11tool.Mechanism{Type: typ} }

// get reads an attribute; nil for one that is not there.
func (e *env) get(o, typ uint) []byte {
	v := []value{{Type: typ, Room: 4096}}
	if e.call("C_GetAttributeValue", e.s, o, v) != ck.CKR_OK {
		return nil
	}
	return v[0].Data
}

// findAll is a search to its end.
func (e *env) findAll(s uint, t template) []uint {
	e.Helper()
	e.ok("C_FindObjectsInit", s, t)
	var all []uint
	for {
		out, n := make(words, 5), uint(0)
		e.ok("C_FindObjects", s, out, len(out), &n)
		if n == 0 {
			break
		}
		all = append(all, out[:n]...)
	}
	e.ok("C_FindObjectsFinal", s)
	return all
}

// create makes an object in the row's session.
func (e *env) create(t template) (o uint) {
	e.Helper()
	e.ok("C_CreateObject", e.s, t, &o)
	return o
}

// destroyed has a token object destroyed at the end of the row.
func (e *env) destroyed(o uint) uint {
	s := e.s
	e.Cleanup(func() { e.Call("C_DestroyObject", s, o) })
	return o
}
