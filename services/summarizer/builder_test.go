package summarizer

import (
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

const (
	open      = callscopev1.ConferenceState_CONFERENCE_STATE_OPEN
	ended     = callscopev1.ConferenceState_CONFERENCE_STATE_ENDED
	forgotten = callscopev1.ConferenceState_CONFERENCE_STATE_FORGOTTEN

	pending = callscopev1.FabricOutcome_FABRIC_OUTCOME_PENDING
	setup   = callscopev1.FabricOutcome_FABRIC_OUTCOME_SETUP
	failed  = callscopev1.FabricOutcome_FABRIC_OUTCOME_FAILED
	dropped = callscopev1.FabricOutcome_FABRIC_OUTCOME_DROPPED
	aborted = callscopev1.FabricOutcome_FABRIC_OUTCOME_ABORTED

	inbound  = callscopev1.Direction_DIRECTION_INBOUND
	outbound = callscopev1.Direction_DIRECTION_OUTBOUND

	partial = callscopev1.SummaryState_SUMMARY_STATE_PARTIAL
	final   = callscopev1.SummaryState_SUMMARY_STATE_FINAL
	revised = callscopev1.SummaryState_SUMMARY_STATE_REVISED

	// begin is the received time that alive time 0 stands for.
	begin = 1_700_000_000_000
)

// log writes enriched records as an enricher would and steps a machine.
type log struct {
	t       testing.TB
	machine *Machine
	offset  int64 // of the next enriched record
	raw     int64 // of the current raw record
	origin  *callscopev1.Origin
	alive   int64
	inputs  []stage.Input
	out     []*callscopev1.Summary // of the last record
	all     []*callscopev1.Summary
}

func newLog(t testing.TB) *log { return &log{t: t, machine: NewMachine()} }

func uid(kind byte, n int64) []byte {
	id := make([]byte, 16)
	id[0] = kind
	binary.BigEndian.PutUint64(id[8:], uint64(n))
	return id
}

// name makes a uid that shows what it is of.
func name(parts ...string) []byte {
	var all [][]byte
	for _, p := range parts {
		all = append(all, []byte(p))
	}
	return stage.UID(all...)
}

type who struct{ app, room, user, device, connection, remote string }

func (w who) identity() *callscopev1.Identity {
	id := &callscopev1.Identity{AppId: w.app, ConferenceId: w.room, ConferenceUid: name(w.app, w.room)}
	if w.user != "" {
		id.UserId, id.DeviceId = w.user, w.device
		id.ParticipantUid = name(w.app, w.room, w.user, w.device)
	}
	if w.connection != "" {
		id.ConnectionId, id.RemoteId = w.connection, w.remote
		id.FabricUid = name(w.app, w.room, w.user, w.device, w.connection)
	}
	return id
}

func (l *log) received() int64 { return begin + l.alive }

// message begins another raw record; what is written until the next one comes
// from it.
func (l *log) message() { l.raw++ }

func (l *log) write(id *callscopev1.Identity, e *callscopev1.Enriched) []*callscopev1.Summary {
	l.t.Helper()
	e.Uid = uid('e', l.offset)
	e.Origin, e.Prev = &callscopev1.Origin{Offset: l.raw}, l.origin
	if l.origin != nil && l.origin.Offset == l.raw {
		e.Origin.Index = l.origin.Index + 1
	}
	l.origin = e.Origin
	e.AliveMs, e.Identity = l.alive, id
	if e.ReceivedAtMs == 0 {
		e.ReceivedAtMs = l.received()
	}
	if e.TimeMs == 0 {
		e.TimeMs = float64(l.received())
	}
	value, err := e.MarshalVT()
	if err != nil {
		l.t.Fatal(err)
	}
	in := stage.Input{Offset: l.offset, Value: value}
	l.inputs = append(l.inputs, in)
	l.offset++
	outputs, err := l.machine.Step(in)
	if err != nil {
		l.t.Fatalf("record %d: %v", in.Offset, err)
	}
	l.out = nil
	for _, o := range outputs {
		s := o.Message.(*callscopev1.Summary)
		if want := s.Identity.AppId + "\x00" + s.Identity.ConferenceId; string(o.Key) != want {
			l.t.Fatalf("record %d: key %q, want %q", in.Offset, o.Key, want)
		}
		l.out = append(l.out, s)
	}
	l.all = append(l.all, l.out...)
	return l.out
}

func (l *log) conference(w who, facts *callscopev1.ConferenceFacts) []*callscopev1.Summary {
	l.t.Helper()
	return l.write(who{app: w.app, room: w.room}.identity(), &callscopev1.Enriched{Body: &callscopev1.Enriched_Conference{Conference: facts}})
}

func (l *log) participant(w who, facts *callscopev1.ParticipantFacts) []*callscopev1.Summary {
	l.t.Helper()
	w.connection = ""
	return l.write(w.identity(), &callscopev1.Enriched{Body: &callscopev1.Enriched_Participant{Participant: facts}})
}

func (l *log) fabric(w who, facts *callscopev1.FabricFacts) []*callscopev1.Summary {
	l.t.Helper()
	return l.write(w.identity(), &callscopev1.Enriched{Body: &callscopev1.Enriched_Fabric{Fabric: facts}})
}

func (l *log) stream(w who, facts *callscopev1.StreamFacts) []*callscopev1.Summary {
	l.t.Helper()
	return l.write(w.identity(), &callscopev1.Enriched{Body: &callscopev1.Enriched_Stream{Stream: facts}})
}

func (l *log) sample(w who, s *callscopev1.StreamSample) []*callscopev1.Summary {
	l.t.Helper()
	return l.write(w.identity(), &callscopev1.Enriched{Body: &callscopev1.Enriched_StreamSample{StreamSample: s}})
}

func (l *log) path(w who, s *callscopev1.FabricSample) []*callscopev1.Summary {
	l.t.Helper()
	return l.write(w.identity(), &callscopev1.Enriched{Body: &callscopev1.Enriched_FabricSample{FabricSample: s}})
}

func (l *log) event(w who, ev *callscopev1.Event) []*callscopev1.Summary {
	l.t.Helper()
	ev.Reported = true
	return l.write(w.identity(), &callscopev1.Enriched{Body: &callscopev1.Enriched_Event{Event: ev}})
}

func (l *log) stats(w who) []*callscopev1.Summary {
	l.t.Helper()
	return l.write(w.identity(), &callscopev1.Enriched{Body: &callscopev1.Enriched_StatsReceived{StatsReceived: &callscopev1.StatsReceived{}}})
}

func (l *log) feedback(w who, overall float64) []*callscopev1.Summary {
	l.t.Helper()
	return l.event(w, &callscopev1.Event{EventType: "userFeedbackEvent", Feedback: &callscopev1.FeedbackGiven{Overall: &overall}})
}

// tick lets alive time pass and writes the time record.
func (l *log) tick(ms int64) []*callscopev1.Summary {
	l.t.Helper()
	l.message()
	l.alive += ms
	return l.write(nil, &callscopev1.Enriched{Body: &callscopev1.Enriched_TimePassed{TimePassed: &callscopev1.TimePassed{WallMs: l.received()}}})
}

// ticks lets time pass second by second and returns all that was written.
func (l *log) ticks(seconds int) []*callscopev1.Summary {
	l.t.Helper()
	var out []*callscopev1.Summary
	for range seconds {
		out = append(out, l.tick(1000)...)
	}
	return out
}

// present is the facts of a participant who joined at the given alive times
// and left at the others; the last one is still there where one is missing.
func present(times ...int64) *callscopev1.ParticipantFacts {
	facts := &callscopev1.ParticipantFacts{Present: len(times)%2 == 1}
	for i, at := range times {
		if i%2 == 0 {
			facts.Intervals = append(facts.Intervals, &callscopev1.PresenceInterval{JoinedAtMs: begin + at})
			facts.Joins++
			continue
		}
		last := facts.Intervals[len(facts.Intervals)-1]
		last.LeftAtMs, last.LeftReason = new(begin+at), "userLeft"
		facts.LeftReason = "userLeft"
	}
	return facts
}

// brief is a summary's kind, whom it is of, state, revision and reason.
func brief(s *callscopev1.Summary) string {
	of := s.Identity.ConferenceId
	switch body := s.Body.(type) {
	case *callscopev1.Summary_Participant:
		of = s.Identity.UserId
	case *callscopev1.Summary_Fabric:
		of = s.Identity.UserId + ">" + s.Identity.RemoteId
	case *callscopev1.Summary_Stream:
		of = s.Identity.UserId + ":" + body.Stream.Ssrc
	}
	return fmt.Sprintf("%s %s %s %d %s", kindOf(s), of, stateName(s.State), s.Revision, s.Reason)
}

func briefs(summaries []*callscopev1.Summary) []string {
	var out []string
	for _, s := range summaries {
		out = append(out, brief(s))
	}
	return out
}

// notFinite returns the path of a number in the message that is NaN or
// infinite, or nothing.
func notFinite(m proto.Message) string {
	found := ""
	var walk func(path string, m protoreflect.Message)
	walk = func(path string, m protoreflect.Message) {
		m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			here := path + "." + string(f.Name())
			switch {
			case f.IsList() || f.IsMap():
			case f.Kind() == protoreflect.MessageKind:
				walk(here, v.Message())
			case f.Kind() == protoreflect.DoubleKind:
				if x := v.Float(); math.IsNaN(x) || math.IsInf(x, 0) {
					found = fmt.Sprintf("%s = %v", here, x)
				}
			}
			return found == ""
		})
	}
	walk("", m.ProtoReflect())
	return found
}
