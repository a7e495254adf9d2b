package apps

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/internal/stream/streamtest"
	pb "github.com/callscope/callscope/proto/callscope/v1"
)

const (
	masterText      = "a master key of the tests, long enough"
	otherMasterText = "another master key of tests, long enough"
)

func masterKey(t testing.TB, text string) *MasterKey {
	t.Helper()
	key, err := NewMasterKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newLog is a client of a broker with callscope's topics.
func newLog(t *testing.T, addr string) *stream.Client {
	t.Helper()
	c, err := stream.Open(stream.Config{Brokers: []string{addr}, Partitions: 1, RequestTimeout: 2 * time.Second}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.EnsureTopics(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func open(t *testing.T, log Log, key *MasterKey) *Editor {
	t.Helper()
	e, err := Open(t.Context(), log, key)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

type following struct {
	*Registry
	log *safeBuffer
}

// follow runs a registry for the time of the test, or until stop.
func follow(t *testing.T, log Log, key *MasterKey, static ...*App) (f following, stop func()) {
	t.Helper()
	list, err := NewStatic(static...)
	if err != nil {
		t.Fatal(err)
	}
	f.log = new(safeBuffer)
	if f.Registry, err = NewRegistry(list, key, slog.New(slog.NewTextHandler(f.log, nil)), prometheus.NewRegistry()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Follow(ctx, log) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Follow returned %v", err)
		}
	})
	t.Cleanup(stop)
	streamtest.Eventually(t, 20*time.Second, func() string {
		if err := f.Ready(); err != nil {
			return err.Error()
		}
		return ""
	})
	return f, stop
}

// sees waits until an app is as check wants it, and returns how long that took.
func (f following) sees(t *testing.T, appID, what string, check func(a *App) bool) time.Duration {
	t.Helper()
	began := time.Now()
	streamtest.Eventually(t, 10*time.Second, func() string {
		a, ok := f.Lookup(appID)
		if !ok {
			a = nil
		}
		if check(a) {
			return ""
		}
		return fmt.Sprintf("not %s: %+v", what, a)
	})
	return time.Since(began)
}

func count(f following, outcome string) float64 {
	return testutil.ToFloat64(f.metrics.records.WithLabelValues(outcome))
}

// TestLive: what one command writes, two gateways know within two seconds, and forget when it is taken back.
func TestLive(t *testing.T) {
	log := newLog(t, streamtest.StartBroker(t))
	key := masterKey(t, masterText)
	one, _ := follow(t, log, key)
	two, _ := follow(t, log, key)
	if n := one.Count(); n != 0 {
		t.Errorf("an empty topic has %d apps", n)
	}
	e := open(t, log, key)
	secret := func(text string) Secret {
		s, err := ParseSecret(text)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := secret("the-first-secret")
	var firstID, keyID string
	for _, step := range []struct {
		what  string
		do    func() error
		check func(a *App) bool
	}{
		{"created", func() (err error) {
			firstID, err = e.Create(t.Context(), "42", map[string]string{"name": "forty-two", "collect_sdp": "false"}, &first)
			return err
		}, func(a *App) bool {
			return a != nil && a.Name == "forty-two" && !a.Settings.CollectSDP && a.Settings.RESTTransport && len(a.Secrets) == 1 && string(a.Secrets[0].Key) == "the-first-secret" && a.TokenEpoch > 0
		}},
		{"with a second secret", func() error {
			_, err := e.AddSecret(t.Context(), "42", secret("AQIDBAUGBwk=:another"))
			return err
		}, func(a *App) bool { return len(a.Secrets) == 2 && a.Secrets[0].KeyID == "0102030405060709" }},
		{"without the first secret", func() error { return e.RevokeSecret(t.Context(), "42", firstID) },
			func(a *App) bool { return len(a.Secrets) == 1 && string(a.Secrets[0].Key) == "another" }},
		{"with a key", func() (err error) {
			keyID, err = e.AddKey(t.Context(), "42", "", []byte(publicKeyPEM(t, elliptic.P256())))
			return err
		}, func(a *App) bool { return a.PublicKeys[keyID] != nil }},
		{"without the key", func() error { return e.RevokeKey(t.Context(), "42", keyID) }, func(a *App) bool { return len(a.PublicKeys) == 0 }},
		{"with an origin", func() error {
			_, err := e.AddOrigin(t.Context(), "42", "HTTPS://App.Example.test")
			return err
		}, func(a *App) bool {
			return a.AllowsOrigin("https://app.example.test") && !a.AllowsOrigin("https://evil.test")
		}},
		{"without origins", func() error { return e.RemoveOrigin(t.Context(), "42", "https://app.example.test:443", true) },
			func(a *App) bool { return a.AllowsOrigin("https://evil.test") }},
		{"strict", func() error {
			return e.Set(t.Context(), "42", map[string]string{"strict_tokens": "true", "submission_interval_ms": "20000"})
		},
			func(a *App) bool { return a.Settings.StrictTokens && a.Settings.SubmissionIntervalMS == 20000 }},
		{"deleted", func() error { return e.Delete(t.Context(), "42") }, func(a *App) bool { return a == nil }},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		for _, f := range []following{one, two} {
			if took := f.sees(t, "42", step.what, step.check); took > 2*time.Second {
				t.Errorf("%s took %s", step.what, took)
			}
		}
	}
	// Nothing of the deleted one comes back.
	if _, err := e.Create(t.Context(), "42", nil, nil); err != nil {
		t.Fatal(err)
	}
	one.sees(t, "42", "created again", func(a *App) bool { return a != nil && len(a.Secrets) == 0 && a.Name == "" && !a.Settings.StrictTokens })
	before, _ := one.Lookup("42")
	if err := e.RevokeTokens(t.Context(), "42"); err != nil {
		t.Fatal(err)
	}
	one.sees(t, "42", "revoked", func(a *App) bool { return a.TokenEpoch > before.TokenEpoch })
	if n := testutil.ToFloat64(one.metrics.apps.WithLabelValues("registry")); n != 1 {
		t.Errorf("the gauge says %v apps", n)
	}
	if at := testutil.ToFloat64(one.metrics.readAt); at == 0 {
		t.Error("the time of the last read is not set")
	}
	if strings.Contains(one.log.String(), "the-first-secret") {
		t.Error("the log has a secret")
	}
}

// TestSecretsAreEncrypted looks at the bytes in the topic.
func TestSecretsAreEncrypted(t *testing.T) {
	log := newLog(t, streamtest.StartBroker(t))
	e := open(t, log, masterKey(t, masterText))
	marker, err := ParseSecret("planted-marker-of-a-secret")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Create(t.Context(), "1", nil, &marker); err != nil {
		t.Fatal(err)
	}
	batch, err := log.Fetch(t.Context(), stream.TopicApps, 0, 0, 1<<20, time.Second)
	if err != nil || len(batch.Records) < 2 {
		t.Fatalf("%d records, %v", len(batch.Records), err)
	}
	var sealed *pb.AppRecord
	for _, rec := range batch.Records {
		if bytes.Contains(rec.Value, []byte("planted")) || bytes.Contains(rec.Value, []byte(masterText)) {
			t.Errorf("the record %q is readable", rec.Key)
		}
		r, err := decodeRecord(rec.Key, rec.Value)
		if err != nil {
			t.Fatal(err)
		}
		if r.GetSecret() != nil {
			sealed = r
		}
	}
	// A secret opens only where it was put.
	key := masterKey(t, masterText)
	if s, err := key.open(sealed.GetSecret(), place(sealed)); err != nil || string(s.Key) != "planted-marker-of-a-secret" {
		t.Errorf("%v, %v", s, err)
	}
	for name, change := range map[string]func(r *pb.AppRecord){
		"another app":    func(r *pb.AppRecord) { r.AppId = "2" },
		"another item":   func(r *pb.AppRecord) { r.Item = "secret/x" },
		"another life":   func(r *pb.AppRecord) { r.Life = []byte("0123456789abcdef") },
		"another key id": func(r *pb.AppRecord) { r.GetSecret().KeyId = "ff" },
		"cut":            func(r *pb.AppRecord) { r.GetSecret().Ciphertext = r.GetSecret().Ciphertext[1:] },
		"no nonce":       func(r *pb.AppRecord) { r.GetSecret().Nonce = nil },
	} {
		moved := new(pb.AppRecord)
		text, err := sealed.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		if err := moved.UnmarshalVT(text); err != nil {
			t.Fatal(err)
		}
		change(moved)
		if s, err := key.open(moved.GetSecret(), place(moved)); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("moved to %s it opens: %v, %v", name, s, err)
		}
	}
}

func TestWrongMasterKey(t *testing.T) {
	log := newLog(t, streamtest.StartBroker(t))
	e := open(t, log, masterKey(t, masterText))
	secret := Secret{Key: []byte("s")}
	if _, err := e.Create(t.Context(), "1", map[string]string{"name": "one"}, &secret); err != nil {
		t.Fatal(err)
	}
	if _, err := e.AddKey(t.Context(), "1", "k", []byte(publicKeyPEM(t, elliptic.P256()))); err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]*MasterKey{"another": masterKey(t, otherMasterText), "none": nil} {
		want := ErrOtherMasterKey
		if key == nil {
			want = ErrNoMasterKey
		}
		f, _ := follow(t, log, key)
		// The app is there with what needs no master key.
		if a, ok := f.Lookup("1"); !ok || len(a.Secrets) != 0 || a.PublicKeys["k"] == nil || a.Name != "one" {
			t.Errorf("%s: %+v, %v", name, a, ok)
		}
		if count(f, "undecryptable") != 1 || !strings.Contains(f.log.String(), "give it the registry.master_key") {
			t.Errorf("%s: counted %v, log:\n%s", name, count(f, "undecryptable"), f.log)
		}
		w := open(t, log, key)
		if _, err := w.AddSecret(t.Context(), "1", secret); !errors.Is(err, want) {
			t.Errorf("%s: adding a secret: %v", name, err)
		}
		if _, err := w.Create(t.Context(), "2", nil, &secret); !errors.Is(err, want) {
			t.Errorf("%s: making an app: %v", name, err)
		}
		if _, err := w.App("1"); !errors.Is(err, want) {
			t.Errorf("%s: reading it: %v", name, err)
		}
	}
}

// TestBadRecords: whatever lies in the topic, the other apps are there.
func TestBadRecords(t *testing.T) {
	log := newLog(t, streamtest.StartBroker(t))
	e := open(t, log, masterKey(t, masterText))
	secret := Secret{Key: []byte("s")}
	if _, err := e.Create(t.Context(), "1", nil, &secret); err != nil {
		t.Fatal(err)
	}
	life := e.state["1"][itemApp].GetLife()
	record := func(key string, r *pb.AppRecord) stream.Record {
		value, err := r.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		return stream.Record{Key: []byte(key), Value: value}
	}
	setting := func(text string) *pb.AppRecord_Setting {
		return &pb.AppRecord_Setting{Setting: &pb.AppSetting{Value: text}}
	}
	invalid := []stream.Record{
		{Key: []byte("1\x00app"), Value: []byte("\xff\xff")},
		{Key: []byte("1\x00app")}, // a tombstone, which deletes nothing
		{Key: nil, Value: []byte("x")},
		record("2\x00app", &pb.AppRecord{AppId: "1", Item: "app", Deleted: true}),
		record("1\x00future/x", &pb.AppRecord{AppId: "1", Item: "future/x", Life: life}),
		record("1\x00secret/x", &pb.AppRecord{AppId: "1", Item: "secret/x", Life: life}),
		record("1\x00key/", &pb.AppRecord{AppId: "1", Item: "key/", Life: life, Content: &pb.AppRecord_Key{Key: &pb.AppKey{}}}),
		record("0x1\x00app", &pb.AppRecord{AppId: "0x1", Item: "app"}),
		record("1\x00app/x", &pb.AppRecord{AppId: "1", Item: "app/x", Life: life}),
		record("1\x00setting/name", &pb.AppRecord{AppId: "1", Item: "setting/name", Life: life, Content: setting(strings.Repeat("x", 2000))}),
	}
	unusable := []stream.Record{
		record("1\x00setting/later", &pb.AppRecord{AppId: "1", Item: "setting/later", Life: life, Content: setting("x")}),
		record("1\x00setting/collect_sdp", &pb.AppRecord{AppId: "1", Item: "setting/collect_sdp", Life: life, Content: setting("maybe")}),
		record("1\x00setting/submission_interval_ms", &pb.AppRecord{AppId: "1", Item: "setting/submission_interval_ms", Life: life, Content: setting("5")}),
		record("1\x00key/k", &pb.AppRecord{AppId: "1", Item: "key/k", Life: life, Content: &pb.AppRecord_Key{Key: &pb.AppKey{PublicKey: []byte("x")}}}),
	}
	ignored := []stream.Record{ // of another life
		record("1\x00origin/https://a.test:443", &pb.AppRecord{AppId: "1", Item: "origin/https://a.test:443", Life: []byte("other")}),
	}
	for _, recs := range [][]stream.Record{invalid, unusable, ignored} {
		if _, err := log.Append(t.Context(), stream.TopicApps, 0, recs); err != nil {
			t.Fatal(err)
		}
	}
	f, _ := follow(t, log, masterKey(t, masterText))
	a, ok := f.Lookup("1")
	if !ok || len(a.Secrets) != 1 || len(a.PublicKeys) != 0 || len(a.Origins) != 0 {
		t.Fatalf("%+v, %v", a, ok)
	}
	if diff := cmp.Diff(DefaultSettings(), a.Settings); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	if got := count(f, "invalid"); got != float64(len(invalid)) {
		t.Errorf("counted %v invalid records, want %d:\n%s", got, len(invalid), f.log)
	}
	if got := count(f, "unusable"); got != float64(len(unusable)) {
		t.Errorf("counted %v unusable records, want %d:\n%s", got, len(unusable), f.log)
	}
	if got := count(f, "read"); got != 3+float64(len(unusable)+len(ignored)) {
		t.Errorf("counted %v read records", got)
	}
	// An editor reads past them, too.
	if list := open(t, log, masterKey(t, masterText)).Apps(); len(list) != 1 || list[0].ID != "1" {
		t.Errorf("%+v", list)
	}
}

// TestConcurrentEditors: two commands at once, each with its own view of the registry from before. Different items never
// lose one another; of one item the later change stands, and whoever lost is told.
func TestConcurrentEditors(t *testing.T) {
	log := newLog(t, streamtest.StartBroker(t))
	key := masterKey(t, masterText)
	f, _ := follow(t, log, key)
	if _, err := open(t, log, key).Create(t.Context(), "7", nil, nil); err != nil {
		t.Fatal(err)
	}
	a, b := open(t, log, key), open(t, log, key)
	var wg sync.WaitGroup
	const each = 20
	for name, e := range map[string]*Editor{"a": a, "b": b} {
		wg.Go(func() {
			for i := range each {
				if _, err := e.AddOrigin(t.Context(), "7", fmt.Sprintf("https://%s%d.test", name, i)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			if err := e.Set(t.Context(), "7", map[string]string{map[string]string{"a": "name", "b": "strict_tokens"}[name]: "true"}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	wg.Wait()
	f.sees(t, "7", "complete", func(app *App) bool {
		return app != nil && len(app.Origins) == 2*each && app.Name == "true" && app.Settings.StrictTokens
	})
	if n := count(f, "conflict"); n != 0 {
		t.Errorf("%v conflicts of different items", n)
	}

	// Both have read version 1 of the name; what each writes is version 2.
	a, b = open(t, log, key), open(t, log, key)
	if err := a.Set(t.Context(), "7", map[string]string{"name": "of a"}); err != nil {
		t.Errorf("the first one: %v", err)
	}
	err := b.Set(t.Context(), "7", map[string]string{"name": "of b"})
	if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "setting/name (this one came last and stands)") {
		t.Errorf("the second one: %v", err)
	}
	f.sees(t, "7", "of b", func(app *App) bool { return app.Name == "of b" })
	if n := count(f, "conflict"); n != 1 || !strings.Contains(f.log.String(), "two changed the same item") {
		t.Errorf("%v conflicts, log:\n%s", n, f.log)
	}

	// The other order: somebody's change comes between our writing and our reading it back.
	late := &interleaved{Log: log, after: func() {
		if err := open(t, log, key).Set(t.Context(), "7", map[string]string{"name": "of c"}); err != nil {
			t.Error(err)
		}
	}}
	err = open(t, late, key).Set(t.Context(), "7", map[string]string{"name": "of d"})
	if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "setting/name (theirs came last and stands)") {
		t.Errorf("overtaken: %v", err)
	}
	f.sees(t, "7", "of c", func(app *App) bool { return app.Name == "of c" })
}

// interleaved runs something right after a write.
type interleaved struct {
	Log
	after func()
}

func (l *interleaved) Append(ctx context.Context, topic string, partition int32, recs []stream.Record) (int64, error) {
	first, err := l.Log.Append(ctx, topic, partition, recs)
	l.after()
	return first, err
}

// TestRestarts: a broker that is away takes nothing from what is known, and what is changed after it is back arrives.
func TestRestarts(t *testing.T) {
	broker := streamtest.NewBroker(t, streamtest.WithDataDir(t.TempDir()))
	log := newLog(t, broker.Addr())
	key := masterKey(t, masterText)
	secret := Secret{Key: []byte("s")}
	if _, err := open(t, log, key).Create(t.Context(), "1", map[string]string{"name": "before"}, &secret); err != nil {
		t.Fatal(err)
	}
	f, stop := follow(t, log, key)
	broker.Stop()
	streamtest.Eventually(t, 10*time.Second, func() string {
		if testutil.ToFloat64(f.metrics.failures) == 0 {
			return "no failure is counted"
		}
		return ""
	})
	if a, ok := f.Lookup("1"); !ok || a.Name != "before" || f.Ready() != nil {
		t.Errorf("while the broker is away: %+v, %v, %v", a, ok, f.Ready())
	}
	broker.Start()
	streamtest.Eventually(t, 20*time.Second, func() string {
		e, err := Open(t.Context(), log, key)
		if err == nil {
			err = e.Set(t.Context(), "1", map[string]string{"name": "after"})
		}
		if err != nil {
			return err.Error()
		}
		return ""
	})
	f.sees(t, "1", "after", func(a *App) bool { return a.Name == "after" })
	stop()

	// Another gateway, and compaction in between.
	broker.Cluster().Compact()
	again, _ := follow(t, log, key)
	if a, ok := again.Lookup("1"); !ok || a.Name != "after" || len(a.Secrets) != 1 {
		t.Errorf("after a restart: %+v, %v", a, ok)
	}
}

// TestTopicMadeAnew: the topic may be lost and made again.
func TestTopicMadeAnew(t *testing.T) {
	log := newLog(t, streamtest.StartBroker(t))
	fresh := newLog(t, streamtest.StartBroker(t))
	key := masterKey(t, masterText)
	for _, id := range []string{"1", "2", "3"} {
		if _, err := open(t, log, key).Create(t.Context(), id, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := open(t, fresh, key).Create(t.Context(), "4", nil, nil); err != nil {
		t.Fatal(err)
	}
	switching := &switchingLog{log: log}
	f, _ := follow(t, switching, key)
	switching.to(fresh)
	f.sees(t, "4", "there", func(a *App) bool { return a != nil })
	f.sees(t, "1", "gone", func(a *App) bool { return a == nil })
}

type switchingLog struct {
	mu  sync.Mutex
	log Log
}

func (s *switchingLog) to(l Log) { s.mu.Lock(); defer s.mu.Unlock(); s.log = l }
func (s *switchingLog) now() Log { s.mu.Lock(); defer s.mu.Unlock(); return s.log }
func (s *switchingLog) Fetch(ctx context.Context, topic string, p int32, offset int64, n int, wait time.Duration) (stream.Batch, error) {
	return s.now().Fetch(ctx, topic, p, offset, n, wait)
}
func (s *switchingLog) Offsets(ctx context.Context, topic string, p int32) (int64, int64, error) {
	return s.now().Offsets(ctx, topic, p)
}
func (s *switchingLog) Append(ctx context.Context, topic string, p int32, recs []stream.Record) (int64, error) {
	return s.now().Append(ctx, topic, p, recs)
}

func TestStaticWins(t *testing.T) {
	log := newLog(t, streamtest.StartBroker(t))
	key := masterKey(t, masterText)
	for _, id := range []string{"1", "2"} {
		if _, err := open(t, log, key).Create(t.Context(), id, map[string]string{"name": "of the topic"}, nil); err != nil {
			t.Fatal(err)
		}
	}
	f, _ := follow(t, log, key, &App{ID: "1", Name: "of the configuration"})
	if a, _ := f.Lookup("1"); a.Name != "of the configuration" {
		t.Errorf("%+v", a)
	}
	if a, ok := f.Lookup("2"); !ok || a.Name != "of the topic" {
		t.Errorf("%+v", a)
	}
	if f.Count() != 2 || !strings.Contains(f.log.String(), "hidden by the one that the configuration has") {
		t.Errorf("%d apps, log:\n%s", f.Count(), f.log)
	}
}

func TestNotReadyBeforeTheEnd(t *testing.T) {
	broker := streamtest.NewBroker(t)
	client, err := stream.Open(stream.Config{Brokers: []string{broker.Addr()}}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	static, err := NewStatic()
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewRegistry(static, nil, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Follow(ctx, client) }()
	// There is no topic yet.
	streamtest.Eventually(t, 10*time.Second, func() string {
		if testutil.ToFloat64(r.metrics.failures) < 2 {
			return "it has not tried twice"
		}
		return ""
	})
	if err := r.Ready(); !errors.Is(err, errNotRead) {
		t.Errorf("Ready says %v", err)
	}
	if err := client.EnsureTopics(t.Context()); err != nil {
		t.Fatal(err)
	}
	streamtest.Eventually(t, 10*time.Second, func() string {
		if err := r.Ready(); err != nil {
			return err.Error()
		}
		return ""
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestEditorRefuses(t *testing.T) {
	log := newLog(t, streamtest.StartBroker(t))
	e := open(t, log, masterKey(t, masterText))
	ctx, secret, plain := t.Context(), Secret{Key: []byte("s")}, Secret{KeyID: "ab", Key: []byte("t")}
	if _, err := e.Create(ctx, "1", nil, &secret); err != nil {
		t.Fatal(err)
	}
	if _, err := e.AddSecret(ctx, "1", plain); err != nil {
		t.Fatal(err)
	}
	if _, err := e.AddOrigin(ctx, "1", "https://a.test"); err != nil {
		t.Fatal(err)
	}
	pem := []byte(publicKeyPEM(t, elliptic.P256()))
	if _, err := e.AddKey(ctx, "1", "k", pem); err != nil {
		t.Fatal(err)
	}
	end := func() int64 {
		_, end, err := log.Offsets(ctx, stream.TopicApps, 0)
		if err != nil {
			t.Fatal(err)
		}
		return end
	}
	before := end()
	text := func(want string, err error) bool { return err != nil && strings.Contains(err.Error(), want) }
	_, exists := e.Create(ctx, "1", nil, nil)
	_, badID := e.Create(ctx, "01", nil, nil)
	_, badSetting := e.Create(ctx, "2", map[string]string{"collect_spd": "true"}, nil)
	_, third := e.AddSecret(ctx, "1", Secret{Key: []byte("u")})
	_, sameKey := e.AddKey(ctx, "1", "k", pem)
	_, badKey := e.AddKey(ctx, "1", "l", []byte(publicKeyPEM(t, elliptic.P384())))
	_, longKey := e.AddKey(ctx, "1", strings.Repeat("k", 2000), pem)
	_, sameOrigin := e.AddOrigin(ctx, "1", "HTTPS://A.test:443")
	_, badOrigin := e.AddOrigin(ctx, "1", "https://a.test/path")
	_, noApp := e.AddSecret(ctx, "9", secret)
	for name, ok := range map[string]bool{
		"exists": errors.Is(exists, ErrExists), "bad id": text("decimal number", badID), "bad setting": text("no setting", badSetting),
		"third secret": errors.Is(third, ErrTooManySecrets), "same key": errors.Is(sameKey, ErrExists), "bad key": text("P-256", badKey),
		"long key id": text("longer than", longKey), "same origin": errors.Is(sameOrigin, ErrExists), "bad origin": text("not an origin", badOrigin),
		"no app": errors.Is(noApp, ErrUnknownApp), "bad bool": text("neither true nor false", e.Set(ctx, "1", map[string]string{"strict_tokens": "yes"})),
		"bad interval": text("is not between", e.Set(ctx, "1", map[string]string{"submission_interval_ms": "1"})),
		"long name":    text("longer than", e.Set(ctx, "1", map[string]string{"name": strings.Repeat("x", 2000)})),
		"unknown key":  errors.Is(e.RevokeKey(ctx, "1", "x"), ErrUnknownItem), "unknown secret": errors.Is(e.RevokeSecret(ctx, "1", "x"), ErrUnknownItem),
		"last origin": errors.Is(e.RemoveOrigin(ctx, "1", "https://a.test", false), ErrLastOrigin),
		"delete":      errors.Is(e.Delete(ctx, "9"), ErrUnknownApp), "revoke": errors.Is(e.RevokeTokens(ctx, "9"), ErrUnknownApp),
	} {
		if !ok {
			t.Errorf("%s was not refused as it should", name)
		}
	}
	if after := end(); after != before {
		t.Errorf("refused changes wrote %d records", after-before)
	}
	info, err := e.Info("1")
	if err != nil || len(info.Secrets) != 2 || len(info.Keys) != 1 || len(info.Origins) != 1 || info.Settings["collect_sdp"] != "true" {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestGenerateSecret(t *testing.T) {
	seen := make(map[string]bool)
	for _, withKeyID := range []bool{false, true} {
		text, secret, err := GenerateSecret(withKeyID)
		if err != nil || seen[text] || len(secret.Key) != 32 || (secret.KeyID != "") != withKeyID || strings.Contains(text, ":") != withKeyID || !strings.HasSuffix(text, string(secret.Key)) {
			t.Errorf("%q, %v, %v", text, secret, err)
		}
		seen[text] = true
	}
	if _, err := NewMasterKey("short"); err == nil {
		t.Error("a short master key was accepted")
	}
	if text := fmt.Sprintf("%v %+v %#v", masterKey(t, masterText), masterKey(t, masterText), masterKey(t, masterText)); strings.Contains(text, "aead") || strings.Contains(text, "0x") {
		t.Errorf("a master key prints as %s", text)
	}
}

// FuzzRecord: any record is read or refused, and building apps of it never fails as a whole.
func FuzzRecord(f *testing.F) {
	key := masterKey(f, masterText)
	sealed, err := key.seal(Secret{Key: []byte("s")}, []byte("x"))
	if err != nil {
		f.Fatal(err)
	}
	for _, r := range []*pb.AppRecord{
		{AppId: "1", Item: "app", Version: 1},
		{AppId: "1", Item: "setting/name", Content: &pb.AppRecord_Setting{Setting: &pb.AppSetting{Value: "x"}}},
		{AppId: "1", Item: "secret/x", Content: &pb.AppRecord_Secret{Secret: sealed}},
		{AppId: "1", Item: "key/x", Content: &pb.AppRecord_Key{Key: &pb.AppKey{PublicKey: []byte{0x30}}}},
		{AppId: "1", Item: "origin/https://a.test:443"},
	} {
		value, err := r.MarshalVT()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(recordKey(r.AppId, r.Item), value)
	}
	f.Fuzz(func(t *testing.T, recKey, value []byte) {
		r, err := decodeRecord(recKey, value)
		if err != nil {
			return
		}
		s := make(state)
		s.put(&pb.AppRecord{AppId: r.GetAppId(), Item: itemApp, Life: r.GetLife()})
		s.put(r)
		if a, _ := s.build(r.GetAppId(), key); a != nil {
			if len(a.Secrets) > 0 {
				t.Fatal("a secret was decrypted that nobody encrypted for this place")
			}
			if err := checkInterval(a.Settings.SubmissionIntervalMS); err != nil {
				t.Fatal(err)
			}
			a.AllowsOrigin("https://a.test")
		} else if r.GetItem() != itemApp || !r.GetDeleted() {
			t.Fatalf("%q hid the app", r.GetItem())
		}
	})
}
