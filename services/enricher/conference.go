package enricher

import (
	"google.golang.org/protobuf/proto"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// reasonIdle is the reason of every end that nobody announced.
const reasonIdle = "idle"

// conference is one occurrence of a conference id, open or in grace.
type conference struct {
	s            *callscopev1.EnricherConference
	byKey        map[participantKey]*participant
	byUser       map[string][]*participant
	participants []*participant // in the order of arrival
	changed      bool           // its facts must be written
	t            timer
}

type participantKey struct{ user, device string }

// newConference begins an occurrence with the message that has the uid.
func newConference(appID, conferenceID string, messageUID []byte, receivedAtMs, offset int64) *conference {
	return &conference{
		s: &callscopev1.EnricherConference{
			AppId: appID, ConferenceId: conferenceID,
			Uid: stage.UID([]byte(appID), []byte(conferenceID), messageUID),
			Facts: &callscopev1.ConferenceFacts{
				State:          callscopev1.ConferenceState_CONFERENCE_STATE_OPEN,
				StartedAtMs:    receivedAtMs,
				FirstRawOffset: offset,
			},
		},
		byKey: map[participantKey]*participant{}, byUser: map[string][]*participant{},
		changed: true,
	}
}

func (c *conference) open() bool {
	return c.s.Facts.State == callscopev1.ConferenceState_CONFERENCE_STATE_OPEN
}

// deadline is the end of a conference with nobody in it, or of its grace.
func (c *conference) deadline() int64 {
	switch {
	case !c.open():
		return c.s.EndedAliveMs + forgottenAfterMs
	case c.s.Present == 0:
		return c.s.LastMessageAliveMs + endAfterMs
	default:
		return never
	}
}

func (c *conference) rank() int         { return rankConference }
func (c *conference) entityUID() []byte { return c.s.Uid }
func (c *conference) timer() *timer     { return &c.t }

// end ends the conference at the latest moment that somebody left, for that
// participant's reason.
func (c *conference) end(aliveMs int64) {
	facts := c.s.Facts
	facts.State = callscopev1.ConferenceState_CONFERENCE_STATE_ENDED
	var latest *callscopev1.PresenceInterval
	for _, p := range c.participants {
		intervals := p.s.Facts.Intervals
		if len(intervals) == 0 {
			continue
		}
		if last := intervals[len(intervals)-1]; latest == nil || last.GetLeftAtMs() >= latest.GetLeftAtMs() {
			latest = last
		}
	}
	// Of two gateways one may be behind: nothing ends before it began.
	facts.EndedAtMs = proto.Int64(max(facts.StartedAtMs, latest.GetLeftAtMs()))
	facts.EndReason = latest.GetLeftReason()
	facts.RevisionReason = ""
	if facts.Reopened > 0 {
		facts.RevisionReason = revisionReopened
	}
	c.s.EndedAliveMs = aliveMs
}

// reopen undoes the end of a conference in grace.
func (c *conference) reopen() {
	facts := c.s.Facts
	facts.State = callscopev1.ConferenceState_CONFERENCE_STATE_OPEN
	facts.EndedAtMs = nil
	facts.EndReason = ""
	facts.Reopened++
	facts.RevisionReason = revisionReopened
	c.s.EndedAliveMs = 0
	c.changed = true
}

// join adds a participant, who is not yet present.
func (c *conference) join(key participantKey, offset int64) *participant {
	p := &participant{
		c: c,
		s: &callscopev1.EnricherParticipant{
			Uid:    stage.UID(c.s.Uid, []byte(key.user), []byte(key.device)),
			UserId: key.user, DeviceId: key.device,
			Facts: &callscopev1.ParticipantFacts{FirstRawOffset: offset},
		},
		byConnection: map[string]*fabric{},
	}
	c.index(p)
	c.s.Participants = append(c.s.Participants, p.s)
	return p
}

func (c *conference) index(p *participant) {
	c.byKey[participantKey{p.s.UserId, p.s.DeviceId}] = p
	c.byUser[p.s.UserId] = append(c.byUser[p.s.UserId], p)
	c.participants = append(c.participants, p)
}

// hasLeft tells whether the user has gone on purpose, as far as a fabric of
// somebody else towards that user is concerned: each of the user's participants
// left other than by silence, or ended its fabrics towards the other user. A
// connection that breaks after that is no failure.
func (c *conference) hasLeft(user, otherUser string) bool {
	if user == otherUser {
		return false
	}
	known := false
	for _, p := range c.byUser[user] {
		known = true
		if !p.s.Facts.Present {
			if p.s.Facts.LeftReason == reasonIdle {
				return false
			}
			continue
		}
		if !p.hungUpOn(otherUser) {
			return false
		}
	}
	return known
}

func (c *conference) key() []byte { return []byte(roomKey(c.s.AppId, c.s.ConferenceId)) }

func (c *conference) enriched() *callscopev1.Enriched {
	return &callscopev1.Enriched{
		Identity: identity(c, nil, nil),
		Body:     &callscopev1.Enriched_Conference{Conference: proto.CloneOf(c.s.Facts)},
	}
}

// identity names what an output is about; p and f may be nil.
func identity(c *conference, p *participant, f *fabric) *callscopev1.Identity {
	id := &callscopev1.Identity{AppId: c.s.AppId, ConferenceId: c.s.ConferenceId, ConferenceUid: c.s.Uid}
	if p != nil {
		id.UserId, id.DeviceId, id.ParticipantUid = p.s.UserId, p.s.DeviceId, p.s.Uid
	}
	if f != nil {
		id.ConnectionId, id.RemoteId, id.FabricUid = f.s.ConnectionId, f.s.RemoteId, f.s.Uid
	}
	return id
}
