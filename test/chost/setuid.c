/* A host that runs with more rights than whoever started it: the environment
 * must not choose the module's files. Argument: the log file that the
 * environment names, which must not appear. */
#include "host.h"
#include <sys/auxv.h>

int main(int argc, char **argv)
{
	CK_ULONG n;

	scenario = "setuid";
	CHECK(argc == 3);
	CHECK(getauxval(AT_SECURE) != 0);
	CHECK(getenv("ICN_P11_CONF") != NULL); /* the host's environment stays as it is */
	load_module_from(argv[1]);
	OK(p11->C_Initialize(NULL));
	OK(p11->C_GetSlotList(0, NULL, &n));
	OK(p11->C_Finalize(NULL));
	CHECK(getenv("ICN_P11_CONF") != NULL);
	if (access(argv[2], F_OK) == 0)
		FAIL("%s: the environment of an unprivileged user chose this file", argv[2]);
	puts("setuid: ok");
	return 0;
}
