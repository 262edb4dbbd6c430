/* One of the processes of test/soak/run.sh: it signs, makes and destroys
 * objects, forks, and ends and starts the module, until it is told to stop by
 * SIGTERM; or it checks what others have reported as stored. stay is load, but
 * that the module is started once and never ended, and the user logs in once:
 * what is lost within one initialisation adds up there.
 *
 * usage: worker init TOKEN...
 *        worker load|stay TOKEN JOURNAL SEED
 *        worker check TOKEN JOURNAL...
 *
 * While the TPM is away there is a file AWAY, and since it was back last a file
 * BACK is unchanged; the environment has their names.
 *
 * A line of the journal is written when what it says has come true: "stored
 * LABEL VALUE" after the function has returned, "going LABEL" before an object
 * is destroyed. The value of a key is its public key in hexadecimal digits. */
#include "../fuzz/common.h"

#define CKR_DEVICE_ERROR 0x30UL

enum { MOST = 24 }; /* objects that a process keeps */

static FILE *journal;
static unsigned long done, missed; /* calls that went well, and that found no TPM */
static volatile sig_atomic_t stop;
static const char *token; /* its label */
static bool stays;

static void give_up(void)
{
	_exit(1);
}

static void on_term(int s)
{
	stop = 1;
}

/* The time when a call began, by the clock of files' times. */
static __thread struct timespec began;

static void begin(void)
{
	CHECK(clock_gettime(CLOCK_REALTIME_COARSE, &began) == 0);
}

/* was_away tells whether the TPM was away at some time since the call began. */
static bool was_away(void)
{
	struct stat st;

	if (stat(getenv("AWAY"), &st) == 0)
		return true;
	if (stat(getenv("BACK"), &st) != 0)
		return false;
	return st.st_mtim.tv_sec > began.tv_sec || (st.st_mtim.tv_sec == began.tv_sec && st.st_mtim.tv_nsec >= began.tv_nsec);
}

/* went tells whether a call went well. That the TPM is away for a moment is
 * part of the test; anything else that is not told is a failure. */
static bool went_(int line, const char *call, CK_RV rv, CK_RV also)
{
	if (rv == CKR_OK) {
		__atomic_add_fetch(&done, 1, __ATOMIC_RELAXED);
		return true;
	}
	if (rv != also && (rv != CKR_DEVICE_ERROR || !was_away())) {
		fprintf(stderr, "worker.c:%d: [%d] %s = %s\n", line, (int)getpid(), call, code_name(rv));
		_exit(1);
	}
	if (rv == CKR_DEVICE_ERROR) {
		__atomic_add_fetch(&missed, 1, __ATOMIC_RELAXED);
		usleep(100000);
	}
	return false;
}
#define WENT(call) WENT_OR(CKR_OK, call)
#define WENT_OR(also, call) (begin(), went_(__LINE__, #call, (call), (also)))

static CK_SESSION_HANDLE session; /* 0: there is none */
static struct kept {
	char label[40];
	CK_OBJECT_HANDLE h[2]; /* a data object; or a private key and its public key */
	CK_BYTE pub[32];
} kept[MOST];
static int n_kept;
static unsigned made;

static bool find_one(CK_SESSION_HANDLE s, const char *label, CK_ULONG class, CK_OBJECT_HANDLE *h)
{
	CK_ATTRIBUTE t[] = {{CKA_LABEL, (void *)label, strlen(label)}, {CKA_CLASS, &class, sizeof class}};
	CK_OBJECT_HANDLE got[2];
	CK_ULONG n = 0;

	if (!WENT(p11->C_FindObjectsInit(s, t, 2)))
		return false;
	OK(p11->C_FindObjects(s, got, 2, &n));
	OK(p11->C_FindObjectsFinal(s));
	if (n != 1)
		FAIL("%lu objects of class %lu with the label %s", n, class, label);
	*h = got[0];
	return true;
}

/* enter logs in, and finds the objects again: handles end with C_Finalize. */
static bool enter(void)
{
	CK_SESSION_HANDLE s;

	if (session)
		return true;
	if (!WENT(p11->C_OpenSession(find_slot(token), CKF_RW_SERIAL, NULL, NULL, &s)))
		return false;
	CK_RV rv;
	if (!WENT_OR(CKR_USER_ALREADY_LOGGED_IN, rv = p11->C_Login(s, CKU_USER, USER_PIN)) && rv != CKR_USER_ALREADY_LOGGED_IN) {
		OK(p11->C_CloseSession(s));
		return false;
	}
	for (int i = 0; i < n_kept; i++) {
		bool key = kept[i].h[1];
		if (!find_one(s, kept[i].label, key ? CKO_PRIVATE_KEY : CKO_DATA, &kept[i].h[0]) ||
		    (key && !find_one(s, kept[i].label, CKO_PUBLIC_KEY, &kept[i].h[1]))) {
			OK(p11->C_CloseSession(s));
			return false;
		}
	}
	session = s;
	return true;
}

static void restart(void)
{
	OK(p11->C_Finalize(NULL));
	session = 0;
	OK(p11->C_Initialize(NULL));
}

static void report(const char *what, const char *label, const char *value)
{
	fprintf(journal, "%s %s %s\n", what, label, value);
	CHECK(fflush(journal) == 0);
}

static bool sign_once(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE key, const CK_BYTE pub[32])
{
	CK_MECHANISM m = {CKM_EDDSA, NULL, 0};
	CK_BYTE text[48], sig[64];
	CK_ULONG n = sizeof sig;
	struct bytes msg = {text, sizeof text};

	for (size_t i = 0; i < sizeof text; i++)
		text[i] = (CK_BYTE)next_random();
	OK(p11->C_SignInit(s, &m, key));
	if (!WENT(p11->C_Sign(s, text, sizeof text, sig, &n)))
		return false;
	if (n != 64 || !openssl_verify(pub, msg, sig))
		FAIL("a signature does not verify");
	return true;
}

static void make_data(void)
{
	CK_BBOOL yes = 1, private = chance(2);
	CK_ULONG class = CKO_DATA;
	struct kept *k = &kept[n_kept];

	*k = (struct kept){0};
	snprintf(k->label, sizeof k->label, "%d-%u", (int)getpid(), ++made);
	CK_ATTRIBUTE t[] = {{CKA_CLASS, &class, sizeof class}, {CKA_TOKEN, &yes, 1}, {CKA_PRIVATE, &private, 1},
		{CKA_LABEL, k->label, strlen(k->label)}, {CKA_VALUE, k->label, strlen(k->label)}};
	if (!WENT(p11->C_CreateObject(session, t, 5, &k->h[0])))
		return;
	report("stored", k->label, "data");
	n_kept++;
}

static void make_key(void)
{
	static CK_BYTE oid[] = {0x06, 0x03, 0x2b, 0x65, 0x70};
	CK_BBOOL yes = 1;
	CK_MECHANISM m = {CKM_EC_EDWARDS_KEY_PAIR_GEN, NULL, 0};
	struct kept *k = &kept[n_kept];
	CK_BYTE point[34];
	char hex[65];

	*k = (struct kept){0};
	snprintf(k->label, sizeof k->label, "%d-%u", (int)getpid(), ++made);
	CK_ATTRIBUTE pub[] = {{CKA_TOKEN, &yes, 1}, {CKA_LABEL, k->label, strlen(k->label)}, {CKA_EC_PARAMS, oid, sizeof oid}};
	CK_ATTRIBUTE priv[] = {{CKA_TOKEN, &yes, 1}, {CKA_LABEL, k->label, strlen(k->label)}};
	CK_ATTRIBUTE read = {CKA_EC_POINT, point, sizeof point};
	if (!WENT(p11->C_GenerateKeyPair(session, &m, pub, 3, priv, 2, &k->h[1], &k->h[0])))
		return;
	OK(p11->C_GetAttributeValue(session, k->h[1], &read, 1));
	memcpy(k->pub, point + 2, 32);
	for (int i = 0; i < 32; i++)
		sprintf(hex + 2 * i, "%02x", k->pub[i]);
	report("stored", k->label, hex);
	n_kept++;
}

static void destroy(int i)
{
	report("going", kept[i].label, "");
	for (int j = 0; j < 2; j++) {
		if (!kept[i].h[j])
			continue;
		/* Where the TPM is away it may be gone all the same. */
		for (int tries = 0; !WENT_OR(CKR_OBJECT_HANDLE_INVALID, p11->C_DestroyObject(session, kept[i].h[j])) && tries < 500; tries++)
			if (p11->C_GetObjectSize(session, kept[i].h[j], &(CK_ULONG){0}) == CKR_OBJECT_HANDLE_INVALID)
				break;
	}
	kept[i] = kept[--n_kept];
}

static const struct kept *any_key(void)
{
	for (int tries = 0; n_kept && tries < 20; tries++) {
		const struct kept *k = &kept[pick((unsigned)n_kept)];
		if (k->h[1])
			return k;
	}
	return NULL;
}

/* A child of fork starts the module for itself, as nginx's workers do. */
static void fork_child(void)
{
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (pid == 0) {
		deadline(60);
		session = 0;
		OK(p11->C_Initialize(NULL));
		const struct kept *k = any_key();
		if (enter() && k)
			sign_once(session, k->h[0], k->pub);
		OK(p11->C_Finalize(NULL));
		_exit(0);
	}
	wait_ok(pid);
}

/* A second thread, with a session of its own and keys of the session. */
static void *beside(void *slot)
{
	CK_MECHANISM m = {CKM_SHA256, NULL, 0};
	CK_BYTE out[32], in[1000] = {0};
	CK_ULONG n;
	CK_SESSION_HANDLE s;

	while (!stop) {
		usleep(10000);
		if (p11->C_OpenSession(*(CK_SLOT_ID *)slot, CKF_SERIAL, NULL, NULL, &s) != CKR_OK)
			continue; /* C_Finalize has been called meanwhile */
		for (int i = 0; i < 50 && !stop; i++) {
			n = 32;
			CK_RV rv = p11->C_DigestInit(s, &m);
			if (rv == CKR_OK)
				rv = p11->C_Digest(s, in, sizeof in, out, &n);
			if (rv == CKR_SESSION_HANDLE_INVALID || rv == CKR_CRYPTOKI_NOT_INITIALIZED)
				break;
			OK(rv);
			usleep(1000);
		}
		p11->C_CloseSession(s);
	}
	return NULL;
}

/* visit uses another session while the first one stays logged in: what a login
 * needs of memory would hide what is lost. */
static void visit(void)
{
	CK_SESSION_HANDLE s;
	const struct kept *k = any_key();

	OK(p11->C_OpenSession(find_slot(token), CKF_SERIAL, NULL, NULL, &s));
	if (k && find_one(s, k->label, CKO_PRIVATE_KEY, &(CK_OBJECT_HANDLE){0}))
		sign_once(s, k->h[0], k->pub);
	OK(p11->C_CloseSession(s));
}

static int load(const char *name, const char *seed)
{
	struct sigaction a = {.sa_handler = on_term};
	pthread_t thread;
	CK_SLOT_ID slot;

	random_state = mix(strtoul(seed, NULL, 10));
	journal = fopen(name, "ae");
	CHECK(journal && sigaction(SIGTERM, &a, NULL) == 0);
	OK(p11->C_Initialize(NULL));
	slot = find_slot(token);
	CHECK(pthread_create(&thread, NULL, beside, &slot) == 0);
	while (!stop) {
		usleep(pick(4000));
		if (!enter())
			continue;
		const struct kept *k = any_key();
		switch (pick(40)) {
		case 0:
			if (!stays)
				restart();
			break;
		case 1: fork_child(); break;
		case 2:
			if (stays) {
				visit();
				break;
			}
			OK(p11->C_CloseSession(session));
			session = 0;
			break;
		case 3: case 4: case 5:
			if (n_kept < MOST)
				make_data();
			break;
		case 6: case 7:
			if (n_kept < MOST)
				make_key();
			break;
		case 8: case 9: case 10:
			if (n_kept > MOST / 2)
				destroy((int)pick((unsigned)n_kept));
			break;
		case 11: case 12: {
			CK_BYTE random[64];
			WENT(p11->C_GenerateRandom(session, random, sizeof random));
			break;
		}
		default:
			if (k)
				sign_once(session, k->h[0], k->pub);
		}
	}
	CHECK(pthread_join(thread, NULL) == 0);
	OK(p11->C_Finalize(NULL));
	printf("%lu calls, %lu without a TPM\n", done, missed);
	return 0;
}

/* ---- in the end ---- */

static void check_stored(CK_SESSION_HANDLE s, const char *label, const char *value)
{
	CK_OBJECT_HANDLE h = 0, pub = 0;
	CK_BYTE got[64], point[32];
	CK_ATTRIBUTE t = {CKA_VALUE, got, sizeof got};

	if (!strcmp(value, "data")) {
		CHECK(find_one(s, label, CKO_DATA, &h));
		OK(p11->C_GetAttributeValue(s, h, &t, 1));
		if (t.ulValueLen != strlen(label) || memcmp(got, label, strlen(label)) != 0)
			FAIL("the value of %s is another one", label);
		return;
	}
	for (int i = 0; i < 32; i++)
		CHECK(sscanf(value + 2 * i, "%2hhx", &point[i]) == 1);
	CHECK(find_one(s, label, CKO_PRIVATE_KEY, &h) && find_one(s, label, CKO_PUBLIC_KEY, &pub));
	CHECK(sign_once(s, h, point));
}

static int check(char **names)
{
	static struct { char what[8], label[40], value[65]; } lines[200000];
	size_t n = 0, checked = 0;
	CK_SESSION_HANDLE s;

	for (; *names; names++) {
		FILE *f = fopen(*names, "re");
		char line[256];
		CHECK(f);
		while (fgets(line, sizeof line, f)) {
			CHECK(n < sizeof lines / sizeof lines[0]);
			if (!strchr(line, '\n'))
				continue; /* its writer was killed */
			memset(&lines[n], 0, sizeof lines[n]);
			n += sscanf(line, "%7s %39s %64s", lines[n].what, lines[n].label, lines[n].value) >= 2;
		}
		fclose(f);
	}
	OK(p11->C_Initialize(NULL));
	s = log_in(token);
	for (size_t i = 0; i < n; i++) {
		bool going = !strcmp(lines[i].what, "going");
		for (size_t j = i + 1; j < n && !going; j++)
			going = !strcmp(lines[j].label, lines[i].label);
		if (going)
			continue;
		check_stored(s, lines[i].label, lines[i].value);
		checked++;
	}
	OK(p11->C_Finalize(NULL));
	printf("%zu objects that were reported as stored are there and verify\n", checked);
	return checked ? 0 : 1;
}

int main(int argc, char **argv)
{
	module_path = getenv("MODULE");
	CHECK(module_path && getenv("AWAY") && getenv("BACK"));
	const char *what = argc < 3 ? "" : argv[1];
	token = argc < 3 ? NULL : argv[2];
	if (!strcmp(what, "init")) {
		load_module();
		for (char **label = argv + 2; *label; label++) {
			OK(p11->C_Initialize(NULL));
			make_token(*label);
			OK(p11->C_Finalize(NULL));
		}
		return 0;
	}
	stays = !strcmp(what, "stay");
	if (argc == 5 && (stays || !strcmp(what, "load"))) {
		load_module();
		return load(argv[3], argv[4]);
	}
	if (argc >= 4 && !strcmp(what, "check")) {
		load_module();
		return check(argv + 3);
	}
	fprintf(stderr, "usage: worker init TOKEN... | load TOKEN JOURNAL SEED | stay TOKEN JOURNAL SEED | check TOKEN JOURNAL...\n");
	return 2;
}
