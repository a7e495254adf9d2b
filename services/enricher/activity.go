package enricher

import (
	"google.golang.org/protobuf/proto"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

const (
	// maxIntervals bounds the intervals that an activity lists; it goes on
	// counting them and adding up their time.
	maxIntervals = 50
	// maxDevices bounds the devices that a participant's facts list.
	maxDevices = 32

	eventAudioMute        = "audioMute"
	eventAudioUnmute      = "audioUnmute"
	eventVideoPause       = "videoPause"
	eventVideoResume      = "videoResume"
	eventScreenShareStart = "screenShareStart"
	eventScreenShareStop  = "screenShareStop"
	eventDominantSpeaker  = "dominantSpeaker"
	eventActiveDeviceList = "activeDeviceList"
)

// on tells whether the activity goes on.
func on(a *callscopev1.Activity) bool { return a != nil && a.SinceMs != nil }

// begin begins an interval and tells whether that changes anything: a client
// that says so once for each of its fabrics says it once.
func begin(a **callscopev1.Activity, atMs int64) bool {
	if on(*a) {
		return false
	}
	if *a == nil {
		*a = &callscopev1.Activity{}
	}
	(*a).Count++
	(*a).SinceMs = proto.Int64(atMs)
	return true
}

// end ends the open interval, if there is one, and tells whether there was.
func end(a *callscopev1.Activity, atMs int64) bool {
	if !on(a) {
		return false
	}
	fromMs := *a.SinceMs
	atMs = max(atMs, fromMs)
	a.SinceMs = nil
	a.TotalMs += atMs - fromMs
	a.LastEndedMs = atMs
	if len(a.Intervals) < maxIntervals {
		a.Intervals = append(a.Intervals, &callscopev1.ActivityInterval{FromMs: fromMs, ToMs: atMs})
	}
	return true
}

// applyActivity follows what the participant does. Like every other message,
// one of somebody who is not there, or of a fabric that ended, changes nothing.
func (s *step) applyActivity() {
	if s.p == nil || !s.p.s.Facts.Present || !s.c.open() || s.f != nil && !s.f.open() {
		return
	}
	facts, atMs := s.p.s.Facts, s.raw.Observed.ReceivedAtMs
	changed := false
	switch s.raw.EventType {
	case eventAudioMute:
		changed = begin(&facts.AudioMute, atMs)
		s.switchMedia(audio, true)
	case eventAudioUnmute:
		changed = end(facts.AudioMute, atMs)
		s.switchMedia(audio, false)
	case eventVideoPause:
		changed = begin(&facts.VideoPause, atMs)
		s.switchMedia(video, true)
	case eventVideoResume:
		changed = end(facts.VideoPause, atMs)
		s.switchMedia(video, false)
	case eventScreenShareStart:
		changed = begin(&facts.ScreenShare, atMs)
	case eventScreenShareStop:
		changed = end(facts.ScreenShare, atMs)
	case eventDominantSpeaker:
		s.silenced = s.c.dominates(s.p, atMs)
	case eventActiveDeviceList:
		if list := s.raw.GetDeviceList().GetMediaDeviceList(); list != nil {
			facts.ActiveDevices = list[:min(len(list), maxDevices)]
			changed = true
		}
	}
	s.p.changed = s.p.changed || changed
}

// dominates makes the participant the dominant speaker and returns the one who
// was, nil if nobody or the same.
func (c *conference) dominates(p *participant, atMs int64) *participant {
	before := c.dominant()
	if before == p {
		return nil
	}
	for i, other := range c.participants {
		if other == p {
			c.s.Dominant = uint32(i + 1)
		}
	}
	p.changed = begin(&p.s.Facts.DominantSpeaker, atMs) || p.changed
	if before != nil {
		before.changed = end(before.s.Facts.DominantSpeaker, atMs) || before.changed
	}
	return before
}

// dominant returns the dominant speaker, nil if there is none.
func (c *conference) dominant() *participant {
	if c.s.Dominant == 0 {
		return nil
	}
	return c.participants[c.s.Dominant-1]
}

// stop ends what the participant does, because its presence ends. What silence
// interrupts is remembered: a client does not say it again when it is back.
func (p *participant) stop(atMs int64, silent bool) {
	facts := p.s.Facts
	p.s.MutedWhenSilent = silent && on(facts.AudioMute)
	p.s.PausedWhenSilent = silent && on(facts.VideoPause)
	p.s.SharingWhenSilent = silent && on(facts.ScreenShare)
	for _, a := range []*callscopev1.Activity{facts.AudioMute, facts.VideoPause, facts.ScreenShare, facts.DominantSpeaker} {
		end(a, atMs)
	}
	if p.c.dominant() == p {
		p.c.s.Dominant = 0
	}
}

// goOn takes up again what silence interrupted.
func (p *participant) goOn(atMs int64) {
	facts := p.s.Facts
	if p.s.MutedWhenSilent {
		begin(&facts.AudioMute, atMs)
	}
	if p.s.PausedWhenSilent {
		begin(&facts.VideoPause, atMs)
	}
	if p.s.SharingWhenSilent {
		begin(&facts.ScreenShare, atMs)
	}
	p.s.MutedWhenSilent, p.s.PausedWhenSilent, p.s.SharingWhenSilent = false, false, false
}
