package pinsource

import (
	"crypto/rand"
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/memscantest"
)

// A PIN that was read is in secret memory alone: not in the registers either,
// which a signal has the kernel save on a stack.
func TestNotInMemoryOnceRead(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for range 10 {
		line := make([]byte, 25)
		rand.Read(line)
		for i, b := range line {
			line[i] = 'a' + b%26
		}
		line[24] = '\n'
		needle := memscantest.Mask("a PIN", line[:24])
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(line); err != nil {
			t.Fatal(err)
		}
		clear(line)
		w.Close()
		src, err := Parse(fmt.Sprintf("fd:%d", r.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		buf, err := src.Read("PIN", true)
		memscantest.Interrupt()
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range memscantest.Scan(t, os.Getpid(), []memscantest.Needle{needle}) {
			if !h.Locked {
				t.Error(h)
			}
		}
		buf.Destroy()
		r.Close()
	}
}
