package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/account"
	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/audit"
	"github.com/InterCooperative-Network/icn-p11/internal/bootlog"
	"github.com/InterCooperative-Network/icn-p11/internal/config"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// Results of a check.
const (
	resultOK   = "ok"
	resultWarn = "warn"
	resultFail = "fail"
)

// check is one thing that the doctor looked at.
type check struct {
	Name   string `json:"check"`
	Result string `json:"result"`
	Detail string `json:"detail"`
	Cure   string `json:"cure,omitempty"`
}

// doctor collects checks.
type doctor struct {
	eventLog string
	checks   []check
}

func (d *doctor) add(name, result, cure, detail string, args ...any) {
	d.checks = append(d.checks, check{name, result, fmt.Sprintf(detail, args...), cure})
}

// addError is add for an error that may carry its cure.
func (d *doctor) addError(name, result string, err error) {
	what, cure := advice.Split(err)
	d.add(name, result, cure, "%s", what)
}

func (d *doctor) failed() bool {
	return slices.ContainsFunc(d.checks, func(c check) bool { return c.Result == resultFail })
}

func (a *app) doctorCommand() *cobra.Command {
	var asJSON bool
	var eventLog string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what is wrong, and what to do about it",
		Long: `Check the configuration, the TPM, the store and the registration with p11-kit.
Nothing is changed. The exit status is 1 if a check failed.`,
		Example: "  icn-p11 doctor",
		Args:    noArgs,
		RunE: a.does(func(*cobra.Command, []string) error {
			d := &doctor{eventLog: eventLog}
			_, end := a.progress("Checking")
			d.run(a)
			end()
			if err := a.report(d, asJSON); err != nil {
				return err
			}
			if d.failed() {
				return errReported
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&eventLog, "event-log", bootlog.Path, "the firmware's event log")
	return cmd
}

func (a *app) report(d *doctor, asJSON bool) error {
	if asJSON {
		return a.json(struct {
			OK     bool    `json:"ok"`
			Checks []check `json:"checks"`
		}{!d.failed(), d.checks})
	}
	for _, c := range d.checks {
		if _, err := fmt.Fprintf(a.out, "%-4s  %s: %s\n", c.Result, c.Name, c.Detail); err != nil {
			return err
		}
		if c.Cure != "" {
			fmt.Fprintf(a.out, "      -> %s\n", c.Cure)
		}
	}
	return nil
}

func (d *doctor) run(a *app) {
	if p := d.configuration(a); p != nil {
		reachable := d.chip(p)
		d.directory(p)
		d.tokens(p, reachable)
		d.audit(p.cfg)
	}
	d.memory()
	d.registration()
}

// audit tells whether signatures can be recorded, without which there are none.
func (d *doctor) audit(cfg *config.Config) {
	const name = "audit log"
	if cfg.AuditLog == "" {
		return
	}
	if err := audit.Check(cfg.AuditLog); err != nil {
		what, cure := advice.Split(err)
		d.add(name, resultFail, cure, "%s", strings.TrimPrefix(what, name+": "))
		return
	}
	d.add(name, resultOK, "", "%s", cfg.AuditLog)
}

// configuration reads the configuration, without which little can be checked.
func (d *doctor) configuration(a *app) *place {
	cfg, err := config.Load()
	var p *place
	if err == nil {
		p, err = a.openWith(cfg)
	}
	if err != nil {
		what, cure := advice.Split(err)
		if cure == "" {
			cure = "correct it; icn-p11.conf(5) lists the keys"
		}
		d.add("configuration", resultFail, cure, "%s", what)
		return nil
	}
	source := cfg.Source
	if source == "" {
		source = "built-in defaults"
	}
	device := cfg.DevicePath
	if device == "" {
		device = p.tpm.String() + " (default)"
	}
	logTo := cfg.LogFile
	if logTo == "" {
		logTo = "syslog"
	}
	d.add("configuration", resultOK, "", "%s: device_path %s, key_handle 0x%08x, sealed_blob_dir %s, auto_lock_timeout_secs %d, ec_point_encoding %s, free_slot %t, "+
		"platform_binding %t, pcrs %v, pcr_bank %s, attestation %t, log_level %s, log_file %s, log_format %s, audit_log %q, statistics %t",
		source, device, cfg.KeyHandle, cfg.SealedBlobDir, int(cfg.AutoLockTimeout.Seconds()), cfg.ECPointEncoding, cfg.FreeSlot,
		cfg.PlatformBinding, cfg.PCRs, cfg.PCRBank, cfg.Attestation, strings.ToLower(cfg.LogLevel.String()), logTo,
		cfg.LogFormat, cfg.AuditLog, cfg.Statistics)
	return p
}

// chip asks the TPM about itself.
func (d *doctor) chip(p *place) bool {
	r, err := p.tpm.Check()
	p.tpm.Release()
	path := p.tpm.String()
	if err != nil {
		what, cure := advice.Split(err)
		switch {
		case cure != "":
		case errors.Is(err, sealstore.ErrUnavailable):
			cure = "make sure that it is there and that nothing else keeps it busy"
		default:
			cure = "look for the return code in the TPM 2.0 library specification, part 2, section 6.6"
		}
		d.add("TPM", resultFail, cure, "%s", what)
		return false
	}
	d.add("TPM", resultOK, "", "%s, manufacturer %s, firmware %s", path, r.Manufacturer, r.Firmware)
	if strings.HasPrefix(path, "/") && !strings.Contains(filepath.Base(path), "tpmrm") {
		d.add("TPM", resultWarn, "use /dev/tpmrm0 (Linux 4.12 or later)", "%s has no resource manager: one program at a time can use it, and others' leftovers can fill the TPM", path)
	}
	l := r.Lockout
	detail := fmt.Sprintf("%d of %d wrong PINs are remembered; %s", l.Counter, l.Max, forgiven(l))
	switch {
	case l.InLockout:
		d.add("TPM lockout", resultFail, "wait, or end it with \"icn-p11 lockout reset\"", "every PIN is refused: %s", detail)
	case l.Interval == 0:
		d.add("TPM lockout", resultWarn, "", "%s", detail)
	case l.Counter > 0:
		d.add("TPM lockout", resultWarn, "all users of this TPM share the counter; make sure that the PIN is right", "%s", detail)
	default:
		d.add("TPM lockout", resultOK, "", "%s", detail)
	}
	return d.rootKey(p, r.Root)
}

// rootKey judges the object at key_handle; false if no storage root key can be
// had at all.
func (d *doctor) rootKey(p *place, s tpm.RootState) bool {
	const name = "storage root key"
	const move = "set key_handle to a free handle (tpm2_getcap handles-persistent lists those in use), then \"icn-p11 srk persist\""
	key := fmt.Sprintf("0x%08x", p.cfg.KeyHandle)
	switch state := srkState(s); {
	case state == srkOurs:
		d.add(name, resultOK, "", "at %s, Name %x", key, s.Name)
	case state == srkUnknown:
		d.add(name, resultOK, "", "at %s, Name %x; the owner hierarchy has a password, so it was not compared with the key that the TPM creates", key, s.Name)
	case state == srkNone && s.OwnerPassword:
		d.add(name, resultFail, "icn-p11 srk persist --owner-auth-source SRC", "none at %s, and the owner hierarchy has a password, so none can be created", key)
		return false
	case state == srkNone:
		d.add(name, resultOK, "", "none at %s: it is created when needed, Name %x", key, s.Derived)
	case s.OwnerPassword: // what is there is of no use
		d.add(name, resultFail, move+" --owner-auth-source SRC", "%s: %s, Name %x; the owner hierarchy has a password, so none can be created", key, state, s.Name)
		return false
	case state == srkPassword:
		d.add(name, resultWarn, "icn-p11 srk evict, then icn-p11 srk persist", "the one at %s has a password: one is created for each use, which takes time", key)
	case state == srkOther:
		d.add(name, resultWarn, move, "the key at %s, Name %x, is not the one that this TPM creates, Name %x: it serves only the tokens that were sealed under it", key, s.Name, s.Derived)
	default:
		d.add(name, resultWarn, move, "the object at %s, Name %x, is foreign: a storage root key is created for each use, which takes time", key, s.Name)
	}
	return true
}

// memory tells how well secrets can be kept from other programs.
func (d *doctor) memory() {
	const name = "secret memory"
	buf, err := secmem.New(32)
	if err != nil {
		d.add(name, resultFail, "raise RLIMIT_MEMLOCK (ulimit -l)", "%v", err)
		return
	}
	buf.Destroy()
	switch kind := secmem.Kind(); kind {
	case "memfd_secret":
		d.add(name, resultOK, "", "memfd_secret: not even the kernel's own mappings show it")
	case "mlock":
		d.add(name, resultWarn, "boot with secretmem.enable=1 (Linux 5.14 or later) or allow memfd_secret in the container's seccomp profile",
			"locked pages: never swapped, but readable by root")
	default:
		d.add(name, resultWarn, "raise RLIMIT_MEMLOCK (ulimit -l), so that pages can be locked", "%s pages: secrets may be swapped to disk", kind)
	}
}

// directory checks owner and mode of the store, and looks for leftovers.
func (d *doctor) directory(p *place) {
	const name = "store"
	dir := p.cfg.SealedBlobDir
	st, err := os.Stat(dir)
	if err != nil || !st.IsDir() {
		if err := p.store.Writable(); err != nil {
			d.addError(name, resultFail, err)
			return
		}
		d.add(name, resultOK, "", "%s does not exist yet; the first token makes it", dir)
		return
	}
	uid, gid := owners(st)
	shared := st.Mode().Perm()&0o050 == 0o050 // with the group
	var loose, mixed, stray, unreadable, closed, locked []string
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			unreadable = append(unreadable, path)
			return nil
		}
		if strings.HasPrefix(e.Name(), ".tmp-") {
			stray = append(stray, path)
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return nil // gone since
		}
		if info.Mode().Perm()&0o027 != 0 {
			loose = append(loose, path)
		}
		need := fs.FileMode(0o600)
		if e.IsDir() {
			need = 0o700
		}
		u, g := owners(info)
		if u == uid && info.Mode().Perm()&need != need {
			locked = append(locked, path)
		}
		if u != uid {
			mixed = append(mixed, path)
		}
		if e.Name() != "lock" && (g != gid || info.Mode().Perm()&0o040 == 0) {
			closed = append(closed, path)
		}
		return nil
	})
	owner, group := account.UserName(uid), account.GroupName(gid)
	mine := int(uid) == os.Geteuid()
	healthy := true
	report := func(paths []string, result, cure, what string) {
		if len(paths) > 0 {
			healthy = false
			d.add(name, result, cure, "%s: %s", what, some(paths))
		}
	}
	if mine {
		report(locked, resultFail, "chmod -R u=rwX "+dir, "closed to "+owner+", whose store this is")
		unreadable = nil // told by mode or owner
	}
	report(unreadable, resultFail, "run this as "+owner+", or let that user's group read it: chgrp -R GROUP "+dir+"; chmod -R g=rX "+dir, "cannot be read")
	asOwner, asRoot := "as "+owner+": ", "as root: "
	if mine || os.Geteuid() == 0 {
		asOwner = ""
	}
	if os.Geteuid() == 0 {
		asRoot = ""
	}
	report(loose, resultFail, asOwner+"chmod -R u=rwX,g-w,o= "+dir, "open to other users")
	report(mixed, resultFail, fmt.Sprintf("%schown -R %s %s", asRoot, owner, dir), "belongs to another user than "+owner+", who has the store")
	if shared {
		report(closed, resultWarn, fmt.Sprintf("chgrp -R %s %s; chmod -R g=rX %s", group, dir, dir), "not readable by group "+group+", which may read the store")
	}
	report(stray, resultWarn, "the next change to the store removes it", "left by a program that was killed (or is writing just now)")
	switch {
	case !mine && healthy:
		d.add(name, resultOK, "", "%s belongs to %s: tokens can be used, and changed by %s alone", dir, owner, owner)
		return
	case !mine:
		return
	case unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS) != nil:
		healthy = false
		d.add(name, resultWarn, "mount the file system read-write to change tokens; signing goes on without", "%s cannot be written", dir)
	}
	switch {
	case healthy && shared:
		d.add(name, resultOK, "", "%s, accessible to %s and readable by group %s", dir, owner, group)
	case healthy:
		d.add(name, resultOK, "", "%s, accessible to %s alone", dir, owner)
	}
}

func owners(info fs.FileInfo) (uid, gid uint32) {
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		return sys.Uid, sys.Gid
	}
	return uint32(os.Geteuid()), uint32(os.Getegid())
}

// some names the first few of many.
func some(paths []string) string {
	const few = 3
	if len(paths) <= few {
		return strings.Join(paths, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(paths[:few], ", "), len(paths)-few)
}

// restore is the cure for what is damaged.
const restore = "restore it from a backup of this machine"

// tokens opens the public secret of every token, and looks for damage.
func (d *doctor) tokens(p *place, reachable bool) {
	const name = "tokens"
	census, err := p.store.Scan()
	if err != nil {
		d.addError(name, resultFail, err)
		return
	}
	tokens, left := census.Tokens, census.LeftOut
	for _, l := range left {
		what, cure := advice.Split(l.Err)
		if cure == "" {
			cure = restore
		}
		d.add("token "+l.Serial, resultFail, cure, "left out: %s", what)
	}
	d.settings(p, tokens)
	if len(tokens) == 0 {
		if len(left) > 0 {
			return
		}
		d.add(name, resultOK, "", "none; \"icn-p11 init\" makes one")
		return
	}
	if !reachable {
		d.add(name, resultWarn, "make the TPM reachable first", "%s not looked into", count(len(tokens), "token"))
		return
	}
	damaged := map[string]bool{}
	for _, t := range tokens {
		damaged[t.Serial] = d.damage(t, p)
	}
	p.tpm.Release()
	m, err := startModule()
	if err != nil {
		d.add(name, resultFail, "", "%v", err)
		return
	}
	for _, t := range tokens {
		d.token(t, m, damaged[t.Serial])
	}
	m.stop()
	for _, t := range tokens {
		d.binding(t, p)
	}
	p.tpm.Release()
}

// settings tells what the configuration says about single tokens.
func (d *doctor) settings(p *place, tokens []sealstore.TokenInfo) {
	for _, label := range slices.Sorted(maps.Keys(p.cfg.Tokens)) {
		s, name := p.cfg.Tokens[label], "settings of "+printable(label)
		if !slices.ContainsFunc(tokens, func(t sealstore.TokenInfo) bool { return t.Label == label }) {
			d.add(name, resultWarn, "correct the label or remove the table", "%s: no token has this label", s.Where)
			continue
		}
		text := fmt.Sprintf("%s: auto_lock_timeout_secs %d, ec_point_encoding %s, hide %t, read_only %t",
			s.Where, int(s.AutoLockTimeout.Seconds()), s.ECPointEncoding, s.Hide, s.ReadOnly)
		if s.Slot != nil {
			text += fmt.Sprintf(", slot %d", *s.Slot)
		}
		if s.PINSource != nil {
			text += ", pin_source " + s.PINSource.String()
		}
		d.add(name, resultOK, "", "%s", text)
	}
	_, conflicts := p.slots()
	for _, err := range conflicts {
		what, cure := advice.Split(err)
		d.add("slots", resultFail, cure, "%s", what)
	}
}

// binding tells what of the platform has changed since a token was bound.
func (d *doctor) binding(t sealstore.TokenInfo, p *place) {
	name := "platform binding of " + printable(t.Label)
	s, err := p.binding(t, d.eventLog)
	if err != nil {
		d.add(name, resultFail, "", "%v", explain(err))
		return
	}
	if !s.Bound && t.NoPIN {
		d.add(name, resultWarn, fmt.Sprintf("icn-p11 pcr bind %s, or give it a user PIN: icn-p11 pin %s --unblock", t.Serial, t.Serial),
			"none, and the token needs no PIN: whoever starts this machine with any system can sign")
	}
	if !s.Bound {
		return
	}
	if s.Unbound > 0 {
		d.add(name, resultWarn, fmt.Sprintf("icn-p11 pcr bind %s", t.Serial), "%s not bound, left by an interrupted change", count(s.Unbound, "key"))
	}
	if s.Open {
		var n []int
		for _, r := range s.PCRs {
			n = append(n, r.PCR)
		}
		d.add(name, resultOK, "", "PCRs %s of the %s bank have approved values", numbers(n), s.Bank)
		return
	}
	var changes []string
	for _, r := range s.PCRs {
		if !r.Changed {
			continue
		}
		c := fmt.Sprintf("PCR %d (%s) is %s, sealed to %s", r.PCR, s.Bank, r.Now, strings.Join(slices.Compact(slices.Clone(r.Approved)), " or "))
		if len(r.Gone) > 0 {
			c += "; not measured any more: " + strings.Join(r.Gone, ", ")
		}
		if len(r.Added) > 0 {
			c += "; measured now: " + strings.Join(r.Added, ", ")
		}
		changes = append(changes, c)
	}
	if s.EventLog != "" {
		changes = append(changes, "event log: "+s.EventLog)
	}
	d.add(name, resultFail, fmt.Sprintf("where the change is meant: icn-p11 pcr rebind %s", t.Serial), "%s", strings.Join(changes, "; "))
}

// damage names the files of a token that are damaged. An error of another
// kind shows in what follows.
func (d *doctor) damage(t sealstore.TokenInfo, p *place) bool {
	tok, err := p.store.Token(t.Serial)
	if err != nil {
		return false
	}
	damage, _ := tok.Check()
	for _, x := range damage {
		d.add("token "+printable(t.Label), resultFail, restore, "%v", x.Err)
	}
	return len(damage) > 0
}

func (d *doctor) token(t sealstore.TokenInfo, m *module, damaged bool) {
	name := "token " + printable(t.Label)
	k, err := m.identity(t)
	err = cause(err)
	switch {
	case damaged && (err == nil || errors.Is(err, errNoIdentity) || errors.Is(err, sealstore.ErrIntegrity) || errors.Is(err, sealstore.ErrBlob)):
		// Told file by file.
	case errors.Is(err, errNoIdentity):
		d.add(name, resultWarn, "make a key, or label one "+identityLabel, "%v", err)
	case errors.Is(err, sealstore.ErrParent), errors.Is(err, sealstore.ErrBlob):
		d.add(name, resultFail, "use it on the machine that it was made on; after the TPM was cleared it is lost", "%v", err)
	case errors.Is(err, sealstore.ErrIntegrity):
		d.add(name, resultFail, restore, "%v", err)
	case err != nil:
		d.add(name, resultFail, "", "%v", err)
	case !t.UserPIN && !t.NoPIN:
		d.add(name, resultWarn, fmt.Sprintf("icn-p11 pin %s --unblock", t.Serial), "serial number %s: the user PIN is not set", t.Serial)
	default:
		d.add(name, resultOK, "", "serial number %s, %s", t.Serial, k.did())
	}
}
