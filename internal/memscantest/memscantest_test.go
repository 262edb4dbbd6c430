package memscantest

import (
	"crypto/rand"
	"os"
	"testing"
)

// data is on a page of the program's file until something writes to it.
var data = [32]byte{1}

// What was written to the program's own data and to the heap is found.
func TestScan(t *testing.T) {
	for _, place := range []struct {
		name string
		b    []byte
	}{{"data", data[:]}, {"heap", make([]byte, 32)}} {
		rand.Read(place.b)
		needle := Mask(place.name, place.b)
		if len(Scan(t, os.Getpid(), []Needle{needle})) == 0 {
			t.Errorf("a secret in the %s was not found", place.name)
		}
		clear(place.b)
		if hits := Scan(t, os.Getpid(), []Needle{needle}); len(hits) > 0 {
			t.Errorf("a secret that was wiped is found: %v", hits)
		}
	}
}
