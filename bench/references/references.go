// Command references is a library of reference points: what a module has at
// least to do, done in the plain way. They are no limits. What does the same in
// a better way is faster, and icn-p11's own session with the TPM is. The C host
// of make bench loads them beside the modules, so that both are measured in one
// process, in turn.
//
// Each function makes n operations on a message of size bytes, and writes the
// nanoseconds that each took; it returns 0, or 1 if one failed.
package main

import "C"

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
	"unsafe"

	"filippo.io/edwards25519"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

func main() {}

// measure times op n times.
func measure(n C.ulong, took *C.ulong, op func() bool) C.int {
	for i, t := 0, unsafe.Slice(took, n); i < len(t); i++ {
		begin := time.Now()
		ok := op()
		t[i] = C.ulong(time.Since(begin))
		if !ok {
			return 1
		}
	}
	return 0
}

// message is as long as the longest that the host asks for.
var message = make([]byte, 1<<20)

// key is an expanded private key.
var key = func() (k struct {
	private ed25519.PrivateKey
	scalar  *edwards25519.Scalar
	prefix  []byte
	public  []byte
}) {
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err)
	}
	h := sha512.Sum512(priv.Seed())
	k.private, k.public, k.prefix = priv, pub, h[32:]
	if k.scalar, err = new(edwards25519.Scalar).SetBytesWithClamping(h[:32]); err != nil {
		panic(err)
	}
	return k
}()

// sign is RFC 8032, section 5.1.6, and nothing else: no copy of the message,
// no wiping, no look at what another thread does.
func sign(sig, msg []byte) {
	var digest [sha512.Size]byte
	h := sha512.New()
	h.Write(key.prefix)
	h.Write(msg)
	r, _ := new(edwards25519.Scalar).SetUniformBytes(h.Sum(digest[:0]))
	R := new(edwards25519.Point).ScalarBaseMult(r).Bytes()
	h.Reset()
	h.Write(R)
	h.Write(key.public)
	h.Write(msg)
	c, _ := new(edwards25519.Scalar).SetUniformBytes(h.Sum(digest[:0]))
	copy(sig, R)
	copy(sig[32:], new(edwards25519.Scalar).MultiplyAdd(c, key.scalar, r).Bytes())
}

//export reference_edwards25519
func reference_edwards25519(size, n C.ulong, took *C.ulong) C.int {
	sig := make([]byte, ed25519.SignatureSize)
	return measure(n, took, func() bool { sign(sig, message[:size]); return true })
}

//export reference_ed25519
func reference_ed25519(size, n C.ulong, took *C.ulong) C.int {
	return measure(n, took, func() bool { return len(ed25519.Sign(key.private, message[:size])) == ed25519.SignatureSize })
}

//export reference_verify
func reference_verify(size, n C.ulong, took *C.ulong) C.int {
	sig := make([]byte, ed25519.SignatureSize)
	sign(sig, message[:size])
	return measure(n, took, func() bool { return ed25519.Verify(key.public, message[:size], sig) })
}

//export reference_sha256
func reference_sha256(size, n C.ulong, took *C.ulong) C.int {
	return measure(n, took, func() bool { sum := sha256.Sum256(message[:size]); return sum != [32]byte{} })
}

//export reference_random
func reference_random(size, n C.ulong, took *C.ulong) C.int {
	p := make([]byte, size)
	return measure(n, took, func() bool { _, err := rand.Read(p); return err == nil })
}

// reference_fsyncs writes a file and renames it, with a sync of the file and one of
// its directory: what it takes to store an object durably. BENCH_DIR is a
// directory on the file system of the stores.
//
//export reference_fsyncs
func reference_fsyncs(size, n C.ulong, took *C.ulong) C.int {
	dir, err := os.MkdirTemp(os.Getenv("BENCH_DIR"), "fsync")
	if err != nil {
		return 1
	}
	defer os.RemoveAll(dir)
	data := make([]byte, 800) // about the size of a public key's file
	return measure(n, took, func() bool {
		temp := filepath.Join(dir, "temp")
		return errors.Join(
			synced(os.O_CREATE|os.O_EXCL|os.O_WRONLY, temp, data),
			os.Rename(temp, filepath.Join(dir, "file")),
			synced(os.O_RDONLY, dir, nil),
		) == nil
	})
}

func synced(flags int, path string, data []byte) error {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if data != nil {
		if _, err := f.Write(data); err != nil {
			return err
		}
	}
	return f.Sync()
}

// unsealer is a sealed object that stays loaded, and a session that stays open:
// salted, authorising by HMAC, encrypting what the TPM answers.
var unsealer = sync.OnceValues(func() (unseal func() bool, err error) {
	conn, err := net.Dial("unix", os.Getenv("BENCH_TPM"))
	if err != nil {
		return nil, err
	}
	t := socket{conn}
	// What an earlier process left there takes up the TPM's few slots.
	for _, first := range []uint32{0x80000000, 0x02000000} {
		for h := first; h < first+3; h++ {
			tpm2.FlushContext{FlushHandle: tpm2.TPMHandle(h)}.Execute(t)
		}
	}
	srk, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(t)
	if err != nil {
		return nil, err
	}
	public, err := srk.OutPublic.Contents()
	if err != nil {
		return nil, err
	}
	auth := []byte("0123456789abcdef0123456789abcdef")
	parent := tpm2.AuthHandle{Handle: srk.ObjectHandle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)}
	made, err := tpm2.Create{
		ParentHandle: parent,
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			UserAuth: tpm2.TPM2BAuth{Buffer: auth},
			Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: make([]byte, 32)}),
		}},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, NoDA: true},
		}),
	}.Execute(t)
	if err != nil {
		return nil, err
	}
	loaded, err := tpm2.Load{ParentHandle: parent, InPrivate: made.OutPrivate, InPublic: made.OutPublic}.Execute(t)
	if err != nil {
		return nil, err
	}
	session, _, err := tpm2.HMACSession(t, tpm2.TPMAlgSHA256, 16, tpm2.Salted(srk.ObjectHandle, *public),
		tpm2.Auth(auth), tpm2.AESEncryption(128, tpm2.EncryptOut))
	if err != nil {
		return nil, err
	}
	return func() bool {
		r, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: loaded.Name, Auth: session}}.Execute(t)
		return err == nil && len(r.OutData.Buffer) == 32
	}, nil
})

// reference_unseal is one TPM2_Unseal and a bare signature, for one thread.
// BENCH_TPM is the socket of an swtpm that nobody else uses.
//
//export reference_unseal
func reference_unseal(size, n C.ulong, took *C.ulong) C.int {
	unseal, err := unsealer()
	if err != nil {
		fmt.Fprintln(os.Stderr, "references:", err)
		return 1
	}
	sig := make([]byte, ed25519.SignatureSize)
	return measure(n, took, func() bool {
		if !unseal() {
			return false
		}
		sign(sig, message[:size])
		return true
	})
}

// socket speaks to swtpm's data channel: bare frames.
type socket struct{ net.Conn }

var _ transport.TPM = socket{}

func (s socket) Send(command []byte) ([]byte, error) {
	s.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := s.Write(command); err != nil {
		return nil, err
	}
	answer := make([]byte, 4096)
	if _, err := io.ReadFull(s, answer[:10]); err != nil {
		return nil, err
	}
	n := int(answer[4])<<8 | int(answer[5])
	if n < 10 || n > len(answer) {
		return nil, errors.New("malformed answer")
	}
	if _, err := io.ReadFull(s, answer[10:n]); err != nil {
		return nil, err
	}
	return answer[:n], nil
}
