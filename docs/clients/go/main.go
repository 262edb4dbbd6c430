// Command go serves one page over TLS with a key of a token: an example of a
// crypto.Signer over PKCS #11.
package main

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	module := flag.String("module", "/usr/local/lib/pkcs11/icn-p11.so", "the PKCS #11 module")
	token := flag.String("token", "node", "label of the token")
	label := flag.String("key", "icn-identity", "label of the key")
	pinFile := flag.String("pin-file", "pin", "file with the PIN")
	listen := flag.String("listen", "127.0.0.1:8443", "address to serve")
	certFile := flag.String("cert", "server.crt", "file for the certificate, which is made anew")
	flag.Parse()
	if err := serve(*module, *token, *label, *pinFile, *listen, *certFile); err != nil {
		log.Fatal(err)
	}
}

func serve(module, tokenLabel, keyLabel, pinFile, listen, certFile string) error {
	pin, err := os.ReadFile(pinFile)
	if err != nil {
		return err
	}
	token, err := OpenToken(module, tokenLabel, strings.TrimRight(string(pin), "\n"))
	if err != nil {
		return err
	}
	defer token.Close()
	key, err := token.Key(keyLabel)
	if err != nil {
		return err
	}
	cert, err := selfSigned(key)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	// Whoever finds the certificate finds the server.
	if err := os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o644); err != nil {
		return err
	}
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "served with a %T\n", key.Public())
	})
	return http.Serve(tls.NewListener(l, &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}},
	}), page)
}

// selfSigned makes a certificate for localhost.
func selfSigned(key *Key) ([]byte, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "localhost"},
		DNSNames:     []string{"localhost"},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(24 * time.Hour),
		IsCA:         true,

		BasicConstraintsValid: true,
	}
	return x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
}
