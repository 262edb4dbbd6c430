package p11

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/config"
	"github.com/InterCooperative-Network/icn-p11/internal/stats"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/memseal"
)

type nopCloser struct{}

func (nopCloser) Close() error { return nil }

const (
	soPIN   = "so-pin-1"
	userPIN = "user-pin-1"
)

// start runs a module over an in-memory TPM and a store in a directory of the test.
func start(t testing.TB, change func(*config.Config)) (*Module, *memseal.Sealer) {
	t.Helper()
	m, s := NewModule(), memseal.New()
	startWith(t, m, s, t.TempDir(), change)
	return m, s
}

func startWith(t testing.TB, m *Module, s *memseal.Sealer, dir string, change func(*config.Config)) {
	t.Helper()
	cfg := config.Default()
	cfg.SealedBlobDir = dir
	if change != nil {
		change(cfg)
	}
	log := slog.New(slog.DiscardHandler)
	m.start(cfg, log, nopCloser{}, s, stats.New(cfg.Statistics, log))
	t.Cleanup(func() {
		if err := m.Finalize(); err != nil && err != CKR_CRYPTOKI_NOT_INITIALIZED {
			t.Errorf("finalize: %v", err)
		}
	})
}

func label(s string) (l [32]byte) {
	copy(l[:], bytes.Repeat([]byte{' '}, 32))
	copy(l[:], s)
	return
}

// token makes a token with both PINs in slot 0 and gives a read/write session
// that is logged in as the user.
func token(t testing.TB, m *Module) SessionHandle {
	t.Helper()
	must(t, m.InitToken(0, []byte(soPIN), label("test")))
	h := open(t, m, 0)
	must(t, m.Login(h, CKU_SO, []byte(soPIN)))
	must(t, m.InitPIN(h, []byte(userPIN)))
	must(t, m.Logout(h))
	must(t, m.Login(h, CKU_USER, []byte(userPIN)))
	return h
}

func open(t testing.TB, m *Module, id SlotID) SessionHandle {
	t.Helper()
	h, err := m.OpenSession(id, CKF_SERIAL_SESSION|CKF_RW_SESSION)
	must(t, err)
	return h
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t testing.TB, rv RV, err error) {
	t.Helper()
	if RVOf(err) != rv {
		t.Fatalf("got %v, want %v", err, rv)
	}
}

var (
	pubTemplate = []Attribute{
		{CKA_TOKEN, yes}, {CKA_VERIFY, yes}, {CKA_LABEL, []byte("icn-identity")}, {CKA_EC_PARAMS, edwardsOID},
	}
	privTemplate = []Attribute{
		{CKA_TOKEN, yes}, {CKA_PRIVATE, yes}, {CKA_SENSITIVE, yes}, {CKA_SIGN, yes},
		{CKA_EXTRACTABLE, no}, {CKA_LABEL, []byte("icn-identity")},
	}
	keygen = Mechanism{Type: CKM_EC_EDWARDS_KEY_PAIR_GEN}
	pure   = Mechanism{Type: CKM_EDDSA}
)

func get(t *testing.T, m *Module, h SessionHandle, o ObjectHandle, typ AttributeType) []byte {
	t.Helper()
	q := []AttributeOut{{Type: typ}}
	must(t, m.GetAttributeValue(h, o, q))
	q[0].Buf = make([]byte, q[0].Len)
	must(t, m.GetAttributeValue(h, o, q))
	return q[0].Buf[:q[0].Len]
}

func find(t testing.TB, m *Module, h SessionHandle, tmpl ...Attribute) []ObjectHandle {
	t.Helper()
	must(t, m.FindObjectsInit(h, tmpl))
	var all []ObjectHandle
	buf := make([]ObjectHandle, 3)
	for {
		n, err := m.FindObjects(h, buf)
		must(t, err)
		if n == 0 {
			break
		}
		all = append(all, buf[:n]...)
	}
	must(t, m.FindObjectsFinal(h))
	return all
}

func sign(t *testing.T, m *Module, h SessionHandle, mech Mechanism, key ObjectHandle, msg []byte) []byte {
	t.Helper()
	must(t, m.SignInit(h, mech, key))
	out := Output{Query: true}
	must(t, m.Sign(h, msg, &out))
	out = Output{Buf: make([]byte, out.Len-1)}
	want(t, CKR_BUFFER_TOO_SMALL, m.Sign(h, msg, &out))
	out = Output{Buf: make([]byte, out.Len)}
	must(t, m.Sign(h, msg, &out))
	want(t, CKR_OPERATION_NOT_INITIALIZED, m.Sign(h, msg, &out))
	return out.Buf[:out.Len]
}

func TestKeyPairSignsAndVerifies(t *testing.T) {
	m, s := start(t, nil)
	h := token(t, m)
	pub, priv, err := m.GenerateKeyPair(h, keygen, pubTemplate, privTemplate)
	must(t, err)
	point := get(t, m, h, pub, CKA_EC_POINT)
	if !bytes.HasPrefix(point, edwards25519.octets()) || len(point) != 34 {
		t.Fatalf("EC_POINT %x", point)
	}
	for _, o := range []ObjectHandle{pub, priv} {
		if v := get(t, m, h, o, CKA_EC_PARAMS); !bytes.Equal(v, edwardsOID) {
			t.Errorf("EC_PARAMS %x", v)
		}
		if v := get(t, m, h, o, CKA_EC_POINT); !bytes.Equal(v, point) {
			t.Errorf("EC_POINT %x", v)
		}
		if v := get(t, m, h, o, CKA_PUBLIC_KEY_INFO); !bytes.Equal(v, edwards25519.info(point[2:])) {
			t.Errorf("PUBLIC_KEY_INFO %x", v)
		}
		if v := get(t, m, h, o, CKA_ID); !bytes.Equal(v, point[2:]) {
			t.Errorf("ID %x", v)
		}
	}
	q := []AttributeOut{{Type: CKA_VALUE}, {Type: CKA_LABEL, Buf: make([]byte, 20)}, {Type: 0x80000001}}
	want(t, CKR_ATTRIBUTE_SENSITIVE, m.GetAttributeValue(h, priv, q))
	if q[0].Len != Unavailable || q[1].Len != 12 || q[2].Len != Unavailable {
		t.Errorf("lengths %d %d %d", q[0].Len, q[1].Len, q[2].Len)
	}

	msg := []byte("a message")
	before := s.Count(memseal.OpUnseal)
	sig := sign(t, m, h, pure, priv, msg)
	if n := s.Count(memseal.OpUnseal) - before; n != 1 {
		t.Errorf("one signature took %d unseals", n)
	}
	if !ed25519.Verify(point[2:], msg, sig) {
		t.Fatal("signature does not verify")
	}
	must(t, m.SignInit(h, pure, priv))
	for i := range msg {
		must(t, m.SignUpdate(h, msg[i:i+1]))
	}
	out := Output{Buf: make([]byte, 64)}
	want(t, CKR_OPERATION_ACTIVE, m.Sign(h, msg, &out))
	must(t, m.SignFinal(h, &out))
	if !bytes.Equal(out.Buf, sig) {
		t.Error("parts and the whole give different signatures")
	}
	must(t, m.VerifyInit(h, pure, pub))
	must(t, m.Verify(h, msg, sig))
	must(t, m.VerifyInit(h, pure, pub))
	want(t, CKR_SIGNATURE_LEN_RANGE, m.Verify(h, msg, sig[:63]))
	must(t, m.VerifyInit(h, pure, pub))
	sig[5] ^= 1
	want(t, CKR_SIGNATURE_INVALID, m.Verify(h, msg, sig))
	want(t, CKR_OPERATION_NOT_INITIALIZED, m.Verify(h, msg, sig))
	want(t, CKR_KEY_FUNCTION_NOT_PERMITTED, m.SignInit(h, pure, pub))
	want(t, CKR_KEY_HANDLE_INVALID, m.SignInit(h, pure, 9999))
}

func TestVariantsSignDifferently(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	pub, priv, err := m.GenerateKeyPair(h, keygen, pubTemplate, privTemplate)
	must(t, err)
	ctx := Mechanism{CKM_EDDSA, &EdDSAParams{Context: []byte("ctx")}}
	ph := Mechanism{CKM_EDDSA, &EdDSAParams{Ph: true}}
	msg := []byte("m")
	for _, sm := range []Mechanism{pure, ctx, ph} {
		sig := sign(t, m, h, sm, priv, msg)
		for _, vm := range []Mechanism{pure, ctx, ph} {
			must(t, m.VerifyInit(h, vm, pub))
			err := m.Verify(h, msg, sig)
			if (err == nil) != (sm == vm) {
				t.Errorf("signed with %v, verified with %v: %v", sm.Param, vm.Param, err)
			}
		}
	}
	for _, bad := range []any{&EdDSAParams{}, &EdDSAParams{Context: make([]byte, 256)}, []byte{1}} {
		want(t, CKR_MECHANISM_PARAM_INVALID, m.SignInit(h, Mechanism{CKM_EDDSA, bad}, priv))
	}
	want(t, CKR_MECHANISM_INVALID, m.SignInit(h, Mechanism{Type: CKM_SHA256}, priv))
}

func TestPrivateObjectsNeedTheUser(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	_, priv, err := m.GenerateKeyPair(h, keygen, pubTemplate, privTemplate)
	must(t, err)
	must(t, m.SignInit(h, pure, priv))
	must(t, m.Logout(h))
	want(t, CKR_USER_NOT_LOGGED_IN, m.Sign(h, nil, &Output{Buf: make([]byte, 64)}))
	if got := find(t, m, h); len(got) != 1 {
		t.Errorf("without login %d objects are seen, want the public key alone", len(got))
	}
	want(t, CKR_KEY_HANDLE_INVALID, m.SignInit(h, pure, priv))
	_, _, err = m.GenerateKeyPair(h, keygen, pubTemplate, privTemplate)
	want(t, CKR_USER_NOT_LOGGED_IN, err)
	must(t, m.Login(h, CKU_USER, []byte(userPIN)))
	got := find(t, m, h, Attribute{CKA_CLASS, ulong(CKO_PRIVATE_KEY)}, Attribute{CKA_LABEL, []byte("icn-identity")})
	if len(got) != 1 || got[0] == priv {
		t.Errorf("after login: %v; the handle from before was %v", got, priv)
	}
}

func TestLoginRules(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	want(t, CKR_USER_ALREADY_LOGGED_IN, m.Login(h, CKU_USER, []byte(userPIN)))
	want(t, CKR_USER_ANOTHER_ALREADY_LOGGED_IN, m.Login(h, CKU_SO, []byte(soPIN)))
	must(t, m.Logout(h))
	want(t, CKR_USER_NOT_LOGGED_IN, m.Logout(h))
	want(t, CKR_PIN_INCORRECT, m.Login(h, CKU_USER, []byte("x")))
	want(t, CKR_PIN_INCORRECT, m.Login(h, CKU_USER, []byte("wrong-pin")))
	want(t, CKR_ARGUMENTS_BAD, m.Login(h, CKU_USER, nil))
	want(t, CKR_USER_TYPE_INVALID, m.Login(h, 7, []byte(userPIN)))
	ro, err := m.OpenSession(0, CKF_SERIAL_SESSION)
	must(t, err)
	want(t, CKR_SESSION_READ_ONLY_EXISTS, m.Login(h, CKU_SO, []byte(soPIN)))
	must(t, m.CloseSession(ro))
	must(t, m.Login(h, CKU_SO, []byte(soPIN)))
	_, err = m.OpenSession(0, CKF_SERIAL_SESSION)
	want(t, CKR_SESSION_READ_WRITE_SO_EXISTS, err)
	info, err := m.GetSessionInfo(h)
	must(t, err)
	if info.State != CKS_RW_SO_FUNCTIONS {
		t.Errorf("state %d", info.State)
	}
	_, err = m.OpenSession(0, CKF_RW_SESSION)
	want(t, CKR_SESSION_PARALLEL_NOT_SUPPORTED, err)
	_, err = m.OpenSession(1, CKF_SERIAL_SESSION)
	want(t, CKR_SLOT_ID_INVALID, err) // the new free slot shows after the next C_GetSlotList
	n, err := m.GetSlotList(false, nil, true)
	must(t, err)
	if n != 2 {
		t.Fatalf("%d slots", n)
	}
	_, err = m.OpenSession(1, CKF_SERIAL_SESSION)
	want(t, CKR_TOKEN_NOT_RECOGNIZED, err)
}

func TestSetPIN(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	want(t, CKR_PIN_INCORRECT, m.SetPIN(h, []byte("wrong-one"), []byte("new-pin")))
	want(t, CKR_PIN_LEN_RANGE, m.SetPIN(h, []byte(userPIN), []byte("abc")))
	must(t, m.SetPIN(h, []byte(userPIN), []byte("new-pin")))
	must(t, m.Logout(h))
	want(t, CKR_PIN_INCORRECT, m.Login(h, CKU_USER, []byte(userPIN)))
	must(t, m.Login(h, CKU_USER, []byte("new-pin")))
}

func TestReadOnlySession(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	_, priv, err := m.GenerateKeyPair(h, keygen, pubTemplate, privTemplate)
	must(t, err)
	ro, err := m.OpenSession(0, CKF_SERIAL_SESSION)
	must(t, err)
	_, _, err = m.GenerateKeyPair(ro, keygen, pubTemplate, privTemplate)
	want(t, CKR_SESSION_READ_ONLY, err)
	want(t, CKR_SESSION_READ_ONLY, m.DestroyObject(ro, priv))
	want(t, CKR_SESSION_READ_ONLY, m.SetAttributeValue(ro, priv, []Attribute{{CKA_LABEL, []byte("x")}}))
	want(t, CKR_SESSION_READ_ONLY, m.SetPIN(ro, []byte(userPIN), []byte("new-pin")))
	c, err := m.CopyObject(ro, priv, []Attribute{{CKA_TOKEN, no}})
	must(t, err)
	a, b := sign(t, m, ro, pure, priv, []byte("x")), sign(t, m, ro, pure, c, []byte("x"))
	if !bytes.Equal(a, b) {
		t.Error("the session copy signs differently")
	}
	must(t, m.CloseSession(ro))
	want(t, CKR_KEY_HANDLE_INVALID, m.SignInit(h, pure, c))
}

func TestCreateObject(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	seed, _ := hex.DecodeString("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
	pub := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	private := func(more ...Attribute) []Attribute {
		return append([]Attribute{
			{CKA_CLASS, ulong(CKO_PRIVATE_KEY)}, {CKA_KEY_TYPE, ulong(CKK_EC_EDWARDS)}, {CKA_VALUE, seed},
		}, more...)
	}
	for _, token := range [][]byte{no, yes} {
		for _, params := range [][]byte{edwardsOID, edwardsOldOID, edwardsName} {
			o, err := m.CreateObject(h, private(Attribute{CKA_TOKEN, token}, Attribute{CKA_EC_PARAMS, params}))
			must(t, err)
			if !ed25519.Verify(pub, []byte("x"), sign(t, m, h, pure, o, []byte("x"))) {
				t.Error("imported key signs wrongly")
			}
			if v := get(t, m, h, o, CKA_EC_PARAMS); !bytes.Equal(v, edwardsOID) {
				t.Errorf("EC_PARAMS %x", v)
			}
			if !bytes.Equal(get(t, m, h, o, CKA_SENSITIVE), yes) || !bytes.Equal(get(t, m, h, o, CKA_NEVER_EXTRACTABLE), no) {
				t.Error("an imported key must be sensitive, and not never-extractable")
			}
		}
	}
	p256 := []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}
	_, err := m.CreateObject(h, private(Attribute{CKA_EC_PARAMS, p256}))
	want(t, CKR_CURVE_NOT_SUPPORTED, err)
	_, err = m.CreateObject(h, private())
	want(t, CKR_TEMPLATE_INCOMPLETE, err)
	_, err = m.CreateObject(h, private(Attribute{CKA_EC_PARAMS, edwardsOID}, Attribute{CKA_LOCAL, yes}))
	want(t, CKR_ATTRIBUTE_READ_ONLY, err)
	_, err = m.CreateObject(h, private(Attribute{CKA_EC_PARAMS, edwardsOID}, Attribute{CKA_APPLICATION, nil}))
	want(t, CKR_TEMPLATE_INCONSISTENT, err)
	_, err = m.CreateObject(h, private(Attribute{CKA_EC_PARAMS, edwardsOID}, Attribute{0x80000001, nil}))
	want(t, CKR_ATTRIBUTE_TYPE_INVALID, err)
	_, err = m.CreateObject(h, private(Attribute{CKA_EC_PARAMS, edwardsOID}, Attribute{CKA_EC_POINT, edwardsPointOther(t)}))
	want(t, CKR_TEMPLATE_INCONSISTENT, err)

	for _, point := range [][]byte{pub, append(edwards25519.octets(), pub...)} {
		o, err := m.CreateObject(h, []Attribute{
			{CKA_CLASS, ulong(CKO_PUBLIC_KEY)}, {CKA_KEY_TYPE, ulong(CKK_EC_EDWARDS)},
			{CKA_EC_PARAMS, edwardsOID}, {CKA_EC_POINT, point},
		})
		must(t, err)
		if v := get(t, m, h, o, CKA_EC_POINT); !bytes.Equal(v[2:], pub) {
			t.Errorf("EC_POINT %x", v)
		}
		if got := find(t, m, h, Attribute{CKA_CLASS, ulong(CKO_PUBLIC_KEY)}, Attribute{CKA_EC_POINT, point}); !slices.Contains(got, o) {
			t.Error("not found by the point it was made with")
		}
	}
	o, err := m.CreateObject(h, []Attribute{{CKA_CLASS, ulong(CKO_DATA)}, {CKA_TOKEN, yes}, {CKA_VALUE, []byte("v")}, {CKA_LABEL, []byte("d")}})
	must(t, err)
	must(t, m.SetAttributeValue(h, o, []Attribute{{CKA_LABEL, []byte("d")}, {CKA_COPYABLE, no}}))
	want(t, CKR_ATTRIBUTE_READ_ONLY, m.SetAttributeValue(h, o, []Attribute{{CKA_LABEL, []byte("e")}, {CKA_PRIVATE, yes}}))
	if v := get(t, m, h, o, CKA_LABEL); string(v) != "d" {
		t.Errorf("a refused template changed the label to %q", v)
	}
	must(t, m.DestroyObject(h, o))
	want(t, CKR_OBJECT_HANDLE_INVALID, m.DestroyObject(h, o))
}

func edwardsPointOther(t *testing.T) []byte {
	t.Helper()
	return ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)
}

func TestAnotherProcessSees(t *testing.T) {
	dir, s := t.TempDir(), memseal.New()
	a, b := NewModule(), NewModule()
	startWith(t, a, s, dir, nil)
	ha := token(t, a)
	startWith(t, b, s, dir, nil)
	hb := open(t, b, 0)
	if n := len(find(t, b, hb)); n != 0 {
		t.Fatalf("%d objects", n)
	}
	pub, _, err := a.GenerateKeyPair(ha, keygen, pubTemplate, privTemplate)
	must(t, err)
	got := find(t, b, hb)
	if len(got) != 1 {
		t.Fatalf("%d objects after the other made one", len(got))
	}
	must(t, a.SetAttributeValue(ha, pub, []Attribute{{CKA_LABEL, []byte("renamed")}}))
	if again := find(t, b, hb, Attribute{CKA_LABEL, []byte("renamed")}); len(again) != 1 || again[0] != got[0] {
		t.Errorf("renamed: %v, before %v", again, got)
	}
	must(t, a.DestroyObject(ha, pub))
	if n := len(find(t, b, hb)); n != 0 {
		t.Errorf("%d objects after the other destroyed it", n)
	}
}

func TestAutoLock(t *testing.T) {
	m, s := start(t, func(c *config.Config) { c.AutoLockTimeout = 1 << 40 })
	h := token(t, m)
	_, priv, err := m.GenerateKeyPair(h, keygen, pubTemplate, privTemplate)
	must(t, err)
	sign(t, m, h, pure, priv, nil)
	before := s.Count(memseal.OpUnseal)
	for range 10 {
		sign(t, m, h, pure, priv, nil)
	}
	if n := s.Count(memseal.OpUnseal) - before; n != 0 {
		t.Errorf("%d unseals while unlocked", n)
	}
	keys := &m.lib.Load().slots[0].keys
	if len(keys.keys) != 1 {
		t.Fatalf("%d keys kept", len(keys.keys))
	}
	must(t, m.Logout(h))
	if len(keys.keys) != 0 {
		t.Error("a key stays unlocked after logout")
	}
}

func TestThreads(t *testing.T) {
	m, _ := start(t, func(c *config.Config) { c.AutoLockTimeout = 1 })
	h := token(t, m)
	pub, priv, err := m.GenerateKeyPair(h, keygen, pubTemplate, privTemplate)
	must(t, err)
	point := get(t, m, h, pub, CKA_EC_POINT)[2:]
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			h := open(t, m, 0)
			for j := range 50 {
				msg := []byte{byte(i), byte(j)}
				if err := m.SignInit(h, pure, priv); err != nil {
					t.Error(err)
					return
				}
				out := Output{Buf: make([]byte, 64)}
				if err := m.Sign(h, msg, &out); err != nil || !ed25519.Verify(point, msg, out.Buf) {
					t.Error("bad signature", err)
					return
				}
				find(t, m, h)
			}
			must(t, m.CloseSession(h))
		}()
	}
	wg.Wait()
}

func TestReinitDestroysObjects(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	_, _, err := m.GenerateKeyPair(h, keygen, pubTemplate, privTemplate)
	must(t, err)
	want(t, CKR_SESSION_EXISTS, m.InitToken(0, []byte(soPIN), label("new")))
	before, err := m.GetTokenInfo(0)
	must(t, err)
	must(t, m.CloseAllSessions(0))
	want(t, CKR_PIN_INCORRECT, m.InitToken(0, []byte("wrong-pin"), label("new")))
	must(t, m.InitToken(0, []byte(soPIN), label("new")))
	after, err := m.GetTokenInfo(0)
	must(t, err)
	if after.Label != "new" || after.SerialNumber != before.SerialNumber || after.Flags&CKF_USER_PIN_INITIALIZED != 0 {
		t.Errorf("after: %+v", after)
	}
	h = open(t, m, 0)
	want(t, CKR_USER_PIN_NOT_INITIALIZED, m.Login(h, CKU_USER, []byte(userPIN)))
	if n := len(find(t, m, h)); n != 0 {
		t.Errorf("%d objects survived", n)
	}
}

// Tokens can be listed while the TPM hangs, and it is asked once for all of them.
func TestHangingTPMDelaysListingOnce(t *testing.T) {
	m, s := start(t, nil)
	for i := range 4 {
		must(t, m.InitToken(SlotID(i), []byte(soPIN), label("test")))
		_, err := m.GetSlotList(false, nil, true)
		must(t, err)
	}
	hang := make(chan struct{})
	s.Fail(func(op memseal.Op) error {
		if op == memseal.OpLockout {
			<-hang
			return sealstore.ErrUnavailable
		}
		return nil
	})
	before := s.Count(memseal.OpLockout)
	for i := range 4 {
		info, err := m.GetTokenInfo(SlotID(i))
		must(t, err)
		if info.Flags&CKF_TOKEN_INITIALIZED == 0 {
			t.Errorf("slot %d: flags %x", i, info.Flags)
		}
	}
	close(hang)
	if n := s.Count(memseal.OpLockout) - before; n > 1 {
		t.Errorf("%d questions to a TPM that does not answer", n)
	}
}

func TestNotInitialised(t *testing.T) {
	m := NewModule()
	_, err := m.GetSlotList(false, nil, true)
	want(t, CKR_CRYPTOKI_NOT_INITIALIZED, err)
	want(t, CKR_CRYPTOKI_NOT_INITIALIZED, m.Finalize())
	want(t, CKR_ARGUMENTS_BAD, m.Initialize(InitArgs{Given: true, Reserved: true}))
	want(t, CKR_ARGUMENTS_BAD, m.Initialize(InitArgs{Given: true, LockMutex: true}))
}

func TestRVOf(t *testing.T) {
	if RVOf(nil) != CKR_OK || RVOf(errors.New("x")) != CKR_GENERAL_ERROR {
		t.Error("wrong codes")
	}
	if RVOf(&coded{CKR_PIN_LOCKED, errors.New("x")}) != CKR_PIN_LOCKED {
		t.Error("a cause hides the code")
	}
}

func FuzzBody(f *testing.F) {
	f.Add([]byte(attrs{CKA_CLASS: ulong(CKO_DATA), CKA_VALUE: []byte("v")}.encode()))
	f.Add([]byte(attrs{CKA_CLASS: ulong(CKO_PRIVATE_KEY), CKA_KEY_TYPE: ulong(CKK_EC_EDWARDS), CKA_ALLOWED_MECHANISMS: ulong(CKM_EDDSA)}.encode()))
	f.Add([]byte{bodyVersion, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		o, ok := parseBody(b)
		if !ok {
			return
		}
		a := o.attrs()
		if !bytes.Equal(a.encode(), b) {
			t.Errorf("%x is taken, and encodes to %x", b, a.encode())
		}
		for typ, v := range a {
			if got, ok := o.value(typ); !ok || !bytes.Equal(got, v) {
				t.Errorf("%x: %#x is %x, and found as %x", b, typ, v, got)
			}
			if o.bool(typ) != a.bool(typ) || kinds[typ] == kindUlong && o.ulong(typ) != a.ulong(typ) {
				t.Errorf("%x: %#x is %v or %d, not %v or %d", b, typ, o.bool(typ), o.ulong(typ), a.bool(typ), a.ulong(typ))
			}
		}
	})
}

// TestFindByLabel: objects are found by the label that they have now.
func TestFindByLabel(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	made := map[string]ObjectHandle{}
	for _, kept := range [][]byte{yes, no} {
		for _, l := range []string{"a", "b", ""} {
			o, err := m.CreateObject(h, []Attribute{{CKA_CLASS, ulong(uint(CKO_DATA))}, {CKA_TOKEN, kept}, {CKA_LABEL, []byte(l)}})
			must(t, err)
			made[l+string(kept)] = o
		}
	}
	found := func(l string, want ...ObjectHandle) {
		t.Helper()
		slices.Sort(want)
		if got := find(t, m, h, Attribute{CKA_LABEL, []byte(l)}); !slices.Equal(got, want) {
			t.Errorf("%q: found %v, want %v", l, got, want)
		}
	}
	at, as := made["a\x01"], made["a\x00"]
	found("a", at, as)
	found("c")
	for _, o := range []ObjectHandle{at, as} {
		must(t, m.SetAttributeValue(h, o, []Attribute{{CKA_LABEL, []byte("b")}}))
	}
	found("a")
	found("b", at, as, made["b\x01"], made["b\x00"])
	must(t, m.DestroyObject(h, at))
	must(t, m.DestroyObject(h, as))
	found("b", made["b\x01"], made["b\x00"])
	found("", made["\x01"], made["\x00"])
}

// TestKinds: an attribute is written in one way, whatever objects have it, so
// that a body can be read without knowing what it is of.
func TestKinds(t *testing.T) {
	for of, specs := range objectSpecs {
		for typ, sp := range specs {
			if sp.typ != typ || kinds[typ] != sp.kind {
				t.Errorf("class %d, type %d: %#x is of kind %d, elsewhere of %d", of.class, of.key, typ, sp.kind, kinds[typ])
			}
		}
	}
}
