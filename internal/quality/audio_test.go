package quality

import (
	"flag"
	"math"
	"testing"

	"pgregory.net/rapid"
)

// The table of published test vectors: Ie 10.2, Bpl 4.3, BurstR 1, 40 ms playout.
func TestAudioMOSVectors(t *testing.T) {
	for _, tc := range []struct{ rtt, lossPercent, r, mos float64 }{
		{60, 0, 93.11, 4.408},
		{60, 1, 77.58, 3.929},
		{60, 2, 66.98, 3.452},
		{60, 5, 48.86, 2.515},
		{60, 10, 35.56, 1.852},
		{60, 20, 25.37, 1.429},
		{400, 0, 82.97, 4.131},
		{2000, 0, 48.71, 2.508},
	} {
		got, ok := AudioMOS(AudioInput{Loss: tc.lossPercent / 100, BurstRatio: 1, RTTMs: tc.rtt, PlayoutDelayMs: 40})
		if !ok || math.Abs(got.MOS-tc.mos) > 0.005 || math.Abs(got.R-tc.r) > 0.005 {
			t.Errorf("rtt %v ms, loss %v %%: got R' %.3f, MOS %.4f (%v), want %v and %v", tc.rtt, tc.lossPercent, got.R, got.MOS, ok, tc.r, tc.mos)
		}
	}
}

// Plain G.107's defaults give R = 93.2 and MOS 4.41.
func TestMOSOfRAgreesWithG107(t *testing.T) {
	for _, tc := range []struct{ r, mos float64 }{{93.2, 4.41}, {0, 1}, {-20, 1}, {3, 1}, {50, 2.575}, {100, 4.5}, {140, 4.5}} {
		if got := mosOfR(tc.r); math.Abs(got-tc.mos) > 0.005 {
			t.Errorf("R %v: got MOS %.4f, want %v", tc.r, got, tc.mos)
		}
	}
}

func mosOf(t interface{ Fatalf(string, ...any) }, in AudioInput) float64 {
	score, ok := AudioMOS(in)
	if !ok {
		t.Fatalf("no score for %+v", in)
	}
	if math.IsNaN(score.MOS) || score.MOS < 1 || score.MOS > 4.5 {
		t.Fatalf("score %v of %+v is outside of 1 to 4.5", score.MOS, in)
	}
	return score.MOS
}

// manyCases lets rapid try 100,000 cases in this test: a law of formulas is
// cheap to try and a single counterexample counts. A larger number from the
// command line stands.
func manyCases(t *testing.T) {
	t.Helper()
	checks := flag.Lookup("rapid.checks")
	before := checks.Value.String()
	if n, ok := checks.Value.(flag.Getter).Get().(int); ok && n >= 100_000 {
		return
	}
	if err := flag.Set("rapid.checks", "100000"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := flag.Set("rapid.checks", before); err != nil {
			t.Error(err)
		}
	})
}

func drawAudio(t *rapid.T) AudioInput {
	return AudioInput{
		Loss:           rapid.Float64Range(0, 1).Draw(t, "loss"),
		BurstRatio:     rapid.Float64Range(0.1, 10).Draw(t, "burst"),
		RTTMs:          rapid.Float64Range(0, 20_000).Draw(t, "rtt"),
		PlayoutDelayMs: rapid.Float64Range(0, 5_000).Draw(t, "playout"),
	}
}

// More loss, delay or playout delay never raises a score, and equal inputs
// give equal scores.
func TestAudioMOSNeverRises(t *testing.T) {
	manyCases(t)
	rapid.Check(t, func(t *rapid.T) {
		in := drawAudio(t)
		before := mosOf(t, in)
		if again := mosOf(t, in); again != before {
			t.Fatalf("%+v scored %v and then %v", in, before, again)
		}
		worse := in
		more := rapid.Float64Range(0, 1).Draw(t, "more")
		switch rapid.IntRange(0, 2).Draw(t, "what") {
		case 0:
			worse.Loss = min(in.Loss+more, 1)
		case 1:
			worse.RTTMs += more * 3000
		case 2:
			worse.PlayoutDelayMs += more * 3000
		}
		if after := mosOf(t, worse); after > before {
			t.Fatalf("%+v scored %v, the worse %+v scored %v", in, before, worse, after)
		}
	})
}

// A bad minute costs nothing afterwards: the score of an interval knows only
// that interval, however bad the ones before were.
func TestAudioMOSRecovers(t *testing.T) {
	manyCases(t)
	rapid.Check(t, func(t *rapid.T) {
		good, bad := drawAudio(t), drawAudio(t)
		before := mosOf(t, good)
		mosOf(t, bad)
		if after := mosOf(t, good); after != before {
			t.Fatalf("%+v scored %v, and %v after %+v", good, before, after, bad)
		}
	})
}

func TestAudioMOSWithoutInputs(t *testing.T) {
	for _, in := range []AudioInput{
		{Loss: math.NaN()}, {RTTMs: math.NaN()}, {PlayoutDelayMs: math.Inf(1)}, {Loss: -0.1}, {RTTMs: -1}, {BurstRatio: -1},
	} {
		if got, ok := AudioMOS(in); ok {
			t.Errorf("%+v scored %+v, want no score", in, got)
		}
	}
	whole := mosOf(t, AudioInput{Loss: 1})
	if got := mosOf(t, AudioInput{Loss: 7}); got != whole {
		t.Errorf("loss above 1 scored %v, want that of 1, %v", got, whole)
	}
}

func TestScoreHeard(t *testing.T) {
	full := Heard{Concealment: new(0.02), Loss: new(0.5), RTTMs: new(60.0), PathRTTMs: new(400.0), PlayoutDelayMs: new(70.0)}
	for name, tc := range map[string]struct {
		change func(*Heard)
		want   AudioInput
		none   bool
	}{
		"all known":               {func(*Heard) {}, AudioInput{Loss: 0.02, RTTMs: 60, PlayoutDelayMs: 70}, false},
		"no concealment":          {func(h *Heard) { h.Concealment = nil }, AudioInput{Loss: 0.5, RTTMs: 60, PlayoutDelayMs: 70}, false},
		"concealment no number":   {func(h *Heard) { h.Concealment = new(math.NaN()) }, AudioInput{Loss: 0.5, RTTMs: 60, PlayoutDelayMs: 70}, false},
		"only the path":           {func(h *Heard) { h.RTTMs = nil }, AudioInput{Loss: 0.02, RTTMs: 400, PlayoutDelayMs: 70}, false},
		"round trip no number":    {func(h *Heard) { h.RTTMs = new(math.Inf(1)) }, AudioInput{Loss: 0.02, RTTMs: 400, PlayoutDelayMs: 70}, false},
		"playout delay unknown":   {func(h *Heard) { h.PlayoutDelayMs = nil }, AudioInput{Loss: 0.02, RTTMs: 60, PlayoutDelayMs: 40}, false},
		"no loss of any kind":     {func(h *Heard) { h.Concealment, h.Loss = nil, new(-1.0) }, AudioInput{}, true},
		"no round trip of any":    {func(h *Heard) { h.RTTMs, h.PathRTTMs = nil, nil }, AudioInput{}, true},
		"nothing known at all   ": {func(h *Heard) { *h = Heard{} }, AudioInput{}, true},
	} {
		in := full
		tc.change(&in)
		got, ok := ScoreHeard(in)
		if ok == tc.none {
			t.Errorf("%s: scored %v: %+v", name, ok, got)
			continue
		}
		if want, _ := AudioMOS(tc.want); !tc.none && got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

// The defects that published scoring code had or has, as far as they are
// about a formula. Each test fails with the defect built in.
func TestKnownDefects(t *testing.T) {
	at := func(loss, rtt float64) float64 {
		return mosOf(t, AudioInput{Loss: loss, RTTMs: rtt, PlayoutDelayMs: 40})
	}
	t.Run("rtcscore 3: delay penalty without parentheses made long delays score best", func(t *testing.T) {
		previous := at(0.02, 60)
		for _, rtt := range []float64{200, 300, 400, 600, 1000} {
			got := at(0.02, rtt)
			if got >= previous {
				t.Errorf("%v ms round trip scored %v, not below the %v of a shorter one", rtt, got, previous)
			}
			previous = got
		}
	})
	t.Run("peermetrics: loss as a fraction where percent are due", func(t *testing.T) {
		if got := at(0.2, 60); got > 1.6 {
			t.Errorf("20 %% loss scored %v", got)
		}
	})
	t.Run("twilio-client 75: above 1 s of round trip the MOS rose", func(t *testing.T) {
		previous := at(0, 900)
		for rtt := 1000.0; rtt <= 60_000; rtt *= 1.3 {
			got := at(0, rtt)
			if got > previous {
				t.Errorf("%v ms scored %v, above the %v before", rtt, got, previous)
			}
			previous = got
		}
	})
	t.Run("homer 258: cumulative loss never lets the MOS recover", func(t *testing.T) {
		// One bad interval, then a clean one: the counters of the whole still
		// hold the loss, those of the interval do not.
		received, lost := []float64{0, 400, 900}, []float64{0, 100, 100}
		var scores []float64
		for i := 1; i < len(received); i++ {
			loss, ok := LossRatio(received[i]-received[i-1], lost[i]-lost[i-1])
			if !ok {
				t.Fatal("no loss")
			}
			scores = append(scores, at(loss, 60))
		}
		if scores[1] != at(0, 60) || scores[0] >= scores[1] {
			t.Errorf("scores %v: the clean interval must score as if nothing had been lost before", scores)
		}
	})
	t.Run("rtcstats-server: loss over received only, and 0 when more is lost than received", func(t *testing.T) {
		for _, tc := range []struct{ received, lost, want float64 }{{700, 300, 0.3}, {500, 500, 0.5}, {100, 900, 0.9}, {0, 10, 1}} {
			if got, ok := LossRatio(tc.received, tc.lost); !ok || math.Abs(got-tc.want) > 1e-12 {
				t.Errorf("%v received, %v lost: got %v, want %v", tc.received, tc.lost, got, tc.want)
			}
		}
	})
	t.Run("client-monitor: a count of lost packets instead of their share", func(t *testing.T) {
		few, _ := LossRatio(495, 5)
		many, _ := LossRatio(4950, 50)
		if at(few, 60) != at(many, 60) {
			t.Error("the score depends on how many packets there were, not on their share")
		}
		if got := at(few, 60); got < 3.5 {
			t.Errorf("5 of 500 packets lost scored %v", got)
		}
	})
	t.Run("callstats-android: integer division made loss 0 unless total", func(t *testing.T) {
		if got, _ := LossRatio(99, 1); got != 0.01 {
			t.Errorf("1 of 100 lost is %v", got)
		}
	})
	t.Run("livekit scorer: a wrong packet rate changed the score of discontinuous transmission", func(t *testing.T) {
		// Nothing here knows a usual packet rate: a speaker who pauses sends a
		// tenth of the packets and scores the same.
		talking, _ := LossRatio(500, 0)
		pausing, _ := LossRatio(50, 0)
		if at(talking, 60) != at(pausing, 60) {
			t.Error("fewer packets without loss scored differently")
		}
	})
	t.Run("wire-avs 187: 1/6 in integers is 0 and the delay term vanished", func(t *testing.T) {
		// By hand for 260 ms one way: X = log2 2.6 = 1.3785, X^6 = 6.862,
		// (X/3)^6 = 0.009413; 25 (7.862^(1/6) - 3·1.009413^(1/6) + 2).
		x := math.Log2(2.6)
		want := 25 * (math.Pow(1+math.Pow(x, 6), 1.0/6) - 3*math.Pow(1+math.Pow(x/3, 6), 1.0/6) + 2)
		if got := delayImpairment(260); math.Abs(got-want) > 1e-9 || got < 5 {
			t.Errorf("260 ms cost %v, want %v", got, want)
		}
	})
	t.Run("rtpengine 1221: a negative R gave an impossible MOS", func(t *testing.T) {
		for _, in := range []AudioInput{{Loss: 1, RTTMs: 60_000, PlayoutDelayMs: 5000}, {Loss: 1}, {RTTMs: 1e9}} {
			if got := mosOf(t, in); got < 1 {
				t.Errorf("%+v scored %v", in, got)
			}
		}
	})
}

func TestRatiosKnowNothingWithoutPackets(t *testing.T) {
	for _, tc := range [][2]float64{{0, 0}, {-5, 5}, {math.NaN(), 1}, {1, math.Inf(1)}, {3, -3}} {
		if got, ok := LossRatio(tc[0], tc[1]); ok {
			t.Errorf("%v received, %v lost: got %v, want nothing", tc[0], tc[1], got)
		}
	}
	if got, ok := LossRatio(100, -3); !ok || got != 0 {
		t.Errorf("negative loss: got %v (%v), want 0", got, ok)
	}
}
