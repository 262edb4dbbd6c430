package config

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/pinsource"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// Token is how the module serves one token.
type Token struct {
	AutoLockTimeout time.Duration
	ECPointEncoding string
	PINSource       *pinsource.Source // the module logs in by itself with it
	Hide            bool              // no slot
	ReadOnly        bool
	Slot            *uint32 // fixed slot id
	Where           string  // file and line of the token's table, "" without one
}

// tokenTable mirrors a [token.LABEL] table.
type tokenTable struct {
	AutoLockTimeoutSecs *int64  `toml:"auto_lock_timeout_secs"`
	ECPointEncoding     *string `toml:"ec_point_encoding"`
	PINSource           *string `toml:"pin_source"`
	Hide                *bool   `toml:"hide"`
	ReadOnly            *bool   `toml:"read_only"`
	Slot                *int64  `toml:"slot"`
}

// Token gives the settings of the token with a label.
func (c *Config) Token(label string) Token {
	if t, ok := c.Tokens[label]; ok {
		return t
	}
	return Token{AutoLockTimeout: c.AutoLockTimeout, ECPointEncoding: c.ECPointEncoding}
}

// FixedSlots are the slot numbers that tables give to tokens, which no new
// token may get.
func (c *Config) FixedSlots() []uint32 {
	var all []uint32
	for _, t := range c.Tokens {
		if t.Slot != nil {
			all = append(all, *t.Slot)
		}
	}
	return all
}

func (p *parser) tokens(c *Config, tables map[string]tokenTable) {
	lines := map[string]int{}
	for label := range tables {
		lines[label] = p.line("token", label)
	}
	slots := map[uint32]string{}
	c.Tokens = map[string]Token{}
	inOrder := func(a, b string) int { return cmp.Or(cmp.Compare(lines[a], lines[b]), cmp.Compare(a, b)) }
	for _, label := range slices.SortedFunc(maps.Keys(tables), inOrder) {
		f := tables[label]
		path := func(key string) []string { return []string{"token", label, key} }
		p.checkAt(label != "" && len(label) <= sealstore.MaxLabel && strings.TrimRight(label, " ") == label,
			fmt.Sprintf("a label has 1 to %d bytes and no blanks at its end", sealstore.MaxLabel), "token", label)
		t := c.Token(label)
		t.Where = fmt.Sprintf("%s:%d", p.name, lines[label])
		p.autoLock(&t.AutoLockTimeout, f.AutoLockTimeoutSecs, path("auto_lock_timeout_secs")...)
		p.pointEncoding(&t.ECPointEncoding, f.ECPointEncoding, path("ec_point_encoding")...)
		set(&t.Hide, f.Hide)
		set(&t.ReadOnly, f.ReadOnly)
		if f.PINSource != nil {
			src, err := pinsource.Parse(*f.PINSource)
			if err != nil {
				p.checkAt(false, err.Error(), path("pin_source")...)
			}
			p.checkAt(err != nil || !src.Prompt(), "a module has nobody to ask: name another source", path("pin_source")...)
			t.PINSource = &src
		}
		if f.Slot != nil {
			p.checkAt(*f.Slot >= 0 && *f.Slot <= sealstore.MaxSlot, fmt.Sprintf("between 0 and %d", sealstore.MaxSlot), path("slot")...)
			n := uint32(*f.Slot)
			other, taken := slots[n]
			p.checkAt(!taken, fmt.Sprintf("slot %d is that of token %q already", n, other), path("slot")...)
			slots[n] = label
			t.Slot = &n
		}
		c.Tokens[label] = t
	}
}
