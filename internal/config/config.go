// Package config reads icn-p11.conf, the configuration that the module and
// the icn-p11 command share.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/audit"
	"github.com/InterCooperative-Network/icn-p11/internal/environment"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// systemFile is read where a user has no file of his own.
const systemFile = "/etc/icn/icn-p11.conf"

// Config is the configuration in effect.
type Config struct {
	DevicePath      string        // as tpm.New takes it; "" chooses the kernel's device
	KeyHandle       uint32        // persistent handle of the storage root key
	PlatformBinding bool          // seal to PCR values
	PCRs            []int         // PCRs of the platform binding
	PCRBank         string        // hash algorithm of the PCR bank
	Attestation     bool          // attest keys
	SealedBlobDir   string        // the store
	AutoLockTimeout time.Duration // 0: unseal for each signature
	ECPointEncoding string        // how CKA_EC_POINT is served: "der" or "raw"
	FreeSlot        bool          // show an uninitialised slot for C_InitToken
	LogLevel        slog.Level
	LogFile         string // "" is syslog, "stderr" the host's standard error
	LogFormat       string // "text" or "json"
	AuditLog        string // as audit.New takes it: "" for none, "journal", or a file
	Statistics      bool   // count in the store
	Snapshots       bool   // leave snapshots of many objects to other processes; no key of the file sets it

	// Tokens are the settings of single tokens by their label, each complete
	// with what its table leaves to the keys above.
	Tokens map[string]Token

	Source string // the file that was read, "" for built-in defaults
}

// file mirrors the keys of the configuration file. Pointers tell what is
// absent from what is zero.
type file struct {
	DevicePath          *string `toml:"device_path"`
	KeyHandle           *int64  `toml:"key_handle"`
	PlatformBinding     *bool   `toml:"platform_binding"`
	PCRs                *[]int  `toml:"pcrs"`
	PCRBank             *string `toml:"pcr_bank"`
	Attestation         *bool   `toml:"attestation"`
	SealedBlobDir       *string `toml:"sealed_blob_dir"`
	AutoLockTimeoutSecs *int64  `toml:"auto_lock_timeout_secs"`
	ECPointEncoding     *string `toml:"ec_point_encoding"`
	FreeSlot            *bool   `toml:"free_slot"`
	LogLevel            *string `toml:"log_level"`
	LogFile             *string `toml:"log_file"`
	LogFormat           *string `toml:"log_format"`
	AuditLog            *string `toml:"audit_log"`
	Statistics          *bool   `toml:"statistics"`

	Token map[string]tokenTable `toml:"token"`
}

// Default gives the built-in defaults.
func Default() *Config {
	return &Config{
		KeyHandle:       0x81000001,
		PCRs:            []int{0, 7},
		PCRBank:         "sha256",
		SealedBlobDir:   defaultStore(),
		ECPointEncoding: "der",
		FreeSlot:        true,
		LogLevel:        slog.LevelWarn,
		LogFormat:       "text",
		Statistics:      true,
		Snapshots:       true,
	}
}

func defaultStore() string {
	if os.Geteuid() == 0 {
		return "/var/lib/icn/p11"
	}
	if dir := xdg("XDG_DATA_HOME", ".local/share"); dir != "" {
		return filepath.Join(dir, "icn", "p11")
	}
	return ""
}

// xdg gives a base directory, or "" for a user without a home. The
// specification has relative values ignored.
func xdg(env, fallback string) string {
	if dir := environment.Get(env); filepath.IsAbs(dir) {
		return dir
	}
	home := environment.Home()
	if home == "" {
		return ""
	}
	return filepath.Join(home, fallback)
}

// Load finds and reads the configuration: $ICN_P11_CONF, else
// $XDG_CONFIG_HOME/icn/icn-p11.conf (default ~/.config), else /etc/icn/icn-p11.conf,
// else the defaults. The file that $ICN_P11_CONF names must exist.
func Load() (*Config, error) {
	if name := environment.Get("ICN_P11_CONF"); name != "" {
		data, err := os.ReadFile(name)
		if err != nil {
			cure := "correct ICN_P11_CONF, or unset it to have the usual places searched"
			if errors.Is(err, fs.ErrPermission) {
				cure = "let this user read it, or unset ICN_P11_CONF"
			}
			return nil, unreadable(fmt.Sprintf("%s, named by ICN_P11_CONF", name), err, cure)
		}
		return Parse(name, data)
	}
	names := []string{systemFile}
	if dir := xdg("XDG_CONFIG_HOME", ".config"); dir != "" {
		names = append([]string{filepath.Join(dir, "icn", "icn-p11.conf")}, names...)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		switch {
		case err == nil:
			return Parse(name, data)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, unreadable(name, err, "let this user read it, or name another file by ICN_P11_CONF")
		}
	}
	return Default().stored()
}

func unreadable(what string, err error, cure string) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return advice.With(fmt.Errorf("configuration: %s: %w", what, err), cure)
}

// stored makes sure that there is a store.
func (c *Config) stored() (*Config, error) {
	if c.SealedBlobDir == "" {
		return nil, advice.With(errors.New("there is no place for the tokens: this user has no home directory"), "set sealed_blob_dir, or HOME")
	}
	return c, nil
}

// Parse reads a configuration file. Errors name the file and the line.
func Parse(name string, data []byte) (*Config, error) {
	var f file
	dec := toml.NewDecoder(strings.NewReader(string(data)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nil, located(name, err)
	}
	c := Default()
	c.Source = name
	p := parser{name: name, data: data}

	set(&c.DevicePath, f.DevicePath)
	if err := tpm.CheckDevice(c.DevicePath); err != nil {
		p.check(false, "device_path", fmt.Sprintf("%q: %v", c.DevicePath, err))
	}
	set(&c.PlatformBinding, f.PlatformBinding)
	set(&c.Attestation, f.Attestation)
	set(&c.FreeSlot, f.FreeSlot)
	set(&c.LogFile, f.LogFile)
	set(&c.AuditLog, f.AuditLog)
	set(&c.Statistics, f.Statistics)
	if f.KeyHandle != nil {
		p.check(*f.KeyHandle >= 0x81000000 && *f.KeyHandle <= 0x81FFFFFF, "key_handle",
			"a persistent handle is between 0x81000000 and 0x81FFFFFF")
		c.KeyHandle = uint32(*f.KeyHandle)
	}
	if f.PCRs != nil {
		seen := map[int]bool{}
		for _, n := range *f.PCRs {
			p.check(n >= 0 && n <= 23 && !seen[n], "pcrs", "PCRs are numbers between 0 and 23, each given once")
			seen[n] = true
		}
		p.check(len(seen) > 0, "pcrs", "at least one PCR is needed")
		c.PCRs = *f.PCRs
	}
	p.choice(&c.PCRBank, f.PCRBank, []string{"pcr_bank"}, "sha1", "sha256", "sha384", "sha512")
	p.pointEncoding(&c.ECPointEncoding, f.ECPointEncoding, "ec_point_encoding")
	if f.SealedBlobDir != nil {
		p.check(filepath.IsAbs(*f.SealedBlobDir), "sealed_blob_dir", `the path must be absolute: a module runs in any directory, and "~" is not expanded`)
		c.SealedBlobDir = filepath.Clean(*f.SealedBlobDir)
	}
	p.autoLock(&c.AutoLockTimeout, f.AutoLockTimeoutSecs, "auto_lock_timeout_secs")
	var level string
	p.choice(&level, f.LogLevel, []string{"log_level"}, "debug", "info", "warn", "error")
	if level != "" && p.err == nil {
		if err := c.LogLevel.UnmarshalText([]byte(level)); err != nil {
			return nil, fmt.Errorf("%s: log_level: %w", name, err)
		}
	}
	if f.LogFile != nil && c.LogFile != "" && c.LogFile != "stderr" {
		p.check(filepath.IsAbs(c.LogFile), "log_file", `an absolute path, "stderr", or "" for syslog`)
	}
	p.choice(&c.LogFormat, f.LogFormat, []string{"log_format"}, "text", "json")
	if c.AuditLog != "" && c.AuditLog != audit.Journal {
		p.check(filepath.IsAbs(c.AuditLog), "audit_log", `an absolute path, "journal", or "" for none`)
	}
	p.tokens(c, f.Token)
	if p.err != nil {
		return nil, p.err
	}
	return c.stored()
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// located adds the line that the TOML library found to its error.
func located(name string, err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) && len(strict.Errors) > 0 {
		line, _ := strict.Errors[0].Position()
		return fmt.Errorf("%s:%d: unknown key %s", name, line, strings.Join(strict.Errors[0].Key(), "."))
	}
	var de *toml.DecodeError
	if errors.As(err, &de) {
		line, _ := de.Position()
		what := strings.TrimPrefix(de.Error(), "toml: ")
		// The library speaks of Go's types to whoever wrote the file.
		if want := expected(de.Key()); want != "" && (strings.Contains(what, "cannot decode") || strings.Contains(what, "cannot store")) {
			what = want + " is expected"
		}
		if key := strings.Join(de.Key(), "."); key != "" {
			what = key + ": " + what
		}
		return fmt.Errorf("%s:%d: %s", name, line, what)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// expected describes the values that a key takes.
func expected(key toml.Key) string {
	t := reflect.TypeFor[file]()
	for _, name := range key {
		if t.Kind() == reflect.Map {
			t = t.Elem()
			continue
		}
		fields := reflect.VisibleFields(t)
		n := slices.IndexFunc(fields, func(f reflect.StructField) bool { return f.Tag.Get("toml") == name })
		if n < 0 {
			return ""
		}
		if t = fields[n].Type; t.Kind() == reflect.Pointer {
			t = t.Elem()
			break
		}
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int64:
		return "a whole number"
	case reflect.Slice:
		return "a list of whole numbers, such as [0, 7],"
	case reflect.String:
		return "a text in quotes"
	case reflect.Map, reflect.Struct:
		return "a table [token.LABEL]"
	}
	return ""
}

// parser keeps the first error about a value.
type parser struct {
	name string
	data []byte
	err  error
}

func (p *parser) check(ok bool, key, what string) { p.checkAt(ok, what, key) }

// checkAt is check for a key at the end of a path of tables.
func (p *parser) checkAt(ok bool, what string, path ...string) {
	if !ok && p.err == nil {
		p.err = fmt.Errorf("%s:%d: %s: %s", p.name, p.line(path...), strings.Join(path, "."), what)
	}
}

func (p *parser) choice(to, from *string, path []string, values ...string) {
	if from == nil {
		return
	}
	p.checkAt(slices.Contains(values, *from), fmt.Sprintf("%q is none of %s", *from, strings.Join(values, ", ")), path...)
	*to = *from
}

func (p *parser) pointEncoding(to, from *string, path ...string) {
	p.choice(to, from, path, "der", "raw")
}

func (p *parser) autoLock(to *time.Duration, from *int64, path ...string) {
	if from == nil {
		return
	}
	const day = 86400
	p.checkAt(*from >= 0 && *from <= day, "between 0 and 86400 seconds", path...)
	*to = time.Duration(*from) * time.Second
}

// line finds where a key is set or a table begins, or the nearest of the tables
// around it.
func (p *parser) line(path ...string) int {
	var ast unstable.Parser
	ast.Reset(p.data)
	line, depth := 1, 0
	var table []string
	for ast.NextExpression() {
		e := ast.Expression()
		var key []string
		at := 0
		for it := e.Key(); it.Next(); {
			k := it.Node()
			if at == 0 {
				at = ast.Shape(k.Raw).Start.Line
			}
			key = append(key, string(k.Data))
		}
		switch e.Kind {
		case unstable.KeyValue:
			key = append(slices.Clone(table), key...)
		case unstable.Table, unstable.ArrayTable:
			table = key
		default:
			continue
		}
		if n := min(len(key), len(path)); n > depth && slices.Equal(key[:n], path[:n]) {
			line, depth = at, n
		}
	}
	return line
}

// Binding is what new tokens are bound to, nil for nothing.
func (c *Config) Binding() *sealstore.BindingSpec {
	if !c.PlatformBinding {
		return nil
	}
	return &sealstore.BindingSpec{Bank: c.PCRBank, PCRs: c.PCRs}
}
