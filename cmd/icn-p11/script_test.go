package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"icn-p11": main})
}

// Keys of what a script's own commands need.
const (
	rackKey = "rack"
	testKey = "test"
)

// rack is what the machines of a script are in.
type rack struct {
	machines map[string]*swtpmtest.TPM
	at       *swtpmtest.TPM // of the machine that the script is on
	maker    *swtpmtest.Maker
}

// The scripts run the command over a software TPM that each has for itself.
// They have these commands besides testscript's own:
//
//	tpm stop     as a power failure would
//	tpm start    with the state that it had
//	tpm other    another TPM in its place
//	tpm boot LOG a restart, with the measurements of an event log
//
//	machine NAME           from here on another machine, with a TPM and a store
//	                       of its own; the script begins on one called first
//	machine NAME certified the same for one whose TPM has a certificate of its
//	                       maker, who is in the file $EK_CA
//
// $DOCS is the directory of the documents, whose commands some scripts run.
// $SECURE and $INSECURE are event logs of two boots: only the first has Secure
// Boot on.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			t := env.T().(testing.TB)
			tpm := swtpmtest.Start(t)
			env.Values[testKey], env.Values[rackKey] = t, &rack{machines: map[string]*swtpmtest.TPM{"first": tpm}, at: tpm}
			home := filepath.Join(env.WorkDir, "home")
			if err := os.Mkdir(home, 0o700); err != nil {
				return err
			}
			conf := filepath.Join(env.WorkDir, "icn-p11.conf")
			env.Setenv("HOME", home)
			env.Setenv("XDG_CONFIG_HOME", "")
			env.Setenv("XDG_DATA_HOME", "")
			env.Setenv("CREDENTIALS_DIRECTORY", "")
			env.Setenv("ICN_P11_CONF", conf)
			env.Setenv("STORE", filepath.Join(env.WorkDir, "store"))
			env.Setenv("DEVICE", tpm.Device())
			env.Setenv("TPM2TOOLS_TCTI", tpm.Device())
			docs, err := filepath.Abs("../../docs")
			if err != nil {
				return err
			}
			env.Setenv("DOCS", docs)
			env.Setenv("USER_PIN", "user-1234")
			env.Setenv("SO_PIN", "so-1234")
			if err := writeBootLogs(env); err != nil {
				return err
			}
			return writeConf(conf, tpm.Device(), env.Getenv("STORE"))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"tpm": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) == 0 {
					ts.Fatalf("usage: tpm stop|start|other|boot LOG")
				}
				tpm := ts.Value(rackKey).(*rack).at
				switch args[0] {
				case "stop":
					tpm.Stop()
				case "start":
					tpm.Restart()
				case "other":
					other := swtpmtest.Start(ts.Value(testKey).(testing.TB))
					ts.Value(rackKey).(*rack).at = other
					ts.Setenv("TPM2TOOLS_TCTI", other.Device())
					ts.Check(writeConf(ts.Getenv("ICN_P11_CONF"), other.Device(), ts.Getenv("STORE")))
				case "boot":
					tpm.Reboot()
					measure(ts, tpm, ts.ReadFile(args[1]))
				default:
					ts.Fatalf("usage: tpm stop|start|other|boot LOG")
				}
			},
			"machine": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) == 0 || len(args) > 2 || len(args) == 2 && args[1] != "certified" {
					ts.Fatalf("usage: machine NAME [certified]")
				}
				ts.Value(rackKey).(*rack).sit(ts, args[0], len(args) == 2)
			},
		},
	})
}

// sit goes to a machine, which is set up when it is first gone to.
func (r *rack) sit(ts *testscript.TestScript, name string, certified bool) {
	tpm := r.machines[name]
	conf, store := ts.MkAbs("icn-p11.conf"), ts.MkAbs("store")
	if name != "first" {
		conf, store = ts.MkAbs(name+".conf"), ts.MkAbs(name+".store")
	}
	if tpm == nil {
		t := ts.Value(testKey).(testing.TB)
		if certified {
			if r.maker == nil {
				r.maker = swtpmtest.NewMaker(t)
			}
			tpm = r.maker.Start()
			ts.Setenv("EK_CA", r.maker.CA())
		} else {
			tpm = swtpmtest.Start(t)
		}
		r.machines[name] = tpm
		ts.Check(writeConf(conf, tpm.Device(), store))
	}
	r.at = tpm
	ts.Setenv("ICN_P11_CONF", conf)
	ts.Setenv("STORE", store)
	ts.Setenv("DEVICE", tpm.Device())
	ts.Setenv("TPM2TOOLS_TCTI", tpm.Device())
}

func writeConf(path, device, store string) error {
	text := fmt.Sprintf("device_path = %q\nsealed_blob_dir = %q\nlog_file = %q\n", device, store, path+".log")
	return os.WriteFile(path, []byte(text), 0o600)
}

// measure extends the PCRs by the events of a log, as firmware does.
func measure(ts *testscript.TestScript, tpm *swtpmtest.TPM, log string) {
	l, err := tcg.ParseEventLog([]byte(log), tcg.ParseOpts{})
	ts.Check(err)
	for _, e := range l.Events(register.HashSHA256) {
		if e.Type != tcg.NoAction {
			tpm.Extend(e.Index, e.Digest)
		}
	}
}

func writeBootLogs(env *testscript.Env) error {
	secure, err := os.ReadFile("../../internal/bootlog/testdata/secure_boot.bin")
	if err != nil {
		return err
	}
	// The digest of the variable SecureBoot.
	on, _ := hex.DecodeString("ccfc4bb32888a345bc8aeadaba552b627d99348c767681ab3141f5b01e40a40e")
	off := sha256.Sum256(on)
	insecure := bytes.Replace(secure, on, off[:], 1)
	if bytes.Equal(secure, insecure) {
		return errors.New("the event log has no variable SecureBoot that is on")
	}
	for name, log := range map[string][]byte{"SECURE": secure, "INSECURE": insecure} {
		path := filepath.Join(env.WorkDir, name)
		env.Setenv(name, path)
		if err := os.WriteFile(path, log, 0o600); err != nil {
			return err
		}
	}
	return nil
}
