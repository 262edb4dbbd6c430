package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/bootlog"
	"github.com/InterCooperative-Network/icn-p11/internal/did"
	"github.com/InterCooperative-Network/icn-p11/internal/pinsource"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/p11"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

func (a *app) initCommand() *cobra.Command {
	var label, keyLabel string
	var noPIN, force, recoverable bool
	var userSource, soSource pinsource.Source
	owner := ownerFlag()
	cmd := &cobra.Command{
		Use:   "init --label L",
		Short: "Make a token with an Ed25519 identity key",
		Long: `Make a token: both its PINs and an Ed25519 identity key, sealed to the TPM. The
DID goes to standard output. With --no-pin, for servers that nobody attends, the
token needs no user PIN: its binding to the platform alone holds it. With
--recoverable, both PINs together can take its keys out, into a backup or to
another TPM; otherwise nothing ever can. That is decided here for good. With
--owner-auth-source, "srk persist" is done first: where the TPM's owner hierarchy
has a password, applications cannot use tokens without a persistent storage root
key.`,
		Args: noArgs,
		RunE: a.does(func(cmd *cobra.Command, _ []string) error {
			if err := checkLabel("--label", label, sealstore.MaxLabel); err != nil {
				return err
			}
			if err := checkLabel("--key-label", keyLabel, 255); err != nil {
				return err
			}
			switch {
			case noPIN && cmd.Flags().Changed("pin-source"):
				return usage("--no-pin and --pin-source exclude each other")
			case force && !noPIN:
				return usage("--force goes with --no-pin")
			}
			return a.init(label, keyLabel, noPIN, force, recoverable, userSource, soSource, owner)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&label, "label", "", "label of the token, at most 32 bytes")
	f.StringVar(&keyLabel, "key-label", identityLabel, "label of the key")
	f.BoolVar(&noPIN, "no-pin", false, "make a token that needs no user PIN")
	f.BoolVar(&force, "force", false, "with --no-pin: also where the token is not bound to the platform")
	f.BoolVar(&recoverable, "recoverable", false, "let both PINs together take the keys out: for backups, and to another TPM")
	f.Var(&userSource, "pin-source", "where the user PIN comes from")
	f.Var(&soSource, "so-pin-source", "where the SO PIN comes from")
	owner.on(cmd)
	completeSource(cmd, "pin-source", "so-pin-source")
	noCompletion(cmd, "label", "key-label")
	return cmd
}

// checkLabel refuses what would not come back as it was given: Cryptoki pads
// labels with blanks.
func checkLabel(flag, s string, size int) error {
	switch {
	case s == "":
		return usage("%s is needed", flag)
	case len(s) > size:
		return usage("%s has %d bytes; %d is the most", flag, len(s), size)
	case !utf8.ValidString(s):
		return usage("%s is not UTF-8 text", flag)
	case strings.ContainsFunc(s, unicode.IsControl):
		return usage("%s has a control character, such as a tab or the end of a line", flag)
	case strings.TrimSpace(s) != s:
		return usage("%s begins or ends with blanks", flag)
	case strings.HasPrefix(s, did.Prefix):
		return usage("%s looks like a DID, which would be taken for another token", flag)
	}
	return nil
}

func (a *app) init(label, keyLabel string, noPIN, force, recoverable bool, userSource, soSource pinsource.Source, owner *passwordFlag) error {
	p, err := a.open()
	if err != nil {
		return err
	}
	defer p.tpm.Close()
	if err := p.cfg.Unsupported(); err != nil {
		return fmt.Errorf("no token made: %w", err)
	}
	if err := p.unused(label, ""); err != nil {
		return err
	}
	if noPIN && p.cfg.Binding() == nil && !force {
		return errors.New("no token made: without a PIN and a binding to the platform, whoever starts this machine with any system can sign; " +
			"set platform_binding = true in the configuration, or insist with --force")
	}
	if owner.given {
		// Applications have no such password: the key has to stay.
		if err := a.srkPersist(p, owner); err != nil {
			return explain(err)
		}
	}
	// Nobody should type four PINs to hear that the TPM is missing.
	if _, err := p.tpm.Parent(); err != nil {
		return explain(err)
	}
	so, err := soSource.Read("SO PIN", true)
	if err != nil {
		return err
	}
	defer so.Destroy()
	var user *secmem.Buffer
	if !noPIN {
		if user, err = userSource.Read("user PIN", true); err != nil {
			return err
		}
		defer user.Destroy()
	}
	// From here on an interrupt must wait until what was made is removed; a
	// second one does not.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	context.AfterFunc(ctx, stop)
	defer stop()
	t, err := p.store.Create(sealstore.InitParams{Label: label, SOPIN: so.Bytes(), Reserved: p.cfg.FixedSlots(), Binding: p.cfg.Binding(), NoPIN: noPIN, Recoverable: recoverable})
	if err != nil {
		return explain(err)
	}
	device := p.tpm.String()
	p.tpm.Release()
	public, err := fill(ctx, t, keyLabel, so.Bytes(), user.Bytes())
	if err != nil {
		if rerr := discard(p.cfg.SealedBlobDir, t.Serial); rerr != nil {
			a.note("icn-p11: token %s is unfinished and could not be removed: %v", t.Serial, rerr)
		}
		return explain(err)
	}
	slots, _ := p.slots()
	a.note("Token %s in slot %s, serial number %s", printable(label), slotText(slots, t), t.Serial)
	a.note("Key %s, sealed to the TPM at %s", printable(keyLabel), device)
	if recoverable {
		a.note("Recoverable: make a backup with \"icn-p11 backup create\"")
	}
	if b := p.cfg.Binding(); b != nil {
		a.note("Bound to PCRs %s of the %s bank, as they are now", numbers(slices.Sorted(slices.Values(b.PCRs))), b.Bank)
		if tok, err := p.store.Token(t.Serial); err == nil {
			a.keepBootLog(tok, bootlog.Path)
		}
	}
	if _, err := fmt.Fprintln(a.out, did.Encode(public)); err != nil {
		return fmt.Errorf("the token is made, but its DID could not be printed (%w): \"icn-p11 did %s\" prints it", err, t.Serial)
	}
	return nil
}

var errInterrupted = errors.New("interrupted; nothing was made")

// fill sets the user PIN of a new token, if it shall have one, and makes its
// key, as an application would: the calls are those of ICN.
func fill(ctx context.Context, t sealstore.TokenInfo, keyLabel string, so, user []byte) (public [32]byte, err error) {
	m, err := startModule()
	if err != nil {
		return public, err
	}
	defer m.stop()
	s, err := m.session(t)
	if err != nil {
		return public, err
	}
	var pub p11.ObjectHandle
	setPIN := []func() error{
		func() error { return m.Login(s, p11.CKU_SO, so) },
		func() error { return m.InitPIN(s, user) },
		func() error { return m.Logout(s) },
		func() error { return m.Login(s, p11.CKU_USER, user) },
	}
	if t.NoPIN {
		setPIN = nil
	}
	for _, step := range append(setPIN,
		func() (err error) {
			pub, err = m.generate(s, keyLabel)
			return err
		},
		func() error {
			k, err := m.publicKeyOf(s, pub)
			public = k.public
			return err
		},
	) {
		if ctx.Err() != nil {
			return public, errInterrupted
		}
		if err := step(); err != nil {
			return public, err
		}
	}
	return public, nil
}

// discard removes a token that was not finished. It first gets the name of
// an unfinished one, so that no process sees half of it and the next writer
// removes what is left should this one be killed (docs/format.md).
func discard(store, serial string) error {
	tokens := filepath.Join(store, "tokens")
	gone := filepath.Join(tokens, ".tmp-"+serial)
	if err := os.Rename(filepath.Join(tokens, serial), gone); err != nil {
		return err
	}
	return os.RemoveAll(gone)
}

// completeSource offers the kinds of PIN sources.
func completeSource(cmd *cobra.Command, flags ...string) {
	for _, f := range flags {
		cmd.RegisterFlagCompletionFunc(f, func(_ *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if strings.HasPrefix(prefix, "file:") {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return []cobra.Completion{"file:", "env:", "fd:", "credential:", "prompt"},
				cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
		})
	}
}

func noCompletion(cmd *cobra.Command, flags ...string) {
	for _, f := range flags {
		cmd.RegisterFlagCompletionFunc(f, cobra.NoFileCompletions)
	}
}
