package sealstore

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
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
)

// readError describes a failure to read path.
func readError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", path, ErrNotFound)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: %w: the store's files belong to the user that made them; check owner and mode", path, err)
	}
	return fmt.Errorf("reading %s: %w", path, err)
}

// writeError describes a failure to write path.
func writeError(path string, err error) error {
	switch {
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%s: %w: %w: mount the file system read-write or set sealed_blob_dir", path, ErrReadOnly, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: %w: %w: check owner and mode of the store's directories", path, ErrReadOnly, err)
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("%s: %w: %w: free some space and try again; nothing was stored", path, ErrFull, err)
	case errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%s: %w: %w: raise the quota or free some space; nothing was stored", path, ErrFull, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", path, ErrNotFound)
	}
	return fmt.Errorf("writing %s: %w", path, err)
}
