// Package bootlog tells from the firmware's event log what was measured into
// PCRs, and what was measured differently at another boot (TCG PC Client
// Platform Firmware Profile, section 10).
//
// A log only informs. Nobody has signed it, so it is compared with the PCRs
// before it is believed.
package bootlog

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
)

// Path is where the kernel shows the log of the first TPM, to root.
const Path = "/sys/kernel/security/tpm0/binary_bios_measurements"

// Max is the size of the largest log that is read, in bytes.
const Max = 4 << 20

// Log is an event log of one boot.
type Log struct{ events *tcg.EventLog }

// Parse reads a log as the kernel has it.
func Parse(data []byte) (*Log, error) {
	if len(data) > Max {
		return nil, fmt.Errorf("an event log of %d bytes; %d is the most", len(data), Max)
	}
	l, err := tcg.ParseEventLog(data, tcg.ParseOpts{AllowPadding: true})
	if err != nil {
		return nil, fmt.Errorf("the event log is malformed: %w", err)
	}
	return &Log{l}, nil
}

var hashes = map[string]register.HashAlg{
	"sha1": register.HashSHA1, "sha256": register.HashSHA256, "sha384": register.HashSHA384,
}

// ErrOther is in the error of Check.
var ErrOther = errors.New("the event log does not lead to these PCR values: it is of another boot or another TPM, or something was measured after it")

// Check replays the log and compares the result with the values of PCRs.
// Fails with ErrOther if they differ.
func (l *Log) Check(bank string, pcrs []int, values [][]byte) error {
	alg, ok := hashes[bank]
	if !ok || !slices.Contains(l.events.Algs, alg) {
		return fmt.Errorf("the event log has no digests for the %s bank", bank)
	}
	var want []register.MR
	for i, n := range pcrs {
		// Without events a PCR has the value that it was reset to.
		if !slices.ContainsFunc(l.events.Events(alg), func(e tcg.Event) bool { return e.Index == n && e.Type != tcg.NoAction }) {
			if slices.ContainsFunc(values[i], func(b byte) bool { return b != 0 }) {
				return ErrOther
			}
			continue
		}
		want = append(want, value{n, values[i], alg.CryptoHash()})
	}
	if _, err := l.events.Verify(want); err != nil {
		return fmt.Errorf("%w (%w)", ErrOther, err)
	}
	return nil
}

// value is a PCR as go-eventlog wants it.
type value struct {
	pcr    int
	digest []byte
	hash   crypto.Hash
}

func (v value) Idx() int             { return v.pcr }
func (v value) Dgst() []byte         { return v.digest }
func (v value) DgstAlg() crypto.Hash { return v.hash }

// Diff describes the events of a PCR that only one of two logs has, in their
// order; what comes first and last in both is left out.
func Diff(before, now *Log, bank string, pcr int) (gone, added []string) {
	a, b := before.of(bank, pcr), now.of(bank, pcr)
	same := func(x, y tcg.Event) bool { return x.Type == y.Type && bytes.Equal(x.Digest, y.Digest) }
	for len(a) > 0 && len(b) > 0 && same(a[0], b[0]) {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && same(a[len(a)-1], b[len(b)-1]) {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	for _, e := range a {
		gone = append(gone, describe(e))
	}
	for _, e := range b {
		added = append(added, describe(e))
	}
	return gone, added
}

// of lists the events that were measured into a PCR.
func (l *Log) of(bank string, pcr int) []tcg.Event {
	return slices.DeleteFunc(l.events.Events(hashes[bank]), func(e tcg.Event) bool { return e.Index != pcr || e.Type == tcg.NoAction })
}

// describe names an event, and tells what it is about as far as its data says.
func describe(e tcg.Event) string {
	const digits = 8
	s := e.Type.TCGString()
	if about := subject(e); about != "" {
		s += " " + about
	}
	return fmt.Sprintf("%s (digest %x…)", s, e.Digest[:min(digits, len(e.Digest))])
}

func subject(e tcg.Event) string {
	switch e.Type {
	case tcg.EFIVariableDriverConfig, tcg.EFIVariableBoot, tcg.EFIVariableBoot2, tcg.EFIVariableAuthority:
		if v, err := tcg.ParseUEFIVariableData(bytes.NewReader(e.Data)); err == nil {
			return quote(v.VarName())
		}
	case tcg.EFIBootServicesApplication, tcg.EFIBootServicesDriver, tcg.EFIRuntimeServicesDriver:
		return image(e.Data)
	case tcg.Separator, tcg.EFIGPTEvent, tcg.TableOfDevices, tcg.EFIHandoffTables, tcg.EFIHandoffTables2:
	default:
		return quote(text(e.Data))
	}
	return ""
}

// image is the file of a loaded image, from its device path (UEFI
// specification, 10.3.5.4: type 4, subtype 4).
func image(data []byte) string {
	i, err := tcg.ParseEFIImageLoad(bytes.NewReader(data))
	if err != nil {
		return ""
	}
	path, err := i.DevicePath()
	if err != nil {
		return ""
	}
	const mediaFile = 4
	for _, p := range path {
		if p.Type == tcg.MediaDevice && p.Subtype == mediaFile {
			return quote(utf16le(p.Data))
		}
	}
	return ""
}

func utf16le(b []byte) string {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		u = append(u, uint16(b[0])|uint16(b[1])<<8)
	}
	return strings.TrimRight(string(utf16.Decode(u)), "\x00")
}

// text is what an event's data says where it is text, of 8 or 16 bits.
func text(b []byte) string {
	if len(b) >= 4 && len(b)%2 == 0 && b[1] == 0 && b[3] == 0 {
		return utf16le(b)
	}
	return strings.TrimRight(string(b), "\x00")
}

// quote gives text that may go to a terminal, or nothing.
func quote(s string) string {
	const most = 120
	if s == "" || len(s) > most || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		return ""
	}
	return `"` + s + `"`
}
