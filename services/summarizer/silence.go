package summarizer

import (
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// silence is what somebody switched off on purpose. What cannot be heard or
// seen is not scored, neither with the best mark nor with the worst: an
// interval counts only if nothing was off in any part of it.
type silence struct {
	audioMuted, videoPaused, held bool
	// Received times of the latest switching on, epoch ms.
	audioOnMs, videoOnMs, resumedMs int64
}

// apply takes one event and tells whether it was about silence.
func (s *silence) apply(eventType string, receivedMs int64) bool {
	switch eventType {
	case "audioMute":
		s.audioMuted = true
	case "audioUnmute":
		s.audioMuted, s.audioOnMs = false, max(s.audioOnMs, receivedMs)
	case "videoPause":
		s.videoPaused = true
	case "videoResume":
		s.videoPaused, s.videoOnMs = false, max(s.videoOnMs, receivedMs)
	case "fabricHold":
		s.held = true
	case "fabricResume":
		s.held, s.resumedMs = false, max(s.resumedMs, receivedMs)
	default:
		return false
	}
	return true
}

// covers tells whether any part of the time since then was silent.
func (s *silence) covers(video bool, sinceMs int64) bool {
	if s.held || s.resumedMs > sinceMs {
		return true
	}
	if video {
		return s.videoPaused || s.videoOnMs > sinceMs
	}
	return s.audioMuted || s.audioOnMs > sinceMs
}

// silentTowards tells whether the participant sent nothing on purpose to the
// given user in any part of the time since then. Where it has fabrics towards
// that user, those tell; else (a server in between) any of them does.
func (p *participant) silentTowards(userID string, video bool, sinceMs int64) bool {
	if p.silence.covers(video, sinceMs) {
		return true
	}
	direct := false
	for _, f := range p.fabrics {
		if f.facts.GetEndedAtMs() == 0 && f.remoteID == userID {
			direct = true
			break
		}
	}
	for _, f := range p.fabrics {
		if f.facts.GetEndedAtMs() == 0 && (!direct || f.remoteID == userID) && f.silence.covers(video, sinceMs) {
			return true
		}
	}
	return false
}

// silent tells whether an inbound stream was silent on purpose in any part of
// the time since then: its fabric was on hold, or its owner sent nothing. An
// owner with two devices is silent when all that are present are.
func (c *conference) silent(p *participant, f *fabric, owner string, video bool, sinceMs int64) bool {
	if f.facts.GetHeld() || f.silence.held || f.silence.resumedMs > sinceMs {
		return true
	}
	found := false
	for _, o := range c.byUser[owner] {
		if o == p || !o.facts.GetPresent() {
			continue
		}
		if !o.silentTowards(p.userID, video, sinceMs) {
			return false
		}
		found = true
	}
	return found
}

// silentStream tells whether a stream was silent on purpose in any part of the
// time since then: an outbound one because its sender switched it off.
func (c *conference) silentStream(p *participant, f *fabric, st *streamState, sinceMs int64) bool {
	video := st.facts.MediaType == "video"
	if st.facts.Direction != callscopev1.Direction_DIRECTION_OUTBOUND {
		return c.silent(p, f, st.facts.OwnerUserId, video, sinceMs)
	}
	return f.facts.GetHeld() || p.silence.covers(video, sinceMs) || f.silence.covers(video, sinceMs)
}

func (s *silence) state() *callscopev1.SummarizerSilence {
	if *s == (silence{}) {
		return nil
	}
	return &callscopev1.SummarizerSilence{
		AudioMuted: s.audioMuted, VideoPaused: s.videoPaused, Held: s.held,
		AudioOnAtMs: s.audioOnMs, VideoOnAtMs: s.videoOnMs, ResumedAtMs: s.resumedMs,
	}
}

func silenceOf(s *callscopev1.SummarizerSilence) silence {
	return silence{
		audioMuted: s.GetAudioMuted(), videoPaused: s.GetVideoPaused(), held: s.GetHeld(),
		audioOnMs: s.GetAudioOnAtMs(), videoOnMs: s.GetVideoOnAtMs(), resumedMs: s.GetResumedAtMs(),
	}
}
