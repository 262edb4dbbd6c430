package p11

import (
	"maps"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// icn-p11-module(7) names every mechanism that there is, and no other.
func TestManual(t *testing.T) {
	source, err := os.ReadFile("const.go")
	must(t, err)
	page, err := os.ReadFile("../docs/man/icn-p11-module.7")
	must(t, err)
	have := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\t(CKM_\w+) +MechanismType = (\w+)$`).FindAllStringSubmatch(string(source), -1) {
		n, err := strconv.ParseUint(m[2], 0, 32)
		must(t, err)
		if mechanisms[MechanismType(n)] != nil {
			have[m[1]] = true
		}
	}
	if len(have) != len(mechanisms) {
		t.Fatalf("const.go has names for %d of %d mechanisms", len(have), len(mechanisms))
	}
	told := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\.It (CKM_.*)$`).FindAllStringSubmatch(string(page), -1) {
		for name := range strings.SplitSeq(m[1], ", ") {
			told[name] = true
			if strings.HasSuffix(name, "_HMAC") {
				told[name+"_GENERAL"] = true
			}
		}
	}
	if !maps.Equal(have, told) {
		for name := range have {
			if !told[name] {
				t.Errorf("the manual lacks %s", name)
			}
		}
		for name := range told {
			if !have[name] {
				t.Errorf("the manual has %s", name)
			}
		}
	}
}
