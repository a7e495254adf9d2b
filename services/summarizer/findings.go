package summarizer

import (
	"math"
	"slices"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// The findings of a participant's summary.
const (
	findingOneWayAudio      = "oneWayAudio"
	findingFrozenSender     = "frozenSender"
	findingRelayedOnly      = "relayedOnly"
	findingCPULimited       = "cpuLimited"
	findingBandwidthLimited = "bandwidthLimited"
	findingDeviceCaused     = "deviceCaused"
)

const (
	// runMs is how long sound or frames must be missing without a break: two
	// reports of the usual 10 s.
	runMs = 15_000
	// Audio levels, 0 to 1: speech is at or above -40 dB, nothing to be heard
	// below -60 dB.
	speechLevel  = 0.01
	silenceLevel = 0.001
	// freshMs is how old the latest report of the other side may be: three
	// reports of the usual 10 s.
	freshMs = 30_000
	// clockSetMs is how far back a report's time must lie to show that its
	// client's clock was set.
	clockSetMs = 60_000
)

// finding is one problem of a participant with what it was concluded from. It
// names other participants by uid and holds no ids of users, so that nothing in
// it has to be erased.
type finding struct {
	Finding   string         `json:"finding"`
	RemoteUID string         `json:"remote_uid,omitempty"` // the other participant's uid
	SSRC      string         `json:"ssrc,omitempty"`
	Ms        uint64         `json:"ms,omitempty"`
	Share     *float64       `json:"share,omitempty"` // 0 to 1
	Fabrics   int            `json:"fabrics,omitempty"`
	Streams   []blamedStream `json:"streams,omitempty"`
}

type blamedStream struct {
	ParticipantUID string `json:"participant_uid"` // who receives it
	SSRC           string `json:"ssrc"`
	Side           string `json:"side"`
	Rule           string `json:"rule"`
}

const maxBlamedStreams = 5

// observe counts what findings and sides are made of. silent: the stream was
// off on purpose in a part of the interval.
func (c *conference) observe(p *participant, f *fabric, st *streamState, s *callscopev1.StreamSample, e *callscopev1.Enriched, intervalMs float64, silent bool) {
	outbound := st.facts.Direction == callscopev1.Direction_DIRECTION_OUTBOUND
	ms := uint64(math.Round(intervalMs))
	st.sums[sumMeasuredMs] += ms
	level := s.AudioLevel
	st.flowing = s.Packets != nil && *s.Packets > 0
	st.voiced = st.flowing && level != nil && *level >= speechLevel
	switch st.facts.MediaType {
	case "audio":
		if st.voiced || st.flowing && level == nil {
			st.sums[sumSoundMs] += ms
		}
		if st.voiced && !silent {
			st.sums[sumSpeechMs] += ms
		}
		if s.SamplesReceived != nil && s.ConcealedSamples != nil && usable(*s.SamplesReceived) && usable(*s.ConcealedSamples) {
			st.sums[sumSamples] += uint64(math.Round(*s.SamplesReceived))
			st.sums[sumConcealed] += uint64(math.Round(*s.ConcealedSamples))
		}
		if outbound {
			if level != nil {
				p.talk(e.TimeMs-intervalMs, e.TimeMs, st.voiced && !silent)
			}
			return
		}
		noPackets := s.Packets != nil && *s.Packets == 0
		noSound := st.flowing && level != nil && *level < silenceLevel
		st.run((noPackets || noSound) && !silent && st.samples > 1 && c.hearsNothing(p, st, noSound, e.ReceivedAtMs), ms)
	case "video":
		if s.FrameRate != nil && usable(*s.FrameRate) {
			st.sums[sumRateMs] += ms
			st.sums[sumFrames] += uint64(math.Round(float64(min(*s.FrameRate, 1000) * float64(ms))))
		}
		if !outbound {
			return
		}
		screen := c.showsScreen(f, st.facts)
		p.keepSource(screen, s)
		st.limit(s, ms)
		frozen := !silent && s.FrameRate != nil && *s.FrameRate == 0 && s.SourceFrameRate != nil && *s.SourceFrameRate >= 1 && f.facts.GetEndedAtMs() == 0
		st.run(frozen && st.samples > 1 && !c.sentOtherwise(f, st, screen, e.ReceivedAtMs), ms)
	}
}

// sentOtherwise tells whether another stream of the fabric sends what the
// camera, or the screen, delivers: of the layers of a simulcast some are off.
// What the others do is known from the second report on.
func (c *conference) sentOtherwise(f *fabric, st *streamState, screen bool, nowMs int64) bool {
	return slices.ContainsFunc(f.streams, func(o *streamState) bool {
		return o != st && o.facts.Direction == st.facts.Direction && o.facts.MediaType == st.facts.MediaType &&
			o.flowing && o.lastSampleMs+freshMs >= nowMs && c.showsScreen(f, o.facts) == screen
	})
}

// run counts an interval in the current run, or ends that.
func (st *streamState) run(goesOn bool, ms uint64) {
	if !goesOn {
		st.sums[sumRunMs] = 0
		return
	}
	st.sums[sumRunMs] += ms
	st.sums[sumLongestMs] = max(st.sums[sumLongestMs], st.sums[sumRunMs])
}

// limit counts how long the encoder was limited, by its counters or else by the
// reason that it gives at the end of the interval.
func (st *streamState) limit(s *callscopev1.StreamSample, ms uint64) {
	for _, l := range []struct {
		sum    int
		value  *float64
		reason string
	}{{sumCPUMs, s.QualityLimitedCpuMs, "cpu"}, {sumBandwidthMs, s.QualityLimitedBandwidthMs, "bandwidth"}} {
		switch {
		case l.value != nil && usable(*l.value):
			st.sums[l.sum] += min(uint64(math.Round(*l.value)), ms)
		case l.value == nil && s.QualityLimitationReason == l.reason:
			st.sums[l.sum] += ms
		}
	}
}

// keepSource remembers what the participant's camera or screen delivers.
func (p *participant) keepSource(screen bool, s *callscopev1.StreamSample) {
	to := &p.camera
	if screen {
		to = &p.screen
	}
	for _, part := range []struct {
		from *float64
		to   *float64
	}{{s.SourceFrameRate, &to.frameRate}, {s.SourceFrameHeight, &to.height}} {
		if part.from != nil && usable(*part.from) && *part.from > 0 {
			*part.to = *part.from
		}
	}
}

// talk counts the part of an interval that was not counted yet, so that sending
// to several remotes at once counts once. An interval that lies far back is no
// such part: the client's clock was set back.
func (p *participant) talk(fromMs, toMs float64, talking bool) {
	if p.talkMs == nil {
		p.talkMs = new(uint64)
	}
	if !talking || !usable(fromMs) || !usable(toMs) {
		return
	}
	if toMs >= p.talkedUntilMs-clockSetMs {
		fromMs = max(fromMs, p.talkedUntilMs)
	}
	if toMs > fromMs {
		*p.talkMs += uint64(math.Round(min(toMs-fromMs, maxIntervalMs)))
		p.talkedUntilMs = toMs
	}
}

// hearsNothing tells whether a participant that receives no sound of a stream
// just now should: its user speaks towards it, and the other way works, that is
// the participant sends audio and the user receives it. Where packets come
// without sound, the user must also have heard some of the participant: a
// browser that plays nothing (without a sound card) shows no sound of anybody.
// A stream that is silent beside another of the same user, with which that was
// heard (the sound of a screen beside a microphone, an SSRC that another
// replaced), is no evidence.
func (c *conference) hearsNothing(p *participant, silent *streamState, noSound bool, nowMs int64) bool {
	owner := silent.facts.OwnerUserId
	if !p.latest(callscopev1.Direction_DIRECTION_OUTBOUND, owner, "", nowMs, func(st *streamState) bool { return st.flowing }) ||
		p.latest(callscopev1.Direction_DIRECTION_INBOUND, owner, owner, nowMs, func(st *streamState) bool {
			return st != silent && st.flowing && st.sums[sumSoundMs] > 0
		}) {
		return false
	}
	for _, o := range c.byUser[owner] {
		if o == p || !o.facts.GetPresent() {
			continue
		}
		speaks := o.latest(callscopev1.Direction_DIRECTION_OUTBOUND, p.userID, "", nowMs, func(st *streamState) bool { return st.voiced })
		hears := o.latest(callscopev1.Direction_DIRECTION_INBOUND, p.userID, p.userID, nowMs, func(st *streamState) bool { return st.flowing && (!noSound || st.sums[sumSoundMs] > 0) })
		if speaks && hears {
			return true
		}
	}
	return false
}

// latest tells whether the latest report of an audio stream between the
// participant and a user, not older than freshMs, says so. Where the participant
// has fabrics towards that user, those count; else (a server in between) all do.
// owner, if not empty, is whose streams count.
func (p *participant) latest(direction callscopev1.Direction, remote, owner string, nowMs int64, says func(*streamState) bool) bool {
	direct := slices.ContainsFunc(p.fabrics, func(f *fabric) bool { return f.remoteID == remote && f.facts.GetEndedAtMs() == 0 })
	for _, f := range p.fabrics {
		if direct && f.remoteID != remote {
			continue
		}
		for _, st := range f.streams {
			if st.facts.Direction == direction && st.facts.MediaType == "audio" && (owner == "" || st.facts.OwnerUserId == owner) &&
				st.lastSampleMs+freshMs >= nowMs && says(st) {
				return true
			}
		}
	}
	return false
}

// findings are the participant's problems, in the order of this list:
//
//   - oneWayAudio: for 15 s without a break it got no packets, or no sound above
//     -60 dB, of somebody who was sending speech (level of -40 dB or above)
//     towards it, on this stream nor on another, while that user received its
//     audio (and, where only the sound is missing, has heard some of it); or, on
//     a fabric to a user that is set up and reports, no stream ever came of
//     somebody who sent speech for 15 s there and received its audio. Silence on
//     purpose (mute, hold) is no evidence, and neither is a level that nobody
//     reports or a stream's first report.
//   - frozenSender: for 15 s without a break its source (camera, screen)
//     delivered frames, but none were sent, by no layer of a simulcast, without
//     pause or hold. A source of unknown frame rate is no evidence, and neither
//     is a stream's first report.
//   - relayedOnly: every fabric that was set up ran through a relay, and for all
//     of them that is known.
//   - cpuLimited, bandwidthLimited: the encoder of one of its videos was limited
//     for 20 % of the measured time and for 20 s at least.
//   - deviceCaused: its own device made a stream poor, as side says: one that it
//     receives (receiver) or one that others get of it (sender).
func (c *conference) findings(p *participant, sides sides) []finding {
	var found []finding
	found = append(found, c.oneWayAudio(p)...)
	var worst [sumCount]*streamState
	for _, f := range p.fabrics {
		for _, st := range f.streams {
			if st.facts.Direction != callscopev1.Direction_DIRECTION_OUTBOUND || st.facts.MediaType != "video" {
				continue
			}
			if st.sums[sumLongestMs] >= runMs {
				found = append(found, finding{Finding: findingFrozenSender, SSRC: st.facts.Ssrc, Ms: st.sums[sumLongestMs]})
			}
			for _, sum := range []int{sumCPUMs, sumBandwidthMs} {
				if st.limited(sum) && (worst[sum] == nil || *st.share(sum) > *worst[sum].share(sum)) {
					worst[sum] = st
				}
			}
		}
	}
	relayed, setUp := 0, 0
	for _, f := range p.fabrics {
		if o := f.facts.GetOutcome(); o != callscopev1.FabricOutcome_FABRIC_OUTCOME_SETUP && o != callscopev1.FabricOutcome_FABRIC_OUTCOME_DROPPED {
			continue
		}
		setUp++
		if is := f.facts.Relayed; is != nil && *is || is == nil && f.relayed != nil && *f.relayed {
			relayed++
		}
	}
	if setUp > 0 && relayed == setUp {
		found = append(found, finding{Finding: findingRelayedOnly, Fabrics: setUp})
	}
	for _, l := range []struct {
		sum  int
		name string
	}{{sumCPUMs, findingCPULimited}, {sumBandwidthMs, findingBandwidthLimited}} {
		if st := worst[l.sum]; st != nil {
			found = append(found, finding{Finding: l.name, SSRC: st.facts.Ssrc, Ms: st.sums[l.sum], Share: st.share(l.sum)})
		}
	}
	if streams := sides.blamed[p]; len(streams) > 0 {
		found = append(found, finding{Finding: findingDeviceCaused, Streams: streams})
	}
	return found
}

// oneWayAudio has one finding for each user that cannot be heard.
func (c *conference) oneWayAudio(p *participant) []finding {
	var found []finding
	for _, f := range p.fabrics {
		heard := false
		for _, st := range f.streams {
			if st.facts.Direction != callscopev1.Direction_DIRECTION_INBOUND || st.facts.MediaType != "audio" {
				continue
			}
			heard = heard || st.facts.OwnerUserId == f.remoteID
			if st.sums[sumLongestMs] >= runMs {
				found = append(found, finding{Finding: findingOneWayAudio, RemoteUID: c.uidOfUser(st.facts.OwnerUserId), SSRC: st.facts.Ssrc, Ms: st.sums[sumLongestMs]})
			}
		}
		if heard || f.remoteID == "" || len(f.streams) == 0 || f.facts.GetOutcome() != callscopev1.FabricOutcome_FABRIC_OUTCOME_SETUP {
			continue
		}
		for _, o := range c.byUser[f.remoteID] {
			if spoke := o.spokeTo(p); o != p && spoke >= runMs && o.heard(p) {
				found = append(found, finding{Finding: findingOneWayAudio, RemoteUID: uidText(o.uid), Ms: spoke})
			}
		}
	}
	return found
}

// uidOfUser is the uid of the only participant of a user, else empty.
func (c *conference) uidOfUser(user string) string {
	if ps := c.byUser[user]; len(ps) == 1 {
		return uidText(ps[0].uid)
	}
	return ""
}

// spokeTo is how long the participant sent speech on fabrics to another one.
func (p *participant) spokeTo(to *participant) uint64 {
	var longest uint64
	for _, f := range p.fabrics {
		if f.remoteID != to.userID {
			continue
		}
		for _, st := range f.streams {
			if st.facts.Direction == callscopev1.Direction_DIRECTION_OUTBOUND && st.facts.MediaType == "audio" {
				longest = max(longest, st.sums[sumSpeechMs])
			}
		}
	}
	return longest
}

// heard tells whether the participant received sound of another one directly.
func (p *participant) heard(of *participant) bool {
	for _, f := range p.fabrics {
		if f.remoteID != of.userID {
			continue
		}
		for _, st := range f.streams {
			if st.facts.Direction == callscopev1.Direction_DIRECTION_INBOUND && st.facts.MediaType == "audio" && st.sums[sumSoundMs] > 0 {
				return true
			}
		}
	}
	return false
}

// sides are the poor streams of a conference whose side made them so, as far as
// that is known, and of each participant the first few, in the order of the
// conference, that its device made poor.
type sides struct {
	of     map[*streamState]*side
	blamed map[*participant][]blamedStream
}

// sides looks at every stream once, whatever the number of participants that
// ask for theirs.
func (c *conference) sides() sides {
	all := sides{of: map[*streamState]*side{}, blamed: map[*participant][]blamedStream{}}
	for _, p := range c.participants {
		for _, f := range p.fabrics {
			for _, st := range f.streams {
				s := c.side(p, f, st)
				if s == nil {
					continue
				}
				all.of[st] = s
				var blamed *participant
				switch s.name {
				case sideReceiver:
					blamed = p
				case sideSender:
					blamed = s.publisher
				default:
					continue
				}
				if streams := all.blamed[blamed]; len(streams) < maxBlamedStreams {
					all.blamed[blamed] = append(streams, blamedStream{uidText(p.uid), st.facts.Ssrc, s.name, s.evidence.Rule})
				}
			}
		}
	}
	return all
}

func round4(v float64) float64 { return math.Round(v*1e4) / 1e4 }
