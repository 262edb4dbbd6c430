package environment

import "testing"

func TestDistrust(t *testing.T) {
	t.Setenv("ICN_P11_CONF", "/theirs")
	if v, ok := Lookup("ICN_P11_CONF"); !ok || v != "/theirs" || len(All()) == 0 {
		t.Errorf("trusted: %q, %t, %q", v, ok, All())
	}
	Distrust()
	defer distrusted.Store(false)
	if v, ok := Lookup("ICN_P11_CONF"); ok || v != "" || Get("ICN_P11_CONF") != "" || len(All()) != 0 {
		t.Errorf("distrusted: %q, %t, %q", v, ok, All())
	}
}
