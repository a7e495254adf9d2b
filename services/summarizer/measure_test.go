package summarizer

import (
	"cmp"
	"encoding/json"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/callscope/callscope/internal/quality"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// naive computes a distribution as one would on paper.
type point struct{ value, ms float64 }

func naive(points []point, threshold float64) *callscopev1.Distribution {
	d := &callscopev1.Distribution{}
	if len(points) == 0 {
		return d
	}
	points = slices.Clone(points)
	slices.SortStableFunc(points, func(a, b point) int { return cmp.Compare(a.value, b.value) })
	var sum, total, below float64
	for _, p := range points {
		sum += p.value * p.ms
		total += p.ms
		if p.value < threshold {
			below += p.ms
		}
	}
	quantile := func(q float64) *float64 {
		seen := 0.0
		for _, p := range points {
			if seen += p.ms; seen >= q*total {
				return new(p.value)
			}
		}
		return new(points[len(points)-1].value)
	}
	d.Mean, d.Min, d.Max = new(sum/total), new(points[0].value), new(points[len(points)-1].value)
	d.P10, d.Median, d.P90 = quantile(0.1), quantile(0.5), quantile(0.9)
	if threshold > 0 {
		d.ShareBelow = new(below / total)
	}
	return d
}

// compare holds a distribution against the naive one; percentiles may differ
// by the relative error.
func compare(t interface{ Errorf(string, ...any) }, what string, got *callscopev1.Distribution, want *callscopev1.Distribution, relative float64) {
	for name, pair := range map[string][2]*float64{
		"mean": {got.Mean, want.Mean}, "min": {got.Min, want.Min}, "max": {got.Max, want.Max}, "share below": {got.ShareBelow, want.ShareBelow},
	} {
		if !closeTo(pair[0], pair[1], 1e-9) {
			t.Errorf("%s: %s is %v, want %v", what, name, show(pair[0]), show(pair[1]))
		}
	}
	for name, pair := range map[string][2]*float64{"p10": {got.P10, want.P10}, "median": {got.Median, want.Median}, "p90": {got.P90, want.P90}} {
		if !closeTo(pair[0], pair[1], relative) {
			t.Errorf("%s: %s is %v, want %v within %v", what, name, show(pair[0]), show(pair[1]), relative)
		}
	}
}

func closeTo(got, want *float64, relative float64) bool {
	if got == nil || want == nil {
		return got == nil && want == nil
	}
	return math.Abs(*got-*want) <= relative*math.Abs(*want)*(1+1e-9)+1e-9
}

func show(v *float64) any {
	if v == nil {
		return "absent"
	}
	return *v
}

// A stream's summary against a computation on paper over the same samples.
func TestStreamAggregatesAgreeWithANaiveComputation(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := newLog(t)
		l.message()
		l.participant(alice, present(0))
		l.conference(room, openFacts())
		direction := rapid.SampledFrom([]callscopev1.Direction{inbound, outbound}).Draw(rt, "direction")
		optional := func(low, high float64, label string) *float64 {
			if rapid.IntRange(0, 4).Draw(rt, label+" known") == 0 {
				return nil
			}
			return new(rapid.Float64Range(low, high).Draw(rt, label))
		}
		var bitrate, loss, jitter, rtt []point
		var lost, expected float64
		counted := false
		n := rapid.IntRange(0, 60).Draw(rt, "samples")
		for range n {
			s := &callscopev1.StreamSample{Ssrc: "1", Direction: direction, MediaType: "audio"}
			ms := float64(rapid.IntRange(1, 30_000).Draw(rt, "interval"))
			s.IntervalMs = &ms
			s.BitrateKbps, s.JitterMs, s.RttMs = optional(0, 3000, "bitrate"), optional(0, 500, "jitter"), optional(0, 900, "rtt")
			for _, part := range []struct {
				value *float64
				to    *[]point
			}{{s.BitrateKbps, &bitrate}, {s.JitterMs, &jitter}, {s.RttMs, &rtt}} {
				if part.value != nil {
					*part.to = append(*part.to, point{*part.value, ms})
				}
			}
			if rapid.Bool().Draw(rt, "packets known") {
				packets := float64(rapid.IntRange(0, 500).Draw(rt, "packets"))
				gone := float64(rapid.IntRange(-5, 100).Draw(rt, "lost"))
				s.Packets, s.PacketsLost = &packets, &gone
				whole := packets
				if direction == inbound {
					whole += gone
				}
				lost, expected, counted = lost+gone, expected+whole, true
				if whole > 0 {
					s.Loss = new(min(max(gone/whole, 0), 1))
					loss = append(loss, point{*s.Loss, ms})
				}
			}
			l.sample(alice, s)
		}
		l.tick(1000)
		got := l.out[0].GetStream()
		if n == 0 {
			if got != nil {
				rt.Fatalf("a stream without samples: %v", got)
			}
			return
		}
		compare(rt, "bitrate", orEmpty(got.BitrateKbps), naive(bitrate, 0), 0.01)
		compare(rt, "jitter", orEmpty(got.JitterMs), naive(jitter, 100), 0.01)
		compare(rt, "rtt", orEmpty(got.RttMs), naive(rtt, 300), 0.01)
		want := naive(loss, 0.05)
		want.Mean = nil
		if counted && expected > 0 {
			want.Mean = new(min(max(lost/expected, 0), 1))
		} else if len(loss) > 0 {
			want.Mean = naive(loss, 0.05).Mean
		}
		compare(rt, "loss", orEmpty(got.Loss), want, 0.01)
		if got.Samples != uint32(n) {
			rt.Errorf("%d samples, want %d", got.Samples, n)
		}
	})
}

func orEmpty(d *callscopev1.Distribution) *callscopev1.Distribution {
	if d == nil {
		return &callscopev1.Distribution{}
	}
	return d
}

func TestLossOfAWholeStream(t *testing.T) {
	for name, tc := range map[string]struct {
		direction callscopev1.Direction
		samples   [][2]float64 // packets, lost
		want      *float64
	}{
		"sums, not a mean of ratios":         {inbound, [][2]float64{{90, 10}, {0, 0}, {900, 0}}, new(0.01)},
		"more lost than received":            {inbound, [][2]float64{{10, 90}}, new(0.9)},
		"all lost":                           {inbound, [][2]float64{{0, 50}}, new(1.0)},
		"late packets take loss back":        {inbound, [][2]float64{{98, 2}, {102, -2}}, new(0.0)},
		"negative in sum is none":            {inbound, [][2]float64{{100, -2}}, new(0.0)},
		"outbound counts what was sent":      {outbound, [][2]float64{{100, 10}}, new(0.1)},
		"outbound cannot lose more than all": {outbound, [][2]float64{{100, 300}}, new(1.0)},
		"nothing sent":                       {inbound, [][2]float64{{0, 0}}, nil},
	} {
		l := newLog(t)
		l.message()
		l.participant(alice, present(0))
		l.conference(room, openFacts())
		for _, s := range tc.samples {
			l.sample(alice, &callscopev1.StreamSample{Ssrc: "1", Direction: tc.direction, IntervalMs: new(1000.0), Packets: &s[0], PacketsLost: &s[1]})
		}
		l.tick(1000)
		var got *float64
		if d := l.out[0].GetStream().Loss; d != nil {
			got = d.Mean
		}
		if !closeTo(got, tc.want, 1e-12) {
			t.Errorf("%s: loss is %v, want %v", name, show(got), show(tc.want))
		}
	}
}

// heard is an inbound audio sample of ten seconds, scored as an enricher does.
func heard(t *testing.T, loss float64) *callscopev1.StreamSample {
	t.Helper()
	score, ok := quality.AudioMOS(quality.AudioInput{Loss: loss, RTTMs: 60, PlayoutDelayMs: 40})
	if !ok {
		t.Fatal("no score")
	}
	return &callscopev1.StreamSample{
		Ssrc: "5", Direction: inbound, MediaType: "audio", OwnerUserId: "bob", IntervalMs: new(10_000.0),
		Packets: new(500.0), PacketsLost: new(0.0), Loss: new(0.0), Concealment: &loss, RttMs: new(60.0), JitterBufferDelayMs: new(40.0),
		AudioMos: &score.MOS, AudioDelayPenalty: &score.DelayPenalty, AudioLossPenalty: &score.LossPenalty,
	}
}

func mos(t *testing.T, loss, rtt, playout float64) float64 {
	t.Helper()
	score, ok := quality.AudioMOS(quality.AudioInput{Loss: loss, RTTMs: rtt, PlayoutDelayMs: playout})
	if !ok {
		t.Fatal("no score")
	}
	return score.MOS
}

func scoreOf(l *log, w who, ssrc string) *callscopev1.Distribution {
	l.leave(w, setup, 1)
	for _, s := range l.out {
		if st := s.GetStream(); st.GetSsrc() == ssrc {
			if st.MediaType == "video" {
				return st.VideoScore
			}
			return st.AudioMos
		}
	}
	return nil
}

// The enricher scores; what it says is counted where somebody listened.
func TestAudioScores(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*callscopev1.StreamSample)
		want   *float64
	}{
		"scored":                {func(*callscopev1.StreamSample) {}, new(mos(t, 0.05, 60, 40))},
		"by the enricher alone": {func(s *callscopev1.StreamSample) { s.AudioMos, s.Concealment, s.RttMs = new(2.5), nil, nil }, new(2.5)},
		"not scored":            {func(s *callscopev1.StreamSample) { s.AudioMos = nil }, nil},
		"no packets":            {func(s *callscopev1.StreamSample) { s.Packets = new(0.0) }, nil},
		"packets unknown":       {func(s *callscopev1.StreamSample) { s.Packets = nil }, nil},
		"outbound":              {func(s *callscopev1.StreamSample) { s.Direction = outbound }, nil},
		"another kind of media": {func(s *callscopev1.StreamSample) { s.MediaType = "data" }, nil},
		"not a number":          {func(s *callscopev1.StreamSample) { s.AudioMos = new(math.NaN()) }, nil},
		"no score":              {func(s *callscopev1.StreamSample) { s.AudioMos = new(0.5) }, nil},
	} {
		l := newLog(t)
		twoUsers(l)
		l.message()
		s := heard(t, 0.05)
		tc.change(s)
		l.sample(alice, s)
		d := scoreOf(l, alice, "5")
		if d == nil {
			d = &callscopev1.Distribution{}
		}
		if !closeTo(d.Mean, tc.want, 1e-9) {
			t.Errorf("%s: MOS is %v, want %v", name, show(d.Mean), show(tc.want))
		}
	}
}

// Whether a picture was off on purpose is not known of an interval of unknown
// length: it is not scored.
func TestVideoOfUnknownTimeIsNotScored(t *testing.T) {
	l := newLog(t)
	twoUsers(l)
	l.sample(alice, &callscopev1.StreamSample{
		Ssrc: "6", Direction: inbound, MediaType: "video", OwnerUserId: "bob", Packets: new(100.0), FrameRate: new(3.0),
	})
	if d := scoreOf(l, alice, "6"); d != nil {
		t.Errorf("score %v, want none", d)
	}
}

// A picture that somebody switched off on purpose is not scored.
func TestVideoInSilenceIsNotScored(t *testing.T) {
	for silence, want := range map[callscopev1.Silence]*float64{
		callscopev1.Silence_SILENCE_UNSPECIFIED: new(5.0),
		callscopev1.Silence_SILENCE_PAUSED:      nil,
		callscopev1.Silence_SILENCE_HELD:        nil,
	} {
		l := newLog(t)
		twoUsers(l)
		l.sample(alice, &callscopev1.StreamSample{
			Ssrc: "6", Direction: inbound, MediaType: "video", OwnerUserId: "bob", IntervalMs: new(10_000.0),
			Packets: new(100.0), FrameRate: new(30.0), FreezeMs: new(0.0), Silence: silence,
		})
		d := scoreOf(l, alice, "6")
		if d == nil {
			d = &callscopev1.Distribution{}
		}
		if !closeTo(d.Mean, want, 1e-9) {
			t.Errorf("%v: score %v, want %v", silence, show(d.Mean), show(want))
		}
	}
}

var name16 = name("1", "room")

func TestRecoveryAfterABadMinute(t *testing.T) {
	l := newLog(t)
	twoUsers(l)
	var worst, last float64
	for i := range 18 {
		l.tick(10_000)
		l.message()
		loss := 0.0
		if i >= 6 && i < 12 {
			loss = 0.3
		}
		l.sample(alice, heard(t, loss))
	}
	d := scoreOf(l, alice, "5")
	worst, last = mos(t, 0.3, 60, 40), mos(t, 0, 60, 40)
	want := naive([]point{{worst, 60_000}, {last, 120_000}}, 3.5)
	compare(t, "MOS", d, want, 0.01)
}

func TestVideoScores(t *testing.T) {
	for name, tc := range map[string]struct {
		label, usage string
		sharing      bool
		want         float64
	}{
		"camera":                     {label: "front-camera", want: 5 - math.Round(math.Log2(24.0/6)*1e4)/1e4},
		"no label":                   {want: 3},
		"labelled screen":            {label: "Screen", want: 5},
		"a screen's fabric":          {usage: "screen", want: 5},
		"owner shares":               {sharing: true, want: 5},
		"owner shares beside camera": {label: "back-camera", sharing: true, want: 3},
	} {
		l := newLog(t)
		twoUsers(l)
		if tc.sharing {
			facts := present(0)
			facts.ScreenShare = &callscopev1.Activity{Count: 1, SinceMs: new(int64(begin))}
			l.participant(bob, facts)
		}
		l.fabric(alice, &callscopev1.FabricFacts{StartedAtMs: begin, Outcome: setup, Usage: tc.usage})
		l.sample(alice, &callscopev1.StreamSample{
			Ssrc: "6", Direction: inbound, MediaType: "video", OwnerUserId: "bob", UsageLabel: tc.label,
			IntervalMs: new(10_000.0), Packets: new(100.0), FrameRate: new(6.0), FreezeMs: new(0.0),
		})
		if d := scoreOf(l, alice, "6"); d == nil || math.Abs(d.GetMean()-tc.want) > 1e-9 {
			t.Errorf("%s: score %v, want %v", name, d, tc.want)
		}
	}
}

// The participant's score is weighted by time over its streams, the
// conference's by presence over its participants.
func TestScoresOfParticipantAndConference(t *testing.T) {
	l := newLog(t)
	twoUsers(l)
	send := func(w who, ssrc string, loss, ms float64) {
		s := heard(t, loss)
		s.Ssrc, s.IntervalMs, s.OwnerUserId = ssrc, &ms, "somebody"
		l.sample(w, s)
	}
	l.tick(30_000)
	l.message()
	l.stats(alice)
	send(alice, "1", 0, 10_000)
	send(alice, "2", 0.2, 30_000)
	l.message()
	l.stats(bob)
	send(bob, "3", 0.01, 5_000)
	l.leave(alice, setup, 1) // presence 30 s
	clean, bad, fair := mos(t, 0, 60, 40), mos(t, 0.2, 60, 40), mos(t, 0.01, 60, 40)
	p := l.out[len(l.out)-1]
	compare(t, "alice", p.GetParticipant().AudioMos, naive([]point{{clean, 10_000}, {bad, 30_000}}, 3.5), 0.01)
	if p.AudioMosModel != quality.AudioModel || p.VideoScoreModel != "" {
		t.Errorf("models %q and %q", p.AudioMosModel, p.VideoScoreModel)
	}
	l.tick(60_000)
	l.leave(bob, setup, 1) // presence 90 s
	l.end(90_000, "")
	c := l.out[len(l.out)-1].GetConference()
	compare(t, "conference", c.AudioMos, naive([]point{{clean, 7_500}, {bad, 22_500}, {fair, 90_000}}, 3.5), 0.01)
	if string(c.WorstParticipantUid) != string(alice.identity().ParticipantUid) {
		t.Errorf("the worst participant is %x, want alice", c.WorstParticipantUid)
	}
	if got, want := c.GetParticipantMinutes(), 2.0; got != want {
		t.Errorf("participant minutes %v, want %v", got, want)
	}
	// Alice's media: 30 s before her report to it, bob's 5 s.
	if got, want := c.GetMediaParticipantMinutes(), 35_000.0/60_000; math.Abs(got-want) > 1e-9 {
		t.Errorf("media minutes %v, want %v", got, want)
	}
	for _, s := range l.all {
		if st := s.GetStream(); st.GetSsrc() == "2" {
			var reasons struct{ Audio struct{ Delay, Loss float64 } }
			if err := json.Unmarshal([]byte(st.ScoreReasonsJson), &reasons); err != nil {
				t.Fatal(err)
			}
			if want := (132 - 10.2) * 20 / (20 + 4.3) / 1.48; math.Abs(reasons.Audio.Loss-want) > 1e-3 || reasons.Audio.Delay != 0 {
				t.Errorf("reasons %s, want %v lost to loss", st.ScoreReasonsJson, want)
			}
		}
	}
}

func TestParticipantWithoutSamples(t *testing.T) {
	l := newLog(t)
	l.message()
	l.participant(alice, present(0))
	l.conference(room, openFacts())
	l.tick(1000)
	l.participant(alice, present(0, 500))
	p := l.out[0].GetParticipant()
	if p.AudioMos != nil || p.VideoScore != nil || p.Fabrics != 0 || p.PresenceMs != 500 {
		t.Errorf("participant %v", p)
	}
	l.end(500, "")
	c := l.out[0].GetConference()
	if c.AudioMos != nil || c.MediaParticipantMinutes != nil || c.SetupDelayMsMean != nil || c.WorstParticipantUid != nil || c.GetParticipantMinutes() != 500.0/60_000 {
		t.Errorf("conference %v", c)
	}
}

func TestSetupDelays(t *testing.T) {
	for name, tc := range map[string]struct {
		in                     []*float64
		low, mean, median, top *float64
	}{
		"none known":  {[]*float64{nil, nil}, nil, nil, nil, nil},
		"one":         {[]*float64{nil, new(80.0)}, new(80.0), new(80.0), new(80.0), new(80.0)},
		"even":        {[]*float64{new(400.0), new(100.0), new(200.0), new(100.5)}, new(100.0), new(200.125), new(150.25), new(400.0)},
		"odd":         {[]*float64{new(3.0), new(1.0), new(8.0)}, new(1.0), new(4.0), new(3.0), new(8.0)},
		"not numbers": {[]*float64{new(math.NaN()), new(-1.0), new(math.Inf(1)), new(7.0)}, new(7.0), new(7.0), new(7.0), new(7.0)},
	} {
		l := newLog(t)
		l.message()
		l.participant(alice, present(0))
		l.conference(room, openFacts())
		for i, delay := range tc.in {
			w := alice
			w.connection = string(rune('a' + i))
			l.fabric(w, &callscopev1.FabricFacts{StartedAtMs: begin, Outcome: setup, SetupDelayMs: delay})
		}
		l.tick(1000)
		c := l.out[len(l.out)-1].GetConference()
		for what, pair := range map[string][2]*float64{
			"min": {c.SetupDelayMsMin, tc.low}, "mean": {c.SetupDelayMsMean, tc.mean}, "median": {c.SetupDelayMsMedian, tc.median}, "max": {c.SetupDelayMsMax, tc.top},
		} {
			if !closeTo(pair[0], pair[1], 1e-12) {
				t.Errorf("%s: %s is %v, want %v", name, what, show(pair[0]), show(pair[1]))
			}
		}
	}
}

func TestWorstParticipant(t *testing.T) {
	for name, tc := range map[string]struct {
		losses map[string]float64
		want   string
	}{
		"the lowest mean":               {map[string]float64{"a": 0.01, "b": 0.2, "c": 0}, "b"},
		"nobody scored":                 {nil, ""},
		"of equal ones the smaller uid": {map[string]float64{"a": 0.1, "b": 0.1, "c": 0.1}, "smallest"},
	} {
		l := newLog(t)
		smallest := ""
		for _, user := range []string{"a", "b", "c"} {
			w := who{app: "1", room: "room", user: user, device: "d", connection: "f", remote: "sfu"}
			if id := string(w.identity().ParticipantUid); smallest == "" || id < smallest {
				smallest = id
			}
			l.message()
			l.participant(w, present(0))
			l.conference(room, openFacts())
			if loss, ok := tc.losses[user]; ok {
				l.sample(w, heard(t, loss))
			}
		}
		l.tick(1000)
		want := smallest
		if tc.want != "smallest" {
			want = ""
			if tc.want != "" {
				want = string(who{app: "1", room: "room", user: tc.want, device: "d"}.identity().ParticipantUid)
			}
		}
		if got := string(l.out[len(l.out)-1].GetConference().WorstParticipantUid); got != want {
			t.Errorf("%s: %x, want %x", name, got, want)
		}
	}
}
