/*
 * The C half of the module: the function lists, the entry points, and what
 * lets a Go runtime live in a process that forks.
 *
 * A Go runtime does not survive fork(): the child has one thread and the
 * scheduler waits for the others for ever. So Go is not started when the
 * module is loaded but in C_Initialize (ld-defer.sh keeps its initialiser out
 * of .init_array), and a child gets a runtime of its own: a second copy of
 * this file, loaded from a fresh inode, whose Go has never been started. The
 * copy is an engine only. The object that the host loaded stays the
 * dispatcher in every generation, because the host holds its addresses.
 *
 * The copy is loaded before fork, in the prepare handler, so that the child,
 * which may be chrooted or short of descriptors, has only to start it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include "cryptoki.h"
#include "_cgo_export.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

#define load(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define store(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)

/* ---- the engine: what a loaded copy of this file offers a dispatcher ---- */

#define MEMBER_LOCAL(name)
#define MEMBER_ABSENT(name)
#define MEMBER_LEGACY(name)
#define MEMBER_GO(name) __typeof__(go_##name) *name;
#define ENGINE_MEMBER(kind, name, params, pass, ptrs) MEMBER_##kind(name)
typedef struct engine {
	bool started; /* its Go has been started, in this process or in one that it was forked from */
	bool (*start)(void);
	void (*orphan)(void);
	__typeof__(go_C_Initialize) *initialize;
	__typeof__(go_C_Finalize) *finalize;
	CK_FUNCTIONS_2_40(ENGINE_MEMBER)
	CK_FUNCTIONS_3_0(ENGINE_MEMBER)
	CK_FUNCTIONS_3_2(ENGINE_MEMBER)
} engine;

static bool engine_start(void);
static void engine_orphan(void);

#define INIT_LOCAL(name)
#define INIT_ABSENT(name)
#define INIT_LEGACY(name)
#define INIT_GO(name) .name = go_##name,
#define ENGINE_INIT(kind, name, params, pass, ptrs) INIT_##kind(name)
static engine self = {
	.start = engine_start,
	.orphan = engine_orphan,
	.initialize = go_C_Initialize,
	.finalize = go_C_Finalize,
	CK_FUNCTIONS_2_40(ENGINE_INIT)
	CK_FUNCTIONS_3_0(ENGINE_INIT)
	CK_FUNCTIONS_3_2(ENGINE_INIT)
};

/* Go's initialisers, which ld-defer.sh moved here. Weak: a plain build of this
 * package (a test binary) has them in .init_array, and Go runs already. */
typedef void (*initialiser)(int, char **, char **);
extern initialiser __start_go_init_array[] __attribute__((weak, visibility("hidden")));
extern initialiser __stop_go_init_array[] __attribute__((weak, visibility("hidden")));

extern const ElfW(Ehdr) __ehdr_start __attribute__((visibility("hidden")));

/* runtime/cgo's pointer to the Go function that detaches an exiting thread. */
extern void (*x_crosscall2_ptr)(void (*)(void *), void *, int, size_t);

static struct sigaction host_actions[_NSIG];

static const ElfW(Phdr) *program_headers(void)
{
	return (const void *)((const char *)&__ehdr_start + __ehdr_start.e_phoff);
}

static uintptr_t load_bias(void)
{
	const ElfW(Phdr) *ph = program_headers();

	for (int i = 0; i < __ehdr_start.e_phnum; i++)
		if (ph[i].p_type == PT_LOAD && ph[i].p_offset == 0)
			return (uintptr_t)&__ehdr_start - ph[i].p_vaddr;
	return (uintptr_t)&__ehdr_start;
}

/* dladdr would do, but takes the loader's lock, which a fork child cannot trust. */
static bool in_this_object(uintptr_t addr)
{
	const ElfW(Phdr) *ph = program_headers();
	uintptr_t bias = load_bias();

	for (int i = 0; i < __ehdr_start.e_phnum; i++)
		if (ph[i].p_type == PT_LOAD && addr - bias - ph[i].p_vaddr < ph[i].p_memsz)
			return true;
	return false;
}

static void *no_op(void *arg)
{
	return arg;
}

/*
 * initial_stack is what Go finds at argv: the arguments, the environment and
 * the auxiliary vector. The environment is empty: a host may change its own
 * until C_Initialize, which reads what it needs (environment.go), and variables
 * that tune a Go host are not meant for this runtime. AT_RANDOM is left out:
 * Go would seed itself with it, and wipe it, in parent and child alike.
 */
static char **initial_stack(void)
{
	static const unsigned long wanted[] = {AT_PAGESZ, AT_SYSINFO_EHDR, AT_HWCAP, AT_HWCAP2, AT_SECURE};
	static uintptr_t stack[3 + 2 * (sizeof wanted / sizeof wanted[0]) + 2] = {(uintptr_t)"icn-p11"};
	size_t n = 3;

	for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
		unsigned long value = getauxval(wanted[i]);
		if (value) {
			stack[n++] = wanted[i];
			stack[n++] = value;
		}
	}
	return (char **)stack;
}

/* engine_start starts this copy's Go runtime. */
static bool engine_start(void)
{
	char **argv = initial_stack();
	sigset_t block, old;
	pthread_t probe;

	if (self.started)
		return true;
	/* Go aborts the process when it cannot make its first thread; find out before. */
	if (pthread_create(&probe, NULL, no_op, NULL) != 0)
		return false;
	pthread_join(probe, NULL);

	self.started = true;
	for (int s = 1; s < _NSIG; s++)
		if (sigaction(s, NULL, &host_actions[s]) != 0)
			host_actions[s].sa_handler = SIG_DFL;

	/* Go's threads inherit this mask, so the host's handlers never run on their
	 * stacks. The signals left open are synchronous or Go's own (SIGURG). */
	sigfillset(&block);
	sigdelset(&block, SIGSEGV);
	sigdelset(&block, SIGBUS);
	sigdelset(&block, SIGFPE);
	sigdelset(&block, SIGILL);
	sigdelset(&block, SIGTRAP);
	sigdelset(&block, SIGABRT);
	sigdelset(&block, SIGSYS);
	sigdelset(&block, SIGURG);
	pthread_sigmask(SIG_SETMASK, &block, &old);
	for (initialiser *f = __start_go_init_array; f < __stop_go_init_array; f++)
		(*f)(1, argv, argv + 2);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return true;
}

/* engine_orphan makes a runtime that fork left without threads inert: its
 * signal handlers go, and an exiting thread no longer calls into it. */
static void engine_orphan(void)
{
	struct sigaction now;

	x_crosscall2_ptr = NULL;
	for (int s = 1; s < _NSIG; s++)
		if (sigaction(s, NULL, &now) == 0 && in_this_object((uintptr_t)now.sa_handler))
			sigaction(s, &host_actions[s], NULL);
}

/*
 * engine_name writes the interface name under which a copy hands out its
 * engine. It holds the build-id, so a dispatcher and a copy of another build
 * (the package was upgraded under a running host) never meet: the layout of
 * the engine is private to one build. Empty when the file has no build-id.
 */
static void engine_name(char *buf, size_t n)
{
	const ElfW(Phdr) *ph = program_headers();
	uintptr_t bias = load_bias();

	buf[0] = '\0';
	for (int i = 0; i < __ehdr_start.e_phnum; i++) {
		if (ph[i].p_type != PT_NOTE)
			continue;
		const size_t align = ph[i].p_align == 8 ? 7 : 3;
		const char *p = (const char *)(bias + ph[i].p_vaddr), *end = p + ph[i].p_memsz;
		while (end - p >= (ptrdiff_t)sizeof(ElfW(Nhdr))) {
			const ElfW(Nhdr) *note = (const void *)p;
			const char *name = p + sizeof *note;
			const unsigned char *desc = (const void *)(name + ((note->n_namesz + align) & ~align));
			if (note->n_type == NT_GNU_BUILD_ID && note->n_namesz == 4 && memcmp(name, "GNU", 4) == 0) {
				size_t at = (size_t)snprintf(buf, n, "icn-p11 engine ");
				for (size_t j = 0; j < note->n_descsz && at + 3 < n; j++)
					at += (size_t)snprintf(buf + at, n - at, "%02x", desc[j]);
				return;
			}
			p = (const char *)desc + ((note->n_descsz + align) & ~align);
		}
	}
}

/* ---- the dispatcher: only the object that the host loaded uses the rest ---- */

/*
 * Locks, in the order in which they are taken. load_lock is held while a copy
 * is loaded, engine_lock while one is started; fork waits for both, so no
 * child inherits half of either. init_lock keeps `active` in step with the
 * engine's own state; fork does not wait for it, so a slow C_Initialize delays
 * nobody's fork. C_Initialize of a process that needs no copy never takes
 * load_lock: a constructor may call it while it holds the loader's lock, for
 * which a forking thread waits under load_lock.
 */
static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t engine_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t init_lock = PTHREAD_MUTEX_INITIALIZER;

static bool lost;       /* this object's own Go ran in a process that this one was forked from */
static engine *current; /* the engine that runs in this process */
static engine *spare;   /* a loaded copy whose Go has not been started */
static engine *active;  /* current, between C_Initialize and C_Finalize */

/*
 * owner says whose process this is. It lies in a page that the kernel wipes
 * in a child, however the child was made: clone() and _Fork() run no atfork
 * handlers. On kernels without MADV_WIPEONFORK only the handlers are left.
 */
enum { WIPED, TAKING, OURS };
static int owner_without_wipe;
static int *owner;

static void take_owner(int state)
{
	if (!owner) {
		void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (page != MAP_FAILED && madvise(page, 4096, MADV_WIPEONFORK) != 0) {
			munmap(page, 4096);
			page = MAP_FAILED;
		}
		int *p = page != MAP_FAILED ? page : &owner_without_wipe;
		*p = state;
		store(&owner, p);
		return;
	}
	store(owner, state);
}

static inline engine *live(void)
{
	int *p = load(&owner);

	return p && load(p) == OURS ? load(&active) : NULL;
}

/* The file that this object was loaded from, as it was at the first
 * C_Initialize: a package upgrade puts another file at the same path. */
static struct {
	int fd; /* close-on-exec; the host may close it, and then the number may be anything */
	dev_t dev;
	ino_t ino;
	char path[PATH_MAX];
} file = {.fd = -1};

static void find_path(void)
{
	Dl_info di;
	char line[PATH_MAX + 128];
	FILE *maps;

	if (dladdr(&self, &di) && di.dli_fname && di.dli_fname[0] == '/' && strlen(di.dli_fname) < sizeof file.path) {
		strcpy(file.path, di.dli_fname);
		return;
	}
	/* Loaded by a relative name, and the working directory may have changed since. */
	maps = fopen("/proc/self/maps", "re");
	while (maps && fgets(line, sizeof line, maps)) {
		unsigned long lo, hi;
		int at = 0;
		if (sscanf(line, "%lx-%lx %*s %*s %*s %*s %n", &lo, &hi, &at) == 2 && at > 0 &&
		    line[at] == '/' && (uintptr_t)&self >= lo && (uintptr_t)&self < hi) {
			line[strcspn(line, "\n")] = '\0';
			strcpy(file.path, line + at);
			break;
		}
	}
	if (maps)
		fclose(maps);
}

static int open_file(void)
{
	struct stat st;

	if (file.fd >= 0 && fstat(file.fd, &st) == 0 && st.st_dev == file.dev && st.st_ino == file.ino)
		return file.fd;
	file.fd = -1;
	if (!file.path[0])
		find_path();
	int fd = open(file.path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (fd < 0)
		return -1;
	if (fd <= STDERR_FILENO) {
		/* A daemon that closed its standard descriptors expects to get them back. */
		int high = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
		close(fd);
		fd = high;
	}
	if (fd < 0 || fstat(fd, &st) != 0)
		return -1;
	file.dev = st.st_dev;
	file.ino = st.st_ino;
	return file.fd = fd;
}

static bool copy_file(int in, int out)
{
	struct stat st;
	off_t at = 0;

	if (fstat(in, &st) != 0)
		return false;
	while (at < st.st_size)
		if (sendfile(out, in, &at, (size_t)(st.st_size - at)) <= 0)
			return false;
	return true;
}

/* dlopen_engine loads a copy from path and takes its engine. */
static engine *dlopen_engine(const char *path)
{
	__typeof__(C_GetInterface) *get;
	CK_INTERFACE_PTR itf = NULL;
	char name[128];
	engine *e;

	void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!handle)
		return NULL;
	*(void **)&get = dlsym(handle, "C_GetInterface");
	engine_name(name, sizeof name);
	if (!get || !name[0] || get((CK_UTF8CHAR_PTR)name, NULL, &itf, 0) != CKR_OK || !itf)
		return NULL;
	e = itf->pFunctionList;
	return e == &self || e->started ? NULL : e;
}

/* load_copy loads a copy of this file from an inode of its own, so that the
 * dynamic linker does not find it already loaded. Call it under load_lock. */
static engine *load_copy(void)
{
	static int copies; /* inherited over fork: counts the copies in this address space */
	char path[1100], tmp[] = "/tmp/icn-p11.XXXXXX";
	engine *e = NULL;
	int in = open_file();

	if (in < 0 || ++copies > 500)
		return NULL;
	int fd = memfd_create("icn-p11", MFD_CLOEXEC | MFD_NOEXEC_SEAL);
	if (fd < 0 && errno == EINVAL) /* Linux before 6.3 */
		fd = memfd_create("icn-p11", MFD_CLOEXEC);
	if (fd >= 0) {
		/* The linker compares names before it looks at inodes, and an
		 * earlier generation may have used the same number. */
		int n = snprintf(path, sizeof path, "/proc/self/fd/");
		for (int i = 0; i < copies; i++)
			n += snprintf(path + n, sizeof path - (size_t)n, "./");
		snprintf(path + n, sizeof path - (size_t)n, "%d", fd);
		if (copy_file(in, fd))
			e = dlopen_engine(path);
		close(fd);
	}
	if (e)
		return e;
	/* No memfd, or no /proc to name it by. */
	fd = mkostemp(tmp, O_CLOEXEC);
	if (fd < 0)
		return NULL;
	if (copy_file(in, fd))
		e = dlopen_engine(tmp);
	unlink(tmp);
	close(fd);
	return e;
}

static void fork_prepare(void)
{
	int saved = errno;

	pthread_mutex_lock(&load_lock);
	if (load(&current) && !spare)
		spare = load_copy();
	pthread_mutex_lock(&engine_lock);
	errno = saved;
}

static void fork_parent(void)
{
	pthread_mutex_unlock(&engine_lock);
	pthread_mutex_unlock(&load_lock);
}

static void fork_child(void)
{
	static const pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;

	store(&active, NULL);
	if (current)
		current->orphan();
	else if (self.started && !lost)
		self.orphan();
	store(&current, NULL);
	store(&lost, self.started);
	load_lock = engine_lock = init_lock = fresh;
	if (owner)
		take_owner(OURS);
}

static void register_fork_handlers(void)
{
	pthread_atfork(fork_prepare, fork_parent, fork_child);
	/* A fork that has begun runs none of them, and its child must notice that
	 * before it waits for a lock that its parent held. */
	take_owner(OURS);
}

/* settle notices that this process is the child of a clone() that ran no
 * handlers, and does their work; one thread does it, the others wait. */
static void settle(void)
{
	int *p = load(&owner), seen = WIPED;

	if (!p)
		return;
	if (__atomic_compare_exchange_n(p, &seen, TAKING, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
		fork_child();
		return;
	}
	while (load(p) != OURS)
		sched_yield();
}

static engine *start_engine(void)
{
	engine *e;

	pthread_mutex_lock(&engine_lock);
	if (!(e = load(&current)) && (!lost || spare)) {
		e = lost ? spare : &self;
		if (e != &self)
			spare = NULL;
		else
			open_file();
		if (e->start()) {
			take_owner(OURS);
			store(&current, e);
		} else {
			if (e != &self)
				spare = e;
			syslog(LOG_ERR, "icn-p11: cannot start: no thread can be created (limit on processes or memory?)");
			e = NULL;
		}
	}
	pthread_mutex_unlock(&engine_lock);
	return e;
}

/* ensure_engine gives the engine of this process, started. */
static engine *ensure_engine(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	engine *e;

	pthread_once(&once, register_fork_handlers);
	settle();
	if ((e = load(&current)) || !load(&lost) || load(&spare))
		return e ? e : start_engine();

	pthread_mutex_lock(&load_lock);
	if (!load(&current) && !load(&spare)) {
		engine *copy = load_copy();
		pthread_mutex_lock(&engine_lock);
		spare = copy;
		pthread_mutex_unlock(&engine_lock);
		if (!copy)
			syslog(LOG_ERR, "icn-p11: cannot load %s again after fork; was it replaced? Restart the program.", file.path);
	}
	pthread_mutex_unlock(&load_lock);
	return start_engine();
}

/* ---- the entry points ---- */

/*
 * An address in the first page is no pointer, whatever a host says: it is
 * mostly NULL plus an offset. Go's stack copier takes such a value for a
 * corrupt pointer and ends the process, so it must not get that far.
 */
static inline bool wild(const void *const *ptrs, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (ptrs[i] && (uintptr_t)ptrs[i] < 4096)
			return true;
	return false;
}
/* With length 0 there is nothing to point to, and languages without NULL pass
 * some small number (Rust: the alignment). It stays distinct from NULL. */
static CK_ATTRIBUTE nothing;
#define CK_SOME(p) (n##p || !(p) ? (void *)(p) : (void *)&nothing)
#define LIST(...) NULL, ##__VA_ARGS__
#define WILD(ptrs) \
	wild((const void *const[]){LIST ptrs}, sizeof((const void *const[]){LIST ptrs}) / sizeof(void *))

#define DEFINE_LOCAL(name, params, pass, ptrs)
#define DEFINE_GO(name, params, pass, ptrs) \
	CK_RV name params \
	{ \
		engine *e = live(); \
		if (!e) \
			return CKR_CRYPTOKI_NOT_INITIALIZED; \
		if (WILD(ptrs)) \
			return CKR_ARGUMENTS_BAD; \
		return e->name pass; \
	}
#define DEFINE_ABSENT(name, params, pass, ptrs) \
	CK_RV name params \
	{ \
		return live() ? CKR_FUNCTION_NOT_SUPPORTED : CKR_CRYPTOKI_NOT_INITIALIZED; \
	}
#define DEFINE_LEGACY(name, params, pass, ptrs) \
	CK_RV name params \
	{ \
		return live() ? CKR_FUNCTION_NOT_PARALLEL : CKR_CRYPTOKI_NOT_INITIALIZED; \
	}
#define DEFINE(kind, name, params, pass, ptrs) DEFINE_##kind(name, params, pass, ptrs)
CK_FUNCTIONS_2_40(DEFINE)
CK_FUNCTIONS_3_0(DEFINE)
CK_FUNCTIONS_3_2(DEFINE)

CK_RV C_Initialize(CK_VOID_PTR args)
{
	engine *e;
	CK_RV rv;

	if (WILD((args)))
		return CKR_ARGUMENTS_BAD;
	if (!(e = ensure_engine()))
		return CKR_GENERAL_ERROR;
	pthread_mutex_lock(&init_lock);
	rv = e->initialize(args);
	if (rv == CKR_OK)
		store(&active, e);
	pthread_mutex_unlock(&init_lock);
	return rv;
}

CK_RV C_Finalize(CK_VOID_PTR reserved)
{
	engine *e = live();
	CK_RV rv;

	if (!e)
		return CKR_CRYPTOKI_NOT_INITIALIZED;
	if (reserved)
		return CKR_ARGUMENTS_BAD;
	pthread_mutex_lock(&init_lock);
	rv = e->finalize();
	if (rv == CKR_OK)
		store(&active, NULL);
	pthread_mutex_unlock(&init_lock);
	return rv;
}

#define ENTRY(kind, name, params, pass, ptrs) .name = name,
static CK_FUNCTION_LIST list_2_40 = {
	.version = {2, 40},
	CK_FUNCTIONS_2_40(ENTRY)
};
static CK_FUNCTION_LIST_3_0 list_3_0 = {
	.version = {3, 0},
	CK_FUNCTIONS_2_40(ENTRY)
	CK_FUNCTIONS_3_0(ENTRY)
};
static CK_FUNCTION_LIST_3_2 list_3_2 = {
	.version = {3, 2},
	CK_FUNCTIONS_2_40(ENTRY)
	CK_FUNCTIONS_3_0(ENTRY)
	CK_FUNCTIONS_3_2(ENTRY)
};

/* The default first: each list begins with the entries of the older ones, so
 * a client that knows an older one finds it in the default. Flags are 0:
 * CKF_INTERFACE_FORK_SAFE would promise that state survives into a child, where
 * PKCS#11 wants a C_Initialize instead. */
static CK_INTERFACE interfaces[] = {
	{(CK_CHAR *)"PKCS 11", &list_3_2, 0},
	{(CK_CHAR *)"PKCS 11", &list_3_0, 0},
	{(CK_CHAR *)"PKCS 11", &list_2_40, 0},
};
enum { INTERFACES = sizeof interfaces / sizeof interfaces[0] };
static CK_INTERFACE engine_interface = {NULL, &self, 0};

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list)
{
	if (!list || WILD((list)))
		return CKR_ARGUMENTS_BAD;
	*list = &list_2_40;
	return CKR_OK;
}

CK_RV C_GetInterfaceList(CK_INTERFACE_PTR list, CK_ULONG_PTR n)
{
	CK_ULONG room;

	if (!n || WILD((list, n)))
		return CKR_ARGUMENTS_BAD;
	room = *n;
	*n = INTERFACES;
	if (!list)
		return CKR_OK;
	if (room < INTERFACES)
		return CKR_BUFFER_TOO_SMALL;
	memcpy(list, interfaces, sizeof interfaces);
	return CKR_OK;
}

CK_RV C_GetInterface(CK_UTF8CHAR_PTR name, CK_VERSION_PTR version, CK_INTERFACE_PTR *out, CK_FLAGS flags)
{
	char private_name[128];

	if (!out || WILD((name, version, out)))
		return CKR_ARGUMENTS_BAD;
	for (int i = 0; i < INTERFACES; i++) {
		/* Every function list begins with its version. */
		const CK_VERSION *v = interfaces[i].pFunctionList;
		if ((name && strcmp((char *)name, (char *)interfaces[i].pInterfaceName) != 0) ||
		    (version && (version->major != v->major || version->minor != v->minor)) ||
		    (flags & ~interfaces[i].flags) != 0)
			continue;
		*out = &interfaces[i];
		return CKR_OK;
	}
	engine_name(private_name, sizeof private_name);
	if (name && private_name[0] && strcmp((char *)name, private_name) == 0) {
		*out = &engine_interface;
		return CKR_OK;
	}
	return CKR_ARGUMENTS_BAD;
}
