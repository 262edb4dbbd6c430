package p11

import (
	"crypto/rand"
	"crypto/sha3"
	"crypto/sha512"
	"crypto/subtle"
	"sync"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// entropyPool collects what C_SeedRandom gives. It can only add: every
// random number also holds the operating system's and the TPM's.
type entropyPool struct {
	mu   sync.Mutex
	data [sha512.Size]byte
}

func (p *entropyPool) stir(seed []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := sha512.New()
	h.Write(p.data[:])
	h.Write(seed)
	h.Sum(p.data[:0])
	h.Reset()
}

func (p *entropyPool) wipe() {
	p.mu.Lock()
	defer p.mu.Unlock()
	secmem.Wipe(p.data[:])
}

const tpmEntropy = 32 // bytes taken from the TPM for one request

// random fills out with the operating system's random bytes, XORed with a
// SHAKE256 stream over bytes from the TPM, the operating system and the pool:
// one source that can be trusted is enough.
func (l *library) random(out []byte) error {
	buf, err := secmem.New(2*tpmEntropy + sha512.Size)
	if err != nil {
		return err
	}
	defer buf.Destroy()
	in := buf.Bytes()
	if err := l.tpm.Random(in[:tpmEntropy]); err != nil {
		return err
	}
	rand.Read(in[tpmEntropy : 2*tpmEntropy])
	l.pool.mu.Lock()
	copy(in[2*tpmEntropy:], l.pool.data[:])
	l.pool.mu.Unlock()
	rand.Read(out)
	secmem.Compute(func() {
		var block [64]byte
		x := sha3.NewSHAKE256()
		x.Write(in)
		for rest := out; len(rest) > 0; {
			n := min(len(rest), len(block))
			x.Read(block[:n])
			subtle.XORBytes(rest[:n], rest[:n], block[:n])
			rest = rest[n:]
		}
		secmem.Wipe(block[:])
		x.Reset()
	})
	return nil
}

// SeedRandom is C_SeedRandom (section 5.19.1).
func (m *Module) SeedRandom(h SessionHandle, seed []byte) error {
	l, _, err := m.withSession(h)
	if err != nil {
		return err
	}
	defer l.leave(h)
	l.pool.stir(seed)
	return nil
}

// GenerateRandom is C_GenerateRandom (section 5.19.2).
func (m *Module) GenerateRandom(h SessionHandle, out []byte) error {
	l, sess, err := m.withSession(h)
	if err != nil {
		return err
	}
	defer l.leave(h)
	if len(out) == 0 {
		return nil
	}
	return l.fail("making random numbers", sess.slot.serial, l.random(out))
}
