package sink

import (
	"fmt"
	"math"

	"github.com/google/uuid"

	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// badRecord says why a record can never become rows. kind is in snake_case, one of few.
type badRecord struct{ kind, detail string }

func (e *badRecord) Error() string { return e.kind + ": " + e.detail }

func bad(kind, format string, args ...any) error {
	return &badRecord{kind, fmt.Sprintf(format, args...)}
}

// decoded is one record on its way to rows.
type decoded struct {
	record int // index in its range
	source store.Source
}

// decode adds the rows of one record to b. Its error is a *badRecord, and b is then as before. receivedMs is the
// gateway's receive time of the message behind the record, 0 where it has none.
func (b *blocks) decode(prepare Prepare, r stream.Record, record int, rangeStart int64) (receivedMs int64, err error) {
	d := decoded{record: record, source: store.Source{Topic: store.Word(r.Topic), Partition: r.Partition, Offset: r.Offset, RangeStart: rangeStart}}
	switch r.Topic {
	case stream.TopicEnriched:
		var e callscopev1.Enriched
		if err := e.UnmarshalVT(r.Value); err != nil {
			return 0, bad("undecodable", "%v", err)
		}
		if prepare != nil {
			prepare(&e)
		}
		return e.ReceivedAtMs, b.addEnriched(d, &e)
	case stream.TopicSummaries:
		var s callscopev1.Summary
		if err := s.UnmarshalVT(r.Value); err != nil {
			return 0, bad("undecodable", "%v", err)
		}
		if prepare != nil {
			prepare(&s)
		}
		return 0, b.addSummary(d, &s)
	default:
		return 0, bad("unknown_topic", "%s", r.Topic)
	}
}

func (b *blocks) addEnriched(d decoded, e *callscopev1.Enriched) error {
	switch body := e.Body.(type) {
	case *callscopev1.Enriched_Event:
		return b.addEvent(d, e, body.Event)
	case *callscopev1.Enriched_StreamSample:
		return b.addSample(d, e, body.StreamSample)
	case *callscopev1.Enriched_FabricSample:
		return b.addFabricSample(d, e, body.FabricSample)
	case *callscopev1.Enriched_PreCallTest:
		return b.addPrecallTest(d, e, body.PreCallTest)
	case *callscopev1.Enriched_TimePassed, *callscopev1.Enriched_StatsReceived:
		return nil
	case *callscopev1.Enriched_Conference, *callscopev1.Enriched_Participant, *callscopev1.Enriched_Fabric, *callscopev1.Enriched_Stream:
		return nil // the summarizer turns facts into summaries
	default:
		return bad("unknown_body", "a newer callscope may have written it")
	}
}

func (b *blocks) addSummary(d decoded, s *callscopev1.Summary) error {
	switch body := s.Body.(type) {
	case *callscopev1.Summary_Conference:
		return b.addConference(d, s, body.Conference)
	case *callscopev1.Summary_Participant:
		return b.addParticipant(d, s, body.Participant)
	case *callscopev1.Summary_Fabric:
		return b.addFabric(d, s, body.Fabric)
	case *callscopev1.Summary_Stream:
		return b.addStream(d, s, body.Stream)
	default:
		return bad("unknown_body", "a newer callscope may have written it")
	}
}

// rowHead is what all rows of an enriched record share.
type rowHead struct {
	conference       store.ConferenceRef
	participant      store.ParticipantRef
	fabric           store.FabricRef
	time, receivedAt store.Time
	key              store.RecordKey
}

func headOf(e *callscopev1.Enriched) (h rowHead, err error) {
	id := e.GetIdentity()
	if h.key.RecordUID, err = uid("record", e.Uid); err != nil {
		return h, err
	}
	h.key.LogicVersion = e.LogicVersion
	h.conference = store.ConferenceRef{AppID: id.GetAppId(), ConferenceID: id.GetConferenceId()}
	h.participant = store.ParticipantRef{UserID: id.GetUserId(), DeviceID: id.GetDeviceId()}
	h.fabric = store.FabricRef{ConnectionID: id.GetConnectionId(), RemoteID: id.GetRemoteId()}
	if h.conference.ConferenceUID, err = optionalUID("conference", id.GetConferenceUid()); err != nil {
		return h, err
	}
	if h.participant.ParticipantUID, err = optionalUID("participant", id.GetParticipantUid()); err != nil {
		return h, err
	}
	if h.fabric.FabricUID, err = optionalUID("fabric", id.GetFabricUid()); err != nil {
		return h, err
	}
	if h.receivedAt, err = timeOf("received_at_ms", float64(e.ReceivedAtMs)); err != nil {
		return h, err
	}
	// Only the client vouches for its time. One message of a clock that was wildly wrong moves those after it, too.
	if h.time, err = timeOf("time_ms", e.TimeMs); err != nil {
		h.time = h.receivedAt
	}
	return h, nil
}

// summaryHead is what all rows of a summary share.
type summaryHead struct {
	conference          store.ConferenceKey
	participant         store.ParticipantKey
	fabric              store.FabricKey
	revision            store.Revision
	models              store.Models
	provenance          store.Provenance
	source              store.Source
	conferenceStartedAt store.Time
}

var summaryStates = map[callscopev1.SummaryState]store.Word{
	callscopev1.SummaryState_SUMMARY_STATE_PARTIAL: "partial",
	callscopev1.SummaryState_SUMMARY_STATE_FINAL:   "final",
	callscopev1.SummaryState_SUMMARY_STATE_REVISED: "revised",
}

// The entities that a summary needs the uids of.
const (
	ofConference = iota
	ofParticipant
	ofFabric
)

func summaryHeadOf(d decoded, s *callscopev1.Summary, entity int) (h summaryHead, err error) {
	id := s.GetIdentity()
	h.conference = store.ConferenceKey{AppID: id.GetAppId(), ConferenceID: id.GetConferenceId()}
	if h.conference.ConferenceUID, err = uid("conference", id.GetConferenceUid()); err != nil {
		return h, err
	}
	if entity >= ofParticipant {
		h.participant = store.ParticipantKey{UserID: id.GetUserId(), DeviceID: id.GetDeviceId()}
		if h.participant.ParticipantUID, err = uid("participant", id.GetParticipantUid()); err != nil {
			return h, err
		}
	}
	if entity >= ofFabric {
		h.fabric = store.FabricKey{ConnectionID: id.GetConnectionId(), RemoteID: id.GetRemoteId()}
		if h.fabric.FabricUID, err = uid("fabric", id.GetFabricUid()); err != nil {
			return h, err
		}
	}
	state, ok := summaryStates[s.State]
	if !ok {
		return h, bad("unknown_state", "summary state %d", s.State)
	}
	h.revision = store.Revision{State: state, Revision: s.Revision, LogicVersion: s.LogicVersion, RevisionReason: store.OptionalWord(s.Reason)}
	h.models = store.Models{AudioMOSModel: store.OptionalWord(s.AudioMosModel), VideoScoreModel: store.OptionalWord(s.VideoScoreModel)}
	h.provenance = store.Provenance{FirstRawOffset: s.FirstRawOffset, LastRawOffset: s.LastRawOffset}
	if h.provenance.RecordUID, err = uid("record", s.Uid); err != nil {
		return h, err
	}
	h.source = d.source
	h.source.Version = store.SummaryVersion(0, s.Revision)
	h.conferenceStartedAt, err = timeOf("conference_started_at_ms", float64(s.ConferenceStartedAtMs))
	return h, err
}

func uid(what string, b []byte) (uuid.UUID, error) {
	u, err := uuid.FromBytes(b)
	if err != nil {
		return u, bad("bad_uid", "%s uid has %d bytes", what, len(b))
	}
	return u, nil
}

func optionalUID(what string, b []byte) (*uuid.UUID, error) {
	if len(b) == 0 {
		return nil, nil
	}
	u, err := uid(what, b)
	return &u, err
}

// maxTimeMs is 2200-01-01: ClickHouse and its driver hold times up to 2262.
const maxTimeMs = 7258118400000

// timeOf takes epoch milliseconds. 0 is no time.
func timeOf(what string, ms float64) (store.Time, error) {
	if !(ms > 0 && ms < maxTimeMs) {
		return 0, bad("bad_time", "%s is %v", what, ms)
	}
	return store.Time(math.Floor(ms)), nil
}

// optionalTime takes epoch milliseconds that may be absent.
func optionalTime(what string, ms *int64) (*store.Time, error) {
	if ms == nil {
		return nil, nil
	}
	t, err := timeOf(what, float64(*ms))
	return &t, err
}

// optionalClientTime is for times that only a client vouches for: what is no time is unknown, the row is not lost.
func optionalClientTime(ms *float64) *store.Time {
	if ms == nil {
		return nil
	}
	t, err := timeOf("", *ms)
	if err != nil {
		return nil
	}
	return &t
}

// optionalText is NULL for the empty text.
func optionalText(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func words(texts []string) []store.Word {
	var all []store.Word
	for _, text := range texts {
		all = append(all, store.Word(text))
	}
	return all
}

func distribution(d *callscopev1.Distribution) store.Distribution {
	if d == nil {
		return store.Distribution{}
	}
	return store.Distribution{Mean: d.Mean, Min: d.Min, P10: d.P10, Median: d.Median, P90: d.P90, Max: d.Max, ShareBelow: d.ShareBelow}
}

func directionOf(d callscopev1.Direction) store.OptionalWord {
	switch d {
	case callscopev1.Direction_DIRECTION_INBOUND:
		return "inbound"
	case callscopev1.Direction_DIRECTION_OUTBOUND:
		return "outbound"
	}
	return ""
}

func silenceOf(s callscopev1.Silence) store.OptionalWord {
	switch s {
	case callscopev1.Silence_SILENCE_MUTED:
		return "muted"
	case callscopev1.Silence_SILENCE_PAUSED:
		return "paused"
	case callscopev1.Silence_SILENCE_HELD:
		return "held"
	}
	return ""
}

func ownerSourceOf(s callscopev1.OwnerSource) store.OptionalWord {
	switch s {
	case callscopev1.OwnerSource_OWNER_SOURCE_DEFAULT:
		return "default"
	case callscopev1.OwnerSource_OWNER_SOURCE_ASSOCIATION:
		return "association"
	case callscopev1.OwnerSource_OWNER_SOURCE_SSRC_MAP:
		return "ssrcMap"
	case callscopev1.OwnerSource_OWNER_SOURCE_UNKNOWN:
		return "unknown"
	}
	return ""
}
