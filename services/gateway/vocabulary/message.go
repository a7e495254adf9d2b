// Package vocabulary turns the JSON of any callstats client generation into the one typed vocabulary of callscope:
// proto/callscope/v1. Older names become the names of the 3.73 client, numbers written as strings become numbers, and
// what no field holds is kept as JSON, so nothing a client sent is lost.
//
// It reads what the client claims and judges only its form. It does not check tokens, does not know who the client is,
// and decides nothing about conferences or fabrics; the enricher does.
package vocabulary

import (
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/valyala/fastjson"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// Limits of what a client may send (design 11). Ids beyond their limit are refused, texts are cut.
const (
	MaxIDBytes          = 256
	LongUserIDBytes     = 128 // longer user ids are accepted and counted
	maxEventTypeBytes   = 128
	maxUserNameRunes    = 128
	maxAppVersionRunes  = 30
	maxUsageLabelBytes  = 20
	maxLogBytes         = 20 << 10
	pooledBodyBytes     = 128 << 10 // parsers that held more are not kept
	maxClientTimeMS     = 1e14
	maxVersionTextBytes = 64
)

// Invalid says why a message was refused. Reason is a fixed word for counters, the text is for the client's developer.
type Invalid struct {
	Reason string
	Text   string
}

func (e *Invalid) Error() string { return e.Text }

func invalid(reason, format string, args ...any) error {
	return &Invalid{Reason: reason, Text: fmt.Sprintf(format, args...)}
}

// Transport is how a message came; on WebSockets the message itself shows which client generation wrote it.
type Transport int

const (
	REST Transport = iota
	WebSocket
)

// Message is one parsed client message. It must be released, and nothing taken from it changes afterwards.
type Message struct {
	Dialect callscopev1.Dialect
	// EventType has the 3.73 name, OriginalType the client's where it differs.
	EventType, OriginalType string
	// What the WebSocket dialects put into the message: the app as decimal text, and the conference id as the client
	// wrote it, which is how it wants to see it in the answer.
	AppID, EncodedConferenceID string
	// Token is the access token of the WebSocket dialects. It is no copy, since it is as long as a small message and the
	// same in all of them: unlike everything else it ends with Release.
	Token []byte

	claimed *callscopev1.Claimed
	parser  *fastjson.Parser
	object  *fastjson.Object
	pooled  bool
	parts   *parts // of what Raw returned
	plain   bool   // see isPlain
	scratch [32]byte
}

var parsers fastjson.ParserPool

// Parse reads a message. The error is an *Invalid. body may be reused afterwards.
func Parse(body []byte, transport Transport) (*Message, error) {
	if !utf8.Valid(body) {
		return nil, invalid("utf8", "The message is not valid UTF-8.")
	}
	m := &Message{parser: parsers.Get(), pooled: len(body) <= pooledBodyBytes}
	if err := m.parse(body, transport); err != nil {
		m.Release()
		return nil, err
	}
	return m, nil
}

func (m *Message) parse(body []byte, transport Transport) error {
	root, err := m.parser.ParseBytes(body)
	if err != nil && strings.Contains(err.Error(), "too big depth") {
		return invalid("depth", "The message is nested more than %d levels deep.", fastjson.MaxDepth)
	}
	m.plain = isPlain(body)
	if err != nil || !valid(body, root, m.plain) {
		return invalid("json", "The message is not valid JSON.")
	}
	m.object, err = root.Object()
	if err != nil {
		return invalid("json", "The message is not a JSON object.")
	}
	if transport == WebSocket {
		return m.readWebSocketHead()
	}
	return m.readRESTHead()
}

// Release gives the parser back. The Message must not be used afterwards.
func (m *Message) Release() {
	if m.parser != nil && m.pooled {
		parsers.Put(m.parser)
	}
	m.parser, m.object, m.Token = nil, nil, nil
}

// Recycle takes back what Raw returned, nothing of which may be used afterwards, to make the next message of it. Who keeps
// raw messages does not call it.
func (m *Message) Recycle() {
	if m.parts != nil {
		m.parts.recycle()
		m.parts = nil
	}
}

func (m *Message) readRESTHead() error {
	m.Dialect = callscopev1.Dialect_DIALECT_CALLSTATS_REST
	h := m.head()
	m.claimed = &callscopev1.Claimed{
		UserId:        first(text(h.localID), text(h.userID)),
		DeviceId:      text(h.deviceID),
		ConnectionId:  text(h.connectionID),
		RemoteId:      text(h.remoteID),
		TimeMs:        m.clientTime(h.timestamp),
		ClientVersion: text(h.callstatsVersion),
		SiteId:        text(h.siteID),
	}
	return m.name(text(h.eventType))
}

func (m *Message) readWebSocketHead() error {
	h := m.head()
	if h.token != nil && h.token.Type() == fastjson.TypeString {
		m.Token = h.token.GetStringBytes()
	}
	m.AppID = text(h.appID)
	m.claimed = &callscopev1.Claimed{
		UserId:        unescape(first(text(h.localID), text(h.userID))),
		DeviceId:      text(h.deviceID),
		RemoteId:      unescape(text(h.remoteID)),
		ClientVersion: first(text(h.version), text(h.callstatsVersion)),
		SiteId:        text(h.siteID),
	}
	if h.callstatsVersion != nil || h.confID != nil {
		m.Dialect = callscopev1.Dialect_DIALECT_CALLSTATS_WS_352
		m.EncodedConferenceID = text(h.confID)
		m.claimed.ConnectionId = text(h.connectionID)
		m.claimed.TimeMs = m.clientTime(h.timestamp)
	} else {
		m.Dialect = callscopev1.Dialect_DIALECT_CALLSTATS_WS_324
		m.EncodedConferenceID = text(h.conferenceID)
		m.claimed.ConnectionId = text(h.pcID)
		m.claimed.TimeMs = m.clientTime(h.apiTS)
		if m.claimed.TimeMs == 0 {
			m.claimed.TimeMs = m.clientTime(h.timestamp) // pre-call messages
		}
	}
	m.claimed.ConferenceId = unescape(m.EncodedConferenceID)
	return m.name(first(text(h.eventType), text(h.action), text(h.channel)))
}

// name sets the event type and checks the sender's ids.
func (m *Message) name(clientName string) error {
	if clientName == "" {
		return invalid("event_type", "The message names no event.")
	}
	if len(clientName) > maxEventTypeBytes {
		return invalid("event_type", "The event name is longer than %d bytes.", maxEventTypeBytes)
	}
	m.EventType = clientName
	if name, renamed := names[clientName]; renamed {
		m.EventType, m.OriginalType = name, clientName
	}
	c := m.claimed
	// A message without a PeerConnection carries the user's own id in its place.
	if c.ConnectionId == c.UserId || unescape(c.ConnectionId) == c.UserId {
		c.ConnectionId = ""
	}
	c.ClientVersion, _ = cutBytes(c.ClientVersion, maxVersionTextBytes)
	for _, id := range []struct{ reason, value string }{
		{"user_id", c.UserId}, {"remote_id", c.RemoteId}, {"device_id", c.DeviceId},
		{"connection_id", c.ConnectionId}, {"site_id", c.SiteId}, {"conference_id", c.ConferenceId},
	} {
		if err := CheckID(id.reason, id.value); err != nil {
			return err
		}
	}
	return nil
}

// CheckID refuses ids that are too long or, after percent-decoding, no UTF-8. Nothing else is wrong with an id.
func CheckID(what, id string) error {
	if len(id) > MaxIDBytes {
		return invalid(what, "The %s has %d bytes; at most %d are allowed.", what, len(id), MaxIDBytes)
	}
	if !utf8.ValidString(id) {
		return invalid(what, "The %s is not valid UTF-8.", what)
	}
	return nil
}

// Raw returns what the message says as raw messages without uid and Observed. It is one, except that a client of
// 3.24 or 3.26 may put several statistics reports into a message. conferenceID is the one of the path on REST and
// of the message's frame in our own protocol; where the message itself has it, it is ignored.
func (m *Message) Raw(conferenceID string) []*callscopev1.Raw {
	switch m.Dialect {
	case callscopev1.Dialect_DIALECT_CALLSTATS_REST, callscopev1.Dialect_DIALECT_CALLSCOPE:
		m.claimed.ConferenceId = conferenceID
	}
	raw := &callscopev1.Raw{Claimed: m.claimed, EventType: m.EventType, OriginalType: m.OriginalType}
	d := decodings.Get().(*decoding)
	defer d.release()
	d.plain = m.plain
	m.parts = partsPool.Get().(*parts)
	d.parts = m.parts
	left := d.begin()
	take := takers[m.EventType]
	if take == nil {
		take = takeOther
	}
	more := take(m, raw, left)
	raw.ExtraJson = left.object()
	for _, r := range more {
		r.Truncated = d.truncated
	}
	raw.Truncated = d.truncated
	return append([]*callscopev1.Raw{raw}, more...)
}

// inEnvelope reports whether the envelope has taken a top-level member, or whether it means nothing outside its
// connection. What the envelope could not use is left to extra_json.
func (m *Message) inEnvelope(key []byte, v *fastjson.Value) bool {
	if m.Dialect == callscopev1.Dialect_DIALECT_CALLSCOPE {
		return m.inCallscopeEnvelope(key, v)
	}
	ws := m.Dialect != callscopev1.Dialect_DIALECT_CALLSTATS_REST
	ws324 := m.Dialect == callscopev1.Dialect_DIALECT_CALLSTATS_WS_324
	switch string(key) {
	case "eventType", "localID", "remoteID", "deviceID", "siteID":
		return isText(v)
	case "callstatsVersion", "connectionID":
		return isText(v) && !ws324
	case "timestamp":
		return m.clientTime(v) != 0 && !(ws324 && m.object.Get("apiTS") != nil)
	case "apiTS":
		return m.clientTime(v) != 0 && ws324
	case "userID":
		return isText(v) && m.object.Get("localID") == nil
	case "timeShift": // how long the message waited in the client
		n, ok := number(v, m.scratch[:0])
		return ok && n == 0
	case "version", "channel", "action", "appID", "ucID":
		return isText(v) && ws
	case "token":
		return ws // never stored, whatever it is
	case "pcID", "conferenceID":
		return isText(v) && ws324
	case "confID":
		return isText(v) && ws && !ws324
	}
	return false
}

// head holds the members that make the envelope. As in the clients' own JSON, the last of several counts.
type head struct {
	eventType, action, channel, callstatsVersion, version              *fastjson.Value
	localID, userID, remoteID, deviceID, siteID, connectionID, pcID    *fastjson.Value
	timestamp, apiTS, token, appID, conferenceID, confID, uselessValue *fastjson.Value
}

func (m *Message) head() *head {
	h := &head{}
	m.object.Visit(func(key []byte, v *fastjson.Value) { *h.member(key) = v })
	return h
}

func (h *head) member(key []byte) **fastjson.Value {
	switch string(key) {
	case "eventType":
		return &h.eventType
	case "action":
		return &h.action
	case "channel":
		return &h.channel
	case "callstatsVersion":
		return &h.callstatsVersion
	case "version":
		return &h.version
	case "localID":
		return &h.localID
	case "userID":
		return &h.userID
	case "remoteID":
		return &h.remoteID
	case "deviceID":
		return &h.deviceID
	case "siteID":
		return &h.siteID
	case "connectionID":
		return &h.connectionID
	case "pcID":
		return &h.pcID
	case "timestamp":
		return &h.timestamp
	case "apiTS":
		return &h.apiTS
	case "token":
		return &h.token
	case "appID":
		return &h.appID
	case "conferenceID":
		return &h.conferenceID
	case "confID":
		return &h.confID
	}
	return &h.uselessValue
}

// clientTime is epoch milliseconds, 0 for what cannot be a time.
func clientTime(v *fastjson.Value, scratch []byte) float64 {
	t, ok := number(v, scratch)
	if !ok || t < 0 || t > maxClientTimeMS {
		return 0
	}
	return t
}

func (m *Message) clientTime(v *fastjson.Value) float64 { return clientTime(v, m.scratch[:0]) }

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// unescape undoes encodeURIComponent. What is not percent-encoded properly was not encoded at all.
func unescape(s string) string {
	if plain, err := url.PathUnescape(s); err == nil {
		return plain
	}
	return s
}

// ConferenceID is the decoded conference id of a WebSocket message.
func (m *Message) ConferenceID() string { return m.claimed.ConferenceId }

// DeviceID is the device that the message names.
func (m *Message) DeviceID() string { return m.claimed.DeviceId }

// SetDeviceID gives a message without device the one that its connection knows.
func (m *Message) SetDeviceID(id string) { m.claimed.DeviceId = id }
