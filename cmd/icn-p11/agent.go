package main

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/config"
	"github.com/InterCooperative-Network/icn-p11/internal/environment"
	"github.com/InterCooperative-Network/icn-p11/internal/pinsource"
	"github.com/InterCooperative-Network/icn-p11/internal/sshagent"
	"github.com/InterCooperative-Network/icn-p11/p11"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// agentFlags are how an agent is to behave.
type agentFlags struct {
	socket             string
	pin                pinsource.Source
	locked             bool
	confirm, sshOnly   bool
	timeout, lockAfter time.Duration
	uids               []uint
	json               bool
}

func (a *app) agentCommand() *cobra.Command {
	var f agentFlags
	cmd := &cobra.Command{
		Use:   "agent TOKEN [KEY]...",
		Short: "Serve keys of a token to SSH, git and other programs",
		Long: `Serve the Ed25519 keys of a token, all or those that KEY names, over the SSH
agent protocol, until a signal ends it. ssh, git, ssh-keygen and "icn-p11 agent sign"
then sign with them, also from containers and through "ssh -A"; the keys never leave
the agent. "ssh-add -x" locks it, "ssh-add -X" unlocks it, after a timeout by the user
PIN. "agent list" and "agent sign" are clients, of any SSH agent.`,
		Example: `  icn-p11 agent node --lock-after 15m
  icn-p11 agent node ssh --confirm --socket /run/user/1000/ssh.sock`,
		Args:              oneTokenAndMore,
		ValidArgsFunction: completeToken,
		RunE: a.does(func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			return a.agent(cmd, args[0], args[1:], f)
		}),
	}
	cmd.AddCommand(a.agentList(), a.agentSign())
	fl := cmd.Flags()
	fl.StringVar(&f.socket, "socket", "", "where to listen (default $XDG_RUNTIME_DIR/icn-p11/agent.sock)")
	fl.Var(&f.pin, "pin-source", "where the user PIN comes from (default: the token's pin_source, else prompt)")
	fl.BoolVar(&f.locked, "locked", false, "begin without the PIN, which \"ssh-add -X\" then takes")
	fl.BoolVar(&f.confirm, "confirm", false, "ask before each signature, by the program $SSH_ASKPASS")
	fl.BoolVar(&f.sshOnly, "ssh-only", false, "sign SSH logins and SSH signatures alone, no other messages")
	fl.DurationVar(&f.timeout, "timeout", 0, "lock this long after the login, such as 8h")
	fl.DurationVar(&f.lockAfter, "lock-after", 0, "lock this long after the last signature, such as 15m")
	fl.UintSliceVar(&f.uids, "allow-uid", nil, "number of a user who may connect, besides this one and root")
	fl.BoolVar(&f.json, "json", false, "print JSON")
	completeSource(cmd, "pin-source")
	noCompletion(cmd, "timeout", "lock-after", "allow-uid")
	return cmd
}

// oneTokenAndMore checks the arguments of a command that takes TOKEN and any
// number of others.
func oneTokenAndMore(cmd *cobra.Command, args []string) error {
	return oneToken(cmd, args[:min(1, len(args))])
}

func (f *agentFlags) check(cmd *cobra.Command) error {
	switch {
	case f.timeout < 0 || f.lockAfter < 0:
		return usage("a time is negative")
	case f.locked && cmd.Flags().Changed("pin-source"):
		return usage("--locked and --pin-source exclude each other")
	}
	for _, uid := range f.uids {
		if uint64(uid) >= 1<<32-1 {
			return usage("--allow-uid: %d is no user's number", uid)
		}
	}
	return nil
}

// options are those of the agent itself.
func (f *agentFlags) options(t sealstore.TokenInfo, log *slog.Logger) (sshagent.Options, error) {
	o := sshagent.Options{Name: t.Label, PIN: t.UserPIN, Timeout: f.timeout, LockAfter: f.lockAfter, SSHOnly: f.sshOnly, Log: log}
	for _, uid := range f.uids {
		o.UIDs = append(o.UIDs, uint32(uid))
	}
	if t.NoPIN && (f.locked || f.timeout > 0 || f.lockAfter > 0) {
		return o, fmt.Errorf("token %s needs no PIN, so that nothing could unlock it: leave out --locked, --timeout and --lock-after", printable(t.Label))
	}
	if f.confirm {
		program := environment.Get("SSH_ASKPASS")
		if program == "" {
			program = "ssh-askpass"
		}
		path, err := exec.LookPath(program)
		if err != nil {
			return o, advice.With(fmt.Errorf("--confirm has no program to ask with: %w", err), "install ssh-askpass, or set SSH_ASKPASS to one")
		}
		ask := sshagent.Askpass{Program: path, Timeout: time.Minute, Env: withoutPIN(environment.All(), f.pin)}
		o.Confirm = ask.Confirm
	}
	return o, nil
}

// withoutPIN leaves out of an environment what a PIN comes from.
func withoutPIN(env []string, src pinsource.Source) []string {
	name := src.Variable()
	return slices.DeleteFunc(env, func(v string) bool { return name != "" && strings.HasPrefix(v, name+"=") })
}

// agentResult is what an agent prints when it is ready.
type agentResult struct {
	Socket string   `json:"socket"`
	Serial string   `json:"serial"`
	Label  string   `json:"label"`
	Locked bool     `json:"locked"`
	Keys   []keyRow `json:"keys"`
}

func (a *app) agent(cmd *cobra.Command, token string, keys []string, f agentFlags) error {
	harden()
	at, err := findSocket(f)
	if err != nil {
		return err
	}
	defer at.close()
	p, t, err := a.openToken(token)
	if err != nil {
		return err
	}
	defer p.tpm.Close()
	if !t.UserPIN && !t.NoPIN {
		return explain(sealstore.ErrNoPIN)
	}
	if own := p.cfg.Token(t.Label).PINSource; own != nil && !cmd.Flags().Changed("pin-source") {
		f.pin = *own
	}
	logger, to, err := p.cfg.Logger()
	if err != nil {
		return err
	}
	defer to.Close()
	// What the protocol's package has to say of requests is nothing for the terminal.
	log.SetFlags(0)
	log.SetOutput(slog.NewLogLogger(logger.Handler(), slog.LevelDebug).Writer())
	o, err := f.options(t, logger)
	if err != nil {
		return err
	}
	// Nobody should type a PIN to hear that the TPM is missing, or that there is no such key.
	if _, err := p.tpm.Parent(); err != nil {
		return explain(err)
	}
	p.tpm.Release()
	s, err := startServed(t, keys)
	if err != nil {
		return explain(err)
	}
	defer s.m.stop()
	ag := sshagent.New(s, o)
	defer ag.Close()
	locked := f.locked
	if !locked {
		err := a.unlock(ag, s, f.pin)
		switch {
		case errors.Is(err, sshagent.ErrPIN) && at.passed != nil:
			// systemd would start it again for each client, and each time the
			// TPM would count a try.
			logger.Error("the PIN was refused: locked until ssh-add -X gets the right one", "source", f.pin.String())
			locked = true
		case errors.Is(err, sshagent.ErrPIN):
			return p.pinFailure("user", sealstore.ErrAuth)
		case err != nil:
			return explain(err)
		}
	}
	l, err := at.listen(f)
	if err != nil {
		return err
	}
	defer l.Close()
	ctx, end := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer end()
	context.AfterFunc(ctx, func() {
		end() // a second signal ends it at once
		l.Close()
	})
	if err := a.ready(agentResult{Socket: at.path, Serial: t.Serial, Label: t.Label, Locked: locked, Keys: s.rows}, f.json); err != nil {
		return err
	}
	return ag.Serve(l)
}

// harden keeps other processes of this user from looking into this one, and
// the system from writing its memory down.
func harden() {
	// Neither is needed for the agent to work, and what is secret lies in
	// secret memory besides.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}

// socketPlace is where an agent listens.
type socketPlace struct {
	passed *net.UnixListener // by systemd; nil: the agent makes its own
	path   string
}

// findSocket makes sure that there is a place to listen at, since nobody
// should type a PIN to hear that there is none.
func findSocket(f agentFlags) (p socketPlace, err error) {
	if p.passed, err = sshagent.Inherited(); err != nil {
		return p, err
	}
	switch {
	case p.passed != nil && f.socket != "":
		p.close()
		return p, usage("systemd has passed a socket: leave out --socket")
	case p.passed != nil:
		p.path = p.passed.Addr().String()
		return p, nil
	case f.socket == "":
		p.path, err = sshagent.DefaultSocket()
	default:
		p.path, err = filepath.Abs(f.socket)
	}
	if err == nil {
		err = sshagent.CheckSocket(p.path)
	}
	return p, err
}

func (p socketPlace) listen(f agentFlags) (*net.UnixListener, error) {
	if p.passed != nil {
		return p.passed, nil
	}
	return sshagent.Listen(p.path, len(f.uids) > 0)
}

func (p socketPlace) close() {
	if p.passed != nil {
		p.passed.Close()
	}
}

// ready tells who started the agent where it is.
func (a *app) ready(r agentResult, asJSON bool) error {
	status := fmt.Sprintf("serving %s of token %s", count(len(r.Keys), "key"), printable(r.Label))
	if r.Locked {
		status += ", locked until ssh-add -X gets the user PIN"
	}
	if err := sshagent.Notify("READY=1", "STATUS="+status); err != nil {
		return err
	}
	if asJSON {
		return a.json(r)
	}
	a.note("%s%s at %s", strings.ToUpper(status[:1]), status[1:], printable(r.Socket))
	_, err := fmt.Fprintf(a.out, "SSH_AUTH_SOCK=%s; export SSH_AUTH_SOCK;\n", quoted(r.Socket))
	return err
}

// quoted is a word for the shell.
func quoted(s string) string {
	plain := func(r rune) bool {
		return strings.ContainsRune("/._-+:@%", r) || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// served is a token as the agent serves it, through the module.
type served struct {
	m    *module
	s    p11.SessionHandle
	slot p11.SlotID
	t    sealstore.TokenInfo
	only [][32]byte // the keys that were named; none: all
	rows []keyRow   // what is served, as it is at the start

	signers map[[32]byte]*signer // of this login
}

// startServed opens a token for serving, and finds the keys.
func startServed(t sealstore.TokenInfo, names []string) (*served, error) {
	m, err := startModuleFor(t)
	if err != nil {
		return nil, err
	}
	s := &served{m: m, slot: p11.SlotID(t.Slot), t: t}
	if err := s.find(names); err != nil {
		m.stop()
		return nil, err
	}
	return s, nil
}

// startModuleFor starts the module with what the configuration says of how
// long the keys of a token stay unlocked.
func startModuleFor(t sealstore.TokenInfo) (*module, error) {
	return startModuleWith(func(c *config.Config) { c.AutoLockTimeout = c.Token(t.Label).AutoLockTimeout })
}

// find opens a session and looks the keys up by their public halves.
func (s *served) find(names []string) (err error) {
	if s.s, err = s.m.OpenSession(s.slot, p11.CKF_SERIAL_SESSION); err != nil {
		return err
	}
	if len(names) == 0 {
		keys, err := s.m.keys(s.s)
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			return fmt.Errorf("token %s holds no Ed25519 key: \"icn-p11 key generate %s\" makes one", printable(s.t.Label), s.t.Serial)
		}
		for _, k := range keys {
			s.rows = append(s.rows, k.row())
		}
		return nil
	}
	for _, name := range names {
		k, err := s.m.key(s.s, s.t, name)
		if err != nil {
			return err
		}
		if !slices.Contains(s.only, k.public) {
			s.only = append(s.only, k.public)
			s.rows = append(s.rows, k.row())
		}
	}
	return nil
}

// unlock gets the PIN, where one is needed, and unlocks the agent.
func (a *app) unlock(ag *sshagent.Agent, s *served, src pinsource.Source) error {
	if !s.t.UserPIN {
		return ag.Login(nil)
	}
	// Programs that the agent starts must not get the descriptor.
	if n, ok := strings.CutPrefix(src.String(), "fd:"); ok {
		if fd, err := strconv.Atoi(n); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	pin, err := src.Read("user PIN", false)
	if err != nil {
		return err
	}
	_, end := a.progress("Logging in")
	defer end()
	return ag.Login(pin)
}

// Login is that of [sshagent.Token].
func (s *served) Login(pin []byte) error {
	if pin == nil {
		pin = []byte{}
	}
	err := s.m.Login(s.s, p11.CKU_USER, pin)
	if errors.Is(err, sealstore.ErrAuth) || errors.Is(err, p11.CKR_PIN_INCORRECT) {
		return sshagent.ErrPIN
	}
	return explain(err)
}

// MayTry leaves the last try, so that nobody locks the TPM for all its users
// by "ssh-add -X".
func (s *served) MayTry() error {
	info, err := s.m.GetTokenInfo(s.slot)
	if err != nil {
		return err
	}
	if info.Flags&(p11.CKF_USER_PIN_FINAL_TRY|p11.CKF_USER_PIN_LOCKED) != 0 {
		return errors.New("a wrong PIN could lock the TPM, so none is tried: \"icn-p11 lockout show\" says how long, and \"icn-p11 lockout reset\" ends it")
	}
	return nil
}

// Logout is that of [sshagent.Token].
func (s *served) Logout() error {
	s.signers = nil
	return s.m.Logout(s.s)
}

// Keys lists the keys that are served and whose private halves sign without
// further ado.
func (s *served) Keys() ([]sshagent.Key, error) {
	keys, err := s.m.keys(s.s)
	if err != nil {
		return nil, explain(err)
	}
	signers := map[[32]byte]*signer{}
	var list []sshagent.Key
	for _, k := range keys {
		if len(s.only) > 0 && !slices.Contains(s.only, k.public) || signers[k.public] != nil {
			continue
		}
		key, err := s.m.signer(s.s, k)
		if err != nil {
			continue // a public key alone
		}
		each, err := s.m.attribute(s.s, key.key, p11.CKA_ALWAYS_AUTHENTICATE)
		if err != nil {
			return nil, explain(err)
		}
		if slices.Equal(each, []byte{1}) {
			continue // it wants the PIN for each signature
		}
		signers[k.public] = key
		list = append(list, sshagent.Key{Public: k.public[:], Comment: printable(k.label)})
	}
	s.signers = signers
	return list, nil
}

// Sign is that of [sshagent.Token].
func (s *served) Sign(key ed25519.PublicKey, message []byte) ([]byte, error) {
	k := s.signers[[32]byte(key)]
	if k == nil {
		return nil, errors.New("no such key")
	}
	sig, err := k.Sign(nil, message, crypto.Hash(0))
	return sig, explain(err)
}

var _ sshagent.Token = (*served)(nil)
