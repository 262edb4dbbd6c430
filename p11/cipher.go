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
	parts   bool // a part was processed
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
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
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
	return m.step(h, function, out, func(*cipherOp) ([]byte, bool, error) {
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
	return m.step(h, function, out, func(*cipherOp) ([]byte, bool, error) {
		return nil, true, nil
	})
}

// step takes an operation one part further. Where the output only has to be
// measured, or does not fit, the operation stays as it was; any other error
// ends it (section 5.2).
func (m *Module) step(h SessionHandle, function uint, out *Output, input func(*cipherOp) (data []byte, last bool, err error)) error {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
	op := *sess.cipherAt(function)
	if op == nil {
		return CKR_OPERATION_NOT_INITIALIZED
	}
	data, last, err := input(op)
	if err != nil {
		return err
	}
	done, err := l.stepOp(sess, op, data, last, out)
	if done || err != nil && err != CKR_BUFFER_TOO_SMALL {
		sess.cancel(function)
	}
	return err
}

// DigestEncryptUpdate is C_DigestEncryptUpdate (section 5.17.1).
func (m *Module) DigestEncryptUpdate(h SessionHandle, part []byte, out *Output) error {
	return m.dual(h, part, out, CKF_ENCRYPT, CKF_DIGEST)
}

// DecryptDigestUpdate is C_DecryptDigestUpdate (section 5.17.2). What only
// C_DecryptFinal gives out is the application's to digest.
func (m *Module) DecryptDigestUpdate(h SessionHandle, part []byte, out *Output) error {
	return m.dual(h, part, out, CKF_DECRYPT, CKF_DIGEST)
}

// SignEncryptUpdate is C_SignEncryptUpdate (section 5.17.3).
func (m *Module) SignEncryptUpdate(h SessionHandle, part []byte, out *Output) error {
	return m.dual(h, part, out, CKF_ENCRYPT, CKF_SIGN)
}

// DecryptVerifyUpdate is C_DecryptVerifyUpdate (section 5.17.4), with the same
// remainder as DecryptDigestUpdate.
func (m *Module) DecryptVerifyUpdate(h SessionHandle, part []byte, out *Output) error {
	return m.dual(h, part, out, CKF_DECRYPT, CKF_VERIFY)
}

// dual continues an encryption or decryption, and gives the plaintext to a
// digest, signature or verification as well. Both go on, both stay as they
// were, or both end.
func (m *Module) dual(h SessionHandle, part []byte, out *Output, function, beside uint) error {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
	op := *sess.cipherAt(function)
	if op == nil || !sess.active(beside) {
		return CKR_OPERATION_NOT_INITIALIZED
	}
	plain := part
	if !op.decrypt {
		plain = slices.Clone(part) // the output may go where the input is
	}
	if _, err = l.stepOp(sess, op, part, false, out); err == CKR_BUFFER_TOO_SMALL || err == nil && out.Query {
		return err
	}
	if op.decrypt && err == nil {
		plain = out.Buf[:out.Len]
	}
	if err == nil {
		err = sess.give(beside, plain)
	}
	if err != nil {
		sess.cancel(function | beside)
	}
	return err
}

// active tells whether a session has an operation for another one to give its
// parts to.
func (s *session) active(function uint) bool {
	if function == CKF_DIGEST {
		return s.digest != nil
	}
	return *s.message(function) != nil
}

// give adds a part to what an operation digests, signs or verifies.
func (s *session) give(function uint, part []byte) error {
	if function == CKF_DIGEST {
		s.digest.update(part)
		return nil
	}
	return (*s.message(function)).append(part)
}

// badLength is the code for data of a length that a cipher does not take.
func badLength(decrypt bool) RV {
	if decrypt {
		return CKR_ENCRYPTED_DATA_LEN_RANGE
	}
	return CKR_DATA_LEN_RANGE
}

// stepOp does it, and tells whether the operation is over.
func (l *library) stepOp(sess *session, op *cipherOp, data []byte, last bool, out *Output) (done bool, err error) {
	if op.key.private && l.user(sess) != userIn {
		return true, CKR_USER_NOT_LOGGED_IN
	}
	if len(data) > maxMessage {
		return true, badLength(op.decrypt)
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
		secmem.Compute(func() { text, err = run.next(key, op.decrypt, data, last) })
		return err
	}
	if last && op.live == nil {
		err = l.withKey(sess, op.key, process)
	} else {
		if op.live == nil {
			if op.live, err = l.lend(sess, op.key); err != nil {
				return true, err
			}
		}
		if err = op.live.with(sess, process); err == errWiped {
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
	op.run, op.parts = run, true
	return last, nil
}

// lend gives an operation a copy of its key for as long as it goes on, and the
// session and the login do.
func (l *library) lend(sess *session, o *object) (k *liveKey, err error) {
	epoch := sess.slot.keys.epoch()
	err = l.withKey(sess, o, func(key []byte) (err error) {
		k, err = newLiveKey(o.body.ulong(CKA_KEY_TYPE), key)
		return err
	})
	if err == nil && !sess.slot.keys.lend(k, sess, epoch) {
		err = CKR_USER_NOT_LOGGED_IN
	}
	return k, err
}
