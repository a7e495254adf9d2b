package enricher

import (
	"github.com/callscope/callscope/internal/quality"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// score tells of a stream's sample whether it is of something that somebody had
// switched off on purpose, and scores what the listener heard in the interval;
// path is the transport's sample of the same report, nil without one. There is
// no score of what is sent, in silence, without packets, where loss or round
// trip are not known, or of an interval of unknown length: nobody knows what was
// off in it.
func (s *step) score(sample *callscopev1.StreamSample, path *callscopev1.FabricSample) {
	sinceMs := s.raw.Observed.ReceivedAtMs
	if sample.IntervalMs != nil {
		sinceMs -= int64(*sample.IntervalMs)
	}
	inbound := sample.Direction == callscopev1.Direction_DIRECTION_INBOUND
	if inbound {
		sample.Silence = s.silence(sample.OwnerUserId, sample.MediaType, sinceMs)
	} else {
		sample.Silence = s.f.silence(sample.MediaType, sinceMs)
	}
	if !inbound || sample.MediaType != audio || sample.Silence != heard || !(number(sample.Packets) > 0) || sample.IntervalMs == nil {
		return
	}
	known := quality.Heard{
		Concealment: sample.Concealment, Loss: sample.Loss, RTTMs: sample.RttMs, PlayoutDelayMs: sample.JitterBufferDelayMs,
	}
	if path != nil {
		known.PathRTTMs = path.RttMs
	}
	if score, ok := quality.ScoreHeard(known); ok {
		sample.AudioMos, sample.AudioDelayPenalty, sample.AudioLossPenalty = &score.MOS, &score.DelayPenalty, &score.LossPenalty
	}
}
