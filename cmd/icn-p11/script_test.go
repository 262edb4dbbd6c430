package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"icn-p11": main})
}

// Keys of what a script's own commands need.
const (
	tpmKey  = "tpm"
	testKey = "test"
)

// The scripts run the command over a software TPM that each has for itself.
// They have these commands besides testscript's own:
//
//	tpm stop     as a power failure would
//	tpm start    with the state that it had
//	tpm other    another TPM in its place
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			t := env.T().(testing.TB)
			tpm := swtpmtest.Start(t)
			env.Values[testKey], env.Values[tpmKey] = t, tpm
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
			env.Setenv("USER_PIN", "user-1234")
			env.Setenv("SO_PIN", "so-1234")
			return writeConf(conf, tpm.Device(), env.Getenv("STORE"))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"tpm": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) != 1 {
					ts.Fatalf("usage: tpm stop|start|other")
				}
				tpm := ts.Value(tpmKey).(*swtpmtest.TPM)
				switch args[0] {
				case "stop":
					tpm.Stop()
				case "start":
					tpm.Restart()
				case "other":
					other := swtpmtest.Start(ts.Value(testKey).(testing.TB))
					ts.Check(writeConf(ts.Getenv("ICN_P11_CONF"), other.Device(), ts.Getenv("STORE")))
				default:
					ts.Fatalf("usage: tpm stop|start|other")
				}
			},
		},
	})
}

func writeConf(path, device, store string) error {
	text := fmt.Sprintf("device_path = %q\nsealed_blob_dir = %q\nlog_file = %q\n", device, store, path+".log")
	return os.WriteFile(path, []byte(text), 0o600)
}
