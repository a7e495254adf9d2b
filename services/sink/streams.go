package sink

import (
	"github.com/callscope/callscope/internal/store"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

func (b *blocks) addStream(d decoded, s *callscopev1.Summary, m *callscopev1.StreamSummary) error {
	h, err := summaryHeadOf(d, s, ofFabric)
	if err != nil {
		return err
	}
	if m.Ssrc == "" {
		return bad("no_ssrc", "stream summary without an SSRC")
	}
	row := store.StreamRow{
		ConferenceKey: h.conference, ParticipantKey: h.participant, FabricKey: h.fabric, Revision: h.revision,
		SSRC: m.Ssrc, Direction: store.Word(m.Direction), MediaType: store.OptionalWord(m.MediaType),
		OwnerUserID: optionalText(m.OwnerUserId), OwnerSource: store.OptionalWord(m.OwnerSource),
		UsageLabel: store.OptionalWord(m.UsageLabel), Codec: store.OptionalWord(m.Codec),
		Samples:     m.Samples,
		BitrateKbps: distribution(m.BitrateKbps), Loss: distribution(m.Loss), JitterMs: distribution(m.JitterMs),
		RTTMs: distribution(m.RttMs), AudioMOS: distribution(m.AudioMos), VideoScore: distribution(m.VideoScore),
		Models: h.models, ScoreReasons: optionalText(m.ScoreReasonsJson),
		Side: store.OptionalWord(m.Side), SideEvidence: optionalText(m.SideEvidenceJson),
		Provenance: h.provenance, ConferenceStartedAt: h.conferenceStartedAt, Source: h.source,
	}
	if row.StartedAt, err = timeOf("started_at_ms", float64(m.StartedAtMs)); err != nil {
		return err
	}
	if row.EndedAt, err = optionalTime("ended_at_ms", m.EndedAtMs); err != nil {
		return err
	}
	b.streams.add(d.record, row)
	return nil
}
