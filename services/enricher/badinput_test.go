package enricher

import (
	"encoding/binary"
	"math"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// fill steps n messages of one app that claim what claimed returns.
func fill(t testing.TB, m stage.Machine, n int, claimed func(i int) *callscopev1.Claimed) {
	t.Helper()
	for i := range n {
		c := claimed(i)
		uid := stage.UID([]byte(c.ConferenceId), []byte(c.UserId), []byte(c.ConnectionId), binary.AppendUvarint(nil, uint64(i)))
		value, err := (&callscopev1.Raw{
			Uid: uid, EventType: "callDetails", Claimed: c, Observed: &callscopev1.Observed{AppId: "full", ReceivedAtMs: captureBaseMs},
		}).MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Step(stage.Input{Offset: int64(i), Value: value}); err != nil {
			t.Fatal(err)
		}
	}
}

// What no client should send has a defined result, and loses nothing else.
func TestBadInput(t *testing.T) {
	for name, test := range map[string]struct {
		play     func(t *testing.T, p *partition, alice, bob *client)
		presence []string
		fabrics  []string
	}{
		// An event of somebody who left belongs to the conference and brings nobody back.
		"events after leave": {
			func(t *testing.T, p *partition, alice, bob *client) {
				alice.begin("a1", "bob")
				bob.begin("b1", "alice")
				p.wait(4_000)
				alice.left("", "")
				p.wait(1_000)
				for _, event := range []string{"audioMute", "dominantSpeaker", "fabricHold"} {
					outputs := alice.does(event, "a1", "bob")
					if len(outputs) != 1 || len(outputs[0].Identity.FabricUid) == 0 {
						t.Errorf("%s gave %v", event, kindsOf(outputs))
					}
				}
				bob.left("", "")
			},
			[]string{"conference 0 6000 reopened 0 amended 0", "alice 0 5000 userLeft", "bob 500 6000 userLeft"},
			[]string{"alice a1 setup 500 computed 5000 userLeft", "bob b1 setup 500 computed 6000 userLeft"},
		},
		// It opens nothing; the stream keeps its owner.
		"association after the end": {
			func(t *testing.T, p *partition, alice, bob *client) {
				alice.begin("a1", "bob")
				alice.stats("a1", "bob", inbound("7", 10, 0, 100))
				p.wait(4_500)
				alice.left("", "")
				p.wait(60_000)
				raw := alice.message("associateMstWithUserID", "a1", "bob")
				raw.Payload = &callscopev1.Raw_Association{Association: &callscopev1.Association{Ssrc: "7", UserId: "carol"}}
				for _, e := range alice.send(raw) {
					if e.GetStream() != nil {
						t.Errorf("the stream went to %s", e.GetStream().OwnerUserId)
					}
				}
			},
			[]string{"conference 0 5000 reopened 0 amended 1", "alice 0 5000 userLeft"},
			[]string{"alice a1 setup 500 computed 5000 userLeft"},
		},
		"feedback without a conference": {
			func(t *testing.T, p *partition, alice, bob *client) {
				outputs := alice.feedback()
				if len(outputs) != 1 || !outputs[0].GetEvent().Orphan || outputs[0].Identity.ConferenceUid != nil || outputs[0].GetEvent().Feedback == nil {
					t.Errorf("feedback gave %v", outputs)
				}
			}, nil, nil,
		},
		// The same fabric added, set up and terminated twice is one fabric.
		"duplicate fabrics": {
			func(t *testing.T, p *partition, alice, bob *client) {
				for range 2 {
					alice.begin("a1", "bob")
				}
				p.wait(1_000)
				alice.terminate("a1", "bob")
				alice.begin("a1", "bob") // after its end it changes nothing
				alice.left("", "")
			},
			[]string{"conference 0 2500 reopened 0 amended 0", "alice 0 2500 userLeft"},
			[]string{"alice a1 setup 500 computed 2000 fabricTerminated"},
		},
		"end before start": {
			func(t *testing.T, p *partition, alice, bob *client) {
				alice.terminate("a1", "bob") // an orphan
				alice.left("", "")           // another
				p.wait(1_000)
				alice.skewMs = -5_000 // its own clock has gone back
				alice.begin("a1", "bob")
				alice.skewMs = -20_000
				alice.terminate("a1", "bob")
			},
			[]string{"conference 1000 1500 reopened 0 amended 0", "alice 1000 1500 fabricTerminated"},
			[]string{"alice a1 setup 500 computed 1500 fabricTerminated"},
		},
		"clocks off by a day": {
			func(t *testing.T, p *partition, alice, bob *client) {
				alice.skewMs, bob.skewMs = 86_400_000, -86_400_000
				alice.begin("a1", "bob")
				bob.begin("b1", "alice")
				for _, c := range []*client{alice, bob} {
					e := c.does("audioMute", "", "")[0]
					if e.TimeMs != float64(captureBaseMs+p.nowMs) || e.ClientTimeMs == e.TimeMs {
						t.Errorf("an event at %v has the time %v", captureBaseMs+p.nowMs, e.TimeMs)
					}
				}
				alice.left("", "")
				bob.left("", "")
			},
			[]string{"conference 0 1000 reopened 0 amended 0", "alice 0 1000 userLeft", "bob 500 1000 userLeft"},
			[]string{"alice a1 setup 500 computed 1000 userLeft", "bob b1 setup 500 computed 1000 userLeft"},
		},
		// Within 10 s of its last message a conference is still open; later it is another.
		"conference id reused at once": {
			func(t *testing.T, p *partition, alice, bob *client) {
				alice.begin("a1", "bob")
				alice.left("", "")
				bob.begin("b1", "alice")
				bob.left("", "")
				p.wait(11_000)
				bob.begin("b2", "alice")
				bob.left("", "")
			},
			[]string{
				"conference 0 1000 reopened 0 amended 0", "alice 0 500 userLeft", "bob 500 1000 userLeft",
				"conference 12000 12500 reopened 0 amended 0", "bob 12000 12500 userLeft",
			},
			[]string{
				"alice a1 setup 500 computed 500 userLeft", "bob b1 setup 500 computed 1000 userLeft", "bob b2 setup 500 computed 12500 userLeft",
			},
		},
		"a fabric that never gets a second message": {
			func(t *testing.T, p *partition, alice, bob *client) { alice.devices("a1", "bob") },
			[]string{"conference 0 0 reopened 0 amended 0", "alice 0 0 idle"},
			[]string{"alice a1 aborted NaN  0 idle"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, alice, bob := newPair(t)
			test.play(t, p, alice, bob)
			p.wait(400_000)
			if p.m.WantsTicks() {
				t.Error("something stays open")
			}
			expect(t, presence(p), test.presence...)
			expect(t, fabricLines(p), test.fabrics...)
		})
	}
}

// Counters that run backwards give no difference, and the next report does.
func TestCountersThatRunBackwards(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("a1", "bob")
	send := func(packets float64) *callscopev1.StreamSample {
		p.wait(1_000)
		for _, e := range alice.stats("a1", "bob", inbound("7", packets, 0, packets*100)) {
			if s := e.GetStreamSample(); s != nil {
				return s
			}
		}
		t.Fatal("no sample")
		return nil
	}
	send(1000)
	if s := send(10); !s.Reset_ || s.Packets != nil || s.BitrateKbps != nil || s.Loss != nil {
		t.Errorf("backwards: %v", s)
	}
	s := send(60)
	same(t, "packets", s.Packets, 50)
	same(t, "bitrate", s.BitrateKbps, 40)
	if s = send(math.Inf(1)); s.Packets != nil {
		t.Errorf("infinitely many: %v", s)
	}
}

// The transport is judged before the streams that run over it.
func TestFabricSampleComesFirst(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("a1", "bob")
	p.wait(1_000)
	raw := alice.message("stats", "a1", "bob")
	raw.Payload = &callscopev1.Raw_Stats{Stats: &callscopev1.Stats{
		Rtp:            []*callscopev1.RtpStats{inbound("7", 10, 0, 100), inbound("8", 10, 0, 100)},
		CandidatePairs: []*callscopev1.CandidatePairStats{{Id: "1", Selected: true, CurrentRoundTripTime: proto.Float64(0.1)}},
	}}
	kinds := kindsOf(alice.send(raw))
	want := []string{"stats_received", "fabric_sample", "stream_sample", "stream_sample", "stream", "stream", "fabric"}
	if sprint(kinds) != sprint(want) {
		t.Errorf("a report gave %v, want %v", kinds, want)
	}
}

// A participant with 5,000 SSRCs has 5,000 streams; what they cost is bounded.
func TestFiveThousandStreams(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("a1", "bob")
	for round := range 2 {
		p.wait(1_000)
		samples := 0
		for _, e := range alice.stats("a1", "bob", manyStreams(0, 5_000)...) {
			if e.GetStreamSample() != nil {
				samples++
			}
		}
		if samples != 5_000 {
			t.Errorf("report %d gave %d samples", round, samples)
		}
	}
	data, err := p.m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if len(data) > 5_000*400 {
		t.Errorf("5,000 streams make a state of %d bytes", len(data))
	}
}

// Beyond 100,000 conferences of one app in a partition the rest is kept as
// events of no conference. Other apps, and the conferences that are open, go on.
func TestAnAppWithTooManyConferences(t *testing.T) {
	p, alice, _ := newPair(t)
	fill(t, p.m, maxConferences+50, func(i int) *callscopev1.Claimed {
		return &callscopev1.Claimed{ConferenceId: sprint("room", i), UserId: "u"}
	})
	if got := p.m.Counts().ConferencesOverLimit; got != 50 {
		t.Errorf("%d messages over the limit, want 50", got)
	}
	alice.begin("a1", "bob")
	if f := newestFabric(p, "alice"); f == nil || f.Outcome != callscopev1.FabricOutcome_FABRIC_OUTCOME_SETUP {
		t.Errorf("another app's fabric: %v", f)
	}
	data, err := p.m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d conferences of one participant: %d bytes each", maxConferences, len(data)/maxConferences)
	if len(data) > 500*maxConferences {
		t.Errorf("%d conferences make a state of %d bytes", maxConferences, len(data))
	}
	m := restored(t, p.m)
	fill(t, m, 10, func(i int) *callscopev1.Claimed {
		return &callscopev1.Claimed{ConferenceId: sprint("more", i), UserId: "u"}
	})
	if got := m.Counts().ConferencesOverLimit; got != 10 {
		t.Errorf("after a restart %d messages over the limit, want 10", got)
	}
	p.wait(400_000)
	if len(p.m.perApp) != 0 {
		t.Errorf("still counted: %v", p.m.perApp)
	}
}

// The same within a conference and a participant.
func TestTooManyParticipantsAndFabrics(t *testing.T) {
	m := NewMachine()
	fill(t, m, maxParticipants+5, func(i int) *callscopev1.Claimed {
		return &callscopev1.Claimed{ConferenceId: "room", UserId: sprint("user", i)}
	})
	fill(t, m, maxFabrics+7, func(i int) *callscopev1.Claimed {
		return &callscopev1.Claimed{ConferenceId: "room", UserId: "user 0", ConnectionId: sprint("f", i)}
	})
	if counts := m.Counts(); counts.ParticipantsOverLimit != 5 || counts.FabricsOverLimit != 7 || counts.Orphans != 0 {
		t.Errorf("%+v", counts)
	}
}
