package app

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// browserReports are getStats reports of one PeerConnection, one a second: an audio stream that loses 4 of every 100
// packets and conceals a fiftieth of its samples, at 40 kbit/s and 120 ms of round trip.
func browserReports(n int) (times []float64, reports []map[string]map[string]any) {
	for i := range n {
		at := 1_790_000_000_000 + 1000*float64(i)
		count := float64(i + 1)
		times = append(times, at)
		reports = append(reports, map[string]map[string]any{
			"IT01A7": {
				"type": "inbound-rtp", "timestamp": at, "kind": "audio", "ssrc": 7.0, "codecId": "C1", "packetsReceived": 48 * count, "packetsLost": 2 * count,
				"bytesReceived": 5000 * count, "jitter": 0.012, "totalSamplesReceived": 48_000 * count, "concealedSamples": 960 * count, "silentConcealedSamples": 0.0,
				"jitterBufferDelay": 2880 * count, "jitterBufferEmittedCount": 48_000 * count, "audioLevel": 0.1,
			},
			"C1":  {"type": "codec", "timestamp": at, "mimeType": "audio/opus", "clockRate": 48000.0},
			"CP1": {"type": "candidate-pair", "timestamp": at, "state": "succeeded", "nominated": true, "totalRoundTripTime": 0.12 * count, "responsesReceived": count},
			"T01": {"type": "transport", "timestamp": at, "selectedCandidatePairId": "CP1", "bytesReceived": 6000 * count, "bytesSent": 100 * count},
		})
	}
	return times, reports
}

func jsonText(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func internalsDump(t *testing.T, times []float64, reports []map[string]map[string]any) string {
	series, kinds := map[string][]any{}, map[string]string{}
	for _, report := range reports {
		for id, entry := range report {
			for property, v := range entry {
				if property == "type" {
					continue
				}
				series[id+"-"+property] = append(series[id+"-"+property], v)
				kinds[id+"-"+property] = entry["type"].(string)
			}
		}
	}
	stats := map[string]any{"IT01A7-[bytesReceived_in_bits/s]": map[string]any{
		"startTime": "2026-01-01T00:00:00.000Z", "endTime": "2026-01-01T00:00:01.000Z", "statsType": "inbound-rtp", "values": "[1,2,3]",
	}}
	text := func(ms float64) string {
		return time.UnixMilli(int64(ms)).UTC().Format("2006-01-02T15:04:05.000Z07:00")
	}
	for name, values := range series {
		stats[name] = map[string]any{
			"startTime": text(times[0]), "endTime": text(times[len(times)-1]), "statsType": kinds[name], "values": jsonText(t, values),
		}
	}
	return jsonText(t, map[string]any{
		"getUserMedia": []any{}, "UserAgent": "a browser",
		"PeerConnections": map[string]any{"12-3": map[string]any{"url": "https://example.test/", "stats": stats, "updateLog": []any{}}},
	})
}

// rtcstatsDump writes only what changed, with times of the format's version.
func rtcstatsDump(t *testing.T, version int, times []float64, reports []map[string]map[string]any) string {
	var out strings.Builder
	if version >= 3 {
		out.WriteString("RTCStatsDump\n")
	}
	fmt.Fprintf(&out, "{\"fileFormat\":%d,\"userAgent\":\"a browser\"}\n", version)
	last := 0.0
	line := func(method, pc string, value any, at float64) {
		given := at
		if version >= 3 {
			given -= last
		}
		last = at
		out.WriteString(jsonText(t, []any{method, pc, value, given}) + "\n")
	}
	line("create", "PC_0", map[string]any{"iceServers": []any{}}, times[0]-500)
	before := map[string]map[string]any{}
	for i, report := range reports {
		delta := map[string]any{"timestamp": times[i]}
		for _, id := range slices.Sorted(maps.Keys(report)) {
			changed := map[string]any{}
			for property, v := range report[id] {
				if before[id] == nil || before[id][property] != v {
					changed[property] = v
				}
			}
			changed["timestamp"] = 0.0
			delta[id] = changed
		}
		before = report
		line("getStats", "PC_0", delta, times[i])
	}
	line("close", "PC_0", nil, last+1)
	return out.String()
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func packed(t *testing.T, text string) string {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// Every format of a dump gives the same scores of the same reports. By hand: 4 % of 50 packets a second are lost and 2 %
// of the sound is made up, which is R' 66.98 and MOS 3.452 in the published vectors; 60 ms in the buffer and 120 ms of
// round trip are 140 ms one way: X = log2 1.4 = 0.4854, so Idd = 25 (1.01308^(1/6) - 3·1.0000179^(1/6) + 2) = 0.05.
func TestScoreOfDumps(t *testing.T) {
	times, reports := browserReports(31)
	for name, text := range map[string]string{
		"webrtc-internals":        internalsDump(t, times, reports),
		"packed webrtc-internals": packed(t, internalsDump(t, times, reports)),
		"rtcstats 3":              rtcstatsDump(t, 3, times, reports),
		"rtcstats 2":              rtcstatsDump(t, 2, times, reports),
	} {
		var out bytes.Buffer
		if err := scoreFile(&out, writeFile(t, "dump", text), nil); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_, row, found := strings.Cut(out.String(), "\nlocal ")
		if !found {
			t.Errorf("%s: no stream in\n%s", name, &out)
			continue
		}
		row, _, _ = strings.Cut(row, "\n")
		fields := strings.Fields(row)
		want := []string{"inbound", "7", "audio", "audio/opus", "31", "40", "4.00", "12.0", "-", "3.45", "3.45"}
		if len(fields) < len(want) || !slices.Equal(fields[:len(want)], want) {
			t.Errorf("%s: %q, want %q in\n%s", name, fields, want, &out)
		}
		if !strings.Contains(row, "loss -26.13") || !strings.Contains(row, "delay -0.05") {
			t.Errorf("%s: reasons are missing in %q", name, row)
		}
	}
}

func TestScoreOfACapture(t *testing.T) {
	var out bytes.Buffer
	if err := scoreFile(&out, "../../test/captures/two-users-hs256.jsonl", nil); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"capture, 77 messages", "Demo room / 1: success, 2 participants", "emodel-opus-fullband/1", "inbound 2400724546", "frame rate -"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, &out)
		}
	}
}

// What a dump tells of its fabrics is told: by hand from internal/dumps/testdata.
func TestScoreTellsOfFabrics(t *testing.T) {
	for name, want := range map[string][]string{
		"internals-new-alice.json": {"local: fabric 21-1: setup, set up in 712 ms, ICE gathering 500 ms, ICE connectivity 502 ms, 1 disruptions of 600 ms\n"},
		"rtcstats-2-jitsi.jsonl":   {"local: fabric PC_0: failed, failed after 50 ms, createOffer NegotiationFailure\n", "local: fabric PC_1: dropped, set up in 370 ms"},
		"rtcstats-3.jsonl":         {"local: fabric PC_7: failed, failed after 15100 ms, iceConnectionFailure IceConnectionFailure\n", "inbound 901"},
	} {
		var out bytes.Buffer
		if err := scoreFile(&out, filepath.Join("..", "dumps", "testdata", name), nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, want := range want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: %q is missing in\n%s", name, want, &out)
			}
		}
	}
}

func TestScoreRefusesForeignFiles(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"a picture":               {"\x89PNG\r\n\x1a\n", "neither a recording"},
		"nothing":                 {"", "neither a recording"},
		"other JSON":              {`{"name":"callscope"}`, "neither a recording"},
		"an array of numbers":     {"[1,2,3]\n[4,5,6]\n", "neither a recording"},
		"no reports":              {`{"PeerConnections":{}}`, "no getStats report"},
		"values that are no list": {`{"PeerConnections":{"1":{"stats":{"a-b":{"startTime":"2026-01-01T00:00:00Z","endTime":"2026-01-01T00:00:00Z","values":"x"}}}}}`, "the values of a-b"},
		"times that are none":     {`{"PeerConnections":{"1":{"stats":{"a-b":{"startTime":"yesterday","endTime":"today","values":"[1]"}}}}}`, "the times of a-b"},
		"a method of no kind":     {"RTCStatsDump\n{\"fileFormat\":3}\n[{},\"PC_0\",{},5]\n", "line 3: its first value is no method"},
		"a broken line":           {"{\"kind\":\"http\"}\n{\"kind\":\n", "line 2"},
		"broken gzip":             {"\x1f\x8bnothing", "reading"},
	} {
		path := writeFile(t, "file", tc.text)
		err := scoreFile(&bytes.Buffer{}, path, nil)
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q and the file's name", name, err, tc.want)
		}
	}
	if err := scoreFile(&bytes.Buffer{}, "no-such-file", nil); err == nil {
		t.Error("a missing file was scored")
	}
}
