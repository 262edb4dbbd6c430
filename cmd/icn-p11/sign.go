package main

import (
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/InterCooperative-Network/icn-p11/internal/did"
	"github.com/InterCooperative-Network/icn-p11/internal/sshsig"
	"github.com/InterCooperative-Network/icn-p11/p11"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// maxMessage is the largest file that is signed, in bytes: Ed25519 needs it
// whole.
const maxMessage = 64 << 20

// Forms of a detached signature.
const (
	sigRaw = "raw"
	sigSSH = "ssh"
)

type sigFlags struct {
	form, namespace string
}

func (f *sigFlags) on(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.form, "format", sigSSH, "ssh (as ssh-keygen -Y makes them) or raw (the 64 bytes of Ed25519)")
	cmd.Flags().StringVar(&f.namespace, "namespace", "file", "namespace of an SSH signature")
	cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]cobra.Completion{sigSSH, sigRaw}, cobra.ShellCompDirectiveNoFileComp))
	noCompletion(cmd, "namespace")
}

func (f *sigFlags) check(cmd *cobra.Command) error {
	switch {
	case f.form != sigRaw && f.form != sigSSH:
		return usage("--format is ssh or raw")
	case f.form == sigRaw && cmd.Flags().Changed("namespace"):
		return usage("--namespace goes with --format ssh")
	case f.namespace == "":
		return usage("--namespace is empty")
	}
	return nil
}

// sign makes a signature of data in the form that was asked for; by makes one of
// Ed25519.
func (f *sigFlags) sign(data []byte, public ed25519.PublicKey, by func(message []byte) ([]byte, error)) ([]byte, error) {
	if f.form == sigRaw {
		return by(data)
	}
	return sshsig.Sign(data, f.namespace, public, by)
}

// printSignature writes a signature to the file out, or where that is "" to
// standard output. With asJSON it prints result there.
func (a *app) printSignature(sig []byte, out string, asJSON bool, result any) error {
	if out != "" {
		if err := os.WriteFile(out, sig, 0o644); err != nil {
			return err
		}
	}
	switch {
	case asJSON:
		return a.json(result)
	case out == "":
		_, err := a.out.Write(sig)
		return err
	}
	return nil
}

// readMessage reads a file that is to be signed or was; "-" is standard input.
func readMessage(path string) ([]byte, error) {
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return nil, err
		}
		defer f.Close()
	}
	data, err := io.ReadAll(io.LimitReader(f, maxMessage+1))
	if err == nil && len(data) > maxMessage {
		err = fmt.Errorf("%s has more than %d MiB: sign a digest of it", path, maxMessage>>20)
	}
	return data, err
}

// signResult is what sign prints.
type signResult struct {
	keyRow
	Format    string `json:"format"`
	Signature []byte `json:"signature,omitempty"` // in base64
}

func (f *sigFlags) result(k tokenKey, sig []byte, dryRun bool) signResult {
	r := signResult{k.row(), f.form, sig}
	r.DryRun = dryRun
	return r
}

// wouldSign runs f on a key if a login could sign with it: for dry runs.
func (a *app) wouldSign(token, key string, f func(k tokenKey) error) error {
	p, t, err := a.openToken(token)
	if err != nil {
		return err
	}
	defer p.tpm.Close()
	if err := p.usable(t, sealstore.User); err != nil {
		return err
	}
	k, err := p.publicKey(t, key)
	if err != nil {
		return err
	}
	return f(k)
}

func (a *app) signCommand() *cobra.Command {
	var c change
	var f sigFlags
	var keyName, out string
	cmd := &cobra.Command{
		Use:   "sign TOKEN FILE",
		Short: "Sign a file",
		Long: `Sign a file with a key of a token, and print the signature: one that
"ssh-keygen -Y verify" checks, or the 64 bytes of Ed25519. FILE may be - for
standard input. The user PIN is needed.`,
		Example: `  icn-p11 sign node release.tar --out release.tar.sig
  icn-p11 sign node message --format raw --key mail >message.sig`,
		Args:              tokenAnd("FILE"),
		ValidArgsFunction: tokenThenFile,
		RunE: a.does(func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			data, err := readMessage(args[1])
			if err != nil {
				return err
			}
			if c.dryRun {
				return a.wouldSign(args[0], keyName, func(k tokenKey) error {
					return a.outcome(c, f.result(k, nil, true), "Key %s signs %s", printable(k.label), args[1])
				})
			}
			p, t, err := a.openToken(args[0])
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			var sig []byte
			var k tokenKey
			err = p.asUser(t, c.user, func(m *module, s p11.SessionHandle) (err error) {
				if k, err = m.key(s, t, keyName); err != nil {
					return err
				}
				key, err := m.signer(s, k)
				if err != nil {
					return err
				}
				sig, err = f.sign(data, key.public, func(message []byte) ([]byte, error) {
					return key.Sign(nil, message, crypto.Hash(0))
				})
				return err
			})
			if err != nil {
				return err
			}
			return a.printSignature(sig, out, c.json, f.result(k, sig, false))
		}),
	}
	f.on(cmd)
	cmd.Flags().StringVar(&keyName, "key", "", "label, ID or DID of the key (default: the identity)")
	cmd.Flags().StringVar(&out, "out", "", "file for the signature, instead of standard output")
	noCompletion(cmd, "key")
	c.flags(cmd, false, true, false)
	return cmd
}

func (a *app) verifyCommand() *cobra.Command {
	var f sigFlags
	var sigPath, didText, keyPath string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify FILE --signature SIG --did DID",
		Short: "Check the signature of a file",
		Long: `Check a detached signature of a file against a DID, or a public key in a file (PEM,
or a line of authorized_keys). Needs no token. FILE may be - for standard input.
The exit status is 1 if the signature is wrong.`,
		Example: "  icn-p11 verify release.tar --signature release.tar.sig --did did:icn:zFVen3X669xLzsi6N2V91DoiyzHzg1uAgqiT8jZ9nS96Z",
		Args:    exactlyOne("FILE"),
		RunE: a.does(func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			want, err := trustedKey(didText, keyPath)
			if err != nil {
				return err
			}
			if sigPath == "" {
				return usage("--signature is needed")
			}
			data, err := readMessage(args[0])
			if err != nil {
				return err
			}
			sig, err := os.ReadFile(sigPath)
			if err != nil {
				return err
			}
			if f.form == sigRaw {
				if !ed25519.Verify(want, data, sig) {
					err = errors.New("the signature is wrong")
				}
			} else {
				var got ed25519.PublicKey
				if got, err = sshsig.Verify(data, sig, f.namespace); err == nil && !got.Equal(want) {
					err = fmt.Errorf("the signature is good, but of another key: %s", did.Encode([32]byte(got)))
				}
			}
			by := did.Encode([32]byte(want))
			if asJSON {
				r := struct {
					Good  bool   `json:"good"`
					DID   string `json:"did"`
					Error string `json:"error,omitempty"`
				}{Good: err == nil, DID: by}
				if err != nil {
					r.Error = err.Error()
				}
				if jerr := a.json(r); jerr != nil {
					return jerr
				}
				if err != nil {
					return errReported
				}
				return nil
			}
			if err == nil {
				a.note("Good signature of %s", by)
			}
			return err
		}),
	}
	f.on(cmd)
	cmd.Flags().StringVar(&sigPath, "signature", "", "file with the signature")
	cmd.Flags().StringVar(&didText, "did", "", "DID that must have signed")
	cmd.Flags().StringVar(&keyPath, "key-file", "", "file with the public key that must have signed, instead of --did")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	noCompletion(cmd, "did")
	return cmd
}

// trustedKey is the public key that a signature must be of.
func trustedKey(didText, path string) (ed25519.PublicKey, error) {
	switch {
	case didText == "" && path == "", didText != "" && path != "":
		return nil, usage("whose signature? Give --did or --key-file")
	case didText != "":
		k, err := did.Parse(didText)
		if err != nil {
			return nil, usageError{err}
		}
		return k[:], nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if b, _ := pem.Decode(data); b != nil && b.Type == "PUBLIC KEY" {
		k, err := x509.ParsePKIXPublicKey(b.Bytes)
		if public, ok := k.(ed25519.PublicKey); err == nil && ok {
			return public, nil
		}
	} else if k, _, _, _, err := ssh.ParseAuthorizedKey(data); err == nil {
		if c, ok := k.(ssh.CryptoPublicKey); ok {
			if public, ok := c.CryptoPublicKey().(ed25519.PublicKey); ok {
				return public, nil
			}
		}
	}
	return nil, fmt.Errorf("%s holds no Ed25519 public key, neither PEM nor a line of authorized_keys", path)
}

func (a *app) didResolve() *cobra.Command {
	var f formFlags
	cmd := &cobra.Command{
		Use:   "resolve DID",
		Short: "Print the public key that a DID stands for",
		Long: `Print the public key that a DID stands for: in hexadecimal digits, or as pem
(SubjectPublicKeyInfo), ssh (a line of authorized_keys) or jwk (RFC 8037). Needs
no token.`,
		Example: "  icn-p11 did resolve did:icn:zFVen3X669xLzsi6N2V91DoiyzHzg1uAgqiT8jZ9nS96Z --format pem",
		Args:    exactlyOne("DID"),
		RunE: a.does(func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			k := tokenKey{}
			var err error
			if k.public, err = did.Parse(args[0]); err != nil {
				return usageError{err}
			}
			k.label = strings.TrimPrefix(args[0], did.Prefix)
			if !f.json {
				return a.publish(k, f.form)
			}
			forms, err := k.forms()
			if err != nil {
				return err
			}
			return a.json(forms)
		}),
	}
	f.on(cmd, "hex")
	return cmd
}
