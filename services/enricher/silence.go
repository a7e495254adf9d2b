package enricher

import (
	"cmp"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// The media that can be switched off.
const (
	audio = "audio"
	video = "video"
)

// heard is the silence of what was heard or seen in all of an interval.
const heard = callscopev1.Silence_SILENCE_UNSPECIFIED

// switchMedia notes that the message switches a medium off or on: of the fabric
// that it names (a mute is one of a fabric, by the spec), and where it names
// none of all that are open and of those that will come.
func (s *step) switchMedia(media string, off bool) {
	atMs := s.raw.Observed.ReceivedAtMs
	if s.f != nil {
		s.f.switchMedia(media, off, atMs)
		return
	}
	if s.connectionID != "" { // a fabric beyond what there is room for
		return
	}
	if media == audio {
		s.p.s.AudioOff = off
	} else {
		s.p.s.VideoOff = off
	}
	for _, f := range s.p.fabrics {
		if f.open() {
			f.switchMedia(media, off, atMs)
		}
	}
}

func (f *fabric) switchMedia(media string, off bool, atMs int64) {
	to := &f.s.Audio
	if media == video {
		to = &f.s.Video
	}
	switch {
	case off == (*to).GetOff():
	case off:
		*to = &callscopev1.EnricherSwitch{Off: true}
	default:
		*to = &callscopev1.EnricherSwitch{OnAtMs: atMs}
	}
}

// silence is why an inbound stream was silent on purpose in any part of the time
// since then: its fabric was on hold, or its owner sent nothing. An owner with
// two devices is silent when all that were there are.
func (s *step) silence(owner, media string, sinceMs int64) callscopev1.Silence {
	if s.f.heldSince(sinceMs) {
		return callscopev1.Silence_SILENCE_HELD
	}
	silence := heard
	for _, o := range s.c.byUser[owner] {
		if o == s.p || !o.thereSince(sinceMs) {
			continue
		}
		if silence = o.silenceTowards(s.p.s.UserId, media, sinceMs); silence == heard {
			return heard
		}
	}
	return silence
}

// thereSince tells whether the participant was present in any part of the time
// since then.
func (p *participant) thereSince(sinceMs int64) bool {
	intervals := p.s.Facts.Intervals
	return p.s.Facts.Present || len(intervals) > 0 && intervals[len(intervals)-1].GetLeftAtMs() > sinceMs
}

// silenceTowards is why the participant sent nothing to a user. Where it has
// fabrics towards that user, those tell; else (a server in between) any of them
// does.
func (p *participant) silenceTowards(userID, media string, sinceMs int64) callscopev1.Silence {
	direct, silence := false, heard
	for _, f := range p.fabrics {
		if !f.open() && f.s.Facts.GetEndedAtMs() <= sinceMs {
			continue
		}
		towards := f.s.RemoteId == userID
		if direct && !towards {
			continue
		}
		if towards && !direct {
			direct, silence = true, heard
		}
		silence = cmp.Or(silence, f.silence(media, sinceMs))
	}
	return silence
}

// silence is why the fabric sent none of the medium in any part of the time
// since then.
func (f *fabric) silence(media string, sinceMs int64) callscopev1.Silence {
	switch {
	case f.heldSince(sinceMs):
		return callscopev1.Silence_SILENCE_HELD
	case media == audio && offSince(f.s.Audio, sinceMs):
		return callscopev1.Silence_SILENCE_MUTED
	case media == video && offSince(f.s.Video, sinceMs):
		return callscopev1.Silence_SILENCE_PAUSED
	}
	return heard
}

func (f *fabric) heldSince(sinceMs int64) bool {
	return on(f.s.Facts.Hold) || f.s.Facts.Hold.GetLastEndedMs() > sinceMs
}

func offSince(s *callscopev1.EnricherSwitch, sinceMs int64) bool {
	return s.GetOff() || s.GetOnAtMs() > sinceMs
}
