/* Fuzzes the module from several threads at once. What each thread does follows
 * from the seed; how the threads meet does not.
 *
 * Token 0 stays logged in, and each thread has a session and objects of its own
 * there, of which it knows exactly what they must answer, whatever the others
 * do. On token 1 all threads log in and out, open and close sessions, make and
 * destroy objects, and make the token anew under each other's feet: there each
 * function has a set of codes that it may answer. In the end C_Finalize and
 * C_Initialize come in between, and then everything that was reported as stored
 * must be there.
 *
 * usage: threads -dir DIRECTORY -device TCTI -seed N [-steps N] [-threads N] */
#include "common.h"

enum { MOST_THREADS = 16, SHARED = 12, KEPT = 64 };

static unsigned long seed, steps = 300;
static int n_threads = 4;
static bool storm; /* C_Finalize may come at any time */

static void give_up(void)
{
	flush_line();
	fprintf(stderr, "threads: seed %lu\n", seed);
	_exit(1);
}

static __thread int me;

/* What one thread owns of token 0. */
static struct own {
	CK_SESSION_HANDLE s;
	unsigned made;
	unsigned kept[KEPT]; /* numbers of its stored objects */
	int n_kept;
	CK_ULONG stale; /* an object or session that is gone */
} owns[MOST_THREADS];

static CK_OBJECT_HANDLE key; /* of token 0, shared */
static CK_BYTE key_pub[32];

/* Sessions and objects of token 1, which anybody may take out or put in. */
static CK_ULONG shared_sessions[SHARED], shared_objects[SHARED];

static void told(const char *what, CK_RV rv)
{
	say("T%d %s = %s\n", me, what, code_name(rv));
	flush_line();
}

/* among checks that a code is one of those that the call may answer. */
#define AMONG(call, ...) among(__LINE__, #call, (call), (const CK_RV[]){__VA_ARGS__}, sizeof((const CK_RV[]){__VA_ARGS__}) / sizeof(CK_RV))
static CK_RV among(int line, const char *call, CK_RV rv, const CK_RV *may, size_t n)
{
	told(call, rv);
	for (size_t i = 0; i < n; i++)
		if (rv == may[i])
			return rv;
	if (rv == CKR_SESSION_HANDLE_INVALID || (storm && rv == CKR_CRYPTOKI_NOT_INITIALIZED))
		return rv;
	BROKEN("line %d: %s = %s", line, call, code_name(rv));
}

/* exactly checks a code that nothing that others do can change. */
#define EXACTLY(want, call) \
	do { \
		CK_RV rv_ = (call); \
		told(#call, rv_); \
		RULE(rv_ == (want), "%s = %s, not %s", #call, code_name(rv_), code_name(want)); \
	} while (0)

static CK_BYTE *bytes_of(size_t n)
{
	CK_BYTE *p = malloc(n + 1);

	for (size_t i = 0; i < n; i++)
		p[i] = (CK_BYTE)next_random();
	return p;
}

/* ---- token 0: what must be ---- */

static void check_digest(struct own *o)
{
	int hash = (int)pick(HASHES);
	CK_MECHANISM m = {hashes[hash].type, NULL, 0};
	struct bytes all = {0};
	CK_ULONG n, state_n = 0;
	CK_BYTE right[64], *out = room_for(hashes[hash].size);

	EXACTLY(CKR_OK, p11->C_DigestInit(o->s, &m));
	EXACTLY(CKR_OPERATION_ACTIVE, p11->C_DigestInit(o->s, &m));
	for (unsigned parts = pick(4); parts > 0; parts--) {
		size_t size = pick(300);
		CK_BYTE *p = bytes_of(size);
		EXACTLY(CKR_OK, p11->C_DigestUpdate(o->s, p, size));
		append(&all, p, size);
		free(p);
	}
	if (chance(3)) {
		EXACTLY(CKR_OK, p11->C_GetOperationState(o->s, NULL, &state_n));
		CK_BYTE *state = room_for(state_n);
		EXACTLY(CKR_OK, p11->C_GetOperationState(o->s, state, &state_n));
		EXACTLY(CKR_OK, p11->C_SessionCancel(o->s, 0x400));
		EXACTLY(CKR_OK, p11->C_SetOperationState(o->s, state, state_n, 0, 0));
		let_go(state, state_n);
	}
	n = pick((unsigned)hashes[hash].size);
	EXACTLY(CKR_BUFFER_TOO_SMALL, p11->C_DigestFinal(o->s, out, &n));
	EXACTLY(CKR_OK, p11->C_DigestFinal(o->s, out, &n));
	EXACTLY(CKR_OPERATION_NOT_INITIALIZED, p11->C_DigestFinal(o->s, out, &n));
	openssl_digest(hash, all, right);
	RULE(n == hashes[hash].size && memcmp(out, right, n) == 0, "another digest than OpenSSL's");
	let_go(out, hashes[hash].size);
	clear(&all);
}

static void sign_with(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE k, const CK_BYTE pub[32])
{
	CK_MECHANISM m = {CKM_EDDSA, NULL, 0};
	CK_ULONG n = 0, half;
	CK_BYTE *sig = room_for(64);
	struct bytes msg = {.n = pick(600)};

	msg.p = bytes_of(msg.n);
	half = pick((unsigned)msg.n + 1);
	EXACTLY(CKR_OK, p11->C_SignInit(s, &m, k));
	if (chance(2)) {
		EXACTLY(CKR_OK, p11->C_SignUpdate(s, msg.p, half));
		EXACTLY(CKR_OK, p11->C_SignUpdate(s, msg.p + half, msg.n - half));
		EXACTLY(CKR_OK, p11->C_SignFinal(s, NULL, &n));
		EXACTLY(CKR_OK, p11->C_SignFinal(s, sig, &n));
	} else {
		n = pick(64);
		EXACTLY(CKR_BUFFER_TOO_SMALL, p11->C_Sign(s, msg.p, msg.n, sig, &n));
		EXACTLY(CKR_OK, p11->C_Sign(s, msg.p, msg.n, sig, &n));
	}
	RULE(n == 64 && openssl_verify(pub, msg, sig), "the signature does not verify");
	EXACTLY(CKR_OPERATION_NOT_INITIALIZED, p11->C_Sign(s, msg.p, msg.n, sig, &n));
	let_go(sig, 64);
	clear(&msg);
}

static void check_signature(struct own *o) { sign_with(o->s, key, key_pub); }

/* found_as gives the objects of token 0 with a label of this thread's. */
static CK_ULONG found_as(struct own *o, const char *label, CK_OBJECT_HANDLE got[4])
{
	CK_ATTRIBUTE t = {CKA_LABEL, (void *)label, strlen(label)};
	CK_ULONG n = 0;

	EXACTLY(CKR_OK, p11->C_FindObjectsInit(o->s, &t, 1));
	EXACTLY(CKR_OPERATION_ACTIVE, p11->C_FindObjectsInit(o->s, &t, 1));
	EXACTLY(CKR_OK, p11->C_FindObjects(o->s, got, 4, &n));
	EXACTLY(CKR_OK, p11->C_FindObjectsFinal(o->s));
	EXACTLY(CKR_OPERATION_NOT_INITIALIZED, p11->C_FindObjectsFinal(o->s));
	return n;
}

static void label_of(char *label, size_t n, int thread, unsigned number)
{
	snprintf(label, n, "T%d %u", thread, number);
}

static void check_object(struct own *o)
{
	char label[32], value[32];
	CK_BBOOL token = chance(3), private = chance(2);
	CK_ULONG class = CKO_DATA, n;
	CK_OBJECT_HANDLE h = 0, copy = 0, got[4];

	label_of(label, sizeof label, me, ++o->made);
	CK_ATTRIBUTE t[] = {{CKA_CLASS, &class, sizeof class}, {CKA_TOKEN, &token, 1}, {CKA_PRIVATE, &private, 1},
		{CKA_LABEL, label, strlen(label)}, {CKA_VALUE, label, strlen(label)}};
	EXACTLY(CKR_OK, p11->C_CreateObject(o->s, t, 5, &h));
	new_handle(h);
	RULE(found_as(o, label, got) == 1 && got[0] == h, "%s is not found, or by another handle", label);
	CK_ATTRIBUTE read = {CKA_VALUE, value, sizeof value};
	EXACTLY(CKR_OK, p11->C_GetAttributeValue(o->s, h, &read, 1));
	RULE(read.ulValueLen == strlen(label) && memcmp(value, label, strlen(label)) == 0, "another value");
	if (chance(2)) {
		CK_BBOOL no = 0;
		CK_ATTRIBUTE c = {CKA_TOKEN, &no, 1};
		EXACTLY(CKR_OK, p11->C_CopyObject(o->s, h, &c, 1, &copy));
		new_handle(copy);
		n = found_as(o, label, got);
		RULE(n == 2 && got[0] + got[1] == h + copy, "%lu objects where there are two", n);
		EXACTLY(CKR_OK, p11->C_DestroyObject(o->s, copy));
		o->stale = copy;
	}
	if (token && o->n_kept < KEPT && chance(2)) {
		o->kept[o->n_kept++] = o->made;
		return;
	}
	EXACTLY(CKR_OK, p11->C_DestroyObject(o->s, h));
	EXACTLY(CKR_OBJECT_HANDLE_INVALID, p11->C_DestroyObject(o->s, h));
	RULE(found_as(o, label, got) == 0, "%s was destroyed, and is found", label);
	o->stale = h;
}

static void check_key(struct own *o)
{
	static CK_BYTE oid[] = {0x06, 0x03, 0x2b, 0x65, 0x70};
	CK_MECHANISM m = {CKM_EC_EDWARDS_KEY_PAIR_GEN, NULL, 0}, eddsa = {CKM_EDDSA, NULL, 0};
	CK_BBOOL token = chance(4);
	CK_OBJECT_HANDLE pub = 0, priv = 0;
	CK_BYTE point[34];
	CK_ATTRIBUTE tpub[] = {{CKA_TOKEN, &token, 1}, {CKA_EC_PARAMS, oid, sizeof oid}}, tpriv[] = {{CKA_TOKEN, &token, 1}};
	CK_ATTRIBUTE read = {CKA_EC_POINT, point, sizeof point};

	EXACTLY(CKR_OK, p11->C_GenerateKeyPair(o->s, &m, tpub, 2, tpriv, 1, &pub, &priv));
	new_handle(pub);
	new_handle(priv);
	EXACTLY(CKR_OK, p11->C_GetAttributeValue(o->s, priv, &read, 1));
	sign_with(o->s, priv, point + 2);
	EXACTLY(CKR_OK, p11->C_DestroyObject(o->s, priv));
	EXACTLY(CKR_OK, p11->C_DestroyObject(o->s, pub));
	EXACTLY(CKR_KEY_HANDLE_INVALID, p11->C_SignInit(o->s, &eddsa, priv));
	o->stale = priv;
}

static void check_session(struct own *o)
{
	CK_SESSION_HANDLE s = 0;
	CK_SESSION_INFO info;
	bool rw = chance(2);
	CK_ULONG class = CKO_DATA;
	CK_ATTRIBUTE t[] = {{CKA_CLASS, &class, sizeof class}};
	CK_OBJECT_HANDLE h = 0;
	CK_BBOOL yes = 1;
	CK_ATTRIBUTE stored[] = {{CKA_CLASS, &class, sizeof class}, {CKA_TOKEN, &yes, 1}};

	EXACTLY(CKR_OK, p11->C_OpenSession(0, rw ? CKF_RW_SERIAL : CKF_SERIAL, NULL, NULL, &s));
	new_handle(s);
	EXACTLY(CKR_OK, p11->C_GetSessionInfo(s, &info));
	RULE(info.slotID == 0 && info.state == (rw ? 3 : 1) && info.flags == (rw ? CKF_RW_SERIAL : CKF_SERIAL), "state %lu, flags %lx", info.state, info.flags);
	EXACTLY(CKR_OK, p11->C_CreateObject(s, t, 1, &h));
	new_handle(h);
	if (!rw) {
		CK_OBJECT_HANDLE no;
		EXACTLY(CKR_SESSION_READ_ONLY, p11->C_CreateObject(s, stored, 2, &no));
	}
	EXACTLY(CKR_USER_ALREADY_LOGGED_IN, p11->C_Login(s, CKU_USER, USER_PIN));
	EXACTLY(CKR_OK, p11->C_CloseSession(s));
	EXACTLY(CKR_SESSION_HANDLE_INVALID, p11->C_CloseSession(s));
	EXACTLY(CKR_OBJECT_HANDLE_INVALID, p11->C_DestroyObject(o->s, h));
	if (o->stale)
		EXACTLY(CKR_OBJECT_HANDLE_INVALID, p11->C_DestroyObject(o->s, o->stale));
	o->stale = s;
}

/* ---- token 1: what may be ---- */

static CK_ULONG any(CK_ULONG *of) { return __atomic_load_n(&of[pick(SHARED)], __ATOMIC_RELAXED); }
static void put(CK_ULONG *in, CK_ULONG h) { __atomic_store_n(&in[pick(SHARED)], h, __ATOMIC_RELAXED); }

static void chaos_session(void)
{
	CK_SESSION_HANDLE s = 0;
	CK_SESSION_INFO info;

	switch (pick(7)) {
	case 0:
		if (!chance(4))
			break;
		AMONG(p11->C_CloseAllSessions(1), CKR_OK);
		return;
	case 1:
		AMONG(p11->C_CloseSession(any(shared_sessions)), CKR_OK);
		return;
	case 2:
		if (AMONG(p11->C_GetSessionInfo(any(shared_sessions), &info), CKR_OK) == CKR_OK)
			RULE(info.slotID == 1 && info.state <= 4 && (info.state >= 2) == !!(info.flags & CKF_RW), "state %lu, flags %lx", info.state, info.flags);
		return;
	}
	if (AMONG(p11->C_OpenSession(1, chance(4) ? CKF_SERIAL : CKF_RW_SERIAL, NULL, NULL, &s), CKR_OK, CKR_SESSION_READ_WRITE_SO_EXISTS) != CKR_OK)
		return;
	new_handle(s);
	put(shared_sessions, s);
}

static void chaos_login(void)
{
	CK_SESSION_HANDLE s = any(shared_sessions);

	switch (pick(10)) {
	case 0:
	case 1:
		AMONG(p11->C_Logout(s), CKR_OK, CKR_USER_NOT_LOGGED_IN);
		return;
	case 2:
		if (AMONG(p11->C_Login(s, CKU_SO, SO_PIN), CKR_OK, CKR_USER_ALREADY_LOGGED_IN, CKR_USER_ANOTHER_ALREADY_LOGGED_IN, CKR_SESSION_READ_ONLY_EXISTS) == CKR_OK)
			AMONG(p11->C_InitPIN(s, USER_PIN), CKR_OK, CKR_USER_NOT_LOGGED_IN);
		return;
	case 3:
		AMONG(p11->C_SetPIN(s, USER_PIN, USER_PIN), CKR_OK, CKR_SESSION_READ_ONLY, CKR_USER_PIN_NOT_INITIALIZED,
			CKR_PIN_INCORRECT); /* of the SO, where the SO is logged in */
		return;
	case 4:
		AMONG(p11->C_Login(s, CKU_USER, (CK_BYTE_PTR) "wrong", 5), CKR_PIN_INCORRECT, CKR_USER_PIN_NOT_INITIALIZED,
			CKR_USER_ALREADY_LOGGED_IN, CKR_USER_ANOTHER_ALREADY_LOGGED_IN);
		return;
	case 5: {
		CK_UTF8CHAR label[32];
		if (!chance(4))
			return;
		pad_label(label, "chaos");
		AMONG(p11->C_InitToken(1, SO_PIN, label), CKR_OK, CKR_SESSION_EXISTS);
		return;
	}
	}
	AMONG(p11->C_Login(s, CKU_USER, USER_PIN), CKR_OK, CKR_USER_ALREADY_LOGGED_IN, CKR_USER_ANOTHER_ALREADY_LOGGED_IN, CKR_USER_PIN_NOT_INITIALIZED);
}

static void chaos_object(void)
{
	CK_SESSION_HANDLE s = any(shared_sessions);
	CK_OBJECT_HANDLE h = any(shared_objects), got[40], priv = 0;
	CK_ULONG class = CKO_DATA, n = 0;
	CK_BBOOL token = chance(3), private = chance(2);
	static CK_BYTE oid[] = {0x06, 0x03, 0x2b, 0x65, 0x70};
	CK_MECHANISM m = {CKM_EC_EDWARDS_KEY_PAIR_GEN, NULL, 0};
	CK_ATTRIBUTE t[] = {{CKA_TOKEN, &token, 1}, {CKA_PRIVATE, &private, 1}, {CKA_CLASS, &class, sizeof class}};
	CK_ATTRIBUTE tpub[] = {{CKA_TOKEN, &token, 1}, {CKA_EC_PARAMS, oid, sizeof oid}};
	CK_BYTE buf[100];
	CK_ATTRIBUTE read[] = {{CKA_CLASS, &class, sizeof class}, {CKA_LABEL, buf, sizeof buf}};

	switch (pick(7)) {
	case 0:
		if (AMONG(p11->C_CreateObject(s, t, 3, &h), CKR_OK, CKR_SESSION_READ_ONLY, CKR_USER_NOT_LOGGED_IN) != CKR_OK)
			return;
		new_handle(h);
		put(shared_objects, h);
		return;
	case 1:
		if (AMONG(p11->C_GenerateKeyPair(s, &m, tpub, 2, t, 2, &h, &priv), CKR_OK, CKR_SESSION_READ_ONLY, CKR_USER_NOT_LOGGED_IN) != CKR_OK)
			return;
		new_handle(h);
		new_handle(priv);
		put(shared_objects, h);
		put(shared_objects, priv);
		return;
	case 2:
		AMONG(p11->C_DestroyObject(s, h), CKR_OK, CKR_OBJECT_HANDLE_INVALID, CKR_SESSION_READ_ONLY);
		return;
	case 3:
		if (AMONG(p11->C_CopyObject(s, h, t, 1, &priv), CKR_OK, CKR_OBJECT_HANDLE_INVALID, CKR_SESSION_READ_ONLY, CKR_USER_NOT_LOGGED_IN,
			CKR_KEY_HANDLE_INVALID) != CKR_OK)
			return;
		new_handle(priv);
		put(shared_objects, priv);
		return;
	case 4:
		AMONG(p11->C_GetAttributeValue(s, h, read, 2), CKR_OK, CKR_OBJECT_HANDLE_INVALID);
		return;
	case 5: {
		CK_ATTRIBUTE label = {CKA_LABEL, "chaos", 5};
		AMONG(p11->C_SetAttributeValue(s, h, &label, 1), CKR_OK, CKR_OBJECT_HANDLE_INVALID, CKR_SESSION_READ_ONLY, CKR_USER_NOT_LOGGED_IN);
		return;
	}
	}
	AMONG(p11->C_FindObjectsInit(s, NULL, 0), CKR_OK, CKR_OPERATION_ACTIVE);
	if (AMONG(p11->C_FindObjects(s, got, 40, &n), CKR_OK, CKR_OPERATION_NOT_INITIALIZED) == CKR_OK && n)
		put(shared_objects, got[pick((unsigned)n)]);
	AMONG(p11->C_FindObjectsFinal(s), CKR_OK, CKR_OPERATION_NOT_INITIALIZED);
}

static void chaos_operation(void)
{
	CK_SESSION_HANDLE s = any(shared_sessions);
	CK_OBJECT_HANDLE h = any(shared_objects);
	CK_MECHANISM m = {CKM_EDDSA, NULL, 0}, sha = {CKM_SHA256, NULL, 0};
	CK_BYTE *out = room_for(64), msg[16] = "a message";
	CK_ULONG n = chance(6) ? pick(64) : 64, room = n;

	switch (pick(8)) {
	case 0:
	case 1:
		AMONG(p11->C_SignInit(s, &m, h), CKR_OK, CKR_OPERATION_ACTIVE, CKR_KEY_HANDLE_INVALID, CKR_KEY_FUNCTION_NOT_PERMITTED);
		break;
	case 2:
		AMONG(p11->C_SignUpdate(s, msg, pick(16)), CKR_OK, CKR_OPERATION_NOT_INITIALIZED);
		break;
	case 3:
		AMONG(p11->C_SignFinal(s, out, &n), CKR_OK, CKR_OPERATION_NOT_INITIALIZED, CKR_BUFFER_TOO_SMALL, CKR_USER_NOT_LOGGED_IN, CKR_KEY_HANDLE_INVALID);
		break;
	case 4:
		AMONG(p11->C_Sign(s, msg, 16, out, &n), CKR_OK, CKR_OPERATION_NOT_INITIALIZED, CKR_OPERATION_ACTIVE, CKR_BUFFER_TOO_SMALL,
			CKR_USER_NOT_LOGGED_IN, CKR_KEY_HANDLE_INVALID);
		break;
	case 5:
		AMONG(p11->C_DigestInit(s, &sha), CKR_OK, CKR_OPERATION_ACTIVE);
		AMONG(p11->C_DigestUpdate(s, msg, 16), CKR_OK, CKR_OPERATION_NOT_INITIALIZED);
		break;
	case 6:
		n = room = 64;
		AMONG(p11->C_DigestFinal(s, out, &n), CKR_OK, CKR_OPERATION_NOT_INITIALIZED);
		break;
	case 7:
		AMONG(p11->C_SessionCancel(s, chance(2) ? 0xc00 : -1UL), CKR_OK);
		break;
	}
	RULE(n <= 64, "a length of %lu", n);
	let_go(out, room < 64 ? 64 : room);
}

static void chaos_slots(void)
{
	CK_SLOT_ID list[8];
	CK_ULONG n = 8;
	CK_TOKEN_INFO info;

	switch (pick(3)) {
	case 0:
		if (AMONG(p11->C_GetSlotList(1, NULL, &n), CKR_OK) == CKR_OK)
			RULE(n == 3, "%lu slots", n);
		break;
	case 1:
		if (AMONG(p11->C_GetSlotList(1, list, &n), CKR_OK) == CKR_OK)
			RULE(n == 3 && list[0] == 0 && list[1] == 1 && list[2] == 2, "%lu slots", n);
		break;
	case 2:
		AMONG(p11->C_GetTokenInfo(1, &info), CKR_OK);
		break;
	}
}

static void *chaos(void *arg)
{
	me = (int)(intptr_t)arg;
	random_state = mix(seed * 64 + (unsigned)me + 32);
	for (unsigned long i = 0; i < steps; i++)
		switch (pick(8)) {
		case 0: chaos_slots(); break;
		case 1: chaos_login(); break;
		case 2: case 3: chaos_session(); break;
		case 4: case 5: chaos_object(); break;
		default: chaos_operation();
		}
	return NULL;
}

static void *mixed(void *arg)
{
	struct own *o;

	me = (int)(intptr_t)arg;
	o = &owns[me];
	random_state = mix(seed * 64 + (unsigned)me);
	EXACTLY(CKR_OK, p11->C_OpenSession(0, CKF_RW_SERIAL, NULL, NULL, &o->s));
	new_handle(o->s);
	for (unsigned long i = 0; i < steps; i++)
		switch (pick(16)) {
		case 0: check_digest(o); break;
		case 1: case 2: check_signature(o); break;
		case 3: case 4: check_object(o); break;
		case 5: check_key(o); break;
		case 6: check_session(o); break;
		case 7: chaos_slots(); break;
		case 8: case 9: chaos_login(); break;
		case 10: case 11: chaos_session(); break;
		case 12: case 13: chaos_object(); break;
		default: chaos_operation();
		}
	EXACTLY(CKR_OK, p11->C_CloseSession(o->s));
	return NULL;
}

static void run(void *(*what)(void *))
{
	pthread_t threads[MOST_THREADS];

	for (int i = 0; i < n_threads; i++)
		CHECK(pthread_create(&threads[i], NULL, what, (void *)(intptr_t)i) == 0);
	if (storm)
		for (int i = 0; i < 6; i++) {
			usleep(30000);
			EXACTLY(CKR_OK, p11->C_Finalize(NULL));
			usleep(1000);
			EXACTLY(CKR_OK, p11->C_Initialize(NULL));
		}
	for (int i = 0; i < n_threads; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
}

/* check_stored counts the objects of token 0: the key pair, and what the
 * threads were told is stored. */
static void check_stored(CK_SESSION_HANDLE s)
{
	CK_ULONG n = 0, class = CKO_DATA, want = 0;
	CK_OBJECT_HANDLE got[MOST_THREADS * KEPT + 8];
	CK_ATTRIBUTE t = {CKA_CLASS, &class, sizeof class};
	struct own all = {.s = s};

	for (int i = 0; i < n_threads; i++)
		for (int j = 0; j < owns[i].n_kept; j++, want++) {
			char label[32];
			CK_OBJECT_HANDLE one[4];
			label_of(label, sizeof label, i, owns[i].kept[j]);
			RULE(found_as(&all, label, one) == 1, "%s was stored, and is not found", label);
		}
	EXACTLY(CKR_OK, p11->C_FindObjectsInit(s, &t, 1));
	EXACTLY(CKR_OK, p11->C_FindObjects(s, got, sizeof got / sizeof got[0], &n));
	EXACTLY(CKR_OK, p11->C_FindObjectsFinal(s));
	RULE(n == want, "%lu data objects, not %lu", n, want);
}

static CK_SESSION_HANDLE open_stable(void)
{
	CK_SESSION_HANDLE s = 0;

	EXACTLY(CKR_OK, p11->C_OpenSession(0, CKF_RW_SERIAL, NULL, NULL, &s));
	new_handle(s);
	EXACTLY(CKR_OK, p11->C_Login(s, CKU_USER, USER_PIN));
	return s;
}

int main(int argc, char **argv)
{
	const char *dir = NULL, *device = NULL;
	char name[PATH_MAX];
	CK_BYTE point[34];
	CK_ATTRIBUTE read = {CKA_EC_POINT, point, sizeof point};
	CK_TOKEN_INFO info;
	CK_ULONG n;

	for (int i = 1; i + 1 < argc; i += 2) {
		if (!strcmp(argv[i], "-dir"))
			dir = argv[i + 1];
		else if (!strcmp(argv[i], "-device"))
			device = argv[i + 1];
		else if (!strcmp(argv[i], "-seed"))
			seed = strtoul(argv[i + 1], NULL, 10);
		else if (!strcmp(argv[i], "-steps"))
			steps = strtoul(argv[i + 1], NULL, 10);
		else if (!strcmp(argv[i], "-threads"))
			n_threads = atoi(argv[i + 1]);
	}
	if (!dir || !device || n_threads < 1 || n_threads > MOST_THREADS) {
		fprintf(stderr, "usage: threads -dir DIRECTORY -device TCTI -seed N [-steps N] [-threads 1..%d]\n", MOST_THREADS);
		return 2;
	}
	deadline(300);
	module_path = getenv("MODULE");
	snprintf(name, sizeof name, "%s/calls", dir);
	log_fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
	CHECK(log_fd >= 0);
	new_store(dir, device, seed % 2 ? 60 : 0);
	load_module();
	EXACTLY(CKR_OK, p11->C_Initialize(NULL));
	make_token("stable");
	EXACTLY(CKR_OK, p11->C_GetSlotList(1, NULL, &n));
	make_token("chaos");
	EXACTLY(CKR_OK, p11->C_GetSlotList(1, NULL, &n));
	CK_SESSION_HANDLE s = open_stable();
	key = find_key(s, CKO_PRIVATE_KEY);
	EXACTLY(CKR_OK, p11->C_GetAttributeValue(s, key, &read, 1));
	memcpy(key_pub, point + 2, 32);

	run(mixed);
	EXACTLY(CKR_OK, p11->C_GetTokenInfo(0, &info));
	RULE(info.ulSessionCount == 1 && info.ulRwSessionCount == 1, "%lu sessions are left, %lu of them read/write", info.ulSessionCount, info.ulRwSessionCount);
	check_stored(s);
	storm = true;
	run(chaos);
	storm = false;
	check_stored(open_stable());
	EXACTLY(CKR_OK, p11->C_Finalize(NULL));
	return 0;
}
