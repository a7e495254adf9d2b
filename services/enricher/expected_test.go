package enricher

import (
	"cmp"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// The types below are those of test/expected.

type expectation struct {
	Conferences []expConference `json:"conferences"`
	Events      map[string]int  `json:"events"`
	Stats       struct {
		Messages int `json:"messages"`
		Inbound  int `json:"inbound_rtp"`
		Outbound int `json:"outbound_rtp"`
		Distinct int `json:"distinct_streams"`
	} `json:"stats"`
	Streams    []expStream   `json:"streams"`
	Feedback   []expFeedback `json:"feedback"`
	Failures   []expFailure  `json:"failures"`
	Precall    int           `json:"precall_without_conference"`
	Duplicates int           `json:"duplicates_dropped"`
	Orphans    int           `json:"orphans"`
}

type expConference struct {
	ConferenceID string           `json:"conference_id"`
	StartedT     int64            `json:"started_t"`
	EndedT       int64            `json:"ended_t"`
	Reopened     int              `json:"reopened"`
	Amended      int              `json:"amended"`
	Participants []expParticipant `json:"participants"`
	Fabrics      []expFabric      `json:"fabrics"`
}

type expParticipant struct {
	User, Device string
	Joins        int
	Intervals    []expInterval
}

type expInterval struct {
	JoinedT    int64  `json:"joined_t"`
	LeftT      int64  `json:"left_t"`
	LeftReason string `json:"left_reason"`
}

type expFabric struct {
	User            string   `json:"user"`
	Remote          string   `json:"remote"`
	ConnectionID    string   `json:"connection_id"`
	Outcome         string   `json:"outcome"`
	SetupDelay      *float64 `json:"setup_delay_ms"`
	DelaySource     string   `json:"delay_source"`
	GatheringDelay  *float64 `json:"ice_gathering_delay_ms"`
	Connectivity    *float64 `json:"ice_connectivity_delay_ms"`
	FailureFunction string   `json:"failure_function"`
	FailureReason   string   `json:"failure_reason"`
	FailureDelay    *float64 `json:"failure_delay_ms"`
	Disruptions     uint32   `json:"disruptions"`
	StartedT        int64    `json:"started_t"`
	EndedT          int64    `json:"ended_t"`
	EndReason       string   `json:"end_reason"`
	Computed        *float64 `json:"computed_for_comparison_ms"`
}

type expStream struct {
	User         string `json:"user"`
	ConnectionID string `json:"connection_id"`
	Direction    string `json:"direction"`
	SSRC         string `json:"ssrc"`
	Owner        string `json:"owner"`
	OwnerSource  string `json:"owner_source"`
	UsageLabel   string `json:"usage_label"`
	Reports      int    `json:"reports"`
}

type expFeedback struct {
	User    string   `json:"user"`
	Overall *float64 `json:"overall"`
	Audio   *float64 `json:"audio"`
	Video   *float64 `json:"video"`
	Screen  *float64 `json:"screen"`
	Comment string   `json:"comment"`
}

type expFailure struct {
	User         string   `json:"user"`
	ConnectionID string   `json:"connection_id"`
	Function     string   `json:"function"`
	Reason       string   `json:"reason"`
	IsLog        bool     `json:"is_log"`
	Message      string   `json:"message"`
	Name         string   `json:"name"`
	Delay        *float64 `json:"delay_ms"`
}

func readExpected(t *testing.T, name string) expectation {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(expected, name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var e expectation
	if err := json.Unmarshal(data, &e); err != nil {
		t.Fatal(err)
	}
	return e
}

// found makes of the outputs what test/expected holds, by the newest facts.
func found(outputs []*callscopev1.Enriched, counts Counts) expectation {
	f := expectation{Events: map[string]int{}}
	f.Duplicates = int(counts.DuplicateRecords + counts.DuplicateSequences + counts.DuplicateContents)
	f.Orphans = int(counts.Orphans)
	conferences := newest(outputs, func(e *callscopev1.Enriched) ([]byte, *callscopev1.ConferenceFacts) {
		return e.Identity.GetConferenceUid(), e.GetConference()
	})
	participants := newest(outputs, func(e *callscopev1.Enriched) ([]byte, *callscopev1.ParticipantFacts) {
		return e.Identity.GetParticipantUid(), e.GetParticipant()
	})
	fabrics := newest(outputs, func(e *callscopev1.Enriched) ([]byte, *callscopev1.FabricFacts) {
		return e.Identity.GetFabricUid(), e.GetFabric()
	})
	amended := map[string]int{}
	for _, e := range outputs {
		if c := e.GetConference(); c != nil && (c.RevisionReason == revisionFeedback || c.RevisionReason == revisionLate) {
			if c.State == callscopev1.ConferenceState_CONFERENCE_STATE_ENDED {
				amended[string(e.Identity.ConferenceUid)]++
			}
		}
	}
	for _, c := range conferences {
		conference := expConference{
			ConferenceID: c.e.Identity.ConferenceId, StartedT: c.facts.StartedAtMs - captureBaseMs,
			EndedT: c.facts.GetEndedAtMs() - captureBaseMs, Reopened: int(c.facts.Reopened),
			Amended: amended[string(c.e.Identity.ConferenceUid)],
		}
		for _, p := range participants {
			if !slices.Equal(p.e.Identity.ConferenceUid, c.e.Identity.ConferenceUid) {
				continue
			}
			participant := expParticipant{User: p.e.Identity.UserId, Device: p.e.Identity.DeviceId, Joins: int(p.facts.Joins)}
			for _, interval := range p.facts.Intervals {
				participant.Intervals = append(participant.Intervals, expInterval{
					JoinedT: interval.JoinedAtMs - captureBaseMs, LeftT: interval.GetLeftAtMs() - captureBaseMs, LeftReason: interval.LeftReason,
				})
			}
			conference.Participants = append(conference.Participants, participant)
		}
		for _, fabric := range fabrics {
			if !slices.Equal(fabric.e.Identity.ConferenceUid, c.e.Identity.ConferenceUid) {
				continue
			}
			conference.Fabrics = append(conference.Fabrics, expFabric{
				User: fabric.e.Identity.UserId, Remote: fabric.e.Identity.RemoteId, ConnectionID: fabric.e.Identity.ConnectionId,
				Outcome:    strings.ToLower(strings.TrimPrefix(fabric.facts.Outcome.String(), "FABRIC_OUTCOME_")),
				SetupDelay: fabric.facts.SetupDelayMs, DelaySource: fabric.facts.DelaySource, GatheringDelay: fabric.facts.IceGatheringDelayMs,
				Connectivity: fabric.facts.IceConnectivityDelayMs, FailureFunction: fabric.facts.FailureFunction,
				FailureReason: fabric.facts.FailureReason, FailureDelay: fabric.facts.FailureDelayMs, Disruptions: fabric.facts.Disruptions,
				StartedT: fabric.facts.StartedAtMs - captureBaseMs, EndedT: fabric.facts.GetEndedAtMs() - captureBaseMs,
				EndReason: fabric.facts.EndReason,
			})
		}
		f.Conferences = append(f.Conferences, conference)
	}
	samples := map[string]int{}
	for _, e := range outputs {
		switch body := e.Body.(type) {
		case *callscopev1.Enriched_Event:
			addEvent(&f, e, body.Event)
		case *callscopev1.Enriched_StatsReceived:
			f.Stats.Messages++
		case *callscopev1.Enriched_StreamSample:
			if body.StreamSample.Direction == callscopev1.Direction_DIRECTION_INBOUND {
				f.Stats.Inbound++
			} else {
				f.Stats.Outbound++
			}
			samples[streamName(e, body.StreamSample.Ssrc, body.StreamSample.Direction)]++
		}
	}
	streams := map[string]expStream{}
	var order []string
	for _, e := range outputs {
		s := e.GetStream()
		if s == nil {
			continue
		}
		name := streamName(e, s.Ssrc, s.Direction)
		if _, known := streams[name]; !known {
			order = append(order, name)
		}
		source := map[callscopev1.OwnerSource]string{
			callscopev1.OwnerSource_OWNER_SOURCE_DEFAULT: "default", callscopev1.OwnerSource_OWNER_SOURCE_ASSOCIATION: "association",
			callscopev1.OwnerSource_OWNER_SOURCE_SSRC_MAP: "ssrcMap", callscopev1.OwnerSource_OWNER_SOURCE_UNKNOWN: "unknown",
		}[s.OwnerSource]
		streams[name] = expStream{
			User: e.Identity.UserId, ConnectionID: e.Identity.ConnectionId, SSRC: s.Ssrc, Owner: s.OwnerUserId, OwnerSource: source,
			Direction:  strings.ToLower(strings.TrimPrefix(s.Direction.String(), "DIRECTION_")),
			UsageLabel: s.UsageLabel, Reports: samples[name],
		}
	}
	for _, name := range order {
		f.Streams = append(f.Streams, streams[name])
	}
	f.Stats.Distinct = len(samples)
	return f
}

func addEvent(f *expectation, e *callscopev1.Enriched, event *callscopev1.Event) {
	if e.Identity.ConferenceId == "" {
		f.Precall++
		return
	}
	name := event.EventType
	if event.OriginalType != "" {
		name = event.OriginalType
	}
	f.Events[name]++
	if feedback := event.Feedback; feedback != nil {
		f.Feedback = append(f.Feedback, expFeedback{
			User: e.Identity.UserId, Overall: feedback.Overall, Audio: feedback.Audio, Video: feedback.Video,
			Screen: feedback.Screen, Comment: feedback.Comment,
		})
	}
	if failure := event.Failure; failure != nil {
		f.Failures = append(f.Failures, expFailure{
			User: e.Identity.UserId, ConnectionID: e.Identity.ConnectionId, Function: failure.Function, Reason: failure.Reason,
			IsLog: failure.IsLog, Message: failure.Message, Name: failure.Name, Delay: failure.DelayMs,
		})
	}
}

func streamName(e *callscopev1.Enriched, ssrc string, direction callscopev1.Direction) string {
	return string(e.Identity.FabricUid) + ssrc + direction.String()
}

type fact[F any] struct {
	e     *callscopev1.Enriched
	facts *F
}

// newest returns the last facts of every entity, in the order of the first.
func newest[F any](outputs []*callscopev1.Enriched, get func(*callscopev1.Enriched) ([]byte, *F)) []fact[F] {
	var list []fact[F]
	index := map[string]int{}
	for _, e := range outputs {
		uid, facts := get(e)
		if facts == nil {
			continue
		}
		if i, known := index[string(uid)]; known {
			list[i] = fact[F]{e, facts}
			continue
		}
		index[string(uid)] = len(list)
		list = append(list, fact[F]{e, facts})
	}
	return list
}

// play runs a recording through a machine until everything is forgotten.
func play(t *testing.T, messages []timedRaw) *partition {
	t.Helper()
	p := newPartition(t)
	for _, message := range messages {
		p.until(message.t)
		p.send(message.raw)
	}
	p.wait(420_000)
	if p.m.WantsTicks() {
		t.Error("7 min after the last message the machine still waits for time to pass")
	}
	return p
}

func TestRecordingsGiveWhatIsExpected(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(expected, "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no expectations found: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			want := readExpected(t, name)
			p := play(t, readCapture(t, name))
			got := found(p.outputs, p.m.Counts())
			for i := range want.Conferences {
				for j := range want.Conferences[i].Fabrics {
					want.Conferences[i].Fabrics[j].Computed = nil
				}
			}
			if want.Events == nil {
				want.Events = map[string]int{}
			}
			byName := func(a, b expStream) int {
				return cmp.Or(cmp.Compare(a.ConnectionID, b.ConnectionID), cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.SSRC, b.SSRC))
			}
			slices.SortFunc(want.Streams, byName)
			slices.SortFunc(got.Streams, byName)
			if diff := gocmp.Diff(want, got, emptyIsNil()); diff != "" {
				t.Errorf("expected (-) and found (+):\n%s", diff)
			}
			if diff := gocmp.Diff(want.Streams, got.Streams, emptyIsNil()); diff != "" {
				t.Errorf("streams expected (-) and found (+):\n%s", diff)
			}
		})
	}
}

func emptyIsNil() gocmp.Option {
	return gocmp.FilterValues(func(a, b any) bool { return isEmptyList(a) && isEmptyList(b) }, gocmp.Ignore())
}

func isEmptyList(v any) bool {
	switch v := v.(type) {
	case []expConference:
		return len(v) == 0
	case []expStream:
		return len(v) == 0
	case []expFeedback:
		return len(v) == 0
	case []expFailure:
		return len(v) == 0
	case []expFabric:
		return len(v) == 0
	case []expParticipant:
		return len(v) == 0
	default:
		return false
	}
}
