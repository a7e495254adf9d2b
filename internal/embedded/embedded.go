// Package embedded runs callscope without anything installed beside it: a
// Kafka broker on a data directory, and ClickHouse's own library behind
// ClickHouse's HTTP interface, in a process of its own.
//
// Both are for one machine: they listen on loopback only, know no users, keep
// one copy of the data and let one process at a time use a data directory.
// The package speaks neither Kafka nor ClickHouse as a client, makes no
// topics and no tables, and is no part of an installation with real clusters.
package embedded

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// listenLoopback listens on addr ("host:port", port 0 for a free one) for
// what, and refuses every host that is not loopback. setting is the name of
// the configuration key that holds addr, for the error's advice.
func listenLoopback(what, addr, setting string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("%s cannot listen on %q: want host:port in %s: %w", what, addr, setting, err)
	}
	if !isLoopback(host) {
		return nil, fmt.Errorf("%s refuses to listen on %s: it knows no users, so only loopback addresses are allowed; set %s to 127.0.0.1:PORT", what, addr, setting)
	}
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s cannot listen on %s: another process uses this port; stop that process or set %s to a free one", what, addr, setting)
	}
	if err != nil {
		return nil, fmt.Errorf("%s cannot listen on %s (%s): %w", what, addr, setting, err)
	}
	return l, nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.IsLoopback()
}

// lockDir makes the data directory when there is none and takes its lock. The
// lock ends with release or with the process, however that ends.
func lockDir(what, dir string) (release func(), err error) {
	if dir == "" {
		return nil, fmt.Errorf("%s needs a data directory", what)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the data directory of %s: %w", what, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "callscope.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock of data directory %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder := make([]byte, 64)
		n, _ := f.Read(holder)
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s cannot use data directory %s: it is in use by another process (%s); stop that one or choose another directory",
				what, dir, strings.TrimSpace(string(holder[:n])))
		}
		return nil, fmt.Errorf("locking data directory %s: %w", dir, err)
	}
	// Who holds the lock is for people only; the lock itself is the kernel's.
	if err := f.Truncate(0); err == nil {
		fmt.Fprintf(f, "%s, pid %d\n", what, os.Getpid())
	}
	return func() { f.Close() }, nil
}
