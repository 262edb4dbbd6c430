package p11

import "bytes"

// process is a message-based signature or verification process (sections 5.14
// and 5.16): one mechanism and key for any number of messages, each with a
// parameter of its own.
type process struct {
	params eddsaParams // of a message that brings none
	op     messageOp   // the message that is under way
	begun  bool        // it comes in parts
}

// next makes the process ready for another message. A login of
// CKU_CONTEXT_SPECIFIC serves one message.
func (p *process) next() {
	p.op = messageOp{row: p.op.row, key: p.op.key, params: p.params, size: p.op.size}
	p.begun = false
}

// paramsOf reads the parameter of a message. Without one that of the Init
// function holds.
func (p *process) paramsOf(param any) (eddsaParams, error) {
	if param == nil {
		return p.params, nil
	}
	return p.op.row.eddsa(param)
}

// same tells whether param is none, or means what the message began with.
func (p *process) same(param any) bool {
	if param == nil {
		return true
	}
	q, err := p.op.row.eddsa(param)
	return err == nil && q.Variant == p.op.params.Variant && bytes.Equal(q.Context, p.op.params.Context)
}

// process finds where a session keeps its process of a function.
func (s *session) process(function uint) **process {
	if function == CKF_MESSAGE_SIGN {
		return &s.signing
	}
	return &s.verifying
}

// MessageSignInit is C_MessageSignInit (section 5.14.1).
func (m *Module) MessageSignInit(h SessionHandle, mech Mechanism, key ObjectHandle) error {
	return m.startProcess(h, mech, key, CKF_MESSAGE_SIGN)
}

// MessageVerifyInit is C_MessageVerifyInit (section 5.16.1).
func (m *Module) MessageVerifyInit(h SessionHandle, mech Mechanism, key ObjectHandle) error {
	return m.startProcess(h, mech, key, CKF_MESSAGE_VERIFY)
}

func (m *Module) startProcess(h SessionHandle, mech Mechanism, key ObjectHandle, function uint) error {
	return m.startMessage(h, mech, key, function, func(s *session, op *messageOp) {
		*s.process(function) = &process{params: op.params, op: *op}
	})
}

// withProcess runs f on a session's process: with a message that has begun, or
// with none, as f needs it.
func (m *Module) withProcess(h SessionHandle, function uint, begun bool, f func(*library, *session, *process) error) error {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
	p := *sess.process(function)
	switch {
	case p == nil || begun && !p.begun:
		return CKR_OPERATION_NOT_INITIALIZED
	case p.begun && !begun:
		return CKR_OPERATION_ACTIVE
	}
	return f(l, sess, p)
}

// SignMessage is C_SignMessage (section 5.14.2): one message of the process,
// which goes on whatever comes of it.
func (m *Module) SignMessage(h SessionHandle, param any, data []byte, out *Output) error {
	return m.withProcess(h, CKF_MESSAGE_SIGN, false, func(l *library, sess *session, p *process) (err error) {
		if p.op.params, err = p.paramsOf(param); err != nil {
			return err
		}
		return p.sign(l, sess, data, out)
	})
}

// sign gives the signature of a message, and ends the message unless it only
// told the length.
func (p *process) sign(l *library, sess *session, data []byte, out *Output) error {
	if done, err := checkOutput(out, p.op.size); done {
		return err
	}
	err := l.signMessage(sess, &p.op, data, out.Buf[:p.op.size])
	p.next()
	return err
}

// SignMessageBegin is C_SignMessageBegin (section 5.14.3).
func (m *Module) SignMessageBegin(h SessionHandle, param any) error {
	return m.begin(h, param, CKF_MESSAGE_SIGN)
}

// VerifyMessageBegin is C_VerifyMessageBegin (section 5.16.3).
func (m *Module) VerifyMessageBegin(h SessionHandle, param any) error {
	return m.begin(h, param, CKF_MESSAGE_VERIFY)
}

func (m *Module) begin(h SessionHandle, param any, function uint) error {
	return m.withProcess(h, function, false, func(_ *library, _ *session, p *process) (err error) {
		if p.op.params, err = p.paramsOf(param); err != nil {
			return err
		}
		p.begun = true
		return nil
	})
}

// SignMessageNext is C_SignMessageNext (section 5.14.4). Without out a further
// part follows; with it this is the last one, which is not taken before there
// is room for the signature.
func (m *Module) SignMessageNext(h SessionHandle, param any, part []byte, out *Output) error {
	return m.withProcess(h, CKF_MESSAGE_SIGN, true, func(l *library, sess *session, p *process) error {
		if out != nil {
			if done, err := checkOutput(out, p.op.size); done {
				return err
			}
		}
		if err := p.add(param, part); err != nil || out == nil {
			return err
		}
		return p.sign(l, sess, p.op.message, out)
	})
}

// add takes a part of a message, and ends the message where it cannot.
func (p *process) add(param any, part []byte) error {
	err := error(CKR_MECHANISM_PARAM_INVALID)
	if p.same(param) {
		err = p.op.append(part)
	}
	if err != nil {
		p.next()
	}
	return err
}

// VerifyMessage is C_VerifyMessage (section 5.16.2).
func (m *Module) VerifyMessage(h SessionHandle, param any, data, sig []byte) error {
	return m.withProcess(h, CKF_MESSAGE_VERIFY, false, func(l *library, sess *session, p *process) (err error) {
		if p.op.params, err = p.paramsOf(param); err != nil {
			return err
		}
		err = l.verify(sess, &p.op, data, sig)
		p.next()
		return err
	})
}

// VerifyMessageNext is C_VerifyMessageNext (section 5.16.4). Without a
// signature, which is nil then, a further part follows.
func (m *Module) VerifyMessageNext(h SessionHandle, param any, part, sig []byte) error {
	return m.withProcess(h, CKF_MESSAGE_VERIFY, true, func(l *library, sess *session, p *process) error {
		if err := p.add(param, part); err != nil || sig == nil {
			return err
		}
		err := l.verify(sess, &p.op, p.op.message, sig)
		p.next()
		return err
	})
}

// MessageSignFinal is C_MessageSignFinal (section 5.14.5). A message that has
// begun is finished, or cancelled, before.
func (m *Module) MessageSignFinal(h SessionHandle) error { return m.endProcess(h, CKF_MESSAGE_SIGN) }

// MessageVerifyFinal is C_MessageVerifyFinal (section 5.16.5).
func (m *Module) MessageVerifyFinal(h SessionHandle) error {
	return m.endProcess(h, CKF_MESSAGE_VERIFY)
}

func (m *Module) endProcess(h SessionHandle, function uint) error {
	return m.withProcess(h, function, false, func(_ *library, sess *session, _ *process) error {
		*sess.process(function) = nil
		return nil
	})
}

// RefuseMessage is Refuse for the functions that continue one message: it ends,
// and the process goes on.
func (m *Module) RefuseMessage(h SessionHandle, function uint) error {
	err := m.withProcess(h, function, true, func(_ *library, _ *session, p *process) error {
		p.next()
		return nil
	})
	if err == CKR_SESSION_HANDLE_INVALID || err == CKR_CRYPTOKI_NOT_INITIALIZED {
		return err
	}
	return CKR_ARGUMENTS_BAD
}

// verifySignature stands, beside the flags of functions, for the operations of
// C_VerifySignatureInit.
const verifySignature uint = 1 << 31

// maxSignature is more than the length of any signature.
const maxSignature = 1024

// VerifySignatureInit is C_VerifySignatureInit (v3.2, section 5.15.7): a
// verification for which the signature comes first.
func (m *Module) VerifySignatureInit(h SessionHandle, mech Mechanism, key ObjectHandle, sig []byte) error {
	return m.startMessage(h, mech, key, CKF_VERIFY, func(s *session, op *messageOp) {
		// What is longer than any signature is wrong by its length alone.
		op.signature = bytes.Clone(sig[:min(len(sig), maxSignature)])
		s.verifySig = op
	})
}

// VerifySignature is C_VerifySignature (v3.2, section 5.15.8).
func (m *Module) VerifySignature(h SessionHandle, data []byte) error {
	return m.finishVerify(h, verifySignature, func(op *messageOp) error {
		if op.parts {
			return CKR_OPERATION_ACTIVE
		}
		op.message = data
		return nil
	})
}

// VerifySignatureUpdate is C_VerifySignatureUpdate (v3.2, section 5.15.9).
func (m *Module) VerifySignatureUpdate(h SessionHandle, part []byte) error {
	return m.collect(h, part, verifySignature)
}

// VerifySignatureFinal is C_VerifySignatureFinal (v3.2, section 5.15.10).
func (m *Module) VerifySignatureFinal(h SessionHandle) error {
	return m.finishVerify(h, verifySignature, (*messageOp).inParts)
}
