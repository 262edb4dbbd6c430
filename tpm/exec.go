package tpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

var errFrame = errors.New("the TPM's answer is malformed")

// command is a command whose first parameter, or that of its answer, is a
// secret. go-tpm would leave copies of it on the Go heap, so these commands
// are written and read here, in secret memory.
type command struct {
	code    tpm2.TPMCC
	handles []tpm2.TPMHandle
	names   []tpm2.TPM2BName // of the handles
	// open: the first handle needs an authorisation of its own, and its value
	// is empty; the session is for the second.
	open   bool
	params []byte // in secret memory; encrypted in place
}

// exec runs a command that s authorises (Part 1, 18 and 19). It gives
// the answer's parameters, decrypted in page, which may be the page that
// holds the command's.
func (t *TPM) exec(c command, s tpm2.Session, page []byte) (out []byte, err error) {
	if err := s.NewNonceCaller(); err != nil {
		return nil, err
	}
	frame, err := c.authorised(s)
	if err != nil {
		return nil, err
	}
	answer, err := t.link.Send(frame)
	if err != nil {
		return nil, err
	}
	return c.answered(s, answer, page)
}

// authorised encrypts the command's first parameter, and gives the command with
// its authorisations.
func (c *command) authorised(s tpm2.Session) ([]byte, error) {
	if s.IsDecryption() && len(c.params) >= 2 {
		n := int(binary.BigEndian.Uint16(c.params))
		if err := s.Encrypt(c.params[2 : 2+n]); err != nil {
			return nil, err
		}
	}
	auth, err := s.Authorize(c.code, c.params, nil, c.names, 0)
	if err != nil {
		return nil, err
	}
	frame := make([]byte, 0, 256+len(c.params))
	frame = binary.BigEndian.AppendUint16(frame, uint16(tpm2.TPMSTSessions))
	frame = append(frame, 0, 0, 0, 0) // the length, below
	frame = binary.BigEndian.AppendUint32(frame, uint32(c.code))
	for _, h := range c.handles {
		frame = binary.BigEndian.AppendUint32(frame, uint32(h))
	}
	area := len(frame)
	frame = append(frame, 0, 0, 0, 0) // its length, below
	if c.open {
		frame = appendAuth(frame, &tpm2.TPMSAuthCommand{Handle: tpm2.TPMRSPW})
	}
	frame = appendAuth(frame, auth)
	binary.BigEndian.PutUint32(frame[area:], uint32(len(frame)-area-4))
	frame = append(frame, c.params...) // encrypted by now
	binary.BigEndian.PutUint32(frame[2:], uint32(len(frame)))
	return frame, nil
}

// answered checks an answer, and gives its parameters, decrypted, in page.
func (c *command) answered(s tpm2.Session, answer, page []byte) ([]byte, error) {
	params, auths, err := splitAnswer(answer)
	if err != nil {
		return nil, err
	}
	if c.open {
		var ok bool
		if auths, ok = bytes.CutPrefix(auths, passwordAnswer); !ok {
			return nil, errFrame
		}
	}
	validation, err := parseAuth(auths)
	if err != nil {
		return nil, err
	}
	if err := s.Validate(tpm2.TPMRCSuccess, c.code, params, c.names, 0, validation); err != nil {
		return nil, fmt.Errorf("%w: %w", errFrame, err)
	}
	if len(params) > len(page) {
		return nil, errFrame
	}
	out := page[:copy(page, params)]
	if !s.IsEncryption() {
		return out, nil
	}
	r := reader{out}
	first := r.sized()
	if r.buf == nil {
		return nil, errFrame
	}
	return out, s.Decrypt(first)
}

// Bits of TPMA_SESSION (Part 2, 8.4).
const (
	continueSession = 1 << iota
	auditExclusive
	auditReset
	_
	_
	decrypt
	encrypt
	audit

	reserved = 1<<3 | 1<<4
)

// sessionBits encodes a TPMA_SESSION.
func sessionBits(a tpm2.TPMASession) (b byte) {
	for _, x := range [...]struct {
		set bool
		bit byte
	}{
		{a.ContinueSession, continueSession}, {a.AuditExclusive, auditExclusive}, {a.AuditReset, auditReset},
		{a.Decrypt, decrypt}, {a.Encrypt, encrypt}, {a.Audit, audit},
	} {
		if x.set {
			b |= x.bit
		}
	}
	return b
}

// appendAuth writes a TPMS_AUTH_COMMAND (Part 2, 10.13.2). go-tpm would do it by
// reflection, with hundreds of allocations.
func appendAuth(b []byte, a *tpm2.TPMSAuthCommand) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(a.Handle))
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.Nonce.Buffer)))
	b = append(b, a.Nonce.Buffer...)
	b = append(b, sessionBits(a.Attributes))
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.Authorization.Buffer)))
	return append(b, a.Authorization.Buffer...)
}

// parseAuth reads a TPMS_AUTH_RESPONSE (Part 2, 10.13.3), and nothing behind it.
func parseAuth(b []byte) (*tpm2.TPMSAuthResponse, error) {
	r := reader{b}
	nonce := r.sized()
	if len(r.buf) == 0 {
		return nil, errFrame
	}
	attributes := r.buf[0]
	r.buf = r.buf[1:]
	mac := r.sized()
	if r.buf == nil || len(r.buf) != 0 || attributes&reserved != 0 {
		return nil, errFrame
	}
	return &tpm2.TPMSAuthResponse{
		Nonce: tpm2.TPM2BNonce{Buffer: nonce},
		Attributes: tpm2.TPMASession{
			ContinueSession: attributes&continueSession != 0, AuditExclusive: attributes&auditExclusive != 0, AuditReset: attributes&auditReset != 0,
			Decrypt: attributes&decrypt != 0, Encrypt: attributes&encrypt != 0, Audit: attributes&audit != 0,
		},
		Authorization: tpm2.TPM2BData{Buffer: mac},
	}, nil
}

// passwordAnswer is what an answer says of an authorisation by password
// (Part 1, 18.4): no nonce, continueSession, no HMAC.
var passwordAnswer = []byte{0, 0, 1, 0, 0}

// splitAnswer takes an answer with sessions and without handles apart: its
// parameters and its authorisation area. A response code that is not success
// is the error, as go-tpm's type.
func splitAnswer(a []byte) (params, auths []byte, err error) {
	if len(a) < 10 || binary.BigEndian.Uint32(a[2:]) != uint32(len(a)) {
		return nil, nil, errFrame
	}
	if rc := binary.BigEndian.Uint32(a[6:]); rc != 0 {
		return nil, nil, tpm2.TPMRC(rc)
	}
	if binary.BigEndian.Uint16(a) != uint16(tpm2.TPMSTSessions) || len(a) < 14 {
		return nil, nil, errFrame
	}
	n := binary.BigEndian.Uint32(a[10:])
	if uint64(n) > uint64(len(a)-14) {
		return nil, nil, errFrame
	}
	return a[14 : 14+n], a[14+n:], nil
}

// writer fills a buffer in secret memory.
type writer struct {
	buf  []byte
	n    int
	full bool
}

func (w *writer) raw(p []byte) {
	if len(p) > len(w.buf)-w.n {
		w.full = true
		return
	}
	w.n += secmem.Copy(w.buf[w.n:], p)
}

func (w *writer) u16(v int)      { w.raw([]byte{byte(v >> 8), byte(v)}) }
func (w *writer) u32(v uint32)   { w.raw(binary.BigEndian.AppendUint32(nil, v)) }
func (w *writer) sized(p []byte) { w.u16(len(p)); w.raw(p) }

// reader takes TPM2B structures from a buffer; buf is nil after an error.
type reader struct{ buf []byte }

func (r *reader) sized() []byte {
	if len(r.buf) < 2 {
		r.buf = nil
		return nil
	}
	n := int(binary.BigEndian.Uint16(r.buf))
	if n > len(r.buf)-2 {
		r.buf = nil
		return nil
	}
	p := r.buf[2 : 2+n]
	r.buf = r.buf[2+n:]
	return p
}
