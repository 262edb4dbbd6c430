package main

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/environment"
)

const (
	// agentSocket names the socket of an SSH agent, as ssh does.
	agentSocket = "SSH_AUTH_SOCK"
	// maxAgentRequest is what ssh-agent and ours take at once, in bytes.
	maxAgentRequest = 256 << 10
)

// agentKey is an Ed25519 key that an agent serves.
type agentKey struct {
	publicKey
	blob agent.Key
}

// agentKeyRow is such a key as it is printed.
type agentKeyRow struct {
	Comment string `json:"comment"`
	SSH     string `json:"ssh_fingerprint"`
	DID     string `json:"did"`
}

func (k agentKey) row() agentKeyRow { return agentKeyRow{k.label, k.fingerprint(), k.did()} }

// withAgent runs f with the agent at a socket, by default that of the
// environment, and its Ed25519 keys.
func withAgent(socket string, f func(c agent.ExtendedAgent, keys []agentKey) error) error {
	if socket == "" {
		if socket = environment.Get(agentSocket); socket == "" {
			return advice.With(errors.New("which agent? SSH_AUTH_SOCK is not set"), "set it to the agent's socket, or name that by --socket")
		}
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return fmt.Errorf("the agent cannot be reached: %w", err)
	}
	defer conn.Close()
	c := agent.NewClient(conn)
	list, err := c.List()
	if err != nil {
		return fmt.Errorf("the agent does not list its keys: %w", err)
	}
	keys := []agentKey{}
	for _, k := range list {
		parsed, err := ssh.ParsePublicKey(k.Blob)
		if err != nil || parsed.Type() != ssh.KeyAlgoED25519 {
			continue
		}
		if public, ok := parsed.(ssh.CryptoPublicKey).CryptoPublicKey().(ed25519.PublicKey); ok {
			keys = append(keys, agentKey{publicKey{label: k.Comment, public: [32]byte(public)}, *k})
		}
	}
	return f(c, keys)
}

func (a *app) agentList() *cobra.Command {
	var socket string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the Ed25519 keys of an SSH agent",
		Long:    `List the Ed25519 keys of an SSH agent, this one or another. Needs neither token nor TPM.`,
		Example: "  icn-p11 agent list",
		Args:    noArgs,
		RunE: a.does(func(*cobra.Command, []string) error {
			return withAgent(socket, func(_ agent.ExtendedAgent, keys []agentKey) error {
				rows := []agentKeyRow{}
				for _, k := range keys {
					rows = append(rows, k.row())
				}
				if asJSON {
					return a.json(rows)
				}
				if len(rows) == 0 {
					a.note("The agent has no Ed25519 keys, or it is locked (\"ssh-add -X\" unlocks it)")
					return nil
				}
				w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "COMMENT\tFINGERPRINT\tDID")
				for _, r := range rows {
					fmt.Fprintf(w, "%s\t%s\t%s\n", printable(r.Comment), r.SSH, r.DID)
				}
				return w.Flush()
			})
		}),
	}
	cmd.Flags().StringVar(&socket, "socket", "", "socket of the agent (default $SSH_AUTH_SOCK)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// onlyKey finds the key that a fingerprint, a DID or a comment means.
func onlyKey(keys []agentKey, arg string) (agentKey, error) {
	var found []agentKey
	for _, k := range keys {
		if arg == "" || k.fingerprint() == arg || k.did() == arg || k.label == arg {
			found = append(found, k)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return agentKey{}, fmt.Errorf("the agent has %d such keys: name one by its fingerprint or DID (\"icn-p11 agent list\" shows them)", len(found))
	case arg == "":
		return agentKey{}, errors.New("the agent has no Ed25519 keys, or it is locked (\"ssh-add -X\" unlocks it)")
	}
	return agentKey{}, fmt.Errorf("the agent has no key %s, or it is locked (\"icn-p11 agent list\" shows its keys)", printable(arg))
}

// sign has the agent sign, and does not take its word for it.
func (k agentKey) sign(c agent.ExtendedAgent, message []byte) ([]byte, error) {
	// Behind the key and the message stand two lengths and the flags.
	if most := maxAgentRequest - len(k.blob.Blob) - 13; len(message) > most {
		return nil, fmt.Errorf("an agent takes messages of at most %d bytes: --format ssh signs a digest of the file", most)
	}
	sig, err := c.Sign(&k.blob, message)
	if err != nil {
		return nil, fmt.Errorf("the agent does not sign: it is locked, or was told not to (its log says why): %w", err)
	}
	if sig.Format != ssh.KeyAlgoED25519 || !ed25519.Verify(k.public[:], message, sig.Blob) {
		return nil, errors.New("the agent's signature is wrong")
	}
	return sig.Blob, nil
}

// agentSignResult is what agent sign prints.
type agentSignResult struct {
	agentKeyRow
	Format    string `json:"format"`
	Signature []byte `json:"signature"` // in base64
}

func (a *app) agentSign() *cobra.Command {
	var f sigFlags
	var socket, keyName, out string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "sign FILE",
		Short: "Sign a file through an SSH agent",
		Long: `Sign a file with an Ed25519 key of an SSH agent, this one or another, and print the
signature: one that "ssh-keygen -Y verify" checks, or the 64 bytes of Ed25519. FILE
may be - for standard input. Needs neither token nor TPM.`,
		Example: `  icn-p11 agent sign release.tar --out release.tar.sig
  icn-p11 agent sign message --format raw --key did:icn:zFVen3X669xLzsi6N2V91DoiyzHzg1uAgqiT8jZ9nS96Z`,
		Args: exactlyOne("FILE"),
		RunE: a.does(func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			data, err := readMessage(args[0])
			if err != nil {
				return err
			}
			var sig []byte
			var k agentKey
			err = withAgent(socket, func(c agent.ExtendedAgent, keys []agentKey) (err error) {
				if k, err = onlyKey(keys, keyName); err != nil {
					return err
				}
				sig, err = f.sign(data, k.public[:], func(message []byte) ([]byte, error) {
					_, end := a.progress("Waiting for the agent") // which may ask somebody
					defer end()
					return k.sign(c, message)
				})
				return err
			})
			if err != nil {
				return err
			}
			return a.printSignature(sig, out, asJSON, agentSignResult{k.row(), f.form, sig})
		}),
	}
	f.on(cmd)
	cmd.Flags().StringVar(&socket, "socket", "", "socket of the agent (default $SSH_AUTH_SOCK)")
	cmd.Flags().StringVar(&keyName, "key", "", "fingerprint, DID or comment of the key (default: the only one)")
	cmd.Flags().StringVar(&out, "out", "", "file for the signature, instead of standard output")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	noCompletion(cmd, "key")
	return cmd
}
