package protocol

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/gorilla/websocket"
)

// The client below is written from docs/reference/protocol.md alone. Numbers in
// its comments are sections of that page.

// patience is how long a test waits for one frame. The page promises none; it is
// generous because the machine may be busy.
const patience = 60 * time.Second

// proofInput is what is signed (2.1).
func proofInput(nonce []byte, appID, userID, origin string) []byte {
	var input []byte
	for _, part := range []string{"callscope.v1 proof", string(nonce), appID, userID, origin} {
		input = binary.BigEndian.AppendUint32(input, uint32(len(part)))
		input = append(input, part...)
	}
	return input
}

// proofKey is the part of an app secret that signs (2.1).
func proofKey(secret string) []byte {
	colon := slices.Index([]byte(secret), ':')
	if colon < 0 {
		return []byte(secret)
	}
	key := []byte(secret[colon+1:])
	if end := slices.Index(key, ':'); end >= 0 {
		key = key[:end]
	}
	return key
}

func proofOf(secret, nonce, appID, userID, origin string) (string, error) {
	decoded, err := base64.RawURLEncoding.DecodeString(nonce)
	if err != nil {
		return "", fmt.Errorf("decoding the nonce: %w", err)
	}
	mac := hmac.New(sha256.New, proofKey(secret))
	mac.Write(proofInput(decoded, appID, userID, origin))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), nil
}

// object is one JSON object to send.
type object = map[string]any

// frame is any frame of the server. Members that this client does not use are
// in text only.
type frame struct {
	Type             string
	CSError          string
	CSErrMsg         string
	Reason           string
	Seq              *int64
	Frame            *int64
	ConferenceID     string
	ConnectionID     string
	Nonce            string
	ExpiresInMs      float64
	AppID            string
	UserID           string
	DeviceID         string
	Session          string
	Resumed          bool
	Token            string
	TokenExpiresInMs float64
	Window           struct{ Messages, Bytes int64 }
	MaxFrameBytes    int64
	MaxBatchMessages int
	AfterMs          float64
	Ms               float64
	ID               string
	T0, T1, T2       float64

	text string
}

// connection is one WebSocket. One goroutine reads it into frames.
type connection struct {
	ws     *websocket.Conn
	frames chan frame
	// ended says why there are no more frames; read it after frames is closed.
	ended error
}

// dial upgrades (1). An empty origin sends no Origin header.
func dial(gateway, origin string) (*connection, *http.Response, error) {
	header := http.Header{}
	if origin != "" {
		header.Set("Origin", origin)
	}
	dialer := websocket.Dialer{Subprotocols: []string{"callscope.v1"}, HandshakeTimeout: patience}
	ws, response, err := dialer.Dial("ws://"+gateway+"/v1/ws", header)
	if err != nil {
		return nil, response, err
	}
	c := &connection{ws: ws, frames: make(chan frame, 1000)}
	go c.read()
	return c, response, nil
}

func (c *connection) read() {
	defer close(c.frames)
	for {
		kind, text, err := c.ws.ReadMessage()
		if err != nil {
			c.ended = err
			return
		}
		f := frame{text: string(text)}
		switch err := json.Unmarshal(text, &f); {
		case kind != websocket.TextMessage:
			c.ended = fmt.Errorf("the server sent a frame of kind %d: %q", kind, text)
		case err != nil:
			c.ended = fmt.Errorf("reading the server's frame %q: %w", text, err)
		}
		if c.ended != nil {
			_ = c.ws.Close()
			return
		}
		c.frames <- f
	}
}

func (c *connection) send(o object) error {
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return c.sendText(string(text))
}

func (c *connection) sendText(text string) error {
	return c.ws.WriteMessage(websocket.TextMessage, []byte(text))
}

// receive returns the next frame of one of the types; others are skipped, as a
// client must do with those it does not know.
func (c *connection) receive(types ...string) (frame, error) {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		select {
		case f, open := <-c.frames:
			if !open {
				return frame{}, fmt.Errorf("waiting for %v: the connection ended: %w", types, c.ended)
			}
			if slices.Contains(types, f.Type) {
				return f, nil
			}
		case <-timeout.C:
			return frame{}, fmt.Errorf("waiting for %v: nothing within %s", types, patience)
		}
	}
}

// closeCode waits for the end of the connection; 0 is an end without a close frame.
func (c *connection) closeCode() (int, error) {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		select {
		case _, open := <-c.frames:
			if open {
				continue
			}
			var closed *websocket.CloseError
			if errors.As(c.ended, &closed) && closed.Code != websocket.CloseAbnormalClosure {
				return closed.Code, nil
			}
			return 0, nil
		case <-timeout.C:
			return 0, fmt.Errorf("the server did not close within %s", patience)
		}
	}
}

// cut ends the TCP connection without a WebSocket close. With reset the kernel
// forgets what it has not sent yet, as when a machine is switched off.
func (c *connection) cut(reset bool) error {
	if tcp, ok := c.ws.NetConn().(*net.TCPConn); ok && reset {
		if err := tcp.SetLinger(0); err != nil {
			return fmt.Errorf("making the close a reset: %w", err)
		}
	}
	return c.ws.NetConn().Close()
}

// closeNormally sends a close frame with 1000.
func (c *connection) closeNormally() error {
	return c.ws.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
}

// credentials are what a user signs in with.
type credentials struct {
	appID, userID, secret, origin, customerToken string
}

// signIn sends hello, answers a challenge, and returns signedIn or status (2).
func (c *connection) signIn(who credentials, more object) (frame, error) {
	hello := object{"type": "hello", "appID": who.appID, "userID": who.userID}
	for member, value := range more {
		hello[member] = value
	}
	if who.customerToken != "" && hello["token"] == nil {
		hello["customerToken"] = who.customerToken
	}
	if err := c.send(hello); err != nil {
		return frame{}, err
	}
	f, err := c.receive("nonce", "signedIn", "status")
	if err != nil || f.Type != "nonce" {
		return f, err
	}
	proof, err := proofOf(who.secret, f.Nonce, who.appID, who.userID, who.origin)
	if err != nil {
		return frame{}, err
	}
	if err := c.send(object{"type": "proof", "proof": proof}); err != nil {
		return frame{}, err
	}
	return c.receive("signedIn", "status")
}

// message is one numbered message of a session.
type message struct {
	seq int64
	out object
}

// client is one user's session over as many connections as it takes (3, 4, 6).
type client struct {
	gateway string
	who     credentials
	hello   object // further members of hello

	*connection
	signedIn frame // the last one
	session  string
	token    string
	next     int64 // number of the next message, minus one
	acked    int64 // highest seq acknowledged
	kept     []message
	statuses []frame
	attempts int // to reconnect, in a row
}

// connect signs in, resumes the session where there is one, and sends again what
// was not acknowledged. It tries again as section 8 says.
func (c *client) connect() error {
	deadline := time.Now().Add(2 * patience)
	for {
		err := c.connectOnce()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return err
		}
		wait := min(time.Minute, time.Second<<min(c.attempts, 6))
		<-time.After(rand.N(wait))
		c.attempts++
	}
	if len(c.kept) == 0 {
		return nil
	}
	return c.sendBatch(c.kept)
}

func (c *client) connectOnce() error {
	var err error
	c.connection, _, err = dial(c.gateway, c.who.origin)
	if err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	more := object{}
	for member, value := range c.hello {
		more[member] = value
	}
	if c.session != "" {
		more["session"] = c.session
		if c.token != "" {
			more["token"] = c.token
		}
	}
	f, err := c.connection.signIn(c.who, more)
	if err == nil && f.Type != "signedIn" {
		if f.Reason == "refused" {
			c.token = "" // the next attempt signs in afresh
		}
		err = fmt.Errorf("the sign-in was answered with %s", f.text)
	}
	if err == nil && f.Resumed != (c.session != "") {
		err = fmt.Errorf("resumed is wrong for session %q: %s", c.session, f.text)
	}
	if err != nil {
		_ = c.ws.Close()
		return err
	}
	c.signedIn, c.session, c.token = f, f.Session, f.Token
	return nil
}

// number gives a message its seq and keeps it until it is acknowledged.
func (c *client) number(conferenceID string, event object) message {
	c.next++
	m := message{c.next, object{"seq": c.next, "conferenceID": conferenceID, "event": event}}
	if conferenceID == "" {
		delete(m.out, "conferenceID")
	}
	c.kept = append(c.kept, m)
	return m
}

func (c *client) sendBatch(messages []message) error {
	out := make([]object, len(messages))
	for i, m := range messages {
		out[i] = m.out
	}
	return c.connection.send(object{"type": "batch", "messages": out})
}

// post sends one batch of events of a conference.
func (c *client) post(conferenceID string, events ...object) error {
	batch := make([]message, len(events))
	for i, event := range events {
		batch[i] = c.number(conferenceID, event)
	}
	return c.sendBatch(batch)
}

// take handles one frame of the server.
func (c *client) take(f frame) error {
	switch f.Type {
	case "ack":
		if f.Seq == nil || *f.Seq < c.acked || *f.Seq > c.next {
			return fmt.Errorf("ack is none of what was sent, above %d and up to %d: %s", c.acked, c.next, f.text)
		}
		c.acked, c.attempts = *f.Seq, 0
		c.kept = slices.DeleteFunc(c.kept, func(m message) bool { return m.seq <= c.acked })
	case "status":
		c.statuses = append(c.statuses, f)
	case "throttle":
		<-time.After(time.Duration(f.Ms) * time.Millisecond)
	}
	return nil
}

// awaitAck returns when seq is acknowledged.
func (c *client) awaitAck(seq int64) error {
	for c.acked < seq {
		f, err := c.receive("ack", "status", "throttle")
		if err != nil {
			return fmt.Errorf("waiting for the ack of %d, %d is acknowledged: %w", seq, c.acked, err)
		}
		if err := c.take(f); err != nil {
			return err
		}
	}
	return nil
}

// drain handles what the server has sent until now and waits for nothing more
// than the end of a connection that was cut.
func (c *client) drain() error {
	for f := range c.frames {
		if err := c.take(f); err != nil {
			return err
		}
	}
	return nil
}
