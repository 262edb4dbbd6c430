package memseal

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// The operations on the state of the platform.
const (
	OpPCRs     Op = "PCRs"
	OpApprover Op = "Approver"
	OpApprove  Op = "Approve"
)

const (
	flagLockout = 1 << iota
	flagBound
	flagMovable
)

// Extend changes a PCR, in every bank, as firmware that measures does.
func (s *Sealer) Extend(pcr int, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pcrs[pcr] = sha256.Sum256(append(s.pcrs[pcr][:], data...))
}

// PCRs implements sealstore.Sealer. The values have 32 bytes in every bank.
func (s *Sealer) PCRs(bank string, pcrs []int) ([][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(OpPCRs); err != nil {
		return nil, err
	}
	return s.values(pcrs)
}

func (s *Sealer) values(pcrs []int) ([][]byte, error) {
	var v [][]byte
	for _, n := range pcrs {
		if n < 0 || n >= len(s.pcrs) {
			return nil, fmt.Errorf("memseal: there is no PCR %d", n)
		}
		v = append(v, bytes.Clone(s.pcrs[n][:]))
	}
	return v, nil
}

// Approver implements sealstore.Sealer.
func (s *Sealer) Approver(secret []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(OpApprover); err != nil {
		return nil, err
	}
	seed := sha256.Sum256(secret)
	return ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey), nil
}

// Approve implements sealstore.Sealer.
func (s *Sealer) Approve(b *sealstore.Binding, values [][]byte, secret []byte) (sealstore.Approval, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(OpApprove); err != nil {
		return sealstore.Approval{}, err
	}
	if len(values) != len(b.PCRs) {
		return sealstore.Approval{}, fmt.Errorf("memseal: %d values for %d PCRs", len(values), len(b.PCRs))
	}
	seed := sha256.Sum256(secret)
	return sealstore.Approval{
		Values:    values,
		Signature: ed25519.Sign(ed25519.NewKeyFromSeed(seed[:]), statement(b, values)),
		Ticket:    []byte("memseal"),
	}, nil
}

// statement is what an approver signs.
func statement(b *sealstore.Binding, values [][]byte) []byte {
	m := append([]byte(b.Bank), 0)
	for i, v := range values {
		m = binary.BigEndian.AppendUint32(m, uint32(b.PCRs[i]))
		m = binary.BigEndian.AppendUint32(m, uint32(len(v)))
		m = append(m, v...)
	}
	return m
}

// Bound implements sealstore.Sealer.
func (s *Sealer) Bound(b sealstore.Blob) bool {
	return len(b.Public) > len(magic) && b.Public[len(magic)]&flagBound != 0
}

// checkBinding tells whether a seal's binding lets it open now. s.mu is held.
func (s *Sealer) checkBinding(b sealstore.Blob) error {
	if !s.Bound(b) {
		return nil
	}
	if b.Binding == nil {
		return fmt.Errorf("memseal: a bound seal without its binding")
	}
	if h := sha256.Sum256(b.Binding.Approver); !bytes.Equal(h[:], b.Public[len(b.Public)-len(h):]) {
		return fmt.Errorf("memseal: the binding is not that of the seal")
	}
	now, err := s.values(b.Binding.PCRs)
	if err != nil {
		return err
	}
	for _, a := range b.Binding.Approvals {
		if slices.EqualFunc(a.Values, now, bytes.Equal) {
			if !ed25519.Verify(b.Binding.Approver, statement(b.Binding, now), a.Signature) {
				return fmt.Errorf("memseal: %w: an approval is not signed by the approver", sealstore.ErrIntegrity)
			}
			return nil
		}
	}
	return fmt.Errorf("memseal: %w", b.Binding.Mismatch(now))
}
