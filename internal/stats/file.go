package stats

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// File is what the statistics of a store hold: the sum of what all programs
// have counted since a moment.
type File struct {
	Version int                  `json:"version"`
	Since   int64                `json:"since"`  // seconds since 1970
	Tokens  map[string]Token     `json:"tokens"` // by serial number
	TPM     map[string]Operation `json:"tpm"`    // by kind of operation
}

// Token counts the use of one token.
type Token struct {
	Signatures       uint64 `json:"signatures"`
	FailedSignatures uint64 `json:"failed_signatures"`
	Unseals          uint64 `json:"unseals"` // of keys
	Logins           uint64 `json:"logins"`
	SOLogins         uint64 `json:"so_logins"`
	WrongPINs        uint64 `json:"wrong_pins"`
	WrongSOPINs      uint64 `json:"wrong_so_pins"`
	LockedOut        uint64 `json:"locked_out"` // PINs that the TPM did not try
	PCRMismatches    uint64 `json:"pcr_mismatches"`
	KeysUnlocked     uint64 `json:"keys_unlocked"` // that stayed so
	KeysLocked       uint64 `json:"keys_locked"`
	LastSignature    int64  `json:"last_signature"` // seconds since 1970, 0: never
	LastLogin        int64  `json:"last_login"`
}

// counters are the fields that add up.
func (t *Token) counters() [counters]*uint64 {
	return [counters]*uint64{
		signatures: &t.Signatures, failedSignatures: &t.FailedSignatures, unseals: &t.Unseals,
		logins: &t.Logins, soLogins: &t.SOLogins, wrongPINs: &t.WrongPINs, wrongSOPINs: &t.WrongSOPINs,
		lockedOut: &t.LockedOut, pcrMismatches: &t.PCRMismatches, keysUnlocked: &t.KeysUnlocked, keysLocked: &t.KeysLocked,
	}
}

// Operation is what one kind of TPM operation has cost.
type Operation struct {
	Errors  uint64   `json:"errors"`
	Total   uint64   `json:"total_ns"` // of those that succeeded, as is
	Longest uint64   `json:"longest_ns"`
	Buckets []uint64 `json:"buckets"` // how many took at most [Bounds], and then longer than all; no zeros at the end
}

// Bounds are the upper ends of the buckets: ten in each power of ten, as the
// preferred numbers of ISO 3 are spaced, from 10 microseconds to 100 seconds.
var Bounds = func() (b []time.Duration) {
	for unit := 10 * time.Microsecond; unit < 100*time.Second; unit *= 10 {
		for _, n := range []time.Duration{100, 125, 160, 200, 250, 315, 400, 500, 630, 800} {
			b = append(b, n*unit/100)
		}
	}
	return append(b, 100*time.Second)
}()

// buckets are those of Bounds, and one for what took longer.
const buckets = 72

// Count is how many operations succeeded.
func (o *Operation) Count() (n uint64) {
	for _, b := range o.Buckets {
		n = sum(n, b)
	}
	return n
}

// Percentile is the time within which that part of the operations, 0 to 1,
// succeeded: up to 28 % too long, since buckets are that wide.
func (o *Operation) Percentile(part float64) time.Duration {
	rank := uint64(math.Ceil(part * float64(o.Count())))
	var n uint64
	for i, b := range o.Buckets {
		if n = sum(n, b); n >= rank && n > 0 && i < len(Bounds) {
			return min(Bounds[i], time.Duration(o.Longest))
		}
	}
	return time.Duration(o.Longest)
}

// sum adds without starting again at zero.
func sum(a, b uint64) uint64 {
	if c := a + b; c >= a {
		return c
	}
	return math.MaxUint64
}

const (
	version = 1
	// Bounds of what is read; nothing comes near them by itself.
	maxTokens     = 4096
	maxOperations = 64
	maxName       = 64
)

// ErrVersion: the file is not damaged, but this version cannot read it.
var ErrVersion = errors.New("written by a later version of icn-p11")

// Decode reads a file, and refuses what Encode would not have written. Nothing
// is an empty file.
func Decode(data []byte) (*File, error) {
	if len(data) == 0 {
		return &File{Version: version, Tokens: map[string]Token{}, TPM: map[string]Operation{}}, nil
	}
	var v struct{ Version int }
	if err := json.Unmarshal(data, &v); err == nil && v.Version > version {
		return nil, fmt.Errorf("%w (format %d)", ErrVersion, v.Version)
	}
	f := &File{}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(f); err != nil {
		return nil, fmt.Errorf("damaged: %w", err)
	}
	if err := f.check(); err != nil {
		return nil, fmt.Errorf("damaged: %w", err)
	}
	if !bytes.Equal(f.Encode(), data) {
		return nil, errors.New("damaged: not in the form that is written")
	}
	return f, nil
}

// Encode writes a file, one line of JSON.
func (f *File) Encode() []byte {
	b, err := json.Marshal(f)
	if err != nil {
		panic(err) // there is nothing in it that JSON cannot hold
	}
	return append(b, '\n')
}

func (f *File) check() error {
	switch {
	case f.Tokens == nil, f.TPM == nil:
		return errors.New("a part is missing")
	case f.Version != version:
		return errors.New("the version is missing")
	case len(f.Tokens) > maxTokens, len(f.TPM) > maxOperations:
		return errors.New("too long")
	case !validTime(f.Since):
		return errors.New("a time is out of bounds")
	}
	for serial, t := range f.Tokens {
		if !sealstore.ValidSerial(serial) {
			return fmt.Errorf("%q is no serial number", serial)
		}
		if !validTime(t.LastSignature) || !validTime(t.LastLogin) {
			return errors.New("a time is out of bounds")
		}
	}
	for name, o := range f.TPM {
		if !validName(name) {
			return fmt.Errorf("%q is no operation", name)
		}
		if err := o.check(); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	return nil
}

func (o *Operation) check() error {
	switch n := len(o.Buckets); {
	case o.Buckets == nil, n > buckets, n > 0 && o.Buckets[n-1] == 0:
		return errors.New("malformed buckets")
	case n == 0 && o.Total > 0, o.Longest > o.Total, o.Longest > math.MaxInt64:
		return errors.New("times do not agree")
	}
	return nil
}

func validTime(t int64) bool { return t >= 0 && t <= sealstore.MaxCreated }

// validName takes what this package's users call operations.
func validName(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || strings.IndexByte(`"\<>&`, c) >= 0 {
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

// add adds what a process has counted.
func (f *File) add(d *File) {
	for serial, t := range d.Tokens {
		old, known := f.Tokens[serial]
		if !known && len(f.Tokens) == maxTokens {
			continue
		}
		to, from := old.counters(), t.counters()
		for i := range to {
			*to[i] = sum(*to[i], *from[i])
		}
		old.LastSignature = max(old.LastSignature, t.LastSignature)
		old.LastLogin = max(old.LastLogin, t.LastLogin)
		f.Tokens[serial] = old
	}
	for name, o := range d.TPM {
		old, known := f.TPM[name]
		if !known && len(f.TPM) == maxOperations {
			continue
		}
		old.add(&o)
		f.TPM[name] = old
	}
}

func (o *Operation) add(d *Operation) {
	o.Errors = sum(o.Errors, d.Errors)
	o.Total = sum(o.Total, d.Total)
	o.Longest = max(o.Longest, d.Longest)
	if o.Buckets == nil {
		o.Buckets = []uint64{}
	}
	for len(o.Buckets) < len(d.Buckets) {
		o.Buckets = append(o.Buckets, 0)
	}
	for i, n := range d.Buckets {
		o.Buckets[i] = sum(o.Buckets[i], n)
	}
}
