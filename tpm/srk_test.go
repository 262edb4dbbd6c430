package tpm_test

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// admin runs commands as another program does that uses the TPM.
func admin(t testing.TB, s *swtpmtest.TPM, f func(c bare) error) {
	t.Helper()
	c, err := net.Dial("unix", s.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := f(bare{c}); err != nil {
		t.Fatal(err)
	}
}

// put makes a primary key of a hierarchy persistent at handle, and gives its
// Name.
func put(t testing.TB, s *swtpmtest.TPM, hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic, password string) (name []byte) {
	t.Helper()
	admin(t, s, func(c bare) error {
		r, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template), InSensitive: tpm2.TPM2BSensitiveCreate{
			Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: []byte(password)}},
		}}.Execute(c)
		if err != nil {
			return err
		}
		name = r.Name.Buffer
		_, err = tpm2.EvictControl{
			Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}, PersistentHandle: handle,
		}.Execute(c)
		tpm2.FlushContext{FlushHandle: r.ObjectHandle}.Execute(c)
		return err
	})
	return name
}

// remove removes what is at handle.
func remove(t testing.TB, s *swtpmtest.TPM) {
	t.Helper()
	admin(t, s, func(c bare) error {
		r, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(handle)}.Execute(c)
		if err == nil {
			_, err = tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: handle, Name: r.Name}, PersistentHandle: handle}.Execute(c)
		}
		return err
	})
}

// setPassword gives a hierarchy that has none a password.
func setPassword(t testing.TB, s *swtpmtest.TPM, hierarchy tpm2.TPMHandle, password string) {
	t.Helper()
	admin(t, s, func(c bare) error {
		_, err := tpm2.HierarchyChangeAuth{AuthHandle: hierarchy, NewAuth: tpm2.TPM2BAuth{Buffer: []byte(password)}}.Execute(c)
		return err
	})
}

// A password is all its bytes, but for the zeros at its end, which the TPM takes
// off.
func TestPasswordWithZeros(t *testing.T) {
	s := swtpmtest.Start(t)
	old := ""
	for _, password := range []string{"a\x00b", "\x00ab", "ab\x00", "x" + strings.Repeat("\x00", 30) + "x"} {
		admin(t, s, func(c bare) error {
			_, err := tpm2.HierarchyChangeAuth{
				AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth([]byte(old))},
				NewAuth:    tpm2.TPM2BAuth{Buffer: []byte(password)},
			}.Execute(c)
			return err
		})
		old = strings.TrimRight(password, "\x00")
		d := open(t, s.Device())
		rootState(t, d, password)
		if _, err := d.RootKey([]byte("a")); err == nil || !strings.Contains(err.Error(), "wrong owner password") {
			t.Errorf("another password than %q: %v", password, err)
		}
		d.Close()
	}
}

func rootState(t testing.TB, d *tpm.TPM, owner string) tpm.RootState {
	t.Helper()
	r, err := d.RootKey([]byte(owner))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// wantTransient checks that keys can be used where the object at key_handle
// cannot, and that the object is left alone.
func wantTransient(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM, name []byte) {
	t.Helper()
	p, data := parent(t, d), secret()
	b := seal(t, d, p, data, auth, true)
	wantSecret(t, d, p, b, auth, data)
	if _, err := unseal(d, p, b, wrong); !errors.Is(err, sealstore.ErrAuth) {
		t.Errorf("a wrong value: %v", err)
	}
	for what, f := range map[string]func([]byte) (bool, error){
		"persist": func(o []byte) (bool, error) { _, done, err := d.Persist(o); return done, err },
		"evict":   d.Evict,
	} {
		if done, err := f(nil); err == nil || done {
			t.Errorf("%s: %v, %v", what, done, err)
		}
	}
	if r := rootState(t, d, ""); !bytes.Equal(r.Name, name) {
		t.Errorf("the object is %x now, it was %x", r.Name, name)
	}
	d.Release()
	if h := handles(t, s); len(h) != 0 {
		t.Errorf("left in the TPM: %x", h)
	}
}

func TestPersistAndEvict(t *testing.T) {
	for _, password := range []string{"", "owner password 71"} {
		modes(t, func(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM) {
			p, data := parent(t, d), secret()
			b := seal(t, d, p, data, auth, true)
			wantSecret(t, d, p, b, auth, data)
			d.Release()
			if password != "" {
				setPassword(t, s, tpm2.TPMRHOwner, password)
				if _, err := unseal(d, p, b, auth); !errors.Is(err, sealstore.ErrOwner) || errors.Is(err, sealstore.ErrAuth) {
					t.Errorf("without a storage root key: %v", err)
				}
				if _, err := d.Parent(); !errors.Is(err, sealstore.ErrOwner) || !strings.Contains(err.Error(), "icn-p11 srk persist") {
					t.Errorf("without a storage root key: %v", err)
				}
				for _, bad := range []string{"", "wrong", "zero\x00byte", strings.Repeat("long", 20)} {
					if _, _, err := d.Persist([]byte(bad)); err == nil || errors.Is(err, sealstore.ErrAuth) {
						t.Errorf("persisted with the owner password %q: %v", bad, err)
					}
				}
				if r := rootState(t, d, ""); !r.OwnerPassword || r.Derived != nil || r.Name != nil {
					t.Errorf("%+v", r)
				}
			} else if _, _, err := d.Persist([]byte("x")); err == nil {
				t.Error("a password where there is none was taken")
			}
			for i := range 2 {
				name, done, err := d.Persist([]byte(password))
				if err != nil || done != (i == 0) || !bytes.Equal(name, p) {
					t.Fatalf("persist: %x, %v, %v", name, done, err)
				}
				if r := rootState(t, d, password); !r.Ours() || !r.Template || r.Password || !bytes.Equal(r.Name, p) {
					t.Errorf("%+v", r)
				}
				// Nothing but persisting takes the owner's password.
				wantSecret(t, d, p, b, auth, data)
				wantSecret(t, d, parent(t, d), seal(t, d, p, data, auth, false), auth, data)
			}
			if password != "" {
				if done, err := d.Evict([]byte("wrong")); err == nil || done {
					t.Errorf("evicted with a wrong password: %v", err)
				}
			}
			wantSecret(t, d, p, b, auth, data)
			for i := range 2 {
				if done, err := d.Evict([]byte(password)); err != nil || done != (i == 0) {
					t.Fatalf("evict: %v, %v", done, err)
				}
			}
			if r := rootState(t, d, password); r.Name != nil || !bytes.Equal(r.Derived, p) {
				t.Errorf("%+v", r)
			}
			d.Release()
			if h := handles(t, s); len(h) != 0 {
				t.Errorf("left in the TPM: %x", h)
			}
		})
	}
}

func TestForeignObjectAtKeyHandle(t *testing.T) {
	signing := tpm2.ECCSRKTemplate
	signing.ObjectAttributes.Restricted, signing.ObjectAttributes.Decrypt, signing.ObjectAttributes.SignEncrypt = false, false, true
	signing.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256})
	noDA := tpm2.ECCSRKTemplate
	noDA.ObjectAttributes.NoDA = false
	for what, template := range map[string]tpm2.TPMTPublic{"signing key": signing, "RSA": tpm2.RSASRKTemplate, "other attributes": noDA} {
		t.Run(what, func(t *testing.T) {
			modes(t, func(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM) {
				name := put(t, s, tpm2.TPMRHOwner, template, "")
				if r := rootState(t, d, ""); r.Template || r.Ours() {
					t.Errorf("%+v", r)
				}
				wantTransient(t, s, d, name)
			})
		})
	}
}

// A key of the right template that is not the owner's: it serves the tokens
// that were made under it, and no new ones.
func TestOtherRootAtKeyHandle(t *testing.T) {
	modes(t, func(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM) {
		name := put(t, s, tpm2.TPMRHEndorsement, tpm2.ECCSRKTemplate, "")
		r := rootState(t, d, "")
		if !r.Template || r.Ours() || bytes.Equal(parent(t, d), name) {
			t.Errorf("%+v", r)
		}
		data := secret()
		old := seal(t, d, name, data, auth, true)
		wantSecret(t, d, name, old, auth, data)
		wantTransient(t, s, d, name)
		wantSecret(t, d, name, old, auth, data)
		p := parent(t, d)
		b := seal(t, d, p, data, auth, true)
		d.Release()
		remove(t, s)
		if _, err := unseal(d, name, old, auth); !errors.Is(err, sealstore.ErrParent) {
			t.Errorf("without the key: %v", err)
		}
		d.Release()
		setPassword(t, s, tpm2.TPMRHOwner, "x")
		if _, err := unseal(d, p, b, auth); !errors.Is(err, sealstore.ErrOwner) {
			t.Errorf("without any key: %v", err)
		}
	})
}

func TestRootWithPassword(t *testing.T) {
	modes(t, func(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM) {
		p, data := parent(t, d), secret()
		b := seal(t, d, p, data, auth, true)
		d.Release()
		if name := put(t, s, tpm2.TPMRHOwner, tpm2.ECCSRKTemplate, "secret"); !bytes.Equal(name, p) {
			t.Fatal("the password changed the Name")
		}
		for i, d := range []*tpm.TPM{d, open(t, s.Device())} {
			if i == 0 { // the other's first command seals
				wantSecret(t, d, p, b, auth, data)
			}
			wantSecret(t, d, p, seal(t, d, p, data, nil, false), nil, data)
			if _, err := unseal(d, p, b, wrong); !errors.Is(err, sealstore.ErrAuth) {
				t.Errorf("a wrong value: %v", err)
			}
			d.Release()
		}
		if r := rootState(t, d, ""); !r.Password || !r.Ours() {
			t.Errorf("%+v", r)
		}
		if _, done, err := d.Persist(nil); err == nil || done || !strings.Contains(err.Error(), "srk evict") {
			t.Errorf("persist: %v, %v", done, err)
		}
		if done, err := d.Evict(nil); err != nil || !done {
			t.Errorf("evict: %v, %v", done, err)
		}
		wantSecret(t, d, p, b, auth, data)
	})
}

// Others change what is at key_handle while this process runs.
func TestRootChangesUnderneath(t *testing.T) {
	modes(t, func(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM) {
		p, data := parent(t, d), secret()
		b, other := seal(t, d, p, data, auth, true), seal(t, d, p, data, nil, false)
		check := func(what string) {
			t.Helper()
			for _, f := range []func(){
				func() { wantSecret(t, d, p, b, auth, data) },
				func() { wantSecret(t, d, p, other, nil, data) },
				func() { other = seal(t, d, p, data, nil, false) },
			} {
				f()
			}
			l, err := d.Lockout()
			if err != nil || l.Counter != 0 {
				t.Fatalf("%s: %+v, %v", what, l, err)
			}
		}
		change := func(f func()) {
			// Only one program at a time is connected to a software TPM; an idle
			// exclusive one knows nothing of the change.
			if strings.HasSuffix(t.Name(), "exclusive") {
				d.Release()
			}
			f()
		}
		check("created")
		change(func() { put(t, s, tpm2.TPMRHOwner, tpm2.ECCSRKTemplate, "") })
		check("persisted by another program")
		change(func() { remove(t, s) })
		check("evicted by another program")
		change(func() { put(t, s, tpm2.TPMRHOwner, tpm2.ECCSRKTemplate, "") })
		check("persisted again")
		for range 3 {
			change(func() { remove(t, s); put(t, s, tpm2.TPMRHEndorsement, tpm2.ECCSRKTemplate, "") })
			check("replaced")
			change(func() { remove(t, s); put(t, s, tpm2.TPMRHOwner, tpm2.ECCSRKTemplate, "") })
			check("put back")
			other = seal(t, d, p, data, nil, false) // the first command after the next change seals
		}
		change(func() { remove(t, s); put(t, s, tpm2.TPMRHEndorsement, tpm2.ECCSRKTemplate, "") })
		if _, err := d.Seal(p, data, auth, sealstore.SealOptions{}); err != nil {
			t.Errorf("sealing after a change: %v", err)
		}
	})
}

func TestOwnerPasswordIsNotOnTheBus(t *testing.T) {
	const password = "owner password 71"
	s := swtpmtest.Start(t)
	setPassword(t, s, tpm2.TPMRHOwner, password)
	bus := swtpmtest.StartProxy(t, s)
	d := open(t, bus.Device())
	if _, _, err := d.Persist([]byte(password)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Evict([]byte(password)); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(bus.Seen(), []byte(password)) {
		t.Error("the owner's password is in clear on the bus")
	}
	if n := bus.Count(tpm2.TPMCCEvictControl); n != 2 {
		t.Errorf("the recording holds %d evictions", n)
	}
}
