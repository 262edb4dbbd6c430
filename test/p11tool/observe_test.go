package p11tool

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
)

func init() { workers["sign-at-signal"] = signAtSignal }

// signAtSignal logs in and says that it is ready; for each byte on its standard
// input it then makes a signature and says so, and at the end of the input it
// leaves as a program should.
func signAtSignal([]string) error {
	c, s, err := loginWorker("test token")
	if err != nil {
		return err
	}
	keys, err := find(c, s, privateKeys)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for in := bufio.NewReader(os.Stdin); ; {
		if _, err := in.ReadByte(); err == io.EOF {
			return c.Finalize()
		} else if err != nil {
			return err
		}
		if _, err := sign(c, s, keys[0], []byte("message")); err != nil {
			return err
		}
		fmt.Println("signed")
	}
}

// signer is a running worker of that kind.
type signer struct {
	gate io.WriteCloser
	out  *bufio.Reader
	errs *bytes.Buffer
	kill func() error
	wait func() error
}

func startSigner(t *testing.T) *signer {
	t.Helper()
	cmd := worker(t, "sign-at-signal")
	s := &signer{errs: &bytes.Buffer{}, wait: cmd.Wait}
	cmd.Stderr = s.errs
	var err error
	s.gate, err = cmd.StdinPipe()
	ok(t, "pipe", err)
	out, err := cmd.StdoutPipe()
	ok(t, "pipe", err)
	s.out = bufio.NewReader(out)
	ok(t, "start", cmd.Start())
	s.kill = cmd.Process.Kill
	s.says(t, "ready")
	return s
}

func (s *signer) says(t *testing.T, what string) {
	t.Helper()
	if line, err := s.out.ReadString('\n'); err != nil || line != what+"\n" {
		s.wait()
		t.Fatalf("%q, %v\n%s", line, err, s.errs)
	}
}

// counted is what the statistics say of the only token.
type counted struct {
	Signatures, Unseals, Logins uint64
	WrongPINs                   uint64 `json:"wrong_pins"`
}

// statistics reads the file of the store; a token that is not in it has zeros.
func (p *place) statistics(t *testing.T) (c counted) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(p.store(), "statistics"))
	if os.IsNotExist(err) {
		return c
	}
	ok(t, "statistics", err)
	if len(data) == 0 { // just being made
		return c
	}
	var f struct {
		Version int
		Tokens  map[string]counted
	}
	ok(t, fmt.Sprintf("statistics: %q", data), json.Unmarshal(data, &f))
	if f.Version != 1 || len(f.Tokens) != 1 {
		t.Fatalf("statistics: %s", data)
	}
	for _, c = range f.Tokens {
	}
	return c
}

// TestStatisticsOfProcesses has several processes sign with one token at once:
// every signature is counted.
func TestStatisticsOfProcesses(t *testing.T) {
	isolated(t, setup{autoLock: 60}, func(t *testing.T, p *place) {
		readOnlyToken(t)
		before := p.statistics(t)
		const processes, each = 4, 50
		var all []*signer
		for range processes {
			all = append(all, startSigner(t))
		}
		for _, s := range all {
			_, err := s.gate.Write(make([]byte, each))
			ok(t, "write", err)
			ok(t, "close", s.gate.Close())
		}
		for _, s := range all {
			for range each {
				s.says(t, "signed")
			}
			if err := s.wait(); err != nil {
				t.Errorf("%v\n%s", err, s.errs)
			}
		}
		got := p.statistics(t)
		if n := got.Signatures - before.Signatures; n != processes*each {
			t.Errorf("%d signatures are counted, not %d", n, processes*each)
		}
		if n := got.Logins - before.Logins; n != processes {
			t.Errorf("%d logins are counted, not %d", n, processes)
		}
		if n := got.Unseals - before.Unseals; n != processes { // each keeps the key unlocked
			t.Errorf("%d unseals are counted, not %d", n, processes)
		}
	})
}

// TestStatisticsOfKilled has a process killed: what it counted more than five
// seconds before is there, and the file serves the next one.
func TestStatisticsOfKilled(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		readOnlyToken(t)
		before := p.statistics(t).Signatures
		wait := func(n uint64) {
			t.Helper()
			for deadline := time.Now().Add(time.Minute); p.statistics(t).Signatures != before+n; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%d signatures are counted, not %d", p.statistics(t).Signatures-before, n)
				}
			}
		}
		s := startSigner(t)
		for range 3 {
			_, err := s.gate.Write([]byte{1})
			ok(t, "write", err)
			s.says(t, "signed")
		}
		wait(3) // without logout or C_Finalize
		_, err := s.gate.Write([]byte{1})
		ok(t, "write", err)
		s.says(t, "signed")
		ok(t, "kill", s.kill())
		s.wait()
		got := p.statistics(t).Signatures - before
		if got != 3 && got != 4 {
			t.Errorf("%d signatures are counted", got)
		}
		s = startSigner(t)
		_, err = s.gate.Write([]byte{1, 1})
		ok(t, "write", err)
		ok(t, "close", s.gate.Close())
		ok(t, "the next process", s.wait())
		wait(got + 2)
		left, err := filepath.Glob(filepath.Join(p.store(), ".tmp-*"))
		ok(t, "glob", err)
		if len(left) > 0 {
			t.Errorf("left over: %v", left)
		}
	})
}

// auditRecord is a line of the audit log.
type auditRecord struct {
	Time                             string
	PID                              int
	Program                          string
	Token, Key, DID                  string
	TokenLabel                       string `json:"token_label"`
	KeyLabel                         string `json:"key_label"`
	Mechanism, SHA256, Outcome, User string
	UID, EUID                        int
}

// audited reads the audit log.
func audited(t *testing.T, path string) (all []auditRecord) {
	t.Helper()
	data, err := os.ReadFile(path)
	ok(t, "audit log", err)
	for line := range bytes.Lines(data) {
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		var r auditRecord
		ok(t, string(line), d.Decode(&r))
		all = append(all, r)
	}
	return all
}

// TestAuditLog has signatures made by every function that makes one, by several
// processes, and refused.
func TestAuditLog(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		path := filepath.Join(p.dir, "audit")
		p.writeConf(t, "swtpm:path="+p.tpm, setup{extra: "audit_log = " + strconv.Quote(path) + "\n"})
		c := newToken(t)
		pub, priv := c.generate("identity", true)
		key, err := point(c.Ctx, c.s, pub)
		ok(t, "point", err)
		info, err := c.GetTokenInfo(c.slot)
		ok(t, "C_GetTokenInfo", err)
		if _, err := os.Lstat(path); err == nil {
			t.Error("there is an audit log before the first signature")
		}

		var messages []string
		ok(t, "sign", signChecked(c.Ctx, c.s, priv, key, []byte("first secret message")))
		messages = append(messages, "first secret message")
		ok(t, "C_SignInit", c.SignInit(c.s, mech(ckmEdDSA), priv))
		for _, part := range []string{"second ", "secret ", "message"} {
			ok(t, "C_SignUpdate", c.SignUpdate(c.s, []byte(part)))
		}
		sig, err := c.SignFinal(c.s)
		ok(t, "C_SignFinal", err)
		messages = append(messages, "second secret message")
		if !ed25519.Verify(key, []byte("second secret message"), sig) {
			t.Error("the signature in parts is wrong")
		}
		ok(t, "C_SignInit", c.SignInit(c.s, mech(ckmEdDSA), priv))
		ok(t, "C_Logout", c.Logout(c.s))
		_, err = c.Sign(c.s, []byte("third"))
		want(t, "C_Sign after C_Logout", err, pkcs11.CKR_USER_NOT_LOGGED_IN)
		messages = append(messages, "third")
		data, err := os.ReadFile(path)
		ok(t, "audit log", err)
		if strings.Contains(string(data), "message") || strings.Contains(string(data), userPIN) {
			t.Errorf("the audit log tells too much: %s", data)
		}

		got := audited(t, path)
		if len(got) != len(messages) {
			t.Fatalf("%d records: %s", len(got), data)
		}
		for i, r := range got {
			digest := sha256.Sum256([]byte(messages[i]))
			outcome := "CKR_OK"
			if i == 2 {
				outcome = "CKR_USER_NOT_LOGGED_IN"
			}
			at, err := time.Parse(time.RFC3339Nano, r.Time)
			if err != nil || time.Since(at) > time.Hour || r.PID != os.Getpid() || r.UID != os.Getuid() || r.Program != filepath.Base(os.Args[0]) ||
				r.Token != info.SerialNumber || r.TokenLabel != "test token" || r.Key != hex.EncodeToString(key) || r.KeyLabel != "identity" ||
				!strings.HasPrefix(r.DID, "did:icn:z") || r.Mechanism != "Ed25519" || r.SHA256 != hex.EncodeToString(digest[:]) || r.Outcome != outcome {
				t.Errorf("record %d: %+v, %v", i, r, err)
			}
		}

		// Several processes write into one file.
		const processes, each = 3, 20
		var all []*signer
		for range processes {
			all = append(all, startSigner(t))
		}
		for _, s := range all {
			_, err := s.gate.Write(make([]byte, each))
			ok(t, "write", err)
			ok(t, "close", s.gate.Close())
		}
		for _, s := range all {
			ok(t, "sign", s.wait())
		}
		by := map[int]int{}
		for _, r := range audited(t, path) {
			by[r.PID]++
		}
		if len(by) != processes+1 {
			t.Errorf("records by %v", by)
		}
		for pid, n := range by {
			if pid != os.Getpid() && n != each {
				t.Errorf("%d records by %d", n, pid)
			}
		}

		// Nothing is signed that cannot be written down.
		ok(t, "remove", os.Remove(path))
		ok(t, "mkdir", os.Mkdir(path, 0o700))
		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, userPIN))
		priv = c.find(privateKeys)[0]
		_, err = sign(c.Ctx, c.s, priv, []byte("x"))
		if err == nil || !strings.Contains(err.Error(), "CKR_FUNCTION_FAILED") {
			t.Errorf("without an audit log: %v", err)
		}
		log, err := os.ReadFile(p.log())
		ok(t, "log", err)
		if !bytes.Contains(log, []byte(`level=ERROR msg="nothing is signed without an audit record"`)) || !bytes.Contains(log, []byte("is a directory: let this user write audit_log")) {
			t.Errorf("the log does not tell why:\n%s", tail(log, 2000))
		}
		ok(t, "rmdir", os.Remove(path))
		ok(t, "sign", signChecked(c.Ctx, c.s, priv, key, []byte("again")))
	})
}
