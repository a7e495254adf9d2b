package sink

import (
	"cmp"

	"github.com/callscope/callscope/internal/store"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// addEvent gives the event's row and, where the event is also a feedback, a failure or an association of pre-call
// tests, the rows of those.
func (b *blocks) addEvent(d decoded, e *callscopev1.Enriched, v *callscopev1.Event) error {
	h, err := headOf(e)
	if err != nil {
		return err
	}
	row := store.EventRow{
		ConferenceRef: h.conference, ParticipantRef: h.participant, FabricRef: h.fabric, Time: h.time, ReceivedAt: h.receivedAt,
		EventType: store.Word(v.EventType), OriginalType: store.Word(cmp.Or(v.OriginalType, v.EventType)),
		Reported: v.Reported, Orphan: v.Orphan, Truncated: v.Truncated, Data: v.DataJson,
		RecordKey: h.key, Source: d.source,
	}
	if e.ClientTimeMs != 0 {
		row.ClientTime = optionalClientTime(&e.ClientTimeMs)
	}
	if row.Data == "" {
		row.Data = "{}"
	}
	b.events.add(d.record, row)
	if f := v.Feedback; f != nil {
		b.feedback.add(d.record, store.FeedbackRow{
			ConferenceRef: h.conference, ParticipantRef: h.participant, Time: h.time, ReceivedAt: h.receivedAt,
			Overall: f.Overall, Audio: f.Audio, Video: f.Video, Screen: f.Screen, Comment: f.Comment,
			RecordKey: h.key, Source: d.source,
		})
	}
	if f := v.Failure; f != nil {
		b.failures.add(d.record, store.FailureRow{
			ConferenceRef: h.conference, ParticipantRef: h.participant, FabricRef: h.fabric, Time: h.time, ReceivedAt: h.receivedAt,
			EventType: store.Word(v.EventType),
			Function:  store.OptionalWord(f.Function), Reason: store.OptionalWord(f.Reason), DelayMs: f.DelayMs,
			Name: f.Name, Message: f.Message, Stack: f.Stack, IsLog: f.IsLog, Truncated: f.Truncated,
			LocalSDP: optionalText(f.LocalSdp), RemoteSDP: optionalText(f.RemoteSdp),
			RecordKey: h.key, Source: d.source,
		})
	}
	if v.EventType == eventPrecallAssociate {
		b.addPrecallAssociations(d, h, v.DataJson)
	}
	return nil
}
