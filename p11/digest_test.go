package p11

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"testing"
)

// digestVectors runs public vectors through every way to a digest: one call,
// parts, and parts with the state saved between them.
func digestVectors(t *testing.T, m *Module, h SessionHandle, reached map[MechanismType]bool) {
	types := map[string]MechanismType{
		"CKM_SHA_1": CKM_SHA_1, "CKM_SHA224": CKM_SHA224, "CKM_SHA256": CKM_SHA256, "CKM_SHA384": CKM_SHA384,
		"CKM_SHA512": CKM_SHA512, "CKM_SHA512_224": CKM_SHA512_224, "CKM_SHA512_256": CKM_SHA512_256,
		"CKM_SHA3_224": CKM_SHA3_224, "CKM_SHA3_256": CKM_SHA3_256, "CKM_SHA3_384": CKM_SHA3_384, "CKM_SHA3_512": CKM_SHA3_512,
	}
	b, err := os.ReadFile("testdata/digests.json")
	must(t, err)
	var vectors []struct {
		Mechanism, Source, Message, Digest string
		Repeat                             int
	}
	must(t, json.Unmarshal(b, &vectors))
	for _, v := range vectors {
		typ := types[v.Mechanism]
		reached[typ] = true
		part, err := hex.DecodeString(v.Message)
		must(t, err)
		msg := bytes.Repeat(part, v.Repeat)
		check := func(way string, digest []byte) {
			t.Helper()
			if hex.EncodeToString(digest) != v.Digest {
				t.Errorf("%s of %d bytes (%s), %s: %x", v.Mechanism, len(msg), v.Source, way, digest)
			}
		}
		out := Output{Buf: make([]byte, len(v.Digest)/2)}
		must(t, m.DigestInit(h, Mechanism{Type: typ}))
		must(t, m.Digest(h, msg, &out))
		check("in one call", out.Buf)
		must(t, m.DigestInit(h, Mechanism{Type: typ}))
		must(t, m.SetOperationState(h, save(t, m, h), 0, 0))
		for part := range slices.Chunk(msg, max(1, len(msg)/3)) {
			must(t, m.DigestUpdate(h, part))
			must(t, m.SetOperationState(h, save(t, m, h), 0, 0))
		}
		must(t, m.DigestFinal(h, &out))
		check("in parts", out.Buf)
	}
}
