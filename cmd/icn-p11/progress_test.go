package main

import (
	"bytes"
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

// shown collects what a program shows on a terminal until it closes it.
func shown(t *testing.T, f func(program *os.File)) string {
	t.Helper()
	user, program := terminal(t)
	var all bytes.Buffer
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(&all, user) }) // EIO tells the end
	f(program)
	program.Close()
	wg.Wait()
	return all.String()
}

func TestProgressIsForTerminals(t *testing.T) {
	work := func(a *app) {
		step, end := a.progress("Working")
		defer end()
		step(1, 3)
		time.Sleep(barDelay + 5*barTick)
		a.note("a note")
	}
	out := shown(t, func(program *os.File) { work(&app{err: program}) })
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
	if out := shown(t, func(program *os.File) { work(&app{err: program, asJSON: true}) }); out != "a note\r\n" {
		t.Errorf("with --json: %q", out)
	}
	var buf bytes.Buffer
	work(&app{err: &buf})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	work(&app{err: w})
	w.Close()
	piped, err := io.ReadAll(r)
	if err != nil || string(piped) != "a note\n" || buf.String() != "a note\n" {
		t.Errorf("without a terminal: %q and %q, %v", piped, &buf, err)
	}
}

// What keeps the TPM busy shows that it does on a terminal, and there alone.
func TestSlowTPM(t *testing.T) {
	b := newBench(t)
	b.must(`
		init --label node
		key generate node --label second
		key generate node --label third`)
	proxy := swtpmtest.StartProxy(t, b.tpm)
	if err := writeConf(b.conf, proxy.Device(), b.store); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("seed", bytes.Repeat([]byte("s"), 32), 0o600); err != nil {
		t.Fatal(err)
	}
	// The bar has come before the slow answer does.
	const late = barDelay + 5*barTick
	var first atomic.Bool  // the next command is slow
	var slow atomic.Uint32 // this command always is
	proxy.Decide(func(code tpm2.TPMCC, answer []byte) []byte {
		if first.Swap(false) {
			time.Sleep(late)
		}
		if code == tpm2.TPMCC(slow.Load()) {
			time.Sleep(late / 3)
		}
		return answer
	})
	for _, c := range []struct {
		command string
		slow    tpm2.TPMCC // 0: the first
		what    string
		note    string // the last line; "" for none
	}{
		{"init --label slower", tpm2.TPMCCCreate, atTPM + " ", "Key icn-identity, sealed to the TPM at " + proxy.Device()},
		{"key generate node --label fourth", 0, atTPM + " ", "in token node"},
		{"import node seed --label imported", 0, atTPM + " ", "into token node"},
		{"pcr bind node --event-log nowhere", tpm2.TPMCCCreate, "Binding [", "as they are now"},
		{"pcr show node", 0, atTPM + " ", ""},
		{"pcr unbind node", tpm2.TPMCCCreate, "Unbinding [", "not bound to PCRs any more"},
		{"token rename node other", 0, atTPM + " ", "is called other"},
		{"show other", 0, atTPM + " ", ""},
		{"list", 0, atTPM + " ", ""},
		{"srk persist", 0, atTPM + " ", "Name 000b"},
		{"doctor", 0, "Checking ", ""},
	} {
		args := b.withPINs(strings.Fields(c.command))
		first.Store(c.slow == 0)
		slow.Store(uint32(c.slow))
		var stdout bytes.Buffer
		out := shown(t, func(program *os.File) { run(args, &stdout, program) })
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
	first.Store(true)
	if status, stdout, stderr := b.run("did", "other"); status != exitOK || stderr != "" || strings.Count(stdout, "\n") != 1 {
		t.Errorf("without a terminal: status %d, %q, %q", status, stdout, stderr)
	}
	first.Store(true)
	if out := shown(t, func(program *os.File) { run([]string{"show", "other", "--json"}, io.Discard, program) }); out != "" {
		t.Errorf("with --json: %q", out)
	}
}
