package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/p11"
)

// otherKeys makes an AES key, an X25519 key and an ECDSA key in the one token,
// each labelled by its type.
func (m *machine) otherKeys() {
	m.inside(func(mod *module, s p11.SessionHandle) {
		in := func(label string, more ...p11.Attribute) []p11.Attribute {
			return append([]p11.Attribute{{Type: p11.CKA_TOKEN, Value: []byte{1}}, {Type: p11.CKA_LABEL, Value: []byte(label)}}, more...)
		}
		_, err := mod.GenerateKey(s, p11.Mechanism{Type: p11.CKM_AES_KEY_GEN}, in("aes", p11.Attribute{Type: p11.CKA_VALUE_LEN, Value: ulong(32)}))
		for label, k := range map[string]struct {
			mech p11.MechanismType
			oid  []byte
		}{
			"x25519": {p11.CKM_EC_MONTGOMERY_KEY_PAIR_GEN, []byte{0x06, 0x03, 0x2b, 0x65, 0x6e}},
			"ecdsa":  {p11.CKM_EC_KEY_PAIR_GEN, []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}},
		} {
			if err == nil {
				_, _, err = mod.GenerateKeyPair(s, p11.Mechanism{Type: k.mech}, in(label, p11.Attribute{Type: p11.CKA_EC_PARAMS, Value: k.oid}), in(label))
			}
		}
		if err != nil {
			m.t.Fatal(err)
		}
	})
}

// used is what the keys of otherKeys make of the same input; "" for one that is
// not there.
func (m *machine) used() (aes, x25519, ecdsa string) {
	m.inside(func(mod *module, s p11.SessionHandle) {
		key := func(label string, class uint) (p11.ObjectHandle, bool) {
			found, err := mod.find(s, p11.Attribute{Type: p11.CKA_LABEL, Value: []byte(label)}, p11.Attribute{Type: p11.CKA_CLASS, Value: ulong(class)})
			if err != nil || len(found) > 1 {
				m.t.Fatal(found, err)
			}
			return append(found, 0)[0], len(found) == 1
		}
		check := func(err error) {
			if err != nil {
				m.t.Fatal(err)
			}
		}
		if k, ok := key("aes", p11.CKO_SECRET_KEY); ok {
			out := p11.Output{Buf: make([]byte, 16)}
			check(mod.EncryptInit(s, p11.Mechanism{Type: p11.CKM_AES_CBC, Param: make([]byte, 16)}, k))
			check(mod.Encrypt(s, make([]byte, 16), &out))
			aes = string(out.Buf)
		}
		if k, ok := key("x25519", p11.CKO_PRIVATE_KEY); ok {
			o, err := mod.DeriveKey(s, p11.Mechanism{Type: p11.CKM_ECDH1_DERIVE, Param: &p11.ECDHParams{KDF: p11.CKD_NULL, Public: append([]byte{9}, make([]byte, 31)...)}}, k,
				[]p11.Attribute{{Type: p11.CKA_CLASS, Value: ulong(p11.CKO_SECRET_KEY)}, {Type: p11.CKA_KEY_TYPE, Value: ulong(p11.CKK_GENERIC_SECRET)},
					{Type: p11.CKA_SENSITIVE, Value: []byte{0}}, {Type: p11.CKA_EXTRACTABLE, Value: []byte{1}}})
			check(err)
			v, err := mod.attribute(s, o, p11.CKA_VALUE)
			check(err)
			x25519 = string(v)
		}
		if k, ok := key("ecdsa", p11.CKO_PRIVATE_KEY); ok {
			out := p11.Output{Buf: make([]byte, 64)}
			check(mod.SignInit(s, p11.Mechanism{Type: p11.CKM_ECDSA}, k))
			check(mod.Sign(s, make([]byte, 32), &out))
			ecdsa = string(out.Buf)
		}
	})
	return aes, x25519, ecdsa
}

// here makes a machine the one that the command runs on again.
func (m *machine) here(t *testing.T) {
	t.Setenv("ICN_P11_CONF", filepath.Join(filepath.Dir(m.store), "conf"))
}

// Secret keys and X25519 keys come along, by backup and by migration; keys that
// the TPM has made cannot, and whoever they are lost to is told.
func TestKeysOfOtherTypesComeAlong(t *testing.T) {
	identity, recipient := offline(t)
	dir := t.TempDir()
	file, offer, parcel := filepath.Join(dir, "node.backup"), filepath.Join(dir, "offer"), filepath.Join(dir, "parcel")
	from := newMachine(t, swtpmtest.Start(t).Device())
	from.run(append([]string{"init", "--label", "node", "--recoverable"}, pins...)...)
	from.otherKeys()
	aes, x25519, ecdsa := from.used()
	if aes == "" || x25519 == "" || ecdsa == "" {
		t.Fatalf("%x %x %x", aes, x25519, ecdsa)
	}
	told := func(args ...string) string {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if status := run(args, &stdout, &stderr); status != exitOK {
			t.Fatalf("%s: %s", strings.Join(args, " "), &stderr)
		}
		if !strings.Contains(stdout.String()+stderr.String(), "1 key that the TPM has made (ECDSA) cannot leave it") {
			t.Errorf("%s does not tell what stays behind: %s%s", strings.Join(args, " "), &stdout, &stderr)
		}
		return stdout.String()
	}
	arrived := func(m *machine) {
		t.Helper()
		a, x, e := m.used()
		if a != aes || x != x25519 || e != "" {
			t.Errorf("AES %x, was %x; X25519 %x, was %x; ECDSA %x, which is none here", a, aes, x, x25519, e)
		}
	}

	told(append([]string{"backup", "create", "node", "--out", file, "--recipient", recipient}, pins...)...)
	told("backup", "verify", file, "--identity", identity)
	var verified struct {
		OtherKeys int `json:"other_keys"`
		TPMKeys   int `json:"tpm_keys"`
	}
	if err := json.Unmarshal([]byte(from.run("backup", "verify", file, "--identity", identity, "--json")), &verified); err != nil || verified.OtherKeys != 2 || verified.TPMKeys != 1 {
		t.Errorf("%+v %v", verified, err)
	}
	restored := newMachine(t, swtpmtest.Start(t).Device())
	told(append([]string{"backup", "restore", file, "--identity", identity}, pins...)...)
	arrived(restored)

	target := newMachine(t, swtpmtest.Start(t).Device())
	fingerprint := strings.TrimSpace(target.run("migrate", "offer", "--out", offer))
	from.here(t)
	told(append([]string{"migrate", "send", "node", "--to", offer, "--out", parcel, "--move", "--fingerprint", fingerprint}, pins...)...)
	target.here(t)
	proof := filepath.Join(dir, "proof")
	target.run(append([]string{"migrate", "accept", parcel, "--proof", proof}, pins...)...)
	arrived(target)
	from.here(t)
	from.run("migrate", "finish", "node", proof, "--yes", pins[2], pins[3])
}
