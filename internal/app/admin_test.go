package app

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestAdminServer(t *testing.T) {
	g := newGroup(discard())
	health := errors.New("partition 3 waits")
	running := func(name string, ready func() error) {
		t.Helper()
		done := make(chan struct{})
		if err := g.start(t.Context(), service{name: name, ready: closed(open()), run: func(ctx context.Context) error {
			defer close(done)
			<-ctx.Done()
			return nil
		}}); err != nil {
			t.Fatal(err)
		}
		g.running[len(g.running)-1].ready = ready
	}
	server := newAdminServer(load(t, "gateway.token_key=do-not-show-this-text"), g, newRegistry(), discard())
	get := func(path string) (int, string) {
		t.Helper()
		w := httptest.NewRecorder()
		server.handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		text, err := io.ReadAll(w.Result().Body)
		if err != nil {
			t.Fatal(err)
		}
		return w.Code, string(text)
	}
	expect := func(path string, code int, text string) {
		t.Helper()
		if gotCode, got := get(path); gotCode != code || got != text {
			t.Errorf("%s: %d\n%s\nwant %d\n%s", path, gotCode, got, code, text)
		}
	}
	running("sink", func() error { return health })
	running("gateway", func() error { return nil })
	g.atStop("producer", func() error { return nil })

	expect("/livez", 200, "ok\n")
	expect("/readyz?verbose", 503, "[-] sink: partition 3 waits\n[+] gateway: ready\n[-] still starting\nnot ready\n")
	health = nil
	expect("/readyz", 503, "not ready\n")
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.wait(done); err != nil {
		t.Fatal(err)
	}
	expect("/readyz", 200, "ready\n")
	expect("/readyz?verbose", 200, "[+] sink: ready\n[+] gateway: ready\nready\n")
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	expect("/readyz?verbose", 503, "[-] sink: has stopped\n[-] gateway: has stopped\n[-] shutting down\nnot ready\n")
	expect("/livez", 200, "ok\n")

	for path, want := range map[string]string{
		"/metrics":       `callscope_build_info{go_version="go`,
		"/status/config": "token_key: (hidden) # --set gateway.token_key",
		"/debug/pprof/":  "goroutine",
	} {
		code, text := get(path)
		if code != 200 || !strings.Contains(text, want) || strings.Contains(text, "do-not-show-this-text") {
			t.Errorf("%s: %d\n%s\nwant it to have %q", path, code, text, want)
		}
	}
	if code, _ := get("/"); code != http.StatusNotFound {
		t.Errorf("/: %d", code)
	}
}

// open is a channel that is closed already.
func open() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}
