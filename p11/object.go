package p11

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"maps"
	"slices"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// object is what a handle stands for. It is replaced as a whole when it
// changes; only the handle table is mutable.
type object struct {
	handle  ObjectHandle
	body    body
	token   bool
	private bool
	builtin bool // a profile: a token object that no file stands for
	sealed  bool // the secret is in the store under id
	device  bool // or a key that the device has made

	id     sealstore.ID // of the sealed object: a token object, or the one a session copy signs with
	stamp  uint64
	unique string // CKA_UNIQUE_ID; empty: that of a token object follows from id

	session SessionHandle        // owner of a session object
	live    *liveKey             // secret of a session object that has its own
	made    *sealstore.DeviceKey // of a session object that the device has made the key of

	next *object // in the table, of the same label or one with the same hash
}

func (o *object) bool(t AttributeType) bool { return o.body.bool(t) }

// value finds the value of an attribute as the host has it.
func (o *object) value(t AttributeType) ([]byte, bool) {
	switch t {
	case CKA_TOKEN:
		return boolBytes(o.token), true
	case CKA_PRIVATE:
		return boolBytes(o.private), true
	case CKA_UNIQUE_ID:
		if o.unique != "" {
			return []byte(o.unique), true
		}
		return []byte(hex.EncodeToString(o.id[:])), true
	}
	return o.body.value(t)
}

// attrs are the values of an object, to be changed.
func (o *object) attrs() attrs {
	a := o.body.attrs()
	for _, t := range []AttributeType{CKA_TOKEN, CKA_PRIVATE, CKA_UNIQUE_ID} {
		a[t], _ = o.value(t)
	}
	return a
}

// matches tells whether an object has all the values of a search template. An
// EC point is found in either of its encodings.
func (o *object) matches(tmpl []Attribute) bool {
	for _, t := range tmpl {
		v, ok := o.value(t.Type)
		if !ok {
			return false
		}
		want := t.Value
		if t.Type == CKA_EC_POINT {
			if c := o.body.curve(); c != nil {
				want, _ = c.parsePoint(want)
			}
		}
		if t.Type == CKA_EC_PARAMS {
			if c, err := parseCurve(o.body.ulong(CKA_KEY_TYPE), want); err == nil {
				want = c.oid
			}
		}
		if !bytes.Equal(v, want) {
			return false
		}
	}
	return true
}

// objects is a slot's handle table. All of it is guarded by library.mu.
type objects struct {
	byHandle map[ObjectHandle]*object
	byID     map[sealstore.ID]*object // token objects
	byLabel  map[uint64]*object       // by hash, the first of those that next links
	profiles bool                     // those of the token are there
	// ofSessions is how many are session objects.
	ofSessions int
	// version is what of the store is in the table; guarded by slot.mu, too.
	version sealstore.Version
}

// prepare makes room for n objects in an empty table.
func (t *objects) prepare(n int) {
	if t.byHandle == nil {
		t.byHandle = make(map[ObjectHandle]*object, n)
		t.byID = make(map[sealstore.ID]*object, n)
		t.byLabel = make(map[uint64]*object, n)
	}
}

func (t *objects) put(o *object) {
	t.prepare(0)
	old := t.byHandle[o.handle]
	if old == nil && !o.token {
		t.ofSessions++
	}
	if old != nil {
		t.unlabel(old)
	}
	t.byHandle[o.handle] = o
	label := hashLabel(o.body.bytes(CKA_LABEL))
	o.next = t.byLabel[label]
	t.byLabel[label] = o
	if o.token && !o.builtin {
		t.byID[o.id] = o
	}
}

func (t *objects) remove(o *object) {
	old := t.byHandle[o.handle]
	if old == nil {
		return
	}
	t.unlabel(old)
	delete(t.byHandle, o.handle)
	if o.token {
		delete(t.byID, o.id)
	} else {
		t.ofSessions--
	}
}

// unlabel takes an object out of byLabel.
func (t *objects) unlabel(o *object) {
	label := hashLabel(o.body.bytes(CKA_LABEL))
	first := t.byLabel[label]
	at := &first
	for *at != o {
		at = &(*at).next
	}
	*at, o.next = o.next, nil
	if first == nil {
		delete(t.byLabel, label)
	} else {
		t.byLabel[label] = first
	}
}

var labelSeed = maphash.MakeSeed()

func hashLabel(label []byte) uint64 { return maphash.Bytes(labelSeed, label) }

// candidates are the objects among which those of a search template are: of
// many, those with its label.
func (t *objects) candidates(tmpl []Attribute) iter.Seq[*object] {
	if label, ok := given(tmpl, CKA_LABEL); ok {
		return func(yield func(*object) bool) {
			for o := t.byLabel[hashLabel(label)]; o != nil && yield(o); o = o.next {
			}
		}
	}
	return maps.Values(t.byHandle)
}

// object finds an object that the session may see.
func (l *library) object(sess *session, h ObjectHandle) (*object, error) {
	mu := l.mu.of(sess.handle)
	mu.RLock()
	defer mu.RUnlock()
	o := sess.slot.objs.byHandle[h]
	if o == nil || o.private && sess.slot.user != userIn {
		return nil, CKR_OBJECT_HANDLE_INVALID
	}
	return o, nil
}

// fromStore makes an object of what the store holds.
func fromStore(s sealstore.Object) (*object, bool) {
	b, ok := parseBody(s.Body)
	if !ok {
		return nil, false
	}
	return &object{body: b, token: true, private: s.Private, id: s.ID, stamp: s.Stamp, sealed: s.Sealed, device: s.Device}, true
}

// sync brings the handle table in line with the token on disk. Objects keep
// their handles as long as they exist. The caller holds s.mu.
func (l *library) sync(s *slot) error {
	stored, version, err := s.token.ObjectsSince(s.objs.version)
	if err != nil {
		return l.fail("reading objects", s.serial, err)
	}
	if version == s.objs.version {
		return nil
	}
	l.enter(s, stored, version)
	if l.cfg.Snapshots && !s.cfg.ReadOnly {
		s.token.SaveSnapshot()
	}
	return nil
}

// enter brings the handle table in line with a version of what the store has.
func (l *library) enter(s *slot, stored []sealstore.Object, version sealstore.Version) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.objs.prepare(len(stored))
	l.addProfiles(s)
	there := 0 // of the objects in the table
	for _, st := range stored {
		old := s.objs.byID[st.ID]
		if old != nil && old.stamp == st.Stamp {
			there++
			continue
		}
		o, ok := fromStore(st)
		if !ok {
			l.log.Error("object skipped: its attributes cannot be read", "token", s.serial, "object", hex.EncodeToString(st.ID[:]))
			if old != nil {
				s.objs.remove(old)
				s.keys.forget(st.ID)
			}
			continue
		}
		there++
		if old != nil {
			o.handle = old.handle
		} else {
			o.handle = ObjectHandle(l.handle())
		}
		s.objs.put(o)
	}
	if there < len(s.objs.byID) {
		for id, o := range s.objs.byID {
			_, found := slices.BinarySearchFunc(stored, id, func(st sealstore.Object, id sealstore.ID) int { return bytes.Compare(st.ID[:], id[:]) })
			if !found {
				s.objs.remove(o)
				s.keys.forget(id)
			}
		}
	}
	s.objs.version = version
}

// mayCreate has the access rules of section 4.4 and table 3 of the sessions:
// private objects need the user, token objects a read/write session. The
// caller holds the slot's mu.
func (l *library) mayCreate(sess *session, a attrs) error {
	if a.bool(CKA_TOKEN) {
		if err := l.mayChange(sess); err != nil {
			return err
		}
	}
	if !a.bool(CKA_PRIVATE) {
		return nil
	}
	if err := l.autoLogin(sess.slot); err != nil {
		return err
	}
	if sess.slot.user != userIn {
		return CKR_USER_NOT_LOGGED_IN
	}
	return nil
}

// writeProtected tells why nothing in a slot's token can be changed.
func (l *library) writeProtected(s *slot) error {
	if s.cfg.ReadOnly {
		return fmt.Errorf("read_only is set for the token at %s", s.cfg.Where)
	}
	var err error
	if token, _ := l.tokenIn(s); token != nil {
		err = token.Writable()
	} else {
		err = l.store.Writable()
	}
	if errors.Is(err, sealstore.ErrReadOnly) {
		return err
	}
	return nil // what else is wrong shows when it is written
}

// mayWrite refuses what would change a write-protected token.
func (l *library) mayWrite(s *slot) error {
	err := l.writeProtected(s)
	if err == nil {
		return nil
	}
	l.log.Error("token is write-protected", "token", s.serial, "error", err)
	return &coded{CKR_TOKEN_WRITE_PROTECTED, err}
}

// mayChange allows a session to change the token. That the token is
// write-protected comes before that the session is read-only (section 5.1.6).
func (l *library) mayChange(sess *session) error {
	if err := l.mayWrite(sess.slot); err != nil {
		return err
	}
	if !sess.rw {
		return CKR_SESSION_READ_ONLY
	}
	return nil
}

// add stores a new object with its attributes and, for a private key, its
// secret, and gives it a handle. A session object keeps live. The caller holds s.mu.
func (l *library) add(h SessionHandle, s *slot, o *object, a attrs, secret []byte) (ObjectHandle, error) {
	o.token, o.private, o.body = a.bool(CKA_TOKEN), a.bool(CKA_PRIVATE), a.encode()
	if o.token {
		var st sealstore.Object
		var err error
		if o.made != nil {
			st, err = s.token.CreateKey(o.body, o.made)
			o.made = nil
		} else {
			st, err = s.token.CreateObject(o.private, o.body, secret, about(a, secret))
		}
		if err != nil {
			return 0, l.fail("storing an object", s.serial, err)
		}
		o.id, o.stamp, o.sealed, o.device = st.ID, st.Stamp, st.Sealed, st.Device
	} else {
		var u [16]byte
		rand.Read(u[:])
		o.unique = hex.EncodeToString(u[:])
		o.session = h
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !o.token && l.sessions[h] == nil {
		return 0, CKR_SESSION_HANDLE_INVALID
	}
	o.handle = ObjectHandle(l.handle())
	s.objs.put(o)
	return o.handle, nil
}

// about is what the store records of a secret: the public key of an Ed25519 key,
// of which evidence, backups and migrations speak.
func about(a attrs, secret []byte) []byte {
	if secret == nil || a.ulong(CKA_CLASS) != CKO_PRIVATE_KEY || a.ulong(CKA_KEY_TYPE) != CKK_EC_EDWARDS {
		return nil
	}
	return a[CKA_EC_POINT]
}

// CreateObject is C_CreateObject (section 5.7.1).
func (m *Module) CreateObject(h SessionHandle, tmpl []Attribute) (ObjectHandle, error) {
	l, sess, err := m.withSession(h)
	if err != nil {
		return 0, err
	}
	defer l.leave(h)
	a, value, err := l.parseCreate(sess, tmpl)
	if err != nil {
		return 0, err
	}
	s := sess.slot
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := l.mayCreate(sess, a); err != nil {
		return 0, err
	}
	if value == nil {
		return l.add(h, s, &object{}, a, nil)
	}
	// The caller's memory may change meanwhile.
	secret, err := secmem.New(len(value))
	if err != nil {
		return 0, l.fail("reading a key", s.serial, err)
	}
	defer secret.Destroy()
	secmem.Copy(secret.Bytes(), value)
	if a.ulong(CKA_CLASS) == CKO_SECRET_KEY {
		return l.addSecret(h, s, a, secret.Bytes())
	}
	return l.addPrivate(h, s, a.curve(), a, secret.Bytes())
}

// addPrivate stores a private key, whose public half follows from it and must
// be the one that was given. The caller holds s.mu.
func (l *library) addPrivate(h SessionHandle, s *slot, c *curve, a attrs, secret []byte) (ObjectHandle, error) {
	live, err := newLiveKey(c.keyType, secret)
	if err != nil {
		return 0, l.fail("reading a key", s.serial, err)
	}
	pub := live.public(c.keyType)
	if p := a[CKA_EC_POINT]; p != nil && !bytes.Equal(p, pub[:]) {
		live.destroy()
		return 0, CKR_TEMPLATE_INCONSISTENT
	}
	if info := a[CKA_PUBLIC_KEY_INFO]; info != nil && !bytes.Equal(info, c.info(pub[:])) {
		live.destroy()
		return 0, CKR_ATTRIBUTE_VALUE_INVALID // which section 4.9 has for it
	}
	a.setPublic(c, pub[:])
	return l.addKey(h, s, a, live, secret)
}

// DestroyObject is C_DestroyObject (section 5.7.3).
func (m *Module) DestroyObject(h SessionHandle, oh ObjectHandle) error {
	l, sess, err := m.withSession(h)
	if err != nil {
		return err
	}
	defer l.leave(h)
	s := sess.slot
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := l.object(sess, oh)
	if err != nil {
		return err
	}
	if o.token {
		if err := l.mayChange(sess); err != nil {
			return err
		}
	}
	if !o.bool(CKA_DESTROYABLE) {
		return CKR_ACTION_PROHIBITED
	}
	if o.token {
		if err := s.token.DeleteObject(o.id); err != nil && !errors.Is(err, sealstore.ErrNotFound) {
			return l.fail("destroying an object", s.serial, err)
		}
		s.keys.forget(o.id)
	}
	l.mu.Lock()
	s.objs.remove(o)
	l.mu.Unlock()
	o.live.destroy()
	return nil
}

// CopyObject is C_CopyObject (section 5.7.2). A session copy of a token's
// private key signs with the token's own seal, so the seed is no longer in
// memory than the original's; it ends with the original.
func (m *Module) CopyObject(h SessionHandle, oh ObjectHandle, tmpl []Attribute) (ObjectHandle, error) {
	l, sess, err := m.withSession(h)
	if err != nil {
		return 0, err
	}
	defer l.leave(h)
	s := sess.slot
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := l.object(sess, oh)
	if err != nil {
		return 0, err
	}
	if !o.bool(CKA_COPYABLE) {
		return 0, CKR_ACTION_PROHIBITED
	}
	a, err := l.applyTemplate(sess, o.attrs(), tmpl, onCopy)
	if err != nil {
		return 0, err
	}
	if o.private && !a.bool(CKA_PRIVATE) {
		return 0, CKR_TEMPLATE_INCONSISTENT
	}
	if err := s.guardPrivate(a); err != nil {
		return 0, err
	}
	if err := l.mayCreate(sess, a); err != nil {
		return 0, err
	}
	c := &object{}
	if !o.body.hasSecret() {
		return l.add(h, s, c, a, nil)
	}
	if (o.sealed || o.device) && !a.bool(CKA_TOKEN) {
		c.id, c.sealed, c.device = o.id, o.sealed, o.device
		return l.add(h, s, c, a, nil)
	}
	if o.device || o.made != nil {
		return l.copyDeviceKey(h, s, c, o, a)
	}
	buf, err := secmem.New(maxSecretKey)
	if err != nil {
		return 0, l.fail("copying a key", s.serial, err)
	}
	defer buf.Destroy()
	n, err := l.secretOf(s, o, buf.Bytes())
	if err != nil {
		return 0, err
	}
	live, err := newLiveKey(a.ulong(CKA_KEY_TYPE), buf.Bytes()[:n])
	if err != nil {
		return 0, l.fail("copying a key", s.serial, err)
	}
	return l.addKey(h, s, a, live, buf.Bytes()[:n])
}

// copyDeviceKey stores a copy c of a key o that the device has made: the key
// is the same, and never leaves the device. The caller holds s.mu.
func (l *library) copyDeviceKey(h SessionHandle, s *slot, c, o *object, a attrs) (ObjectHandle, error) {
	c.made = o.made
	if o.device {
		var err error
		if c.made, err = s.token.Key(o.id); err != nil {
			return 0, l.fail("copying a key", s.serial, err)
		}
	}
	return l.add(h, s, c, a, nil)
}

// GetObjectSize is C_GetObjectSize (section 5.7.4): the bytes that the
// object's attributes take, each with its type and length.
func (m *Module) GetObjectSize(h SessionHandle, oh ObjectHandle) (uint, error) {
	l, sess, err := m.withSession(h)
	if err != nil {
		return 0, err
	}
	defer l.leave(h)
	o, err := l.object(sess, oh)
	if err != nil {
		return 0, err
	}
	return uint(len(o.body)), nil
}

// GetAttributeValue is C_GetAttributeValue (section 5.7.5): every entry that
// can be filled is filled, whatever the others answer.
func (m *Module) GetAttributeValue(h SessionHandle, oh ObjectHandle, tmpl []AttributeOut) error {
	l, sess, err := m.withSession(h)
	if err != nil {
		return err
	}
	defer l.leave(h)
	o, err := l.object(sess, oh)
	if err != nil {
		return err
	}
	specs := o.body.specs()
	var result error
	for i := range tmpl {
		t := &tmpl[i]
		sp := specs[t.Type]
		v, ok := o.value(t.Type)
		if sp != nil && sp.rule&hidden != 0 && o.readable() {
			buf, err := l.readSecret(sess.slot, o)
			if err != nil {
				return err
			}
			defer buf.Destroy()
			v, ok = buf.Bytes(), true
		}
		switch {
		case sp != nil && sp.rule&hidden != 0 && !ok:
			t.Len, result = Unavailable, CKR_ATTRIBUTE_SENSITIVE
			continue
		case sp == nil || !ok:
			t.Len = Unavailable
			if result != CKR_ATTRIBUTE_SENSITIVE {
				result = CKR_ATTRIBUTE_TYPE_INVALID
			}
			continue
		}
		if t.Type == CKA_EC_POINT {
			if c := o.body.curve(); c != nil {
				v = c.point(v, sess.slot.cfg.ECPointEncoding)
			}
		}
		switch {
		case t.Buf == nil:
			t.Len = uint(len(v))
		case len(t.Buf) < len(v):
			t.Len = Unavailable
			if result == nil {
				result = CKR_BUFFER_TOO_SMALL
			}
		default:
			t.Len = uint(copy(t.Buf, v))
		}
	}
	return result
}

// readSecret gives a copy of a key's value. The caller destroys it.
func (l *library) readSecret(s *slot, o *object) (*secmem.Buffer, error) {
	buf, err := secmem.New(o.secretSize())
	if err != nil {
		return nil, l.fail("reading a key", s.serial, err)
	}
	if _, err := l.secretOf(s, o, buf.Bytes()); err != nil {
		buf.Destroy()
		return nil, err
	}
	return buf, nil
}

// SetAttributeValue is C_SetAttributeValue (section 5.7.6): all of the
// template, or nothing.
func (m *Module) SetAttributeValue(h SessionHandle, oh ObjectHandle, tmpl []Attribute) error {
	l, sess, err := m.withSession(h)
	if err != nil {
		return err
	}
	defer l.leave(h)
	s := sess.slot
	s.mu.Lock()
	defer s.mu.Unlock()
	// A second round sees what another process changed meanwhile.
	for range 2 {
		o, err := l.object(sess, oh)
		if err != nil {
			return err
		}
		if o.token {
			if err := l.mayChange(sess); err != nil {
				return err
			}
		}
		if !o.bool(CKA_MODIFIABLE) || o.body.trustedCertificate() {
			return CKR_ACTION_PROHIBITED
		}
		a, err := l.applyTemplate(sess, o.attrs(), tmpl, onSet)
		if err != nil {
			return err
		}
		c := *o
		c.body = a.encode()
		if o.token {
			st, err := s.token.UpdateObject(o.id, o.stamp, c.body)
			if errors.Is(err, sealstore.ErrChanged) {
				if err := l.sync(s); err != nil {
					return err
				}
				continue
			}
			if errors.Is(err, sealstore.ErrNotFound) {
				return &coded{CKR_OBJECT_HANDLE_INVALID, err}
			}
			if err != nil {
				return l.fail("changing an object", s.serial, err)
			}
			c.stamp = st.Stamp
		}
		l.mu.Lock()
		s.objs.put(&c)
		l.mu.Unlock()
		return nil
	}
	return CKR_FUNCTION_FAILED
}

// findOp is a search: the handles that matched when it began.
type findOp struct{ rest []ObjectHandle }

// FindObjectsInit is C_FindObjectsInit (section 5.7.7). It sees what other
// processes have changed since.
func (m *Module) FindObjectsInit(h SessionHandle, tmpl []Attribute) error {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
	if sess.find != nil {
		return CKR_OPERATION_ACTIVE
	}
	s := sess.slot
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := l.sync(s); err != nil {
		return err
	}
	if mayMatchPrivate(tmpl) && l.user(sess) == nobody && s.token.Closed() {
		err := l.autoLogin(s)
		if err == nil {
			err = l.sync(s)
		}
		// A search that can also find public objects finds them all the same.
		if err != nil && mustMatchPrivate(tmpl) {
			return err
		}
	}
	op := &findOp{}
	l.mu.RLock()
	for o := range s.objs.candidates(tmpl) {
		if (!o.private || s.user == userIn) && (!o.builtin || asksProfiles(tmpl)) && o.matches(tmpl) {
			op.rest = append(op.rest, o.handle)
		}
	}
	l.mu.RUnlock()
	slices.Sort(op.rest)
	sess.find = op
	return nil
}

// FindObjects is C_FindObjects (section 5.7.8).
func (m *Module) FindObjects(h SessionHandle, out []ObjectHandle) (int, error) {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return 0, err
	}
	defer l.unlockSession(sess)
	if sess.find == nil {
		return 0, CKR_OPERATION_NOT_INITIALIZED
	}
	n := copy(out, sess.find.rest)
	sess.find.rest = sess.find.rest[n:]
	return n, nil
}

// FindObjectsFinal is C_FindObjectsFinal (section 5.7.9).
func (m *Module) FindObjectsFinal(h SessionHandle) error {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
	if sess.find == nil {
		return CKR_OPERATION_NOT_INITIALIZED
	}
	sess.find = nil
	return nil
}
