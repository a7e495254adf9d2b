package callscopev1

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/callscope/callscope/services/gateway/auth"
)

// schemas checks values against the schemas of an AsyncAPI file. It knows the keywords that the file uses and fails on
// every other.
type schemas struct{ root map[string]any }

func (s schemas) resolve(ref string) map[string]any {
	node := any(s.root)
	for _, part := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
		node = node.(map[string]any)[part]
	}
	return node.(map[string]any)
}

func (s schemas) check(path string, schema map[string]any, v any) error {
	o, isObject := v.(map[string]any)
	list, isList := v.([]any)
	text, isText := v.(string)
	n, isNumber := v.(float64)
	for keyword, rule := range schema {
		bad := func() error { return fmt.Errorf("%s: %v breaks %s %v", path, v, keyword, rule) }
		switch keyword {
		case "description", "additionalProperties", "then":
		case "$ref":
			if err := s.check(path, s.resolve(rule.(string)), v); err != nil {
				return err
			}
		case "type":
			if one, ok := rule.(string); ok {
				rule = []any{one}
			}
			if !slices.ContainsFunc(rule.([]any), func(t any) bool {
				switch t {
				case "object":
					return isObject
				case "array":
					return isList
				case "string":
					return isText
				case "number":
					return isNumber
				case "integer":
					return isNumber && n == math.Trunc(n)
				case "boolean":
					_, ok := v.(bool)
					return ok
				}
				panic(fmt.Sprint("unknown type ", t))
			}) {
				return bad()
			}
		case "const":
			if v != rule {
				return bad()
			}
		case "enum":
			if !slices.Contains(rule.([]any), v) {
				return bad()
			}
		case "required":
			for _, name := range rule.([]any) {
				if _, ok := o[name.(string)]; isObject && !ok {
					return fmt.Errorf("%s: %s is missing", path, name)
				}
			}
		case "properties":
			for name, inner := range rule.(map[string]any) {
				if member, ok := o[name]; ok {
					if err := s.check(path+"."+name, inner.(map[string]any), member); err != nil {
						return err
					}
				}
			}
		case "items":
			for i, item := range list {
				if err := s.check(fmt.Sprintf("%s[%d]", path, i), rule.(map[string]any), item); err != nil {
					return err
				}
			}
		case "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems":
			limit, measured, applies := float64(rule.(int)), n, isNumber
			if strings.HasSuffix(keyword, "Length") {
				measured, applies = float64(utf8.RuneCountInString(text)), isText
			} else if strings.HasSuffix(keyword, "Items") {
				measured, applies = float64(len(list)), isList
			}
			if applies && (strings.HasPrefix(keyword, "min") && measured < limit || strings.HasPrefix(keyword, "max") && measured > limit) {
				return bad()
			}
		case "exclusiveMinimum":
			if isNumber && n <= float64(rule.(int)) {
				return bad()
			}
		case "format":
			if rule != "uuid" {
				panic(fmt.Sprint("unknown format ", rule))
			}
			if isText && !uuidText.MatchString(text) {
				return bad()
			}
		case "allOf":
			for _, inner := range rule.([]any) {
				if err := s.check(path, inner.(map[string]any), v); err != nil {
					return err
				}
			}
		case "if":
			if s.check(path, rule.(map[string]any), v) == nil {
				if err := s.check(path, schema["then"].(map[string]any), v); err != nil {
					return err
				}
			}
		default:
			panic("unknown keyword " + keyword)
		}
	}
	if isObject && schema["additionalProperties"] == false {
		known := schema["properties"].(map[string]any)
		for name := range o {
			if _, ok := known[name]; !ok {
				return fmt.Errorf("%s: %s is unknown", path, name)
			}
		}
	}
	return nil
}

// uuidText is RFC 9562's text form.
var uuidText = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// What the published schemas say of single members is what the gateway does with them.
func TestSchemasAndAnswers(t *testing.T) {
	text, err := os.ReadFile("../../../../docs/reference/asyncapi.yaml")
	must(t, err)
	var root map[string]any
	must(t, yaml.Unmarshal(text, &root))
	s := schemas{root}
	fits := func(message string, frame object) bool {
		encoded, err := json.Marshal(frame)
		must(t, err)
		var value map[string]any
		must(t, json.Unmarshal(encoded, &value))
		return s.check(message, s.resolve("#/components/messages/"+message+"/payload"), value) == nil
	}

	b := newBench(t, nil)
	c := b.dial(nil)
	session := c.signIn(nil)["session"].(string)
	for i, test := range []struct {
		timestamp any
		taken     bool
	}{
		{1, true}, {0.25, true}, {1700000000000.5, true}, {1e14, true},
		{0, false}, {-1, false}, {1e14 + 1, false}, {true, false}, {"", false}, {nil, false}, {"1700000000000", false},
	} {
		e := event("userAlive", nil)
		e["timestamp"] = test.timestamp
		frame := batch(msg(i+1, e))
		c.send(frame)
		taken := true
		for o := c.receive(); o["type"] != "ack"; o = c.receive() {
			if taken = false; o["type"] != "status" || o["reason"] != "timestamp" {
				t.Errorf("timestamp %v: answered with %v", test.timestamp, o)
			}
		}
		if fits("batch", frame) != test.taken || taken != test.taken {
			t.Errorf("timestamp %v: the schema says %v, the gateway %v, want %v", test.timestamp, fits("batch", frame), taken, test.taken)
		}
	}

	for _, test := range []struct {
		session string
		taken   bool
	}{
		{session, true}, {strings.ToUpper(session), true}, {"00000000-0000-0000-0000-000000000000", true},
		{"", false}, {"1", false}, {strings.ReplaceAll(session, "-", ""), false}, {"{" + session + "}", false}, {"urn:uuid:" + session, false},
		{session[:35] + "g", false}, {session + "0", false}, {strings.Repeat("x", 36), false},
	} {
		frame := object{"type": "hello", "appID": testApp, "userID": testUser, "session": test.session}
		c := b.dial(nil)
		c.send(frame)
		answer := c.receive()
		taken := answer["type"] == "nonce"
		if !taken && answer["reason"] != "session" {
			t.Errorf("session %q: answered with %v", test.session, answer)
		}
		if fits("hello", frame) != test.taken || taken != test.taken {
			t.Errorf("session %q: the schema says %v, the gateway %v, want %v", test.session, fits("hello", frame), taken, test.taken)
		}
		must(t, c.socket.Close())
	}
}

// Everything that a client and a server say to each other in a long exchange fits the published schemas, and the schemas
// notice when it does not.
func TestSchemas(t *testing.T) {
	text, err := os.ReadFile("../../../../docs/reference/asyncapi.yaml")
	must(t, err)
	var root map[string]any
	must(t, yaml.Unmarshal(text, &root))
	s := schemas{root}
	messages := s.resolve("#/components/messages")
	fromClient, toClient := make(map[string]string), make(map[string]string) // type to message
	for operation, byType := range map[string]map[string]string{"fromClient": fromClient, "toClient": toClient} {
		for _, ref := range s.resolve("#/operations/" + operation)["messages"].([]any) {
			channel := s.resolve(ref.(map[string]any)["$ref"].(string))
			name := strings.TrimPrefix(channel["$ref"].(string), "#/components/messages/")
			byType[s.resolve("#/components/messages/" + name + "/payload/properties/type")["const"].(string)] = name
		}
	}

	type frame struct {
		message string
		value   map[string]any
	}
	var frames []frame
	b := newBench(t, func(c *Config) { c.PingInterval = 50 * time.Millisecond; c.ThrottleAfter = 10 * time.Millisecond })
	record := func(c *client) *client {
		c.recorded = func(fromServer bool, text []byte) {
			var value map[string]any
			must(t, json.Unmarshal(text, &value))
			byType := fromClient
			if fromServer {
				byType = toClient
			}
			name, known := byType[value["type"].(string)]
			if !known {
				t.Fatalf("the file has no message for %s", text)
			}
			frames = append(frames, frame{name, value})
		}
		return c
	}
	until := func(c *client, typ string) object {
		for {
			o := c.receive()
			if o == nil {
				t.Fatalf("closed with %d before %s", c.code, typ)
			}
			if o["type"] == typ {
				return o
			}
		}
	}
	c := record(b.dial(nil))
	in := c.signIn(object{"deviceID": "d", "clientVersion": "1", "lostMessages": 1})
	c.send(object{"type": "ping", "id": "x"})
	until(c, "pong")
	c.send(object{"type": "ping"})
	until(c, "pong")
	c.send(object{"type": "clock", "t0": 1700000000000.5})
	until(c, "clock")
	seq := 0
	for _, sample := range samples() {
		seq++
		c.send(batch(msg(seq, sample.event)))
		until(c, "ack")
	}
	c.send(batch(object{"seq": seq + 1, "event": event("preCallTestResults", object{"results": object{}})}))
	until(c, "ack")
	b.broker.down()
	for i := range 12 {
		c.send(batch(alive(seq + 2 + i)))
	}
	until(c, "throttle")
	b.broker.rise()
	for until(c, "ack")["seq"] != float64(seq+13) {
	}
	app, _ := b.registry.Lookup(testApp)
	_, identity, err := b.tokens.Issue(app, testUser, "")
	must(t, err)
	identity.ExpiresAt = time.Now().Add(auth.Lifetime / 20)
	b.h.mu.Lock()
	for connection := range b.h.connections {
		connection.share(identity)
	}
	b.h.mu.Unlock()
	until(c, "tokenExpiring")
	recorded := c.recorded
	c.recorded = nil // what a client must not send has no schema; the answers have one
	c.sendText(`{"type":"batch"}`)
	c.sendText(fmt.Sprintf(`{"type":"batch","messages":[{"seq":%d,"conferenceID":"c","event":{}}]}`, seq+14))
	c.recorded = recorded
	until(c, "status")
	until(c, "status")
	until(c, "ack")
	c2 := record(b.dial(nil))
	c2.send(object{"type": "hello", "appID": 123456789, "userID": testUser, "token": in["token"], "session": in["session"]})
	until(c2, "signedIn")
	for _, refused := range []object{{"customerToken": "x"}, {"tokenError": "none"}} {
		c3 := record(b.dial(nil))
		refused["type"], refused["appID"], refused["userID"] = "hello", testApp, testUser
		c3.send(refused)
		until(c3, "status")
	}
	drained := make(chan struct{})
	go func() { defer close(drained); b.h.Drain() }()
	until(c, "reconnect")
	for o := c.receive(); o != nil; o = c.receive() {
		t.Logf("before the close: %v", o)
	}
	must(t, c.socket.Close())
	must(t, c2.socket.Close())
	<-drained

	covered := make(map[string]int)
	for _, f := range frames {
		covered[f.message]++
		payload := messages[f.message].(map[string]any)["payload"].(map[string]any)
		if err := s.check(f.message, payload, f.value); err != nil {
			t.Errorf("%v in %v", err, f.value)
		}
		// The same frame with a member more, or a required one less, does not fit.
		f.value["surplus"] = true
		if s.check(f.message, payload, f.value) == nil {
			t.Errorf("%s: a surplus member is not noticed", f.message)
		}
		delete(f.value, "surplus")
		for _, name := range payload["required"].([]any) {
			kept := f.value[name.(string)]
			delete(f.value, name.(string))
			if s.check(f.message, payload, f.value) == nil {
				t.Errorf("%s: the lack of %s is not noticed", f.message, name)
			}
			f.value[name.(string)] = []any{"of a wrong type", 1.0}
			if s.check(f.message, payload, f.value) == nil {
				t.Errorf("%s: a wrong %s is not noticed", f.message, name)
			}
			f.value[name.(string)] = kept
		}
	}
	for name := range messages {
		if covered[name] == 0 {
			t.Errorf("no %s was recorded", name)
		}
	}
	t.Logf("%d frames: %v", len(frames), covered)
}

// The rules that the gateway checks frames by and the published schemas name the same members.
func TestSchemasAndRules(t *testing.T) {
	text, err := os.ReadFile("../../../../docs/reference/asyncapi.yaml")
	must(t, err)
	var root map[string]any
	must(t, yaml.Unmarshal(text, &root))
	s := schemas{root}
	compare := func(name string, schema map[string]any, rules []memberRule, more ...string) {
		var published, ruled, publishedRequired, ruledRequired []string
		for member := range schema["properties"].(map[string]any) {
			published = append(published, member)
		}
		for _, member := range schema["required"].([]any) {
			publishedRequired = append(publishedRequired, member.(string))
		}
		ruled, ruledRequired = slices.Clone(more), slices.Clone(more)
		for _, rule := range rules {
			ruled = append(ruled, rule.name)
			if rule.required {
				ruledRequired = append(ruledRequired, rule.name)
			}
		}
		for _, pair := range [][2][]string{{published, ruled}, {publishedRequired, ruledRequired}} {
			slices.Sort(pair[0])
			slices.Sort(pair[1])
			if !slices.Equal(pair[0], pair[1]) {
				t.Errorf("%s: published %v, checked %v", name, pair[0], pair[1])
			}
		}
	}
	for typ, rules := range frameRules {
		name := typ
		if typ == "clock" {
			name = "clockRequest"
		}
		compare(name, s.resolve("#/components/messages/"+name+"/payload"), rules, "type")
	}
	compare("message", s.resolve("#/components/schemas/message"), messageRules)
}

// The frames that protocol.md shows in full fit the schemas, but for the one that shows a refusal.
func TestExamplesOfTheDocumentation(t *testing.T) {
	text, err := os.ReadFile("../../../../docs/reference/asyncapi.yaml")
	must(t, err)
	var root map[string]any
	must(t, yaml.Unmarshal(text, &root))
	s := schemas{root}
	page, err := os.ReadFile("../../../../docs/reference/protocol.md")
	must(t, err)
	checked := 0
	for line := range strings.Lines(string(page)) {
		who, example, found := strings.Cut(strings.TrimSpace(line), "  {")
		if !found || who != "client" && who != "server" || strings.Contains(example, "...}") || strings.Contains(example, "everything") {
			continue
		}
		example, _, _ = strings.Cut("{"+example, "          ") // a remark
		var value map[string]any
		if err := json.Unmarshal([]byte(example), &value); err != nil {
			t.Errorf("%s: %v", example, err)
			continue
		}
		name := value["type"].(string)
		if name == "clock" && who == "client" {
			name = "clockRequest"
		}
		if err := s.check(name, s.resolve("#/components/messages/"+name+"/payload"), value); err != nil {
			t.Errorf("%v in %s", err, example)
		}
		checked++
	}
	if checked < 20 {
		t.Errorf("only %d examples were found", checked)
	}
	if !strings.Contains(string(page), proofVector) {
		t.Error("the proof of the test vector is not on the page")
	}
}
