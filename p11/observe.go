package p11

import (
	"crypto/sha256"
	"encoding/hex"

	"github.com/InterCooperative-Network/icn-p11/internal/audit"
	"github.com/InterCooperative-Network/icn-p11/internal/did"
	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// audited is sign with a record of it. The signature is made where the
// application does not see it, and leaves when the record is written.
func (l *library) audited(sess *session, op *messageOp, data, sig []byte) error {
	made := make([]byte, len(sig))
	defer secmem.Wipe(made)
	err := l.sign(sess, op, data, made)
	if failed := l.audit.Write(recordOf(sess.slot, op, data, err)); failed != nil {
		l.log.Error("nothing is signed without an audit record", "token", sess.slot.serial, "error", failed)
		if err == nil {
			err = &coded{CKR_FUNCTION_FAILED, failed}
		}
	}
	if err == nil {
		copy(sig, made)
	}
	return err
}

// recordOf describes a signature for the audit log.
func recordOf(s *slot, op *messageOp, data []byte, outcome error) audit.Record {
	b := op.key.body
	digest := sha256.Sum256(data)
	r := audit.Record{
		Token:     s.serial,
		Key:       hex.EncodeToString(b.bytes(CKA_ID)),
		KeyLabel:  string(b.bytes(CKA_LABEL)),
		Mechanism: op.mechanism(),
		SHA256:    hex.EncodeToString(digest[:]),
		Outcome:   RVOf(outcome).Error(),
	}
	if point := b.bytes(CKA_EC_POINT); op.row.eddsa != nil && len(point) == eddsa.PublicKeySize {
		r.DID = did.Encode([eddsa.PublicKeySize]byte(point))
	}
	if t, err := s.token.Info(); err == nil {
		r.TokenLabel = t.Label
	}
	return r
}

// mechanism names how a signature is made.
func (op *messageOp) mechanism() string {
	if op.row.eddsa != nil {
		return op.params.Variant.String()
	}
	return op.row.name
}

// kept tells that a key of a slot stays unlocked, or is locked after it has.
// library.mu may be held.
func (l *library) kept(s *slot) func(id sealstore.ID, unlocked bool) {
	return func(id sealstore.ID, unlocked bool) {
		what := "key locked"
		if unlocked {
			what = "key unlocked"
		}
		// A slot that has a key unlocked keeps its serial number.
		l.log.Info(what, "token", s.serial, "object", hex.EncodeToString(id[:]))
		l.stats.Kept(s.serial, unlocked)
	}
}
