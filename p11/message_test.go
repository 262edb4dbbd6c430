package p11

import (
	"bytes"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
)

// signingPair makes a token with a key pair and gives its public key.
func signingPair(t *testing.T, m *Module) (h SessionHandle, pub, priv ObjectHandle, point []byte) {
	t.Helper()
	h = token(t, m)
	pub, priv, err := m.GenerateKeyPair(h, keygen, pubTemplate, privTemplate)
	must(t, err)
	point = get(t, m, h, pub, CKA_EC_POINT)
	return h, pub, priv, point[len(point)-32:]
}

// TestMessages signs and verifies messages with parameters of their own, in
// one call and in parts.
func TestMessages(t *testing.T) {
	m, _ := start(t, nil)
	h, pub, priv, point := signingPair(t, m)
	must(t, m.MessageSignInit(h, pure, priv))
	must(t, m.MessageVerifyInit(h, pure, pub))
	want(t, CKR_OPERATION_ACTIVE, m.MessageSignInit(h, pure, priv))
	want(t, CKR_OPERATION_ACTIVE, m.SignInit(h, pure, priv))
	want(t, CKR_OPERATION_ACTIVE, m.VerifyInit(h, pure, pub))
	want(t, CKR_OPERATION_ACTIVE, m.VerifySignatureInit(h, pure, pub, nil))

	ctx := &EdDSAParams{Context: []byte("ctx")}
	for _, x := range []struct {
		param any
		p     eddsa.Params
	}{
		{nil, eddsa.Params{Variant: eddsa.Pure}},
		{ctx, eddsa.Params{Variant: eddsa.Ctx, Context: []byte("ctx")}},
		{&EdDSAParams{Ph: true}, eddsa.Params{Variant: eddsa.Ph}},
		{nil, eddsa.Params{Variant: eddsa.Pure}}, // not that of the message before
	} {
		msg := []byte("a message in parts")
		one := Output{Buf: make([]byte, 64)}
		must(t, m.SignMessage(h, x.param, msg, &one))
		if !eddsa.Verify(point, msg, one.Buf, x.p) {
			t.Errorf("%+v: wrong signature", x.p)
		}
		must(t, m.SignMessageBegin(h, x.param))
		want(t, CKR_OPERATION_ACTIVE, m.SignMessage(h, x.param, msg, &one))
		want(t, CKR_OPERATION_ACTIVE, m.SignMessageBegin(h, x.param))
		want(t, CKR_OPERATION_ACTIVE, m.MessageSignFinal(h))
		must(t, m.SignMessageNext(h, nil, msg[:5], nil))
		must(t, m.SignMessageNext(h, x.param, msg[5:7], nil))
		query, short, full := Output{Query: true}, Output{Buf: make([]byte, 63)}, Output{Buf: make([]byte, 64)}
		must(t, m.SignMessageNext(h, nil, msg[7:], &query))
		want(t, CKR_BUFFER_TOO_SMALL, m.SignMessageNext(h, nil, msg[7:], &short))
		must(t, m.SignMessageNext(h, nil, msg[7:], &full))
		if !bytes.Equal(full.Buf, one.Buf) {
			t.Errorf("%+v: another signature in parts", x.p)
		}
		want(t, CKR_OPERATION_NOT_INITIALIZED, m.SignMessageNext(h, nil, msg, nil))

		must(t, m.VerifyMessage(h, x.param, msg, one.Buf))
		want(t, CKR_SIGNATURE_INVALID, m.VerifyMessage(h, x.param, msg[1:], one.Buf))
		want(t, CKR_SIGNATURE_LEN_RANGE, m.VerifyMessage(h, x.param, msg, one.Buf[1:]))
		must(t, m.VerifyMessageBegin(h, x.param))
		must(t, m.VerifyMessageNext(h, nil, msg[:3], nil))
		must(t, m.VerifyMessageNext(h, nil, msg[3:], one.Buf))
		must(t, m.VerifyMessageBegin(h, x.param))
		want(t, CKR_SIGNATURE_INVALID, m.VerifyMessageNext(h, nil, msg[1:], one.Buf))
		want(t, CKR_OPERATION_NOT_INITIALIZED, m.VerifyMessageNext(h, nil, msg, one.Buf))
	}

	// A parameter that is not the message's ends the message, not the process.
	must(t, m.SignMessageBegin(h, ctx))
	want(t, CKR_MECHANISM_PARAM_INVALID, m.SignMessageNext(h, &EdDSAParams{Context: []byte("other")}, nil, nil))
	want(t, CKR_OPERATION_NOT_INITIALIZED, m.SignMessageNext(h, nil, nil, nil))
	want(t, CKR_MECHANISM_PARAM_INVALID, m.SignMessageBegin(h, []byte{1}))
	must(t, m.MessageSignFinal(h))
	want(t, CKR_OPERATION_NOT_INITIALIZED, m.MessageSignFinal(h))
	must(t, m.SessionCancel(h, CKF_MESSAGE_VERIFY))
	want(t, CKR_OPERATION_NOT_INITIALIZED, m.MessageVerifyFinal(h))
}

// TestMessageLogin: with CKA_ALWAYS_AUTHENTICATE each message needs a login.
func TestMessageLogin(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	_, priv, err := m.GenerateKeyPair(h, keygen, pubTemplate, append([]Attribute{{CKA_ALWAYS_AUTHENTICATE, yes}}, privTemplate...))
	must(t, err)
	must(t, m.MessageSignInit(h, pure, priv))
	sign := func(msg string) error {
		return m.SignMessage(h, nil, []byte(msg), &Output{Buf: make([]byte, 64)})
	}
	want(t, CKR_USER_NOT_LOGGED_IN, sign("a"))
	for range 2 {
		must(t, m.Login(h, CKU_CONTEXT_SPECIFIC, []byte(userPIN)))
		must(t, sign("b"))
		want(t, CKR_USER_NOT_LOGGED_IN, sign("c"))
	}
	must(t, m.SignMessageBegin(h, nil))
	must(t, m.SignMessageNext(h, nil, []byte("d"), nil))
	must(t, m.Login(h, CKU_CONTEXT_SPECIFIC, []byte(userPIN)))
	must(t, m.SignMessageNext(h, nil, []byte("e"), &Output{Buf: make([]byte, 64)}))
	must(t, m.MessageSignFinal(h))
	want(t, CKR_OPERATION_NOT_INITIALIZED, m.Login(h, CKU_CONTEXT_SPECIFIC, []byte(userPIN)))
}

// TestVerifySignature checks signatures that come first.
func TestVerifySignature(t *testing.T) {
	m, _ := start(t, nil)
	h, pub, priv, _ := signingPair(t, m)
	msg := []byte("message")
	sig := sign(t, m, h, pure, priv, msg)
	must(t, m.VerifySignatureInit(h, pure, pub, sig))
	want(t, CKR_OPERATION_NOT_INITIALIZED, m.Verify(h, msg, sig))
	want(t, CKR_OPERATION_NOT_INITIALIZED, m.VerifyUpdate(h, msg))
	must(t, m.VerifySignature(h, msg))
	want(t, CKR_OPERATION_NOT_INITIALIZED, m.VerifySignature(h, msg))
	must(t, m.VerifySignatureInit(h, pure, pub, sig))
	must(t, m.VerifySignatureUpdate(h, msg[:3]))
	want(t, CKR_OPERATION_ACTIVE, m.VerifySignature(h, msg))
	must(t, m.VerifySignatureUpdate(h, msg[3:]))
	must(t, m.VerifySignatureFinal(h))
	for _, x := range []struct {
		sig []byte
		rv  RV
	}{{sig[1:], CKR_SIGNATURE_LEN_RANGE}, {nil, CKR_SIGNATURE_LEN_RANGE}, {make([]byte, 5000), CKR_SIGNATURE_LEN_RANGE}, {make([]byte, 64), CKR_SIGNATURE_INVALID}} {
		must(t, m.VerifySignatureInit(h, pure, pub, x.sig))
		want(t, x.rv, m.VerifySignature(h, msg))
	}
	must(t, m.VerifyInit(h, pure, pub))
	want(t, CKR_OPERATION_NOT_INITIALIZED, m.VerifySignature(h, msg))
	want(t, CKR_OPERATION_NOT_INITIALIZED, m.VerifySignatureFinal(h))
	must(t, m.Verify(h, msg, sig))
}
