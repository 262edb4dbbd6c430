package config

import (
	"bytes"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"sync"
)

// Logger gives the log that the configuration asks for. Nothing is opened
// before the first record, and what cannot be written is dropped: a guest in
// another program's process has nobody to complain to. The closer never fails.
func (c *Config) Logger() (*slog.Logger, io.Closer, error) {
	w := &sink{open: openSyslog}
	switch c.LogFile {
	case "":
	case "stderr":
		w.open = func() (io.WriteCloser, error) { return keepOpen{os.Stderr}, nil }
	default:
		name := c.LogFile
		w.open = func() (io.WriteCloser, error) {
			return os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		}
	}
	// Syslog has its own time and process number.
	toSyslog := c.LogFile == ""
	asJSON := c.LogFormat == "json"
	opts := &slog.HandlerOptions{Level: c.LogLevel, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		switch {
		case toSyslog && len(groups) == 0 && a.Key == slog.TimeKey:
			return slog.Attr{}
		case asJSON && a.Value.Kind() == slog.KindDuration:
			a.Value = slog.Float64Value(a.Value.Duration().Seconds())
		}
		return a
	}}
	var h slog.Handler = slog.NewTextHandler(w, opts)
	if asJSON {
		h = slog.NewJSONHandler(w, opts)
	}
	log := slog.New(h)
	if !toSyslog {
		log = log.With("pid", os.Getpid())
	}
	return log, w, nil
}

type keepOpen struct{ io.Writer }

func (keepOpen) Close() error { return nil }

// sink opens its destination at the first write.
type sink struct {
	open func() (io.WriteCloser, error)

	mu sync.Mutex
	to io.WriteCloser
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.to == nil {
		to, err := s.open()
		if err != nil {
			return len(p), nil
		}
		s.to = to
	}
	s.to.Write(p)
	return len(p), nil
}

func (s *sink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.to != nil {
		s.to.Close()
		s.to = nil
	}
	return nil
}

// openSyslog dials the local syslog; the level, which both handlers write first,
// chooses the severity of each record.
func openSyslog() (io.WriteCloser, error) {
	w, err := syslog.New(syslog.LOG_WARNING|syslog.LOG_AUTH, "icn-p11")
	if err != nil {
		return nil, err
	}
	return syslogWriter{w}, nil
}

type syslogWriter struct{ *syslog.Writer }

func (w syslogWriter) Write(p []byte) (int, error) {
	log := w.Warning
	switch {
	case hasLevel(p, slog.LevelError):
		log = w.Err
	case hasLevel(p, slog.LevelInfo):
		log = w.Info
	case hasLevel(p, slog.LevelDebug):
		log = w.Debug
	}
	return len(p), log(string(p))
}

func hasLevel(p []byte, l slog.Level) bool {
	return bytes.HasPrefix(p, []byte("level="+l.String())) || bytes.HasPrefix(p, []byte(`{"level":"`+l.String()))
}
