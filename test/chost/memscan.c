/* Searches the memory and the core dump of a host process for secrets.
 *
 * usage: MODULE=... memscan SEED HASH SECONDS [plain]   (see main; memscan.sh calls it)
 *
 * This process knows what to look for: the seed, what RFC 8032 derives from
 * it, and the PINs. The host is another program image, started with exec, so
 * that it holds nothing but what it was given, and it wipes that once the
 * module has it. After each stage the host waits while it is searched.
 *
 * The host also keeps a random value on its heap: a search that does not find
 * that one is worth nothing. A last host keeps all the patterns, so that each
 * of them is known to be found where it is.
 */
#include "host.h"

#include <fcntl.h>
#include <glob.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#define PIN_LEN 24
#define SIGNATURES 1000
#define CHUNK (1 << 16)

static CK_BYTE ed25519_oid[] = {0x06, 0x03, 0x2b, 0x65, 0x70};

/* What a host is handed over its standard input. */
struct handed {
	CK_BYTE so_pin[PIN_LEN], pin[PIN_LEN];   /* the first ones */
	CK_BYTE so_pin2[PIN_LEN], pin2[PIN_LEN]; /* set by C_SetPIN */
	CK_BYTE pin3[PIN_LEN];			 /* set by C_InitPIN, in the end */
	CK_BYTE seed[32], control[32];
};

static void read_full(int fd, void *to, size_t n)
{
	for (size_t got = 0; got < n;) {
		ssize_t r = read(fd, (char *)to + got, n - got);
		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			FAIL("the other side has ended");
		got += r;
	}
}

static void write_full(int fd, const void *from, size_t n)
{
	CHECK(write(fd, from, n) == (ssize_t)n); /* less than a pipe holds */
}

/* ---- the host ---- */

/* pause_for lets the scanner search this process. */
static void pause_for(char stage)
{
	pid_t self = getpid();
	char go;

	write_full(1, &stage, 1);
	write_full(1, &self, sizeof self);
	read_full(0, &go, 1);
}

static void sign_often(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE key, int times)
{
	CK_MECHANISM mech = {CKM_EDDSA, NULL, 0};
	CK_BYTE msg[2048] = {0}, sig[64];

	for (int i = 0; i < times; i++) {
		CK_ULONG n = sizeof sig;
		memcpy(msg, &i, sizeof i);
		OK(p11->C_SignInit(s, &mech, key));
		/* Long messages too: they are hashed in another way. */
		OK(p11->C_Sign(s, msg, i % 8 ? 32 : sizeof msg, sig, &n));
		CHECK(n == sizeof sig);
	}
}

/* Threads that sign while signals interrupt them: the kernel saves the
 * registers on the signal stack, where they stay until the next signal. The
 * threads live on while the process is searched. */
#define THREADS 24
static struct signer {
	pthread_t thread;
	CK_SESSION_HANDLE s;
	CK_OBJECT_HANDLE key;
} signers[THREADS];
static bool enough;
static pthread_barrier_t signed_all, searched;

static void *sign_on_thread(void *arg)
{
	struct signer *me = arg;

	do
		sign_often(me->s, me->key, 8);
	while (!__atomic_load_n(&enough, __ATOMIC_ACQUIRE));
	pthread_barrier_wait(&signed_all);
	pthread_barrier_wait(&searched);
	return NULL;
}

static void sign_interrupted(CK_OBJECT_HANDLE key)
{
	CK_SLOT_ID slot = find_slot("memscan");

	pthread_barrier_init(&signed_all, NULL, THREADS + 1);
	pthread_barrier_init(&searched, NULL, THREADS + 1);
	for (int i = 0; i < THREADS; i++) {
		signers[i].key = key;
		OK(p11->C_OpenSession(slot, CKF_RW_SERIAL, NULL, NULL, &signers[i].s));
		CHECK(pthread_create(&signers[i].thread, NULL, sign_on_thread, &signers[i]) == 0);
	}
	for (int round = 0; round < 200; round++) {
		for (int i = 0; i < THREADS; i++)
			pthread_kill(signers[i].thread, SIGURG); /* what Go itself uses, to preempt */
		usleep(1000);
	}
	__atomic_store_n(&enough, true, __ATOMIC_RELEASE);
	pthread_barrier_wait(&signed_all);
	pause_for('t');
	pthread_barrier_wait(&searched);
	for (int i = 0; i < THREADS; i++) {
		pthread_join(signers[i].thread, NULL);
		OK(p11->C_CloseSession(signers[i].s));
	}
}

/* without_memfd_secret makes the kernel one that lacks it. */
static void without_memfd_secret(void)
{
	struct sock_filter refuse[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_memfd_secret, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof refuse / sizeof *refuse, refuse};

	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static int secret_mappings(void);

/* in_child forks while the key may be unlocked: the child has no secret memory,
 * and what it has holds no secret. */
static void in_child(void)
{
	CHECK(secret_mappings() > 0);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		CHECK(secret_mappings() == 0);
		pause_for('k');
		_exit(0);
	}
	wait_ok(pid);
	CHECK(secret_mappings() > 0);
}

/* host makes the token and imports the key, or uses both. */
static void host(bool import, bool plain)
{
	struct handed *in = calloc(1, sizeof *in);
	CK_BYTE *control = malloc(sizeof in->control);
	CK_SESSION_HANDLE s;
	CK_OBJECT_HANDLE key;
	CK_SLOT_ID slot;

	CHECK(in && control);
	deadline(300);
	if (plain)
		without_memfd_secret();
	read_full(0, in, sizeof *in);
	memcpy(control, in->control, sizeof in->control);

	load_module();
	OK(p11->C_Initialize(NULL));
	if (import) {
		CK_UTF8CHAR label[32];
		pad_label(label, "memscan");
		OK(p11->C_InitToken(slot = find_slot(NULL), in->so_pin, PIN_LEN, label));
		OK(p11->C_OpenSession(slot, CKF_RW_SERIAL, NULL, NULL, &s));
		OK(p11->C_Login(s, CKU_SO, in->so_pin, PIN_LEN));
		OK(p11->C_InitPIN(s, in->pin, PIN_LEN));
		OK(p11->C_Logout(s));
	} else
		OK(p11->C_OpenSession(find_slot("memscan"), CKF_RW_SERIAL, NULL, NULL, &s));
	OK(p11->C_Login(s, CKU_USER, import ? in->pin : in->pin3, PIN_LEN));
	if (import) {
		CK_ULONG class = CKO_PRIVATE_KEY, type = 0x40; /* CKK_EC_EDWARDS */
		CK_BBOOL yes = 1;
		CK_ATTRIBUTE t[] = {
			{CKA_CLASS, &class, sizeof class}, {0x100, &type, sizeof type}, {CKA_TOKEN, &yes, 1},
			{CKA_PRIVATE, &yes, 1}, {CKA_SIGN, &yes, 1}, {CKA_EC_PARAMS, ed25519_oid, sizeof ed25519_oid},
			{CKA_VALUE, in->seed, sizeof in->seed},
		};
		OK(p11->C_CreateObject(s, t, sizeof t / sizeof *t, &key));
		OK(p11->C_SetPIN(s, in->pin, PIN_LEN, in->pin2, PIN_LEN));
		OK(p11->C_Logout(s));
		OK(p11->C_Login(s, CKU_SO, in->so_pin, PIN_LEN));
		OK(p11->C_SetPIN(s, in->so_pin, PIN_LEN, in->so_pin2, PIN_LEN));
		OK(p11->C_InitPIN(s, in->pin3, PIN_LEN));
		OK(p11->C_Logout(s));
		OK(p11->C_Login(s, CKU_USER, in->pin3, PIN_LEN));
		key = find_key(s, CKO_PRIVATE_KEY);
	} else
		key = find_key(s, CKO_PRIVATE_KEY);
	explicit_bzero(in, sizeof *in);

	pause_for('i');
	sign_often(s, key, SIGNATURES);
	pause_for('s');
	sign_interrupted(key);
	in_child();
	OK(p11->C_Logout(s));
	pause_for('o');
	OK(p11->C_Finalize(NULL));
	pause_for('f');
	memset(control, 0, sizeof in->control);
}

/* host_with keeps everything it is handed, and the module's threads run. */
static void host_with(size_t n)
{
	CK_BYTE *all = malloc(n);

	CHECK(all);
	deadline(60);
	read_full(0, all, n);
	load_module();
	OK(p11->C_Initialize(NULL));
	pause_for('c');
	OK(p11->C_Finalize(NULL));
	memset(all, 0, n);
}

/* ---- the patterns ---- */

struct pattern {
	const char *name;
	CK_BYTE bytes[32];
	size_t len;
	bool key; /* of the key, not a PIN */
};
static struct pattern patterns[16];
static size_t pattern_count;

/* zeros tells whether n bytes are all zero. */
static bool zeros(const CK_BYTE *b, size_t n)
{
	return n == 0 || (b[0] == 0 && memcmp(b, b + 1, n - 1) == 0);
}

static void add(const char *name, const CK_BYTE *bytes, size_t len, bool key)
{
	struct pattern *p = &patterns[pattern_count++];

	CHECK(pattern_count <= sizeof patterns / sizeof *patterns);
	CHECK(!zeros(bytes, len / 2) && !zeros(bytes + len / 2, len / 2));
	p->name = name;
	p->len = len;
	p->key = key;
	memcpy(p->bytes, bytes, len);
}

/* The order of the base point (RFC 8032, section 5.1), little endian. */
static const CK_BYTE order[32] = {
	0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
	[31] = 0x10,
};

/* twice sets x to 2 x + bit, modulo the order; x is less than the order. */
static void twice(CK_BYTE x[32], int bit)
{
	CK_BYTE less[32];
	int borrow = 0;

	for (int i = 0; i < 32; i++) {
		int v = x[i] << 1 | bit;
		x[i] = v & 255;
		bit = v >> 8;
	}
	for (int i = 0; i < 32; i++) {
		int v = x[i] - order[i] - borrow;
		less[i] = v & 255;
		borrow = v < 0;
	}
	if (!borrow)
		memcpy(x, less, 32);
}

/* As the words of SHA-512's message schedule lie in memory. */
static void add_words(const char *name, const CK_BYTE *bytes)
{
	CK_BYTE w[32];

	for (int i = 0; i < 32; i++)
		w[i] = bytes[i ^ 7];
	add(name, w, 32, true);
}

static void make_patterns(const struct handed *h, const CK_BYTE hash[64])
{
	CK_BYTE clamped[32], reduced[32] = {0};

	memcpy(clamped, hash, 32);
	clamped[0] &= 248;
	clamped[31] = (clamped[31] & 63) | 64;
	for (int bit = 255; bit >= 0; bit--)
		twice(reduced, clamped[bit / 8] >> bit % 8 & 1);
	add("seed", h->seed, 32, true);
	add("prefix", hash + 32, 32, true);
	add("hash of the seed, first half", hash, 32, true);
	add("clamped scalar", clamped, 32, true);
	add("reduced scalar", reduced, 32, true);
	for (int i = 0; i < 256; i++)
		twice(reduced, 0);
	add("scalar in Montgomery form", reduced, 32, true);
	add_words("seed in SHA-512 words", h->seed);
	add_words("prefix in SHA-512 words", hash + 32);
	add_words("hash of the seed, first half, in SHA-512 words", hash);
	add("user PIN", h->pin, PIN_LEN, false);
	add("second user PIN", h->pin2, PIN_LEN, false);
	add("third user PIN", h->pin3, PIN_LEN, false);
	add("SO PIN", h->so_pin, PIN_LEN, false);
	add("second SO PIN", h->so_pin2, PIN_LEN, false);
}

/* ---- the scanner ---- */

struct mapping {
	unsigned long lo, hi;
	bool readable, secret;
	char name[128];
};

/* next_mapping reads one entry of smaps. A mapping that is neither dumped nor
 * inherited holds secrets on purpose: the kernels that have memfd_secret do
 * not let it be read, but others lock an ordinary page. */
static bool next_mapping(FILE *smaps, struct mapping *m)
{
	char line[512], perms[8];
	bool in = false;

	while (fgets(line, sizeof line, smaps)) {
		unsigned long lo, hi;
		int at = 0;
		if (sscanf(line, "%lx-%lx %7s %*s %*s %*s %n", &lo, &hi, perms, &at) >= 3 && at) {
			m->lo = lo;
			m->hi = hi;
			m->readable = perms[0] == 'r';
			snprintf(m->name, sizeof m->name, "%.*s", (int)strcspn(line + at, "\n"), line + at);
			in = true;
		} else if (in && strncmp(line, "VmFlags:", 8) == 0) {
			m->secret = strstr(line, " dc") && strstr(line, " dd");
			return true;
		}
	}
	return false;
}

static int secret_mappings(void)
{
	FILE *smaps = fopen("/proc/self/smaps", "re");
	struct mapping m;
	int n = 0;

	CHECK(smaps);
	while (next_mapping(smaps, &m))
		n += m.secret;
	fclose(smaps);
	return n;
}

struct tally {
	unsigned long found[16], secret[16], control;
	unsigned long bytes;
	unsigned long guarded; /* mappings of memfd_secret that could not be read */
	unsigned long by_call, leaks; /* what process_vm_readv reads of the others, and of these */
};

static unsigned long occurrences(const CK_BYTE *in, size_t n, const CK_BYTE *what, size_t len)
{
	unsigned long count = 0;
	const CK_BYTE *p = in;

	while ((p = memmem(p, in + n - p, what, len)) != NULL) {
		count++;
		p++;
	}
	return count;
}

/* search_chunk counts the patterns in n bytes and gives how many it has moved
 * to the beginning, to be searched with the next ones. Either half of a pattern
 * counts, for a vector register or a half-overwritten buffer holds as much. */
static size_t search_chunk(CK_BYTE *buf, size_t n, bool secret, const char *where, const CK_BYTE control[32], struct tally *t)
{
	/* Most of a process was never written. No half of a pattern is all zeros
	 * (make_patterns). */
	for (size_t i = 0; i < pattern_count && !zeros(buf, n); i++) {
		const struct pattern *p = &patterns[i];
		size_t half = p->len / 2;
		unsigned long hits = occurrences(buf, n, p->bytes, half) + occurrences(buf, n, p->bytes + half, half);
		if (hits && !secret)
			printf("    %s: %lu times a half in %s\n", p->name, hits, where);
		*(secret ? &t->secret[i] : &t->found[i]) += hits;
	}
	t->control += occurrences(buf, n, control, 32);
	/* One byte less than a half: what was counted is not counted again. */
	size_t kept = n < 11 ? n : 11;
	memmove(buf, buf + n - kept, kept);
	return kept;
}

/* reads tells whether process_vm_readv gets at a byte. */
static bool reads(pid_t pid, unsigned long at)
{
	CK_BYTE b;
	struct iovec here = {&b, 1}, there = {(void *)at, 1};

	return process_vm_readv(pid, &here, 1, &there, 1, 0) == 1;
}

/* search counts the patterns in the memory of a process. */
static void search(pid_t pid, const CK_BYTE control[32], struct tally *t)
{
	static CK_BYTE buf[CHUNK + 32];
	char path[64];
	struct mapping m;

	memset(t, 0, sizeof *t);
	snprintf(path, sizeof path, "/proc/%d/mem", (int)pid);
	int mem = open(path, O_RDONLY | O_CLOEXEC);
	if (mem < 0)
		FAIL("%s: %s", path, strerror(errno));
	snprintf(path, sizeof path, "/proc/%d/smaps", (int)pid);
	FILE *smaps = fopen(path, "re");
	CHECK(smaps);
	while (next_mapping(smaps, &m)) {
		if (!m.readable)
			continue;
		size_t kept = 0; /* of the chunk before, so that nothing lies across */
		for (unsigned long at = m.lo; at < m.hi;) {
			size_t want = m.hi - at < CHUNK ? m.hi - at : CHUNK;
			ssize_t got = pread(mem, buf + kept, want, at);
			if (got <= 0) {
				if (strstr(m.name, "secretmem")) {
					t->guarded++;
					t->leaks += reads(pid, at);
				}
				break;
			}
			t->by_call += at == m.lo && reads(pid, at);
			at += got;
			kept = search_chunk(buf, kept + got, m.secret, m.name, control, t);
			t->bytes += got;
		}
	}
	fclose(smaps);
	close(mem);
}

struct child {
	pid_t pid;
	int in, out;
};

/* start runs this program anew, as a host. */
static struct child start(const char *role, const char *argument)
{
	int to[2], from[2];
	struct child c;

	CHECK(pipe(to) == 0 && pipe(from) == 0);
	c.pid = fork();
	CHECK(c.pid >= 0);
	if (c.pid == 0) {
		dup2(to[0], 0);
		dup2(from[1], 1);
		for (int i = 0; i < 2; i++) {
			close(to[i]);
			close(from[i]);
		}
		execl("/proc/self/exe", "memscan", role, argument, (char *)NULL);
		_exit(127);
	}
	close(to[0]);
	close(from[1]);
	c.in = to[1];
	c.out = from[0];
	return c;
}

static void finish(struct child *c)
{
	close(c->in);
	close(c->out);
	wait_ok(c->pid);
}

static const char *stage_name(char stage)
{
	switch (stage) {
	case 'i': return "key there, before the first signature";
	case 's': return "after the signatures";
	case 't': return "after signatures that signals interrupted";
	case 'k': return "in a forked child";
	case 'o': return "after C_Logout";
	case 'f': return "after C_Finalize";
	}
	return "every pattern is planted";
}

/* guards tells whether the kernel keeps secret pages from root. The flags are
 * refused with EINVAL where the system call is known and switched on. */
static bool guards(bool plain)
{
	return !plain && syscall(SYS_memfd_secret, ~0U) < 0 && errno == EINVAL;
}

/* dump gives the name of a core dump of a process: the kernel's, of which the
 * process dies, where that goes to the working directory; else gdb's. */
static const char *dump(pid_t pid)
{
	static char name[256];
	char pattern[256] = "", command[64];
	struct rlimit unlimited = {RLIM_INFINITY, RLIM_INFINITY};
	FILE *f = fopen("/proc/sys/kernel/core_pattern", "re");
	glob_t found;

	CHECK(f && fgets(pattern, sizeof pattern, f));
	fclose(f);
	if (strpbrk(pattern, "|/")) {
		snprintf(command, sizeof command, "gcore -o core %d >/dev/null 2>&1", (int)pid);
		CHECK(system(command) == 0);
		CHECK(kill(pid, SIGKILL) == 0);
	} else {
		CHECK(prlimit(pid, RLIMIT_CORE, &unlimited, NULL) == 0);
		CHECK(kill(pid, SIGABRT) == 0);
	}
	CHECK(waitpid(pid, NULL, 0) == pid);
	CHECK(glob("core*", 0, NULL, &found) == 0 && found.gl_pathc == 1);
	snprintf(name, sizeof name, "%s", found.gl_pathv[0]);
	globfree(&found);
	return name;
}

/* scan_dump searches the core dump of a host that has just signed, with the
 * key still unlocked where that is configured. */
static bool scan_dump(const struct handed *h, bool plain)
{
	static CK_BYTE buf[CHUNK + 32];
	struct child c = start("use", plain ? "plain" : "");
	struct tally t = {0};
	char stage;
	size_t kept = 0;
	unsigned long loose = 0;

	write_full(c.in, h, sizeof *h);
	scenario = "core dump";
	pid_t pid;
	for (int i = 0; i < 2; i++) {
		if (i)
			write_full(c.in, "", 1);
		read_full(c.out, &stage, 1);
		read_full(c.out, &pid, sizeof pid);
	}
	CHECK(stage == 's' && pid == c.pid);
	const char *name = dump(c.pid);
	int fd = open(name, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0);
	for (ssize_t got; (got = read(fd, buf + kept, CHUNK)) > 0; t.bytes += got)
		kept = search_chunk(buf, kept + got, false, "the core dump", h->control, &t);
	close(fd);
	unlink(name);
	close(c.in);
	close(c.out);
	for (size_t i = 0; i < pattern_count; i++)
		loose += t.found[i];
	printf("  core dump: %lu hits in %.1f MiB\n", loose, t.bytes / 1048576.0);
	if (t.control == 0)
		puts("    the control value was not found: the search is blind");
	return loose == 0 && t.control;
}

/* scan_host runs a host through its stages. The key may be in secret memory
 * while it is unlocked, and nothing may be anywhere else, ever. */
static bool scan_host(const char *role, const struct handed *h, bool keeps, bool plain)
{
	bool clean = true;
	char stage;
	pid_t pid;
	struct child c = start(role, plain ? "plain" : "");
	struct tally t;

	write_full(c.in, h, sizeof *h);
	do {
		scenario = role;
		read_full(c.out, &stage, 1);
		read_full(c.out, &pid, sizeof pid);
		search(pid, h->control, &t);
		unsigned long loose = 0, secret = 0;
		bool unlocked = keeps && strchr("ist", stage);
		for (size_t i = 0; i < pattern_count; i++) {
			loose += t.found[i];
			/* PINs have no business in a page that outlives C_Login. */
			if (t.secret[i] && !(unlocked && patterns[i].key)) {
				printf("    %s: left %lu times in secret memory\n", patterns[i].name, t.secret[i]);
				loose += t.secret[i];
			} else
				secret += t.secret[i];
		}
		printf("  %s, %s: %lu hits in %.1f MiB", role, stage_name(stage), loose, t.bytes / 1048576.0);
		if (secret)
			printf(", %lu in locked pages, which this kernel lets be read", secret);
		putchar('\n');
		if (t.control == 0) {
			puts("    the control value was not found: the search is blind");
			clean = false;
		}
		if ((guards(plain) && stage != 'k') != (t.guarded > 0)) {
			printf("    %lu pages of memfd_secret that cannot be read\n", t.guarded);
			clean = false;
		}
		if (unlocked && stage != 'i' && !guards(plain) && !secret) {
			puts("    the key was not found where it is: the search is blind");
			clean = false;
		}
		if (t.leaks > 0 || t.by_call == 0) {
			printf("    process_vm_readv reads %lu pages of memfd_secret, and %lu other mappings\n", t.leaks, t.by_call);
			clean = false;
		}
		clean = clean && loose == 0;
		write_full(c.in, "", 1);
	} while (stage != 'f');
	finish(&c);
	return clean;
}

/* scan_control makes sure that the search finds each of the patterns. */
static bool scan_control(const struct handed *h)
{
	CK_BYTE all[sizeof patterns / sizeof *patterns * 32 + 32];
	size_t n = 32;
	bool ok = true;
	char number[32], stage;
	struct tally t;

	memcpy(all, h->control, 32);
	for (size_t i = 0; i < pattern_count; i++) {
		memcpy(all + n, patterns[i].bytes, patterns[i].len);
		n += patterns[i].len;
	}
	snprintf(number, sizeof number, "%zu", n);
	struct child c = start("control", number);
	write_full(c.in, all, n);
	scenario = "control";
	pid_t pid;
	read_full(c.out, &stage, 1);
	read_full(c.out, &pid, sizeof pid);
	puts("  planted in a host:");
	search(pid, h->control, &t);
	for (size_t i = 0; i < pattern_count; i++)
		if (t.found[i] < 2) {
			printf("    %s: planted, but not found\n", patterns[i].name);
			ok = false;
		}
	write_full(c.in, "", 1);
	finish(&c);
	return ok && t.control;
}

static void read_file(const char *path, void *to, size_t n)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		FAIL("%s: %s", path, strerror(errno));
	read_full(fd, to, n);
	close(fd);
}

static void random_pin(CK_BYTE pin[PIN_LEN])
{
	CK_BYTE digits[PIN_LEN];

	read_file("/dev/urandom", digits, sizeof digits);
	for (int i = 0; i < PIN_LEN; i++)
		pin[i] = 'a' + digits[i] % 26;
}

/* memscan SEED HASH SECONDS [plain]: the files with the seed and its SHA-512,
 * and the auto_lock_timeout_secs of the configuration in force; with plain, on
 * a kernel that lacks memfd_secret. */
int main(int argc, char **argv)
{
	struct handed h;
	CK_BYTE hash[64];

	module_path = getenv("MODULE");
	if (argc == 3) {
		scenario = argv[1];
		if (strcmp(argv[1], "control") == 0)
			host_with(atoi(argv[2]));
		else
			host(strcmp(argv[1], "import") == 0, strcmp(argv[2], "plain") == 0);
		return 0;
	}
	if (argc < 4 || argc > 5 || !module_path) {
		fprintf(stderr, "usage: MODULE=... memscan SEED HASH SECONDS [plain]\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	deadline(600);
	read_file(argv[1], h.seed, sizeof h.seed);
	read_file(argv[2], hash, sizeof hash);
	read_file("/dev/urandom", h.control, sizeof h.control);
	random_pin(h.pin);
	random_pin(h.pin2);
	random_pin(h.pin3);
	random_pin(h.so_pin);
	random_pin(h.so_pin2);
	make_patterns(&h, hash);

	bool keeps = atoi(argv[3]) > 0, plain = argc == 5;
	bool ok = scan_host("import", &h, keeps, plain);
	ok &= scan_host("use", &h, keeps, plain);
	ok &= scan_dump(&h, plain);
	ok &= scan_control(&h);
	return ok ? 0 : 1;
}
