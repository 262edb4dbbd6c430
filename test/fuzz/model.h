/* The model: what the module must know about its tokens, sessions and objects
 * after the calls that were made, and the call that is checked against it. */
#ifndef MODEL_H
#define MODEL_H
#include "common.h"

enum { MOST_TOKENS = 4, MOST_SESSIONS = 12, MOST_OBJECTS = 80, MOST_STATES = 8, MOST_SIGNATURES = 16, MOST_DEAD = 64,
       MOST_CIPHERTEXTS = 16, MOST_WRAPPED = 16 };
enum { NOBODY = 99 }; /* beside CKU_SO and CKU_USER */

/* A token has the slot of its index. The first free slot follows them, once the
 * module was asked for its slots. */
static struct token {
	char so[40], user[40];
	bool has_user;
	CK_ULONG who;
} tokens[MOST_TOKENS];
static int n_tokens;
static int n_slots;  /* known to the module: tokens, and the free one if it has looked */
static int n_listed; /* told by C_GetSlotList */

/* The secret of a private or secret key: shared by a token's key and its session copies. */
static bool *secrets;
static int n_secrets;

static struct object {
	bool used;
	int token; /* index of its token */
	CK_ULONG class;
	bool stored, private, modifiable, copyable, destroyable, usable, always;
	bool sealed;             /* its secret is in the store */
	CK_SESSION_HANDLE owner; /* of a session object */
	CK_OBJECT_HANDLE h;      /* 0: it has none */
	CK_BYTE label[32], id[40], value[64], pub[32];
	CK_ULONG n_label, n_id, n_value;
	CK_BYTE unique[80];
	CK_ULONG n_unique;
	int secret;
	/* Of a secret key: what it is for, and what may be done with it. value is the
	 * key, where it is known; n_value is 0 where it is not. */
	CK_ULONG key_type, n_key;
	unsigned key_id; /* the same for all objects with the same key */
	bool encrypt, decrypt, sign, verify, wrap, unwrap, sensitive, extractable;
	unsigned born; /* tells it from what had its place before */
} objects[MOST_OBJECTS];
static unsigned births, n_keys;

/* Scheme of a signature: the parameter of CKM_EDDSA. */
struct scheme {
	enum { PURE, CTX, PH } variant;
	CK_BYTE context[8];
	CK_ULONG n_context;
};

/* A signature or verification that was initialised. */
struct operation {
	bool active, parts, authenticated;
	struct scheme scheme;
	struct bytes message;
	CK_BYTE sig[80];
	CK_ULONG n_sig;
	/* of the key, as it was then */
	bool private, always, sealed;
	int secret;
	CK_BYTE pub[32];
	bool hmac; /* CKM_SHA256_HMAC, in place of CKM_EDDSA */
	CK_BYTE key[64];
	CK_ULONG n_key;
};

/* An encryption or decryption that was initialised: CKM_AES_GCM or
 * CKM_AES_CBC_PAD. */
struct cipher {
	bool active, parts, gcm;
	CK_BYTE iv[16];
	struct bytes in, out; /* so far */
	size_t given;         /* of the output */
	/* of the key, as it was then */
	bool private;
	int secret;
	unsigned key_id;
	CK_BYTE key[32];
	CK_ULONG n_key; /* 0: it is not known */
	/* From the first part on it has the key until it ends, or the login does. */
	bool lent, wiped;
	/* What is decrypted, and to what; none where nothing is known that could be. */
	struct bytes wanted, plain;
};

/* A message-based process. */
struct process {
	struct operation op;
	struct scheme scheme; /* of messages that bring none */
	bool begun;
};

static struct session {
	bool used, rw;
	int token;
	CK_SESSION_HANDLE h;
	struct {
		bool active;
		int n;
		int index[MOST_OBJECTS];
		unsigned born[MOST_OBJECTS];
		unsigned began; /* n_dead then */
		bool vanished;  /* handles of private objects have ended since */
	} find;
	struct {
		bool active, parts;
		int hash;
		struct bytes in;
	} digest;
	struct operation sign, verify, verify_sig;
	struct cipher encrypt, decrypt;
	struct process signing, verifying;
} sessions[MOST_SESSIONS];

/* Saved states of digests. */
static struct state {
	bool used;
	int token;
	CK_ULONG session; /* CK_STATE */
	int hash;
	bool parts;
	struct bytes in, blob;
} states[MOST_STATES];

/* Good signatures. */
static struct signature {
	CK_BYTE pub[32], sig[64];
	struct scheme scheme;
	struct bytes message;
} signatures[MOST_SIGNATURES];
static unsigned n_signatures;

/* What was encrypted, and keys that were wrapped. */
static struct ciphertext {
	unsigned key_id; /* 0: there is none */
	bool gcm;
	CK_BYTE iv[16];
	struct bytes plain, text;
} ciphertexts[MOST_CIPHERTEXTS];
static unsigned n_ciphertexts;
static struct wrapped {
	unsigned by, key_id; /* by 0: there is none */
	CK_ULONG key_type, n_key, n_value, n;
	CK_BYTE value[64], text[80];
} wrapped[MOST_WRAPPED];
static unsigned n_wrapped;

/* Handles of sessions and objects that are gone. */
static CK_ULONG dead[MOST_DEAD];
static unsigned n_dead; /* ever; the last ones are kept */

static bool initialised;

/* ---- calls ---- */

#define CALL(want, call, ...) \
	do { \
		const CK_RV want_ = (want); /* before the call changes what it follows from */ \
		say(__VA_ARGS__); \
		flush_line(); \
		answer(__FILE__, __LINE__, want_, (call)); \
	} while (0)

static void answer(const char *file, int line, CK_RV want, CK_RV got)
{
	say(" = %s\n", code_name(got));
	if (got != want) {
		flush_line();
		fprintf(stderr, "%s:%d: %s, not %s\n", file, line, code_name(got), code_name(want));
		give_up();
	}
	flush_line();
}

/* ---- what follows from the state ---- */

static void bury(CK_ULONG h)
{
	if (h)
		dead[n_dead++ % MOST_DEAD] = h;
}

/* buried tells how many handles had ended when this one did; -1: it is not among
 * those that are remembered. */
static int buried(CK_ULONG h)
{
	for (unsigned i = n_dead < MOST_DEAD ? 0 : n_dead - MOST_DEAD; i < n_dead; i++)
		if (dead[i % MOST_DEAD] == h)
			return (int)i;
	return -1;
}

static struct token *token_of(const struct session *s) { return &tokens[s->token]; }

static CK_ULONG state_of(const struct session *s)
{
	CK_ULONG who = token_of(s)->who;

	if (who == CKU_SO)
		return 4;
	return (s->rw ? 2 : 0) + (who == CKU_USER);
}

static int sessions_of(int token, bool rw_only)
{
	int n = 0;

	for (int i = 0; i < MOST_SESSIONS; i++)
		n += sessions[i].used && sessions[i].token == token && (sessions[i].rw || !rw_only);
	return n;
}

/* visible finds the object that a handle stands for in a session. */
static struct object *visible(const struct session *s, CK_OBJECT_HANDLE h)
{
	for (int i = 0; h && i < MOST_OBJECTS; i++)
		if (objects[i].used && objects[i].h == h)
			return objects[i].token == s->token && (!objects[i].private || token_of(s)->who == CKU_USER) ? &objects[i] : NULL;
	return NULL;
}

static bool has_secret(const struct object *o) { return o->class == CKO_PRIVATE_KEY || o->class == CKO_SECRET_KEY; }

/* readable tells whether the value of a key may be read. */
static bool readable(const struct object *o) { return o->class == CKO_SECRET_KEY && !o->sensitive && o->extractable; }

static void remove_object(struct object *o)
{
	bury(o->h);
	if (has_secret(o) && (o->stored || !o->sealed))
		secrets[o->secret] = false;
	o->used = false;
}

static void end_operation(struct operation *op)
{
	clear(&op->message);
	*op = (struct operation){0};
}

static void end_cipher(struct cipher *c)
{
	clear(&c->in);
	clear(&c->out);
	clear(&c->wanted);
	clear(&c->plain);
	*c = (struct cipher){0};
}

static void end_process(struct process *p)
{
	end_operation(&p->op);
	*p = (struct process){0};
}

/* next_message makes a process ready for another message. */
static void next_message(struct process *p)
{
	clear(&p->op.message);
	p->op.parts = p->op.authenticated = p->begun = false;
	p->op.scheme = p->scheme;
}

static void end_digest(struct session *s)
{
	clear(&s->digest.in);
	memset(&s->digest, 0, sizeof s->digest);
}

static void end_all(struct session *s)
{
	s->find.active = false;
	end_digest(s);
	end_operation(&s->sign);
	end_operation(&s->verify);
	end_operation(&s->verify_sig);
	end_cipher(&s->encrypt);
	end_cipher(&s->decrypt);
	end_process(&s->signing);
	end_process(&s->verifying);
}

/* log_out is the end of a login (section 5.6.10): private session objects go,
 * and so do the handles of private objects, and keys that operations have. */
static void log_out(int token)
{
	tokens[token].who = NOBODY;
	for (int i = 0; i < MOST_SESSIONS; i++)
		if (sessions[i].token == token) {
			sessions[i].find.vanished = true;
			sessions[i].encrypt.wiped = sessions[i].encrypt.lent;
			sessions[i].decrypt.wiped = sessions[i].decrypt.lent;
		}
	for (int i = 0; i < MOST_OBJECTS; i++) {
		struct object *o = &objects[i];
		if (!o->used || o->token != token || !o->private)
			continue;
		if (!o->stored) {
			remove_object(o);
			continue;
		}
		bury(o->h);
		o->h = 0;
	}
}

static void drop_session(struct session *s)
{
	for (int i = 0; i < MOST_OBJECTS; i++)
		if (objects[i].used && !objects[i].stored && objects[i].owner == s->h)
			remove_object(&objects[i]);
	end_all(s);
	bury(s->h);
	s->used = false;
	if (!sessions_of(s->token, false))
		log_out(s->token);
}

/* ---- what to call with ---- */

static const char *show(const struct session *s)
{
	static char text[16];

	snprintf(text, sizeof text, "s%d", s ? (int)(s - sessions) : -1);
	return text;
}

/* pick_ready gives a session, or NULL with a handle that is none: mostly one
 * that is ready for the call, where that is not NULL. */
static struct session *pick_ready(CK_SESSION_HANDLE *h, bool (*ready)(const struct session *))
{
	static const CK_ULONG odd[] = {0, -1UL, 1UL << 63, 0xdeadbeef};

	if (ready && !chance(4))
		for (int tries = 0; tries < 100; tries++) {
			struct session *s = &sessions[pick(MOST_SESSIONS)];
			if (s->used && ready(s)) {
				*h = s->h;
				return s;
			}
		}
	if (!chance(20))
		for (int tries = 0; tries < 100; tries++) {
			struct session *s = &sessions[pick(MOST_SESSIONS)];
			if (s->used) {
				*h = s->h;
				return s;
			}
		}
	*h = n_dead && !chance(3) ? dead[pick(n_dead < MOST_DEAD ? n_dead : MOST_DEAD)] : odd[pick(4)];
	return NULL;
}

static struct session *pick_session(CK_SESSION_HANDLE *h)
{
	return pick_ready(h, NULL);
}

static bool user_in(const struct session *s) { return token_of(s)->who == CKU_USER; }

enum { ANY = 99 };

/* pick_object gives a handle: mostly of an object that the session sees, of a
 * class if one is wanted. */
static CK_OBJECT_HANDLE pick_object(const struct session *s, CK_ULONG class)
{
	if (s && !chance(8))
		for (int tries = 0; tries < 200; tries++) {
			struct object *o = &objects[pick(MOST_OBJECTS)];
			if (o->used && o->h && o->token == s->token && (class == ANY || o->class == class))
				return o->h;
		}
	switch (pick(4)) {
	case 0:
		if (n_dead)
			return dead[pick(n_dead < MOST_DEAD ? n_dead : MOST_DEAD)];
		break;
	case 1:
		if (s)
			return s->h;
		break;
	case 2:
		for (int i = pick(MOST_OBJECTS); i < MOST_OBJECTS; i++)
			if (objects[i].used && objects[i].h)
				return objects[i].h;
		break;
	}
	return pick(2) ? 0 : -1UL;
}

/* pick_message gives some bytes, the longer the rarer. */
static struct bytes pick_message(void)
{
	static const unsigned sizes[] = {0, 1, 31, 32, 33, 64, 127, 128, 129, 255, 300, 511, 512, 513, 1024, 5000, 70000};
	struct bytes b = {0};
	size_t n = sizes[pick(chance(20) ? 17 : 14)];

	b.p = malloc(n ? n : 1);
	b.n = n;
	for (size_t i = 0; i < n; i++)
		b.p[i] = (CK_BYTE)next_random();
	return b;
}

#endif
