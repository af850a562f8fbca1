package wire

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
)

// alpn names what is spoken inside TLS. It does not change with the protocol's version.
const alpn = "tandem/1"

// ErrFingerprint says that the peer is not the one that was trusted.
var ErrFingerprint = errors.New("the peer has another fingerprint")

// Fingerprint names a certificate's key: "SHA256:" and unpadded base64 of the SHA-256 over its
// SubjectPublicKeyInfo.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// tlsConfig is what both ends use. Certificates are self-signed, so no authority vouches for them: the
// peer proves that it holds its key, and whoever asked for the connection decides by the fingerprint.
// want is the only fingerprint that is accepted; empty means any.
func tlsConfig(identity tls.Certificate, want string) *tls.Config {
	return &tls.Config{
		Certificates:                []tls.Certificate{identity},
		MinVersion:                  tls.VersionTLS13,
		NextProtos:                  []string{alpn},
		ClientAuth:                  tls.RequireAnyClientCert,
		InsecureSkipVerify:          true, // VerifyConnection does it, by fingerprint
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true, // small records would only cost
		VerifyConnection:            func(s tls.ConnectionState) error { return verify(s, want) },
	}
}

// verify accepts a TLS peer that speaks this protocol and has the fingerprint wanted.
func verify(s tls.ConnectionState, want string) error {
	if s.NegotiatedProtocol != alpn {
		return fmt.Errorf("%w: it speaks TLS for something else", ErrNotTandem)
	}
	if len(s.PeerCertificates) == 0 {
		return fmt.Errorf("%w: it shows no certificate", ErrNotTandem)
	}
	cert := s.PeerCertificates[0]
	if _, ok := cert.PublicKey.(ed25519.PublicKey); !ok {
		return fmt.Errorf("%w: its certificate is not of an Ed25519 key", ErrNotTandem)
	}
	if got := Fingerprint(cert); want != "" && got != want {
		return fmt.Errorf("%w: it has %s, trusted is %s", ErrFingerprint, got, want)
	}
	return nil
}
