package stagetest

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Seeds returns how many simulations a test runs: CALLSCOPE_SIM_SEEDS, or the
// number that the ordinary tests can bear. An ordinary of 0 means that the test
// is for the long run only.
func Seeds(t testing.TB, ordinary int) int {
	t.Helper()
	text := os.Getenv("CALLSCOPE_SIM_SEEDS")
	if text == "" {
		return ordinary
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("reading CALLSCOPE_SIM_SEEDS: %v", err)
	}
	return n
}

// Simulate runs the simulations of the seeds below n on all cores, each in one
// goroutine, and returns the sum of what happened. Seeds that failed before are
// kept in testdata/seeds of the test's package, one a line with the test's name
// before it, and run first; a seed that fails now is added there, printed, and
// fails the test. CALLSCOPE_SIM_SEED=n runs the one seed n with a line for
// everything that happens in it.
func Simulate(t *testing.T, n int, options func(seed uint64) Options) Result {
	t.Helper()
	if text := os.Getenv("CALLSCOPE_SIM_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("reading CALLSCOPE_SIM_SEED: %v", err)
		}
		o := options(seed)
		o.Trace = t.Output()
		r, err := Run(o)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	kept := keptSeeds(t)
	sum := each(t, kept, n, func(seed uint64) (Result, error) {
		r, err := Run(options(seed))
		if err != nil {
			keepSeed(t, seed, kept)
		}
		return r, err
	})
	return sum
}

// SimulateAll is Simulate for simulations of more than one stage; it knows no
// CALLSCOPE_SIM_SEED.
func SimulateAll(t *testing.T, n int, run func(seed uint64) (Result, error)) Result {
	t.Helper()
	kept := keptSeeds(t)
	return each(t, kept, n, func(seed uint64) (Result, error) {
		r, err := run(seed)
		if err != nil {
			keepSeed(t, seed, kept)
		}
		return r, err
	})
}

// each runs the kept seeds and those below n until one fails.
func each(t *testing.T, kept []uint64, n int, run func(seed uint64) (Result, error)) Result {
	t.Helper()
	var (
		mu   sync.Mutex
		sum  Result
		next atomic.Uint64
		wg   sync.WaitGroup
	)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for !t.Failed() {
				seed := next.Add(1) - 1
				switch {
				case seed < uint64(len(kept)):
					seed = kept[seed]
				case seed < uint64(len(kept)+n):
					seed -= uint64(len(kept))
				default:
					return
				}
				r, err := run(seed)
				mu.Lock()
				sum.Add(r)
				mu.Unlock()
				if err != nil {
					t.Errorf("%v\nagain with: CALLSCOPE_SIM_SEED=%d go test -v -run '^%s$'", err, seed, t.Name())
				}
			}
		})
	}
	wg.Wait()
	return sum
}

const seedFile = "testdata/seeds"

func keptSeeds(t *testing.T) []uint64 {
	t.Helper()
	file, err := os.Open(seedFile)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatalf("reading kept seeds: %v", err)
	}
	defer file.Close()
	var seeds []uint64
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var name string
		var seed uint64
		if _, err := fmt.Sscan(lines.Text(), &name, &seed); err != nil {
			t.Fatalf("%s: %q is no test and seed: %v", seedFile, lines.Text(), err)
		}
		if name == t.Name() {
			seeds = append(seeds, seed)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatalf("reading kept seeds: %v", err)
	}
	return seeds
}

var seedFileMutex sync.Mutex

func keepSeed(t *testing.T, seed uint64, kept []uint64) {
	t.Helper()
	for _, known := range kept {
		if known == seed {
			return
		}
	}
	seedFileMutex.Lock()
	defer seedFileMutex.Unlock()
	if err := os.MkdirAll(filepath.Dir(seedFile), 0o755); err != nil {
		t.Errorf("keeping seed %d: %v", seed, err)
		return
	}
	file, err := os.OpenFile(seedFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Errorf("keeping seed %d: %v", seed, err)
		return
	}
	defer file.Close()
	if _, err := fmt.Fprintln(file, t.Name(), seed); err != nil {
		t.Errorf("keeping seed %d: %v", seed, err)
	}
}

// MustFail is a negative control: with the change to their options, at least
// 90 % of the simulations in which it had a chance to show must fail, and it
// must have had one in at least a tenth of them.
func MustFail(t *testing.T, n int, options func(seed uint64) Options, defect Defect) {
	t.Helper()
	var (
		mu                sync.Mutex
		failed, exercised int
		first             error
	)
	sum := each(t, nil, n, func(seed uint64) (Result, error) {
		o := options(seed)
		o.Rough, o.Defect = true, defect
		r, err := Run(o)
		mu.Lock()
		defer mu.Unlock()
		if r.Exercised {
			exercised++
			if err != nil {
				failed++
			}
			if err != nil && first == nil {
				first = err
			}
		}
		return r, nil
	})
	text, _, _ := strings.Cut(fmt.Sprint(first), ". If")
	t.Logf("%d of %d seeds exercise it, %d of these fail (%.1f %%), %d crashes; a failure: %s",
		exercised, n, failed, 100*float64(failed)/float64(max(exercised, 1)), sum.Crashes, text)
	if 10*failed < 9*exercised || 10*exercised < n {
		t.Errorf("only %d of the %d of %d seeds that exercise it fail", failed, exercised, n)
	}
}
