package sshagent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAskpass(t *testing.T) {
	ask := func(script string) error {
		t.Helper()
		path := filepath.Join(t.TempDir(), "ask")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		p := &Askpass{Program: path, Timeout: 30 * time.Second, Env: []string{"A=b"}}
		return p.Confirm(t.Context(), "a question")
	}
	for _, yes := range []string{"", "true", "echo", "echo yes", "echo YES", "printf yes", `test "$1" = "a question"`,
		`test "$SSH_ASKPASS_PROMPT$A" = confirmb`, "yes yes | head -c 100000"} {
		if err := ask(yes); err != nil {
			t.Errorf("%q: %v", yes, err)
		}
	}
	for _, no := range []string{"false", "echo no", "echo yes; false", "echo; echo >&2; exit 255", "echo yesterday", "kill -9 $$", "head -c 100000 /dev/zero"} {
		if err := ask(no); !errors.Is(err, errDenied) {
			t.Errorf("%q: %v", no, err)
		}
	}
}

func TestAskpassEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ask")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nsleep 60\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	err := (&Askpass{Program: path, Timeout: 50 * time.Millisecond}).Confirm(t.Context(), "")
	if !errors.Is(err, errDenied) || !strings.Contains(err.Error(), "no answer within 50ms") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errGone)
	if err := (&Askpass{Program: path, Timeout: time.Minute}).Confirm(ctx, ""); !errors.Is(err, errGone) {
		t.Error(err)
	}
	if err := (&Askpass{Program: path + "x", Timeout: time.Minute}).Confirm(t.Context(), ""); !errors.Is(err, errDenied) {
		t.Error(err)
	}
	if d := time.Since(begun); d > 30*time.Second {
		t.Errorf("it took %v", d)
	}
}
