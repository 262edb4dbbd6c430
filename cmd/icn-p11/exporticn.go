package main

import (
	"bytes"
	"crypto/subtle"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
	"github.com/InterCooperative-Network/icn-p11/internal/icnblob"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// icnExport is what export-icn-blob is told.
type icnExport struct {
	change
	out    target
	handle string
	pcrs   []uint
	owner  *passwordFlag
}

// icnRow is what export-icn-blob prints.
type icnRow struct {
	keyRow
	File   string `json:"file"`
	Handle string `json:"key_handle"`
}

func (a *app) exportICNCommand() *cobra.Command {
	o := &icnExport{owner: ownerFlag(), out: target{final: true}}
	cmd := &cobra.Command{
		Use:   "export-icn-blob TOKEN [KEY] --out FILE|DIR",
		Short: "Write a key as the sealed identity of an ICN node",
		Long: `Seal a key of a recoverable token as ICN's own TPM backend does it, and write the
file that a node reads which does not use the module: version 2, for this TPM. In
a directory the file is called by the node's key_handle, as the node expects.
Both PINs are needed; the blob itself opens without any.`,
		Example: `  icn-p11 export-icn-blob node --out ~/.local/share/icn/tpm
  icn-p11 export-icn-blob node --out sealed.blob --key-handle 0x81000002 --pcr-slots 0,7`,
		Args:              tokenAndOne("KEY"),
		ValidArgsFunction: completeToken,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			b, err := o.blob()
			if err != nil {
				return err
			}
			return a.exportICN(args, o, b)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&o.out.path, "out", "", "file to write, or a directory")
	f.StringVar(&o.handle, "key-handle", fmt.Sprintf("0x%08x", icnblob.DefaultHandle), "key_handle of the node's configuration")
	f.UintSliceVar(&o.pcrs, "pcr-slots", nil, "PCRs that the node is told of; the blob is bound to none")
	o.owner.on(cmd)
	noCompletion(cmd, "key-handle", "pcr-slots")
	o.flags(cmd, true, true, false)
	return cmd
}

// blob checks what does not need the token: it gives what shall be in the
// blob besides the key, and completes the name of the file.
func (o *icnExport) blob() (*icnblob.Blob, error) {
	handle, err := strconv.ParseUint(o.handle, 0, 32)
	if err != nil || handle < icnblob.MinHandle || handle > icnblob.MaxHandle {
		return nil, usage("--key-handle is a handle between 0x%08X and 0x%08X", icnblob.MinHandle, icnblob.MaxHandle)
	}
	h := uint32(handle)
	b := &icnblob.Blob{PCRs: []byte{}, Handle: &h}
	for i, n := range o.pcrs {
		if n > icnblob.MaxPCR || i > 0 && n <= o.pcrs[i-1] {
			return nil, usage("--pcr-slots: not between 0 and %d, in rising order", icnblob.MaxPCR)
		}
		b.PCRs = append(b.PCRs, byte(n))
	}
	if o.out.path == "" {
		return nil, usage("--out is needed")
	}
	if st, err := os.Stat(o.out.path); err == nil && st.IsDir() {
		o.out.path = filepath.Join(o.out.path, icnblob.FileName(h))
	}
	return b, o.out.check()
}

func (a *app) exportICN(args []string, o *icnExport, b *icnblob.Blob) error {
	p, t, err := a.openToken(args[0])
	if err != nil {
		return err
	}
	defer p.tpm.Close()
	if !t.Recoverable {
		return fmt.Errorf("token %s: %w", printable(t.Label), sealstore.ErrNotRecoverable)
	}
	k, err := p.publicKey(t, optional(args))
	if err != nil {
		return err
	}
	b.PublicKey = k.public
	if o.dryRun {
		err = p.opens(t)
	} else {
		err = p.writeICN(t, k, o, b)
	}
	if err != nil {
		return err
	}
	r := icnRow{k.row(), o.out.path, fmt.Sprintf("0x%08x", *b.Handle)}
	r.DryRun = o.dryRun
	if err := a.outcome(o.change, r, "Key %s, %s, is written to %s", printable(k.label), k.did(), o.out.path); err != nil || o.dryRun {
		return err
	}
	a.note("The blob opens on this TPM without a PIN, and whatever the state of the platform: whoever can read it and use the TPM signs as this identity.")
	return nil
}

// writeICN takes a key out, seals it and writes the file.
func (p *place) writeICN(t sealstore.TokenInfo, k tokenKey, o *icnExport, b *icnblob.Blob) error {
	tok, err := p.store.Token(t.Serial)
	if err != nil {
		return err
	}
	// Nobody should type PINs to hear that the TPM is missing.
	if err := p.reachable(); err != nil {
		return err
	}
	owner, err := o.owner.read(false)
	if err != nil {
		return err
	}
	defer owner.Destroy()
	err = o.withPINs(t.UserPIN, false, func(user, so []byte) error {
		step, end := p.progress("Taking the keys out")
		c, err := tok.Export(user, so, step)
		end()
		if err != nil {
			return p.bindingFailure(t, err)
		}
		defer c.Destroy()
		seed, err := seedOf(c, k)
		if err != nil {
			return err
		}
		return explain(p.sealICN(t, b, owner.Bytes(), seed))
	})
	if err != nil {
		return err
	}
	data := b.Marshal()
	return o.out.write(data, func(back []byte) error {
		if !bytes.Equal(back, data) {
			return errors.New("what was written reads back otherwise")
		}
		return nil
	})
}

// seedOf finds the seed of a key.
func seedOf(c *sealstore.Contents, k tokenKey) ([]byte, error) {
	for _, o := range c.Objects {
		if len(o.Secret) != eddsa.SeedSize {
			continue
		}
		public, err := eddsa.PublicOf(o.Secret)
		if err != nil {
			return nil, err
		}
		if public == k.public {
			return o.Secret, nil
		}
	}
	return nil, fmt.Errorf("the token holds no private half of %s", k.did())
}

// sealICN seals a seed into a blob, and makes sure that it opens again.
func (p *place) sealICN(t sealstore.TokenInfo, b *icnblob.Blob, owner, seed []byte) error {
	_, end := p.progress(atTPM)
	defer end()
	defer p.tpm.Release()
	sealed, err := p.tpm.SealForeign(t.Parent, tpm.ICNParent(), owner, seed)
	if err != nil {
		return err
	}
	back, err := secmem.New(eddsa.SeedSize)
	if err != nil {
		return err
	}
	defer back.Destroy()
	n, err := p.tpm.UnsealForeign(t.Parent, sealed, owner, nil, back.Bytes())
	if err != nil {
		return err
	}
	if n != eddsa.SeedSize || subtle.ConstantTimeCompare(back.Bytes(), seed) != 1 {
		return errors.New("the TPM unseals something else than was sealed")
	}
	b.Public, b.Private = sealed.Public, sealed.Private
	return nil
}
