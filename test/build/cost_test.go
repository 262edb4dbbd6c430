package build

import (
	"cmp"
	"debug/buildinfo"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Nothing that is built for use has the tag by which PINs and passphrases cost
// next to nothing to try.
func TestFullCost(t *testing.T) {
	for variable, name := range map[string]string{"ICN_P11_MODULE": "icn-p11.so", "ICN_P11_COMMAND": "icn-p11"} {
		path := cmp.Or(os.Getenv(variable), filepath.Join(root, "build", name))
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(info.Settings) < 5 {
			t.Errorf("%s does not say how it was built: %v", name, info.Settings)
		}
		for _, s := range info.Settings {
			if strings.Contains(s.Value, "cheappins") {
				t.Errorf("%s was built with %s=%s", name, s.Key, s.Value)
			}
		}
	}
}
