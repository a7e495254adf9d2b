package quality

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

var nan = math.NaN()

func TestScoreVideo(t *testing.T) {
	unknown := VideoInput{FreezeRatio: nan, FrameRate: nan, Loss: nan, SourceFrameRate: nan, Height: nan, SourceHeight: nan}
	with := func(change func(*VideoInput)) VideoInput {
		in := unknown
		change(&in)
		return in
	}
	for name, tc := range map[string]struct {
		in   VideoInput
		want VideoScore
	}{
		"smooth":            {with(func(v *VideoInput) { v.FrameRate, v.FreezeRatio, v.Loss = 30, 0, 0 }), VideoScore{Score: 5}},
		"half the frames":   {with(func(v *VideoInput) { v.FrameRate = 12 }), VideoScore{4, VideoReasons{FrameRate: 1}}},
		"slow source":       {with(func(v *VideoInput) { v.FrameRate, v.SourceFrameRate = 12, 12 }), VideoScore{Score: 5}},
		"fast source":       {with(func(v *VideoInput) { v.FrameRate, v.SourceFrameRate = 24, 60 }), VideoScore{Score: 5}},
		"no frames":         {with(func(v *VideoInput) { v.FrameRate = 0 }), VideoScore{2.5, VideoReasons{FrameRate: 2.5}}},
		"a tenth frozen":    {with(func(v *VideoInput) { v.FreezeRatio = 0.1 }), VideoScore{3.5, VideoReasons{Freeze: 1.5}}},
		"5 % lost":          {with(func(v *VideoInput) { v.FrameRate, v.Loss = 30, 0.05 }), VideoScore{4, VideoReasons{Loss: 1}}},
		"quarter of height": {with(func(v *VideoInput) { v.FrameRate, v.Height, v.SourceHeight = 30, 180, 720 }), VideoScore{3.5, VideoReasons{Resolution: 1.5}}},
		"everything bad": {VideoInput{FreezeRatio: 1, FrameRate: 0, Loss: 1, Height: 1, SourceHeight: 1080, SourceFrameRate: nan},
			VideoScore{1, VideoReasons{Freeze: 3, FrameRate: 2.5, Resolution: 2, Loss: 2}}},
		"screen at 5 frames": {with(func(v *VideoInput) { v.FrameRate, v.Screen = 5, true }), VideoScore{Score: 5}},
		"screen, quarter of height": {with(func(v *VideoInput) { v.FrameRate, v.Height, v.SourceHeight, v.Screen = 5, 270, 1080, true }),
			VideoScore{2, VideoReasons{Resolution: 3}}},
	} {
		got, ok := ScoreVideo(tc.in)
		if !ok {
			t.Errorf("%s: no score", name)
		}
		if diff := cmp.Diff(tc.want, got, cmpopts.EquateApprox(0, 1e-9)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for name, in := range map[string]VideoInput{"nothing known": unknown, "loss alone": with(func(v *VideoInput) { v.Loss = 0.1 })} {
		if got, ok := ScoreVideo(in); ok {
			t.Errorf("%s: scored %+v, want nothing", name, got)
		}
	}
}

func TestVideoScoreNeverRises(t *testing.T) {
	manyCases(t)
	rapid.Check(t, func(t *rapid.T) {
		in := VideoInput{
			FreezeRatio:     rapid.Float64Range(0, 1).Draw(t, "freeze"),
			FrameRate:       rapid.Float64Range(0, 60).Draw(t, "fps"),
			Loss:            rapid.Float64Range(0, 1).Draw(t, "loss"),
			Height:          rapid.Float64Range(1, 2160).Draw(t, "height"),
			SourceHeight:    rapid.SampledFrom([]float64{nan, 180, 720, 1080}).Draw(t, "source"),
			SourceFrameRate: rapid.SampledFrom([]float64{nan, 5, 15, 30}).Draw(t, "source fps"),
			Screen:          rapid.Bool().Draw(t, "screen"),
		}
		before, ok := ScoreVideo(in)
		if !ok || !(before.Score >= 1 && before.Score <= 5) {
			t.Fatalf("%+v scored %+v (%v)", in, before, ok)
		}
		worse := in
		by := rapid.Float64Range(0, 1).Draw(t, "by")
		switch rapid.IntRange(0, 3).Draw(t, "what") {
		case 0:
			worse.FreezeRatio = min(in.FreezeRatio+by, 1)
		case 1:
			worse.FrameRate *= 1 - by
		case 2:
			worse.Loss = min(in.Loss+by, 1)
		case 3:
			worse.Height *= 1 - by
		}
		if after, _ := ScoreVideo(worse); after.Score > before.Score {
			t.Fatalf("%+v scored %v, the worse %+v scored %v", in, before.Score, worse, after.Score)
		}
	})
}
