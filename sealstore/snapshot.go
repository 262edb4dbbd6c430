package sealstore

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// A snapshot is a file beside the directory of the objects, of what the files of
// public objects without a seal hold. To open, read and close thousands of files
// is most of what the first search of a process takes; with a snapshot it only
// looks whether each file is still the one that the snapshot is of. Nothing is in
// a snapshot alone: where it is missing, damaged or out of date, files are read,
// and whoever has read many writes another. It is written as the layout in
// docs/format.md says, and encrypted as a whole as public objects are.
//
// It must not keep an object that was destroyed, or what one was before it was
// changed: it is removed before that is done, and written under the token's lock,
// from objects that are still those in the directory.
const (
	snapshotName  = "snapshot"
	snapshotMagic = "ICNP11S"
	snapshotHead  = len(snapshotMagic) + 1 + serialSize // what is authenticated in the clear
	// snapshotMin is how many objects are worth one: fewer are read in little more
	// time than it takes to write it.
	snapshotMin = 512
	// One goroutine reads and decrypts a snapshot: longer bodies are faster read from
	// their files, on all processors.
	maxSnapshotBody = 2 << 10
	maxSnapshot     = 16 << 20
	recordHead      = 16 + 4*8 + sha256.Size + 4
)

// snapshot is one that was opened. A nil snapshot is empty.
type snapshot struct {
	text []byte
	at   []uint32 // where the records are, by ID
}

// record is what a snapshot has of an object.
type record struct {
	id   ID
	file fileID // without the device, which may be another after a restart
	hash [sha256.Size]byte
	body []byte // a part of the snapshot
}

// encode appends a record.
func (r *record) encode(b []byte) []byte {
	b = append(b, r.id[:]...)
	for _, n := range []uint64{r.file.ino, uint64(r.file.size), uint64(r.file.mtime), uint64(r.file.ctime)} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	b = append(b, r.hash[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.body)))
	return append(b, r.body...)
}

// decodeRecord takes a record off what begins with it. nil is no record.
func decodeRecord(p []byte) (r record, rest []byte) {
	if len(p) < recordHead {
		return r, nil
	}
	copy(r.id[:], p)
	p = p[16:]
	n := func() (n uint64) {
		n, p = binary.BigEndian.Uint64(p), p[8:]
		return n
	}
	r.file = fileID{ino: n(), size: int64(n()), mtime: int64(n()), ctime: int64(n())}
	copy(r.hash[:], p)
	size := binary.BigEndian.Uint32(p[sha256.Size:])
	p = p[sha256.Size+4:]
	if size > maxSnapshotBody || int(size) > len(p) {
		return r, nil
	}
	r.body = p[:size:size]
	return r, p[size:]
}

// decodeSnapshot reads the text of a snapshot: records in rising order of IDs.
func decodeSnapshot(text []byte) (*snapshot, error) {
	s := &snapshot{text: text}
	var last ID
	for rest := text; len(rest) > 0; {
		r, next := decodeRecord(rest)
		if next == nil || len(s.at) > 0 && last.compare(r.id) >= 0 {
			return nil, fmt.Errorf("%w: record %d", ErrIntegrity, len(s.at))
		}
		s.at = append(s.at, uint32(len(text)-len(rest)))
		last, rest = r.id, next
	}
	return s, nil
}

// find finds what is known of an object's file, if it is the present one.
func (s *snapshot) find(id ID, file func() (fileID, error)) (*record, bool) {
	if s == nil {
		return nil, false
	}
	i, ok := slices.BinarySearchFunc(s.at, id, func(at uint32, id ID) int { return bytes.Compare(s.text[at:at+16], id[:]) })
	if !ok {
		return nil, false
	}
	r, _ := decodeRecord(s.text[s.at[i]:])
	now, err := file()
	if err != nil {
		return nil, false
	}
	r.file.dev = now.dev
	return &r, r.file == now
}

func (t *Token) snapshotPath() string { return filepath.Join(t.path, snapshotName) }

// snapshot opens the token's; nil: there is none that could be used.
func (v *view) snapshot() *snapshot {
	k, err := v.ring(false)
	if err != nil {
		return nil
	}
	p, _, err := readAt(v.dir, snapshotName, maxSnapshot)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var s *snapshot
	if err == nil {
		s, err = k.openSnapshot(v.t.raw, p)
	}
	if err != nil {
		// After a power failure it may be cut: nothing is lost, and it is replaced.
		v.t.store.log.Info("ignoring a snapshot of objects", "path", v.t.snapshotPath(), "error", err)
		return nil
	}
	return s
}

// sealSnapshot encrypts the text of a snapshot.
func (k *keyring) sealSnapshot(serial [serialSize]byte, text []byte) (p []byte, err error) {
	p = make([]byte, 0, snapshotHead+nonceSize+len(text)+overhead)
	p = append(append(append(p, snapshotMagic...), formatVersion), serial[:]...)
	p = p[:snapshotHead+nonceSize]
	rand.Read(p[snapshotHead:]) // never fails since Go 1.24
	secmem.Compute(func() {
		c, e := chacha20poly1305.NewX(k.bodyKey())
		if err = e; err == nil {
			p = c.Seal(p, p[snapshotHead:], text, p[:snapshotHead])
		}
	})
	return p, err
}

// openSnapshot decrypts a snapshot, in place.
func (k *keyring) openSnapshot(serial [serialSize]byte, p []byte) (*snapshot, error) {
	d := decoder{rest: p}
	d.magic(snapshotMagic)
	own := bytes.Equal(d.take(serialSize), serial[:])
	nonce := d.take(nonceSize)
	if d.err != nil {
		return nil, d.err
	}
	text, err := d.rest, error(nil)
	secmem.Compute(func() {
		c, e := chacha20poly1305.NewX(k.bodyKey())
		if err = e; err == nil {
			text, err = c.Open(text[:0], nonce, text, p[:snapshotHead])
		}
	})
	if err != nil || !own {
		return nil, fmt.Errorf("%w: it does not authenticate", ErrIntegrity)
	}
	return decodeSnapshot(text)
}

// SaveSnapshot writes a snapshot, where many public objects had to be read from
// their files since the token was opened, or the last one was written, and this
// user owns the store. That it fails costs nothing but the time that it would have
// saved; it waits for nobody.
func (t *Token) SaveSnapshot() {
	t.cache.Lock()
	due := t.unsaved >= snapshotMin
	t.unsaved = 0
	t.cache.Unlock()
	if !due || owned(t.path) != nil || t.Writable() != nil {
		return
	}
	l, err := lockWithin(filepath.Join(t.path, lockName), 0)
	if err != nil {
		return // somebody is about to change what it would be of
	}
	defer l.unlock()
	if err := t.saveSnapshot(); err != nil {
		t.store.log.Info("no snapshot of objects was written", "path", t.snapshotPath(), "error", err)
	}
}

func (t *Token) saveSnapshot() error {
	v, err := t.begin(true)
	if err != nil {
		return err
	}
	defer v.end()
	k, err := v.ring(false)
	if err != nil {
		return err
	}
	text := v.records()
	if text == nil {
		return nil
	}
	p, err := k.sealSnapshot(t.raw, text)
	if err != nil {
		return err
	}
	removeTemps(t.path)
	return writeLoose(t.path, snapshotName, p)
}

// records encodes what is known of the objects, if they are still those in the
// directory, and there is no snapshot of them yet. nil: it is not worth it.
func (v *view) records() []byte {
	t := v.t
	t.cache.Lock()
	defer t.cache.Unlock()
	dir, err := statAt(v.dir, objectsName)
	if t.of != v.file.instance() || err != nil || dir != t.whole.dir || !dir.settled(t.whole.at) {
		return nil
	}
	if other, err := statAt(v.dir, snapshotName); err == nil && other.mtime > t.whole.at.UnixNano() {
		return nil // another process has looked at them as late
	}
	ids := make([]ID, 0, len(t.objects))
	size := 0
	for id, e := range t.objects {
		if e.lasting() {
			ids = append(ids, id)
			size += recordHead + len(e.body)
		}
	}
	if len(ids) < snapshotMin || size > maxSnapshot-snapshotHead-nonceSize-overhead {
		return nil
	}
	slices.SortFunc(ids, ID.compare)
	text := make([]byte, 0, size)
	for _, id := range ids {
		e := t.objects[id]
		text = (&record{id, e.id, e.hash, e.body}).encode(text)
	}
	return text
}

// lasting tells whether a snapshot can have an entry: its file will show it when
// it changes.
func (e *entry) lasting() bool {
	return e.open && e.settled && e.flags == 0 && len(e.body) <= maxSnapshotBody
}

// dropSnapshot removes a snapshot durably, with what a writer of one left that
// was killed, before an object is changed or destroyed. The token's lock is held.
func (t *Token) dropSnapshot() error {
	removeTemps(t.path)
	err := removeFile(t.path, snapshotName)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}
