package p11

import (
	"bytes"

	"golang.org/x/crypto/chacha20poly1305"
)

// chachaMechanisms is ChaCha20-Poly1305 (RFC 8439; section 6.61).
var chachaMechanisms = []mechanism{
	{typ: CKM_CHACHA20_POLY1305, info: MechanismInfo{chacha20poly1305.KeySize, chacha20poly1305.KeySize, CKF_ENCRYPT | CKF_DECRYPT},
		keyType: CKK_CHACHA20, cipher: parseChaCha},
}

func parseChaCha(param any) (cipherRun, error) {
	p, ok := param.(*AEADParams)
	if !ok || len(p.Nonce) != chacha20poly1305.NonceSize || len(p.AAD) > maxMessage || p.TagBits != 8*chacha20poly1305.Overhead {
		return nil, CKR_MECHANISM_PARAM_INVALID
	}
	return &aeadRun{nonce: bytes.Clone(p.Nonce), aad: bytes.Clone(p.AAD), tag: chacha20poly1305.Overhead, open: chacha20poly1305.New}, nil
}
