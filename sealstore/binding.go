package sealstore

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// Limits of a binding in a token's file.
const (
	pcrCount     = 24
	maxApprover  = 512
	maxSignature = 128
	maxTicket    = 256
	maxApprovals = 8
	maxDigest    = 64
	maxBinding   = 1 + 3 + 2 + maxApprover + 1 +
		maxApprovals*(pcrCount*maxDigest+2+maxSignature+2+maxTicket)
)

// bankCodes are the TPM_ALG_ID of the hash algorithms of PCR banks, as the
// file has them, with the size of a value.
var bankCodes = []struct {
	name string
	code byte
	size int
}{{"sha1", 0x04, 20}, {"sha256", 0x0b, 32}, {"sha384", 0x0c, 48}, {"sha512", 0x0d, 64}}

// BindingSpec says what a token is bound to.
type BindingSpec struct {
	Bank string
	PCRs []int // 0 to 23, each once
}

// Check tells what is wrong with a specification.
func (s BindingSpec) Check() error {
	_, _, err := s.sorted()
	return err
}

func (s BindingSpec) sorted() (bank string, pcrs []int, err error) {
	pcrs = slices.Sorted(slices.Values(s.PCRs))
	if len(pcrs) == 0 || pcrs[0] < 0 || pcrs[len(pcrs)-1] >= pcrCount || len(slices.Compact(slices.Clone(pcrs))) != len(pcrs) {
		return "", nil, fmt.Errorf("PCRs %v: at least one is needed, each between 0 and %d and given once", s.PCRs, pcrCount-1)
	}
	for _, b := range bankCodes {
		if b.name == s.Bank {
			return s.Bank, pcrs, nil
		}
	}
	return "", nil, fmt.Errorf("PCR bank %q is none of sha1, sha256, sha384, sha512", s.Bank)
}

func appendBinding(b []byte, x *Binding) []byte {
	if x == nil {
		return append(b, 0)
	}
	for _, k := range bankCodes {
		if k.name == x.Bank {
			b = append(b, k.code)
		}
	}
	var mask uint32
	for _, n := range x.PCRs {
		mask |= 1 << n
	}
	b = append(b, byte(mask), byte(mask>>8), byte(mask>>16))
	b = appendSized(b, x.Approver)
	b = append(b, byte(len(x.Approvals)))
	for _, a := range x.Approvals {
		for _, v := range a.Values {
			b = append(b, v...)
		}
		b = appendSized(b, a.Signature)
		b = appendSized(b, a.Ticket)
	}
	return b
}

func (d *decoder) binding() *Binding {
	code := d.take(1)
	if code == nil || code[0] == 0 {
		return nil
	}
	x, size := &Binding{}, 0
	for _, k := range bankCodes {
		if k.code == code[0] {
			x.Bank, size = k.name, k.size
		}
	}
	if size == 0 {
		d.fail("unknown PCR bank %#x", code[0])
		return nil
	}
	m := d.take(3)
	if m == nil {
		return nil
	}
	mask := uint32(m[0]) | uint32(m[1])<<8 | uint32(m[2])<<16
	for n := range pcrCount {
		if mask&(1<<n) != 0 {
			x.PCRs = append(x.PCRs, n)
		}
	}
	x.Approver = d.sized(maxApprover)
	count := d.take(1)
	if count == nil {
		return nil
	}
	if mask == 0 || count[0] == 0 || count[0] > maxApprovals {
		d.fail("a binding to %d PCRs with %d approvals", len(x.PCRs), count[0])
		return nil
	}
	for range count[0] {
		var a Approval
		for range x.PCRs {
			a.Values = append(a.Values, bytes.Clone(d.take(size)))
		}
		a.Signature = d.sized(maxSignature)
		a.Ticket = d.optional(maxTicket)
		x.Approvals = append(x.Approvals, a)
	}
	if d.err != nil {
		return nil
	}
	return x
}

// newBinding binds to the PCRs as they are now.
func (s *Store) newBinding(spec BindingSpec, approver []byte) (*Binding, error) {
	bank, pcrs, err := spec.sorted()
	if err != nil {
		return nil, err
	}
	b := &Binding{Bank: bank, PCRs: pcrs}
	if b.Approver, err = s.sealer.Approver(approver); err != nil {
		return nil, err
	}
	now, err := s.sealer.PCRs(bank, pcrs)
	if err != nil {
		return nil, err
	}
	return s.approve(b, [][][]byte{now}, approver)
}

// approve gives b with the states that are named approved, and no others.
func (s *Store) approve(b *Binding, states [][][]byte, approver []byte) (*Binding, error) {
	c := *b
	c.Approvals = nil
	for _, values := range states {
		a, err := s.sealer.Approve(&c, values, approver)
		if err != nil {
			return nil, err
		}
		if len(a.Signature) == 0 || len(a.Signature) > maxSignature || len(a.Ticket) > maxTicket {
			return nil, fmt.Errorf("approval of PCR values: %w", ErrTooLarge)
		}
		c.Approvals = append(c.Approvals, a)
	}
	return &c, nil
}

// sameApprover tells whether seals under one binding are as good under the
// other: approvals come and go, the approver stands in the seals.
func sameApprover(a, b *Binding) bool {
	if a == nil || b == nil {
		return a == b
	}
	return bytes.Equal(a.Approver, b.Approver)
}

// Open tells whether the platform is in an approved state. now has a value for
// each PCR.
func (b *Binding) Open(now [][]byte) bool {
	return slices.ContainsFunc(b.Approvals, func(a Approval) bool { return slices.EqualFunc(a.Values, now, bytes.Equal) })
}

// PCRChange is a PCR that has not the value it was sealed to.
type PCRChange struct {
	PCR           int
	Approved, Now []byte
}

// Changes compares the values of now with the approved state that is nearest.
func (b *Binding) Changes(now [][]byte) []PCRChange {
	var best []PCRChange
	for i, a := range b.Approvals {
		var c []PCRChange
		for k, n := range b.PCRs {
			if !bytes.Equal(a.Values[k], now[k]) {
				c = append(c, PCRChange{n, a.Values[k], now[k]})
			}
		}
		if i == 0 || len(c) < len(best) {
			best = c
		}
	}
	return best
}

// Mismatch is the error of a platform that is in no approved state: ErrPCR,
// with the PCRs that changed.
func (b *Binding) Mismatch(now [][]byte) error {
	return &mismatch{b.Bank, b.Changes(now)}
}

type mismatch struct {
	bank    string
	changes []PCRChange
}

func (m *mismatch) Error() string {
	text := ErrPCR.Error()
	for _, c := range m.changes {
		text += fmt.Sprintf("; PCR %d (%s) is %x, sealed to %x", c.PCR, m.bank, c.Now, c.Approved)
	}
	return text
}

func (m *mismatch) Unwrap() error { return ErrPCR }

// pcrs are the numbers of those that changed.
func (m *mismatch) pcrs() (n []int) {
	for _, c := range m.changes {
		n = append(n, c.PCR)
	}
	return n
}

// Binding reads what a token is bound to, nil where it is not, and the values
// that the PCRs have now. Without a login the binding is what the file says.
func (t *Token) Binding() (b *Binding, now [][]byte, err error) {
	f, _, err := readToken(t.path, t.serial)
	if err != nil || f.Binding == nil {
		return nil, nil, err
	}
	now, err = t.store.sealer.PCRs(f.Binding.Bank, f.Binding.PCRs)
	return f.Binding, now, err
}

// Unbound counts the keys of a bound token whose seals are not bound: those
// that a Bind or Unbind has left that was interrupted.
func (t *Token) Unbound() (int, error) {
	seals, err := t.Seals()
	n := 0
	for _, s := range seals {
		if !t.store.sealer.Bound(s.Blob) {
			n++
		}
	}
	return n, err
}

// ErrUnbound: the token is not bound to the platform.
var ErrUnbound = errors.New("the token is not bound to PCRs")

// Rebind approves the values that the PCRs have now, for the SO, and no
// others. With predicted values, for some PCRs, the state that they lead to is
// approved as well, so that the token opens before and after the change. One
// file is replaced; no seal is touched.
func (t *Token) Rebind(soPIN []byte, predicted map[int][]byte) error {
	return t.reapprove(soPIN, func(b *Binding, now [][]byte) ([][][]byte, error) {
		if len(predicted) == 0 {
			return [][][]byte{now}, nil
		}
		next, err := b.Predict(now, predicted)
		return [][][]byte{now, next}, err
	})
}

// Predict gives the values of the PCRs after a change of some of them.
func (b *Binding) Predict(now [][]byte, predicted map[int][]byte) ([][]byte, error) {
	next := slices.Clone(now)
	for n, v := range predicted {
		i := slices.Index(b.PCRs, n)
		if i < 0 {
			return nil, fmt.Errorf("PCR %d is not one that the token is bound to (%v)", n, b.PCRs)
		}
		if len(v) != len(now[i]) {
			return nil, fmt.Errorf("the value for PCR %d has %d bytes, not %d", n, len(v), len(now[i]))
		}
		next[i] = v
	}
	return next, nil
}

// ConfirmBinding withdraws the approval of every state but the present one,
// for the SO. The present one must be approved already.
func (t *Token) ConfirmBinding(soPIN []byte) error {
	return t.reapprove(soPIN, func(b *Binding, now [][]byte) ([][][]byte, error) {
		if !b.Open(now) {
			return nil, b.Mismatch(now)
		}
		return [][][]byte{now}, nil
	})
}

func (t *Token) reapprove(soPIN []byte, states func(*Binding, [][]byte) ([][][]byte, error)) error {
	return t.rewrite(func(f *tokenFile) (*keyring, error) {
		if f.Binding == nil {
			return nil, fmt.Errorf("token %s: %w", t.serial, ErrUnbound)
		}
		root, err := t.openRoot(f, SO, soPIN)
		if err != nil {
			return nil, err
		}
		now, err := t.store.sealer.PCRs(f.Binding.Bank, f.Binding.PCRs)
		var want [][][]byte
		if err == nil {
			want, err = states(f.Binding, now)
		}
		var b *Binding
		if err == nil {
			b, err = t.store.approve(f.Binding, want, root.approver())
		}
		if err != nil {
			root.destroy()
			return nil, fmt.Errorf("token %s: %w", t.serial, err)
		}
		f.Binding = b
		return root, nil
	})
}

// Bind binds a token to the PCRs as they are now. The user's seal is made
// anew, so the user's PIN is needed where one is set. Then every key's seal
// is; a key that a crash leaves unbound stays usable, and Bind may be called
// again. Keys that the device has made stay as they are, and Unbound counts
// them. A token that is bound already keeps its approver.
func (t *Token) Bind(userPIN, soPIN []byte, spec BindingSpec, progress Progress) error {
	return t.rebindAll(soPIN, func(f *tokenFile, root *keyring) error {
		b, err := t.store.newBinding(spec, root.approver())
		if err != nil {
			return err
		}
		if err := t.rebindUser(f, userPIN, b); err != nil {
			return err
		}
		if err := t.write(f, root); err != nil {
			return err
		}
		return t.reseal(f, root, b, progress)
	})
}

// Unbind takes a token's binding away, in the order that leaves every key
// usable at any instant. Both PINs are checked before anything is changed.
func (t *Token) Unbind(userPIN, soPIN []byte, progress Progress) error {
	return t.rebindAll(soPIN, func(f *tokenFile, root *keyring) error {
		if f.Binding == nil {
			return ErrUnbound
		}
		if err := t.noBoundKeys(); err != nil {
			return err
		}
		unbound := *f
		if err := t.rebindUser(&unbound, userPIN, nil); err != nil {
			return err
		}
		if err := t.reseal(f, root, nil, progress); err != nil {
			return err
		}
		return t.write(&unbound, root)
	})
}

// noBoundKeys refuses to take away the binding without which keys that the
// device has made could not be used any more.
func (t *Token) noBoundKeys() error {
	seals, err := t.Seals()
	for _, s := range seals {
		if s.Device && s.Blob.Binding != nil {
			return advice.With(fmt.Errorf("%s: a key that the TPM has made stays bound as it was made", s.Path), "delete that key first")
		}
	}
	return err
}

// rebindAll runs change under one lock, so that no key is made meanwhile, with
// the root secret as the SO's PIN opens it.
func (t *Token) rebindAll(soPIN []byte, change func(f *tokenFile, root *keyring) error) error {
	return t.locked(func(f *tokenFile) error {
		root, err := t.openRoot(f, SO, soPIN)
		if err != nil {
			return err
		}
		defer root.destroy()
		if err := change(f, root); err != nil {
			return fmt.Errorf("token %s: %w", t.serial, err)
		}
		return nil
	})
}

// rebindUser gives f another binding, and the user's seal with it.
func (t *Token) rebindUser(f *tokenFile, userPIN []byte, b *Binding) error {
	if f.User != nil {
		if f.Binding != nil && b != nil {
			// The new approvals must open the old seal for what follows.
			f.User.Blob.Binding = b
		}
		if f.User.NoPIN {
			userPIN = nil
		}
		root, err := t.openRoot(f, User, userPIN)
		if err != nil {
			return err
		}
		defer root.destroy()
		f.Binding = b
		s, err := t.store.sealRoot(f, root, User, userPIN)
		if err != nil {
			return err
		}
		f.User = &s
		return nil
	}
	f.Binding = b
	return nil
}

// reseal makes every key's seal anew under a binding, or none; f says what the
// token is bound to, which opens the seals. Each file is replaced by itself: at
// any instant each key opens as the old or the new. The token's lock is held.
func (t *Token) reseal(f *tokenFile, root *keyring, b *Binding, progress Progress) error {
	objects := filepath.Join(t.path, objectsName)
	removeTemps(objects)
	bound := *f
	bound.Binding = b
	return t.walk(f, root, progress, func(o *objectFile, k *keyring) error {
		if !o.sealed() || o.device() {
			return nil // what the device made stays as it was made
		}
		secret, err := secmem.New(MaxSecret)
		if err != nil {
			return fmt.Errorf("secret memory: %w", err)
		}
		defer secret.Destroy()
		err = k.with(o, func(body []byte) error {
			n, err := t.unsealObject(f, o, k, secret.Bytes())
			if err == nil {
				err = t.store.sealObject(&bound, o, k, secret.Bytes()[:n], o.about())
			}
			if err == nil {
				err = t.store.verifySeal(f.Parent, o.Seal, k.auth(), secret.Bytes()[:n])
			}
			if err == nil {
				err = k.seal(o, body)
			}
			return err
		})
		if err != nil {
			return err
		}
		name := idName(o.ID)
		if err := writeFile(objects, name, o.encode(), true); err != nil {
			return writeError(filepath.Join(objects, name), err)
		}
		return nil
	})
}

// unsealObject opens the seal of an object, with the token's binding.
func (t *Token) unsealObject(f *tokenFile, o *objectFile, k *keyring, dst []byte) (int, error) {
	seal := o.Seal
	seal.Binding = f.Binding
	return t.store.sealer.Unseal(f.Parent, seal, k.auth(), dst)
}

// bootLogName is a file beside the token's: the firmware's event log of when
// the binding was made. It only informs.
const (
	bootLogName = "boot-log"
	maxBootLog  = 4 << 20
)

// SaveBootLog keeps the firmware's event log, so that it can be compared with
// a later one. Fails with ErrTooLarge above 4 MiB.
func (t *Token) SaveBootLog(p []byte) error {
	if len(p) > maxBootLog {
		return fmt.Errorf("an event log of %d bytes: %w", len(p), ErrTooLarge)
	}
	l, err := t.lock()
	if err != nil {
		return err
	}
	defer l.unlock()
	if err := writeFile(t.path, bootLogName, p, true); err != nil {
		return writeError(filepath.Join(t.path, bootLogName), err)
	}
	return nil
}

// BootLog gives what SaveBootLog kept, or ErrNotFound.
func (t *Token) BootLog() ([]byte, error) {
	return readFile(t.path, bootLogName, maxBootLog)
}
