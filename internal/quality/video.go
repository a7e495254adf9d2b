package quality

import "math"

// VideoModel names the formula behind every video score. It is a plain
// heuristic and no MOS: no ITU model fits monitoring of interactive video.
const VideoModel = "video-penalties/1"

// VideoInput is what one viewer's stream showed in one interval. An absent
// value is NaN and costs nothing.
type VideoInput struct {
	FreezeRatio float64 // frozen time ÷ interval, 0 to 1
	FrameRate   float64 // frames per second shown
	Loss        float64 // 0 to 1, after repair where the client counts it
	// SourceFrameRate and SourceHeight are what the sender captured or the
	// viewer asked for, where both sides are known.
	SourceFrameRate float64
	Height          float64
	SourceHeight    float64
	Screen          bool // a shared screen, scored by its own table
}

// VideoReasons are the penalties that a score is 5 less of, four decimals.
type VideoReasons struct {
	Freeze, FrameRate, Resolution, Loss float64
}

// VideoScore is 1 to 5, four decimals, with its reasons.
type VideoScore struct {
	Score   float64
	Reasons VideoReasons
}

// videoTable holds one kind's costs; a penalty is at most its cap.
type videoTable struct {
	freezePerRatio, freezeCap       float64
	usualFPS, fpsPerHalving, fpsCap float64
	heightPerHalving, heightCap     float64
	lossPerRatio, lossCap           float64
}

var (
	// A face must move: 20 % frozen time costs 3, half the frames 1.
	cameraTable = videoTable{
		freezePerRatio: 15, freezeCap: 3, usualFPS: 24, fpsPerHalving: 1, fpsCap: 2.5,
		heightPerHalving: 0.75, heightCap: 2, lossPerRatio: 20, lossCap: 2,
	}
	// A screen must be legible: it stands still most of the time, so frames
	// cost little and resolution twice as much.
	screenTable = videoTable{
		freezePerRatio: 5, freezeCap: 1.5, usualFPS: 5, fpsPerHalving: 0.5, fpsCap: 1.5,
		heightPerHalving: 1.5, heightCap: 3, lossPerRatio: 20, lossCap: 2,
	}
)

// ScoreVideo takes the penalties off 5 and answers at least 1. It answers
// false where neither frozen time nor frame rate is known: loss alone does not
// tell what was seen.
func ScoreVideo(in VideoInput) (VideoScore, bool) {
	if !known(in.FreezeRatio) && !known(in.FrameRate) {
		return VideoScore{}, false
	}
	t := cameraTable
	if in.Screen {
		t = screenTable
	}
	var r VideoReasons
	if known(in.FreezeRatio) {
		r.Freeze = round4(min(float64(t.freezePerRatio*min(in.FreezeRatio, 1)), t.freezeCap))
	}
	if known(in.FrameRate) {
		expected := t.usualFPS
		if known(in.SourceFrameRate) && in.SourceFrameRate > 0 {
			expected = min(expected, in.SourceFrameRate)
		}
		r.FrameRate = halvings(in.FrameRate, expected, t.fpsPerHalving, t.fpsCap)
	}
	if known(in.Height) && known(in.SourceHeight) && in.SourceHeight > 0 {
		r.Resolution = halvings(in.Height, in.SourceHeight, t.heightPerHalving, t.heightCap)
	}
	if known(in.Loss) {
		r.Loss = round4(min(float64(t.lossPerRatio*min(in.Loss, 1)), t.lossCap))
	}
	score := 5 - r.Freeze - r.FrameRate - r.Resolution - r.Loss
	return VideoScore{Score: round4(max(score, 1)), Reasons: r}, true
}

// halvings is the cost of having only part of what was expected.
func halvings(have, expected, each, limit float64) float64 {
	if have >= expected {
		return 0
	}
	if have <= 0 {
		return limit
	}
	return round4(min(float64(each*math.Log2(expected/have)), limit))
}

func known(v float64) bool { return finite(v) && v >= 0 }
