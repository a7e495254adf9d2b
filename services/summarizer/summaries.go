package summarizer

import (
	"encoding/json"
	"maps"
	"math"
	"slices"

	"github.com/callscope/callscope/internal/quality"
	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// Kinds of entities, as the uids of outputs that a tick caused are made of.
const (
	kindConference  = "conference"
	kindParticipant = "participant"
	kindFabric      = "fabric"
	kindStream      = "stream"
)

// writer collects the outputs of one step.
type writer struct {
	cause   *callscopev1.Enriched
	byTick  bool
	outputs []stage.Output
}

// conference writes the summaries of a conference and of every entity in it
// that has something new to say; leaves come first.
func (w *writer) conference(c *conference, reason string) {
	if c.facts == nil {
		return
	}
	sides := c.sides()
	for _, p := range c.participants {
		w.participant(c, p, sides, reason)
	}
	s := w.summary(c, &c.progress, c.uid, c.ended(), reason)
	s.Identity = c.identity()
	body := c.summary()
	s.Body = &callscopev1.Summary_Conference{Conference: body}
	nameModels(s, body.AudioMos, body.VideoScore)
	w.write(c, s, kindConference)
}

// pending writes the conference if it or anything in it has something new to say.
func (w *writer) pending(c *conference, reason string) {
	if c.facts != nil && (c.changed || !c.finalized) {
		w.conference(c, reason)
	}
}

// participant writes the summaries of a participant, its fabrics and streams
// as far as they have something new to say. Entities that the enricher has
// given no facts of have no summary.
func (w *writer) participant(c *conference, p *participant, sides sides, reason string) {
	over := c.ended() || p.facts != nil && !p.facts.Present
	for _, f := range p.fabrics {
		for _, st := range f.streams {
			if !st.due(over) {
				continue
			}
			s := w.summary(c, &st.progress, f.streamUID(c, p, st), over, reason)
			s.Identity = f.identity(c, p)
			body := st.summary(over)
			if side := sides.of[st]; side != nil {
				body.Side, body.SideEvidenceJson = side.name, toJSON(side.evidence)
			}
			s.Body = &callscopev1.Summary_Stream{Stream: body}
			nameModels(s, body.AudioMos, body.VideoScore)
			w.write(c, s, kindStream)
		}
		if f.facts == nil || !f.due(over) {
			continue
		}
		s := w.summary(c, &f.progress, f.uid, over, reason)
		s.Identity = f.identity(c, p)
		s.Body = &callscopev1.Summary_Fabric{Fabric: f.summary()}
		w.write(c, s, kindFabric)
	}
	if p.facts == nil || !p.due(over) {
		return
	}
	s := w.summary(c, &p.progress, p.uid, over, reason)
	s.Identity = p.identity(c)
	body := p.summary()
	if found := c.findings(p, sides); len(found) > 0 {
		for _, f := range found {
			if !slices.Contains(body.Findings, f.Finding) {
				body.Findings = append(body.Findings, f.Finding)
			}
		}
		body.FindingsEvidenceJson = toJSON(found)
	}
	s.Body = &callscopev1.Summary_Participant{Participant: body}
	nameModels(s, body.AudioMos, body.VideoScore)
	w.write(c, s, kindParticipant)
}

// due tells whether an entity has something new to say: it changed, or it is
// over and that was not said yet.
func (p *progress) due(over bool) bool { return p.changed || over && !p.finalized }

// summary begins the next revision of an entity.
func (w *writer) summary(c *conference, p *progress, entityUID []byte, over bool, reason string) *callscopev1.Summary {
	state := callscopev1.SummaryState_SUMMARY_STATE_PARTIAL
	switch {
	case p.finalized:
		state = callscopev1.SummaryState_SUMMARY_STATE_REVISED
	case over:
		state = callscopev1.SummaryState_SUMMARY_STATE_FINAL
		p.finalized = true
	}
	p.revision++
	p.changed = false
	return &callscopev1.Summary{
		AliveMs: w.cause.AliveMs, State: state, Revision: p.revision, LogicVersion: logicVersion, Reason: reason,
		FirstRawOffset: p.firstRaw, LastRawOffset: p.lastRaw, ConferenceStartedAtMs: c.startedAtMs, EntityUid: entityUID,
	}
}

func (w *writer) write(c *conference, s *callscopev1.Summary, kind string) {
	if w.byTick {
		s.Uid = stage.TickOutputUID(w.cause.Uid, s.EntityUid, kind)
	} else {
		s.Uid = stage.OutputUID(w.cause.Uid, len(w.outputs))
	}
	key := make([]byte, 0, len(c.appID)+1+len(c.id))
	key = append(append(append(key, c.appID...), 0), c.id...)
	w.outputs = append(w.outputs, stage.Output{Key: key, Message: s})
}

// nameModels says by which models the scores of a summary were made.
func nameModels(s *callscopev1.Summary, audio, video *callscopev1.Distribution) {
	if audio != nil {
		s.AudioMosModel = quality.AudioModel
	}
	if video != nil {
		s.VideoScoreModel = quality.VideoModel
	}
}

func (c *conference) identity() *callscopev1.Identity {
	return &callscopev1.Identity{AppId: c.appID, ConferenceId: c.id, ConferenceUid: c.uid}
}

func (p *participant) identity(c *conference) *callscopev1.Identity {
	id := c.identity()
	id.UserId, id.DeviceId, id.ParticipantUid = p.userID, p.deviceID, p.uid
	return id
}

func (f *fabric) identity(c *conference, p *participant) *callscopev1.Identity {
	id := p.identity(c)
	id.ConnectionId, id.RemoteId, id.FabricUid = f.connectionID, f.remoteID, f.uid
	return id
}

// streamUID identifies a stream: its fabric (where it names none its
// participant, or its conference), SSRC and direction.
func (f *fabric) streamUID(c *conference, p *participant, st *streamState) []byte {
	parent := f.uid
	if len(parent) == 0 {
		parent = p.uid
	}
	if len(parent) == 0 {
		parent = c.uid
	}
	return stage.UID(parent, []byte(st.facts.Ssrc), []byte{byte(st.facts.Direction)})
}

func (st *streamState) summary(over bool) *callscopev1.StreamSummary {
	facts := st.facts
	s := &callscopev1.StreamSummary{
		Ssrc: facts.Ssrc, Direction: directionName(facts.Direction), MediaType: facts.MediaType,
		OwnerUserId: facts.OwnerUserId, OwnerSource: ownerSourceName(facts.OwnerSource), UsageLabel: facts.UsageLabel,
		Codec: facts.Codec, StartedAtMs: facts.StartedAtMs, EndedAtMs: facts.EndedAtMs, Samples: st.samples,
		BitrateKbps: st.bitrate.distribution(0), Loss: st.loss.distribution(quality.LossThreshold),
		JitterMs: st.jitter.distribution(quality.JitterMsThreshold), RttMs: st.rtt.distribution(quality.RTTMsThreshold),
		AudioMos: st.audioMOS.distribution(quality.AudioMOSThreshold), VideoScore: st.videoScore.distribution(quality.VideoScoreThreshold),
		ScoreReasonsJson: st.scoreReasons(),
	}
	if s.EndedAtMs == nil && over && st.lastSampleMs > 0 {
		s.EndedAtMs = new(st.lastSampleMs)
	}
	// The loss of the whole is lost packets over expected ones, not a mean of
	// ratios.
	if loss, ok := quality.ShareOf(st.lost, st.expected); ok {
		if s.Loss == nil {
			s.Loss = &callscopev1.Distribution{}
		}
		s.Loss.Mean = new(loss)
	}
	return s
}

// scoreReasons are the mean penalties behind the scores, as a JSON object; the
// audio ones in points of R' (0 to 100), the video ones in points of the score.
func (st *streamState) scoreReasons() string {
	if st.audioMOS == nil && st.videoScore == nil {
		return ""
	}
	type audioReasons struct {
		Delay float64 `json:"delay"`
		Loss  float64 `json:"loss"`
	}
	type videoReasons struct {
		Freeze     float64 `json:"freeze"`
		FrameRate  float64 `json:"frame_rate"`
		Resolution float64 `json:"resolution"`
		Loss       float64 `json:"loss"`
	}
	var reasons struct {
		Audio *audioReasons `json:"audio,omitempty"`
		Video *videoReasons `json:"video,omitempty"`
	}
	mean := func(m *measure, penalty int) float64 {
		return math.Round(float64(st.penalties[penalty])/float64(m.weight())) / 1e4
	}
	if m := st.audioMOS; m != nil {
		reasons.Audio = &audioReasons{Delay: mean(m, penaltyAudioDelay), Loss: mean(m, penaltyAudioLoss)}
	}
	if m := st.videoScore; m != nil {
		reasons.Video = &videoReasons{
			Freeze: mean(m, penaltyVideoFreeze), FrameRate: mean(m, penaltyVideoFrameRate),
			Resolution: mean(m, penaltyVideoResolution), Loss: mean(m, penaltyVideoLoss),
		}
	}
	return toJSON(reasons)
}

// toJSON encodes a value whose encoding cannot fail: structs of numbers that
// are finite, strings and flags.
func toJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(text)
}

func directionName(d callscopev1.Direction) string {
	switch d {
	case callscopev1.Direction_DIRECTION_INBOUND:
		return "inbound"
	case callscopev1.Direction_DIRECTION_OUTBOUND:
		return "outbound"
	}
	return ""
}

func ownerSourceName(s callscopev1.OwnerSource) string {
	switch s {
	case callscopev1.OwnerSource_OWNER_SOURCE_DEFAULT:
		return "default"
	case callscopev1.OwnerSource_OWNER_SOURCE_ASSOCIATION:
		return "association"
	case callscopev1.OwnerSource_OWNER_SOURCE_SSRC_MAP:
		return "ssrcMap"
	}
	return "unknown"
}

func (f *fabric) summary() *callscopev1.FabricSummary {
	facts := f.facts
	s := &callscopev1.FabricSummary{
		StartedAtMs: facts.StartedAtMs, EndedAtMs: facts.EndedAtMs, Usage: facts.Usage, RemoteType: facts.RemoteType,
		Direction: facts.Direction, Outcome: fabricOutcomeName(facts.Outcome),
		SetupDelayMs: finiteOrNil(facts.SetupDelayMs), IceGatheringDelayMs: finiteOrNil(facts.IceGatheringDelayMs),
		IceConnectivityDelayMs: finiteOrNil(facts.IceConnectivityDelayMs), FailureDelayMs: finiteOrNil(facts.FailureDelayMs),
		DelaySource: facts.DelaySource, FailureFunction: facts.FailureFunction, FailureReason: facts.FailureReason,
		Disruptions: facts.Disruptions, Relayed: facts.Relayed, EndReason: facts.EndReason,
		Rtt: f.rtt.distribution(quality.RTTMsThreshold),
	}
	if usable(facts.DisruptionMs) {
		s.DisruptionMs = facts.DisruptionMs
	}
	if s.Relayed == nil {
		s.Relayed = f.relayed
	}
	if s.Rtt != nil {
		s.RttMs = s.Rtt.Mean
	}
	return s
}

func fabricOutcomeName(o callscopev1.FabricOutcome) string {
	switch o {
	case callscopev1.FabricOutcome_FABRIC_OUTCOME_SETUP:
		return "setup"
	case callscopev1.FabricOutcome_FABRIC_OUTCOME_FAILED:
		return "failed"
	case callscopev1.FabricOutcome_FABRIC_OUTCOME_DROPPED:
		return "dropped"
	case callscopev1.FabricOutcome_FABRIC_OUTCOME_ABORTED:
		return "aborted"
	}
	return "pending"
}

func finiteOrNil(v *float64) *float64 {
	if v == nil || !usable(*v) {
		return nil
	}
	return v
}

func (p *participant) summary() *callscopev1.ParticipantSummary {
	facts := p.facts
	s := &callscopev1.ParticipantSummary{
		PresenceMs: p.presenceMs(), Joins: facts.Joins, LeftReason: facts.LeftReason, Alias: p.userID,
		Browser: facts.Browser, BrowserVersion: facts.BrowserVersion, Os: facts.Os, OsVersion: facts.OsVersion,
		ClientVersion: facts.ClientVersion, AppVersion: facts.AppVersion, Country: facts.Country, Network: facts.Network,
		AudioMos: p.measures[measureAudioMOS].distribution(quality.AudioMOSThreshold), VideoScore: p.measures[measureVideoScore].distribution(quality.VideoScoreThreshold),
		LossIn: p.measures[measureLossIn].distribution(quality.LossThreshold), LossOut: p.measures[measureLossOut].distribution(quality.LossThreshold),
		JitterInMs: p.measures[measureJitterIn].distribution(quality.JitterMsThreshold), JitterOutMs: p.measures[measureJitterOut].distribution(quality.JitterMsThreshold),
		RttMs:         p.measures[measureRTT].distribution(quality.RTTMsThreshold),
		BitrateInKbps: p.measures[measureBitrateIn].distribution(0), BitrateOutKbps: p.measures[measureBitrateOut].distribution(0),
		MutedMs: p.activityMs(facts.AudioMute), PausedMs: p.activityMs(facts.VideoPause),
		SharedMs: p.activityMs(facts.ScreenShare), DominantMs: p.activityMs(facts.DominantSpeaker),
		FeedbackOverall: p.feedback, SiteId: facts.SiteId, UserName: facts.UserName, Present: facts.Present,
	}
	if p.talkMs != nil {
		s.TalkMs = new(int64(*p.talkMs))
	}
	p.wholeLoss(s)
	for _, f := range p.fabrics {
		if f.facts == nil {
			continue
		}
		s.Fabrics++
		if f.facts.Outcome == callscopev1.FabricOutcome_FABRIC_OUTCOME_FAILED {
			s.FabricsFailed++
		}
	}
	for i, interval := range facts.Intervals {
		if i == 0 {
			s.JoinedAtMs = interval.JoinedAtMs
		}
		s.IntervalJoinedAtMs = append(s.IntervalJoinedAtMs, interval.JoinedAtMs)
		s.IntervalLeftAtMs = append(s.IntervalLeftAtMs, interval.GetLeftAtMs())
		s.LeftAtMs = nil
		if interval.LeftAtMs != nil && !facts.Present {
			s.LeftAtMs = interval.LeftAtMs
		}
	}
	return s
}

// wholeLoss makes the mean losses what they are of a stream: lost packets over
// expected ones.
func (p *participant) wholeLoss(s *callscopev1.ParticipantSummary) {
	var lost, expected [2]float64 // in, out
	for _, f := range p.fabrics {
		for _, st := range f.streams {
			switch st.facts.Direction {
			case callscopev1.Direction_DIRECTION_INBOUND:
				lost[0], expected[0] = lost[0]+st.lost, expected[0]+st.expected
			case callscopev1.Direction_DIRECTION_OUTBOUND:
				lost[1], expected[1] = lost[1]+st.lost, expected[1]+st.expected
			}
		}
	}
	for i, d := range []**callscopev1.Distribution{&s.LossIn, &s.LossOut} {
		if loss, ok := quality.ShareOf(lost[i], expected[i]); ok {
			if *d == nil {
				*d = &callscopev1.Distribution{}
			}
			(*d).Mean = &loss
		}
	}
}

// presenceMs is the time that the participant was there. While it is present,
// it counts up to its last message: what comes after is not known yet.
func (p *participant) presenceMs() int64 {
	var total int64
	for _, interval := range p.facts.GetIntervals() {
		left := p.lastMessageMs
		if interval.LeftAtMs != nil {
			left = *interval.LeftAtMs
		}
		total += max(left-interval.JoinedAtMs, 0)
	}
	return total
}

// activityMs is how long something was so; nil where it never was. What is open
// counts up to the participant's last message.
func (p *participant) activityMs(a *callscopev1.Activity) *int64 {
	if a == nil {
		return nil
	}
	total := a.TotalMs
	if a.SinceMs != nil {
		total += max(p.lastMessageMs-*a.SinceMs, 0)
	}
	return &total
}

func (c *conference) summary() *callscopev1.ConferenceSummary {
	facts := c.facts
	s := &callscopev1.ConferenceSummary{
		StartedAtMs: facts.StartedAtMs, EndReason: facts.EndReason, PeakParticipants: facts.PeakParticipants,
		LastMessageAtMs: c.lastMessageMs, Reopened: facts.Reopened,
	}
	if c.ended() && facts.EndedAtMs != nil {
		s.EndedAtMs = facts.EndedAtMs
		s.DurationMs = new(max(*facts.EndedAtMs-facts.StartedAtMs, 0))
	}
	var presenceMs int64
	var mediaMs, feedback float64
	var hasMedia bool
	var rated int
	var delays []float64
	browsers, networks := map[string]bool{}, map[string]bool{}
	for _, p := range c.participants {
		if p.facts != nil {
			s.Participants++
			presenceMs += p.presenceMs()
			if p.facts.Joins > 1 {
				s.Rejoins += p.facts.Joins - 1
			}
			s.MaxJoins = max(s.MaxJoins, p.facts.Joins)
			browsers[p.facts.Browser], networks[p.facts.Network] = true, true
		}
		if p.firstMediaMs != nil && p.lastMediaMs != nil {
			hasMedia = true
			first := *p.firstMediaMs
			if intervals := p.facts.GetIntervals(); len(intervals) > 0 {
				first = max(first, float64(intervals[0].JoinedAtMs)) // whatever length a report claims
			}
			mediaMs += max(*p.lastMediaMs-first, 0)
		}
		if p.feedback != nil {
			rated++
			feedback += *p.feedback
		}
		for _, f := range p.fabrics {
			if f.facts == nil {
				continue
			}
			s.Fabrics++
			switch f.facts.Outcome {
			case callscopev1.FabricOutcome_FABRIC_OUTCOME_FAILED:
				s.FabricsFailed++
			case callscopev1.FabricOutcome_FABRIC_OUTCOME_DROPPED:
				s.FabricsDropped++
			}
			if delay := finiteOrNil(f.facts.SetupDelayMs); delay != nil {
				delays = append(delays, *delay)
			} else if o := f.facts.Outcome; o == callscopev1.FabricOutcome_FABRIC_OUTCOME_SETUP || o == callscopev1.FabricOutcome_FABRIC_OUTCOME_DROPPED {
				s.SetupDelaysUnknown++
			}
		}
	}
	if s.Participants > 0 {
		s.ParticipantMinutes = new(float64(presenceMs) / 60_000)
	}
	if hasMedia {
		s.MediaParticipantMinutes = new(mediaMs / 60_000)
	}
	if rated > 0 {
		s.FeedbackOverall = new(feedback / float64(rated))
	}
	s.Browsers, s.Networks = known(browsers), known(networks)
	setupDelays(s, delays)
	c.score(s)
	verdict := c.outcome()
	s.Outcome, s.OutcomeEvidenceJson = verdict.outcome, toJSON(verdict.evidence)
	return s
}

// known are the texts other than the empty one, ascending.
func known(texts map[string]bool) []string {
	delete(texts, "")
	return slices.Sorted(maps.Keys(texts))
}

// setupDelays fills minimum, mean, median and maximum of the delays of the
// fabrics that have one. It sorts them.
func setupDelays(s *callscopev1.ConferenceSummary, delays []float64) {
	n := len(delays)
	if n == 0 {
		return
	}
	slices.Sort(delays)
	sum := 0.0
	for _, d := range delays {
		sum += d
	}
	median := delays[n/2]
	if n%2 == 0 {
		median = (delays[n/2-1] + delays[n/2]) / 2
	}
	s.SetupDelayMsMin, s.SetupDelayMsMax = new(delays[0]), new(delays[n-1])
	s.SetupDelayMsMean = new(min(max(sum/float64(n), delays[0]), delays[n-1]))
	s.SetupDelayMsMedian = new(median)
}

// score fills the scores of the conference: every participant's distribution
// counts with its time of presence. The worst participant is the one with the
// lowest mean of either score; of two equal ones the smaller uid.
func (c *conference) score(s *callscopev1.ConferenceSummary) {
	var audio, video *measure
	var worst *participant
	worstMean := math.Inf(1)
	for _, p := range c.participants {
		if p.facts == nil {
			continue
		}
		presence := uint64(max(p.presenceMs(), 1))
		lowest := math.Inf(1)
		if own := p.measures[measureAudioMOS]; own != nil {
			audio = merge(audio, own, presence)
			lowest = own.mean()
		}
		if own := p.measures[measureVideoScore]; own != nil {
			video = merge(video, own, presence)
			lowest = min(lowest, own.mean())
		}
		if lowest < worstMean || worst != nil && lowest == worstMean && string(p.uid) < string(worst.uid) {
			worst, worstMean = p, lowest
		}
	}
	s.AudioMos, s.VideoScore = audio.distribution(quality.AudioMOSThreshold), video.distribution(quality.VideoScoreThreshold)
	if worst != nil {
		s.WorstParticipantUid = worst.uid
	}
}
