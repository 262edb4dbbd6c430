/* Digests, signatures and verifications, in one part, in several, and by
 * message; and the saved states of digests. */
#ifndef OPERATIONS_H
#define OPERATIONS_H
#include "model.h"

#include <openssl/hmac.h>

/* An output buffer: mostly one with room enough. */
struct out {
	CK_BYTE *p;
	CK_ULONG n, room;
	bool null; /* it asks for the length */
	bool bad;  /* without a length */
};

static struct out pick_out(CK_ULONG need)
{
	struct out o = {.room = chance(5) ? pick((unsigned)need) : need + pick(3), .null = chance(8), .bad = chance(40)};

	o.n = o.room;
	o.p = room_for(o.room);
	return o;
}

#define OUT_P(o) ((o).null ? NULL : (o).p)
#define OUT_N(o) ((o).bad ? NULL : &(o).n)
#define OUT_FORMAT "room %lu%s%s"
#define OUT_SHOW(o) (o).room, (o).null ? " NULL" : "", (o).bad ? " no length" : ""

/* asks tells whether a call only asks for the length, or has too little room:
 * the operation goes on, and code is what it answers. */
static bool asks(const struct out *o, CK_ULONG need, CK_RV *code)
{
	if (o->null)
		*code = CKR_OK;
	else if (o->room < need)
		*code = CKR_BUFFER_TOO_SMALL;
	else
		return false;
	return true;
}

static void end_out(struct out *o, CK_RV got, CK_ULONG need, bool asked)
{
	if (got == CKR_BUFFER_TOO_SMALL || (got == CKR_OK && asked))
		RULE(o->n == need && untouched(o->p, o->room), "length %lu, not %lu", o->n, need);
	else if (got == CKR_OK)
		RULE(o->n == need && untouched(o->p + need, o->room - need), "length %lu, not %lu", o->n, need);
	else
		RULE(o->n == o->room && untouched(o->p, o->room), "written to in spite of an error");
	let_go(o->p, o->room);
}

/* What a session is ready for. */
static bool digests(const struct session *s) { return s->digest.active; }
static bool signing_one(const struct session *s) { return s->sign.active; }
static bool verifying_one(const struct session *s) { return s->verify.active; }
static bool verifying_first(const struct session *s) { return s->verify_sig.active; }
static bool signing_many(const struct session *s) { return s->signing.op.active; }
static bool in_message(const struct session *s) { return s->signing.begun; }
static bool verifying_many(const struct session *s) { return s->verifying.op.active; }
static bool signs(const struct session *s) { return s->sign.active || s->signing.op.active; }
static bool verifies(const struct session *s) { return s->verify.active || s->verify_sig.active || s->verifying.op.active; }

/* ---- digests ---- */

static void digest_init(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_session(&h);
	int hash = (int)pick(HASHES);
	CK_MECHANISM m = {chance(15) ? CKM_EDDSA : hashes[hash].type, NULL, 0};
	bool null = chance(20);
	CK_RV want = CKR_OK;

	if (chance(15)) {
		m.pParameter = (void *)"x";
		m.ulParameterLen = 1;
	}
	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (null)
		;
	else if (s->digest.active)
		want = CKR_OPERATION_ACTIVE;
	else if (m.mechanism == CKM_EDDSA)
		want = CKR_MECHANISM_INVALID;
	else if (m.pParameter)
		want = CKR_MECHANISM_PARAM_INVALID;
	CALL(want, p11->C_DigestInit(h, null ? NULL : &m), "C_DigestInit %s %lx%s%s", show(s), m.mechanism, m.pParameter ? " parameter" : "", null ? " NULL" : "");
	if (want != CKR_OK)
		return;
	if (null) {
		end_digest(s);
		return;
	}
	s->digest.active = true;
	s->digest.hash = hash;
}

static void digest(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, digests);
	CK_ULONG need = s && s->digest.active ? hashes[s->digest.hash].size : 32;
	struct out o = pick_out(need);
	struct bytes in = pick_message();
	bool final = chance(2), asked = false;
	CK_RV want = CKR_OK;
	CK_BYTE right[64];

	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (o.bad)
		want = CKR_ARGUMENTS_BAD;
	else if (!s->digest.active)
		want = CKR_OPERATION_NOT_INITIALIZED;
	else if (!final && s->digest.parts)
		want = CKR_OPERATION_ACTIVE;
	else
		asked = asks(&o, need, &want);
	if (want == CKR_OK && !asked) {
		if (!final)
			append(&s->digest.in, in.p, in.n);
		openssl_digest(s->digest.hash, s->digest.in, right);
	}
	if (final)
		CALL(want, p11->C_DigestFinal(h, OUT_P(o), OUT_N(o)), "C_DigestFinal %s " OUT_FORMAT, show(s), OUT_SHOW(o));
	else
		CALL(want, p11->C_Digest(h, in.p, in.n, OUT_P(o), OUT_N(o)), "C_Digest %s %zu bytes " OUT_FORMAT, show(s), in.n, OUT_SHOW(o));
	if (want == CKR_OK && !asked)
		RULE(memcmp(o.p, right, need) == 0, "another digest than OpenSSL's");
	if (s && (want == CKR_ARGUMENTS_BAD || (want == CKR_OK && !asked)))
		end_digest(s);
	end_out(&o, want, need, asked);
	clear(&in);
}

static void digest_update(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, digests);
	struct bytes in = pick_message();
	bool null = chance(30) && in.n;
	CK_RV want = !s ? CKR_SESSION_HANDLE_INVALID : null ? CKR_ARGUMENTS_BAD : !s->digest.active ? CKR_OPERATION_NOT_INITIALIZED : CKR_OK;

	CALL(want, p11->C_DigestUpdate(h, null ? NULL : in.p, in.n), "C_DigestUpdate %s %zu bytes%s", show(s), in.n, null ? " NULL" : "");
	if (want == CKR_OK) {
		append(&s->digest.in, in.p, in.n);
		s->digest.parts = true;
	} else if (s && null)
		end_digest(s);
	clear(&in);
}

static void digest_key(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, digests);
	CK_OBJECT_HANDLE oh = pick_object(s, ANY);
	const struct object *o = s ? visible(s, oh) : NULL;
	CK_RV want = CKR_OK;

	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (!s->digest.active)
		want = CKR_OPERATION_NOT_INITIALIZED;
	else if (!o)
		want = CKR_KEY_HANDLE_INVALID;
	else if (!readable(o))
		want = CKR_KEY_INDIGESTIBLE;
	else if (!secrets[o->secret])
		want = CKR_KEY_HANDLE_INVALID;
	CALL(want, p11->C_DigestKey(h, oh), "C_DigestKey %s %lu", show(s), oh);
	if (want == CKR_OK) {
		append(&s->digest.in, o->value, o->n_value);
		s->digest.parts = true;
	}
}

static void save_state(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, digests);
	CK_ULONG n = 0;
	CK_RV want = CKR_OK;
	CK_BYTE *p;

	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (signs(s) || verifies(s) || s->encrypt.active || s->decrypt.active)
		want = CKR_STATE_UNSAVEABLE;
	else if (!s->digest.active)
		want = CKR_OPERATION_NOT_INITIALIZED;
	CALL(want, p11->C_GetOperationState(h, NULL, &n), "C_GetOperationState %s NULL", show(s));
	if (want != CKR_OK)
		return;
	RULE(n > 0 && n < 4096, "a state of %lu bytes", n);
	CK_ULONG need = n;
	n = pick((unsigned)need);
	p = room_for(n);
	CK_ULONG room = n;
	CALL(CKR_BUFFER_TOO_SMALL, p11->C_GetOperationState(h, p, &n), "C_GetOperationState %s room %lu", show(s), n);
	RULE(n == need && untouched(p, room), "length %lu, not %lu", n, need);
	let_go(p, room);
	p = room_for(need);
	CALL(CKR_OK, p11->C_GetOperationState(h, p, &n), "C_GetOperationState %s room %lu", show(s), need);
	struct state *st = &states[pick(MOST_STATES)];
	clear(&st->in);
	clear(&st->blob);
	*st = (struct state){.used = true, .token = s->token, .session = state_of(s), .hash = s->digest.hash, .parts = s->digest.parts};
	append(&st->in, s->digest.in.p, s->digest.in.n);
	append(&st->blob, p, need);
	let_go(p, need);
}

static void restore_state(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_session(&h);
	struct state *st = &states[pick(MOST_STATES)];
	bool altered = chance(4), null = chance(30), key = chance(10);
	CK_RV want = CKR_OK;

	if (!st->used)
		return;
	CK_BYTE *p = copy_of(st->blob.p, st->blob.n);
	CK_ULONG n = st->blob.n;
	if (altered && chance(3))
		n = pick((unsigned)n);
	else if (altered)
		p[pick((unsigned)n)] ^= (CK_BYTE)(1 << pick(8));
	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (null)
		want = CKR_ARGUMENTS_BAD;
	else if (altered || st->token != s->token || st->session != state_of(s))
		want = CKR_SAVED_STATE_INVALID;
	else if (key)
		want = CKR_KEY_NOT_NEEDED;
	CALL(want, p11->C_SetOperationState(h, null ? NULL : p, null ? 0 : n, key, 0), "C_SetOperationState %s%s%s%s", show(s), altered ? " altered" : "",
		null ? " NULL" : "", key ? " with a key" : "");
	free(p);
	if (want != CKR_OK)
		return;
	end_all(s);
	s->digest.active = true;
	s->digest.parts = st->parts;
	s->digest.hash = st->hash;
	append(&s->digest.in, st->in.p, st->in.n);
}

/* ---- the parameter of CKM_EDDSA ---- */

struct parameter {
	CK_EDDSA_PARAMS *p;
	CK_ULONG n;
	CK_RV code; /* of an Init function that is given it */
	struct scheme scheme;
};

/* parameter_of gives the parameter for a scheme. */
static struct parameter parameter_of(const struct scheme *scheme)
{
	struct parameter q = {.scheme = *scheme};

	if (scheme->variant == PURE)
		return q;
	q.p = malloc(sizeof *q.p);
	q.n = sizeof *q.p;
	memset(q.p, 0, sizeof *q.p);
	q.p->phFlag = scheme->variant == PH;
	q.p->ulContextDataLen = scheme->n_context;
	q.p->pContextData = scheme->n_context ? copy_of(scheme->context, scheme->n_context) : NULL;
	if (scheme->variant == CTX && !scheme->n_context)
		q.code = CKR_MECHANISM_PARAM_INVALID;
	return q;
}

static struct parameter pick_parameter(void)
{
	struct scheme scheme = {.variant = PURE};

	if (chance(2)) {
		scheme.variant = chance(2) ? PH : CTX;
		scheme.n_context = pick(3);
		memset(scheme.context, 'a', scheme.n_context);
	}
	struct parameter q = parameter_of(&scheme);
	if (q.p && chance(15)) {
		q.n = pick((unsigned)q.n);
		q.code = q.n ? CKR_MECHANISM_PARAM_INVALID : CKR_OK;
		if (!q.n)
			q.scheme = (struct scheme){0};
	}
	return q;
}

static void end_parameter(struct parameter *q)
{
	if (q->p)
		free(q->p->pContextData);
	free(q->p);
}

static const char *show_parameter(const struct parameter *q)
{
	static char text[40];

	if (!q->n)
		return "pure";
	snprintf(text, sizeof text, "%s(%lu)%s", q->scheme.variant == PH ? "ph" : "ctx", q->scheme.n_context, q->n == sizeof *q->p ? "" : " cut");
	return text;
}

static bool same_scheme(const struct scheme *a, const struct scheme *b)
{
	return a->variant == b->variant && a->n_context == b->n_context && memcmp(a->context, b->context, a->n_context) == 0;
}

/* ---- signatures and verifications ---- */

/* key_code is what an Init function says of its key. */
static CK_RV key_code(const struct object *o, CK_ULONG class)
{
	if (!o || o->class == CKO_DATA || o->class == CKO_CERTIFICATE)
		return CKR_KEY_HANDLE_INVALID;
	if (o->class == CKO_SECRET_KEY)
		return CKR_KEY_TYPE_INCONSISTENT;
	return o->class == class && o->usable ? CKR_OK : CKR_KEY_FUNCTION_NOT_PERMITTED;
}

static void begin_operation(struct operation *op, const struct object *key, const struct scheme *scheme)
{
	end_operation(op);
	op->active = true;
	op->scheme = *scheme;
	op->private = key->private;
	op->always = key->always;
	op->sealed = key->sealed;
	op->secret = key->secret;
	memcpy(op->pub, key->pub, 32);
}

/* key_now is what the key of a signature says when it is used. */
static CK_RV key_now(const struct session *s, const struct operation *op)
{
	if ((op->private && token_of(s)->who != CKU_USER) || (op->always && !op->authenticated))
		return CKR_USER_NOT_LOGGED_IN;
	return secrets[op->secret] ? CKR_OK : CKR_KEY_HANDLE_INVALID;
}

/* secret_key_code is what an operation says of a secret key: of a type, and for
 * a use. */
static CK_RV secret_key_code(const struct object *o, CK_ULONG type, bool use)
{
	if (!o || o->class == CKO_DATA || o->class == CKO_CERTIFICATE)
		return CKR_KEY_HANDLE_INVALID;
	if (o->class != CKO_SECRET_KEY || o->key_type != type)
		return CKR_KEY_TYPE_INCONSISTENT;
	return use ? CKR_OK : CKR_KEY_FUNCTION_NOT_PERMITTED;
}

static void openssl_hmac(const struct operation *op, struct bytes m, CK_BYTE mac[32])
{
	CHECK(HMAC(EVP_sha256(), op->key, (int)op->n_key, m.p ? m.p : (CK_BYTE *)"", m.n, mac, NULL));
}

static bool hmac_right(const struct operation *op, struct bytes m, const CK_BYTE *mac)
{
	CK_BYTE right[32];

	openssl_hmac(op, m, right);
	return memcmp(mac, right, 32) == 0;
}

/* hmac_verified is verified of a HMAC, whose key is needed for it. */
static CK_RV hmac_verified(const struct session *s, const struct operation *op, struct bytes m, const CK_BYTE *mac, CK_ULONG n)
{
	if (n != 32)
		return CKR_SIGNATURE_LEN_RANGE;
	CK_RV code = key_now(s, op);
	return code != CKR_OK ? code : hmac_right(op, m, mac) ? CKR_OK : CKR_SIGNATURE_INVALID;
}

/* signed_by checks a signature, and keeps it. */
static void signed_by(const struct operation *op, struct bytes m, const CK_BYTE *sig)
{
	if (op->hmac) {
		RULE(hmac_right(op, m, sig), "another code than OpenSSL's");
		return;
	}
	if (op->scheme.variant == PURE)
		RULE(openssl_verify(op->pub, m, sig), "the signature does not verify");
	for (unsigned i = 0; i < n_signatures && i < MOST_SIGNATURES; i++) {
		struct signature *g = &signatures[i];
		bool same = memcmp(g->pub, op->pub, 32) == 0 && same_scheme(&g->scheme, &op->scheme) && g->message.n == m.n &&
		            (m.n == 0 || memcmp(g->message.p, m.p, m.n) == 0);
		RULE(same == (memcmp(g->sig, sig, 64) == 0), "signatures of the same key, message and parameter differ, or others agree");
	}
	struct signature *g = &signatures[n_signatures++ % MOST_SIGNATURES];
	clear(&g->message);
	memcpy(g->pub, op->pub, 32);
	memcpy(g->sig, sig, 64);
	g->scheme = op->scheme;
	append(&g->message, m.p, m.n);
}

/* pick_signature gives the signature that a verification is offered: where
 * there is one, of this key. */
static const struct signature *pick_signature(const CK_BYTE pub[32])
{
	unsigned n = n_signatures < MOST_SIGNATURES ? n_signatures : MOST_SIGNATURES;

	for (unsigned tries = 0; n && pub && tries < 40; tries++) {
		const struct signature *g = &signatures[pick(n)];
		if (memcmp(g->pub, pub, 32) == 0)
			return g;
	}
	return n ? &signatures[pick(n)] : NULL;
}

/* key_with_signature gives a public key of which there is a signature. */
static CK_OBJECT_HANDLE key_with_signature(const struct session *s)
{
	for (int tries = 0; tries < 40; tries++) {
		const struct signature *g = pick_signature(NULL);
		for (int i = 0; i < MOST_OBJECTS; i++)
			if (objects[i].used && objects[i].h && objects[i].class == CKO_PUBLIC_KEY && objects[i].token == s->token &&
			    memcmp(objects[i].pub, g->pub, 32) == 0)
				return objects[i].h;
	}
	return pick_object(s, CKO_PUBLIC_KEY);
}

/* verified is the code of a verification. */
static CK_RV verified(const struct session *s, const struct operation *op, struct bytes m, const CK_BYTE *sig, CK_ULONG n)
{
	if (op->hmac)
		return hmac_verified(s, op, m, sig, n);
	if (n != 64)
		return CKR_SIGNATURE_LEN_RANGE;
	for (unsigned i = 0; i < n_signatures && i < MOST_SIGNATURES; i++) {
		const struct signature *g = &signatures[i];
		if (memcmp(g->sig, sig, 64) == 0 && memcmp(g->pub, op->pub, 32) == 0 && same_scheme(&g->scheme, &op->scheme) &&
		    g->message.n == m.n && (m.n == 0 || memcmp(g->message.p, m.p, m.n) == 0))
			return CKR_OK;
	}
	return CKR_SIGNATURE_INVALID;
}

/* The Init functions. */
enum init { SIGN_INIT, VERIFY_INIT, VERIFY_SIGNATURE_INIT, MESSAGE_SIGN_INIT, MESSAGE_VERIFY_INIT };
static const char *const init_names[] = {"C_SignInit", "C_VerifyInit", "C_VerifySignatureInit", "C_MessageSignInit", "C_MessageVerifyInit"};

static void begin(enum init what)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, user_in);
	bool sign = what == SIGN_INIT || what == MESSAGE_SIGN_INIT, message = what == MESSAGE_SIGN_INIT || what == MESSAGE_VERIFY_INIT;
	bool hmac = (what == SIGN_INIT || what == VERIFY_INIT) && chance(4);
	CK_ULONG class = hmac ? CKO_SECRET_KEY : sign ? CKO_PRIVATE_KEY : CKO_PUBLIC_KEY;
	CK_OBJECT_HANDLE oh = !hmac && !sign && s && n_signatures && chance(2) ? key_with_signature(s) : pick_object(s, chance(10) ? ANY : class);
	const struct object *o = s ? visible(s, oh) : NULL;
	const struct signature *g = pick_signature(o ? o->pub : NULL);
	struct parameter q = !sign && g && chance(2) ? parameter_of(&g->scheme) : pick_parameter();
	if (hmac && !chance(8)) {
		end_parameter(&q);
		q = (struct parameter){0};
	} else if (hmac && q.n)
		q.code = CKR_MECHANISM_PARAM_INVALID;
	CK_MECHANISM m = {chance(20) ? CKM_SHA256 : hmac ? CKM_SHA256_HMAC : CKM_EDDSA, q.p, q.n};
	CK_BYTE sig[80] = {0};
	CK_ULONG n_sig = chance(10) ? pick(80) : 64;
	bool null = chance(20);
	CK_RV want = CKR_OK;

	if (g)
		memcpy(sig, g->sig, 64);
	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (null)
		want = message ? CKR_ARGUMENTS_BAD : CKR_OK;
	else if (sign ? signs(s) : verifies(s))
		want = CKR_OPERATION_ACTIVE;
	else if (m.mechanism == CKM_SHA256)
		want = CKR_MECHANISM_INVALID;
	else if (q.code != CKR_OK)
		want = q.code;
	else if (hmac)
		want = secret_key_code(o, CKK_GENERIC_SECRET, o && (sign ? o->sign : o->verify));
	else
		want = key_code(o, class);
	CK_MECHANISM_PTR mp = null ? NULL : &m;
	say("%s %s o%d (%lu) %lx %s%s", init_names[what], show(s), o ? (int)(o - objects) : -1, oh, m.mechanism, show_parameter(&q), null ? " NULL" : "");
	flush_line();
	CK_BYTE *sp = copy_of(sig, n_sig);
	answer(__FILE__, __LINE__, want,
		what == SIGN_INIT ? p11->C_SignInit(h, mp, oh) : what == VERIFY_INIT ? p11->C_VerifyInit(h, mp, oh) :
		what == VERIFY_SIGNATURE_INIT ? p11->C_VerifySignatureInit(h, mp, oh, sp, n_sig) :
		what == MESSAGE_SIGN_INIT ? p11->C_MessageSignInit(h, mp, oh) : p11->C_MessageVerifyInit(h, mp, oh));
	free(sp);
	if (want == CKR_OK && null) {
		if (what == SIGN_INIT)
			end_operation(&s->sign);
		else
			end_operation(&s->verify), end_operation(&s->verify_sig);
	} else if (want == CKR_OK) {
		struct process *p = what == MESSAGE_SIGN_INIT ? &s->signing : &s->verifying;
		struct operation *op = message ? &p->op : what == SIGN_INIT ? &s->sign : what == VERIFY_INIT ? &s->verify : &s->verify_sig;
		begin_operation(op, o, &q.scheme);
		op->hmac = hmac;
		if (hmac)
			memcpy(op->key, o->value, op->n_key = o->n_value);
		if (message)
			p->scheme = q.scheme;
		memcpy(op->sig, sig, sizeof sig);
		op->n_sig = n_sig;
	}
	end_parameter(&q);
}

static void sign_init(void) { begin(SIGN_INIT); }
static void verify_init(void) { begin(VERIFY_INIT); }
static void verify_signature_init(void) { begin(VERIFY_SIGNATURE_INIT); }
static void message_sign_init(void) { begin(MESSAGE_SIGN_INIT); }
static void message_verify_init(void) { begin(MESSAGE_VERIFY_INIT); }

static void sign(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, signing_one);
	CK_ULONG need = s && s->sign.hmac ? 32 : 64;
	struct out o = pick_out(need);
	struct bytes in = pick_message();
	bool final = chance(2), asked = false;
	CK_RV want = CKR_OK;

	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (o.bad)
		want = CKR_ARGUMENTS_BAD;
	else if (!s->sign.active)
		want = CKR_OPERATION_NOT_INITIALIZED;
	else if (!final && s->sign.parts)
		want = CKR_OPERATION_ACTIVE;
	else if (!(asked = asks(&o, need, &want)))
		want = key_now(s, &s->sign);
	if (final)
		CALL(want, p11->C_SignFinal(h, OUT_P(o), OUT_N(o)), "C_SignFinal %s " OUT_FORMAT, show(s), OUT_SHOW(o));
	else
		CALL(want, p11->C_Sign(h, in.p, in.n, OUT_P(o), OUT_N(o)), "C_Sign %s %zu bytes " OUT_FORMAT, show(s), in.n, OUT_SHOW(o));
	if (want == CKR_OK && !asked)
		signed_by(&s->sign, final ? s->sign.message : in, o.p);
	if (s && (o.bad || (s->sign.active && !asked && want != CKR_OPERATION_ACTIVE)))
		end_operation(&s->sign);
	end_out(&o, want, need, asked);
	clear(&in);
}

/* update adds a part to what one of the operations signs or verifies. */
static void update(void)
{
	CK_SESSION_HANDLE h;
	unsigned what = pick(3);
	struct session *s = pick_ready(&h, what == 0 ? signing_one : what == 1 ? verifying_one : verifying_first);
	struct bytes in = pick_message();
	struct operation *op = !s ? NULL : what == 0 ? &s->sign : what == 1 ? &s->verify : &s->verify_sig;
	const struct signature *g = op && op->active && what != 0 && !op->parts ? pick_signature(op->pub) : NULL;

	if (g && chance(2)) {
		clear(&in);
		append(&in, g->message.p, g->message.n);
	}
	bool null = chance(30) && in.n;
	CK_RV want = !s ? CKR_SESSION_HANDLE_INVALID : null ? CKR_ARGUMENTS_BAD : !op->active ? CKR_OPERATION_NOT_INITIALIZED : CKR_OK;
	CK_BYTE_PTR p = null ? NULL : in.p;

	if (what == 0)
		CALL(want, p11->C_SignUpdate(h, p, in.n), "C_SignUpdate %s %zu bytes%s", show(s), in.n, null ? " NULL" : "");
	else if (what == 1)
		CALL(want, p11->C_VerifyUpdate(h, p, in.n), "C_VerifyUpdate %s %zu bytes%s", show(s), in.n, null ? " NULL" : "");
	else
		CALL(want, p11->C_VerifySignatureUpdate(h, p, in.n), "C_VerifySignatureUpdate %s %zu bytes%s", show(s), in.n, null ? " NULL" : "");
	if (want == CKR_OK) {
		append(&op->message, in.p, in.n);
		op->parts = true;
	} else if (want == CKR_ARGUMENTS_BAD && what == 0)
		end_operation(&s->sign);
	else if (want == CKR_ARGUMENTS_BAD)
		end_operation(&s->verify), end_operation(&s->verify_sig);
	clear(&in);
}

static void verify(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, verifying_one);
	bool final = chance(2);
	const struct signature *g = pick_signature(s && s->verify.active ? s->verify.pub : NULL);
	struct bytes in = g && !chance(4) ? (struct bytes){copy_of(g->message.p, g->message.n), g->message.n} : pick_message();
	CK_BYTE sig[80] = {0};
	CK_ULONG n = chance(10) ? pick(80) : 64;
	CK_RV want = CKR_OK;

	if (s && s->verify.hmac) {
		openssl_hmac(&s->verify, final ? s->verify.message : in, sig);
		n = n == 64 ? 32 : n;
	} else if (g)
		memcpy(sig, g->sig, 64);
	if (chance(6))
		sig[pick(64)] ^= (CK_BYTE)(1 << pick(8));
	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (!s->verify.active)
		want = CKR_OPERATION_NOT_INITIALIZED;
	else if (!final && s->verify.parts)
		want = CKR_OPERATION_ACTIVE;
	else
		want = verified(s, &s->verify, final ? s->verify.message : in, sig, n);
	CK_BYTE *p = copy_of(sig, n);
	if (final)
		CALL(want, p11->C_VerifyFinal(h, p, n), "C_VerifyFinal %s %lu bytes", show(s), n);
	else
		CALL(want, p11->C_Verify(h, in.p, in.n, p, n), "C_Verify %s %zu bytes, %lu bytes", show(s), in.n, n);
	free(p);
	if (s && want != CKR_OPERATION_ACTIVE)
		end_operation(&s->verify);
	clear(&in);
}

static void verify_signature(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, verifying_first);
	bool final = chance(2);
	struct bytes in = pick_message();
	CK_RV want = CKR_OK;

	for (unsigned i = 0; s && s->verify_sig.active && i < n_signatures && i < MOST_SIGNATURES; i++)
		if (memcmp(signatures[i].sig, s->verify_sig.sig, 64) == 0 && !chance(4)) {
			clear(&in);
			append(&in, signatures[i].message.p, signatures[i].message.n);
			break;
		}
	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (!s->verify_sig.active)
		want = CKR_OPERATION_NOT_INITIALIZED;
	else if (!final && s->verify_sig.parts)
		want = CKR_OPERATION_ACTIVE;
	else
		want = verified(s, &s->verify_sig, final ? s->verify_sig.message : in, s->verify_sig.sig, s->verify_sig.n_sig);
	if (final)
		CALL(want, p11->C_VerifySignatureFinal(h), "C_VerifySignatureFinal %s", show(s));
	else
		CALL(want, p11->C_VerifySignature(h, in.p, in.n), "C_VerifySignature %s %zu bytes", show(s), in.n);
	if (s && want != CKR_OPERATION_ACTIVE)
		end_operation(&s->verify_sig);
	clear(&in);
}

/* ---- messages ---- */

/* message_code is what a function of a process says before it looks at its
 * message. begun tells whether one must have begun. */
static CK_RV message_code(const struct session *s, const struct process *p, bool begun)
{
	if (!s)
		return CKR_SESSION_HANDLE_INVALID;
	if (!p->op.active || (begun && !p->begun))
		return CKR_OPERATION_NOT_INITIALIZED;
	return p->begun && !begun ? CKR_OPERATION_ACTIVE : CKR_OK;
}

/* A parameter of the wrong size for one message is refused as bytes. */
static void message_begin(void)
{
	CK_SESSION_HANDLE h;
	bool signing = chance(2);
	struct session *s = pick_ready(&h, signing ? signing_many : verifying_many);
	struct process *p = !s ? NULL : signing ? &s->signing : &s->verifying;
	struct parameter q = pick_parameter();
	CK_RV want = message_code(s, p, false);

	if (want == CKR_OK && q.n)
		want = q.code;
	if (signing)
		CALL(want, p11->C_SignMessageBegin(h, q.p, q.n), "C_SignMessageBegin %s %s", show(s), show_parameter(&q));
	else
		CALL(want, p11->C_VerifyMessageBegin(h, q.p, q.n), "C_VerifyMessageBegin %s %s", show(s), show_parameter(&q));
	if (want == CKR_OK) {
		p->op.scheme = q.n ? q.scheme : p->scheme;
		p->begun = true;
	}
	end_parameter(&q);
}

static void sign_message(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, signing_many);
	struct process *p = s ? &s->signing : NULL;
	struct parameter q = pick_parameter();
	struct out o = pick_out(64);
	struct bytes in = pick_message();
	bool asked = false;
	CK_RV want = message_code(s, p, false);

	if (s && o.bad)
		want = CKR_ARGUMENTS_BAD;
	bool sees = want == CKR_OK; /* it gets as far as the message */
	if (sees && q.n)
		want = q.code;
	if (want == CKR_OK && sees) {
		p->op.scheme = q.n ? q.scheme : p->scheme;
		if (!(asked = asks(&o, 64, &want)))
			want = key_now(s, &p->op);
	} else
		sees = false;
	CALL(want, p11->C_SignMessage(h, q.p, q.n, in.p, in.n, OUT_P(o), OUT_N(o)), "C_SignMessage %s %s %zu bytes " OUT_FORMAT, show(s),
		show_parameter(&q), in.n, OUT_SHOW(o));
	if (want == CKR_OK && !asked)
		signed_by(&p->op, in, o.p);
	if (sees && !asked)
		next_message(p);
	end_out(&o, want, 64, asked);
	end_parameter(&q);
	clear(&in);
}

static void sign_message_next(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, in_message);
	struct process *p = s ? &s->signing : NULL;
	struct parameter q = chance(3) ? pick_parameter() : (struct parameter){0};
	struct out o = pick_out(64);
	struct bytes in = pick_message();
	bool last = chance(2), asked = false, added = false, ends = false;
	CK_RV want = message_code(s, p, true);

	o.bad = false;
	if (want == CKR_OK && !(last && (asked = asks(&o, 64, &want)))) {
		if (q.n && (q.code != CKR_OK || !same_scheme(&q.scheme, &p->op.scheme))) {
			want = CKR_MECHANISM_PARAM_INVALID;
			ends = true;
		} else {
			added = true;
			append(&p->op.message, in.p, in.n);
			if (last) {
				want = key_now(s, &p->op);
				ends = true;
			}
		}
	}
	CALL(want, p11->C_SignMessageNext(h, q.p, q.n, in.p, in.n, last ? OUT_P(o) : NULL, last ? &o.n : NULL), "C_SignMessageNext %s %s %zu bytes %s " OUT_FORMAT,
		show(s), show_parameter(&q), in.n, last ? "last" : "", OUT_SHOW(o));
	if (added && last && want == CKR_OK)
		signed_by(&p->op, p->op.message, o.p);
	if (ends)
		next_message(p);
	if (last)
		end_out(&o, want, 64, asked);
	else
		let_go(o.p, o.room);
	end_parameter(&q);
	clear(&in);
}

static void verify_message(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, verifying_many);
	struct process *p = s ? &s->verifying : NULL;
	struct parameter q = pick_parameter();
	const struct signature *g = pick_signature(p && p->op.active ? p->op.pub : NULL);
	bool next = chance(2), last = chance(2), ends = false;
	struct bytes in = g && !chance(3) ? (struct bytes){copy_of(g->message.p, g->message.n), g->message.n} : pick_message();
	CK_BYTE sig[80] = {0};
	CK_ULONG n = chance(10) ? 1 + pick(79) : 64;
	CK_RV want = message_code(s, p, next);

	if (g)
		memcpy(sig, g->sig, 64);
	if (want == CKR_OK && !next) {
		if (q.n)
			want = q.code;
		if (want == CKR_OK) {
			p->op.scheme = q.n ? q.scheme : p->scheme;
			want = verified(s, &p->op, in, sig, n);
			ends = true;
		}
	} else if (want == CKR_OK) {
		if (q.n && (q.code != CKR_OK || !same_scheme(&q.scheme, &p->op.scheme))) {
			want = CKR_MECHANISM_PARAM_INVALID;
			ends = true;
		} else {
			append(&p->op.message, in.p, in.n);
			if (last) {
				want = verified(s, &p->op, p->op.message, sig, n);
				ends = true;
			}
		}
	}
	CK_BYTE *sp = copy_of(sig, n);
	if (next)
		CALL(want, p11->C_VerifyMessageNext(h, q.p, q.n, in.p, in.n, last ? sp : NULL, last ? n : 0), "C_VerifyMessageNext %s %s %zu bytes%s", show(s),
			show_parameter(&q), in.n, last ? " last" : "");
	else
		CALL(want, p11->C_VerifyMessage(h, q.p, q.n, in.p, in.n, sp, n), "C_VerifyMessage %s %s %zu bytes, %lu bytes", show(s), show_parameter(&q), in.n, n);
	free(sp);
	if (ends)
		next_message(p);
	end_parameter(&q);
	clear(&in);
}

static void message_final(void)
{
	CK_SESSION_HANDLE h;
	bool signing = chance(2);
	struct session *s = pick_ready(&h, signing ? signing_many : verifying_many);
	struct process *p = !s ? NULL : signing ? &s->signing : &s->verifying;
	CK_RV want = message_code(s, p, false);

	if (signing)
		CALL(want, p11->C_MessageSignFinal(h), "C_MessageSignFinal %s", show(s));
	else
		CALL(want, p11->C_MessageVerifyFinal(h), "C_MessageVerifyFinal %s", show(s));
	if (want == CKR_OK)
		end_process(p);
}

#endif
