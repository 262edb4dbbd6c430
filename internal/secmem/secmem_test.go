package secmem

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestBuffer(t *testing.T) {
	for _, n := range []int{0, -1, Max + 1} {
		if _, err := New(n); err == nil {
			t.Errorf("New(%d) succeeded", n)
		}
	}
	b, err := New(32)
	if err != nil {
		t.Fatal(err)
	}
	p := b.Bytes()
	if len(p) != 32 || cap(p) != 32 {
		t.Fatalf("len %d cap %d", len(p), cap(p))
	}
	copy(p, "secret")
	b.Destroy()
	b.Destroy()
	(*Buffer)(nil).Destroy()
	if b.Bytes() != nil {
		t.Error("a destroyed buffer has bytes")
	}
	c, err := New(Max)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Destroy()
	if !bytes.Equal(c.Bytes(), make([]byte, Max)) {
		t.Error("a recycled page is not zero")
	}
}

// A page comes from memfd_secret wherever the kernel offers it.
func TestKind(t *testing.T) {
	b, err := New(32)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Destroy()
	_, _, errno := unix.Syscall(unix.SYS_MEMFD_SECRET, ^uintptr(0), 0, 0)
	// EINVAL: the system call is there, and refuses unknown flags.
	if kind := Kind(); errno == unix.EINVAL && kind != "memfd_secret" {
		t.Errorf("kind %q, though the kernel has memfd_secret", kind)
	} else if kind == "" {
		t.Error("no kind is recorded")
	}
}

// The kernel lists dd (not dumped) and dc (not copied on fork) in smaps.
func TestPageFlags(t *testing.T) {
	b, err := New(32)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Destroy()
	at := uintptr(unsafe.Pointer(unsafe.SliceData(b.Bytes())))
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	in := false
	for s := bufio.NewScanner(f); s.Scan(); {
		var lo, hi uintptr
		if n, _ := fmt.Sscanf(s.Text(), "%x-%x ", &lo, &hi); n == 2 {
			in = lo <= at && at < hi
		}
		if flags, ok := strings.CutPrefix(s.Text(), "VmFlags:"); ok && in {
			if !strings.Contains(flags, " dd") || !strings.Contains(flags, " dc") {
				t.Errorf("flags of the page: %s", flags)
			}
			return
		}
	}
	t.Error("the page is not in smaps")
}

func TestConcurrent(t *testing.T) {
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 200 {
				b, err := New(64)
				if err != nil {
					t.Error(err)
					return
				}
				for _, c := range b.Bytes() {
					if c != 0 {
						t.Error("another's secret")
						return
					}
				}
				b.Bytes()[0] = 1
				b.Destroy()
			}
		}()
	}
	wg.Wait()
}

func TestDo(t *testing.T) {
	ran := false
	Do(func() { ran = true })
	if !ran {
		t.Error("Do did not run its function")
	}
}
