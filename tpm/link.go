package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// conn carries one frame to the TPM and one back. A conn on which that failed
// is closed, not used again: a late answer would be taken for the next one's.
type conn interface {
	exchange(command []byte, timeout time.Duration) ([]byte, error)
	Close() error
}

// opener is one kind of device.
type opener interface {
	String() string
	open(timeout time.Duration) (conn, error)
	// keep tells whether the connection, loaded objects and sessions are
	// kept: they are ours alone, or a resource manager keeps them apart.
	keep() bool
	// alone tells whether nobody else can use the TPM while we are connected.
	alone() bool
	// managed tells whether a resource manager is in between.
	managed() bool
	// startup tells whether TPM2_Startup may be ours to send.
	startup() bool
}

// lostError is a connection that was not made, or broke.
type lostError struct {
	err   error
	retry bool // a new connection may help
}

func (e *lostError) Error() string   { return e.err.Error() }
func (e *lostError) Unwrap() []error { return []error{sealstore.ErrUnavailable, e.err} }

// Response codes that mean "send the same bytes again" (Part 2, 6.6.3). The
// first use of an object with dictionary-attack protection after a TPM start
// is regularly answered so.
const (
	rcInitialize = 0x100
	rcYielded    = 0x908
	rcTesting    = 0x90A
	rcNVRate     = 0x920
	rcRetry      = 0x922
)

// patience bounds how long a command is repeated for those codes.
const patience = 10 * time.Second

// maxFrame is the largest answer, in bytes; larger ones are malformed.
const maxFrame = 4096

// link is a transport.TPM that repeats, bounds and counts commands.
type link struct {
	conn    conn
	timeout time.Duration
	startup bool
	count   *uint64
	// broken is the failure of an exchange. Nothing more is sent then: the
	// answer that was not read would be taken for the next command's.
	broken *lostError
}

// Send implements go-tpm's transport.TPM.
func (l *link) Send(command []byte) ([]byte, error) {
	start := time.Now()
	for wait := time.Millisecond; ; wait *= 2 {
		answer, err := l.once(command)
		if err != nil {
			return nil, err
		}
		switch rc := binary.BigEndian.Uint32(answer[6:]); rc {
		case rcRetry, rcYielded, rcTesting, rcNVRate:
			if time.Since(start)+wait > patience {
				return nil, &lostError{fmt.Errorf("the TPM asked for %v to repeat the command (0x%x)", patience, rc), false}
			}
			time.Sleep(wait)
			continue
		case rcInitialize:
			if l.startup {
				// A software TPM has no firmware that starts it.
				l.startup = false
				if _, err := l.once([]byte{0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x44, 0, 0}); err != nil {
					return nil, err
				}
				continue
			}
		}
		return answer, nil
	}
}

func (l *link) once(command []byte) ([]byte, error) {
	if l.broken != nil {
		return nil, l.broken
	}
	*l.count++
	answer, err := l.conn.exchange(command, l.timeout)
	if err == nil && (len(answer) < 10 || binary.BigEndian.Uint32(answer[2:]) != uint32(len(answer))) {
		err = errFrame
	}
	if err != nil {
		if !errors.As(err, &l.broken) {
			l.broken = &lostError{err, true}
		}
		return nil, l.broken
	}
	return answer, nil
}
