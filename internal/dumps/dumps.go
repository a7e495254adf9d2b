// Package dumps reads what other programs wrote about a call and turns it into the messages that a callstats client
// would have sent of it: dumps of chrome://webrtc-internals in their old and new layout, and rtcstats dumps of both
// servers that write them.
//
// It gives messages in the callstats vocabulary, in the order of their time, and does nothing with them: it knows no
// envelope, no Kafka and no stage. What a dump does not tell is not made up.
package dumps

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// The formats.
const (
	WebRTCInternals = "webrtc-internals"
	RTCStats        = "rtcstats"
	RTCStatsJitsi   = "rtcstats-jitsi"
)

// Bounds of a dump. A file of delta-compressed reports becomes several times as many bytes of messages.
const (
	MaxBytes        = 256 << 20
	maxMessageBytes = 256 << 20
	maxLineBytes    = 64 << 20
	// A time outside of these is no time of a call: 2001 and 2100 in epoch milliseconds.
	minTimeMs = 1e12
	maxTimeMs = 4_102_444_800_000
)

// ErrForeign means that the bytes are of none of the formats.
var ErrForeign = errors.New("it is neither a dump of chrome://webrtc-internals (an object with \"PeerConnections\") " +
	"nor an rtcstats dump (RTCStatsDump, or lines that are arrays)")

// Dump is what one browser's dump tells.
type Dump struct {
	Format  string // one of the constants
	Version string // rtcstats: the file format; webrtc-internals: 1 is the layout with times of the browser's own zone, 2 the one with exact times
	// UserID and UserName are who the dump says it is of, "" where it does not. The name is a real one.
	UserID, UserName string
	UserAgent        string
	Connections      []Connection
	Messages         []Message // in the order of their time
	// Unused counts the entries that had no time or a malformed value.
	Unused int
}

// ClientVersion names the format and its version where a client names its own.
func (d *Dump) ClientVersion() string { return d.Format + "/" + d.Version }

// Connection is one PeerConnection, with what tells who is at its other end.
type Connection struct {
	ID       string
	RemoteID string // as the application told its recorder, mostly ""
	// ICE user name fragments out of the descriptions: of one call, what is local at one end is remote at the other.
	LocalUfrags, RemoteUfrags []string
	// SSRCs, sorted.
	Outbound, Inbound []string
}

// Message is one client message.
type Message struct {
	AtMs         float64 // epoch milliseconds
	EventType    string
	ConnectionID string // "" for a message of no PeerConnection
	Fields       []byte // JSON object of the event's own members
}

// Body is the message as a client of 3.73 would post it. remoteID may be empty.
func (m Message) Body(userID, deviceID, remoteID, clientVersion string) ([]byte, error) {
	head := map[string]any{
		"eventType": m.EventType, "timestamp": m.AtMs, "localID": userID, "deviceID": deviceID, "callstatsVersion": clientVersion,
	}
	if m.ConnectionID != "" {
		head["connectionID"] = m.ConnectionID
	}
	if remoteID != "" {
		head["remoteID"] = remoteID
	}
	body, err := json.Marshal(head)
	if err != nil {
		return nil, fmt.Errorf("writing a message: %w", err)
	}
	if own := bytes.TrimSpace(m.Fields); len(own) > 2 {
		body = append(append(body[:len(body)-1], ','), own[1:]...)
	}
	return body, nil
}

// Read reads a file whole, unpacked where it is gzip.
func Read(r io.Reader) ([]byte, error) {
	in := bufio.NewReader(r)
	var plain io.Reader = in
	if magic, _ := in.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		unpacked, err := gzip.NewReader(in)
		if err != nil {
			return nil, fmt.Errorf("unpacking it: %w", err)
		}
		plain = unpacked
	}
	data, err := io.ReadAll(io.LimitReader(plain, MaxBytes+1))
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, errors.New("it ends in the middle: the packed file is not complete; save or copy it again")
	case err != nil:
		return nil, err
	case len(data) > MaxBytes:
		return nil, fmt.Errorf("it has more than %d MiB; cut it into shorter dumps", MaxBytes>>20)
	}
	return data, nil
}

// Parse reads a dump, unpacked, and tells its format by the content. Errors say what is wrong where; ErrForeign is one
// of them.
func Parse(data []byte) (*Dump, error) {
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("it has more than %d MiB", MaxBytes>>20)
	}
	var s source
	var err error
	switch formatOf(data) {
	case WebRTCInternals:
		err = s.readInternals(data)
	case RTCStats:
		err = s.readRTCStats(data)
	default:
		return nil, ErrForeign
	}
	if err != nil {
		return nil, err
	}
	return s.dump()
}

func formatOf(data []byte) string {
	data = bytes.TrimSpace(data)
	first, _, _ := bytes.Cut(data, []byte("\n"))
	var line struct {
		FileFormat *json.RawMessage
	}
	switch {
	case bytes.HasPrefix(data, []byte("RTCStatsDump")):
		return RTCStats
	case bytes.HasPrefix(data, []byte("[")):
		var event []json.RawMessage
		if json.Unmarshal(first, &event) == nil && len(event) >= 3 && methodName(event[0]) != "" &&
			(event[1][0] == '"' || event[1][0] == 'n') { // a PeerConnection, or none
			return RTCStats
		}
	case json.Unmarshal(first, &line) == nil && line.FileFormat != nil:
		return RTCStats
	case bytes.HasPrefix(data, []byte("{")) && bytes.Contains(data, []byte(`"PeerConnections"`)):
		return WebRTCInternals
	}
	return ""
}

// source is a dump as its format's reader found it.
type source struct {
	format, version             string
	userID, userName, userAgent string
	connections                 map[string]*connection
	order                       []string // ids of connections, by first sight
	media                       []entry  // failures of getUserMedia, which have no connection
	unused                      int
	bytes                       int
}

type connection struct {
	id, remoteID string
	entries      []entry
	streams      map[stream]bool
	ufrags       map[ufrag]bool
}

type stream struct {
	ssrc    string
	inbound bool
}

type ufrag struct {
	text   string
	remote bool
}

// entry is one event or, with name reportEntry, one getStats report.
type entry struct {
	atMs  float64
	name  string // as rtcstats writes it, in lower case and without "on": iceconnectionstatechange, createofferonfailure
	value string // a state, an error's text or an SDP
	stats []byte // JSON array of a report's entries
}

const reportEntry = "getstats"

func (s *source) connection(id string) *connection {
	c := s.connections[id]
	if c == nil {
		if s.connections == nil {
			s.connections = map[string]*connection{}
		}
		c = &connection{id: id, streams: map[stream]bool{}, ufrags: map[ufrag]bool{}}
		s.connections[id] = c
		s.order = append(s.order, id)
	}
	return c
}

// plausible tells whether a number can be the time of an event. NaN is not.
func plausible(ms float64) bool { return ms >= minTimeMs && ms <= maxTimeMs }

// add adds an event. One without a time cannot be put into the order, and is counted.
func (s *source) add(id string, e entry) {
	if !plausible(e.atMs) {
		s.unused++
		return
	}
	c := s.connection(id)
	c.entries = append(c.entries, e)
}

// report adds a getStats report. The entries' members are as the browser named them.
func (s *source) report(id string, atMs float64, entries map[string]map[string]any) error {
	if !plausible(atMs) || len(entries) == 0 {
		s.unused++
		return nil
	}
	c := s.connection(id)
	list := make([]map[string]any, 0, len(entries))
	for id, members := range entries {
		one := make(map[string]any, len(members)+3)
		for name, v := range members {
			one[name] = v
		}
		one["id"] = id
		if codec, ok := one["codecId"].(string); ok && one["mimeType"] == nil && entries[codec] != nil && entries[codec]["mimeType"] != nil {
			one["mimeType"] = entries[codec]["mimeType"]
		}
		if t, ok := one["timestamp"].(float64); !ok || t <= 0 {
			one["timestamp"] = atMs
		}
		c.see(one)
		list = append(list, one)
	}
	slices.SortFunc(list, func(a, b map[string]any) int { return strings.Compare(a["id"].(string), b["id"].(string)) })
	stats, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("writing a report: %w", err)
	}
	if s.bytes += len(stats); s.bytes > maxMessageBytes {
		return fmt.Errorf("its reports become more than %d MiB; cut it into shorter dumps", maxMessageBytes>>20)
	}
	c.entries = append(c.entries, entry{atMs: atMs, name: reportEntry, stats: stats})
	return nil
}

// see notes the stream of an RTP entry.
func (c *connection) see(members map[string]any) {
	kind, _ := members["type"].(string)
	var ssrc string
	switch v := members["ssrc"].(type) {
	case float64:
		if v < 0 || v > math.MaxUint32 || v != math.Trunc(v) {
			return
		}
		ssrc = fmt.Sprintf("%.0f", v)
	case string:
		ssrc = v
	}
	if ssrc != "" && (kind == "inbound-rtp" || kind == "outbound-rtp") {
		c.streams[stream{ssrc, kind == "inbound-rtp"}] = true
	}
}

// dump turns the entries into messages.
func (s *source) dump() (*Dump, error) {
	d := &Dump{
		Format: s.format, Version: s.version, UserID: s.userID, UserName: s.userName, UserAgent: s.userAgent, Unused: s.unused,
	}
	begin, end := math.Inf(1), 0.0
	for _, id := range s.order {
		c := s.connections[id]
		if len(c.entries) == 0 {
			continue // named by its constraints alone
		}
		slices.SortStableFunc(c.entries, func(a, b entry) int { return cmp.Compare(a.atMs, b.atMs) })
		begin, end = min(begin, c.entries[0].atMs), max(end, c.entries[len(c.entries)-1].atMs)
		d.Messages = append(d.Messages, c.messages()...)
		d.Connections = append(d.Connections, c.summary())
	}
	if len(d.Connections) == 0 && len(s.media) == 0 {
		return nil, errors.New("it holds no getStats report and no event of a PeerConnection: nothing was recorded, or nothing of a call")
	}
	for _, e := range s.media {
		begin, end = min(begin, e.atMs), max(end, e.atMs)
		d.Messages = append(d.Messages, failure(e, "", nil))
	}
	joined := map[string]any{"endpointInfo": map[string]any{"type": "browser", "userAgent": s.userAgent}}
	if s.userName != "" {
		joined["userName"] = s.userName
	}
	d.Messages = append([]Message{message(begin, "userJoined", "", joined)}, d.Messages...)
	d.Messages = append(d.Messages, message(end, "userLeft", "", nil))
	slices.SortStableFunc(d.Messages, func(a, b Message) int { return cmp.Compare(a.AtMs, b.AtMs) })
	return d, nil
}

func (c *connection) summary() Connection {
	out := Connection{ID: c.id, RemoteID: c.remoteID}
	for s := range c.streams {
		if s.inbound {
			out.Inbound = append(out.Inbound, s.ssrc)
		} else {
			out.Outbound = append(out.Outbound, s.ssrc)
		}
	}
	for u := range c.ufrags {
		if u.remote {
			out.RemoteUfrags = append(out.RemoteUfrags, u.text)
		} else {
			out.LocalUfrags = append(out.LocalUfrags, u.text)
		}
	}
	for _, list := range [][]string{out.Inbound, out.Outbound, out.LocalUfrags, out.RemoteUfrags} {
		slices.Sort(list)
	}
	return out
}

func message(atMs float64, eventType, connectionID string, fields map[string]any) Message {
	if fields == nil {
		return Message{AtMs: atMs, EventType: eventType, ConnectionID: connectionID, Fields: []byte("{}")}
	}
	text, err := json.Marshal(fields)
	if err != nil {
		panic("dumps: marshalling texts and finite numbers failed: " + err.Error()) // it cannot
	}
	return Message{AtMs: atMs, EventType: eventType, ConnectionID: connectionID, Fields: text}
}

// Owned is an SSRC and the user who sends it.
type Owned struct{ SSRC, UserID string }

// Owners is the message that gives inbound streams of a connection to users.
func Owners(atMs float64, connectionID string, owned []Owned) Message {
	list := make([]map[string]any, 0, len(owned))
	for _, o := range owned {
		list = append(list, map[string]any{"ssrc": o.SSRC, "streamType": "inbound", "remoteUserID": o.UserID})
	}
	return message(atMs, "ssrcMap", connectionID, map[string]any{"ssrcData": list})
}
