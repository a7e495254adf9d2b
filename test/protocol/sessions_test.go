package protocol

import "testing"

// sessions checks what section 6 says beyond cuts: numbers that are missing, a
// fresh sign-in into a session, and a session of somebody else.
func sessions(t *testing.T, d *deployment) {
	who := func(name string) credentials { return credentials{appID: openApp, userID: name, secret: openSecret} }
	event := func(name string) object { return object{"eventType": name, "timestamp": now()} }
	wantTypes := func(t *testing.T, conferenceID string, types ...string) {
		t.Helper()
		var want []row
		for _, name := range types {
			want = append(want, row{"original_type": name})
		}
		d.wantRows(t, "SELECT original_type FROM events WHERE reported AND conference_id = "+sqlText(conferenceID)+" ORDER BY original_type", want)
	}
	t.Run("dropped numbers", func(t *testing.T) {
		t.Parallel()
		c := mustConnect(t, d, who("dropper"), nil)
		if err := c.post("dropped numbers", event("first")); err != nil {
			t.Fatal(err)
		}
		c.next = 7
		if err := c.post("dropped numbers", event("second"), event("third")); err != nil {
			t.Fatal(err)
		}
		if err := c.awaitAck(9); err != nil {
			t.Fatal(err)
		}
		wantTypes(t, "dropped numbers", "first", "second", "third")
	})
	t.Run("a refused token, then a fresh sign-in in the same session", func(t *testing.T) {
		t.Parallel()
		c := mustConnect(t, d, who("afresh"), nil)
		if err := c.post("afresh", event("first"), event("second")); err != nil {
			t.Fatal(err)
		}
		if err := c.awaitAck(2); err != nil {
			t.Fatal(err)
		}
		if err := c.cut(true); err != nil {
			t.Fatal(err)
		}
		refused := mustDial(t, d, "")
		if f, err := refused.signIn(c.who, object{"session": c.session, "token": "not a token"}); err != nil || f.Reason != "refused" {
			t.Fatalf("got %s, %v", f.text, err)
		}
		again := mustDial(t, d, "")
		f, err := again.signIn(c.who, object{"session": c.session})
		if err != nil || f.Session != c.session || !f.Resumed || f.DeviceID != c.signedIn.DeviceID {
			t.Fatalf("got %s, %v", f.text, err)
		}
		// As a client that saw no ack: the second is sent again, the third is new.
		c.connection, c.acked = again, 0
		if err := c.sendBatch([]message{{1, object{"seq": 1, "conferenceID": "afresh", "event": event("first")}},
			{2, object{"seq": 2, "conferenceID": "afresh", "event": event("second")}}}); err != nil {
			t.Fatal(err)
		}
		if err := c.post("afresh", event("third")); err != nil {
			t.Fatal(err)
		}
		if err := c.awaitAck(3); err != nil {
			t.Fatal(err)
		}
		wantTypes(t, "afresh", "first", "second", "third")
	})
	t.Run("a session of another user is not taken", func(t *testing.T) {
		t.Parallel()
		victim := mustConnect(t, d, who("owner of the session"), nil)
		if err := victim.post("owned", event("a1")); err != nil {
			t.Fatal(err)
		}
		if err := victim.awaitAck(1); err != nil {
			t.Fatal(err)
		}
		// It is a session of the other user's own, whatever its name.
		thief := &client{gateway: d.gateway, who: who("thief of the session"), connection: mustDial(t, d, "")}
		if f, err := thief.connection.signIn(thief.who, object{"session": victim.session}); err != nil || f.Type != "signedIn" {
			t.Fatalf("got %s, %v", f.text, err)
		}
		for _, c := range []*client{thief, victim} {
			var events []object
			for range 3 - c.next {
				events = append(events, event(c.who.userID))
			}
			if err := c.post("owned", events...); err != nil {
				t.Fatal(err)
			}
			if err := c.awaitAck(3); err != nil {
				t.Fatal(err)
			}
		}
		wantTypes(t, "owned", "a1", victim.who.userID, victim.who.userID, thief.who.userID, thief.who.userID, thief.who.userID)
	})
	t.Run("the client's own close", func(t *testing.T) {
		t.Parallel()
		c := mustConnect(t, d, who("closer"), nil)
		if err := c.post("closed", event("first"), event("second")); err != nil {
			t.Fatal(err)
		}
		if err := c.awaitAck(2); err != nil {
			t.Fatal(err)
		}
		if err := c.closeNormally(); err != nil {
			t.Fatal(err)
		}
		if code, err := c.closeCode(); err != nil || code != 1000 {
			t.Errorf("the close was answered with %d, %v; want 1000", code, err)
		}
		wantTypes(t, "closed", "first", "second")
	})
}
