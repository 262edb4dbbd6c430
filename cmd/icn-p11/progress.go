package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// barDelay is when the bar of a progress comes: a variable for the tests of slow
// TPMs.
var barDelay = time.Second

// barTick is how often the bar is drawn again.
const barTick = 100 * time.Millisecond

// progress tells the person who watches that a command is at work: step is
// told how much of it is done, end that all of it is, or that it has failed.
// What takes less than a second shows nothing, and so does what has no
// terminal to show it on, or prints JSON. While a question is open on the
// terminal no progress may run, and its end comes before what is printed. Inside
// another one it is part of that.
func (a *app) progress(what string) (step func(done, total int), end func()) {
	if a.bar.running() { // one line is enough
		return a.bar.step, func() {}
	}
	f, ok := a.err.(*os.File)
	if !ok || a.asJSON || !term.IsTerminal(int(f.Fd())) {
		return func(int, int) {}, func() {}
	}
	a.bar = startBar(f, what, func() int {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			return width
		}
		return 80 // a terminal that does not know, such as a serial line
	})
	return a.bar.step, a.bar.end
}

// bar draws a progress on the last line of a terminal. A nil bar has nothing
// to clear.
type bar struct {
	out   io.Writer
	what  string
	width func() int
	start time.Time

	mu          sync.Mutex
	done, total int
	drawn       int // columns on the screen
	stop        chan struct{}
	stopped     sync.WaitGroup
	once        sync.Once
}

func startBar(out io.Writer, what string, width func() int) *bar {
	b := &bar{out: out, what: what, width: width, start: time.Now(), stop: make(chan struct{})}
	b.stopped.Go(b.run)
	return b
}

func (b *bar) run() {
	t := time.NewTimer(barDelay)
	defer t.Stop()
	for {
		select {
		case <-b.stop:
			b.clear()
			return
		case <-t.C:
			b.draw()
			t.Reset(barTick)
		}
	}
}

func (b *bar) step(done, total int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done, b.total = done, total
}

func (b *bar) running() bool {
	if b == nil {
		return false
	}
	select {
	case <-b.stop:
		return false
	default:
		return true
	}
}

// end takes the bar away; it may be called again.
func (b *bar) end() {
	b.once.Do(func() { close(b.stop) })
	b.stopped.Wait()
}

func (b *bar) draw() {
	b.mu.Lock()
	defer b.mu.Unlock()
	// One column less than there are: a full line would move the cursor down.
	b.show(b.line(b.width()-1, time.Since(b.start)))
}

// clear gives the line back to what is written next.
func (b *bar) clear() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.drawn > 0 {
		b.show("")
	}
}

// show writes a line over the one before, without control sequences, which
// not every terminal knows.
func (b *bar) show(line string) {
	text := "\r" + line
	if n := len([]rune(line)); n < b.drawn {
		text += strings.Repeat(" ", b.drawn-n) + "\r" + line
	}
	b.drawn = len([]rune(line))
	io.WriteString(b.out, text)
}

// line makes the text: a bar with numbers where it is known how much there is
// to do, else a spinner with the time that has passed.
func (b *bar) line(room int, passed time.Duration) string {
	text := fmt.Sprintf("%s %c %d s", b.what, `|/-\`[int(passed/barTick)%4], int(passed.Seconds()))
	if b.total > 0 {
		done := min(max(b.done, 0), b.total)
		head, tail := b.what+" [", fmt.Sprintf("] %d of %d", done, b.total)
		// A bar of some columns tells more than its frame.
		cells := min(room-len([]rune(head+tail)), 40)
		full := cells * done / b.total
		text = b.what + " " + strings.TrimPrefix(tail, "] ")
		if cells >= 5 {
			text = head + strings.Repeat("#", full) + strings.Repeat(".", cells-full) + tail
		}
	}
	if r := []rune(text); len(r) > room {
		text = string(r[:max(room, 0)])
	}
	return text
}
