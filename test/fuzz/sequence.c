/* Fuzzes the module with random sequences of calls from one thread, and checks
 * every answer against a model of the rules of PKCS#11 and of
 * docs/architecture.md. A sequence follows from its seed alone: each step has
 * random numbers of its own, so that steps can be left out (-only) without
 * changing what the others draw.
 *
 * usage: sequence -dir DIRECTORY -device TCTI -seed N [-steps N] [-only FILE] [-deadline SECONDS]
 * The directory gets the store, the configuration, and the log of the calls. */
#include "model.h"
#include "objects.h"
#include "operations.h"
#include "secret.h"
#include "sessions.h"

static const struct act {
	void (*do_it)(void);
	unsigned weight;
} acts[] = {
	{get_slot_list, 2}, {get_token_info, 2}, {slot_event, 1}, {init_token, 2}, {open_session, 10}, {close_session, 5}, {close_all_sessions, 1},
	{get_session_info, 6}, {session_cancel, 4}, {login, 14}, {logout, 3}, {init_pin, 4}, {set_pin, 3}, {get_random, 1}, {absent, 1}, {restart, 1},
	{create_object, 14}, {generate_key_pair, 8}, {copy_object, 8}, {destroy_object, 6}, {set_attribute_value, 6}, {get_attribute_value, 8},
	{get_object_size, 1}, {find_objects_init, 8}, {find_objects, 12}, {find_objects_final, 3},
	{generate_key, 6}, {encrypt_init, 10}, {encrypt, 20}, {decrypt_init, 10}, {decrypt, 20}, {wrap_key, 10}, {unwrap_key, 10},
	{digest_init, 6}, {digest, 8}, {digest_update, 5}, {digest_key, 2}, {save_state, 4}, {restore_state, 4},
	{sign_init, 14}, {sign, 16}, {update, 10}, {verify_init, 10}, {verify, 12}, {verify_signature_init, 5}, {verify_signature, 6},
	{message_sign_init, 6}, {message_verify_init, 5}, {message_begin, 8}, {sign_message, 6}, {sign_message_next, 8}, {verify_message, 10}, {message_final, 3},
};

static unsigned long seed, step;

static void give_up(void)
{
	flush_line();
	fprintf(stderr, "sequence: seed %lu, step %lu\n", seed, step);
	_exit(1);
}

/* At first: a token with both PINs and the user logged in, since most of what
 * there is to test needs them. */
static void set_up(void)
{
	CK_SESSION_HANDLE h;
	CK_UTF8CHAR label[32];

	start();
	pad_label(label, "fuzzed");
	CALL(CKR_OK, p11->C_InitToken(0, (CK_BYTE_PTR) "12345678", 8, label), "C_InitToken 0");
	n_tokens = 1;
	strcpy(tokens[0].so, "12345678");
	tokens[0].who = NOBODY;
	CALL(CKR_OK, p11->C_OpenSession(0, CKF_RW_SERIAL, NULL, NULL, &h), "C_OpenSession");
	new_handle(h);
	sessions[0] = (struct session){.used = true, .rw = true, .h = h};
	CALL(CKR_OK, p11->C_Login(h, CKU_SO, (CK_BYTE_PTR) "12345678", 8), "C_Login SO");
	CALL(CKR_OK, p11->C_InitPIN(h, (CK_BYTE_PTR) "pin-1", 5), "C_InitPIN");
	CALL(CKR_OK, p11->C_Logout(h), "C_Logout");
	strcpy(tokens[0].user, "pin-1");
	tokens[0].has_user = true;
	CALL(CKR_OK, p11->C_Login(h, CKU_USER, (CK_BYTE_PTR) "pin-1", 5), "C_Login");
	tokens[0].who = CKU_USER;
}

/* read_only reads the numbers of the steps that are made, in rising order. */
static unsigned long *read_only(const char *name, size_t *n)
{
	unsigned long *list = NULL, one;
	FILE *f = fopen(name, "re");

	CHECK(f);
	for (*n = 0; fscanf(f, "%lu", &one) == 1; list[(*n)++] = one)
		list = realloc(list, (*n + 1) * sizeof *list);
	fclose(f);
	return list;
}

int main(int argc, char **argv)
{
	unsigned long steps = 2000, *only = NULL;
	size_t n_only = 0, next = 0;
	const char *dir = NULL, *device = NULL;
	char name[PATH_MAX];
	unsigned total = 0, seconds = 300;

	for (int i = 1; i + 1 < argc; i += 2) {
		if (!strcmp(argv[i], "-dir"))
			dir = argv[i + 1];
		else if (!strcmp(argv[i], "-device"))
			device = argv[i + 1];
		else if (!strcmp(argv[i], "-seed"))
			seed = strtoul(argv[i + 1], NULL, 10);
		else if (!strcmp(argv[i], "-steps"))
			steps = strtoul(argv[i + 1], NULL, 10);
		else if (!strcmp(argv[i], "-only"))
			only = read_only(argv[i + 1], &n_only);
		else if (!strcmp(argv[i], "-deadline"))
			seconds = (unsigned)strtoul(argv[i + 1], NULL, 10);
	}
	if (!dir || !device) {
		fprintf(stderr, "usage: sequence -dir DIRECTORY -device TCTI -seed N [-steps N] [-only FILE] [-deadline SECONDS]\n");
		return 2;
	}
	deadline(seconds);
	module_path = getenv("MODULE");
	snprintf(name, sizeof name, "%s/calls", dir);
	log_fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	CHECK(log_fd >= 0);
	new_store(dir, device, seed % 3 == 0 ? 60 : 0);
	load_module();
	set_up();
	for (size_t i = 0; i < sizeof acts / sizeof acts[0]; i++)
		total += acts[i].weight;
	for (step = 0; step < steps; step++) {
		if (only && (next == n_only || only[next] != step))
			continue;
		next++;
		random_state = mix(seed) + step * 0x2545f4914f6cdd1d;
		unsigned at = pick(total);
		const struct act *a = acts;
		for (; at >= a->weight; a++)
			at -= a->weight;
		say("%lu ", step);
		size_t empty = log_length;
		a->do_it();
		if (log_length == empty)
			log_length = 0; /* there was nothing to call */
	}
	CALL(CKR_OK, p11->C_Finalize(NULL), "C_Finalize");
	return 0;
}
