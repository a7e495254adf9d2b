package dumps

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// internalsDump is the file that chrome://webrtc-internals saves.
type internalsDump struct {
	GetUserMedia    []internalsMedia `json:"getUserMedia"`
	PeerConnections map[string]*struct {
		UpdateLog []struct {
			Time  json.RawMessage
			Type  string
			Value json.RawMessage
		} `json:"updateLog"`
		Stats map[string]internalsSeries `json:"stats"`
	}
	UserAgent string
}

type internalsMedia struct {
	Timestamp    json.RawMessage
	Error        string
	ErrorMessage string `json:"error_message"`
	RequestType  string `json:"request_type"`
}

type internalsSeries struct {
	StartTime, EndTime string
	StatsType          string
	Values             json.RawMessage
}

// readInternals reads a dump of chrome://webrtc-internals: for each property of each statistics object the values of
// its polls, one a second, as the text of an array; beside them a log of what was called and what changed. The objects
// are polled together, so that a series' last value is of the poll at its endTime.
//
// The old layout writes the log's times as the browser shows them, in a zone that the file does not name, to the
// second; the statistics' times are exact in both. The zone is then the one that brings the two together.
func (s *source) readInternals(data []byte) error {
	var dump internalsDump
	if err := json.Unmarshal(data, &dump); err != nil {
		return jsonError(err)
	}
	s.format, s.version, s.userAgent = WebRTCInternals, "2", strings.ToValidUTF8(dump.UserAgent, "\uFFFD")
	for _, id := range slices.Sorted(maps.Keys(dump.PeerConnections)) {
		pc := dump.PeerConnections[id]
		if pc == nil {
			s.unused++
			continue
		}
		events := make([]entry, 0, len(pc.UpdateLog))
		local := false // times without a zone
		for _, update := range pc.UpdateLog {
			atMs, zoned := internalsTime(update.Time)
			local = local || !zoned && atMs > 0
			events = append(events, entryOf(update.Type, atMs, update.Value))
		}
		polls, err := s.readSeries(id, pc.Stats)
		if err != nil {
			return fmt.Errorf("PeerConnection %s: %w", id, err)
		}
		if local {
			s.version = "1"
			moveZone(events, polls)
		}
		for _, e := range events {
			s.add(id, e)
		}
	}
	for _, m := range dump.GetUserMedia {
		if m.Error == "" || strings.Contains(m.RequestType, "Display") {
			continue
		}
		atMs, _ := internalsTime(m.Timestamp)
		if !plausible(atMs) {
			s.unused++
			continue
		}
		s.media = append(s.media, entry{atMs: atMs, name: "getusermediaonfailure", value: strings.Trim(m.Error+": "+m.ErrorMessage, ": ")})
	}
	return nil
}

// maxPolls is how many values of a series the page keeps; of longer calls only the last ones.
const maxPolls = 1000

// moveZone moves times of an unknown zone by what brings the first event to the first poll. Polls begin within seconds
// of a PeerConnection, so that quarter hours are told apart; where the first polls are no longer there, whole hours.
func moveZone(events []entry, polls polled) {
	const quarterMs, hourMs = 15 * 60_000, 3_600_000
	firstMs := math.Inf(1)
	for _, e := range events {
		if e.atMs > 0 {
			firstMs = min(firstMs, e.atMs)
		}
	}
	if polls.count == 0 || math.IsInf(firstMs, 1) {
		return // taken for UTC
	}
	shift := math.Round((polls.firstMs-firstMs)/quarterMs) * quarterMs
	if polls.count >= maxPolls {
		shift = math.Floor((polls.firstMs+60_000-firstMs)/hourMs) * hourMs
	}
	if math.Abs(shift) > 14*hourMs {
		return // no zone is that far: the page was opened long after the call began
	}
	for i := range events {
		if events[i].atMs > 0 {
			events[i].atMs += shift
		}
	}
}

// polled is when a PeerConnection's statistics were first asked for, and how often.
type polled struct {
	firstMs float64
	count   int
}

// localLayouts are how browsers write a time of their own zone, in English and some other languages.
var localLayouts = []string{
	"1/2/2006, 3:04:05 PM", "1/2/2006 3:04:05 PM", "2/1/2006, 15:04:05", "2/1/2006 15:04:05", "2.1.2006, 15:04:05", "2006/1/2 15:04:05", "2006-1-2 15:04:05",
}

// internalsTime reads a time: epoch milliseconds as number or text, or with a zone, or without one (zoned false, as if
// it were UTC). 0 is none.
func internalsTime(value json.RawMessage) (ms float64, zoned bool) {
	var number float64
	if json.Unmarshal(value, &number) == nil {
		return number, true
	}
	var text string
	if json.Unmarshal(value, &text) != nil {
		return 0, true
	}
	text = strings.Map(func(r rune) rune { // newer browsers put narrow spaces before AM and PM
		if r == '\u202f' || r == '\u00a0' {
			return ' '
		}
		return r
	}, strings.TrimSpace(text))
	if number, err := strconv.ParseFloat(text, 64); err == nil {
		return number, true
	}
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return float64(at.UnixMilli()), true
	}
	for _, layout := range localLayouts {
		if at, err := time.Parse(layout, text); err == nil {
			return float64(at.UnixMilli()), false
		}
	}
	return 0, true
}

// readSeries turns the series into the reports of the polls, and returns when they were made.
func (s *source) readSeries(pc string, stats map[string]internalsSeries) (polled, error) {
	type series struct {
		id, property, kind string
		beginMs, endMs     float64
		values             []any
	}
	var all []series
	var polls series // the longest
	for _, name := range slices.Sorted(maps.Keys(stats)) {
		one := stats[name]
		at := strings.LastIndexByte(name, '-')
		if strings.Contains(name, "[") || at < 0 {
			continue // computed by the page
		}
		begin, err := time.Parse(time.RFC3339Nano, one.StartTime)
		end, err2 := time.Parse(time.RFC3339Nano, one.EndTime)
		if err := errors.Join(err, err2); err != nil {
			return polled{}, fmt.Errorf("the times of %s: %w", clip(name), err)
		}
		x := series{id: name[:at], property: name[at+1:], kind: kindOf(one.StatsType, name), beginMs: float64(begin.UnixMilli()), endMs: float64(end.UnixMilli())}
		values := []byte(one.Values)
		var text string
		if json.Unmarshal(values, &text) == nil {
			values = []byte(text)
		}
		if err := json.Unmarshal(values, &x.values); err != nil {
			return polled{}, fmt.Errorf("the values of %s: %w", clip(name), err)
		}
		if !plausible(x.beginMs) || !plausible(x.endMs) || x.endMs < x.beginMs {
			s.unused++
			continue
		}
		all = append(all, x)
		if len(x.values) > len(polls.values) {
			polls = x
		}
	}
	n := len(polls.values)
	if n == 0 {
		return polled{}, nil
	}
	step := 1000.0
	if n > 1 {
		step = max((polls.endMs-polls.beginMs)/float64(n-1), 1)
	}
	first := make([]int, len(all)) // the poll of each series' first value
	for i, x := range all {
		last := n - 1 - int(math.Round((polls.endMs-x.endMs)/step))
		first[i] = last - (len(x.values) - 1)
	}
	for poll := range n {
		entries := map[string]map[string]any{}
		for i, x := range all {
			at := poll - first[i]
			if at < 0 || at >= len(x.values) || x.values[at] == nil {
				continue
			}
			if entries[x.id] == nil {
				entries[x.id] = map[string]any{"type": x.kind}
			}
			entries[x.id][x.property] = x.values[at]
		}
		if len(entries) == 0 {
			continue
		}
		if err := s.report(pc, math.Round(polls.beginMs+float64(poll)*step), entries); err != nil {
			return polled{}, err
		}
	}
	return polled{polls.beginMs, n}, nil
}

// kindOf is the type of a statistics object. The old layout does not write it; there its id begins with the name of the
// class.
func kindOf(written, id string) string {
	if written != "" {
		return written
	}
	for _, known := range []struct{ prefix, kind string }{
		{"RTCInboundRTP", "inbound-rtp"}, {"RTCOutboundRTP", "outbound-rtp"},
		{"RTCRemoteInboundRtp", "remote-inbound-rtp"}, {"RTCRemoteOutboundRTP", "remote-outbound-rtp"},
		{"RTCIceCandidatePair", "candidate-pair"}, {"RTCTransport", "transport"}, {"RTCCodec", "codec"},
		{"RTCAudioSource", "media-source"}, {"RTCVideoSource", "media-source"},
		{"RTCPeerConnection", "peer-connection"}, {"RTCDataChannel", "data-channel"},
		{"RTCMediaStreamTrack", "track"}, {"RTCMediaStream", "stream"}, {"RTCCertificate", "certificate"},
		{"ssrc_", "ssrc"}, {"Conn-", "googCandidatePair"}, {"bweforvideo", "VideoBwe"},
	} {
		if strings.HasPrefix(id, known.prefix) {
			return known.kind
		}
	}
	return "unknown"
}

// jsonError says what is wrong with a file's JSON in the words of a file.
func jsonError(err error) error {
	var syntax *json.SyntaxError
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax) && syntax.Error() == "unexpected end of JSON input":
		return errors.New("it ends in the middle: the file is not complete; save or copy it again")
	case errors.As(err, &syntax):
		return fmt.Errorf("it is no JSON at byte %d: %w", syntax.Offset, err)
	case errors.As(err, &wrong):
		return fmt.Errorf("%q holds a JSON %s where the format has none: %w", wrong.Field, wrong.Value, err)
	}
	return err
}

func clip(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:80], "") + "..."
	}
	return s
}
