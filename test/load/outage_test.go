// Package load drives the real binary under load: what happens to it and to its clients while something is away.
package load

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"

	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
	"github.com/callscope/callscope/test/chaintest"
)

func TestMain(m *testing.M) { os.Exit(chaintest.Main(m)) }

const (
	appID  = "123456789"
	secret = "synthetic-app-secret-01"

	restClients, socketClients = 20, 10
	messageEvery               = 50 * time.Millisecond // of each REST client

	// budgetBytes is the gateway's budget in this test, and maxResident what its process may take with all of it used.
	budgetBytes = 64 << 20
	maxResident = 256 << 20
)

// outage is how long the broker is away: CALLSCOPE_OUTAGE, else 6 s. `CALLSCOPE_OUTAGE=60s go test -run Outage` is the
// full test.
func outage(t *testing.T) time.Duration {
	text := os.Getenv("CALLSCOPE_OUTAGE")
	if text == "" {
		return 6 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("CALLSCOPE_OUTAGE: %v", err)
	}
	return d
}

// tally is what the clients saw. Messages are known by their client time, which is a number of their own.
type tally struct {
	next atomic.Int64

	mu       sync.Mutex
	answered map[int64]bool // messages that were answered as stored
	joined   map[int64]bool // userJoined that were answered, stored or not yet

	closed   atomic.Int64 // messages whose connection was closed
	slowJoin atomic.Int64 // longest time until a userJoined was answered, ns
}

func (c *tally) success(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered[n] = true
}

func (c *tally) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.answered)
}

const firstMessage = 1_700_000_000_000

// TestBrokerOutage kills the broker under load and starts it again on the same data.
func TestBrokerOutage(t *testing.T) {
	away := outage(t)
	dir := t.TempDir()
	brokerAddr, gatewayAddr, admin := chaintest.FreeAddress(t), chaintest.FreeAddress(t), chaintest.FreeAddress(t)
	startBroker := func() *chaintest.Process {
		p := chaintest.Start(t, "callscope broker", "broker", "--data", dir, "--set", "kafka.embedded_addr="+brokerAddr, "--set", "admin.addr="+chaintest.FreeAddress(t))
		chaintest.Listening(t, p, brokerAddr)
		return p
	}
	broker := startBroker()
	client := connect(t, brokerAddr)
	err := client.EnsureTopics(t.Context())
	client.Close()
	if err != nil {
		t.Fatalf("making the topics: %v", err)
	}
	gateway := chaintest.Start(t, "callscope gateway", "gateway", "--set", "kafka.brokers="+brokerAddr, "--set", "kafka.partitions=4",
		"--set", "gateway.addr="+gatewayAddr, "--set", "admin.addr="+admin, "--set", "gateway.token_key=a-load-test-token-key-0123456789",
		"--set", "gateway.budget_bytes="+strconv.Itoa(budgetBytes), "--set", "gateway.limits.address_messages_per_second=-1", "--set", `apps=[{"id":"`+appID+`","secrets":["`+secret+`"]}]`)
	chaintest.Ready(t, gateway, admin)

	counts := &tally{answered: make(map[int64]bool), joined: make(map[int64]bool)}
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for i := range restClients {
		clients.Go(func() { restClient(ctx, t, gatewayAddr, i, counts) })
	}
	socketStops := make(chan struct{})
	for i := range socketClients {
		clients.Go(func() { socketClient(socketStops, t, gatewayAddr, fmt.Sprint("socket", i), counts) })
	}
	var ours sync.WaitGroup
	var sessions, cutting []*protocolClient
	for i := range steadyClients + eagerClients + cutClients {
		c := &protocolClient{gateway: gatewayAddr, user: fmt.Sprint("session", i), cut: make(chan struct{}, 1)}
		switch {
		case i >= steadyClients+eagerClients:
			cutting = append(cutting, c)
		case i >= steadyClients:
			c.eager = true
		}
		sessions = append(sessions, c)
		ours.Go(func() {
			if err := c.run(t.Context(), ctx, counts); err != nil {
				t.Errorf("%s: %v", c.user, err)
			}
		})
	}
	t.Cleanup(ours.Wait)
	cutAll := func() {
		for _, c := range cutting {
			select {
			case c.cut <- struct{}{}:
			default: // the last one is still to come
			}
		}
	}
	grown := func(by int) func() string {
		from := counts.count()
		return func() string {
			if n := counts.count() - from; n < by {
				return fmt.Sprintf("%d of %d messages", n, by)
			}
			return ""
		}
	}
	sessionsGrown := func(by int64) func() string {
		from := make([]int64, len(sessions))
		for i, c := range sessions {
			from[i] = c.acked.Load()
		}
		return func() string {
			for i, c := range sessions {
				if n := c.acked.Load() - from[i]; n < by {
					return fmt.Sprintf("%s: %d of %d messages", c.user, n, by)
				}
			}
			return ""
		}
	}
	chaintest.Eventually(t, time.Minute, "messages being stored", grown(1000))
	chaintest.Eventually(t, time.Minute, "messages of every session being stored", sessionsGrown(100))
	cutAll()
	chaintest.Eventually(t, time.Minute, "messages of every session being stored after a cut", sessionsGrown(20))

	broker.Kill()
	t.Logf("the broker is away for %s, after %d stored messages", away, counts.count())
	var peak int64
	var inFlight float64
	watch := func(during time.Duration) {
		end := time.NewTimer(during)
		probe := time.NewTicker(500 * time.Millisecond)
		defer probe.Stop()
		for {
			select {
			case <-end.C:
				return
			case <-probe.C:
				peak = max(peak, resident(t, gateway))
				inFlight = max(inFlight, sum(scrape(t, admin), "callscope_gateway_in_flight_bytes"))
			}
		}
	}
	watch(away / 2)
	ackedAtHalf := make([]int64, len(sessions)) // long after the last acknowledgement of the broker that is gone
	for i, c := range sessions {
		ackedAtHalf[i] = c.acked.Load()
	}
	cutAll()
	watch(away - away/2)
	if n := counts.closed.Load(); n == 0 {
		t.Error("no REST message was refused while the broker was away: it was not away")
	}
	waitingMessages, resumed := int64(0), 0
	for i, c := range sessions {
		if n := c.acked.Load(); n != ackedAtHalf[i] {
			t.Errorf("%s: %d messages were acknowledged while there was no broker", c.user, n-ackedAtHalf[i])
		}
		if c.cuts.Load() == 0 && c.outstanding.Load() == 0 {
			t.Errorf("%s: nothing waits for an acknowledgement at the end of the outage", c.user)
		}
		if c.connections.Load() > c.cuts.Load() && c.cuts.Load() > 0 {
			resumed++
		}
		waitingMessages += c.made.Load() - c.acked.Load()
	}
	t.Logf("at the end of the outage %d messages of %d sessions wait, %d of %d cut sessions have resumed", waitingMessages, len(sessions), resumed, len(cutting))
	startBroker()
	back := time.Now()
	chaintest.Eventually(t, time.Minute, "messages being stored again", grown(1000))
	t.Logf("a thousand more messages were stored %s after the return", time.Since(back).Round(time.Millisecond))
	chaintest.Eventually(t, 2*time.Minute, "messages of every session being stored again", sessionsGrown(100))
	t.Logf("a hundred more messages of every session were stored %s after the return", time.Since(back).Round(time.Millisecond))
	cutAll()

	stop()
	close(socketStops)
	clients.Wait()
	ours.Wait()
	peak = max(peak, resident(t, gateway))

	// Every message has one outcome, and what was closed is what was shed.
	var metrics map[string]float64
	chaintest.Eventually(t, 20*time.Second, "every message having an outcome", func() string {
		metrics = scrape(t, admin)
		received, outcomes := sum(metrics, "callscope_gateway_received_total"), sum(metrics, "callscope_gateway_messages_total")
		if received != outcomes {
			return fmt.Sprintf("%v received, %v outcomes", received, outcomes)
		}
		if flight := sum(metrics, "callscope_gateway_in_flight_bytes"); flight != 0 {
			return fmt.Sprintf("%v bytes in flight", flight)
		}
		return ""
	})
	shedAgain := sum(metrics, "callscope_gateway_messages_total", `outcome="shed"`, `dialect="callscope_v1"`)
	shed := sum(metrics, "callscope_gateway_messages_total", `outcome="shed"`) - shedAgain
	accepted := sum(metrics, "callscope_gateway_messages_total", `outcome="accepted"`)
	unconfirmed := sum(metrics, "callscope_gateway_messages_total", `outcome="join_unconfirmed"`)
	if closed := counts.closed.Load(); float64(closed) != shed {
		t.Errorf("%d messages were closed without an answer, %v are counted as shed", closed, shed)
	}
	if late := sum(metrics, "callscope_gateway_unconfirmed_joins_total", `result="stored"`); late != unconfirmed {
		t.Errorf("%v of %v unconfirmed joins were stored", late, unconfirmed)
	}
	if slow := time.Duration(counts.slowJoin.Load()); slow > 4500*time.Millisecond {
		t.Errorf("a userJoined was answered after %s: clients wait 5 s", slow)
	}
	if unconfirmed == 0 {
		t.Error("no userJoined fell into the outage")
	}

	// Nothing that was answered is missing.
	stored, ofSession := readStored(t, brokerAddr)
	lost, doubled := 0, 0
	for n := range counts.answered {
		switch {
		case stored[n] == 0:
			lost++
		case stored[n] > 1:
			doubled++ // a producer's repeat after a lost acknowledgement; the enricher drops it by uid
		}
	}
	for n := range counts.joined {
		if stored[n] == 0 {
			t.Errorf("userJoined %d was answered and is not in Kafka, although the gateway lived on", n)
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d answered messages are not in Kafka", lost, len(counts.answered))
	}
	// Nothing of our own protocol is missing, whatever happened: all was acknowledged in the end, and is stored once.
	sent, repeats, throttles, cuts, connections := 0, 0, int64(0), int64(0), int64(0)
	for _, c := range sessions {
		repeats += c.checkStored(t, ofSession[c.user])
		sent += len(c.ids)
		throttles, cuts, connections = throttles+c.throttles.Load(), cuts+c.cuts.Load(), connections+c.connections.Load()
		if c.lost.Load() > c.cuts.Load() {
			t.Errorf("%s: lost %d connections, of which %d by its own cut: a client must be slowed, not dropped", c.user, c.lost.Load(), c.cuts.Load())
		}
		if c.eager && c.throttles.Load() == 0 {
			t.Errorf("%s: was not told to slow down", c.user)
		}
	}
	for _, c := range cutting {
		if c.cuts.Load() < 2 {
			t.Errorf("%s: was cut %d times, want one under load and one in the outage", c.user, c.cuts.Load())
		}
	}
	t.Logf("own protocol: %d sessions over %d connections, %d cuts, %d throttles; %d messages sent, all acknowledged and stored, %d repeats for the dedup, %v shed and sent again",
		len(sessions), connections, cuts, throttles, sent, repeats, shedAgain)
	if inFlight > budgetBytes {
		t.Errorf("%v bytes in flight, the budget is %d", inFlight, budgetBytes)
	}
	t.Logf("at most %.0f KiB in flight of a budget of %d", inFlight/1024, budgetBytes>>10)
	if peak > maxResident {
		t.Errorf("the gateway took %d MiB at the peak, want at most %d", peak>>20, maxResident>>20)
	}
	t.Logf("%d answered, %d lost, %d twice in the log; %v accepted, %v shed, %v joins answered before they were stored; peak resident %d MiB of %d",
		len(counts.answered), lost, doubled, accepted, shed, unconfirmed, peak>>20, maxResident>>20)
}

// restClient behaves as a callstats client does: one message after the other, none repeated, and none at all without
// its ucID. It joins a new conference now and then.
func restClient(ctx context.Context, t *testing.T, gateway string, index int, counts *tally) {
	user := fmt.Sprint("rest", index)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	token := signIn(t, client, gateway, user)
	post := func(path, body string) (map[string]any, error) {
		req, err := http.NewRequest(http.MethodPost, "http://"+gateway+"/v1/apps/"+appID+"/conferences/"+path, strings.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		var a map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&a); err != nil || a["status"] != "success" {
			t.Errorf("%s: status %d, answer %v (%v): a client would stop or storm", user, resp.StatusCode, a, err)
		}
		return a, nil
	}
	every := time.NewTicker(messageEvery)
	defer every.Stop()
	padding := strings.Repeat("p", 1000)
	conference := 0
	for i := range 1 << 30 {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
		n := firstMessage + counts.next.Add(1)
		if i == 0 || (i+index)%5 == 0 {
			conference++
			began := time.Now()
			a, err := post(fmt.Sprintf("%s-%d", user, conference), fmt.Sprintf(`{"eventType":"userJoined","localID":%q,"deviceID":"d","timestamp":%d}`, user, n))
			took := int64(time.Since(began))
			for old := counts.slowJoin.Load(); took > old && !counts.slowJoin.CompareAndSwap(old, took); old = counts.slowJoin.Load() {
			}
			if err != nil || a["ucID"] == nil {
				t.Errorf("%s: a userJoined was not answered, the client would be silent: %v, %v", user, a, err)
				continue
			}
			counts.mu.Lock()
			counts.joined[n] = true
			counts.mu.Unlock()
			continue
		}
		_, err := post(fmt.Sprintf("%s-%d/uc/events/user/alive", user, conference), fmt.Sprintf(`{"eventType":"userAlive","localID":%q,"deviceID":"d","timestamp":%d,"padding":%q}`, user, n, padding))
		if err != nil {
			counts.closed.Add(1)
			continue
		}
		counts.success(n)
	}
}

// socketClient waits for each answer, however long it takes: while a connection lives, nothing on it is shed.
func socketClient(stop <-chan struct{}, t *testing.T, gateway, user string, counts *tally) {
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	token := signIn(t, &http.Client{Transport: transport, Timeout: 5 * time.Second}, gateway, user)
	dialer := websocket.Dialer{Subprotocols: []string{"echo-protocol"}, HandshakeTimeout: 5 * time.Second}
	conn, resp, err := dialer.Dial("ws://"+gateway+"/csiows/collectCallStats", nil)
	if err != nil {
		t.Errorf("%s: %v", user, err)
		return
	}
	defer resp.Body.Close()
	defer conn.Close()
	for {
		select {
		case <-stop:
			return
		default:
		}
		n := firstMessage + counts.next.Add(1)
		text := fmt.Sprintf(`{"version":"3.24.6","channel":"callStatsEvent","action":"userAlive","apiTS":%d,"appID":%s,"conferenceID":%q,"localID":%q,"deviceID":"d","token":%q,"value":{}}`, n, appID, user, user, token)
		if err := conn.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
			t.Errorf("%s: the connection was lost: %v", user, err)
			return
		}
		_, answer, err := conn.ReadMessage()
		if err != nil || !strings.Contains(string(answer), `"200 OK"`) {
			t.Errorf("%s: answer %q, %v", user, answer, err)
			return
		}
		counts.success(n)
	}
}

func signIn(t *testing.T, client *http.Client, gateway, user string) string {
	signed := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"userID": user, "appID": appID})
	code, err := signed.SignedString([]byte(secret))
	if err != nil {
		t.Errorf("signing: %v", err)
		return ""
	}
	resp, err := client.PostForm("http://"+gateway+"/authenticate", url.Values{"client_id": {user + "@" + appID}, "code": {code}, "grant_type": {"authorization_code"}})
	if err != nil {
		t.Errorf("signing in: %v", err)
		return ""
	}
	defer resp.Body.Close()
	var granted struct {
		Token string `json:"access_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&granted); err != nil || granted.Token == "" {
		t.Errorf("signing in: status %d, %v", resp.StatusCode, err)
	}
	return granted.Token
}

func connect(t *testing.T, broker string) *stream.Client {
	t.Helper()
	client, err := stream.Open(stream.Config{Brokers: []string{broker}, Partitions: 4}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// readStored returns how often each message is in the raw topic, and the records of our own protocol by user. All of a
// user are in one partition, so they are in the order in which they were stored.
func readStored(t *testing.T, broker string) (map[int64]int, map[string][]*callscopev1.Raw) {
	t.Helper()
	client := connect(t, broker)
	defer client.Close()
	stored, ofSession := make(map[int64]int), make(map[string][]*callscopev1.Raw)
	for partition := range int32(4) {
		for offset := int64(0); ; {
			batch, err := client.Fetch(t.Context(), stream.TopicRaw, partition, offset, 4<<20, time.Second)
			if err != nil {
				t.Fatalf("reading partition %d at %d: %v", partition, offset, err)
			}
			for _, r := range batch.Records {
				raw := &callscopev1.Raw{}
				if err := raw.UnmarshalVT(r.Value); err != nil {
					t.Fatalf("record %d of partition %d: %v", r.Offset, partition, err)
				}
				stored[int64(raw.GetClaimed().GetTimeMs())]++
				if raw.GetObserved().GetDialect() == callscopev1.Dialect_DIALECT_CALLSCOPE {
					user := raw.GetClaimed().GetUserId()
					ofSession[user] = append(ofSession[user], raw)
				}
			}
			offset = batch.Next
			if offset >= batch.End {
				break
			}
		}
	}
	return stored, ofSession
}

// scrape reads the metrics of an admin server: name with labels, and value.
func scrape(t *testing.T, admin string) map[string]float64 {
	t.Helper()
	resp, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatalf("reading the metrics: %v", err)
	}
	defer resp.Body.Close()
	metrics := make(map[string]float64)
	for lines := bufio.NewScanner(io.LimitReader(resp.Body, 16<<20)); lines.Scan(); {
		at := strings.LastIndexByte(lines.Text(), ' ')
		if at < 0 || strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		if v, err := strconv.ParseFloat(lines.Text()[at+1:], 64); err == nil {
			metrics[lines.Text()[:at]] = v
		}
	}
	return metrics
}

// sum adds up a metric over the series that have all the given labels.
func sum(metrics map[string]float64, name string, labels ...string) float64 {
	total := 0.0
	for series, v := range metrics {
		match := series == name || strings.HasPrefix(series, name+"{")
		for _, l := range labels {
			match = match && strings.Contains(series, l)
		}
		if match {
			total += v
		}
	}
	return total
}

// resident is the memory of a process, in bytes.
func resident(t *testing.T, p *chaintest.Process) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.Pid()))
	if err != nil {
		t.Fatalf("reading the memory of process %d: %v", p.Pid(), err)
	}
	fields := strings.Fields(string(text))
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		t.Fatalf("reading the memory of process %d: %v", p.Pid(), err)
	}
	return pages * int64(os.Getpagesize())
}
