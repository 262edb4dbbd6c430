package sealstore

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"
)

// looked is what a look at an object's file has shown.
type looked struct {
	id     ID
	entry  *entry // nil: there is no file, or it cannot be read
	err    error  // why
	fresh  bool   // the entry is not known yet
	saved  bool   // it is the snapshot's
	opened bool   // the body was decrypted, or turned out to be damaged
}

// batchSize is how many files are read before what they hold is decrypted.
const batchSize = 64

// shelf is room for the files of a batch, which another batch can use again.
type shelf struct {
	bytes  []byte
	files  []objectFile
	closed []sealedBody
	of     []*looked // that each of closed is of
}

func newShelf() *shelf {
	return &shelf{bytes: make([]byte, 0, batchSize<<10), files: make([]objectFile, 0, batchSize)}
}

func (s *shelf) room(n int) []byte {
	from := len(s.bytes)
	if n > cap(s.bytes)-from {
		return make([]byte, n)
	}
	s.bytes = s.bytes[:from+n]
	return s.bytes[from : from+n : from+n]
}

func (s *shelf) file() *objectFile {
	if len(s.files) == cap(s.files) {
		return new(objectFile)
	}
	s.files = append(s.files, objectFile{})
	return &s.files[len(s.files)-1]
}

func (s *shelf) clear() { s.bytes, s.files = s.bytes[:0], s.files[:0] }

// lookAll looks at the files of objects on all processors: most of the time is
// spent in system calls. Token.cache is held.
func (v *view) lookAll(dir *os.File, ids []ID, reread bool) []looked {
	out := make([]looked, len(ids))
	var next atomic.Int64
	work := func() {
		s := newShelf()
		for {
			to := int(next.Add(batchSize))
			from := to - batchSize
			if from >= len(ids) {
				return
			}
			to = min(to, len(ids))
			v.look(dir, ids[from:to], out[from:to], s, reread)
		}
	}
	for range min(runtime.GOMAXPROCS(0), (len(ids)+batchSize-1)/batchSize) - 1 {
		// All are waited for, also when one panics: they read what Token.cache guards.
		defer beside(work)()
	}
	work()
	return out
}

// beside runs f on a goroutine of its own. A panic of f is that of the caller of
// wait, who has somebody that recovers.
func beside(f func()) (wait func()) {
	done := make(chan any, 1)
	go func() {
		defer func() { done <- recover() }()
		f()
	}()
	return func() {
		if p := <-done; p != nil {
			panic(p)
		}
	}
}

// look brings the entries of objects up to date, decrypting bodies as far as
// the login allows, and leaves it to enter to make them known: it only reads
// Token.objects, so that others may look at other objects meanwhile. With
// reread, the files are read in any case. Token.cache is held.
func (v *view) look(dir *os.File, ids []ID, out []looked, s *shelf, reread bool) {
	now := time.Now()
	for i, id := range ids {
		out[i] = v.read(dir, id, now, s, reread)
	}
	for _, private := range []bool{false, true} {
		k, err := v.ring(private)
		if err != nil {
			continue // they stay closed
		}
		s.closed, s.of = s.closed[:0], s.of[:0]
		for i := range out {
			if e := out[i].entry; e != nil && e.bad == nil && !e.open && e.private() == private {
				s.closed, s.of = append(s.closed, sealedBody{file: e.file}), append(s.of, &out[i])
			}
		}
		if len(s.closed) == 0 {
			continue
		}
		k.openAll(s.closed)
		for i, b := range s.closed {
			l := s.of[i]
			l.opened = true
			l.entry.body, l.entry.bad, l.entry.open = b.body, b.err, b.err == nil
		}
	}
	for i := range out {
		if out[i].fresh || out[i].opened {
			out[i].entry.slim(out[i].fresh)
		}
	}
	s.clear()
}

// read reads the file of an object if it is another than last time.
func (v *view) read(dir *os.File, id ID, now time.Time, s *shelf, reread bool) looked {
	name := idName(id)
	e := v.t.objects[id]
	file := func() (fileID, error) { return statAt(dir, name) }
	switch {
	case reread:
	case e == nil:
		if r, ok := v.saved.find(id, file); ok {
			return looked{id: id, entry: &entry{id: r.file, settled: true, hash: r.hash, body: r.body, open: true}, fresh: true, saved: true}
		}
	case e.settled:
		if cur, err := file(); err == nil && cur == e.id {
			return looked{id: id, entry: e}
		}
	}
	p, cur, err := readInto(dir, name, maxObjectFile, s.room)
	if err != nil && !errors.Is(err, ErrIntegrity) {
		return looked{id: id, err: err}
	}
	hash := sha256.Sum256(p)
	if e != nil && err == nil && e.hash == hash {
		e.id, e.settled = cur, cur.settled(now)
		return looked{id: id, entry: e}
	}
	e = &entry{id: cur, settled: cur.settled(now), hash: hash, bad: err}
	if e.bad == nil {
		e.file = s.file()
		e.bad = e.file.decode(p)
	}
	if e.bad == nil {
		e.bad = v.t.own(e.file, id)
	}
	if e.bad == nil {
		e.flags = e.file.Flags
	}
	return looked{id: id, entry: e, fresh: true}
}

// slim lets go of all that nobody will ask of a file again. What a fresh entry
// keeps it moves off the shelf.
func (e *entry) slim(fresh bool) {
	done := e.open && !e.private() // what is public stays open
	switch {
	case e.bad != nil, done && e.flags&flagSealed == 0:
		e.file = nil
		return
	case fresh:
		f := *e.file
		e.file = &f
	}
	if done {
		e.file.Ciphertext = nil
	} else if fresh {
		e.file.Ciphertext = bytes.Clone(e.file.Ciphertext)
	}
}

// enter makes known what a look has shown. The entry may be bad, which is
// returned as the error too. Token.cache is held.
func (v *view) enter(dir *os.File, l looked) (*entry, error) {
	t, id := v.t, l.id
	path := func() string { return filepath.Join(dir.Name(), idName(id)) }
	old, e := t.objects[id], l.entry
	switch {
	case errors.Is(l.err, fs.ErrNotExist):
		if old != nil {
			old.wipe()
			delete(t.objects, id)
			t.changes++
		}
		return nil, fmt.Errorf("object %s of token %s: %w", idName(id), t.serial, ErrNotFound)
	case l.err != nil:
		t.store.report(path(), fileID{}, "object left out", l.err)
		return nil, readError(path(), l.err)
	case l.fresh:
		if old != nil {
			old.wipe()
		}
		if t.objects == nil {
			t.objects = map[ID]*entry{}
		}
		t.stamps++
		e.stamp = t.stamps
		t.objects[id] = e
	}
	if l.fresh && !l.saved && e.lasting() {
		t.unsaved++
	}
	if l.fresh || l.opened {
		t.changes++
		if e.bad != nil {
			t.store.report(path(), e.id, "object left out", e.bad)
		}
	}
	if e.bad != nil {
		return e, fmt.Errorf("%s: %w", path(), e.bad)
	}
	return e, nil
}
