package p11

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"hash"
)

type hasher = hash.Hash

func digestRow(t MechanismType, newHash func() hash.Hash) mechanism {
	return mechanism{typ: t, info: MechanismInfo{Flags: CKF_DIGEST}, digest: newHash}
}

// digestMechanisms is SHA-1, SHA-2 and SHA-3 (section 6.20 and following).
// SHA-1 is there for what has to read old digests; nothing is signed over it.
var digestMechanisms = []mechanism{
	digestRow(CKM_SHA_1, sha1.New),
	digestRow(CKM_SHA224, sha256.New224),
	digestRow(CKM_SHA256, sha256.New),
	digestRow(CKM_SHA384, sha512.New384),
	digestRow(CKM_SHA512, sha512.New),
	digestRow(CKM_SHA512_224, sha512.New512_224),
	digestRow(CKM_SHA512_256, sha512.New512_256),
	digestRow(CKM_SHA3_224, func() hash.Hash { return sha3.New224() }),
	digestRow(CKM_SHA3_256, func() hash.Hash { return sha3.New256() }),
	digestRow(CKM_SHA3_384, func() hash.Hash { return sha3.New384() }),
	digestRow(CKM_SHA3_512, func() hash.Hash { return sha3.New512() }),
}

// hashOf is the hash of a digest mechanism, for what makes keys with it; nil where
// there is none, or it is SHA-1.
func hashOf(t MechanismType) func() hasher {
	for _, row := range digestMechanisms {
		if row.typ == t && t != CKM_SHA_1 {
			return row.digest
		}
	}
	return nil
}

type digestOp struct {
	mech  MechanismType
	hash  hasher
	parts bool // C_DigestUpdate was called
}

// DigestInit is C_DigestInit (section 5.12.1).
func (m *Module) DigestInit(h SessionHandle, mech Mechanism) error {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
	if sess.digest != nil {
		return CKR_OPERATION_ACTIVE
	}
	row, err := mechanismFor(mech.Type, CKF_DIGEST)
	if err != nil {
		return err
	}
	if mech.Param != nil {
		return CKR_MECHANISM_PARAM_INVALID
	}
	sess.digest = &digestOp{mech: mech.Type, hash: row.digest()}
	return nil
}

// Digest is C_Digest (section 5.12.2).
func (m *Module) Digest(h SessionHandle, data []byte, out *Output) error {
	return m.finishDigest(h, out, func(op *digestOp) error {
		if op.parts {
			return CKR_OPERATION_ACTIVE
		}
		return nil
	}, data)
}

// DigestFinal is C_DigestFinal (section 5.12.5).
func (m *Module) DigestFinal(h SessionHandle, out *Output) error {
	return m.finishDigest(h, out, func(*digestOp) error { return nil }, nil)
}

func (m *Module) finishDigest(h SessionHandle, out *Output, check func(*digestOp) error, data []byte) error {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
	op := sess.digest
	if op == nil {
		return CKR_OPERATION_NOT_INITIALIZED
	}
	if err := check(op); err != nil {
		return err
	}
	if done, err := checkOutput(out, op.hash.Size()); done {
		return err
	}
	op.hash.Write(data)
	op.hash.Sum(out.Buf[:0])
	sess.digest = nil
	return nil
}

// DigestUpdate is C_DigestUpdate (section 5.12.3).
func (m *Module) DigestUpdate(h SessionHandle, part []byte) error {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
	if sess.digest == nil {
		return CKR_OPERATION_NOT_INITIALIZED
	}
	sess.digest.update(part)
	return nil
}

func (op *digestOp) update(part []byte) {
	op.parts = true
	op.hash.Write(part)
}

// DigestKey is C_DigestKey (section 5.12.4). Only secret keys that may be read
// can be digested: the hash of a short key would give it away.
func (m *Module) DigestKey(h SessionHandle, key ObjectHandle) error {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
	if sess.digest == nil {
		return CKR_OPERATION_NOT_INITIALIZED
	}
	o, err := l.object(sess, key)
	if err != nil {
		return CKR_KEY_HANDLE_INVALID
	}
	if o.body.ulong(CKA_CLASS) != CKO_SECRET_KEY || !o.readable() {
		return CKR_KEY_INDIGESTIBLE
	}
	return l.withKey(sess, o, func(key []byte) error {
		sess.digest.update(key)
		return nil
	})
}
