package sink

import (
	"github.com/callscope/callscope/internal/store"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

func (b *blocks) addFabric(d decoded, s *callscopev1.Summary, f *callscopev1.FabricSummary) error {
	h, err := summaryHeadOf(d, s, ofFabric)
	if err != nil {
		return err
	}
	row := store.FabricRow{
		ConferenceKey: h.conference, ParticipantKey: h.participant, FabricKey: h.fabric, Revision: h.revision,
		EndReason: store.OptionalWord(f.EndReason),
		Usage:     store.OptionalWord(f.Usage), RemoteType: store.OptionalWord(f.RemoteType), Direction: store.OptionalWord(f.Direction),
		Outcome:      store.OptionalWord(f.Outcome),
		SetupDelayMs: f.SetupDelayMs, ICEGatheringDelayMs: f.IceGatheringDelayMs, ICEConnectivityDelayMs: f.IceConnectivityDelayMs,
		FailureDelayMs: f.FailureDelayMs, DelaySource: store.OptionalWord(f.DelaySource),
		FailureFunction: store.OptionalWord(f.FailureFunction), FailureReason: store.OptionalWord(f.FailureReason),
		Disruptions: f.Disruptions, DisruptionMs: f.DisruptionMs,
		Relayed: f.Relayed, RTTMs: distribution(f.Rtt),
		Provenance: h.provenance, ConferenceStartedAt: h.conferenceStartedAt, Source: h.source,
	}
	if row.RTTMs.Mean == nil {
		row.RTTMs.Mean = f.RttMs
	}
	if row.StartedAt, err = timeOf("started_at_ms", float64(f.StartedAtMs)); err != nil {
		return err
	}
	if row.EndedAt, err = optionalTime("ended_at_ms", f.EndedAtMs); err != nil {
		return err
	}
	b.fabrics.add(d.record, row)
	return nil
}
