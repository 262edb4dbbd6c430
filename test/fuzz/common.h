/* What the fuzzers of the whole module share: random numbers that a seed
 * determines, a log of the calls, buffers whose ends are watched, the handles
 * that were given out, and OpenSSL to check results with. */
#ifndef COMMON_H
#define COMMON_H
#include "../chost/host.h"

#include <fcntl.h>
#include <limits.h>
#include <openssl/evp.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <time.h>

#if defined __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

/* Return codes by name; those that cgo/cryptoki.h and host.h have go before. */
#define CKR_SLOT_ID_INVALID 0x3UL
#define CKR_FUNCTION_FAILED 0x6UL
#define CKR_ATTRIBUTE_READ_ONLY 0x10UL
#define CKR_ATTRIBUTE_SENSITIVE 0x11UL
#define CKR_ATTRIBUTE_TYPE_INVALID 0x12UL
#define CKR_ATTRIBUTE_VALUE_INVALID 0x13UL
#define CKR_ACTION_PROHIBITED 0x1BUL
#define CKR_KEY_HANDLE_INVALID 0x60UL
#define CKR_ENCRYPTED_DATA_LEN_RANGE 0x41UL
#define CKR_AEAD_DECRYPT_FAILED 0x42UL
#define CKR_KEY_TYPE_INCONSISTENT 0x63UL
#define CKR_KEY_NOT_NEEDED 0x64UL
#define CKR_KEY_INDIGESTIBLE 0x67UL
#define CKR_KEY_FUNCTION_NOT_PERMITTED 0x68UL
#define CKR_KEY_UNEXTRACTABLE 0x6AUL
#define CKR_MECHANISM_INVALID 0x70UL
#define CKR_MECHANISM_PARAM_INVALID 0x71UL
#define CKR_OPERATION_ACTIVE 0x90UL
#define CKR_PIN_INCORRECT 0xA0UL
#define CKR_PIN_LEN_RANGE 0xA2UL
#define CKR_SESSION_PARALLEL_NOT_SUPPORTED 0xB4UL
#define CKR_SESSION_READ_ONLY 0xB5UL
#define CKR_SESSION_EXISTS 0xB6UL
#define CKR_SESSION_READ_ONLY_EXISTS 0xB7UL
#define CKR_SESSION_READ_WRITE_SO_EXISTS 0xB8UL
#define CKR_SIGNATURE_INVALID 0xC0UL
#define CKR_SIGNATURE_LEN_RANGE 0xC1UL
#define CKR_TEMPLATE_INCOMPLETE 0xD0UL
#define CKR_TEMPLATE_INCONSISTENT 0xD1UL
#define CKR_TOKEN_NOT_RECOGNIZED 0xE1UL
#define CKR_UNWRAPPING_KEY_HANDLE_INVALID 0xF0UL
#define CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT 0xF2UL
#define CKR_USER_ALREADY_LOGGED_IN 0x100UL
#define CKR_USER_NOT_LOGGED_IN 0x101UL
#define CKR_USER_PIN_NOT_INITIALIZED 0x102UL
#define CKR_USER_TYPE_INVALID 0x103UL
#define CKR_USER_ANOTHER_ALREADY_LOGGED_IN 0x104UL
#define CKR_WRAPPED_KEY_INVALID 0x110UL
#define CKR_WRAPPED_KEY_LEN_RANGE 0x112UL
#define CKR_WRAPPING_KEY_HANDLE_INVALID 0x113UL
#define CKR_WRAPPING_KEY_TYPE_INCONSISTENT 0x115UL
#define CKR_CURVE_NOT_SUPPORTED 0x140UL
#define CKR_DOMAIN_PARAMS_INVALID 0x130UL
#define CKR_SAVED_STATE_INVALID 0x160UL
#define CKR_STATE_UNSAVEABLE 0x180UL
#define CKR_SESSION_ASYNC_NOT_SUPPORTED 0x205UL

#define CODE(name) {CKR_##name, #name}
static const struct { CK_RV code; const char *name; } codes[] = {
	CODE(OK), CODE(SLOT_ID_INVALID), CODE(GENERAL_ERROR), CODE(FUNCTION_FAILED), CODE(ARGUMENTS_BAD), CODE(NO_EVENT),
	CODE(ATTRIBUTE_READ_ONLY), CODE(ATTRIBUTE_SENSITIVE), CODE(ATTRIBUTE_TYPE_INVALID), CODE(ATTRIBUTE_VALUE_INVALID),
	CODE(ACTION_PROHIBITED), CODE(FUNCTION_NOT_PARALLEL), CODE(FUNCTION_NOT_SUPPORTED), CODE(KEY_HANDLE_INVALID), CODE(KEY_NOT_NEEDED),
	CODE(KEY_INDIGESTIBLE), CODE(KEY_FUNCTION_NOT_PERMITTED), CODE(MECHANISM_INVALID), CODE(MECHANISM_PARAM_INVALID),
	CODE(OBJECT_HANDLE_INVALID), CODE(OPERATION_ACTIVE), CODE(OPERATION_NOT_INITIALIZED), CODE(PIN_INCORRECT), CODE(PIN_LEN_RANGE),
	CODE(SESSION_HANDLE_INVALID), CODE(SESSION_PARALLEL_NOT_SUPPORTED), CODE(SESSION_READ_ONLY), CODE(SESSION_EXISTS),
	CODE(SESSION_READ_ONLY_EXISTS), CODE(SESSION_READ_WRITE_SO_EXISTS), CODE(SIGNATURE_INVALID), CODE(SIGNATURE_LEN_RANGE),
	CODE(TEMPLATE_INCOMPLETE), CODE(TEMPLATE_INCONSISTENT), CODE(TOKEN_NOT_RECOGNIZED), CODE(USER_ALREADY_LOGGED_IN),
	CODE(USER_NOT_LOGGED_IN), CODE(USER_PIN_NOT_INITIALIZED), CODE(USER_TYPE_INVALID), CODE(USER_ANOTHER_ALREADY_LOGGED_IN),
	CODE(DOMAIN_PARAMS_INVALID), CODE(CURVE_NOT_SUPPORTED), CODE(BUFFER_TOO_SMALL), CODE(SAVED_STATE_INVALID), CODE(STATE_UNSAVEABLE),
	CODE(CRYPTOKI_NOT_INITIALIZED), CODE(CRYPTOKI_ALREADY_INITIALIZED), CODE(SESSION_ASYNC_NOT_SUPPORTED),
	CODE(ENCRYPTED_DATA_LEN_RANGE), CODE(AEAD_DECRYPT_FAILED), CODE(KEY_TYPE_INCONSISTENT), CODE(KEY_UNEXTRACTABLE),
	CODE(WRAPPED_KEY_INVALID), CODE(WRAPPED_KEY_LEN_RANGE), CODE(WRAPPING_KEY_HANDLE_INVALID), CODE(WRAPPING_KEY_TYPE_INCONSISTENT),
	CODE(UNWRAPPING_KEY_HANDLE_INVALID), CODE(UNWRAPPING_KEY_TYPE_INCONSISTENT),
};

static inline const char *code_name(CK_RV rv)
{
	static __thread char other[4][24];
	static __thread int turn;

	for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++)
		if (codes[i].code == rv)
			return codes[i].name;
	turn = (turn + 1) % 4;
	snprintf(other[turn], sizeof other[0], "0x%lx", rv);
	return other[turn];
}

#define CKA_APPLICATION 0x10UL
#define CKA_UNIQUE_ID 0x4UL
#define CKA_CERTIFICATE_TYPE 0x80UL
#define CKA_TRUSTED 0x86UL
#define CKA_KEY_TYPE 0x100UL
#define CKA_SUBJECT 0x101UL
#define CKA_SENSITIVE 0x103UL
#define CKA_ENCRYPT 0x104UL
#define CKA_DECRYPT 0x105UL
#define CKA_WRAP 0x106UL
#define CKA_UNWRAP 0x107UL
#define CKA_VERIFY 0x10AUL
#define CKA_PRIME 0x130UL
#define CKA_VALUE_LEN 0x161UL
#define CKA_EXTRACTABLE 0x162UL
#define CKA_MODIFIABLE 0x170UL
#define CKA_COPYABLE 0x171UL
#define CKA_DESTROYABLE 0x172UL
#define CKA_ALWAYS_AUTHENTICATE 0x202UL
#define CKO_DATA 0UL
#define CKO_CERTIFICATE 1UL
#define CKO_SECRET_KEY 4UL
#define CKO_PROFILE 9UL
#define CKK_EC_EDWARDS 0x40UL
#define CKK_GENERIC_SECRET 0x10UL
#define CKK_AES 0x1FUL
#define CKM_SHA256_HMAC 0x251UL
#define CKM_AES_KEY_GEN 0x1080UL
#define CKM_AES_CBC_PAD 0x1085UL
#define CKM_AES_GCM 0x1087UL
#define CKM_AES_KEY_WRAP_KWP 0x210BUL
#define CKU_CONTEXT_SPECIFIC 2UL
#define CKF_RW 2UL
#define CKF_SERIAL 4UL
#define CKF_ASYNC 8UL

/* ---- random numbers ---- */

static __thread uint64_t random_state;

static inline uint64_t mix(uint64_t z)
{
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static inline uint64_t next_random(void)
{
	return mix(random_state += 0x9e3779b97f4a7c15); /* SplitMix64 */
}

/* pick gives a number below n. */
static inline unsigned pick(unsigned n)
{
	return (unsigned)(next_random() >> 33) % n;
}

/* chance is true once in n times. */
static inline bool chance(unsigned n)
{
	return pick(n) == 0;
}

/* ---- the log ---- */

static int log_fd = -1;
static __thread char log_line[1024];
static __thread size_t log_length;

/* say adds to the line of the call that is about to be made. */
__attribute__((format(printf, 1, 2))) static inline void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	int n = vsnprintf(log_line + log_length, sizeof log_line - log_length, format, args);
	va_end(args);
	log_length += (size_t)n;
	if (log_length >= sizeof log_line)
		log_length = sizeof log_line - 1;
}

/* flush_line writes the line down: before the call, which may end the process. */
static inline void flush_line(void)
{
	if (log_fd >= 0 && log_length && write(log_fd, log_line, log_length) < 0)
		log_fd = -1;
	log_length = 0;
}

static void give_up(void) __attribute__((noreturn));

#define BROKEN(...) \
	do { \
		flush_line(); \
		fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
		fprintf(stderr, __VA_ARGS__); \
		fputc('\n', stderr); \
		give_up(); \
	} while (0)
#define RULE(cond, ...) \
	do { \
		if (!(cond)) \
			BROKEN(__VA_ARGS__); \
	} while (0)

/* ---- buffers ---- */

enum { CANARY = 16 };

/* room_for gives a buffer of n bytes with an end that is watched: by the
 * address sanitizer, and by what let_go finds behind it. */
static inline CK_BYTE *room_for(size_t n)
{
	CK_BYTE *p = malloc(n + CANARY);

	memset(p, 0xa5, n + CANARY);
	ASAN_POISON_MEMORY_REGION(p + n, CANARY);
	return p;
}

static inline void let_go(CK_BYTE *p, size_t n)
{
	ASAN_UNPOISON_MEMORY_REGION(p + n, CANARY);
	for (size_t i = n; i < n + CANARY; i++)
		RULE(p[i] == 0xa5, "a write behind a buffer of %zu bytes", n);
	free(p);
}

/* untouched tells whether nothing was written to a buffer of room_for. */
static inline bool untouched(const CK_BYTE *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (p[i] != 0xa5)
			return false;
	return true;
}

/* copy_of gives the n bytes at p in an allocation of just that size. */
static inline void *copy_of(const void *p, size_t n)
{
	void *c = malloc(n ? n : 1);

	if (n)
		memcpy(c, p, n);
	return c;
}

struct bytes {
	CK_BYTE *p;
	size_t n;
};

static inline void append(struct bytes *b, const CK_BYTE *p, size_t n)
{
	b->p = realloc(b->p, b->n + n + 1);
	if (n)
		memcpy(b->p + b->n, p, n);
	b->n += n;
}

static inline void clear(struct bytes *b)
{
	free(b->p);
	*b = (struct bytes){0};
}

/* ---- templates ---- */

enum { MOST_ATTRIBUTES = 24 };
struct template {
	CK_ATTRIBUTE a[MOST_ATTRIBUTES];
	CK_ULONG n;
};

static inline void add(struct template *t, CK_ATTRIBUTE_TYPE type, const void *value, size_t n)
{
	if (t->n == MOST_ATTRIBUTES)
		abort();
	t->a[t->n++] = (CK_ATTRIBUTE){type, copy_of(value, n), n};
}

static inline void add_ulong(struct template *t, CK_ATTRIBUTE_TYPE type, CK_ULONG value)
{
	add(t, type, &value, sizeof value);
}

static inline void add_bool(struct template *t, CK_ATTRIBUTE_TYPE type, bool value)
{
	CK_BBOOL b = value;

	add(t, type, &b, 1);
}

/* drop_first takes the first attribute off a template. */
static inline void drop_first(struct template *t)
{
	free(t->a[0].pValue);
	memmove(&t->a[0], &t->a[1], --t->n * sizeof t->a[0]);
}

static inline void free_template(struct template *t)
{
	for (CK_ULONG i = 0; i < t->n; i++)
		free(t->a[i].pValue);
	t->n = 0;
}

/* ---- handles ---- */

/* No session or object handle is ever given out twice in a process. */
static pthread_mutex_t handles_lock = PTHREAD_MUTEX_INITIALIZER;
static CK_ULONG *handles;
static size_t handles_used, handles_room;

static inline size_t handle_slot(CK_ULONG h)
{
	size_t i = mix(h) & (handles_room - 1);

	while (handles[i] && handles[i] != h)
		i = (i + 1) & (handles_room - 1);
	return i;
}

/* new_handle records a handle that was given out, which must be a new one. */
static inline void new_handle(CK_ULONG h)
{
	pthread_mutex_lock(&handles_lock);
	if (handles_used * 2 >= handles_room) {
		CK_ULONG *old = handles;
		size_t n = handles_room;
		handles_room = n ? 2 * n : 1024;
		handles = calloc(handles_room, sizeof *handles);
		for (size_t i = 0; i < n; i++)
			if (old[i])
				handles[handle_slot(old[i])] = old[i];
		free(old);
	}
	RULE(h != 0, "a handle of 0 was given out (section 3.2: CK_INVALID_HANDLE)");
	size_t i = handle_slot(h);
	RULE(!handles[i], "handle %lu was given out a second time", h);
	handles[i] = h;
	handles_used++;
	pthread_mutex_unlock(&handles_lock);
}

/* ---- what OpenSSL says ---- */

static const struct { CK_MECHANISM_TYPE type; const char *name; size_t size; } hashes[] = {
	{0x220, "SHA1", 20}, {0x250, "SHA256", 32}, {0x255, "SHA224", 28}, {0x260, "SHA384", 48}, {0x270, "SHA512", 64},
	{0x48, "SHA512-224", 28}, {0x4c, "SHA512-256", 32}, {0x2b0, "SHA3-256", 32}, {0x2b5, "SHA3-224", 28},
	{0x2c0, "SHA3-384", 48}, {0x2d0, "SHA3-512", 64},
};
enum { HASHES = sizeof hashes / sizeof hashes[0] };

static inline void openssl_digest(int hash, struct bytes in, CK_BYTE out[64])
{
	EVP_MD *md = EVP_MD_fetch(NULL, hashes[hash].name, NULL);

	CHECK(md && EVP_Digest(in.p ? in.p : (CK_BYTE *)"", in.n, out, NULL, md, NULL) == 1);
	EVP_MD_free(md);
}

static inline bool openssl_verify(const CK_BYTE pub[32], struct bytes m, const CK_BYTE *sig)
{
	EVP_PKEY *key = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, pub, 32);
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	bool ok = key && EVP_DigestVerifyInit(ctx, NULL, NULL, NULL, key) == 1 &&
	          EVP_DigestVerify(ctx, sig, 64, m.p ? m.p : (CK_BYTE *)"", m.n) == 1;

	EVP_MD_CTX_free(ctx);
	EVP_PKEY_free(key);
	return ok;
}

static inline void openssl_public(const CK_BYTE seed[32], CK_BYTE pub[32])
{
	EVP_PKEY *key = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, seed, 32);
	size_t n = 32;

	CHECK(key && EVP_PKEY_get_raw_public_key(key, pub, &n) == 1);
	EVP_PKEY_free(key);
}

/* ---- configuration ---- */

/* new_store points the module at an empty store in dir, with the TPM at device. */
static inline void new_store(const char *dir, const char *device, unsigned auto_lock)
{
	static char name[PATH_MAX];

	snprintf(name, sizeof name, "%s/store", dir);
	CHECK(mkdir(name, 0700) == 0);
	snprintf(name, sizeof name, "%s/icn-p11.conf", dir);
	FILE *f = fopen(name, "we");
	CHECK(f);
	fprintf(f, "device_path = \"%s\"\nsealed_blob_dir = \"%s/store\"\nlog_file = \"%s/module.log\"\nauto_lock_timeout_secs = %u\n",
		device, dir, dir, auto_lock);
	CHECK(fclose(f) == 0 && setenv("ICN_P11_CONF", name, 1) == 0);
}

#endif
