package callscopev1

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gorilla/websocket"
	"github.com/valyala/fastjson"
)

// Every malformed frame gets one status and one outcome, and the connection goes on.
func TestMalformedFrames(t *testing.T) {
	nested := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	ok := `{"eventType":"userAlive","timestamp":1}`
	cases := []struct{ text, reason string }{
		{"", "json"}, {" ", "json"}, {"x", "json"}, {"{", "json"}, {"}", "json"}, {"[]", "json"}, {"null", "json"}, {"true", "json"},
		{"5", "json"}, {`"hello"`, "json"}, {`{"type"}`, "json"}, {`{"type":}`, "json"}, {`{"type":"ping"`, "json"}, {`{"type":"ping"}}`, "json"},
		{`{"type":"ping"} {"type":"ping"}`, "json"}, {`{type:"ping"}`, "json"}, {`{'type':'ping'}`, "json"}, {`{"type":"ping",}`, "json"},
		{"{\"type\":\"pi\nng\"}", "json"}, {`{"type":"\x"}`, "json"}, {`{"type":"clock","t0":NaN}`, "json"}, {`{"type":"clock","t0":Infinity}`, "json"},
		{`{"type":"clock","t0":01}`, "json"}, {`{"type":"clock","t0":1.}`, "json"}, {`{"type":"clock","t0":.5}`, "json"}, {`{"type":"clock","t0":+1}`, "json"},
		{`{"type":"clock","t0":0x10}`, "json"}, {"\xef\xbb\xbf{}", "json"}, {`{"a":` + nested(10000) + `}`, "json"}, {nested(301), "json"},
		{"{\"type\":\"\x00\"}", "json"}, {`// {"type":"ping"}`, "json"},
		{"{}", "type"}, {`{"type":null}`, "type"}, {`{"type":5}`, "type"}, {`{"type":{}}`, "type"}, {`{"type":["ping"]}`, "type"}, {`{"type":""}`, "type"},
		{`{"type":"Ping"}`, "type"}, {`{"type":"ack","seq":1}`, "type"}, {`{"type":"signedIn"}`, "type"}, {`{"type":"stats"}`, "type"}, {`{"Type":"ping"}`, "type"},
		{`{"type":" ping"}`, "type"}, {`{"type":"ping\u0000"}`, "type"},
		{`{"type":"ping","type":"ping"}`, "duplicate_member"}, {`{"type":"ping","id":"a","id":"b"}`, "duplicate_member"}, {`{"type":"clock","t0":1,"t0":1}`, "duplicate_member"},
		{`{"type":"batch","messages":[],"messages":[]}`, "member_type"}, {`{"type":"ping","t\u0079pe":"ping"}`, "duplicate_member"},
		{`{"type":"ping","x":1}`, "unknown_member"}, {`{"type":"ping","ID":"x"}`, "unknown_member"}, {`{"type":"batch","message":[]}`, "unknown_member"},
		{`{"type":"batch","messages":[` + "{}" + `],"seq":1}`, "unknown_member"}, {`{"type":"clock","t0":1,"t1":2}`, "unknown_member"}, {`{"type":"ping","":1}`, "unknown_member"},
		{`{"type":"clock"}`, "missing_member"}, {`{"type":"batch"}`, "missing_member"}, {`{"type":"proof"}`, "missing_member"}, {`{"type":"hello"}`, "missing_member"},
		{`{"type":"hello","appID":"1"}`, "missing_member"}, {`{"type":"hello","userID":"1"}`, "missing_member"},
		{`{"type":"ping","id":5}`, "member_type"}, {`{"type":"ping","id":null}`, "member_type"}, {`{"type":"ping","id":{}}`, "member_type"},
		{`{"type":"clock","t0":"1"}`, "member_type"}, {`{"type":"clock","t0":null}`, "member_type"}, {`{"type":"clock","t0":1e999}`, "member_type"}, {`{"type":"clock","t0":true}`, "member_type"},
		{`{"type":"batch","messages":{}}`, "member_type"}, {`{"type":"batch","messages":[]}`, "member_type"}, {`{"type":"batch","messages":"x"}`, "member_type"}, {`{"type":"batch","messages":null}`, "member_type"},
		{`{"type":"proof","proof":5}`, "member_type"}, {`{"type":"hello","appID":[],"userID":"u"}`, "member_type"}, {`{"type":"hello","appID":"1","userID":5}`, "member_type"},
		{`{"type":"hello","appID":"1","userID":"u","lostMessages":-1}`, "member_type"}, {`{"type":"hello","appID":"1","userID":"u","lostMessages":1.5}`, "member_type"},
		{`{"type":"hello","appID":"1","userID":"u","token":"` + strings.Repeat("x", 8193) + `"}`, "member_type"},
		{`{"type":"ping","id":"` + strings.Repeat("x", 65) + `"}`, "ping"},
		{`{"type":"batch","messages":[` + strings.Repeat("{},", 8) + `{}]}`, "batch_size"},
		{`{"type":"ping","id":"` + strings.Repeat("x", 64<<10) + `"}`, "too_large"},
	}
	b := newBench(t, nil)
	c := b.dial(nil)
	c.signIn(nil)
	frame := 2
	for _, test := range cases {
		frame++
		name := test.text[:min(len(test.text), 60)]
		c.sendText(test.text)
		s := c.want("status")
		if s["csError"] != "csProtoError" || s["reason"] != test.reason || s["frame"] != float64(frame) || s["seq"] != nil || s["csErrMsg"] == "" {
			t.Errorf("%q: got %v, want reason %s, frame %d", name, s, test.reason, frame)
		}
	}
	// Not UTF-8, and binary.
	for _, f := range []struct {
		kind   int
		text   string
		reason string
	}{{websocket.TextMessage, "{\"type\":\"ping\",\"id\":\"\xff\"}", "utf8"}, {websocket.TextMessage, "\xc3\x28", "utf8"}, {websocket.BinaryMessage, `{"type":"ping"}`, "binary"}} {
		frame++
		must(t, c.socket.WriteMessage(f.kind, []byte(f.text)))
		if s := c.want("status"); s["reason"] != f.reason || s["frame"] != float64(frame) {
			t.Errorf("%q: got %v", f.text, s)
		}
	}

	// Messages: each is refused alone, under its number where it has one, and the batch goes on behind it.
	long := strings.Repeat("x", 257)
	messages := []struct {
		text, reason string
		unnumbered   bool
	}{
		{`5`, "message", true}, {`null`, "message", true}, {`[]`, "message", true}, {`"x"`, "message", true},
		{`{}`, "seq", true}, {`{"seq":0,"conferenceID":"c","event":` + ok + `}`, "seq", true}, {`{"seq":-1,"event":` + ok + `}`, "seq", true}, {`{"seq":1.5,"event":` + ok + `}`, "seq", true},
		{`{"seq":"7","event":` + ok + `}`, "seq", true}, {`{"seq":9007199254740992,"event":` + ok + `}`, "seq", true}, {`{"seq":1e2,"event":` + ok + `}`, "seq", true}, {`{"seq":null,"event":` + ok + `}`, "seq", true},
		{`{"seq":9223372036854775808,"event":` + ok + `}`, "seq", true},
		{`{"seq":%d,"conferenceID":"c"}`, "missing_member", false}, {`{"seq":%d,"conferenceID":"c","event":` + ok + `,"x":1}`, "unknown_member", false}, {`{"seq":%d,"confID":"c","event":` + ok + `}`, "unknown_member", false},
		{`{"seq":%d,"conferenceID":"c","event":` + ok + `,"event":` + ok + `}`, "duplicate_member", false}, {`{"seq":%d,"conferenceID":"c","event":[]}`, "member_type", false},
		{`{"seq":%d,"conferenceID":"c","event":null}`, "member_type", false}, {`{"seq":%d,"conferenceID":"c","event":"x"}`, "member_type", false}, {`{"seq":%d,"conferenceID":5,"event":` + ok + `}`, "member_type", false},
		{`{"seq":%d,"conferenceID":null,"event":` + ok + `}`, "member_type", false},
		{`{"seq":%d,"event":` + ok + `}`, "conference_id", false}, {`{"seq":%d,"conferenceID":"","event":` + ok + `}`, "conference_id", false}, {`{"seq":%d,"conferenceID":"` + long + `","event":` + ok + `}`, "conference_id", false},
	}
	inConference := func(event, reason string) {
		messages = append(messages, struct {
			text, reason string
			unnumbered   bool
		}{`{"seq":%d,"conferenceID":"c","event":` + event + `}`, reason, false})
	}
	inConference(`{}`, "event_type")
	inConference(`{"eventType":"","timestamp":1}`, "event_type")
	inConference(`{"eventType":null,"timestamp":1}`, "event_type")
	inConference(`{"eventType":"`+long+`","timestamp":1}`, "event_type")
	inConference(`{"eventType":"fabricSetupFailed","timestamp":1,"connectionID":"p"}`, "event_type")
	inConference(`{"eventType":"applicationErrorLog","timestamp":1}`, "event_type")
	inConference(`{"eventType":"userAlive"}`, "timestamp")
	inConference(`{"eventType":"userAlive","timestamp":0}`, "timestamp")
	inConference(`{"eventType":"userAlive","timestamp":-5}`, "timestamp")
	inConference(`{"eventType":"userAlive","timestamp":1e300}`, "timestamp")
	inConference(`{"eventType":"userAlive","timestamp":"NaN"}`, "timestamp")
	inConference(`{"eventType":"userAlive","timestamp":{}}`, "timestamp")
	inConference(`{"eventType":"userAlive","timestamp":1,"connectionID":"`+long+`"}`, "connection_id")
	inConference(`{"eventType":"userAlive","timestamp":1,"remoteID":"`+long+`"}`, "remote_id")
	inConference(`{"eventType":"userAlive","timestamp":1,"deviceID":"`+long+`"}`, "device_id")
	inConference(`{"eventType":"userAlive","timestamp":1,"siteID":"`+long+`"}`, "site_id")
	inConference(`{"eventType":"fabricSetup","timestamp":1,"connectionID":"`+testUser+`"}`, "connection_id")
	for _, name := range append([]string{"stats\",\"stats\":[],\"x\":\""}, aboutFabric...) {
		inConference(`{"eventType":"`+name+`","timestamp":1}`, "connection_id")
	}
	fabric := `"timestamp":1,"connectionID":"p","remoteID":"r"`
	inConference(`{"eventType":"addNewFabric",`+fabric+`}`, "enum")
	inConference(`{"eventType":"addNewFabric",`+fabric+`,"fabricUsage":"Audio"}`, "enum")
	inConference(`{"eventType":"addNewFabric",`+fabric+`,"fabricUsage":5}`, "enum")
	inConference(`{"eventType":"addNewFabric",`+fabric+`,"fabricUsage":"audio","remoteEndpointType":"sfu"}`, "enum")
	inConference(`{"eventType":"addNewFabric",`+fabric+`,"fabricUsage":"audio","fabricTransmissionDirection":"recvonly"}`, "enum")
	inConference(`{"eventType":"addNewFabric","timestamp":1,"connectionID":"p","fabricUsage":"audio"}`, "remote_id")
	inConference(`{"eventType":"addNewFabric","timestamp":1,"remoteID":"r","fabricUsage":"audio"}`, "connection_id")
	inConference(`{"eventType":"associateMstWithUserID",`+fabric+`,"userID":"u"}`, "ssrc")
	inConference(`{"eventType":"associateMstWithUserID",`+fabric+`,"userID":"u","ssrc":""}`, "ssrc")
	inConference(`{"eventType":"associateMstWithUserID",`+fabric+`,"userID":"u","ssrc":4294967296}`, "ssrc")
	inConference(`{"eventType":"associateMstWithUserID",`+fabric+`,"userID":"u","ssrc":"-1"}`, "ssrc")
	inConference(`{"eventType":"associateMstWithUserID",`+fabric+`,"ssrc":"1"}`, "user_id")
	inConference(`{"eventType":"associateMstWithUserID",`+fabric+`,"ssrc":"1","userID":"`+long+`"}`, "user_id")
	inConference(`{"eventType":"associateMstWithUserID","timestamp":1,"ssrc":"1","userID":"u"}`, "connection_id")
	inConference(`{"eventType":"reportError","timestamp":1}`, "enum")
	inConference(`{"eventType":"reportError","timestamp":1,"function":"CreateOffer"}`, "enum")
	inConference(`{"eventType":"reportError","timestamp":1,"function":5}`, "enum")
	inConference(`{"eventType":"userFeedback","timestamp":1}`, "feedback")
	inConference(`{"eventType":"userFeedback","timestamp":1,"feedback":5}`, "feedback")
	inConference(`{"eventType":"userFeedback","timestamp":1,"feedback":{"overall":0}}`, "feedback")
	inConference(`{"eventType":"userFeedback","timestamp":1,"feedback":{"overall":6}}`, "feedback")
	inConference(`{"eventType":"userFeedback","timestamp":1,"feedback":{"overall":2.5}}`, "feedback")
	inConference(`{"eventType":"userFeedback","timestamp":1,"feedback":{"overall":4,"audio":1e300}}`, "feedback")
	inConference(`{"eventType":"stats",`+fabric+`}`, "stats")
	inConference(`{"eventType":"stats",`+fabric+`,"stats":{}}`, "stats")
	inConference(`{"eventType":"preCallTestResults","timestamp":1}`, "results")

	seq, invalid := 0, b.outcome("invalid")
	for _, m := range messages {
		frame++
		text := m.text
		if !m.unnumbered {
			seq++
			text = fmt.Sprintf(m.text, seq)
		}
		seq++
		c.sendText(`{"type":"batch","messages":[` + text + fmt.Sprintf(`,{"seq":%d,"conferenceID":"c","event":%s}]}`, seq, ok))
		s := c.want("status")
		want := object{"type": "status", "csError": "csProtoError", "reason": m.reason, "frame": float64(frame), "csErrMsg": s["csErrMsg"]}
		if !m.unnumbered {
			want["seq"] = float64(seq - 1)
		}
		if diff := cmp.Diff(want, s); diff != "" {
			t.Errorf("%.80s: %s", text, diff)
		}
		if a := c.want("ack"); a["seq"] != float64(seq) {
			t.Errorf("%.80s: then got %v, want ack %d", text, a, seq)
		}
	}
	if n := b.outcome("invalid") - invalid; n != float64(len(messages)) {
		t.Errorf("%v invalid messages counted, want %d", n, len(messages))
	}
	if n := len(b.broker.all()); n != len(messages) {
		t.Errorf("%d stored, want the %d good ones", n, len(messages))
	}
	// A number that was used is not taken again.
	c.sendText(fmt.Sprintf(`{"type":"batch","messages":[{"seq":%d,"conferenceID":"c","event":%s}]}`, seq, ok))
	if s := c.want("status"); s["reason"] != "seq" || s["seq"] != nil {
		t.Errorf("got %v", s)
	}
	if total := len(cases) + len(messages); total < 100 {
		t.Errorf("only %d cases", total)
	}
}

// Framing that is no WebSocket, and frames far too large, end the connection, counted once.
func TestBrokenFraming(t *testing.T) {
	b := newBench(t, nil)
	for _, bytes := range [][]byte{{0xc1, 0x80, 0, 0, 0, 0}, {0x83, 0x80, 0, 0, 0, 0}, {0x81, 0x01, 'x'}} {
		c := b.dial(nil)
		c.signIn(nil)
		if _, err := c.socket.NetConn().Write(bytes); err != nil {
			t.Fatal(err)
		}
		c.wantClose(websocket.CloseProtocolError)
	}
	counted := func(want float64, labels ...string) {
		t.Helper()
		eventually(t, func() string { // the library closes before the reader counts
			if n := b.outcome(labels...); n != want {
				return fmt.Sprintf("counted %v of %v, want %v", n, labels, want)
			}
			return ""
		})
	}
	counted(3, "invalid", "framing")
	c := b.dial(nil)
	c.signIn(nil)
	_ = c.socket.WriteMessage(websocket.TextMessage, make([]byte, 16*(64<<10)+1)) // the server may close before its end
	c.wantClose(websocket.CloseMessageTooBig)
	counted(1, "oversized", "frame")
}

// What passes the frame parser is made of what the rules allow, and what does not has a reason.
func FuzzFrame(f *testing.F) {
	for _, text := range []string{
		`{"type":"hello","appID":1,"userID":"u","lostMessages":5}`, `{"type":"proof","proof":"AAAA"}`, `{"type":"clock","t0":1.5e3}`, `{"type":"ping","id":"x"}`,
		`{"type":"batch","messages":[{"seq":1,"conferenceID":"c","event":{"eventType":"stats","timestamp":1,"connectionID":"p","stats":[{"type":"inbound-rtp","ssrc":5}]}}]}`,
		`{"type":"batch","messages":[{"seq":1,"conferenceID":"c","event":{"eventType":"reportError","timestamp":1,"function":"createOffer","domError":{"name":"x"}}},{"seq":2,"event":{}}]}`,
		`{"type":"batch","messages":[{"seq":1,"conferenceID":"\ud800","event":{"eventType":"userFeedback","timestamp":"5","feedback":{"overall":"4"}}}]}`,
	} {
		f.Add([]byte(text))
	}
	b := newBench(f, nil)
	h := b.h
	f.Fuzz(func(t *testing.T, text []byte) {
		var p fastjson.Parser
		typ, members, err := parseFrame(&p, text)
		if err != nil {
			if reason, _ := reasonOf(err); reason == "internal" {
				t.Fatalf("no reason in %v", err)
			}
			return
		}
		for _, rule := range frameRules[typ] {
			if rule.required && members[rule.name] == nil {
				t.Fatalf("%s without %s", typ, rule.name)
			}
		}
		if typ == "hello" {
			if _, err := readHello(members); err != nil {
				if reason, _ := reasonOf(err); reason == "internal" {
					t.Fatalf("no reason in %v", err)
				}
			}
		}
		if typ != "batch" {
			return
		}
		c := &connection{h: h, signedIn: true, deviceID: "d", sessionUID: make([]byte, 16)}
		c.identity.AppID, c.identity.UserID = testApp, testUser
		last := uint64(0)
		for _, v := range members["messages"].GetArray() {
			h.intake.Received(dialect)
			m := c.message(v, arrival(c))
			if (m.refused == nil) != (len(m.records) == 1) {
				t.Fatalf("refused %v with %d records", m.refused, len(m.records))
			}
			if m.seq != 0 && m.seq <= last {
				t.Fatalf("seq %d after %d", m.seq, last)
			}
			if m.seq != 0 {
				last = m.seq
			}
			if m.refused == nil {
				h.intake.Outcome(dialect, "accepted", "")
			}
			if m.refused != nil && (m.refused.Reason == "" || m.refused.Reason == "internal") {
				t.Fatalf("got %+v", m.refused)
			}
		}
	})
}
