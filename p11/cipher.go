package p11

import (
	"slices"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// cipherRun is one encryption or decryption under way: a mechanism with its
// parameter, and what it has to remember from one part to the next. The key is
// given anew for each part.
type cipherRun interface {
	// size is that of the output for n bytes of input, at most, and whether it
	// is exactly so. last: no more input comes.
	size(decrypt bool, n int, last bool) (most int, exact bool)
	// next processes a part. It may keep data for the next one, or to the end.
	next(key []byte, decrypt bool, data []byte, last bool) ([]byte, error)
	// clone is the run as it is.
	clone() cipherRun
}

// cipherOp is an encryption or a decryption that was initialised.
type cipherOp struct {
	row     *mechanism
	key     *object
	run     cipherRun
	decrypt bool
	parts   bool // the data comes in parts
	// live is the key, unlocked from the first part to the last.
	live *liveKey
}

// end wipes what an operation has unlocked. A nil operation may end.
func (op *cipherOp) end(s *slot) {
	if op != nil && op.live != nil {
		s.keys.giveBack(op.live)
	}
}

// cipherAt finds where a session keeps its operation of a function.
func (s *session) cipherAt(function uint) **cipherOp {
	if function == CKF_ENCRYPT {
		return &s.encrypt
	}
	return &s.decrypt
}

// EncryptInit is C_EncryptInit (section 5.8.1).
func (m *Module) EncryptInit(h SessionHandle, mech Mechanism, key ObjectHandle) error {
	return m.startCipher(h, mech, key, CKF_ENCRYPT, CKA_ENCRYPT)
}

// DecryptInit is C_DecryptInit (section 5.10.1).
func (m *Module) DecryptInit(h SessionHandle, mech Mechanism, key ObjectHandle) error {
	return m.startCipher(h, mech, key, CKF_DECRYPT, CKA_DECRYPT)
}

func (m *Module) startCipher(h SessionHandle, mech Mechanism, key ObjectHandle, function uint, usage AttributeType) error {
	l, sess, err := m.withSession(h)
	if err != nil {
		return err
	}
	defer l.leave()
	sess.mu.Lock()
	defer sess.mu.Unlock()
	at := sess.cipherAt(function)
	if *at != nil {
		return CKR_OPERATION_ACTIVE
	}
	row, err := mechanismFor(mech.Type, function)
	if err != nil {
		return err
	}
	run, err := row.cipher(mech.Param)
	if err != nil {
		return err
	}
	o, err := l.opKey(sess, key, CKO_SECRET_KEY, row, usage)
	if err != nil {
		return err
	}
	*at = &cipherOp{row: row, key: o, run: run, decrypt: function == CKF_DECRYPT}
	return nil
}

// Encrypt is C_Encrypt (section 5.8.2).
func (m *Module) Encrypt(h SessionHandle, data []byte, out *Output) error {
	return m.crypt(h, data, out, CKF_ENCRYPT)
}

// Decrypt is C_Decrypt (section 5.10.2).
func (m *Module) Decrypt(h SessionHandle, data []byte, out *Output) error {
	return m.crypt(h, data, out, CKF_DECRYPT)
}

func (m *Module) crypt(h SessionHandle, data []byte, out *Output, function uint) error {
	return m.step(h, function, out, func(op *cipherOp) ([]byte, bool, error) {
		if op.parts {
			return nil, false, CKR_OPERATION_ACTIVE
		}
		return data, true, nil
	})
}

// EncryptUpdate is C_EncryptUpdate (section 5.8.3).
func (m *Module) EncryptUpdate(h SessionHandle, part []byte, out *Output) error {
	return m.cryptPart(h, part, out, CKF_ENCRYPT)
}

// DecryptUpdate is C_DecryptUpdate (section 5.10.3).
func (m *Module) DecryptUpdate(h SessionHandle, part []byte, out *Output) error {
	return m.cryptPart(h, part, out, CKF_DECRYPT)
}

func (m *Module) cryptPart(h SessionHandle, part []byte, out *Output, function uint) error {
	return m.step(h, function, out, func(op *cipherOp) ([]byte, bool, error) {
		op.parts = true
		return part, false, nil
	})
}

// EncryptFinal is C_EncryptFinal (section 5.8.4).
func (m *Module) EncryptFinal(h SessionHandle, out *Output) error {
	return m.cryptLast(h, out, CKF_ENCRYPT)
}

// DecryptFinal is C_DecryptFinal (section 5.10.4).
func (m *Module) DecryptFinal(h SessionHandle, out *Output) error {
	return m.cryptLast(h, out, CKF_DECRYPT)
}

func (m *Module) cryptLast(h SessionHandle, out *Output, function uint) error {
	return m.step(h, function, out, func(op *cipherOp) ([]byte, bool, error) {
		op.parts = true
		return nil, true, nil
	})
}

// step takes an operation one part further. Where the output only has to be
// measured, or does not fit, the operation stays as it was; any other error
// ends it (section 5.2).
func (m *Module) step(h SessionHandle, function uint, out *Output, input func(*cipherOp) (data []byte, last bool, err error)) error {
	l, sess, err := m.withSession(h)
	if err != nil {
		return err
	}
	defer l.leave()
	sess.mu.Lock()
	defer sess.mu.Unlock()
	at := sess.cipherAt(function)
	op := *at
	if op == nil {
		return CKR_OPERATION_NOT_INITIALIZED
	}
	data, last, err := input(op)
	if err != nil {
		return err
	}
	done, err := l.stepOp(sess, op, data, last, out)
	if done || err != nil && err != CKR_BUFFER_TOO_SMALL {
		*at = nil
		op.end(sess.slot)
	}
	return err
}

// stepOp does it, and tells whether the operation is over.
func (l *library) stepOp(sess *session, op *cipherOp, data []byte, last bool, out *Output) (done bool, err error) {
	if op.key.private && l.user(sess.slot) != userIn {
		return true, CKR_USER_NOT_LOGGED_IN
	}
	if len(data) > maxMessage {
		return true, CKR_DATA_LEN_RANGE
	}
	most, exact := op.run.size(op.decrypt, len(data), last)
	out.Len = uint(most)
	if out.Query {
		return false, nil
	}
	if exact && len(out.Buf) < most {
		return false, CKR_BUFFER_TOO_SMALL
	}
	// The host may write the output over the input.
	data = slices.Clone(data)
	run := op.run.clone()
	var text []byte
	process := func(key []byte) (err error) {
		secmem.Do(func() { text, err = run.next(key, op.decrypt, data, last) })
		return err
	}
	if last && op.live == nil {
		err = l.withKey(sess.slot, op.key, process)
	} else {
		if op.live == nil {
			if op.live, err = l.lend(sess, op.key); err != nil {
				return true, err
			}
		}
		if err = op.live.with(process); err == errWiped {
			err = CKR_USER_NOT_LOGGED_IN
		}
	}
	if err != nil {
		return true, err
	}
	out.Len = uint(len(text))
	if len(out.Buf) < len(text) {
		return false, CKR_BUFFER_TOO_SMALL
	}
	copy(out.Buf, text)
	if op.decrypt {
		secmem.Wipe(text)
	}
	op.run = run
	return last, nil
}

// lend gives an operation a copy of its key for as long as it goes on, and the
// session and the login do.
func (l *library) lend(sess *session, o *object) (k *liveKey, err error) {
	epoch := sess.slot.keys.epoch()
	err = l.withKey(sess.slot, o, func(key []byte) (err error) {
		k, err = newLiveKey(o.attrs.ulong(CKA_KEY_TYPE), key)
		return err
	})
	if err == nil && !sess.slot.keys.lend(k, sess, epoch) {
		err = CKR_USER_NOT_LOGGED_IN
	}
	return k, err
}
