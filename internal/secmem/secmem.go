// Package secmem holds secrets in memory that is not written to swap or core
// dumps, is not inherited by forked children, and, where the kernel has
// memfd_secret(2), cannot be read by root or by the kernel either.
package secmem

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Max is the size of the largest buffer, in bytes. It is the smallest page of
// the platforms that Go runs on; a buffer has a page of its own.
const Max = 4096

// Buffer is a secret of fixed size. It is not safe for concurrent use while
// it is being destroyed.
type Buffer struct {
	page []byte
	n    int
}

// pool recycles wiped pages, since mapping one costs several system calls.
// The kernel counts secret pages against RLIMIT_MEMLOCK, so few are kept.
var pool struct {
	mu   sync.Mutex
	free [][]byte
}

const maxFree = 16

var kind atomic.Pointer[string]

// Kind tells how the last page was obtained: "memfd_secret", "mlock", or
// "plain" where even locking was refused. It is empty before the first.
func Kind() string {
	if k := kind.Load(); k != nil {
		return *k
	}
	return ""
}

// New gives a zeroed buffer of n bytes, 1 to [Max].
func New(n int) (*Buffer, error) {
	if n < 1 || n > Max {
		return nil, fmt.Errorf("secret memory of %d bytes: not between 1 and %d", n, Max)
	}
	pool.mu.Lock()
	var page []byte
	if last := len(pool.free) - 1; last >= 0 {
		page, pool.free = pool.free[last], pool.free[:last]
	}
	pool.mu.Unlock()
	if page == nil {
		var err error
		if page, err = mapPage(); err != nil {
			return nil, fmt.Errorf("secret memory: %w (raise RLIMIT_MEMLOCK?)", err)
		}
	}
	return &Buffer{page, n}, nil
}

// mapPage maps a page from memfd_secret, else a locked anonymous one.
func mapPage() ([]byte, error) {
	page, err := secretPage()
	how := "memfd_secret"
	if err != nil {
		page, err = unix.Mmap(-1, 0, Max, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return nil, err
		}
		how = "mlock"
		if unix.Mlock(page) != nil {
			how = "plain"
		}
	}
	// A child must not inherit the page; a core dump must not hold it.
	err = errors.Join(unix.Madvise(page, unix.MADV_DONTFORK), unix.Madvise(page, unix.MADV_DONTDUMP))
	if err != nil {
		unix.Munmap(page)
		return nil, err
	}
	kind.Store(&how)
	return page, nil
}

func secretPage() ([]byte, error) {
	// The kernel takes O_CLOEXEC; memfd_secret(2) names FD_CLOEXEC, which it refuses.
	fd, err := unix.MemfdSecret(unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, Max); err != nil {
		return nil, err
	}
	return unix.Mmap(fd, 0, Max, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// Bytes gives the secret; nil once it was destroyed.
func (b *Buffer) Bytes() []byte {
	if b == nil || b.page == nil {
		return nil
	}
	return b.page[:b.n:b.n]
}

// Destroy wipes the buffer. A nil or destroyed one is left as it is.
func (b *Buffer) Destroy() {
	if b == nil || b.page == nil {
		return
	}
	page := b.page
	b.page = nil
	Wipe(page)
	pool.mu.Lock()
	if len(pool.free) < maxFree {
		pool.free = append(pool.free, page)
		page = nil
	}
	pool.mu.Unlock()
	if page != nil {
		unix.Munmap(page)
	}
}

// Wipe overwrites p with zeros, in a way that the compiler keeps.
//
//go:noinline
func Wipe(p []byte) {
	clear(p)
	runtime.KeepAlive(&p)
}
