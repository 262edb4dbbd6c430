/*
 * The measuring half of make bench: a program that uses PKCS#11 modules as
 * applications do, by dlopen and the function list, and writes what it measures
 * as lines of JSON to standard output. bench/ prepares tokens, starts it, and
 * makes a report of what it writes. Times are in nanoseconds.
 *
 *   host setup SUBJECT OBJECTS     make the token, a key pair, and public keys
 *   host objects SUBJECT N         make N more public keys, a line each
 *   host steady ROUNDS MS SUBJECT...
 *                                  in each round, each operation of each subject
 *                                  in turn, for MS milliseconds at a time; only
 *                                  BENCH_OPERATION where the environment has it
 *   host cold SUBJECT LABEL        from dlopen to the first search, for that label;
 *                                  if it is empty, to C_GetSlotList
 *   host pauses MS                 how often, and for how long, a loop that does
 *                                  nothing is interrupted
 *   host rate SUBJECT MS           sign; wait for a line on standard input first
 *   host once SUBJECT              start, log in, sign
 *   host logins SUBJECT N          log in and out N times: what each login takes, and
 *                                  for how many pages the kernel was needed
 *   host steps SUBJECT             one operation after the other: a line with the
 *                                  name of each comes when the one before is done,
 *                                  and a line on standard input starts it
 *
 * SUBJECT is NAME|MODULE|KEY|LABEL|PIN, where KEY is ed25519 or p256, and LABEL
 * that of the token. Of the library of reference points it is
 * NAME|LIBRARY|reference|FUNCTION|OPERATIONS, the names of operations with a comma
 * before and after each.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "../../cgo/cryptoki.h"

#define CKR_CRYPTOKI_ALREADY_INITIALIZED 0x191UL
#define CKF_OS_LOCKING_OK 0x2UL
#define CKF_RW_SERIAL 0x6UL
#define CKF_TOKEN_INITIALIZED 0x400UL
#define CKF_SIGN 0x800UL
#define CKU_SO 0UL
#define CKU_USER 1UL
#define CKO_PUBLIC_KEY 2UL
#define CKO_PRIVATE_KEY 3UL
#define CKK_EC 3UL
#define CKK_EC_EDWARDS 0x40UL
#define CKA_CLASS 0x0UL
#define CKA_TOKEN 0x1UL
#define CKA_PRIVATE 0x2UL
#define CKA_LABEL 0x3UL
#define CKA_KEY_TYPE 0x100UL
#define CKA_ID 0x102UL
#define CKA_SIGN 0x108UL
#define CKA_VERIFY 0x10aUL
#define CKA_EC_PARAMS 0x180UL
#define CKA_EC_POINT 0x181UL
#define CKM_SHA256 0x250UL
#define CKM_EC_KEY_PAIR_GEN 0x1040UL
#define CKM_ECDSA 0x1041UL
#define CKM_EC_EDWARDS_KEY_PAIR_GEN 0x1055UL
#define CKM_EDDSA 0x1057UL

#define FAIL(...) (fprintf(stderr, "host: " __VA_ARGS__), fputc('\n', stderr), exit(1))
#define OK(s, call) \
	do { \
		CK_RV rv_ = (call); \
		if (rv_ != CKR_OK) \
			FAIL("%s: %s: 0x%lx", (s)->name, #call, rv_); \
	} while (0)

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Resident memory of this process, in bytes: the counters of /proc/self/statm lag. */
static uint64_t rss(void)
{
	char line[256];
	unsigned long kib = 0;
	FILE *f = fopen("/proc/self/smaps_rollup", "re");

	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "Rss: %lu kB", &kib) == 1)
			break;
	if (f)
		fclose(f);
	return (uint64_t)kib << 10;
}

/* ---- subjects ---- */

/* A reference makes n operations on a message of a size and writes what each took. */
typedef int (*reference_function)(unsigned long size, unsigned long n, uint64_t *took);

struct subject {
	const char *name, *module, *key, *label, *pin;
	reference_function reference; /* NULL: a module */
	CK_FUNCTION_LIST *p11;
	CK_SLOT_ID slot;
	CK_SESSION_HANDLE session; /* keeps the login */
	CK_OBJECT_HANDLE priv, pub;
};

static bool ed25519(const struct subject *s) { return strcmp(s->key, "ed25519") == 0; }
static CK_MECHANISM_TYPE signing(const struct subject *s) { return ed25519(s) ? CKM_EDDSA : CKM_ECDSA; }

static struct subject parse(char *spec)
{
	struct subject s = {0};
	const char **field[] = {&s.name, &s.module, &s.key, &s.label, &s.pin};

	for (size_t i = 0; i < sizeof field / sizeof *field; i++) {
		*field[i] = strsep(&spec, "|");
		if (!*field[i])
			FAIL("a subject is NAME|MODULE|KEY|LABEL|PIN");
	}
	return s;
}

static void load(struct subject *s)
{
	CK_RV (*get)(CK_FUNCTION_LIST **);
	void *handle = dlopen(s->module, RTLD_NOW | RTLD_LOCAL);

	if (!handle)
		FAIL("%s", dlerror());
	if (strcmp(s->key, "reference") == 0) {
		*(void **)&s->reference = dlsym(handle, s->label);
		if (!s->reference)
			FAIL("%s", dlerror());
		return;
	}
	*(void **)&get = dlsym(handle, "C_GetFunctionList");
	if (!get)
		FAIL("%s", dlerror());
	OK(s, get(&s->p11));
}

static void initialize(struct subject *s)
{
	CK_C_INITIALIZE_ARGS args = {.flags = CKF_OS_LOCKING_OK};
	CK_RV rv = s->p11->C_Initialize(&args);

	if (rv != CKR_OK && rv != CKR_CRYPTOKI_ALREADY_INITIALIZED)
		FAIL("%s: C_Initialize: 0x%lx", s->name, rv);
}

static void pad(CK_UTF8CHAR out[32], const char *label)
{
	memset(out, ' ', 32);
	memcpy(out, label, strnlen(label, 32));
}

/* find_slot finds a token by its label; NULL: the first that is not initialised. */
static bool find_slot(struct subject *s, const char *label)
{
	CK_SLOT_ID slots[64];
	CK_ULONG n = 0;
	CK_TOKEN_INFO info;
	CK_UTF8CHAR want[32];

	pad(want, label ? label : "");
	OK(s, s->p11->C_GetSlotList(1, NULL, &n));
	if (n > 64)
		FAIL("%s: %lu slots", s->name, n);
	OK(s, s->p11->C_GetSlotList(1, slots, &n));
	for (CK_ULONG i = 0; i < n; i++) {
		if (s->p11->C_GetTokenInfo(slots[i], &info) != CKR_OK)
			continue;
		if (label ? memcmp(info.label, want, 32) == 0 : !(info.flags & CKF_TOKEN_INITIALIZED)) {
			s->slot = slots[i];
			return true;
		}
	}
	return false;
}

static CK_SESSION_HANDLE open_session(struct subject *s)
{
	CK_SESSION_HANDLE h;

	OK(s, s->p11->C_OpenSession(s->slot, CKF_RW_SERIAL, NULL, NULL, &h));
	return h;
}

static CK_ULONG find(struct subject *s, CK_SESSION_HANDLE session, CK_ATTRIBUTE *t, CK_ULONG n, CK_OBJECT_HANDLE *first)
{
	CK_OBJECT_HANDLE h[256];
	CK_ULONG found, total = 0;

	OK(s, s->p11->C_FindObjectsInit(session, t, n));
	do {
		OK(s, s->p11->C_FindObjects(session, h, 256, &found));
		if (total == 0 && found > 0 && first)
			*first = h[0];
		total += found;
	} while (found == 256);
	OK(s, s->p11->C_FindObjectsFinal(session));
	return total;
}

static void find_keys(struct subject *s)
{
	CK_ULONG class = CKO_PRIVATE_KEY;
	char label[] = "bench key";
	CK_ATTRIBUTE t[] = {{CKA_CLASS, &class, sizeof class}, {CKA_LABEL, label, strlen(label)}};

	if (find(s, s->session, t, 2, &s->priv) != 1)
		FAIL("%s: not one private key", s->name);
	class = CKO_PUBLIC_KEY;
	if (find(s, s->session, t, 2, &s->pub) != 1)
		FAIL("%s: not one public key", s->name);
}

/* start has a token ready for signatures. */
static void start(struct subject *s)
{
	initialize(s);
	if (!find_slot(s, s->label))
		FAIL("%s: no token \"%s\"", s->name, s->label);
	s->session = open_session(s);
	OK(s, s->p11->C_Login(s->session, CKU_USER, (CK_UTF8CHAR *)s->pin, strlen(s->pin)));
	find_keys(s);
}

/* ---- operations: what is timed, and what goes before it ---- */

enum { MIB = 1 << 20, MESSAGE = MIB };
static CK_BYTE message[MESSAGE];

struct worker {
	struct subject *s;
	CK_SESSION_HANDLE session;
	CK_BYTE sig[128];
	CK_ULONG sig_len;
};

static CK_RV sign(struct worker *w, CK_ULONG size)
{
	CK_MECHANISM m = {signing(w->s), NULL, 0};
	CK_RV rv = w->s->p11->C_SignInit(w->session, &m, w->s->priv);

	w->sig_len = sizeof w->sig;
	return rv ? rv : w->s->p11->C_Sign(w->session, message, size, w->sig, &w->sig_len);
}
static CK_RV sign_short(struct worker *w) { return sign(w, 32); }
static CK_RV sign_long(struct worker *w) { return sign(w, MIB); }

static CK_RV verify(struct worker *w)
{
	CK_MECHANISM m = {signing(w->s), NULL, 0};
	CK_RV rv = w->sig_len ? CKR_OK : sign(w, 32);

	rv = rv ? rv : w->s->p11->C_VerifyInit(w->session, &m, w->s->pub);
	return rv ? rv : w->s->p11->C_Verify(w->session, message, 32, w->sig, w->sig_len);
}

static CK_RV digest(struct worker *w, CK_ULONG size)
{
	CK_MECHANISM m = {CKM_SHA256, NULL, 0};
	CK_BYTE out[32];
	CK_ULONG n = sizeof out;
	CK_RV rv = w->s->p11->C_DigestInit(w->session, &m);

	return rv ? rv : w->s->p11->C_Digest(w->session, message, size, out, &n);
}
static CK_RV digest_short(struct worker *w) { return digest(w, 32); }
static CK_RV digest_long(struct worker *w) { return digest(w, MIB); }

static CK_RV draw(struct worker *w)
{
	CK_BYTE out[32];

	return w->s->p11->C_GenerateRandom(w->session, out, sizeof out);
}

static CK_RV open_and_close(struct worker *w)
{
	CK_SESSION_HANDLE h;
	CK_RV rv = w->s->p11->C_OpenSession(w->s->slot, CKF_RW_SERIAL, NULL, NULL, &h);

	return rv ? rv : w->s->p11->C_CloseSession(h);
}

static CK_RV read_attributes(struct worker *w)
{
	CK_ULONG class, type;
	CK_BYTE id[64], label[64], point[128];
	CK_ATTRIBUTE t[] = {{CKA_CLASS, &class, sizeof class}, {CKA_KEY_TYPE, &type, sizeof type}, {CKA_ID, id, sizeof id},
		{CKA_LABEL, label, sizeof label}, {CKA_EC_POINT, point, sizeof point}};

	return w->s->p11->C_GetAttributeValue(w->session, w->s->pub, t, 5);
}

static CK_RV find_one(struct worker *w)
{
	CK_ULONG class = CKO_PUBLIC_KEY;
	char label[] = "bench key";
	CK_ATTRIBUTE t[] = {{CKA_CLASS, &class, sizeof class}, {CKA_LABEL, label, strlen(label)}};

	find(w->s, w->session, t, 2, NULL);
	return CKR_OK;
}

static CK_RV generate_key(struct worker *w, CK_BBOOL token, char *label, CK_OBJECT_HANDLE *pub, CK_OBJECT_HANDLE *priv)
{
	static CK_BYTE edwards[] = {0x06, 0x03, 0x2b, 0x65, 0x70};
	/* SoftHSM 2.6 knows the curve by its name only. */
	static CK_BYTE name[] = {0x13, 0x0c, 'e', 'd', 'w', 'a', 'r', 'd', 's', '2', '5', '5', '1', '9'};
	static CK_BYTE p256[] = {0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07};
	bool ed = ed25519(w->s), named = strstr(w->s->module, "softhsm") != NULL;
	CK_BBOOL yes = 1;
	CK_MECHANISM m = {ed ? CKM_EC_EDWARDS_KEY_PAIR_GEN : CKM_EC_KEY_PAIR_GEN, NULL, 0};
	CK_ATTRIBUTE params = {CKA_EC_PARAMS, p256, sizeof p256};
	if (ed && named)
		params = (CK_ATTRIBUTE){CKA_EC_PARAMS, name, sizeof name};
	else if (ed)
		params = (CK_ATTRIBUTE){CKA_EC_PARAMS, edwards, sizeof edwards};
	CK_ATTRIBUTE tpub[] = {{CKA_TOKEN, &token, 1}, {CKA_LABEL, label, strlen(label)}, {CKA_ID, label, strlen(label)},
		{CKA_VERIFY, &yes, 1}, params};
	CK_ATTRIBUTE tpriv[] = {{CKA_TOKEN, &token, 1}, {CKA_LABEL, label, strlen(label)}, {CKA_ID, label, strlen(label)},
		{CKA_SIGN, &yes, 1}};

	return w->s->p11->C_GenerateKeyPair(w->session, &m, tpub, 5, tpriv, 4, pub, priv);
}

static CK_OBJECT_HANDLE made_pub, made_priv;
static CK_RV generate_session(struct worker *w) { return generate_key(w, 0, "made", &made_pub, &made_priv); }
static CK_RV generate_token(struct worker *w) { return generate_key(w, 1, "made", &made_pub, &made_priv); }
static void destroy_made(struct worker *w)
{
	OK(w->s, w->s->p11->C_DestroyObject(w->session, made_priv));
	OK(w->s, w->s->p11->C_DestroyObject(w->session, made_pub));
}

static CK_RV create_public(struct worker *w, const char *label, CK_OBJECT_HANDLE *h)
{
	static CK_BYTE params[] = {0x13, 0x0c, 'e', 'd', 'w', 'a', 'r', 'd', 's', '2', '5', '5', '1', '9'};
	/* The generator of the curve (RFC 8032, section 5.1), in an OCTET STRING. */
	CK_BYTE point[34];
	CK_ULONG class = CKO_PUBLIC_KEY, type = CKK_EC_EDWARDS;
	CK_BBOOL yes = 1, no = 0;
	CK_ATTRIBUTE t[] = {{CKA_CLASS, &class, sizeof class}, {CKA_KEY_TYPE, &type, sizeof type}, {CKA_TOKEN, &yes, 1},
		{CKA_PRIVATE, &no, 1}, {CKA_LABEL, (void *)label, strlen(label)}, {CKA_ID, (void *)label, strlen(label)},
		{CKA_EC_PARAMS, params, sizeof params}, {CKA_EC_POINT, point, sizeof point}};

	memset(point, 0x66, sizeof point);
	point[0] = 0x04, point[1] = 0x20, point[2] = 0x58;
	return w->s->p11->C_CreateObject(w->session, t, 8, h);
}
static CK_RV create_object(struct worker *w) { return create_public(w, "made", &made_pub); }
static void destroy_object(struct worker *w) { OK(w->s, w->s->p11->C_DestroyObject(w->session, made_pub)); }

static CK_RV log_in(struct worker *w)
{
	return w->s->p11->C_Login(w->session, CKU_USER, (CK_UTF8CHAR *)w->s->pin, strlen(w->s->pin));
}
static void log_out(struct worker *w) { OK(w->s, w->s->p11->C_Logout(w->session)); }

static const struct operation {
	const char *name;
	CK_RV (*run)(struct worker *);
	void (*before)(struct worker *), (*after)(struct worker *); /* not timed */
	int threads;
	CK_ULONG size; /* of the message */
} operations[] = {
	{"sign-32", sign_short, NULL, NULL, 1, 32},
	{"sign-32-threads-2", sign_short, NULL, NULL, 2, 32},
	{"sign-32-threads-8", sign_short, NULL, NULL, 8, 32},
	{"sign-1MiB", sign_long, NULL, NULL, 1, MIB},
	{"sign-1MiB-threads-2", sign_long, NULL, NULL, 2, MIB},
	{"sign-1MiB-threads-8", sign_long, NULL, NULL, 8, MIB},
	{"verify-32", verify, NULL, NULL, 1, 32},
	{"digest-32", digest_short, NULL, NULL, 1, 32},
	{"digest-1MiB", digest_long, NULL, NULL, 1, MIB},
	{"random-32", draw, NULL, NULL, 1, 32},
	{"session", open_and_close, NULL, NULL, 1, 0},
	{"attributes", read_attributes, NULL, NULL, 1, 0},
	{"find", find_one, NULL, NULL, 1, 0},
	{"generate-session", generate_session, NULL, destroy_made, 1, 0},
	{"generate-token", generate_token, NULL, destroy_made, 1, 0},
	{"create", create_object, NULL, destroy_object, 1, 32},
	{"login", log_in, log_out, NULL, 1, 0}, /* last: it takes the handles of private objects away */
};
enum { OPERATIONS = sizeof operations / sizeof *operations };

/* ---- batches ---- */

enum { SAMPLES = 1 << 20, THREADS = 8 };

struct batch {
	struct worker w;
	const struct operation *op;
	uint64_t budget; /* ns */
	uint64_t *took;
	size_t n;
	CK_RV rv;
	pthread_barrier_t *ready;
	uint64_t begin, end;
};

/* run_batch repeats an operation while the time lasts, and at least three times. */
static void *run_batch(void *arg)
{
	struct batch *b = arg;
	const struct operation *op = b->op;

	pthread_barrier_wait(b->ready);
	b->begin = now();
	for (b->n = 0; b->n < SAMPLES && (b->n < 3 || now() - b->begin < b->budget); b->n++) {
		if (op->before)
			op->before(&b->w);
		uint64_t from = now();
		b->rv = op->run(&b->w);
		b->took[b->n] = now() - from;
		if (b->rv != CKR_OK)
			break;
		if (op->after)
			op->after(&b->w);
	}
	b->end = now();
	return NULL;
}

/* run_reference is run_batch for a reference, which takes its own times. */
static void *run_reference(void *arg)
{
	struct batch *b = arg;
	enum { CHUNK = 16 };

	pthread_barrier_wait(b->ready);
	b->begin = now();
	for (b->n = 0; b->n + CHUNK <= SAMPLES && (b->n == 0 || now() - b->begin < b->budget);) {
		int chunk = b->op->size > 4096 ? 1 : CHUNK;
		if (b->w.s->reference(b->op->size, (unsigned long)chunk, b->took + b->n) != 0) {
			b->rv = 1;
			break;
		}
		b->n += (size_t)chunk;
	}
	b->end = now();
	return NULL;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* measure runs one operation of one subject on its threads, and prints
 * percentiles of single operations and the rate of all threads together. */
static void measure(struct subject *s, const struct operation *op, int round, uint64_t budget)
{
	static struct batch batches[THREADS];
	static uint64_t *took[THREADS], *all;
	pthread_t threads[THREADS];
	pthread_barrier_t ready;
	uint64_t begin = UINT64_MAX, end = 0;
	size_t n = 0;

	pthread_barrier_init(&ready, NULL, (unsigned)op->threads);
	for (int i = 0; i < op->threads; i++) {
		if (!took[i] && !(took[i] = malloc(SAMPLES * sizeof **took)))
			FAIL("no memory");
		batches[i] = (struct batch){.w = {.s = s}, .op = op, .budget = budget, .took = took[i], .ready = &ready};
		if (!s->reference)
			batches[i].w.session = open_session(s);
	}
	for (int i = 1; i < op->threads; i++)
		if (pthread_create(&threads[i], NULL, s->reference ? run_reference : run_batch, &batches[i]) != 0)
			FAIL("no thread");
	(s->reference ? run_reference : run_batch)(&batches[0]);
	for (int i = 1; i < op->threads; i++)
		pthread_join(threads[i], NULL);
	pthread_barrier_destroy(&ready);

	if (!all && !(all = malloc(THREADS * SAMPLES * sizeof *all)))
		FAIL("no memory");
	for (int i = 0; i < op->threads; i++) {
		struct batch *b = &batches[i];
		if (!s->reference)
			OK(s, s->p11->C_CloseSession(b->w.session));
		if (b->rv != CKR_OK) {
			printf("{\"operation\":\"%s\",\"subject\":\"%s\",\"rv\":%lu}\n", op->name, s->name, b->rv);
			return;
		}
		memcpy(all + n, b->took, b->n * sizeof *all);
		n += b->n;
		begin = b->begin < begin ? b->begin : begin;
		end = b->end > end ? b->end : end;
	}
	qsort(all, n, sizeof *all, by_value);
	printf("{\"operation\":\"%s\",\"subject\":\"%s\",\"round\":%d,\"n\":%zu,\"p10\":%lu,\"p50\":%lu,\"p99\":%lu,\"rate\":%.3f}\n",
		op->name, s->name, round, n, all[n / 10], all[n / 2], all[n - 1 - (n - 1) / 100], (double)n * 1e9 / (double)(end - begin));
}

/* ---- the commands ---- */

/* takes_part tells whether a subject has an operation: CKM_ECDSA signs a hash,
 * so that no long message is for it. */
static bool takes_part(const struct subject *s, const struct operation *op)
{
	char name[64];

	snprintf(name, sizeof name, ",%s,", op->name);
	if (s->reference)
		return strstr(s->pin, name) != NULL;
	return op->run != sign_long || ed25519(s);
}

static int steady(int argc, char **argv)
{
	enum { MAX = 16 };
	struct subject s[MAX];
	int n = argc - 2;
	int rounds = argc < 3 ? 0 : atoi(argv[0]);
	uint64_t budget = argc < 3 ? 0 : strtoull(argv[1], NULL, 10) * 1000000;

	const char *only = getenv("BENCH_OPERATION");

	if (n < 1 || n > MAX || rounds < 1)
		FAIL("steady ROUNDS MS SUBJECT...");
	for (int i = 0; i < n; i++) {
		s[i] = parse(argv[2 + i]);
		load(&s[i]);
		if (!s[i].reference)
			start(&s[i]);
	}
	for (int round = 0; round < rounds; round++)
		for (int o = 0; o < OPERATIONS; o++)
			for (int i = 0; i < n; i++) {
				if (!takes_part(&s[i], &operations[o]) || (only && strcmp(only, operations[o].name) != 0))
					continue;
				measure(&s[i], &operations[o], round, budget);
				if (operations[o].run == log_in && !s[i].reference)
					find_keys(&s[i]);
				fflush(stdout);
			}
	return 0;
}

static int setup(int argc, char **argv)
{
	if (argc != 2)
		FAIL("setup SUBJECT OBJECTS");
	struct subject s = parse(argv[0]);
	struct worker w = {.s = &s};
	CK_UTF8CHAR label[32];
	CK_OBJECT_HANDLE h;
	CK_MECHANISM_INFO info;
	char so[] = "so-pin-4711";

	load(&s);
	initialize(&s);
	if (!find_slot(&s, NULL))
		FAIL("%s: no free slot", s.name);
	pad(label, s.label);
	OK(&s, s.p11->C_InitToken(s.slot, (CK_UTF8CHAR *)so, strlen(so), label));
	if (!find_slot(&s, s.label))
		FAIL("%s: the new token is not there", s.name);
	/* The caller asks first: what a module has is no reason to fail. */
	bool can = s.p11->C_GetMechanismInfo(s.slot, signing(&s), &info) == CKR_OK && info.flags & CKF_SIGN;
	printf("{\"setup\":\"%s\",\"can\":%s}\n", s.name, can ? "true" : "false");
	if (!can)
		return 0;
	w.session = open_session(&s);
	OK(&s, s.p11->C_Login(w.session, CKU_SO, (CK_UTF8CHAR *)so, strlen(so)));
	OK(&s, s.p11->C_InitPIN(w.session, (CK_UTF8CHAR *)s.pin, strlen(s.pin)));
	OK(&s, s.p11->C_Logout(w.session));
	OK(&s, log_in(&w));
	OK(&s, generate_key(&w, 1, "bench key", &h, &h));
	for (int i = 0, n = atoi(argv[1]); i < n; i++) {
		char name[32];
		snprintf(name, sizeof name, "object %06d", i);
		OK(&s, create_public(&w, name, &h));
	}
	OK(&s, s.p11->C_Finalize(NULL));
	return 0;
}

static int objects(int argc, char **argv)
{
	if (argc != 2)
		FAIL("objects SUBJECT N");
	struct subject s = parse(argv[0]);
	CK_OBJECT_HANDLE h;

	load(&s);
	start(&s);
	struct worker w = {.s = &s, .session = s.session};
	for (int i = 0, n = atoi(argv[1]); i < n; i++)
		OK(&s, create_public(&w, "one more", &h));
	OK(&s, s.p11->C_Finalize(NULL));
	return 0;
}

static int cold(int argc, char **argv)
{
	if (argc != 2)
		FAIL("cold SUBJECT LABEL");
	struct subject s = parse(argv[0]);
	CK_ATTRIBUTE t = {CKA_LABEL, argv[1], strlen(argv[1])};
	enum { WARM = 51 };
	uint64_t memory = rss(), begin = now(), mark, loaded, ready, first, warm[WARM];
	CK_ULONG slots = 0, all;

	load(&s);
	loaded = now() - begin;
	uint64_t memory_loaded = rss();
	/* To look at the memory is no part of the start. */
	begin = now() - loaded;
	initialize(&s);
	OK(&s, s.p11->C_GetSlotList(1, NULL, &slots));
	ready = now() - begin;
	uint64_t memory_ready = rss();
	if (!argv[1][0]) {
		printf("{\"subject\":\"%s\",\"dlopen\":%lu,\"ready\":%lu,\"rss_before\":%lu,\"rss_loaded\":%lu,\"rss_ready\":%lu}\n",
			s.name, loaded, ready, memory, memory_loaded, memory_ready);
		return 0;
	}
	begin = now() - ready;
	if (!find_slot(&s, s.label))
		FAIL("%s: no token \"%s\"", s.name, s.label);
	s.session = open_session(&s);
	if (find(&s, s.session, &t, 1, NULL) != 1)
		FAIL("%s: \"%s\" is not found once", s.name, argv[1]);
	first = now() - begin;
	uint64_t memory_found = rss();
	uint64_t again = now();
	int n = 0;
	while (n < WARM && (n < 3 || now() - again < 300000000)) {
		mark = now();
		find(&s, s.session, &t, 1, NULL);
		warm[n++] = now() - mark;
	}
	qsort(warm, (size_t)n, sizeof *warm, by_value);
	mark = now();
	all = find(&s, s.session, NULL, 0, NULL);
	uint64_t listed = now() - mark;
	printf("{\"subject\":\"%s\",\"dlopen\":%lu,\"ready\":%lu,\"first_find\":%lu,\"warm_find\":%lu,\"find_all\":%lu,\"objects\":%lu,"
	       "\"rss_before\":%lu,\"rss_loaded\":%lu,\"rss_ready\":%lu,\"rss_found\":%lu}\n",
		s.name, loaded, ready, first, warm[n / 2], listed, all, memory, memory_loaded, memory_ready, memory_found);
	return 0;
}

/* pauses tells what the machine does to whoever only computes. */
static int pauses(int argc, char **argv)
{
	enum { MAX = 1 << 16, LONG = 5000 };
	static uint64_t pause[MAX];
	size_t n = 0;

	if (argc != 1)
		FAIL("pauses MS");
	uint64_t begin = now(), end = begin + strtoull(argv[0], NULL, 10) * 1000000, last = begin;
	while (last < end && n < MAX) {
		uint64_t t = now();
		if (t - last > LONG)
			pause[n++] = t - last;
		last = t;
	}
	qsort(pause, n, sizeof *pause, by_value);
	printf("{\"every\":%lu,\"median\":%lu}\n", n ? (last - begin) / n : 0, n ? pause[n / 2] : 0);
	return 0;
}

static int rate(int argc, char **argv)
{
	if (argc != 2)
		FAIL("rate SUBJECT MS");
	struct subject s = parse(argv[0]);
	char line[8];

	load(&s);
	start(&s);
	puts("ready");
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin))
		FAIL("nobody starts this");
	measure(&s, &operations[0], 0, strtoull(argv[1], NULL, 10) * 1000000);
	return 0;
}

static int once(int argc, char **argv)
{
	if (argc != 1)
		FAIL("once SUBJECT");
	struct subject s = parse(argv[0]);

	load(&s);
	start(&s);
	struct worker w = {.s = &s, .session = s.session};
	OK(&s, sign(&w, 32));
	OK(&s, verify(&w));
	OK(&s, s.p11->C_Finalize(NULL));
	return 0;
}

static long faults(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return u.ru_minflt;
}

static int logins(int argc, char **argv)
{
	if (argc != 2)
		FAIL("logins SUBJECT N");
	struct subject s = parse(argv[0]);

	load(&s);
	initialize(&s);
	if (!find_slot(&s, s.label))
		FAIL("%s: no token \"%s\"", s.name, s.label);
	struct worker w = {.s = &s, .session = open_session(&s)};
	for (int i = 0, n = atoi(argv[1]); i < n; i++) {
		long before = faults();
		uint64_t begin = now();
		OK(&s, log_in(&w));
		uint64_t took = now() - begin;
		printf("{\"took\":%lu,\"faults\":%ld}\n", took, faults() - before);
		log_out(&w);
	}
	OK(&s, s.p11->C_Finalize(NULL));
	return 0;
}

static void step(const char *name)
{
	char line[8];

	puts(name);
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin))
		FAIL("nobody starts %s", name);
}

static int steps(int argc, char **argv)
{
	if (argc != 1)
		FAIL("steps SUBJECT");
	struct subject s = parse(argv[0]);
	struct worker w = {.s = &s};

	load(&s);
	step("C_Initialize, C_GetSlotList");
	initialize(&s);
	OK(&s, s.p11->C_GetSlotList(1, NULL, &(CK_ULONG){0}));
	step("C_GetTokenInfo");
	if (!find_slot(&s, s.label))
		FAIL("%s: no token \"%s\"", s.name, s.label);
	step("C_OpenSession");
	w.session = s.session = open_session(&s);
	step("C_Login");
	OK(&s, log_in(&w));
	step("C_FindObjects, the first time");
	find_keys(&s);
	step("C_FindObjects");
	find_keys(&s);
	step("C_Sign, the first time");
	OK(&s, sign(&w, 32));
	step("C_Sign");
	OK(&s, sign(&w, 32));
	step("C_Verify");
	OK(&s, verify(&w));
	step("C_GenerateRandom, 32 bytes");
	OK(&s, draw(&w));
	step("C_GenerateKeyPair, session");
	OK(&s, generate_session(&w));
	destroy_made(&w);
	step("C_GenerateKeyPair, token");
	OK(&s, generate_token(&w));
	step("C_DestroyObject, both keys");
	destroy_made(&w);
	step("C_Logout");
	log_out(&w);
	step("C_Finalize");
	OK(&s, s.p11->C_Finalize(NULL));
	step("");
	return 0;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*run)(int, char **);
	} commands[] = {{"setup", setup}, {"objects", objects}, {"steady", steady}, {"cold", cold}, {"pauses", pauses}, {"rate", rate}, {"once", once}, {"logins", logins}, {"steps", steps}};

	memset(message, 'm', sizeof message);
	for (size_t i = 0; argc > 1 && i < sizeof commands / sizeof *commands; i++)
		if (strcmp(argv[1], commands[i].name) == 0)
			return commands[i].run(argc - 2, argv + 2);
	FAIL("the head of host.c says how this is used");
}
