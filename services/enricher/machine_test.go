package enricher

import (
	"bytes"
	"crypto/sha256"
	"go/ast"
	"go/parser"
	"go/token"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// randomLog drives clients by chance: few enough that they meet in the same
// conferences, with every message that moves the lifecycle.
func randomLog(t *rapid.T, tb testing.TB, steps int) *partition {
	p := newPartition(tb)
	var clients []*client
	for _, user := range []string{"alice", "bob"} {
		for _, device := range []string{"d1", "d2"} {
			clients = append(clients, &client{p: p, room: "room", user: user, device: device})
		}
	}
	var packets float64
	for range steps {
		c := rapid.SampledFrom(clients).Draw(t, "client")
		connection := rapid.SampledFrom([]string{"", "f1", "f2"}).Draw(t, "connection")
		remote := map[string]string{"alice": "bob", "bob": "alice"}[c.user]
		switch action := rapid.IntRange(0, 15).Draw(t, "action"); action {
		case 0:
			c.join()
		case 1:
			c.devices(connection, remote)
		case 2:
			c.ice("", connection, remote, "checking", "connected")
		case 3:
			c.alive(connection, remote)
		case 4:
			c.terminate(connection, remote)
		case 5:
			c.left(connection, remote)
		case 6:
			c.feedback()
		case 7:
			c.fail("fabricSetupFailed", "createOffer", "NegotiationFailure", connection, remote, 10)
		case 8:
			packets += 50
			c.stats(connection, remote, inbound("7", packets, 1, packets*100), inbound("8", packets/2, 0, packets*10))
		case 9:
			event := rapid.SampledFrom([]string{"iceDisruptionStart", "iceDisruptionEnd", "iceConnectionDisruptionStart", "fabricDropped", "iceFailed"}).Draw(t, "event")
			c.ice(event, connection, remote, "", "")
		case 10:
			raw := c.message("sdpSubmissionEvent", connection, remote)
			raw.Payload = &callscopev1.Raw_SdpSubmission{SdpSubmission: &callscopev1.SdpSubmission{LocalSdp: strings.Repeat("a=x\r\n", int(packets))}}
			c.send(raw)
		case 11:
			raw := c.message("ssrcMap", connection, remote)
			raw.Payload = &callscopev1.Raw_SsrcMap{SsrcMap: &callscopev1.SsrcMap{SsrcData: []*callscopev1.SsrcMapEntry{
				{Ssrc: "7", StreamType: "inbound", RemoteUserId: "carol", UsageLabel: "screen"}, {Ssrc: "9", UserId: "alice"},
			}}}
			c.send(raw)
		case 12:
			raw := c.message("dominantSpeaker", connection, remote)
			raw.Observed = &callscopev1.Observed{ContentHash: hash(connection)}
			raw.Claimed.Sequence, raw.Claimed.SessionUid = proto.Uint64(rapid.Uint64Range(0, 20).Draw(t, "number")), testUID(3)
			c.send(raw)
		case 13:
			p.wait(rapid.Int64Range(100, 5_000).Draw(t, "pause"))
		case 14:
			p.wait(rapid.Int64Range(5_000, 40_000).Draw(t, "silence"))
		case 15:
			p.wait(rapid.SampledFrom([]int64{300_000, 310_000}).Draw(t, "grace"))
		}
	}
	p.wait(400_000)
	return p
}

// A snapshot and its restoration at any record change nothing that comes after.
func TestSnapshotAnywhereChangesNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := randomLog(rt, t, 25)
		m := NewMachine()
		at := rapid.IntRange(0, len(p.inputs)-1).Draw(rt, "first snapshot")
		every := rapid.IntRange(1, 40).Draw(rt, "every")
		var outputs []*callscopev1.Enriched
		for i, in := range p.inputs {
			if i >= at && (i-at)%every == 0 {
				m = restored(rt, m)
			}
			outputs = append(outputs, enrichedOf(t, m, in)...)
		}
		if !slices.EqualFunc(outputs, p.outputs, func(a, b *callscopev1.Enriched) bool { return proto.Equal(a, b) }) {
			rt.Fatalf("%d outputs with snapshots, %d without, and not the same", len(outputs), len(p.outputs))
		}
	})
}

// restored takes a snapshot, checks that it survives the way, and goes on from it.
func restored(t interface{ Fatal(...any) }, m *Machine) *Machine {
	data, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	next := NewMachine()
	if err := next.Restore(FormatVersion, data); err != nil {
		t.Fatal(err)
	}
	again, err := next.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, again) {
		t.Fatal("a restored state gives another snapshot")
	}
	if next.WantsTicks() != m.WantsTicks() || !bytes.Equal(next.Ticker(), m.Ticker()) {
		t.Fatal("a restored state wants other ticks")
	}
	return next
}

// The laws of any log: everything closes, presence never overlaps and never
// runs backwards, and every ended conference's end is somebody's leaving.
func TestLawsOfLifecycle(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := randomLog(rt, t, 40)
		if p.m.WantsTicks() {
			rt.Fatal("something is open 400 s after the last message")
		}
		if len(p.m.deadlines.queue) != 0 {
			rt.Fatalf("%d deadlines are left", len(p.m.deadlines.queue))
		}
		seen := map[string]bool{}
		for _, e := range p.outputs {
			if seen[string(e.Uid)] {
				rt.Fatalf("two outputs have the uid %x", e.Uid)
			}
			seen[string(e.Uid)] = true
			if s := e.GetStreamSample(); s != nil {
				checkSample(rt, s)
			}
		}
		for _, c := range newest(p.outputs, func(e *callscopev1.Enriched) ([]byte, *callscopev1.ConferenceFacts) {
			return e.Identity.GetConferenceUid(), e.GetConference()
		}) {
			if c.facts.State != callscopev1.ConferenceState_CONFERENCE_STATE_FORGOTTEN || c.facts.EndedAtMs == nil || c.facts.EndReason == "" {
				rt.Fatalf("a conference was left as %v", c.facts)
			}
			latest := int64(0)
			for _, p := range newest(p.outputs, func(e *callscopev1.Enriched) ([]byte, *callscopev1.ParticipantFacts) {
				return e.Identity.GetParticipantUid(), e.GetParticipant()
			}) {
				if !bytes.Equal(p.e.Identity.ConferenceUid, c.e.Identity.ConferenceUid) {
					continue
				}
				if p.facts.Present || int(p.facts.Joins) != len(p.facts.Intervals) {
					rt.Fatalf("a participant was left as %v", p.facts)
				}
				before := c.facts.StartedAtMs
				for _, interval := range p.facts.Intervals {
					if interval.JoinedAtMs < before || interval.GetLeftAtMs() < interval.JoinedAtMs || interval.LeftReason == "" {
						rt.Fatalf("presence of %s: %v", p.e.Identity.UserId, p.facts.Intervals)
					}
					before = interval.GetLeftAtMs()
					latest = max(latest, before)
				}
			}
			if c.facts.GetEndedAtMs() != latest {
				rt.Fatalf("a conference ended at %d, the last one left at %d", c.facts.GetEndedAtMs(), latest)
			}
		}
		for _, f := range newest(p.outputs, func(e *callscopev1.Enriched) ([]byte, *callscopev1.FabricFacts) {
			return e.Identity.GetFabricUid(), e.GetFabric()
		}) {
			if f.facts.EndedAtMs == nil || f.facts.EndReason == "" || f.facts.Outcome == callscopev1.FabricOutcome_FABRIC_OUTCOME_PENDING {
				rt.Fatalf("a fabric was left as %v", f.facts)
			}
		}
	})
}

// The same log gives the same bytes, whenever and on whatever machine.
func TestSameLogSameBytes(t *testing.T) {
	messages := readCapture(t, "mesh3")
	sum := func() []byte {
		p := newPartition(t)
		for _, message := range messages {
			p.until(message.t)
			p.send(message.raw)
		}
		p.wait(400_000)
		h := sha256.New()
		for _, e := range p.outputs {
			data, err := e.MarshalVT()
			if err != nil {
				t.Fatal(err)
			}
			h.Write(data)
		}
		return h.Sum(nil)
	}
	first := sum()
	for range 5 {
		if again := sum(); !bytes.Equal(first, again) {
			t.Fatalf("%x, then %x", first, again)
		}
	}
}

// What a tick costs does not depend on how much is open.
func TestATickLooksOnlyAtWhatIsDue(t *testing.T) {
	p := newPartition(t)
	for i := range 2_000 {
		c := &client{p: p, room: "room " + strconv.Itoa(i), user: "alice", device: "d"}
		c.join()
	}
	p.wait(20_000)
	if got := len(p.m.deadlines.queue); got != 2_000 {
		t.Errorf("%d deadlines for 2,000 open conferences", got)
	}
	looked := testing.AllocsPerRun(50, func() { p.m.deadlines.due(p.m.AliveMs()) })
	if looked > 0 {
		t.Errorf("looking for what is due allocates %v times while nothing is", looked)
	}
	p.wait(360_000)
	if p.m.WantsTicks() {
		t.Error("not everything was forgotten")
	}
}

func TestRestoreRefusesWhatIsNoState(t *testing.T) {
	m := NewMachine()
	data, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Restore(FormatVersion+1, data); err == nil {
		t.Error("another format was read")
	}
	if err := m.Restore(FormatVersion, []byte{0xff}); err == nil {
		t.Error("no state was read")
	}
	bad, err := (&callscopev1.EnricherState{SeenKeys: []byte{1}, SeenUntilMs: []int64{1}}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Restore(FormatVersion, bad); err == nil {
		t.Error("half a key was read")
	}
}

func checkSample(t interface{ Fatalf(string, ...any) }, s *callscopev1.StreamSample) {
	for name, v := range map[string]*float64{
		"interval_ms": s.IntervalMs, "bitrate_kbps": s.BitrateKbps, "packets": s.Packets, "packet_rate": s.PacketRate, "frame_rate": s.FrameRate,
		"freeze_ms": s.FreezeMs, "freeze_count": s.FreezeCount, "bytes": s.Bytes, "samples_received": s.SamplesReceived,
		"concealed_samples": s.ConcealedSamples, "concealment_events": s.ConcealmentEvents, "jitter_buffer_delay_ms": s.JitterBufferDelayMs,
		"quality_limited_cpu_ms": s.QualityLimitedCpuMs, "rtt_ms": s.RttMs, "loss": s.Loss, "concealment": s.Concealment,
	} {
		if v == nil {
			continue
		}
		if math.IsNaN(*v) || math.IsInf(*v, 0) || *v < 0 {
			t.Fatalf("%s is %v in %v", name, *v, s)
		}
		if (name == "loss" || name == "concealment") && *v > 1 {
			t.Fatalf("%s is %v", name, *v)
		}
	}
	if s.PacketsLost != nil && (math.IsNaN(*s.PacketsLost) || math.IsInf(*s.PacketsLost, 0)) {
		t.Fatalf("packets_lost is %v", *s.PacketsLost)
	}
}

// Whatever counters do, no rate is negative and no ratio leaves [0,1].
func TestDeltasUnderAnyCounters(t *testing.T) {
	counter := rapid.OneOf(
		rapid.Float64Range(0, 1e6), rapid.Float64Range(-10, 1e12), rapid.SampledFrom([]float64{0, 1, 4294967295, math.MaxFloat64, -math.MaxFloat64, math.Inf(1), math.NaN()}),
	)
	optional := func(t *rapid.T, name string) *float64 {
		if rapid.IntRange(0, 4).Draw(t, name+" missing") == 0 {
			return nil
		}
		v := counter.Draw(t, name)
		return &v
	}
	rapid.Check(t, func(rt *rapid.T) {
		p, alice, _ := newPair(t)
		alice.begin("f", "bob")
		for range rapid.IntRange(1, 8).Draw(rt, "reports") {
			p.wait(rapid.Int64Range(0, 3_000).Draw(rt, "pause"))
			var rtp []*callscopev1.RtpStats
			for _, kind := range []callscopev1.RtpType{callscopev1.RtpType_RTP_TYPE_INBOUND, callscopev1.RtpType_RTP_TYPE_OUTBOUND, callscopev1.RtpType_RTP_TYPE_REMOTE_INBOUND, callscopev1.RtpType_RTP_TYPE_REMOTE_OUTBOUND} {
				if rapid.IntRange(0, 3).Draw(rt, "entry missing") == 0 {
					continue
				}
				rtp = append(rtp, &callscopev1.RtpStats{
					Type: kind, Ssrc: "7", Id: rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "id"),
					TimestampMs:     float64(captureBaseMs+p.nowMs) + float64(rapid.IntRange(-5_000, 1_000).Draw(rt, "timestamp")),
					PacketsReceived: optional(rt, "packets received"), PacketsSent: optional(rt, "packets sent"), PacketsLost: optional(rt, "lost"),
					BytesReceived: optional(rt, "bytes received"), BytesSent: optional(rt, "bytes sent"),
					TotalSamplesReceived: optional(rt, "samples"), ConcealedSamples: optional(rt, "concealed"), SilentConcealedSamples: optional(rt, "silent"),
					JitterBufferDelay: optional(rt, "buffer delay"), JitterBufferEmittedCount: optional(rt, "emitted"),
					FramesDecoded: optional(rt, "frames"), TotalFreezesDuration: optional(rt, "freezes"), FreezeCount: optional(rt, "freeze count"),
					TotalRoundTripTime: optional(rt, "total rtt"), RoundTripTimeMeasurements: optional(rt, "measurements"),
					QualityLimitationCpu: optional(rt, "limited"), ConcealmentEvents: optional(rt, "events"),
				})
			}
			for _, e := range alice.stats("f", "bob", rtp...) {
				if s := e.GetStreamSample(); s != nil {
					checkSample(rt, s)
				}
			}
		}
	})
}

// The machine may not know the time, chance, the network or the system.
func TestTheMachineIsPure(t *testing.T) {
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	service := []string{"enricher.go", "config.go", "metrics.go"}
	files := 0
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files++
		allowed := slices.Contains(service, name)
		for _, spec := range file.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case slices.Contains([]string{"net", "os", "math/rand", "math/rand/v2", "crypto/rand", "net/http"}, path),
				!allowed && slices.Contains([]string{"time", "context", "log/slog"}, path),
				!allowed && strings.Contains(path, "prometheus"):
				t.Errorf("%s imports %s", name, path)
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if _, found := n.(*ast.GoStmt); found {
				t.Errorf("%s starts a goroutine", name)
			}
			return true
		})
	}
	if files < len(service)+5 {
		t.Errorf("only %d files were looked at", files)
	}
}

var _ stage.Ticking = (*Machine)(nil)
