package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// newRegistry makes the process's registry with what is worth knowing of every Go process.
func newRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	info := readBuild()
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "callscope_build_info", Help: "Always 1; the labels say what is running.",
	}, []string{"version", "revision", "go_version"})
	build.WithLabelValues(info.Version, info.Revision, info.GoVersion).Set(1)
	reg.MustRegister(build)
	return reg
}

// adminServer serves operators: /metrics, /livez, /readyz, /status/config and /debug/pprof/. It knows no users.
type adminServer struct {
	addr    string
	handler http.Handler
	log     *slog.Logger
	ready   chan struct{}
}

func newAdminServer(s *settings, g *group, reg *prometheus.Registry, log *slog.Logger) *adminServer {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { writeReadiness(w, r, g) })
	mux.HandleFunc("GET /status/config", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml; charset=utf-8")
		if err := s.loaded.WriteYAML(w); err != nil {
			log.Warn("the settings could not be shown", "error", err)
		}
	})
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return &adminServer{addr: s.Admin.Addr, handler: mux, log: log, ready: make(chan struct{})}
}

// writeReadiness answers 200 when everything is ready and nothing is stopping, else 503; with ?verbose it says which.
func writeReadiness(w http.ResponseWriter, r *http.Request, g *group) {
	statuses := g.statuses()
	ready := g.complete.Load() && !g.stopping.Load()
	for _, s := range statuses {
		ready = ready && s.err == nil
	}
	if !ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	if r.URL.Query().Has("verbose") {
		for _, s := range statuses {
			if s.err == nil {
				fmt.Fprintf(w, "[+] %s: ready\n", s.name)
			} else {
				fmt.Fprintf(w, "[-] %s: %v\n", s.name, s.err)
			}
		}
		switch {
		case g.stopping.Load():
			fmt.Fprintln(w, "[-] shutting down")
		case !g.complete.Load():
			fmt.Fprintln(w, "[-] still starting")
		}
	}
	if ready {
		fmt.Fprintln(w, "ready")
	} else {
		fmt.Fprintln(w, "not ready")
	}
}

func (a *adminServer) Ready() <-chan struct{} { return a.ready }

func (a *adminServer) Run(ctx context.Context) error {
	listener, err := listen(ctx, "the admin server", a.addr, "admin.addr")
	if err != nil {
		return err
	}
	// A profile takes as long as was asked for, so there is no limit for writing.
	server := &http.Server{
		Handler: a.handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	a.log.Info("admin server is up", "addr", listener.Addr().String())
	close(a.ready)
	select {
	case err := <-served:
		return fmt.Errorf("serving on %s: %w", a.addr, err)
	case <-ctx.Done():
	}
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if server.Shutdown(bound) != nil {
		// Somebody watches a profile; nothing is lost by ending it.
		if err := server.Close(); err != nil {
			return fmt.Errorf("closing the admin server: %w", err)
		}
	}
	return nil
}

// listen opens a TCP port, and says what to do when another process has it.
func listen(ctx context.Context, what, addr, setting string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s cannot listen on %s: another process uses this port; stop that process or set %s to a free one", what, addr, setting)
	}
	if err != nil {
		return nil, fmt.Errorf("%s cannot listen on %s (%s): %w", what, addr, setting, err)
	}
	return l, nil
}
