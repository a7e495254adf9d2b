package gateway

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/callscope/callscope/services/gateway/limits"
)

// guarded refuses connections before anything is spent on them, by closing them: that is the one failure on which
// callstats clients back off.
type guarded struct {
	net.Listener
	// refuse returns why a connection is refused, "" when it is not.
	refuse func(remoteAddr string) string
	count  func(reason string)
}

func (l *guarded) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		reason := l.refuse(conn.RemoteAddr().String())
		if reason == "" {
			return conn, nil
		}
		l.count(reason)
		_ = conn.Close() // it was never used
	}
}

// Why a connection is refused: label values.
const (
	refusedBudget = "budget"
	refusedRate   = "rate"
)

// refuseConnection is for the listener. A proxy opens connections for many clients, so its own address says nothing.
func (g *Gateway) refuseConnection(remoteAddr string) string {
	switch {
	case g.intake.Crowded():
		return refusedBudget
	case !g.proxies.contain(limits.ParseAddress(remoteAddr)) && !g.limits.Connection(remoteAddr):
		return refusedRate
	}
	return ""
}

// keyPair is a certificate with its key that is read again when its files change.
type keyPair struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	version [2]fileVersion
	checked time.Time
}

type fileVersion struct {
	modified time.Time
	bytes    int64
}

// checkEvery is how old a certificate may be that somebody has replaced.
const checkEvery = time.Second

// load reads the files.
func (c *keyPair) load() error {
	version, err := c.versionNow() // before reading: a change in between is seen at the next check
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("loading gateway.tls_cert_file and gateway.tls_key_file: %w", err)
	}
	c.current, c.version, c.checked = &pair, version, time.Now()
	return nil
}

func (c *keyPair) versionNow() (version [2]fileVersion, err error) {
	for i, name := range []string{c.certFile, c.keyFile} {
		info, statErr := os.Stat(name)
		if statErr != nil {
			err = errors.Join(err, fmt.Errorf("looking at gateway.tls_cert_file and gateway.tls_key_file: %w", statErr))
			continue
		}
		version[i] = fileVersion{info.ModTime(), info.Size()}
	}
	return version, err
}

// get is for tls.Config. While the files are half replaced or broken the last good pair is used.
func (c *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Sub(c.checked) < checkEvery {
		return c.current, nil
	}
	c.checked = now
	version, err := c.versionNow()
	if err == nil && version == c.version {
		return c.current, nil
	}
	if err == nil {
		err = c.load()
	}
	if err != nil {
		c.log.Error("the TLS certificate was not replaced: the one before it stays in use", "error", err)
		return c.current, nil
	}
	c.log.Info("the TLS certificate was replaced", "tls_cert_file", c.certFile)
	return c.current, nil
}
