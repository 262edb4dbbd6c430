package sealstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/memseal"
)

// stocked is a token with many public objects, which a store opened anew
// finds in their files, or in a snapshot.
type stocked struct {
	t      *testing.T
	dir    string
	dev    *memseal.Sealer
	serial string
	path   string
	log    *journal
}

// open opens the token in a store of its own.
func (s *stocked) open() *sealstore.Token {
	s.t.Helper()
	st := sealstore.Open(s.dir, s.dev, slog.New(slog.NewTextHandler(s.log, nil)))
	s.t.Cleanup(st.Close)
	tok, err := st.Token(s.serial)
	must(s.t, err)
	return tok
}

// list gives the bodies of all objects, as a process finds them that starts, and
// how many of them it read from their files.
func (s *stocked) list() (bodies map[sealstore.ID]string, read int) {
	s.t.Helper()
	tok := s.open()
	all, err := tok.Objects()
	must(s.t, err)
	bodies = map[sealstore.ID]string{}
	for _, o := range all {
		bodies[o.ID] = string(o.Body)
	}
	if len(bodies) != len(all) || !slices.IsSortedFunc(all, func(a, b sealstore.Object) int { return bytes.Compare(a.ID[:], b.ID[:]) }) {
		s.t.Error("the list is not one of different objects, by ID")
	}
	return bodies, sealstore.Unsaved(tok)
}

func (s *stocked) want(what string, bodies map[sealstore.ID]string, read int) {
	s.t.Helper()
	got, n := s.list()
	for id, body := range bodies {
		if got[id] != body {
			s.t.Errorf("%s: object %x is %q, want %q", what, id, got[id], body)
		}
	}
	if len(got) != len(bodies) || n != read {
		s.t.Errorf("%s: %d objects, want %d; %d were read from files, want %d", what, len(got), len(bodies), n, read)
	}
}

func (s *stocked) snapshot() string { return filepath.Join(s.path, sealstore.SnapshotName) }

func (s *stocked) has(want bool) fs.FileInfo {
	s.t.Helper()
	fi, err := os.Lstat(s.snapshot())
	if (err == nil) != want || err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.t.Fatalf("snapshot: %v", err)
	}
	if want && fi.Mode() != 0o600 {
		s.t.Errorf("its mode is %v", fi.Mode())
	}
	if left, _ := filepath.Glob(filepath.Join(s.path, ".tmp-*")); left != nil {
		s.t.Errorf("left behind: %v", left)
	}
	return fi
}

// racyWindow is far more than the ticks by which file systems stamp.
const racyWindow = 200 * time.Millisecond

// settle waits until the times of files can be trusted.
func settle() { time.Sleep(racyWindow + 50*time.Millisecond) }

// A process that starts finds in a snapshot what is in the files, and whatever was
// done to the files, or to the snapshot, finds what is in the files now.
func TestSnapshot(t *testing.T) {
	sealstore.RacyWindow(t, racyWindow)
	dir := t.TempDir()
	_, tok, dev, j := newToken(t, dir)
	info, err := tok.Info()
	must(t, err)
	s := &stocked{t, dir, dev, info.Serial, tokenPath(t, dir, tok), j}
	bodies := map[sealstore.ID]string{}
	var ids []sealstore.ID
	create := func(private bool, body string) sealstore.Object {
		o, err := tok.CreateObject(private, []byte(body), nil, nil)
		must(t, err)
		if !private {
			bodies[o.ID] = body
			ids = append(ids, o.ID)
		}
		return o
	}
	for i := range sealstore.SnapshotMin {
		create(false, fmt.Sprintf("object %d", i))
	}
	hidden := create(true, "private")
	large := create(false, string(make([]byte, 100<<10)))
	small := len(bodies) - 1 // which are for a snapshot

	// Files that may still change without their times showing it are left out.
	save := func() {
		t.Helper()
		tok := s.open()
		_, err := tok.Objects()
		must(t, err)
		tok.SaveSnapshot()
	}
	save()
	s.has(false)
	settle()
	s.want("no snapshot", bodies, small)
	s.has(false) // who only lists does not write
	save()
	s.has(true)
	in := sealstore.InSnapshot(s.open())
	if len(in) != sealstore.SnapshotMin || slices.Contains(in, hidden.ID) || slices.Contains(in, large.ID) {
		t.Errorf("the snapshot has %d objects; the private one: %v", len(in), slices.Contains(in, hidden.ID))
	}
	s.want("a snapshot", bodies, 0)
	looking := s.open() // for damage
	_, err = looking.LeftOut()
	must(t, err)
	if n := sealstore.Unsaved(looking); n != small {
		t.Errorf("%d of %d files are read to look for damage", n, small)
	}
	before, err := os.ReadFile(s.snapshot())
	must(t, err)
	if bytes.Contains(before, []byte("object 7")) {
		t.Error("the snapshot is in the clear")
	}

	// What changes or destroys an object does not leave it in a snapshot. One that
	// comes back says nothing of objects that have changed since.
	file := func(id sealstore.ID) string { return filepath.Join(s.path, "objects", fmt.Sprintf("%x", id)) }
	old, err := os.ReadFile(file(ids[0]))
	must(t, err)
	tok = s.open()
	list, err := tok.Objects()
	must(t, err)
	_, err = tok.UpdateObject(ids[0], list[slices.IndexFunc(list, func(o sealstore.Object) bool { return o.ID == ids[0] })].Stamp, []byte("updated"))
	must(t, err)
	s.has(false)
	bodies[ids[0]] = "updated"
	must(t, os.WriteFile(s.snapshot(), before, 0o600))
	must(t, tok.DeleteObject(ids[1]))
	s.has(false)
	delete(bodies, ids[1])
	create(false, "created")
	settle()
	must(t, os.WriteFile(s.snapshot(), before, 0o600))
	s.want("an old snapshot", bodies, 2)
	// A file that another program writes in its place, with what it was before.
	must(t, os.WriteFile(file(ids[0]), old, 0o600))
	bodies[ids[0]] = "object 0"
	settle()
	s.want("a file written in its place", bodies, 2)

	// No byte of it can be changed or missing, and no other token has it.
	all := small
	for _, at := range []int{0, 7, 8, 15, 16, 39, 40, len(before) / 2, len(before) - 1} {
		damaged := bytes.Clone(before)
		damaged[at] ^= 1
		must(t, os.WriteFile(s.snapshot(), damaged, 0o600))
		s.want(fmt.Sprintf("byte %d changed", at), bodies, all)
	}
	for _, n := range []int{0, 7, 16, 40, len(before) - 1} {
		must(t, os.WriteFile(s.snapshot(), before[:n], 0o600))
		s.want(fmt.Sprintf("%d bytes of it", n), bodies, all)
	}
	if !s.log.has("ignoring a snapshot") {
		t.Error("the log does not tell of a damaged snapshot")
	}
	must(t, os.Remove(s.snapshot()))
	must(t, os.Symlink(file(ids[2]), s.snapshot()))
	s.want("a symbolic link", bodies, all)
	must(t, os.Remove(s.snapshot()))

	// One that cannot be written costs nothing, and leaves nothing.
	settle()
	must(t, os.MkdirAll(filepath.Join(s.snapshot(), "in the way"), 0o700))
	save()
	must(t, os.RemoveAll(s.snapshot()))
	s.has(false)
	lock, err := os.Open(filepath.Join(s.path, "lock"))
	must(t, err)
	defer lock.Close()
	must(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	save()
	s.has(false)
	must(t, unix.Flock(int(lock.Fd()), unix.LOCK_UN))

	// What a writer that was killed left goes with the next one.
	must(t, os.WriteFile(filepath.Join(s.path, ".tmp-0123456789abcdef"), before, 0o600))
	save()
	s.has(true)
	s.want("another snapshot", bodies, 0)

	// A process that has listed objects before one was destroyed, or changed, does
	// not write what it was. Nor do several write one after the other.
	for what, change := range map[string]func(tok *sealstore.Token, o sealstore.Object) error{
		"destroyed": func(tok *sealstore.Token, o sealstore.Object) error { return tok.DeleteObject(o.ID) },
		"changed": func(tok *sealstore.Token, o sealstore.Object) error {
			_, err := tok.UpdateObject(o.ID, o.Stamp, []byte("changed"))
			return err
		},
	} {
		must(t, os.Remove(s.snapshot()))
		create(false, "one more") // so that there are enough
		settle()
		late, tok := s.open(), s.open()
		_, err := late.Objects()
		must(t, err)
		list, err := tok.Objects()
		must(t, err)
		o := list[slices.IndexFunc(list, func(o sealstore.Object) bool { return o.ID == ids[5] || o.ID == ids[6] && what == "changed" })]
		must(t, change(tok, o))
		late.SaveSnapshot()
		s.has(false)
		settle()
		first, second := s.open(), s.open()
		for _, tok := range []*sealstore.Token{first, second} {
			_, err := tok.Objects()
			must(t, err)
		}
		first.SaveSnapshot()
		written := s.has(true)
		second.SaveSnapshot()
		if !os.SameFile(written, s.has(true)) {
			t.Error("a second process wrote the same snapshot")
		}
	}

	// To destroy an object takes away what a killed writer left, too, and fails where
	// the snapshot cannot be removed.
	must(t, os.WriteFile(filepath.Join(s.path, ".tmp-0123456789abcdef"), before, 0o600))
	must(t, s.open().DeleteObject(ids[7]))
	s.has(false)
	must(t, os.MkdirAll(filepath.Join(s.snapshot(), "in the way"), 0o700))
	if err := s.open().DeleteObject(ids[8]); err == nil {
		t.Error("an object was destroyed that a snapshot may keep")
	}
	if !s.open().Has(ids[8]) {
		t.Error("it is gone, and the call has failed")
	}
}

// A token's snapshot is no other's, nor that of the token that was there before.
func TestSnapshotOfAnother(t *testing.T) {
	k, other, err := sealstore.NewKeyrings()
	must(t, err)
	serial := [8]byte{1}
	p, err := k.SealSnapshot(serial, nil)
	must(t, err)
	if err := k.OpenSnapshot(serial, bytes.Clone(p)); err != nil {
		t.Fatal(err)
	}
	if err := other.OpenSnapshot(serial, bytes.Clone(p)); !errors.Is(err, sealstore.ErrIntegrity) {
		t.Errorf("under another key: %v", err)
	}
	if err := k.OpenSnapshot([8]byte{2}, bytes.Clone(p)); !errors.Is(err, sealstore.ErrIntegrity) {
		t.Errorf("of another token: %v", err)
	}
}

// A limit of the size of files does not have the kernel end the process.
func TestSnapshotBeyondALimit(t *testing.T) {
	if os.Getenv("ICN_P11_LIMITED") == "" {
		c := exec.Command("sh", "-c", `ulimit -f 1; exec "$@"`, "sh", os.Args[0], "-test.run", "^TestSnapshotBeyondALimit$")
		c.Env = append(os.Environ(), "ICN_P11_LIMITED=1")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return
	}
	signal.Reset(unix.SIGXFSZ) // the runtime of a program ignores it, that of a library does not
	dir := t.TempDir()
	if err := sealstore.WriteLoose(dir, "x", make([]byte, 4096)); !errors.Is(err, unix.EFBIG) {
		t.Errorf("written beyond the limit: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
