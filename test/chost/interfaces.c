/* The function lists and interfaces, and what every entry answers before
 * C_Initialize, after it, and after C_Finalize. Needs no TPM. */
#include "host.h"

static void check_lists(void)
{
	CK_RV (*get_list)(CK_FUNCTION_LIST **);
	CK_RV (*get_itfs)(CK_INTERFACE_PTR, CK_ULONG_PTR);
	CK_RV (*get_itf)(CK_UTF8CHAR_PTR, CK_VERSION_PTR, CK_INTERFACE_PTR *, CK_FLAGS);
	CK_FUNCTION_LIST *l = NULL;
	CK_INTERFACE itfs[8], *itf;
	CK_ULONG n;

	*(void **)&get_list = dlsym(module_handle, "C_GetFunctionList");
	*(void **)&get_itfs = dlsym(module_handle, "C_GetInterfaceList");
	*(void **)&get_itf = dlsym(module_handle, "C_GetInterface");

	EXPECT(CKR_ARGUMENTS_BAD, get_list(NULL));
	OK(get_list(&l));
	CHECK(l->version.major == 2 && l->version.minor == 40);

	EXPECT(CKR_ARGUMENTS_BAD, get_itfs(NULL, NULL));
	OK(get_itfs(NULL, &n));
	CHECK(n == 3);
	n = 2;
	EXPECT(CKR_BUFFER_TOO_SMALL, get_itfs(itfs, &n));
	CHECK(n == 3);
	n = 8;
	OK(get_itfs(itfs, &n));
	CHECK(n == 3);
	/* The default first, then older ones. Every list has the entries of the
	 * older ones at its beginning. */
	static const struct {
		CK_BYTE major, minor;
		int entries;
	} lists[] = {{3, 2, 104}, {3, 0, 92}, {2, 40, 68}};
	for (CK_ULONG i = 0; i < n; i++) {
		CK_VERSION *v = itfs[i].pFunctionList;
		CHECK(strcmp((char *)itfs[i].pInterfaceName, "PKCS 11") == 0);
		CHECK(itfs[i].flags == 0);
		CHECK(v->major == lists[i].major && v->minor == lists[i].minor);
		for (int j = 0; j < lists[i].entries; j++) {
			void *f = ((void **)((char *)v + sizeof(void *)))[j];
			CHECK(f && f == dlsym(module_handle, entries[j].name));
		}
	}

	CK_UTF8CHAR_PTR name = (CK_UTF8CHAR_PTR) "PKCS 11";
	CK_VERSION v240 = {2, 40}, v30 = {3, 0}, v31 = {3, 1}, v32 = {3, 2}, v220 = {2, 20};
	EXPECT(CKR_ARGUMENTS_BAD, get_itf(name, NULL, NULL, 0));
	OK(get_itf(NULL, NULL, &itf, 0));
	CHECK(itf->pFunctionList == p11 && itf->pFunctionList == itfs[0].pFunctionList);
	OK(get_itf(name, NULL, &itf, 0));
	CHECK(itf->pFunctionList == p11);
	OK(get_itf(name, &v32, &itf, 0));
	CHECK(itf->pFunctionList == p11);
	OK(get_itf(name, &v30, &itf, 0));
	CHECK(itf->pFunctionList == itfs[1].pFunctionList);
	OK(get_itf(NULL, &v30, &itf, 0));
	CHECK(itf->pFunctionList == itfs[1].pFunctionList);
	OK(get_itf(name, &v240, &itf, 0));
	CHECK(itf->pFunctionList == l);
	OK(get_itf(NULL, &v240, &itf, 0));
	CHECK(itf->pFunctionList == l);
	EXPECT(CKR_ARGUMENTS_BAD, get_itf(name, &v31, &itf, 0));
	EXPECT(CKR_ARGUMENTS_BAD, get_itf(name, &v220, &itf, 0));
	EXPECT(CKR_ARGUMENTS_BAD, get_itf(name, &v30, &itf, 1));
	EXPECT(CKR_ARGUMENTS_BAD, get_itf(NULL, NULL, &itf, 1));
	EXPECT(CKR_ARGUMENTS_BAD, get_itf((CK_UTF8CHAR_PTR) "Vendor NSS Module Interface", NULL, &itf, 0));
	EXPECT(CKR_ARGUMENTS_BAD, get_itf((CK_UTF8CHAR_PTR) "icn-p11 engine ", NULL, &itf, 0));
	EXPECT(CKR_ARGUMENTS_BAD, get_itf((CK_UTF8CHAR_PTR) "", NULL, &itf, 0));

	CHECK(p11->version.major == 3 && p11->version.minor == 2);
	CHECK(ENTRIES == 104);
	for (int i = 0; i < ENTRIES; i++)
		CHECK(FUNCTION(entries[i]) && FUNCTION(entries[i]) == dlsym(module_handle, entries[i].name));
}

/* Each entry but C_Initialize and the three that say what there is. */
static void check_not_initialised(void)
{
	static const uintptr_t zero[10];

	for (int i = 0; i < ENTRIES; i++) {
		if (!strcmp(entries[i].name, "C_Initialize") || !strncmp(entries[i].name, "C_GetInterface", 14) ||
		    !strcmp(entries[i].name, "C_GetFunctionList"))
			continue;
		CK_RV rv = CALL_ANY(FUNCTION(entries[i]), zero);
		if (rv != CKR_CRYPTOKI_NOT_INITIALIZED)
			FAIL("%s without C_Initialize = 0x%lx", entries[i].name, rv);
	}
}

static void check_absent(void)
{
	static const uintptr_t zero[10];

	for (int i = 0; i < ENTRIES; i++) {
		if (entries[i].kind != ABSENT && entries[i].kind != LEGACY)
			continue;
		CK_RV rv = CALL_ANY(FUNCTION(entries[i]), zero);
		if (rv != (entries[i].kind == ABSENT ? CKR_FUNCTION_NOT_SUPPORTED : CKR_FUNCTION_NOT_PARALLEL))
			FAIL("%s = 0x%lx", entries[i].name, rv);
	}
}

static CK_RV mutex(CK_VOID_PTR m) { (void)m; return CKR_OK; }
static CK_RV create_mutex(CK_VOID_PTR *m) { *m = NULL; return CKR_OK; }

/* Section 5.4.1: some callbacks without the others, and pReserved, are bad
 * arguments; all four without CKF_OS_LOCKING_OK ask for their use, of which the
 * module is not capable. */
static void check_arguments(void)
{
	CK_C_INITIALIZE_ARGS a;

	for (unsigned given = 0; given < 16; given++)
		for (CK_FLAGS flags = 0; flags < 4; flags++)
			for (int reserved = 0; reserved < 2; reserved++) {
				CK_RV want = CKR_OK;
				a = (CK_C_INITIALIZE_ARGS){
					given & 1 ? create_mutex : NULL, given & 2 ? mutex : NULL, given & 4 ? mutex : NULL,
					given & 8 ? mutex : NULL, flags, reserved ? &a : NULL};
				if (reserved || (given != 0 && given != 15))
					want = CKR_ARGUMENTS_BAD;
				else if (given == 15 && !(flags & 2))
					want = CKR_CANT_LOCK;
				CK_RV rv = p11->C_Initialize(&a);
				if (rv != want)
					FAIL("C_Initialize with callbacks %x, flags %lx, reserved %d = 0x%lx, not 0x%lx", given, flags, reserved, rv, want);
				if (rv == CKR_OK)
					OK(p11->C_Finalize(NULL));
				else
					check_not_initialised();
			}
	OK(p11->C_Initialize(NULL));
	OK(p11->C_Finalize(NULL));
}

static void check_initialize(void)
{
	CK_C_INITIALIZE_ARGS a = {.flags = 3}; /* GnuTLS and NSS */
	CK_INFO info;

	OK(p11->C_Initialize(&a));
	EXPECT(CKR_CRYPTOKI_ALREADY_INITIALIZED, p11->C_Initialize(NULL));
	EXPECT(CKR_ARGUMENTS_BAD, p11->C_Finalize(&a));
	OK(p11->C_GetInfo(&info));
	CHECK(info.flags == 0 && info.cryptokiVersion.major == 3 && info.cryptokiVersion.minor == 2);
	/* Filled up with blanks, not terminated. */
	CHECK(!memchr(info.manufacturerID, 0, 32) && !memchr(info.libraryDescription, 0, 32));
	check_absent();
	check_lists();
	OK(p11->C_Finalize(NULL));
	check_not_initialised();
}

int main(int argc, char **argv)
{
	module_path = argc > 1 ? argv[1] : getenv("MODULE");
	deadline(60);
	load_module();
	check_lists();
	check_not_initialised();
	CHECK(threads_now() == 1);
	check_initialize();
	check_arguments();
	puts("interfaces: ok");
	return 0;
}
