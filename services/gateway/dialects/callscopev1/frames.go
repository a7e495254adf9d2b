package callscopev1

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/valyala/fastjson"
)

// The csError types of the spec, as a client's csInitCallback gets them.
const (
	success              = "success"
	httpError            = "httpError"
	authError            = "authError"
	wsChannelFailure     = "wsChannelFailure"
	csProtoError         = "csProtoError"
	appConnectivityError = "appConnectivityError"
	tokenGenerationError = "tokenGenerationError"
)

// Close codes of our own. The others are RFC 6455's: 1008, 1009, 1012, 1013.
const (
	closeRefused       = 4001 // the sign-in was refused
	closeSignInTimeout = 4002 // no sign-in in time
	closeTokenEnded    = 4003 // the token has expired or was revoked
)

// What the server sends.
type (
	nonceFrame struct {
		Type        string `json:"type"` // nonce
		Nonce       string `json:"nonce"`
		ExpiresInMs int64  `json:"expiresInMs"`
	}
	signedInFrame struct {
		Type               string      `json:"type"` // signedIn
		CsError            string      `json:"csError"`
		CsErrMsg           string      `json:"csErrMsg"`
		AppID              string      `json:"appID"`
		UserID             string      `json:"userID"`
		DeviceID           string      `json:"deviceID"`
		Session            string      `json:"session"`
		Resumed            bool        `json:"resumed"`
		Token              string      `json:"token"`
		TokenExpiresInMs   int64       `json:"tokenExpiresInMs"`
		Window             windowSizes `json:"window"`
		MaxFrameBytes      int64       `json:"maxFrameBytes"`
		MaxBatchMessages   int         `json:"maxBatchMessages"`
		SubmissionInterval int         `json:"submissionIntervalMs"`
		CollectSDP         bool        `json:"collectSDP"`
		PingIntervalMs     int64       `json:"pingIntervalMs"`
		ServerTime         float64     `json:"serverTime"`
	}
	windowSizes struct {
		Messages int   `json:"messages"`
		Bytes    int64 `json:"bytes"`
	}
	ackFrame struct {
		Type string `json:"type"` // ack
		Seq  uint64 `json:"seq"`
	}
	statusFrame struct {
		Type         string `json:"type"` // status
		CsError      string `json:"csError"`
		CsErrMsg     string `json:"csErrMsg"`
		Reason       string `json:"reason"`
		Frame        uint64 `json:"frame,omitempty"`
		Seq          uint64 `json:"seq,omitempty"`
		ConferenceID string `json:"conferenceID,omitempty"`
		ConnectionID string `json:"connectionID,omitempty"`
	}
	throttleFrame struct {
		Type string `json:"type"` // throttle
		Ms   int64  `json:"ms"`
	}
	reconnectFrame struct {
		Type    string `json:"type"` // reconnect
		AfterMs int64  `json:"afterMs"`
	}
	tokenExpiringFrame struct {
		Type        string `json:"type"` // tokenExpiring
		ExpiresInMs int64  `json:"expiresInMs"`
	}
	clockFrame struct {
		Type string      `json:"type"` // clock
		T0   json.Number `json:"t0"`
		T1   float64     `json:"t1"`
		T2   float64     `json:"t2"`
	}
	pongFrame struct {
		Type string `json:"type"` // pong
		ID   string `json:"id"`
	}
)

// epochMs is a time in epoch milliseconds, to the microsecond.
func epochMs(t time.Time) float64 { return float64(t.UnixMicro()) / 1000 }

// comeBack is when one client of many should come back.
func (h *Handler) comeBack() time.Duration {
	return rand.N(max(h.cfg.ReconnectSpread, time.Millisecond))
}

// Limits of the frames' own members.
const (
	maxSeq        = 1<<53 - 1 // the largest number that JavaScript holds exactly
	maxTextBytes  = 8 << 10
	maxPingBytes  = 64
	maxVersionLen = 64
)

// kind is what a member of a frame must be.
type kind int

const (
	textMember    kind = iota // a string
	idMember                  // a string, or a number, which counts as its text
	wholeMember               // a whole number from 0 to maxSeq
	numberMember              // a finite number
	messageMember             // an array of messages
	eventMember               // an object
)

type memberRule struct {
	name     string
	kind     kind
	required bool
}

// frameRules are the members of every frame that clients send, beside type.
var frameRules = map[string][]memberRule{
	"hello": {
		{"appID", idMember, true}, {"userID", textMember, true}, {"deviceID", textMember, false},
		{"clientVersion", textMember, false}, {"customerToken", textMember, false}, {"token", textMember, false},
		{"tokenError", textMember, false}, {"session", textMember, false}, {"lostMessages", wholeMember, false},
	},
	"proof": {{"proof", textMember, true}},
	"batch": {{"messages", messageMember, true}},
	"clock": {{"t0", numberMember, true}},
	"ping":  {{"id", textMember, false}},
}

var messageRules = []memberRule{{"seq", wholeMember, true}, {"conferenceID", textMember, false}, {"event", eventMember, true}}

// malformed is why a frame or message is refused. reason is a fixed word, the text is for the client's developer.
type malformed struct{ reason, text string }

func (m *malformed) Error() string { return m.text }

func refuse(reason, format string, args ...any) error {
	return &malformed{reason, fmt.Sprintf(format, args...)}
}

// parseFrame reads a text frame's JSON and checks its members by their rules. The result lives in the parser.
func parseFrame(p *fastjson.Parser, text []byte) (typ string, members map[string]*fastjson.Value, err error) {
	if !utf8.Valid(text) {
		return "", nil, refuse("utf8", "The frame is not valid UTF-8.")
	}
	// The parser bounds the depth but lets malformed numbers and strings pass, the validator the other way round.
	root, err := p.ParseBytes(text)
	if err == nil {
		err = fastjson.ValidateBytes(text)
	}
	if err != nil {
		return "", nil, refuse("json", "The frame is not valid JSON, or is nested more than %d levels deep.", fastjson.MaxDepth)
	}
	object, err := root.Object()
	if err != nil {
		return "", nil, refuse("json", "The frame is not a JSON object.")
	}
	name := object.Get("type")
	if name == nil || name.Type() != fastjson.TypeString {
		return "", nil, refuse("type", "The frame has no type.")
	}
	typ = string(name.GetStringBytes())
	rules, known := frameRules[typ]
	if !known {
		return "", nil, refuse("type", "There is no frame of this type: clients send hello, proof, batch, clock and ping.")
	}
	members, err = checkMembers(object, rules, "type")
	return typ, members, err
}

// checkMembers checks that an object has the members of the rules, each once and of its kind, and no others but extra.
func checkMembers(o *fastjson.Object, rules []memberRule, extra string) (map[string]*fastjson.Value, error) {
	members := make(map[string]*fastjson.Value, len(rules))
	seenExtra := false
	var err error
	o.Visit(func(key []byte, v *fastjson.Value) {
		name := string(key)
		if err != nil {
			return
		}
		if name == extra {
			if seenExtra {
				err = refuse("duplicate_member", "The member %s is there twice.", name)
			}
			seenExtra = true
			return
		}
		for _, rule := range rules {
			if rule.name != name {
				continue
			}
			if members[name] != nil {
				err = refuse("duplicate_member", "The member %s is there twice.", name)
				return
			}
			members[name] = v
			err = rule.check(v)
			return
		}
		err = refuse("unknown_member", "The member %s is unknown here.", clip(name))
	})
	if err != nil {
		return nil, err
	}
	for _, rule := range rules {
		if rule.required && members[rule.name] == nil {
			return nil, refuse("missing_member", "The member %s is missing.", rule.name)
		}
	}
	return members, nil
}

func (rule memberRule) check(v *fastjson.Value) error {
	bad := func(want string) error { return refuse("member_type", "The member %s must be %s.", rule.name, want) }
	switch rule.kind {
	case textMember:
		if v.Type() != fastjson.TypeString {
			return bad("a string")
		}
		if s := v.GetStringBytes(); len(s) > maxTextBytes || !utf8.Valid(s) {
			return bad("valid Unicode of at most " + strconv.Itoa(maxTextBytes) + " bytes")
		}
	case idMember:
		if v.Type() != fastjson.TypeString && v.Type() != fastjson.TypeNumber || len(idText(v)) > maxTextBytes {
			return bad("a string or a number")
		}
	case wholeMember:
		if _, ok := whole(v); !ok {
			return bad("a whole number from 0 to 2^53-1")
		}
	case numberMember:
		if v.Type() != fastjson.TypeNumber {
			return bad("a number")
		}
		if n, err := strconv.ParseFloat(v.String(), 64); err != nil || math.IsInf(n, 0) {
			return bad("a number within the range of a double")
		}
	case messageMember:
		if v.Type() != fastjson.TypeArray || len(v.GetArray()) == 0 {
			return bad("an array with at least one message")
		}
	case eventMember:
		if v.Type() != fastjson.TypeObject {
			return bad("an object")
		}
	}
	return nil
}

// whole reads a number that is written without fraction and exponent.
func whole(v *fastjson.Value) (uint64, bool) {
	if v.Type() != fastjson.TypeNumber {
		return 0, false
	}
	n, err := strconv.ParseUint(v.String(), 10, 64)
	return n, err == nil && n <= maxSeq
}

func idText(v *fastjson.Value) string {
	if v != nil && v.Type() == fastjson.TypeNumber {
		return v.String()
	}
	return memberText(v)
}

// memberText is the text of a member that may be absent.
func memberText(v *fastjson.Value) string {
	if v == nil {
		return ""
	}
	return string(v.GetStringBytes())
}

// reasonOf returns the word for the counters and the text for the client.
func reasonOf(err error) (reason, text string) {
	var m *malformed
	if errors.As(err, &m) {
		return m.reason, m.text
	}
	return "internal", "The message could not be taken in."
}

// clip bounds what a client can make us repeat.
func clip(s string) string {
	if len(s) <= 64 {
		return s
	}
	end := 64
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}
