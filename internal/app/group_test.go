package app

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// diary writes down what happens in which order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) note(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, line)
}

// service becomes ready after its start time and takes stop to end; a failure ends it by itself after that time.
func (d *diary) service(name string, start, stop time.Duration, failsAfter time.Duration, failure error) service {
	ready := make(chan struct{})
	return service{
		name: name, ready: closed(ready),
		run: func(ctx context.Context) error {
			d.note(name + " starts")
			select {
			case <-time.After(start):
				close(ready)
			case <-ctx.Done():
				return nil
			}
			var fails <-chan time.Time
			if failsAfter > 0 {
				fails = time.After(failsAfter)
			}
			select {
			case <-fails:
				return failure
			case <-ctx.Done():
			}
			d.note(name + " drains")
			<-time.After(stop)
			d.note(name + " has stopped")
			return nil
		},
	}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestGroupStartsAndStopsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		ctx, cancel := context.WithCancel(t.Context())
		g := newGroup(discard())
		for _, s := range []service{
			d.service("broker", 3*time.Second, time.Second, 0, nil),
			d.service("sink", time.Second, 2*time.Second, 0, nil),
		} {
			if err := g.start(ctx, s); err != nil {
				t.Fatal(err)
			}
			d.note(s.name + " is ready")
		}
		g.atStop("producer", func() error { d.note("producer is closed"); return nil })
		if err := g.start(ctx, d.service("gateway", 0, time.Second, 0, nil)); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Minute, cancel)
		if err := g.wait(ctx); err != nil {
			t.Error(err)
		}
		if err := g.stop(); err != nil {
			t.Error(err)
		}
		want := []string{
			"broker starts", "broker is ready", "sink starts", "sink is ready", "gateway starts",
			"gateway drains", "gateway has stopped", "producer is closed", "sink drains", "sink has stopped", "broker drains", "broker has stopped",
		}
		if diff := cmp.Diff(want, d.lines); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
	})
}

func TestGroupFailures(t *testing.T) {
	boom := errors.New("boom")
	for _, tt := range []struct {
		name           string
		first, second  func(d *diary) service
		start2, waited string // errors
		stopped        string
	}{
		{
			name:  "fails while it starts",
			first: func(d *diary) service { return d.service("one", 0, 0, 0, nil) },
			second: func(*diary) service {
				return service{name: "two", ready: func() error { return errors.New("never") }, run: func(context.Context) error { return boom }}
			},
			start2: "two failed: boom",
		},
		{
			name:   "an earlier one fails while a later one starts",
			first:  func(d *diary) service { return d.service("one", 0, 0, time.Second, boom) },
			second: func(d *diary) service { return d.service("two", time.Hour, 0, 0, nil) },
			start2: "one failed: boom",
		},
		{
			name:   "fails later",
			first:  func(d *diary) service { return d.service("one", 0, 0, 0, nil) },
			second: func(d *diary) service { return d.service("two", 0, 0, time.Hour, boom) },
			waited: "two failed: boom",
		},
		{
			name:   "ends by itself",
			first:  func(d *diary) service { return d.service("one", 0, 0, time.Hour, nil) },
			second: func(d *diary) service { return d.service("two", 0, 0, 0, nil) },
			waited: "one ended by itself",
		},
		{
			name:    "takes too long",
			first:   func(d *diary) service { return d.service("one", 0, time.Minute, 0, nil) },
			second:  func(d *diary) service { return d.service("two", 0, 0, time.Hour, boom) },
			waited:  "two failed: boom",
			stopped: "one did not stop within 15s",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var d diary
				g := newGroup(discard())
				if err := g.start(t.Context(), tt.first(&d)); err != nil {
					t.Fatal(err)
				}
				err := g.start(t.Context(), tt.second(&d))
				same(t, "second start", err, tt.start2)
				if err == nil {
					same(t, "wait", g.wait(t.Context()), tt.waited)
				}
				same(t, "stop", g.stop(), tt.stopped)
				<-time.After(time.Hour) // what was left behind ends
			})
		})
	}
}

func same(t *testing.T, what string, got error, want string) {
	t.Helper()
	text := ""
	if got != nil {
		text = got.Error()
	}
	if text != want {
		t.Errorf("%s: %q, want %q", what, text, want)
	}
}

func TestGroupInterruptedWhileStarting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		g := newGroup(discard())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.start(ctx, d.service("slow", time.Hour, 0, 0, nil)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if err := g.stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestGroupStopErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(discard())
		g.atStop("client", func() error { return errors.New("cannot close") })
		if err := g.stop(); err == nil || !strings.Contains(err.Error(), "stopping client: cannot close") {
			t.Errorf("got %v", err)
		}
	})
}
