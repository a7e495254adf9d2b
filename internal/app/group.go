package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// service is something that runs until it is told to stop.
type service struct {
	name string
	// run blocks and returns nil after a clean stop.
	run func(context.Context) error
	// ready returns nil when the service does its work, else why it does not yet. It is nil for what is no service.
	ready func() error
	// drain bounds how long it may take to stop.
	drain time.Duration
}

const (
	readyPoll    = 20 * time.Millisecond
	defaultDrain = 15 * time.Second
)

// group runs services that depend on those started before them. They stop one after the other in the reverse order, so
// that each can hand on what it has to those that are still there.
type group struct {
	log *slog.Logger

	mu      sync.Mutex
	running []*running
	failed  chan error // the first failure

	complete atomic.Bool // everything that shall run was started
	stopping atomic.Bool
}

type running struct {
	service
	cancel context.CancelFunc
	done   chan struct{} // closed when run has returned
	asked  atomic.Bool   // it was told to stop
	err    error         // of run after it was told to stop; read after done
}

func newGroup(log *slog.Logger) *group {
	return &group{log: log, failed: make(chan error, 1)}
}

// start runs a service and waits until it is ready. It returns early when ctx is done, when the service ends or when
// one that was started before fails.
func (g *group) start(ctx context.Context, s service) error {
	if s.drain == 0 {
		s.drain = defaultDrain
	}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &running{service: s, cancel: cancel, done: make(chan struct{})}
	g.mu.Lock()
	g.running = append(g.running, r)
	g.mu.Unlock()
	began := time.Now()
	go g.run(own, r)

	poll := time.NewTicker(readyPoll)
	defer poll.Stop()
	slow := time.NewTimer(5 * time.Second)
	defer slow.Stop()
	for {
		reason := s.ready()
		if reason == nil {
			g.log.Info("service is ready", "service", s.name, "start_ms", time.Since(began).Milliseconds())
			return nil
		}
		select {
		case err := <-g.failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-slow.C:
			g.log.Warn("service is not ready yet", "service", s.name, "reason", reason)
			slow.Reset(30 * time.Second)
		case <-poll.C:
		}
	}
}

func (g *group) run(ctx context.Context, r *running) {
	defer close(r.done)
	err := r.run(ctx)
	switch {
	case r.asked.Load():
		r.err = err
		return
	case err == nil:
		err = fmt.Errorf("%s ended by itself", r.name)
	default:
		err = fmt.Errorf("%s failed: %w", r.name, err)
	}
	select {
	case g.failed <- err:
	default: // another failed before and is what is reported
		g.log.Error("service failed", "service", r.name, "error", err)
	}
}

// atStop has f called when the services started later have stopped, and before those started earlier stop.
func (g *group) atStop(name string, f func() error) {
	own, cancel := context.WithCancel(context.Background())
	r := &running{service: service{name: name, drain: defaultDrain}, cancel: cancel, done: make(chan struct{})}
	r.run = func(ctx context.Context) error {
		<-ctx.Done()
		return f()
	}
	g.mu.Lock()
	g.running = append(g.running, r)
	g.mu.Unlock()
	go g.run(own, r)
}

// wait is called when everything was started. It returns nil when ctx is done, or the failure of a service.
func (g *group) wait(ctx context.Context) error {
	g.complete.Store(true)
	select {
	case <-ctx.Done():
		return nil
	case err := <-g.failed:
		return err
	}
}

// stop ends the services one after the other, the newest first. One that does not end in its time is left behind: the
// process ends without it, as it would by a kill, which everything here survives.
func (g *group) stop() error {
	g.stopping.Store(true)
	g.mu.Lock()
	list := slices.Clone(g.running)
	g.mu.Unlock()
	var errs []error
	for _, r := range slices.Backward(list) {
		began := time.Now()
		r.asked.Store(true)
		r.cancel()
		timer := time.NewTimer(r.drain)
		select {
		case <-r.done:
			if r.err != nil && !errors.Is(r.err, context.Canceled) {
				errs = append(errs, fmt.Errorf("stopping %s: %w", r.name, r.err))
			}
			g.log.Debug("service has stopped", "service", r.name, "stop_ms", time.Since(began).Milliseconds())
		case <-timer.C:
			errs = append(errs, fmt.Errorf("%s did not stop within %s", r.name, r.drain))
		}
		timer.Stop()
	}
	select {
	case err := <-g.failed: // one that failed after wait had returned
		errs = append(errs, err)
	default:
	}
	return errors.Join(errs...)
}

// status is one service's readiness for people and probes.
type status struct {
	name string
	err  error // nil when ready
}

// statuses lists the services in the order of their start.
func (g *group) statuses() []status {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []status
	for _, r := range g.running {
		if r.ready == nil {
			continue
		}
		s := status{r.name, r.ready()}
		select {
		case <-r.done:
			s.err = errors.New("has stopped")
		default:
		}
		list = append(list, s)
	}
	return list
}
