package summarizer

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// problem plays reports of ten seconds between two users, or through a server,
// and returns the last summaries of both.
type problem struct {
	l          *log
	alice, bob who
}

func newProblem(t *testing.T, server bool) *problem {
	l := newLog(t)
	p := &problem{l: l, alice: alice, bob: bob}
	kind := "peer"
	if server {
		p.alice.remote, p.bob.remote, kind = "sfu", "sfu", "server"
	}
	for _, w := range []who{p.alice, p.bob} {
		l.message()
		l.participant(w, present(0))
		l.fabric(w, &callscopev1.FabricFacts{StartedAtMs: begin, Outcome: setup, RemoteType: kind})
		l.conference(room, openFacts())
	}
	return p
}

// each plays n reports of both users.
func (p *problem) each(n int, ofAlice, ofBob []*callscopev1.StreamSample) {
	for range n {
		p.l.ticks(10)
		for _, side := range []struct {
			w       who
			samples []*callscopev1.StreamSample
		}{{p.alice, ofAlice}, {p.bob, ofBob}} {
			p.l.message()
			p.l.stats(side.w)
			p.l.path(side.w, &callscopev1.FabricSample{IntervalMs: new(10_000.0), RttMs: new(60.0)})
			for _, s := range side.samples {
				p.l.sample(side.w, s)
			}
		}
	}
}

func (p *problem) end() (ofAlice, ofBob *callscopev1.ParticipantSummary, streams map[string]*callscopev1.StreamSummary) {
	p.l.ticks(60)
	streams = map[string]*callscopev1.StreamSummary{}
	for _, s := range p.l.all {
		switch body := s.Body.(type) {
		case *callscopev1.Summary_Participant:
			if s.Identity.UserId == "alice" {
				ofAlice = body.Participant
			} else if s.Identity.UserId == "bob" {
				ofBob = body.Participant
			}
		case *callscopev1.Summary_Stream:
			streams[s.Identity.UserId+" "+body.Stream.Ssrc] = body.Stream
		}
	}
	return ofAlice, ofBob, streams
}

// sound is an audio report with packets and a level; level below 0: unknown.
func sound(direction callscopev1.Direction, ssrc, owner string, packets, level float64) *callscopev1.StreamSample {
	s := &callscopev1.StreamSample{
		Ssrc: ssrc, Direction: direction, MediaType: "audio", OwnerUserId: owner, IntervalMs: new(10_000.0), Packets: &packets, PacketsLost: new(0.0),
	}
	if level >= 0 {
		s.AudioLevel = &level
	}
	return s
}

type samples = []*callscopev1.StreamSample

func TestOneWayAudio(t *testing.T) {
	toBob := func(packets, level float64) *callscopev1.StreamSample {
		return sound(outbound, "1", "alice", packets, level)
	}
	atBob := func(packets, level float64) *callscopev1.StreamSample {
		return sound(inbound, "1", "alice", packets, level)
	}
	back, backAtAlice := sound(outbound, "2", "bob", 500, 0.05), sound(inbound, "2", "bob", 500, 0.05)
	for name, tc := range map[string]struct {
		alice, bob samples
		reports    int
		silence    callscopev1.Silence // of what alice sends
		server     bool
		want       bool // bob hears nothing of alice
	}{
		"packets stop":                               {alice: samples{toBob(500, 0.05), backAtAlice}, bob: samples{atBob(0, -1), back}, want: true},
		"packets without sound":                      {alice: samples{toBob(500, 0.05), backAtAlice}, bob: samples{atBob(500, 0), back}, want: true},
		"through a server":                           {alice: samples{toBob(500, 0.05), backAtAlice}, bob: samples{atBob(0, -1), back}, server: true, want: true},
		"no stream ever came":                        {alice: samples{toBob(500, 0.05), backAtAlice}, bob: samples{back}, want: true},
		"no stream through a server":                 {alice: samples{toBob(500, 0.05), backAtAlice}, bob: samples{back}, server: true},
		"one report only":                            {alice: samples{toBob(500, 0.05), backAtAlice}, bob: samples{atBob(0, -1), back}, reports: 1},
		"both hear":                                  {alice: samples{toBob(500, 0.05), backAtAlice}, bob: samples{atBob(500, 0.05), back}},
		"the speaker is silent":                      {alice: samples{toBob(500, 0.0001), backAtAlice}, bob: samples{atBob(500, 0), back}},
		"the speaker's level is unknown":             {alice: samples{toBob(500, -1), backAtAlice}, bob: samples{atBob(0, -1), back}},
		"the listener's is":                          {alice: samples{toBob(500, 0.05), backAtAlice}, bob: samples{atBob(500, -1), back}},
		"nobody plays sound":                         {alice: samples{toBob(500, 0.05), sound(inbound, "2", "bob", 500, 0)}, bob: samples{atBob(500, 0), back}},
		"no packets, and the speaker plays no sound": {alice: samples{toBob(500, 0.05), sound(inbound, "2", "bob", 500, 0)}, bob: samples{atBob(0, -1), back}, want: true},
		"another stream of the speaker is heard": {
			alice: samples{toBob(500, 0.05), sound(outbound, "7", "alice", 500, 0), backAtAlice},
			bob:   samples{sound(inbound, "7", "alice", 500, 0), atBob(500, 0.05), back},
		},
		"an SSRC that another replaced": {alice: samples{toBob(500, 0.05), backAtAlice}, bob: samples{sound(inbound, "7", "alice", 0, -1), atBob(500, 0.05), back}},
		"neither stream of the speaker is heard": {
			alice: samples{toBob(500, 0.05), backAtAlice}, bob: samples{sound(inbound, "7", "alice", 0, -1), atBob(0, -1), back}, want: true,
		},
		"muted":                      {alice: samples{toBob(500, 0.05), backAtAlice}, bob: samples{atBob(500, 0), back}, silence: callscopev1.Silence_SILENCE_MUTED},
		"on hold":                    {alice: samples{toBob(500, 0.05), backAtAlice}, bob: samples{atBob(0, -1), back}, silence: callscopev1.Silence_SILENCE_HELD},
		"nothing works either way":   {alice: samples{toBob(500, 0.05), sound(inbound, "2", "bob", 0, -1)}, bob: samples{atBob(0, -1), back}},
		"the listener sends nothing": {alice: samples{toBob(500, 0.05), backAtAlice}, bob: samples{atBob(0, -1), sound(outbound, "2", "bob", 0, 0)}},
	} {
		p := newProblem(t, tc.server)
		for _, s := range append(slices.Clone(tc.alice), tc.bob...) {
			if s.OwnerUserId == "alice" {
				s.Silence = tc.silence
			}
		}
		reports := 4
		if tc.reports > 0 {
			reports = tc.reports
		}
		p.each(reports, tc.alice, tc.bob)
		ofAlice, ofBob, _ := p.end()
		var want []string
		if tc.want {
			want = []string{"oneWayAudio"}
		}
		if diff := cmp.Diff(want, ofBob.Findings); diff != "" {
			t.Errorf("%s: bob: %s", name, diff)
		}
		if name != "nothing works either way" && len(ofAlice.Findings) > 0 {
			t.Errorf("%s: alice has findings %v", name, ofAlice.Findings)
		}
		if !tc.want {
			continue
		}
		var evidence []struct {
			Finding   string
			RemoteUID string `json:"remote_uid"`
			Ms        int
		}
		if err := json.Unmarshal([]byte(ofBob.FindingsEvidenceJson), &evidence); err != nil {
			t.Fatal(err)
		}
		id, err := uuid.Parse(evidence[0].RemoteUID)
		if err != nil || string(id[:]) != string(p.alice.identity().ParticipantUid) || evidence[0].Ms < 15_000 {
			t.Errorf("%s: evidence %s", name, ofBob.FindingsEvidenceJson)
		}
	}
}

// shown is a video report.
func shown(direction callscopev1.Direction, ssrc, owner string, frames float64, change func(*callscopev1.StreamSample)) *callscopev1.StreamSample {
	s := &callscopev1.StreamSample{
		Ssrc: ssrc, Direction: direction, MediaType: "video", OwnerUserId: owner, IntervalMs: new(10_000.0),
		Packets: new(500.0), PacketsLost: new(0.0), FrameRate: &frames,
	}
	if change != nil {
		change(s)
	}
	return s
}

func TestFindingsOfASender(t *testing.T) {
	source := func(fps float64) func(*callscopev1.StreamSample) {
		return func(s *callscopev1.StreamSample) { s.SourceFrameRate = &fps }
	}
	limited := func(cpu, bandwidth float64) func(*callscopev1.StreamSample) {
		return func(s *callscopev1.StreamSample) {
			s.QualityLimitedCpuMs, s.QualityLimitedBandwidthMs = &cpu, &bandwidth
		}
	}
	reason := func(why string) func(*callscopev1.StreamSample) {
		return func(s *callscopev1.StreamSample) { s.QualityLimitationReason = why }
	}
	for name, tc := range map[string]struct {
		frames  float64
		change  func(*callscopev1.StreamSample)
		reports int
		silence callscopev1.Silence
		relayed []*bool // of alice's fabrics
		want    []string
	}{
		"frozen":                        {frames: 0, change: source(30), reports: 3, want: []string{"frozenSender"}},
		"frozen for one report":         {frames: 0, change: source(30), reports: 1},
		"source unknown":                {frames: 0, reports: 3},
		"source off":                    {frames: 0, change: source(0), reports: 3},
		"paused":                        {frames: 0, change: source(30), reports: 3, silence: callscopev1.Silence_SILENCE_PAUSED},
		"on hold":                       {frames: 0, change: source(30), reports: 3, silence: callscopev1.Silence_SILENCE_HELD},
		"frames flow":                   {frames: 30, change: source(30), reports: 3},
		"limited by the processor":      {frames: 30, change: limited(2500, 0), reports: 9, want: []string{"cpuLimited"}},
		"just below a fifth":            {frames: 30, change: limited(1900, 1900), reports: 12},
		"too short to count":            {frames: 30, change: limited(9000, 0), reports: 2},
		"by the bandwidth":              {frames: 30, change: limited(0, 4000), reports: 6, want: []string{"bandwidthLimited"}},
		"by both":                       {frames: 30, change: limited(5000, 4000), reports: 6, want: []string{"cpuLimited", "bandwidthLimited"}},
		"by reason alone":               {frames: 30, change: reason("bandwidth"), reports: 3, want: []string{"bandwidthLimited"}},
		"for another reason":            {frames: 30, change: reason("other"), reports: 3},
		"all relayed":                   {frames: 30, reports: 1, relayed: []*bool{new(true), new(true)}, want: []string{"relayedOnly"}},
		"one relayed":                   {frames: 30, reports: 1, relayed: []*bool{new(true), new(false)}},
		"one relayed, one not known":    {frames: 30, reports: 1, relayed: []*bool{new(true), nil}},
		"nobody knows of being relayed": {frames: 30, reports: 1, relayed: []*bool{nil}},
	} {
		p := newProblem(t, true)
		for i, relayed := range tc.relayed {
			w := p.alice
			if i > 0 {
				w.connection, w.remote = "another", "carol"
			}
			p.l.fabric(w, &callscopev1.FabricFacts{StartedAtMs: begin, Outcome: setup, Relayed: relayed})
		}
		sent := shown(outbound, "1", "alice", tc.frames, tc.change)
		sent.Silence = tc.silence
		p.each(tc.reports, samples{sent}, nil)
		ofAlice, ofBob, _ := p.end()
		if diff := cmp.Diff(tc.want, ofAlice.Findings); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if len(ofBob.Findings) > 0 {
			t.Errorf("%s: bob has findings %v", name, ofBob.Findings)
		}
	}
}

// A layer of a simulcast that is off is not frozen while another one sends, in
// whatever order a report names them; a source of which no layer is sent is, and
// so is a camera beside a shared screen.
func TestFrozenSimulcast(t *testing.T) {
	source := func(s *callscopev1.StreamSample) { s.SourceFrameRate = new(30.0) }
	stopped := func(ssrc string) *callscopev1.StreamSample {
		s := shown(outbound, ssrc, "alice", 0, source)
		s.Packets = new(0.0)
		return s
	}
	high, low := stopped("1"), shown(outbound, "2", "alice", 30, source)
	camera, screen := stopped("1"), shown(outbound, "2", "alice", 30, source)
	camera.UsageLabel, screen.UsageLabel = "camera", "screen"
	for name, tc := range map[string]struct {
		sent samples
		want []string
	}{
		"the first layer is off":   {samples{high, low}, nil},
		"the second layer is off":  {samples{low, high}, nil},
		"all layers are off":       {samples{high, stopped("2")}, []string{"frozenSender"}},
		"the camera, not a screen": {samples{camera, screen}, []string{"frozenSender"}},
	} {
		p := newProblem(t, true)
		for _, s := range tc.sent {
			s.IntervalMs = new(20_000.0)
		}
		p.each(4, tc.sent, nil)
		ofAlice, _, _ := p.end()
		if diff := cmp.Diff(tc.want, ofAlice.Findings); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// Whose side a poor stream of alice is on, as bob gets it.
func TestSides(t *testing.T) {
	type lost struct{ up, down float64 } // of 500 packets each report
	video := func(sent, shownFrames float64, l lost, more func(*callscopev1.StreamSample)) (samples, samples) {
		out := shown(outbound, "1", "alice", sent, func(s *callscopev1.StreamSample) {
			s.PacketsLost = &l.up
			if more != nil {
				more(s)
			}
		})
		in := shown(inbound, "1", "alice", shownFrames, func(s *callscopev1.StreamSample) {
			s.Packets, s.PacketsLost = new(500-l.down), &l.down
			s.FreezeMs = new(3000.0) // poor in any case
		})
		return samples{out}, samples{in}
	}
	cpu := func(s *callscopev1.StreamSample) { s.QualityLimitedCpuMs = new(5000.0) }
	bandwidth := func(s *callscopev1.StreamSample) { s.QualityLimitedBandwidthMs = new(5000.0) }
	frozen := func(s *callscopev1.StreamSample) { s.SourceFrameRate = new(30.0) }
	for name, tc := range map[string]struct {
		server      bool
		sent, shown float64
		lost        lost
		more        func(*callscopev1.StreamSample)
		change      func(a, b samples) // in the end
		extra       func(p *problem)
		want        string
		rule        string
		device      string // who has the finding deviceCaused
	}{
		"the way up loses":            {server: true, sent: 30, shown: 20, lost: lost{up: 25}, want: "networkUp", rule: "lossUp"},
		"the way down loses":          {server: true, sent: 30, shown: 20, lost: lost{down: 25}, want: "networkDown", rule: "lossDown"},
		"both lose":                   {server: true, sent: 30, shown: 20, lost: lost{25, 25}},
		"little loss on both ways":    {server: true, sent: 30, shown: 28, lost: lost{7, 7}},
		"the sender's bandwidth":      {server: true, sent: 10, shown: 10, more: bandwidth, want: "networkUp", rule: "bandwidthUp"},
		"the sender's processor":      {server: true, sent: 10, shown: 10, more: cpu, want: "sender", rule: "senderCPU", device: "alice"},
		"the processor beside loss":   {server: true, sent: 10, shown: 10, lost: lost{down: 50}, more: cpu, want: "sender", rule: "senderCPU", device: "alice"},
		"the sender froze":            {server: true, sent: 0, shown: 0, more: frozen, want: "sender", rule: "senderFroze", device: "alice"},
		"the receiver cannot keep up": {server: true, sent: 30, shown: 12, want: "receiver", rule: "framesShown", device: "bob"},
		"it shows what was sent":      {server: true, sent: 12, shown: 12},
		"directly, loss between two":  {sent: 30, shown: 20, lost: lost{25, 25}},
		"directly, cannot keep up":    {sent: 30, shown: 12, want: "receiver", rule: "framesShown", device: "bob"},
		"directly, bandwidth":         {sent: 30, shown: 30, more: bandwidth},
		"another SSRC":                {server: true, sent: 30, shown: 20, lost: lost{up: 25}, change: func(_, b samples) { b[0].Ssrc = "99" }},
		"another owner":               {server: true, sent: 30, shown: 20, lost: lost{up: 25}, change: func(_, b samples) { b[0].OwnerUserId = "carol" }},
		"the sender reports no loss":  {server: true, sent: 30, shown: 20, lost: lost{down: 25}, change: func(a, _ samples) { a[0].PacketsLost = nil }},
		"it is not poor":              {server: true, sent: 30, shown: 30, lost: lost{up: 25}, change: func(_, b samples) { b[0].FreezeMs = new(0.0) }},
	} {
		p := newProblem(t, tc.server)
		a, b := video(tc.sent, tc.shown, tc.lost, tc.more)
		if tc.change != nil {
			tc.change(a, b)
		}
		p.each(6, a, b)
		ofAlice, ofBob, streams := p.end()
		checkSide(t, name, streams["bob "+b[0].Ssrc], tc.want, tc.rule)
		for who, s := range map[string]*callscopev1.ParticipantSummary{"alice": ofAlice, "bob": ofBob} {
			has := false
			for _, f := range s.Findings {
				has = has || f == "deviceCaused"
			}
			if has != (tc.device == who) {
				t.Errorf("%s: %s has the findings %v", name, who, s.Findings)
			}
		}
	}
}

func checkSide(t *testing.T, name string, s *callscopev1.StreamSummary, side, rule string) {
	t.Helper()
	if s == nil {
		t.Errorf("%s: no stream", name)
		return
	}
	var evidence struct{ Rule string }
	if s.Side != "" {
		if err := json.Unmarshal([]byte(s.SideEvidenceJson), &evidence); err != nil {
			t.Fatal(err)
		}
	}
	if s.Side != side || evidence.Rule != rule {
		t.Errorf("%s: side %q by %q, want %q by %q; %s", name, s.Side, evidence.Rule, side, rule, s.SideEvidenceJson)
	}
}

// In a mesh the streams to and from others tell which end of a direct way loses.
func TestSidesOfDirectStreams(t *testing.T) {
	for name, tc := range map[string]struct {
		aliceToCarol, carolToBob float64 // lost of 500
		want, rule               string
	}{
		"alice loses to everybody": {25, 0, "networkUp", "lossUp"},
		"bob loses of everybody":   {0, 25, "networkDown", "lossDown"},
		"both do":                  {25, 25, "", ""},
		"neither does":             {0, 0, "", ""},
		"not clearly":              {7, 0, "", ""},
	} {
		p := newProblem(t, false)
		p.l.message()
		p.l.participant(carol, present(0))
		toCarol := p.alice
		toCarol.connection, toCarol.remote = "ac", "carol"
		fromCarol := p.bob
		fromCarol.connection, fromCarol.remote = "bc", "carol"
		for _, w := range []who{toCarol, fromCarol} {
			p.l.fabric(w, &callscopev1.FabricFacts{StartedAtMs: begin, Outcome: setup, RemoteType: "peer"})
		}
		with := func(direction callscopev1.Direction, ssrc, owner string, lost float64) *callscopev1.StreamSample {
			return shown(direction, ssrc, owner, 20, func(s *callscopev1.StreamSample) { s.PacketsLost, s.FreezeMs = &lost, new(3000.0) })
		}
		for range 4 {
			p.each(1, samples{with(outbound, "1", "alice", 25)}, samples{with(inbound, "1", "alice", 25)})
			p.l.sample(toCarol, with(outbound, "3", "alice", tc.aliceToCarol))
			p.l.sample(fromCarol, with(inbound, "4", "carol", tc.carolToBob))
		}
		_, _, streams := p.end()
		checkSide(t, name, streams["bob 1"], tc.want, tc.rule)
	}
}

func TestTimesOfAParticipant(t *testing.T) {
	p := newProblem(t, false)
	facts := present(0)
	facts.AudioMute = &callscopev1.Activity{Count: 2, TotalMs: 4000, SinceMs: new(int64(begin + 10_000)), Intervals: []*callscopev1.ActivityInterval{{FromMs: 1, ToMs: 2}}}
	facts.ScreenShare = &callscopev1.Activity{Count: 1, TotalMs: 700}
	p.l.participant(p.alice, facts)
	// Two outbound streams at once count once; a level below speech does not count.
	loud := samples{sound(outbound, "1", "alice", 500, 0.05), sound(outbound, "2", "alice", 500, 0.05)}
	p.each(2, loud, samples{sound(outbound, "5", "bob", 500, 0.005)})
	p.each(1, samples{sound(outbound, "1", "alice", 500, 0.001)}, nil)
	ofAlice, ofBob, _ := p.end()
	if ofAlice.GetTalkMs() != 20_000 || ofBob.TalkMs == nil || *ofBob.TalkMs != 0 {
		t.Errorf("talked %v and %v, want 20 s and 0", ofAlice.TalkMs, ofBob.TalkMs)
	}
	if ofAlice.GetMutedMs() != 24_000 || ofAlice.GetSharedMs() != 700 || ofAlice.PausedMs != nil || ofBob.MutedMs != nil {
		t.Errorf("muted %v, shared %v, paused %v; bob muted %v", ofAlice.MutedMs, ofAlice.SharedMs, ofAlice.PausedMs, ofBob.MutedMs)
	}
}

// A viewer's picture is measured by what the sender's camera delivers.
func TestVideoIsMeasuredByItsSource(t *testing.T) {
	for name, tc := range map[string]struct {
		sourceFPS, sourceHeight float64
		server                  bool
		want                    float64
	}{
		"source unknown":             {0, 0, false, 4},    // 12 of the usual 24
		"a slow source":              {12, 360, false, 5}, // shows all of it
		"a large source":             {12, 720, false, 4.25},
		"a large source at a server": {12, 720, true, 5}, // a smaller layer may have been asked for
	} {
		p := newProblem(t, tc.server)
		out := shown(outbound, "1", "alice", 12, func(s *callscopev1.StreamSample) {
			if tc.sourceFPS > 0 {
				s.SourceFrameRate, s.SourceFrameHeight = &tc.sourceFPS, &tc.sourceHeight
			}
		})
		in := shown(inbound, "9", "alice", 12, func(s *callscopev1.StreamSample) { s.FrameHeight = new(360.0) })
		p.each(3, samples{out}, samples{in})
		_, _, streams := p.end()
		if got := streams["bob 9"].VideoScore; got.GetMean() != tc.want {
			t.Errorf("%s: score %v, want %v", name, got, tc.want)
		}
	}
}
