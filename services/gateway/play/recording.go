package play

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// line is one line of a capture file.
type line struct {
	Seq     int               `json:"seq"`
	T       int64             `json:"t"` // ms since the recording server started
	Kind    string            `json:"kind"`
	Host    string            `json:"host"`
	Method  string            `json:"method"`
	Path    string            `json:"path"` // percent-encoded, as received
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
	// Response is what the recording server answered. A status of 0 is a connection closed without an answer.
	Response struct {
		Status int     `json:"status"`
		Body   *string `json:"body"`
	} `json:"response"`
	Conn int    `json:"conn"` // WebSocket connection
	Data string `json:"data"` // WebSocket frame
	Code int    `json:"code"` // of the closing frame
}

// The kinds of lines. There is "ws-server" too: what the recording server said, which nobody plays.
const (
	kindHTTP    = "http"
	kindWSOpen  = "ws-open"
	kindWSFrame = "ws-client"
	kindWSClose = "ws-close"
)

// step is one line that is played.
type step struct {
	line
	client int // index in recording.clients
	msg    message
}

// message is what the player looks at in a body or frame that is a JSON object.
type message struct {
	LocalID      string          `json:"localID"`
	UserID       string          `json:"userID"`
	EventType    string          `json:"eventType"`
	Action       string          `json:"action"`
	Channel      string          `json:"channel"`
	Token        string          `json:"token"`
	UcID         string          `json:"ucID"`
	ConferenceID string          `json:"conferenceID"`
	ConfID       string          `json:"confID"`
	Timestamp    json.RawMessage `json:"timestamp"`
	APITs        json.RawMessage `json:"apiTS"`
}

// conference is the conference's id as the frame spells it.
func (m message) conference() string { return cmp.Or(m.ConfID, m.ConferenceID) }

// event is the name of what the frame or body reports.
func (m message) event() string { return cmp.Or(m.Action, m.EventType, m.Channel) }

type recording struct {
	name    string
	steps   []step   // in the recorded order
	clients []string // user ids; "" for what nobody signed
	skipped int
	// began is epoch ms at t = 0 by the clock that the clients were synchronised with; 0 when nothing tells.
	began int64
}

// parseRecording reads all lines and finds out which client sent each. An error names the line.
func parseRecording(name string, r io.Reader) (*recording, error) {
	rec := &recording{name: name}
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, 64<<20)
	var lines []line
	for n := 1; scanner.Scan(); n++ {
		if len(bytes.TrimSpace(scanner.Bytes())) == 0 {
			continue
		}
		var l line
		if err := json.Unmarshal(scanner.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("reading recording %s, line %d: %w", name, n, err)
		}
		if l.Kind == "" {
			return nil, fmt.Errorf("reading recording %s, line %d: it has no \"kind\": this is no recording of requests", name, n)
		}
		lines = append(lines, l)
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("reading recording %s: %w", name, err)
	}
	owners := findOwners(lines)
	for _, l := range lines {
		if !l.played() {
			rec.skipped++
			continue
		}
		s := step{line: l}
		// What is no JSON object has none of the fields: a form, or bytes that are played as they are.
		_ = json.Unmarshal([]byte(l.text()), &s.msg)
		user := owners.of(l, s.msg)
		if s.client = slices.Index(rec.clients, user); s.client < 0 {
			s.client = len(rec.clients)
			rec.clients = append(rec.clients, user)
		}
		rec.steps = append(rec.steps, s)
	}
	rec.began = epochStart(rec.steps)
	return rec, nil
}

func (l line) text() string {
	if l.Kind == kindHTTP {
		return l.Body
	}
	return l.Data
}

// played says whether the line is something a client sent to the gateway. Preflights are the browser's own, and the
// library posts configurations to the page's host when it was given no URL for them.
func (l line) played() bool {
	switch l.Kind {
	case kindHTTP:
		origin, err := url.Parse(l.Headers["origin"])
		return l.Method != http.MethodOptions && (err != nil || origin.Host == "" || origin.Host != l.Host)
	case kindWSOpen, kindWSFrame, kindWSClose:
		return true
	}
	return false
}

func (l line) isSignIn() bool {
	return l.Kind == kindHTTP && l.Method == http.MethodPost && strings.HasSuffix(l.Path, "/authenticate")
}

// owners says who sent a line.
type owners struct {
	tokens map[string]string // by recorded access token
	conns  map[int]string    // by WebSocket connection
}

func findOwners(lines []line) owners {
	o := owners{make(map[string]string), make(map[int]string)}
	for _, l := range lines {
		if token := recordedToken(l); token != "" {
			o.tokens[token] = signInUser(l)
		}
	}
	for _, l := range lines {
		if l.Kind == kindWSFrame && o.conns[l.Conn] == "" {
			var m message
			_ = json.Unmarshal([]byte(l.Data), &m)
			o.conns[l.Conn] = o.frame(m)
		}
	}
	return o
}

func (o owners) frame(m message) string {
	if user := o.tokens[m.Token]; user != "" {
		return user
	}
	return unescape(cmp.Or(m.LocalID, m.UserID))
}

func (o owners) of(l line, m message) string {
	if l.Kind != kindHTTP {
		return o.conns[l.Conn]
	}
	if l.isSignIn() {
		return signInUser(l)
	}
	if user := o.tokens[l.bearer()]; user != "" {
		return user
	}
	if m.LocalID != "" {
		return m.LocalID
	}
	// A generics post has the user URI-encoded, and "null" before the page called initialize.
	if m.UserID != "" && m.UserID != "null" {
		return unescape(m.UserID)
	}
	return ""
}

func unescape(s string) string {
	if plain, err := url.PathUnescape(s); err == nil {
		return plain
	}
	return s
}

func (l line) bearer() string {
	token, _ := strings.CutPrefix(l.Headers["authorization"], "Bearer ")
	return token
}

// signInUser is the user of an authenticate form: what stands before the last @ of client_id.
func signInUser(l line) string {
	form, err := url.ParseQuery(l.Body)
	if err != nil {
		return ""
	}
	id := form.Get("client_id")
	if at := strings.LastIndexByte(id, '@'); at >= 0 {
		return id[:at]
	}
	return id
}

// recordedToken is the access token that a recorded sign-in was answered with.
func recordedToken(l line) string {
	if !l.isSignIn() || l.Response.Body == nil {
		return ""
	}
	return parseSignIn([]byte(*l.Response.Body)).AccessToken
}

// epochStart finds the epoch milliseconds of t = 0: from a recorded clockSync answer, otherwise from the latest
// timestamp relative to its line, since no client's message comes before it was made.
func epochStart(steps []step) int64 {
	began := int64(0)
	for _, s := range steps {
		if strings.HasSuffix(s.Path, "/clockSync") && s.Response.Body != nil {
			var clock struct {
				Now int64 `json:"now"`
			}
			if json.Unmarshal([]byte(*s.Response.Body), &clock) == nil && clock.Now > 0 {
				return clock.Now - s.T
			}
		}
		for _, made := range []json.RawMessage{s.msg.APITs, s.msg.Timestamp} {
			var ms float64
			if json.Unmarshal(made, &ms) == nil {
				began = max(began, int64(ms)-s.T)
			}
		}
	}
	return began
}

const dayMs = 24 * 60 * 60 * 1000

// clock gives the moving of timestamps that lets the recording end at end (epoch ms).
func (r *recording) clock(end int64) shift {
	if r.began == 0 {
		return shift{}
	}
	last := r.began + r.steps[len(r.steps)-1].T
	return shift{from: r.began - dayMs, to: last + dayMs, by: end - last}
}
