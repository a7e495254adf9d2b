package quality

import (
	"math"
	"math/big"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

type weighted struct {
	value  float64
	weight uint64
}

func drawWeighted(t *rapid.T, label string) []weighted {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) weighted {
		return weighted{
			value:  rapid.OneOf(rapid.Float64Range(0, 3), rapid.Float64Range(0, 1e7), rapid.Just(0.0), rapid.Float64Range(1e-9, 1e-3)).Draw(t, "value"),
			weight: rapid.Uint64Range(1, 20_000).Draw(t, "weight"),
		}
	}), 1, 200).Draw(t, label)
}

func sketchOf(values []weighted) *Sketch {
	s := &Sketch{}
	for _, v := range values {
		s.Add(v.value, v.weight)
	}
	return s
}

// exactQuantile sorts and counts.
func exactQuantile(values []weighted, q float64) float64 {
	sorted := slices.Clone(values)
	slices.SortFunc(sorted, func(a, b weighted) int {
		if a.value < b.value {
			return -1
		}
		return 1
	})
	var total, below uint64
	for _, v := range sorted {
		total += v.weight
	}
	for _, v := range sorted {
		below += v.weight
		if float64(below) >= q*float64(total) {
			return v.value
		}
	}
	return sorted[len(sorted)-1].value
}

func near(got, want, bound float64) bool {
	return math.Abs(got-want) <= bound*want*(1+1e-9)+smallestValue
}

func TestSketchQuantilesAreWithinTheBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := drawWeighted(t, "values")
		s := sketchOf(values)
		if limit := rapid.SampledFrom([]int{0, 4, 5, 8, 20, 40}).Draw(t, "limit"); limit > 0 {
			s.Bound(limit)
			if got := len(s.Parts().Deltas); got > limit {
				t.Fatalf("%d buckets after Bound(%d)", got, limit)
			}
		} else if got := s.ErrorBound(); got > 0.01 {
			t.Fatalf("a sketch that was never collapsed has the bound %v", got)
		}
		for _, q := range []float64{0.001, 0.1, 0.5, 0.9, 0.999, 1} {
			got, ok := s.Quantile(q)
			want := exactQuantile(values, q)
			if !ok || !near(got, want, s.ErrorBound()) {
				t.Fatalf("quantile %v is %v, want %v within %v", q, got, want, s.ErrorBound())
			}
		}
	})
}

func TestSketchDoesNotDependOnOrderOrGrouping(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := drawWeighted(t, "a"), drawWeighted(t, "b"), drawWeighted(t, "c")
		all := slices.Concat(a, b, c)
		want := sketchOf(all).Parts()
		slices.Reverse(all)
		if diff := cmp.Diff(want, sketchOf(all).Parts()); diff != "" {
			t.Fatalf("order: %s", diff)
		}
		left, right := sketchOf(a), sketchOf(b)
		left.Merge(sketchOf(b), 1, 1)
		left.Merge(sketchOf(c), 1, 1)
		right.Merge(sketchOf(c), 1, 1)
		right.Merge(sketchOf(a), 1, 1)
		if diff := cmp.Diff(want, left.Parts()); diff != "" {
			t.Fatalf("merging: %s", diff)
		}
		if diff := cmp.Diff(want, right.Parts()); diff != "" {
			t.Fatalf("merging in another order: %s", diff)
		}
		restored, err := SketchOf(want)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, restored.Parts()); diff != "" {
			t.Fatalf("storing: %s", diff)
		}
	})
}

// The bucket bounds are written out; they must be what they say.
func TestSketchBounds(t *testing.T) {
	for i, b := range bounds {
		power := new(big.Float).SetPrec(200).SetFloat64(1)
		exact := new(big.Float).SetPrec(200).SetFloat64(b)
		for range bucketsPerOctave {
			power.Mul(power, exact)
		}
		got, _ := power.Float64()
		if want := math.Ldexp(1, i); math.Abs(got/want-1) > 1e-13 {
			t.Errorf("bound %d to the power of 35 is %v, want %v", i, got, want)
		}
	}
	for _, v := range []float64{1e-9, 0.1, 0.999999, 1, 1.02000160942119910707, 2, 3.3, 1e18} {
		index := bucketOf(v)
		if low, high := lowerBound(index), lowerBound(index+1); !(low <= v && v < high) {
			t.Errorf("%v falls into the bucket from %v to %v", v, low, high)
		}
	}
}

func TestSketchIgnoresWhatIsNoValue(t *testing.T) {
	var s Sketch
	for _, v := range []float64{math.NaN(), math.Inf(1), -1} {
		s.Add(v, 5)
	}
	s.Add(3, 0)
	if _, ok := s.Quantile(0.5); ok || s.Weight() != 0 {
		t.Errorf("sketch has weight %d, want none", s.Weight())
	}
}

func TestSketchOfRefusesWhatNoSketchHas(t *testing.T) {
	for name, parts := range map[string]SketchParts{
		"weights missing": {Deltas: []int32{1}},
		"out of order":    {Deltas: []int32{1, 0}, Weights: []uint64{1, 1}},
		"level":           {Level: 99},
	} {
		if _, err := SketchOf(parts); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func BenchmarkSketchAdd(b *testing.B) {
	var s Sketch
	for i := 0; b.Loop(); i++ {
		s.Add(float64(i%1000)+0.5, 10_000)
		s.Bound(128)
	}
}
