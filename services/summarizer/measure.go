package summarizer

import (
	"fmt"
	"math"

	"github.com/callscope/callscope/internal/quality"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

const (
	// streamBuckets is how many sketch buckets each measure of a participant's
	// streams may use together, so that a participant stays within 16 KB of
	// state with 50 streams and more. From maxSketched streams on no stream has
	// a sketch: its mean, extremes and time below the threshold stay exact, its
	// percentiles are unknown. Those of the participant remain.
	streamBuckets = 320
	maxSketched   = 24
	minBuckets    = 8
	maxBuckets    = 128
	// participantBuckets is how many buckets each of a participant's own
	// measures may use.
	participantBuckets = 64
	// maxIntervalMs bounds the weight of one sample: a day.
	maxIntervalMs = 24 * 60 * 60 * 1000
)

// bucketLimit is how many buckets one sketch may have beside the given number
// of others of the same participant and measure, 0: none. Up to 2 it is 128: a
// sketch stays within 1 % where its values fall into fewer 2 % steps than that.
func bucketLimit(number int) int {
	if number > maxSketched {
		return 0
	}
	return min(max(streamBuckets/max(number, 1), minBuckets), maxBuckets)
}

// measure is the distribution of one measure over time. The mean, the extremes
// and the time below the threshold are exact, the percentiles come from the
// sketch. Weights are whole milliseconds of interval.
type measure struct {
	sum      float64 // of value × weight
	min, max float64
	belowMs  uint64
	sketch   quality.Sketch
	totalMs  uint64 // not 0: the weight; it has no sketch, or one of rounded weights
}

// weight is the measured time in milliseconds.
func (m *measure) weight() uint64 {
	if m.totalMs > 0 {
		return m.totalMs
	}
	return m.sketch.Weight()
}

// bound keeps the sketch small. With 0 buckets it is given up for good.
func (m *measure) bound(buckets int) {
	switch {
	case m.totalMs > 0:
	case buckets == 0:
		m.totalMs, m.sketch = m.sketch.Weight(), quality.Sketch{}
	default:
		m.sketch.Bound(buckets)
	}
}

// bound keeps the stream's sketches small, also when nothing comes of it any more.
func (st *streamState) bound(buckets int) {
	for _, m := range []*measure{st.bitrate, st.loss, st.jitter, st.rtt, st.audioMOS, st.videoScore} {
		if m != nil {
			m.bound(buckets)
		}
	}
}

// weightOf is the weight of a sample: its interval in whole milliseconds, and
// 1 where the interval is unknown, so that a lone value still shows.
func weightOf(intervalMs *float64) uint64 {
	if intervalMs == nil || !(*intervalMs >= 1) {
		return 1
	}
	return uint64(math.Round(min(*intervalMs, maxIntervalMs)))
}

// add counts a value, making the measure at the first one. Values that are
// absent, negative or not finite are ignored. A threshold of 0 means none.
func add(m *measure, value *float64, weight uint64, threshold float64, buckets int) *measure {
	if value == nil || !usable(*value) {
		return m
	}
	v := math.Abs(*value) // a negative zero would not survive a snapshot
	if m == nil {
		m = &measure{min: v, max: v}
	}
	m.sum += float64(v * float64(weight))
	m.min, m.max = min(m.min, v), max(m.max, v)
	if v < threshold {
		m.belowMs += weight
	}
	if m.totalMs > 0 {
		m.totalMs += weight
		return m
	}
	m.sketch.Add(v, weight)
	m.bound(buckets)
	return m
}

// usable tells whether a number can be counted: finite, not negative, and
// small enough that no sum of them overflows.
func usable(v float64) bool { return v >= 0 && v <= 1e15 }

// merge adds a measure with its total weight scaled to the given one. m may be
// nil, other must have a sketch.
func merge(m, other *measure, weight uint64) *measure {
	own := other.weight()
	if m == nil {
		m = &measure{min: other.min, max: other.max}
	}
	// Its mean is exact, whatever the rounding of the sketch's weights.
	m.sum += float64(other.mean() * float64(weight))
	m.min, m.max = min(m.min, other.min), max(m.max, other.max)
	m.belowMs += uint64(math.Round(float64(other.belowMs) / float64(own) * float64(weight)))
	m.sketch.Merge(&other.sketch, weight, own)
	m.totalMs += weight
	return m
}

// mean is the weighted mean; the measure must have a value. It is clamped to
// the extremes, which rounding may leave by a last bit.
func (m *measure) mean() float64 {
	return min(max(m.sum/float64(m.weight()), m.min), m.max)
}

// distribution is what a summary says of a measure; nil without a sample.
func (m *measure) distribution(threshold float64) *callscopev1.Distribution {
	if m == nil {
		return nil
	}
	d := &callscopev1.Distribution{
		Mean: new(m.mean()), Min: new(m.min), P10: m.quantile(0.1), Median: m.quantile(0.5), P90: m.quantile(0.9), Max: new(m.max),
	}
	if threshold > 0 {
		d.ShareBelow = new(min(float64(m.belowMs)/float64(m.weight()), 1))
	}
	return d
}

func (m *measure) quantile(q float64) *float64 {
	v, ok := m.sketch.Quantile(q)
	if !ok {
		return nil
	}
	return new(min(max(v, m.min), m.max))
}

func (m *measure) state() *callscopev1.SummarizerMeasure {
	if m == nil {
		return nil
	}
	parts := m.sketch.Parts()
	return &callscopev1.SummarizerMeasure{
		WeightedSum: m.sum, Min: m.min, Max: m.max, BelowMs: m.belowMs,
		Level: parts.Level, ZeroMs: parts.Zero, BucketDeltas: parts.Deltas, BucketMs: parts.Weights, TotalMs: m.totalMs,
	}
}

func measureOf(s *callscopev1.SummarizerMeasure) (*measure, error) {
	if s == nil {
		return nil, nil
	}
	sketch, err := quality.SketchOf(quality.SketchParts{Level: s.Level, Zero: s.ZeroMs, Deltas: s.BucketDeltas, Weights: s.BucketMs})
	if err != nil {
		return nil, fmt.Errorf("restoring a measure: %w", err)
	}
	m := &measure{sum: s.WeightedSum, min: s.Min, max: s.Max, belowMs: s.BelowMs, sketch: sketch, totalMs: s.TotalMs}
	if m.weight() == 0 {
		return nil, fmt.Errorf("restoring a measure: it has no samples")
	}
	return m, nil
}
