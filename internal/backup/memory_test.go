//go:build !race

package backup

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
	"github.com/InterCooperative-Network/icn-p11/internal/memscantest"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// Of the seeds in a backup no copy is left outside of secret memory, whatever
// age does with them on the Go heap, in a build without runtime/secret as well.
func TestSeedsAreNotInMemory(t *testing.T) {
	to, by := native(t)
	type size struct{ keys, body int }
	sizes := []size{{40, 300}, {1000, 300}}
	// The last bytes of some fill a block of the Go heap, which then grows again.
	for body := 400; body < 432; body += 4 {
		sizes = append(sizes, size{1, body})
	}
	for _, n := range sizes {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			b := sample(t)
			b.Contents.Objects, b.Manifest.Keys, b.Manifest.DID = nil, nil, ""
			var needles []memscantest.Needle
			for i := range n.keys {
				secret, err := b.Contents.SecretBuffer(eddsa.SeedSize)
				check(t, err)
				rand.Read(secret)
				needles = append(needles, memscantest.Mask("a seed", secret))
				k, err := eddsa.NewKey(secret)
				check(t, err)
				public := k.Public()
				k.Destroy()
				b.Contents.Objects = append(b.Contents.Objects, sealstore.Content{
					ID: sealstore.ID{byte(i >> 8), byte(i)}, Private: true, Body: make([]byte, n.body), Secret: secret, About: public[:]})
			}
			look := func() (hits []memscantest.Hit) {
				t.Helper()
				for _, h := range memscantest.Scan(t, os.Getpid(), needles) {
					if !h.Locked {
						hits = append(hits, h)
					}
				}
				return hits
			}
			none := func(when string) {
				t.Helper()
				for _, h := range look() {
					t.Errorf("%s: %s", when, h)
				}
			}
			none("before")
			w, err := Encrypt(b, to, false)
			check(t, err)
			none("encrypted")
			check(t, w.Check(w.Data))
			none("read back")
			got, err := Decrypt(w.Data, by)
			check(t, err)
			none("decrypted")
			stray := bytes.Clone(got.Contents.Objects[0].Secret)
			if len(look()) == 0 {
				t.Error("a copy is not found: the search is blind")
			}
			secmem.Wipe(stray)
			got.Destroy()
			w.Destroy()
		})
	}
}
