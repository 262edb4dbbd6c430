package account

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLookup(t *testing.T) {
	dir := t.TempDir()
	old := [2]string{passwd, group}
	t.Cleanup(func() { passwd, group = old[0], old[1] })
	passwd, group = filepath.Join(dir, "passwd"), filepath.Join(dir, "group")
	if got := UserName(1000) + Home(1000) + GroupName(115); got != "1000115" {
		t.Error("without files:", got)
	}
	os.WriteFile(passwd, []byte("root:x:0:0::/root:/bin/sh\n+::::::\nshort:x\nalice:x:1000:1000:A:/home/alice:/bin/sh\n"+
		"again:x:1000:1:::\nrelative:x:1001:1::home:\nlast:x:1002:1::/last:/bin/sh"), 0o600)
	os.WriteFile(group, []byte("root:x:0:\ntss:x:115:alice\n"), 0o600)
	for got, want := range map[string]string{
		UserName(0): "root", UserName(1000): "alice", UserName(7): "7", UserName(1002): "last",
		Home(1000): "/home/alice", Home(1002): "/last", Home(1001) + Home(7): "",
		GroupName(115): "tss", GroupName(116): "116",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
