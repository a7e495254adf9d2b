package app

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/callscope/callscope/services/gateway/vocabulary"
)

// The files that `callscope score` reads. Whatever they are, they become the messages that a callstats client would have
// sent, so that they go the way of every message.

const (
	formatCapture   = "capture"
	formatInternals = "webrtc-internals"
	formatRTCStats  = "rtcstats"

	maxScoreLine  = 64 << 20
	maxScoreBytes = 1 << 30
)

// scoredMessage is one client message of a file.
type scoredMessage struct {
	atMs       float64 // when it arrived; the begin is any
	body       []byte
	transport  vocabulary.Transport
	conference string // of a REST message
	conn       int    // of a WebSocket message
}

// readScoreFile reads the messages of a file in the order of their time. It tells the format by the content.
func readScoreFile(name string) (format string, messages []scoredMessage, err error) {
	data, err := readPlain(name)
	if err != nil {
		return "", nil, fmt.Errorf("reading %s: %w", name, err)
	}
	format = formatOf(data)
	switch format {
	case formatCapture:
		messages, err = readCapture(data)
	case formatInternals:
		messages, err = readInternals(data)
	case formatRTCStats:
		messages, err = readRTCStats(data)
	default:
		err = errors.New("it is neither a recording of callstats requests (lines with \"kind\"), nor a dump of chrome://webrtc-internals " +
			"(an object with \"PeerConnections\"), nor an rtcstats dump (RTCStatsDump, or lines that are arrays)")
	}
	if err == nil && len(messages) == 0 {
		err = errors.New("it holds no getStats report and no event")
	}
	if err != nil {
		return format, nil, fmt.Errorf("reading %s: %w", name, err)
	}
	slices.SortStableFunc(messages, func(a, b scoredMessage) int { return cmp.Compare(a.atMs, b.atMs) })
	return format, messages, nil
}

// readPlain reads a file, unpacked where it is gzip.
func readPlain(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in := bufio.NewReader(f)
	var r io.Reader = in
	if magic, _ := in.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		if r, err = gzip.NewReader(in); err != nil {
			return nil, err
		}
	}
	data, err := io.ReadAll(io.LimitReader(r, maxScoreBytes+1))
	if err == nil && len(data) > maxScoreBytes {
		return nil, fmt.Errorf("it has more than %d MiB", maxScoreBytes>>20)
	}
	return data, err
}

func formatOf(data []byte) string {
	data = bytes.TrimSpace(data)
	first, _, _ := bytes.Cut(data, []byte("\n"))
	var line struct {
		Kind            string
		FileFormat      *float64
		PeerConnections json.RawMessage
	}
	switch {
	case bytes.HasPrefix(data, []byte("RTCStatsDump")):
		return formatRTCStats
	case bytes.HasPrefix(data, []byte("[")):
		var event []json.RawMessage
		var method string
		if json.Unmarshal(first, &event) == nil && len(event) >= 3 && json.Unmarshal(event[0], &method) == nil {
			return formatRTCStats
		}
	case json.Unmarshal(first, &line) == nil && line.Kind != "":
		return formatCapture
	case line.FileFormat != nil:
		return formatRTCStats
	case json.Unmarshal(data, &line) == nil && len(line.PeerConnections) > 0:
		return formatInternals
	}
	return ""
}

// eachLine calls f with each line that is not empty; its error names the line.
func eachLine(data []byte, f func(line []byte) error) error {
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, maxScoreLine)
	for n := 1; lines.Scan(); n++ {
		if line := bytes.TrimSpace(lines.Bytes()); len(line) > 0 {
			if err := f(line); err != nil {
				return fmt.Errorf("line %d: %w", n, err)
			}
		}
	}
	return lines.Err()
}

// readCapture reads a recording of callstats requests, as in test/captures.
func readCapture(data []byte) ([]scoredMessage, error) {
	var messages []scoredMessage
	err := eachLine(data, func(text []byte) error {
		var line struct {
			T                              float64
			Kind, Method, Path, Body, Data string
			Conn                           int
		}
		if err := json.Unmarshal(text, &line); err != nil {
			return err
		}
		switch {
		case line.Kind == "ws-client":
			messages = append(messages, scoredMessage{atMs: line.T, body: []byte(line.Data), transport: vocabulary.WebSocket, conn: line.Conn})
		case line.Kind == "http" && line.Method == "POST" && strings.Contains(line.Path, "/conferences/"):
			_, rest, _ := strings.Cut(line.Path, "/conferences/")
			segment, _, _ := strings.Cut(rest, "/")
			conference, err := url.PathUnescape(segment)
			if err != nil {
				return fmt.Errorf("conference id: %w", err)
			}
			messages = append(messages, scoredMessage{atMs: line.T, body: []byte(line.Body), conference: conference})
		}
		return nil
	})
	return messages, err
}

// dumped makes messages of the PeerConnections of one browser's dump. The user is called local, its one device is the
// dump, and who it talks to is not known.
type dumped struct {
	messages []scoredMessage
	joined   bool
	fabrics  map[string]bool
}

// report adds one getStats report of a PeerConnection, at epoch milliseconds.
func (d *dumped) report(pc string, atMs float64, entries map[string]map[string]any) {
	if !d.joined {
		d.joined = true
		d.add(atMs, map[string]any{"eventType": "userJoined"})
	}
	if !d.fabrics[pc] {
		if d.fabrics == nil {
			d.fabrics = map[string]bool{}
		}
		d.fabrics[pc] = true
		d.add(atMs, map[string]any{"eventType": "fabricSetup", "connectionID": pc})
	}
	list := make([]any, 0, len(entries))
	for _, id := range slices.Sorted(maps.Keys(entries)) {
		entry := maps.Clone(entries[id])
		entry["id"] = id
		if codec, ok := entry["codecId"].(string); ok && entry["mimeType"] == nil && entries[codec] != nil {
			entry["mimeType"] = entries[codec]["mimeType"]
		}
		list = append(list, entry)
	}
	d.add(atMs, map[string]any{"eventType": "stats", "connectionID": pc, "stats": list})
}

func (d *dumped) add(atMs float64, body map[string]any) {
	body["localID"], body["deviceID"], body["timestamp"] = "local", "dump", atMs
	text, err := json.Marshal(body)
	if err != nil {
		return // values that came out of JSON go into it again
	}
	d.messages = append(d.messages, scoredMessage{atMs: atMs, body: text, conference: "dump"})
}

// readInternals reads a dump of chrome://webrtc-internals: for each property of each statistics object the values of its
// polls, one a second, as the text of an array. The objects are polled together, so that a series' last value is of the
// poll at its endTime.
func readInternals(data []byte) ([]scoredMessage, error) {
	var dump struct {
		PeerConnections map[string]struct {
			Stats map[string]struct {
				StartTime, EndTime string
				StatsType          string
				Values             json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(data, &dump); err != nil {
		return nil, err
	}
	var d dumped
	for _, pc := range slices.Sorted(maps.Keys(dump.PeerConnections)) {
		type series struct {
			id, property, kind string
			begin, end         float64
			values             []any
		}
		var all []series
		var polls series // the longest
		for name, s := range dump.PeerConnections[pc].Stats {
			at := strings.LastIndexByte(name, '-')
			if strings.Contains(name, "[") || at < 0 {
				continue // computed by the page
			}
			begin, err := time.Parse(time.RFC3339Nano, s.StartTime)
			end, err2 := time.Parse(time.RFC3339Nano, s.EndTime)
			if err := errors.Join(err, err2); err != nil {
				return nil, fmt.Errorf("the times of %s of PeerConnection %s: %w", name, pc, err)
			}
			one := series{id: name[:at], property: name[at+1:], kind: s.StatsType, begin: float64(begin.UnixMilli()), end: float64(end.UnixMilli())}
			values := []byte(s.Values)
			var text string
			if json.Unmarshal(values, &text) == nil {
				values = []byte(text)
			}
			if err := json.Unmarshal(values, &one.values); err != nil {
				return nil, fmt.Errorf("the values of %s of PeerConnection %s: %w", name, pc, err)
			}
			all = append(all, one)
			if n, best := len(one.values), len(polls.values); n > best || n == best && one.id+one.property < polls.id+polls.property {
				polls = one
			}
		}
		n := len(polls.values)
		if n == 0 {
			continue
		}
		step := 1000.0
		if n > 1 {
			step = max((polls.end-polls.begin)/float64(n-1), 1)
		}
		reports := make([]map[string]map[string]any, n)
		for _, s := range all {
			last := n - 1 - int(math.Round((polls.end-s.end)/step))
			for i, v := range s.values {
				poll := last - (len(s.values) - 1 - i)
				if poll < 0 || poll >= n || v == nil {
					continue
				}
				if reports[poll] == nil {
					reports[poll] = map[string]map[string]any{}
				}
				entry := reports[poll][s.id]
				if entry == nil {
					entry = map[string]any{"type": s.kind}
					reports[poll][s.id] = entry
				}
				entry[s.property] = v
			}
		}
		for poll, entries := range reports {
			if len(entries) > 0 {
				d.report(pc, math.Round(polls.begin+float64(poll)*step), entries)
			}
		}
	}
	return d.messages, nil
}

// readRTCStats reads an rtcstats dump: lines of [method, PeerConnection, value, ..., time]. The time is that of the
// event, or since file format 3 what has passed since the line before. The reports of getStats may hold only what
// changed since the report before; an entry's time of 0 is then the report's own.
func readRTCStats(data []byte) ([]scoredMessage, error) {
	var d dumped
	relative := false
	now := 0.0
	before := map[string]map[string]map[string]any{}
	err := eachLine(data, func(text []byte) error {
		switch text[0] {
		case 'R':
			return nil
		case '{':
			var head struct{ FileFormat float64 }
			if err := json.Unmarshal(text, &head); err != nil {
				return err
			}
			relative = head.FileFormat >= 3
			return nil
		}
		var event []json.RawMessage
		if err := json.Unmarshal(text, &event); err != nil {
			return err
		}
		var at float64
		if len(event) < 4 {
			return nil // of no PeerConnection and no time: a comment of the recorder
		}
		if json.Unmarshal(event[len(event)-1], &at) != nil {
			return nil //nolint:nilerr // a line without a time tells nothing
		}
		if relative {
			at += now
		}
		now = at
		var method, pc string
		if json.Unmarshal(event[0], &method) != nil {
			return errors.New("the names of its methods are compressed; this program reads them in full")
		}
		if !strings.EqualFold(method, "getstats") || json.Unmarshal(event[1], &pc) != nil {
			return nil //nolint:nilerr // of no PeerConnection
		}
		var report map[string]json.RawMessage
		if err := json.Unmarshal(event[2], &report); err != nil {
			return fmt.Errorf("a getStats report: %w", err)
		}
		d.report(pc, at, undelta(before, pc, report))
		return nil
	})
	return d.messages, err
}

// undelta completes a report by the one before.
func undelta(before map[string]map[string]map[string]any, pc string, report map[string]json.RawMessage) map[string]map[string]any {
	if before[pc] == nil {
		before[pc] = map[string]map[string]any{}
	}
	whole := before[pc]
	var reportTime any
	if text, ok := report["timestamp"]; ok {
		_ = json.Unmarshal(text, &reportTime) // absent or a number; anything else tells no time
		delete(report, "timestamp")
	}
	for id, text := range report {
		var entry map[string]any
		if json.Unmarshal(text, &entry) != nil {
			continue
		}
		if whole[id] == nil {
			whole[id] = map[string]any{}
		}
		maps.Copy(whole[id], entry)
	}
	complete := make(map[string]map[string]any, len(whole))
	for id, entry := range whole {
		entry = maps.Clone(entry)
		if _, isNumber := reportTime.(float64); isNumber && (entry["timestamp"] == nil || entry["timestamp"] == 0.0 || report[id] == nil) {
			entry["timestamp"] = reportTime
		}
		complete[id] = entry
	}
	return complete
}
