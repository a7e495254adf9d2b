package sink

import (
	"github.com/callscope/callscope/internal/store"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// addParticipant gives the participant's row and, where the client gave a real name, its row in the table of names.
func (b *blocks) addParticipant(d decoded, s *callscopev1.Summary, p *callscopev1.ParticipantSummary) error {
	h, err := summaryHeadOf(d, s, ofParticipant)
	if err != nil {
		return err
	}
	row := store.ParticipantRow{
		ConferenceKey: h.conference, ParticipantKey: h.participant, Revision: h.revision,
		Present: p.Present, PresenceMs: p.PresenceMs, Joins: p.Joins,
		LeftReason: store.OptionalWord(p.LeftReason),
		Alias:      p.Alias, SiteID: store.OptionalWord(p.SiteId),
		Browser: store.OptionalWord(p.Browser), BrowserVersion: store.OptionalWord(p.BrowserVersion),
		OS: store.OptionalWord(p.Os), OSVersion: store.OptionalWord(p.OsVersion),
		ClientVersion: store.OptionalWord(p.ClientVersion), AppVersion: store.OptionalWord(p.AppVersion),
		Country: store.OptionalWord(p.Country), Network: store.OptionalWord(p.Network),
		Fabrics: p.Fabrics, FabricsFailed: p.FabricsFailed,
		AudioMOS: distribution(p.AudioMos), VideoScore: distribution(p.VideoScore),
		LossIn: distribution(p.LossIn), LossOut: distribution(p.LossOut),
		JitterInMs: distribution(p.JitterInMs), JitterOutMs: distribution(p.JitterOutMs), RTTMs: distribution(p.RttMs),
		BitrateInKbps: distribution(p.BitrateInKbps), BitrateOutKbps: distribution(p.BitrateOutKbps),
		TalkMs: p.TalkMs, MutedMs: p.MutedMs, PausedMs: p.PausedMs, SharedMs: p.SharedMs, DominantMs: p.DominantMs,
		FeedbackOverall:  p.FeedbackOverall,
		FindingsEvidence: optionalText(p.FindingsEvidenceJson),
		Findings:         words(p.Findings),
		Models:           h.models,
		Provenance:       h.provenance, ConferenceStartedAt: h.conferenceStartedAt, Source: h.source,
	}
	if row.JoinedAt, err = timeOf("joined_at_ms", float64(p.JoinedAtMs)); err != nil {
		return err
	}
	if row.LeftAt, err = optionalTime("left_at_ms", p.LeftAtMs); err != nil {
		return err
	}
	for _, ms := range p.IntervalJoinedAtMs {
		t, err := timeOf("interval_joined_at_ms", float64(ms))
		if err != nil {
			return err
		}
		row.PresenceJoinedAt = append(row.PresenceJoinedAt, t)
	}
	for _, ms := range p.IntervalLeftAtMs {
		var left *int64
		if ms != 0 {
			left = &ms
		}
		t, err := optionalTime("interval_left_at_ms", left)
		if err != nil {
			return err
		}
		row.PresenceLeftAt = append(row.PresenceLeftAt, t)
	}
	b.participants.add(d.record, row)
	if p.UserName != "" {
		b.participantNames.add(d.record, store.ParticipantNameRow{
			ConferenceKey: h.conference, ParticipantUID: h.participant.ParticipantUID, UserName: p.UserName, Revision: s.Revision,
			RecordUID: h.provenance.RecordUID, ConferenceStartedAt: h.conferenceStartedAt, Source: h.source,
		})
	}
	return nil
}
