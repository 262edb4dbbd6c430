package p11tool

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
)

func init() {
	// sign LABEL COUNT: signs so often with the first key of a token, and
	// checks each signature.
	workers["sign"] = func(args []string) error {
		c, s, err := loginWorker(args[0])
		if err != nil {
			return err
		}
		defer c.Finalize()
		private, err := find(c, s, attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY))
		if err != nil {
			return err
		}
		public, err := find(c, s, attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY))
		if err != nil {
			return err
		}
		if len(private) != 1 || len(public) != 1 {
			return fmt.Errorf("%d private and %d public keys", len(private), len(public))
		}
		key, err := point(c, s, public[0])
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		for i := range n {
			if err := signChecked(c, s, private[0], key, fmt.Append(nil, os.Getpid(), i)); err != nil {
				return fmt.Errorf("signature %d: %w", i, err)
			}
		}
		fmt.Println(hex.EncodeToString(key))
		return nil
	}
}

// atOnce has 8 processes sign 200 times each, while another program uses the
// TPM, and returns when all have ended well.
func atOnce(t *testing.T, other func(n int) error) {
	t.Helper()
	const processes, signatures = 8, 200
	var wg sync.WaitGroup
	for range processes {
		wg.Go(func() {
			cmd := worker(t, "sign", "test token", strconv.Itoa(signatures))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for n := 0; ; n++ {
		select {
		case <-done:
			if n < 3 {
				t.Errorf("the other program ran %d times only", n)
			}
			return
		default:
		}
		if err := other(n); err != nil {
			t.Errorf("the other program: %v", err)
		}
	}
}

// tool runs one of tpm2-tools on a TPM.
func tool(tcti string, args ...string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+tcti)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s (Debian package tpm2-tools): %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// leftovers fails the test if there are transient objects or sessions.
func leftovers(t *testing.T, tcti string) {
	t.Helper()
	for _, kind := range []string{"handles-transient", "handles-loaded-session", "handles-saved-session"} {
		out, err := tool(tcti, "tpm2_getcap", kind)
		ok(t, kind, err)
		if out != "" {
			t.Errorf("%s: %s", kind, out)
		}
	}
}

// TestSharedTPM: 8 processes sign 200 times each on a TPM without a resource
// manager, beside tpm2-tools.
func TestSharedTPM(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		prepare(t)
		tcti := "swtpm:path=" + p.tpm
		atOnce(t, func(n int) error {
			// What tpm2_createprimary makes stays in the TPM, and soon fills it.
			_, err := tool(tcti, [][]string{
				{"tpm2_getrandom", "--hex", "8"},
				{"tpm2_createprimary", "--key-algorithm=ecc"},
				{"tpm2_pcrread", "sha256:7"},
				{"tpm2_createprimary", "--key-algorithm=ecc"},
				{"tpm2_flushcontext", "--transient-object"},
			}[n%5]...)
			if err != nil && n%5 == 4 && (strings.Contains(err.Error(), "0x00000910") || strings.Contains(err.Error(), "0x000001cb")) {
				// It has a connection for each command. Between that for the list of what is
				// there and the next, or before it is to flush that, somebody who needed the
				// room has flushed it.
				return nil
			}
			return err
		})
		_, err := tool(tcti, "tpm2_flushcontext", "--transient-object")
		ok(t, "flush", err)
		leftovers(t, tcti)
	})
}

// TestSharedBroker is the same through tpm2-abrmd, where connections stay open.
func TestSharedBroker(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		b := swtpmtest.StartBroker(t, p.tpm)
		p.writeConf(t, b.Device(), setup{})
		prepare(t)
		atOnce(t, func(int) error {
			_, err := tool("tabrmd:bus_type=session", "tpm2_getrandom", "--hex", "8")
			return err
		})
		leftovers(t, "tabrmd:bus_type=session")
	})
}

// TestKilledClients: what a client leaves in the TPM that is killed between
// Load and Flush, 20 times, keeps no other from working.
func TestKilledClients(t *testing.T) {
	isolated(t, setup{proxy: true}, func(t *testing.T, p *place) {
		prepare(t)
		want, err := hex.DecodeString(runWorker(t, "sign", "test token", "1"))
		ok(t, "key", err)
		for n := range 20 {
			cmd := worker(t, "sign", "test token", "1000")
			loaded := make(chan bool)
			loads := 0
			p.proxy.onAnswer(func(code uint32) {
				// Not always the first: the login loads too.
				if code != ccLoad {
					return
				}
				if loads++; loads == 1+n%5 {
					loaded <- true
					<-loaded
				}
			})
			ok(t, "worker", cmd.Start())
			<-loaded
			ok(t, "kill", cmd.Process.Kill())
			if err := cmd.Wait(); err == nil {
				t.Error("the worker was not killed")
			}
			p.proxy.onAnswer(nil)
			loaded <- true
			got, err := hex.DecodeString(runWorker(t, "sign", "test token", "2"))
			ok(t, "key", err)
			if !ed25519.PublicKey(got).Equal(ed25519.PublicKey(want)) {
				t.Error("another key")
			}
		}
	})
}
