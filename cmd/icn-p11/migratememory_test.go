package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/memscantest"
	"github.com/InterCooperative-Network/icn-p11/internal/migration"
)

// A token passes from one machine to another without a seed, a root secret or a
// PIN in the memory of either's command where root could read it.
func TestMigrationMemory(t *testing.T) {
	for _, experiment := range experiments {
		t.Run(experiment, func(t *testing.T) {
			t.Parallel()
			command := buildCommand(t, experiment)
			from, to := newWatched(t, command), newWatched(t, command)
			user, so, user2, so2 := newPIN(), newPIN(), newPIN(), newPIN()
			label := newPIN()
			control := memscantest.Mask("control", []byte(label))
			dir := t.TempDir()
			offer, parcel, proof := filepath.Join(dir, label+".offer"), filepath.Join(dir, label), filepath.Join(dir, label+".proof")
			const fd, soFD = "--pin-source=fd:0", "--so-pin-source=fd:0"
			search := func(w *watched, m *memscantest.Memory, what string) {
				t.Helper()
				for _, h := range m.Search(w.needles) {
					if !h.Locked && h.Name != memscantest.AuthValue {
						t.Error(h)
					}
				}
				if len(m.Search([]memscantest.Needle{control})) == 0 {
					t.Errorf("%s: its arguments were not found: the search is blind", what)
				}
			}

			from.run([]string{so, user}, "init", "--label", label, "--recoverable", fd, soFD)
			from.run([]string{user}, "key", "generate", label, "--label", "second", fd)
			from.learn(user, so)
			m := to.run(nil, "migrate", "offer", "--out", offer)
			search(to, m, "offer")
			text, err := os.ReadFile(offer)
			if err != nil {
				t.Fatal(err)
			}
			o, err := migration.ParseOffer(text)
			if err != nil {
				t.Fatal(err)
			}

			m = from.run([]string{so, user}, "migrate", "send", label, "--to", offer, "--out", parcel, "--move", "--fingerprint", o.Fingerprint(), fd, soFD)
			search(from, m, "send")

			to.needles = append(to.needles, from.needles...)
			m = to.run([]string{so2, user2}, "migrate", "accept", parcel, "--proof", proof, fd, soFD)
			to.learn(user2, so2)
			search(to, m, "accept")
			t.Logf("%d TPM commands to send, %d to accept", from.commands, to.commands)
			if _, err := os.Stat(proof); err != nil {
				t.Error(err)
			}
		})
	}
}
