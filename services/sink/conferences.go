package sink

import (
	"github.com/callscope/callscope/internal/store"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

func (b *blocks) addConference(d decoded, s *callscopev1.Summary, c *callscopev1.ConferenceSummary) error {
	h, err := summaryHeadOf(d, s, ofConference)
	if err != nil {
		return err
	}
	row := store.ConferenceRow{
		ConferenceKey: h.conference, Revision: h.revision,
		StartedAt:        h.conferenceStartedAt,
		DurationMs:       c.DurationMs,
		Outcome:          store.OptionalWord(c.Outcome),
		OutcomeEvidence:  optionalText(c.OutcomeEvidenceJson),
		EndReason:        store.OptionalWord(c.EndReason),
		Participants:     c.Participants,
		PeakParticipants: c.PeakParticipants,
		Rejoins:          c.Rejoins, MaxJoins: c.MaxJoins, Reopened: c.Reopened,
		ParticipantMinutes: c.ParticipantMinutes, MediaParticipantMinutes: c.MediaParticipantMinutes,
		Fabrics: c.Fabrics, FabricsFailed: c.FabricsFailed, FabricsDropped: c.FabricsDropped,
		SetupDelayMsMin: c.SetupDelayMsMin, SetupDelayMsMean: c.SetupDelayMsMean,
		SetupDelayMsMedian: c.SetupDelayMsMedian, SetupDelayMsMax: c.SetupDelayMsMax,
		SetupDelaysUnknown: c.SetupDelaysUnknown, Browsers: words(c.Browsers), Networks: words(c.Networks),
		AudioMOS: distribution(c.AudioMos), VideoScore: distribution(c.VideoScore),
		FeedbackOverall: c.FeedbackOverall,
		Models:          h.models,
		Provenance:      h.provenance, Source: h.source,
	}
	if row.EndedAt, err = optionalTime("ended_at_ms", c.EndedAtMs); err != nil {
		return err
	}
	if row.WorstParticipantUID, err = optionalUID("worst participant", c.WorstParticipantUid); err != nil {
		return err
	}
	if row.LastMessageAt, err = timeOf("last_message_at_ms", float64(c.LastMessageAtMs)); err != nil {
		return err
	}
	b.conferences.add(d.record, row)
	return nil
}
