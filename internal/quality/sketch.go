package quality

import (
	"fmt"
	"math"
	"slices"
)

const (
	// bucketsPerOctave makes neighbouring bucket bounds differ by 2^(1/35), 2 %.
	bucketsPerOctave = 35
	// maxSketchLevel bounds collapsing: at level 11 one bucket spans 58 octaves,
	// and four of them everything that is told from 0.
	maxSketchLevel = 11
	// smallest positive value that is told from 0.
	smallestValue = 1e-9
	largestValue  = 1e18
)

// bounds are 2^(i/35), written out so that no platform's logarithm decides in
// which bucket a value falls.
var bounds = [bucketsPerOctave]float64{
	1, 1.02000160942119910707, 1.04040328322183641503, 1.06121302333337278115, 1.08243899173877675802,
	1.10408951367381233765, 1.12617308089235760286, 1.14869835499703500680, 1.17167417083645961859, 1.19510953997043780136,
	1.21901365420447544091, 1.24339588919498202739, 1.26826580812658462093, 1.29363316546299401494, 1.31950791077289425937,
	1.34590019263235613194, 1.37282036260530515939, 1.40027897930360540542, 1.42828681252835146876, 1.45685484749399298634,
	1.48599428913694842480, 1.51571656651039808235, 1.54603333726698002362, 1.57695649223114714782, 1.60849816006297875712,
	1.64067071201527586234, 1.67348676678580605107, 1.70695919546660106232, 1.74110112659224827827, 1.77592595128915617061,
	1.81144732852781334319, 1.84767919048010120859, 1.88463574798376154044, 1.92233149611616217133, 1.96078121987954697532,
}

// Sketch is a mergeable histogram of weighted, non-negative values with
// logarithmic buckets, from which quantiles are read. The relative error of a
// quantile is at most ErrorBound: 1 % as long as the sketch was never
// collapsed. A sketch that is told to stay small (Bound) joins neighbouring
// buckets, which doubles the error each time. Values below 1e-9 count as 0.
//
// It is deterministic: the same values give the same sketch in any order and
// under any grouping of merges, except that Bound changes the resolution at
// the time it is called. The zero value is an empty sketch.
type Sketch struct {
	level   uint32
	zero    uint64
	indexes []int32 // ascending
	weights []uint64
}

// Add counts a value with a weight. Values that are negative or not a number
// are ignored, and so is a weight of 0.
func (s *Sketch) Add(value float64, weight uint64) {
	if !known(value) || weight == 0 {
		return
	}
	if value < smallestValue {
		s.zero += weight
		return
	}
	s.addBucket(bucketOf(min(value, largestValue))>>s.level, weight)
}

func (s *Sketch) addBucket(index int32, weight uint64) {
	at, found := slices.BinarySearch(s.indexes, index)
	if found {
		s.weights[at] += weight
		return
	}
	s.indexes = slices.Insert(s.indexes, at, index)
	s.weights = slices.Insert(s.weights, at, weight)
}

// Merge adds another sketch, with its weights multiplied by numerator ÷
// denominator and rounded down, to 1 at least. It takes the coarser resolution of the two.
func (s *Sketch) Merge(other *Sketch, numerator, denominator uint64) {
	for s.level < other.level {
		s.collapse()
	}
	s.zero += scale(other.zero, numerator, denominator)
	for i, index := range other.indexes {
		s.addBucket(index>>(s.level-other.level), scale(other.weights[i], numerator, denominator))
	}
}

func scale(w, numerator, denominator uint64) uint64 {
	if w == 0 || numerator == denominator {
		return w
	}
	return max(uint64(float64(w)*(float64(numerator)/float64(denominator))), 1)
}

// Bound collapses the sketch until it has at most the given number of buckets,
// 4 at the least.
func (s *Sketch) Bound(buckets int) {
	for len(s.indexes) > buckets && s.level < maxSketchLevel {
		s.collapse()
	}
}

// collapse joins each two neighbouring buckets into one of twice the width.
func (s *Sketch) collapse() {
	s.level++
	kept := 0
	for i, index := range s.indexes {
		index >>= 1
		if kept > 0 && s.indexes[kept-1] == index {
			s.weights[kept-1] += s.weights[i]
			continue
		}
		s.indexes[kept], s.weights[kept] = index, s.weights[i]
		kept++
	}
	s.indexes, s.weights = s.indexes[:kept], s.weights[:kept]
}

// Weight is the sum of all weights.
func (s *Sketch) Weight() uint64 {
	total := s.zero
	for _, w := range s.weights {
		total += w
	}
	return total
}

// Quantile is a value within ErrorBound of the smallest value whose weight,
// with that of all smaller ones, reaches the share q of the whole. It answers
// false for an empty sketch.
func (s *Sketch) Quantile(q float64) (float64, bool) {
	total := s.Weight()
	if total == 0 {
		return 0, false
	}
	rank := max(uint64(math.Ceil(float64(q*float64(total)))), 1)
	below := s.zero
	if below >= rank {
		return 0, true
	}
	for i, w := range s.weights {
		if below += w; below >= rank || i == len(s.weights)-1 {
			return s.middle(s.indexes[i]), true
		}
	}
	return 0, true
}

// ErrorBound is the largest relative error of a quantile, 0.0099 for a sketch
// that was never collapsed.
func (s *Sketch) ErrorBound() float64 {
	ratio := math.Exp2(math.Exp2(float64(s.level)) / bucketsPerOctave)
	return (ratio - 1) / (ratio + 1)
}

// middle is the value of a bucket whose relative distance to both bounds is equal.
func (s *Sketch) middle(index int32) float64 {
	low, high := lowerBound(index<<s.level), lowerBound((index+1)<<s.level)
	return 2 * low / (low + high) * high
}

func bucketOf(value float64) int32 {
	fraction, exponent := math.Frexp(value) // fraction in [0.5, 1)
	at, found := slices.BinarySearch(bounds[:], fraction*2)
	if !found {
		at--
	}
	return int32((exponent-1)*bucketsPerOctave + at)
}

func lowerBound(index int32) float64 {
	octave := int(index) / bucketsPerOctave
	rest := int(index) % bucketsPerOctave
	if rest < 0 {
		octave, rest = octave-1, rest+bucketsPerOctave
	}
	return math.Ldexp(bounds[rest], octave)
}

// SketchParts is a sketch as it is stored: the first index, then differences.
type SketchParts struct {
	Level   uint32
	Zero    uint64
	Deltas  []int32
	Weights []uint64
}

// Parts returns the sketch for storing. The slices are copies.
func (s *Sketch) Parts() SketchParts {
	p := SketchParts{Level: s.level, Zero: s.zero}
	if len(s.indexes) == 0 {
		return p
	}
	p.Deltas, p.Weights = make([]int32, len(s.indexes)), slices.Clone(s.weights)
	previous := int32(0)
	for i, index := range s.indexes {
		p.Deltas[i], previous = index-previous, index
	}
	return p
}

// SketchOf makes a sketch of its stored parts. Parts that no sketch has are an error.
func SketchOf(p SketchParts) (Sketch, error) {
	if len(p.Deltas) != len(p.Weights) {
		return Sketch{}, fmt.Errorf("sketch has %d buckets and %d weights", len(p.Deltas), len(p.Weights))
	}
	if p.Level > maxSketchLevel {
		return Sketch{}, fmt.Errorf("sketch has level %d, above %d", p.Level, maxSketchLevel)
	}
	s := Sketch{level: p.Level, zero: p.Zero}
	if len(p.Deltas) == 0 {
		return s, nil
	}
	s.indexes, s.weights = make([]int32, len(p.Deltas)), slices.Clone(p.Weights)
	at := int32(0)
	for i, delta := range p.Deltas {
		if i > 0 && delta <= 0 {
			return Sketch{}, fmt.Errorf("sketch has buckets out of order")
		}
		at += delta
		s.indexes[i] = at
	}
	return s, nil
}
