package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/InterCooperative-Network/icn-p11/internal/config"
	"github.com/InterCooperative-Network/icn-p11/internal/did"
	"github.com/InterCooperative-Network/icn-p11/internal/stats"
	"github.com/InterCooperative-Network/icn-p11/p11"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// place is what the configuration names: a TPM and a store. It is used beside
// the module, which has a connection of its own; a TPM that lets one program
// in at a time must be left before the module starts.
type place struct {
	cfg      *config.Config
	tpm      *tpm.TPM
	store    *sealstore.Store
	progress func(what string) (step func(done, total int), end func())
}

// atTPM is what a command is at that asks the TPM for this and that.
const atTPM = "Waiting for the TPM"

// open reads the configuration. It touches neither the TPM nor the store.
func (a *app) open() (*place, error) {
	cfg, err := config.Load()
	if err != nil {
		return nil, err
	}
	return a.openWith(cfg)
}

func (a *app) openWith(cfg *config.Config) (*place, error) {
	// What matters here is told in the command's own words; the log has the rest.
	log, _, err := cfg.Logger()
	if err != nil {
		return nil, err
	}
	counts := stats.New(cfg.Statistics, log)
	dev, err := tpm.New(tpm.Config{Device: cfg.DevicePath, KeyHandle: cfg.KeyHandle, Log: log, Observe: counts.Operation})
	if err != nil {
		return nil, err
	}
	store := sealstore.Open(cfg.SealedBlobDir, dev, log)
	counts.Watch(store)
	a.counts = append(a.counts, counts)
	return &place{cfg, dev, store, a.progress}, nil
}

// reachable finds out whether the TPM is there and has a storage root key.
func (p *place) reachable() error {
	_, end := p.progress(atTPM)
	defer end()
	_, err := p.tpm.Parent()
	return explain(err)
}

// slots tells where applications find the tokens.
func (p *place) slots() (map[string]p11.SlotID, []error) {
	tokens, err := p.store.Tokens()
	if err != nil {
		return nil, []error{err}
	}
	return p11.SlotIDs(p.cfg, tokens, nil)
}

// find gives the token that an argument means. Only a DID troubles the TPM,
// which opens the public keys.
func (p *place) find(arg string) (sealstore.TokenInfo, error) {
	census, err := p.store.Scan()
	if err != nil {
		return sealstore.TokenInfo{}, err
	}
	if strings.HasPrefix(arg, did.Prefix) {
		return p.findDID(arg, census.Tokens)
	}
	var found []sealstore.TokenInfo
	for _, t := range census.Tokens {
		if t.Label == arg || t.Serial == strings.ToLower(arg) {
			found = append(found, t)
		}
	}
	for _, l := range census.LeftOut {
		if len(found) == 0 && l.Serial == strings.ToLower(arg) {
			return sealstore.TokenInfo{}, fmt.Errorf("token %s cannot be used: %w", l.Serial, explain(l.Err))
		}
	}
	return p.only(arg, found, nil)
}

func (p *place) findDID(arg string, tokens []sealstore.TokenInfo) (sealstore.TokenInfo, error) {
	want, err := did.Parse(arg)
	if err != nil {
		return sealstore.TokenInfo{}, usageError{err}
	}
	_, end := p.progress(atTPM)
	defer end()
	m, err := startModule()
	if err != nil {
		return sealstore.TokenInfo{}, err
	}
	defer m.stop()
	var found []sealstore.TokenInfo
	var failed error
	for _, t := range tokens {
		key, err := m.identity(t)
		switch {
		case err == nil && key.public == want:
			found = append(found, t)
		case err != nil && !errors.Is(err, errNoIdentity):
			failed = err
		}
	}
	return p.only(arg, found, failed)
}

// only insists on one token. failed tells why some could not be looked into.
func (p *place) only(arg string, found []sealstore.TokenInfo, failed error) (sealstore.TokenInfo, error) {
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0 && failed != nil:
		return sealstore.TokenInfo{}, fmt.Errorf("looking for %s: %w", arg, explain(failed))
	case len(found) == 0:
		return sealstore.TokenInfo{}, fmt.Errorf("no token %q in %s (\"icn-p11 list\" shows what is there)", arg, p.cfg.SealedBlobDir)
	}
	serials := make([]string, len(found))
	for i, t := range found {
		serials[i] = t.Serial
	}
	return sealstore.TokenInfo{}, fmt.Errorf("%d tokens are called %s: name one by its serial number, %s",
		len(found), printable(arg), strings.Join(serials, ", "))
}

// printable keeps control characters, which a label may hold, from the terminal.
func printable(s string) string {
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return strconv.Quote(s)
		}
	}
	return s
}

// completeToken offers labels and serial numbers; nothing is sent to the TPM.
func completeToken(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	if len(args) > 0 {
		return nil, none
	}
	cfg, err := config.Load()
	if err != nil {
		return nil, none
	}
	tokens, err := sealstore.Open(cfg.SealedBlobDir, nil, nil).Tokens()
	if err != nil {
		return nil, none
	}
	var out []cobra.Completion
	for _, t := range tokens {
		if t.Label != "" && printable(t.Label) == t.Label {
			out = append(out, cobra.CompletionWithDesc(t.Label, "token "+t.Serial))
		}
		out = append(out, cobra.CompletionWithDesc(t.Serial, "token "+printable(t.Label)))
	}
	return out, none
}
