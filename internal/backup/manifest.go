package backup

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/InterCooperative-Network/icn-p11/internal/did"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// Kind is what a backup holds of a token.
type Kind string

const (
	// Recoverable is everything, keys included: it is restored onto any TPM.
	Recoverable Kind = "recoverable"
	// Sealed is the token's files, sealed as they are: they serve the TPM that
	// they were made on and no other.
	Sealed Kind = "sealed"
)

// Manifest says what a backup holds. It stands before the records, in one
// form: what is accepted encodes to the same bytes again.
type Manifest struct {
	Version      int       `json:"version"`
	Kind         Kind      `json:"kind"`
	Created      time.Time `json:"created"` // of the backup, in whole seconds
	Tool         string    `json:"tool"`
	Token        Token     `json:"token"`
	DID          string    `json:"did,omitempty"` // the token's, where it has one
	Keys         []Key     `json:"keys"`
	Certificates int       `json:"certificates"`
	Data         int       `json:"data"`
	OtherKeys    int       `json:"other_keys"` // secret keys, and private ones of other types
	// TPMKeys are keys that the TPM has made and never gives out: a backup that
	// is Sealed holds them, one that is Recoverable cannot.
	TPMKeys int      `json:"tpm_keys"`
	Records []Record `json:"records"`
}

// Token is what is known of a token besides its objects.
type Token struct {
	Serial  string    `json:"serial"`
	Label   string    `json:"label"`
	Slot    uint32    `json:"slot"`
	Created time.Time `json:"created"`
	UserPIN bool      `json:"user_pin_set"`
	NoPIN   bool      `json:"no_pin"`
	Binding *Binding  `json:"binding,omitempty"`
	// Parent is the Name of the storage root key that it was sealed under, in
	// hexadecimal digits.
	Parent string `json:"storage_root_key"`
}

// Binding is a sealstore.BindingSpec.
type Binding struct {
	Bank string `json:"bank"`
	PCRs []int  `json:"pcrs"`
}

// Key is an Ed25519 key of the token.
type Key struct {
	Label string `json:"label"`
	DID   string `json:"did"`
}

// Record is one piece behind the manifest.
type Record struct {
	Name   string `json:"name"` // of a file, or the identifier of an object
	Size   int    `json:"size"`
	SHA256 string `json:"sha256"`
}

// Names of records that are no objects.
const (
	tokenName   = "token"
	bootLogName = "boot-log"
)

const (
	maxManifest = 16 << 20
	maxRecords  = 1 << 16
	maxText     = 255 // of a label or the tool's version
	maxName     = 68  // of a storage root key
)

func (m *Manifest) encode() ([]byte, error) {
	p, err := json.Marshal(m)
	if err == nil && len(p) > maxManifest {
		err = fmt.Errorf("a manifest of %d bytes; %d is the most", len(p), maxManifest)
	}
	return p, err
}

// decodeManifest accepts what encode writes and nothing else, so that unknown,
// repeated and misspelt members cannot hide in a backup.
func decodeManifest(p []byte) (*Manifest, error) {
	var version struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(p, &version); err != nil {
		return nil, malformed("manifest: %v", err)
	}
	if version.Version != formatVersion {
		return nil, malformed("manifest of version %d, but this program knows %d only", version.Version, formatVersion)
	}
	m := new(Manifest)
	if err := json.Unmarshal(p, m); err != nil {
		return nil, malformed("manifest: %v", err)
	}
	if again, err := m.encode(); err != nil || !bytes.Equal(again, p) {
		return nil, malformed("the manifest is not in the form that is written")
	}
	if err := m.check(); err != nil {
		return nil, malformed("manifest: %v", err)
	}
	return m, nil
}

// check finds what no token has.
func (m *Manifest) check() error {
	switch {
	case m.Kind != Recoverable && m.Kind != Sealed:
		return fmt.Errorf("kind %q", m.Kind)
	case !validTime(m.Created), !validTime(m.Token.Created):
		return errors.New("a time that cannot be shown, or not in whole seconds")
	case !validText(m.Tool):
		return errors.New("the tool's version is no text")
	case m.Certificates < 0, m.Data < 0, m.OtherKeys < 0, m.TPMKeys < 0:
		return errors.New("a negative number")
	case m.Keys == nil, m.Records == nil:
		return errors.New("a list is missing")
	}
	if err := m.Token.check(); err != nil {
		return err
	}
	dids := make([]string, 0, len(m.Keys))
	for _, k := range m.Keys {
		if !validText(k.Label) || !validDID(k.DID) {
			return fmt.Errorf("key %q", k.DID)
		}
		dids = append(dids, k.DID)
	}
	if m.DID != "" && !slices.Contains(dids, m.DID) {
		return errors.New("the DID is none of the keys'")
	}
	return m.checkRecords()
}

func (t *Token) check() error {
	parent, err := hex.DecodeString(t.Parent)
	switch {
	case !sealstore.ValidSerial(t.Serial):
		return fmt.Errorf("serial number %q", t.Serial)
	case len(t.Label) > sealstore.MaxLabel || !utf8.ValidString(t.Label) || strings.TrimRight(t.Label, " ") != t.Label:
		return fmt.Errorf("label %q", t.Label)
	case t.Slot > sealstore.MaxSlot:
		return fmt.Errorf("slot number %d", t.Slot)
	case t.UserPIN && t.NoPIN:
		return errors.New("a user PIN that is not needed")
	case err != nil || len(parent) == 0 || len(parent) > maxName || !validHex(t.Parent, len(parent)):
		return fmt.Errorf("storage root key %q", t.Parent)
	case t.Binding == nil:
		return nil
	}
	if !slices.IsSorted(t.Binding.PCRs) {
		return errors.New("PCRs that do not rise")
	}
	return sealstore.BindingSpec(*t.Binding).Check()
}

// checkRecords: the files first, then the objects by identifier.
func (m *Manifest) checkRecords() error {
	if len(m.Records) > maxRecords {
		return fmt.Errorf("%d records; %d are the most", len(m.Records), maxRecords)
	}
	rest, limit := m.Records, maxObject
	if m.Kind == Sealed {
		limit = maxFile
		if len(rest) == 0 || rest[0].Name != tokenName {
			return errors.New("no token file")
		}
		if rest = rest[1:]; len(rest) > 0 && rest[0].Name == bootLogName {
			rest = rest[1:]
		}
	}
	for i, r := range rest {
		if !validHex(r.Name, len(sealstore.ID{})) || i > 0 && r.Name <= rest[i-1].Name {
			return fmt.Errorf("record %q", r.Name)
		}
	}
	total := 0
	for _, r := range m.Records {
		if r.Size < 1 || r.Size > limit || !validHex(r.SHA256, 32) {
			return fmt.Errorf("record %s of %d bytes", r.Name, r.Size)
		}
		total += r.Size
	}
	if total > maxBackup {
		return tooLarge(total)
	}
	return nil
}

func validHex(s string, n int) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == n && s == strings.ToLower(s)
}

// Text makes a label, which applications may give any bytes, one that a
// manifest holds.
func Text(s string) string {
	s = strings.ToValidUTF8(s, "\ufffd")
	return strings.ToValidUTF8(s[:min(len(s), maxText)], "") // which may have cut a rune
}

func validText(s string) bool { return len(s) <= maxText && utf8.ValidString(s) }

// validDID insists on the form that did.Encode writes.
func validDID(s string) bool {
	key, err := did.Parse(s)
	return err == nil && did.Encode(key) == s
}

func validTime(t time.Time) bool {
	return t.Nanosecond() == 0 && t.Location() == time.UTC && t.Unix() >= 0 && t.Year() <= 9999
}
