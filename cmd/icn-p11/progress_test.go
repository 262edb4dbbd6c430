package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
)

func TestBarLine(t *testing.T) {
	for _, c := range []struct {
		done, total, room int
		passed            time.Duration
		want              string
	}{
		{0, 0, 79, 0, "Binding | 0 s"},
		{0, 0, 79, 2300 * time.Millisecond, `Binding \ 2 s`},
		{0, 0, 79, 75 * time.Second, "Binding - 75 s"},
		{0, 4, 79, 0, "Binding [" + strings.Repeat(".", 40) + "] 0 of 4"},
		{1, 4, 79, 0, "Binding [" + strings.Repeat("#", 10) + strings.Repeat(".", 30) + "] 1 of 4"},
		{4, 4, 79, 0, "Binding [" + strings.Repeat("#", 40) + "] 4 of 4"},
		{1, 2, 27, 0, "Binding [#####.....] 1 of 2"},
		{1, 2, 20, 0, "Binding 1 of 2"},
		{1, 2, 5, 0, "Bindi"},
		{1, 2, -1, 0, ""},
		{9, 4, 20, 0, "Binding 4 of 4"},
		{-1, 4, 20, 0, "Binding 0 of 4"},
	} {
		b := &bar{what: "Binding", done: c.done, total: c.total}
		if got := b.line(c.room, c.passed); got != c.want {
			t.Errorf("%d of %d in %d columns: %q, want %q", c.done, c.total, c.room, got, c.want)
		}
	}
}

// screen is what a terminal shows after these bytes, on its last line.
func screen(text string) string {
	text = text[strings.LastIndex(text, "\n")+1:]
	var line []rune
	at := 0
	for _, r := range text {
		if r == '\r' {
			at = 0
			continue
		}
		if at == len(line) {
			line = append(line, r)
		} else {
			line[at] = r
		}
		at++
	}
	return strings.TrimRight(string(line), " ")
}

func TestBarComesAfterASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		b := startBar(&out, "Binding", func() int { return 80 })
		at := func(d time.Duration) string {
			time.Sleep(d - time.Since(b.start))
			synctest.Wait()
			b.mu.Lock()
			defer b.mu.Unlock()
			return screen(out.String())
		}
		if got := at(barDelay - 1); got != "" {
			t.Errorf("before its time: %q", got)
		}
		if got := at(barDelay); got != "Binding - 1 s" {
			t.Errorf("after a second: %q", got)
		}
		b.step(1, 2)
		if got := at(barDelay + barTick); !strings.HasSuffix(got, "] 1 of 2") {
			t.Errorf("after a step: %q", got)
		}
		b.step(0, 0)
		if got := at(barDelay + 2*barTick); got != "Binding / 1 s" && got != "Binding | 1 s" && got != `Binding \ 1 s` {
			t.Errorf("what was longer is left: %q", got)
		}
		b.clear()
		if got := screen(out.String()); got != "" {
			t.Errorf("a cleared line: %q", got)
		}
		b.end()
		b.end()
		if got := screen(out.String()); got != "" {
			t.Errorf("at the end: %q", got)
		}
		n := out.Len()
		time.Sleep(time.Minute)
		if out.Len() != n {
			t.Error("it goes on after its end")
		}
	})
}

// terminal opens a pseudo terminal, and gives its user's end.
func terminal(t *testing.T) (user, program *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { user.Close() })
	fd := int(user.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 60}); err != nil {
		t.Fatal(err)
	}
	return user, program
}

// shown collects what a program shows on a terminal until it closes it. await
// waits until a text has been shown, and for a long time at the most: what it is
// told about shall come however slow this machine is.
func shown(t *testing.T, f func(program *os.File, await func(text string))) string {
	t.Helper()
	user, program := terminal(t)
	var mu sync.Mutex
	var all bytes.Buffer
	more := sync.NewCond(&mu)
	var wg sync.WaitGroup
	wg.Go(func() {
		p := make([]byte, 4096)
		for {
			n, err := user.Read(p) // EIO tells the end
			mu.Lock()
			all.Write(p[:n])
			mu.Unlock()
			more.Broadcast()
			if err != nil {
				return
			}
		}
	})
	f(program, func(text string) {
		late := false
		timer := time.AfterFunc(20*time.Second, func() {
			mu.Lock()
			late = true
			mu.Unlock()
			more.Broadcast()
		})
		defer timer.Stop()
		mu.Lock()
		defer mu.Unlock()
		for !late && !strings.Contains(all.String(), text) {
			more.Wait()
		}
	})
	program.Close()
	wg.Wait()
	return all.String()
}

func TestProgressIsForTerminals(t *testing.T) {
	work := func(a *app, wait func()) {
		step, end := a.progress("Working")
		defer end()
		step(1, 3)
		wait()
		a.note("a note")
	}
	long := func() { time.Sleep(barDelay + 5*barTick) }
	out := shown(t, func(program *os.File, await func(string)) {
		work(&app{err: program}, func() { await("] 1 of 3") })
	})
	if !strings.Contains(out, "\rWorking [") || !strings.Contains(out, "] 1 of 3") {
		t.Errorf("a terminal shows no progress: %q", out)
	}
	lines := strings.SplitAfter(out, "\n")
	if len(lines) < 2 || screen(strings.TrimSuffix(lines[0], "\r\n")) != "a note" {
		t.Errorf("the note shares its line: %q", out)
	}
	if got := screen(out); got != "" {
		t.Errorf("left on the terminal: %q", got)
	}
	if out := shown(t, func(program *os.File, _ func(string)) { work(&app{err: program, asJSON: true}, long) }); out != "a note\r\n" {
		t.Errorf("with --json: %q", out)
	}
	var buf bytes.Buffer
	work(&app{err: &buf}, long)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	work(&app{err: w}, long)
	w.Close()
	piped, err := io.ReadAll(r)
	if err != nil || string(piped) != "a note\n" || buf.String() != "a note\n" {
		t.Errorf("without a terminal: %q and %q, %v", piped, &buf, err)
	}
}

// slowVerbs are command lines that ask the TPM, in an order in which each can
// run, on the bench that TestSlowTPM makes ready: at least one of each verb.
var slowVerbs = []struct {
	command string
	slow    tpm2.TPMCC // the command of the TPM that takes long, each time; 0: the first one, once
	what    string
	note    string // the last line; "" for none
}{
	{"init --label slower", tpm2.TPMCCCreate, atTPM + " ", "Key icn-identity, sealed to the TPM at "},
	{"key generate node --label fourth", 0, atTPM + " ", "in token node"},
	{"key list node", 0, atTPM + " ", ""},
	{"key show node fourth", 0, atTPM + " ", ""},
	{"key export-public node fourth", 0, atTPM + " ", ""},
	{"key rename node fourth fifth", 0, atTPM + " ", "is called fifth"},
	{"key delete node fifth --yes", 0, atTPM + " ", "Key fifth is deleted"},
	{"import node seed --label imported", 0, atTPM + " ", "into token node"},
	{"cert request node --subject CN=node", 0, atTPM + " ", ""},
	{"cert import node certificate", 0, atTPM + " ", "icn-identity"},
	{"cert export node", 0, atTPM + " ", ""},
	{"sign node message --out signature", 0, atTPM + " ", ""},
	{"attest node --nonce " + nonce, 0, atTPM + " ", ""},
	{"attest respond node challenge", 0, atTPM + " ", ""},
	{"pin node --pin-source env:USER_PIN --new-pin-source env:USER_PIN", 0, atTPM + " ", "The user PIN of token node is set"},
	{"pcr bind node --event-log nowhere", tpm2.TPMCCCreate, "Binding [", "as they are now"},
	{"pcr show node", 0, atTPM + " ", ""},
	{"pcr rebind node --event-log nowhere", 0, atTPM + " ", "as they are now"},
	{"pcr confirm node", 0, atTPM + " ", "in the present state alone"},
	{"pcr unbind node", tpm2.TPMCCCreate, "Unbinding [", "not bound to PCRs any more"},
	{"backup create node --out node.backup --passphrase-source env:PASSPHRASE", 0, atTPM + " ", "is backed up to node.backup"},
	{"backup restore lost.backup --passphrase-source env:PASSPHRASE", tpm2.TPMCCCreate, "Restoring ", "It is in slot "},
	{"export-icn-blob leaving --out blob", 0, atTPM + " ", "whoever can read it"},
	{"migrate offer --out new.offer", 0, "Asking the TPM ", "Its fingerprint"},
	{"migrate send leaving --to there.offer --out again.parcel --fingerprint FINGERPRINT", 0, atTPM + " ", "icn-p11 migrate accept"},
	{"migrate accept here.parcel", 0, "Opening ", "has arrived"},
	{"migrate finish leaving there.parcel.proof --yes", 0, atTPM + " ", "is deleted here"},
	{"token rename node other", 0, atTPM + " ", "is called other"},
	{"token delete slower --yes", 0, atTPM + " ", "is deleted"},
	{"show other", 0, atTPM + " ", ""},
	{"list", 0, atTPM + " ", ""},
	{"did other", 0, atTPM + " ", ""},
	{"status other", 0, atTPM + " ", "Counted in "},
	{"metrics", 0, atTPM + " ", ""},
	{"lockout show", 0, atTPM + " ", ""},
	{"lockout reset", 0, atTPM + " ", "has forgotten 0 wrong PINs"},
	{"srk persist", 0, atTPM + " ", "Name 000b"},
	{"srk show", 0, atTPM + " ", ""},
	{"srk evict", 0, atTPM + " ", "when it is needed"},
	{"doctor", 0, "Checking ", ""},
}

// quickVerbs are those that slowVerbs has none of, with the reason.
var quickVerbs = map[string]string{
	"agent":            "serves until it is stopped; what it waits for goes to its log",
	"agent list":       "asks an agent, and no TPM",
	"agent sign":       "asks an agent, and no TPM",
	"attest challenge": "takes no TPM",
	"attest verify":    "takes no TPM",
	"backup verify":    "takes no TPM",
	"did resolve":      "takes no TPM",
	"migrate cancel":   "reads and removes a file",
	"migrate list":     "reads files",
	"migrate withdraw": "removes a file",
	"verify":           "takes no TPM",
	"version":          "takes no TPM",
}

// What keeps the TPM busy shows that it does on a terminal, and there alone.
func TestSlowTPM(t *testing.T) {
	b := newBench(t)
	t.Setenv("PASSPHRASE", "correct horse battery staple")
	b.must(`
		init --label node
		key generate node --label second
		key generate node --label third
		init --label lost --recoverable
		backup create lost --out lost.backup --passphrase-source env:PASSPHRASE
		token delete lost --yes`)
	status, certificate, stderr := b.run("cert", "request", "node", "--subject", "CN=node", "--self-signed")
	if status != exitOK {
		t.Fatal(stderr)
	}
	for name, data := range map[string]string{
		"message": "a message", "seed": strings.Repeat("s", 32), "certificate": certificate, "evidence": b.evidence("node"),
	} {
		if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.must("attest challenge evidence --out challenge --state state")
	b.migrations()
	offer, err := os.ReadFile("there.offer")
	if err != nil {
		t.Fatal(err)
	}
	fingerprint := fmt.Sprintf("%x", sha256.Sum256(offer))
	proxy := swtpmtest.StartProxy(t, b.tpm)
	conf, err := os.ReadFile(b.conf)
	if err == nil {
		err = os.WriteFile(b.conf, bytes.ReplaceAll(conf, []byte(b.tpm.Device()), []byte(proxy.Device())), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func(d time.Duration) { barDelay = d }(barDelay)
	barDelay = barTick

	var first atomic.Bool  // the next command is slow
	var slow atomic.Uint32 // this command always is
	var until atomic.Pointer[func()]
	proxy.Decide(func(code tpm2.TPMCC, answer []byte) []byte {
		switch {
		case first.Swap(false):
			(*until.Load())() // the bar comes before the answer does
		case code == tpm2.TPMCC(slow.Load()):
			time.Sleep(3 * barTick) // the bar tells of a step that is done, so that none can wait for it
		}
		return answer
	})
	long := func() { time.Sleep(barDelay + 5*barTick) }
	seen := map[string]bool{}
	all := verbs(t)
	for _, c := range slowVerbs {
		args := b.withPINs(strings.Fields(strings.ReplaceAll(c.command, "FINGERPRINT", fingerprint)))
		verb, _, err := (&app{out: io.Discard, err: io.Discard}).root().Find(args)
		if err != nil {
			t.Fatal(err)
		}
		seen[strings.TrimPrefix(verb.CommandPath(), "icn-p11 ")] = true
		first.Store(c.slow == 0)
		slow.Store(uint32(c.slow))
		var stdout bytes.Buffer
		var status int
		out := shown(t, func(program *os.File, await func(string)) {
			wait := func() { await("\r" + c.what) }
			until.Store(&wait)
			status = run(args, &stdout, program)
		})
		if status != exitOK {
			t.Errorf("%s: status %d, %q", c.command, status, out)
		}
		if !strings.Contains(out, "\r"+c.what) {
			t.Errorf("%s: no progress in %q", c.command, out)
		}
		if got := screen(strings.TrimSuffix(out, "\r\n")); !strings.Contains(got, c.note) || c.note == "" && got != "" || strings.Contains(got, c.what) {
			t.Errorf("%s: the terminal shows %q", c.command, got)
		}
		if strings.Contains(stdout.String(), c.what) {
			t.Errorf("%s: progress in the output: %q", c.command, &stdout)
		}
	}
	for name := range all {
		if _, quick := quickVerbs[name]; quick == seen[name] {
			t.Errorf("%s: either slowVerbs has it, or quickVerbs with the reason", name)
		}
	}
	for name := range quickVerbs {
		if all[name] == nil {
			t.Errorf("there is no verb %s", name)
		}
	}
	slow.Store(0)
	until.Store(&long)
	first.Store(true)
	if status, stdout, stderr := b.run("did", "other"); status != exitOK || stderr != "" || strings.Count(stdout, "\n") != 1 {
		t.Errorf("without a terminal: status %d, %q, %q", status, stdout, stderr)
	}
	first.Store(true)
	if out := shown(t, func(program *os.File, _ func(string)) { run([]string{"show", "other", "--json"}, io.Discard, program) }); out != "" {
		t.Errorf("with --json: %q", out)
	}
}
