package enricher

import (
	"encoding/json"
	"net/url"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// The event types that mean something here; all others are only stored.
const (
	eventUserFeedback                 = "userFeedbackEvent"
	eventApplicationErrorLog          = "applicationErrorLog"
	eventUserLeft                     = "userLeft"
	eventFabricTerminated             = "fabricTerminated"
	eventIceTerminated                = "iceTerminated"
	eventIceAborted                   = "iceAborted"
	eventMediaPlaybackStart           = "mediaPlaybackStart"
	eventMediaPlaybackSuspended       = "mediaPlaybackSuspended"
	eventMediaPlaybackStalled         = "mediaPlaybackStalled"
	eventFabricSetupFailed            = "fabricSetupFailed"
	eventFabricHold                   = "fabricHold"
	eventFabricResume                 = "fabricResume"
	eventFabricDropped                = "fabricDropped"
	eventIceFailed                    = "iceFailed"
	eventIceCompleted                 = "iceCompleted"
	eventIceDisruptionStart           = "iceDisruptionStart"
	eventIceDisruptionEnd             = "iceDisruptionEnd"
	eventIceConnectionDisruptionStart = "iceConnectionDisruptionStart"
	eventIceConnectionDisruptionEnd   = "iceConnectionDisruptionEnd"
)

// What one app may have in a partition, open or in grace, and one conference and
// one participant in theirs. What comes beyond is kept as an event that belongs
// to nothing more than there is room for, and counted: no client can make the
// state grow without bound, and the limits, being part of the logic, are the
// same on every run. Real clients stay far below.
const (
	maxConferences  = 100_000
	maxParticipants = 5_000
	maxFabrics      = 1_000
)

// Why the facts of an ended conference are written again.
const (
	revisionFeedback = "feedback"
	revisionLate     = "late_message"
	revisionReopened = "reopened"
)

// step is the application of one client message.
type step struct {
	m       *Machine
	raw     *callscopev1.Raw
	offset  int64
	aliveMs int64
	key     []byte
	event   *callscopev1.Event // nil for stats
	outputs []stage.Output

	// Where the message belongs; nil where there is none.
	c *conference
	p *participant
	f *fabric

	connectionID string // empty where the message names no fabric
	reopened     bool
	streams      []*rtpStream // whose facts the message changed
	silenced     *participant // who was the dominant speaker before, if the message changed that
}

// closing tells whether the message is one that comes when a call is over, and
// therefore begins nothing.
func closing(raw *callscopev1.Raw) bool {
	switch raw.EventType {
	case eventUserFeedback, eventApplicationErrorLog, eventUserLeft, eventFabricTerminated,
		eventIceTerminated, eventIceAborted, eventMediaPlaybackSuspended, eventMediaPlaybackStalled:
		return true
	case eventFabricSetupFailed: // older clients may send a log under this name
		return isLog(raw.GetFailure().GetFunction())
	default:
		return false
	}
}

// isLog tells whether the function of an error report means that it is no failure.
func isLog(function string) bool {
	return function == "applicationLog" || function == "applicationError"
}

// namedFabric returns the connection id of the fabric that the message names.
// None, and the sender's own user id, name no fabric.
func namedFabric(claimed *callscopev1.Claimed) string {
	id := claimed.ConnectionId
	if id == "" || id == claimed.UserId {
		return ""
	}
	if decoded, err := url.PathUnescape(id); err == nil && decoded == claimed.UserId {
		return ""
	}
	return id
}

// outsideConference handles a message that names no conference: a pre-call test
// opens none, anything else is kept as an orphan.
func (s *step) outsideConference() {
	switch s.raw.Payload.(type) {
	case *callscopev1.Raw_PreCallTestResults, *callscopev1.Raw_PreCallTestNotification:
	default:
		s.orphan()
		return
	}
	s.add(s.key, &callscopev1.Enriched{Body: &callscopev1.Enriched_Event{Event: s.event}})
	s.preCallTest()
}

func (s *step) preCallTest() {
	if results := s.raw.GetPreCallTestResults(); results != nil {
		s.add(s.key, &callscopev1.Enriched{Body: &callscopev1.Enriched_PreCallTest{
			PreCallTest: &callscopev1.PreCallTest{Results: results, Endpoint: testedEndpoint(results)},
		}})
	}
}

// testedEndpoint returns the endpoint that a pre-call test describes, nil if none.
func testedEndpoint(results *callscopev1.PreCallTestResults) *callscopev1.EndpointInfo {
	var object struct {
		Tests struct{ EndpointInfo json.RawMessage }
	}
	if json.Unmarshal([]byte(results.ResultsJson), &object) != nil || len(object.Tests.EndpointInfo) == 0 {
		return nil
	}
	endpoint := &callscopev1.EndpointInfo{}
	if (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(object.Tests.EndpointInfo, endpoint) != nil {
		return nil
	}
	return endpoint
}

// orphan keeps a message for which no conference is known.
func (s *step) orphan() {
	s.m.counts.Orphans++
	if s.event == nil {
		s.addStatsReceived()
		return
	}
	s.event.Orphan = true
	if s.event.Failure != nil {
		s.event.Failure.DelayMs = s.failureDelay()
	}
	s.add(s.key, &callscopev1.Enriched{Body: &callscopev1.Enriched_Event{Event: s.event}})
}

// apply handles a message of a conference, by the rules of design 4.
func (s *step) apply() {
	claimed, observed := s.raw.Claimed, s.raw.Observed
	s.connectionID = namedFabric(claimed)
	closing := closing(s.raw)
	joining := s.place(closing)
	if s.c == nil {
		s.orphan()
		return
	}
	s.aliveAgain(closing, joining)

	s.c.s.LastMessageAliveMs = s.aliveMs
	s.c.s.Facts.LastMessageAtMs = observed.ReceivedAtMs
	s.c.s.Facts.LastRawOffset = s.offset
	if s.p != nil {
		s.p.heard(s.aliveMs, observed.ReceivedAtMs, claimed.TimeMs)
		s.p.learn(s.raw, s.m.agents)
	}
	if s.event != nil {
		s.complete(s.event)
		s.add(s.key, &callscopev1.Enriched{Body: &callscopev1.Enriched_Event{Event: s.event}})
		s.preCallTest()
	}
	s.applyToFabric(closing)
	s.applyActivity()
	if s.raw.EventType == eventUserLeft && s.p != nil {
		s.userLeft()
	}
	if stats := s.raw.GetStats(); stats != nil {
		s.applyStats(stats)
	}
	if s.p != nil {
		s.m.deadlines.schedule(s.p)
	}
	s.m.deadlines.schedule(s.c)
	s.addFacts()
}

// place finds the conference, participant and fabric of the message, beginning
// a conference where the rules ask for one, and tells whether it is joining.
// Client clocks and the handle that the client was given play no part.
func (s *step) place(closing bool) bool {
	claimed := s.raw.Claimed
	key := participantKey{claimed.UserId, claimed.DeviceId}
	name := roomKey(s.raw.Observed.AppId, claimed.ConferenceId)
	room := s.m.rooms[name]
	var newest, knowsParticipant, knowsFabric *conference
	for i := len(room) - 1; i >= 0; i-- {
		c := room[i]
		if newest == nil {
			newest = c
		}
		p := c.byKey[key]
		if p == nil {
			continue
		}
		if knowsParticipant == nil {
			knowsParticipant = c
		}
		if s.connectionID != "" && knowsFabric == nil && p.byConnection[s.connectionID] != nil {
			knowsFabric = c
		}
	}
	joining := !closing && (s.raw.GetUserJoined() != nil || knowsParticipant == nil ||
		s.connectionID != "" && knowsFabric == nil)
	switch {
	case joining && newest != nil && newest.open():
		s.c = newest
	case joining && s.m.perApp[s.raw.Observed.AppId] >= maxConferences:
		s.m.counts.ConferencesOverLimit++
		return false
	case joining:
		s.m.perApp[s.raw.Observed.AppId]++
		s.c = newConference(s.raw.Observed.AppId, claimed.ConferenceId, s.raw.Uid, s.raw.Observed.ReceivedAtMs, s.offset)
		s.m.rooms[name] = append(room, s.c)
		s.m.counts.ConferencesBegun++
	case knowsFabric != nil:
		s.c = knowsFabric
	case knowsParticipant != nil:
		s.c = knowsParticipant
	case newest != nil:
		s.c = newest
	default:
		return false
	}
	s.p = s.c.byKey[key]
	if s.p != nil && s.connectionID != "" {
		s.f = s.p.byConnection[s.connectionID]
	}
	return joining
}

// aliveAgain lets the message begin what a joining message begins, and undo
// what silence ended.
func (s *step) aliveAgain(closing, joining bool) {
	claimed, receivedAtMs := s.raw.Claimed, s.raw.Observed.ReceivedAtMs
	if joining {
		if s.p == nil {
			if len(s.c.participants) >= maxParticipants {
				s.m.counts.ParticipantsOverLimit++
				return
			}
			s.p = s.c.join(participantKey{claimed.UserId, claimed.DeviceId}, s.offset)
		}
		if !s.p.s.Facts.Present {
			s.p.enter(receivedAtMs)
			s.p.s.AudioOff, s.p.s.VideoOff = false, false // whoever joins begins anew
		}
		s.p.stay() // a userJoined or a new fabric within the 3 s
		if s.connectionID != "" && s.f == nil {
			if len(s.p.fabrics) >= maxFabrics {
				s.m.counts.FabricsOverLimit++
				return
			}
			s.f = s.p.newFabric(s.connectionID, claimed.RemoteId, receivedAtMs, claimed.TimeMs, s.offset)
		}
	}
	if closing || s.f == nil || !s.f.endedByIdleness() {
		return
	}
	if !s.c.open() {
		s.c.reopen()
		s.reopened = true
		s.m.counts.ConferencesReopened++
	}
	if !s.p.s.Facts.Present {
		s.p.enter(receivedAtMs)
		s.p.goOn(receivedAtMs)
	}
	s.p.stay()
	s.f.reopen(receivedAtMs)
}

// applyToFabric changes the named fabric, unless it has ended.
func (s *step) applyToFabric(closing bool) {
	f := s.f
	switch {
	case f == nil || f.s.EndedExplicitly:
	case f.open():
		if s.raw.EventType == eventUserLeft {
			return // ends it below
		}
		if reason := f.apply(s.raw, &s.m.sdps); reason != "" {
			s.endFabric(f, reason)
		}
		f.derive()
		s.applyAssociations(f)
	case closing:
		f.endExplicitly(endReason(s.raw.EventType))
	}
}

// endReason returns what a closing message ends a fabric by; empty for one that
// only comes after an end.
func endReason(eventType string) string {
	switch eventType {
	case eventFabricTerminated, eventIceTerminated, eventIceAborted, eventUserLeft:
		return eventType
	default:
		return ""
	}
}

func (s *step) endFabric(f *fabric, reason string) {
	f.end(s.raw.Observed.ReceivedAtMs, s.raw.Claimed.TimeMs, reason, true)
	s.p.fabricEnded(s.aliveMs, s.raw.Observed.ReceivedAtMs, reason)
}

// userLeft ends the fabric that the message names, or all; a participant
// without an open fabric has then left at once.
func (s *step) userLeft() {
	for _, f := range s.p.fabrics {
		if s.connectionID != "" && f != s.f {
			continue
		}
		switch {
		case f.open():
			f.end(s.raw.Observed.ReceivedAtMs, s.raw.Claimed.TimeMs, eventUserLeft, true)
		case !f.s.EndedExplicitly:
			f.endExplicitly(eventUserLeft)
		}
	}
	if s.p.s.Facts.Present && !s.p.hasOpenFabric() {
		s.p.leave(s.raw.Observed.ReceivedAtMs, s.raw.Claimed.TimeMs, eventUserLeft)
	}
}

// addFacts appends the facts that the message changed. A message to an ended
// conference changes nothing else, but revises it.
func (s *step) addFacts() {
	reason := ""
	if s.reopened {
		reason = revisionReopened
	}
	if !s.c.open() {
		reason = revisionLate
		if s.raw.EventType == eventUserFeedback {
			reason = revisionFeedback
		}
		s.c.s.Facts.RevisionReason = reason
		s.c.changed = true
	}
	for _, st := range s.streams {
		st.changed = false
		s.add(s.key, st.enriched())
	}
	if s.p != nil {
		touched := []*fabric{s.f}
		if s.raw.EventType == eventUserLeft { // the only one that ends others
			touched = s.p.fabrics
		}
		for _, f := range touched {
			if f != nil && f.changed {
				f.changed = false
				f.s.Facts.RevisionReason = reason
				s.add(s.key, f.enriched())
			}
		}
		if s.p.changed {
			s.p.changed = false
			s.p.s.Facts.RevisionReason = reason
			s.add(s.key, s.p.enriched())
		}
		if before := s.silenced; before != nil && before.changed {
			before.changed = false
			before.s.Facts.RevisionReason = reason
			s.add(s.key, before.enriched())
		}
	}
	if s.c.changed {
		s.c.changed = false
		s.add(s.key, s.c.enriched())
	}
}

// add appends one output of the message.
func (s *step) add(key []byte, e *callscopev1.Enriched) {
	claimed, observed := s.raw.Claimed, s.raw.Observed
	if e.Identity == nil {
		e.Identity = s.identity()
	}
	e.Uid = stage.OutputUID(s.raw.Uid, len(s.outputs))
	e.AliveMs = s.aliveMs
	e.ReceivedAtMs = observed.ReceivedAtMs
	e.ClientTimeMs = claimed.TimeMs
	e.TimeMs = s.timeMs()
	e.LogicVersion = LogicVersion
	s.outputs = append(s.outputs, stage.Output{Key: key, Message: e})
}

// timeMs returns when the message was made, by its client's corrected clock.
func (s *step) timeMs() float64 {
	claimed, receivedAtMs := s.raw.Claimed, float64(s.raw.Observed.ReceivedAtMs)
	switch {
	case claimed.TimeMs == 0:
		return receivedAtMs
	case s.p != nil:
		return s.p.correct(claimed.TimeMs)
	default: // nothing but this message to compare the clock with
		alone := &participant{s: &callscopev1.EnricherParticipant{ClockOffsetMs: proto.Float64(receivedAtMs - claimed.TimeMs)}}
		return alone.correct(claimed.TimeMs)
	}
}

// identity names what the message itself says it is about, with the uids of
// what is known of that.
func (s *step) identity() *callscopev1.Identity {
	claimed := s.raw.Claimed
	id := &callscopev1.Identity{
		AppId:        s.raw.Observed.AppId,
		ConferenceId: claimed.ConferenceId,
		UserId:       claimed.UserId,
		DeviceId:     claimed.DeviceId,
		ConnectionId: s.connectionID,
		RemoteId:     claimed.RemoteId,
	}
	if s.c != nil {
		id.ConferenceUid = s.c.s.Uid
	}
	if s.p != nil {
		id.ParticipantUid = s.p.s.Uid
	}
	if s.f != nil {
		id.FabricUid = s.f.s.Uid
	}
	return id
}
