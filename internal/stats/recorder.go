// Package stats counts what becomes of tokens and how long the TPM takes, in
// each process, and adds it up in a file of the store that all share.
//
// The figures are for operators. They hold no secret, nothing depends on them,
// and that they cannot be written is never an error to an application.
package stats

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// Interval is how long figures stay in the process alone, so how much of them
// is lost with one that is killed.
const Interval = 5 * time.Second

// How long the file is waited for while other processes update it: an
// application waits at a logout, and at the end for what would be lost.
const (
	briefly = 250 * time.Millisecond
	atLast  = 5 * time.Second
)

// Recorder counts for one process. All its methods may be called from any
// goroutine, and on a nil Recorder, which counts nothing.
type Recorder struct {
	log   *slog.Logger
	store *sealstore.Store // nil: none is watched yet

	// tokens is a map that is replaced, never changed: finding a token in it
	// takes no lock, which would be one more word that every thread writes.
	// adding is held while it is replaced.
	tokens atomic.Pointer[map[string]*tokenCounts]
	adding sync.Mutex

	operations sync.Mutex // guards tpm, whose numbers must agree with each other
	tpm        map[string]Operation

	// due is set from the first count until the timer has had it written.
	due    atomic.Bool
	timer  *time.Timer
	saving sync.Mutex // held while the file is updated; guards what follows
	closed bool
	told   bool // that the file cannot be written is in the log
}

// What is counted of a token.
const (
	signatures = iota
	failedSignatures
	unseals
	logins
	soLogins
	wrongPINs
	wrongSOPINs
	lockedOut
	pcrMismatches
	keysUnlocked
	keysLocked
	counters
)

// tokenCounts has counters of its own for each of some sessions: threads that
// count in the same words take the cache lines from each other. Their sum counts.
type tokenCounts struct {
	lastSignature atomic.Int64
	lastLogin     atomic.Int64
	_             [64]byte
	shards        [shards]shard
}

const shards = 8

type shard struct {
	n [counters]atomic.Uint64
	_ [128 - 8*counters]byte // two cache lines, which processors fetch in pairs
}

// New gives a recorder, nil unless it is wanted.
func New(wanted bool, log *slog.Logger) *Recorder {
	if !wanted {
		return nil
	}
	r := &Recorder{log: log, tpm: map[string]Operation{}}
	r.tokens.Store(&map[string]*tokenCounts{})
	r.timer = time.AfterFunc(Interval, func() {
		r.due.Store(false)
		r.saving.Lock()
		defer r.saving.Unlock()
		r.save(atLast)
	})
	r.timer.Stop()
	return r
}

// Watch counts what happens in a store from now on, and keeps the figures there.
func (r *Recorder) Watch(store *sealstore.Store) {
	if r == nil {
		return
	}
	r.store = store
	store.Observe(r.event)
}

// Operation counts an operation of the TPM; it is tpm.Config's Observe. By
// itself it is no reason to write the file: who only lists tokens writes
// nothing.
func (r *Recorder) Operation(op string, took time.Duration, err error) {
	if r == nil || !validName(op) {
		return
	}
	d := Operation{}
	if err != nil {
		d.Errors = 1
	} else {
		took = max(took, 0)
		d.Total, d.Longest = uint64(took), uint64(took)
	}
	r.operations.Lock()
	defer r.operations.Unlock()
	o := r.tpm[op]
	o.add(&d)
	if err == nil {
		o.count(took)
	}
	r.tpm[op] = o
}

// now is the time as the file has it, whatever the machine's clock says.
func now() int64 { return min(max(time.Now().Unix(), 1), sealstore.MaxCreated) }

// count enters a time into its bucket.
func (o *Operation) count(took time.Duration) {
	i, _ := slices.BinarySearch(Bounds, took)
	for len(o.Buckets) <= i {
		o.Buckets = append(o.Buckets, 0)
	}
	o.Buckets[i] = sum(o.Buckets[i], 1)
}

// events maps what the store tells to what is counted of it.
var events = map[sealstore.Event]int{
	sealstore.EventLogin: logins, sealstore.EventSOLogin: soLogins,
	sealstore.EventWrongPIN: wrongPINs, sealstore.EventWrongSOPIN: wrongSOPINs,
	sealstore.EventLockout: lockedOut, sealstore.EventPCRMismatch: pcrMismatches, sealstore.EventUnseal: unseals,
}

// event counts what happens to a token.
func (r *Recorder) event(serial string, e sealstore.Event) {
	t := r.token(serial)
	if e == sealstore.EventLogin || e == sealstore.EventSOLogin {
		t.lastLogin.Store(now())
	}
	r.count(t, 0, events[e])
}

// Signed counts a signature, or an attempt. by tells apart those who sign at the
// same time, such as the number of a session; any number will do.
func (r *Recorder) Signed(serial string, by uint64, err error) {
	if r == nil {
		return
	}
	t := r.token(serial)
	if err != nil {
		r.count(t, by, failedSignatures)
		return
	}
	if n := now(); t.lastSignature.Load() != n {
		t.lastSignature.Store(n)
	}
	r.count(t, by, signatures)
}

// Kept counts a key that stays unlocked, or is locked after it has been.
func (r *Recorder) Kept(serial string, unlocked bool) {
	if r == nil {
		return
	}
	what := keysLocked
	if unlocked {
		what = keysUnlocked
	}
	r.count(r.token(serial), 0, what)
}

func (r *Recorder) count(t *tokenCounts, by uint64, what int) {
	t.shards[by%shards].n[what].Add(1)
	if !r.due.Load() && r.due.CompareAndSwap(false, true) {
		r.timer.Reset(Interval)
	}
}

// token finds the counters of a token, or makes them.
func (r *Recorder) token(serial string) *tokenCounts {
	if t := (*r.tokens.Load())[serial]; t != nil {
		return t
	}
	r.adding.Lock()
	defer r.adding.Unlock()
	old := *r.tokens.Load()
	t := old[serial]
	if t == nil {
		t = &tokenCounts{}
		tokens := maps.Clone(old)
		tokens[serial] = t
		r.tokens.Store(&tokens)
	}
	return t
}

// Flush adds what was counted to the file, if anything was that calls for it,
// and the file is not busy.
func (r *Recorder) Flush() {
	if r == nil || !r.saving.TryLock() {
		return
	}
	defer r.saving.Unlock()
	r.save(briefly)
}

// Close is the last Flush.
func (r *Recorder) Close() {
	if r == nil {
		return
	}
	r.timer.Stop()
	r.saving.Lock()
	defer r.saving.Unlock()
	r.save(atLast)
	r.closed = true
}

// save updates the file. r.saving is held.
func (r *Recorder) save(patience time.Duration) {
	if r.store == nil || r.closed {
		return
	}
	d := &File{Tokens: r.takeTokens()}
	if len(d.Tokens) == 0 {
		return
	}
	r.operations.Lock()
	d.TPM, r.tpm = r.tpm, map[string]Operation{}
	r.operations.Unlock()
	err := r.store.UpdateStatistics(patience, func(old []byte, damage error) ([]byte, error) { return r.merge(old, damage, d) })
	if err == nil {
		r.told = false
		return
	}
	r.restore(d)
	if r.told {
		return
	}
	r.told = true
	level := slog.LevelWarn
	if errors.Is(err, sealstore.ErrReadOnly) {
		level = slog.LevelInfo // as its owner wants it
	}
	r.log.Log(context.Background(), level, "statistics not written", "error", err)
}

// merge makes the new content of the file of the old.
func (r *Recorder) merge(old []byte, damage error, d *File) ([]byte, error) {
	f, err := Decode(old)
	if errors.Is(err, ErrVersion) {
		return nil, err
	}
	if damage == nil {
		damage = err
	}
	if damage != nil {
		r.log.Warn("statistics begin anew", "error", damage)
		f, _ = Decode(nil)
	}
	if f.Since == 0 {
		f.Since = now()
	}
	f.add(d)
	for serial := range f.Tokens {
		if !r.store.Holds(serial) {
			delete(f.Tokens, serial)
		}
	}
	return f.Encode(), nil
}

// takeTokens moves what was counted out of the counters.
func (r *Recorder) takeTokens() map[string]Token {
	taken := map[string]Token{}
	for serial, c := range *r.tokens.Load() {
		t := Token{LastSignature: c.lastSignature.Load(), LastLogin: c.lastLogin.Load()}
		some := false
		for i, n := range t.counters() {
			for s := range c.shards {
				*n += c.shards[s].n[i].Swap(0)
			}
			some = some || *n > 0
		}
		if some {
			taken[serial] = t
		}
	}
	return taken
}

// restore puts back what could not be written, for the next time.
func (r *Recorder) restore(d *File) {
	for serial, t := range d.Tokens {
		c := r.token(serial)
		for i, n := range t.counters() {
			c.shards[0].n[i].Add(*n)
		}
	}
	r.operations.Lock()
	defer r.operations.Unlock()
	now := &File{TPM: d.TPM}
	now.add(&File{TPM: r.tpm})
	r.tpm = now.TPM
}
