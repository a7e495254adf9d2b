package summary

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// expectedConference is what other programs say of a recording.
type expectedConference struct {
	ConferenceID string `json:"conference_id"`
	StartedT     int64  `json:"started_t"`
	EndedT       *int64 `json:"ended_t"`
	Participants []struct {
		User, Device string
		Joins        uint32
		Intervals    []struct {
			JoinedT    int64  `json:"joined_t"`
			LeftT      *int64 `json:"left_t"`
			LeftReason string `json:"left_reason"`
		}
	}
	Fabrics []struct {
		User         string
		ConnectionID string `json:"connection_id"`
		Outcome      string
		SetupDelayMs *float64 `json:"setup_delay_ms"`
	}
}

// For every recording, the conference's and participants' summaries say what
// the expectations give when added up by hand.
func TestSummariesOfCapturesAgreeWithTheExpectations(t *testing.T) {
	compared := 0
	for _, file := range captures(t) {
		name := strings.TrimSuffix(filepath.Base(file), ".jsonl")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile("../expected/" + name + ".json")
			if err != nil {
				t.Fatal(err)
			}
			var expected struct{ Conferences []expectedConference }
			if err := json.Unmarshal(text, &expected); err != nil {
				t.Fatal(err)
			}
			_, values := fold(t, rawLog(t, captureLines(t, file)))
			summaries := latest(t, values)
			var conferences []*callscopev1.Summary
			for _, s := range summaries {
				if s.GetConference() != nil {
					conferences = append(conferences, s)
				}
			}
			if len(conferences) != len(expected.Conferences) {
				t.Fatalf("%d conferences, want %d", len(conferences), len(expected.Conferences))
			}
			for i, want := range expected.Conferences {
				compared++
				compareConference(t, summaries, conferences[i], want)
			}
		})
	}
	if compared < 10 {
		t.Errorf("only %d conferences were compared", compared)
	}
}

func compareConference(t *testing.T, summaries []*callscopev1.Summary, s *callscopev1.Summary, want expectedConference) {
	t.Helper()
	got := s.GetConference()
	if s.Identity.ConferenceId != want.ConferenceID || got.StartedAtMs != beginMs+want.StartedT ||
		want.EndedT != nil && got.GetEndedAtMs() != beginMs+*want.EndedT {
		t.Errorf("%q from %d to %d, want %q from %d", s.Identity.ConferenceId, got.StartedAtMs-beginMs, got.GetEndedAtMs()-beginMs, want.ConferenceID, want.StartedT)
	}
	var presence int64
	var rejoins, most uint32
	for _, p := range want.Participants {
		var own int64
		for _, interval := range p.Intervals {
			if interval.LeftT != nil {
				own += *interval.LeftT - interval.JoinedT
			}
		}
		presence += own
		rejoins, most = rejoins+p.Joins-1, max(most, p.Joins)
		found := false
		for _, o := range summaries {
			if g := o.GetParticipant(); g != nil && o.Identity.UserId == p.User && o.Identity.DeviceId == p.Device && string(o.Identity.ConferenceUid) == string(s.EntityUid) {
				found = true
				if g.PresenceMs != own || g.Joins != p.Joins || len(p.Intervals) > 0 && g.LeftReason != p.Intervals[len(p.Intervals)-1].LeftReason {
					t.Errorf("%s: present %d ms, %d joins, left by %s; want %d, %d, %v", p.User, g.PresenceMs, g.Joins, g.LeftReason, own, p.Joins, p.Intervals)
				}
			}
		}
		if !found {
			t.Errorf("no summary of %s on %s", p.User, p.Device)
		}
	}
	if int(got.Participants) != len(want.Participants) || got.Rejoins != rejoins || got.MaxJoins != most ||
		len(want.Participants) > 0 && math.Abs(got.GetParticipantMinutes()-float64(presence)/60_000) > 1e-9 {
		t.Errorf("%d participants, %d rejoins, %v minutes; want %d, %d, %v ms", got.Participants, got.Rejoins, got.GetParticipantMinutes(), len(want.Participants), rejoins, presence)
	}
	var delays []float64
	var failed, dropped uint32
	for _, f := range want.Fabrics {
		switch f.Outcome {
		case "failed":
			failed++
		case "dropped":
			dropped++
		}
		if f.SetupDelayMs != nil {
			delays = append(delays, *f.SetupDelayMs)
		}
	}
	if int(got.Fabrics) != len(want.Fabrics) || got.FabricsFailed != failed || got.FabricsDropped != dropped {
		t.Errorf("%d fabrics, %d failed, %d dropped; want %d, %d, %d", got.Fabrics, got.FabricsFailed, got.FabricsDropped, len(want.Fabrics), failed, dropped)
	}
	if len(delays) == 0 {
		if got.SetupDelayMsMean != nil {
			t.Errorf("a setup delay of %v of nothing", got.GetSetupDelayMsMean())
		}
		return
	}
	slices.Sort(delays)
	sum := 0.0
	for _, d := range delays {
		sum += d
	}
	median := (delays[(len(delays)-1)/2] + delays[len(delays)/2]) / 2
	for what, pair := range map[string][2]float64{
		"min": {got.GetSetupDelayMsMin(), delays[0]}, "max": {got.GetSetupDelayMsMax(), delays[len(delays)-1]},
		"mean": {got.GetSetupDelayMsMean(), sum / float64(len(delays))}, "median": {got.GetSetupDelayMsMedian(), median},
	} {
		if math.Abs(pair[0]-pair[1]) > 1e-6 {
			t.Errorf("setup delay %s is %v, want %v", what, pair[0], pair[1])
		}
	}
}

// The recordings are of calls between browsers of one machine, without a sound
// card: nothing in them is anybody's fault.
func TestNoFindingsInCaptures(t *testing.T) {
	for _, file := range captures(t) {
		_, values := fold(t, rawLog(t, captureLines(t, file)))
		for _, s := range latest(t, values) {
			if p := s.GetParticipant(); len(p.GetFindings()) > 0 {
				t.Errorf("%s: %s has %v: %s", filepath.Base(file), s.Identity.UserId, p.Findings, p.FindingsEvidenceJson)
			}
			if st := s.GetStream(); st.GetSide() != "" {
				t.Errorf("%s: %s %s is on the side of the %s: %s", filepath.Base(file), s.Identity.UserId, st.Ssrc, st.Side, st.SideEvidenceJson)
			}
		}
	}
}
