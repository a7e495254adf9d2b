package sink

import (
	"github.com/callscope/callscope/internal/store"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

func (b *blocks) addSample(d decoded, e *callscopev1.Enriched, s *callscopev1.StreamSample) error {
	h, err := headOf(e)
	if err != nil {
		return err
	}
	b.samples.add(d.record, store.SampleRow{
		ConferenceRef: h.conference, ParticipantRef: h.participant, FabricRef: h.fabric, Time: h.time, ReceivedAt: h.receivedAt,
		IntervalMs: s.IntervalMs, SSRC: s.Ssrc, Direction: directionOf(s.Direction), MediaType: store.OptionalWord(s.MediaType),
		OwnerUserID: optionalText(s.OwnerUserId), OwnerSource: ownerSourceOf(s.OwnerSource),
		UsageLabel: store.OptionalWord(s.UsageLabel), Codec: store.OptionalWord(s.Codec),
		BitrateKbps: s.BitrateKbps, Bytes: s.Bytes,
		Packets: s.Packets, PacketRate: s.PacketRate, PacketsLost: s.PacketsLost, Loss: s.Loss,
		JitterMs: s.JitterMs, RTTMs: s.RttMs, JitterBufferDelayMs: s.JitterBufferDelayMs,
		FrameRate: s.FrameRate, FrameWidth: s.FrameWidth, FrameHeight: s.FrameHeight,
		FreezeMs: s.FreezeMs, FreezeCount: s.FreezeCount,
		Concealment: s.Concealment, ConcealmentEvents: s.ConcealmentEvents,
		SamplesReceived: s.SamplesReceived, ConcealedSamples: s.ConcealedSamples,
		AudioLevel: s.AudioLevel, Silence: silenceOf(s.Silence),
		AudioMOS: s.AudioMos, AudioDelayPenalty: s.AudioDelayPenalty, AudioLossPenalty: s.AudioLossPenalty,
		QualityLimitationReason: store.OptionalWord(s.QualityLimitationReason),
		QualityLimitedCPUMs:     s.QualityLimitedCpuMs, QualityLimitedBandwidthMs: s.QualityLimitedBandwidthMs,
		SourceFrameRate: s.SourceFrameRate, SourceFrameHeight: s.SourceFrameHeight,
		Reset:     s.Reset_,
		RecordKey: h.key, Source: d.source,
	})
	return nil
}

func (b *blocks) addFabricSample(d decoded, e *callscopev1.Enriched, s *callscopev1.FabricSample) error {
	h, err := headOf(e)
	if err != nil {
		return err
	}
	b.fabricSamples.add(d.record, store.FabricSampleRow{
		ConferenceRef: h.conference, ParticipantRef: h.participant, FabricRef: h.fabric, Time: h.time, ReceivedAt: h.receivedAt,
		IntervalMs: s.IntervalMs, RTTMs: s.RttMs,
		AvailableOutgoingKbps: s.AvailableOutgoingKbps, AvailableIncomingKbps: s.AvailableIncomingKbps,
		BytesSent: s.BytesSent, BytesReceived: s.BytesReceived, Relayed: s.Relayed,
		LocalCandidateType:  store.OptionalWord(s.LocalCandidateType),
		RemoteCandidateType: store.OptionalWord(s.RemoteCandidateType),
		Protocol:            store.OptionalWord(s.Protocol), NetworkType: store.OptionalWord(s.NetworkType),
		BatteryLevel: s.BatteryLevel,
		RecordKey:    h.key, Source: d.source,
	})
	return nil
}
