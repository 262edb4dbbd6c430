/* Arguments that no host should pass, to every function. Whatever comes back,
 * the process must live, and nothing may be written outside the buffers.
 * Built with the address and undefined-behaviour sanitizers. */
#include "host.h"

#define CKM_AES_KEY_GEN 0x1080UL
#define CKM_CHACHA20_KEY_GEN 0x1225UL
#define CKM_GENERIC_SECRET_KEY_GEN 0x350UL
#define CKM_EC_MONTGOMERY_KEY_PAIR_GEN 0x1056UL
#define CKM_AES_GCM 0x1087UL
#define CKM_CHACHA20_POLY1305 0x4021UL
#define CKM_ECDH1_DERIVE 0x1050UL
#define CKM_HKDF_DERIVE 0x402aUL
#define CKD_SHA256_KDF 6UL
#define CKF_HKDF_SALT_DATA 2UL
#define CKO_SECRET_KEY 4UL
#define CKK_GENERIC_SECRET 0x10UL
#define CKA_KEY_TYPE 0x100UL
#define CKA_ENCRYPT 0x104UL
#define CKA_DERIVE 0x10cUL
#define CKA_VALUE_LEN 0x161UL

#define LABEL "chost hostile"
#define HUGE_LENGTHS ((CK_ULONG)-1), ((CK_ULONG)-2), (CK_ULONG)1 << 63, ((CK_ULONG)1 << 40) + 1, (CK_ULONG)1 << 41

static CK_SESSION_HANDLE session;
static CK_OBJECT_HANDLE priv, pub;
static const CK_ULONG huge[] = {HUGE_LENGTHS};
enum { HUGES = sizeof huge / sizeof huge[0] };

static bool harmless(const char *name)
{
	/* These end what the other calls need, or wait for ever. */
	return strcmp(name, "C_Finalize") && strcmp(name, "C_CloseAllSessions") && strcmp(name, "C_CloseSession") &&
	       strcmp(name, "C_Logout") && strcmp(name, "C_WaitForSlotEvent") && strcmp(name, "C_DestroyObject");
}

/* Every argument after the first a number that is no pointer. */
static void numbers_for_pointers(void)
{
	static const uintptr_t odd[] = {0, 1, 8, 4095};

	for (int i = 0; i < ENTRIES; i++) {
		if (!harmless(entries[i].name))
			continue;
		for (size_t first = 0; first < 3; first++)
			for (size_t v = 0; v < sizeof odd / sizeof odd[0]; v++) {
				uintptr_t a[10];
				for (int j = 0; j < 10; j++)
					a[j] = odd[v];
				a[0] = first == 0 ? odd[v] : first == 1 ? session : (uintptr_t)-1;
				/* C_Initialize and its like have a pointer there. */
				if (first && entries[i].kind == LOCAL)
					continue;
				if (first && !strcmp(entries[i].name, "C_GetInfo"))
					continue;
				CALL_ANY(FUNCTION(entries[i]), a);
			}
	}
}

/* Any mixture of small numbers and the live handles. */
static void mixtures(void)
{
	unsigned seed = 1;

	for (int round = 0; round < 20000; round++) {
		int i = rand_r(&seed) % ENTRIES;
		uintptr_t a[10];
		if (!harmless(entries[i].name) || entries[i].kind == LOCAL)
			continue;
		for (int j = 0; j < 10; j++)
			switch (rand_r(&seed) % 6) {
			case 0: a[j] = 0; break;
			case 1: a[j] = 1; break;
			case 2: a[j] = CKM_EDDSA % 4096; break;
			case 3: a[j] = session < 4096 ? session : 0; break;
			case 4: a[j] = priv < 4096 ? priv : 0; break;
			default: a[j] = (uintptr_t)rand_r(&seed) % 4096; break;
			}
		if (strcmp(entries[i].name, "C_GetInfo"))
			a[0] = rand_r(&seed) % 2 ? session : a[0];
		/* A random slot or session may be a real one: these would spend TPM
		 * time or PIN tries without testing a pointer. */
		if (!strcmp(entries[i].name, "C_InitToken") || !strcmp(entries[i].name, "C_Login"))
			a[1] = 4095, a[2] = 5;
		CALL_ANY(FUNCTION(entries[i]), a);
	}
}

static void null_pointers(void)
{
	CK_ULONG n = 64;
	CK_BYTE b[64];
	CK_OBJECT_HANDLE h;
	CK_SLOT_ID slot = find_slot(LABEL);
	CK_MECHANISM eddsa = {CKM_EDDSA, NULL, 0}, gen = {CKM_EC_EDWARDS_KEY_PAIR_GEN, NULL, 0}, sha = {CKM_SHA256, NULL, 0};

	EXPECT(CKR_ARGUMENTS_BAD, p11->C_GetInfo(NULL));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_GetFunctionList(NULL));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_GetSlotList(0, NULL, NULL));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_GetSlotInfo(slot, NULL));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_GetTokenInfo(slot, NULL));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_GetMechanismList(slot, NULL, NULL));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_GetMechanismInfo(slot, CKM_EDDSA, NULL));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_InitToken(slot, SO_PIN, NULL));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_InitToken(slot, NULL, 8, b));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_InitPIN(session, NULL, 8));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_SetPIN(session, NULL, 8, b, 8));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_SetPIN(session, b, 8, NULL, 8));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_OpenSession(slot, 4, NULL, NULL, NULL));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_GetSessionInfo(session, NULL));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_Login(session, CKU_USER, NULL, 6));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_CreateObject(session, NULL, 1, &h));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_CreateObject(session, NULL, 0, NULL));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_CopyObject(session, priv, NULL, 1, &h));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_CopyObject(session, priv, NULL, 0, NULL));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_GetObjectSize(session, priv, NULL));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_GetAttributeValue(session, priv, NULL, 1));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_SetAttributeValue(session, priv, NULL, 1));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_FindObjectsInit(session, NULL, 1));
	OK(p11->C_FindObjectsInit(session, NULL, 0));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_FindObjects(session, NULL, 1, &n));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_FindObjects(session, &h, 1, NULL));
	OK(p11->C_FindObjectsFinal(session));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_GenerateKeyPair(session, NULL, NULL, 0, NULL, 0, &h, &h));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_GenerateKeyPair(session, &gen, NULL, 1, NULL, 0, &h, &h));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_GenerateKeyPair(session, &gen, NULL, 0, NULL, 1, &h, &h));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_GenerateKeyPair(session, &gen, NULL, 0, NULL, 0, NULL, &h));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_GenerateKeyPair(session, &gen, NULL, 0, NULL, 0, &h, NULL));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_SeedRandom(session, NULL, 1));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_GenerateRandom(session, NULL, 1));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_WaitForSlotEvent(1, NULL, NULL));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_WaitForSlotEvent(1, &slot, b));

	/* Without a mechanism an Init ends the operation that is active. */
	OK(p11->C_DigestInit(session, &sha));
	OK(p11->C_DigestInit(session, NULL));
	EXPECT(CKR_OPERATION_NOT_INITIALIZED, p11->C_DigestUpdate(session, b, 1));
	OK(p11->C_SignInit(session, &eddsa, priv));
	OK(p11->C_SignInit(session, NULL, 0));
	EXPECT(CKR_OPERATION_NOT_INITIALIZED, p11->C_SignUpdate(session, b, 1));
	OK(p11->C_VerifyInit(session, &eddsa, pub));
	OK(p11->C_VerifyInit(session, NULL, 0));
	EXPECT(CKR_OPERATION_NOT_INITIALIZED, p11->C_VerifyUpdate(session, b, 1));
	OK(p11->C_VerifyInit(session, NULL, 0));
	EXPECT(CKR_SESSION_HANDLE_INVALID, p11->C_SignInit(session + 1000, NULL, 0));

	OK(p11->C_SignInit(session, &eddsa, priv));
	p11->C_Sign(session, NULL, 1, b, &n);
	p11->C_SessionCancel(session, 0x800);
	p11->C_SignInit(session, &eddsa, priv);
	p11->C_Sign(session, b, 1, b, NULL);
	p11->C_SessionCancel(session, 0x800);
	p11->C_SignInit(session, &eddsa, priv);
	p11->C_SignUpdate(session, NULL, 1);
	p11->C_SignFinal(session, b, NULL);
	p11->C_SessionCancel(session, 0x800);
	p11->C_VerifyInit(session, &eddsa, pub);
	p11->C_Verify(session, b, 1, NULL, 64);
	p11->C_SessionCancel(session, 0x2000);
	sign_and_verify(session, priv, pub);
}

static void lengths(void)
{
	CK_BYTE b[64] = {0};
	CK_OBJECT_HANDLE h;
	CK_ULONG n;
	CK_MECHANISM eddsa = {CKM_EDDSA, NULL, 0};

	for (int i = 0; i < HUGES; i++) {
		CK_ATTRIBUTE t = {CKA_LABEL, b, huge[i]}, null = {CKA_LABEL, NULL, huge[i]}, small = {CKA_LABEL, (void *)8, 8};
		CK_MECHANISM m = {CKM_EDDSA, b, huge[i]};

		EXPECT(CKR_ARGUMENTS_BAD, p11->C_Login(session, CKU_USER, b, huge[i]));
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_InitPIN(session, b, huge[i]));
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_SetPIN(session, b, huge[i], b, 8));
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_SetPIN(session, b, 8, b, huge[i]));
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_SeedRandom(session, b, huge[i]));
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_GenerateRandom(session, b, huge[i]));
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_CreateObject(session, &t, huge[i], &h));
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_CreateObject(session, &t, 1, &h));
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_CreateObject(session, &null, 1, &h));
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_CreateObject(session, &small, 1, &h));
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_CopyObject(session, priv, &t, 1, &h));
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_FindObjectsInit(session, &t, huge[i]));
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_FindObjectsInit(session, &t, 1));
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_FindObjectsInit(session, &null, 1));
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_SetAttributeValue(session, priv, &t, 1));
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_GetAttributeValue(session, pub, &t, huge[i]));
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_GetAttributeValue(session, pub, &t, 1));
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_GetAttributeValue(session, pub, &small, 1));
		CHECK(p11->C_GetAttributeValue(session, pub, &null, 1) != CKR_ARGUMENTS_BAD); /* asks for the length */
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_SignInit(session, &m, priv));
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_DigestInit(session, &m));

		CK_EDDSA_PARAMS ed = {0, huge[i], b};
		m = (CK_MECHANISM){CKM_EDDSA, &ed, sizeof ed};
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_SignInit(session, &m, priv));
		ed = (CK_EDDSA_PARAMS){0, 8, NULL};
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_SignInit(session, &m, priv));
		ed = (CK_EDDSA_PARAMS){0, 8, (void *)16};
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_SignInit(session, &m, priv));

		OK(p11->C_SignInit(session, &eddsa, priv));
		n = sizeof b;
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_Sign(session, b, huge[i], b, &n));
		p11->C_SessionCancel(session, 0x800);
		p11->C_SignInit(session, &eddsa, priv);
		n = huge[i];
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_Sign(session, b, 1, b, &n));
		p11->C_SessionCancel(session, 0x800);
		p11->C_VerifyInit(session, &eddsa, pub);
		EXPECT(CKR_ARGUMENTS_BAD, p11->C_Verify(session, b, 1, b, huge[i]));
		p11->C_SessionCancel(session, 0x2000);
	}

	/* An EdDSA parameter of every size but its own, and unaligned. */
	CK_BYTE raw[128] = {0, 1}; /* phFlag, no context */
	for (CK_ULONG len = 1; len < sizeof raw; len++) {
		CK_MECHANISM m = {CKM_EDDSA, raw + 1, len - 1};
		CK_RV rv = p11->C_SignInit(session, &m, priv);
		CHECK((rv == CKR_OK) == (len - 1 == 0 || len - 1 == sizeof(CK_EDDSA_PARAMS)));
		p11->C_SessionCancel(session, 0x800);
	}
	sign_and_verify(session, priv, pub);
}

/* A parameter with two pointers, each with a length. */
struct parameter {
	CK_MECHANISM m;
	CK_OBJECT_HANDLE key;
	struct {
		CK_BYTE_PTR *at;
		CK_ULONG *n;
	} bytes[2];
};

static CK_RV use(const struct parameter *p, CK_VOID_PTR parameter, CK_ULONG size)
{
	CK_ULONG class = CKO_SECRET_KEY, type = CKK_GENERIC_SECRET, n = 32;
	CK_ATTRIBUTE t[] = {{CKA_CLASS, &class, sizeof class}, {CKA_KEY_TYPE, &type, sizeof type}, {CKA_VALUE_LEN, &n, sizeof n}};
	CK_MECHANISM m = {p->m.mechanism, parameter, size};
	CK_OBJECT_HANDLE h;
	CK_RV rv;

	if (m.mechanism == CKM_ECDH1_DERIVE || m.mechanism == CKM_HKDF_DERIVE)
		return p11->C_DeriveKey(session, &m, p->key, t, 3, &h);
	rv = p11->C_EncryptInit(session, &m, p->key);
	p11->C_SessionCancel(session, 0x100);
	return rv;
}

static CK_OBJECT_HANDLE secret_key(CK_MECHANISM_TYPE generate, CK_ATTRIBUTE_TYPE use)
{
	CK_MECHANISM m = {generate, NULL, 0};
	CK_ULONG n = 32;
	CK_BBOOL yes = 1;
	CK_ATTRIBUTE t[] = {{use, &yes, 1}, {CKA_VALUE_LEN, &n, sizeof n}};
	CK_OBJECT_HANDLE h;

	OK(p11->C_GenerateKey(session, &m, t, generate == CKM_CHACHA20_KEY_GEN ? 1 : 2, &h)); /* whose keys have one length */
	return h;
}

static CK_OBJECT_HANDLE x25519_key(void)
{
	static CK_BYTE oid[] = {0x06, 0x03, 0x2b, 0x65, 0x6e};
	CK_MECHANISM m = {CKM_EC_MONTGOMERY_KEY_PAIR_GEN, NULL, 0};
	CK_BBOOL yes = 1;
	CK_ATTRIBUTE tpub = {CKA_EC_PARAMS, oid, sizeof oid}, tpriv = {CKA_DERIVE, &yes, 1};
	CK_OBJECT_HANDLE h, ours;

	OK(p11->C_GenerateKeyPair(session, &m, &tpub, 1, &tpriv, 1, &h, &ours));
	return ours;
}

/* Parameters that are structures with pointers. */
static void parameters(void)
{
	CK_BYTE iv[12] = {1}, aad[8] = {2}, info[8] = {3}, point[32] = {9} /* the base point of X25519 */, raw[128];
	CK_GCM_PARAMS gcm = {iv, sizeof iv, 96, aad, sizeof aad, 128};
	CK_SALSA20_CHACHA20_POLY1305_PARAMS chacha = {iv, 96, aad, sizeof aad}; /* bits */
	CK_ECDH1_DERIVE_PARAMS ecdh = {CKD_SHA256_KDF, sizeof info, info, sizeof point, point};
	CK_HKDF_PARAMS hkdf = {1, 1, CKM_SHA256, CKF_HKDF_SALT_DATA, aad, sizeof aad, 0, info, sizeof info};
	const struct parameter all[] = {
		{{CKM_AES_GCM, &gcm, sizeof gcm}, secret_key(CKM_AES_KEY_GEN, CKA_ENCRYPT), {{&gcm.pIv, &gcm.ulIvLen}, {&gcm.pAAD, &gcm.ulAADLen}}},
		{{CKM_CHACHA20_POLY1305, &chacha, sizeof chacha}, secret_key(CKM_CHACHA20_KEY_GEN, CKA_ENCRYPT),
			{{&chacha.pNonce, &chacha.ulNonceLen}, {&chacha.pAAD, &chacha.ulAADLen}}},
		{{CKM_ECDH1_DERIVE, &ecdh, sizeof ecdh}, x25519_key(), {{&ecdh.pSharedData, &ecdh.ulSharedDataLen}, {&ecdh.pPublicData, &ecdh.ulPublicDataLen}}},
		{{CKM_HKDF_DERIVE, &hkdf, sizeof hkdf}, secret_key(CKM_GENERIC_SECRET_KEY_GEN, CKA_DERIVE), {{&hkdf.pSalt, &hkdf.ulSaltLen}, {&hkdf.pInfo, &hkdf.ulInfoLen}}},
	};

	for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
		const struct parameter *p = &all[i];
		char name[64];

		snprintf(name, sizeof name, "parameters of 0x%lx", p->m.mechanism);
		scenario = name;
		OK(use(p, p->m.pParameter, p->m.ulParameterLen));
		for (int j = 0; j < 2; j++) {
			CK_BYTE_PTR at = *p->bytes[j].at;
			CK_ULONG n = *p->bytes[j].n;

			for (int k = 0; k < HUGES; k++) {
				*p->bytes[j].n = huge[k];
				EXPECT(CKR_ARGUMENTS_BAD, use(p, p->m.pParameter, p->m.ulParameterLen));
				*p->bytes[j].at = NULL;
				EXPECT(CKR_ARGUMENTS_BAD, use(p, p->m.pParameter, p->m.ulParameterLen));
				*p->bytes[j].at = at;
			}
			*p->bytes[j].n = n;
			for (uintptr_t odd = 0; odd < 4096; odd += 1365) {
				*p->bytes[j].at = (CK_BYTE_PTR)odd;
				EXPECT(CKR_ARGUMENTS_BAD, use(p, p->m.pParameter, p->m.ulParameterLen));
			}
			*p->bytes[j].at = at;
		}
		/* Of every size, and unaligned: what is copied has only its own size. */
		memcpy(raw + 1, p->m.pParameter, p->m.ulParameterLen);
		for (CK_ULONG len = 0; len < sizeof raw - 1; len++)
			CHECK((use(p, raw + 1, len) == CKR_OK) == (len == p->m.ulParameterLen));
		EXPECT(CKR_ARGUMENTS_BAD, use(p, NULL, p->m.ulParameterLen));
		EXPECT(CKR_ARGUMENTS_BAD, use(p, (void *)8, p->m.ulParameterLen));
		for (int k = 0; k < HUGES; k++)
			EXPECT(CKR_ARGUMENTS_BAD, use(p, p->m.pParameter, huge[k]));
	}
}

/* Empty things at addresses that are none, as Rust passes them. */
static void empty_with_small_pointers(void)
{
	CK_BYTE sig[64];
	CK_ULONG n = sizeof sig;
	CK_MECHANISM eddsa = {CKM_EDDSA, (void *)1, 0};
	CK_ATTRIBUTE t = {CKA_LABEL, (void *)1, 0};

	OK(p11->C_SignInit(session, &eddsa, priv));
	OK(p11->C_Sign(session, (CK_BYTE_PTR)1, 0, sig, &n));
	OK(p11->C_VerifyInit(session, &eddsa, pub));
	OK(p11->C_Verify(session, (CK_BYTE_PTR)1, 0, sig, n));
	OK(p11->C_FindObjectsInit(session, (CK_ATTRIBUTE_PTR)8, 0));
	OK(p11->C_FindObjectsFinal(session));
	OK(p11->C_FindObjectsInit(session, &t, 1));
	OK(p11->C_FindObjectsFinal(session));
}

/* Outputs end where the buffer ends: each buffer has its own allocation, and
 * a canary behind the length that is told. */
static void small_outputs(void)
{
	CK_MECHANISM eddsa = {CKM_EDDSA, NULL, 0}, sha = {CKM_SHA256, NULL, 0};

	for (CK_ULONG room = 0; room < 80; room++) {
		CK_BYTE *b = malloc(room + 8), msg[3] = "abc";
		CK_ULONG n = room;
		CK_RV rv;
		memset(b, 0xa5, room + 8);

		OK(p11->C_SignInit(session, &eddsa, priv));
		rv = p11->C_Sign(session, msg, 3, b, &n);
		CHECK(rv == (room < 64 ? CKR_BUFFER_TOO_SMALL : CKR_OK) && n == 64);
		if (rv != CKR_OK) {
			OK(p11->C_Sign(session, msg, 3, NULL, &n));
			p11->C_SessionCancel(session, 0x800);
		}
		n = room;
		OK(p11->C_DigestInit(session, &sha));
		rv = p11->C_Digest(session, msg, 3, b, &n);
		CHECK(rv == (room < 32 ? CKR_BUFFER_TOO_SMALL : CKR_OK) && n == 32);
		if (rv != CKR_OK)
			p11->C_SessionCancel(session, 0x400);

		CK_ATTRIBUTE t[] = {{CKA_EC_POINT, b, room}, {0x7fffffff, b, room}, {CKA_VALUE, NULL, 0}, {CKA_EC_PARAMS, NULL, 1}};
		rv = p11->C_GetAttributeValue(session, pub, t, 4);
		CHECK(rv != CKR_OK && t[1].ulValueLen == (CK_ULONG)-1 && t[3].ulValueLen == 5);
		CHECK(t[0].ulValueLen == (room < 34 ? (CK_ULONG)-1 : 34));
		CK_ATTRIBUTE secret = {CKA_VALUE, b, room};
		CHECK(p11->C_GetAttributeValue(session, priv, &secret, 1) == 0x11 && secret.ulValueLen == (CK_ULONG)-1);

		CK_SLOT_ID slots[4] = {99, 99, 99, 99};
		CK_ULONG m = 0;
		rv = p11->C_GetSlotList(0, slots, &m);
		CHECK(rv == CKR_BUFFER_TOO_SMALL && m > 0 && slots[0] == 99);
		CK_MECHANISM_TYPE mechs[2] = {99, 99};
		m = 1;
		rv = p11->C_GetMechanismList(find_slot(LABEL), mechs, &m);
		CHECK(rv == CKR_BUFFER_TOO_SMALL && m > 1 && mechs[1] == 99);

		for (CK_ULONG i = room; i < room + 8; i++)
			if (b[i] != 0xa5)
				FAIL("a write behind a buffer of %lu bytes", room);
		free(b);
	}
	sign_and_verify(session, priv, pub);
}

/* Handles that are none, and those of things that are gone. */
static void stale_handles(void)
{
	static const uintptr_t handles[] = {0, 0xdeadbeef, (uintptr_t)-1, (uintptr_t)1 << 63};
	CK_SESSION_HANDLE s;
	CK_BYTE b[64];
	CK_ULONG n = sizeof b;
	CK_MECHANISM eddsa = {CKM_EDDSA, NULL, 0};

	for (size_t i = 0; i < sizeof handles / sizeof handles[0]; i++) {
		EXPECT(0xb3UL, p11->C_CloseSession(handles[i]));
		EXPECT(0xb3UL, p11->C_SignInit(handles[i], &eddsa, priv));
		EXPECT(0xb3UL, p11->C_Sign(handles[i], b, 1, b, &n));
		EXPECT(0xb3UL, p11->C_FindObjectsInit(handles[i], NULL, 0));
		EXPECT(0x60UL, p11->C_SignInit(session, &eddsa, handles[i]));
		CHECK(p11->C_DestroyObject(session, handles[i]) == CKR_OBJECT_HANDLE_INVALID);
		CHECK(p11->C_OpenSession(handles[i] ? handles[i] : 0xffff, 4, NULL, NULL, &s) == 3);
	}
	OK(p11->C_OpenSession(find_slot(LABEL), 4, NULL, NULL, &s));
	OK(p11->C_CloseSession(s));
	EXPECT(0xb3UL, p11->C_SignInit(s, &eddsa, priv));
}

int main(int argc, char **argv)
{
	module_path = argc > 1 ? argv[1] : getenv("MODULE");
	deadline(120);
	load_module();
	numbers_for_pointers();
	OK(p11->C_Finalize(NULL)); /* C_Initialize(0) was among them */
	OK(p11->C_Initialize(NULL));
	make_token(LABEL);
	session = log_in(LABEL);
	priv = find_key(session, CKO_PRIVATE_KEY);
	pub = find_key(session, CKO_PUBLIC_KEY);

	scenario = "numbers for pointers";
	numbers_for_pointers();
	scenario = "null pointers";
	null_pointers();
	scenario = "lengths";
	lengths();
	parameters();
	scenario = "empty with small pointers";
	empty_with_small_pointers();
	scenario = "small outputs";
	small_outputs();
	scenario = "stale handles";
	stale_handles();
	scenario = "mixtures";
	mixtures();
	scenario = "after the mixtures";
	OK(p11->C_CloseAllSessions(find_slot(LABEL)));
	use_token(LABEL);
	OK(p11->C_Finalize(NULL));
	puts("hostile: ok");
	return 0;
}
