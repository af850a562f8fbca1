package daemon

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"time"
)

// identity gives the node's certificate; it is made at the first start. Key and certificate are one file,
// readable by its user alone, so that neither is ever there without the other.
func (s *stateFolder) identity(node string) (tls.Certificate, error) {
	data, err := os.ReadFile(s.path(identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		if data, err = newIdentity(node); err == nil {
			err = s.write(identityFile, data)
		}
	}
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("the node's identity: %w", err)
	}
	certificate, err := tls.X509KeyPair(data, data)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%s is damaged (put it back from a backup; without it peers do not know this node): %w",
			s.path(identityFile), err)
	}
	return certificate, nil
}

// newIdentity makes a key and a certificate that it signs itself. The certificate does not expire: it is
// known by its fingerprint, which somebody has looked at, and by nothing else.
func newIdentity(node string) ([]byte, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: node},
		NotBefore:    time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), // a node's clock may be wrong
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return nil, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = errors.Join(
		pem.Encode(&out, &pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: certificate}))
	return out.Bytes(), err
}
