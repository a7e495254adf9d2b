package summarizer

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// bigCall writes a call through a server: every participant has one fabric, two
// outbound streams and the given number of inbound ones, and reports every so many
// seconds with numbers that wander over their whole usual range.
func bigCall(l *log, participants, inboundStreams, seconds, every int) {
	rng := rand.New(rand.NewPCG(1, 2))
	seat := func(i int) who {
		return who{
			app: "123456789", room: "all hands, once a week", user: fmt.Sprintf("user-%04d@example.test", i),
			device: fmt.Sprintf("%064x", i), connection: fmt.Sprintf("c%010d", i), remote: "sfu-1.example.test",
		}
	}
	for i := range participants {
		w := seat(i)
		l.message()
		l.participant(w, &callscopev1.ParticipantFacts{
			Present: true, Intervals: []*callscopev1.PresenceInterval{{JoinedAtMs: begin}}, Joins: 1, Browser: "Chrome", BrowserVersion: "141.0.7390.54",
			Os: "Windows", OsVersion: "10", ClientVersion: "3.73.0", Country: "FI", Network: "Example Networks Ltd", IpMasked: "192.0.2.0", UserName: "A Real Name",
		})
		l.fabric(w, &callscopev1.FabricFacts{StartedAtMs: begin, Outcome: setup, SetupDelayMs: new(200 + float64(i)), IceGatheringDelayMs: new(20.0), IceConnectivityDelayMs: new(70.0), DelaySource: "reported", Relayed: new(false)})
		l.conference(w, openFacts())
	}
	wander := func(low, high float64) *float64 { return new(low * math.Pow(high/low, rng.Float64())) }
	for at := 0; at < seconds; at += every {
		for i := range participants {
			w := seat(i)
			l.message()
			l.stats(w)
			l.path(w, &callscopev1.FabricSample{IntervalMs: new(10_000.0), RttMs: wander(20, 120)})
			for n := range inboundStreams + 2 {
				s := &callscopev1.StreamSample{
					Ssrc: fmt.Sprint(1_000_000_000 + n), Direction: inbound, MediaType: "audio", OwnerUserId: fmt.Sprintf("user-%04d@example.test", n), Codec: "audio/opus",
					IntervalMs: new(10_000 + 10*rng.Float64()), Packets: new(500.0), PacketsLost: new(float64(rng.IntN(8))), BitrateKbps: wander(20, 45), JitterMs: wander(4, 30),
				}
				if n >= inboundStreams {
					s.Direction, s.RttMs = outbound, wander(20, 120)
				} else if n%2 == 1 {
					s.MediaType, s.Codec, s.BitrateKbps, s.FrameRate, s.FreezeMs = "video", "video/VP8", wander(150, 1500), wander(15, 30), new(100*rng.Float64())
				} else {
					s.Concealment, s.AudioMos, s.AudioLossPenalty = new(0.02*rng.Float64()), new(1+3.4*rng.Float64()), new(8*rng.Float64())
				}
				l.sample(w, s)
				l.inputs, l.all = l.inputs[:0], l.all[:0]
			}
		}
		l.ticks(every)
	}
}

// A call of three hours stays within 16 KB of state per open participant, also
// with 200 of them, and with more than 50 streams from a server that forwards.
func TestStateBytesPerParticipant(t *testing.T) {
	for _, tc := range []struct{ participants, streams int }{{2, 2}, {2, 6}, {2, 20}, {2, 22}, {2, 50}, {2, 56}, {200, 2}} {
		l := newLog(t)
		// Reports further apart fill the state as well and the test sooner.
		bigCall(l, tc.participants, tc.streams, 3*60*60, map[bool]int{false: 10, true: 20}[tc.participants > 2])
		data, err := l.machine.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		each := len(data) / tc.participants
		t.Logf("%d participants, %d inbound streams and 2 outbound each: %d bytes per participant", tc.participants, tc.streams, each)
		if each > 16<<10 {
			t.Errorf("%d streams: %d bytes of state per participant, more than 16 KiB", tc.streams+2, each)
		}
	}
}

// Who connects anew again and again has no more state than who has as many
// streams at once: those that ended give way to the new ones.
func TestStateBytesOfConnectingAnew(t *testing.T) {
	l := newLog(t)
	rng := rand.New(rand.NewPCG(1, 2))
	wander := func(low, high float64) *float64 { return new(low * math.Pow(high/low, rng.Float64())) }
	l.message()
	l.participant(alice, present(0))
	l.conference(room, openFacts())
	for n := range 14 {
		w := alice
		w.connection = fmt.Sprint("c", n)
		l.message()
		l.fabric(w, &callscopev1.FabricFacts{StartedAtMs: begin, Outcome: setup, SetupDelayMs: new(200.0), DelaySource: "reported"})
		for range 150 {
			l.message()
			l.path(w, &callscopev1.FabricSample{IntervalMs: new(10_000.0), RttMs: wander(20, 120)})
			for k := range 4 {
				s := &callscopev1.StreamSample{
					Ssrc: fmt.Sprint(1_000_000_000 + 4*n + k), Direction: inbound, MediaType: "audio", OwnerUserId: "bob", Codec: "audio/opus",
					IntervalMs: new(10_000 + 10*rng.Float64()), Packets: new(500.0), PacketsLost: new(float64(rng.IntN(8))), BitrateKbps: wander(20, 45), JitterMs: wander(4, 30),
				}
				if k >= 2 {
					s.Direction, s.RttMs = outbound, wander(20, 120)
				} else {
					s.AudioMos, s.AudioLossPenalty = new(1+3.4*rng.Float64()), new(8*rng.Float64())
				}
				l.sample(w, s)
			}
			l.inputs = l.inputs[:0]
		}
	}
	data, err := l.machine.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("14 fabrics of 4 streams, one after another: %d bytes", len(data))
	if len(data) > 16<<10 {
		t.Errorf("%d bytes of state for one participant, more than 16 KiB", len(data))
	}
}

// Beyond what fits into 16 KB the state grows by no more than 256 bytes a stream,
// of which no sketch is any more: a participant who receives 199 streams has
// less than 64 KB (docs/explanation/architecture.md).
func TestStateBytesPerStream(t *testing.T) {
	size := func(streams int) int {
		l := newLog(t)
		bigCall(l, 2, streams, 3*60*60, 60)
		data, err := l.machine.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		return len(data) / 2
	}
	some, many := size(60), size(199)
	each := (many - some) / (199 - 60)
	t.Logf("60 inbound streams: %d bytes, 199: %d, %d bytes for each", some, many, each)
	if each > 256 || many > 64<<10 {
		t.Errorf("199 inbound streams take %d bytes of state, %d for each", many, each)
	}
}

// BenchmarkStep steps the records of a call of 20 participants; every
// operation is one record.
func BenchmarkStep(b *testing.B) {
	for _, participants := range []int{2, 20, 200} {
		b.Run(fmt.Sprint(participants, " participants"), func(b *testing.B) {
			l := newLog(b)
			bigCall(l, participants, 4, 120, 10)
			w := who{app: "123456789", room: "all hands, once a week", user: "user-0001@example.test", device: fmt.Sprintf("%064x", 1), connection: fmt.Sprintf("c%010d", 1), remote: "sfu-1.example.test"}
			e := &callscopev1.Enriched{Uid: uid('e', 1), Origin: &callscopev1.Origin{Offset: 9}, AliveMs: l.alive, ReceivedAtMs: l.received(), TimeMs: float64(l.received()), Identity: w.identity(),
				Body: &callscopev1.Enriched_StreamSample{StreamSample: &callscopev1.StreamSample{
					Ssrc: "1000000000", Direction: inbound, MediaType: "audio", OwnerUserId: "user-0000@example.test", IntervalMs: new(10_000.0), Packets: new(500.0), PacketsLost: new(1.0),
					BitrateKbps: new(30.0), JitterMs: new(5.0), Concealment: new(0.001),
				}}}
			value, err := e.MarshalVT()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := l.machine.Step(stage.Input{Value: value}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkIdleTick passes time over conferences of which none is due: it must
// cost the same for any number of them.
func BenchmarkIdleTick(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		b.Run(fmt.Sprint(n, " conferences"), func(b *testing.B) {
			l := newLog(b)
			for i := range n {
				w := who{app: "1", room: fmt.Sprint(i), user: "u", device: "d"}
				l.participant(w, present(0))
				l.conference(w, openFacts())
				l.inputs = l.inputs[:0]
			}
			l.tick(1000)
			e := &callscopev1.Enriched{Uid: uid('e', 1), AliveMs: 2000, Body: &callscopev1.Enriched_TimePassed{TimePassed: &callscopev1.TimePassed{}}}
			value, err := e.MarshalVT()
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := l.machine.Step(stage.Input{Value: value}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPartial writes the summaries of a whole call in which everything
// changed; the reported number is per participant.
func BenchmarkPartial(b *testing.B) {
	for _, participants := range []int{2, 20, 200} {
		b.Run(fmt.Sprint(participants, " participants"), func(b *testing.B) {
			l := newLog(b)
			bigCall(l, participants, 4, 300, 10)
			c := l.machine.conferences[string(name("123456789", "all hands, once a week"))]
			for b.Loop() {
				for _, p := range c.participants {
					p.changed = true
					for _, f := range p.fabrics {
						f.changed = true
						for _, st := range f.streams {
							st.changed = true
						}
					}
				}
				w := &writer{cause: &callscopev1.Enriched{Uid: uid('e', 1)}, byTick: true}
				w.conference(c, reasonInterval)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(participants), "ns/participant")
		})
	}
}
