package e2e

import (
	"os"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/callscope/callscope/internal/stream/streamtest"
)

// recordings are all captures that hold a call; auth-errors holds none.
var recordings = []string{
	"two-users-hs256.jsonl", "mesh3.jsonl", "failed-setup.jsonl", "two-users-default-config.jsonl", "rn-3.24.6-wss.jsonl",
	"rn-3.52.0-wss.jsonl", "es256-token-generator.jsonl", "event-errors.jsonl", "join-fails.jsonl",
	"no-submission-interval.jsonl", "precall.jsonl", "proxy-config.jsonl",
}

// TestRecordedCallsBecomeRows plays every recording at its recorded speed
// through one process, through separate processes and through Apache Kafka, all
// at the same time. The rows must be what the recordings say, and the same
// however the chain runs.
func TestRecordedCallsBecomeRows(t *testing.T) {
	deployments := map[string]*deployment{
		"one process":        oneProcess(t),
		"separate processes": separateProcesses(t, ""),
	}
	switch available, why := streamtest.KafkaAvailable(); {
	case available:
		deployments["Apache Kafka"] = separateProcesses(t, streamtest.StartKafka(t))
	case os.Getenv("CI") == "true":
		t.Fatalf("Apache Kafka is required when CI=true: %s", why)
	default:
		t.Logf("left out the chain on Apache Kafka: %s", why)
	}
	var played sync.WaitGroup
	for _, d := range deployments {
		played.Go(func() { playAll(t, d, recordings...) })
	}
	played.Wait()
	for _, d := range deployments {
		settled(t, d, len(recordings))
	}
	for name, d := range deployments {
		t.Run(name, func(t *testing.T) {
			for _, capture := range recordings {
				t.Run(capture, func(t *testing.T) { checkCall(t, d.engine, capture) })
			}
		})
	}
	reference := deployments["one process"]
	for name, d := range deployments {
		if d == reference {
			continue
		}
		t.Run(name+" gives the same rows", func(t *testing.T) {
			for _, capture := range recordings {
				for _, conference := range readExpectation(t, capture).Conferences {
					for _, view := range views {
						want := comparable(t, reference.engine, view, conference.ConferenceID)
						got := comparable(t, d.engine, view, conference.ConferenceID)
						if diff := cmp.Diff(want, got); diff != "" {
							t.Errorf("%s of %q (-one process +%s):\n%s", view, conference.ConferenceID, name, diff)
						}
					}
				}
			}
		})
	}
}
