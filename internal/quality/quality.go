// Package quality holds the formulas of call quality: ratios of counters, the
// audio and video scores, and the sketch that percentiles come from. It is
// pure: no state beyond a Sketch, no input or output. It does not decide when
// a score applies (mute, hold, pause: that is the caller's knowledge) and sets
// no labels (excellent, fair, bad are thresholds of the SQL views).
package quality

import "math"

// Thresholds of "share of time below" (quality.md 3.2). For the scores, time
// below is bad time; for loss, jitter and round-trip time it is good time.
const (
	AudioMOSThreshold   = 3.5
	VideoScoreThreshold = 3.0
	LossThreshold       = 0.05
	JitterMsThreshold   = 100.0
	RTTMsThreshold      = 300.0
)

// LossRatio is the share of packets that were lost, lost ÷ (received + lost),
// between 0 and 1, from sums over any span of time. lost may be negative in
// one interval (w3c/webrtc-stats#253): add first, then call this. It answers
// false where nothing was sent or an argument is not a number.
func LossRatio(received, lost float64) (float64, bool) {
	return ShareOf(lost, received+lost)
}

// ShareOf is part ÷ whole between 0 and 1. It answers false where the whole is
// not positive or an argument is not a number.
func ShareOf(part, whole float64) (float64, bool) {
	if !finite(part) || !finite(whole) || whole <= 0 {
		return 0, false
	}
	return min(max(part/whole, 0), 1), true
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// round4 rounds to four decimals. Scores are rounded so that a platform whose
// logarithm differs in the last bit gives the same bytes.
func round4(v float64) float64 { return math.Round(v*1e4) / 1e4 }
