// Package crash kills the real sink and the real engine at each point of the sink's protocol, and holds what was sent
// against what can be queried. Nothing in the product helps: a proxy between sink and engine sees every insert, so it knows
// where in the protocol the sink is.
package crash

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
	"github.com/callscope/callscope/test/chaintest"
)

func TestMain(m *testing.M) { os.Exit(chaintest.Main(m)) }

const partitions = 4

// site is a broker and an engine with their data, and the settings of sinks that use them.
type site struct {
	t          *testing.T
	dir        string
	brokers    string
	engineAddr string
	engine     *chaintest.Process
	client     *stream.Client
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), brokers: chaintest.FreeAddress(t), engineAddr: chaintest.FreeAddress(t)}
	broker := chaintest.Start(t, "callscope broker", "broker", "--data", s.dir, "--set", "kafka.embedded_addr="+s.brokers, "--set", fmt.Sprint("kafka.partitions=", partitions))
	chaintest.Listening(t, broker, s.brokers)
	s.startEngine()
	out, err := exec.Command(chaintest.Binary, append([]string{"migrate"}, s.settings(s.engineAddr)...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("callscope migrate: %v\n%s", err, out)
	}
	client, err := stream.Open(stream.Config{Brokers: []string{s.brokers}, Partitions: partitions}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	s.client = client
	return s
}

func (s *site) startEngine() {
	s.t.Helper()
	s.engine = chaintest.Start(s.t, "callscope engine", "engine", "--data", filepath.Join(s.dir, "engine"), "--addr", s.engineAddr)
	chaintest.Listening(s.t, s.engine, s.engineAddr)
}

func (s *site) settings(clickhouse string) []string {
	return []string{"--set", "kafka.brokers=" + s.brokers, "--set", fmt.Sprint("kafka.partitions=", partitions), "--set", "kafka.session_timeout=6s",
		"--set", "kafka.heartbeat_interval=1s", "--set", "kafka.rebalance_timeout=10s", "--set", "clickhouse.addr=" + clickhouse, "--set", "clickhouse.protocol=http",
		"--set", "sink.max_wait=200ms", "--log-level", "warn"}
}

// startSink runs a sink that reaches the engine through a proxy.
func (s *site) startSink(name string, p *proxy, more ...string) *chaintest.Process {
	s.t.Helper()
	admin := chaintest.FreeAddress(s.t)
	args := append(append([]string{"sink", "--set", "admin.addr=" + admin}, s.settings(p.addr())...), more...)
	sink := chaintest.Start(s.t, name, args...)
	p.sink.Store(sink)
	return sink
}

// ledger is what was acknowledged by Kafka.
type ledger struct {
	events, summaries atomic.Int64
}

// load writes what an enricher and a summarizer would, records a second in all, until the returned function is called. A
// record is one event of a user who has no other, or one revision of one of a hundred conferences.
func (s *site) load(perSecond int) (l *ledger, stop func()) {
	l = &ledger{}
	ctx, cancel := context.WithCancel(context.Background())
	var writers sync.WaitGroup
	const every = 50 * time.Millisecond
	batch := max(perSecond*int(every/time.Millisecond)/1000/partitions, 1)
	for partition := range int32(partitions) {
		writers.Go(func() {
			var enriched, summaries chain
			ticker := time.NewTicker(every)
			defer ticker.Stop()
			for {
				select {
				case <-ticker.C:
				case <-ctx.Done():
					return
				}
				var records []stream.Record
				for range batch {
					records = append(records, enriched.event(partition))
				}
				if err := s.append(ctx, stream.TopicEnriched, partition, records); err != nil {
					s.t.Errorf("writing to Kafka: %v", err)
					return
				}
				l.events.Add(int64(len(records)))
				if err := s.append(ctx, stream.TopicSummaries, partition, []stream.Record{summaries.conference(partition)}); err != nil {
					s.t.Errorf("writing to Kafka: %v", err)
					return
				}
				l.summaries.Add(1)
			}
		})
	}
	stop = func() {
		cancel()
		writers.Wait()
	}
	s.t.Cleanup(stop) // before the client is closed
	return l, stop
}

// append finishes what it began: a write that is cut off would leave open whether it counts.
func (s *site) append(ctx context.Context, topic string, partition int32, records []stream.Record) error {
	_, err := s.client.Append(context.WithoutCancel(ctx), topic, partition, records)
	return err
}

// chain gives the outputs of a stage for one partition, each with its place and that of the one before.
type chain struct {
	n    int64
	last *callscopev1.Origin
}

func (c *chain) next(kind byte, partition int32) (uid []byte, origin, prev *callscopev1.Origin) {
	uid = make([]byte, 16)
	uid[0], uid[1] = kind, byte(partition)
	binary.BigEndian.PutUint64(uid[8:], uint64(c.n))
	origin, prev = &callscopev1.Origin{Offset: c.n}, c.last
	c.n++
	c.last = origin
	return uid, origin, prev
}

func marshalled(value []byte, err error) stream.Record {
	if err != nil {
		panic(err)
	}
	return stream.Record{Key: []byte("key"), Value: value}
}

func (c *chain) event(partition int32) stream.Record {
	uid, origin, prev := c.next('e', partition)
	now := time.Now().UnixMilli()
	m := &callscopev1.Enriched{Uid: uid, Origin: origin, Prev: prev, TimeMs: float64(now), ReceivedAtMs: now,
		Identity: &callscopev1.Identity{AppId: "1", ConferenceId: "room", ConferenceUid: make([]byte, 16), UserId: fmt.Sprintf("%d/%d", partition, origin.Offset)},
		Body:     &callscopev1.Enriched_Event{Event: &callscopev1.Event{EventType: "userAlive", OriginalType: "userAlive", Reported: true}}}
	return marshalled(m.MarshalVT())
}

const conferencesEach = 100

func (c *chain) conference(partition int32) stream.Record {
	uid, origin, prev := c.next('s', partition)
	conference, revision := byte(origin.Offset%conferencesEach), uint32(origin.Offset/conferencesEach)+1
	const at = 1767225600000
	m := &callscopev1.Summary{Uid: uid, Origin: origin, Prev: prev, State: callscopev1.SummaryState_SUMMARY_STATE_PARTIAL, Revision: revision, ConferenceStartedAtMs: at,
		Identity: &callscopev1.Identity{AppId: "1", ConferenceId: fmt.Sprintf("%d/%d", partition, conference), ConferenceUid: []byte{15: conference, 14: byte(partition)}},
		Body:     &callscopev1.Summary_Conference{Conference: &callscopev1.ConferenceSummary{StartedAtMs: at, LastMessageAtMs: at, Participants: revision}}}
	return marshalled(m.MarshalVT())
}

func (s *site) number(sql string) (int64, error) {
	a, err := chaintest.Query(s.engineAddr, sql)
	if err != nil {
		return 0, err
	}
	return int64(a.Rows[0][0].(float64)), nil
}

// wait waits until as many events can be queried.
func (s *site) wait(within time.Duration, what string, events int64) {
	s.t.Helper()
	chaintest.Eventually(s.t, within, what, func() string {
		n, err := s.number("SELECT count() FROM events_rows")
		if err != nil {
			return err.Error()
		}
		if n < events {
			return fmt.Sprintf("%d of %d events", n, events)
		}
		return ""
	})
}

// explain prints which events are missing, should the wait for them end in vain.
func (s *site) explain(l *ledger) {
	s.t.Cleanup(func() {
		if !s.t.Failed() {
			return
		}
		a, err := chaintest.Query(s.engineAddr, `SELECT src_partition, count() AS rows, max(src_offset) AS newest,
			arrayFilter(o -> NOT has(groupArray(src_offset) AS there, o), range(toUInt64(newest))) AS missing FROM events_rows GROUP BY src_partition ORDER BY src_partition`)
		if err != nil {
			s.t.Logf("what is missing cannot be said: %v", err)
			return
		}
		for _, r := range a.Records() {
			s.t.Logf("partition %v: %v rows, newest offset %v, missing %v", r["src_partition"], r["rows"], r["newest"], r["missing"])
		}
	})
}

// settle waits until everything that was sent has arrived, and requires that nothing is there twice and nothing else.
func (s *site) settle(l *ledger) {
	s.t.Helper()
	events, summaries := l.events.Load(), l.summaries.Load()
	s.explain(l)
	s.wait(time.Minute, "everything that Kafka took becoming visible", events)
	const revisions = "SELECT sum(revision) AS n FROM conferences"
	chaintest.Eventually(s.t, time.Minute, "the newest revisions becoming visible", func() string {
		// Every revision counts 1, and the newest of a conference is the number of its revisions.
		n, err := s.number(revisions)
		if err != nil {
			return err.Error()
		}
		if n != summaries {
			return fmt.Sprintf("the conferences have %d revisions of %d", n, summaries)
		}
		return ""
	})
	for sql, want := range map[string]int64{
		"SELECT count() AS n FROM events":                                         events,
		"SELECT uniqExact(user_id) AS n FROM events":                              events,
		"SELECT count() AS n FROM conferences":                                    min(summaries, partitions*conferencesEach),
		"SELECT uniqExact(conference_uid) AS n FROM conferences":                  min(summaries, partitions*conferencesEach),
		"SELECT countIf(participants != revision) AS n FROM conferences":          0,
		"SELECT uniqExact(conference_uid, revision) AS n FROM conferences_rows":   -1,
		"SELECT count() - uniqExact(record_uid, idx) AS n FROM events_rows FINAL": 0,
	} {
		n, err := s.number(sql)
		if err != nil {
			s.t.Fatal(err)
		}
		if want >= 0 && n != want {
			s.t.Errorf("%s gives %d, want %d", sql, n, want)
		}
	}
	stored, err := s.number("SELECT count() FROM events_rows")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Logf("sent %d events and %d revisions; visible as many, lost 0, doubled 0; %d event rows are stored twice and collapsed", events, summaries, stored-events)
}

// point is a place in the sink's protocol, as the proxy sees it.
type point string

const (
	beforeInsert  point = "planned, not inserted"
	duringInsert  point = "in the middle of an insert"
	beforeAnswer  point = "inserted, the answer not arrived"
	afterAnswer   point = "answered, perhaps not committed"
	neverInserted point = ""
)

// proxy passes statements from one sink to the engine, until it is armed: then it calls hit at the given point of the
// next insert.
type proxy struct {
	server *httptest.Server
	engine string
	sink   atomic.Pointer[chaintest.Process]

	mu    sync.Mutex
	armed point
	hit   func()
	held  chan struct{} // a hit happened
	late  *late
}

func newProxy(t *testing.T, engine string) *proxy {
	p := &proxy{engine: engine}
	p.server = httptest.NewServer(p)
	t.Cleanup(p.server.Close)
	return p
}

func (p *proxy) addr() string { return strings.TrimPrefix(p.server.URL, "http://") }

// arm makes the next insert call hit at a point. The returned channel is closed when that has happened.
func (p *proxy) arm(at point, hit func()) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed, p.hit, p.held = at, hit, make(chan struct{})
	return p.held
}

// take disarms the proxy and returns what it was armed with.
func (p *proxy) take() (point, func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.armed == neverInserted {
		return p.armed, func() {}
	}
	at, act, held := p.armed, p.hit, p.held
	p.armed = neverInserted
	return at, func() {
		act()
		close(held)
	}
}

var errCut = errors.New("the connection is cut here")

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler) // the sink is gone
	}
	at, hit := neverInserted, func() {}
	var held *late
	if strings.HasPrefix(strings.TrimSpace(r.URL.Query().Get("query")), "INSERT INTO") && len(body) > 0 {
		at, hit = p.take()
		held = p.takeLate()
	}
	if held != nil {
		close(held.held)
		held.hold()
		// It never learns what becomes of its insert.
		defer close(held.done)
		at = beforeAnswer
	}
	var upload io.Reader = strings.NewReader(string(body))
	switch at {
	case beforeInsert:
		hit()
		panic(http.ErrAbortHandler)
	case duringInsert:
		upload = io.MultiReader(strings.NewReader(string(body[:len(body)/2])), readerFunc(func([]byte) (int, error) {
			hit()
			return 0, errCut
		}))
	}
	request, err := http.NewRequest(r.Method, "http://"+p.engine+r.URL.RequestURI(), upload)
	if err != nil {
		panic(err)
	}
	request.Header = r.Header.Clone()
	if at != duringInsert {
		request.ContentLength = int64(len(body))
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if at == beforeAnswer {
		hit()
		panic(http.ErrAbortHandler)
	}
	for name, values := range response.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(response.StatusCode)
	_, _ = w.Write(answer)
	if at == afterAnswer {
		_ = http.NewResponseController(w).Flush()
		hit()
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

const patience = time.Minute

func fired(t *testing.T, what point, hit <-chan struct{}) {
	t.Helper()
	select {
	case <-hit:
	case <-time.After(patience):
		t.Fatalf("no insert came to the point %q within %s", what, patience)
	}
}

// rounds is how often each point is met.
func rounds() int {
	if chaintest.Full() {
		return 20
	}
	return 2
}

// TestSinkKilledAtEachPoint kills the sink by SIGKILL at each point of its protocol, again and again, under load.
func TestSinkKilledAtEachPoint(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := newProxy(t, s.engineAddr)
	sink := s.startSink("callscope sink", p)
	l, stop := s.load(400)
	kills := 0
	for range rounds() {
		for _, at := range []point{beforeInsert, duringInsert, beforeAnswer, afterAnswer} {
			fired(t, at, p.arm(at, sink.Kill))
			kills++
			sink = s.startSink("callscope sink", p)
			s.wait(patience, fmt.Sprintf("going on after a kill (%s)", at), l.events.Load())
		}
	}
	stop()
	s.settle(l)
	t.Logf("killed the sink %d times", kills)
}

// TestEngineKilledAtEachPoint kills the engine by SIGKILL in the middle of inserts and between an insert and its answer.
func TestEngineKilledAtEachPoint(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := newProxy(t, s.engineAddr)
	s.startSink("callscope sink", p)
	l, stop := s.load(400)
	kills := 0
	for range rounds() {
		for _, at := range []point{beforeInsert, duringInsert, beforeAnswer, afterAnswer} {
			fired(t, at, p.arm(at, func() { s.engine.Kill() }))
			kills++
			s.startEngine()
			s.wait(patience, fmt.Sprintf("going on after the engine's kill (%s)", at), l.events.Load())
		}
	}
	stop()
	s.settle(l)
	t.Logf("killed the engine %d times", kills)
}

// TestZombieSink stops a sink between plan and insert for longer than its membership lasts, lets another take over and
// finish, and then lets the first one's insert reach the engine.
func TestZombieSink(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p, q := newProxy(t, s.engineAddr), newProxy(t, s.engineAddr)
	zombie := s.startSink("callscope sink (zombie)", p)
	l, stop := s.load(400)
	release := make(chan struct{})
	t.Cleanup(sync.OnceFunc(func() {
		select {
		case <-release:
		default:
			close(release) // a test that failed holds nobody
		}
	}))
	s.wait(patience, "the first sink working", 1)
	woken := p.armLate(func() {
		if err := zombie.Pause(); err != nil {
			t.Error(err)
		}
		<-release
	})
	fired(t, "held insert", woken.held)
	s.startSink("callscope sink (successor)", q)
	s.wait(patience, "the successor working", l.events.Load())
	close(release) // the old insert goes on its way now
	fired(t, "late insert", woken.done)
	if err := zombie.Resume(); err != nil {
		t.Fatal(err)
	}
	s.wait(patience, "both working", l.events.Load())
	stop()
	s.settle(l)
}

// late is an insert that was held back and sent later.
type late struct {
	held, done chan struct{}
	hold       func()
}

// armLate holds the next insert before it goes to the engine until hold returns.
func (p *proxy) armLate(hold func()) *late {
	l := &late{make(chan struct{}), make(chan struct{}), hold}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.late = l
	return l
}

func (p *proxy) takeLate() *late {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.late
	p.late = nil
	return l
}

// TestEngineDown: the engine is gone for a while under load. Nothing is lost, nothing doubled, and the backlog goes at
// least five times as fast as it came. 20 s, and 3 minutes with CALLSCOPE_FULL=1.
func TestEngineDown(t *testing.T) {
	down, rate := 20*time.Second, 1000
	if chaintest.Full() {
		down = 3 * time.Minute
	} else {
		t.Parallel()
	}
	s := newSite(t)
	p := newProxy(t, s.engineAddr)
	s.startSink("callscope sink", p)
	l, stop := s.load(rate)
	began := time.Now()
	s.wait(patience, "the sink working", int64(rate))
	s.engine.Kill()
	<-time.After(down)
	s.startEngine()

	// From the first row after the outage until there is no backlog.
	before, err := s.number("SELECT count() FROM events_rows")
	if err != nil {
		t.Fatal(err)
	}
	s.wait(patience, "the first rows after the outage", before+1)
	started := time.Now()
	first, err := s.number("SELECT count() FROM events_rows")
	if err != nil {
		t.Fatal(err)
	}
	backlog := l.events.Load() - first
	last := first
	chaintest.Eventually(t, down+2*time.Minute, "catching up", func() string {
		n, err := s.number("SELECT count() FROM events_rows")
		if err != nil {
			return err.Error()
		}
		last = n
		if behind := l.events.Load() - n; behind > int64(2*rate) {
			return fmt.Sprintf("%d events behind", behind)
		}
		return ""
	})
	took := time.Since(started)
	live := float64(l.events.Load()) / time.Since(began).Seconds()
	caughtUp := float64(last-before) / took.Seconds()
	t.Logf("engine down for %s at %.0f events/s: backlog %d, caught up at %.0f events/s, %.1f times the live rate", down, live, backlog, caughtUp, caughtUp/live)
	if caughtUp < 5*live {
		t.Errorf("caught up at %.1f times the live rate, want at least 5", caughtUp/live)
	}
	stop()
	s.settle(l)
}
