package sink

import (
	"encoding/hex"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// filler sets every field of a message to a value that no other field has.
type filler struct{ n int }

const someTime = 1_700_000_000_000

func (f *filler) fill(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if field.ContainingOneof() != nil && !field.HasOptionalKeyword() {
			continue // the caller has chosen the body
		}
		if field.IsList() {
			list := m.Mutable(field).List()
			for range 2 {
				list.Append(f.value(field))
			}
			continue
		}
		if field.Kind() == protoreflect.MessageKind {
			f.fill(m.Mutable(field).Message())
			continue
		}
		m.Set(field, f.value(field))
	}
}

func (f *filler) value(field protoreflect.FieldDescriptor) protoreflect.Value {
	f.n++
	name := string(field.Name())
	isTime := strings.HasSuffix(name, "_at_ms") || strings.HasSuffix(name, "timestamp_ms") || name == "time_ms" || name == "client_time_ms"
	switch field.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(fmt.Sprintf("%s-%d", name, f.n))
	case protoreflect.BytesKind:
		u := uuid.UUID{15: byte(f.n)}
		return protoreflect.ValueOfBytes(u[:])
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.DoubleKind:
		if isTime {
			return protoreflect.ValueOfFloat64(float64(someTime + f.n))
		}
		return protoreflect.ValueOfFloat64(float64(f.n) + 0.5)
	case protoreflect.Int64Kind:
		if isTime {
			return protoreflect.ValueOfInt64(int64(someTime + f.n))
		}
		return protoreflect.ValueOfInt64(int64(f.n))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(f.n))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(2)
	}
	panic(field.FullName())
}

// flatMessage gives the values of a message by path ("audio_mos.p10"), as text.
func flatMessage(all map[string]string, prefix string, m protoreflect.Message) {
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		path := prefix + string(field.Name())
		switch {
		case field.IsList():
			var parts []string
			for i := range v.List().Len() {
				parts = append(parts, fmt.Sprint(v.List().Get(i).Interface()))
			}
			all[path] = strings.Join(parts, ",")
		case field.Kind() == protoreflect.MessageKind:
			flatMessage(all, path+".", v.Message())
		case field.Kind() == protoreflect.DoubleKind:
			all[path] = strconv.FormatFloat(v.Float(), 'f', -1, 64)
		case field.Kind() == protoreflect.BytesKind:
			all[path] = hex.EncodeToString(v.Bytes())
		default:
			all[path] = fmt.Sprint(v.Interface())
		}
		return true
	})
}

// flatRow gives the columns of a row, as text.
func flatRow(all map[string]string, prefix string, row reflect.Value) {
	for i := range row.NumField() {
		field, v := row.Type().Field(i), row.Field(i)
		name := prefix + field.Tag.Get("ch")
		if field.Anonymous || v.Type() == reflect.TypeFor[store.Distribution]() {
			flatRow(all, name, v)
			continue
		}
		all[name] = flatValue(v)
	}
}

func flatValue(v reflect.Value) string {
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return "NULL"
		}
		v = v.Elem()
	}
	if u, ok := v.Interface().(uuid.UUID); ok {
		return hex.EncodeToString(u[:])
	}
	if v.Kind() == reflect.Slice {
		var parts []string
		for i := range v.Len() {
			parts = append(parts, flatValue(v.Index(i)))
		}
		return strings.Join(parts, ",")
	}
	return fmt.Sprint(v.Interface())
}

// sourceColumns are not from the message.
var sourceColumns = map[string]string{
	"src_topic": stream.TopicEnriched, "src_partition": "3", "src_offset": "77", "src_range_start": "70", "is_deleted": "0",
}

// TestEveryColumnComesFromItsField fills whole messages with different values and expects each column to hold that of
// the field that has its name, or the field that the table below names for it.
func TestEveryColumnComesFromItsField(t *testing.T) {
	distributions := func(names ...string) map[string]string {
		m := make(map[string]string)
		for _, name := range names {
			for column, field := range map[string]string{"": "mean", "_min": "min", "_p10": "p10", "_median": "median", "_p90": "p90", "_max": "max", "_share_below": "share_below"} {
				m[name+column] = "body." + name + "." + field
			}
		}
		return m
	}
	with := func(base map[string]string, more ...string) map[string]string {
		for i := 0; i < len(more); i += 2 {
			base[more[i]] = more[i+1]
		}
		return base
	}
	enriched := func(body func(*callscopev1.Enriched)) func() proto.Message {
		return func() proto.Message { e := &callscopev1.Enriched{}; body(e); return e }
	}
	summary := func(body func(*callscopev1.Summary)) func() proto.Message {
		return func() proto.Message { s := &callscopev1.Summary{}; body(s); return s }
	}
	event := enriched(func(e *callscopev1.Enriched) {
		e.Body = &callscopev1.Enriched_Event{Event: &callscopev1.Event{}}
	})
	participant := summary(func(s *callscopev1.Summary) {
		s.Body = &callscopev1.Summary_Participant{Participant: &callscopev1.ParticipantSummary{}}
	})
	// A column's field is looked for in the body, the identity and the record, with _ms and _json added, unless it is
	// named here. "=text" is a constant.
	for _, test := range []struct {
		name    string
		message func() proto.Message
		rows    func(*blocks) tableRows
		fields  map[string]string
	}{
		{"event", event, func(b *blocks) tableRows { return &b.events }, map[string]string{"data": "body.data_json"}},
		{"feedback", event, func(b *blocks) tableRows { return &b.feedback }, map[string]string{
			"overall": "body.feedback.overall", "audio": "body.feedback.audio", "video": "body.feedback.video", "screen": "body.feedback.screen", "comment": "body.feedback.comment"}},
		{"failure", event, func(b *blocks) tableRows { return &b.failures }, map[string]string{
			"function": "body.failure.function", "reason": "body.failure.reason", "delay_ms": "body.failure.delay_ms", "name": "body.failure.name",
			"message": "body.failure.message", "stack": "body.failure.stack", "is_log": "body.failure.is_log", "truncated": "body.failure.truncated",
			"local_sdp": "body.failure.local_sdp", "remote_sdp": "body.failure.remote_sdp"}},
		{"sample", enriched(func(e *callscopev1.Enriched) {
			e.Body = &callscopev1.Enriched_StreamSample{StreamSample: &callscopev1.StreamSample{}}
		}), func(b *blocks) tableRows { return &b.samples }, map[string]string{"direction": "=outbound", "owner_source": "=association", "silence": "=paused"}},
		{"fabric sample", enriched(func(e *callscopev1.Enriched) {
			e.Body = &callscopev1.Enriched_FabricSample{FabricSample: &callscopev1.FabricSample{}}
		}), func(b *blocks) tableRows { return &b.fabricSamples }, nil},
		{"pre-call test", enriched(func(e *callscopev1.Enriched) {
			e.Body = &callscopev1.Enriched_PreCallTest{PreCallTest: &callscopev1.PreCallTest{}}
		}), func(b *blocks) tableRows { return &b.precallTests }, map[string]string{
			"test_id": "body.results.id", "started_at": "body.results.start_timestamp_ms", "ended_at": "body.results.end_timestamp_ms",
			"status": "body.results.status", "test_version": "body.results.version", "provider": "body.results.provider",
			"run_manually": "body.results.run_manually", "run_by_user": "body.results.run_by_user", "media_connectivity": "body.results.media_connectivity",
			"rtt_median_ms": "body.results.rtt_median_ms", "rtt_average_ms": "body.results.rtt_average_ms", "fraction_lost": "body.results.fraction_lost",
			"throughput_kbps": "body.results.throughput_kbps", "results": "body.results.results_json",
			"endpoint_type": "body.endpoint.type", "browser": "body.endpoint.build_name", "browser_version": "body.endpoint.build_version",
			"os": "body.endpoint.os", "os_version": "body.endpoint.os_version", "app_version": "body.endpoint.app_version"}},
		{"conference", summary(func(s *callscopev1.Summary) {
			s.Body = &callscopev1.Summary_Conference{Conference: &callscopev1.ConferenceSummary{}}
		}), func(b *blocks) tableRows { return &b.conferences }, with(distributions("audio_mos", "video_score"),
			"started_at", "conference_started_at_ms", "outcome_evidence", "body.outcome_evidence_json")},
		{"participant", participant, func(b *blocks) tableRows { return &b.participants }, with(distributions("audio_mos", "video_score", "loss_in", "loss_out", "jitter_in_ms", "jitter_out_ms", "rtt_ms", "bitrate_in_kbps", "bitrate_out_kbps"),
			"presence_joined_at", "body.interval_joined_at_ms", "presence_left_at", "body.interval_left_at_ms", "findings_evidence", "body.findings_evidence_json")},
		{"name", participant, func(b *blocks) tableRows { return &b.participantNames }, nil},
		{"fabric", summary(func(s *callscopev1.Summary) {
			s.Body = &callscopev1.Summary_Fabric{Fabric: &callscopev1.FabricSummary{}}
		}), func(b *blocks) tableRows { return &b.fabrics }, map[string]string{
			"rtt_ms": "body.rtt.mean", "rtt_ms_min": "body.rtt.min", "rtt_ms_p10": "body.rtt.p10", "rtt_ms_median": "body.rtt.median",
			"rtt_ms_p90": "body.rtt.p90", "rtt_ms_max": "body.rtt.max", "rtt_ms_share_below": "body.rtt.share_below"}},
		{"stream", summary(func(s *callscopev1.Summary) {
			s.Body = &callscopev1.Summary_Stream{Stream: &callscopev1.StreamSummary{}}
		}), func(b *blocks) tableRows { return &b.streams },
			distributions("bitrate_kbps", "loss", "jitter_ms", "rtt_ms", "audio_mos", "video_score")},
	} {
		t.Run(test.name, func(t *testing.T) {
			message := test.message()
			f := &filler{}
			m := message.ProtoReflect()
			f.fill(m)
			body := m.Descriptor().Oneofs().ByName("body")
			bodyField := m.WhichOneof(body)
			f.fill(m.Mutable(bodyField).Message())
			topic := stream.TopicEnriched
			if _, ok := message.(*callscopev1.Summary); ok {
				topic = stream.TopicSummaries
			}
			value, err := proto.Marshal(message)
			if err != nil {
				t.Fatal(err)
			}
			var b blocks
			if _, err := b.decode(nil, stream.Record{Topic: topic, Partition: 3, Offset: 77, Value: value}, 0, 70); err != nil {
				t.Fatal(err)
			}
			rows := test.rows(&b)
			if rows.len() != 1 {
				t.Fatalf("%d rows, want 1", rows.len())
			}
			have := make(map[string]string)
			flatMessage(have, "", m)
			for path, v := range have { // the body's fields under one name
				if rest, ok := strings.CutPrefix(path, string(bodyField.Name())+"."); ok {
					have["body."+rest] = v
				}
			}
			got := make(map[string]string)
			flatRow(got, "", reflect.ValueOf(rows.slice(0, 1)).Index(0))
			want := make(map[string]string)
			for column := range got {
				want[column] = wantColumn(t, column, topic, test.fields, have)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("columns (-want +got):\n%s", diff)
			}
			everywhere := make(map[string]bool)
			for _, table := range b.tables() {
				for i := range table.len() {
					all := make(map[string]string)
					flatRow(all, "", reflect.ValueOf(table.slice(i, i+1)).Index(0))
					for _, v := range all {
						everywhere[v] = true
					}
				}
			}
			for path, v := range have {
				if !strings.HasPrefix(path, string(bodyField.Name())+".") && !everywhere[v] && !slices.ContainsFunc(withoutColumn, func(re string) bool { return regexp.MustCompile("^(?:" + re + ")$").MatchString(path) }) {
					t.Errorf("the field %s arrives in no column", path)
				}
			}
		})
	}
}

// withoutColumn are the fields that no row holds, and why.
var withoutColumn = []string{
	`origin\..*|prev\..*`, // the sink's check, of no use later
	`alive_ms`,            // stored nowhere
	`client_time_ms`,      // of samples and tests; events have it
	`entity_uid`,          // a row has the uids of its entities by their names
	`body\.direction|body\.owner_source|body\.silence|state`,                           // enums, compared by name above
	`identity\.(conference|participant|user|device|fabric|connection|remote)_(uid|id)`, // of what the row is not about
	`body\.started_at_ms`,                 // of a conference: conference_started_at_ms is the same
	`audio_mos_model|video_score_model`,   // of a fabric, which has no scores
	`body\.rtt_ms`,                        // of a fabric with a distribution
	`body\.results\.(user_name|login_id)`, // real names have no place beside a pre-call test
	`body\.endpoint\.user_agent`,          // in the event of the join
}

func wantColumn(t *testing.T, column, topic string, fields, have map[string]string) string {
	if v, ok := sourceColumns[column]; ok {
		if column == "src_topic" {
			return topic
		}
		return v
	}
	if path, ok := fields[column]; ok {
		if text, constant := strings.CutPrefix(path, "="); constant {
			return text
		}
		return have[path]
	}
	switch column {
	case "idx":
		return "0"
	case "record_uid":
		return have["uid"]
	case "state":
		return "final" // number 2
	case "revision_reason":
		return have["reason"]
	case "version":
		if topic == stream.TopicSummaries {
			return have["revision"]
		}
		return "0"
	case "rtt_ms_share_below":
		return have["body.rtt.share_below"]
	}
	for _, prefix := range []string{"body.", "identity.", ""} {
		for _, suffix := range []string{"", "_ms", "_json"} {
			if v, ok := have[prefix+column+suffix]; ok {
				return v
			}
		}
	}
	t.Errorf("no field has the name of column %s", column)
	return ""
}

func record(t *testing.T, topic string, m proto.Message) stream.Record {
	t.Helper()
	value, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return stream.Record{Topic: topic, Value: value}
}

func ptr[T any](v T) *T { return &v }

// TestUnknownIsNull: what a message does not say is NULL, not 0, and empty identifiers stay empty texts.
func TestUnknownIsNull(t *testing.T) {
	uid := make([]byte, 16)
	var b blocks
	for _, m := range []proto.Message{
		&callscopev1.Enriched{Uid: uid, ReceivedAtMs: someTime, Body: &callscopev1.Enriched_StreamSample{StreamSample: &callscopev1.StreamSample{Ssrc: "1", Loss: ptr(0.0)}}},
		&callscopev1.Enriched{Uid: uid, ReceivedAtMs: someTime, Body: &callscopev1.Enriched_Event{Event: &callscopev1.Event{Orphan: true}}},
	} {
		if _, err := b.decode(nil, record(t, stream.TopicEnriched, m), 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.decode(nil, record(t, stream.TopicSummaries, &callscopev1.Summary{
		Uid: uid, State: callscopev1.SummaryState_SUMMARY_STATE_PARTIAL, ConferenceStartedAtMs: someTime,
		Identity: &callscopev1.Identity{ConferenceUid: uid, ParticipantUid: uid, FabricUid: uid},
		Body:     &callscopev1.Summary_Fabric{Fabric: &callscopev1.FabricSummary{StartedAtMs: someTime, RttMs: ptr(12.5)}},
	}), 0, 0); err != nil {
		t.Fatal(err)
	}
	sample := b.samples.rows[0]
	if sample.Loss == nil || *sample.Loss != 0 || sample.JitterMs != nil || sample.ConferenceUID != nil || sample.UserID != "" || sample.OwnerUserID != nil || sample.Direction != "" {
		t.Errorf("sample %+v", sample)
	}
	if sample.Time != someTime {
		t.Errorf("without a client time the receive time counts, not %d", sample.Time)
	}
	event := b.events.rows[0]
	if event.ClientTime != nil || event.Data != "{}" || !event.Orphan || event.ConferenceUID != nil {
		t.Errorf("event %+v", event)
	}
	fabric := b.fabrics.rows[0]
	if fabric.EndedAt != nil || fabric.SetupDelayMs != nil || fabric.FailureReason != "" || fabric.Relayed != nil {
		t.Errorf("fabric %+v", fabric)
	}
	if fabric.RTTMs.Mean == nil || *fabric.RTTMs.Mean != 12.5 {
		t.Errorf("the mean without a distribution is %v", fabric.RTTMs.Mean)
	}
}

func TestPrecallAssociations(t *testing.T) {
	var b blocks
	uid := uuid.UUID{1}
	for _, data := range []string{`{"ids":["a","",7,"b"]}`, `{"ids":"a"}`, `not JSON`, `{}`} {
		_, err := b.decode(nil, record(t, stream.TopicEnriched, &callscopev1.Enriched{
			Uid: uid[:], ReceivedAtMs: someTime, Identity: &callscopev1.Identity{AppId: "1", ConferenceId: "room", ConferenceUid: uid[:]},
			Body: &callscopev1.Enriched_Event{Event: &callscopev1.Event{EventType: "preCallTestAssociate", DataJson: data}},
		}), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
	}
	type named struct {
		Test  string
		Index uint16
	}
	var got []named
	for _, r := range b.precallAssociations.rows {
		got = append(got, named{r.TestID, r.Index})
	}
	if diff := cmp.Diff([]named{{"a", 0}, {"b", 3}}, got); diff != "" {
		t.Errorf("associations (-want +got):\n%s", diff)
	}
	if len(b.events.rows) != 4 {
		t.Errorf("%d events, want 4", len(b.events.rows))
	}
}

// TestRecordsThatCannotBecomeRows gives each a reason and leaves no row behind.
// TestClientClocksLoseNoRows: where a client's clock leads to no time that can be stored, the receive time counts.
func TestClientClocksLoseNoRows(t *testing.T) {
	for name, timeMs := range map[string]float64{"none": 0, "before 1970": someTime - 9e13, "year 4822": 9e13, "no number": math.NaN(), "endless": math.Inf(1)} {
		t.Run(name, func(t *testing.T) {
			var b blocks
			e := &callscopev1.Enriched{Uid: make([]byte, 16), ReceivedAtMs: someTime, TimeMs: timeMs, ClientTimeMs: timeMs,
				Body: &callscopev1.Enriched_Event{Event: &callscopev1.Event{Feedback: &callscopev1.FeedbackGiven{}}}}
			if _, err := b.decode(nil, record(t, stream.TopicEnriched, e), 0, 0); err != nil {
				t.Fatal(err)
			}
			event, feedback := b.events.rows[0], b.feedback.rows[0]
			if event.Time != someTime || feedback.Time != someTime || event.ClientTime != nil {
				t.Errorf("the event has time %d and client time %v, the feedback %d; want %d and none", event.Time, event.ClientTime, feedback.Time, int64(someTime))
			}
		})
	}
}

func TestRecordsThatCannotBecomeRows(t *testing.T) {
	uid := make([]byte, 16)
	event := func(change func(*callscopev1.Enriched)) *callscopev1.Enriched {
		e := &callscopev1.Enriched{Uid: uid, ReceivedAtMs: someTime, TimeMs: someTime, Body: &callscopev1.Enriched_Event{Event: &callscopev1.Event{Feedback: &callscopev1.FeedbackGiven{}}}}
		change(e)
		return e
	}
	summary := func(change func(*callscopev1.Summary)) *callscopev1.Summary {
		s := &callscopev1.Summary{Uid: uid, State: callscopev1.SummaryState_SUMMARY_STATE_FINAL, ConferenceStartedAtMs: someTime,
			Identity: &callscopev1.Identity{ConferenceUid: uid, ParticipantUid: uid, FabricUid: uid},
			Body:     &callscopev1.Summary_Participant{Participant: &callscopev1.ParticipantSummary{JoinedAtMs: someTime, UserName: "Ann"}}}
		change(s)
		return s
	}
	for name, test := range map[string]struct {
		record stream.Record
		kind   string
	}{
		"no message":                   {stream.Record{Topic: stream.TopicEnriched, Value: []byte("\xff\xff")}, "undecodable"},
		"another topic":                {stream.Record{Topic: "x"}, "unknown_topic"},
		"a body of the future":         {record(t, stream.TopicEnriched, event(func(e *callscopev1.Enriched) { e.Body = nil })), "unknown_body"},
		"a short uid":                  {record(t, stream.TopicEnriched, event(func(e *callscopev1.Enriched) { e.Uid = uid[:3] })), "bad_uid"},
		"a long fabric uid":            {record(t, stream.TopicEnriched, event(func(e *callscopev1.Enriched) { e.Identity = &callscopev1.Identity{FabricUid: make([]byte, 17)} })), "bad_uid"},
		"no receive time":              {record(t, stream.TopicEnriched, event(func(e *callscopev1.Enriched) { e.ReceivedAtMs = 0 })), "bad_time"},
		"a summary of no conference":   {record(t, stream.TopicSummaries, summary(func(s *callscopev1.Summary) { s.Identity.ConferenceUid = nil })), "bad_uid"},
		"a summary of no participant":  {record(t, stream.TopicSummaries, summary(func(s *callscopev1.Summary) { s.Identity.ParticipantUid = nil })), "bad_uid"},
		"a summary without state":      {record(t, stream.TopicSummaries, summary(func(s *callscopev1.Summary) { s.State = 0 })), "unknown_state"},
		"a summary without begin":      {record(t, stream.TopicSummaries, summary(func(s *callscopev1.Summary) { s.ConferenceStartedAtMs = 0 })), "bad_time"},
		"a summary body of the future": {record(t, stream.TopicSummaries, summary(func(s *callscopev1.Summary) { s.Body = nil })), "unknown_body"},
		"a presence before 1970":       {record(t, stream.TopicSummaries, summary(func(s *callscopev1.Summary) { s.GetParticipant().IntervalJoinedAtMs = []int64{-1} })), "bad_time"},
	} {
		t.Run(name, func(t *testing.T) {
			var b blocks
			_, err := b.decode(nil, test.record, 0, 0)
			if err == nil || !strings.HasPrefix(err.Error(), test.kind+": ") {
				t.Errorf("%v, want %s", err, test.kind)
			}
			if b.rows() != 0 {
				t.Errorf("%d rows are left", b.rows())
			}
		})
	}
}

// TestBlocksCountsAllTables: a table that rows or tables forgets would lose its rows.
func TestBlocksCountsAllTables(t *testing.T) {
	var b blocks
	v := reflect.ValueOf(&b).Elem()
	if got := len(b.tables()); got != v.NumField() {
		t.Errorf("tables returns %d, there are %d", got, v.NumField())
	}
	names := make(map[string]bool)
	for _, table := range b.tables() {
		names[table.table()] = true
	}
	if len(names) != v.NumField() {
		t.Errorf("tables names %d different tables, there are %d", len(names), v.NumField())
	}
	b.conferences.add(0, store.ConferenceRow{})
	b.participants.add(0, store.ParticipantRow{})
	b.participantNames.add(0, store.ParticipantNameRow{})
	b.fabrics.add(0, store.FabricRow{})
	b.streams.add(0, store.StreamRow{})
	b.samples.add(0, store.SampleRow{})
	b.fabricSamples.add(0, store.FabricSampleRow{})
	b.events.add(0, store.EventRow{})
	b.feedback.add(0, store.FeedbackRow{})
	b.failures.add(0, store.FailureRow{})
	b.precallTests.add(0, store.PrecallTestRow{})
	b.precallAssociations.add(0, store.PrecallAssociationRow{})
	if b.rows() != v.NumField() {
		t.Errorf("rows counts %d, want %d", b.rows(), v.NumField())
	}
}

// FuzzDecode: no bytes make decode panic, and bytes that it refuses leave no rows.
func FuzzDecode(f *testing.F) {
	uid := make([]byte, 16)
	for _, m := range []proto.Message{
		&callscopev1.Enriched{Uid: uid, ReceivedAtMs: someTime, Body: &callscopev1.Enriched_Event{Event: &callscopev1.Event{EventType: "preCallTestAssociate", DataJson: `{"ids":["a"]}`}}},
		&callscopev1.Summary{Uid: uid, State: 1, Body: &callscopev1.Summary_Stream{Stream: &callscopev1.StreamSummary{}}},
	} {
		value, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		for _, topic := range []string{stream.TopicEnriched, stream.TopicSummaries} {
			var b blocks
			if _, err := b.decode(nil, stream.Record{Topic: topic, Value: value}, 0, 0); err != nil && b.rows() != 0 {
				t.Errorf("%s: refused with %v and left %d rows", topic, err, b.rows())
			}
		}
	})
}
