/* What the C host programs share: loading the module, checks that end the
 * program with a clear message, a deadline, and a token with a key. */
#ifndef HOST_H
#define HOST_H
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../cgo/cryptoki.h"

#define CKR_NO_EVENT 0x8UL
#define CKR_CANT_LOCK 0xAUL
#define CKR_CRYPTOKI_ALREADY_INITIALIZED 0x191UL
#define CKR_OBJECT_HANDLE_INVALID 0x82UL
#define CKR_SESSION_HANDLE_INVALID 0xB3UL
#define CKR_OPERATION_NOT_INITIALIZED 0x91UL
#define CKF_TOKEN_INITIALIZED 0x400UL
#define CKF_DONT_BLOCK 1UL
#define CKF_RW_SERIAL 6UL
#define CKU_SO 0UL
#define CKU_USER 1UL
#define CKM_EC_EDWARDS_KEY_PAIR_GEN 0x1055UL
#define CKM_EDDSA 0x1057UL
#define CKM_SHA256 0x250UL
#define CKA_CLASS 0UL
#define CKA_TOKEN 1UL
#define CKA_PRIVATE 2UL
#define CKA_LABEL 3UL
#define CKA_VALUE 0x11UL
#define CKA_ID 0x102UL
#define CKA_SIGN 0x108UL
#define CKA_EC_PARAMS 0x180UL
#define CKA_EC_POINT 0x181UL
#define CKO_PUBLIC_KEY 2UL
#define CKO_PRIVATE_KEY 3UL

#define SO_PIN (CK_BYTE_PTR) "87654321", 8
#define USER_PIN (CK_BYTE_PTR) "123456", 6

static const char *scenario = "";

#define FAIL(...) \
	do { \
		fprintf(stderr, "%s:%d: [%d] %s: ", __FILE__, __LINE__, (int)getpid(), scenario); \
		fprintf(stderr, __VA_ARGS__); \
		fputc('\n', stderr); \
		_exit(1); \
	} while (0)
#define CHECK(cond) \
	do { \
		if (!(cond)) \
			FAIL("false: %s (errno %d)", #cond, errno); \
	} while (0)
#define EXPECT(want, call) \
	do { \
		CK_RV got_ = (call); \
		if (got_ != (want)) \
			FAIL("%s = 0x%lx, not %s", #call, got_, #want); \
	} while (0)
#define OK(call) EXPECT(CKR_OK, call)

static const char *module_path;
static void *module_handle;
static CK_FUNCTION_LIST_3_2 *p11;

static inline void load_module_from(const char *path)
{
	CK_RV (*get)(CK_UTF8CHAR_PTR, CK_VERSION_PTR, CK_INTERFACE_PTR *, CK_FLAGS);
	CK_INTERFACE_PTR itf;

	module_handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!module_handle)
		FAIL("dlopen: %s", dlerror());
	*(void **)&get = dlsym(module_handle, "C_GetInterface");
	CHECK(get);
	OK(get(NULL, NULL, &itf, 0));
	p11 = itf->pFunctionList;
}

static inline void load_module(void)
{
	load_module_from(module_path);
}

/* deadline ends this process with SIGALRM: a hang is a failure. */
static inline void deadline(unsigned seconds)
{
	signal(SIGALRM, SIG_DFL);
	alarm(seconds);
}

/* wait_ok waits for a child, which must have exited with status 0. */
static inline void wait_ok(pid_t pid)
{
	int st;

	CHECK(pid > 0);
	while (waitpid(pid, &st, 0) < 0)
		CHECK(errno == EINTR);
	if (WIFSIGNALED(st))
		FAIL("child %d: killed by signal %d%s", (int)pid, WTERMSIG(st), WTERMSIG(st) == SIGALRM ? " (deadline: it hung)" : "");
	if (WEXITSTATUS(st) != 0)
		FAIL("child %d: exit status %d", (int)pid, WEXITSTATUS(st));
}

static inline int threads_now(void)
{
	char line[256];
	int n = -1;
	FILE *f = fopen("/proc/self/status", "re");

	CHECK(f);
	while (fgets(line, sizeof line, f))
		if (sscanf(line, "Threads: %d", &n) == 1)
			break;
	fclose(f);
	return n;
}

static inline void pad_label(CK_UTF8CHAR out[32], const char *label)
{
	memset(out, ' ', 32);
	memcpy(out, label, strlen(label));
}

/* find_slot finds the slot of the token with this label; NULL: of the first
 * one that is not initialised. */
static inline CK_SLOT_ID find_slot(const char *label)
{
	CK_SLOT_ID slots[64];
	CK_ULONG n = 64;
	CK_TOKEN_INFO ti;
	CK_UTF8CHAR want[32];

	pad_label(want, label ? label : "");
	OK(p11->C_GetSlotList(1, slots, &n));
	for (CK_ULONG i = 0; i < n; i++) {
		OK(p11->C_GetTokenInfo(slots[i], &ti));
		if (label ? memcmp(ti.label, want, 32) == 0 : !(ti.flags & CKF_TOKEN_INITIALIZED))
			return slots[i];
	}
	FAIL("no slot for the token \"%s\" among %lu", label ? label : "(free)", n);
}

/* generate makes a key pair in the session. */
static inline CK_OBJECT_HANDLE generate(CK_SESSION_HANDLE s, CK_BBOOL token, CK_OBJECT_HANDLE *pub)
{
	static CK_BYTE ed25519[] = {0x06, 0x03, 0x2b, 0x65, 0x70};
	CK_BBOOL yes = 1;
	CK_MECHANISM mech = {CKM_EC_EDWARDS_KEY_PAIR_GEN, NULL, 0};
	CK_ATTRIBUTE tpub[] = {{CKA_TOKEN, &token, 1}, {CKA_EC_PARAMS, ed25519, sizeof ed25519}};
	CK_ATTRIBUTE tpriv[] = {{CKA_TOKEN, &token, 1}, {CKA_SIGN, &yes, 1}};
	CK_OBJECT_HANDLE priv;

	OK(p11->C_GenerateKeyPair(s, &mech, tpub, 2, tpriv, 2, pub, &priv));
	return priv;
}

/* make_token makes a token with both PINs and a key pair. The module is
 * initialised before and left logged out. */
static inline void make_token(const char *label)
{
	CK_SLOT_ID slot = find_slot(NULL);
	CK_SESSION_HANDLE s;
	CK_OBJECT_HANDLE pub;
	CK_UTF8CHAR padded[32];

	pad_label(padded, label);
	OK(p11->C_InitToken(slot, SO_PIN, padded));
	OK(p11->C_OpenSession(slot, CKF_RW_SERIAL, NULL, NULL, &s));
	OK(p11->C_Login(s, CKU_SO, SO_PIN));
	OK(p11->C_InitPIN(s, USER_PIN));
	OK(p11->C_Logout(s));
	OK(p11->C_Login(s, CKU_USER, USER_PIN));
	generate(s, 1, &pub);
	OK(p11->C_Logout(s));
	OK(p11->C_CloseSession(s));
}

static inline CK_OBJECT_HANDLE find_key(CK_SESSION_HANDLE s, CK_ULONG class)
{
	CK_ATTRIBUTE t = {CKA_CLASS, &class, sizeof class};
	CK_OBJECT_HANDLE h[2];
	CK_ULONG n;

	OK(p11->C_FindObjectsInit(s, &t, 1));
	OK(p11->C_FindObjects(s, h, 2, &n));
	OK(p11->C_FindObjectsFinal(s));
	if (n < 1)
		FAIL("no key of class %lu", class);
	return h[0];
}

/* log_in opens a session on the token and logs in, where that is not done. */
static inline CK_SESSION_HANDLE log_in(const char *label)
{
	CK_SESSION_HANDLE s;

	OK(p11->C_OpenSession(find_slot(label), CKF_RW_SERIAL, NULL, NULL, &s));
	OK(p11->C_Login(s, CKU_USER, USER_PIN));
	return s;
}

static inline void sign_and_verify(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE priv, CK_OBJECT_HANDLE pub)
{
	static unsigned counter;
	CK_BYTE msg[32] = "message ", sig[64];
	CK_ULONG n = sizeof sig;
	CK_MECHANISM mech = {CKM_EDDSA, NULL, 0};

	snprintf((char *)msg + 8, sizeof msg - 8, "%u %d", __atomic_add_fetch(&counter, 1, __ATOMIC_RELAXED), (int)getpid());
	OK(p11->C_SignInit(s, &mech, priv));
	OK(p11->C_Sign(s, msg, sizeof msg, sig, &n));
	CHECK(n == 64);
	OK(p11->C_VerifyInit(s, &mech, pub));
	OK(p11->C_Verify(s, msg, sizeof msg, sig, n));
}

/* use_token does what an application does, from C_OpenSession to C_CloseSession. */
static inline void use_token(const char *label)
{
	CK_SESSION_HANDLE s = log_in(label);

	sign_and_verify(s, find_key(s, CKO_PRIVATE_KEY), find_key(s, CKO_PUBLIC_KEY));
	OK(p11->C_CloseSession(s));
}

/* Calls a function of the list with ten arguments of one's choice; the System
 * V and AAPCS64 calling conventions let a callee ignore the ones it has not. */
typedef CK_RV (*any_function)(uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t,
	uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t);
#define CALL_ANY(fn, a) \
	((any_function)(void *)(fn))((a)[0], (a)[1], (a)[2], (a)[3], (a)[4], (a)[5], (a)[6], (a)[7], (a)[8], (a)[9])

enum kind { LOCAL, GO, ABSENT, LEGACY };
struct entry {
	enum kind kind;
	const char *name;
	size_t offset; /* in CK_FUNCTION_LIST_3_2 */
};
#define HOST_ENTRY(kind, name, params, pass, ptrs) {kind, #name, offsetof(CK_FUNCTION_LIST_3_2, name)},
static const struct entry entries[] __attribute__((unused)) = {
	CK_FUNCTIONS_2_40(HOST_ENTRY)
	CK_FUNCTIONS_3_0(HOST_ENTRY)
	CK_FUNCTIONS_3_2(HOST_ENTRY)
};
enum { ENTRIES = sizeof entries / sizeof entries[0] };
#define FUNCTION(e) (*(void **)((char *)p11 + (e).offset))

#endif
