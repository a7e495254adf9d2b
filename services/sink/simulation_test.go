package sink

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

var seeds = flag.Int("sink-seeds", 2000, "seeds of the sink's simulation")

// variant is the protocol as it is, or spoiled for a negative control.
type variant struct {
	name           string
	window         int
	noPlan         bool
	tokenNoUID     bool
	atomicTokens   bool // the sink takes the server for one that commits tokens and rows together
	torn           bool // the server may die between a token and its rows
	recreate       bool // the topic may be deleted and made anew
	loseOffsets    bool // the group's offsets may be lost
	ignoreRepeated bool // the store collapses rows by their key, so rows that are stored twice do not count
}

type simResult struct {
	takeovers, lost, repeated int
}

// simulate runs one seed: a log that grows, owners that die at any of their calls or are replaced while an insert of
// theirs sleeps, brokers and stores that fail before or after they did what was asked.
func simulate(seed uint64, v variant, m *metrics) (r simResult, err error) {
	rng := rand.New(rand.NewPCG(seed, 0))
	l, s := newModelLog(), newModelStore(v.window)
	wanted := make(map[string]int)
	note := func() error {
		rows, rejected := l.want()
		maps.Copy(wanted, rows)
		got := make(map[int64]bool)
		for _, offset := range l.rejected {
			got[offset] = true
		}
		if !maps.Equal(rejected, got) {
			return fmt.Errorf("set aside %v, want %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(rejected)))
		}
		return nil
	}
	faulty := false
	if v.torn {
		s.torn = func() bool { return faulty && rng.IntN(12) == 0 }
	}
	var sleeping []func()
	wake := func() {
		if len(sleeping) > 0 {
			i := rng.IntN(len(sleeping))
			sleeping[i]()
			sleeping = slices.Delete(sleeping, i, i+1)
		}
	}
	grow := func() {
		for range rng.IntN(12) {
			kind := givesOne
			switch rng.IntN(12) {
			case 0, 1:
				kind = givesTwo
			case 2, 3, 4:
				kind = givesNone
			case 5:
				kind = poisonRow + rng.IntN(2)
			}
			l.appendRecord(kind)
			if n := int64(len(l.records)); rng.IntN(8) == 0 {
				from := rng.Int64N(n)
				l.repeat(l.start+from, l.start+min(n, from+1+rng.Int64N(4)))
			}
		}
	}
	work := func(faults bool) error {
		o, p := newOwner(l, s, m)
		o.noPlan, o.tokenNoUID = v.noPlan, v.tokenNoUID
		p.atomicTokens = v.atomicTokens
		steps := 1 << 30
		faulty = faults
		if faults {
			o.rng = rng
			steps = rng.IntN(4)
			if rng.IntN(3) > 0 {
				o.crashAt, o.afterEffect = 1+rng.IntN(16), rng.IntN(2) == 0
				o.asleep = func(insert func()) { sleeping = append(sleeping, insert) }
			}
			p.cfg.MaxRows = 1 + rng.IntN(10)
		}
		r.takeovers++
		err := o.run(p, steps)
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	}
	for range 4 + rng.IntN(12) {
		grow()
		if rng.IntN(3) == 0 {
			wake()
		}
		if v.loseOffsets && rng.IntN(6) == 0 {
			l.committed = false
		}
		if err := work(true); err != nil {
			return r, err
		}
		if v.recreate && rng.IntN(10) == 0 {
			if err := work(false); err != nil {
				return r, err
			}
			if err := note(); err != nil {
				return r, err
			}
			l.recreate()
		}
	}
	for len(sleeping) > 0 {
		wake()
	}
	if err := work(false); err != nil {
		return r, err
	}
	if err := note(); err != nil {
		return r, err
	}
	stored := s.stored()
	for key := range wanted {
		if stored[key] == 0 {
			r.lost++
		}
	}
	for key, n := range stored {
		if wanted[key] == 0 {
			return r, fmt.Errorf("row %s was stored and comes from no record", key)
		}
		if n > 1 && !v.ignoreRepeated {
			r.repeated += n - 1
		}
	}
	return r, nil
}

func TestSimulation(t *testing.T) {
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		variant
		wrong bool // a negative control
	}{
		{variant: variant{name: "the protocol", window: 10_000, recreate: true, torn: true, ignoreRepeated: true}},
		{variant: variant{name: "the protocol, offsets lost", window: 10_000, recreate: true, loseOffsets: true, torn: true, ignoreRepeated: true}},
		{variant: variant{name: "window 3", window: 3, torn: true, ignoreRepeated: true}},
		{variant: variant{name: "the protocol on a replicated server: nothing is stored twice", window: 10_000, recreate: true, atomicTokens: true}},
		{variant: variant{name: "the range's token for every try, and a server that dies between token and rows", window: 10_000, atomicTokens: true, torn: true, ignoreRepeated: true}, wrong: true},
		{variant: variant{name: "no plan and rows without keys", window: 10_000, noPlan: true, atomicTokens: true}, wrong: true},
		{variant: variant{name: "token without the record's uid", window: 10_000, tokenNoUID: true, atomicTokens: true, recreate: true}, wrong: true},
		{variant: variant{name: "window 3 and rows without keys", window: 3, atomicTokens: true}, wrong: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := *seeds
			if test.wrong {
				n /= 4
			}
			var total simResult
			wrongSeeds := 0
			for seed := range uint64(n) {
				r, err := simulate(seed, test.variant, m)
				if err != nil && !test.wrong {
					t.Fatalf("seed %d: %v", seed, err)
				}
				total.takeovers += r.takeovers
				total.lost += r.lost
				total.repeated += r.repeated
				if r.lost+r.repeated > 0 || err != nil {
					wrongSeeds++
					if !test.wrong {
						t.Fatalf("seed %d: %d rows lost, %d stored again", seed, r.lost, r.repeated)
					}
				}
			}
			t.Logf("%d seeds, %d takeovers: %d rows lost, %d stored again, %d seeds wrong", n, total.takeovers, total.lost, total.repeated, wrongSeeds)
			if test.wrong && wrongSeeds == 0 {
				t.Error("the negative control found nothing: the simulation is blind")
			}
		})
	}
}
