package audit

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/account"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var sample = Record{
	Token: "0123456789abcdef", TokenLabel: "web server", Key: "00ff", KeyLabel: "icn-identity", DID: "did:icn:zX",
	Mechanism: "Ed25519", SHA256: strings.Repeat("ab", 32), Outcome: "CKR_OK",
}

// checkHost checks and removes what the log itself fills in.
func checkHost(t *testing.T, r Record, since time.Time) Record {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, r.Time)
	if err != nil || at.Before(since) || time.Since(at) < 0 || len(r.Time) != len(timeForm) {
		t.Errorf("time %q: %v", r.Time, err)
	}
	name := account.UserName(uint32(os.Getuid()))
	if r.UID != os.Getuid() || r.EUID != os.Geteuid() || r.PID != os.Getpid() || r.User != name || r.Program != "audit.test" {
		t.Errorf("%+v", r)
	}
	r.Time, r.UID, r.EUID, r.User, r.PID, r.Program = "", 0, 0, "", 0, ""
	return r
}

// lines parses a file, strictly.
func lines(t *testing.T, path string) (all []Record) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	for line := range bytes.Lines(data) {
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		var r Record
		if err := d.Decode(&r); err != nil || line[len(line)-1] != '\n' {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, r)
	}
	return all
}

func TestNone(t *testing.T) {
	l := New("")
	if l != nil {
		t.Error("there is a log where none is wanted")
	}
	l.Close()
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	l := New(path)
	defer l.Close()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the file is there before the first record")
	}
	start := time.Now()
	must(t, l.Write(sample))
	failed := sample
	failed.Outcome, failed.KeyLabel = "CKR_DEVICE_ERROR", "line\nbreak \"quoted\" \xff"
	must(t, l.Write(failed))
	l.Close()
	must(t, l.Write(sample))
	if st, err := os.Lstat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	failed.KeyLabel = "line\nbreak \"quoted\" \uFFFD"
	got := lines(t, path)
	if len(got) != 3 {
		t.Fatalf("%d records", len(got))
	}
	for i, want := range []Record{sample, failed, sample} {
		if r := checkHost(t, got[i], start); r != want {
			t.Errorf("%+v", r)
		}
	}
}

// TestForm keeps the names and their order.
func TestForm(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	l := New(path)
	must(t, l.Write(sample))
	l.Close()
	data, err := os.ReadFile(path)
	must(t, err)
	form := `^{"time":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z","uid":\d+,"euid":\d+,("user":"[^"]+",)?"pid":\d+,"program":"audit.test",` +
		`"token":"0123456789abcdef","token_label":"web server","key":"00ff","key_label":"icn-identity","did":"did:icn:zX",` +
		`"mechanism":"Ed25519","sha256":"(ab){32}","outcome":"CKR_OK"}` + "\n$"
	if !regexp.MustCompile(form).Match(data) {
		t.Errorf("%s", data)
	}
}

// TestRotation: when the file is renamed or removed, the next record begins
// another.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit")
	l := New(path)
	defer l.Close()
	must(t, l.Write(sample))
	must(t, os.Rename(path, path+".1"))
	must(t, l.Write(sample))
	must(t, l.Write(sample))
	must(t, os.Remove(path))
	must(t, l.Write(sample))
	if a, b := len(lines(t, path+".1")), len(lines(t, path)); a != 1 || b != 1 {
		t.Errorf("%d and %d records", a, b)
	}
}

// TestManyWriters: records of several logs, as of several processes, do not mix.
func TestManyWriters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	long := sample
	long.KeyLabel = strings.Repeat("x", 10000)
	var wg sync.WaitGroup
	const writers, each = 8, 100
	for range writers {
		wg.Go(func() {
			l := New(path)
			defer l.Close()
			for range each {
				if err := l.Write(long); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got := lines(t, path)
	if len(got) != writers*each || len(got[0].KeyLabel) != maxText {
		t.Errorf("%d records, a label of %d bytes", len(got), len(got[0].KeyLabel))
	}
}

func TestCut(t *testing.T) {
	for in, want := range map[string]string{
		"":                             "",
		strings.Repeat("a", maxText):   strings.Repeat("a", maxText),
		strings.Repeat("a", maxText+1): strings.Repeat("a", maxText),
		strings.Repeat("é", 200):       strings.Repeat("é", maxText/2),
		"\xff":                         "\uFFFD",
	} {
		if got := cut(in); got != want {
			t.Errorf("%q becomes %q", in, got)
		}
	}
}

// TestFileFails: what cannot be written is an error that says what to do, and
// never makes the host wait.
func TestFileFails(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	read, err := os.OpenFile(fifo, os.O_RDWR, 0)
	must(t, err)
	defer read.Close()
	for path, want := range map[string]string{
		filepath.Join(dir, "missing", "audit"): "no such file or directory: let this user write audit_log",
		dir:                                    "is a directory: let this user write audit_log",
		fifo:                                   "not a regular file",
		"/dev/full":                            "not a regular file",
	} {
		l := New(path)
		if err := l.Write(sample); err == nil || !strings.HasPrefix(err.Error(), "audit log: opening "+path+": ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
		l.Close()
	}
}

// TestFullDisk: a record that was only begun is an error, and spoils no other.
func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	l := New(path)
	defer l.Close()
	must(t, l.Write(sample))
	st, err := os.Stat(path)
	must(t, err)
	// A limit of the file's size stands in for a full disk: it, too, cuts a write.
	var old unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_FSIZE, &old))
	must(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(st.Size() + 100), Max: old.Max}))
	for range 2 {
		if err := l.Write(sample); err == nil {
			t.Error("a cut record is no error")
		}
	}
	must(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &old))
	must(t, l.Write(sample))
	data, err := os.ReadFile(path)
	must(t, err)
	good := 0
	for line := range bytes.Lines(data) {
		if json.Unmarshal(line, new(Record)) == nil {
			good++
		}
	}
	if good != 2 {
		t.Errorf("%d records are whole:\n%s", good, data)
	}
}

// listen is a journal's socket.
func listen(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// receive parses a datagram as the protocol has it.
func receive(t *testing.T, c *net.UnixConn) map[string]string {
	t.Helper()
	buf := make([]byte, 1<<16)
	must(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	n, err := c.Read(buf)
	must(t, err)
	fields := map[string]string{}
	for rest := buf[:n]; len(rest) > 0; {
		line, after, ok := bytes.Cut(rest, []byte{'\n'})
		if !ok {
			t.Fatalf("no end: %q", rest)
		}
		name, value, short := bytes.Cut(line, []byte{'='})
		if rest = after; !short {
			size := binary.LittleEndian.Uint64(after)
			value, rest = after[8:8+size], after[8+size+1:]
			if after[8+size] != '\n' {
				t.Fatalf("no newline behind %s", name)
			}
		}
		if _, twice := fields[string(name)]; twice || !regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`).Match(name) {
			t.Errorf("field %q", name)
		}
		fields[string(name)] = string(value)
	}
	return fields
}

func TestJournal(t *testing.T) {
	dir, err := os.MkdirTemp("", "audit") // the name of a socket is short
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "socket")
	l := New(Journal)
	if j, ok := l.to.(*journal); !ok || j.socket != journalSocket {
		t.Fatalf("%+v", l.to)
	}
	l.to.(*journal).socket = path
	defer l.Close()
	if err := l.Write(sample); err == nil || !strings.HasSuffix(err.Error(), ": start systemd-journald, or set audit_log to a file: nothing is signed meanwhile") {
		t.Errorf("%v", err)
	}

	c := listen(t, path)
	must(t, l.Write(sample))
	f := receive(t, c)
	for name, want := range map[string]string{
		"MESSAGE":    `signature with did:icn:zX of token "web server": CKR_OK`,
		"MESSAGE_ID": MessageID, "PRIORITY": "6", "SYSLOG_IDENTIFIER": "icn-p11", "SYSLOG_FACILITY": "10",
		"ICN_P11_UID": fmt.Sprint(os.Getuid()), "ICN_P11_PID": fmt.Sprint(os.Getpid()), "ICN_P11_PROGRAM": "audit.test",
		"ICN_P11_TOKEN": sample.Token, "ICN_P11_TOKEN_LABEL": "web server", "ICN_P11_KEY": "00ff", "ICN_P11_KEY_LABEL": "icn-identity",
		"ICN_P11_DID": "did:icn:zX", "ICN_P11_MECHANISM": "Ed25519", "ICN_P11_SHA256": sample.SHA256, "ICN_P11_OUTCOME": "CKR_OK",
	} {
		if f[name] != want {
			t.Errorf("%s=%q", name, f[name])
		}
	}
	if len(f) != 5+14 || len(f["ICN_P11_TIME"]) != len(timeForm) {
		t.Errorf("%q", f)
	}

	// A value with a newline cannot end its field, and the journal may restart.
	c.Close()
	must(t, os.Remove(path))
	c = listen(t, path)
	odd := sample
	odd.KeyLabel, odd.Outcome = "a\nMESSAGE=forged", "CKR_DEVICE_ERROR"
	must(t, l.Write(odd))
	f = receive(t, c)
	if f["ICN_P11_KEY_LABEL"] != odd.KeyLabel || f["PRIORITY"] != "4" || !strings.HasPrefix(f["MESSAGE"], "refused signature with ") {
		t.Errorf("%q", f)
	}
}

// TestJournalIsBusy: a journal that is not read is an error after a while.
func TestJournalIsBusy(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "audit")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := New(Journal)
	defer l.Close()
	l.to.(*journal).socket = filepath.Join(dir, "socket")
	listen(t, filepath.Join(dir, "socket"))
	start := time.Now()
	for err == nil {
		err = l.Write(sample)
		if time.Since(start) > time.Minute {
			t.Fatal("the socket takes anything")
		}
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) > 2*journalPatience {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

func BenchmarkFile(b *testing.B) {
	l := New(filepath.Join(b.TempDir(), "audit"))
	defer l.Close()
	for b.Loop() {
		if err := l.Write(sample); err != nil {
			b.Fatal(err)
		}
	}
}
