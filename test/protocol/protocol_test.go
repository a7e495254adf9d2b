package protocol

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// now is the client's clock in epoch milliseconds, without fraction so that the
// rows can be compared.
func now() int64 { return time.Now().UnixMilli() }

// sqlText quotes a text for SQL.
func sqlText(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// TestProtocol runs everything against one deployment and ends it while a client
// is connected.
func TestProtocol(t *testing.T) {
	d := startDeployment(t)
	t.Run("with one deployment", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, *deployment){
			"sign-ins": signIns, "refusals": refusals, "a call": wholeCall, "batches": batches, "frames": wrongFrames,
			"messages": wrongMessages, "window": fullWindow, "clock and ping": clockAndPing,
			"connectivity": connectivityErrors, "cuts": cuts, "sessions": sessions,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, d)
			})
		}
	})
	t.Run("crash", func(t *testing.T) { crash(t, d) })
	t.Run("shutdown", func(t *testing.T) { shutdown(t, d) })
}

// batches checks section 4: acknowledgements are cumulative, one for each batch.
func batches(t *testing.T, d *deployment) {
	c := mustConnect(t, d, credentials{appID: openApp, userID: "batcher", secret: openSecret}, nil)
	at := now()
	sizes := []int{1, 3, 10, 1, 40}
	var want []int64
	var rows []row
	for _, size := range sizes {
		var events []object
		for range size {
			at++
			events = append(events, object{"eventType": "aTypeOfOurOwn", "timestamp": at, "n": len(rows)})
			rows = append(rows, row{"original_type": "aTypeOfOurOwn", "at": float64(at), "n": float64(len(rows))})
		}
		if err := c.post("batches", events...); err != nil {
			t.Fatal(err)
		}
		want = append(want, c.next)
	}
	var got []int64
	for range sizes {
		f, err := c.receive("ack", "status")
		if err != nil || f.Type != "ack" {
			t.Fatalf("got %s, %v", f.text, err)
		}
		got = append(got, *f.Seq)
	}
	if d := diff(want, got); d != "" {
		t.Errorf("acknowledgements %s", d)
	}
	d.wantRows(t, "SELECT original_type, toUnixTimestamp64Milli(time) AS at, JSONExtractInt(data, 'n') AS n FROM events "+
		"WHERE reported AND conference_id = 'batches' ORDER BY at", rows)
}

// wrongFrames checks the reasons for whole frames (7), and that the connection stays.
func wrongFrames(t *testing.T, d *deployment) {
	c := mustConnect(t, d, credentials{appID: openApp, userID: "framer", secret: openSecret}, nil)
	good := fmt.Sprintf(`{"seq":1,"conferenceID":"frames","event":{"eventType":"userJoined","timestamp":%d}}`, now())
	ordinal := int64(2) // hello and proof were sent
	for _, test := range []struct {
		reason, text string
	}{
		{"json", `{"type":"batch","messages":[`},
		{"json", strings.Repeat("[", 301) + strings.Repeat("]", 301)},
		{"utf8", "{\"type\":\"ping\",\"id\":\"\xff\"}"},
		{"type", `{"type":"hullo"}`},
		{"missing_member", `{"type":"batch"}`},
		{"unknown_member", `{"type":"batch","messages":[` + good + `],"more":1}`},
		{"duplicate_member", `{"type":"batch","type":"batch","messages":[` + good + `]}`},
		{"member_type", `{"type":"batch","messages":{}}`},
		{"member_type", `{"type":"batch","messages":[]}`},
		{"batch_size", `{"type":"batch","messages":[` + good + strings.Repeat(","+good, c.signedIn.MaxBatchMessages) + `]}`},
		{"too_large", `{"type":"batch","messages":[` + strings.Repeat(" ", int(c.signedIn.MaxFrameBytes)) + good + `]}`},
		{"ping", `{"type":"ping","id":"` + strings.Repeat("x", 65) + `"}`},
		{"credentials", `{"type":"hello","appID":"1","userID":"framer","token":"a","customerToken":"b"}`},
		{"user_id", `{"type":"hello","appID":"1","userID":""}`},
		{"client_version", `{"type":"hello","appID":"1","userID":"framer","clientVersion":"` + strings.Repeat("x", 65) + `"}`},
		{"device_id", `{"type":"hello","appID":"1","userID":"framer","deviceID":"` + strings.Repeat("x", 257) + `"}`},
		{"session", `{"type":"hello","appID":"` + openApp + `","userID":"framer","session":"no uuid"}`},
		{"identity", `{"type":"hello","appID":"` + openApp + `","userID":"somebody else"}`},
	} {
		ordinal++
		if err := c.sendText(test.text); err != nil {
			t.Fatalf("sending for %s: %v", test.reason, err)
		}
		f, err := c.receive("status", "nonce", "signedIn", "ack", "pong")
		if err != nil {
			t.Fatalf("reason %s: %v", test.reason, err)
		}
		// identity alone may come without a frame: it is about the connection.
		named := f.Frame != nil && *f.Frame == ordinal || f.Frame == nil && test.reason == "identity"
		if f.CSError != "csProtoError" || f.Reason != test.reason || !named || f.Seq != nil {
			t.Errorf("frame %d of reason %s got %s", ordinal, test.reason, f.text)
		}
	}
	ordinal++
	if err := c.ws.WriteMessage(websocket.BinaryMessage, []byte(`{"type":"ping"}`)); err != nil {
		t.Fatal(err)
	}
	f, err := c.receive("status", "pong")
	if err != nil || f.Reason != "binary" || f.Frame == nil || *f.Frame != ordinal {
		t.Errorf("a binary frame got %s, %v", f.text, err)
	}
	if err := c.post("frames", object{"eventType": "userLeft", "timestamp": now()}); err != nil {
		t.Fatal(err)
	}
	if err := c.awaitAck(1); err != nil {
		t.Fatalf("after all that: %v", err)
	}
	d.wantRows(t, "SELECT original_type FROM events WHERE reported AND conference_id = 'frames'", []row{{"original_type": "userLeft"}})
}

// merge sets members; nil takes one away.
func merge(o, change object) {
	for member, value := range change {
		o[member] = value
		if value == nil {
			delete(o, member)
		}
	}
}

// wrongMessages checks the reasons for single messages (7): each is final, and
// the good ones around it are stored.
func wrongMessages(t *testing.T, d *deployment) {
	const user = "mistaken"
	c := mustConnect(t, d, credentials{appID: openApp, userID: user, secret: openSecret}, nil)
	at := now()
	long := strings.Repeat("x", 257)
	type wrong struct {
		reason string
		change object // of the message
		event  object
	}
	tests := []wrong{
		{reason: "conference_id", change: object{"conferenceID": ""}, event: object{"eventType": "userJoined"}},
		{reason: "conference_id", change: object{"conferenceID": long}, event: object{"eventType": "userJoined"}},
		{reason: "unknown_member", change: object{"extra": 1}, event: object{"eventType": "userJoined"}},
		{reason: "member_type", change: object{"event": "none"}},
		{reason: "timestamp", event: object{"eventType": "userJoined", "timestamp": 0}},
		{reason: "event_type", event: object{"eventType": long}},
		{reason: "event_type", event: object{"eventType": "fabricSetupFailed", "connectionID": "pc"}},
		{reason: "connection_id", event: object{"eventType": "fabricHold", "connectionID": user}},
		{reason: "connection_id", event: object{"eventType": "fabricHold", "connectionID": long}},
		{reason: "remote_id", event: object{"eventType": "fabricHold", "connectionID": "pc", "remoteID": long}},
		{reason: "device_id", event: object{"eventType": "userJoined", "deviceID": long}},
		{reason: "enum", event: object{"eventType": "addNewFabric", "connectionID": "pc", "remoteID": "bob", "fabricUsage": "everything"}},
		{reason: "enum", event: object{"eventType": "addNewFabric", "connectionID": "pc", "remoteID": "bob", "fabricUsage": "audio", "remoteEndpointType": "pear"}},
		{reason: "enum", event: object{"eventType": "reportError", "function": "getUpset"}},
		{reason: "ssrc", event: object{"eventType": "associateMstWithUserID", "connectionID": "pc", "ssrc": int64(1) << 32, "userID": "bob"}},
		{reason: "user_id", event: object{"eventType": "associateMstWithUserID", "connectionID": "pc", "ssrc": "1", "userID": ""}},
		{reason: "feedback", event: object{"eventType": "userFeedback", "feedback": object{"overall": 6}}},
		{reason: "feedback", event: object{"eventType": "userFeedback", "feedback": object{"overall": 2.5}}},
		{reason: "stats", event: object{"eventType": "stats", "connectionID": "pc", "stats": object{}}},
		{reason: "stats", event: object{"eventType": "stats", "connectionID": "pc"}},
		{reason: "results", event: object{"eventType": "preCallTestResults", "results": "good"}},
		{reason: "results", event: object{"eventType": "preCallTestResults"}},
		{reason: "conference_id", change: object{"conferenceID": nil}, event: object{"eventType": "userJoined"}},
		{reason: "missing_member", change: object{"event": nil}},
		{reason: "timestamp", event: object{"eventType": "userJoined", "timestamp": nil}},
		{reason: "event_type", event: object{"eventType": nil}},
		{reason: "connection_id", event: object{"eventType": "fabricHold"}},
		{reason: "remote_id", event: object{"eventType": "addNewFabric", "connectionID": "pc", "fabricUsage": "audio"}},
		{reason: "enum", event: object{"eventType": "addNewFabric", "connectionID": "pc", "remoteID": "bob"}},
		{reason: "enum", event: object{"eventType": "reportError"}},
		{reason: "ssrc", event: object{"eventType": "associateMstWithUserID", "connectionID": "pc", "userID": "bob"}},
		{reason: "user_id", event: object{"eventType": "associateMstWithUserID", "connectionID": "pc", "ssrc": "1"}},
		{reason: "feedback", event: object{"eventType": "userFeedback", "feedback": object{"audio": 3}}},
		{reason: "feedback", event: object{"eventType": "userFeedback"}},
	}
	type refusal struct {
		Seq    int64
		Reason string
	}
	var want []refusal
	var batch []message
	good := func() {
		at++
		batch = append(batch, c.number("messages", object{"eventType": "userAlive", "timestamp": at}))
	}
	for _, test := range tests {
		good()
		event := object{"timestamp": at}
		merge(event, test.event)
		m := c.number("messages", event)
		merge(m.out, test.change)
		batch = append(batch, m)
		want = append(want, refusal{m.seq, test.reason})
	}
	good()
	// hello and proof were frames 1 and 2; each batch is acknowledged before the next.
	half := len(batch) / 2
	frameOf := func(seq int64) int64 {
		if seq <= batch[half-1].seq {
			return 3
		}
		return 4
	}
	for _, part := range [][]message{batch[:half], batch[half:]} {
		if err := c.sendBatch(part); err != nil {
			t.Fatal(err)
		}
		if err := c.awaitAck(part[len(part)-1].seq); err != nil {
			t.Fatal(err)
		}
	}
	var got []refusal
	for _, f := range c.statuses {
		if f.CSError != "csProtoError" || f.Seq == nil || f.Frame == nil || *f.Frame != frameOf(*f.Seq) {
			t.Errorf("got %s, want a csProtoError with seq and frame", f.text)
			continue
		}
		got = append(got, refusal{*f.Seq, f.Reason})
	}
	if d := diff(want, got); d != "" {
		t.Errorf("refusals %s", d)
	}
	// A number that is not above the last one names no message.
	if err := c.send(object{"type": "batch", "messages": []any{batch[0].out}}); err != nil {
		t.Fatal(err)
	}
	f, err := c.receive("status", "ack")
	if err != nil || f.Reason != "seq" || f.Seq != nil || f.Frame == nil || *f.Frame != 5 {
		t.Errorf("an old number got %s, %v", f.text, err)
	}
	// That batch has no ack of its own; the next one has.
	at++
	if err := c.post("messages", object{"eventType": "userAlive", "timestamp": at}); err != nil {
		t.Fatal(err)
	}
	if f, err := c.receive("status", "ack"); err != nil || f.Type != "ack" || *f.Seq != c.next {
		t.Errorf("after the old number: got %s, %v; want the ack of %d", f.text, err, c.next)
	}
	d.wantRows(t, "SELECT original_type, count() AS n FROM events WHERE reported AND user_id = 'mistaken' GROUP BY original_type",
		[]row{{"original_type": "userAlive", "n": float64(len(tests) + 2)}})
}

// fullWindow sends more than the window takes, and waits when it must (4).
func fullWindow(t *testing.T, d *deployment) {
	c := mustConnect(t, d, credentials{appID: openApp, userID: "windowed", secret: openSecret}, nil)
	if c.signedIn.Window.Messages < 1 || c.signedIn.Window.Bytes < 1 || c.signedIn.MaxBatchMessages < 1 {
		t.Fatalf("no window: %s", c.signedIn.text)
	}
	const batchSize, sum = 15, 150
	at := now()
	for range sum / batchSize {
		if room := c.signedIn.Window.Messages - batchSize; c.next-c.acked > room {
			if err := c.awaitAck(c.next - room); err != nil {
				t.Fatal(err)
			}
		}
		var events []object
		for range batchSize {
			at++
			events = append(events, object{"eventType": "windowed", "timestamp": at})
		}
		if err := c.post("window", events...); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.awaitAck(sum); err != nil {
		t.Fatal(err)
	}
	d.wantRows(t, "SELECT count() AS n, uniqExact(client_time) AS times FROM events WHERE reported AND conference_id = 'window'",
		[]row{{"n": float64(sum), "times": float64(sum)}})
}

// clockAndPing checks sections 8 and 9, before the sign-in and after it.
func clockAndPing(t *testing.T, d *deployment) {
	c := mustDial(t, d, "")
	check := func() {
		t.Helper()
		if err := c.sendText(`{"type":"clock","t0":1700000000000.125}`); err != nil {
			t.Fatal(err)
		}
		f, err := c.receive("clock", "status")
		if err != nil || f.T0 != 1700000000000.125 || f.T1 > f.T2 || f.T1 <= f.T0 {
			t.Errorf("clock: got %s, %v", f.text, err)
		}
	}
	check()
	if f, err := c.signIn(credentials{appID: openApp, userID: "clock", secret: openSecret}, nil); err != nil || f.Type != "signedIn" {
		t.Fatalf("got %s, %v", f.text, err)
	}
	check()
	if err := c.sendText(`{"type":"ping","id":"42"}`); err != nil {
		t.Fatal(err)
	}
	if f, err := c.receive("pong", "status"); err != nil || f.Type != "pong" || f.ID != "42" {
		t.Errorf("ping: got %s, %v", f.text, err)
	}
	if err := c.sendText(`{"type":"ping"}`); err != nil {
		t.Fatal(err)
	}
	if f, err := c.receive("pong", "status"); err != nil || f.Type != "pong" || f.ID != "" {
		t.Errorf("ping without id: got %s, %v", f.text, err)
	}
}

// connectivityErrors checks what pcCallback is to be told (7).
func connectivityErrors(t *testing.T, d *deployment) {
	c := mustConnect(t, d, credentials{appID: openApp, userID: "unconnected", secret: openSecret}, nil)
	events := []object{
		{"eventType": "iceFailed"}, {"eventType": "iceDisruptionStart"}, {"eventType": "iceConnectionDisruptionStart"}, {"eventType": "fabricDropped"},
		{"eventType": "fabricStateChange", "changedState": "iceConnectionState", "prevState": "checking", "newState": "failed"},
		{"eventType": "fabricStateChange", "changedState": "iceConnectionState", "prevState": "connected", "newState": "disconnected"},
		{"eventType": "fabricStateChange", "changedState": "iceConnectionState", "prevState": "checking", "newState": "connected"},
	}
	for _, event := range events {
		event["timestamp"], event["connectionID"], event["remoteID"] = now(), "pc1", "bob"
	}
	if err := c.post("connectivity", events...); err != nil {
		t.Fatal(err)
	}
	type told struct {
		Seq                     int64
		Reason, CSError, At, Of string
	}
	var want, got []told
	for i, event := range events[:len(events)-1] {
		want = append(want, told{int64(i + 1), event["eventType"].(string), "appConnectivityError", "connectivity", "pc1"})
	}
	for len(got) < len(want) {
		f, err := c.receive("status")
		if err != nil {
			t.Fatalf("after %d statuses: %v", len(got), err)
		}
		if f.Seq == nil {
			t.Fatalf("a status without seq: %s", f.text)
		}
		got = append(got, told{*f.Seq, f.Reason, f.CSError, f.ConferenceID, f.ConnectionID})
	}
	if d := diff(want, got); d != "" {
		t.Errorf("statuses %s", d)
	}
	if f, err := c.receive("status", "ack"); err != nil || f.Type != "ack" || *f.Seq != c.next {
		t.Errorf("after the statuses: got %s, %v; want the ack of %d", f.text, err, c.next)
	}
}

// shutdown ends the deployment under a client that has just sent (8).
func shutdown(t *testing.T, d *deployment) {
	c := mustConnect(t, d, credentials{appID: openApp, userID: "last", secret: openSecret}, nil)
	if err := c.post("shutdown", object{"eventType": "userJoined", "timestamp": now()}); err != nil {
		t.Fatal(err)
	}
	if err := c.awaitAck(1); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error)
	go func() { stopped <- d.process.StopWithin(time.Minute) }()
	if f, err := c.receive("reconnect"); err != nil || f.AfterMs < 0 {
		t.Errorf("got %s, %v", f.text, err)
	}
	if code, err := c.closeCode(); err != nil || code != 1012 {
		t.Errorf("closed with %d, %v; want 1012", code, err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}
