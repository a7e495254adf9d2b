package summarizer

import (
	"container/heap"
	"fmt"
	"math"
	"strings"

	"github.com/callscope/callscope/internal/quality"
	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

const (
	// logicVersion changes with anything that makes other summaries of the
	// same records; every summary carries it.
	logicVersion = 3
	// partialEveryMs is the alive time between the partial summaries of an
	// open conference, counted from its start.
	partialEveryMs = 60_000
	// maxStreams bounds the streams that one fabric may have, as it does in the
	// enricher: of one beyond them there are samples, counted there, and neither
	// facts nor a summary.
	maxStreams = 8192
)

// Reasons of revisions. An amended conference's revisions carry the enricher's
// reason instead, where it gives one.
const (
	reasonStarted         = "started"  // the first partial, at the first tick
	reasonInterval        = "interval" // 60 s of alive time passed
	reasonParticipantLeft = "participant_left"
	reasonConferenceEnded = "conference_ended"
	reasonReopened        = "reopened"
	reasonLateMessage     = "late_message"
	reasonForgotten       = "forgotten"
)

// Machine turns the enriched records of one partition into summaries. It is a
// stage.Machine: a pure function of the log. It is driven by the enricher's
// facts and time records alone and never decides who is present.
//
// Summaries are written:
//   - of a participant with its fabrics and streams, when it leaves;
//   - of a conference, and of every entity in it that changed, when it ends
//     and again whenever it is amended in grace;
//   - of an open conference, and of every entity in it that changed, at the
//     first tick and then every 60 s of alive time.
//
// An entity's summaries are partial while it lives, then once final, then
// revised whenever it changes again, also when it comes back to life.
type Machine struct {
	conferences map[string]*conference
	due         dueQueue
}

var _ stage.Machine = (*Machine)(nil)

// NewMachine returns a Machine that has seen nothing.
func NewMachine() *Machine { return &Machine{conferences: map[string]*conference{}} }

// Step applies one enriched record. An error means that the record is not an
// Enriched; the state is then as it was.
func (m *Machine) Step(in stage.Input) ([]stage.Output, error) {
	var e callscopev1.Enriched
	if err := e.UnmarshalVT(in.Value); err != nil {
		return nil, fmt.Errorf("decoding an enriched record: %w", err)
	}
	w := &writer{cause: &e}
	if e.GetTimePassed() != nil {
		w.byTick = true
		m.timePassed(w)
		return w.outputs, nil
	}
	// Orphans and pre-call tests belong to no conference.
	if len(e.Identity.GetConferenceUid()) == 0 || e.GetEvent().GetOrphan() {
		return nil, nil
	}
	switch body := e.Body.(type) {
	case *callscopev1.Enriched_Event:
		m.event(&e, body.Event)
	case *callscopev1.Enriched_StatsReceived:
		m.message(&e)
	case *callscopev1.Enriched_StreamSample:
		m.streamSample(&e, body.StreamSample)
	case *callscopev1.Enriched_FabricSample:
		m.fabricSample(&e, body.FabricSample)
	case *callscopev1.Enriched_Stream:
		m.streamFacts(&e, body.Stream)
	case *callscopev1.Enriched_Fabric:
		m.fabricFacts(&e, body.Fabric)
	case *callscopev1.Enriched_Participant:
		m.participantFacts(w, body.Participant)
	case *callscopev1.Enriched_Conference:
		m.conferenceFacts(w, body.Conference)
	}
	return w.outputs, nil
}

// conference finds or begins the conference of a record. One that gets no
// facts until the next tick is dropped there.
func (m *Machine) conference(e *callscopev1.Enriched) *conference {
	if c, ok := m.conferences[string(e.Identity.ConferenceUid)]; ok {
		c.touch(e.Origin.GetOffset())
		return c
	}
	c := newConference(e.Identity)
	c.firstRaw, c.lastRaw = e.Origin.GetOffset(), e.Origin.GetOffset()
	m.conferences[string(c.uid)] = c
	m.schedule(c, e.AliveMs)
	return c
}

// amend notes that something about a conference changed. While it is ended,
// the enricher's next facts of it write the revision; should none come, the
// next tick does.
func (m *Machine) amend(c *conference, e *callscopev1.Enriched) {
	c.change(e.Origin.GetOffset())
	if c.ended() && c.due == notDue {
		m.schedule(c, e.AliveMs)
	}
}

// message notes that a client's message arrived for the record's entities.
func (m *Machine) message(e *callscopev1.Enriched) (*conference, *participant) {
	c := m.conference(e)
	c.lastMessageMs = max(c.lastMessageMs, e.ReceivedAtMs)
	m.amend(c, e)
	if len(e.Identity.ParticipantUid) == 0 {
		return c, nil
	}
	p := c.participant(e.Identity, e.Origin.GetOffset())
	p.touch(e.Origin.GetOffset())
	if e.ReceivedAtMs > p.lastMessageMs {
		p.lastMessageMs = e.ReceivedAtMs
		if p.facts.GetPresent() {
			p.changed = true // its presence grew
		}
	}
	return c, p
}

func (m *Machine) event(e *callscopev1.Enriched, ev *callscopev1.Event) {
	raw := e.Origin.GetOffset()
	_, p := m.message(e)
	if p == nil {
		return
	}
	// A rating outside of 1 to 5 stays in the event and counts in no mean: it
	// is neither the latest rating nor does it take back an earlier one.
	if overall := ev.GetFeedback().GetOverall(); ev.Feedback != nil && overall >= 1 && overall <= 5 {
		p.feedback = new(overall)
		p.change(raw)
	}
	ofFabric := len(e.Identity.FabricUid) > 0
	if ofFabric {
		p.fabric(e.Identity, raw).touch(raw)
	}
	// What fails on a fabric is in the fabric's facts; a failure without one
	// (getUserMedia) is the participant's.
	if fail := ev.Failure; fail != nil && !fail.IsLog && !ofFabric {
		if !p.setupFailed {
			p.setupFailed, p.failureFunction, p.failureReason = true, fail.Function, fail.Reason
		}
		p.change(raw)
	}
	if ev.EventType == "callUnAnswered" {
		p.unanswered = true
	}
}

// entities finds or begins the conference, participant and fabric of a record.
func (m *Machine) entities(e *callscopev1.Enriched) (*conference, *participant, *fabric) {
	raw := e.Origin.GetOffset()
	c := m.conference(e)
	m.amend(c, e)
	p := c.participant(e.Identity, raw)
	p.touch(raw)
	f := p.fabric(e.Identity, raw)
	f.touch(raw)
	return c, p, f
}

func (m *Machine) fabricSample(e *callscopev1.Enriched, s *callscopev1.FabricSample) {
	_, p, f := m.entities(e)
	weight := weightOf(s.IntervalMs)
	f.rtt = add(f.rtt, s.RttMs, weight, quality.RTTMsThreshold, p.fabricBuckets())
	p.add(measureRTT, s.RttMs, weight, quality.RTTMsThreshold)
	p.add(measureBitrateIn, kbps(s.BytesReceived, s.IntervalMs), weight, 0)
	p.add(measureBitrateOut, kbps(s.BytesSent, s.IntervalMs), weight, 0)
	if s.Relayed != nil {
		f.relayed = s.Relayed
	}
	f.change(e.Origin.GetOffset())
	p.change(e.Origin.GetOffset())
}

// kbps is the bitrate of an interval, nil where unknown.
func kbps(bytes, intervalMs *float64) *float64 {
	if bytes == nil || intervalMs == nil || !usable(*bytes) || !(*intervalMs >= 1) {
		return nil
	}
	return new(float64(8**bytes) / *intervalMs)
}

// add counts a value in one of the participant's own measures.
func (p *participant) add(number int, value *float64, weight uint64, threshold float64) {
	p.measures[number] = add(p.measures[number], value, weight, threshold, participantBuckets)
}

func (m *Machine) streamSample(e *callscopev1.Enriched, s *callscopev1.StreamSample) {
	raw := e.Origin.GetOffset()
	c, p, f := m.entities(e)
	key := streamKey{s.Ssrc, s.Direction}
	st, ok := f.byKey[key]
	if !ok {
		if len(f.streams) >= maxStreams {
			return
		}
		st = p.addStream(f, key, raw, &callscopev1.StreamFacts{
			Ssrc: s.Ssrc, Direction: s.Direction, MediaType: s.MediaType, OwnerUserId: s.OwnerUserId, OwnerSource: s.OwnerSource,
			UsageLabel: s.UsageLabel, Codec: s.Codec, StartedAtMs: e.ReceivedAtMs, FirstRawOffset: raw,
		})
		st.assumed = true
	}
	st.change(raw)
	p.change(raw)
	st.samples++
	st.lastSampleMs = max(st.lastSampleMs, e.ReceivedAtMs)

	weight, limit := weightOf(s.IntervalMs), bucketLimit(p.streams)
	loss := intervalLoss(s)
	st.bitrate = add(st.bitrate, s.BitrateKbps, weight, 0, limit)
	st.loss = add(st.loss, loss, weight, quality.LossThreshold, limit)
	st.jitter = add(st.jitter, s.JitterMs, weight, quality.JitterMsThreshold, limit)
	st.rtt = add(st.rtt, s.RttMs, weight, quality.RTTMsThreshold, limit)
	st.countLoss(s)
	switch s.Direction {
	case callscopev1.Direction_DIRECTION_INBOUND:
		p.add(measureLossIn, loss, weight, quality.LossThreshold)
		p.add(measureJitterIn, s.JitterMs, weight, quality.JitterMsThreshold)
	case callscopev1.Direction_DIRECTION_OUTBOUND:
		p.add(measureLossOut, loss, weight, quality.LossThreshold)
		p.add(measureJitterOut, s.JitterMs, weight, quality.JitterMsThreshold)
	}

	intervalMs := 0.0
	if s.IntervalMs != nil && usable(*s.IntervalMs) {
		intervalMs = min(*s.IntervalMs, maxIntervalMs)
	}
	silent := s.Silence != callscopev1.Silence_SILENCE_UNSPECIFIED
	c.observe(p, f, st, s, e, intervalMs, silent)
	if s.Packets == nil || !(*s.Packets > 0) {
		return
	}
	p.sawMedia(float64(e.ReceivedAtMs)-intervalMs, float64(e.ReceivedAtMs))
	if s.Direction != callscopev1.Direction_DIRECTION_INBOUND {
		return // only what somebody heard or saw is scored
	}
	switch st.facts.MediaType {
	case "audio":
		if st.countAudio(s, weight, limit) {
			p.add(measureAudioMOS, s.AudioMos, weight, quality.AudioMOSThreshold)
		}
	case "video":
		if silent || s.IntervalMs == nil { // nobody knows what was off in it
			return
		}
		if score := st.scoreVideo(s, loss, weight, limit, c.viewOf(p, f, st)); score != nil {
			p.add(measureVideoScore, score, weight, quality.VideoScoreThreshold)
		}
	}
}

func (p *participant) addStream(f *fabric, key streamKey, raw int64, facts *callscopev1.StreamFacts) *streamState {
	st := &streamState{progress: progress{firstRaw: raw}, facts: facts}
	f.streams = append(f.streams, st)
	f.byKey[key] = st
	p.streams++
	if limit := bucketLimit(p.streams); limit < bucketLimit(p.streams-1) {
		for _, f := range p.fabrics {
			for _, st := range f.streams {
				st.bound(limit)
			}
		}
	}
	return st
}

// sawMedia notes an interval with packets. Its times are those of receipt, as
// those of presence are: a client's clock may be set in mid-call.
func (p *participant) sawMedia(fromMs, toMs float64) {
	if !usable(fromMs) || !usable(toMs) {
		return
	}
	if p.firstMediaMs == nil || fromMs < *p.firstMediaMs {
		p.firstMediaMs = new(fromMs)
	}
	if p.lastMediaMs == nil || toMs > *p.lastMediaMs {
		p.lastMediaMs = new(toMs)
	}
}

// intervalLoss is the loss of one interval between 0 and 1, nil where unknown.
func intervalLoss(s *callscopev1.StreamSample) *float64 {
	if s.Loss != nil && !math.IsNaN(*s.Loss) {
		return new(min(max(*s.Loss, 0), 1))
	}
	if s.Packets == nil || s.PacketsLost == nil {
		return nil
	}
	if loss, ok := quality.ShareOf(*s.PacketsLost, expectedPackets(s)); ok {
		return new(loss)
	}
	return nil
}

// expectedPackets is what should have arrived: of an inbound stream what came
// and what was lost, of an outbound one all that was sent.
func expectedPackets(s *callscopev1.StreamSample) float64 {
	if s.Direction == callscopev1.Direction_DIRECTION_OUTBOUND {
		return s.GetPackets()
	}
	return s.GetPackets() + s.GetPacketsLost()
}

// countLoss adds the interval to the sums that the loss of the whole stream is
// the ratio of. Lost packets may be negative in one interval and are clamped
// in the end only. An interval that knows only one of the two is left out.
func (st *streamState) countLoss(s *callscopev1.StreamSample) {
	if s.Packets == nil || !usable(*s.Packets) {
		return
	}
	switch {
	case s.PacketsLost != nil && usable(math.Abs(*s.PacketsLost)):
		st.lost += *s.PacketsLost
		st.expected += expectedPackets(s)
	case s.PacketsLost == nil && s.Loss != nil && s.Direction == callscopev1.Direction_DIRECTION_OUTBOUND && usable(*s.Loss):
		st.lost += float64(min(*s.Loss, 1) * *s.Packets)
		st.expected += *s.Packets
	}
}

// countAudio counts what the enricher scored the interval with, and tells
// whether it did.
func (st *streamState) countAudio(s *callscopev1.StreamSample, weight uint64, limit int) bool {
	if s.AudioMos == nil || !(*s.AudioMos >= 1 && *s.AudioMos <= 5) {
		return false
	}
	st.audioMOS = add(st.audioMOS, s.AudioMos, weight, quality.AudioMOSThreshold, limit)
	st.penalize(penaltyAudioDelay, s.GetAudioDelayPenalty(), weight)
	st.penalize(penaltyAudioLoss, s.GetAudioLossPenalty(), weight)
	return true
}

// view is what a viewer may expect of a video.
type view struct {
	screen bool
	source source
}

// viewOf tells what the viewer of an inbound video may expect: what its owner's
// camera or screen delivers, where the owner reports it. The size is expected
// only where the fabric leads to the owner itself: a server may have been asked
// for a smaller layer.
func (c *conference) viewOf(p *participant, f *fabric, st *streamState) view {
	v := view{screen: c.showsScreen(f, st.facts)}
	for _, o := range c.byUser[st.facts.OwnerUserId] {
		if o == p {
			continue
		}
		v.source = o.camera
		if v.screen {
			v.source = o.screen
		}
		if v.source != (source{}) {
			break
		}
	}
	if f.remoteID == "" || f.remoteID != st.facts.OwnerUserId {
		v.source.height = 0
	}
	return v
}

func (st *streamState) scoreVideo(s *callscopev1.StreamSample, loss *float64, weight uint64, limit int, v view) *float64 {
	in := quality.VideoInput{
		FreezeRatio: math.NaN(), FrameRate: valueOr(s.FrameRate), Loss: valueOr(loss), Height: valueOr(s.FrameHeight),
		SourceFrameRate: v.source.frameRate, SourceHeight: v.source.height, Screen: v.screen,
	}
	if s.FreezeMs != nil && s.IntervalMs != nil {
		if ratio, ok := quality.ShareOf(*s.FreezeMs, *s.IntervalMs); ok {
			in.FreezeRatio = ratio
		}
	}
	score, ok := quality.ScoreVideo(in)
	if !ok {
		return nil
	}
	st.videoScore = add(st.videoScore, &score.Score, weight, quality.VideoScoreThreshold, limit)
	st.penalize(penaltyVideoFreeze, score.Reasons.Freeze, weight)
	st.penalize(penaltyVideoFrameRate, score.Reasons.FrameRate, weight)
	st.penalize(penaltyVideoResolution, score.Reasons.Resolution, weight)
	st.penalize(penaltyVideoLoss, score.Reasons.Loss, weight)
	return &score.Score
}

// penalize sums what a score lost for one reason. Penalties have four decimals
// and are at most 100.
func (st *streamState) penalize(penalty int, points float64, weight uint64) {
	if !(points >= 0 && points <= 100) {
		return
	}
	st.penalties[penalty] += uint64(math.Round(points*1e4)) * weight
}

func valueOr(v *float64) float64 {
	if v == nil {
		return math.NaN()
	}
	return *v
}

// showsScreen tells whether a video stream is a shared screen: by its label or
// its fabric's usage, else by its owner sharing one.
func (c *conference) showsScreen(f *fabric, facts *callscopev1.StreamFacts) bool {
	label := strings.ToLower(facts.UsageLabel)
	switch {
	case strings.Contains(label, "screen") || f.facts.GetUsage() == "screen":
		return true
	case strings.Contains(label, "camera"):
		return false
	}
	for _, owner := range c.byUser[facts.OwnerUserId] {
		if owner.facts.GetScreenShare().GetSinceMs() != 0 {
			return true
		}
	}
	return false
}

func (m *Machine) streamFacts(e *callscopev1.Enriched, facts *callscopev1.StreamFacts) {
	raw := e.Origin.GetOffset()
	_, p, f := m.entities(e)
	key := streamKey{facts.Ssrc, facts.Direction}
	st, ok := f.byKey[key]
	if !ok {
		st = p.addStream(f, key, raw, facts)
	}
	st.facts, st.assumed = facts, false
	st.change(raw)
}

func (m *Machine) fabricFacts(e *callscopev1.Enriched, facts *callscopev1.FabricFacts) {
	if len(e.Identity.FabricUid) == 0 {
		return // facts of nobody
	}
	_, p, f := m.entities(e)
	if facts.Hold != nil {
		facts.Hold.Intervals = nil
	}
	// The first message of a fabric need not have named its remote.
	if e.Identity.RemoteId != "" {
		f.remoteID = e.Identity.RemoteId
	}
	f.facts = facts
	f.change(e.Origin.GetOffset())
	p.change(e.Origin.GetOffset()) // its counts of fabrics
}

func (m *Machine) participantFacts(w *writer, facts *callscopev1.ParticipantFacts) {
	e := w.cause
	if len(e.Identity.ParticipantUid) == 0 {
		return // facts of nobody
	}
	raw := e.Origin.GetOffset()
	c := m.conference(e)
	m.amend(c, e)
	p := c.participant(e.Identity, raw)
	left := p.facts.GetPresent() && !facts.Present
	// Lists that no summary shows are not kept.
	facts.ActiveDevices = nil
	for _, a := range []*callscopev1.Activity{facts.AudioMute, facts.VideoPause, facts.ScreenShare, facts.DominantSpeaker} {
		if a != nil {
			a.Intervals = nil
		}
	}
	p.facts = facts
	p.lastMessageMs = max(p.lastMessageMs, e.ReceivedAtMs)
	p.change(raw)
	if left && c.facts != nil {
		w.participant(c, p, c.sides(), reasonParticipantLeft)
	}
}

func (m *Machine) conferenceFacts(w *writer, facts *callscopev1.ConferenceFacts) {
	e := w.cause
	if m.conferences[string(e.Identity.ConferenceUid)] == nil && facts.State == callscopev1.ConferenceState_CONFERENCE_STATE_FORGOTTEN {
		return // nothing is known of it, so nothing is pending
	}
	c := m.conference(e)
	first, wasEnded := c.facts == nil, c.ended()
	c.facts = facts
	c.lastMessageMs = max(c.lastMessageMs, facts.LastMessageAtMs)
	if first {
		c.startedAtMs, c.startedAliveMs = facts.StartedAtMs, e.AliveMs
		m.schedule(c, e.AliveMs)
	}
	switch facts.State {
	case callscopev1.ConferenceState_CONFERENCE_STATE_ENDED:
		c.changed = true
		reason := reasonConferenceEnded
		if wasEnded {
			reason = reasonLateMessage
		}
		w.conference(c, reasonOr(facts.RevisionReason, reason))
		m.schedule(c, notDue)
	case callscopev1.ConferenceState_CONFERENCE_STATE_FORGOTTEN:
		w.pending(c, reasonOr(facts.RevisionReason, reasonForgotten))
		m.schedule(c, notDue)
		delete(m.conferences, string(c.uid))
	default:
		c.changed = true
		if wasEnded {
			w.conference(c, reasonOr(facts.RevisionReason, reasonReopened))
			m.schedule(c, c.nextPartial(e.AliveMs))
		}
	}
}

func reasonOr(given, otherwise string) string {
	if given != "" {
		return given
	}
	return otherwise
}

// nextPartial is the first multiple of 60 s since the start that lies ahead.
func (c *conference) nextPartial(alive int64) int64 {
	return c.startedAliveMs + ((alive-c.startedAliveMs)/partialEveryMs+1)*partialEveryMs
}

// timePassed writes what is due, in the order of time and uid. It looks only
// at conferences that wait for this time.
func (m *Machine) timePassed(w *writer) {
	alive := w.cause.AliveMs
	for len(m.due) > 0 && m.due[0].alive <= alive {
		entry := heap.Pop(&m.due).(dueEntry)
		c, ok := m.conferences[entry.uid]
		if !ok || c.due != entry.alive {
			continue
		}
		c.due = notDue
		switch {
		case c.facts == nil:
			delete(m.conferences, entry.uid)
		case c.ended():
			w.pending(c, reasonLateMessage)
		default:
			reason := reasonInterval
			if c.revision == 0 {
				reason = reasonStarted
			}
			w.conference(c, reason)
			m.schedule(c, c.nextPartial(alive))
		}
	}
}
