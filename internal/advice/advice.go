// Package advice lets an error carry what an operator can do about it, so that
// the advice is written once, at the place that knows the cause.
package advice

import (
	"errors"
	"strings"
)

type advised struct {
	err  error
	cure string
}

func (e *advised) Error() string { return e.err.Error() + ": " + e.cure }
func (e *advised) Unwrap() error { return e.err }

// With adds a cure to an error. It ends the message, behind a colon.
func With(err error, cure string) error { return &advised{err, cure} }

// Split takes the message of an error apart into what went wrong and the cure,
// which is "" if the error has none.
func Split(err error) (what, cure string) {
	what = err.Error()
	var a *advised
	if errors.As(err, &a) {
		// Whoever wrapped the error with words behind it has the last one.
		if rest, ok := strings.CutSuffix(what, ": "+a.cure); ok {
			return rest, a.cure
		}
	}
	return what, ""
}
