/* A host that runs with more rights than whoever started it: the environment
 * must not choose the module's files, its store, nor a program to run.
 *
 *   setuid make MODULE              make the token that the store of the environment's
 *                                   configuration has
 *   setuid chosen|refused MODULE FILE...
 *                                   use the module; that token and the files that
 *                                   its use makes must be there, or none of them */
#include "host.h"
#include <sys/auxv.h>

#define LABEL "chost setuid"

int main(int argc, char **argv)
{
	CK_SLOT_ID slots[64];
	CK_TOKEN_INFO info;
	CK_UTF8CHAR want[32];
	CK_ULONG n = 64;
	bool seen = false;

	scenario = argc > 1 ? argv[1] : "setuid";
	CHECK(argc >= 3);
	CHECK(getenv("ICN_P11_CONF") != NULL);
	deadline(60);
	load_module_from(argv[2]);
	OK(p11->C_Initialize(NULL));
	if (strcmp(argv[1], "make") == 0) {
		make_token(LABEL);
		OK(p11->C_Finalize(NULL));
		return 0;
	}
	bool chosen = strcmp(argv[1], "chosen") == 0;
	CHECK((getauxval(AT_SECURE) == 0) == chosen);
	pad_label(want, LABEL);
	OK(p11->C_GetSlotList(0, slots, &n));
	/* What there is to tell of a token, the TPM is asked for. */
	for (CK_ULONG i = 0; i < n; i++)
		if (p11->C_GetTokenInfo(slots[i], &info) == CKR_OK)
			seen |= memcmp(info.label, want, 32) == 0;
	OK(p11->C_Finalize(NULL));
	CHECK(getenv("ICN_P11_CONF") != NULL); /* the host's environment stays as it is */
	if (seen != chosen)
		FAIL("the token of the environment's store is %s", seen ? "there" : "not there");
	for (int i = 3; i < argc; i++)
		if ((access(argv[i], F_OK) == 0) != chosen)
			FAIL("%s is %s", argv[i], chosen ? "not there" : "there: an unprivileged user's environment chose it");
	printf("setuid: %s: ok\n", argv[1]);
	return 0;
}
