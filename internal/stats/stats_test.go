package stats

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/memseal"
)

var soPIN = []byte("so-pin-1")

// newStore makes a store with a token.
func newStore(t *testing.T) (st *sealstore.Store, dir, serial string) {
	t.Helper()
	dir = t.TempDir()
	must(t, os.Chmod(dir, 0o700))
	st = sealstore.Open(dir, memseal.New(), nil)
	t.Cleanup(st.Close)
	info, err := st.Create(sealstore.InitParams{Label: "t", SOPIN: soPIN})
	must(t, err)
	return st, dir, info.Serial
}

// watch gives a recorder of a store, with what it logs.
func watch(st *sealstore.Store) (*Recorder, *bytes.Buffer) {
	log := &bytes.Buffer{}
	r := New(true, slog.New(slog.NewTextHandler(log, nil)))
	r.Watch(st)
	return r, log
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// read gives what the store's file says.
func read(t *testing.T, st *sealstore.Store) *File {
	t.Helper()
	b, err := st.Statistics()
	must(t, err)
	f, err := Decode(b)
	must(t, err)
	return f
}

func TestBounds(t *testing.T) {
	if len(Bounds) != buckets-1 || Bounds[0] != 10*time.Microsecond || Bounds[len(Bounds)-1] != 100*time.Second {
		t.Fatalf("%d bounds, %v to %v", len(Bounds), Bounds[0], Bounds[len(Bounds)-1])
	}
	for i, b := range Bounds[1:] {
		if r := float64(b) / float64(Bounds[i]); r < 1.24 || r > 1.285 {
			t.Errorf("bucket %d is %v to %v", i+1, Bounds[i], b)
		}
	}
}

// TestPercentiles compares with the exact ones of a thousand times.
func TestPercentiles(t *testing.T) {
	var o Operation
	if o.Percentile(0.5) != 0 || o.Count() != 0 {
		t.Error("nothing has percentiles")
	}
	var all []time.Duration
	for i := range 1000 {
		took := time.Duration(math.Pow(1.02, float64(i%900))*11) * time.Microsecond
		all = append(all, took)
		o.add(&Operation{Total: uint64(took), Longest: uint64(took)})
		o.count(took)
	}
	slices.Sort(all)
	for _, p := range []float64{0.01, 0.5, 0.9, 0.99, 1} {
		exact := all[int(math.Ceil(p*1000))-1]
		if got := o.Percentile(p); got < exact || float64(got) > 1.29*float64(exact) {
			t.Errorf("p%v is %v, exactly %v", 100*p, got, exact)
		}
	}
	if o.Percentile(1) != all[999] || o.Count() != 1000 {
		t.Errorf("the longest of %d took %v", o.Count(), o.Percentile(1))
	}
	var slow Operation
	slow.add(&Operation{Total: uint64(time.Hour), Longest: uint64(time.Hour)})
	slow.count(time.Hour)
	if len(slow.Buckets) != buckets || slow.Percentile(0.5) != time.Hour || slow.check() != nil {
		t.Errorf("%+v", slow)
	}
}

// sample is a file with everything in it.
func sample() *File {
	f, _ := Decode(nil)
	f.Since = 1
	t := Token{LastSignature: 3, LastLogin: 2}
	for i, n := range t.counters() {
		*n = uint64(i)
	}
	f.Tokens["0123456789abcdef"] = t
	f.TPM["unsealing"] = Operation{Errors: 1, Total: 30, Longest: 20, Buckets: []uint64{0, 2}}
	f.TPM["sealing"] = Operation{Errors: 1, Buckets: []uint64{}}
	return f
}

// TestFormVector keeps the form of the file, so that later versions read it.
func TestFormVector(t *testing.T) {
	const want = `{"version":1,"since":1,"tokens":{"0123456789abcdef":{"signatures":0,"failed_signatures":1,"unseals":2,"logins":3,` +
		`"so_logins":4,"wrong_pins":5,"wrong_so_pins":6,"locked_out":7,"pcr_mismatches":8,"keys_unlocked":9,"keys_locked":10,` +
		`"last_signature":3,"last_login":2}},"tpm":{"sealing":{"errors":1,"total_ns":0,"longest_ns":0,"buckets":[]},` +
		`"unsealing":{"errors":1,"total_ns":30,"longest_ns":20,"buckets":[0,2]}}}` + "\n"
	if got := string(sample().Encode()); got != want {
		t.Errorf("encodes to %s", got)
	}
	f, err := Decode([]byte(want))
	if err != nil || string(f.Encode()) != want {
		t.Errorf("%v, %s", err, f.Encode())
	}
}

func TestDecodeIsStrict(t *testing.T) {
	good := string(sample().Encode())
	for _, change := range [][2]string{
		{"\n", ""}, {"\n", "\n\n"}, {"\n", " \n"}, {`{"version"`, ` {"version"`}, {`"since":1,`, `"since":1,"x":1,`}, {`"since":1,`, ""},
		{`"since":1`, `"since":-1`}, {`"since":1`, `"since":253402300800`}, {`"since":1`, `"since":1.0`}, {`"since":1`, `"since":"1"`},
		{`"since":1`, `"Since":1`}, {`"since":1`, `"since":1,"since":1`}, {`"version":1`, `"version":0`},
		{`"0123456789abcdef"`, `"0123456789abcdeF"`}, {`"0123456789abcdef"`, `"0123456789abcd"`},
		{`"last_login":2`, `"last_login":-2`}, {`"unseals":2`, `"unseals":-2`}, {`"unseals":2`, `"unseals":18446744073709551616`},
		{`[0,2]`, `[2,0]`}, {`[0,2]`, `null`}, {`[0,2]`, "[" + strings.Repeat("1,", buckets) + "1]"}, {`[0,2]`, `[]`},
		{`"longest_ns":20`, `"longest_ns":31`}, {`"longest_ns":20`, `"longest_ns":9223372036854775808`},
		{`"sealing"`, `""`}, {`"sealing"`, `"sea\u006cing"`}, {`"sealing"`, `"` + strings.Repeat("x", maxName+1) + `"`}, {`"sealing"`, `"s\n"`},
		{good, "null\n"}, {good, "{}\n"}, {good, "[]\n"}, {good, "x"}, {good, good + good},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if f, err := Decode([]byte(bad)); err == nil || f != nil || errors.Is(err, ErrVersion) {
			t.Errorf("%q for %q: %v", change[1], change[0], err)
		}
	}
	if _, err := Decode([]byte(`{"version":2,"whatever":[]}`)); !errors.Is(err, ErrVersion) {
		t.Error(err)
	}
	many := sample()
	for i := range maxTokens {
		many.Tokens[fmt.Sprintf("%016x", i)] = Token{}
	}
	if _, err := Decode(many.Encode()); err == nil {
		t.Error("any number of tokens is accepted")
	}
	most := sample()
	for i := range 2 * maxTokens {
		d := &File{Tokens: map[string]Token{fmt.Sprintf("%016x", i): {}}, TPM: map[string]Operation{fmt.Sprint(i): {Errors: 1}}}
		most.add(d)
	}
	data := most.Encode()
	if _, err := Decode(data); err != nil || len(data) > sealstore.MaxStatistics/4 {
		t.Errorf("%d bytes: %v", len(data), err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(sample().Encode())
	f.Add([]byte(`{"version":1,"since":0,"tokens":{},"tpm":{}}` + "\n"))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Decode(data)
		if err != nil {
			return
		}
		if len(data) > 0 && !bytes.Equal(file.Encode(), data) {
			t.Fatalf("%q encodes to %q", data, file.Encode())
		}
		// Nothing that is read can break what is written next.
		file.add(sample())
		file.add(file)
		if _, err := Decode(file.Encode()); err != nil {
			t.Fatalf("%q, added to: %v", data, err)
		}
		for _, o := range file.TPM {
			if p := o.Percentile(0.5); p < 0 || p > o.Percentile(1) {
				t.Fatalf("%q: the median is %v", data, p)
			}
		}
	})
}

// TestRecorder counts one of each, and adds it to the file once.
func TestRecorder(t *testing.T) {
	st, _, serial := newStore(t)
	r, log := watch(st)
	tok, err := st.Token(serial)
	must(t, err)
	must(t, tok.Login(sealstore.SO, soPIN))
	if err := tok.Login(sealstore.SO, []byte("wrong pin")); err == nil {
		t.Fatal("a wrong PIN is accepted")
	}
	r.Signed(serial, 1, nil)
	r.Signed(serial, 2, errors.New("no"))
	r.Kept(serial, true)
	r.Kept(serial, false)
	r.Operation("unsealing", time.Millisecond, nil)
	r.Operation("unsealing", 3*time.Millisecond, nil)
	r.Operation("unsealing", time.Second, errors.New("no"))
	r.Operation("odd\nname", time.Second, nil)
	for range 2 {
		r.Flush()
		f := read(t, st)
		got := f.Tokens[serial]
		now := time.Now().Unix()
		if got.LastLogin < now-60 || got.LastSignature < now-60 || f.Since < now-60 {
			t.Errorf("%+v", f)
		}
		got.LastLogin, got.LastSignature = 0, 0
		if got != (Token{Signatures: 1, FailedSignatures: 1, SOLogins: 1, WrongSOPINs: 1, KeysUnlocked: 1, KeysLocked: 1}) {
			t.Errorf("%+v", got)
		}
		o := f.TPM["unsealing"]
		if len(f.TPM) != 1 || o.Count() != 2 || o.Errors != 1 || o.Total != uint64(4*time.Millisecond) || o.Percentile(0.5) != time.Millisecond || o.Percentile(1) != 3*time.Millisecond {
			t.Errorf("%+v", f.TPM)
		}
	}
	r.Signed(serial, 1, nil)
	r.Close()
	r.Signed(serial, 1, nil)
	r.Flush()
	r.Close()
	if n := read(t, st).Tokens[serial].Signatures; n != 2 {
		t.Errorf("%d signatures after the end", n)
	}
	if log.Len() != 0 {
		t.Errorf("%s", log)
	}
}

// TestNothingIsCounted: without statistics, and by who only looks, nothing is
// written.
func TestNothingIsCounted(t *testing.T) {
	st, _, serial := newStore(t)
	off := New(false, nil)
	off.Watch(st)
	off.Operation("unsealing", time.Second, nil)
	off.Signed(serial, 1, nil)
	off.Kept(serial, true)
	off.Flush()
	off.Close()
	r, _ := watch(st)
	r.Operation("reading the lockout counters", time.Second, nil)
	r.Close()
	if b, err := st.Statistics(); b != nil || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// TestTimer: what was counted is written without a logout.
func TestTimer(t *testing.T) {
	t.Parallel()
	st, _, serial := newStore(t)
	r, _ := watch(st)
	defer r.Close()
	start := time.Now()
	r.Signed(serial, 1, nil)
	for read(t, st).Tokens[serial].Signatures == 0 {
		if time.Since(start) > time.Minute {
			t.Fatal("nothing is written")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if took := time.Since(start); took < Interval {
		t.Errorf("it was written after %v", took)
	}
}

// TestRecordersAtOnce: recorders of several processes, as it were, lose nothing.
func TestRecordersAtOnce(t *testing.T) {
	st, dir, serial := newStore(t)
	const recorders, each = 6, 300
	var wg sync.WaitGroup
	for range recorders {
		r, _ := watch(sealstore.Open(dir, memseal.New(), nil))
		var threads sync.WaitGroup
		for range 2 {
			threads.Go(func() {
				for i := range each {
					r.Signed(serial, uint64(i), nil)
					r.Operation("signing", time.Duration(i)*time.Microsecond, nil)
					if i%10 == 0 {
						r.Flush()
					}
				}
			})
		}
		wg.Go(func() {
			threads.Wait()
			// A Flush that found the file busy has kept its figures.
			for deadline := time.Now().Add(time.Minute); len(r.takenAfterFlush()) > 0 && time.Now().Before(deadline); {
			}
			r.Close()
		})
	}
	wg.Wait()
	f := read(t, st)
	o := f.TPM["signing"]
	if n := f.Tokens[serial].Signatures; n != recorders*each*2 || o.Count() != n {
		t.Errorf("%d signatures, %d operations", n, o.Count())
	}
}

// takenAfterFlush tells what a Flush could not write.
func (r *Recorder) takenAfterFlush() map[string]Token {
	r.Flush()
	t := r.takeTokens()
	r.restore(&File{Tokens: t, TPM: map[string]Operation{}})
	return t
}

// TestDamagedFile: a file that cannot be read is replaced and the log says so;
// one of a later version is left to that.
func TestDamagedFile(t *testing.T) {
	st, dir, serial := newStore(t)
	path := filepath.Join(dir, "statistics")
	for _, damage := range []string{"garbage", "{}\n", strings.Repeat("x", sealstore.MaxStatistics+1)} {
		must(t, os.WriteFile(path, []byte(damage), 0o600))
		r, log := watch(st)
		r.Signed(serial, 1, nil)
		r.Close()
		if n := read(t, st).Tokens[serial].Signatures; n != 1 {
			t.Errorf("%.10q: %d signatures", damage, n)
		}
		if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), `msg="statistics begin anew"`) {
			t.Errorf("%.10q: %s", damage, log)
		}
	}
	const later = `{"version":2}`
	must(t, os.WriteFile(path, []byte(later), 0o600))
	r, log := watch(st)
	for range 3 {
		r.Signed(serial, 1, nil)
		r.Flush()
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != later {
		t.Errorf("%q, %v", b, err)
	}
	if strings.Count(log.String(), `msg="statistics not written"`) != 1 {
		t.Errorf("%s", log)
	}
	// What could not be written is not forgotten.
	must(t, os.Remove(path))
	r.Close()
	if n := read(t, st).Tokens[serial].Signatures; n != 3 {
		t.Errorf("%d signatures", n)
	}
}

// TestDeletedToken: the figures of a token end with it.
func TestDeletedToken(t *testing.T) {
	st, _, serial := newStore(t)
	other, err := st.Create(sealstore.InitParams{Label: "other", SOPIN: soPIN})
	must(t, err)
	r, _ := watch(st)
	r.Signed(serial, 1, nil)
	r.Signed(other.Serial, 1, nil)
	r.Flush()
	must(t, st.Delete(serial, soPIN))
	r.Signed(serial, 1, nil)
	r.Signed(other.Serial, 1, nil)
	r.Close()
	if f := read(t, st); len(f.Tokens) != 1 || f.Tokens[other.Serial].Signatures != 2 {
		t.Errorf("%+v", f.Tokens)
	}
}

// TestReadOnly: a store that may not be written is left alone, for which the
// log has one line.
func TestReadOnly(t *testing.T) {
	st, dir, serial := newStore(t)
	must(t, os.Chmod(dir, 0o500))
	defer os.Chmod(dir, 0o700)
	if os.Geteuid() == 0 {
		must(t, os.Lchown(dir, 65534, -1)) // modes do not hold root back
	}
	r, log := watch(st)
	for range 3 {
		r.Signed(serial, 1, nil)
		r.Flush()
	}
	r.Close()
	if b, err := st.Statistics(); b != nil || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "level=INFO") {
		t.Errorf("%s", log)
	}
}

// TestCountingIsCheap: counting a signature allocates nothing.
func TestCountingIsCheap(t *testing.T) {
	st, _, serial := newStore(t)
	r, _ := watch(st)
	defer r.Close()
	r.Signed(serial, 1, nil)
	if n := testing.AllocsPerRun(1000, func() { r.Signed(serial, 1, nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSigned(b *testing.B) {
	r := New(true, slog.New(slog.DiscardHandler))
	defer r.Close()
	for b.Loop() {
		r.Signed("0123456789abcdef", 1, nil)
	}
}
