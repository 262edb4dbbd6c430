package main

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/attest"
	"github.com/InterCooperative-Network/icn-p11/internal/did"
	"github.com/InterCooperative-Network/icn-p11/internal/pinsource"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/p11"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// attestFlags are what attest takes.
type attestFlags struct {
	user  pinsource.Source
	nonce string
	spec  sealstore.BindingSpec
}

func (a *app) attestCommand() *cobra.Command {
	var f attestFlags
	cmd := &cobra.Command{
		Use:   "attest TOKEN [KEY] --nonce HEX",
		Short: "Give evidence of a key and its TPM, and check it",
		Long: `Print evidence, as JSON: that the TPM has made the seal of a key, which values
its PCRs have, and that the key has signed all this for the nonce of whoever
asks. "attest verify" checks it on any machine. The user PIN is needed, and
attestation = true in the configuration. KEY is a label, an ID or a DID; without
it, the identity key is meant. What evidence proves, and what it cannot, is
told in docs/attestation.md.`,
		Example:           "  icn-p11 attest node --nonce 6f1ed002ab5595859014ebf0951522d9",
		Args:              tokenAndOne("KEY"),
		ValidArgsFunction: completeToken,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			nonce, err := parseNonce(f.nonce)
			if err != nil {
				return err
			}
			return a.attest(args, nonce, f)
		}),
	}
	cmd.Flags().StringVar(&f.nonce, "nonce", "", "16 to 32 bytes from whoever asks, in hexadecimal digits")
	cmd.Flags().IntSliceVar(&f.spec.PCRs, "pcrs", nil, "numbers of the PCRs (default: those that the token is bound to and pcrs of the configuration)")
	cmd.Flags().StringVar(&f.spec.Bank, "pcr-bank", "", "hash algorithm of the bank (default: that of the token's binding, else pcr_bank of the configuration)")
	cmd.Flags().Var(&f.user, "pin-source", "where the user PIN comes from")
	cmd.Flags().Bool("json", false, "print JSON, which is what it does anyway")
	completeSource(cmd, "pin-source")
	completeBank(cmd)
	noCompletion(cmd, "nonce", "pcrs")
	cmd.AddCommand(a.attestVerify(), a.attestChallenge(), a.attestRespond())
	return cmd
}

func parseNonce(text string) ([]byte, error) {
	if text == "" {
		return nil, usage("--nonce is needed: random bytes of whoever asks, as of \"openssl rand -hex 32\"")
	}
	nonce, err := hex.DecodeString(text)
	if err != nil {
		return nil, usage("--nonce is not in hexadecimal digits")
	}
	if err := attest.CheckNonce(nonce); err != nil {
		return nil, usage("--nonce: %w", err)
	}
	return nonce, nil
}

// attesting makes sure that attestation is switched on.
func (p *place) attesting() error {
	if p.cfg.Attestation {
		return nil
	}
	in := p.cfg.Source
	if in == "" {
		in = "icn-p11.conf"
	}
	return advice.With(fmt.Errorf("attestation is switched off in %s", in), "set attestation = true there, where this machine may tell others which TPM it has")
}

func (a *app) attest(args []string, nonce []byte, f attestFlags) error {
	p, t, err := a.openToken(args[0])
	if err != nil {
		return err
	}
	defer p.tpm.Close()
	if err := p.attesting(); err != nil {
		return err
	}
	tok, err := p.store.Token(t.Serial)
	if err != nil {
		return explain(err)
	}
	spec, err := p.quoted(tok, f.spec)
	if err != nil {
		return err
	}
	k, err := p.publicKey(t, optional(args))
	if err != nil {
		return err
	}
	// The TPM comes first: nobody should type a PIN to hear that it cannot.
	e, err := a.stated(p, t, tok, k, spec, nonce)
	if err != nil {
		return explain(err)
	}
	err = p.asUser(t, f.user, func(m *module, s p11.SessionHandle) error {
		key, err := m.signer(s, k)
		if err != nil {
			return err
		}
		message, err := e.Message()
		if err == nil {
			e.Signature, err = key.Sign(nil, message, crypto.Hash(0))
		}
		return err
	})
	if err != nil {
		return err
	}
	data, err := attest.Encode(e)
	if err != nil {
		return err
	}
	// Whoever asks shall not be the first to see that something is wrong.
	if r := attest.Verify(data, attest.Policy{Nonce: nonce, DID: &k.public, Now: time.Now()}); !r.OK {
		return refused(r, "the evidence that was made")
	}
	_, err = a.out.Write(data)
	return err
}

// quoted tells which PCRs are stated.
func (p *place) quoted(tok *sealstore.Token, given sealstore.BindingSpec) (sealstore.BindingSpec, error) {
	b, _, err := tok.Binding()
	if err != nil {
		return given, explain(err)
	}
	spec := sealstore.BindingSpec{Bank: p.cfg.PCRBank, PCRs: p.cfg.PCRs}
	if b != nil {
		all := b.PCRs
		if b.Bank == spec.Bank {
			all = slices.Concat(all, spec.PCRs)
		}
		spec = sealstore.BindingSpec{Bank: b.Bank, PCRs: all}
	}
	if given.PCRs != nil {
		spec.PCRs = given.PCRs
	}
	if given.Bank != "" {
		spec.Bank = given.Bank
	}
	slices.Sort(spec.PCRs)
	spec.PCRs = slices.Compact(spec.PCRs)
	if err := spec.Check(); err != nil {
		return spec, usageError{err}
	}
	return spec, nil
}

// stated has the TPM state what evidence needs. It is not signed yet by the
// identity.
func (a *app) stated(p *place, t sealstore.TokenInfo, tok *sealstore.Token, k tokenKey, spec sealstore.BindingSpec, nonce []byte) (*attest.Evidence, error) {
	seals, err := tok.Seals()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(seals, func(s sealstore.ObjectSeal) bool {
		return s.Blob.Creation != nil && bytes.Equal(s.Blob.Creation.About, k.public[:])
	})
	if i < 0 {
		return nil, fmt.Errorf("token %s has no record of how the TPM made the seal of key %s", printable(t.Label), printable(k.label))
	}
	seal := seals[i].Blob
	_, end := p.progress(atTPM)
	s, err := p.tpm.Attest(tpm.AttestParams{
		Parent: t.Parent, Serial: t.Serial, Seal: seal, Bank: spec.Bank, PCRs: spec.PCRs,
		QuoteData: attest.QuoteData(nonce, k.public), CreationData: attest.CreationData(nonce, k.public),
	})
	end()
	if err != nil {
		return nil, err
	}
	e := attest.New(nonce, k.public)
	e.Endorsement = attest.Endorsement{Public: s.Endorsement.Public, Certificates: append([][]byte{}, s.Endorsement.Certificates...)}
	e.Key = s.Key
	e.Quote = attest.Quote{Bank: spec.Bank, Statement: s.Quote, Signature: s.QuoteSignature}
	for i, v := range s.Values {
		e.Quote.PCRs = append(e.Quote.PCRs, attest.PCR{PCR: spec.PCRs[i], Value: v})
	}
	e.Creation = attest.Creation{Seal: seal.Public, Data: seal.Creation.Data, Statement: s.Creation, Signature: s.CreationSignature}
	if seal.Binding != nil {
		e.Creation.Approver = seal.Binding.Approver
	}
	return e, nil
}

// refused tells why evidence does not hold.
func refused(r *attest.Report, what string) error {
	var why []string
	for _, p := range r.Points {
		if p.Result == attest.Failed {
			why = append(why, p.ID+": "+p.Text)
		}
	}
	return fmt.Errorf("%s does not hold: %s", what, strings.Join(why, "; "))
}

// policyFlags are what a verifier may know and ask.
type policyFlags struct {
	nonce, did, ca string
	pcrs           []string
}

func (f *policyFlags) on(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.nonce, "nonce", "", "that the machine was given, in hexadecimal digits")
	cmd.Flags().StringVar(&f.did, "did", "", "DID that the identity must have")
	cmd.Flags().StringArrayVar(&f.pcrs, "pcr", nil, "a value that a PCR must have, as N=HEX; for several PCRs several times")
	cmd.Flags().StringVar(&f.ca, "ek-ca", "", "file with the certificates of those whose TPMs are trusted")
	noCompletion(cmd, "nonce", "did", "pcr")
}

// policy reads the flags. Without a nonce, none is asked for.
func (f *policyFlags) policy() (p attest.Policy, err error) {
	p = attest.Policy{Now: time.Now(), AnyNonce: f.nonce == ""}
	if f.nonce != "" {
		if p.Nonce, err = parseNonce(f.nonce); err != nil {
			return p, err
		}
	}
	if f.did != "" {
		key, err := did.Parse(f.did)
		if err != nil {
			return p, usageError{err}
		}
		p.DID = &key
	}
	if p.PCRs, err = pcrValues("--pcr", f.pcrs); err != nil {
		return p, err
	}
	if f.ca != "" {
		p.CA, err = readCertificates(f.ca)
	}
	return p, err
}

func (a *app) attestVerify() *cobra.Command {
	var f policyFlags
	var statePath, responsePath string
	var require []string
	cmd := &cobra.Command{
		Use:   "verify FILE --nonce HEX",
		Short: "Check evidence, and say what it proves",
		Long: `Check evidence, and say point by point what it proves and what it does not. It
takes neither a TPM nor a token nor a configuration. FILE may be - for standard
input. The exit status is 1 if a point has failed; a point that is not proved is
none that has failed, unless --require names it.`,
		Example: `  icn-p11 attest verify evidence --nonce 6f1ed002ab5595859014ebf0951522d9 --ek-ca makers.pem
  icn-p11 attest verify evidence --nonce 6f1ed002ab5595859014ebf0951522d9 --require seal-fixed --json`,
		Args: oneFile,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			if f.nonce == "" {
				return usage("--nonce is needed: the one that the machine was given")
			}
			if (statePath == "") != (responsePath == "") {
				return usage("--challenge-state and --response go together")
			}
			policy, err := f.policy()
			if err != nil {
				return err
			}
			policy.Require = require
			for _, id := range require {
				if !slices.Contains(attest.Provable(), id) {
					return usage("--require: there is no point %q; there are %s", id, strings.Join(attest.Provable(), ", "))
				}
			}
			if statePath != "" {
				if policy.State, err = parseFile(statePath, attest.MaxFile, attest.ParseState); err != nil {
					return err
				}
				if policy.Response, err = parseFile(responsePath, attest.MaxFile, attest.ParseResponse); err != nil {
					return err
				}
			}
			data, err := readInput(args[0], attest.MaxFile)
			if err != nil {
				return err
			}
			return a.attested(attest.Verify(data, policy))
		}),
	}
	f.on(cmd)
	cmd.Flags().StringVar(&statePath, "challenge-state", "", "file that \"attest challenge\" has kept")
	cmd.Flags().StringVar(&responsePath, "response", "", "file with the answer to the challenge")
	cmd.Flags().StringArrayVar(&require, "require", nil, "a point that has failed unless it is proved; for several points several times")
	cmd.RegisterFlagCompletionFunc("require", cobra.FixedCompletions(attest.Provable(), cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}

// attested prints what evidence proves.
func (a *app) attested(r *attest.Report) error {
	if a.asJSON {
		if err := a.json(r); err != nil {
			return err
		}
	} else {
		w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
		for _, p := range r.Points {
			result := string(p.Result)
			if p.Result == attest.Failed {
				result = strings.ToUpper(result)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\n", result, p.ID, p.Text)
		}
		if err := w.Flush(); err != nil {
			return err
		}
		a.note("%d proved, %d not proved, %d failed", r.Count(attest.Proved), r.Count(attest.NotProved), r.Count(attest.Failed))
	}
	if !r.OK {
		return errReported
	}
	return nil
}

func (a *app) attestChallenge() *cobra.Command {
	var f policyFlags
	var outPath, statePath string
	var force, dryRun bool
	cmd := &cobra.Command{
		Use:   "challenge FILE --out CHALLENGE",
		Short: "Ask a machine whether the keys of its evidence are in one TPM",
		Long: `Check evidence, and make a challenge that is opened by a TPM alone that holds
both the endorsement key and the attestation key in it. What the verifier has to
keep until "attest verify" goes to the file of --state, else to standard output;
it does not tell what the right answer is. FILE may be - for standard input.`,
		Example: "  icn-p11 attest challenge evidence --ek-ca makers.pem --out challenge --state state",
		Args:    oneFile,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			if outPath == "" {
				return usage("--out is needed: a file for the challenge")
			}
			if outPath == statePath {
				return usage("--out and --state are the same file")
			}
			files := []target{{path: outPath, replace: force}}
			if statePath != "" {
				files = append(files, target{path: statePath, replace: force})
			}
			for _, t := range files {
				if err := t.check(); err != nil {
					return err
				}
			}
			policy, err := f.policy()
			if err != nil {
				return err
			}
			data, err := readInput(args[0], attest.MaxFile)
			if err != nil {
				return err
			}
			if r := attest.Verify(data, policy); !r.OK {
				return refused(r, "the evidence")
			}
			if dryRun {
				return a.outcome(change{dryRun: true, json: a.asJSON}, challengeResult{Challenge: outPath, State: statePath, DryRun: true},
					"A challenge is written to %s", outPath)
			}
			return a.challenge(data, files)
		}),
	}
	f.on(cmd)
	cmd.Flags().StringVar(&outPath, "out", "", "file for the challenge")
	cmd.Flags().StringVar(&statePath, "state", "", "file for what the verifier keeps, instead of standard output")
	cmd.Flags().BoolVar(&force, "force", false, "replace files that are there")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}

// challengeResult is what challenge prints where it has a file for what is kept.
type challengeResult struct {
	Evidence  attest.Hex `json:"evidence,omitempty"` // its digest
	Challenge string     `json:"challenge"`
	State     string     `json:"state,omitempty"`
	DryRun    bool       `json:"dry_run,omitempty"`
}

// challenge writes a challenge to the first file, and what the verifier keeps
// to the second, if there is one.
func (a *app) challenge(evidence []byte, files []target) error {
	secret, err := secmem.New(attest.SecretSize)
	if err != nil {
		return err
	}
	defer secret.Destroy()
	rand.Read(secret.Bytes())
	c, state, err := attest.NewChallenge(evidence, secret.Bytes(), tpm.Credential)
	if err != nil {
		return err
	}
	// What is kept first: a challenge whose answer nobody can check is of no use.
	for i, v := range slices.Backward([]any{c, state}[:len(files)]) {
		data, err := attest.Encode(v)
		if err != nil {
			return err
		}
		err = files[i].write(data, func(back []byte) error {
			if !bytes.Equal(back, data) {
				return errors.New("the file system has changed it")
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	a.note("The challenge is in %s; on the machine: icn-p11 attest respond TOKEN %s", files[0].path, files[0].path)
	if len(files) == 1 {
		return a.json(state)
	}
	if a.asJSON {
		return a.json(challengeResult{Evidence: c.Evidence, Challenge: files[0].path, State: files[1].path})
	}
	return nil
}

func (a *app) attestRespond() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "respond TOKEN CHALLENGE",
		Short: "Answer a challenge",
		Long: `Have the TPM open a challenge that "attest challenge" has made, and print the
answer, as JSON. Needs no PIN, but attestation = true in the configuration.
CHALLENGE may be - for standard input.`,
		Example:           "  icn-p11 attest respond node challenge >response",
		Args:              tokenAnd("CHALLENGE"),
		ValidArgsFunction: tokenThenFile,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			c, err := parseFile(args[1], attest.MaxFile, attest.ParseChallenge)
			if err != nil {
				return err
			}
			p, t, err := a.openToken(args[0])
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			if err := p.attesting(); err != nil {
				return err
			}
			_, end := p.progress(atTPM)
			r, err := p.respond(t, c)
			end()
			if err != nil {
				return explain(err)
			}
			return a.json(r)
		}),
	}
	cmd.Flags().Bool("json", false, "print JSON, which is what it does anyway")
	return cmd
}

// respond answers a challenge that is for this TPM and token. Another one is
// not even shown to the TPM: there are some that stop working at the sight.
func (p *place) respond(t sealstore.TokenInfo, c *attest.Challenge) (*attest.Response, error) {
	ek, err := p.tpm.Endorsement()
	if err != nil {
		return nil, err
	}
	ak, err := p.tpm.AttestationKey(t.Serial)
	if err != nil {
		return nil, err
	}
	switch same, err := c.For(ek.Public, ak); {
	case err != nil:
		return nil, err
	case !same:
		return nil, fmt.Errorf("%w: the challenge is for evidence of another machine, or of another token than %s", tpm.ErrCredential, printable(t.Label))
	}
	secret, err := secmem.New(tpm.MaxCredential)
	if err != nil {
		return nil, err
	}
	defer secret.Destroy()
	n, err := p.tpm.ActivateKey(t.Parent, t.Serial, c.Credential, secret.Bytes())
	if err != nil {
		return nil, err
	}
	return c.Respond(secret.Bytes()[:n]), nil
}
