/* Objects: making, copying, changing, reading, finding and destroying them. */
#ifndef OBJECTS_H
#define OBJECTS_H
#include "model.h"

static const CK_BYTE ed25519_oid[] = {0x06, 0x03, 0x2b, 0x65, 0x70};
static const CK_BYTE ed25519_name[] = "\x13\x0c" "edwards25519";
static const CK_BYTE p256_oid[] = {0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07};

static struct object *free_object(void)
{
	for (int i = 0; i < MOST_OBJECTS; i++)
		if (!objects[i].used) {
			objects[i] = (struct object){.born = ++births, .modifiable = true, .copyable = true, .destroyable = true, .usable = true};
			return &objects[i];
		}
	return NULL;
}

static int new_secret(void)
{
	if (n_secrets % 256 == 0)
		secrets = realloc(secrets, (size_t)(n_secrets + 256) * sizeof *secrets);
	secrets[n_secrets] = true;
	return n_secrets++;
}

/* read_secret reads a secret key, and learns it where it was not known. */
static void read_secret(const struct session *s, struct object *o)
{
	CK_BYTE value[sizeof o->value];
	CK_ATTRIBUTE t = {CKA_VALUE, value, sizeof value};

	if (!secrets[o->secret])
		return; /* it is the copy of a key that is gone */
	CALL(CKR_OK, p11->C_GetAttributeValue(s->h, o->h, &t, 1), "C_GetAttributeValue of the new key");
	RULE(t.ulValueLen == o->n_key && (!o->n_value || memcmp(value, o->value, o->n_key) == 0), "CKA_VALUE is another key");
	memcpy(o->value, value, o->n_value = o->n_key);
}

/* read_back reads what the module made up of a new object, and checks what it
 * was told. */
static void read_back(const struct session *s, struct object *o)
{
	CK_BYTE point[34], unique[80], id[40];
	CK_ATTRIBUTE t[] = {{CKA_UNIQUE_ID, unique, sizeof unique}, {CKA_ID, id, sizeof id}, {CKA_EC_POINT, point, sizeof point}};
	bool key = o->class == CKO_PUBLIC_KEY || o->class == CKO_PRIVATE_KEY;
	static const CK_BYTE zeros[32];

	CALL(CKR_OK, p11->C_GetAttributeValue(s->h, o->h, t, key ? 3 : 1), "C_GetAttributeValue of the new object");
	RULE(t[0].ulValueLen > 0, "CKA_UNIQUE_ID is empty");
	memcpy(o->unique, unique, o->n_unique = t[0].ulValueLen);
	for (int i = 0; i < MOST_OBJECTS; i++)
		RULE(!objects[i].used || &objects[i] == o || objects[i].n_unique != o->n_unique || memcmp(objects[i].unique, unique, o->n_unique) != 0,
			"the CKA_UNIQUE_ID %.*s is that of two objects", (int)o->n_unique, unique);
	if (readable(o))
		read_secret(s, o);
	if (!key)
		return;
	RULE(t[2].ulValueLen == 34 && point[0] == 4 && point[1] == 32, "CKA_EC_POINT of %lu bytes", t[2].ulValueLen);
	RULE(memcmp(o->pub, zeros, 32) == 0 || memcmp(o->pub, point + 2, 32) == 0, "CKA_EC_POINT is another key");
	memcpy(o->pub, point + 2, 32);
	if (!o->n_id) { /* the public key, where no id was given */
		memcpy(o->id, o->pub, 32);
		o->n_id = 32;
	}
	RULE(t[1].ulValueLen == o->n_id && memcmp(id, o->id, o->n_id) == 0, "CKA_ID is another one");
}

static void made(const struct session *s, struct object *o, CK_OBJECT_HANDLE h)
{
	new_handle(h);
	o->used = true;
	o->h = h;
	o->token = s->token;
	o->owner = o->stored ? 0 : s->h;
	read_back(s, o);
}

/* may_create is the code for a new object whose template is good. */
static CK_RV may_create(const struct session *s, const struct object *o)
{
	if (o->stored && !s->rw)
		return CKR_SESSION_READ_ONLY;
	if (o->private && token_of(s)->who != CKU_USER)
		return CKR_USER_NOT_LOGGED_IN;
	return CKR_OK;
}

/* defect adds one thing to a template that is wrong, and gives its code. */
static CK_RV defect(struct template *t, const struct session *s, CK_ULONG class)
{
	CK_BBOOL two = 2;

	switch (pick(7)) {
	case 0:
		add(t, CKA_UNIQUE_ID, "x", 1);
		return CKR_ATTRIBUTE_READ_ONLY;
	case 1:
		add(t, 0x12345678, "x", 1);
		return CKR_ATTRIBUTE_TYPE_INVALID;
	case 2:
		add(t, CKA_PRIME, "x", 1);
		return CKR_TEMPLATE_INCONSISTENT;
	case 3:
		add(t, CKA_COPYABLE, &two, 1);
		return CKR_ATTRIBUTE_VALUE_INVALID;
	case 4:
		add(t, CKA_COPYABLE, "\1\1", 2);
		return CKR_ATTRIBUTE_VALUE_INVALID;
	case 5:
		if (class != CKO_PUBLIC_KEY || token_of(s)->who == CKU_SO)
			break;
		add_bool(t, CKA_TRUSTED, true);
		return CKR_ATTRIBUTE_READ_ONLY;
	case 6:
		add(t, CKA_COPYABLE, NULL, 0);
		return CKR_ATTRIBUTE_VALUE_INVALID;
	}
	return CKR_OK;
}

static void some_label(struct object *o, struct template *t)
{
	o->n_label = (CK_ULONG)snprintf((char *)o->label, sizeof o->label, "label %u", pick(6));
	add(t, CKA_LABEL, o->label, o->n_label);
}

static void some_id(struct object *o, struct template *t)
{
	o->n_id = 1 + pick(sizeof o->id - 1);
	memset(o->id, (int)pick(3), o->n_id);
	add(t, CKA_ID, o->id, o->n_id);
}

/* common adds what objects of every class have. */
static void common(struct object *o, struct template *t)
{
	if (!chance(4))
		add_bool(t, CKA_TOKEN, o->stored = chance(2));
	if (!chance(3))
		add_bool(t, CKA_PRIVATE, o->private = chance(2));
	if (chance(6))
		add_bool(t, CKA_MODIFIABLE, o->modifiable = chance(2));
	if (chance(6))
		add_bool(t, CKA_COPYABLE, o->copyable = chance(2));
	if (chance(10))
		add_bool(t, CKA_DESTROYABLE, o->destroyable = chance(2));
	if (!chance(4))
		some_label(o, t);
}

/* secret_uses adds what a secret key has besides. Whether its type has to be told
 * depends on the function. */
static void secret_uses(struct object *o, struct template *t, CK_ULONG type, bool told)
{
	o->key_type = type;
	o->encrypt = o->decrypt = type == CKK_AES;
	o->sign = o->verify = type == CKK_GENERIC_SECRET;
	if (!told || chance(2))
		add_ulong(t, CKA_KEY_TYPE, type);
	if (chance(6))
		add_bool(t, CKA_ENCRYPT, o->encrypt = chance(2));
	if (chance(6))
		add_bool(t, CKA_DECRYPT, o->decrypt = chance(2));
	if (chance(6))
		add_bool(t, CKA_SIGN, o->sign = chance(2));
	if (chance(6))
		add_bool(t, CKA_VERIFY, o->verify = chance(2));
	if (!chance(3))
		add_bool(t, CKA_WRAP, o->wrap = !chance(4));
	if (!chance(3))
		add_bool(t, CKA_UNWRAP, o->unwrap = !chance(4));
	if (chance(2))
		add_bool(t, CKA_SENSITIVE, o->sensitive = chance(2));
	if (!chance(3))
		add_bool(t, CKA_EXTRACTABLE, o->extractable = !chance(3));
}

/* secret_changes adds to a template that changes a secret key, and gives its
 * code: sensitive only once, extractable never again. */
static CK_RV secret_changes(const struct object *o, struct object *after, struct template *t)
{
	CK_RV code = CKR_OK;

	if (o->class != CKO_SECRET_KEY)
		return code;
	if (chance(6))
		add_bool(t, CKA_ENCRYPT, after->encrypt = chance(2));
	if (chance(6))
		add_bool(t, CKA_UNWRAP, after->unwrap = chance(2));
	if (chance(6))
		add_bool(t, CKA_SENSITIVE, after->sensitive = chance(2));
	if (chance(6))
		add_bool(t, CKA_EXTRACTABLE, after->extractable = chance(2));
	if ((o->sensitive && !after->sensitive) || (!o->extractable && after->extractable))
		code = CKR_ATTRIBUTE_READ_ONLY;
	return code;
}

static CK_RV curve(struct template *t)
{
	switch (pick(10)) {
	case 0:
		add(t, CKA_EC_PARAMS, p256_oid, sizeof p256_oid);
		return CKR_CURVE_NOT_SUPPORTED;
	case 1:
		add(t, CKA_EC_PARAMS, ed25519_oid, pick(sizeof ed25519_oid));
		return CKR_DOMAIN_PARAMS_INVALID;
	case 2:
		add(t, CKA_EC_PARAMS, ed25519_name, sizeof ed25519_name - 1);
		return CKR_OK;
	}
	add(t, CKA_EC_PARAMS, ed25519_oid, sizeof ed25519_oid);
	return CKR_OK;
}

static void create_object(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, user_in);
	struct object *o = free_object();
	struct template t = {0};
	CK_OBJECT_HANDLE got = 0;
	CK_BYTE seed[32], point[34] = {4, 32};
	CK_RV want = CKR_OK, late = CKR_OK;

	if (!o)
		return;
	o->class = chance(4) ? CKO_SECRET_KEY : pick(4);
	for (int i = 0; i < 32; i++)
		seed[i] = (CK_BYTE)next_random();
	add_ulong(&t, CKA_CLASS, o->class);
	if (has_secret(o))
		o->private = true;
	switch (o->class) {
	case CKO_DATA:
		o->n_value = pick(sizeof o->value);
		memset(o->value, (int)pick(256), o->n_value);
		add(&t, CKA_VALUE, o->value, o->n_value);
		break;
	case CKO_CERTIFICATE:
		add_ulong(&t, CKA_CERTIFICATE_TYPE, 0);
		add(&t, CKA_SUBJECT, "subject", 7);
		o->n_value = 1 + pick(sizeof o->value - 1);
		memset(o->value, (int)pick(256), o->n_value);
		add(&t, CKA_VALUE, o->value, o->n_value);
		break;
	case CKO_PUBLIC_KEY:
		add_ulong(&t, CKA_KEY_TYPE, 0x40);
		want = curve(&t);
		openssl_public(seed, o->pub);
		memcpy(point + 2, o->pub, 32);
		if (chance(2))
			add(&t, CKA_EC_POINT, point, 34);
		else
			add(&t, CKA_EC_POINT, o->pub, 32);
		if (chance(4))
			add_bool(&t, CKA_VERIFY, o->usable = chance(2));
		break;
	case CKO_PRIVATE_KEY:
		add_ulong(&t, CKA_KEY_TYPE, 0x40);
		want = curve(&t);
		openssl_public(seed, o->pub);
		add(&t, CKA_VALUE, seed, 32);
		if (chance(4))
			add_bool(&t, CKA_SIGN, o->usable = chance(2));
		if (chance(3))
			add_bool(&t, CKA_ALWAYS_AUTHENTICATE, o->always = !chance(3));
		break;
	}
	if (o->class == CKO_SECRET_KEY) {
		bool aes = chance(2);
		secret_uses(o, &t, aes ? CKK_AES : CKK_GENERIC_SECRET, false);
		o->n_key = o->n_value = aes ? 16 + 8 * pick(3) : 1 + pick(sizeof o->value);
		o->key_id = ++n_keys;
		for (CK_ULONG i = 0; i < o->n_key; i++)
			o->value[i] = (CK_BYTE)next_random();
		if (aes && chance(15)) {
			o->n_value--;
			late = CKR_ATTRIBUTE_VALUE_INVALID;
		}
		add(&t, CKA_VALUE, o->value, o->n_value);
	}
	if (o->class != CKO_DATA && chance(2))
		some_id(o, &t);
	common(o, &t);
	if (want == CKR_OK && s && chance(8))
		want = defect(&t, s, o->class);
	if (want == CKR_OK && o->class == CKO_PRIVATE_KEY && o->always && !o->private)
		want = CKR_TEMPLATE_INCONSISTENT;
	if (want == CKR_OK)
		want = late;
	bool missing = chance(20), null = chance(20);
	if (missing) { /* what every object needs goes before all else */
		drop_first(&t);
		want = CKR_TEMPLATE_INCOMPLETE;
	}
	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (null)
		want = CKR_ARGUMENTS_BAD;
	else if (want == CKR_OK)
		want = may_create(s, o);
	CALL(want, p11->C_CreateObject(h, t.a, t.n, null ? NULL : &got), "C_CreateObject %s class %lu%s%s, %lu attributes -> o%d", show(s), o->class,
		o->stored ? " stored" : "", o->private ? " private" : "", t.n, (int)(o - objects));
	free_template(&t);
	if (want != CKR_OK)
		return;
	if (has_secret(o)) {
		o->sealed = o->stored;
		o->secret = new_secret();
	}
	made(s, o, got);
}

static void generate_key_pair(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, user_in);
	struct object *pub = free_object(), *priv;
	struct template tpub = {0}, tpriv = {0};
	CK_OBJECT_HANDLE got[2] = {0};
	static const CK_MECHANISM_TYPE makers[] = {CKM_EC_EDWARDS_KEY_PAIR_GEN, CKM_EC_EDWARDS_KEY_PAIR_GEN, CKM_EC_EDWARDS_KEY_PAIR_GEN, CKM_EDDSA, CKM_SHA256, 0 /* RSA */};
	CK_MECHANISM m = {makers[pick(6)], NULL, 0};
	CK_RV want = CKR_OK, at_end;

	if (!pub)
		return;
	pub->used = true; /* so that the next one is another */
	priv = free_object();
	pub->used = false;
	if (!priv)
		return;
	pub->class = CKO_PUBLIC_KEY;
	priv->class = CKO_PRIVATE_KEY;
	priv->private = true;
	if (chance(15)) {
		m.pParameter = (void *)"xx";
		m.ulParameterLen = 2;
		want = CKR_MECHANISM_PARAM_INVALID;
	}
	if (m.mechanism != CKM_EC_EDWARDS_KEY_PAIR_GEN && m.mechanism != CKM_EDDSA)
		want = CKR_MECHANISM_INVALID;
	/* What is wrong with the public key's template comes before what is wrong
	 * with the private key's. */
	common(pub, &tpub);
	if (chance(15))
		at_end = CKR_TEMPLATE_INCOMPLETE;
	else
		at_end = curve(&tpub);
	if (chance(4))
		add_bool(&tpub, CKA_VERIFY, pub->usable = chance(2));
	if (at_end == CKR_OK && s && chance(10))
		at_end = defect(&tpub, s, CKO_PUBLIC_KEY);
	common(priv, &tpriv);
	if (chance(4))
		add_bool(&tpriv, CKA_SIGN, priv->usable = chance(2));
	if (chance(3))
		add_bool(&tpriv, CKA_ALWAYS_AUTHENTICATE, priv->always = !chance(3));
	if (chance(3))
		some_id(priv, &tpriv);
	if (at_end == CKR_OK && s && chance(10))
		at_end = defect(&tpriv, s, CKO_PRIVATE_KEY);
	if (want == CKR_OK)
		want = at_end;
	if (s && want == CKR_OK)
		want = may_create(s, pub);
	if (s && want == CKR_OK)
		want = may_create(s, priv);
	if (want == CKR_OK && priv->always && !priv->private)
		want = CKR_TEMPLATE_INCONSISTENT;
	bool null = chance(20);
	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (null)
		want = CKR_ARGUMENTS_BAD;
	CALL(want, p11->C_GenerateKeyPair(h, &m, tpub.a, tpub.n, tpriv.a, tpriv.n, &got[0], null ? NULL : &got[1]),
		"C_GenerateKeyPair %s mechanism %lx, %lu attributes%s%s -> o%d, %lu attributes%s%s%s -> o%d", show(s), m.mechanism, tpub.n,
		pub->stored ? " stored" : "", pub->private ? " private" : "", (int)(pub - objects), tpriv.n, priv->stored ? " stored" : "",
		priv->private ? " private" : "", priv->always ? " always" : "", (int)(priv - objects));
	free_template(&tpub);
	free_template(&tpriv);
	if (want != CKR_OK)
		return;
	priv->sealed = priv->stored;
	priv->secret = new_secret();
	made(s, pub, got[0]);
	memcpy(priv->pub, pub->pub, 32);
	made(s, priv, got[1]);
}

static void copy_object(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, user_in);
	CK_OBJECT_HANDLE from = pick_object(s, chance(2) ? CKO_PRIVATE_KEY : chance(2) ? CKO_SECRET_KEY : ANY), got = 0;
	struct object *o = s ? visible(s, from) : NULL, *c = free_object();
	struct template t = {0};
	CK_RV want = CKR_OK;

	if (!c)
		return;
	unsigned born = c->born;
	if (o) {
		*c = *o;
		c->born = born;
		c->used = false;
		if (!chance(3))
			add_bool(&t, CKA_TOKEN, c->stored = chance(2));
		if (chance(3))
			add_bool(&t, CKA_PRIVATE, c->private = chance(2));
		if (chance(4))
			some_label(c, &t);
		if (chance(4) && c->class != CKO_DATA)
			some_id(c, &t);
		if (chance(8)) {
			add_bool(&t, CKA_COPYABLE, c->copyable = chance(2));
			if (c->copyable && !o->copyable)
				want = CKR_ATTRIBUTE_READ_ONLY;
		}
		if (want == CKR_OK)
			want = secret_changes(o, c, &t);
		if (want == CKR_OK && chance(10))
			want = defect(&t, s, o->class);
	}
	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (!o)
		want = CKR_OBJECT_HANDLE_INVALID;
	else if (!o->copyable)
		want = CKR_ACTION_PROHIBITED;
	else if (want == CKR_OK && o->private && !c->private)
		want = CKR_TEMPLATE_INCONSISTENT;
	else if (want == CKR_OK)
		want = may_create(s, c);
	bool shares = o && o->sealed && !c->stored;
	if (want == CKR_OK && has_secret(o) && !shares && !secrets[o->secret])
		want = CKR_KEY_HANDLE_INVALID;
	CALL(want, p11->C_CopyObject(h, from, t.a, t.n, &got), "C_CopyObject %s o%d (%lu)%s%s -> o%d", show(s), o ? (int)(o - objects) : -1, from,
		c->stored ? " stored" : "", c->private ? " private" : "", (int)(c - objects));
	free_template(&t);
	if (want != CKR_OK)
		return;
	if (has_secret(c) && !shares) {
		c->sealed = c->stored;
		c->secret = new_secret();
	}
	made(s, c, got);
}

static void destroy_object(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_session(&h);
	CK_OBJECT_HANDLE oh = pick_object(s, ANY);
	struct object *o = s ? visible(s, oh) : NULL;
	CK_RV want = CKR_OK;

	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (!o)
		want = CKR_OBJECT_HANDLE_INVALID;
	else if (o->stored && !s->rw)
		want = CKR_SESSION_READ_ONLY;
	else if (!o->destroyable)
		want = CKR_ACTION_PROHIBITED;
	CALL(want, p11->C_DestroyObject(h, oh), "C_DestroyObject %s o%d (%lu)", show(s), o ? (int)(o - objects) : -1, oh);
	if (want == CKR_OK)
		remove_object(o);
}

static void set_attribute_value(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_session(&h);
	CK_OBJECT_HANDLE oh = pick_object(s, ANY);
	struct object *o = s ? visible(s, oh) : NULL, after = {0};
	struct template t = {0};
	CK_RV want = CKR_OK;

	if (o) {
		after = *o;
		if (!chance(3))
			some_label(&after, &t);
		if (chance(3) && o->class != CKO_DATA)
			some_id(&after, &t);
		if (chance(6)) {
			add_bool(&t, CKA_COPYABLE, after.copyable = chance(2));
			if (after.copyable && !o->copyable)
				want = CKR_ATTRIBUTE_READ_ONLY;
		}
		if (want == CKR_OK)
			want = secret_changes(o, &after, &t);
		if (want == CKR_OK && chance(8)) {
			add_bool(&t, CKA_TOKEN, !o->stored);
			want = CKR_ATTRIBUTE_READ_ONLY;
		}
		if (want == CKR_OK && chance(8))
			want = defect(&t, s, o->class);
	}
	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (!o)
		want = CKR_OBJECT_HANDLE_INVALID;
	else if (o->stored && !s->rw)
		want = CKR_SESSION_READ_ONLY;
	else if (!o->modifiable)
		want = CKR_ACTION_PROHIBITED;
	CALL(want, p11->C_SetAttributeValue(h, oh, t.a, t.n), "C_SetAttributeValue %s o%d (%lu) %lu attributes", show(s), o ? (int)(o - objects) : -1, oh, t.n);
	free_template(&t);
	if (want == CKR_OK)
		*o = after;
}

/* What an attribute of an object must read; NULL for what it has not. */
static const void *value_of(const struct object *o, CK_ATTRIBUTE_TYPE type, CK_ULONG *n)
{
	static CK_BBOOL yes = 1, no;
	CK_BBOOL *b = NULL;

	switch (type) {
	case CKA_CLASS:
		*n = sizeof o->class;
		return &o->class;
	case CKA_LABEL:
		*n = o->n_label;
		return o->label;
	case CKA_UNIQUE_ID:
		*n = o->n_unique;
		return o->unique;
	case CKA_ID:
		*n = o->n_id;
		return o->class == CKO_DATA ? NULL : o->id;
	case CKA_VALUE:
		*n = o->n_value;
		return o->class == CKO_DATA || o->class == CKO_CERTIFICATE || (readable(o) && secrets[o->secret]) ? o->value : NULL;
	case CKA_TOKEN: b = o->stored ? &yes : &no; break;
	case CKA_PRIVATE: b = o->private ? &yes : &no; break;
	case CKA_MODIFIABLE: b = o->modifiable ? &yes : &no; break;
	case CKA_COPYABLE: b = o->copyable ? &yes : &no; break;
	case CKA_DESTROYABLE: b = o->destroyable ? &yes : &no; break;
	case CKA_SIGN:
		if (o->class == CKO_PRIVATE_KEY)
			b = o->usable ? &yes : &no;
		else if (o->class == CKO_SECRET_KEY)
			b = o->sign ? &yes : &no;
		break;
	case CKA_SENSITIVE:
		if (o->class == CKO_PRIVATE_KEY)
			b = &yes;
		else if (o->class == CKO_SECRET_KEY)
			b = o->sensitive ? &yes : &no;
		break;
	/* Of secret keys alone: others may have them, which the model does not know. */
	case CKA_EXTRACTABLE: b = o->extractable ? &yes : &no; break;
	case CKA_ENCRYPT: b = o->encrypt ? &yes : &no; break;
	case CKA_DECRYPT: b = o->decrypt ? &yes : &no; break;
	case CKA_WRAP: b = o->wrap ? &yes : &no; break;
	case CKA_UNWRAP: b = o->unwrap ? &yes : &no; break;
	}
	*n = 1;
	return b;
}

static void get_attribute_value(void)
{
	static const CK_ATTRIBUTE_TYPE types[] = {CKA_CLASS, CKA_LABEL, CKA_UNIQUE_ID, CKA_ID, CKA_VALUE, CKA_TOKEN, CKA_PRIVATE,
		CKA_MODIFIABLE, CKA_COPYABLE, CKA_DESTROYABLE, CKA_SIGN, CKA_SENSITIVE, CKA_PRIME, 0x7fffffff,
		CKA_EXTRACTABLE, CKA_ENCRYPT, CKA_DECRYPT, CKA_WRAP, CKA_UNWRAP};
	enum { TYPES = sizeof types / sizeof types[0], OF_SECRET_KEYS = 5 };
	CK_SESSION_HANDLE h;
	struct session *s = pick_session(&h);
	CK_OBJECT_HANDLE oh = pick_object(s, ANY);
	struct object *o = s ? visible(s, oh) : NULL;
	CK_ATTRIBUTE t[6];
	CK_ULONG n = 1 + pick(6), room[6], told[6];
	CK_RV want = CKR_OK;

	for (CK_ULONG i = 0; i < n; i++) {
		CK_ULONG need = 0;
		const void *v;
		bool sensitive;
		t[i].type = types[pick(o && o->class == CKO_SECRET_KEY ? TYPES : TYPES - OF_SECRET_KEYS)];
		v = o ? value_of(o, t[i].type, &need) : NULL;
		sensitive = o && has_secret(o) && !readable(o) && t[i].type == CKA_VALUE;
		room[i] = chance(3) ? need : pick(100);
		t[i].ulValueLen = room[i];
		t[i].pValue = chance(4) ? NULL : room_for(room[i]);
		if (sensitive) {
			told[i] = -1UL;
			want = CKR_ATTRIBUTE_SENSITIVE;
		} else if (!v) {
			told[i] = -1UL;
			if (want != CKR_ATTRIBUTE_SENSITIVE)
				want = CKR_ATTRIBUTE_TYPE_INVALID;
		} else if (t[i].pValue && room[i] < need) {
			told[i] = -1UL;
			if (want == CKR_OK)
				want = CKR_BUFFER_TOO_SMALL;
		} else
			told[i] = need;
	}
	if (!s)
		want = CKR_SESSION_HANDLE_INVALID;
	else if (!o)
		want = CKR_OBJECT_HANDLE_INVALID;
	CALL(want, p11->C_GetAttributeValue(h, oh, t, n), "C_GetAttributeValue %s o%d (%lu) %lu attributes", show(s), o ? (int)(o - objects) : -1, oh, n);
	for (CK_ULONG i = 0; i < n; i++) {
		CK_ULONG need;
		const void *v = o ? value_of(o, t[i].type, &need) : NULL;
		if (o)
			RULE(t[i].ulValueLen == told[i], "attribute %lx: length %ld, not %ld", t[i].type, (long)t[i].ulValueLen, (long)told[i]);
		else
			RULE(t[i].ulValueLen == room[i], "attribute %lx: the length was changed", t[i].type);
		if (!t[i].pValue)
			continue;
		if (v && room[i] >= need)
			RULE(memcmp(t[i].pValue, v, need) == 0 && untouched((CK_BYTE *)t[i].pValue + need, room[i] - need), "attribute %lx: another value", t[i].type);
		else
			RULE(untouched(t[i].pValue, room[i]), "attribute %lx: written to all the same", t[i].type);
		let_go(t[i].pValue, room[i]);
	}
}

static void get_object_size(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_session(&h);
	CK_OBJECT_HANDLE oh = pick_object(s, ANY);
	CK_ULONG size = 0;
	CK_RV want = !s ? CKR_SESSION_HANDLE_INVALID : !visible(s, oh) ? CKR_OBJECT_HANDLE_INVALID : CKR_OK;

	CALL(want, p11->C_GetObjectSize(h, oh, &size), "C_GetObjectSize %s %lu", show(s), oh);
	RULE(want != CKR_OK || size > 0, "an object of no size");
}

static bool matches(const struct object *o, const struct template *t)
{
	for (CK_ULONG i = 0; i < t->n; i++) {
		CK_ULONG n;
		const void *v = value_of(o, t->a[i].type, &n);
		if (!v || n != t->a[i].ulValueLen || memcmp(v, t->a[i].pValue, n) != 0)
			return false;
	}
	return true;
}

static void find_objects_init(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_session(&h);
	struct template t = {0};
	char label[16];
	bool null = chance(30);

	if (chance(3))
		add_ulong(&t, CKA_CLASS, pick(5));
	if (chance(3))
		add(&t, CKA_LABEL, label, (size_t)snprintf(label, sizeof label, "label %u", pick(6)));
	if (chance(5))
		add_bool(&t, CKA_TOKEN, chance(2));
	if (chance(5))
		add_bool(&t, CKA_PRIVATE, chance(2));
	if (chance(20))
		add(&t, CKA_PRIME, "x", 1);
	CK_RV want = !s ? CKR_SESSION_HANDLE_INVALID : null ? CKR_ARGUMENTS_BAD : s->find.active ? CKR_OPERATION_ACTIVE : CKR_OK;
	CALL(want, p11->C_FindObjectsInit(h, null ? NULL : t.a, null ? 1 : t.n), "C_FindObjectsInit %s %lu attributes", show(s), t.n);
	if (want == CKR_OK) {
		s->find.active = true;
		s->find.vanished = false;
		s->find.began = n_dead;
		s->find.n = 0;
		for (int i = 0; i < MOST_OBJECTS; i++) {
			struct object *o = &objects[i];
			if (!o->used || o->token != s->token || (o->private && token_of(s)->who != CKU_USER) || !matches(o, &t))
				continue;
			s->find.index[s->find.n] = i;
			s->find.born[s->find.n++] = o->born;
		}
	}
	free_template(&t);
}

/* found tells what a handle of a search stands for, and takes it off the
 * objects that the search still has to give. */
static void found(struct session *s, CK_OBJECT_HANDLE h)
{
	CK_BYTE unique[80];
	CK_ATTRIBUTE t = {CKA_UNIQUE_ID, unique, sizeof unique};
	int at = -1;

	for (int i = 0; i < s->find.n; i++)
		if (objects[s->find.index[i]].born == s->find.born[i] && objects[s->find.index[i]].h == h)
			at = i;
	if (at < 0) {
		/* An object that had no handle, or one that is gone by now. */
		int end = buried(h);
		RULE(end < 0 || (unsigned)end >= s->find.began, "the search gives %lu, which had ended before it began", h);
		if (end >= 0)
			return;
		CK_RV rv = p11->C_GetAttributeValue(s->h, h, &t, 1);
		say("C_GetAttributeValue %lu = %s\n", h, code_name(rv));
		flush_line();
		if (rv == CKR_OBJECT_HANDLE_INVALID) {
			bury(h); /* it had its handle for less time than we needed to see it */
			return;
		}
		RULE(rv == CKR_OK, "CKA_UNIQUE_ID of an object that was found: %s", code_name(rv));
		for (int i = 0; i < s->find.n; i++) {
			struct object *o = &objects[s->find.index[i]];
			if (o->born == s->find.born[i] && !o->h && o->n_unique == t.ulValueLen && memcmp(o->unique, unique, o->n_unique) == 0)
				at = i;
		}
		RULE(at >= 0, "the search gives %lu, which it should not", h);
		new_handle(h);
		objects[s->find.index[at]].h = h;
	}
	s->find.n--;
	s->find.index[at] = s->find.index[s->find.n];
	s->find.born[at] = s->find.born[s->find.n];
}

/* gone counts the objects of a search that it may or may not give, since they
 * were destroyed, or hidden by a logout, after it had begun. */
static int gone(const struct session *s)
{
	int n = 0;

	for (int i = 0; i < s->find.n; i++) {
		const struct object *o = &objects[s->find.index[i]];
		n += !o->used || o->born != s->find.born[i] || (o->private && s->find.vanished);
	}
	return n;
}

static bool finds(const struct session *s) { return s->find.active; }

static void find_objects(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, finds);
	CK_ULONG max = pick(chance(3) ? 4 : MOST_OBJECTS), n = 0;
	CK_OBJECT_HANDLE *got;
	CK_RV want = !s ? CKR_SESSION_HANDLE_INVALID : !s->find.active ? CKR_OPERATION_NOT_INITIALIZED : CKR_OK;

	got = (CK_OBJECT_HANDLE *)room_for(max * sizeof *got);
	CALL(want, p11->C_FindObjects(h, got, max, &n), "C_FindObjects %s at most %lu", show(s), max);
	if (want == CKR_OK) {
		RULE(n <= max, "%lu handles where there is room for %lu", n, max);
		for (CK_ULONG i = 0; i < n; i++)
			for (CK_ULONG j = 0; j < i; j++)
				RULE(got[i] != got[j], "the search gives %lu twice", got[i]);
		for (CK_ULONG i = 0; i < n; i++)
			found(s, got[i]);
		say("found %lu\n", n);
		flush_line();
		if (n < max) {
			RULE(s->find.n == 0 || gone(s) == s->find.n, "the search ends without o%d", s->find.index[0]);
			s->find.n = 0;
		}
		RULE(untouched((CK_BYTE *)(got + n), (max - n) * sizeof *got), "more was written than was found");
	} else
		RULE(untouched((CK_BYTE *)got, max * sizeof *got), "handles with an error");
	let_go((CK_BYTE *)got, max * sizeof *got);
}

static void find_objects_final(void)
{
	CK_SESSION_HANDLE h;
	struct session *s = pick_ready(&h, finds);
	CK_RV want = !s ? CKR_SESSION_HANDLE_INVALID : !s->find.active ? CKR_OPERATION_NOT_INITIALIZED : CKR_OK;

	CALL(want, p11->C_FindObjectsFinal(h), "C_FindObjectsFinal %s", show(s));
	if (want == CKR_OK)
		s->find.active = false;
}

#endif
