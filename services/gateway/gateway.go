// Package gateway is where clients come in: HTTPS and WebSocket of every callstats client generation on one port, who
// they are checked (auth), what they say turned into the one vocabulary (vocabulary), and every message written to the
// raw topic before it is answered (intake).
//
// It keeps no state of calls and decides nothing about them; any number of gateways may run side by side. It gives no
// promise for what it did not answer.
package gateway

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/callscope/callscope/services/gateway/auth"
	"github.com/callscope/callscope/services/gateway/dialects/callscopev1"
	"github.com/callscope/callscope/services/gateway/dialects/callstatsrest"
	"github.com/callscope/callscope/services/gateway/dialects/callstatsws"
	"github.com/callscope/callscope/services/gateway/intake"
	"github.com/callscope/callscope/services/gateway/limits"
)

// Gateway is one gateway. It runs once.
type Gateway struct {
	cfg    Config
	log    *slog.Logger
	intake *intake.Intake
	limits *limits.Limiter
	rest   *callstatsrest.Handler
	ws     *callstatsws.Handler
	own    *callscopev1.Handler
	// proxies are trusted to say whom they forward.
	proxies networks
	refused *prometheus.CounterVec // reason
	addr    atomic.Pointer[string] // while listening
	state   atomic.Pointer[error]  // why it is not ready; nil inside while it is
}

var (
	errNotStarted = errors.New("the gateway has not started to listen")
	errDraining   = errors.New("the gateway is shutting down")
)

// New makes a gateway that knows the apps of registry and writes to producer. It does no I/O. reg may be nil.
func New(cfg Config, registry auth.Registry, producer intake.Producer, log *slog.Logger, reg prometheus.Registerer) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	key := []byte(cfg.TokenKey)
	if len(key) == 0 {
		log.Warn("gateway.token_key is not set: access tokens end with this process, and no second gateway can accept them")
		key = make([]byte, 32)
		if _, err := rand.Read(key); err != nil {
			return nil, fmt.Errorf("making a token key: %w", err)
		}
	}
	var previous [][]byte
	if cfg.PreviousTokenKey != "" {
		previous = append(previous, []byte(cfg.PreviousTokenKey))
	}
	tokens, err := auth.NewTokens(registry, key, previous...)
	if err != nil {
		return nil, err
	}
	authenticator, err := auth.NewAuthenticator(registry, tokens, log, reg)
	if err != nil {
		return nil, err
	}
	in, err := intake.New(producer, cfg.BudgetBytes, log, reg)
	if err != nil {
		return nil, err
	}
	in.Mask(cfg.IPv4Bits, cfg.IPv6Bits)
	proxies, err := parseNetworks(cfg.TrustedProxies)
	if err != nil {
		return nil, err
	}
	limiter := limits.New(cfg.Limits)
	g := &Gateway{
		cfg:     cfg,
		log:     log,
		intake:  in,
		limits:  limiter,
		proxies: proxies,
		rest: callstatsrest.New(callstatsrest.Config{
			PublicURL:    cfg.PublicURL,
			MaxBodyBytes: cfg.MaxMessageBytes,
			StoreTimeout: cfg.StoreTimeout,
			JoinPatience: cfg.JoinPatience,
			Limits:       limiter,
		}, authenticator, tokens, in, log),
		ws: callstatsws.New(callstatsws.Config{
			MaxFrameBytes:  cfg.MaxMessageBytes,
			WindowMessages: cfg.WindowMessages,
			WindowBytes:    cfg.WindowBytes,
			StoreTimeout:   cfg.StoreTimeout,
			WriteTimeout:   cfg.WriteTimeout,
			PingInterval:   cfg.PingInterval,
			DrainSpread:    cfg.DrainSpread,
			Limits:         limiter,
		}, tokens, in, log),
	}
	g.state.Store(&errNotStarted)
	g.own, err = callscopev1.New(callscopev1.Config{
		MaxFrameBytes:  cfg.MaxMessageBytes,
		WindowMessages: cfg.WindowMessages,
		WindowBytes:    cfg.WindowBytes,
		StoreTimeout:   cfg.StoreTimeout,
		WriteTimeout:   cfg.WriteTimeout,
		PingInterval:   cfg.PingInterval,
		Limits:         limiter,
	}, registry, authenticator, tokens, in, log, reg)
	if err != nil {
		return nil, err
	}
	g.refused, err = registerMetrics(reg, func() int64 { return g.ws.Open() + g.own.Open() }, g.Ready)
	if err != nil {
		return nil, err
	}
	return g, nil
}

// Addr is the address that the gateway listens on, "" while it does not.
func (g *Gateway) Addr() string {
	if addr := g.addr.Load(); addr != nil {
		return *addr
	}
	return ""
}

// Ready returns nil while the gateway accepts clients, otherwise why it does not.
func (g *Gateway) Ready() error { return *g.state.Load() }

// ServeHTTP serves every dialect; the path tells which.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.RemoteAddr = g.proxies.clientAddr(r)
	if strings.HasSuffix(r.URL.Path, callstatsws.Path) {
		g.ws.ServeHTTP(w, r)
		return
	}
	if r.URL.Path == callscopev1.Path {
		g.own.ServeHTTP(w, r)
		return
	}
	g.rest.ServeHTTP(w, r)
}

// Run listens until ctx ends, then refuses new clients, finishes what was received, closes the WebSockets and returns
// nil. An error means that it could not listen, or that listening ended by itself.
func (g *Gateway) Run(ctx context.Context) error {
	if err := g.intake.OpenLocations(g.cfg.CountryFile, g.cfg.NetworkFile); err != nil {
		return err
	}
	defer g.intake.CloseLocations()
	listener, err := g.listen(ctx)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           g,
		ReadHeaderTimeout: g.cfg.ReadHeaderTimeout,
		ReadTimeout:       g.cfg.ReadTimeout,
		// Reading, storing and answering one request; a client that does not read its answer gets no more.
		WriteTimeout:   g.cfg.ReadTimeout + g.cfg.StoreTimeout + g.cfg.WriteTimeout,
		IdleTimeout:    g.cfg.IdleTimeout,
		MaxHeaderBytes: 32 << 10,
		ErrorLog:       slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
	addr := listener.Addr().String()
	g.addr.Store(&addr)
	g.state.Store(new(error))
	g.log.Info("gateway listens", "addr", addr, "tls", g.cfg.TLSCertFile != "")

	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err = <-served:
		err = fmt.Errorf("serving clients on %s: %w", addr, err)
	case <-ctx.Done():
	}
	g.state.Store(&errDraining)
	if err == nil && g.cfg.DrainDelay > 0 {
		g.log.Info("gateway is no longer ready and stops listening after gateway.drain_delay", "drain_delay", g.cfg.DrainDelay)
		select {
		case <-time.After(g.cfg.DrainDelay):
		case err = <-served:
			err = fmt.Errorf("serving clients on %s: %w", addr, err)
		}
	}
	g.addr.Store(nil)
	g.drain(context.WithoutCancel(ctx), server)
	if err == nil {
		<-served //nolint:errcheck // http.ErrServerClosed
		g.log.Info("gateway has drained")
	}
	return err
}

// drain finishes what is in flight. What is not stored within the timeout is counted as shed.
func (g *Gateway) drain(ctx context.Context, server *http.Server) {
	ctx, cancel := context.WithTimeout(ctx, g.cfg.DrainTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, g.intake.GiveUp)
	defer stop()
	sockets := make(chan struct{})
	go func() {
		defer close(sockets)
		var own sync.WaitGroup
		own.Go(g.own.Drain)
		g.ws.Drain(ctx)
		own.Wait()
	}()
	if err := server.Shutdown(ctx); err != nil {
		g.log.Warn("requests were still running at the end of the drain", "error", err)
		_ = server.Close() // they are given up
	}
	<-sockets
	g.intake.Close()
}

func (g *Gateway) listen(ctx context.Context) (net.Listener, error) {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", g.cfg.Addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listening for clients on %s: another process uses this address; stop it or set gateway.addr: %w", g.cfg.Addr, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listening for clients on %s (gateway.addr): %w", g.cfg.Addr, err)
	}
	listener = &guarded{listener, g.refuseConnection, func(reason string) { g.refused.WithLabelValues(reason).Inc() }}
	if g.cfg.TLSCertFile == "" {
		return listener, nil
	}
	cert := &keyPair{certFile: g.cfg.TLSCertFile, keyFile: g.cfg.TLSKeyFile, log: g.log}
	if err := cert.load(); err != nil {
		_ = listener.Close() // nothing was accepted
		return nil, err
	}
	return tls.NewListener(listener, &tls.Config{
		GetCertificate: cert.get,
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
	}), nil
}
