// Package wire is how two nodes speak: TLS with both certificates checked by fingerprint, a handshake
// that settles the protocol's version, frames, the records inside them, and the messages around them.
//
// It guarantees that what Conn.Receive returns is what the peer's Conn.Send was given, whole, once and in
// order, or that there is an error; that nothing from the network is believed before it is checked (a
// length before anything is allocated for it, a name before it is used); and that a peer that falls
// silent is noticed. It knows nothing of volumes, journals or relationships. docs/protocol.md draws it all.
package wire
