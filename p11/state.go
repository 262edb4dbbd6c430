package p11

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
)

// stateKey authenticates the operation states that C_GetOperationState hands
// out, from C_Initialize until C_Finalize: the standard lets no state outlive
// the library that saved it, so none that was changed or made up is read.
type stateKey [32]byte

func newStateKey() (k stateKey) {
	rand.Read(k[:])
	return k
}

func (k *stateKey) mac(b []byte) []byte {
	h := hmac.New(sha256.New, k[:])
	h.Write(b)
	return h.Sum(nil)
}

// savedState is a digest that goes on later: a version byte, the mechanism in 8
// bytes, the state of the session in 1, 1 where C_Digest is no longer allowed,
// the length of the token's serial number in 1 and the number, and the state of
// the hash as Go encodes it. Numbers are big-endian. A MAC of it follows.
type savedState struct {
	mech    MechanismType
	session State
	parts   bool
	serial  string
	hash    hasher
}

const (
	stateVersion = 1
	stateHeader  = 1 + 8 + 1 + 1 + 1
)

// savable is what every hash of the mechanism table can do.
type savable interface {
	encoding.BinaryMarshaler
	encoding.BinaryUnmarshaler
}

func (s *savedState) encode() ([]byte, error) {
	hash, err := s.hash.(savable).MarshalBinary()
	if err != nil {
		return nil, err
	}
	b := []byte{stateVersion}
	b = binary.BigEndian.AppendUint64(b, uint64(s.mech))
	b = append(b, byte(s.session), boolBytes(s.parts)[0], byte(len(s.serial)))
	b = append(b, s.serial...)
	return append(b, hash...), nil
}

// decodeState reads what encode wrote, and nothing else.
func decodeState(b []byte) (*savedState, bool) {
	if len(b) < stateHeader || b[0] != stateVersion || b[10] > 1 || len(b) < stateHeader+int(b[11]) {
		return nil, false
	}
	s := &savedState{
		mech:    MechanismType(binary.BigEndian.Uint64(b[1:])),
		session: State(b[9]),
		parts:   b[10] == 1,
		serial:  string(b[stateHeader : stateHeader+int(b[11])]),
	}
	row, err := mechanismFor(s.mech, CKF_DIGEST)
	if err != nil {
		return nil, false
	}
	s.hash = row.digest()
	if s.hash.(savable).UnmarshalBinary(b[stateHeader+int(b[11]):]) != nil {
		return nil, false
	}
	again, err := s.encode()
	return s, err == nil && bytes.Equal(again, b)
}

// GetOperationState is C_GetOperationState (section 5.6.6), for digests.
// Signatures and verifications cannot be saved: what they have collected is
// the application's own message.
func (m *Module) GetOperationState(h SessionHandle, out *Output) error {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
	op := sess.digest
	switch {
	case sess.busy(CKF_SIGN) || sess.busy(CKF_VERIFY) || sess.encrypt != nil || sess.decrypt != nil:
		return CKR_STATE_UNSAVEABLE
	case op == nil:
		return CKR_OPERATION_NOT_INITIALIZED
	}
	s := savedState{mech: op.mech, session: l.stateOf(sess), parts: op.parts, serial: sess.slot.serial, hash: op.hash}
	b, err := s.encode()
	if err != nil {
		return l.fail("saving the state of a digest", sess.slot.serial, err)
	}
	if done, err := checkOutput(out, len(b)+sha256.Size); done {
		return err
	}
	copy(out.Buf, append(b, l.stamp.mac(b)...))
	return nil
}

// SetOperationState is C_SetOperationState (section 5.6.7). What the session
// was doing is over, unless the state is refused. encKey and authKey are the
// handles of keys, none of which a digest needs.
func (m *Module) SetOperationState(h SessionHandle, state []byte, encKey, authKey ObjectHandle) error {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
	if state == nil {
		return CKR_ARGUMENTS_BAD
	}
	n := len(state) - sha256.Size
	if n < 0 || !hmac.Equal(l.stamp.mac(state[:n]), state[n:]) {
		return CKR_SAVED_STATE_INVALID
	}
	s, ok := decodeState(state[:n])
	switch {
	case !ok || s.serial != sess.slot.serial || s.session != l.stateOf(sess):
		return CKR_SAVED_STATE_INVALID
	case encKey != 0 || authKey != 0:
		return CKR_KEY_NOT_NEEDED
	}
	sess.cancel(^uint(0))
	sess.digest = &digestOp{mech: s.mech, hash: s.hash, parts: s.parts}
	return nil
}
