package e2e

import (
	"bufio"
	"encoding/json"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The types and functions here read a recording on their own, with
// encoding/json and nothing of callscope: they are what the rows are held
// against.

type captureLine struct {
	Seq      int     `json:"seq"`
	T        float64 `json:"t"`
	Kind     string  `json:"kind"`
	Method   string  `json:"method"`
	Path     string  `json:"path"`
	Body     string  `json:"body"`
	Data     string  `json:"data"`
	Conn     int     `json:"conn"`
	Response struct {
		Status int `json:"status"`
	} `json:"response"`
}

// sentMessage is one event or stats message that a recorded client sent.
type sentMessage struct {
	seq          int
	t            float64
	user         string
	eventType    string // as the client named it
	connection   string // "" where it names no fabric
	timestamp    float64
	conference   string
	body         map[string]any
	fields       map[string]any // the event's own fields: body, or value of 3.24 frames
	isStats      bool
	sampleCount  int // inbound-rtp and outbound-rtp entries of a stats message
	isRepetition bool
}

type recording struct {
	name     string
	messages []sentMessage
}

func readCapture(t *testing.T, name string) recording {
	t.Helper()
	file, err := os.Open(filepath.Join("..", "captures", name))
	if err != nil {
		t.Fatalf("opening the recording: %v", err)
	}
	defer file.Close()
	rec := recording{name: name}
	type sighting struct {
		key string
		t   float64
	}
	var last []sighting
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var line captureLine
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatalf("%s: reading a line: %v", name, err)
		}
		text, conference := "", ""
		switch {
		case line.Kind == "http" && line.Method == "POST" && strings.Contains(line.Path, "/conferences/"):
			text = line.Body
			segment := strings.SplitN(line.Path[strings.Index(line.Path, "/conferences/")+len("/conferences/"):], "/", 2)[0]
			if conference, err = url.PathUnescape(segment); err != nil {
				t.Fatalf("%s line %d: %v", name, line.Seq, err)
			}
		case line.Kind == "ws-client":
			text = line.Data
		default:
			continue
		}
		var body map[string]any
		if err := json.Unmarshal([]byte(text), &body); err != nil {
			t.Fatalf("%s line %d: %v", name, line.Seq, err)
		}
		m := sentMessage{seq: line.Seq, t: line.T, conference: conference, body: body, fields: body}
		if line.Kind == "ws-client" {
			id := stringOf(body, "conferenceID")
			if id == "" {
				id = stringOf(body, "confID")
			}
			m.conference = unescape(id)
		}
		m.user = unescapeIf(line.Kind == "ws-client", firstString(body, "localID", "userID"))
		m.eventType = firstString(body, "eventType", "action", "channel")
		m.timestamp = firstNumber(body, "timestamp", "apiTS")
		connection := firstString(body, "connectionID", "pcID")
		if connection != "" && unescape(connection) != m.user {
			m.connection = connection
		}
		if value, ok := body["value"].(map[string]any); ok {
			m.fields = value
		}
		entries, _ := body["stats"].([]any)
		if m.eventType == "stats" || m.eventType == "processedStats" {
			m.isStats = true
		}
		if processed, ok := body["processedStatistics"].([]any); ok {
			for _, p := range processed {
				streams, _ := p.(map[string]any)["streams"].([]any)
				for _, s := range streams {
					entries = append(entries, s.(map[string]any)["data"])
				}
			}
		}
		if m.isStats {
			for _, e := range entries {
				entry, _ := e.(map[string]any)
				if kind := stringOf(entry, "type"); kind == "inbound-rtp" || kind == "outbound-rtp" {
					m.sampleCount++
				}
			}
		}
		// A browser repeats a POST whose connection closed without an answer:
		// the same path and body within 60 s is one message.
		key := line.Path + "\x00" + text
		for _, s := range last {
			if line.Kind == "http" && s.key == key && line.T-s.t < 60000 {
				m.isRepetition = true
			}
		}
		last = append(last, sighting{key, line.T})
		rec.messages = append(rec.messages, m)
	}
	if err := lines.Err(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return rec
}

// accepted returns the messages that must have become rows: all but repetitions.
func (r recording) accepted() []sentMessage {
	var out []sentMessage
	for _, m := range r.messages {
		if !m.isRepetition {
			out = append(out, m)
		}
	}
	return out
}

func stringOf(m map[string]any, key string) string {
	s, _ := m[key].(string)
	return s
}

func firstString(m map[string]any, keys ...string) string {
	for _, key := range keys {
		if s := stringOf(m, key); s != "" {
			return s
		}
	}
	return ""
}

func firstNumber(m map[string]any, keys ...string) float64 {
	for _, key := range keys {
		if n, ok := m[key].(float64); ok {
			return n
		}
	}
	return 0
}

func unescape(s string) string {
	if u, err := url.PathUnescape(s); err == nil {
		return u
	}
	return s
}

func unescapeIf(yes bool, s string) string {
	if yes {
		return unescape(s)
	}
	return s
}

// expectation is a file of test/expected: what the rules of the design give
// for a recording, worked out by programs that share nothing with callscope.
type expectation struct {
	ConferenceCount int `json:"conference_count"`
	Conferences     []struct {
		ConferenceID string  `json:"conference_id"`
		StartedT     float64 `json:"started_t"`
		EndedT       float64 `json:"ended_t"`
		Participants []struct {
			User      string `json:"user"`
			Device    string `json:"device"`
			Joins     int    `json:"joins"`
			Intervals []struct {
				JoinedT    float64 `json:"joined_t"`
				LeftT      float64 `json:"left_t"`
				LeftReason string  `json:"left_reason"`
			} `json:"intervals"`
		} `json:"participants"`
		Fabrics []expectedFabric `json:"fabrics"`
	} `json:"conferences"`
	Events map[string]int `json:"events"`
	Stats  struct {
		Messages, InboundRTP, OutboundRTP, DistinctStreams int
	} `json:"-"`
	RawStats map[string]int `json:"stats"`
	Streams  []struct {
		User         string  `json:"user"`
		ConnectionID string  `json:"connection_id"`
		Direction    string  `json:"direction"`
		SSRC         string  `json:"ssrc"`
		Owner        string  `json:"owner"`
		OwnerSource  string  `json:"owner_source"`
		UsageLabel   *string `json:"usage_label"`
		Reports      int     `json:"reports"`
	} `json:"streams"`
	Feedback []struct {
		User    string   `json:"user"`
		Overall *float64 `json:"overall"`
		Audio   *float64 `json:"audio"`
		Video   *float64 `json:"video"`
		Screen  *float64 `json:"screen"`
		Comment *string  `json:"comment"`
	} `json:"feedback"`
	Failures []struct {
		User         string   `json:"user"`
		ConnectionID *string  `json:"connection_id"`
		Function     string   `json:"function"`
		Reason       string   `json:"reason"`
		IsLog        bool     `json:"is_log"`
		Message      string   `json:"message"`
		Name         *string  `json:"name"`
		DelayMs      *float64 `json:"delay_ms"`
	} `json:"failures"`
	PrecallWithoutConference int `json:"precall_without_conference"`
}

type expectedFabric struct {
	User                   string   `json:"user"`
	Remote                 string   `json:"remote"`
	ConnectionID           string   `json:"connection_id"`
	Outcome                string   `json:"outcome"`
	SetupDelayMs           *float64 `json:"setup_delay_ms"`
	DelaySource            *string  `json:"delay_source"`
	IceGatheringDelayMs    *float64 `json:"ice_gathering_delay_ms"`
	IceConnectivityDelayMs *float64 `json:"ice_connectivity_delay_ms"`
	FailureFunction        *string  `json:"failure_function"`
	FailureReason          *string  `json:"failure_reason"`
	FailureDelayMs         *float64 `json:"failure_delay_ms"`
	Disruptions            int      `json:"disruptions"`
	StartedT               float64  `json:"started_t"`
	EndedT                 float64  `json:"ended_t"`
	EndReason              string   `json:"end_reason"`
}

func readExpectation(t *testing.T, capture string) expectation {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "expected", strings.TrimSuffix(capture, ".jsonl")+".json"))
	if err != nil {
		t.Fatalf("reading what is expected: %v", err)
	}
	var e expectation
	if err := json.Unmarshal(text, &e); err != nil {
		t.Fatalf("reading what is expected of %s: %v", capture, err)
	}
	return e
}

// near compares figures that went through text and time shifts; nil is NULL.
func near(got, want *float64) bool {
	if got == nil || want == nil {
		return got == want
	}
	return math.Abs(*got-*want) <= 0.01
}
