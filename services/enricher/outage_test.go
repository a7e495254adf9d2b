package enricher

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/stage/stagetest"
	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// For 10 min nobody runs the enricher while alice's messages go on and bob's
// have stopped just before. Nobody is timed out for the outage; afterwards bob
// leaves 30 s later on the log's time, within a tick and a second.
func TestAnOutageClosesNothing(t *testing.T) {
	log := stagetest.NewLog("input", "output", "state")
	cfg := StageConfig(Config{}, func(int32) stage.Machine { return NewMachine() })
	cfg.InputTopic, cfg.OutputTopic, cfg.StateTopic = "input", "output", "state"
	s := stage.New(cfg, nil, slog.New(slog.DiscardHandler), nil)
	rng := rand.New(rand.NewPCG(1, 2))
	now := time.Duration(0)
	newUID := func() []byte {
		return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, rng.Uint64()), rng.Uint64())
	}
	newOwner := func() *stage.Partition {
		return s.NewPartition(0, stage.Env{
			Log: log, Committer: log, Now: func() time.Time { return time.UnixMilli(captureBaseMs).Add(now) },
			Monotonic: func() time.Duration { return now }, NewUID: newUID, Logger: slog.New(slog.DiscardHandler),
		})
	}
	send := func(user, connection string) {
		value, err := (&callscopev1.Raw{
			Uid: newUID(), EventType: "userAlive", Payload: &callscopev1.Raw_UserAlive{UserAlive: &callscopev1.UserAlive{}},
			Claimed:  &callscopev1.Claimed{ConferenceId: "room", UserId: user, DeviceId: "d", ConnectionId: connection},
			Observed: &callscopev1.Observed{AppId: "1", ReceivedAtMs: captureBaseMs + now.Milliseconds()},
		}).MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := log.Append(context.Background(), "input", 0, []stream.Record{{Key: []byte(roomKey("1", "room")), Value: value}}); err != nil {
			t.Fatal(err)
		}
	}
	// run lets the owner work for a second of time at a time, alice sending
	// every 5 s, and returns when bob was seen to leave, 0 if he was not.
	run := func(owner *stage.Partition, seconds int, bob bool) (left time.Duration) {
		from := len(log.Records("output"))
		for i := range seconds {
			if i%5 == 0 {
				send("alice", "a")
				if bob {
					send("bob", "b")
				}
			}
			for range 20 {
				if err := owner.Advance(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
			for ; from < len(log.Records("output")); from++ {
				var e callscopev1.Enriched
				if err := e.UnmarshalVT(log.Records("output")[from].Value); err != nil {
					t.Fatal(err)
				}
				if p := e.GetParticipant(); p != nil && !p.Present {
					if e.Identity.UserId != "bob" {
						t.Errorf("%s left at %v", e.Identity.UserId, now)
					}
					left = now
				}
			}
			now += time.Second
		}
		return left
	}
	if left := run(newOwner(), 60, true); left != 0 {
		t.Errorf("bob left at %v, while his messages came", left)
	}
	lastOfBob := now - 5*time.Second // his last message, and alive time stands still from the end of this run
	ranAfter := now - lastOfBob
	for range 120 { // nobody runs
		send("alice", "a")
		now += 5 * time.Second
	}
	began := now
	left := run(newOwner(), 60, false)
	// Of his 30 s of silence some were before the outage, which itself counts
	// for nothing.
	want := began + 30*time.Second - ranAfter
	if left < want-2*time.Second || left > want+2*time.Second {
		t.Errorf("bob left %v after the outage, want %v", left-began, want-began)
	}
}
