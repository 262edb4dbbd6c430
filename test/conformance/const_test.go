package conformance

import ck "github.com/miekg/pkcs11"

// Constants of v3.0 and later, which the client package does not have.
const (
	ckoProfile = 9

	ckkECEdwards = 0x40

	ckaUniqueID      = 0x004
	ckaPublicKeyInfo = 0x129
	ckaProfileID     = 0x601

	ckmSHA512t224 = 0x048
	ckmSHA512t256 = 0x04C
	ckmSHA3x224   = 0x2B5
	ckmEdwards    = 0x1055 // CKM_EC_EDWARDS_KEY_PAIR_GEN
	ckmEdDSA      = 0x1057
	ckmMontgomery = 0x1056 // CKM_EC_MONTGOMERY_KEY_PAIR_GEN

	ckmKeyWrapKWP       = 0x210B
	ckmChaCha20KeyGen   = 0x1225
	ckmChaCha20Poly1305 = 0x4021
	ckmHKDFDerive       = 0x402A
	ckmHKDFData         = 0x402B
	ckmHKDFKeyGen       = 0x402C

	ckkChaCha20     = 0x33
	ckkSHA3x224HMAC = 0x36
	ckkSHA3x256HMAC = 0x37
	ckkSHA3x384HMAC = 0x38
	ckkSHA3x512HMAC = 0x39
	ckkECMontgomery = 0x41
	ckkHKDF         = 0x42

	ckkSHA512t224HMAC = 0x43
	ckkSHA512t256HMAC = 0x44

	ckfHKDFSaltNull = 1
	ckfHKDFSaltData = 2
	ckfHKDFSaltKey  = 4

	ckfMessageSign   = 0x8
	ckfMessageVerify = 0x10
	ckfMultiMessage  = 0x20
	ckfFindObjects   = 0x40
	ckfAsyncSession  = 0x8
	ckfAsyncToken    = 0x4000000

	cksLastValidationOK = 1

	ckrSessionAsyncNotSupported = 0x205
	ckrAEADDecryptFailed        = 0x042

	unavailable = ^uint(0)
)

// newCodes are codes that the client package has no name for.
var newCodes = map[string]rv{
	"CKR_SESSION_ASYNC_NOT_SUPPORTED": ckrSessionAsyncNotSupported,
	"CKR_OPERATION_CANCEL_FAILED":     0x202,
	"CKR_AEAD_DECRYPT_FAILED":         ckrAEADDecryptFailed,
	"CKR_CURVE_NOT_SUPPORTED":         ck.CKR_CURVE_NOT_SUPPORTED,
	"CKR_ACTION_PROHIBITED":           ck.CKR_ACTION_PROHIBITED,
}

// digests are the mechanisms of digests with the length of their results.
var digests = map[uint]int{
	ck.CKM_SHA_1: 20, ck.CKM_SHA224: 28, ck.CKM_SHA256: 32, ck.CKM_SHA384: 48, ck.CKM_SHA512: 64,
	ckmSHA512t224: 28, ckmSHA512t256: 32,
	ckmSHA3x224: 28, ck.CKM_SHA3_256: 32, ck.CKM_SHA3_384: 48, ck.CKM_SHA3_512: 64,
}

// functions are the functions of the standard's lists, in their order.
var functions = struct{ v240, v30, v32 []string }{
	[]string{
		"C_Initialize", "C_Finalize", "C_GetInfo", "C_GetFunctionList", "C_GetSlotList", "C_GetSlotInfo", "C_GetTokenInfo",
		"C_GetMechanismList", "C_GetMechanismInfo", "C_InitToken", "C_InitPIN", "C_SetPIN", "C_OpenSession", "C_CloseSession",
		"C_CloseAllSessions", "C_GetSessionInfo", "C_GetOperationState", "C_SetOperationState", "C_Login", "C_Logout",
		"C_CreateObject", "C_CopyObject", "C_DestroyObject", "C_GetObjectSize", "C_GetAttributeValue", "C_SetAttributeValue",
		"C_FindObjectsInit", "C_FindObjects", "C_FindObjectsFinal", "C_EncryptInit", "C_Encrypt", "C_EncryptUpdate",
		"C_EncryptFinal", "C_DecryptInit", "C_Decrypt", "C_DecryptUpdate", "C_DecryptFinal", "C_DigestInit", "C_Digest",
		"C_DigestUpdate", "C_DigestKey", "C_DigestFinal", "C_SignInit", "C_Sign", "C_SignUpdate", "C_SignFinal",
		"C_SignRecoverInit", "C_SignRecover", "C_VerifyInit", "C_Verify", "C_VerifyUpdate", "C_VerifyFinal",
		"C_VerifyRecoverInit", "C_VerifyRecover", "C_DigestEncryptUpdate", "C_DecryptDigestUpdate", "C_SignEncryptUpdate",
		"C_DecryptVerifyUpdate", "C_GenerateKey", "C_GenerateKeyPair", "C_WrapKey", "C_UnwrapKey", "C_DeriveKey",
		"C_SeedRandom", "C_GenerateRandom", "C_GetFunctionStatus", "C_CancelFunction", "C_WaitForSlotEvent",
	},
	[]string{
		"C_GetInterfaceList", "C_GetInterface", "C_LoginUser", "C_SessionCancel", "C_MessageEncryptInit", "C_EncryptMessage",
		"C_EncryptMessageBegin", "C_EncryptMessageNext", "C_MessageEncryptFinal", "C_MessageDecryptInit", "C_DecryptMessage",
		"C_DecryptMessageBegin", "C_DecryptMessageNext", "C_MessageDecryptFinal", "C_MessageSignInit", "C_SignMessage",
		"C_SignMessageBegin", "C_SignMessageNext", "C_MessageSignFinal", "C_MessageVerifyInit", "C_VerifyMessage",
		"C_VerifyMessageBegin", "C_VerifyMessageNext", "C_MessageVerifyFinal",
	},
	[]string{
		"C_EncapsulateKey", "C_DecapsulateKey", "C_VerifySignatureInit", "C_VerifySignature", "C_VerifySignatureUpdate",
		"C_VerifySignatureFinal", "C_GetSessionValidationFlags", "C_AsyncComplete", "C_AsyncGetID", "C_AsyncJoin",
		"C_WrapKeyAuthenticated", "C_UnwrapKeyAuthenticated",
	},
}

func allFunctions() []string {
	return append(append(append([]string{}, functions.v240...), functions.v30...), functions.v32...)
}

// absent are the functions of abilities that the token has not, with the
// section that describes each.
var absent = map[string]string{
	"C_MessageEncryptInit": "5.9.1", "C_EncryptMessage": "5.9.2", "C_EncryptMessageBegin": "5.9.3", "C_EncryptMessageNext": "5.9.4", "C_MessageEncryptFinal": "5.9.5",
	"C_MessageDecryptInit": "5.11.1", "C_DecryptMessage": "5.11.2", "C_DecryptMessageBegin": "5.11.3", "C_DecryptMessageNext": "5.11.4", "C_MessageDecryptFinal": "5.11.5",
	"C_SignRecoverInit": "5.13.5", "C_SignRecover": "5.13.6", "C_VerifyRecoverInit": "5.15.5", "C_VerifyRecover": "5.15.6",
	"C_WrapKeyAuthenticated": "v3.2 5.18.6", "C_UnwrapKeyAuthenticated": "v3.2 5.18.7", "C_EncapsulateKey": "v3.2 5.18.8", "C_DecapsulateKey": "v3.2 5.18.9",
	"C_AsyncComplete": "v3.2 5.21.1", "C_AsyncGetID": "v3.2 5.21.2", "C_AsyncJoin": "v3.2 5.21.3",
}

// withoutSession are the functions that are given no session.
var withoutSession = map[string]bool{
	"C_Initialize": true, "C_Finalize": true, "C_GetInfo": true, "C_GetFunctionList": true, "C_GetInterfaceList": true,
	"C_GetInterface": true, "C_GetSlotList": true, "C_GetSlotInfo": true, "C_GetTokenInfo": true, "C_WaitForSlotEvent": true,
	"C_GetMechanismList": true, "C_GetMechanismInfo": true, "C_InitToken": true, "C_OpenSession": true, "C_CloseAllSessions": true,
}

// withSlot are the functions that are given a slot.
var withSlot = []string{"C_GetSlotInfo", "C_GetTokenInfo", "C_GetMechanismList", "C_GetMechanismInfo", "C_InitToken", "C_OpenSession", "C_CloseAllSessions"}
