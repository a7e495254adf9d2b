package embedded

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestSignalsWorkBesideTheLibrary(t *testing.T) {
	needLibrary(t)
	child := startChild(t, "signals", t.TempDir())
	select {
	case err := <-child.exited:
		if err != nil {
			t.Errorf("%v: %s", err, child.output.last())
		}
	case <-time.After(60 * time.Second):
		t.Error("the child did not end: a signal or a preemption was lost")
	}
}

// signalsChild starts the engine in this process, keeps it busy, and checks
// that Go still receives signals and preempts goroutines.
func signalsChild(args []string) error {
	library, err := FindLibrary()
	if err != nil {
		return err
	}
	e := NewEngine(EngineConfig{DataDir: args[0]}, testLog())
	first, err := e.start(library, args[0])
	if err != nil {
		return err
	}
	defer first.close()

	var stop atomic.Bool
	var statements atomic.Int64
	var work sync.WaitGroup
	failed := make(chan error, 4)
	for range cap(failed) {
		work.Go(func() {
			for !stop.Load() {
				s, err := e.lib.open(e.args)
				if err == nil {
					err = s.exec("SELECT uniq(number), sum(sipHash64(number)) FROM numbers_mt(200000)")
					s.close()
				}
				if err != nil {
					failed <- err
					return
				}
				statements.Add(1)
				runtime.GC()
			}
		})
	}
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGCHLD, syscall.SIGPIPE} {
		received := make(chan os.Signal, 1)
		signal.Notify(received, sig)
		for range 100 {
			if err := syscall.Kill(os.Getpid(), sig.(syscall.Signal)); err != nil {
				return err
			}
			select {
			case <-received:
			case err := <-failed:
				return err
			case <-time.After(20 * time.Second):
				return fmt.Errorf("%v was not received", sig)
			}
		}
		signal.Stop(received)
	}
	// Without preemption the loop never gives the only processor back.
	runtime.GOMAXPROCS(1)
	var spin atomic.Bool
	spin.Store(true)
	work.Go(func() {
		for spin.Load() {
		}
	})
	for before := statements.Load(); statements.Load() < before+4; {
		runtime.Gosched()
	}
	spin.Store(false)
	stop.Store(true)
	work.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}
