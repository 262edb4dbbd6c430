package sealstore

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
)

// Errors of the store; all are wrapped, with the path and what to do about it
// where there is a choice. Those of the Sealer come through as they are.
var (
	// ErrNotFound: there is no such token or object, or not any more.
	ErrNotFound = errors.New("not found")
	// ErrSlotTaken: another process made a token in that slot first.
	ErrSlotTaken = errors.New("the slot has been taken by another token")
	// ErrNoPIN: the token has no user PIN yet.
	ErrNoPIN = errors.New("the user PIN is not set")
	// ErrLocked: the operation needs a login.
	ErrLocked = errors.New("not logged in")
	// ErrIntegrity: a file is malformed or was altered.
	ErrIntegrity = errors.New("damaged or altered")
	// ErrChanged: somebody else changed the object or token in the meantime.
	ErrChanged = errors.New("changed by another process")
	// ErrPINLength: a new PIN is shorter than MinPIN or longer than MaxPIN.
	ErrPINLength = fmt.Errorf("a PIN has %d to %d bytes", MinPIN, MaxPIN)
	// ErrTooLarge: a label, body or secret is beyond what the format holds.
	ErrTooLarge = errors.New("too large")
	// ErrReadOnly: the store may not be written.
	ErrReadOnly = errors.New("the store cannot be written")
	// ErrFull: no space is left.
	ErrFull = errors.New("no space left for the store")
	// ErrNotRecoverable: the token's keys never leave its TPM.
	ErrNotRecoverable = errors.New("the token is not recoverable: its keys never leave this TPM")
	// ErrExists: there is such a token already.
	ErrExists = errors.New("the token is there already")
)

// readError describes a failure to read path.
func readError(path string, err error) error {
	err = reason(err)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", path, ErrNotFound)
	case errors.Is(err, fs.ErrPermission):
		return advice.With(fmt.Errorf("%s: %w", path, err), accessAdvice(path))
	case errors.Is(err, unix.ENOTDIR):
		return notDirectory(path, err)
	}
	return fmt.Errorf("reading %s: %w", path, err)
}

// writeError describes a failure to write path.
func writeError(path string, err error) error {
	err = reason(err)
	switch {
	case errors.Is(err, unix.EROFS):
		return advice.With(fmt.Errorf("%s: %w: %w", path, ErrReadOnly, err), "mount the file system read-write or set sealed_blob_dir")
	case errors.Is(err, fs.ErrPermission):
		return advice.With(fmt.Errorf("%s: %w: %w", path, ErrReadOnly, err), accessAdvice(path))
	case errors.Is(err, unix.ENOSPC):
		return advice.With(fmt.Errorf("%s: %w: %w", path, ErrFull, err), "free some space and try again; nothing was stored")
	case errors.Is(err, unix.EDQUOT):
		return advice.With(fmt.Errorf("%s: %w: %w", path, ErrFull, err), "raise the quota or free some space; nothing was stored")
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", path, ErrNotFound)
	case errors.Is(err, unix.ENOTDIR):
		return notDirectory(path, err)
	}
	return fmt.Errorf("writing %s: %w", path, err)
}

// notDirectory names the part of a path that is a file.
func notDirectory(path string, err error) error {
	if p, st, e := existing(path); e == nil && !st.IsDir() {
		path = p
	}
	return advice.With(fmt.Errorf("%s: %w", path, err), "set sealed_blob_dir to a directory")
}

// reason leaves out the path, which the message names already.
func reason(err error) error {
	if p, ok := err.(*fs.PathError); ok {
		return p.Err
	}
	return err
}
