package p11

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/sealstore/memseal"
)

// TestMemoryOfObjects: an object that is known takes little memory, of which
// the garbage collector wants as much again.
func TestMemoryOfObjects(t *testing.T) {
	const objects, most = 500, 1024 // bytes, for a public key
	dir := t.TempDir()
	m, dev := NewModule(), memseal.New()
	startWith(t, m, dev, dir, nil)
	h := token(t, m)
	point := append(edwards25519.octets(), 0x58)
	point = append(point, bytes.Repeat([]byte{0x66}, 31)...)
	for i := range objects {
		label := fmt.Appendf(nil, "object %06d", i)
		_, err := m.CreateObject(h, []Attribute{{CKA_CLASS, ulong(CKO_PUBLIC_KEY)}, {CKA_KEY_TYPE, ulong(CKK_EC_EDWARDS)}, {CKA_TOKEN, yes},
			{CKA_LABEL, label}, {CKA_ID, label}, {CKA_EC_PARAMS, edwardsOID}, {CKA_EC_POINT, point}})
		must(t, err)
	}

	m = NewModule()
	startWith(t, m, dev, dir, nil)
	h = open(t, m, 0)
	heap := func() uint64 {
		var s runtime.MemStats
		runtime.GC()
		runtime.GC() // what the first has found to be garbage may have had a finalizer
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	before := heap()
	found := find(t, m, h, Attribute{CKA_CLASS, ulong(CKO_PUBLIC_KEY)})
	if len(found) != objects {
		t.Fatalf("%d objects, not %d", len(found), objects)
	}
	found = nil
	each := (int64(heap()) - int64(before)) / objects
	t.Logf("%d bytes an object", each)
	if each > most {
		t.Errorf("%d bytes an object, more than %d", each, most)
	}
	runtime.KeepAlive(m)
}
