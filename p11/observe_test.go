package p11

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/audit"
	"github.com/InterCooperative-Network/icn-p11/internal/config"
	"github.com/InterCooperative-Network/icn-p11/internal/did"
	"github.com/InterCooperative-Network/icn-p11/internal/stats"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/memseal"
)

// seed is one that a test can search for.
var seed = sha256.Sum256([]byte("a seed that is known"))

// importKey makes a private key of the seed, in the token or the session.
func importKey(t *testing.T, m *Module, h SessionHandle, token []byte, label string, more ...Attribute) ObjectHandle {
	t.Helper()
	key, err := m.CreateObject(h, append([]Attribute{
		{CKA_CLASS, ulong(CKO_PRIVATE_KEY)}, {CKA_KEY_TYPE, ulong(CKK_EC_EDWARDS)}, {CKA_TOKEN, token}, {CKA_PRIVATE, yes},
		{CKA_SIGN, yes}, {CKA_EC_PARAMS, edwardsOID}, {CKA_VALUE, bytes.Clone(seed[:])}, {CKA_LABEL, []byte(label)},
	}, more...))
	must(t, err)
	return key
}

func public() ed25519.PublicKey { return ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey) }

// life has a token made, used, misused and closed, with all that is logged.
func life(t *testing.T, format string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	must(t, os.Chmod(dir, 0o700))
	device := swtpmtest.Start(t)
	cfg := config.Default()
	cfg.DevicePath, cfg.SealedBlobDir = device.Device(), filepath.Join(dir, "store")
	cfg.PlatformBinding, cfg.PCRs = true, []int{16}
	cfg.AutoLockTimeout = time.Hour
	cfg.LogFile, cfg.LogFormat, cfg.LogLevel = filepath.Join(dir, "log"), format, slog.LevelDebug
	cfg.AuditLog = filepath.Join(dir, "audit")
	m := NewModule()
	must(t, m.Open(cfg))
	defer func() { must(t, m.Finalize()) }()
	h := token(t, m)
	importKey(t, m, h, yes, "known")
	must(t, m.Logout(h))
	want(t, CKR_PIN_INCORRECT, m.Login(h, CKU_USER, []byte("not-the-pin")))
	want(t, CKR_PIN_INCORRECT, m.SetPIN(h, []byte("neither-this"), []byte("new-pin-77")))
	must(t, m.Login(h, CKU_USER, []byte(userPIN)))
	must(t, m.SetPIN(h, []byte(userPIN), []byte("new-pin-77")))
	key := find(t, m, h, Attribute{CKA_CLASS, ulong(CKO_PRIVATE_KEY)})[0]
	sign(t, m, h, pure, key, []byte("the message"))
	must(t, m.Logout(h))
	device.Extend(16, make([]byte, 32))
	want(t, CKR_FUNCTION_FAILED, m.Login(h, CKU_USER, []byte("new-pin-77")))
	return dir
}

// forms are how bytes may be written down.
func forms(b []byte) [][]byte {
	std := base64.StdEncoding.EncodeToString(b)
	return [][]byte{
		b, []byte(hex.EncodeToString(b)), []byte(strings.ToUpper(hex.EncodeToString(b))), []byte(strings.TrimRight(std, "=")),
		[]byte(base64.RawURLEncoding.EncodeToString(b)), []byte(strings.Trim(fmt.Sprint(b), "[]")), []byte(strings.Trim(strings.ReplaceAll(fmt.Sprint(b), " ", ","), "[]")),
	}
}

// TestLogOfALife: the logs tell what happened, and no secret.
func TestLogOfALife(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			dir := life(t, format)
			var all []byte
			for _, name := range []string{"log", "audit", "store/statistics"} {
				data, err := os.ReadFile(filepath.Join(dir, name))
				must(t, err)
				all = append(all, data...)
			}
			secrets := [][]byte{seed[:], seed[:16], seed[16:]}
			for _, pin := range []string{soPIN, userPIN, "not-the-pin", "neither-this", "new-pin-77"} {
				secrets = append(secrets, []byte(pin))
			}
			secrets = append(secrets, []byte("the message"))
			for _, s := range secrets {
				for _, f := range forms(s) {
					if bytes.Contains(all, f) {
						t.Errorf("%q is written down", f)
					}
				}
			}
			log, err := os.ReadFile(filepath.Join(dir, "log"))
			must(t, err)
			if format == "json" {
				checkLife(t, log)
				return
			}
			for _, s := range []string{
				"level=INFO msg=login pid=", " role=SO\n", " role=user\n", "level=INFO msg=logout ",
				"level=WARN msg=\"wrong PIN\" ", " role=user counter=1 max=3\n", "counter=2 max=3\n",
				"level=INFO msg=\"key unlocked\" ", "level=INFO msg=\"key locked\" ",
				"level=WARN msg=\"PCR mismatch\" ", " bank=sha256 pcrs=[16]\n", "level=DEBUG msg=\"TPM operation\" ", " operation=unsealing took=",
			} {
				if !bytes.Contains(log, []byte(s)) {
					t.Errorf("the log has no %q", s)
				}
			}
			if t.Failed() {
				t.Logf("%s", log)
			}
		})
	}
}

// checkLife parses each line of a log and follows the life in it.
func checkLife(t *testing.T, log []byte) {
	t.Helper()
	var story []string
	operations := 0
	for line := range bytes.Lines(log) {
		var r struct {
			Time      time.Time
			Level     slog.Level
			Msg       string
			PID       int
			Token     string
			Role      string
			Operation string
			Took      *float64
			PCRs      []int
			Counter   int
		}
		if err := json.Unmarshal(line, &r); err != nil || r.Time.IsZero() || r.PID != os.Getpid() {
			t.Fatalf("%s: %v", line, err)
		}
		if r.Msg == "TPM operation" {
			operations++
			if r.Operation == "" || r.Took == nil || *r.Took <= 0 || *r.Took > 60 || r.Level != slog.LevelDebug {
				t.Errorf("%s", line)
			}
			continue
		}
		if strings.HasPrefix(r.Msg, "unsealing is slow") {
			continue // so it is, beside other tests
		}
		if len(r.Token) != 16 {
			t.Errorf("no token: %s", line)
		}
		what := r.Msg
		if r.Role != "" {
			what += " " + r.Role
		}
		if r.Counter > 0 {
			what += fmt.Sprint(" ", r.Counter)
		}
		if r.PCRs != nil {
			what += fmt.Sprint(" ", r.PCRs)
		}
		story = append(story, what)
	}
	if want := []string{
		"login SO", "logout", "login user", "logout", // the token is made
		"wrong PIN user 1", "login failed", "wrong PIN user 2", "changing a PIN failed",
		"login user", "key unlocked", "key locked", "logout",
		"PCR mismatch [16]", "login failed",
	}; !slices.Equal(story, want) {
		t.Errorf("the log tells %q", story)
	}
	if operations < 20 {
		t.Errorf("only %d operations of the TPM", operations)
	}
}

// records reads an audit log.
func records(t *testing.T, path string) (all []audit.Record) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	for line := range bytes.Lines(data) {
		var r audit.Record
		must(t, json.Unmarshal(line, &r))
		all = append(all, r)
	}
	return all
}

// TestAudit: each signature and each attempt has a record, whichever function
// it is made by.
func TestAudit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	m, s := start(t, func(c *config.Config) { c.AuditLog = path })
	h := token(t, m)
	key := importKey(t, m, h, yes, "known", Attribute{CKA_ID, []byte{1, 2}})
	if _, err := os.Lstat(path); err == nil {
		t.Error("there is an audit log before a signature")
	}
	sig := sign(t, m, h, pure, key, []byte("one"))
	if !ed25519.Verify(public(), []byte("one"), sig) {
		t.Error("the signature is wrong")
	}
	// In parts, with a context; the query and the short buffer are no attempts.
	must(t, m.SignInit(h, Mechanism{CKM_EDDSA, &EdDSAParams{Ph: true, Context: []byte("ctx")}}, key))
	must(t, m.SignUpdate(h, []byte("t")))
	must(t, m.SignUpdate(h, []byte("wo")))
	out := Output{Query: true}
	must(t, m.SignFinal(h, &out))
	out = Output{Buf: make([]byte, 64)}
	must(t, m.SignFinal(h, &out))
	digested := sha512.Sum512([]byte("two"))
	if ed25519.VerifyWithOptions(public(), digested[:], out.Buf, &ed25519.Options{Hash: crypto.SHA512, Context: "ctx"}) != nil {
		t.Error("the second signature is wrong")
	}
	// A key of the session alone.
	session := importKey(t, m, h, no, "short-lived")
	sign(t, m, h, pure, session, []byte("three"))
	// Attempts that fail.
	must(t, m.SignInit(h, pure, key))
	s.Fail(func(memseal.Op) error { return fmt.Errorf("%w: a test", sealstore.ErrUnavailable) })
	want(t, CKR_DEVICE_ERROR, m.Sign(h, []byte("four"), &out))
	s.Fail(nil)
	must(t, m.SignInit(h, pure, key))
	must(t, m.Logout(h))
	want(t, CKR_USER_NOT_LOGGED_IN, m.Sign(h, []byte("five"), &out))

	digest := func(s string) string { d := sha256.Sum256([]byte(s)); return hex.EncodeToString(d[:]) }
	info, err := m.GetTokenInfo(0)
	must(t, err)
	base := audit.Record{Token: info.SerialNumber, TokenLabel: "test", Key: "0102", KeyLabel: "known", DID: did.Encode([32]byte(public())), Mechanism: "Ed25519", Outcome: "CKR_OK"}
	var wanted []audit.Record
	for _, w := range [][5]string{
		{"one", "Ed25519", "CKR_OK"}, {"two", "Ed25519ph", "CKR_OK"}, {"three", "Ed25519", "CKR_OK", hex.EncodeToString(public()), "short-lived"},
		{"four", "Ed25519", "CKR_DEVICE_ERROR"}, {"five", "Ed25519", "CKR_USER_NOT_LOGGED_IN"},
	} {
		r := base
		r.SHA256, r.Mechanism, r.Outcome = digest(w[0]), w[1], w[2]
		if w[3] != "" {
			r.Key, r.KeyLabel = w[3], w[4]
		}
		wanted = append(wanted, r)
	}
	got := records(t, path)
	for i := range got {
		r := &got[i]
		if r.Time == "" || r.PID != os.Getpid() || r.UID != os.Getuid() || r.Program != "p11.test" {
			t.Errorf("%+v", r)
		}
		r.Time, r.UID, r.EUID, r.User, r.PID, r.Program = "", 0, 0, "", 0, ""
	}
	if !slices.Equal(got, wanted) {
		t.Errorf("the log has\n%+v, not\n%+v", got, wanted)
	}
}

// TestAuditFailsClosed: without a record no signature leaves, neither as a
// result nor in the caller's memory.
func TestAuditFailsClosed(t *testing.T) {
	for name, keep := range map[string]time.Duration{"locked": 0, "unlocked": time.Hour} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "logs")
			m, _ := start(t, func(c *config.Config) {
				c.AuditLog, c.AutoLockTimeout = filepath.Join(dir, "audit"), keep
			})
			h := token(t, m)
			key := importKey(t, m, h, yes, "known")
			for range 2 {
				must(t, m.SignInit(h, pure, key))
				out := Output{Buf: make([]byte, 64)}
				err := m.Sign(h, []byte("m"), &out)
				want(t, CKR_FUNCTION_FAILED, err)
				if !strings.Contains(err.Error(), "nothing is signed meanwhile") || !bytes.Equal(out.Buf, make([]byte, 64)) {
					t.Errorf("%v, %x", err, out.Buf)
				}
			}
			must(t, os.Mkdir(dir, 0o700))
			sign(t, m, h, pure, key, []byte("m"))
			if n := len(records(t, filepath.Join(dir, "audit"))); n != 1 {
				t.Errorf("%d records", n)
			}
		})
	}
}

// TestStatistics: what the application does is in the figures after C_Finalize.
func TestStatistics(t *testing.T) {
	dir := t.TempDir()
	m, device := NewModule(), [32]byte{1}
	startWith(t, m, memseal.WithKey(device), dir, func(c *config.Config) { c.AutoLockTimeout = time.Hour })
	h := token(t, m)
	key := importKey(t, m, h, yes, "known")
	for range 3 {
		sign(t, m, h, pure, key, []byte("m"))
	}
	want(t, CKR_OPERATION_NOT_INITIALIZED, m.Sign(h, nil, &Output{}))
	must(t, m.SignInit(h, pure, key))
	must(t, m.Logout(h))
	want(t, CKR_USER_NOT_LOGGED_IN, m.Sign(h, nil, &Output{Buf: make([]byte, 64)}))
	want(t, CKR_PIN_INCORRECT, m.Login(h, CKU_USER, []byte("wrong")))
	want(t, CKR_PIN_INCORRECT, m.Login(h, CKU_SO, []byte("wrong")))
	store := m.lib.Load().store
	info, err := m.GetTokenInfo(0)
	must(t, err)
	must(t, m.Finalize())
	data, err := store.Statistics()
	must(t, err)
	f, err := stats.Decode(data)
	must(t, err)
	got := f.Tokens[info.SerialNumber]
	if got.LastLogin == 0 || got.LastSignature == 0 {
		t.Errorf("%+v", got)
	}
	got.LastLogin, got.LastSignature = 0, 0
	if got != (stats.Token{Signatures: 3, FailedSignatures: 1, Unseals: 1, Logins: 1, SOLogins: 1, WrongPINs: 1, WrongSOPINs: 1, KeysUnlocked: 1, KeysLocked: 1}) {
		t.Errorf("%+v", got)
	}

	// Who only looks writes nothing, and who wants no figures has none.
	before, err := os.Stat(filepath.Join(dir, "statistics"))
	must(t, err)
	for _, wanted := range []bool{true, false} {
		startWith(t, m, memseal.WithKey(device), dir, func(c *config.Config) { c.Statistics = wanted })
		h := open(t, m, 0)
		find(t, m, h)
		if !wanted {
			must(t, m.Login(h, CKU_USER, []byte(userPIN)))
		}
		must(t, m.Finalize())
	}
	if after, err := os.Stat(filepath.Join(dir, "statistics")); err != nil || !os.SameFile(before, after) {
		t.Errorf("the figures were written again: %v", err)
	}
}

// TestSigningAllocatesNothing: with the key unlocked, the figures being counted
// and no audit log.
func TestSigningAllocatesNothing(t *testing.T) {
	m, _ := start(t, func(c *config.Config) { c.AutoLockTimeout = time.Hour })
	h := token(t, m)
	key := importKey(t, m, h, yes, "known")
	sign(t, m, h, pure, key, []byte("m")) // unlocks it
	out := &Output{Buf: make([]byte, 64)}
	msg := []byte("a message")
	if n := testing.AllocsPerRun(100, func() {
		if err := m.SignInit(h, pure, key); err != nil {
			t.Fatal(err)
		}
		if err := m.Sign(h, msg, out); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
