package sshagent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // that of the agent package, which says less than ours
	os.Exit(m.Run())
}

// memory is a Token without a TPM. An empty PIN means that it needs none.
type memory struct {
	mu     sync.Mutex
	pin    string
	in     bool
	key    ed25519.PrivateKey
	logins int   // tries
	broken error // of a login
	spare  error // of MayTry
}

func newMemory(t testing.TB, pin string) *memory {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &memory{pin: pin, key: key}
}

func (m *memory) Login(pin []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.logins++
	if m.broken != nil {
		return m.broken
	}
	if string(pin) != m.pin {
		return ErrPIN
	}
	m.in = true
	return nil
}

func (m *memory) MayTry() error { return m.spare }

func (m *memory) Logout() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.in = false
	return nil
}

func (m *memory) loggedIn() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.in
}

func (m *memory) public() ed25519.PublicKey { return m.key.Public().(ed25519.PublicKey) }

func (m *memory) Keys() ([]Key, error) { return []Key{{m.public(), "identity"}}, nil }

func (m *memory) Sign(key ed25519.PublicKey, message []byte) ([]byte, error) {
	if !m.loggedIn() || !key.Equal(m.public()) {
		return nil, errors.New("not logged in, or another key")
	}
	return ed25519.Sign(m.key, message), nil
}

// secret is a PIN as a caller hands it over.
func secret(t testing.TB, s string) *secmem.Buffer {
	t.Helper()
	if s == "" {
		return nil
	}
	b, err := secmem.New(len(s))
	if err != nil {
		t.Fatal(err)
	}
	copy(b.Bytes(), s)
	return b
}

// logs is what an agent has logged.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logs) has(s string) bool { return strings.Contains(l.String(), s) }

// running is an agent that serves a socket until the test ends.
type running struct {
	*Agent
	token *memory
	path  string
	log   *logs
}

func start(t testing.TB, pin string, o Options) *running {
	t.Helper()
	r := &running{token: newMemory(t, pin), log: &logs{}}
	o.Name, o.PIN = "node", pin != ""
	o.Log = slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r.Agent = New(r.token, o)
	r.pause, r.memory = time.Nanosecond, 64
	dir, err := os.MkdirTemp("", "agent") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	r.path = filepath.Join(dir, "run", "s")
	l, err := Listen(r.path, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Login(secret(t, pin)); err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- r.Serve(l) }()
	t.Cleanup(func() {
		l.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
		r.Close()
		if r.token.loggedIn() || r.pin != nil || r.vault != nil {
			t.Error("something is left of the login")
		}
		if _, err := os.Lstat(r.path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left: %v", err)
		}
		os.RemoveAll(dir)
	})
	return r
}

func (r *running) dial(t testing.TB) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (r *running) client(t testing.TB) agent.ExtendedAgent { return agent.NewClient(r.dial(t)) }

// sign has a client sign, and checks what comes.
func (r *running) sign(t testing.TB, c agent.Agent, message string) error {
	t.Helper()
	key := Key{Public: r.token.public()}.ssh()
	sig, err := c.Sign(key, []byte(message))
	if err != nil {
		return err
	}
	if sig.Format != ssh.KeyAlgoED25519 || !ed25519.Verify(r.token.public(), []byte(message), sig.Blob) {
		t.Errorf("a signature of %s that is wrong", sig.Format)
	}
	return nil
}

func (r *running) served(t testing.TB, c agent.Agent) int {
	t.Helper()
	keys, err := c.List()
	if err != nil {
		t.Fatal(err)
	}
	return len(keys)
}

func TestSign(t *testing.T) {
	r := start(t, "1234", Options{})
	c := r.client(t)
	keys, err := c.List()
	if err != nil || len(keys) != 1 || keys[0].Comment != "identity" || keys[0].Format != ssh.KeyAlgoED25519 {
		t.Fatalf("%v, %v", keys, err)
	}
	if err := r.sign(t, c, "a message"); err != nil {
		t.Error(err)
	}
	other := Key{Public: newMemory(t, "").public()}.ssh()
	if _, err := c.Sign(other, []byte("x")); err == nil {
		t.Error("it signs with a key that it has not")
	}
	if !r.log.has("signed key=SHA256:") || r.log.has("a message") {
		t.Errorf("log: %s", r.log)
	}
}

// Keys get neither in nor out.
func TestKeysStay(t *testing.T) {
	r := start(t, "1234", Options{})
	c := r.client(t)
	if err := c.Add(agent.AddedKey{PrivateKey: newMemory(t, "").key}); err == nil {
		t.Error("a key was added")
	}
	if err := c.Add(agent.AddedKey{PrivateKey: newMemory(t, "").key, LifetimeSecs: 1}); err == nil {
		t.Error("a key was added for a while")
	}
	if err := c.Remove(Key{Public: r.token.public()}.ssh()); err == nil {
		t.Error("a key was removed")
	}
	if err := c.RemoveAll(); err == nil {
		t.Error("all keys were removed")
	}
	if n := r.served(t, c); n != 1 {
		t.Errorf("%d keys", n)
	}
	if !r.log.has("adds and deletes them") {
		t.Error("the log does not say why")
	}
	if _, err := c.Extension("query@example.org", nil); !errors.Is(err, agent.ErrExtensionUnsupported) {
		t.Errorf("an unknown extension: %v", err)
	}
}

func TestLock(t *testing.T) {
	for what, pin := range map[string]string{"with a PIN": "1234", "without a PIN": ""} {
		t.Run(what, func(t *testing.T) {
			r := start(t, pin, Options{})
			c := r.client(t)
			if err := c.Unlock([]byte("passphrase")); err == nil {
				t.Error("an agent that is not locked was unlocked")
			}
			if err := c.Lock(nil); err == nil {
				t.Error("locked by nothing")
			}
			if err := c.Lock([]byte("passphrase")); err != nil {
				t.Fatal(err)
			}
			if r.token.loggedIn() || r.pin != nil || pin != "" && bytes.Contains(r.vault.buf.Bytes(), []byte(pin)) {
				t.Error("the lock has left a login, or a PIN")
			}
			if n := r.served(t, c); n != 0 {
				t.Errorf("%d keys are listed", n)
			}
			if r.sign(t, c, "m") == nil {
				t.Error("signed while locked")
			}
			if c.Lock([]byte("other")) == nil {
				t.Error("locked twice")
			}
			tries := r.token.logins
			for _, wrong := range []string{"passphras", "1234", "", strings.Repeat("x", 2000)} {
				if c.Unlock([]byte(wrong)) == nil {
					t.Errorf("%q unlocks", wrong)
				}
			}
			if r.token.logins != tries {
				t.Error("a wrong passphrase went to the TPM")
			}
			if err := c.Unlock([]byte("passphrase")); err != nil {
				t.Fatal(err)
			}
			if err := r.sign(t, c, "m"); err != nil {
				t.Error(err)
			}
		})
	}
}

// Who locks with the PIN leaves nothing to be guessed at.
func TestLockByPIN(t *testing.T) {
	r := start(t, "1234", Options{})
	c := r.client(t)
	if err := c.Lock([]byte("1234")); err != nil {
		t.Fatal(err)
	}
	if r.vault != nil {
		t.Error("the PIN is kept")
	}
	for _, wrong := range []string{"123", strings.Repeat("x", 300)} {
		tries := r.token.logins
		if c.Unlock([]byte(wrong)) == nil || r.token.logins != tries {
			t.Errorf("a PIN of %d bytes went to the TPM", len(wrong))
		}
	}
	tries := r.token.logins
	if c.Unlock([]byte("4321")) == nil || r.token.logins != tries+1 {
		t.Error("a wrong PIN unlocks, or was not tried")
	}
	r.token.spare = errors.New("one more locks the TPM")
	if c.Unlock([]byte("1234")) == nil || r.token.logins != tries+1 {
		t.Error("the last try was used up")
	}
	r.token.spare = nil
	if err := c.Unlock([]byte("1234")); err != nil {
		t.Error(err)
	}
}

// A PIN that was changed while the agent was locked costs one try, and the new
// one unlocks.
func TestPINChanged(t *testing.T) {
	r := start(t, "1234", Options{})
	c := r.client(t)
	if err := c.Lock([]byte("passphrase")); err != nil {
		t.Fatal(err)
	}
	r.token.pin = "5678"
	tries := r.token.logins
	for range 2 {
		if c.Unlock([]byte("passphrase")) == nil {
			t.Error("unlocked by the old PIN")
		}
	}
	// The second passphrase is taken for a PIN, as it says.
	if n := r.token.logins - tries; n != 2 {
		t.Errorf("%d tries", n)
	}
	if err := c.Unlock([]byte("5678")); err != nil {
		t.Error(err)
	}
}

// Where the TPM is not there, the lock stays as it is.
func TestUnlockWithoutTPM(t *testing.T) {
	r := start(t, "1234", Options{})
	c := r.client(t)
	if err := c.Lock([]byte("passphrase")); err != nil {
		t.Fatal(err)
	}
	r.token.broken = errors.New("no TPM")
	if c.Unlock([]byte("passphrase")) == nil {
		t.Error("unlocked without a TPM")
	}
	r.token.broken = nil
	if err := c.Unlock([]byte("passphrase")); err != nil {
		t.Error(err)
	}
}

func TestBackOff(t *testing.T) {
	r := start(t, "1234", Options{})
	c := r.client(t)
	if err := c.Lock([]byte("1234")); err != nil {
		t.Fatal(err)
	}
	r.pause = time.Hour
	tries := r.token.logins
	for range 5 {
		if c.Unlock([]byte("4321")) == nil {
			t.Error("unlocked by a wrong PIN")
		}
	}
	if n := r.token.logins - tries; n != 1 {
		t.Errorf("%d tries went to the TPM", n)
	}
	if c.Unlock([]byte("1234")) == nil {
		t.Error("the right PIN is taken before its time, so wrong ones are tried, too")
	}
	if wait := r.notUntil - uptime(); wait < maxPause-time.Minute || wait > maxPause {
		t.Errorf("a pause of %v", wait)
	}
	r.notUntil = 0
	if err := c.Unlock([]byte("1234")); err != nil || r.failures != 0 {
		t.Errorf("%v, %d failures", err, r.failures)
	}
}

// waitFor waits until what another goroutine does has come about.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func TestTimeout(t *testing.T) {
	for name, o := range map[string]Options{"Timeout": {Timeout: 200 * time.Millisecond}, "LockAfter": {LockAfter: 200 * time.Millisecond}} {
		t.Run(name, func(t *testing.T) {
			r := start(t, "1234", o)
			c := r.client(t)
			// Without anybody asking for anything.
			waitFor(t, "the login has ended", func() bool { return !r.token.loggedIn() })
			if r.sign(t, c, "m") == nil || r.served(t, c) != 0 {
				t.Error("keys are usable after the time of the login")
			}
			if err := c.Unlock([]byte("1234")); err != nil {
				t.Error(err)
			}
		})
	}
}

// A login that is over ends at the next request even where the timer is late,
// as after the machine was suspended; use prolongs LockAfter, not Timeout.
func TestTimeoutIsChecked(t *testing.T) {
	r := start(t, "1234", Options{Timeout: time.Hour, LockAfter: time.Minute})
	c := r.client(t)
	back := func(since, used time.Duration) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.since, r.used = uptime()-since, uptime()-used
	}
	back(30*time.Minute, 50*time.Second)
	if err := r.sign(t, c, "m"); err != nil {
		t.Fatal(err)
	}
	if left, _ := r.left(); left < 59*time.Second {
		t.Errorf("%v are left after a signature", left)
	}
	back(30*time.Minute, time.Minute)
	if r.sign(t, c, "m") == nil || r.token.loggedIn() {
		t.Error("signed after LockAfter")
	}
	if err := c.Unlock([]byte("1234")); err != nil {
		t.Fatal(err)
	}
	back(time.Hour, 0)
	if r.sign(t, c, "m") == nil || r.token.loggedIn() {
		t.Error("signed after Timeout")
	}
}

func TestSSHOnly(t *testing.T) {
	r := start(t, "1234", Options{SSHOnly: true})
	c := r.client(t)
	if r.sign(t, c, "m") == nil {
		t.Error("signed what is not SSH's")
	}
	key := Key{Public: r.token.public()}.ssh()
	for what, m := range map[string][]byte{"a login": loginMessage(key, "me", nil), "a signature": sigMessage("git")} {
		if err := r.sign(t, c, string(m)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !r.log.has("for=ssh-login user=me") || !r.log.has("for=ssh-signature namespace=git") || !r.log.has("for=message") {
		t.Errorf("log: %s", r.log)
	}
}

func TestConfirm(t *testing.T) {
	var question string
	var answer error
	during := func() {}
	r := start(t, "1234", Options{Confirm: func(_ context.Context, q string) error {
		question = q
		during()
		return answer
	}})
	c := r.client(t)
	if err := r.sign(t, c, "m"); err != nil {
		t.Error(err)
	}
	for _, part := range []string{"identity", `of token "node"`, ssh.FingerprintSHA256(Key{Public: r.token.public()}.ssh()),
		"62c66a7a5dd70c3146618063c344e531e6d4b59e379808443ce962b3abd63c5a", "process"} {
		if !strings.Contains(question, part) {
			t.Errorf("%q is not in the question: %s", part, question)
		}
	}
	if strings.Contains(question, "SSH login") {
		t.Error(question)
	}
	answer = errDenied
	if r.sign(t, c, "m") == nil {
		t.Error("signed although it was denied")
	}
	if _, err := c.Sign(Key{Public: newMemory(t, "").public()}.ssh(), nil); err == nil || !strings.Contains(question, "For:") {
		t.Error("another key")
	}
	// Locked while the question is open.
	answer = nil
	during = func() {
		if err := r.client(t).Lock([]byte("passphrase")); err != nil {
			t.Error(err)
		}
	}
	if r.sign(t, c, "m") == nil {
		t.Error("signed although the agent was locked meanwhile")
	}
	question = ""
	if r.sign(t, c, "m") == nil || question != "" {
		t.Error("asked while locked")
	}
}

// Questions that are open keep nobody from listing, or from locking.
func TestConfirmBlocksNobody(t *testing.T) {
	asked := make(chan bool)
	r := start(t, "1234", Options{Confirm: func(ctx context.Context, q string) error {
		asked <- true
		<-ctx.Done()
		return ctx.Err()
	}})
	for range 2 {
		c := r.client(t)
		go c.Sign(Key{Public: r.token.public()}.ssh(), []byte("m"))
	}
	<-asked
	c := r.client(t)
	if n := r.served(t, c); n != 1 {
		t.Errorf("%d keys", n)
	}
	if err := c.Lock([]byte("passphrase")); err != nil {
		t.Error(err)
	}
}

// A question ends with who asked, and is not put when that has gone before.
func TestConfirmEndsWithClient(t *testing.T) {
	asked, ended := make(chan bool, 10), make(chan error, 10)
	r := start(t, "1234", Options{Confirm: func(ctx context.Context, q string) error {
		asked <- true
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return ctx.Err()
	}})
	first, second := r.dial(t), r.dial(t)
	go agent.NewClient(first).Sign(Key{Public: r.token.public()}.ssh(), []byte("m"))
	<-asked
	go agent.NewClient(second).Sign(Key{Public: r.token.public()}.ssh(), []byte("m"))
	waitFor(t, "both requests are at work", func() bool {
		r.clients.mu.Lock()
		defer r.clients.mu.Unlock()
		busy := 0
		for c := range r.clients.all {
			if c.idle == 0 {
				busy++
			}
		}
		return busy == 2
	})
	second.Close()
	first.Close()
	if err := <-ended; !errors.Is(err, errGone) {
		t.Error(err)
	}
	waitFor(t, "the second request is refused", func() bool { return strings.Count(r.log.String(), errGone.Error()) == 1 })
	if len(asked) > 0 {
		t.Error("asked for somebody who has gone")
	}
}

// stuck sends the beginning of a request, and no more.
func stuck(t testing.TB, c net.Conn, size uint32) {
	t.Helper()
	if _, err := c.Write(append(binary.BigEndian.AppendUint32(nil, size), 13)); err != nil {
		t.Fatal(err)
	}
}

func TestStuckClients(t *testing.T) {
	r := start(t, "1234", Options{})
	// More than there is room for, of several kinds.
	for i := range maxClients + 8 {
		if c := r.dial(t); i%2 == 0 {
			stuck(t, c, maxRequest)
		}
	}
	for range 3 {
		if err := r.sign(t, r.client(t), "m"); err != nil {
			t.Fatal(err)
		}
	}
	// One that does not take its answers.
	deaf := r.dial(t)
	deaf.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	for err := error(nil); err == nil; {
		_, err = deaf.Write([]byte{0, 0, 0, 1, 11})
	}
	if err := r.sign(t, r.client(t), "m"); err != nil {
		t.Fatal(err)
	}
}

func TestStalledRequestEnds(t *testing.T) {
	r := start(t, "1234", Options{})
	r.stall = 50 * time.Millisecond
	quiet := r.client(t)
	if n := r.served(t, quiet); n != 1 {
		t.Fatal(n)
	}
	c := r.dial(t)
	stuck(t, c, 100)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	// One between requests may take its time.
	if err := r.sign(t, quiet, "m"); err != nil {
		t.Error(err)
	}
}

func TestRequestsAreBounded(t *testing.T) {
	r := start(t, "1234", Options{})
	for _, size := range []uint32{0, maxRequest + 1, 1 << 31} {
		c := r.dial(t)
		stuck(t, c, size)
		if _, err := io.ReadAll(c); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%d: %v", size, err)
		}
	}
	c := r.client(t)
	const rest = 4 + 4 + 51 + 4 + 4 + 1 // of a request to sign
	if err := r.sign(t, c, strings.Repeat("x", maxRequest-rest)); err != nil {
		t.Errorf("the largest message: %v", err)
	}
	if r.sign(t, c, strings.Repeat("x", maxRequest)) == nil {
		t.Error("a message that is too large was signed")
	}
}

// FuzzRequests: whatever a client sends, the answers are frames of the
// protocol, and none tells a secret.
func FuzzRequests(f *testing.F) {
	key := Key{Public: newMemory(f, "").public()}.ssh()
	frame := func(b ...byte) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...) }
	f.Add(frame(11))
	f.Add(append(frame(1), frame(19)...))
	f.Add(frame(append([]byte{22}, ssh.Marshal(struct{ P []byte }{[]byte("passphrase")})...)...))
	f.Add(frame(append([]byte{13}, ssh.Marshal(struct {
		Key, Data []byte
		Flags     uint32
	}{key.Marshal(), []byte("m"), 0})...)...))
	f.Add(frame(append([]byte{27}, ssh.Marshal(struct {
		Name string
		Rest []byte `ssh:"rest"`
	}{bindExtension, bindingMessage(f, []byte("session"), true)})...)...))
	f.Add(frame(17, 0, 0, 0, 1, 'x'))
	r := start(f, "1234", Options{})
	r.log.buf.Grow(1 << 20)
	f.Fuzz(func(t *testing.T, sent []byte) {
		c := r.dial(t).(*net.UnixConn)
		done := make(chan bool)
		go func() {
			defer close(done)
			c.Write(sent)
			c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		<-done
		if err != nil && !strings.Contains(err.Error(), "reset") {
			t.Fatal(err)
		}
		if bytes.Contains(got, r.token.key.Seed()) {
			t.Fatal("the seed is in an answer")
		}
		for len(got) > 0 {
			if len(got) < 5 || uint64(binary.BigEndian.Uint32(got)) > uint64(len(got)-4) || got[:5][4] == 0 {
				t.Fatalf("no answer: %x", got)
			}
			got = got[4+binary.BigEndian.Uint32(got):]
		}
		// It may have been locked.
		r.mu.Lock()
		defer r.mu.Unlock()
		r.logout()
		if err := r.login(secret(t, "1234")); err != nil {
			t.Fatal(err)
		}
		r.log.buf.Reset()
	})
}
