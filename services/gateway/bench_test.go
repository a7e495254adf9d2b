package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/valyala/fastjson"

	"github.com/callscope/callscope/internal/apps"
	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/internal/stream/streamtest"
	"github.com/callscope/callscope/services/gateway/limits"
	"github.com/callscope/callscope/services/gateway/vocabulary"
)

// The server of a benchmark is a process of its own, this test binary with the environment variable set, so that its
// CPU time is not mixed with that of the clients and of the broker. It serves the gateway and, on a second port, the
// floor: nothing but the parts that no gateway can do without.
const benchServerEnv = "CALLSCOPE_BENCH_SERVER"

type benchServerConfig struct {
	Broker, CertFile, KeyFile string
	Messages                  map[string]string // kind to text
}

type benchServerAddrs struct{ Gateway, Floor string }

// usage is what the server process has used so far.
type usage struct {
	CPU      time.Duration
	Mallocs  uint64
	Produced int64 // records that Kafka acknowledged
}

// counted counts what Kafka acknowledged: a message that was refused would be measured as a fast one.
type counted struct {
	producer *stream.Producer
	n        atomic.Int64
}

func (c *counted) Produce(ctx context.Context, key, value []byte) error {
	err := c.producer.Produce(ctx, key, value)
	if err == nil {
		c.n.Add(1)
	}
	return err
}

func benchServer() {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "benchmark server:", err)
			os.Exit(1)
		}
	}
	if name := os.Getenv("CALLSCOPE_BENCH_PROFILE"); name != "" {
		f, err := os.Create(name)
		fail(err)
		fail(pprof.StartCPUProfile(f))
		defer pprof.StopCPUProfile()
	}
	defer runtime.KeepAlive(make([]byte, 64<<20)) // the ballast of internal/app/memory.go, for the gateway and the floor alike
	var cfg benchServerConfig
	fail(json.Unmarshal([]byte(os.Getenv(benchServerEnv)), &cfg))
	log := slog.New(slog.DiscardHandler)
	client, err := stream.Open(stream.Config{Brokers: []string{cfg.Broker}}, log, nil)
	fail(err)
	producer := &counted{producer: client.NewProducer(stream.TopicRaw)}
	parsed, err := apps.ParseSecret(secret)
	fail(err)
	registry, err := apps.NewStatic(&apps.App{ID: appID, Secrets: []apps.Secret{parsed}, Settings: apps.DefaultSettings()})
	fail(err)
	limit := limits.Config{ // they are asked, and never reached
		AppMessagesPerSecond: 1 << 40, AppBytesPerSecond: 1 << 40, UserMessagesPerSecond: 1 << 40, UserBytesPerSecond: 1 << 40,
	}
	g, err := New(Config{Addr: "127.0.0.1:0", TokenKey: tokenKey, TLSCertFile: cfg.CertFile, TLSKeyFile: cfg.KeyFile, Limits: limit}, registry, producer, log, nil)
	fail(err)
	go func() { fail(g.Run(context.Background())) }()
	for g.Ready() != nil {
		runtime.Gosched()
	}
	pair, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
	fail(err)
	floor, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12})
	fail(err)
	handler, err := floorHandler(cfg, producer)
	fail(err)
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	go func() { fail(server.Serve(floor)) }()

	out := json.NewEncoder(os.Stdout)
	fail(out.Encode(benchServerAddrs{g.Addr(), floor.Addr().String()}))
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); { // each line asks for the usage; the end of input ends the process
		var r syscall.Rusage
		fail(syscall.Getrusage(syscall.RUSAGE_SELF, &r))
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fail(out.Encode(usage{time.Duration(r.Utime.Nano() + r.Stime.Nano()), m.Mallocs, producer.n.Load()}))
	}
}

// floorHandler receives, parses the JSON without reading anything from it, marshals a record of the same content that
// was made before, produces it and answers. It checks nothing.
func floorHandler(cfg benchServerConfig, producer interface {
	Produce(ctx context.Context, key, value []byte) error
}) (http.Handler, error) {
	type record interface{ MarshalVT() ([]byte, error) }
	records := make(map[string]record)
	for kind, text := range cfg.Messages {
		transport := vocabulary.REST
		if strings.HasPrefix(kind, "wss") {
			transport = vocabulary.WebSocket
		}
		m, err := vocabulary.Parse([]byte(text), transport)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
		records[kind] = m.Raw("room")[0]
	}
	var parsers fastjson.ParserPool
	take := func(r record, body []byte) error {
		parser := parsers.Get()
		_, err := parser.ParseBytes(body)
		parsers.Put(parser)
		if err != nil {
			return err
		}
		value, err := r.MarshalVT()
		if err != nil {
			return err
		}
		return producer.Produce(context.Background(), []byte("room"), value)
	}
	upgrader := websocket.Upgrader{WriteBufferPool: &sync.Pool{}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		record := records[r.URL.Query().Get("kind")]
		if r.Method == http.MethodPost {
			body, err := io.ReadAll(r.Body)
			if err == nil {
				err = take(record, body)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			_, _ = w.Write([]byte(`{"status":"success"}`))
			return
		}
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		frames := make(chan []byte, 64) // reading and storing overlap, as in the gateway
		go func() {
			defer close(frames)
			for {
				_, frame, err := conn.ReadMessage()
				if err != nil {
					return
				}
				frames <- frame
			}
		}()
		for frame := range frames {
			if len(frame) < 4096 && bytes.Contains(frame, []byte(`"clockSync"`)) { // the marker
				err = conn.WriteMessage(websocket.TextMessage, []byte(`{"status":"200 OK","event":"clockSync"}`))
			} else {
				err = take(record, frame)
			}
			if err != nil {
				return
			}
		}
	}), nil
}

type benchTarget struct {
	benchServerAddrs
	tls      *tls.Config
	token    string
	messages map[string]string
	ask      func() usage
}

func startBenchServer(b *testing.B) *benchTarget {
	b.Helper()
	broker := streamtest.StartBroker(b)
	client, err := stream.Open(stream.Config{Brokers: []string{broker}, Partitions: 4, ReplicationFactor: 1}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = client.Close() })
	if err := client.EnsureTopics(b.Context()); err != nil {
		b.Fatal(err)
	}
	certFile, keyFile, pool := certificate(b)
	cfg := benchServerConfig{broker, certFile, keyFile, benchMessages(b)}
	text, err := json.Marshal(cfg)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), benchServerEnv+"="+string(text), "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait() // it was for this benchmark only
	})
	answers := json.NewDecoder(out)
	t := &benchTarget{tls: &tls.Config{RootCAs: pool}, messages: cfg.Messages}
	if err := answers.Decode(&t.benchServerAddrs); err != nil {
		b.Fatalf("the server did not start: %v", err)
	}
	t.ask = func() (u usage) {
		if _, err := io.WriteString(in, "\n"); err != nil {
			b.Fatal(err)
		}
		if err := answers.Decode(&u); err != nil {
			b.Fatal(err)
		}
		return u
	}
	t.token = benchSignIn(b, t.Gateway, pool)
	return t
}

func benchSignIn(b *testing.B, addr string, pool *x509.CertPool) string {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer transport.CloseIdleConnections()
	form := "client_id=alice%40" + appID + "&grant_type=authorization_code&code=" + clientToken(b, "alice", appID, secret)
	resp, err := (&http.Client{Transport: transport}).Post("https://"+addr+"/authenticate", "application/x-www-form-urlencoded", strings.NewReader(form))
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	var granted struct {
		Token string `json:"access_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&granted); err != nil || granted.Token == "" {
		b.Fatalf("signing in: %d %v", resp.StatusCode, err)
	}
	return granted.Token
}

// answeredFrame are the frames with an answer of their own, which would be taken for the marker's.
var answeredFrame = regexp.MustCompile(`"(userJoined|userAlive|fabricSetupFailed|userFeedbackEvent)"`)

// benchMessages are the recorded messages nearest to 1 KB and 8 KB of both transports.
func benchMessages(b *testing.B) map[string]string {
	files, err := filepath.Glob("../../test/captures/*.jsonl")
	if err != nil {
		b.Fatal(err)
	}
	best := make(map[string]string)
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		for line := range bytes.Lines(text) {
			var l struct{ Kind, Method, Path, Body, Data string }
			if err := json.Unmarshal(line, &l); err != nil {
				b.Fatal(err)
			}
			body, transport := l.Body, "rest"
			switch {
			case l.Kind == "ws-client" && !answeredFrame.MatchString(l.Data):
				body, transport = l.Data, "wss"
			case l.Method != "POST" || !strings.Contains(l.Path, "/conferences/") || strings.Contains(body, `"userJoined"`):
				continue
			}
			for kind, size := range map[string]int{transport + "/1KB": 1 << 10, transport + "/8KB": 8 << 10} {
				if old, found := best[kind]; !found || abs(len(body)-size) < abs(len(old)-size) {
					best[kind] = body
				}
			}
		}
	}
	return best
}

func abs(n int) int { return max(n, -n) }

const (
	benchClients = 64
	markerEvery  = 16 // frames
	benchTurns   = 20 // of the floor and the gateway, so that what else the machine does falls on both
)

// A benchClient is a connection that sends messages until none is left and all of its own are stored.
type benchClient func(left *atomic.Int64) error

func (t *benchTarget) connect(b *testing.B, kind, addr string) []benchClient {
	dial := t.posts
	if strings.HasPrefix(kind, "wss") {
		dial = t.frames
	}
	clients := make([]benchClient, benchClients)
	for i := range clients {
		var err error
		if clients[i], err = dial(b, kind, addr); err != nil {
			b.Fatal(err)
		}
	}
	return clients
}

// send sends n messages and returns when all are stored.
func send(b *testing.B, clients []benchClient, n int) {
	var left atomic.Int64
	left.Store(int64(n))
	var sending sync.WaitGroup
	for _, client := range clients[:min(len(clients), n)] {
		sending.Go(func() {
			if err := client(&left); err != nil {
				b.Error(err)
			}
		})
	}
	sending.Wait()
}

func (t *benchTarget) posts(b *testing.B, kind, addr string) (benchClient, error) {
	conn, err := tls.Dial("tcp", addr, t.tls)
	if err != nil {
		return nil, err
	}
	b.Cleanup(func() { _ = conn.Close() })
	body := t.messages[kind]
	request := fmt.Appendf(nil, "POST /v1/apps/%s/conferences/room/u/stats?kind=%s HTTP/1.1\r\nHost: x\r\nOrigin: https://app.example.test\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nContent-Type: application/json\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", appID, kind, t.token, len(body), body)
	answers := bufio.NewReader(conn)
	return func(left *atomic.Int64) error {
		for left.Add(-1) >= 0 {
			if _, err := conn.Write(request); err != nil {
				return err
			}
			resp, err := http.ReadResponse(answers, nil)
			if err != nil {
				return err
			}
			text, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || !bytes.Contains(text, []byte(`"success"`)) {
				return fmt.Errorf("answer %d %s: %w", resp.StatusCode, text, err)
			}
		}
		return nil
	}, nil
}

func (t *benchTarget) frames(b *testing.B, kind, addr string) (benchClient, error) {
	dialer := websocket.Dialer{TLSClientConfig: t.tls}
	conn, resp, err := dialer.Dial("wss://"+addr+"/csiows/collectCallStats?kind="+kind, nil)
	if err != nil {
		return nil, err
	}
	_ = resp.Body.Close()
	b.Cleanup(func() { _ = conn.Close() })
	var m map[string]json.RawMessage
	if err := json.Unmarshal([]byte(t.messages[kind]), &m); err != nil {
		return nil, err
	}
	m["token"] = json.RawMessage(`"` + t.token + `"`)
	frame, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	marker := []byte(`{"action":"clockSync","conferenceID":"x","token":"` + t.token + `"}`)
	prepared, err := websocket.NewPreparedMessage(websocket.TextMessage, frame)
	if err != nil {
		return nil, err
	}
	return func(left *atomic.Int64) error {
		for done := false; !done; {
			sent := 0
			for ; sent < markerEvery; sent++ {
				if left.Add(-1) < 0 {
					done = true
					break
				}
				if err := conn.WritePreparedMessage(prepared); err != nil {
					return err
				}
			}
			if sent == 0 {
				break
			}
			if err := conn.WriteMessage(websocket.TextMessage, marker); err != nil {
				return err
			}
			if _, text, err := conn.ReadMessage(); err != nil || !bytes.Contains(text, []byte(`"clockSync"`)) {
				return fmt.Errorf("answer %s: %w", text, err)
			}
		}
		return nil
	}, nil
}

// BenchmarkMessages measures the gateway's CPU for a message, from the socket until it is durable in Kafka and answered,
// over TLS, next to the floor of its parts in the same run, on connections that stand. ratio-% is floor ÷ gateway. With CALLSCOPE_BENCH_PROFILE=file
// the server process writes a CPU profile.
func BenchmarkMessages(b *testing.B) {
	t := startBenchServer(b)
	for _, kind := range []string{"rest/1KB", "rest/8KB", "wss/1KB", "wss/8KB"} {
		b.Run(kind, func(b *testing.B) {
			b.StopTimer()
			floorClients, clients := t.connect(b, kind, t.Floor), t.connect(b, kind, t.Gateway)
			send(b, floorClients, min(b.N, 500)) // warm
			send(b, clients, min(b.N, 500))
			var used [2]usage // floor, gateway
			measure := func(side int, clients []benchClient, n int) {
				before := t.ask()
				send(b, clients, n)
				after := t.ask()
				if produced := after.Produced - before.Produced; produced < int64(n) { // a message may hold several records
					b.Fatalf("%d of %d messages were stored: the figures would be of something else", produced, n)
				}
				used[side].CPU += after.CPU - before.CPU
				used[side].Mallocs += after.Mallocs - before.Mallocs
			}
			b.ResetTimer()
			// Asking for the usage costs both sides alike, so a turn is long enough to hide it.
			turns := min(benchTurns, max(1, b.N/1500))
			for i := range turns {
				n := (i+1)*b.N/turns - i*b.N/turns
				measure(0, floorClients, n)
				b.StartTimer()
				measure(1, clients, n)
				b.StopTimer()
			}
			floor, cpu := used[0].CPU/time.Duration(b.N), used[1].CPU/time.Duration(b.N)
			floorMallocs, mallocs := float64(used[0].Mallocs)/float64(b.N), float64(used[1].Mallocs)/float64(b.N)
			b.ReportMetric(float64(len(t.messages[kind])), "bytes/msg")
			b.ReportMetric(float64(cpu.Nanoseconds())/1e3, "cpu-µs/msg")
			b.ReportMetric(float64(floor.Nanoseconds())/1e3, "floor-µs/msg")
			b.ReportMetric(1e9/float64(max(cpu.Nanoseconds(), 1)), "msg/s/core")
			b.ReportMetric(100*float64(floor)/float64(max(cpu, 1)), "ratio-%")
			b.ReportMetric(mallocs, "allocs/msg")
			b.ReportMetric(floorMallocs, "floor-allocs/msg")
		})
	}
}
