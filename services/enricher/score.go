package enricher

import (
	"github.com/callscope/callscope/internal/quality"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// audioMOS scores what the listener heard of a stream in the interval of its
// sample; path is the transport's sample of the same report, nil without one.
// It is nil for what is sent, without packets, where loss or round trip are not
// known, and where somebody had switched the sound off in any part of the
// interval: what cannot be heard is neither good nor bad.
func (s *step) audioMOS(sample *callscopev1.StreamSample, path *callscopev1.FabricSample) *float64 {
	if sample.Direction != callscopev1.Direction_DIRECTION_INBOUND || sample.MediaType != "audio" ||
		!(number(sample.Packets) > 0) || sample.IntervalMs == nil {
		return nil
	}
	sinceMs := s.raw.Observed.ReceivedAtMs - int64(*sample.IntervalMs)
	if covers(s.f.s.Facts.Hold, sinceMs) || s.ownerSilent(sample.OwnerUserId, sinceMs) {
		return nil
	}
	heard := quality.Heard{
		Concealment: sample.Concealment, Loss: sample.Loss, RTTMs: sample.RttMs, PlayoutDelayMs: sample.JitterBufferDelayMs,
	}
	if path != nil {
		heard.PathRTTMs = path.RttMs
	}
	score, ok := quality.ScoreHeard(heard)
	if !ok {
		return nil
	}
	return &score.MOS
}

// ownerSilent tells whether the stream's owner sent no sound on purpose in any
// part of the time since then. An owner with two devices is silent when all
// that are present are.
func (s *step) ownerSilent(owner string, sinceMs int64) bool {
	found := false
	for _, o := range s.c.participants {
		if o == s.p || o.s.UserId != owner || !o.s.Facts.Present {
			continue
		}
		if !covers(o.s.Facts.AudioMute, sinceMs) && !o.heldTowards(s.p.s.UserId, sinceMs) {
			return false
		}
		found = true
	}
	return found
}

// heldTowards tells whether the participant's connection to a user was on hold;
// where it has none to that user, a server is in between, and any of them counts.
func (p *participant) heldTowards(userID string, sinceMs int64) bool {
	direct, held := false, false
	for _, f := range p.fabrics {
		if !f.open() || direct && f.s.RemoteId != userID {
			continue
		}
		if f.s.RemoteId == userID && !direct {
			direct, held = true, false
		}
		held = held || covers(f.s.Facts.Hold, sinceMs)
	}
	return held
}

// covers tells whether the activity was on in any part of the time since then.
func covers(a *callscopev1.Activity, sinceMs int64) bool {
	return on(a) || a.GetLastEndedMs() > sinceMs
}
