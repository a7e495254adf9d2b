package summarizer

import (
	"cmp"
	"container/heap"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// formatVersion is the version of the snapshot's encoding.
const formatVersion = 3

// progress is what was written of one entity.
type progress struct {
	revision          uint32
	finalized         bool // a final summary was written: later ones are revised
	changed           bool // since the last summary
	firstRaw, lastRaw int64
}

type conference struct {
	progress
	appID, id string
	uid       []byte
	// facts are nil until the first record of them.
	facts          *callscopev1.ConferenceFacts
	startedAtMs    int64
	startedAliveMs int64
	due            int64 // alive ms, notDue: nothing waits for time
	lastMessageMs  int64

	participants []*participant // in the order of their first record
	byUID        map[string]*participant
	byUser       map[string][]*participant
}

const notDue = -1

type participant struct {
	progress
	userID, deviceID string
	uid              []byte
	facts            *callscopev1.ParticipantFacts
	lastMessageMs    int64
	feedback         *float64
	// Interval bounds of the samples with packets.
	firstMediaMs, lastMediaMs *float64
	setupFailed               bool
	failureFunction           string
	failureReason             string
	unanswered                bool

	fabrics []*fabric
	byUID   map[string]*fabric
	streams int // over all fabrics

	measures       [measureCount]*measure
	camera, screen source
	talkMs         *uint64
	talkedUntilMs  float64 // end of the last interval that counts in talkMs
}

// The measures of a participant over all its fabrics and streams.
const (
	measureAudioMOS   = iota // what it heard
	measureVideoScore        // what it saw
	measureLossIn
	measureLossOut
	measureJitterIn
	measureJitterOut
	measureRTT // of the selected candidate pairs
	measureBitrateIn
	measureBitrateOut
	measureCount
)

// source is what a camera or a shared screen delivered last, 0 where unknown.
type source struct{ frameRate, height float64 }

type fabric struct {
	progress
	connectionID, remoteID string
	uid                    []byte
	facts                  *callscopev1.FabricFacts
	rtt                    *measure
	relayed                *bool

	streams []*streamState
	byKey   map[streamKey]*streamState
}

type streamKey struct {
	ssrc      string
	direction callscopev1.Direction
}

type streamState struct {
	progress
	facts        *callscopev1.StreamFacts
	assumed      bool // facts were made of the first sample
	samples      uint32
	lastSampleMs int64

	bitrate, loss, jitter, rtt, audioMOS, videoScore *measure
	lost, expected                                   float64
	penalties                                        [penaltyCount]uint64 // 1/10,000 point × ms
	sums                                             [sumCount]uint64
	flowing                                          bool // its latest interval had packets
	voiced                                           bool // and a level of speech
}

// What is summed over a stream for findings and sides.
const (
	sumMeasuredMs  = iota // intervals of known length
	sumSoundMs            // audio: intervals with packets and a level of speech, or of unknown level
	sumSpeechMs           // audio: of them those of known level, not silent on purpose
	sumRunMs              // audio in: heard nothing of a speaker; video out: no frames of a running source; now
	sumLongestMs          // the longest such run
	sumRateMs             // video: intervals of known frame rate
	sumFrames             // and the frames in them
	sumCPUMs              // video out: limited by the processor
	sumBandwidthMs        // video out: limited by the bandwidth
	sumSamples            // audio in: samples played
	sumConcealed          // of them made up
	sumCount
)

// The penalties whose means a stream's summary gives as reasons.
const (
	penaltyAudioDelay = iota
	penaltyAudioLoss
	penaltyVideoFreeze
	penaltyVideoFrameRate
	penaltyVideoResolution
	penaltyVideoLoss
	penaltyCount
)

func newConference(identity *callscopev1.Identity) *conference {
	return &conference{
		appID: identity.AppId, id: identity.ConferenceId, uid: identity.ConferenceUid, due: notDue,
		byUID: map[string]*participant{}, byUser: map[string][]*participant{},
	}
}

// ended tells whether the conference is over, be it in grace or for good.
func (c *conference) ended() bool {
	s := c.facts.GetState()
	return s == callscopev1.ConferenceState_CONFERENCE_STATE_ENDED || s == callscopev1.ConferenceState_CONFERENCE_STATE_FORGOTTEN
}

func (c *conference) participant(identity *callscopev1.Identity, raw int64) *participant {
	if p, ok := c.byUID[string(identity.ParticipantUid)]; ok {
		return p
	}
	p := &participant{
		progress: progress{firstRaw: raw}, userID: identity.UserId, deviceID: identity.DeviceId, uid: identity.ParticipantUid,
		byUID: map[string]*fabric{},
	}
	c.addParticipant(p)
	return p
}

func (c *conference) addParticipant(p *participant) {
	c.participants = append(c.participants, p)
	c.byUID[string(p.uid)] = p
	c.byUser[p.userID] = append(c.byUser[p.userID], p)
}

func (p *participant) fabric(identity *callscopev1.Identity, raw int64) *fabric {
	if f, ok := p.byUID[string(identity.FabricUid)]; ok {
		return f
	}
	f := &fabric{
		progress: progress{firstRaw: raw}, connectionID: identity.ConnectionId, remoteID: identity.RemoteId, uid: identity.FabricUid,
		byKey: map[streamKey]*streamState{},
	}
	p.fabrics = append(p.fabrics, f)
	p.byUID[string(f.uid)] = f
	for _, f := range p.fabrics {
		if f.rtt != nil {
			f.rtt.bound(p.fabricBuckets())
		}
	}
	return f
}

// fabricBuckets is how many buckets the round-trip times of each fabric may use.
func (p *participant) fabricBuckets() int { return max(bucketLimit(len(p.fabrics)), minBuckets) }

// touch notes that a raw record says something of the entity.
func (p *progress) touch(raw int64) { p.lastRaw = max(p.lastRaw, raw) }

func (p *progress) change(raw int64) {
	p.touch(raw)
	p.changed = true
}

// dueEntry is a place in the queue of conferences that wait for time to pass.
// An entry whose time is not that of its conference is out of date.
type dueEntry struct {
	alive int64
	uid   string
}

// dueQueue is a heap in the order of time, then uid, so that the order of
// outputs does not depend on how the state came about.
type dueQueue []dueEntry

func (q dueQueue) Len() int { return len(q) }
func (q dueQueue) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(q[i].alive, q[j].alive), cmp.Compare(q[i].uid, q[j].uid)) < 0
}
func (q dueQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *dueQueue) Push(x any)   { *q = append(*q, x.(dueEntry)) }
func (q *dueQueue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

// schedule sets the alive time at which the conference is looked at again.
func (m *Machine) schedule(c *conference, alive int64) {
	if c.due == alive {
		return
	}
	c.due = alive
	if alive != notDue {
		heap.Push(&m.due, dueEntry{alive: alive, uid: string(c.uid)})
	}
}

// Snapshot encodes the state; equal states give equal bytes.
func (m *Machine) Snapshot() ([]byte, error) {
	state := &callscopev1.SummarizerState{Conferences: make([]*callscopev1.SummarizerConference, 0, len(m.conferences))}
	for _, uid := range slices.Sorted(maps.Keys(m.conferences)) {
		state.Conferences = append(state.Conferences, m.conferences[uid].state())
	}
	data, err := state.MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("encoding the summarizer's state: %w", err)
	}
	return data, nil
}

// Restore replaces the state by a snapshot's. On an error the state is as it was.
func (m *Machine) Restore(version uint32, data []byte) error {
	if version != formatVersion {
		return fmt.Errorf("restoring the summarizer's state: its format is version %d, this program reads version %d", version, formatVersion)
	}
	var state callscopev1.SummarizerState
	if err := state.UnmarshalVT(data); err != nil {
		return fmt.Errorf("decoding the summarizer's state: %w", err)
	}
	restored := NewMachine()
	for _, s := range state.Conferences {
		c, err := conferenceOf(s)
		if err != nil {
			return fmt.Errorf("decoding the summarizer's state of conference %x: %w", s.ConferenceUid, err)
		}
		restored.conferences[string(c.uid)] = c
		if c.due != notDue {
			restored.due = append(restored.due, dueEntry{alive: c.due, uid: string(c.uid)})
		}
	}
	heap.Init(&restored.due)
	*m = *restored
	return nil
}

func (p *progress) state() *callscopev1.SummarizerProgress {
	return &callscopev1.SummarizerProgress{
		Revision: p.revision, Finalized: p.finalized, Changed: p.changed, FirstRawOffset: p.firstRaw, LastRawOffset: p.lastRaw,
	}
}

func progressOf(s *callscopev1.SummarizerProgress) progress {
	return progress{
		revision: s.GetRevision(), finalized: s.GetFinalized(), changed: s.GetChanged(),
		firstRaw: s.GetFirstRawOffset(), lastRaw: s.GetLastRawOffset(),
	}
}

func (c *conference) state() *callscopev1.SummarizerConference {
	s := &callscopev1.SummarizerConference{
		AppId: c.appID, ConferenceId: c.id, ConferenceUid: c.uid, Facts: c.facts, StartedAtMs: c.startedAtMs,
		StartedAliveMs: c.startedAliveMs, LastMessageAtMs: c.lastMessageMs, Progress: c.progress.state(),
		Participants: make([]*callscopev1.SummarizerParticipant, len(c.participants)),
	}
	w := &words{index: map[string]uint32{"": 0}}
	if c.due != notDue {
		s.DueAliveMs = new(c.due)
	}
	for i, p := range c.participants {
		s.Participants[i] = p.state(w)
	}
	s.Words = w.list
	return s
}

func conferenceOf(s *callscopev1.SummarizerConference) (*conference, error) {
	c := newConference(&callscopev1.Identity{AppId: s.AppId, ConferenceId: s.ConferenceId, ConferenceUid: s.ConferenceUid})
	c.progress, c.facts, c.startedAtMs, c.startedAliveMs, c.lastMessageMs = progressOf(s.Progress), s.Facts, s.StartedAtMs, s.StartedAliveMs, s.LastMessageAtMs
	if s.DueAliveMs != nil {
		c.due = *s.DueAliveMs
	}
	for _, sp := range s.Participants {
		p, err := participantOf(sp, s.Words)
		if err != nil {
			return nil, err
		}
		c.addParticipant(p)
	}
	return c, nil
}

func (p *participant) state(w *words) *callscopev1.SummarizerParticipant {
	s := &callscopev1.SummarizerParticipant{
		UserId: p.userID, DeviceId: p.deviceID, ParticipantUid: p.uid, Facts: p.facts, LastMessageAtMs: p.lastMessageMs,
		FeedbackOverall: p.feedback, FirstMediaMs: p.firstMediaMs, LastMediaMs: p.lastMediaMs,
		SetupFailed: p.setupFailed, FailureFunction: p.failureFunction, FailureReason: p.failureReason,
		Unanswered: p.unanswered, Progress: p.progress.state(),
		Fabrics: make([]*callscopev1.SummarizerFabric, len(p.fabrics)),
		Camera:  p.camera.state(), Screen: p.screen.state(), TalkMs: p.talkMs, TalkedUntilMs: p.talkedUntilMs,
		Measures: make([]*callscopev1.SummarizerMeasure, measureCount),
	}
	for i, f := range p.fabrics {
		s.Fabrics[i] = f.state(w)
	}
	for i, m := range p.measures {
		if s.Measures[i] = m.state(); m == nil {
			s.Measures[i] = &callscopev1.SummarizerMeasure{}
		}
	}
	return s
}

func (s source) state() *callscopev1.SummarizerSource {
	if s == (source{}) {
		return nil
	}
	return &callscopev1.SummarizerSource{FrameRate: s.frameRate, FrameHeight: s.height}
}

// words are the texts that the streams of a conference repeat.
type words struct {
	index map[string]uint32
	list  []string
}

func (w *words) number(text string) uint32 {
	n, ok := w.index[text]
	if !ok {
		w.list = append(w.list, text)
		n = uint32(len(w.list))
		w.index[text] = n
	}
	return n
}

func participantOf(s *callscopev1.SummarizerParticipant, words []string) (*participant, error) {
	p := &participant{
		progress: progressOf(s.Progress), userID: s.UserId, deviceID: s.DeviceId, uid: s.ParticipantUid, facts: s.Facts,
		lastMessageMs: s.LastMessageAtMs, feedback: s.FeedbackOverall, firstMediaMs: s.FirstMediaMs, lastMediaMs: s.LastMediaMs,
		setupFailed: s.SetupFailed, failureFunction: s.FailureFunction, failureReason: s.FailureReason,
		unanswered: s.Unanswered, byUID: map[string]*fabric{},
		camera: source{s.GetCamera().GetFrameRate(), s.GetCamera().GetFrameHeight()},
		screen: source{s.GetScreen().GetFrameRate(), s.GetScreen().GetFrameHeight()},
		talkMs: s.TalkMs, talkedUntilMs: s.TalkedUntilMs,
	}
	if len(s.Measures) > measureCount {
		return nil, fmt.Errorf("restoring a participant: it has %d measures, this program knows %d", len(s.Measures), measureCount)
	}
	for i, sm := range s.Measures {
		if sm.SizeVT() == 0 {
			continue
		}
		m, err := measureOf(sm)
		if err != nil {
			return nil, err
		}
		p.measures[i] = m
	}
	for _, sf := range s.Fabrics {
		f, err := fabricOf(sf, words)
		if err != nil {
			return nil, err
		}
		p.fabrics = append(p.fabrics, f)
		p.byUID[string(f.uid)] = f
		p.streams += len(f.streams)
	}
	return p, nil
}

func (f *fabric) state(w *words) *callscopev1.SummarizerFabric {
	s := &callscopev1.SummarizerFabric{
		ConnectionId: f.connectionID, RemoteId: f.remoteID, FabricUid: f.uid, Facts: f.facts, Rtt: f.rtt.state(),
		Relayed: f.relayed, Progress: f.progress.state(),
		Streams: make([]*callscopev1.SummarizerStream, len(f.streams)),
	}
	for i, st := range f.streams {
		s.Streams[i] = st.state(w)
	}
	return s
}

func fabricOf(s *callscopev1.SummarizerFabric, words []string) (*fabric, error) {
	rtt, err := measureOf(s.Rtt)
	if err != nil {
		return nil, err
	}
	f := &fabric{
		progress: progressOf(s.Progress), connectionID: s.ConnectionId, remoteID: s.RemoteId, uid: s.FabricUid, facts: s.Facts,
		rtt: rtt, relayed: s.Relayed, byKey: map[streamKey]*streamState{},
	}
	for _, ss := range s.Streams {
		st, err := streamOf(ss, words)
		if err != nil {
			return nil, err
		}
		f.streams = append(f.streams, st)
		f.byKey[streamKey{st.facts.Ssrc, st.facts.Direction}] = st
	}
	return f, nil
}

func (st *streamState) state(w *words) *callscopev1.SummarizerStream {
	facts := st.facts
	s := &callscopev1.SummarizerStream{
		Direction: facts.Direction, MediaType: w.number(facts.MediaType), OwnerUserId: w.number(facts.OwnerUserId),
		OwnerSource: facts.OwnerSource, UsageLabel: w.number(facts.UsageLabel), Codec: w.number(facts.Codec),
		StartedAtMs: facts.StartedAtMs, EndedAtMs: facts.EndedAtMs,
		Assumed: st.assumed, Samples: st.samples, LastSampleAtMs: st.lastSampleMs,
		BitrateKbps: st.bitrate.state(), Loss: st.loss.state(), JitterMs: st.jitter.state(), RttMs: st.rtt.state(),
		AudioMos: st.audioMOS.state(), VideoScore: st.videoScore.state(),
		Progress:  st.progress.state(),
		Penalties: withoutZerosAtTheEnd(st.penalties[:]), Sums: withoutZerosAtTheEnd(st.sums[:]),
		Flowing: st.flowing, Voiced: st.voiced,
	}
	if n, err := strconv.ParseUint(facts.Ssrc, 10, 32); err == nil && n > 0 && strconv.FormatUint(n, 10) == facts.Ssrc {
		s.SsrcNumber = uint32(n)
	} else {
		s.Ssrc = facts.Ssrc
	}
	if isWhole(st.lost) {
		s.WholePacketsLost = int64(st.lost)
	} else {
		s.PacketsLost = st.lost
	}
	if isWhole(st.expected) && st.expected >= 0 {
		s.WholePacketsExpected = uint64(st.expected)
	} else {
		s.PacketsExpected = st.expected
	}
	return s
}

// isWhole tells whether an integer holds the number as well.
func isWhole(v float64) bool { return v == math.Trunc(v) && math.Abs(v) < 1<<53 }

func withoutZerosAtTheEnd(numbers []uint64) []uint64 {
	for len(numbers) > 0 && numbers[len(numbers)-1] == 0 {
		numbers = numbers[:len(numbers)-1]
	}
	return slices.Clone(numbers)
}

func streamOf(s *callscopev1.SummarizerStream, words []string) (*streamState, error) {
	word := func(n uint32) string {
		if n == 0 || int(n) > len(words) {
			return ""
		}
		return words[n-1]
	}
	if n := max(s.MediaType, s.OwnerUserId, s.UsageLabel, s.Codec); int(n) > len(words) {
		return nil, fmt.Errorf("restoring a stream: it names text %d of %d", n, len(words))
	}
	if len(s.Penalties) > penaltyCount || len(s.Sums) > sumCount {
		return nil, fmt.Errorf("restoring a stream: it has %d penalties and %d sums, this program knows %d and %d", len(s.Penalties), len(s.Sums), penaltyCount, sumCount)
	}
	st := &streamState{
		progress: progressOf(s.Progress), assumed: s.Assumed, samples: s.Samples, lastSampleMs: s.LastSampleAtMs,
		facts: &callscopev1.StreamFacts{
			Ssrc: s.Ssrc, Direction: s.Direction, MediaType: word(s.MediaType), OwnerUserId: word(s.OwnerUserId), OwnerSource: s.OwnerSource,
			UsageLabel: word(s.UsageLabel), Codec: word(s.Codec), StartedAtMs: s.StartedAtMs, EndedAtMs: s.EndedAtMs,
		},
		lost: s.PacketsLost + float64(s.WholePacketsLost), expected: s.PacketsExpected + float64(s.WholePacketsExpected),
		flowing: s.Flowing, voiced: s.Voiced,
	}
	if s.SsrcNumber > 0 {
		st.facts.Ssrc = strconv.FormatUint(uint64(s.SsrcNumber), 10)
	}
	copy(st.penalties[:], s.Penalties)
	copy(st.sums[:], s.Sums)
	for _, part := range []struct {
		to   **measure
		from *callscopev1.SummarizerMeasure
	}{
		{&st.bitrate, s.BitrateKbps}, {&st.loss, s.Loss}, {&st.jitter, s.JitterMs}, {&st.rtt, s.RttMs},
		{&st.audioMOS, s.AudioMos}, {&st.videoScore, s.VideoScore},
	} {
		m, err := measureOf(part.from)
		if err != nil {
			return nil, err
		}
		*part.to = m
	}
	return st, nil
}
