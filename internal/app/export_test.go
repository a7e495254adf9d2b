package app

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/callscope/callscope/internal/erasures"
	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/internal/stream/streamtest"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// An export that has begun before somebody was erased may have written him into its files already. It says so.
func TestErasedDuringAnExport(t *testing.T) {
	broker := streamtest.NewBroker(t)
	log := slog.New(slog.DiscardHandler)
	client, err := stream.Open(stream.Config{Brokers: []string{broker.Addr()}, Partitions: 1}, log, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.EnsureTopics(t.Context()); err != nil {
		t.Fatal(err)
	}
	raw, err := (&callscopev1.Raw{Observed: &callscopev1.Observed{AppId: "1"}, Claimed: &callscopev1.Claimed{UserId: "alice"}}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)
	if _, err := client.Append(t.Context(), stream.TopicRaw, 0, []stream.Record{{Key: []byte("k"), Value: raw, Time: at}}); err != nil {
		t.Fatal(err)
	}
	// The records cannot be read until the erasure is there.
	away := broker.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: stream.TopicRaw, Err: kerr.NotLeaderForPartition, Count: -1})
	dir := filepath.Join(t.TempDir(), "archive")
	cmd := command(t, nil, quiet("export", "--from", "2026-11-01", "--to", "2026-11-02", "--dir", dir,
		"--set", "kafka.brokers="+broker.Addr(), "--set", "registry.master_key="+testMasterKey)...)
	type outcome struct {
		code           int
		stdout, stderr string
	}
	done := make(chan outcome, 1)
	go func() {
		code, stdout, stderr := result(t, cmd)
		done <- outcome{code, stdout, stderr}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := away.Wait(ctx, 1); err != nil {
		t.Fatal(err)
	}
	key, err := erasures.NewKey(testMasterKey)
	if err != nil {
		t.Fatal(err)
	}
	set, err := erasures.NewSet(client, key, log, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := set.Put(t.Context(), key.Erasure("1", "alice", at.Add(time.Hour).UnixMilli(), nil)); err != nil {
		t.Fatal(err)
	}
	away.Remove()
	if got := <-done; got.code != exitPartly || !strings.Contains(got.stderr, "delete "+dir) {
		t.Errorf("exit code %d: %s%s", got.code, got.stdout, got.stderr)
	}
}
