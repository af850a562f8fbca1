package daemon

import (
	"log/slog"
	"net"
	"os"
)

// notify tells the service manager that started the node, if one did, how it stands: a datagram to the
// socket that NOTIFY_SOCKET names, as sd_notify(3) has it.
func notify(log *slog.Logger, state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err == nil {
		defer conn.Close()
		_, err = conn.Write([]byte(state))
	}
	if err != nil {
		log.Warn("the service manager cannot be told", "state", state, "error", err)
	}
}
