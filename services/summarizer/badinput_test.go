package summarizer

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// Late intervals count as what they are, an interval that is missing leaves
// less measured time, and a report that came again has no interval: it is a
// sample of the least weight and counts no packets twice.
func TestOddIntervals(t *testing.T) {
	l := newLog(t)
	twoUsers(l)
	sample := func(at int64, ms, packets, lost *float64, jitter float64) {
		l.message()
		s := &callscopev1.StreamSample{Ssrc: "5", Direction: inbound, MediaType: "audio", OwnerUserId: "bob", IntervalMs: ms, Packets: packets, PacketsLost: lost, JitterMs: &jitter}
		l.write(alice.identity(), &callscopev1.Enriched{TimeMs: float64(begin + at), ReceivedAtMs: begin + at, Body: &callscopev1.Enriched_StreamSample{StreamSample: s}})
	}
	l.tick(60_000)
	sample(10_000, new(10_000.0), new(90.0), new(10.0), 10)
	sample(10_000, nil, nil, nil, 10)                       // the same report again
	sample(50_000, new(10_000.0), new(100.0), new(0.0), 20) // three are missing
	sample(20_000, new(10_000.0), new(100.0), new(0.0), 30) // one of them came late
	l.leave(alice, setup, 1)
	for _, s := range l.out {
		st := s.GetStream()
		if st == nil {
			continue
		}
		if st.Samples != 4 || st.GetEndedAtMs() != begin+50_000 {
			t.Errorf("%d samples until %d, want 4 until 50 s", st.Samples, st.GetEndedAtMs()-begin)
		}
		if got, want := st.Loss.GetMean(), 10.0/300; got != want {
			t.Errorf("loss %v, want %v", got, want)
		}
		compare(t, "jitter", st.JitterMs, naive([]point{{10, 10_001}, {20, 10_000}, {30, 10_000}}, 100), 0.01)
		return
	}
	t.Error("no stream")
}

// A client that reports other SSRCs each time does not make the state grow
// without bound: the enricher knows no more of them either.
func TestStreamsBeyondTheLimit(t *testing.T) {
	l := newLog(t)
	twoUsers(l)
	l.message()
	for i := range 8192 + 100 {
		l.sample(alice, &callscopev1.StreamSample{Ssrc: fmt.Sprint(i), Direction: inbound, MediaType: "audio", OwnerSource: callscopev1.OwnerSource_OWNER_SOURCE_UNKNOWN})
	}
	streams := 0
	for _, s := range l.leave(alice, setup, 1) {
		if s.GetStream() != nil {
			streams++
		}
	}
	if streams != 8192 {
		t.Errorf("%d streams of one fabric have a summary, want 8192", streams)
	}
}

// A client's clock that is set in mid-call, back or forward by an hour, makes
// nobody send media for longer than the call, nor silent until the clock is
// where it was.
func TestClockSetInMidCall(t *testing.T) {
	for _, jump := range []int64{-3_600_000, 3_600_000} {
		l := newLog(t)
		twoUsers(l)
		for i := range 6 {
			l.tick(10_000)
			l.message()
			s := sound(outbound, "5", "alice", 500, 0.1)
			at := l.received()
			if i >= 3 {
				at += jump
			}
			if i == 3 && jump > 0 {
				s.IntervalMs = new(10_000.0 + float64(jump)) // by the same clock
			}
			l.write(alice.identity(), &callscopev1.Enriched{TimeMs: float64(at), Body: &callscopev1.Enriched_StreamSample{StreamSample: s}})
		}
		out := l.leave(alice, setup, 1)
		if jump < 0 {
			if got := out[len(out)-1].GetParticipant().GetTalkMs(); got != 60_000 {
				t.Errorf("clock set by %d ms: talked for %d ms, want 60 s", jump, got)
			}
		}
		l.leave(bob, setup, 1)
		c := l.end(l.alive, "")
		if got := c[len(c)-1].GetConference().GetMediaParticipantMinutes(); got != 1 {
			t.Errorf("clock set by %d ms: %v minutes of media in a call of one", jump, got)
		}
	}
}

// A fabric that was set up without a known delay counts among the unknown ones
// and in no delay; one that was never set up counts in neither.
func TestFabricsWithoutSetup(t *testing.T) {
	l := newLog(t)
	l.message()
	l.participant(alice, present(0))
	l.conference(room, openFacts())
	for i, f := range []*callscopev1.FabricFacts{
		{Outcome: setup, SetupDelayMs: new(200.0)}, {Outcome: setup}, {Outcome: dropped}, {Outcome: pending}, {Outcome: failed}, {Outcome: aborted}, {},
	} {
		w := alice
		w.connection = fmt.Sprint("c", i)
		f.StartedAtMs = begin
		l.fabric(w, f)
	}
	l.tick(1000)
	c := l.out[len(l.out)-1].GetConference()
	if c.Fabrics != 7 || c.SetupDelaysUnknown != 2 || c.GetSetupDelayMsMin() != 200 || c.GetSetupDelayMsMax() != 200 {
		t.Errorf("%d fabrics, %d without a delay, from %v to %v", c.Fabrics, c.SetupDelaysUnknown, c.GetSetupDelayMsMin(), c.GetSetupDelayMsMax())
	}
}

// Beyond the streams that have sketches, means and extremes stay exact and
// percentiles are unknown; those of the participant remain.
func TestMoreStreamsThanSketches(t *testing.T) {
	l := newLog(t)
	twoUsers(l)
	for n := range maxSketched + 1 {
		for i := range 3 {
			l.message()
			l.sample(alice, &callscopev1.StreamSample{
				Ssrc: fmt.Sprint(n), Direction: inbound, MediaType: "audio", OwnerUserId: "bob", IntervalMs: new(1000.0), JitterMs: new(float64(10 * (i + 1))),
			})
		}
	}
	for range 2 { // the first streams give up theirs when they are reported again
		for n := range maxSketched + 1 {
			l.sample(alice, &callscopev1.StreamSample{Ssrc: fmt.Sprint(n), Direction: inbound, MediaType: "audio", OwnerUserId: "bob", IntervalMs: new(1000.0), JitterMs: new(20.0)})
		}
	}
	l.leave(alice, setup, 1)
	streams := 0
	for _, s := range l.out {
		if st := s.GetStream(); st != nil {
			streams++
			j := st.JitterMs
			if j.GetMean() != 20 || j.GetMin() != 10 || j.GetMax() != 30 || j.GetShareBelow() != 1 || j.Median != nil || j.P10 != nil {
				t.Fatalf("jitter of stream %s: %v", st.Ssrc, j)
			}
		}
		if p := s.GetParticipant(); p != nil {
			j := p.JitterInMs
			if !closeTo(j.Median, new(20.0), 0.01) || !closeTo(j.P90, new(30.0), 0.01) || !closeTo(j.P10, new(10.0), 0.01) {
				t.Errorf("the participant's jitter: %v", j)
			}
		}
	}
	if streams != maxSketched+1 {
		t.Errorf("%d streams", streams)
	}
	if again := replay(t, l.inputs, len(l.inputs)/2); string(again) != string(replay(t, l.inputs, -1)) {
		t.Error("a restore in between gives other summaries")
	}
}

// Everything that SQL shows as text of JSON names entities as SQL does.
func TestUIDsInEvidenceAreUUIDs(t *testing.T) {
	l := newLog(t)
	l.message()
	for _, user := range []string{"z", "a"} { // in the order of joining
		w := who{app: "1", room: "room", user: user, device: "d", connection: "c", remote: "x"}
		l.participant(w, present(0))
		l.conference(room, openFacts())
		l.fabric(w, &callscopev1.FabricFacts{StartedAtMs: begin, Outcome: failed, FailureFunction: user})
	}
	l.tick(1000)
	l.end(1000, "")
	text := l.out[len(l.out)-1].GetConference().OutcomeEvidenceJson
	var at []int
	for _, user := range []string{"z", "a"} {
		id, err := uuid.FromBytes(who{app: "1", room: "room", user: user, device: "d"}.identity().ParticipantUid)
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, strings.Index(text, id.String()))
	}
	if at[0] < 0 || at[1] < at[0] {
		t.Errorf("evidence %s, want both participants as UUIDs in the order of joining", text)
	}
}
