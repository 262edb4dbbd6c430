package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
)

const (
	journalSocket = "/run/systemd/journal/socket"
	// journalPatience bounds the wait for a journal that is not read.
	journalPatience = 5 * time.Second
	// MessageID marks the records of this program in the journal.
	MessageID = "4eddab38172d46b690079ae0be6cf51d"
)

// journal sends records to systemd's journal by its native protocol: a
// datagram for each (https://systemd.io/JOURNAL_NATIVE_PROTOCOL).
type journal struct {
	socket string
	conn   *net.UnixConn
}

func (j *journal) write(r *Record) error {
	datagram := r.datagram()
	err := j.send(datagram)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		err = j.send(datagram) // the journal was restarted
	}
	return j.failed(err)
}

func (j *journal) check() error { return j.failed(j.dial()) }

func (j *journal) failed(err error) error {
	if err == nil {
		return nil
	}
	return advice.With(err, "start systemd-journald, or set audit_log to a file: nothing is signed meanwhile")
}

func (j *journal) dial() (err error) {
	if j.conn == nil {
		j.conn, err = net.DialUnix("unixgram", nil, &net.UnixAddr{Name: j.socket, Net: "unixgram"})
	}
	return err
}

func (j *journal) send(datagram []byte) error {
	if err := j.dial(); err != nil {
		return err
	}
	err := j.conn.SetWriteDeadline(time.Now().Add(journalPatience))
	if err == nil {
		_, err = j.conn.Write(datagram)
	}
	if err != nil {
		j.close()
	}
	return err
}

func (j *journal) close() {
	if j.conn != nil {
		j.conn.Close()
		j.conn = nil
	}
}

// datagram is a record as the journal takes it: a readable line, and each field
// of the record under its own name.
func (r *Record) datagram() []byte {
	var b bytes.Buffer
	priority, what := 6, "signature" // LOG_INFO
	if r.Outcome != "CKR_OK" {
		priority, what = 4, "refused signature" // LOG_WARNING
	}
	const authpriv = 10
	for _, f := range []struct {
		name  string
		value any
	}{
		{"MESSAGE", fmt.Sprintf("%s with %s of token %q: %s", what, r.DID, r.TokenLabel, r.Outcome)},
		{"MESSAGE_ID", MessageID},
		{"PRIORITY", priority},
		{"SYSLOG_FACILITY", authpriv},
		{"SYSLOG_IDENTIFIER", "icn-p11"},
	} {
		field(&b, f.name, fmt.Sprint(f.value))
	}
	v := reflect.ValueOf(r).Elem()
	for _, f := range reflect.VisibleFields(v.Type()) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		field(&b, "ICN_P11_"+strings.ToUpper(name), fmt.Sprint(v.FieldByIndex(f.Index)))
	}
	return b.Bytes()
}

// field writes one field. A value with a newline in it goes with its length.
func field(b *bytes.Buffer, name, value string) {
	b.WriteString(name)
	if strings.Contains(value, "\n") {
		b.WriteByte('\n')
		b.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(value))))
	} else {
		b.WriteByte('=')
	}
	b.WriteString(value)
	b.WriteByte('\n')
}
