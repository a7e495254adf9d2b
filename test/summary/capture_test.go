// Package summary holds tests over both stages at once: what comes out of the
// summarizer for a recorded call, against a computation that shares nothing
// with callscope, and both stages under failures.
package summary

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
	"github.com/callscope/callscope/services/enricher"
	"github.com/callscope/callscope/services/gateway/vocabulary"
	"github.com/callscope/callscope/services/summarizer"
)

const (
	beginMs = 1_795_343_000_000 // received time of a recording's t = 0
	// The documented bound of a percentile: 1 % of its value.
	percentileBound = 0.01
)

// captureLine is a line of a recording that a gateway passes on.
type captureLine struct {
	T                              int64
	Kind, Method, Path, Body, Data string
	Conn                           int
}

func (l captureLine) text() string {
	if l.Kind == "http" {
		return l.Body
	}
	return l.Data
}

// captureLines are the lines of a recording without those that a browser
// posted twice.
func captureLines(t testing.TB, file string) []captureLine {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	in.Buffer(nil, 16<<20)
	var lines []captureLine
	seen := map[string]bool{}
	for in.Scan() {
		var l captureLine
		if err := json.Unmarshal(in.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		if l.Kind != "ws-client" && !(l.Kind == "http" && l.Method == "POST" && strings.Contains(l.Path, "/conferences/")) {
			continue
		}
		if key := l.Path + "\x00" + l.text(); !seen[key] {
			seen[key] = true
			lines = append(lines, l)
		}
	}
	if err := in.Err(); err != nil {
		t.Fatal(err)
	}
	return lines
}

func captures(t testing.TB) []string {
	t.Helper()
	all, err := filepath.Glob("../captures/*.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(name string) bool { return strings.HasSuffix(name, ".callbacks.jsonl") })
	if len(all) < 10 {
		t.Fatalf("only %d recordings", len(all))
	}
	return all
}

// rawLog is a partition's log of a recording: its messages, and time.
func rawLog(t testing.TB, lines []captureLine) []stage.Input {
	t.Helper()
	var inputs []stage.Input
	add := func(raw *callscopev1.Raw) {
		raw.Uid = make([]byte, 16)
		binary.BigEndian.PutUint64(raw.Uid[8:], uint64(len(inputs)+1))
		value, err := raw.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		inputs = append(inputs, stage.Input{Offset: int64(len(inputs)), Value: value})
	}
	now := int64(0)
	tick := func() {
		add(&callscopev1.Raw{Payload: &callscopev1.Raw_Tick{Tick: &callscopev1.Tick{TickerUid: []byte("ticker of a test"), MonotonicMs: now, WallMs: beginMs + now}}})
		now += 1000
	}
	devices := map[int]string{}
	for _, l := range lines {
		for now < l.T {
			tick()
		}
		conference, transport := "", vocabulary.WebSocket
		if l.Kind == "http" {
			transport = vocabulary.REST
			_, rest, _ := strings.Cut(l.Path, "/conferences/")
			segment, _, _ := strings.Cut(rest, "/")
			var err error
			if conference, err = url.PathUnescape(segment); err != nil {
				t.Fatal(err)
			}
		}
		m, err := vocabulary.Parse([]byte(l.text()), transport)
		if err != nil {
			continue
		}
		if transport == vocabulary.WebSocket {
			if m.DeviceID() == "" {
				m.SetDeviceID(devices[l.Conn])
			}
			devices[l.Conn] = m.DeviceID()
		}
		for _, raw := range m.Raw(conference) {
			raw.Observed = &callscopev1.Observed{AppId: "1", ReceivedAtMs: beginMs + l.T}
			add(raw)
		}
		m.Release()
	}
	for range 420 { // past silence and grace
		tick()
	}
	return inputs
}

// fold runs both stages over a raw log and returns the enriched records and
// the summaries as they are stored.
func fold(t testing.TB, inputs []stage.Input) (enriched []stage.Input, summaries [][]byte) {
	t.Helper()
	reject := func(offset int64, reason error) { t.Errorf("record %d: %v", offset, reason) }
	err := stage.Fold(func() stage.Machine { return enricher.NewMachine() }, false, slices.Values(inputs), func(e stage.Emitted) error {
		enriched = append(enriched, stage.Input{Offset: int64(len(enriched)), Key: e.Key, Value: e.Value})
		return nil
	}, reject)
	if err != nil {
		t.Fatal(err)
	}
	err = stage.Fold(func() stage.Machine { return summarizer.NewMachine() }, true, slices.Values(enriched), func(e stage.Emitted) error {
		summaries = append(summaries, e.Value)
		return nil
	}, reject)
	if err != nil {
		t.Fatal(err)
	}
	return enriched, summaries
}

// latest are the last summaries of every entity.
func latest(t testing.TB, values [][]byte) []*callscopev1.Summary {
	t.Helper()
	at := map[string]int{}
	var all []*callscopev1.Summary
	for _, value := range values {
		s := &callscopev1.Summary{}
		if err := s.UnmarshalVT(value); err != nil {
			t.Fatal(err)
		}
		i, ok := at[string(s.EntityUid)]
		if !ok {
			at[string(s.EntityUid)] = len(all)
			all = append(all, s)
			continue
		}
		all[i] = s
	}
	return all
}

// The naive computation: the JSON of a recording as a person would read it.

type object = map[string]any

func number(o object, key string) (float64, bool) {
	v, ok := o[key].(float64)
	return v, ok
}

func text(o object, keys ...string) string {
	for _, key := range keys {
		if s, ok := o[key].(string); ok && s != "" {
			return s
		}
	}
	return ""
}

func plain(s string) string {
	if p, err := url.PathUnescape(s); err == nil {
		return p
	}
	return s
}

type point struct{ value, ms float64 }

// naiveStream is what the reports say of one stream.
type naiveStream struct {
	samples                    int
	bitrate, loss, jitter, rtt []point
	lost, expected             float64
	before, peer               object
	beforeMs                   float64
}

type naiveFabric struct{ first, setUp float64 }

// naive computes the measures of all streams, by "user connection ssrc direction".
func naive(t testing.TB, lines []captureLine) map[string]*naiveStream {
	t.Helper()
	streams, fabrics := map[string]*naiveStream{}, map[string]*naiveFabric{}
	for _, l := range lines {
		var o object
		if json.Unmarshal([]byte(l.text()), &o) != nil {
			continue
		}
		user, connection := plain(text(o, "localID", "userID")), text(o, "connectionID", "pcID")
		if connection == "" || plain(connection) == user {
			continue
		}
		at, ok := number(o, "timestamp")
		if !ok {
			at, _ = number(o, "apiTS")
		}
		key := user + " " + connection
		f := fabrics[key]
		if f == nil {
			f = &naiveFabric{first: at}
			fabrics[key] = f
		}
		event, inside := text(o, "eventType", "action", "channel"), o
		if value, ok := o["value"].(object); ok {
			inside = value
		}
		state := text(inside, "newState")
		iceIsUp := event == "fabricStateChange" && text(inside, "changedState") == "iceConnectionState" && (state == "connected" || state == "completed")
		if f.setUp == 0 && (event == "fabricSetup" || event == "autoFabricSetup" || iceIsUp) {
			f.setUp = at
		}
		if entries, ok := o["stats"].([]any); ok {
			report(streams, key, f, at, entries)
		}
		processed, _ := o["processedStatistics"].([]any)
		for _, p := range processed {
			p, _ := p.(object)
			if made, ok := number(p, "apiTS"); ok {
				at = made
			}
			var entries []any
			list, _ := p["streams"].([]any)
			for _, s := range list {
				if s, ok := s.(object); ok {
					entries = append(entries, s["data"])
				}
			}
			report(streams, key, f, at, entries)
		}
	}
	return streams
}

func report(streams map[string]*naiveStream, fabric string, f *naiveFabric, at float64, entries []any) {
	find := func(match func(object) bool) object {
		for _, e := range entries {
			if o, ok := e.(object); ok && match(o) {
				return o
			}
		}
		return nil
	}
	for _, e := range entries {
		o, ok := e.(object)
		kind := text(o, "type")
		if !ok || kind != "inbound-rtp" && kind != "outbound-rtp" {
			continue
		}
		inbound := kind == "inbound-rtp"
		peerKind := "remote-inbound-rtp"
		if inbound {
			peerKind = "remote-outbound-rtp"
		}
		peer := find(func(p object) bool { return text(p, "type") == peerKind && text(p, "localId") == text(o, "id") })
		if peer == nil {
			peer = find(func(p object) bool { return text(p, "type") == peerKind && p["ssrc"] == o["ssrc"] })
		}
		key := fmt.Sprintf("%s %.0f %s", fabric, o["ssrc"], strings.TrimSuffix(kind, "-rtp"))
		s := streams[key]
		if s == nil {
			s = &naiveStream{}
			streams[key] = s
		}
		s.report(o, peer, inbound, f, at)
	}
}

func (s *naiveStream) report(o, peer object, inbound bool, f *naiveFabric, at float64) {
	s.samples++
	begin := f.setUp
	if begin == 0 {
		begin = f.first
	}
	now, _ := number(o, "timestamp")
	ms := now - s.beforeMs
	if s.before == nil {
		ms = at - begin
	}
	jitter, hasJitter := number(o, "jitter")
	if !inbound {
		jitter, hasJitter = number(peer, "jitter")
	}
	rtt, hasRTT := number(peer, "roundTripTime")
	weight := ms
	if !(ms > 0) {
		weight = 1
		if s.before != nil { // the same report again: nothing new but what holds at one moment
			if hasJitter {
				s.jitter = append(s.jitter, point{jitter * 1000, 1})
			}
			if hasRTT {
				s.rtt = append(s.rtt, point{rtt * 1000, 1})
			}
			return
		}
	}
	grew := func(key string) (float64, bool) {
		after, ok := number(o, key)
		before, had := number(s.before, key)
		return after - before, ok && (had || s.before == nil)
	}
	packetsKey, bytesKey := "packetsReceived", "bytesReceived"
	if !inbound {
		packetsKey, bytesKey = "packetsSent", "bytesSent"
	}
	if bytes, ok := grew(bytesKey); ok && ms > 0 {
		s.bitrate = append(s.bitrate, point{8 * bytes / ms, weight})
	}
	packets, hasPackets := grew(packetsKey)
	lost, hasLost := grew("packetsLost")
	if !inbound {
		after, ok := number(peer, "packetsLost")
		before, had := number(s.peer, "packetsLost")
		lost, hasLost = after-before, ok && (had || s.before == nil)
	}
	if hasPackets && hasLost {
		expected := packets
		if inbound {
			expected += lost
		}
		s.lost, s.expected = s.lost+lost, s.expected+expected
		if expected > 0 {
			s.loss = append(s.loss, point{min(max(lost/expected, 0), 1), weight})
		}
	}
	if hasJitter {
		s.jitter = append(s.jitter, point{jitter * 1000, weight})
	}
	total, hasTotal := number(peer, "totalRoundTripTime")
	measured, hasMeasured := number(peer, "roundTripTimeMeasurements")
	totalBefore, had := number(s.peer, "totalRoundTripTime")
	measuredBefore, _ := number(s.peer, "roundTripTimeMeasurements")
	if hasTotal && hasMeasured && measured > measuredBefore && (had || s.before == nil) {
		rtt, hasRTT = (total-totalBefore)/(measured-measuredBefore), true
	}
	if hasRTT {
		s.rtt = append(s.rtt, point{rtt * 1000, weight})
	}
	s.before, s.peer, s.beforeMs = o, peer, now
}

// check holds a distribution against the points it was made of.
func check(t *testing.T, what string, got *callscopev1.Distribution, points []point, threshold float64, ratio *float64) {
	t.Helper()
	if len(points) == 0 {
		if got != nil && got.Min != nil {
			t.Errorf("%s: %v of nothing", what, got)
		}
		return
	}
	if got == nil || got.Mean == nil {
		t.Errorf("%s is absent, want that of %d values", what, len(points))
		return
	}
	points = slices.Clone(points)
	slices.SortStableFunc(points, func(a, b point) int { return cmp.Compare(a.value, b.value) })
	var sum, total, below float64
	for i, p := range points {
		points[i].ms = max(math.Round(p.ms), 1) // weights are whole milliseconds
		sum, total = sum+p.value*points[i].ms, total+points[i].ms
		if p.value < threshold {
			below += points[i].ms
		}
	}
	quantile := func(q float64) float64 {
		seen := 0.0
		for _, p := range points {
			if seen += p.ms; seen >= q*total-1e-9 {
				return p.value
			}
		}
		return points[len(points)-1].value
	}
	mean := sum / total
	if ratio != nil {
		mean = *ratio
	}
	for _, one := range []struct {
		name      string
		got       *float64
		want, tol float64
	}{
		{"mean", got.Mean, mean, 1e-9}, {"min", got.Min, points[0].value, 1e-9}, {"max", got.Max, points[len(points)-1].value, 1e-9},
		{"p10", got.P10, quantile(0.1), percentileBound}, {"median", got.Median, quantile(0.5), percentileBound}, {"p90", got.P90, quantile(0.9), percentileBound},
	} {
		if one.got == nil || math.Abs(*one.got-one.want) > one.tol*math.Abs(one.want)+1e-9 {
			t.Errorf("%s: %s is %v, want %v", what, one.name, one.got, one.want)
			if one.got != nil {
				t.Logf("got %v", *one.got)
			}
		}
	}
	if threshold > 0 && math.Abs(got.GetShareBelow()-below/total) > 1e-9 {
		t.Errorf("%s: share below is %v, want %v", what, got.GetShareBelow(), below/total)
	}
}

// For every recording, every stream's summary equals what a person would
// compute from the reports.
func TestSummariesOfCapturesAgreeWithANaiveComputation(t *testing.T) {
	streams := 0
	for _, file := range captures(t) {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".jsonl"), func(t *testing.T) {
			lines := captureLines(t, file)
			want := naive(t, lines)
			_, values := fold(t, rawLog(t, lines))
			seen := map[string]bool{}
			for _, s := range latest(t, values) {
				st := s.GetStream()
				if st == nil {
					continue
				}
				key := fmt.Sprintf("%s %s %s %s", s.Identity.UserId, s.Identity.ConnectionId, st.Ssrc, st.Direction)
				n := want[key]
				if n == nil {
					t.Errorf("%s is in no report", key)
					continue
				}
				seen[key] = true
				streams++
				if int(st.Samples) != n.samples {
					t.Errorf("%s: %d samples, want %d", key, st.Samples, n.samples)
				}
				check(t, key+" bitrate", st.BitrateKbps, n.bitrate, 0, nil)
				var whole *float64
				if n.expected > 0 {
					whole = new(min(max(n.lost/n.expected, 0), 1))
				}
				check(t, key+" loss", st.Loss, n.loss, 0.05, whole)
				check(t, key+" jitter", st.JitterMs, n.jitter, 100, nil)
				check(t, key+" rtt", st.RttMs, n.rtt, 300, nil)
			}
			for key := range want {
				if !seen[key] {
					t.Errorf("%s has no summary", key)
				}
			}
		})
	}
	if streams < 40 {
		t.Errorf("only %d streams were compared", streams)
	}
}
