package advice

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"
)

func TestSplit(t *testing.T) {
	err := With(fmt.Errorf("/x: %w", fs.ErrPermission), "run this as root")
	for _, c := range []struct {
		err        error
		what, cure string
	}{
		{err, "/x: permission denied", "run this as root"},
		{fmt.Errorf("opening: %w", err), "opening: /x: permission denied", "run this as root"},
		{errors.Join(err), "/x: permission denied", "run this as root"},
		{fmt.Errorf("%w (see below)", err), "/x: permission denied: run this as root (see below)", ""},
		{fs.ErrPermission, "permission denied", ""},
	} {
		if what, cure := Split(c.err); what != c.what || cure != c.cure {
			t.Errorf("%v: %q, %q", c.err, what, cure)
		}
	}
	if !errors.Is(err, fs.ErrPermission) || err.Error() != "/x: permission denied: run this as root" {
		t.Error(err)
	}
}
