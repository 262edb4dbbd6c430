package p11

import (
	"testing"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

func TestPINFlags(t *testing.T) {
	const low, final = CKF_USER_PIN_COUNT_LOW | CKF_SO_PIN_COUNT_LOW, CKF_USER_PIN_FINAL_TRY | CKF_SO_PIN_FINAL_TRY
	const locked = CKF_USER_PIN_LOCKED | CKF_SO_PIN_LOCKED
	for _, c := range []struct {
		counter, max uint32
		want         uint
	}{
		{0, 3, 0}, {1, 3, low}, {2, 3, low | final}, {3, 3, locked}, {4, 3, locked}, {0, 1, final}, {1, 1, locked},
	} {
		if got := pinFlags(sealstore.Lockout{Counter: c.counter, Max: c.max}); got != c.want {
			t.Errorf("%d of %d tries: %#x instead of %#x", c.counter, c.max, got, c.want)
		}
	}
}
