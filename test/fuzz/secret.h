/* Secret keys: making them, encryption and decryption in one part and in several,
 * wrapping and unwrapping. HMACs are signatures (operations.h). */
#ifndef SECRET_H
#define SECRET_H
#include "objects.h"
#include "operations.h"

/* ---- what OpenSSL says ---- */

/* The additional data of AES-GCM: some bytes of the nonce. */
static CK_ULONG n_aad(const struct cipher *c)
{
	return c->iv[0] % 4;
}

static struct bytes openssl_encrypt(const struct cipher *c, struct bytes in)
{
	EVP_CIPHER *type = EVP_CIPHER_fetch(NULL, c->gcm ? c->n_key == 16 ? "AES-128-GCM" : c->n_key == 24 ? "AES-192-GCM" : "AES-256-GCM" :
	                                    c->n_key == 16 ? "AES-128-CBC" : c->n_key == 24 ? "AES-192-CBC" : "AES-256-CBC", NULL);
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	struct bytes out = {malloc(in.n + 32), 0};
	int n = 0, last = 0;

	CHECK(type && EVP_EncryptInit_ex2(ctx, type, c->key, c->iv, NULL) == 1);
	if (c->gcm)
		CHECK(EVP_EncryptUpdate(ctx, NULL, &n, c->iv, (int)n_aad(c)) == 1);
	CHECK(EVP_EncryptUpdate(ctx, out.p, &n, in.p ? in.p : (CK_BYTE *)"", (int)in.n) == 1 && EVP_EncryptFinal_ex(ctx, out.p + n, &last) == 1);
	out.n = (size_t)(n + last);
	if (c->gcm) {
		CHECK(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, 16, out.p + out.n) == 1);
		out.n += 16;
	}
	EVP_CIPHER_CTX_free(ctx);
	EVP_CIPHER_free(type);
	return out;
}

/* ---- keys ---- */

/* What a secret key is good for. */
static bool decrypts(const struct object *o)
{
	for (int i = 0; i < MOST_CIPHERTEXTS; i++)
		if (o->decrypt && ciphertexts[i].key_id && ciphertexts[i].key_id == o->key_id)
			return true;
	return false;
}

static bool unwraps(const struct object *o)
{
	for (int i = 0; i < MOST_WRAPPED; i++)
		if (o->unwrap && wrapped[i].by && wrapped[i].by == o->key_id)
			return true;
	return false;
}

static bool encrypts(const struct object *o) { return o->encrypt && o->key_type == CKK_AES; }
static bool wraps(const struct object *o) { return o->wrap && o->key_type == CKK_AES; }
static bool extractable(const struct object *o) { return o->extractable; }

/* pick_secret gives a handle: mostly of a secret key that is good for the call. */
static CK_OBJECT_HANDLE pick_secret(const struct session *s, bool (*good)(const struct object *))
{
	if (s && !chance(4))
		for (int tries = 0; tries < 400; tries++) {
			const struct object *o = &objects[pick(MOST_OBJECTS)];
			if (o->used && o->h && o->token == s->token && o->class == CKO_SECRET_KEY && good(o))
				return o->h;
		}
	return pick_object(s, chance(6) ? ANY : CKO_SECRET_KEY);
}

static void generate_key(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, user_in);
	struct object *o = free_object();
	struct template t = {0};
	CK_OBJECT_HANDLE got = 0;
	CK_MECHANISM m = {chance(15) ? CKM_SHA256 : CKM_AES_KEY_GEN, NULL, 0};
	CK_ULONG size = 16 + 8 * pick(3);
	CK_RV want = CKR_OK, late = CKR_OK;

	if (!o)
		return;
	o->class = CKO_SECRET_KEY;
	o->private = true;
	if (chance(15)) {
		m.pParameter = (void *)"xx";
		m.ulParameterLen = 2;
	}
	secret_uses(o, &t, CKK_AES, true);
	if (chance(20)) {
		size = pick(16);
		late = CKR_ATTRIBUTE_VALUE_INVALID;
	}
	if (chance(20))
		late = CKR_TEMPLATE_INCOMPLETE;
	else
		add_ulong(&t, CKA_VALUE_LEN, size);
	common(o, &t);
	if (m.mechanism != CKM_AES_KEY_GEN)
		want = CKR_MECHANISM_INVALID;
	else if (m.pParameter)
		want = CKR_MECHANISM_PARAM_INVALID;
	if (want == CKR_OK && s && chance(8))
		want = defect(&t, s, o->class);
	if (want == CKR_OK)
		want = late;
	bool null = chance(20);
	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (null)
		want = CKR_ARGUMENTS_BAD;
	else if (want == CKR_OK)
		want = may_create(s, o);
	CALL(want, p11->C_GenerateKey(h, &m, t.a, t.n, null ? NULL : &got), "C_GenerateKey %s mechanism %lx of %lu bytes%s%s, %lu attributes -> o%d", show(s),
		m.mechanism, size, o->stored ? " stored" : "", o->private ? " private" : "", t.n, (int)(o - objects));
	free_template(&t);
	if (want != CKR_OK)
		return;
	o->sealed = o->stored;
	o->secret = new_secret();
	o->key_id = ++n_keys;
	o->n_key = size;
	made(s, o, got);
}

/* ---- encryption and decryption ---- */

static bool encrypting(const struct session *s) { return s->encrypt.active; }
static bool decrypting(const struct session *s) { return s->decrypt.active; }

/* pick_ciphertext gives one that the key has made, where there is one. */
static const struct ciphertext *pick_ciphertext(unsigned key_id)
{
	for (unsigned tries = 0; tries < 40; tries++) {
		const struct ciphertext *g = &ciphertexts[pick(MOST_CIPHERTEXTS)];
		if (g->key_id && g->key_id == key_id)
			return g;
	}
	return NULL;
}

static void crypt_init(bool decrypt)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, user_in);
	CK_OBJECT_HANDLE oh = pick_secret(s, decrypt ? decrypts : encrypts);
	const struct object *o = s ? visible(s, oh) : NULL;
	const struct ciphertext *g = decrypt && o ? pick_ciphertext(o->key_id) : NULL;
	struct cipher c = {.active = true, .gcm = chance(2)};
	CK_GCM_PARAMS gcm = {c.iv, 12, 96, c.iv, 0, 128};
	CK_MECHANISM m = {0};
	bool null = chance(20);
	CK_RV want = CKR_OK;

	for (int i = 0; i < 16; i++)
		c.iv[i] = (CK_BYTE)next_random();
	if (g) {
		c.gcm = g->gcm;
		memcpy(c.iv, g->iv, 16);
		append(&c.wanted, g->text.p, g->text.n);
		append(&c.plain, g->plain.p, g->plain.n);
	} else if (decrypt)
		c.gcm = true; /* what another key makes of CBC is anything */
	gcm.ulAADLen = n_aad(&c);
	m = (CK_MECHANISM){chance(20) ? CKM_SHA256 : c.gcm ? CKM_AES_GCM : CKM_AES_CBC_PAD, c.gcm ? (void *)&gcm : c.iv, c.gcm ? sizeof gcm : 16};
	if (chance(15))
		m.ulParameterLen = pick((unsigned)m.ulParameterLen);
	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (null)
		;
	else if (decrypt ? s->decrypt.active : s->encrypt.active)
		want = CKR_OPERATION_ACTIVE;
	else if (m.mechanism == CKM_SHA256)
		want = CKR_MECHANISM_INVALID;
	else if (m.ulParameterLen != (c.gcm ? sizeof gcm : 16))
		want = CKR_MECHANISM_PARAM_INVALID;
	else
		want = secret_key_code(o, CKK_AES, o && (decrypt ? o->decrypt : o->encrypt));
	CK_MECHANISM_PTR mp = null ? NULL : &m;
	if (decrypt)
		CALL(want, p11->C_DecryptInit(h, mp, oh), "C_DecryptInit %s o%d (%lu) %lx%s", show(s), o ? (int)(o - objects) : -1, oh, m.mechanism, null ? " NULL" : "");
	else
		CALL(want, p11->C_EncryptInit(h, mp, oh), "C_EncryptInit %s o%d (%lu) %lx%s", show(s), o ? (int)(o - objects) : -1, oh, m.mechanism, null ? " NULL" : "");
	if (want != CKR_OK || null) {
		end_cipher(&c);
		if (want == CKR_OK)
			end_cipher(decrypt ? &s->decrypt : &s->encrypt);
		return;
	}
	c.private = o->private;
	c.secret = o->secret;
	c.key_id = o->key_id;
	if (o->n_value) {
		c.n_key = o->n_value;
		memcpy(c.key, o->value, c.n_key);
	}
	*(decrypt ? &s->decrypt : &s->encrypt) = c;
}

static void encrypt_init(void) { crypt_init(false); }
static void decrypt_init(void) { crypt_init(true); }

/* cipher_size is what comes out of n more bytes, at most; exact tells whether it
 * is just so much. */
static CK_ULONG cipher_size(const struct cipher *c, bool decrypt, size_t n, bool last, bool *exact)
{
	*exact = true;
	n += c->in.n;
	if (c->gcm)
		return !last ? 0 : !decrypt ? n + 16 : n > 16 ? n - 16 : 0;
	n -= c->given;
	size_t whole = n / 16 * 16;
	if (decrypt && !last && whole == n && n)
		whole -= 16; /* it may be padding */
	if (last && decrypt)
		*exact = false;
	return last && !decrypt ? whole + 16 : whole;
}

/* decrypted is the code at the end of a decryption of text. */
static CK_RV decrypted(const struct cipher *c, struct bytes text)
{
	if (c->gcm && text.n < 16)
		return CKR_ENCRYPTED_DATA_LEN_RANGE;
	if (!c->gcm && (text.n == 0 || text.n % 16 != 0))
		return CKR_ENCRYPTED_DATA_LEN_RANGE;
	return c->wanted.n && text.n == c->wanted.n && memcmp(text.p, c->wanted.p, text.n) == 0 ? CKR_OK : CKR_AEAD_DECRYPT_FAILED;
}

/* encrypted keeps what an encryption gave, and checks it where the key is known. */
static void encrypted(const struct cipher *c)
{
	if (c->n_key) {
		struct bytes right = openssl_encrypt(c, c->in);
		RULE(right.n == c->out.n && memcmp(right.p, c->out.p, right.n) == 0, "another ciphertext than OpenSSL's");
		clear(&right);
	}
	struct ciphertext *g = &ciphertexts[n_ciphertexts++ % MOST_CIPHERTEXTS];
	clear(&g->plain);
	clear(&g->text);
	g->key_id = c->key_id;
	g->gcm = c->gcm;
	memcpy(g->iv, c->iv, 16);
	append(&g->plain, c->in.p, c->in.n);
	append(&g->text, c->out.p, c->out.n);
}

/* decrypt_input gives what comes next of the ciphertext that is decrypted: all of
 * the rest, part of it, or something else where the code for that is known. */
static struct bytes decrypt_input(const struct cipher *c, bool all)
{
	struct bytes in = {0};

	if (!c->active || !c->wanted.n || c->in.n > c->wanted.n)
		return pick_message();
	size_t rest = c->wanted.n - c->in.n, n = all ? rest : pick((unsigned)rest + 1);
	append(&in, c->wanted.p + c->in.n, n);
	if (c->gcm && n && chance(8))
		in.p[pick((unsigned)n)] ^= (CK_BYTE)(1 << pick(8));
	else if (!c->gcm && all && n >= 16 && chance(8))
		in.n -= 1 + pick(15);
	return in;
}

/* What of a session's encryption or decryption is called: all in one, a part, or
 * the end. */
enum crypt { ONE, PART, LAST };
static const char *const crypt_names[2][3] = {{"C_Encrypt", "C_EncryptUpdate", "C_EncryptFinal"}, {"C_Decrypt", "C_DecryptUpdate", "C_DecryptFinal"}};

static CK_RV call_crypt(bool decrypt, enum crypt what, CK_SESSION_HANDLE h, struct bytes in, CK_BYTE_PTR out, CK_ULONG_PTR n)
{
	if (what == LAST)
		return decrypt ? p11->C_DecryptFinal(h, out, n) : p11->C_EncryptFinal(h, out, n);
	if (what == PART)
		return decrypt ? p11->C_DecryptUpdate(h, in.p, in.n, out, n) : p11->C_EncryptUpdate(h, in.p, in.n, out, n);
	return decrypt ? p11->C_Decrypt(h, in.p, in.n, out, n) : p11->C_Encrypt(h, in.p, in.n, out, n);
}

static void crypt_step(bool decrypt)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, decrypt ? decrypting : encrypting);
	static struct cipher none;
	struct cipher *c = !s ? &none : decrypt ? &s->decrypt : &s->encrypt;
	enum crypt what = pick(3);

	/* The end in the midst of CBC would find any padding. */
	if (decrypt && c->active && !c->gcm && what == LAST && c->in.n != c->wanted.n && c->in.n % 16 == 0 && c->in.n)
		what = PART;
	struct bytes in = {0};
	if (what != LAST)
		in = decrypt ? decrypt_input(c, what == ONE || chance(2)) : pick_message();
	bool exact = true, asked = false, last = what != PART, ends = true;
	CK_ULONG need = c->active ? cipher_size(c, decrypt, in.n, last, &exact) : 32;
	struct out o = pick_out(need ? need : 1);
	struct bytes text = {0};
	CK_RV want = CKR_OK;

	append(&text, c->in.p, c->in.n);
	append(&text, in.p, in.n);
	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (o.bad)
		want = CKR_ARGUMENTS_BAD;
	else if (!c->active)
		want = CKR_OPERATION_NOT_INITIALIZED;
	else if (what == ONE && c->parts) {
		want = CKR_OPERATION_ACTIVE;
		ends = false;
	} else if (c->private && token_of(s)->who != CKU_USER)
		want = CKR_USER_NOT_LOGGED_IN;
	else if (o.null || (exact && o.room < need)) {
		asked = asks(&o, need, &want);
		ends = false;
	} else if (c->lent && c->wiped)
		want = CKR_USER_NOT_LOGGED_IN;
	else if (!c->lent && !secrets[c->secret])
		want = CKR_KEY_HANDLE_INVALID;
	else {
		if (!last)
			c->lent = true;
		if (decrypt && last)
			want = decrypted(c, text);
		if (want == CKR_OK && !exact) {
			need = c->plain.n - c->out.n;
			if (o.room < need) {
				want = CKR_BUFFER_TOO_SMALL;
				ends = false;
			}
		}
		ends = ends && (last || want != CKR_OK);
	}
	CALL(want, call_crypt(decrypt, what, h, in, OUT_P(o), OUT_N(o)), "%s %s %zu bytes " OUT_FORMAT, crypt_names[decrypt][what], show(s), in.n, OUT_SHOW(o));
	if (want == CKR_OK && !asked) {
		append(&c->in, in.p, in.n);
		append(&c->out, o.p, need);
		c->given += need;
		c->parts = true;
		if (decrypt && c->wanted.n && text.n <= c->wanted.n && memcmp(text.p, c->wanted.p, text.n) == 0)
			RULE(c->out.n <= c->plain.n && memcmp(c->out.p, c->plain.p, c->out.n) == 0, "the plaintext is another one");
		if (last && !decrypt)
			encrypted(c);
		else if (last)
			RULE(c->out.n == c->plain.n, "a plaintext of %zu bytes, not %zu", c->out.n, c->plain.n);
	}
	if (s && ends)
		end_cipher(c);
	end_out(&o, want, need, asked);
	clear(&in);
	clear(&text);
}

static void encrypt(void) { crypt_step(false); }
static void decrypt(void) { crypt_step(true); }

/* ---- wrapping ---- */

static CK_RV wrapping_code(const struct object *o, bool use, CK_RV handle, CK_RV type)
{
	CK_RV code = secret_key_code(o, CKK_AES, use);

	return code == CKR_KEY_HANDLE_INVALID ? handle : code == CKR_KEY_TYPE_INCONSISTENT ? type : code;
}

static void wrap_key(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, user_in);
	CK_OBJECT_HANDLE wh = pick_secret(s, wraps), oh = pick_secret(s, extractable);
	const struct object *w = s ? visible(s, wh) : NULL, *o = s ? visible(s, oh) : NULL;
	CK_MECHANISM m = {chance(20) ? CKM_SHA256 : CKM_AES_KEY_WRAP_KWP, NULL, 0};
	CK_ULONG need = o && o->class == CKO_SECRET_KEY ? (o->n_key + 7) / 8 * 8 + 8 : 40; /* RFC 5649 */
	struct out out = pick_out(need);
	bool asked = false;
	CK_RV want = CKR_OK;

	if (chance(15)) {
		m.pParameter = (void *)"a parameter";
		m.ulParameterLen = 8;
	}
	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (out.bad)
		want = CKR_ARGUMENTS_BAD;
	else if (m.mechanism == CKM_SHA256)
		want = CKR_MECHANISM_INVALID;
	else if (m.pParameter)
		want = CKR_MECHANISM_PARAM_INVALID;
	else
		want = wrapping_code(w, w && w->wrap, CKR_WRAPPING_KEY_HANDLE_INVALID, CKR_WRAPPING_KEY_TYPE_INCONSISTENT);
	if (want == CKR_OK) {
		if (!o || !has_secret(o))
			want = CKR_KEY_HANDLE_INVALID;
		else if (!o->extractable)
			want = CKR_KEY_UNEXTRACTABLE;
		else if (!secrets[o->secret] || !secrets[w->secret])
			want = CKR_KEY_HANDLE_INVALID;
		else
			asked = asks(&out, need, &want);
	}
	CALL(want, p11->C_WrapKey(h, &m, wh, oh, OUT_P(out), OUT_N(out)), "C_WrapKey %s %lx o%d (%lu) o%d (%lu) " OUT_FORMAT, show(s), m.mechanism,
		w ? (int)(w - objects) : -1, wh, o ? (int)(o - objects) : -1, oh, OUT_SHOW(out));
	if (want == CKR_OK && !asked) {
		struct wrapped *g = &wrapped[n_wrapped++ % MOST_WRAPPED];
		*g = (struct wrapped){.by = w->key_id, .key_id = o->key_id, .key_type = o->key_type, .n_key = o->n_key, .n_value = o->n_value, .n = need};
		memcpy(g->value, o->value, o->n_value);
		memcpy(g->text, out.p, need);
	}
	end_out(&out, want, need, asked);
}

static const struct wrapped *pick_wrapped(unsigned by)
{
	const struct wrapped *g = &wrapped[pick(MOST_WRAPPED)];

	for (unsigned tries = 0; tries < 40 && (!g->by || g->by != by); tries++)
		g = &wrapped[pick(MOST_WRAPPED)];
	return g->by ? g : NULL;
}

static void unwrap_key(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, user_in);
	CK_OBJECT_HANDLE wh = pick_secret(s, unwraps), got = 0;
	const struct object *w = s ? visible(s, wh) : NULL;
	struct object *o = free_object();
	const struct wrapped *g = pick_wrapped(w ? w->key_id : 0);
	CK_MECHANISM m = {chance(20) ? CKM_SHA256 : CKM_AES_KEY_WRAP_KWP, NULL, 0};
	struct template t = {0};
	CK_BYTE text[sizeof g->text];
	bool null = chance(20), altered = chance(8);
	CK_RV want = CKR_OK, bad = CKR_OK;

	if (!o || !g)
		return;
	memcpy(text, g->text, g->n);
	CK_ULONG n = g->n, type = g->key_type;
	if (altered && chance(2))
		n -= 1 + pick(7);
	else if (altered)
		text[pick((unsigned)n)] ^= (CK_BYTE)(1 << pick(8));
	if (g->n_value && chance(4)) /* what the value of the key is has to be known */
		type = type == CKK_AES ? CKK_GENERIC_SECRET : CKK_AES;
	o->class = CKO_SECRET_KEY;
	o->private = o->extractable = true;
	add_ulong(&t, CKA_CLASS, o->class);
	secret_uses(o, &t, type, false);
	common(o, &t);
	if (s && chance(8))
		bad = defect(&t, s, o->class);
	if (chance(15)) { /* what must be there is looked for before all else */
		drop_first(&t);
		bad = CKR_TEMPLATE_INCOMPLETE;
	}
	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (null)
		want = CKR_ARGUMENTS_BAD;
	else if (m.mechanism == CKM_SHA256)
		want = CKR_MECHANISM_INVALID;
	else
		want = wrapping_code(w, w && w->unwrap, CKR_UNWRAPPING_KEY_HANDLE_INVALID, CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT);
	if (want == CKR_OK)
		want = bad;
	if (want == CKR_OK)
		want = may_create(s, o);
	if (want == CKR_OK && !secrets[w->secret])
		want = CKR_KEY_HANDLE_INVALID;
	if (want == CKR_OK && n % 8 != 0)
		want = CKR_WRAPPED_KEY_LEN_RANGE;
	if (want == CKR_OK && (altered || g->by != w->key_id))
		want = CKR_WRAPPED_KEY_INVALID;
	if (want == CKR_OK && type == CKK_AES && g->n_key != 16 && g->n_key != 24 && g->n_key != 32)
		want = CKR_WRAPPED_KEY_LEN_RANGE;
	CK_BYTE *p = copy_of(text, n);
	CALL(want, p11->C_UnwrapKey(h, &m, wh, p, n, t.a, t.n, null ? NULL : &got), "C_UnwrapKey %s %lx o%d (%lu) %lu bytes%s, type %lx -> o%d", show(s), m.mechanism,
		w ? (int)(w - objects) : -1, wh, n, altered ? " altered" : "", type, (int)(o - objects));
	free(p);
	free_template(&t);
	if (want != CKR_OK)
		return;
	o->sealed = o->stored;
	o->secret = new_secret();
	o->key_id = g->key_id;
	o->n_key = g->n_key;
	o->n_value = g->n_value;
	memcpy(o->value, g->value, g->n_value);
	made(s, o, got);
}

#endif
