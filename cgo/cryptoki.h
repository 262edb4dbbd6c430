/*
 * Cryptoki for Linux: the types, structures and function lists of PKCS#11
 * 2.40, 3.0 and 3.2 that this module's C boundary needs. CK_ULONG is an unsigned
 * long and nothing is packed, as the standard's C profile for UNIX has it.
 */
#ifndef ICN_P11_CRYPTOKI_H
#define ICN_P11_CRYPTOKI_H

#include <stddef.h>

typedef unsigned char CK_BYTE, CK_CHAR, CK_UTF8CHAR, CK_BBOOL;
typedef unsigned long CK_ULONG;
typedef CK_ULONG CK_RV, CK_FLAGS, CK_SLOT_ID, CK_SESSION_HANDLE,
	CK_OBJECT_HANDLE, CK_MECHANISM_TYPE, CK_ATTRIBUTE_TYPE, CK_USER_TYPE,
	CK_STATE, CK_NOTIFICATION, CK_SESSION_VALIDATION_FLAGS_TYPE;
typedef void *CK_VOID_PTR;
typedef CK_BYTE *CK_BYTE_PTR;
typedef CK_UTF8CHAR *CK_UTF8CHAR_PTR;
typedef CK_ULONG *CK_ULONG_PTR;
typedef CK_FLAGS *CK_FLAGS_PTR;
typedef CK_SLOT_ID *CK_SLOT_ID_PTR;
typedef CK_SESSION_HANDLE *CK_SESSION_HANDLE_PTR;
typedef CK_OBJECT_HANDLE *CK_OBJECT_HANDLE_PTR;
typedef CK_MECHANISM_TYPE *CK_MECHANISM_TYPE_PTR;

typedef struct CK_VERSION { CK_BYTE major, minor; } CK_VERSION, *CK_VERSION_PTR;

typedef struct CK_INFO {
	CK_VERSION cryptokiVersion;
	CK_UTF8CHAR manufacturerID[32];
	CK_FLAGS flags;
	CK_UTF8CHAR libraryDescription[32];
	CK_VERSION libraryVersion;
} CK_INFO, *CK_INFO_PTR;

typedef struct CK_SLOT_INFO {
	CK_UTF8CHAR slotDescription[64];
	CK_UTF8CHAR manufacturerID[32];
	CK_FLAGS flags;
	CK_VERSION hardwareVersion, firmwareVersion;
} CK_SLOT_INFO, *CK_SLOT_INFO_PTR;

typedef struct CK_TOKEN_INFO {
	CK_UTF8CHAR label[32];
	CK_UTF8CHAR manufacturerID[32];
	CK_UTF8CHAR model[16];
	CK_CHAR serialNumber[16];
	CK_FLAGS flags;
	CK_ULONG ulMaxSessionCount, ulSessionCount;
	CK_ULONG ulMaxRwSessionCount, ulRwSessionCount;
	CK_ULONG ulMaxPinLen, ulMinPinLen;
	CK_ULONG ulTotalPublicMemory, ulFreePublicMemory;
	CK_ULONG ulTotalPrivateMemory, ulFreePrivateMemory;
	CK_VERSION hardwareVersion, firmwareVersion;
	CK_CHAR utcTime[16];
} CK_TOKEN_INFO, *CK_TOKEN_INFO_PTR;

typedef struct CK_SESSION_INFO {
	CK_SLOT_ID slotID;
	CK_STATE state;
	CK_FLAGS flags;
	CK_ULONG ulDeviceError;
} CK_SESSION_INFO, *CK_SESSION_INFO_PTR;

typedef struct CK_ATTRIBUTE {
	CK_ATTRIBUTE_TYPE type;
	CK_VOID_PTR pValue;
	CK_ULONG ulValueLen;
} CK_ATTRIBUTE, *CK_ATTRIBUTE_PTR;

typedef struct CK_MECHANISM {
	CK_MECHANISM_TYPE mechanism;
	CK_VOID_PTR pParameter;
	CK_ULONG ulParameterLen;
} CK_MECHANISM, *CK_MECHANISM_PTR;

typedef struct CK_MECHANISM_INFO {
	CK_ULONG ulMinKeySize, ulMaxKeySize;
	CK_FLAGS flags;
} CK_MECHANISM_INFO, *CK_MECHANISM_INFO_PTR;

typedef struct CK_EDDSA_PARAMS {
	CK_BBOOL phFlag;
	CK_ULONG ulContextDataLen;
	CK_BYTE_PTR pContextData;
} CK_EDDSA_PARAMS;

typedef struct CK_ASYNC_DATA {
	CK_ULONG ulVersion;
	CK_BYTE_PTR pValue;
	CK_ULONG ulValue;
	CK_OBJECT_HANDLE hObject, hAdditionalObject;
} CK_ASYNC_DATA, *CK_ASYNC_DATA_PTR;

typedef struct CK_GCM_PARAMS {
	CK_BYTE_PTR pIv;
	CK_ULONG ulIvLen, ulIvBits;
	CK_BYTE_PTR pAAD;
	CK_ULONG ulAADLen, ulTagBits;
} CK_GCM_PARAMS;

typedef struct CK_SALSA20_CHACHA20_POLY1305_PARAMS {
	CK_BYTE_PTR pNonce;
	CK_ULONG ulNonceLen;
	CK_BYTE_PTR pAAD;
	CK_ULONG ulAADLen;
} CK_SALSA20_CHACHA20_POLY1305_PARAMS;

typedef struct CK_ECDH1_DERIVE_PARAMS {
	CK_ULONG kdf, ulSharedDataLen;
	CK_BYTE_PTR pSharedData;
	CK_ULONG ulPublicDataLen;
	CK_BYTE_PTR pPublicData;
} CK_ECDH1_DERIVE_PARAMS;

typedef struct CK_HKDF_PARAMS {
	CK_BBOOL bExtract, bExpand;
	CK_MECHANISM_TYPE prfHashMechanism;
	CK_ULONG ulSaltType;
	CK_BYTE_PTR pSalt;
	CK_ULONG ulSaltLen;
	CK_OBJECT_HANDLE hSaltKey;
	CK_BYTE_PTR pInfo;
	CK_ULONG ulInfoLen;
} CK_HKDF_PARAMS;

typedef CK_RV (*CK_NOTIFY)(CK_SESSION_HANDLE, CK_NOTIFICATION, CK_VOID_PTR);
typedef CK_RV (*CK_MUTEX_CALL)(CK_VOID_PTR);
typedef CK_RV (*CK_CREATEMUTEX)(CK_VOID_PTR *);

typedef struct CK_C_INITIALIZE_ARGS {
	CK_CREATEMUTEX CreateMutex;
	CK_MUTEX_CALL DestroyMutex, LockMutex, UnlockMutex;
	CK_FLAGS flags;
	CK_VOID_PTR pReserved;
} CK_C_INITIALIZE_ARGS, *CK_C_INITIALIZE_ARGS_PTR;

typedef struct CK_INTERFACE {
	CK_CHAR *pInterfaceName;
	CK_VOID_PTR pFunctionList;
	CK_FLAGS flags;
} CK_INTERFACE, *CK_INTERFACE_PTR;

typedef struct CK_FUNCTION_LIST CK_FUNCTION_LIST;
typedef struct CK_FUNCTION_LIST_3_0 CK_FUNCTION_LIST_3_0;
typedef struct CK_FUNCTION_LIST_3_2 CK_FUNCTION_LIST_3_2;

#define CKR_OK                         0x000UL
#define CKR_GENERAL_ERROR              0x005UL
#define CKR_ARGUMENTS_BAD              0x007UL
#define CKR_FUNCTION_NOT_PARALLEL      0x051UL
#define CKR_FUNCTION_NOT_SUPPORTED     0x054UL
#define CKR_BUFFER_TOO_SMALL           0x150UL
#define CKR_CRYPTOKI_NOT_INITIALIZED   0x190UL

/*
 * Every function, in the order of the standard's lists:
 *
 *	X(kind, name, (parameters), (what Go is given), (pointers to check))
 *
 * kind says who answers: LOCAL, C code written for it; GO, the Go function
 * go_<name>; ABSENT, nobody, since this token has no such ability; LEGACY,
 * the two functions that the standard keeps for parallel sessions only.
 */
#define CK_S  CK_SESSION_HANDLE s
#define CK_IN(p)  CK_BYTE_PTR p, CK_ULONG n##p
#define CK_OUT(p) CK_BYTE_PTR p, CK_ULONG_PTR n##p
#define CK_MECH CK_MECHANISM_PTR mech
#define CK_KEY CK_OBJECT_HANDLE key
#define CK_TEMPLATE(t) CK_ATTRIBUTE_PTR t, CK_ULONG n##t
#define CK_GIVE(p) CK_SOME(p), n##p

#define CK_FUNCTIONS_2_40(X) \
	X(LOCAL, C_Initialize, (CK_VOID_PTR args), (), ()) \
	X(LOCAL, C_Finalize, (CK_VOID_PTR reserved), (), ()) \
	X(GO, C_GetInfo, (CK_INFO_PTR info), (info), (info)) \
	X(LOCAL, C_GetFunctionList, (CK_FUNCTION_LIST **list), (), ()) \
	X(GO, C_GetSlotList, (CK_BBOOL present, CK_SLOT_ID_PTR list, CK_ULONG_PTR n), (present, list, n), (list, n)) \
	X(GO, C_GetSlotInfo, (CK_SLOT_ID slot, CK_SLOT_INFO_PTR info), (slot, info), (info)) \
	X(GO, C_GetTokenInfo, (CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info), (slot, info), (info)) \
	X(GO, C_GetMechanismList, (CK_SLOT_ID slot, CK_MECHANISM_TYPE_PTR list, CK_ULONG_PTR n), (slot, list, n), (list, n)) \
	X(GO, C_GetMechanismInfo, (CK_SLOT_ID slot, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO_PTR info), (slot, type, info), (info)) \
	X(GO, C_InitToken, (CK_SLOT_ID slot, CK_IN(pin), CK_UTF8CHAR_PTR label), (slot, CK_GIVE(pin), label), (CK_SOME(pin), label)) \
	X(GO, C_InitPIN, (CK_S, CK_IN(pin)), (s, CK_GIVE(pin)), (CK_SOME(pin))) \
	X(GO, C_SetPIN, (CK_S, CK_IN(old), CK_IN(pin)), (s, CK_GIVE(old), CK_GIVE(pin)), (CK_SOME(old), CK_SOME(pin))) \
	X(GO, C_OpenSession, (CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR app, CK_NOTIFY notify, CK_SESSION_HANDLE_PTR out), (slot, flags, out), (out)) \
	X(GO, C_CloseSession, (CK_S), (s), ()) \
	X(GO, C_CloseAllSessions, (CK_SLOT_ID slot), (slot), ()) \
	X(GO, C_GetSessionInfo, (CK_S, CK_SESSION_INFO_PTR info), (s, info), (info)) \
	X(GO, C_GetOperationState, (CK_S, CK_OUT(state)), (s, state, nstate), (state, nstate)) \
	X(GO, C_SetOperationState, (CK_S, CK_IN(state), CK_OBJECT_HANDLE enc, CK_OBJECT_HANDLE auth), (s, CK_GIVE(state), enc, auth), (CK_SOME(state))) \
	X(GO, C_Login, (CK_S, CK_USER_TYPE user, CK_IN(pin)), (s, user, CK_GIVE(pin)), (CK_SOME(pin))) \
	X(GO, C_Logout, (CK_S), (s), ()) \
	X(GO, C_CreateObject, (CK_S, CK_TEMPLATE(t), CK_OBJECT_HANDLE_PTR out), (s, CK_GIVE(t), out), (CK_SOME(t), out)) \
	X(GO, C_CopyObject, (CK_S, CK_OBJECT_HANDLE obj, CK_TEMPLATE(t), CK_OBJECT_HANDLE_PTR out), (s, obj, CK_GIVE(t), out), (CK_SOME(t), out)) \
	X(GO, C_DestroyObject, (CK_S, CK_OBJECT_HANDLE obj), (s, obj), ()) \
	X(GO, C_GetObjectSize, (CK_S, CK_OBJECT_HANDLE obj, CK_ULONG_PTR size), (s, obj, size), (size)) \
	X(GO, C_GetAttributeValue, (CK_S, CK_OBJECT_HANDLE obj, CK_TEMPLATE(t)), (s, obj, CK_GIVE(t)), (CK_SOME(t))) \
	X(GO, C_SetAttributeValue, (CK_S, CK_OBJECT_HANDLE obj, CK_TEMPLATE(t)), (s, obj, CK_GIVE(t)), (CK_SOME(t))) \
	X(GO, C_FindObjectsInit, (CK_S, CK_TEMPLATE(t)), (s, CK_GIVE(t)), (CK_SOME(t))) \
	X(GO, C_FindObjects, (CK_S, CK_OBJECT_HANDLE_PTR out, CK_ULONG max, CK_ULONG_PTR n), (s, out, max, n), (out, n)) \
	X(GO, C_FindObjectsFinal, (CK_S), (s), ()) \
	X(GO, C_EncryptInit, (CK_S, CK_MECH, CK_KEY), (s, mech, key), (mech)) \
	X(GO, C_Encrypt, (CK_S, CK_IN(in), CK_OUT(out)), (s, CK_GIVE(in), out, nout), (CK_SOME(in), out, nout)) \
	X(GO, C_EncryptUpdate, (CK_S, CK_IN(in), CK_OUT(out)), (s, CK_GIVE(in), out, nout), (CK_SOME(in), out, nout)) \
	X(GO, C_EncryptFinal, (CK_S, CK_OUT(out)), (s, out, nout), (out, nout)) \
	X(GO, C_DecryptInit, (CK_S, CK_MECH, CK_KEY), (s, mech, key), (mech)) \
	X(GO, C_Decrypt, (CK_S, CK_IN(in), CK_OUT(out)), (s, CK_GIVE(in), out, nout), (CK_SOME(in), out, nout)) \
	X(GO, C_DecryptUpdate, (CK_S, CK_IN(in), CK_OUT(out)), (s, CK_GIVE(in), out, nout), (CK_SOME(in), out, nout)) \
	X(GO, C_DecryptFinal, (CK_S, CK_OUT(out)), (s, out, nout), (out, nout)) \
	X(GO, C_DigestInit, (CK_S, CK_MECH), (s, mech), (mech)) \
	X(GO, C_Digest, (CK_S, CK_IN(in), CK_OUT(out)), (s, CK_GIVE(in), out, nout), (CK_SOME(in), out, nout)) \
	X(GO, C_DigestUpdate, (CK_S, CK_IN(in)), (s, CK_GIVE(in)), (CK_SOME(in))) \
	X(GO, C_DigestKey, (CK_S, CK_KEY), (s, key), ()) \
	X(GO, C_DigestFinal, (CK_S, CK_OUT(out)), (s, out, nout), (out, nout)) \
	X(GO, C_SignInit, (CK_S, CK_MECH, CK_KEY), (s, mech, key), (mech)) \
	X(GO, C_Sign, (CK_S, CK_IN(in), CK_OUT(out)), (s, CK_GIVE(in), out, nout), (CK_SOME(in), out, nout)) \
	X(GO, C_SignUpdate, (CK_S, CK_IN(in)), (s, CK_GIVE(in)), (CK_SOME(in))) \
	X(GO, C_SignFinal, (CK_S, CK_OUT(out)), (s, out, nout), (out, nout)) \
	X(ABSENT, C_SignRecoverInit, (CK_S, CK_MECH, CK_KEY), (), ()) \
	X(ABSENT, C_SignRecover, (CK_S, CK_IN(in), CK_OUT(out)), (), ()) \
	X(GO, C_VerifyInit, (CK_S, CK_MECH, CK_KEY), (s, mech, key), (mech)) \
	X(GO, C_Verify, (CK_S, CK_IN(in), CK_IN(sig)), (s, CK_GIVE(in), CK_GIVE(sig)), (CK_SOME(in), CK_SOME(sig))) \
	X(GO, C_VerifyUpdate, (CK_S, CK_IN(in)), (s, CK_GIVE(in)), (CK_SOME(in))) \
	X(GO, C_VerifyFinal, (CK_S, CK_IN(sig)), (s, CK_GIVE(sig)), (CK_SOME(sig))) \
	X(ABSENT, C_VerifyRecoverInit, (CK_S, CK_MECH, CK_KEY), (), ()) \
	X(ABSENT, C_VerifyRecover, (CK_S, CK_IN(sig), CK_OUT(out)), (), ()) \
	X(GO, C_DigestEncryptUpdate, (CK_S, CK_IN(in), CK_OUT(out)), (s, CK_GIVE(in), out, nout), (CK_SOME(in), out, nout)) \
	X(GO, C_DecryptDigestUpdate, (CK_S, CK_IN(in), CK_OUT(out)), (s, CK_GIVE(in), out, nout), (CK_SOME(in), out, nout)) \
	X(GO, C_SignEncryptUpdate, (CK_S, CK_IN(in), CK_OUT(out)), (s, CK_GIVE(in), out, nout), (CK_SOME(in), out, nout)) \
	X(GO, C_DecryptVerifyUpdate, (CK_S, CK_IN(in), CK_OUT(out)), (s, CK_GIVE(in), out, nout), (CK_SOME(in), out, nout)) \
	X(GO, C_GenerateKey, (CK_S, CK_MECH, CK_TEMPLATE(t), CK_OBJECT_HANDLE_PTR out), (s, mech, CK_GIVE(t), out), (mech, CK_SOME(t), out)) \
	X(GO, C_GenerateKeyPair, (CK_S, CK_MECH, CK_TEMPLATE(pub), CK_TEMPLATE(priv), CK_OBJECT_HANDLE_PTR pubout, CK_OBJECT_HANDLE_PTR privout), (s, mech, CK_GIVE(pub), CK_GIVE(priv), pubout, privout), (mech, CK_SOME(pub), CK_SOME(priv), pubout, privout)) \
	X(GO, C_WrapKey, (CK_S, CK_MECH, CK_OBJECT_HANDLE wrapping, CK_KEY, CK_OUT(out)), (s, mech, wrapping, key, out, nout), (mech, out, nout)) \
	X(GO, C_UnwrapKey, (CK_S, CK_MECH, CK_KEY, CK_IN(in), CK_TEMPLATE(t), CK_OBJECT_HANDLE_PTR out), (s, mech, key, CK_GIVE(in), CK_GIVE(t), out), (mech, CK_SOME(in), CK_SOME(t), out)) \
	X(GO, C_DeriveKey, (CK_S, CK_MECH, CK_KEY, CK_TEMPLATE(t), CK_OBJECT_HANDLE_PTR out), (s, mech, key, CK_GIVE(t), out), (mech, CK_SOME(t), out)) \
	X(GO, C_SeedRandom, (CK_S, CK_IN(seed)), (s, CK_GIVE(seed)), (CK_SOME(seed))) \
	X(GO, C_GenerateRandom, (CK_S, CK_IN(out)), (s, CK_GIVE(out)), (CK_SOME(out))) \
	X(LEGACY, C_GetFunctionStatus, (CK_S), (), ()) \
	X(LEGACY, C_CancelFunction, (CK_S), (), ()) \
	X(GO, C_WaitForSlotEvent, (CK_FLAGS flags, CK_SLOT_ID_PTR slot, CK_VOID_PTR reserved), (flags, slot, reserved), (slot, reserved))

#define CK_PARAM CK_VOID_PTR par, CK_ULONG npar
#define CK_FUNCTIONS_3_0(X) \
	X(LOCAL, C_GetInterfaceList, (CK_INTERFACE_PTR list, CK_ULONG_PTR n), (), ()) \
	X(LOCAL, C_GetInterface, (CK_UTF8CHAR_PTR name, CK_VERSION_PTR version, CK_INTERFACE_PTR *out, CK_FLAGS flags), (), ()) \
	X(GO, C_LoginUser, (CK_S, CK_USER_TYPE type, CK_IN(pin), CK_IN(user)), (s, type, CK_GIVE(pin), CK_GIVE(user)), (CK_SOME(pin), CK_SOME(user))) \
	X(GO, C_SessionCancel, (CK_S, CK_FLAGS flags), (s, flags), ()) \
	X(ABSENT, C_MessageEncryptInit, (CK_S, CK_MECH, CK_KEY), (), ()) \
	X(ABSENT, C_EncryptMessage, (CK_S, CK_PARAM, CK_IN(aad), CK_IN(in), CK_OUT(out)), (), ()) \
	X(ABSENT, C_EncryptMessageBegin, (CK_S, CK_PARAM, CK_IN(aad)), (), ()) \
	X(ABSENT, C_EncryptMessageNext, (CK_S, CK_PARAM, CK_IN(in), CK_OUT(out), CK_FLAGS flags), (), ()) \
	X(ABSENT, C_MessageEncryptFinal, (CK_S), (), ()) \
	X(ABSENT, C_MessageDecryptInit, (CK_S, CK_MECH, CK_KEY), (), ()) \
	X(ABSENT, C_DecryptMessage, (CK_S, CK_PARAM, CK_IN(aad), CK_IN(in), CK_OUT(out)), (), ()) \
	X(ABSENT, C_DecryptMessageBegin, (CK_S, CK_PARAM, CK_IN(aad)), (), ()) \
	X(ABSENT, C_DecryptMessageNext, (CK_S, CK_PARAM, CK_IN(in), CK_OUT(out), CK_FLAGS flags), (), ()) \
	X(ABSENT, C_MessageDecryptFinal, (CK_S), (), ()) \
	X(GO, C_MessageSignInit, (CK_S, CK_MECH, CK_KEY), (s, mech, key), (mech)) \
	X(GO, C_SignMessage, (CK_S, CK_PARAM, CK_IN(in), CK_OUT(out)), (s, CK_GIVE(par), CK_GIVE(in), out, nout), (CK_SOME(par), CK_SOME(in), out, nout)) \
	X(GO, C_SignMessageBegin, (CK_S, CK_PARAM), (s, CK_GIVE(par)), (CK_SOME(par))) \
	X(GO, C_SignMessageNext, (CK_S, CK_PARAM, CK_IN(in), CK_OUT(out)), (s, CK_GIVE(par), CK_GIVE(in), out, nout), (CK_SOME(par), CK_SOME(in), out, nout)) \
	X(GO, C_MessageSignFinal, (CK_S), (s), ()) \
	X(GO, C_MessageVerifyInit, (CK_S, CK_MECH, CK_KEY), (s, mech, key), (mech)) \
	X(GO, C_VerifyMessage, (CK_S, CK_PARAM, CK_IN(in), CK_IN(sig)), (s, CK_GIVE(par), CK_GIVE(in), CK_GIVE(sig)), (CK_SOME(par), CK_SOME(in), CK_SOME(sig))) \
	X(GO, C_VerifyMessageBegin, (CK_S, CK_PARAM), (s, CK_GIVE(par)), (CK_SOME(par))) \
	X(GO, C_VerifyMessageNext, (CK_S, CK_PARAM, CK_IN(in), CK_IN(sig)), (s, CK_GIVE(par), CK_GIVE(in), CK_GIVE(sig)), (CK_SOME(par), CK_SOME(in), CK_SOME(sig))) \
	X(GO, C_MessageVerifyFinal, (CK_S), (s), ())

#define CK_FUNCTIONS_3_2(X) \
	X(ABSENT, C_EncapsulateKey, (CK_S, CK_MECH, CK_KEY, CK_TEMPLATE(t), CK_OUT(out), CK_OBJECT_HANDLE_PTR made), (), ()) \
	X(ABSENT, C_DecapsulateKey, (CK_S, CK_MECH, CK_KEY, CK_TEMPLATE(t), CK_IN(in), CK_OBJECT_HANDLE_PTR made), (), ()) \
	X(GO, C_VerifySignatureInit, (CK_S, CK_MECH, CK_KEY, CK_IN(sig)), (s, mech, key, CK_GIVE(sig)), (mech, CK_SOME(sig))) \
	X(GO, C_VerifySignature, (CK_S, CK_IN(in)), (s, CK_GIVE(in)), (CK_SOME(in))) \
	X(GO, C_VerifySignatureUpdate, (CK_S, CK_IN(in)), (s, CK_GIVE(in)), (CK_SOME(in))) \
	X(GO, C_VerifySignatureFinal, (CK_S), (s), ()) \
	X(GO, C_GetSessionValidationFlags, (CK_S, CK_SESSION_VALIDATION_FLAGS_TYPE type, CK_FLAGS_PTR flags), (s, type, flags), (flags)) \
	X(ABSENT, C_AsyncComplete, (CK_S, CK_UTF8CHAR_PTR function, CK_ASYNC_DATA_PTR result), (), ()) \
	X(ABSENT, C_AsyncGetID, (CK_S, CK_UTF8CHAR_PTR function, CK_ULONG_PTR id), (), ()) \
	X(ABSENT, C_AsyncJoin, (CK_S, CK_UTF8CHAR_PTR function, CK_ULONG id, CK_IN(data)), (), ()) \
	X(ABSENT, C_WrapKeyAuthenticated, (CK_S, CK_MECH, CK_OBJECT_HANDLE wrapping, CK_KEY, CK_IN(aad), CK_OUT(out)), (), ()) \
	X(ABSENT, C_UnwrapKeyAuthenticated, (CK_S, CK_MECH, CK_KEY, CK_IN(in), CK_TEMPLATE(t), CK_IN(aad), CK_OBJECT_HANDLE_PTR made), (), ())

#define CK_DECLARE(kind, name, params, pass, ptrs) extern CK_RV name params;
CK_FUNCTIONS_2_40(CK_DECLARE)
CK_FUNCTIONS_3_0(CK_DECLARE)
CK_FUNCTIONS_3_2(CK_DECLARE)

#define CK_MEMBER(kind, name, params, pass, ptrs) CK_RV (*name) params;
struct CK_FUNCTION_LIST {
	CK_VERSION version;
	CK_FUNCTIONS_2_40(CK_MEMBER)
};
struct CK_FUNCTION_LIST_3_0 {
	CK_VERSION version;
	CK_FUNCTIONS_2_40(CK_MEMBER)
	CK_FUNCTIONS_3_0(CK_MEMBER)
};
struct CK_FUNCTION_LIST_3_2 {
	CK_VERSION version;
	CK_FUNCTIONS_2_40(CK_MEMBER)
	CK_FUNCTIONS_3_0(CK_MEMBER)
	CK_FUNCTIONS_3_2(CK_MEMBER)
};

#endif
