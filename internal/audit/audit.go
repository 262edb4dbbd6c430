// Package audit writes down who signed what with which key, one record for
// each signature, to a file or to systemd's journal. A record holds neither
// the message nor a secret.
//
// Whoever signs writes the record before the signature leaves, and refuses the
// signature where that fails.
package audit

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/InterCooperative-Network/icn-p11/internal/account"
)

// Journal is the destination that is systemd's journal; any other is the path
// of a file.
const Journal = "journal"

// timeForm has the same length for every time, in UTC.
const timeForm = "2006-01-02T15:04:05.000000000Z"

// maxText is where labels and other names that somebody chose are cut, in
// bytes: nobody shall make a record too long to be written.
const maxText = 255

// Record is a signature, or an attempt at one. The order of the fields and
// their names are those of what is written.
type Record struct {
	// What only this package fills in.
	Time    string `json:"time"`           // RFC 3339, UTC, with nanoseconds
	UID     int    `json:"uid"`            // real user
	EUID    int    `json:"euid"`           // effective user
	User    string `json:"user,omitempty"` // name of the real user in /etc/passwd
	PID     int    `json:"pid"`
	Program string `json:"program,omitempty"` // file name of the executable

	Token      string `json:"token"`       // serial number
	TokenLabel string `json:"token_label"` // as the token's file says
	Key        string `json:"key"`         // CKA_ID in hexadecimal digits
	KeyLabel   string `json:"key_label"`
	DID        string `json:"did"`
	Mechanism  string `json:"mechanism"`
	SHA256     string `json:"sha256"`  // of the message
	Outcome    string `json:"outcome"` // CKR_OK, or why there is no signature
}

// Log takes records. It opens its destination when the first one comes.
type Log struct {
	mu sync.Mutex
	to destination

	uid  int // whose name is
	user string
}

// destination is a file or the journal.
type destination interface {
	write(r *Record) error
	check() error
	close()
}

// New gives the log for a destination of the configuration, nil for none.
func New(to string) *Log {
	switch to {
	case "":
		return nil
	case Journal:
		return &Log{to: &journal{socket: journalSocket}, uid: -1}
	}
	return &Log{to: &file{path: to}, uid: -1}
}

// Check tells why records could not be written to a destination, as far as
// that can be known beforehand. It writes and makes nothing.
func Check(to string) error {
	l := New(to)
	if l == nil {
		return nil
	}
	defer l.Close()
	if err := l.to.check(); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	return nil
}

// Write writes a record, or tells why it could not be.
func (l *Log) Write(r Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.Time = time.Now().UTC().Format(timeForm)
	r.UID, r.EUID, r.PID = os.Getuid(), os.Geteuid(), os.Getpid()
	if r.UID != l.uid {
		l.uid, l.user = r.UID, account.UserName(uint32(r.UID))
		if l.user == fmt.Sprint(r.UID) {
			l.user = "" // it has no name
		}
	}
	r.User = l.user
	// It is what /proc/self/exe was when Go started.
	if exe, err := os.Executable(); err == nil {
		r.Program = filepath.Base(exe)
	}
	for _, s := range []*string{&r.User, &r.Program, &r.TokenLabel, &r.Key, &r.KeyLabel} {
		*s = cut(*s)
	}
	if err := l.to.write(&r); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	return nil
}

// Close leaves the destination. The log can be used again.
func (l *Log) Close() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.to.close()
}

// cut shortens a text to what fits a record.
func cut(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// line is a record as it stands in a file.
func (r *Record) line() ([]byte, error) {
	b, err := json.Marshal(r)
	return append(b, '\n'), err
}
