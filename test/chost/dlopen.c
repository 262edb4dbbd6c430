/* Loading, unloading, cycles, and the end of the process. */
#include "host.h"

#define LABEL "chost dlopen"

static CK_SESSION_HANDLE session;
static CK_OBJECT_HANDLE priv, pub;
static CK_SLOT_ID slot;

static void in_child(const char *name, void (*f)(void))
{
	scenario = name;
	pid_t pid = fork();
	if (pid == 0) {
		deadline(60);
		f();
		exit(0); /* handlers and destructors are part of the scenario */
	}
	wait_ok(pid);
}

static void host_handler(int s) { (void)s; }

/* Loading has no side effects: no thread, no signal handler, no descriptor. */
static void quiet_load(void)
{
	struct sigaction before[65], after;

	signal(SIGSEGV, host_handler);
	signal(SIGUSR1, host_handler);
	for (int s = 1; s < 65; s++)
		if (sigaction(s, NULL, &before[s]))
			memset(&before[s], 0, sizeof before[s]);
	int fd_before = dup(0);
	close(fd_before);
	load_module();
	CK_ULONG n;
	OK(p11->C_GetInterfaceList(NULL, &n));
	for (int s = 1; s < 65; s++)
		if (sigaction(s, NULL, &after) == 0 &&
		    (after.sa_handler != before[s].sa_handler || after.sa_flags != before[s].sa_flags))
			FAIL("loading changed the action of signal %d", s);
	CHECK(threads_now() == 1);
	int fd_after = dup(0);
	close(fd_after);
	CHECK(fd_before == fd_after);
	CHECK(dlclose(module_handle) == 0);
	CHECK(threads_now() == 1);
}

/* The host's mask is as it was, and its asynchronous signals stay its own. */
static void signals_after_initialize(void)
{
	sigset_t before, after;

	sigemptyset(&before);
	sigemptyset(&after);
	load_module();
	signal(SIGUSR1, host_handler);
	signal(SIGTERM, SIG_DFL);
	signal(SIGINT, SIG_DFL); /* who starts a job in the background ignores it */
	pthread_sigmask(SIG_SETMASK, NULL, &before);
	OK(p11->C_Initialize(NULL));
	pthread_sigmask(SIG_SETMASK, NULL, &after);
	for (int s = 1; s < 65; s++)
		CHECK(sigismember(&before, s) == sigismember(&after, s));
	struct sigaction sa;
	CHECK(sigaction(SIGUSR1, NULL, &sa) == 0 && sa.sa_handler == host_handler);
	CHECK(sigaction(SIGTERM, NULL, &sa) == 0 && sa.sa_handler == SIG_DFL);
	CHECK(sigaction(SIGINT, NULL, &sa) == 0 && sa.sa_handler == SIG_DFL);
	OK(p11->C_Finalize(NULL));
}

static void cycles(void)
{
	load_module();
	for (int i = 0; i < 20; i++) {
		OK(p11->C_Initialize(NULL));
		CK_ULONG n;
		OK(p11->C_GetSlotList(0, NULL, &n));
		if (i % 5 == 0)
			use_token(LABEL);
		OK(p11->C_Finalize(NULL));
		EXPECT(CKR_CRYPTOKI_NOT_INITIALIZED, p11->C_GetSlotList(0, NULL, &n));
		EXPECT(CKR_CRYPTOKI_NOT_INITIALIZED, p11->C_Finalize(NULL));
	}
}

/* Calls through a list that was kept over dlclose must not crash. */
static void unload(void)
{
	for (int i = 0; i < 5; i++) {
		load_module();
		OK(p11->C_Initialize(NULL));
		use_token(LABEL);
		CHECK(dlclose(module_handle) == 0);
		use_token(LABEL);
		OK(p11->C_Finalize(NULL));
	}
}

static void start_session(void)
{
	OK(p11->C_Initialize(NULL));
	slot = find_slot(LABEL);
	session = log_in(LABEL);
	priv = find_key(session, CKO_PRIVATE_KEY);
	pub = find_key(session, CKO_PUBLIC_KEY);
	sign_and_verify(session, priv, pub);
}

/* What OpenSSL's cleanup does, and more. */
static void at_exit(void)
{
	scenario = "exit handler";
	sign_and_verify(session, priv, pub);
	OK(p11->C_Logout(session));
	OK(p11->C_CloseSession(session));
	OK(p11->C_Finalize(NULL));
	EXPECT(CKR_CRYPTOKI_NOT_INITIALIZED, p11->C_CloseSession(session));
	OK(p11->C_Initialize(NULL));
	use_token(LABEL);
	if (module_handle)
		CHECK(dlclose(module_handle) == 0);
	OK(p11->C_Finalize(NULL));
}

/* Handlers run last in, first out: this one after the module's destructors. */
static void exit_handler_first(void)
{
	atexit(at_exit);
	load_module();
	start_session();
}

static void exit_handler_last(void)
{
	load_module();
	start_session();
	atexit(at_exit);
}

static void exit_handler_between(void)
{
	load_module();
	atexit(at_exit);
	start_session();
	CHECK(dlclose(module_handle) == 0);
	module_handle = NULL;
}

static bool destructor_armed;
__attribute__((destructor)) static void destructor(void)
{
	if (destructor_armed)
		at_exit();
}

static void exit_destructor(void)
{
	destructor_armed = true;
	load_module();
	start_session();
}

static void *sign_on(void *arg)
{
	CK_SESSION_HANDLE s;
	CK_BYTE sig[64];
	CK_MECHANISM mech = {CKM_EDDSA, NULL, 0};

	(void)arg;
	if (p11->C_OpenSession(slot, CKF_RW_SERIAL, NULL, NULL, &s) != CKR_OK)
		return NULL;
	for (;;) { /* until the process ends, or the session under it */
		CK_ULONG n = sizeof sig;
		if (p11->C_SignInit(s, &mech, priv) != CKR_OK || p11->C_Sign(s, sig, 32, sig, &n) != CKR_OK)
			return NULL;
	}
}

static void exit_while_signing(void)
{
	pthread_t t[3];

	load_module();
	start_session();
	for (int i = 0; i < 3; i++)
		CHECK(pthread_create(&t[i], NULL, sign_on, NULL) == 0);
	for (int i = 0; i < 20; i++)
		sign_and_verify(session, priv, pub);
}

static void finalize_while_signing(void)
{
	pthread_t t[3];

	exit_handler_last();
	for (int i = 0; i < 3; i++)
		CHECK(pthread_create(&t[i], NULL, sign_on, NULL) == 0);
	for (int i = 0; i < 20; i++)
		sign_and_verify(session, priv, pub);
	OK(p11->C_Finalize(NULL));
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	start_session(); /* for the exit handler */
}

static void create(void)
{
	load_module();
	OK(p11->C_Initialize(NULL));
	make_token(LABEL);
	OK(p11->C_Finalize(NULL));
}

int main(int argc, char **argv)
{
	module_path = argc > 1 ? argv[1] : getenv("MODULE");
	deadline(300);
	in_child("quiet load", quiet_load);
	in_child("signals after C_Initialize", signals_after_initialize);
	in_child("create", create);
	in_child("cycles", cycles);
	in_child("unload", unload);
	in_child("exit handler registered before loading", exit_handler_first);
	in_child("exit handler registered last", exit_handler_last);
	in_child("exit handler after dlclose", exit_handler_between);
	in_child("destructor of the program", exit_destructor);
	in_child("exit while threads sign", exit_while_signing);
	in_child("C_Finalize while threads sign", finalize_while_signing);
	puts("dlopen: ok");
	return 0;
}
