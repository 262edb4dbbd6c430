package sealtest

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// The test binary plays the other process when this variable holds a task.
const taskVariable = "ICN_P11_SEALTEST_TASK"

type task struct {
	What   string
	Device string
	Dir    string
	Serial string
	PIN    string
	Count  int
}

// Main is what TestMain calls: it runs the tests, or does the task of a
// process that a test has started.
func Main(m *testing.M, open Opener) {
	if s := os.Getenv(taskVariable); s != "" {
		if err := child(s, open); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func (f *fixture) start(t *testing.T, w task) (*exec.Cmd, *bufio.Scanner, *bytes.Buffer) {
	t.Helper()
	w.Device, w.Dir = f.device, f.dir
	js, err := json.Marshal(w)
	ok(t, err)
	exe, err := os.Executable()
	ok(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), taskVariable+"="+string(js))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	return cmd, bufio.NewScanner(out), &stderr
}

func child(s string, open Opener) error {
	var w task
	if err := json.Unmarshal([]byte(s), &w); err != nil {
		return err
	}
	dev, err := open(w.Device)
	if err != nil {
		return err
	}
	defer dev.Close()
	st := sealstore.Open(w.Dir, dev, nil)
	if w.What == "reinit" {
		for {
			fmt.Println("begin")
			if _, err := st.Reinit(w.Serial, "again", SOPIN, nil); err != nil {
				return err
			}
		}
	}
	if w.What == "token" {
		_, err := st.Create(sealstore.InitParams{Label: "by a child", SOPIN: SOPIN})
		return err
	}
	tok, err := st.Token(w.Serial)
	if err != nil {
		return err
	}
	if err := tok.Login(sealstore.User, []byte(w.PIN)); err != nil {
		return err
	}
	switch w.What {
	case "create":
		for range w.Count {
			id, err := put(tok)
			if err != nil {
				return err
			}
			fmt.Printf("stored %x\n", id)
		}
		return nil
	case "churn":
		return churn(tok, w.PIN)
	}
	return fmt.Errorf("unknown task %q", w.What)
}

// put stores an object whose body is what its seal holds.
func put(tok *sealstore.Token) (sealstore.ID, error) {
	secret := seed()
	o, err := tok.CreateObject(true, secret, secret, nil)
	return o.ID, err
}

// churn writes until it is killed, and says what it is about to do and what is
// done.
func churn(tok *sealstore.Token, pin string) error {
	for n := 0; ; n++ {
		id, err := put(tok)
		if err != nil {
			return err
		}
		fmt.Printf("stored %x\n", id)
		objs, err := tok.Objects()
		if err != nil {
			return err
		}
		o := objs[rand.IntN(len(objs))]
		if _, err := tok.UpdateObject(o.ID, o.Stamp, o.Body); err != nil {
			return err
		}
		if n%3 == 2 {
			o := objs[rand.IntN(len(objs))]
			fmt.Printf("deleting %x\n", o.ID)
			if err := tok.DeleteObject(o.ID); err != nil {
				return err
			}
		}
		if n%4 == 1 {
			next := fmt.Sprintf("pin-%d-%d", os.Getpid(), n)
			fmt.Printf("pin %s\n", next)
			if err := tok.SetPIN(sealstore.User, []byte(pin), []byte(next)); err != nil {
				return err
			}
			pin = next
			fmt.Printf("changed %s\n", pin)
		}
	}
}

// processes has several processes write at once; nothing may get lost.
func processes(t *testing.T, f *fixture) {
	tok := f.token(t)
	const n, each = 6, 3
	want := map[string]bool{}
	type run struct {
		cmd    *exec.Cmd
		out    *bufio.Scanner
		stderr *bytes.Buffer
	}
	var runs []run
	for range n {
		cmd, out, stderr := f.start(t, task{What: "create", Serial: serial(t, tok), PIN: string(UserPIN), Count: each})
		runs = append(runs, run{cmd, out, stderr})
	}
	for range 2 {
		cmd, out, stderr := f.start(t, task{What: "token"})
		runs = append(runs, run{cmd, out, stderr})
	}
	for _, r := range runs {
		for r.out.Scan() {
			if id, found := strings.CutPrefix(r.out.Text(), "stored "); found {
				want[id] = true
			}
		}
		if err := r.cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, r.stderr)
		}
	}
	got := all(t, tok)
	if len(want) != n*each || len(got) != len(want) {
		t.Fatalf("%d reported, %d there", len(want), len(got))
	}
	for id, o := range got {
		if !want[hex.EncodeToString(id[:])] {
			t.Errorf("object %x was not reported", id)
		}
		checkSecret(t, tok, o)
	}
	list, err := f.store.Tokens()
	ok(t, err)
	if len(list) != 3 {
		t.Errorf("%d tokens", len(list))
	}
}

func checkSecret(t *testing.T, tok *sealstore.Token, o sealstore.Object) {
	t.Helper()
	if p, err := unseal(t, tok, o.ID); err != nil || !bytes.Equal(p, o.Body) {
		t.Errorf("object %x: %v", o.ID, err)
	}
}

// killed kills a process while it writes, over and over.
func killed(t *testing.T, f *fixture) {
	first := f.token(t)
	ser := serial(t, first)
	pins := []string{string(UserPIN)} // the one that holds, or one of two
	stored, made := map[string]bool{}, 0
	for range f.suite.Kills {
		cmd, out, stderr := f.start(t, task{What: "churn", Serial: ser, PIN: pins[0]})
		deleting := ""
		var kill *time.Timer
		for out.Scan() {
			// Once it is at work, however long a busy machine takes for that.
			if kill == nil {
				kill = time.AfterFunc(rand.N(200*time.Millisecond), func() { cmd.Process.Kill() })
			}
			what, arg, _ := strings.Cut(out.Text(), " ")
			switch what {
			case "stored":
				stored[arg] = true
				made++
			case "deleting":
				delete(stored, arg)
				deleting = arg
			case "pin":
				pins = []string{pins[0], arg}
			case "changed":
				pins = []string{arg}
			}
		}
		cmd.Wait()
		if stderr.Len() != 0 {
			t.Fatal(stderr)
		}
		tok, err := f.open(t).Token(ser)
		ok(t, err)
		for i, p := range pins {
			if err = tok.Login(sealstore.User, []byte(p)); err == nil {
				pins = []string{p}
				break
			} else if i == len(pins)-1 || !errors.Is(err, sealstore.ErrAuth) {
				t.Fatal(err)
			}
		}
		got := all(t, tok)
		for id := range stored {
			raw, _ := hex.DecodeString(id)
			o, there := got[sealstore.ID(raw)]
			if !there {
				t.Fatalf("object %s is lost", id)
			}
			checkSecret(t, tok, o)
		}
		for id := range got {
			if s := hex.EncodeToString(id[:]); !stored[s] && s != deleting {
				stored[s] = true // finished, but killed before it said so
			}
		}
		// A later writer removes what was left behind.
		if id, err := put(tok); err == nil {
			stored[hex.EncodeToString(id[:])] = true
		} else {
			t.Fatal(err)
		}
		if left, _ := filepath.Glob(filepath.Join(f.dir, "tokens", ser, "objects", ".tmp-*")); len(left) != 0 {
			t.Error("left behind:", left)
		}
		tok.Logout()
	}
	if made < f.suite.Kills {
		t.Errorf("only %d objects were made: the processes died too early", made)
	}
}

// killedReinit kills a process that initialises a token anew: there is always
// a whole token, old or new.
func killedReinit(t *testing.T, f *fixture) {
	tok := f.token(t)
	ser := serial(t, tok)
	for range f.suite.Kills {
		cmd, out, stderr := f.start(t, task{What: "reinit", Serial: ser})
		time.AfterFunc(time.Duration(100+rand.IntN(150))*time.Millisecond, func() { cmd.Process.Kill() })
		done := make(chan struct{})
		go func() {
			defer close(done)
			for out.Scan() {
			}
			cmd.Wait()
		}()
		for running := true; running; {
			select {
			case <-done:
				running = false
			default:
			}
			if list, err := f.store.Tokens(); err != nil || len(list) != 1 {
				t.Fatal("during: ", list, err)
			}
		}
		if stderr.Len() != 0 {
			t.Fatal(stderr)
		}
		tok, err := f.open(t).Token(ser)
		ok(t, err)
		ok(t, tok.Login(sealstore.SO, SOPIN))
		ok(t, tok.InitUserPIN(UserPIN))
		ok(t, tok.Login(sealstore.User, UserPIN))
		_, err = put(tok)
		ok(t, err)
	}
	_, err := f.store.Create(sealstore.InitParams{Label: "next", SOPIN: SOPIN})
	ok(t, err)
	if left, _ := filepath.Glob(filepath.Join(f.dir, "tokens", ".tmp-*")); len(left) != 0 {
		t.Error("left behind:", left)
	}
}
