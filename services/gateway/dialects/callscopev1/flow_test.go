package callscopev1

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gorilla/websocket"

	"github.com/callscope/callscope/services/gateway/limits"
)

func alive(seq int) object { return msg(seq, event("userAlive", nil)) }

func (b *bench) sequences() []uint64 {
	var list []uint64
	for _, r := range b.broker.all() {
		list = append(list, r.Claimed.GetSequence())
	}
	return list
}

func TestAckOnlyAfterTheBroker(t *testing.T) {
	b := newBench(t, nil)
	c := b.dial(nil)
	c.signIn(nil)
	b.broker.down()
	c.send(batch(alive(1), alive(2)))
	c.send(batch(alive(3)))
	// The pong comes behind both batches, before any acknowledgement.
	c.send(object{"type": "ping", "id": "p1"})
	if p := c.want("pong"); p["id"] != "p1" {
		t.Errorf("got %v", p)
	}
	if n := b.counter("callscope_gateway_received_total", dialect); n != 3 {
		t.Errorf("received %v, want 3", n)
	}
	b.broker.rise()
	for _, seq := range []float64{2, 3} {
		if a := c.want("ack"); a["seq"] != seq {
			t.Errorf("got %v, want ack %v", a, seq)
		}
	}
	if diff := cmp.Diff([]uint64{1, 2, 3}, b.sequences()); diff != "" {
		t.Error(diff)
	}
}

// While the window is full the server reads nothing, and says so.
func TestWindowStopsTheReader(t *testing.T) {
	b := newBench(t, func(c *Config) { c.WindowMessages = 4; c.ThrottleAfter = 20 * time.Millisecond })
	c := b.dial(nil)
	c.signIn(nil)
	b.broker.down()
	for seq := 1; seq <= 9; seq++ {
		c.send(batch(alive(seq)))
	}
	c.send(object{"type": "ping"})
	if o := c.want("throttle"); o["ms"].(float64) < 1 {
		t.Errorf("got %v", o)
	}
	// Four are in the window and one is in the reader's hand.
	if n := b.counter("callscope_gateway_received_total", dialect); n != 5 {
		t.Errorf("received %v, want 5", n)
	}
	if n := b.counter("callscope_gateway_protocol_throttles_total"); n < 1 {
		t.Errorf("counted %v throttles", n)
	}
	b.broker.rise()
	acked, pongs := 0.0, 0
	for acked < 9 || pongs == 0 {
		switch o := c.receive(); o["type"] {
		case "ack":
			acked = o["seq"].(float64)
		case "pong":
			pongs++
		case "throttle":
		default:
			t.Fatalf("got %v", o)
		}
	}
	if n := len(b.broker.all()); n != 9 {
		t.Errorf("%d stored, want 9: nothing is lost", n)
	}
}

func TestWindowOfBytes(t *testing.T) {
	b := newBench(t, func(c *Config) { c.WindowBytes = 2000; c.ThrottleAfter = 20 * time.Millisecond })
	c := b.dial(nil)
	c.signIn(nil)
	b.broker.down()
	big := func(seq int) object {
		return batch(msg(seq, event("customEvent", object{"eventList": []string{strings.Repeat("x", 1200)}})))
	}
	for seq := 1; seq <= 3; seq++ {
		c.send(big(seq))
	}
	c.want("throttle")
	if n := b.counter("callscope_gateway_received_total", dialect); n != 2 {
		t.Errorf("received %v, want 2", n)
	}
	b.broker.rise()
	for {
		if o := c.receive(); o["type"] == "ack" && o["seq"] == 3.0 {
			break
		}
	}
}

// Memory that is full slows the clients, and nothing is shed.
func TestBudgetSlows(t *testing.T) {
	b := newBench(t, func(c *Config) { c.ThrottleAfter = 20 * time.Millisecond })
	c := b.dial(nil)
	c.signIn(nil)
	taken := int64(0)
	for b.in.Reserve(1 << 10) {
		taken += 1 << 10
	}
	for b.in.Reserve(1) {
		taken++
	}
	c.send(batch(alive(1)))
	c.want("throttle")
	b.in.Free(taken)
	for {
		if o := c.receive(); o["type"] == "ack" {
			break
		}
	}
	if n := b.outcome("shed"); n != 0 {
		t.Errorf("%v shed", n)
	}
}

func TestQuotas(t *testing.T) {
	cfg := limits.Defaults()
	cfg.UserMessagesPerSecond, cfg.AppConferencesPerHour = 1, 1
	b := newBench(t, func(c *Config) { c.Limits = limits.New(cfg); c.ThrottleAfter = 20 * time.Millisecond })
	c := b.dial(nil)
	c.signIn(nil)
	// Ten seconds' worth pass at once; who goes on is slowed, and no message is lost.
	seq := 0
	for range 3 {
		var list []object
		for range 4 {
			seq++
			list = append(list, alive(seq))
		}
		c.send(batch(list...))
	}
	throttled, acked := false, 0.0
	for acked < 12 {
		switch o := c.receive(); o["type"] {
		case "throttle":
			throttled = true
		case "ack":
			acked = o["seq"].(float64)
		default:
			t.Fatalf("got %v", o)
		}
	}
	if !throttled || len(b.broker.all()) != 12 {
		t.Errorf("throttled %v, %d stored", throttled, len(b.broker.all()))
	}
	// A conference too many is refused for good.
	c.send(batch(object{"seq": 13, "conferenceID": "another", "event": event("userAlive", nil)}))
	for {
		o := c.receive()
		if o["type"] == "throttle" {
			continue
		}
		if o["type"] != "status" || o["reason"] != "conferences" || o["seq"] != 13.0 {
			t.Errorf("got %v", o)
		}
		break
	}
	if a := c.receive(); a["type"] != "ack" || a["seq"] != 13.0 {
		t.Errorf("got %v", a)
	}
	if n := b.outcome("rate_limited", "conferences"); n != 1 {
		t.Errorf("counted %v", n)
	}
}

// Behind a message that cannot be stored nothing is stored or acknowledged, whatever its turn.
func TestProduceFailureSkipsNothing(t *testing.T) {
	for failAt := 1; failAt <= 6; failAt++ {
		b := newBench(t, nil)
		b.broker.failAt = failAt
		c := b.dial(nil)
		c.signIn(nil)
		c.send(batch(alive(1), alive(2)))
		c.send(batch(alive(3)))
		c.send(batch(alive(4), alive(5), alive(6)))
		acked := 0.0
		for o := c.receive(); o != nil; o = c.receive() {
			if o["type"] == "ack" {
				acked = o["seq"].(float64)
			}
		}
		if c.code != websocket.CloseTryAgainLater {
			t.Errorf("closed with %d, want 1013", c.code)
		}
		var want []uint64
		for seq := 1; seq < failAt; seq++ {
			want = append(want, uint64(seq))
		}
		if diff := cmp.Diff(want, b.sequences()); diff != "" {
			t.Errorf("failing at %d: %s", failAt, diff)
		}
		if acked >= float64(failAt) {
			t.Errorf("failing at %d: acknowledged %v", failAt, acked)
		}
	}
}

func TestOversizedRecord(t *testing.T) {
	b := newBench(t, nil)
	b.broker.tooLarge = 2000
	c := b.dial(nil)
	c.signIn(nil)
	c.send(batch(alive(1), msg(2, event("customEvent", object{"eventList": []string{strings.Repeat("x", 3000)}})), alive(3)))
	if s := c.want("status"); s["csError"] != "csProtoError" || s["reason"] != "record" || s["seq"] != 2.0 {
		t.Errorf("got %v", s)
	}
	if a := c.want("ack"); a["seq"] != 3.0 {
		t.Errorf("got %v", a)
	}
	if n := b.outcome("oversized", "record"); n != 1 || len(b.broker.all()) != 2 {
		t.Errorf("%v oversized, %d stored", n, len(b.broker.all()))
	}
}

// resumer is the least that a client needs: it keeps what is not acknowledged and sends it again.
type resumer struct {
	b       *bench
	token   any
	session any
	acked   int
	last    int // the highest seq made
}

// connect signs in and sends again what is not acknowledged, up to the given seq.
func (r *resumer) connect(t *testing.T) *client {
	t.Helper()
	c := r.b.dial(nil)
	c.t = t
	if r.token == nil {
		in := c.signIn(nil)
		r.token, r.session = in["token"], in["session"]
		return c
	}
	c.send(object{"type": "hello", "appID": testApp, "userID": testUser, "token": r.token, "session": r.session})
	if in := c.want("signedIn"); in["resumed"] != true || in["session"] != r.session {
		t.Fatalf("got %v", in)
	}
	for seq := r.acked + 1; seq <= r.last; seq++ {
		c.send(batch(alive(seq)))
	}
	return c
}

func (r *resumer) drain(c *client) {
	for r.acked < r.last {
		if o := c.want("ack"); true {
			r.acked = int(o["seq"].(float64))
		}
	}
}

// The connection is cut at every message boundary, with the last messages stored and acknowledged, stored and not
// acknowledged, or neither.
func TestResumeAfterACutAnywhere(t *testing.T) {
	const messages = 8
	for cut := 0; cut <= messages; cut++ {
		for _, how := range []string{"after the acknowledgement", "before the acknowledgement", "while the broker holds", "inside a frame"} {
			t.Run(fmt.Sprintf("%d %s", cut, how), func(t *testing.T) {
				b := newBench(t, nil)
				r := &resumer{b: b}
				c := r.connect(t)
				if how == "while the broker holds" {
					b.broker.down()
				}
				for r.last < cut {
					r.last++
					c.send(batch(alive(r.last)))
				}
				switch how {
				case "after the acknowledgement":
					r.drain(c)
				case "before the acknowledgement":
					eventually(t, func() string {
						if n := len(b.broker.all()); n < cut {
							return fmt.Sprintf("%d of %d stored", n, cut)
						}
						return ""
					})
				case "inside a frame":
					// The beginning of a masked text frame of 126 or more bytes.
					if _, err := c.socket.NetConn().Write([]byte{0x81, 0xfe, 0x01, 0x00, 1, 2, 3, 4, 5, 6}); err != nil {
						t.Fatal(err)
					}
				}
				must(t, c.socket.NetConn().Close())
				if how == "while the broker holds" {
					b.broker.rise()
				}
				acknowledged := r.acked
				c = r.connect(t)
				for r.last < messages {
					r.last++
					c.send(batch(alive(r.last)))
				}
				r.drain(c)

				// What the enricher sees: in order of arrival, each session and number once.
				type key struct {
					session string
					seq     uint64
				}
				seen := make(map[key]bool)
				var kept []uint64
				for _, record := range b.broker.all() {
					k := key{string(record.Claimed.SessionUid), record.Claimed.GetSequence()}
					if !seen[k] {
						seen[k] = true
						kept = append(kept, k.seq)
					}
				}
				if diff := cmp.Diff([]uint64{1, 2, 3, 4, 5, 6, 7, 8}, kept); diff != "" {
					t.Error(diff)
				}
				if acknowledged > cut {
					t.Errorf("%d acknowledged of %d sent", acknowledged, cut)
				}
			})
		}
	}
}

// Another user, or another app, cannot use up the numbers of a session.
func TestSessionsOfOthers(t *testing.T) {
	b := newBench(t, nil)
	c := b.dial(nil)
	session := c.signIn(nil)["session"]
	other := b.dial(nil)
	other.send(object{"type": "hello", "appID": testApp, "userID": "mallory", "session": session})
	n := other.want("nonce")["nonce"].(string)
	other.send(object{"type": "proof", "proof": prove(testSecret, n, testApp, "mallory", "")})
	other.want("signedIn")
	c.send(batch(alive(1)))
	c.want("ack")
	other.send(batch(alive(1)))
	other.want("ack")
	all := b.broker.all()
	if cmp.Equal(all[0].Claimed.SessionUid, all[1].Claimed.SessionUid) {
		t.Error("two users share a session uid")
	}
}

func TestDrain(t *testing.T) {
	b := newBench(t, nil)
	c := b.dial(nil)
	c.signIn(nil)
	b.broker.down()
	c.send(batch(alive(1), alive(2)))
	c.send(object{"type": "ping"})
	c.want("pong")
	drained := make(chan struct{})
	go func() { defer close(drained); b.h.Drain() }()
	if o := c.want("reconnect"); o["afterMs"].(float64) < 0 || o["afterMs"].(float64) > 1000 {
		t.Errorf("got %v", o)
	}
	b.broker.rise()
	if a := c.want("ack"); a["seq"] != 2.0 {
		t.Errorf("got %v", a)
	}
	c.wantClose(websocket.CloseServiceRestart)
	<-drained
	if n := b.h.Open(); n != 0 {
		t.Errorf("%d open", n)
	}
}

// What the drain could not store is counted, and its client was not told that it was stored.
func TestGiveUp(t *testing.T) {
	b := newBench(t, nil)
	c := b.dial(nil)
	c.signIn(nil)
	b.broker.down()
	c.send(batch(alive(1), alive(2)))
	c.send(object{"type": "ping"})
	c.want("pong")
	b.in.GiveUp()
	for o := c.receive(); o != nil; o = c.receive() {
		if o["type"] == "ack" {
			t.Errorf("got %v", o)
		}
	}
	if c.code != websocket.CloseTryAgainLater {
		t.Errorf("closed with %d", c.code)
	}
	eventually(t, func() string {
		if n := b.outcome("shed"); n != 2 {
			return fmt.Sprintf("counted %v shed, want 2", n)
		}
		return ""
	})
}

func TestClock(t *testing.T) {
	b := newBench(t, nil)
	c := b.dial(nil)
	before := float64(time.Now().UnixMicro()) / 1000
	c.sendText(`{"type":"clock","t0":1700000000000.125}`) // also before the sign-in
	o := c.want("clock")
	after := float64(time.Now().UnixMicro()) / 1000
	t1, t2 := o["t1"].(float64), o["t2"].(float64)
	if o["t0"] != 1700000000000.125 || t1 < before-1 || t2 < t1 || t2 > after+1 {
		t.Errorf("got %v between %v and %v", o, before, after)
	}
}

// A client that does not read is ended, and what it sent is stored all the same.
func TestClientThatDoesNotRead(t *testing.T) {
	b := newBench(t, func(c *Config) { c.WriteTimeout = 50 * time.Millisecond; c.WindowMessages = 64 })
	c := b.dial(nil)
	c.signIn(nil)
	c.send(batch(alive(1)))
	ping, err := json.Marshal(object{"type": "ping", "id": strings.Repeat("x", 64)})
	must(t, err)
	must(t, c.socket.SetWriteDeadline(time.Now().Add(20*time.Second)))
	for c.socket.WriteMessage(websocket.TextMessage, ping) == nil {
	}
	eventually(t, func() string {
		if n := b.h.Open(); n != 0 {
			return fmt.Sprintf("%d connections are open", n)
		}
		return ""
	})
	if n := len(b.broker.all()); n != 1 {
		t.Errorf("%d stored", n)
	}
	if n := b.counter("callscope_gateway_evicted_total"); n != 1 {
		t.Errorf("counted %v evicted", n)
	}
}

// However many clients do not read, the others are served: nobody waits for the network with a place for parsing.
func TestClientsThatDoNotReadHoldNobodyUp(t *testing.T) {
	b := newBench(t, func(c *Config) { c.WriteTimeout = 30 * time.Second })
	ping, err := json.Marshal(object{"type": "ping", "id": strings.Repeat("x", 64)})
	must(t, err)
	var deaf sync.WaitGroup
	for range cap(b.h.parsing) {
		c := b.dial(nil)
		deaf.Go(func() {
			for c.socket.SetWriteDeadline(time.Now().Add(time.Second)) == nil && c.socket.WriteMessage(websocket.TextMessage, ping) == nil {
			}
		})
	}
	deaf.Wait() // the gateway no longer reads from them, because it cannot write to them
	c := b.dial(nil)
	c.signIn(nil)
	c.send(batch(alive(1)))
	c.want("ack")
}
