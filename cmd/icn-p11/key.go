package main

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/InterCooperative-Network/icn-p11/internal/did"
	"github.com/InterCooperative-Network/icn-p11/internal/pinsource"
	"github.com/InterCooperative-Network/icn-p11/p11"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

func (a *app) keyCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "key",
		Short: "Make, list, rename, delete and publish the keys of a token",
		Long: `A token may hold any number of Ed25519 keys. KEY is a key's label, its ID in
hexadecimal digits, or its DID; without it, the identity key is meant.`,
	},
		a.keyGenerate(),
		a.keyList(),
		a.keyShow(),
		a.keyRename(),
		a.keyDelete(),
		a.keyExport(),
	)
}

// tokenKey is a public key in a token.
type tokenKey struct {
	publicKey
	id []byte
}

// keyRow is a key as the verbs of key print it.
type keyRow struct {
	Label  string `json:"label"`
	ID     string `json:"id,omitempty"`  // not of one that a dry run would make
	DID    string `json:"did,omitempty"` // the same
	SSH    string `json:"ssh_fingerprint,omitempty"`
	Local  bool   `json:"generated_here"`
	DryRun bool   `json:"dry_run,omitempty"`
}

func (k tokenKey) row() keyRow {
	return keyRow{Label: k.label, ID: hex.EncodeToString(k.id), DID: k.did(), SSH: k.fingerprint(), Local: k.local}
}

// fingerprint is that of ssh-keygen -l.
func (k publicKey) fingerprint() string {
	key, err := ssh.NewPublicKey(ed25519.PublicKey(k.public[:]))
	if err != nil {
		return ""
	}
	return ssh.FingerprintSHA256(key)
}

// keys lists the Ed25519 public keys of a token, by label.
func (m *module) keys(s p11.SessionHandle) ([]tokenKey, error) {
	found, err := m.find(s, p11.Attribute{Type: p11.CKA_CLASS, Value: ulong(p11.CKO_PUBLIC_KEY)},
		p11.Attribute{Type: p11.CKA_KEY_TYPE, Value: ulong(p11.CKK_EC_EDWARDS)})
	if err != nil {
		return nil, err
	}
	var keys []tokenKey
	for _, o := range found {
		k, err := m.tokenKey(s, o)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b tokenKey) int {
		return cmp.Or(strings.Compare(a.label, b.label), bytes.Compare(a.id, b.id))
	})
	return keys, nil
}

// tokenKey reads the key whose public half o is.
func (m *module) tokenKey(s p11.SessionHandle, o p11.ObjectHandle) (k tokenKey, err error) {
	if k.publicKey, err = m.publicKeyOf(s, o); err != nil {
		return k, err
	}
	k.id, err = m.attribute(s, o, p11.CKA_ID)
	return k, err
}

// absent makes sure that a token has no key of a label, nor one of these keys.
func (m *module) absent(s p11.SessionHandle, t sealstore.TokenInfo, label string, public ...[32]byte) error {
	keys, err := m.keys(s)
	if err != nil {
		return err
	}
	return absentFrom(keys, t, label, public...)
}

func absentFrom(keys []tokenKey, t sealstore.TokenInfo, label string, public ...[32]byte) error {
	for _, old := range keys {
		if slices.Contains(public, old.public) {
			return fmt.Errorf("the key is in token %s already, as %s", printable(t.Label), printable(old.label))
		}
		if old.label == label {
			return fmt.Errorf("token %s has a key %s already: choose another label", printable(t.Label), printable(label))
		}
	}
	return nil
}

// key finds the one that KEY means; nothing means the identity.
func (m *module) key(s p11.SessionHandle, t sealstore.TokenInfo, arg string) (tokenKey, error) {
	keys, err := m.keys(s)
	if err != nil {
		return tokenKey{}, err
	}
	if arg == "" {
		return identityOf(keys, t)
	}
	var found []tokenKey
	for _, k := range keys {
		if k.label == arg || hex.EncodeToString(k.id) == strings.ToLower(arg) || k.did() == arg {
			found = append(found, k)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return tokenKey{}, fmt.Errorf("no key %q in token %s (\"icn-p11 key list %s\" shows them)", arg, printable(t.Label), t.Serial)
	}
	return tokenKey{}, fmt.Errorf("%d keys of token %s are called %s: name one by its ID", len(found), printable(t.Label), printable(arg))
}

// halves are all the objects that belong to a key: private key, public key and
// certificates. The private one is there only after a login.
func (m *module) halves(s p11.SessionHandle, k tokenKey, classes ...uint) ([]p11.ObjectHandle, error) {
	var all []p11.ObjectHandle
	for _, c := range classes {
		found, err := m.find(s, p11.Attribute{Type: p11.CKA_CLASS, Value: ulong(c)}, p11.Attribute{Type: p11.CKA_ID, Value: k.id})
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// inModule runs f in a module of its own, with a session that nobody is logged
// in to. f asks nothing, and prints nothing.
func (p *place) inModule(t sealstore.TokenInfo, f func(m *module, s p11.SessionHandle) error) error {
	_, end := p.progress(atTPM)
	defer end()
	p.tpm.Release()
	m, err := startModule()
	if err != nil {
		return err
	}
	defer m.stop()
	s, err := m.session(t)
	if err != nil {
		return explain(err)
	}
	return f(m, s)
}

// asUser is inModule with the user logged in.
func (p *place) asUser(t sealstore.TokenInfo, source pinsource.Source, f func(m *module, s p11.SessionHandle) error) error {
	if !t.UserPIN && !t.NoPIN {
		return explain(sealstore.ErrNoPIN)
	}
	// Nobody should type a PIN to hear that the TPM is missing.
	if err := p.reachable(); err != nil {
		return err
	}
	pin := []byte{}
	if t.UserPIN {
		user, err := source.Read("user PIN", false)
		if err != nil {
			return err
		}
		defer user.Destroy()
		pin = user.Bytes()
	}
	return p.inModule(t, func(m *module, s p11.SessionHandle) error {
		if err := m.Login(s, p11.CKU_USER, pin); err != nil {
			return p.pinFailure("user", err)
		}
		return explain(f(m, s))
	})
}

// generate makes an Ed25519 key pair in a token.
func (m *module) generate(s p11.SessionHandle, label string) (public p11.ObjectHandle, err error) {
	yes, no := []byte{1}, []byte{0}
	public, _, err = m.GenerateKeyPair(s, p11.Mechanism{Type: p11.CKM_EC_EDWARDS_KEY_PAIR_GEN},
		[]p11.Attribute{
			{Type: p11.CKA_TOKEN, Value: yes},
			{Type: p11.CKA_VERIFY, Value: yes},
			{Type: p11.CKA_LABEL, Value: []byte(label)},
			{Type: p11.CKA_EC_PARAMS, Value: edwardsParams},
		},
		[]p11.Attribute{
			{Type: p11.CKA_TOKEN, Value: yes},
			{Type: p11.CKA_PRIVATE, Value: yes},
			{Type: p11.CKA_SENSITIVE, Value: yes},
			{Type: p11.CKA_SIGN, Value: yes},
			{Type: p11.CKA_EXTRACTABLE, Value: no},
			{Type: p11.CKA_LABEL, Value: []byte(label)},
		})
	return public, err
}

func (a *app) keyGenerate() *cobra.Command {
	var c change
	var label string
	cmd := &cobra.Command{
		Use:               "generate TOKEN --label L",
		Short:             "Make an Ed25519 key in a token",
		Long:              `Make an Ed25519 key in a token, sealed to the TPM, and print its DID. The user PIN is needed.`,
		Example:           "  icn-p11 key generate node --label mail",
		Args:              oneToken,
		ValidArgsFunction: completeToken,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			if err := checkLabel("--label", label, 255); err != nil {
				return err
			}
			p, t, err := a.openToken(args[0])
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			free := func(m *module, s p11.SessionHandle) error { return m.absent(s, t, label) }
			if c.dryRun {
				if err := p.inModule(t, free); err != nil {
					return err
				}
				if err := p.changeable(t, sealstore.User); err != nil {
					return err
				}
				return a.outcome(c, keyRow{Label: label, DryRun: true}, "Key %s is made in token %s", printable(label), printable(t.Label))
			}
			var k tokenKey
			err = p.asUser(t, c.user, func(m *module, s p11.SessionHandle) error {
				if err := free(m, s); err != nil {
					return err
				}
				o, err := m.generate(s, label)
				if err != nil {
					return err
				}
				k, err = m.tokenKey(s, o)
				return err
			})
			if err != nil {
				return err
			}
			if c.json {
				return a.json(k.row())
			}
			a.note("Key %s, ID %x, in token %s", printable(label), k.id, printable(t.Label))
			_, err = fmt.Fprintln(a.out, k.did())
			return err
		}),
	}
	cmd.Flags().StringVar(&label, "label", "", "label of the key")
	noCompletion(cmd, "label")
	c.flags(cmd, false, true, false)
	return cmd
}

func (a *app) keyList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "list TOKEN",
		Short:             "List the keys of a token",
		Example:           "  icn-p11 key list node",
		Args:              oneToken,
		ValidArgsFunction: completeToken,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			p, t, err := a.openToken(args[0])
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			rows := []keyRow{}
			err = p.inModule(t, func(m *module, s p11.SessionHandle) error {
				keys, err := m.keys(s)
				for _, k := range keys {
					rows = append(rows, k.row())
				}
				return explain(err)
			})
			if err != nil {
				return err
			}
			if asJSON {
				return a.json(rows)
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "LABEL\tID\tDID")
			for _, r := range rows {
				fmt.Fprintf(w, "%s\t%s\t%s\n", printable(r.Label), r.ID, r.DID)
			}
			return w.Flush()
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// one runs f on the key that the arguments of a command mean.
func (a *app) one(args []string, f func(k tokenKey) error) error {
	p, t, err := a.openToken(args[0])
	if err != nil {
		return err
	}
	defer p.tpm.Close()
	k, err := p.publicKey(t, optional(args))
	if err != nil {
		return err
	}
	return f(k)
}

// publicKey finds the key that KEY means; nothing means the identity.
func (p *place) publicKey(t sealstore.TokenInfo, arg string) (k tokenKey, err error) {
	err = p.inModule(t, func(m *module, s p11.SessionHandle) (err error) {
		k, err = m.key(s, t, arg)
		return explain(err)
	})
	return k, err
}

func optional(args []string) string {
	if len(args) > 1 {
		return args[1]
	}
	return ""
}

func (a *app) keyShow() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "show TOKEN [KEY]",
		Short:             "Show a key",
		Example:           "  icn-p11 key show node mail",
		Args:              tokenAndOne("KEY"),
		ValidArgsFunction: completeToken,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			return a.one(args, func(k tokenKey) error {
				r := k.row()
				if asJSON {
					return a.json(r)
				}
				w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
				origin := "imported"
				if r.Local {
					origin = "generated in this token"
				}
				fmt.Fprintf(w, "Label\t%s\nID\t%s\nDID\t%s\nSSH\t%s\nOrigin\t%s\n", printable(r.Label), r.ID, r.DID, r.SSH, origin)
				return w.Flush()
			})
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// tokenAndOne checks the arguments of a command that takes TOKEN and perhaps
// one more.
func tokenAndOne(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 2 {
			return usage("TOKEN and %s are expected, and nothing behind them (a PIN is never an argument)", name)
		}
		return oneToken(cmd, args[:min(1, len(args))])
	}
}

func (a *app) keyRename() *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use:               "rename TOKEN KEY LABEL",
		Short:             "Give a key another label",
		Long:              `Give a key, public and private half, and its certificates another label. The user PIN is needed.`,
		Example:           "  icn-p11 key rename node mail post",
		Args:              tokenAnd("KEY", "LABEL"),
		ValidArgsFunction: completeToken,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			label := args[2]
			if err := checkLabel("LABEL", label, 255); err != nil {
				return err
			}
			return a.changeKey(args, c, keyChange{
				label: label,
				note: func(k tokenKey) string {
					return fmt.Sprintf("Key %s is called %s", printable(k.label), printable(label))
				},
				do: func(m *module, s p11.SessionHandle, k tokenKey) error {
					all, err := m.halves(s, k, p11.CKO_PRIVATE_KEY, p11.CKO_PUBLIC_KEY, p11.CKO_CERTIFICATE)
					if err != nil {
						return err
					}
					for _, o := range all {
						if err := m.SetAttributeValue(s, o, []p11.Attribute{{Type: p11.CKA_LABEL, Value: []byte(label)}}); err != nil {
							return err
						}
					}
					return nil
				},
			})
		}),
	}
	c.flags(cmd, false, true, false)
	return cmd
}

func (a *app) keyDelete() *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use:   "delete TOKEN KEY",
		Short: "Delete a key",
		Long: `Delete a key for good, with its public half and its certificates. The user PIN is
needed.`,
		Example:           "  icn-p11 key delete node mail",
		Args:              tokenAnd("KEY"),
		ValidArgsFunction: completeToken,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			return a.changeKey(args, c, keyChange{
				sure: func(k tokenKey) error {
					if c.yes {
						return nil
					}
					return confirm(fmt.Sprintf("Key %s, %s, will be gone for good.", printable(k.label), k.did()), "delete")
				},
				note: func(k tokenKey) string { return fmt.Sprintf("Key %s is deleted", printable(k.label)) },
				do: func(m *module, s p11.SessionHandle, k tokenKey) error {
					// The private half first: what is left of an interrupted run can
					// be deleted by running it again.
					all, err := m.halves(s, k, p11.CKO_PRIVATE_KEY, p11.CKO_CERTIFICATE, p11.CKO_PUBLIC_KEY)
					if err != nil {
						return err
					}
					for _, o := range all {
						if err := m.DestroyObject(s, o); err != nil {
							return err
						}
					}
					return nil
				},
			})
		}),
	}
	c.flags(cmd, false, true, true)
	return cmd
}

// keyChange is a change of a key that is there.
type keyChange struct {
	label string                 // that it has afterwards; "" for the one that it has
	sure  func(k tokenKey) error // asks whether that is meant; nil does not
	note  func(k tokenKey) string
	do    func(m *module, s p11.SessionHandle, k tokenKey) error
}

// changeKey makes a change of the key that args mean, or says that it would.
func (a *app) changeKey(args []string, c change, x keyChange) error {
	p, t, err := a.openToken(args[0])
	if err != nil {
		return err
	}
	defer p.tpm.Close()
	// Nobody should type a PIN to hear that there is no such key.
	k, err := p.publicKey(t, args[1])
	if err != nil {
		return err
	}
	if !c.dryRun && x.sure != nil {
		if err := x.sure(k); err != nil {
			return err
		}
	}
	if c.dryRun {
		err = p.changeable(t, sealstore.User)
	} else {
		err = p.asUser(t, c.user, func(m *module, s p11.SessionHandle) error {
			now, err := m.key(s, t, args[1])
			if err != nil {
				return err
			}
			if now.public != k.public {
				return fmt.Errorf("key %s is another one since: nothing was done", printable(k.label))
			}
			return x.do(m, s, now)
		})
	}
	if err != nil {
		return err
	}
	r := k.row()
	r.Label, r.DryRun = cmp.Or(x.label, k.label), c.dryRun
	return a.outcome(c, r, "%s", x.note(k))
}

// The forms in which a public key is published.
var publicForms = map[string]func(k tokenKey) ([]byte, error){
	"pem": func(k tokenKey) ([]byte, error) {
		der, err := x509.MarshalPKIXPublicKey(ed25519.PublicKey(k.public[:]))
		return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), err
	},
	"ssh": func(k tokenKey) ([]byte, error) {
		key, err := ssh.NewPublicKey(ed25519.PublicKey(k.public[:]))
		if err != nil {
			return nil, err
		}
		line := bytes.TrimSuffix(ssh.MarshalAuthorizedKey(key), []byte("\n"))
		return fmt.Appendf(line, " %s\n", printable(k.label)), nil
	},
	"hex": func(k tokenKey) ([]byte, error) { return fmt.Appendf(nil, "%x\n", k.public), nil },
	"jwk": func(k tokenKey) ([]byte, error) {
		// RFC 8037, section 2; the key ID is the thumbprint of RFC 7638.
		x := base64.RawURLEncoding.EncodeToString(k.public[:])
		print := sha256.Sum256(fmt.Appendf(nil, `{"crv":"Ed25519","kty":"OKP","x":"%s"}`, x))
		b, err := json.Marshal(struct {
			Kty string `json:"kty"`
			Crv string `json:"crv"`
			X   string `json:"x"`
			Kid string `json:"kid"`
			Alg string `json:"alg"`
			Use string `json:"use"`
		}{"OKP", "Ed25519", x, base64.RawURLEncoding.EncodeToString(print[:]), "EdDSA", "sig"})
		return append(b, '\n'), err
	},
	"did": func(k tokenKey) ([]byte, error) { return []byte(did.Encode(k.public) + "\n"), nil },
}

// formFlags choose the form in which a public key is printed.
type formFlags struct {
	form string
	json bool
}

func (f *formFlags) on(cmd *cobra.Command, form string) {
	cmd.Flags().StringVar(&f.form, "format", form, "pem, ssh, hex, jwk or did")
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON, with all forms")
	cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]cobra.Completion{"pem", "ssh", "hex", "jwk", "did"}, cobra.ShellCompDirectiveNoFileComp))
}

func (f *formFlags) check(cmd *cobra.Command) error {
	switch {
	case publicForms[f.form] == nil:
		return usage("--format is none of pem, ssh, hex, jwk, did")
	case f.json && cmd.Flags().Changed("format"):
		return usage("--json has all forms: --format does not go with it")
	}
	return nil
}

// publish prints the public half of a key.
func (a *app) publish(k tokenKey, form string) error {
	b, err := publicForms[form](k)
	if err != nil {
		return err
	}
	_, err = a.out.Write(b)
	return err
}

// keyForms are all the forms of a public key.
type keyForms struct {
	DID string          `json:"did"`
	Hex string          `json:"hex"`
	PEM string          `json:"pem"`
	SSH string          `json:"ssh"`
	JWK json.RawMessage `json:"jwk"`
}

func (k tokenKey) forms() (f keyForms, err error) {
	for form, to := range map[string]*string{"did": &f.DID, "hex": &f.Hex, "pem": &f.PEM, "ssh": &f.SSH} {
		b, err := publicForms[form](k)
		if err != nil {
			return f, err
		}
		*to = strings.TrimSuffix(string(b), "\n")
		if form == "pem" {
			*to = string(b) // as it stands in a file
		}
	}
	f.JWK, err = publicForms["jwk"](k)
	return f, err
}

func (a *app) keyExport() *cobra.Command {
	var f formFlags
	cmd := &cobra.Command{
		Use:   "export-public TOKEN [KEY]",
		Short: "Print the public half of a key",
		Long: `Print the public half of a key: as pem (SubjectPublicKeyInfo), ssh (a line of
authorized_keys), hex, jwk (RFC 8037) or did. Needs no PIN.`,
		Example: `  icn-p11 key export-public node >node.pub
  icn-p11 key export-public node mail --format ssh`,
		Args:              tokenAndOne("KEY"),
		ValidArgsFunction: completeToken,
		RunE: a.does(func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			return a.one(args, func(k tokenKey) error {
				if !f.json {
					return a.publish(k, f.form)
				}
				forms, err := k.forms()
				if err != nil {
					return err
				}
				return a.json(struct {
					Label string `json:"label"`
					ID    string `json:"id"`
					keyForms
				}{k.label, hex.EncodeToString(k.id), forms})
			})
		}),
	}
	f.on(cmd, "pem")
	return cmd
}
