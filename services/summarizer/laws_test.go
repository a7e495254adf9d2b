package summarizer

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// drawLog writes a log that an enricher could have written, and some that it
// could not: facts in any order, odd numbers, unknown events, rare identities.
func drawLog(rt *rapid.T, l *log) {
	number := rapid.OneOf(
		rapid.Float64Range(0, 500), rapid.Just(0.0), rapid.Float64Range(-10, 1e9),
		rapid.SampledFrom([]float64{math.NaN(), math.Inf(1), math.Inf(-1), -1, math.MaxFloat64, 5e-324, 1e300}),
	)
	maybe := func(label string) *float64 {
		if rapid.IntRange(0, 3).Draw(rt, label+" absent") == 0 {
			return nil
		}
		return new(number.Draw(rt, label))
	}
	maybeScore := func(label string) *float64 {
		if rapid.Bool().Draw(rt, label+" odd") {
			return maybe(label)
		}
		return new(rapid.Float64Range(1, 4.5).Draw(rt, label))
	}
	draw := func(label string, of ...string) string { return rapid.SampledFrom(of).Draw(rt, label) }
	for range rapid.IntRange(1, 80).Draw(rt, "records") {
		w := who{
			app: draw("app", "1", "2"), room: draw("room", "r", "s"), user: draw("user", "alice", "bob", ""), device: draw("device", "d", "d", "e"),
			connection: draw("connection", "c", "c", "k", ""), remote: draw("remote", "alice", "bob", ""),
		}
		if rapid.IntRange(0, 2).Draw(rt, "same message") > 0 {
			l.message()
		}
		switch rapid.IntRange(0, 9).Draw(rt, "record") {
		case 0:
			l.tick(rapid.SampledFrom([]int64{0, 1000, 1000, 5000, 61_000}).Draw(rt, "step"))
		case 1:
			facts := &callscopev1.ConferenceFacts{
				State: rapid.SampledFrom([]callscopev1.ConferenceState{open, open, ended, forgotten}).Draw(rt, "state"), StartedAtMs: begin,
				RevisionReason: draw("reason", "", "feedback"), PeakParticipants: 2,
			}
			if facts.State != open {
				facts.EndedAtMs = new(l.received() - rapid.Int64Range(-5000, 5000).Draw(rt, "ended"))
			}
			l.conference(w, facts)
		case 2:
			muted := present(0)
			muted.ScreenShare = &callscopev1.Activity{Count: 1, SinceMs: new(int64(begin))}
			muted.AudioMute = &callscopev1.Activity{Count: 3, TotalMs: 5, SinceMs: new(int64(begin))}
			l.participant(w, rapid.SampledFrom([]*callscopev1.ParticipantFacts{
				{}, present(0), present(0, l.alive), present(0, l.alive, l.alive), present(l.alive, 0), muted,
			}).Draw(rt, "presence"))
		case 3:
			l.fabric(w, &callscopev1.FabricFacts{
				StartedAtMs: begin, Outcome: callscopev1.FabricOutcome(rapid.IntRange(0, 6).Draw(rt, "outcome")),
				SetupDelayMs: maybe("setup"), FailureDelayMs: maybe("failure"), DisruptionMs: number.Draw(rt, "disruption"), Held: rapid.Bool().Draw(rt, "held"),
			})
		case 4:
			l.stream(w, &callscopev1.StreamFacts{Ssrc: draw("ssrc", "1", "2"), Direction: inbound, MediaType: draw("media", "audio", "video"), OwnerUserId: w.remote, StartedAtMs: begin})
		case 5, 6:
			l.sample(w, &callscopev1.StreamSample{
				Ssrc: draw("ssrc", "1", "2"), Direction: callscopev1.Direction(rapid.IntRange(0, 2).Draw(rt, "direction")), MediaType: draw("media", "audio", "video", ""),
				OwnerUserId: draw("owner", "alice", "bob"), IntervalMs: maybe("interval"), BitrateKbps: maybe("bitrate"), Packets: maybe("packets"), PacketsLost: maybe("lost"),
				Loss: maybe("loss"), JitterMs: maybe("jitter"), RttMs: maybe("rtt"), Concealment: maybe("concealment"), FrameRate: maybe("frames"), FreezeMs: maybe("freeze"),
				JitterBufferDelayMs: maybe("playout"), AudioLevel: maybe("level"), SamplesReceived: maybe("heard"), ConcealedSamples: maybe("concealed"),
				QualityLimitedCpuMs: maybe("cpu"), QualityLimitedBandwidthMs: maybe("bandwidth"), QualityLimitationReason: draw("limitation", "", "cpu", "other"),
				SourceFrameRate: maybe("source"), SourceFrameHeight: maybe("source height"), FrameHeight: maybe("height"),
				AudioMos: maybeScore("score"), AudioDelayPenalty: maybe("delay penalty"), AudioLossPenalty: maybe("loss penalty"),
				Silence: callscopev1.Silence(rapid.IntRange(0, 4).Draw(rt, "silence")),
			})
		case 7:
			l.path(w, &callscopev1.FabricSample{IntervalMs: maybe("interval"), RttMs: maybe("rtt"), BytesSent: maybe("sent"), BytesReceived: maybe("received")})
		case 8:
			l.stats(w)
		case 9:
			switch draw("event", "feedback", "failure", "mute", "other") {
			case "feedback":
				l.feedback(w, number.Draw(rt, "overall"))
			case "failure":
				l.event(w, &callscopev1.Event{EventType: "fabricSetupFailed", Failure: &callscopev1.FailureReported{Function: "getUserMedia", IsLog: rapid.Bool().Draw(rt, "log")}})
			default:
				l.event(w, &callscopev1.Event{EventType: draw("type", "audioMute", "audioUnmute", "videoPause", "videoResume", "fabricHold", "fabricResume", "screenShareStart", "callUnAnswered", "userAlive", "somethingNew")})
			}
		}
	}
	l.ticks(2)
}

// replay steps the inputs through a fresh machine, which is stored and
// restored before the record at the given index, and returns all bytes.
func replay(t interface{ Fatal(...any) }, inputs []stage.Input, restoreAt int) []byte {
	m := NewMachine()
	var all []byte
	for i, in := range inputs {
		if i == restoreAt {
			data, err := m.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			m = NewMachine()
			if err := m.Restore(formatVersion, data); err != nil {
				t.Fatal(err)
			}
			again, err := m.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(data, again) {
				t.Fatal("a restored state encodes differently")
			}
		}
		outputs, err := m.Step(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, out := range outputs {
			value, err := out.Message.(*callscopev1.Summary).MarshalVT()
			if err != nil {
				t.Fatal(err)
			}
			all = append(append(all, out.Key...), value...)
		}
	}
	state, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	return append(all, state...)
}

// Equal input gives byte-identical outputs, also with a snapshot and a restore
// at any place.
func TestSnapshotAndRestoreChangeNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := newLog(t)
		drawLog(rt, l)
		want := replay(rt, l.inputs, -1)
		if !bytes.Equal(want, replay(rt, l.inputs, -1)) {
			rt.Fatal("the same log gave other bytes")
		}
		at := rapid.IntRange(0, len(l.inputs)-1).Draw(rt, "restore at")
		if !bytes.Equal(want, replay(rt, l.inputs, at)) {
			rt.Fatalf("a restore before record %d of %d changed the outputs", at, len(l.inputs))
		}
	})
}

// What every log must give, however odd.
func TestSummariesOfAnyLog(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := newLog(t)
		drawLog(rt, l)
		type life struct {
			revision  uint32
			finalized bool
			started   int64
		}
		lives := map[string]life{}
		uids := map[string]bool{}
		for _, s := range l.all {
			if path := notFinite(s); path != "" {
				rt.Fatalf("%s: %s", brief(s), path)
			}
			if uids[string(s.Uid)] {
				rt.Fatalf("%s: its uid was used before", brief(s))
			}
			uids[string(s.Uid)] = true
			if c := s.GetConference(); c != nil {
				ordered(rt, s, c.SetupDelayMsMin, c.SetupDelayMsMedian, c.SetupDelayMsMax)
				scoresWithin(rt, s, c.AudioMos, c.VideoScore)
			}
			if p := s.GetParticipant(); p != nil {
				if p.PresenceMs < 0 {
					rt.Fatalf("%s: presence %d", brief(s), p.PresenceMs)
				}
				scoresWithin(rt, s, p.AudioMos, p.VideoScore)
			}
			if st := s.GetStream(); st != nil {
				scoresWithin(rt, s, st.AudioMos, st.VideoScore)
				if mean := st.GetLoss().GetMean(); mean < 0 || mean > 1 {
					rt.Fatalf("%s: loss %v", brief(s), mean)
				}
				for _, d := range []*callscopev1.Distribution{st.BitrateKbps, st.JitterMs, st.RttMs, st.AudioMos, st.VideoScore} {
					if d != nil {
						ordered(rt, s, d.Min, d.P10, d.Median, d.P90, d.Max)
						ordered(rt, s, d.Min, d.Mean, d.Max)
					}
				}
			}
			key := fmt.Sprintf("%x", s.EntityUid)
			before := lives[key]
			// A conference that was forgotten and whose uid comes again begins
			// anew; the log here does that, an enricher does not.
			if s.Revision != before.revision+1 && s.Revision != 1 {
				rt.Fatalf("%s after revision %d", brief(s), before.revision)
			}
			if s.Revision == 1 {
				before = life{}
			}
			if (s.State == revised) != before.finalized {
				rt.Fatalf("%s, a final one was written: %v", brief(s), before.finalized)
			}
			if before.revision > 0 && s.ConferenceStartedAtMs != before.started {
				rt.Fatalf("%s: its partition changed from %d to %d", brief(s), before.started, s.ConferenceStartedAtMs)
			}
			if s.LastRawOffset < s.FirstRawOffset || s.Reason == "" || len(s.EntityUid) == 0 {
				rt.Fatalf("%s: %v", brief(s), s)
			}
			lives[key] = life{s.Revision, before.finalized || s.State == final, s.ConferenceStartedAtMs}
		}
	})
}

func ordered(rt *rapid.T, s *callscopev1.Summary, values ...*float64) {
	for i := 1; i < len(values); i++ {
		if values[i] == nil || values[i-1] == nil {
			if values[i] != values[i-1] {
				rt.Fatalf("%s: some of its numbers are absent", brief(s))
			}
			continue
		}
		if *values[i] < *values[i-1] {
			rt.Fatalf("%s: %v is below %v", brief(s), *values[i], *values[i-1])
		}
	}
}

func scoresWithin(rt *rapid.T, s *callscopev1.Summary, scores ...*callscopev1.Distribution) {
	for _, d := range scores {
		if d != nil && (d.GetMin() < 1 || d.GetMax() > 5) {
			rt.Fatalf("%s: score %v", brief(s), d)
		}
	}
}

func TestRestoreRefusesWhatItCannotRead(t *testing.T) {
	l := newLog(t)
	twoUsers(l)
	l.sample(alice, heard(t, 0))
	before, _ := l.machine.Snapshot()
	for name, tc := range map[string]struct {
		version uint32
		data    []byte
	}{
		"another version": {formatVersion + 1, before},
		"cut off":         {formatVersion, before[:len(before)-3]},
		"noise":           {formatVersion, []byte{0xff}},
	} {
		if err := l.machine.Restore(tc.version, tc.data); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if after, _ := l.machine.Snapshot(); !bytes.Equal(before, after) {
			t.Errorf("%s: the state changed", name)
		}
	}
}

// The runtime gives the machine the same records and writes the same summaries,
// with their origins.
func TestThroughTheRuntime(t *testing.T) {
	l := newLog(t)
	twoUsers(l)
	l.tick(1000)
	l.sample(alice, heard(t, 0.01))
	l.leave(alice, setup, 200)
	l.leave(bob, setup, 200)
	l.end(5000, "")
	var got []*callscopev1.Summary
	err := stage.Fold(func() stage.Machine { return NewMachine() }, true, slices.Values(l.inputs), func(e stage.Emitted) error {
		var s callscopev1.Summary
		if err := s.UnmarshalVT(e.Value); err != nil {
			return err
		}
		if len(got) > 0 && (s.Prev == nil || s.Origin == nil) {
			t.Errorf("%s has no origin or prev", brief(&s))
		}
		s.Origin, s.Prev = nil, nil
		got = append(got, &s)
		return nil
	}, func(offset int64, reason error) { t.Errorf("record %d was set aside: %v", offset, reason) })
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(l.all, got, protocmp.Transform()); diff != "" {
		t.Errorf("(-stepped +run)\n%s", diff)
	}
}

// Two things that random logs hardly meet: a negative zero, and a participant
// with so many streams that sketches get coarser.
func TestSnapshotKeepsOddNumbersAndLimits(t *testing.T) {
	l := newLog(t)
	twoUsers(l)
	l.sample(alice, &callscopev1.StreamSample{Ssrc: "1", Direction: inbound, RttMs: new(math.Copysign(0, -1))})
	for i := range 600 {
		l.sample(alice, &callscopev1.StreamSample{Ssrc: fmt.Sprint(i % 40), Direction: inbound, IntervalMs: new(1000.0), JitterMs: new(1 + float64(i))})
	}
	l.tick(1000)
	want := replay(t, l.inputs, -1)
	for _, at := range []int{8, len(l.inputs) / 2, len(l.inputs) - 1} {
		if !bytes.Equal(want, replay(t, l.inputs, at)) {
			t.Errorf("a restore before record %d of %d changed the outputs", at, len(l.inputs))
		}
	}
	p := l.machine.conferences[string(name16)].participants[0]
	for _, st := range p.fabrics[0].streams {
		if got, limit := len(st.jitter.sketch.Parts().Deltas), bucketLimit(40); got > limit {
			t.Errorf("stream %s has %d buckets, more than %d", st.facts.Ssrc, got, limit)
		}
	}
}
