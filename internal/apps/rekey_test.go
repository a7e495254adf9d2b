package apps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/internal/stream/streamtest"
	pb "github.com/callscope/callscope/proto/callscope/v1"
)

// readTopic reads the topic without the package's own code: what stands by this reading is, of the records of one item,
// the last one. It is what is left after compaction.
func readTopic(t *testing.T, log Log) (records []*pb.AppRecord, last map[string]*pb.AppRecord) {
	t.Helper()
	last = make(map[string]*pb.AppRecord)
	next, _, err := log.Offsets(t.Context(), stream.TopicApps, 0)
	for err == nil {
		var batch stream.Batch
		if batch, err = log.Fetch(t.Context(), stream.TopicApps, 0, next, 1<<20, time.Millisecond); err != nil {
			break
		}
		for _, rec := range batch.Records {
			r := new(pb.AppRecord)
			if err := r.UnmarshalVT(rec.Value); err != nil {
				t.Fatal(err)
			}
			records, last[string(rec.Key)] = append(records, r), r
		}
		if next = batch.Next; next >= batch.End {
			return records, last
		}
	}
	t.Fatal(err)
	return nil, nil
}

// secretsOf are an app's secrets in the clear, in order.
func secretsOf(a *App) []string {
	var list []string
	if a != nil {
		for _, s := range a.Secrets {
			list = append(list, string(s.Key))
		}
	}
	slices.Sort(list)
	return list
}

func addSecrets(t *testing.T, e *Editor, appID string, keys ...string) (ids []string) {
	t.Helper()
	for _, key := range keys {
		id, err := e.AddSecret(t.Context(), appID, Secret{Key: []byte(key)})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}

func createApp(t *testing.T, e *Editor, appID string) {
	t.Helper()
	if _, err := e.Create(t.Context(), appID, nil, nil); err != nil {
		t.Fatal(err)
	}
}

func TestRekey(t *testing.T) {
	log := newLog(t, streamtest.StartBroker(t))
	oldKey, newKey := masterKey(t, masterText), masterKey(t, otherMasterText)
	both := newKey.WithPrevious(oldKey)
	e := open(t, log, oldKey)
	want := make(map[string][]string)
	for i := range 30 {
		id := fmt.Sprint(100 + i)
		createApp(t, e, id)
		want[id] = []string{"a secret of " + id, "one more of " + id}
		addSecrets(t, e, id, want[id]...)
	}
	revoked := addSecrets(t, e, func() string { createApp(t, e, "1"); return "1" }(), "the one that is revoked", "the one that stays")
	if err := e.RevokeSecret(t.Context(), "1", revoked[0]); err != nil {
		t.Fatal(err)
	}
	want["1"] = []string{"the one that stays"}
	createApp(t, e, "2")
	addSecrets(t, e, "2", "of a deleted app")
	if err := e.Delete(t.Context(), "2"); err != nil {
		t.Fatal(err)
	}

	// A gateway with both keys has every secret all the time.
	gateway, _ := follow(t, log, both)
	check := func(a interface{ Lookup(string) (*App, bool) }) string {
		for id, secrets := range want {
			app, _ := a.Lookup(id)
			if diff := cmp.Diff(secrets, secretsOf(app)); diff != "" {
				return fmt.Sprintf("app %s:\n%s", id, diff)
			}
		}
		if app, ok := a.Lookup("2"); ok {
			return fmt.Sprintf("the deleted app is there: %v", app)
		}
		return ""
	}
	if reason := check(gateway); reason != "" {
		t.Fatal(reason)
	}
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			if reason := check(gateway); reason != "" {
				t.Error("meanwhile:", reason)
				return
			}
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	n, err := open(t, log, both).Rekey(t.Context())
	if err != nil || n != 61 {
		t.Errorf("%d secrets, %v; want 61", n, err)
	}
	// The gateway has taken in all of it when it has what comes after.
	if err := open(t, log, both).Set(t.Context(), "1", map[string]string{"name": "after"}); err != nil {
		t.Fatal(err)
	}
	gateway.sees(t, "1", "the name", func(a *App) bool { return a.Name == "after" })
	close(done)
	watching.Wait()
	if n := count(gateway, "conflict") + count(gateway, "undecryptable"); n != 0 {
		t.Errorf("%v records are conflicts or not decryptable, log:\n%s", n, gateway.log)
	}

	_, last := readTopic(t, log)
	for key, r := range last {
		if s := r.GetSecret(); s != nil && s.GetMasterKeyId() == oldKey.id {
			t.Errorf("%q is encrypted with the old key", key)
		}
	}
	fresh, _ := follow(t, log, newKey)
	if reason := check(fresh); reason != "" {
		t.Error("with the new key alone: ", reason)
	}
	if n, err := open(t, log, both).Rekey(t.Context()); err != nil || n != 0 {
		t.Errorf("once more: %d secrets, %v", n, err)
	}
}

func TestRekeyRefuses(t *testing.T) {
	log := newLog(t, streamtest.StartBroker(t))
	oldKey, newKey := masterKey(t, masterText), masterKey(t, otherMasterText)
	lost := open(t, log, masterKey(t, "a key that nobody has any more, long"))
	createApp(t, lost, "1")
	addSecrets(t, lost, "1", "lost")
	e := open(t, log, oldKey.WithPrevious(lost.key))
	createApp(t, e, "2")
	addSecrets(t, e, "2", "kept")
	if _, err := open(t, log, nil).Rekey(t.Context()); !errors.Is(err, ErrNoMasterKey) {
		t.Errorf("without a key: %v", err)
	}
	n, err := open(t, log, newKey.WithPrevious(oldKey)).Rekey(t.Context())
	if n != 1 || !errors.Is(err, ErrOtherMasterKey) || !strings.Contains(err.Error(), "app 1: secret/") || strings.Contains(err.Error(), "app 2") {
		t.Errorf("%d secrets, %v", n, err)
	}
	f, _ := follow(t, log, newKey)
	if app, _ := f.Lookup("2"); !slices.Equal(secretsOf(app), []string{"kept"}) {
		t.Errorf("app 2 has %v", secretsOf(app))
	}
}

// before runs something right before the n-th write, and may make that and all later ones fail after they were stored.
type before struct {
	Log
	writes int
	run    func(write int)
	failAt int
}

func (b *before) Append(ctx context.Context, topic string, partition int32, recs []stream.Record) (int64, error) {
	b.writes++
	b.run(b.writes)
	first, err := b.Log.Append(ctx, topic, partition, recs)
	if err == nil && b.failAt > 0 && b.writes >= b.failAt {
		return 0, errors.New("the connection broke")
	}
	return first, err
}

// TestRekeyWhileOthersEdit: whatever is changed between the reading and the writing of a rekey stands, in gateways that
// saw everything and in those that see what compaction leaves, also when the rekey breaks off there and is run again.
func TestRekeyWhileOthersEdit(t *testing.T) {
	for name, broken := range map[string]bool{"to the end": false, "broken off and run again": true} {
		t.Run(name, func(t *testing.T) {
			log := newLog(t, streamtest.StartBroker(t))
			oldKey := masterKey(t, masterText)
			both := masterKey(t, otherMasterText).WithPrevious(oldKey)
			e := open(t, log, oldKey)
			for _, id := range []string{"1", "2", "3", "4"} {
				createApp(t, e, id)
			}
			ids := addSecrets(t, e, "1", "revoked meanwhile", "stays")
			addSecrets(t, e, "2", "of an app deleted meanwhile")
			addSecrets(t, e, "3", "first of 3")
			if _, err := e.AddSecret(t.Context(), "4", Secret{KeyID: "0a", Key: []byte("replaced meanwhile")}); err != nil {
				t.Fatal(err)
			}
			gateway, _ := follow(t, log, both)
			interrupted := &before{Log: log}
			if broken {
				interrupted.failAt = 1
			}
			interrupted.run = func(write int) {
				if write != 1 {
					return
				}
				other := open(t, log, oldKey) // a command whose configuration is still the old one
				if err := other.RevokeSecret(t.Context(), "1", ids[0]); err != nil {
					t.Error(err)
				}
				if err := other.Delete(t.Context(), "2"); err != nil {
					t.Error(err)
				}
				addSecrets(t, other, "3", "second of 3")
				if err := other.RevokeSecret(t.Context(), "4", "0a"); err != nil {
					t.Error(err)
				}
				if _, err := other.AddSecret(t.Context(), "4", Secret{KeyID: "0a", Key: []byte("the replacement")}); err != nil {
					t.Error(err)
				}
			}
			want := map[string][]string{"1": {"stays"}, "2": nil, "3": {"first of 3", "second of 3"}, "4": {"the replacement"}}
			check := func(a interface{ Lookup(string) (*App, bool) }) string {
				for id, secrets := range want {
					app, _ := a.Lookup(id)
					if diff := cmp.Diff(secrets, secretsOf(app)); diff != "" {
						return fmt.Sprintf("app %s:\n%s", id, diff)
					}
				}
				return ""
			}

			_, err := open(t, interrupted, both).Rekey(t.Context())
			if broken != (err != nil) {
				t.Errorf("the first run: %v", err)
			}
			// One who revoked before a rekey that he did not see is not told of a conflict.
			stale := open(t, log, both)
			if _, err := open(t, log, both).Rekey(t.Context()); err != nil {
				t.Errorf("the second run: %v", err)
			}
			if err := stale.RevokeSecret(t.Context(), "1", ids[1]); err != nil {
				t.Errorf("revoking after a rekey that was not seen: %v", err)
			}
			want["1"] = nil

			streamtest.Eventually(t, 20*time.Second, func() string { return check(gateway) })
			if log := gateway.log.String(); !strings.Contains(log, "the change stands") || strings.Contains(log, "the later one stands") || count(gateway, "conflict") != 0 {
				t.Errorf("%v conflicts, log:\n%s", count(gateway, "conflict"), log)
			}
			_, last := readTopic(t, log)
			compacted := make(state)
			for _, r := range last {
				if s := r.GetSecret(); s != nil && s.GetMasterKeyId() == oldKey.id {
					t.Errorf("%s of app %s is encrypted with the old key", r.GetItem(), r.GetAppId())
				}
				compacted.put(r)
			}
			for id, secrets := range want {
				app, _ := compacted.build(id, both)
				if diff := cmp.Diff(secrets, secretsOf(app)); diff != "" {
					t.Errorf("after compaction app %s:\n%s", id, diff)
				}
			}
		})
	}
}
