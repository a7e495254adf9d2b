package enricher

import (
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// Every counter moves with what it counts.
func TestCounters(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := &countedMachine{Machine: NewMachine(), metrics: newMetrics(registry)}
	p := newPartition(t)
	alice := &client{p: p, room: "room", user: "alice", device: "d"}
	alice.feedback() // an orphan
	alice.begin("f", "bob")
	raw := alice.message("dominantSpeaker", "f", "bob")
	alice.send(raw)
	alice.send(raw)
	for range 2 {
		raw := alice.message("dominantSpeaker", "f", "bob")
		raw.Claimed.SessionUid, raw.Claimed.Sequence = testUID(4), new(uint64)
		alice.send(raw)
	}
	for range 2 {
		raw := alice.message("callDetails", "f", "bob")
		raw.Observed = observedHash("body")
		alice.send(raw)
	}
	for ssrc := range 9 {
		p.wait(1_000)
		alice.stats("f", "bob", manyStreams(ssrc*1_000, 1_000)...)
	}
	p.wait(60_000)
	alice.alive("f", "bob") // re-opens
	for i, ticker := range []uint64{1, 2, 1} {
		p.nextUID++
		p.step(nil, tickOf(p.nextUID, ticker, int64(i)))
	}
	for _, in := range p.inputs {
		if _, err := m.Step(in); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, m, maxConferences+1, func(i int) *callscopev1.Claimed {
		return &callscopev1.Claimed{ConferenceId: sprint("full", i), UserId: "u"}
	})
	fill(t, m, maxParticipants, func(i int) *callscopev1.Claimed {
		return &callscopev1.Claimed{ConferenceId: "full 0", UserId: sprint("user", i)}
	})
	fill(t, m, maxFabrics+1, func(i int) *callscopev1.Claimed {
		return &callscopev1.Claimed{ConferenceId: "full 0", UserId: "u", ConnectionId: sprint("f", i)}
	})
	want := map[string]float64{
		"callscope_enricher_ignored_ticks_total":        1,
		"callscope_enricher_orphans_total":              2, // one of them over the limit
		"callscope_enricher_conferences_begun_total":    1 + maxConferences,
		"callscope_enricher_over_limit_total":           3,
		"callscope_enricher_conferences_reopened_total": 1,
		"callscope_enricher_streams_over_limit_total":   9_000 - maxStreams,
		"callscope_enricher_duplicates_total":           3,
		"callscope_enricher_processed_total":            float64(len(p.inputs) - 1 - 3 + maxConferences + 1 + maxParticipants + maxFabrics + 1),
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		sum := 0.0
		for _, metric := range family.Metric {
			if metric.Counter.GetValue() == 0 {
				t.Errorf("%s %v did not move", family.GetName(), metric.Label)
			}
			sum += metric.Counter.GetValue()
		}
		if sum != want[family.GetName()] {
			t.Errorf("%s is %v, want %v", family.GetName(), sum, want[family.GetName()])
		}
		delete(want, family.GetName())
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
}

func TestNewIsInert(t *testing.T) {
	e := New(Config{}, nil, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err := e.Ready(); err == nil {
		t.Error("ready before Run")
	}
	cfg := StageConfig(Config{StartWithoutState: true}, func(int32) stage.Machine { return NewMachine() })
	if !cfg.Ticks || !cfg.StartWithoutState || cfg.InputTopic != "callscope.raw.v1" || cfg.OutputTopic != "callscope.enriched.v1" {
		t.Errorf("stage %+v", cfg)
	}
}
