package protocol

import (
	"fmt"
	"testing"
	"time"

	"github.com/callscope/callscope/test/chaintest"
)

// sessionEvents is a session of about twenty messages: everything has its own time, so
// that a row tells its message.
func sessionEvents(start int64, peer string) []object {
	at := start
	next := func(event object) object {
		at += 7
		event["timestamp"] = at
		return event
	}
	fabric := func(event object) object {
		event["connectionID"], event["remoteID"] = "pc1", peer
		return next(event)
	}
	events := []object{
		next(object{"eventType": "userJoined"}),
		fabric(object{"eventType": "addNewFabric", "fabricUsage": "multiplex"}),
		fabric(object{"eventType": "fabricStateChange", "changedState": "iceConnectionState", "prevState": "new", "newState": "checking"}),
		fabric(object{"eventType": "fabricStateChange", "changedState": "iceConnectionState", "prevState": "checking", "newState": "connected"}),
		fabric(object{"eventType": "fabricSetup", "delay": 20}),
		fabric(object{"eventType": "associateMstWithUserID", "ssrc": "4711", "userID": peer}),
	}
	for i := range 5 {
		report := fabric(object{"eventType": "stats"})
		report["stats"] = []object{{"type": "inbound-rtp", "id": "in", "kind": "audio", "ssrc": 4711, "timestamp": at,
			"packetsReceived": 100 * (i + 1), "packetsLost": i, "bytesReceived": 8000 * (i + 1)}}
		events = append(events, report, next(object{"eventType": "audioMute", "ssrc": "4711"}))
	}
	return append(events,
		next(object{"eventType": "dominantSpeaker"}),
		next(object{"eventType": "userFeedback", "feedback": object{"overall": 4}}),
		fabric(object{"eventType": "fabricTerminated"}),
		next(object{"eventType": "userLeft"}))
}

// cuts ends the TCP connection at every boundary between two messages of a
// session and resumes it: everything acknowledged is there, and once (6). All
// sessions run first; their rows are read together.
func cuts(t *testing.T, d *deployment) {
	length := len(sessionEvents(0, ""))
	type session struct {
		name string
		// cutAfter says whether and how to cut when this many messages were sent.
		cutAfter func(sent int) (cut, acked, reset bool)
		events   []object
	}
	var sessions []*session
	for at := range length + 1 {
		sessions = append(sessions,
			&session{name: fmt.Sprintf("cut after the ack of %d", at), cutAfter: func(sent int) (bool, bool, bool) { return sent == at, true, false }},
			&session{name: fmt.Sprintf("cut after sending %d", at), cutAfter: func(sent int) (bool, bool, bool) { return sent == at, false, false }},
			&session{name: fmt.Sprintf("cut by a reset after sending %d", at), cutAfter: func(sent int) (bool, bool, bool) { return sent == at, false, true }})
	}
	sessions = append(sessions, &session{name: "cut after each message", cutAfter: func(sent int) (bool, bool, bool) { return true, false, sent%2 == 0 }})

	t.Run("sessions", func(t *testing.T) {
		for _, s := range sessions {
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				c := mustConnect(t, d, credentials{appID: openApp, userID: s.name, secret: openSecret}, nil)
				s.events = sessionEvents(now(), "bob")
				for sent := range length + 1 {
					if cut, acked, reset := s.cutAfter(sent); cut {
						cutAndResume(t, c, acked, reset)
					}
					if sent == length {
						break
					}
					if err := c.post(s.name, s.events[sent]); err != nil {
						t.Fatalf("sending %d: %v", sent+1, err)
					}
				}
				if err := c.awaitAck(int64(length)); err != nil {
					t.Fatal(err)
				}
			})
		}
	})
	if t.Failed() {
		return
	}
	sent := map[string][]object{}
	for _, s := range sessions {
		sent[s.name] = s.events
	}
	wantOnce(t, d, "cut ", sent)
}

// crash kills the server while clients send, starts it on the same data, and
// wants what a cut wants.
func crash(t *testing.T, d *deployment) {
	clients, sent := map[string]*client{}, map[string][]object{}
	for i := range 4 {
		name := fmt.Sprintf("crash %d", i)
		clients[name], sent[name] = mustConnect(t, d, credentials{appID: openApp, userID: name, secret: openSecret}, nil), sessionEvents(now(), "bob")
	}
	const before, acked = 9, 4
	for i := range before {
		for name, c := range clients {
			if i == acked {
				if err := c.awaitAck(acked); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.post(name, sent[name][i]); err != nil {
				t.Fatalf("sending: %v", err)
			}
		}
	}
	d.process.Kill()
	d.start()
	for name, c := range clients {
		if err := c.drain(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d of %d were acknowledged before the crash", name, c.acked, c.next)
		if err := c.connect(); err != nil {
			t.Fatalf("resuming: %v", err)
		}
		if err := c.post(name, sent[name][before:]...); err != nil {
			t.Fatalf("sending the rest: %v", err)
		}
		if err := c.awaitAck(int64(len(sent[name]))); err != nil {
			t.Fatal(err)
		}
	}
	wantOnce(t, d, "crash ", sent)
}

// wantOnce wants one row for each message of each conference, and no other: in
// events, and in samples for stats with their one stream. A conference's rows
// come in the order of its messages, so its last row shows that no second row of
// an earlier one is still on its way.
func wantOnce(t *testing.T, d *deployment, prefix string, sent map[string][]object) {
	t.Helper()
	want := map[string][]string{}
	for name, events := range sent {
		for _, event := range events {
			kind := event["eventType"]
			if kind == "stats" {
				kind = "sample"
			}
			want[name] = append(want[name], fmt.Sprint(event["timestamp"], " ", kind))
		}
	}
	chaintest.Eventually(t, 2*time.Minute, "the rows of all sessions", func() string {
		rows, err := d.query("SELECT conference_id, concat(toString(at), ' ', kind) AS message FROM (" +
			"SELECT conference_id, original_type AS kind, toUnixTimestamp64Milli(time) AS at FROM events WHERE reported AND startsWith(conference_id, " + sqlText(prefix) + ")" +
			" UNION ALL SELECT conference_id, 'sample' AS kind, toUnixTimestamp64Milli(time) AS at FROM samples WHERE startsWith(conference_id, " + sqlText(prefix) + ")" +
			") ORDER BY conference_id, at, kind")
		if err != nil {
			return err.Error()
		}
		got := map[string][]string{}
		for _, r := range rows {
			name := fmt.Sprint(r["conference_id"])
			got[name] = append(got[name], fmt.Sprint(r["message"]))
		}
		return diff(want, got)
	})
}

func cutAndResume(t *testing.T, c *client, acked, reset bool) {
	t.Helper()
	if acked {
		if err := c.awaitAck(c.next); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.cut(reset); err != nil {
		t.Fatalf("cutting: %v", err)
	}
	if err := c.drain(); err != nil {
		t.Fatal(err)
	}
	session := c.session
	if err := c.connect(); err != nil {
		t.Fatalf("resuming: %v", err)
	}
	if c.session != session {
		t.Fatalf("session %s became %s", session, c.session)
	}
}
