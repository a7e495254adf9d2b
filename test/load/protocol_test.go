package load

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	byteorder "encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// The clients of our own protocol. They are written from docs/reference/protocol.md; numbers in comments are its sections.
const (
	steadyClients = 4 // keep to the window and are never cut
	eagerClients  = 3 // send twice the window, and must be told to slow down
	cutClients    = 5 // lose their connection now and then, and resume

	eventEvery      = 100 * time.Millisecond // of each client
	eventsEach      = 4
	maxEventBytes   = 2 << 10 // more than each event has
	flushWithin     = 3 * time.Minute
	frameWithin     = 30 * time.Second
	rememberedBelow = 1024 // what the dedup behind remembers of a session's numbers (6)
)

// serverFrame is any frame of the server.
type serverFrame struct {
	Type, Nonce, Session, Token, Reason string
	Resumed                             bool
	Seq                                 int64
	Ms                                  float64
	Window                              struct{ Messages, Bytes int64 }

	text string
}

// protocolClient is one session of callscope.v1, over as many connections as it takes. Only its own goroutine writes
// it; the test reads what is atomic, and the rest when the client is done.
type protocolClient struct {
	gateway, user string
	eager         bool
	cut           chan struct{} // asks for a cut of the connection

	conn           *websocket.Conn
	frames         chan serverFrame
	session, token string
	window         int64
	throttledUntil time.Time

	texts [][]byte // the encoded messages, by seq-1
	sent  int64    // highest seq sent on this connection, or acknowledged

	// outstanding is what was sent and is not acknowledged; lost counts connections that ended, by cuts or otherwise.
	made, acked, outstanding           atomic.Int64
	connections, throttles, cuts, lost atomic.Int64
	ids                                []int64 // client time of each message, by seq-1
}

// run makes events until ctx ends, and returns when all of them are acknowledged, or at once when test ends.
func (c *protocolClient) run(test, ctx context.Context, counts *tally) error {
	if err := c.connect(test); err != nil {
		return err
	}
	defer func() { _ = c.conn.Close() }()
	every := time.NewTicker(eventEvery)
	defer every.Stop()
	stop := ctx.Done()
	var giveUp <-chan time.Time
	for giveUp == nil || c.acked.Load() < c.made.Load() {
		select {
		case <-test.Done():
			return nil // it has failed already
		case <-stop:
			stop, giveUp = nil, time.After(flushWithin)
		case <-giveUp:
			return fmt.Errorf("%d of %d messages are acknowledged %s after the last", c.acked.Load(), c.made.Load(), flushWithin)
		case <-every.C:
			if giveUp == nil {
				c.make(counts)
			}
		case <-c.cut:
			c.cuts.Add(1)
			if tcp, ok := c.conn.NetConn().(*net.TCPConn); ok {
				_ = tcp.SetLinger(0) // a reset: what the kernel has not sent is gone
			}
			_ = c.conn.NetConn().Close()
		case f, open := <-c.frames:
			if !open {
				c.lost.Add(1)
				if err := c.connect(test); err != nil {
					return err
				}
				break
			}
			if err := c.take(f); err != nil {
				return err
			}
		}
		c.flush()
	}
	return nil
}

func (c *protocolClient) make(counts *tally) {
	for range eventsEach {
		id := firstMessage + counts.next.Add(1)
		seq := c.made.Add(1)
		text := fmt.Sprintf(`{"seq":%d,"conferenceID":%q,"event":{"eventType":"userAlive","timestamp":%d,"padding":%q}}`, seq, c.user, id, strings.Repeat("p", 1000))
		c.texts, c.ids = append(c.texts, []byte(text)), append(c.ids, id)
	}
}

// flush sends what the window has room for. A failed write ends the connection, which the reader then reports.
func (c *protocolClient) flush() {
	room := c.window
	if c.eager {
		room *= 2
	}
	for c.sent < c.made.Load() && time.Now().After(c.throttledUntil) {
		n := min(16, c.made.Load()-c.sent, room-(c.sent-c.acked.Load()))
		if n <= 0 {
			break
		}
		batch := `{"type":"batch","messages":[`
		for i := range n {
			if i > 0 {
				batch += ","
			}
			batch += string(c.texts[c.sent+i])
		}
		if c.conn.WriteMessage(websocket.TextMessage, []byte(batch+"]}")) != nil {
			_ = c.conn.Close()
			return
		}
		c.sent += n
		c.outstanding.Store(c.sent - c.acked.Load())
	}
}

func (c *protocolClient) take(f serverFrame) error {
	switch f.Type {
	case "ack":
		if f.Seq < c.acked.Load() || f.Seq > c.sent {
			return fmt.Errorf("an ack of none of what was sent, above %d and up to %d: %s", c.acked.Load(), c.sent, f.text)
		}
		c.acked.Store(f.Seq)
		c.outstanding.Store(c.sent - f.Seq)
	case "throttle":
		c.throttles.Add(1)
		c.throttledUntil = time.Now().Add(time.Duration(f.Ms * float64(time.Millisecond)))
	case "status":
		return fmt.Errorf("a refusal: %s", f.text)
	}
	return nil
}

// connect signs in, afresh or into the session, as often as it takes (8). What was not acknowledged is sent again.
func (c *protocolClient) connect(test context.Context) error {
	deadline := time.Now().Add(flushWithin)
	for n := 0; ; n++ {
		err := c.connectOnce()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(rand.N(min(10*time.Second, time.Second<<min(n, 6)))):
		case <-test.Done():
			return err
		}
	}
	c.connections.Add(1)
	c.sent, c.throttledUntil = c.acked.Load(), time.Time{}
	c.outstanding.Store(0)
	return nil
}

func (c *protocolClient) connectOnce() error {
	dialer := websocket.Dialer{Subprotocols: []string{"callscope.v1"}, HandshakeTimeout: frameWithin}
	conn, response, err := dialer.Dial("ws://"+c.gateway+"/v1/ws", nil)
	if err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	defer response.Body.Close()
	f, err := c.signIn(conn)
	if err != nil {
		_ = conn.Close()
		return fmt.Errorf("signing in: %w", err)
	}
	if f.Resumed != (c.session != "") {
		_ = conn.Close()
		return fmt.Errorf("resumed is wrong for session %q: %s", c.session, f.text)
	}
	if f.Window.Bytes < f.Window.Messages*maxEventBytes {
		_ = conn.Close()
		return fmt.Errorf("the window of %d bytes is less than %d events", f.Window.Bytes, f.Window.Messages)
	}
	c.conn, c.session, c.token, c.window = conn, f.Session, f.Token, f.Window.Messages
	frames := make(chan serverFrame, 1000)
	c.frames = frames
	go func() {
		defer close(frames)
		for {
			f, err := readFrame(conn)
			if err != nil {
				_ = conn.Close()
				return
			}
			frames <- f
		}
	}()
	return nil
}

func (c *protocolClient) signIn(conn *websocket.Conn) (serverFrame, error) {
	if err := conn.SetReadDeadline(time.Now().Add(frameWithin)); err != nil {
		return serverFrame{}, err
	}
	hello := map[string]any{"type": "hello", "appID": appID, "userID": c.user}
	if c.session != "" {
		hello["session"], hello["token"] = c.session, c.token
	}
	if err := conn.WriteJSON(hello); err != nil {
		return serverFrame{}, err
	}
	f, err := readFrame(conn)
	if err == nil && f.Type == "nonce" {
		var proof string
		if proof, err = proofOf(f.Nonce, c.user); err == nil {
			err = conn.WriteJSON(map[string]any{"type": "proof", "proof": proof})
		}
		if err == nil {
			f, err = readFrame(conn)
		}
	}
	switch {
	case err != nil:
		return serverFrame{}, err
	case f.Type != "signedIn":
		return serverFrame{}, errors.New(f.text)
	}
	return f, conn.SetReadDeadline(time.Time{})
}

func readFrame(conn *websocket.Conn) (serverFrame, error) {
	_, text, err := conn.ReadMessage()
	if err != nil {
		return serverFrame{}, err
	}
	f := serverFrame{text: string(text)}
	return f, json.Unmarshal(text, &f)
}

// proofOf answers a challenge (2.1) on a connection without Origin header.
func proofOf(nonce, user string) (string, error) {
	decoded, err := base64.RawURLEncoding.DecodeString(nonce)
	if err != nil {
		return "", fmt.Errorf("decoding the nonce: %w", err)
	}
	mac := hmac.New(sha256.New, []byte(secret))
	for _, part := range []string{"callscope.v1 proof", string(decoded), appID, user, ""} {
		mac.Write(byteorder.BigEndian.AppendUint32(nil, uint32(len(part))))
		mac.Write([]byte(part))
	}
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), nil
}

// checkStored holds one session against the raw records of its user, in the order of the log: every message is there,
// each copy is of the message that has this number, and every repeat is one that the dedup behind drops by session and
// number. It returns how many repeats there are.
func (c *protocolClient) checkStored(t *testing.T, records []*callscopev1.Raw) (repeats int) {
	t.Helper()
	seen := make(map[uint64]bool)
	var highest uint64
	for _, raw := range records {
		claimed := raw.GetClaimed()
		seq := claimed.GetSequence()
		switch {
		case !slices.Equal(claimed.GetSessionUid(), records[0].GetClaimed().GetSessionUid()) || len(claimed.GetSessionUid()) == 0:
			t.Errorf("%s: message %d is in another session than the first", c.user, seq)
		case seq == 0 || seq > uint64(len(c.ids)):
			t.Errorf("%s: message %d was never sent", c.user, seq)
		case int64(claimed.GetTimeMs()) != c.ids[seq-1] || claimed.GetConferenceId() != c.user:
			t.Errorf("%s: what is stored as message %d is another one", c.user, seq)
		case highest >= rememberedBelow && seq <= highest-rememberedBelow:
			t.Errorf("%s: message %d comes behind %d: the dedup no longer knows it", c.user, seq, highest)
		}
		if seen[seq] {
			repeats++
		}
		seen[seq] = true
		highest = max(highest, seq)
	}
	missing := 0
	for seq := range c.ids {
		if !seen[uint64(seq+1)] {
			missing++
		}
	}
	if missing > 0 {
		t.Errorf("%s: %d of %d messages are not stored, although all were acknowledged", c.user, missing, len(c.ids))
	}
	return repeats
}
