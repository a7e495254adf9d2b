package replay

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// Whatever the partitions ask for, no more records pass than the rate allows at any time, and none later than that.
func TestPacerHoldsTheRate(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		rate := rapid.IntRange(1, 100_000).Draw(r, "rate")
		asked := rapid.SliceOfN(rapid.SliceOfN(rapid.IntRange(1, 20_000), 1, 20), 1, 6).Draw(r, "fetched, by partition")
		synctest.Test(t, func(t *testing.T) {
			p := pacer{rate: rate}
			began := time.Now()
			var mu sync.Mutex
			passed, last := 0, 0
			var group sync.WaitGroup
			for _, fetches := range asked {
				group.Go(func() {
					for _, fetched := range fetches {
						for fetched > 0 {
							n := min(p.chunk(fetched), fetched)
							if err := p.wait(t.Context(), n); err != nil {
								t.Error(err)
								return
							}
							mu.Lock()
							passed, last = passed+n, n
							// One chunk passes at once; what follows waits for those before it. A millisecond is for rounding.
							if allowed := (time.Since(began)+time.Millisecond).Seconds()*float64(rate) + float64(p.chunk(fetched)); float64(passed) > allowed {
								t.Errorf("%d records after %s, at a rate of %d", passed, time.Since(began), rate)
							}
							mu.Unlock()
							fetched -= n
						}
					}
				})
			}
			group.Wait()
			want := time.Duration(float64(passed-last) / float64(rate) * float64(time.Second))
			if took := time.Since(began); (took - want).Abs() > time.Millisecond {
				t.Errorf("%d records, the last %d together, took %s at a rate of %d, want %s", passed, last, took, rate, want)
			}
		})
	})
}

// Time in which nobody asked is not made up for by a burst, no rate is no wait, and waiting ends with the context.
func TestPacerWithoutBursts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pacer{rate: 10}
		if err := p.wait(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Hour)
		began := time.Now()
		for range 11 {
			if err := p.wait(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("11 records took %s at 10 a second", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		for range 2 {
			if err := p.wait(ctx, 1000); err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("waiting ended after %s, the context after a second", took)
		}
		began = time.Now()
		unbounded := pacer{}
		if err := unbounded.wait(t.Context(), 1<<30); err != nil || time.Since(began) != 0 || unbounded.chunk(5) != 5 {
			t.Errorf("no rate: %s, %v", time.Since(began), err)
		}
	})
}
