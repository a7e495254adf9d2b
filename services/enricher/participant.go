package enricher

import (
	"math"

	"google.golang.org/protobuf/proto"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// maxPresences bounds the presence intervals of a participant. Whoever comes
// back more often goes on with the last one; joins are counted on.
const maxPresences = 1_000

// participant is one endpoint of a user in one conference.
type participant struct {
	c            *conference
	s            *callscopev1.EnricherParticipant
	byConnection map[string]*fabric
	fabrics      []*fabric // in the order of arrival
	changed      bool      // its facts must be written
	t            timer
}

// deadline is when the participant leaves unless a message comes: 3 s after the
// last fabric ended, or 30 s after the last message.
func (p *participant) deadline() int64 {
	switch {
	case !p.s.Facts.Present:
		return never
	case p.s.Leaving:
		return p.s.LeavingAliveMs + leaveAfterMs
	default:
		return p.s.LastAliveMs + idleAfterMs
	}
}

func (p *participant) rank() int         { return rankParticipant }
func (p *participant) entityUID() []byte { return p.s.Uid }
func (p *participant) timer() *timer     { return &p.t }

// enter begins a presence interval.
func (p *participant) enter(receivedAtMs int64) {
	facts := p.s.Facts
	facts.Present = true
	facts.LeftReason = ""
	facts.Joins++
	if n := len(facts.Intervals); n < maxPresences {
		facts.Intervals = append(facts.Intervals, &callscopev1.PresenceInterval{JoinedAtMs: receivedAtMs})
	} else {
		facts.Intervals[n-1].LeftAtMs, facts.Intervals[n-1].LeftReason = nil, ""
	}
	p.changed = true
	p.stay()
	p.c.s.Present++
	if p.c.s.Present > p.c.s.Facts.PeakParticipants {
		p.c.s.Facts.PeakParticipants = p.c.s.Present
		p.c.changed = true
	}
}

// leave ends the presence interval and every open fabric.
func (p *participant) leave(atMs int64, timeMs float64, reason string) {
	facts := p.s.Facts
	facts.Present = false
	facts.LeftReason = reason
	last := facts.Intervals[len(facts.Intervals)-1]
	last.LeftAtMs = proto.Int64(atMs)
	last.LeftReason = reason
	p.stop(atMs, reason == reasonIdle)
	p.changed = true
	p.stay()
	p.c.s.Present--
	for _, f := range p.fabrics {
		if f.open() {
			f.end(atMs, timeMs, reason, reason != reasonIdle)
		}
	}
}

// fabricEnded lets the participant leave in 3 s if that was the last fabric.
func (p *participant) fabricEnded(aliveMs, atMs int64, reason string) {
	if !p.s.Facts.Present || p.hasOpenFabric() {
		return
	}
	p.s.Leaving, p.s.LeavingAliveMs, p.s.LeavingAtMs, p.s.LeavingReason = true, aliveMs, atMs, reason
}

// stay takes back what fabricEnded began.
func (p *participant) stay() {
	p.s.Leaving, p.s.LeavingAliveMs, p.s.LeavingAtMs, p.s.LeavingReason = false, 0, 0, ""
}

func (p *participant) hasOpenFabric() bool {
	for _, f := range p.fabrics {
		if f.open() {
			return true
		}
	}
	return false
}

// hungUpOn tells whether the participant had fabrics towards the user and ended
// all of them on purpose.
func (p *participant) hungUpOn(user string) bool {
	had := false
	for _, f := range p.fabrics {
		if f.s.RemoteId != user {
			continue
		}
		had = true
		if !f.s.EndedExplicitly {
			return false
		}
	}
	return had
}

// newFabric adds the fabric that the message is the first to name.
func (p *participant) newFabric(connectionID, remoteID string, receivedAtMs int64, timeMs float64, offset int64) *fabric {
	f := &fabric{
		p: p,
		s: &callscopev1.EnricherFabric{
			Uid:          stage.UID(p.s.Uid, []byte(connectionID)),
			ConnectionId: connectionID, RemoteId: remoteID,
			FirstTimeMs: timeMs,
			Facts: &callscopev1.FabricFacts{
				StartedAtMs:    receivedAtMs,
				Outcome:        callscopev1.FabricOutcome_FABRIC_OUTCOME_PENDING,
				FirstRawOffset: offset,
			},
		},
		changed: true,
	}
	if p.s.AudioOff {
		f.s.Audio = &callscopev1.EnricherSwitch{Off: true}
	}
	if p.s.VideoOff {
		f.s.Video = &callscopev1.EnricherSwitch{Off: true}
	}
	p.index(f)
	p.s.Fabrics = append(p.s.Fabrics, f.s)
	return f
}

func (p *participant) index(f *fabric) {
	p.byConnection[f.s.ConnectionId] = f
	p.fabrics = append(p.fabrics, f)
}

// heard notes a message of the participant: it lives, and its clock is compared.
func (p *participant) heard(aliveMs, receivedAtMs int64, timeMs float64) {
	p.s.LastAliveMs = aliveMs
	p.s.LastReceivedAtMs = receivedAtMs
	if timeMs == 0 {
		return
	}
	p.s.LastTimeMs = timeMs
	offset := float64(receivedAtMs) - timeMs
	if p.s.ClockOffsetMs == nil || offset < *p.s.ClockOffsetMs {
		p.s.ClockOffsetMs = proto.Float64(offset)
	}
}

// correct returns the client time, moved where the clock it came from is off.
func (p *participant) correct(timeMs float64) float64 {
	if p.s.ClockOffsetMs != nil && math.Abs(*p.s.ClockOffsetMs) > clockToleratedMs {
		return timeMs + *p.s.ClockOffsetMs
	}
	return timeMs
}

// learn takes over what a message says of the endpoint.
func (p *participant) learn(raw *callscopev1.Raw, agents *userAgents) {
	facts, claimed, observed := p.s.Facts, raw.Claimed, raw.Observed
	joined := raw.GetUserJoined()
	endpoint := endpointOf(raw)
	news := endpoint != nil && (joined != nil || facts.Endpoint == nil) && !proto.Equal(endpoint, facts.Endpoint)
	if news {
		facts.Endpoint = endpoint
		p.changed = true
		p.set(&facts.AppVersion, endpoint.AppVersion)
	}
	if news || facts.Endpoint == nil && facts.Browser == "" && facts.Os == "" {
		a := agents.of(facts.Endpoint, observed.UserAgent)
		p.set(&facts.Browser, a.browser)
		p.set(&facts.BrowserVersion, a.browserVersion)
		p.set(&facts.Os, a.os)
		p.set(&facts.OsVersion, a.osVersion)
	}
	p.setOnce(&facts.ClientVersion, claimed.ClientVersion, joined != nil)
	p.setOnce(&facts.SiteId, claimed.SiteId, joined != nil)
	p.setOnce(&facts.IpMasked, observed.IpMasked, joined != nil)
	if joined != nil {
		p.s.GeoIpDisabled = joined.GetDisableGeoIp()
		if p.s.GeoIpDisabled && facts.Country+facts.Network != "" {
			facts.Country, facts.Network = "", ""
			p.changed = true
		}
	}
	if !p.s.GeoIpDisabled {
		p.setOnce(&facts.Country, observed.Country, joined != nil)
		p.setOnce(&facts.Network, observed.Network, joined != nil)
	}
	switch {
	case joined != nil:
		p.set(&facts.UserName, joined.UserName)
		p.set(&facts.LoginId, joined.LoginId)
		p.set(&facts.AdditionalIdsJson, joined.AdditionalIdsJson)
	case raw.GetUserDetails() != nil:
		p.set(&facts.UserName, raw.GetUserDetails().UserName)
	}
}

// set takes over a value that the message gives.
func (p *participant) set(field *string, value string) {
	if value != "" && value != *field {
		*field = value
		p.changed = true
	}
}

// setOnce takes over a value that every message gives: the first, and again
// with a userJoined, but not each time a client hops between two addresses.
func (p *participant) setOnce(field *string, value string, joined bool) {
	if joined || *field == "" {
		p.set(field, value)
	}
}

func (p *participant) enriched() *callscopev1.Enriched {
	return &callscopev1.Enriched{
		Identity: identity(p.c, p, nil),
		Body:     &callscopev1.Enriched_Participant{Participant: proto.CloneOf(p.s.Facts)},
	}
}

// endpointOf returns the endpoint that the message describes, nil if none.
func endpointOf(raw *callscopev1.Raw) *callscopev1.EndpointInfo {
	switch {
	case raw.GetUserJoined() != nil:
		return raw.GetUserJoined().EndpointInfo
	case raw.GetUserAlive() != nil:
		return raw.GetUserAlive().EndpointInfo
	case raw.GetFailure() != nil:
		return raw.GetFailure().Endpoint
	default:
		return nil
	}
}
