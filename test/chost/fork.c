/* fork() in every form that hosts use, with the module loaded, initialised,
 * and in use by other threads. */
#include "host.h"
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define LABEL "chost fork"

extern char **environ;

static CK_SESSION_HANDLE session;
static CK_OBJECT_HANDLE priv, pub;

static void in_child(const char *name, void (*f)(void))
{
	scenario = name;
	pid_t pid = fork();
	if (pid == 0) {
		deadline(240);
		f();
		exit(0);
	}
	wait_ok(pid);
}

static void start(void)
{
	load_module();
	OK(p11->C_Initialize(NULL));
	session = log_in(LABEL);
	priv = find_key(session, CKO_PRIVATE_KEY);
	pub = find_key(session, CKO_PUBLIC_KEY);
	sign_and_verify(session, priv, pub);
}

/* child_refused checks what a child gets before it calls C_Initialize. */
static void child_refused(void)
{
	CK_INFO info;
	CK_ULONG n = 0;
	CK_BYTE b[64];

	EXPECT(CKR_CRYPTOKI_NOT_INITIALIZED, p11->C_GetInfo(&info));
	EXPECT(CKR_CRYPTOKI_NOT_INITIALIZED, p11->C_Sign(session, b, 1, b, &n));
	EXPECT(CKR_CRYPTOKI_NOT_INITIALIZED, p11->C_GetSlotList(0, NULL, &n));
	EXPECT(CKR_CRYPTOKI_NOT_INITIALIZED, p11->C_CloseSession(session));
	EXPECT(CKR_CRYPTOKI_NOT_INITIALIZED, p11->C_Finalize(NULL));
	OK(p11->C_GetInterfaceList(NULL, &n));
}

static void child_works(void)
{
	deadline(120);
	child_refused();
	OK(p11->C_Initialize(NULL));
	EXPECT(CKR_CRYPTOKI_ALREADY_INITIALIZED, p11->C_Initialize(NULL));
	use_token(LABEL);
}

static void create(void)
{
	load_module();
	OK(p11->C_Initialize(NULL));
	make_token(LABEL);
	OK(p11->C_Finalize(NULL));
}

static void not_initialised(void)
{
	load_module();
	pid_t pid = fork();
	if (pid == 0) {
		child_works();
		exit(0);
	}
	wait_ok(pid);
	start();
}

static void single(void)
{
	start();
	for (int i = 0; i < 4; i++) {
		pid_t pid = fork();
		if (pid == 0) {
			child_works();
			if (i & 2)
				OK(p11->C_Finalize(NULL));
			if (i & 1)
				_exit(0);
			exit(0);
		}
		wait_ok(pid);
		sign_and_verify(session, priv, pub);
	}
	OK(p11->C_Finalize(NULL));
	/* After C_Finalize as well: Go still runs in the parent. */
	pid_t pid = fork();
	if (pid == 0) {
		child_works();
		exit(0);
	}
	wait_ok(pid);
}

/* A child that never uses the module ends as if it were not there. */
static void indifferent_child(void)
{
	start();
	for (int i = 0; i < 10; i++) {
		pid_t pid = fork();
		if (pid == 0) {
			deadline(30);
			if (i & 1)
				_exit(0);
			exit(0);
		}
		wait_ok(pid);
	}
	sign_and_verify(session, priv, pub);
}

static int stop;
static unsigned long signatures;

static void *signer(void *arg)
{
	CK_SESSION_HANDLE s;

	(void)arg;
	OK(p11->C_OpenSession(find_slot(LABEL), CKF_RW_SERIAL, NULL, NULL, &s));
	while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
		sign_and_verify(s, priv, pub);
		__atomic_add_fetch(&signatures, 1, __ATOMIC_RELAXED);
	}
	OK(p11->C_CloseSession(s));
	return NULL;
}

static pthread_t signers[3];

static void start_signers(void)
{
	stop = 0;
	for (int i = 0; i < 3; i++)
		CHECK(pthread_create(&signers[i], NULL, signer, NULL) == 0);
}

static void stop_signers(void)
{
	__atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
	for (int i = 0; i < 3; i++)
		CHECK(pthread_join(signers[i], NULL) == 0);
}

static void busy_200(void)
{
	start();
	start_signers();
	for (int i = 0; i < 200; i++) {
		pid_t pid = fork();
		if (pid == 0) {
			child_works();
			if (i & 1)
				_exit(0);
			exit(0);
		}
		wait_ok(pid);
	}
	stop_signers();
	CHECK(signatures > 0);
	sign_and_verify(session, priv, pub);
}

static void descend(int depth)
{
	if (depth == 0)
		return;
	pid_t pid = fork();
	if (pid == 0) {
		child_works();
		descend(depth - 1);
		use_token(LABEL); /* as a parent, after its own children */
		exit(0);
	}
	wait_ok(pid);
}

static void grandchildren(void)
{
	start();
	descend(8);
	sign_and_verify(session, priv, pub);
}

/* Generations that do not touch the module lie between. */
static void grandchild_only(void)
{
	start();
	pid_t pid = fork();
	if (pid == 0) {
		pid = fork();
		if (pid == 0) {
			child_works();
			exit(0);
		}
		wait_ok(pid);
		child_works();
		exit(0);
	}
	wait_ok(pid);
}

/* A clone that runs no atfork handler. */
static pid_t raw_fork(void)
{
	return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

static void raw_clone(void)
{
	start();
	for (int i = 0; i < 20; i++) {
		pid_t pid = raw_fork();
		if (pid == 0) {
			child_works();
			_exit(0);
		}
		wait_ok(pid);
		sign_and_verify(session, priv, pub);
	}
}

/* With threads running, a raw clone's child may inherit a locked malloc or
 * loader, which is its maker's affair; the answer without C_Initialize is ours. */
static void raw_clone_busy(void)
{
	start();
	start_signers();
	for (int i = 0; i < 50; i++) {
		pid_t pid = raw_fork();
		if (pid == 0) {
			deadline(30);
			child_refused();
			_exit(0);
		}
		wait_ok(pid);
	}
	stop_signers();
}

static void *initialize(void *arg)
{
	(void)arg;
	CK_RV rv = p11->C_Initialize(NULL);
	CHECK(rv == CKR_OK || rv == CKR_CRYPTOKI_ALREADY_INITIALIZED);
	return NULL;
}

/* Not through in_child: each round needs a process where Go never started. */
static void racing_initialize(void)
{
	load_module();
	for (int i = 0; i < 60; i++) {
		pid_t round = fork();
		if (round == 0) {
			pthread_t t;
			deadline(120);
			CHECK(pthread_create(&t, NULL, initialize, NULL) == 0);
			for (int spin = 0; spin < i * 50; spin++)
				sched_yield();
			pid_t pid = fork();
			if (pid == 0) {
				deadline(60);
				OK(p11->C_Initialize(NULL));
				use_token(LABEL);
				_exit(0);
			}
			wait_ok(pid);
			CHECK(pthread_join(t, NULL) == 0);
			use_token(LABEL);
			_exit(0);
		}
		wait_ok(round);
	}
}

/* A clone that runs no handlers, as a fork does that began before the module
 * had any: the child must not wait for a lock of a thread that it has not got.
 * That it may inherit a locked malloc is its maker's affair, so one may hang. */
static void racing_raw_clone(void)
{
	int hung = 0;

	load_module();
	for (int i = 0; i < 30; i++) {
		int st;
		pid_t round = fork();
		if (round == 0) {
			pthread_t t;
			deadline(120);
			CHECK(pthread_create(&t, NULL, initialize, NULL) == 0);
			for (int spin = 0; spin < i * 100; spin++)
				sched_yield();
			pid_t pid = raw_fork();
			if (pid == 0) {
				deadline(30);
				OK(p11->C_Initialize(NULL));
				_exit(0);
			}
			CHECK(waitpid(pid, &st, 0) == pid);
			_exit(WIFSIGNALED(st) && WTERMSIG(st) == SIGALRM ? 2 : WIFEXITED(st) && WEXITSTATUS(st) == 0 ? 0 : 1);
		}
		CHECK(waitpid(round, &st, 0) == round && WIFEXITED(st) && WEXITSTATUS(st) != 1);
		hung += WEXITSTATUS(st) == 2;
		CHECK(hung <= 1);
	}
}

static void *forker(void *arg)
{
	(void)arg;
	for (int i = 0; i < 15; i++) {
		pid_t pid = fork();
		if (pid == 0) {
			child_works();
			_exit(0);
		}
		wait_ok(pid);
	}
	return NULL;
}

static void *cycler(void *arg)
{
	(void)arg;
	while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
		CK_RV rv = p11->C_Initialize(NULL);
		CHECK(rv == CKR_OK || rv == CKR_CRYPTOKI_ALREADY_INITIALIZED);
		CK_ULONG n;
		rv = p11->C_GetSlotList(0, NULL, &n);
		CHECK(rv == CKR_OK || rv == CKR_CRYPTOKI_NOT_INITIALIZED);
		rv = p11->C_Finalize(NULL);
		CHECK(rv == CKR_OK || rv == CKR_CRYPTOKI_NOT_INITIALIZED);
	}
	return NULL;
}

static void forking_threads_and_cycles(void)
{
	pthread_t f[3], c[2];

	load_module();
	OK(p11->C_Initialize(NULL));
	for (int i = 0; i < 2; i++)
		CHECK(pthread_create(&c[i], NULL, cycler, NULL) == 0);
	for (int i = 0; i < 3; i++)
		CHECK(pthread_create(&f[i], NULL, forker, NULL) == 0);
	for (int i = 0; i < 3; i++)
		CHECK(pthread_join(f[i], NULL) == 0);
	__atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
	for (int i = 0; i < 2; i++)
		CHECK(pthread_join(c[i], NULL) == 0);
	CK_RV rv = p11->C_Initialize(NULL);
	CHECK(rv == CKR_OK || rv == CKR_CRYPTOKI_ALREADY_INITIALIZED);
	use_token(LABEL);
}

static void spawning(void)
{
	char *argv[] = {"true", NULL};

	start();
	start_signers();
	for (int i = 0; i < 25; i++) {
		pid_t pid;
		CHECK(system("true") == 0);
		CHECK(posix_spawnp(&pid, "true", NULL, NULL, argv, environ) == 0);
		wait_ok(pid);
		if ((pid = vfork()) == 0) {
			execvp("true", argv);
			_exit(127);
		}
		wait_ok(pid);
		if ((pid = fork()) == 0) {
			execvp("true", argv);
			_exit(127);
		}
		wait_ok(pid);
	}
	stop_signers();
}

/* A thread of the child that ends, with the parent's Go state in its keys. */
static void thread_exit_in_child(void)
{
	start();
	for (int i = 0; i < 20; i++) {
		pid_t pid = fork();
		if (pid == 0) {
			deadline(30);
			pthread_exit(NULL);
		}
		wait_ok(pid);
	}
	sign_and_verify(session, priv, pub);
}

/* nginx: initialised in the master, C_Finalize then C_Initialize in a worker. */
static void workers(void)
{
	pid_t w[4];

	start();
	for (int i = 0; i < 4; i++)
		if ((w[i] = fork()) == 0) {
			deadline(60);
			EXPECT(CKR_CRYPTOKI_NOT_INITIALIZED, p11->C_Finalize(NULL));
			OK(p11->C_Initialize(NULL));
			for (int j = 0; j < 5; j++)
				use_token(LABEL);
			OK(p11->C_Finalize(NULL));
			exit(0);
		}
	for (int i = 0; i < 4; i++)
		wait_ok(w[i]);
	sign_and_verify(session, priv, pub);
}

static CK_RV waited;
static CK_SLOT_ID waited_slot;

static void *wait_for_slot(void *arg)
{
	(void)arg;
	waited = p11->C_WaitForSlotEvent(0, &waited_slot, NULL);
	return NULL;
}

/* A thread of the parent waits for an event, which a child brings about. */
static void waiting(void)
{
	pthread_t t;
	CK_SLOT_ID slot;

	start();
	CHECK(pthread_create(&t, NULL, wait_for_slot, NULL) == 0);
	pid_t pid = fork();
	if (pid == 0) {
		deadline(120);
		EXPECT(CKR_CRYPTOKI_NOT_INITIALIZED, p11->C_WaitForSlotEvent(0, &slot, NULL));
		child_works();
		EXPECT(CKR_NO_EVENT, p11->C_WaitForSlotEvent(CKF_DONT_BLOCK, &slot, NULL));
		make_token("chost made by a child");
		/* What the application does itself is no event. */
		EXPECT(CKR_NO_EVENT, p11->C_WaitForSlotEvent(CKF_DONT_BLOCK, &slot, NULL));
		exit(0);
	}
	wait_ok(pid);
	CHECK(pthread_join(t, NULL) == 0);
	EXPECT(CKR_OK, waited);
	CHECK(waited_slot == find_slot("chost made by a child"));

	CHECK(pthread_create(&t, NULL, wait_for_slot, NULL) == 0);
	OK(p11->C_Finalize(NULL));
	CHECK(pthread_join(t, NULL) == 0);
	EXPECT(CKR_CRYPTOKI_NOT_INITIALIZED, waited);
}

static void close_from(int low)
{
	for (int fd = low; fd < 1024; fd++)
		close(fd);
}

/* A daemon closes every descriptor; the numbers come to mean other files. */
static void closed_descriptors(void)
{
	start();
	pid_t pid = fork();
	if (pid == 0) {
		deadline(60);
		close_from(3);
		for (int i = 0; i < 16; i++)
			CHECK(open("/dev/null", O_RDONLY) >= 0);
		for (int depth = 0; depth < 2; depth++) {
			OK(p11->C_Initialize(NULL)); /* the first from the spare, then from the file */
			use_token(LABEL);
			pid = fork();
			if (pid != 0) {
				wait_ok(pid);
				exit(0);
			}
			deadline(60);
		}
		struct stat st, null;
		CHECK(stat("/dev/null", &null) == 0);
		for (int fd = 3; fd < 19; fd++) /* none of the host's was closed or taken */
			CHECK(fstat(fd, &st) == 0 && st.st_rdev == null.st_rdev);
		exit(0);
	}
	wait_ok(pid);
	sign_and_verify(session, priv, pub);
}

static void chrooted(void)
{
	char dir[] = "/tmp/icn-p11-chroot.XXXXXX";

	if (geteuid() != 0)
		return;
	CHECK(mkdtemp(dir));
	start();
	pid_t pid = fork();
	if (pid == 0) {
		deadline(60);
		unsetenv("ICN_P11_CONF");
		CHECK(chroot(dir) == 0 && chdir("/") == 0);
		child_refused();
		OK(p11->C_Initialize(NULL)); /* built-in defaults; no token is in reach */
		_exit(0);
	}
	wait_ok(pid);
	CHECK(rmdir(dir) == 0);
}

/* ---- a package upgrade under a running host ---- */

static char copy_dir[] = "/tmp/icn-p11-upgrade.XXXXXX", copy_path[64], other_path[64];

/* write_module writes the module to a path; as another build if asked. */
static void write_module(const char *path, bool other)
{
	static const unsigned char note[] = {4, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0, 0, 'G', 'N', 'U', 0};
	struct stat st;
	int in = open(module_path, O_RDONLY), out = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0700);

	CHECK(in >= 0 && out >= 0 && fstat(in, &st) == 0);
	char *buf = malloc((size_t)st.st_size);
	CHECK(buf && read(in, buf, (size_t)st.st_size) == st.st_size);
	if (other) {
		char *id = memmem(buf, (size_t)st.st_size, note, sizeof note);
		CHECK(id);
		id[sizeof note] ^= 1;
	}
	CHECK(write(out, buf, (size_t)st.st_size) == st.st_size);
	free(buf);
	close(in);
	close(out);
}

/* The module's own descriptor of the file that it came from. */
static int own_descriptor(void)
{
	char link[64], target[256];

	for (int fd = 3; fd < 256; fd++) {
		snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
		ssize_t n = readlink(link, target, sizeof target - 1);
		if (n > 0 && (target[n] = 0, strcmp(target, copy_path) == 0))
			return fd;
	}
	FAIL("no descriptor of %s is kept", copy_path);
}

static void upgrade(void)
{
	write_module(copy_path, false);
	load_module_from(copy_path);
	OK(p11->C_Initialize(NULL));
	int own = own_descriptor();
	CHECK(fcntl(own, F_GETFD) & FD_CLOEXEC);
	write_module(other_path, true);
	CHECK(rename(other_path, copy_path) == 0);

	pid_t pid = fork(); /* from the kept descriptor: still the old build */
	if (pid == 0) {
		child_works();
		exit(0);
	}
	wait_ok(pid);
}

static void upgrade_unnoticed(void)
{
	write_module(copy_path, false);
	load_module_from(copy_path);
	OK(p11->C_Initialize(NULL));
	close(own_descriptor());
	write_module(other_path, true);
	CHECK(rename(other_path, copy_path) == 0);

	pid_t pid = fork(); /* only the new build is in reach: refuse, do not mix */
	if (pid == 0) {
		deadline(30);
		child_refused();
		EXPECT(CKR_GENERAL_ERROR, p11->C_Initialize(NULL));
		child_refused();
		exit(0);
	}
	wait_ok(pid);
	use_token(LABEL);
}

static void relative_path(void)
{
	write_module(copy_path, false);
	CHECK(chdir(copy_dir) == 0);
	load_module_from("./icn-p11.so");
	CHECK(chdir("/") == 0);
	OK(p11->C_Initialize(NULL));
	pid_t pid = fork();
	if (pid == 0) {
		child_works();
		exit(0);
	}
	wait_ok(pid);
}

static void upgrades(void)
{
	CHECK(mkdtemp(copy_dir));
	snprintf(copy_path, sizeof copy_path, "%s/icn-p11.so", copy_dir);
	snprintf(other_path, sizeof other_path, "%s/other.so", copy_dir);
	in_child("file replaced after C_Initialize", upgrade);
	in_child("file replaced and descriptor closed", upgrade_unnoticed);
	in_child("loaded by a relative path", relative_path);
	unlink(copy_path);
	unlink(other_path);
	CHECK(rmdir(copy_dir) == 0);
}

int main(int argc, char **argv)
{
	module_path = argc > 1 ? argv[1] : getenv("MODULE");
	deadline(900);
	in_child("create", create);
	in_child("loaded, not initialised", not_initialised);
	in_child("single-threaded", single);
	in_child("child that does not use it", indifferent_child);
	in_child("workers", workers);
	in_child("grandchildren", grandchildren);
	in_child("grandchild only", grandchild_only);
	in_child("raw clone", raw_clone);
	in_child("raw clone while signing", raw_clone_busy);
	in_child("pthread_exit in the child", thread_exit_in_child);
	in_child("waiting for a slot event", waiting);
	in_child("closed descriptors", closed_descriptors);
	in_child("chroot", chrooted);
	upgrades();
	in_child("fork during C_Initialize", racing_initialize);
	in_child("raw clone during C_Initialize", racing_raw_clone);
	in_child("forking threads, C_Initialize cycles", forking_threads_and_cycles);
	in_child("system, posix_spawn, vfork, fork and exec", spawning);
	in_child("200 forks while signing", busy_200);
	puts("fork: ok");
	return 0;
}
