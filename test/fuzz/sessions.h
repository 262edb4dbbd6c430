/* Slots, tokens, sessions and logins. */
#ifndef SESSIONS_H
#define SESSIONS_H
#include "model.h"

/* The module looks at the store: a free slot follows the tokens. */
static void looked(void)
{
	n_slots = n_tokens + 1;
}

static void get_slot_list(void)
{
	CK_ULONG n = pick(MOST_TOKENS + 3), room = n;
	CK_SLOT_ID *list;

	if (chance(2)) {
		looked();
		n_listed = n_slots;
		CALL(CKR_OK, p11->C_GetSlotList(pick(2), NULL, &n), "C_GetSlotList NULL");
		RULE(n == (CK_ULONG)n_listed, "%lu slots, not %d", n, n_listed);
		return;
	}
	list = (CK_SLOT_ID *)room_for(room * sizeof *list);
	CALL(n < (CK_ULONG)n_listed ? CKR_BUFFER_TOO_SMALL : CKR_OK, p11->C_GetSlotList(pick(2), list, &n), "C_GetSlotList room %lu", n);
	RULE(n == (CK_ULONG)n_listed, "%lu slots, not %d", n, n_listed);
	for (CK_ULONG i = 0; i < n && n <= room; i++)
		RULE(list[i] == i, "slot %lu where %lu was expected", list[i], i);
	RULE(n <= room || untouched((CK_BYTE *)list, room * sizeof *list), "a list that is too short was written to");
	let_go((CK_BYTE *)list, room * sizeof *list);
}

static CK_SLOT_ID pick_slot(void)
{
	return chance(15) ? 0xffff : pick((unsigned)n_slots + (chance(10) ? 1 : 0));
}

static void get_token_info(void)
{
	CK_SLOT_ID slot = pick_slot();
	CK_TOKEN_INFO *info = (CK_TOKEN_INFO *)room_for(sizeof *info);

	CALL(slot < (CK_ULONG)n_slots ? CKR_OK : CKR_SLOT_ID_INVALID, p11->C_GetTokenInfo(slot, info), "C_GetTokenInfo %lu", slot);
	if (slot < (CK_ULONG)n_tokens) {
		RULE(info->flags & CKF_TOKEN_INITIALIZED, "flags %lx", info->flags);
		RULE(!(info->flags & 8) == !tokens[slot].has_user, "CKF_USER_PIN_INITIALIZED in %lx", info->flags);
		RULE(info->ulSessionCount == (CK_ULONG)sessions_of((int)slot, false) && info->ulRwSessionCount == (CK_ULONG)sessions_of((int)slot, true),
			"%lu sessions, %lu of them read/write", info->ulSessionCount, info->ulRwSessionCount);
	} else if (slot < (CK_ULONG)n_slots)
		RULE(!(info->flags & CKF_TOKEN_INITIALIZED), "flags %lx", info->flags);
	let_go((CK_BYTE *)info, sizeof *info);
}

static void slot_event(void)
{
	CK_SLOT_ID slot;

	looked();
	CALL(CKR_NO_EVENT, p11->C_WaitForSlotEvent(CKF_DONT_BLOCK, &slot, NULL), "C_WaitForSlotEvent");
}

static const char *const pins[] = {"12345678", "pin-1", "another pin 4711", "0000", "a PIN of more than 32 characters"};

static const char *pick_pin(const char *right)
{
	return chance(4) ? pins[pick(5)] : right;
}

static void init_token(void)
{
	CK_SLOT_ID slot = pick_slot();
	CK_UTF8CHAR label[32];
	bool known = slot < (CK_ULONG)n_tokens, fresh = slot < (CK_ULONG)n_slots && !known;
	const char *pin = known ? pick_pin(tokens[slot].so) : pins[pick(5)];
	CK_ULONG n = strlen(pin);
	CK_RV want = CKR_OK;

	if (fresh && n_tokens == MOST_TOKENS - 1)
		return; /* enough of them */
	if (known && !chance(10))
		return; /* it would lose all its objects too often */
	pad_label(label, "fuzzed");
	bool null = chance(20), bad = chance(20);
	if (bad)
		label[3] = 0xff;
	if (chance(20))
		n = 3;
	if (!known && !fresh)
		want = CKR_SLOT_ID_INVALID;
	else if (null || bad)
		want = CKR_ARGUMENTS_BAD;
	else if (sessions_of((int)slot, false))
		want = CKR_SESSION_EXISTS;
	else if (known)
		want = n == strlen(tokens[slot].so) && memcmp(pin, tokens[slot].so, n) == 0 ? CKR_OK : CKR_PIN_INCORRECT;
	else if (n < 4)
		want = CKR_PIN_LEN_RANGE;
	CALL(want, p11->C_InitToken(slot, null ? NULL : (CK_BYTE_PTR)pin, n, label), "C_InitToken %lu \"%.*s\"%s%s", slot, (int)n, pin,
		null ? " NULL" : "", bad ? " bad label" : "");
	if (want != CKR_OK)
		return;
	struct token *t = &tokens[slot];
	if (fresh) {
		n_tokens++;
		snprintf(t->so, sizeof t->so, "%.*s", (int)n, pin);
	}
	t->has_user = false;
	t->who = NOBODY;
	for (int i = 0; i < MOST_OBJECTS; i++)
		if (objects[i].used && objects[i].token == (int)slot)
			remove_object(&objects[i]);
}

static void open_session(void)
{
	CK_SLOT_ID slot = pick_slot();
	CK_FLAGS flags = (chance(20) ? 0 : CKF_SERIAL) | (chance(3) ? 0 : CKF_RW) | (chance(30) ? CKF_ASYNC : 0);
	CK_SESSION_HANDLE h = 0;
	struct session *s = NULL;
	CK_RV want = CKR_OK;

	for (int i = 0; i < MOST_SESSIONS && !s; i++)
		if (!sessions[i].used)
			s = &sessions[i];
	if (!s)
		return;
	bool null = chance(30);
	if (slot >= (CK_ULONG)n_slots)
		want = CKR_SLOT_ID_INVALID;
	else if (null)
		want = CKR_ARGUMENTS_BAD;
	else if (!(flags & CKF_SERIAL))
		want = CKR_SESSION_PARALLEL_NOT_SUPPORTED;
	else if (flags & CKF_ASYNC)
		want = CKR_SESSION_ASYNC_NOT_SUPPORTED;
	else if (slot >= (CK_ULONG)n_tokens)
		want = CKR_TOKEN_NOT_RECOGNIZED;
	else if (!(flags & CKF_RW) && tokens[slot].who == CKU_SO)
		want = CKR_SESSION_READ_WRITE_SO_EXISTS;
	CALL(want, p11->C_OpenSession(slot, flags, NULL, NULL, null ? NULL : &h), "C_OpenSession %lu flags %lx -> %s", slot, flags, show(s));
	if (want != CKR_OK)
		return;
	new_handle(h);
	memset(s, 0, sizeof *s);
	s->used = true;
	s->h = h;
	s->token = (int)slot;
	s->rw = flags & CKF_RW;
}

static void close_session(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_session(&h);

	CALL(s ? CKR_OK : CKR_SESSION_HANDLE_INVALID, p11->C_CloseSession(h), "C_CloseSession %s", show(s));
	if (s)
		drop_session(s);
}

static void close_all_sessions(void)
{
	CK_SLOT_ID slot = pick_slot();

	CALL(slot < (CK_ULONG)n_slots ? CKR_OK : CKR_SLOT_ID_INVALID, p11->C_CloseAllSessions(slot), "C_CloseAllSessions %lu", slot);
	for (int i = 0; i < MOST_SESSIONS; i++)
		if (sessions[i].used && sessions[i].token == (int)slot)
			drop_session(&sessions[i]);
}

static void get_session_info(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_session(&h);
	CK_SESSION_INFO *info = (CK_SESSION_INFO *)room_for(sizeof *info);

	CALL(s ? CKR_OK : CKR_SESSION_HANDLE_INVALID, p11->C_GetSessionInfo(h, info), "C_GetSessionInfo %s", show(s));
	if (s)
		RULE(info->slotID == (CK_ULONG)s->token && info->state == state_of(s) && info->flags == (s->rw ? CKF_RW_SERIAL : CKF_SERIAL),
			"slot %lu state %lu flags %lx; the state should be %lu", info->slotID, info->state, info->flags, state_of(s));
	let_go((CK_BYTE *)info, sizeof *info);
}

static void session_cancel(void)
{
	static const CK_FLAGS some[] = {0, 0x100, 0x200, 0x40, 0x400, 0x800, 0x2000, 0x8, 0x10, 0x2040, 0xc00, -1UL};
	CK_SESSION_HANDLE h;
	struct session *s = pick_session(&h);
	CK_FLAGS flags = some[pick(12)];

	CALL(s ? CKR_OK : CKR_SESSION_HANDLE_INVALID, p11->C_SessionCancel(h, flags), "C_SessionCancel %s %lx", show(s), flags);
	if (!s)
		return;
	if (flags & 0x40)
		s->find.active = false;
	if (flags & 0x100)
		end_cipher(&s->encrypt);
	if (flags & 0x200)
		end_cipher(&s->decrypt);
	if (flags & 0x400)
		end_digest(s);
	if (flags & 0x800)
		end_operation(&s->sign);
	if (flags & 0x2000) {
		end_operation(&s->verify);
		end_operation(&s->verify_sig);
	}
	if (flags & 0x8)
		end_process(&s->signing);
	if (flags & 0x10)
		end_process(&s->verifying);
}

static bool nobody_in(const struct session *s) { return token_of(s)->who == NOBODY; }

/* The operation that a login of CKU_CONTEXT_SPECIFIC is for. */
static struct operation *wants_login(struct session *s)
{
	struct operation *op = s->signing.op.active ? &s->signing.op : s->sign.active ? &s->sign : NULL;

	return op && op->always ? op : NULL;
}

static bool awaits_login(const struct session *s)
{
	return wants_login((struct session *)s) && !wants_login((struct session *)s)->authenticated;
}

static void login(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, chance(2) ? nobody_in : awaits_login);
	CK_USER_TYPE user = chance(30) ? 3 + pick(5) : chance(6) ? CKU_SO : CKU_USER;
	if (s && !token_of(s)->has_user && chance(2))
		user = CKU_SO;
	if (s && wants_login(s) && chance(2))
		user = CKU_CONTEXT_SPECIFIC;
	else if (chance(20))
		user = CKU_CONTEXT_SPECIFIC;
	const char *pin = s ? pick_pin(user == CKU_SO ? token_of(s)->so : token_of(s)->user) : "1234";
	CK_ULONG n = chance(25) ? pick(4) : strlen(pin);
	bool null = chance(25);
	CK_RV want = CKR_OK;
	struct operation *op = NULL;

	if (null)
		n = pick(2) ? 0 : n;
	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (null && n != 0)
		want = CKR_ARGUMENTS_BAD;
	else if (user > CKU_CONTEXT_SPECIFIC)
		want = CKR_USER_TYPE_INVALID;
	else if (null)
		want = CKR_ARGUMENTS_BAD;
	else {
		struct token *t = token_of(s);
		const char *right = user == CKU_SO ? t->so : t->user;
		CK_RV pin_code = n == strlen(right) && memcmp(pin, right, n) == 0 ? CKR_OK : CKR_PIN_INCORRECT;
		if (user != CKU_SO && !t->has_user)
			pin_code = CKR_USER_PIN_NOT_INITIALIZED;
		if (user == CKU_CONTEXT_SPECIFIC) {
			op = wants_login(s);
			want = !op ? CKR_OPERATION_NOT_INITIALIZED : t->who != CKU_USER ? CKR_USER_NOT_LOGGED_IN : pin_code;
		} else if (t->who == user)
			want = CKR_USER_ALREADY_LOGGED_IN;
		else if (t->who != NOBODY)
			want = CKR_USER_ANOTHER_ALREADY_LOGGED_IN;
		else if (user == CKU_SO && sessions_of(s->token, true) != sessions_of(s->token, false))
			want = CKR_SESSION_READ_ONLY_EXISTS;
		else
			want = pin_code;
	}
	CK_BYTE_PTR p = null ? NULL : copy_of(pin, n);
	if (chance(4))
		CALL(want, p11->C_LoginUser(h, user, p, n, NULL, 0), "C_LoginUser %s %lu \"%.*s\"%s", show(s), user, (int)n, pin, null ? " NULL" : "");
	else
		CALL(want, p11->C_Login(h, user, p, n), "C_Login %s %lu \"%.*s\"%s", show(s), user, (int)n, pin, null ? " NULL" : "");
	free(p);
	if (want != CKR_OK)
		return;
	if (op)
		op->authenticated = true;
	else
		token_of(s)->who = user;
}

static void logout(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_session(&h);
	CK_RV want = !s ? CKR_SESSION_HANDLE_INVALID : token_of(s)->who == NOBODY ? CKR_USER_NOT_LOGGED_IN : CKR_OK;

	CALL(want, p11->C_Logout(h), "C_Logout %s", show(s));
	if (want == CKR_OK)
		log_out(s->token);
}

static bool so_in(const struct session *s) { return token_of(s)->who == CKU_SO; }

static void init_pin(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, so_in);
	const char *pin = pins[pick(5)];
	CK_ULONG n = chance(10) ? pick(4) : strlen(pin);
	bool null = chance(20);
	CK_RV want = CKR_OK;

	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (null)
		want = CKR_ARGUMENTS_BAD;
	else if (token_of(s)->who != CKU_SO)
		want = CKR_USER_NOT_LOGGED_IN;
	else if (n < 4)
		want = CKR_PIN_LEN_RANGE;
	CALL(want, p11->C_InitPIN(h, null ? NULL : (CK_BYTE_PTR)pin, n), "C_InitPIN %s \"%.*s\"%s", show(s), (int)n, pin, null ? " NULL" : "");
	if (want != CKR_OK)
		return;
	snprintf(token_of(s)->user, sizeof token_of(s)->user, "%.*s", (int)n, pin);
	token_of(s)->has_user = true;
}

static void set_pin(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_session(&h);
	bool so = s && token_of(s)->who == CKU_SO;
	char *mine = !s ? NULL : so ? token_of(s)->so : token_of(s)->user;
	const char *old = mine ? pick_pin(mine) : "1234", *new = pins[pick(5)];
	CK_ULONG nold = chance(20) ? pick(4) : strlen(old), nnew = chance(20) ? pick(4) : strlen(new);
	bool null = chance(30);
	CK_RV want = CKR_OK;

	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (null)
		want = CKR_ARGUMENTS_BAD;
	else if (!s->rw)
		want = CKR_SESSION_READ_ONLY;
	else if (nnew < 4)
		want = CKR_PIN_LEN_RANGE;
	else if (nold < 4)
		want = CKR_PIN_INCORRECT;
	else if (!so && !token_of(s)->has_user)
		want = CKR_USER_PIN_NOT_INITIALIZED;
	else if (nold != strlen(mine) || memcmp(old, mine, nold) != 0)
		want = CKR_PIN_INCORRECT;
	CALL(want, p11->C_SetPIN(h, null ? NULL : (CK_BYTE_PTR)old, nold, (CK_BYTE_PTR)new, nnew), "C_SetPIN %s \"%.*s\" \"%.*s\"%s", show(s),
		(int)nold, old, (int)nnew, new, null ? " NULL" : "");
	if (want == CKR_OK)
		snprintf(mine, sizeof tokens[0].so, "%.*s", (int)nnew, new);
}

static void get_random(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_session(&h);
	CK_ULONG n = pick(100);
	CK_BYTE *b = room_for(n);

	if (chance(2)) {
		CALL(s ? CKR_OK : CKR_SESSION_HANDLE_INVALID, p11->C_SeedRandom(h, b, n), "C_SeedRandom %s %lu", show(s), n);
		RULE(untouched(b, n), "the seed was written to");
	} else {
		CALL(s ? CKR_OK : CKR_SESSION_HANDLE_INVALID, p11->C_GenerateRandom(h, b, n), "C_GenerateRandom %s %lu", show(s), n);
		RULE(!s || n < 16 || !untouched(b + n - 16, 16), "the end of %lu bytes is not random", n);
	}
	let_go(b, n);
}

/* Functions that the token has not the ability for. */
static void absent(void)
{
	for (int tries = 0; tries < 50; tries++) {
		const struct entry *e = &entries[pick(ENTRIES)];
		uintptr_t a[10];
		if (e->kind != ABSENT && e->kind != LEGACY)
			continue;
		for (int i = 0; i < 10; i++)
			a[i] = chance(2) ? 0 : pick(4096);
		CALL(e->kind == LEGACY ? CKR_FUNCTION_NOT_PARALLEL : CKR_FUNCTION_NOT_SUPPORTED, CALL_ANY(FUNCTION(*e), a), "%s", e->name);
		return;
	}
}

static void start(void)
{
	CALL(CKR_OK, p11->C_Initialize(NULL), "C_Initialize");
	initialised = true;
	looked();
	n_listed = n_slots;
}

/* C_Finalize ends every session and login; objects of tokens stay. */
static void restart(void)
{
	CK_ULONG n = 0;
	CK_SESSION_HANDLE h;

	if (chance(2)) {
		CALL(CKR_CRYPTOKI_ALREADY_INITIALIZED, p11->C_Initialize(NULL), "C_Initialize again");
		return;
	}
	if (!chance(4))
		return;
	CALL(CKR_OK, p11->C_Finalize(NULL), "C_Finalize");
	for (int i = 0; i < MOST_SESSIONS; i++)
		if (sessions[i].used)
			drop_session(&sessions[i]);
	for (int i = 0; i < MOST_OBJECTS; i++) {
		if (objects[i].used)
			bury(objects[i].h);
		objects[i].h = 0;
	}
	for (int i = 0; i < MOST_STATES; i++) {
		clear(&states[i].in);
		clear(&states[i].blob);
		states[i].used = false;
	}
	CALL(CKR_CRYPTOKI_NOT_INITIALIZED, p11->C_Finalize(NULL), "C_Finalize again");
	CALL(CKR_CRYPTOKI_NOT_INITIALIZED, p11->C_GetSlotList(0, NULL, &n), "C_GetSlotList");
	CALL(CKR_CRYPTOKI_NOT_INITIALIZED, p11->C_OpenSession(0, 6, NULL, NULL, &h), "C_OpenSession");
	CALL(CKR_CRYPTOKI_NOT_INITIALIZED, p11->C_CloseSession(dead[0]), "C_CloseSession");
	start();
}

#endif
