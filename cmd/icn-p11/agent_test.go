package main

import (
	"crypto/ed25519"
	"errors"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh/agent"

	"github.com/InterCooperative-Network/icn-p11/internal/memscantest"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
)

// agentPlace is a token on a TPM of its own, and where its agent may listen.
type agentPlace struct {
	t   *testing.T
	dir string // short enough for sockets
	env []string
}

func newAgentPlace(t *testing.T) *agentPlace {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &agentPlace{t: t, dir: dir}
	conf := filepath.Join(dir, "conf")
	if err := writeConf(conf, swtpmtest.Start(t).Device(), filepath.Join(dir, "store")); err != nil {
		t.Fatal(err)
	}
	p.env = append(os.Environ(), "ICN_P11_CONF="+conf, "HOME="+dir, "XDG_RUNTIME_DIR="+dir, "PIN=user-1234", "SO_PIN=so-1234")
	p.run("icn-p11", "init", "--label", "a node", "--pin-source", "env:PIN", "--so-pin-source", "env:SO_PIN")
	return p
}

func (p *agentPlace) command(args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env, cmd.Dir, cmd.Stderr = p.env, p.dir, &strings.Builder{}
	return cmd
}

func (p *agentPlace) run(args ...string) {
	p.t.Helper()
	cmd := p.command(args...)
	if err := cmd.Run(); err != nil {
		p.t.Fatalf("%v: %v: %s", args, err, cmd.Stderr)
	}
}

func dialAgent(t *testing.T, path string) agent.ExtendedAgent {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return agent.NewClient(c)
}

// listens tells whether a socket has been bound and listens: a client that
// connected to find out would already activate the service.
func listens(t *testing.T, path string) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		const flags, name, accepts = 3, 7, "00010000" // __SO_ACCEPTCON
		if f := strings.Fields(line); len(f) > name && f[name] == path {
			return f[flags] == accepts
		}
	}
	return false
}

func keysOf(t *testing.T, c agent.Agent) []*agent.Key {
	t.Helper()
	keys, err := c.List()
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// otherAgent is an SSH agent that is not ours, with one key.
func otherAgent(t *testing.T) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	ring := agent.NewKeyring()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := ring.Add(agent.AddedKey{PrivateKey: key, Comment: "theirs"}); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go agent.ServeAgent(ring, c)
		}
	}()
	return path
}

// unit reads the last value of a directive in a unit and what is dropped in.
func unit(t *testing.T, directive string, files ...string) string {
	t.Helper()
	value := ""
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join("../../dist/systemd", f))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^`+directive+`=(.*)$`).FindAllStringSubmatch(string(text), -1) {
			value = m[1]
		}
	}
	if value == "" {
		t.Fatalf("no %s", directive)
	}
	return value
}

// service runs what a unit starts, as systemd does: with the socket, and told
// when it is ready.
type service struct {
	*exec.Cmd
	t    *testing.T
	path string
}

func (p *agentPlace) service(credentials string, files ...string) *service {
	p.t.Helper()
	expand := strings.NewReplacer("%I", "a node", "%i", `a\x20node`, "%t", p.dir, "%E", filepath.Join(p.dir, ".config"), "/usr/local/bin/", "")
	var args []string
	for _, a := range strings.Fields(unit(p.t, "ExecStart", files...)) {
		args = append(args, expand.Replace(a)) // systemd, too, splits before it expands
	}
	path := expand.Replace(unit(p.t, "ListenStream", "icn-p11-agent@.socket"))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		p.t.Fatal(err)
	}
	os.Remove(path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		p.t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	f, err := l.File()
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	notify := filepath.Join(p.dir, "notify")
	os.Remove(notify)
	n, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		p.t.Fatal(err)
	}
	defer n.Close()
	cmd := p.command(append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, args...)...)
	cmd.Env = append(slices.Clone(p.env), "LISTEN_FDS=1", "NOTIFY_SOCKET="+notify, "CREDENTIALS_DIRECTORY="+credentials)
	cmd.ExtraFiles = []*os.File{f}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	s := &service{cmd, p.t, path}
	p.t.Cleanup(func() { s.Process.Kill() })
	n.SetReadDeadline(time.Now().Add(time.Minute))
	state := make([]byte, 1024)
	k, err := n.Read(state)
	if err != nil || !strings.HasPrefix(string(state[:k]), "READY=1\nSTATUS=") {
		s.Process.Kill()
		s.Wait()
		p.t.Fatalf("systemd is told %q: %v: %s", state[:k], err, s.Stderr)
	}
	return s
}

// end ends the service as systemd does. The socket is systemd's.
func (s *service) end() {
	s.t.Helper()
	s.Process.Signal(syscall.SIGTERM)
	if err := s.Wait(); err != nil {
		s.t.Errorf("%v: %s", err, s.Stderr)
	}
	if _, err := os.Lstat(s.path); err != nil {
		s.t.Error(err)
	}
}

// The units of systemd are what systemd takes, and what they start does what
// they say.
func TestAgentOfSystemd(t *testing.T) {
	p := newAgentPlace(t)

	t.Run("units", func(t *testing.T) {
		command, err := exec.LookPath("icn-p11")
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"systemd-analyze", "--user", "--man=no", "verify"}
		for _, name := range []string{"icn-p11-agent@.socket", "icn-p11-agent@.service"} {
			text, err := os.ReadFile(filepath.Join("../../dist/systemd", name))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(p.dir, name)
			if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), "/usr/local/bin/icn-p11", command)), 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, path)
		}
		out, err := p.command(args...).Output()
		if err != nil && !errors.As(err, new(*exec.ExitError)) {
			t.Fatalf("systemd-analyze (Debian package systemd): %v", err)
		}
		if err != nil || len(out) > 0 {
			t.Errorf("%v: %s", err, out)
		}
	})

	t.Run("locked", func(t *testing.T) {
		s := p.service("", "icn-p11-agent@.service")
		c := dialAgent(t, s.path)
		if keys := keysOf(t, c); len(keys) != 0 {
			t.Errorf("%d keys without a PIN", len(keys))
		}
		if err := c.Unlock([]byte("user-1234")); err != nil {
			t.Error(err)
		}
		if keys := keysOf(t, c); len(keys) != 1 || keys[0].Comment != identityLabel {
			t.Errorf("%v", keys)
		}
		s.end()
	})

	t.Run("unattended", func(t *testing.T) {
		name, path, _ := strings.Cut(unit(t, "LoadCredential", "unattended.conf"), ":")
		if path != "%E/icn/%i.pin" {
			t.Fatal(path)
		}
		dir := filepath.Join(p.dir, "credentials")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		pin := func(s string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(s+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		pin("user-1234")
		s := p.service(dir, "icn-p11-agent@.service", "unattended.conf")
		if keys := keysOf(t, dialAgent(t, s.path)); len(keys) != 1 {
			t.Errorf("%d keys", len(keys))
		}
		s.end()

		// Started anew for each client, it would use up the TPM's tries.
		pin("wrong-1234")
		s = p.service(dir, "icn-p11-agent@.service", "unattended.conf")
		c := dialAgent(t, s.path)
		if keys := keysOf(t, c); len(keys) != 0 {
			t.Errorf("%d keys with a wrong PIN", len(keys))
		}
		if err := c.Unlock([]byte("user-1234")); err != nil {
			t.Error(err)
		}
		s.end()
	})

	// As systemd itself passes a socket.
	t.Run("activated", func(t *testing.T) {
		path := filepath.Join(p.dir, "activated")
		args := []string{"systemd-socket-activate", "--listen", path}
		for _, name := range []string{"ICN_P11_CONF", "HOME", "XDG_RUNTIME_DIR", "PATH"} {
			args = append(args, "--setenv="+name) // it passes nothing else
		}
		command, err := exec.LookPath("icn-p11")
		if err != nil {
			t.Fatal(err)
		}
		cmd := p.command(append(args, command, "agent", "--json", "--locked", "a node")...)
		var out strings.Builder
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatalf("systemd-socket-activate (Debian package systemd): %v", err)
		}
		defer cmd.Process.Kill()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			if listens(t, path) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("it does not listen")
			}
		}
		c := dialAgent(t, path)
		if err := c.Unlock([]byte("user-1234")); err != nil {
			t.Error(err)
		}
		if keys := keysOf(t, c); len(keys) != 1 {
			t.Errorf("%d keys", len(keys))
		}
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, cmd.Stderr)
		}
		doc, err := document(out.String())
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		fields(doc, seen)
		man := readManual(t).json
		if got, want := slices.Sorted(maps.Keys(seen)), slices.Concat(man["agent"], man["key list"]); len(got) != len(want)-1 || // both have a label
			slices.ContainsFunc(got, func(f string) bool { return !slices.Contains(want, f) }) {
			t.Errorf("the fields %v, and in the manual %v", got, want)
		}
	})

	t.Run("mistakes", func(t *testing.T) {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer tcp.Close()
		file, err := tcp.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		ofTCP := p.command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec icn-p11 agent --locked "a node"`)
		ofTCP.ExtraFiles = []*os.File{file}
		for what, cmd := range map[string]*exec.Cmd{
			"no socket at all":   p.command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec icn-p11 agent --locked "a node" 3</dev/null`),
			"two sockets":        p.command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=2 exec icn-p11 agent --locked "a node" 3</dev/null`),
			"a socket of TCP":    ofTCP,
			"and another socket": p.command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec icn-p11 agent --locked --socket x "a node" 3</dev/null`),
		} {
			if err := cmd.Run(); err == nil {
				t.Errorf("%s: accepted", what)
			} else if !strings.Contains(cmd.Stderr.(*strings.Builder).String(), "socket") {
				t.Errorf("%s: %s", what, cmd.Stderr)
			}
		}
	})
}

// Neither a seed, nor a root secret, a PIN or a passphrase is in the memory of
// an agent where root could read it: not while it is unlocked, not while it is
// locked, and not after it was unlocked again.
func TestCommandMemoryOfAgent(t *testing.T) {
	for _, experiment := range experiments {
		t.Run(experiment, func(t *testing.T) {
			t.Parallel()
			w := newWatched(t, buildCommand(t, experiment))
			w.look = func(int, int) {}
			user, so, label, passphrase := newPIN(), newPIN(), newPIN(), newPIN()
			if err := w.start(nil, []string{so, user}, "init", "--label", label, "--pin-source=fd:0", "--so-pin-source=fd:0").Wait(); err != nil {
				t.Fatal(err)
			}
			w.learn(user, so)
			w.needles = append(w.needles, memscantest.Mask("a passphrase", []byte(passphrase)))
			dir, err := os.MkdirTemp("", "agent")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			path := filepath.Join(dir, "s")
			cmd := w.start(nil, []string{user}, "agent", label, "--pin-source=fd:0", "--socket", path)
			defer cmd.Wait()
			defer cmd.Process.Kill()
			for deadline := time.Now().Add(time.Minute); !listens(t, path); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the agent does not listen")
				}
			}
			c := dialAgent(t, path)
			sign := func() {
				t.Helper()
				keys := keysOf(t, c)
				if len(keys) != 1 {
					t.Fatalf("%d keys", len(keys))
				}
				sig, err := c.Sign(keys[0], []byte("a message"))
				if err != nil {
					t.Fatal(err)
				}
				if public := ed25519.PublicKey(keys[0].Blob[len(keys[0].Blob)-32:]); !ed25519.Verify(public, []byte("a message"), sig.Blob) {
					t.Error("the signature is wrong")
				}
			}
			control := memscantest.Mask("control", []byte(label))
			search := func(when string, locked bool) {
				t.Helper()
				for _, h := range memscantest.Scan(t, cmd.Process.Pid, w.needles) {
					// A locked agent has nothing in secret memory, either.
					if h.Name != memscantest.AuthValue && (!h.Locked || locked) {
						t.Errorf("%s: %v", when, h)
					}
				}
				if len(memscantest.Scan(t, cmd.Process.Pid, []memscantest.Needle{control})) == 0 {
					t.Errorf("%s: the agent's arguments were not found: the search is blind", when)
				}
			}
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			sign()
			search("unlocked", false)
			must(c.Lock([]byte(passphrase)))
			search("locked by a passphrase", true)
			must(c.Unlock([]byte(passphrase)))
			sign()
			search("unlocked by a passphrase", false)
			must(c.Lock([]byte(user)))
			search("locked until the PIN is given", true)
			must(c.Unlock([]byte(user)))
			sign()
			search("unlocked by the PIN", false)
			offered := newPIN() + "12345678"
			key := ed25519.NewKeyFromSeed([]byte(offered))
			w.needles = append(w.needles, memscantest.Mask("a key that was offered", []byte(offered)))
			if err := c.Add(agent.AddedKey{PrivateKey: key}); err == nil {
				t.Error("a key was added")
			}
			search("after a key was offered", false)
			must(cmd.Process.Signal(syscall.SIGTERM))
			must(cmd.Wait())
		})
	}
}
