package main

import (
	"fmt"
	"slices"
)

// Results is what one run has measured: the content of build/bench.json. Times
// are in nanoseconds, sizes in bytes.
type Results struct {
	Machine  Machine
	Quick    bool // too short for the figures to mean much
	Versions map[string]string
	Batches  []Batch            // in the order in which they ran
	Cold     map[string][]Cold  // by number of objects and subject, as coldKey makes it
	OpenSSL  []float64          // nanoseconds a signature, a run each
	Together map[string][]int   // by subject: signatures a second of 8 processes, a run each
	Starts   map[string]Starts  // by subject
	Logins   [][]Login          // of icn-p11: a process each
	Fsyncs   map[string]float64 // by subject: to create an object
	Commands []Step             // what icn-p11 asks of the TPM
	Inner    []GoBenchmark      // of the packages behind the C interface
	Sizes    map[string]int64   // of files
	Targets  []Target           // what follows from all that
}

// Machine is where it was measured.
type Machine struct {
	CPU    string
	Cores  int
	Kernel string
	Load   [2]string // of the last minute, before and after
	Pauses Pauses
}

// Pauses are the interruptions of a loop that only reads the clock, of more than
// 5 µs.
type Pauses struct {
	Every  float64 // 0: there was none
	Median float64
}

// Batch is a number of operations of one subject, one after the other.
type Batch struct {
	Operation string
	Subject   string
	Round     int
	N         int
	P10       float64 // what it takes where nothing comes in between
	P50, P99  float64
	Rate      float64 // of all threads together, in operations a second
	RV        uint    // why it is not there
}

// Cold is one start of a process.
type Cold struct {
	Subject   string
	Dlopen    float64
	Ready     float64 // dlopen, C_Initialize and C_GetSlotList
	FirstFind float64 `json:"first_find"` // and opening a session and the first search
	WarmFind  float64 `json:"warm_find"`
	FindAll   float64 `json:"find_all"`
	Objects   int
	RSSBefore float64 `json:"rss_before"`
	RSSLoaded float64 `json:"rss_loaded"`
	RSSReady  float64 `json:"rss_ready"`
	RSSFound  float64 `json:"rss_found"`
}

// Starts tells what became of processes that started at once.
type Starts struct {
	Processes, Failed int
	Took              float64 // the longest of the times until all were done
	Processor         float64 // time of all processors for all processes
}

// Login is one of the logins of a process.
type Login struct {
	Took   float64
	Faults float64 // pages that the kernel had to provide
}

// Step is one operation, and the commands that it sent to the TPM.
type Step struct {
	Name     string
	Commands []string
}

// GoBenchmark is a line of go test -bench.
type GoBenchmark struct {
	Package, Name string
	Time          float64
	Allocs        float64
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

func p50(b Batch) float64  { return b.P50 }
func p99(b Batch) float64  { return b.P99 }
func rate(b Batch) float64 { return b.Rate }

// rounds gives one figure of an operation of a subject for each round.
func (r *Results) rounds(operation, subject string, of func(Batch) float64) map[int]float64 {
	m := map[int]float64{}
	for _, b := range r.Batches {
		if b.Operation == operation && b.Subject == subject && b.RV == 0 {
			m[b.Round] = of(b)
		}
	}
	return m
}

// refusal is the code with which an operation of a subject fails; 0 if it does
// not.
func (r *Results) refusal(operation, subject string) uint {
	for _, b := range r.Batches {
		if b.Operation == operation && b.Subject == subject && b.RV != 0 {
			return b.RV
		}
	}
	return 0
}

// get is the median of the rounds; 0 if there are none.
func (r *Results) get(operation, subject string, of func(Batch) float64) float64 {
	var v []float64
	for _, x := range r.rounds(operation, subject, of) {
		v = append(v, x)
	}
	return median(v)
}

// ratio is the median of the ratios of each round: what the machine does
// besides hits both alike.
func ratio(a, b map[int]float64) float64 {
	var v []float64
	for round, x := range a {
		if y := b[round]; y > 0 {
			v = append(v, x/y)
		}
	}
	return median(v)
}

func coldKey(objects int, subject string) string { return fmt.Sprintf("%d %s", objects, subject) }

// cold is the median of one figure of the starts with so many objects.
func (r *Results) cold(objects int, subject string, of func(Cold) float64) float64 {
	var v []float64
	for _, c := range r.Cold[coldKey(objects, subject)] {
		v = append(v, of(c))
	}
	return median(v)
}

// memoryOfObject is what each of n objects takes: what more memory a start has
// than one with the fewest. It is 0 where there is nothing to compare.
func (r *Results) memoryOfObject(n int, subject string) float64 {
	few := sizes[0]
	found := func(c Cold) float64 { return c.RSSFound }
	full, base := r.cold(n, subject, found), r.cold(few, subject, found)
	if n <= few || full == 0 || base == 0 {
		return 0
	}
	return (full - base) / float64(n-few)
}

// inner is a Go benchmark; ok tells whether it ran.
func (r *Results) inner(pkg, name string) (b GoBenchmark, ok bool) {
	for _, b := range r.Inner {
		if b.Package == pkg && b.Name == name {
			return b, true
		}
	}
	return b, false
}
