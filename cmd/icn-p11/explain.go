package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/InterCooperative-Network/icn-p11/p11"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// explain turns an error of the rooms below into what an operator can act on:
// without return codes, with what to do where the cause does not say it.
func explain(err error) error {
	err = cause(err)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sealstore.ErrLockout):
		return fmt.Errorf("%w; waiting helps, \"icn-p11 lockout show\" says how long, and \"icn-p11 lockout reset\" ends it", sealstore.ErrLockout)
	case errors.Is(err, sealstore.ErrAuth):
		return errors.New("wrong PIN")
	case errors.Is(err, sealstore.ErrNoPIN):
		return fmt.Errorf("%w; \"icn-p11 pin TOKEN --unblock\" sets it by the SO PIN", sealstore.ErrNoPIN)
	case errors.Is(err, sealstore.ErrParent):
		return fmt.Errorf("%w: nothing in it can be opened on this TPM", err)
	case errors.Is(err, sealstore.ErrUnavailable):
		return fmt.Errorf("%w (\"icn-p11 doctor\" looks into it)", err)
	case errors.Is(err, sealstore.ErrPCR):
		return fmt.Errorf("%w; \"icn-p11 pcr show TOKEN\" tells what changed, and where the change is meant, \"icn-p11 pcr rebind TOKEN\" approves it", err)
	case errors.Is(err, sealstore.ErrIntegrity):
		return fmt.Errorf("%w: restore the token (icn-p11 backup restore FILE --replace) or the store's files from a backup of this machine", err)
	}
	return err
}

// cause leaves out the Cryptoki return code that stands before it.
func cause(err error) error {
	if pair, ok := err.(interface{ Unwrap() []error }); ok {
		if list := pair.Unwrap(); len(list) == 2 {
			if _, ok := list[0].(p11.RV); ok {
				return list[1]
			}
		}
	}
	return err
}

// pinFailure explains why a PIN was not accepted. The wrong tries that the
// TPM counts are those of everybody who uses it.
func (p *place) pinFailure(who string, err error) error {
	if !errors.Is(err, sealstore.ErrAuth) && !errors.Is(err, p11.CKR_PIN_INCORRECT) {
		return explain(err)
	}
	l, lerr := p.tpm.Lockout()
	p.tpm.Release()
	switch {
	case lerr != nil || l.Max == 0:
		return fmt.Errorf("wrong %s PIN", who)
	case l.InLockout || l.Counter >= l.Max:
		return fmt.Errorf("wrong %s PIN, and the TPM now refuses any PIN: %s", who, forgiven(l))
	}
	left := "1 more wrong try locks the TPM"
	if n := l.Max - l.Counter; n != 1 {
		left = fmt.Sprintf("%d more wrong tries lock the TPM", n)
	}
	return fmt.Errorf("wrong %s PIN; %s: %s", who, left, forgiven(l))
}

// forgiven tells how the TPM's counter of wrong tries goes down.
func forgiven(l sealstore.Lockout) string {
	if l.Interval == 0 {
		return "it counts none, so that PINs can be guessed: let the TPM's owner set a recovery time (tpm2_dictionarylockout)"
	}
	return "it forgives one each " + span(l.Interval)
}

// span writes a duration without the zeros that time.Duration has.
func span(d time.Duration) string {
	switch {
	case d%time.Hour == 0:
		return count(int(d/time.Hour), "hour")
	case d%time.Minute == 0:
		return count(int(d/time.Minute), "minute")
	}
	return count(int(d/time.Second), "second")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
