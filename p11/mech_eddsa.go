package p11

import (
	"bytes"

	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
)

type eddsaParams = eddsa.Params

// edwardsInfo: the sizes are in bits, and 255 for edwards25519 (section
// 6.3.14). CKF_HW stays clear, since the signature is made in software.
func edwardsInfo(functions uint) MechanismInfo {
	return MechanismInfo{255, 255, functions | CKF_EC_F_P | CKF_EC_OID | CKF_EC_CURVENAME}
}

var eddsaMechanisms = []mechanism{
	{typ: CKM_EC_EDWARDS_KEY_PAIR_GEN, info: edwardsInfo(CKF_GENERATE_KEY_PAIR), keyType: CKK_EC_EDWARDS},
	// GnuTLS 3.7 generates keys with CKM_EDDSA.
	{typ: CKM_EDDSA, info: edwardsInfo(CKF_SIGN | CKF_VERIFY | CKF_MESSAGE_SIGN | CKF_MESSAGE_VERIFY | CKF_MULTI_MESSAGE),
		also: CKF_GENERATE_KEY_PAIR, keyType: CKK_EC_EDWARDS, generates: CKM_EC_EDWARDS_KEY_PAIR_GEN, eddsa: parseEdDSAParams},
}

// parseEdDSAParams chooses the signature scheme of RFC 8032 (section 6.3.16):
// none is Ed25519; with one it is Ed25519ctx or, with phFlag, Ed25519ph. An
// empty context without phFlag is refused: RFC 8032 advises against it, and
// no verifier at hand takes it.
func parseEdDSAParams(param any) (eddsaParams, error) {
	switch p := param.(type) {
	case nil:
		return eddsaParams{Variant: eddsa.Pure}, nil
	case *EdDSAParams:
		if len(p.Context) > 255 || !p.Ph && len(p.Context) == 0 {
			return eddsaParams{}, CKR_MECHANISM_PARAM_INVALID
		}
		v := eddsa.Ctx
		if p.Ph {
			v = eddsa.Ph
		}
		return eddsaParams{Variant: v, Context: bytes.Clone(p.Context)}, nil
	}
	return eddsaParams{}, CKR_MECHANISM_PARAM_INVALID
}

// maxMessage bounds what C_SignUpdate and C_VerifyUpdate collect: Ed25519
// reads a message twice, so it must be held as a whole.
const maxMessage = 64 << 20

// messageOp is a signature or a verification that was initialised.
type messageOp struct {
	row           *mechanism
	key           *object
	params        eddsaParams
	size          int  // of the signature
	parts         bool // the message comes in parts
	message       []byte
	signature     []byte // to verify
	authenticated bool   // CKU_CONTEXT_SPECIFIC login for this operation
}

// opKey finds the key of an operation and checks that it may serve it.
func (l *library) opKey(sess *session, oh ObjectHandle, class uint, row *mechanism, usage AttributeType) (*object, error) {
	o, err := l.object(sess, oh)
	if err != nil {
		return nil, CKR_KEY_HANDLE_INVALID
	}
	switch c := o.body.ulong(CKA_CLASS); {
	case c != CKO_PRIVATE_KEY && c != CKO_PUBLIC_KEY && c != CKO_SECRET_KEY:
		return nil, CKR_KEY_HANDLE_INVALID
	case !row.takes(o.body.ulong(CKA_KEY_TYPE)):
		return nil, CKR_KEY_TYPE_INCONSISTENT
	case c != class:
		// "a public key for signing", in the words of section 5.1.6.
		return nil, CKR_KEY_FUNCTION_NOT_PERMITTED
	case !o.bool(usage):
		return nil, CKR_KEY_FUNCTION_NOT_PERMITTED
	}
	if !o.body.allows(row.typ) {
		return nil, CKR_MECHANISM_INVALID
	}
	return o, nil
}

// SignInit is C_SignInit (section 5.13.1). Nothing is unsealed yet.
func (m *Module) SignInit(h SessionHandle, mech Mechanism, key ObjectHandle) error {
	return m.startMessage(h, mech, key, CKF_SIGN, func(s *session, op *messageOp) { s.sign = op })
}

// message finds where a session keeps its operation of a function.
func (s *session) message(function uint) **messageOp {
	switch function {
	case CKF_SIGN:
		return &s.sign
	case verifySignature:
		return &s.verifySig
	}
	return &s.verify
}

// startMessage is what the Init functions of signatures and verifications have
// in common. keep puts the operation where the session has it.
func (m *Module) startMessage(h SessionHandle, mech Mechanism, key ObjectHandle, function uint, keep func(*session, *messageOp)) error {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
	if sess.busy(function) {
		return CKR_OPERATION_ACTIVE
	}
	made, err := l.newMessage(sess, mech, key, function)
	if err != nil {
		return err
	}
	// A session has one signature and one verification at a time, so that
	// they need not be made on the heap each time.
	op := &sess.verification
	if signs(function) {
		op = &sess.signature
	}
	*op = made
	keep(sess, op)
	return nil
}

// newMessage checks what an Init function was given, in this order: mechanism,
// parameter, key.
func (l *library) newMessage(sess *session, mech Mechanism, key ObjectHandle, function uint) (op messageOp, err error) {
	row, err := mechanismFor(mech.Type, function)
	if err != nil {
		return op, err
	}
	class, usage := uint(CKO_PUBLIC_KEY), CKA_VERIFY
	if signs(function) {
		class, usage = CKO_PRIVATE_KEY, CKA_SIGN
	}
	op = messageOp{row: row, size: eddsa.SignatureSize}
	switch {
	case row.mac != nil:
		class = CKO_SECRET_KEY
		op.size, err = row.macSize(mech.Param)
	case row.ecdsa && mech.Param != nil:
		err = CKR_MECHANISM_PARAM_INVALID
	case !row.ecdsa:
		op.params, err = row.eddsa(mech.Param)
	}
	if err != nil {
		return op, err
	}
	if op.key, err = l.opKey(sess, key, class, row, usage); err != nil {
		return op, err
	}
	if row.ecdsa {
		op.size = int(op.key.body.curve().bits / 4)
	}
	return op, nil
}

// collect adds a part to the message of an operation, and ends the operation
// where it grows too long.
func (m *Module) collect(h SessionHandle, part []byte, function uint) error {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
	at := sess.message(function)
	op := *at
	if op == nil {
		return CKR_OPERATION_NOT_INITIALIZED
	}
	if err := op.append(part); err != nil {
		*at, *op = nil, messageOp{}
		return err
	}
	return nil
}

// inParts refuses parts, and their end, where the mechanism takes the data in one:
// no operation in parts was initialised, as SoftHSM and kryoptic say it.
func (op *messageOp) inParts() error {
	if op.row.singlePart() {
		return CKR_OPERATION_NOT_INITIALIZED
	}
	return nil
}

func (op *messageOp) append(part []byte) error {
	if err := op.inParts(); err != nil {
		return err
	}
	if len(part) > maxMessage-len(op.message) {
		return CKR_DATA_LEN_RANGE
	}
	op.parts = true
	op.message = append(op.message, part...)
	return nil
}

// Sign is C_Sign (section 5.13.2). It ends the operation, unless it only told
// the length of the signature.
func (m *Module) Sign(h SessionHandle, data []byte, out *Output) error {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
	op := sess.sign
	switch {
	case op == nil:
		return CKR_OPERATION_NOT_INITIALIZED
	case op.parts:
		return CKR_OPERATION_ACTIVE
	}
	return l.finishSign(sess, op, data, out)
}

// SignUpdate is C_SignUpdate (section 5.13.3).
func (m *Module) SignUpdate(h SessionHandle, part []byte) error {
	return m.collect(h, part, CKF_SIGN)
}

// SignFinal is C_SignFinal (section 5.13.4).
func (m *Module) SignFinal(h SessionHandle, out *Output) error {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
	op := sess.sign
	if op == nil {
		return CKR_OPERATION_NOT_INITIALIZED
	}
	if err := op.inParts(); err != nil {
		sess.sign = nil
		return err
	}
	return l.finishSign(sess, op, op.message, out)
}

func (l *library) finishSign(sess *session, op *messageOp, data []byte, out *Output) error {
	if done, err := checkOutput(out, op.size); done {
		return err
	}
	sess.sign = nil
	err := l.signMessage(sess, op, data, out.Buf[:op.size])
	*op = messageOp{}
	return err
}

// signMessage makes the signature of an operation, counts it, and records it
// where there is an audit log.
func (l *library) signMessage(sess *session, op *messageOp, data, sig []byte) error {
	sign := l.sign
	if l.audit != nil {
		sign = l.audited
	}
	err := sign(sess, op, data, sig)
	l.stats.Signed(sess.slot.serial, uint64(sess.handle), err)
	return err
}

// sign makes a signature, if its key may be used.
func (l *library) sign(sess *session, op *messageOp, data, sig []byte) error {
	if op.key.private && l.user(sess) != userIn ||
		op.key.bool(CKA_ALWAYS_AUTHENTICATE) && !op.authenticated {
		return CKR_USER_NOT_LOGGED_IN
	}
	switch {
	case op.row.mac != nil:
		return l.macWith(sess, op, data, sig)
	case op.row.ecdsa:
		return l.signInDevice(sess.slot, op, data, sig)
	}
	return l.signWith(sess, op.key, sig, op.params, data)
}

// VerifyInit is C_VerifyInit (section 5.15.1).
func (m *Module) VerifyInit(h SessionHandle, mech Mechanism, key ObjectHandle) error {
	return m.startMessage(h, mech, key, CKF_VERIFY, func(s *session, op *messageOp) { s.verify = op })
}

// Verify is C_Verify (section 5.15.2).
func (m *Module) Verify(h SessionHandle, data, sig []byte) error {
	return m.finishVerify(h, CKF_VERIFY, func(op *messageOp) error {
		if op.parts {
			return CKR_OPERATION_ACTIVE
		}
		op.message, op.signature = data, sig
		return nil
	})
}

// VerifyUpdate is C_VerifyUpdate (section 5.15.3).
func (m *Module) VerifyUpdate(h SessionHandle, part []byte) error {
	return m.collect(h, part, CKF_VERIFY)
}

// VerifyFinal is C_VerifyFinal (section 5.15.4).
func (m *Module) VerifyFinal(h SessionHandle, sig []byte) error {
	return m.finishVerify(h, CKF_VERIFY, func(op *messageOp) error {
		op.signature = sig
		return op.inParts()
	})
}

// finishVerify ends a verification, once complete has given it what it lacks.
func (m *Module) finishVerify(h SessionHandle, function uint, complete func(*messageOp) error) error {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
	at := sess.message(function)
	op := *at
	if op == nil {
		return CKR_OPERATION_NOT_INITIALIZED
	}
	if err := complete(op); err != nil {
		if err != CKR_OPERATION_ACTIVE {
			*at = nil
		}
		return err
	}
	err = l.verify(sess, op, op.message, op.signature)
	*at, *op = nil, messageOp{}
	return err
}

// verify checks a signature: of its length first (section 5.1.6).
func (l *library) verify(sess *session, op *messageOp, data, sig []byte) error {
	if len(sig) != op.size {
		return CKR_SIGNATURE_LEN_RANGE
	}
	switch {
	case op.row.mac != nil:
		return l.verifyMAC(sess, op, data, sig)
	case op.row.ecdsa:
		return op.verifyECDSA(data, sig)
	}
	if !eddsa.Verify(op.key.body.bytes(CKA_EC_POINT), data, sig, op.params) {
		return CKR_SIGNATURE_INVALID
	}
	return nil
}
