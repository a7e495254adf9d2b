package play

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

const (
	subprotocol    = "echo-protocol"
	closeGoingAway = websocket.CloseGoingAway // what a browser says when its page ends
	closeWait      = 2 * time.Second
)

func (c *client) open(ctx context.Context, s step, r *Result) *Result {
	r.Outcome = Accepted
	if err := c.dial(ctx, s); err != nil {
		r.Outcome, r.Reason = Failed, err.Error()
	}
	c.report(*r)
	return r
}

func (c *client) dial(ctx context.Context, s step) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	target := *c.base
	target.Scheme = map[string]string{"http": "ws", "https": "wss"}[c.base.Scheme]
	target.Path = strings.TrimSuffix(c.base.Path, "/") + s.Path
	header := http.Header{}
	if origin := s.Headers["origin"]; origin != "" {
		header.Set("Origin", origin)
	}
	d := websocket.Dialer{Subprotocols: []string{subprotocol}, HandshakeTimeout: c.cfg.Timeout, TLSClientConfig: &tls.Config{RootCAs: c.cfg.RootCAs}}
	conn, answer, err := d.DialContext(ctx, target.String(), header)
	if err != nil {
		if answer != nil {
			return fmt.Errorf("the handshake was answered with status %d: %w", answer.StatusCode, err)
		}
		return err
	}
	if conn.Subprotocol() != subprotocol {
		return errors.Join(fmt.Errorf("the gateway did not choose the subprotocol %s, so a browser would close the connection", subprotocol), conn.Close())
	}
	sock := &socket{conn: conn, report: c.player.report, timeout: c.cfg.Timeout, read: make(chan struct{})}
	c.socks[s.Conn] = sock
	go sock.receive()
	return nil
}

// send writes one frame. After a lost connection it first opens another, as the client does when it has something to
// send. It waits for the answer to a userJoined, because the client does; other answers may come until the end.
func (c *client) send(ctx context.Context, s step, r *Result) *Result {
	give := func(outcome Outcome, reason string) *Result {
		r.Outcome, r.Reason = outcome, reason
		c.report(*r)
		return r
	}
	if s.msg.Token != "" && c.tokenFor(s.msg.Token) == "" {
		return give(NotSent, "the client has no token: its sign-in was not answered with one")
	}
	conference := s.msg.conference()
	if s.msg.UcID != "" && c.ucIDs[conference] == "" {
		return give(NotSent, "the client has no ucID: its userJoined was not answered with one")
	}
	sock := c.socks[s.Conn]
	if sock == nil || sock.failure() != nil {
		if sock != nil {
			sock.close(closeGoingAway)
			delete(c.socks, s.Conn)
		}
		if err := c.dial(ctx, c.opening(s.Conn)); err != nil {
			return give(Failed, "opening the connection again: "+err.Error())
		}
		sock = c.socks[s.Conn]
	}
	f := &frame{result: r, event: answerEvent(s.msg), conference: conference, done: make(chan struct{})}
	r.SentAt = time.Now()
	if err := sock.write(f, rewrite(s.Data, c.times, c.replace(s.msg))); err != nil {
		return give(Failed, err.Error())
	}
	if f.event == "userJoined" {
		if ucID := sock.await(ctx, f); ucID != "" {
			c.ucIDs[conference] = ucID
		}
	}
	return r
}

// opening is the recorded line that opened a connection; a recording that begins later has the usual path.
func (c *client) opening(conn int) step {
	for _, s := range c.rec.steps {
		if s.Kind == kindWSOpen && s.Conn == conn {
			return s
		}
	}
	return step{line: line{Kind: kindWSOpen, Path: "/csiows/collectCallStats", Conn: conn}}
}

// socket is one open WebSocket connection.
type socket struct {
	conn    *websocket.Conn
	report  func(Result)
	timeout time.Duration
	read    chan struct{} // closed when reading has ended

	mu      sync.Mutex
	waiting []*frame // without an answer yet, in the order they were sent
	last    *frame   // sent last
	broken  error
}

// frame is a frame that was sent. Its result belongs to the socket until reading has ended.
type frame struct {
	result     *Result
	event      string        // that the answer names; empty when the protocol has no answer to this frame
	conference string        // as the frame spells it
	done       chan struct{} // closed when the answer is there or will never be
	ucID       string        // of the answer
}

// answerEvent is the event that the answer to a frame names, or empty for the frames that get none.
func answerEvent(m message) string {
	switch {
	case m.event() == "userFeedbackEvent" || m.Channel == "userFeedbackEvent":
		return "feedback"
	case m.Action == "userJoined" || m.Action == "userAlive" || m.Action == "fabricSetupFailed":
		return m.Action
	}
	return ""
}

func (s *socket) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

// write sends a frame. One that gets no answer counts as sent, unless a refusal follows.
func (s *socket) write(f *frame, text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	err := s.conn.SetWriteDeadline(time.Now().Add(s.timeout))
	if err == nil {
		err = s.conn.WriteMessage(websocket.TextMessage, []byte(text))
	}
	if err != nil {
		s.broken = err
		return err
	}
	s.last = f
	if f.event == "" {
		s.settle(f, Sent, "")
	} else {
		s.waiting = append(s.waiting, f)
	}
	return nil
}

// settle notes what became of a frame. The lock is held.
func (s *socket) settle(f *frame, outcome Outcome, reason string) {
	f.result.Outcome, f.result.Reason = outcome, reason
	s.report(*f.result)
}

// await waits for the answer to f and returns its ucID.
func (s *socket) await(ctx context.Context, f *frame) string {
	timer := time.NewTimer(s.timeout)
	defer timer.Stop()
	select {
	case <-f.done:
	case <-timer.C:
		s.giveUp("no answer in time", f)
	case <-ctx.Done():
		s.giveUp("interrupted", f)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return f.ucID
}

// giveUp settles frames that wait for an answer: those given, or all.
func (s *socket) giveUp(reason string, only ...*frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = slices.DeleteFunc(s.waiting, func(f *frame) bool {
		if len(only) > 0 && !slices.Contains(only, f) {
			return false
		}
		s.settle(f, Failed, reason)
		close(f.done)
		return true
	})
}

// receive reads answers until the connection ends.
func (s *socket) receive() {
	defer close(s.read)
	for {
		_, text, err := s.conn.ReadMessage()
		if err != nil {
			s.mu.Lock()
			if s.broken == nil {
				s.broken = err
			}
			s.mu.Unlock()
			s.giveUp("the connection ended without an answer: " + err.Error())
			return
		}
		s.take(text)
	}
}

type frameAnswer struct {
	Status       string `json:"status"`
	Event        string `json:"event"`
	ConferenceID string `json:"conferenceID"`
	UcID         string `json:"ucID"`
	Reason       string `json:"reason"`
}

// take gives an answer to the frame it belongs to: the oldest one waiting for that event and conference. A refusal names
// no event; it goes to the frame sent last.
func (s *socket) take(text []byte) {
	var a frameAnswer
	if err := json.Unmarshal(text, &a); err != nil {
		a.Status, a.Reason = "", "the answer is no JSON object"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.waiting, func(f *frame) bool {
		return f.event == a.Event && (a.ConferenceID == "" || f.conference == a.ConferenceID)
	})
	f := s.last
	if i >= 0 {
		f = s.waiting[i]
	}
	if f == nil || i < 0 && a.Status == "200 OK" {
		return // an answer that no client asked for
	}
	f.result.Answer = string(text)
	switch {
	case a.Status != "200 OK":
		s.settle(f, Refused, strings.TrimSpace(a.Status+" "+a.Reason))
	case f.event == "userJoined" && a.UcID == "":
		s.settle(f, Refused, "the answer to userJoined has no ucID")
	default:
		f.ucID = a.UcID
		s.settle(f, Accepted, "")
	}
	if at := slices.Index(s.waiting, f); at >= 0 {
		s.waiting = slices.Delete(s.waiting, at, at+1)
		close(f.done)
	}
}

// close waits for the answers still to come, says goodbye with the recorded code and ends the connection. Afterwards no
// result of this socket changes any more.
func (s *socket) close(code int) {
	s.mu.Lock()
	waiting := slices.Clone(s.waiting)
	s.mu.Unlock()
	deadline := time.NewTimer(s.timeout)
	defer deadline.Stop()
	for _, f := range waiting {
		select {
		case <-f.done:
			continue
		case <-deadline.C:
			s.giveUp("no answer in time")
		}
		break
	}
	if code < 1000 || code == websocket.CloseNoStatusReceived || code == websocket.CloseAbnormalClosure {
		code = closeGoingAway // what was recorded cannot be sent
	}
	// The peer's goodbye tells that it has read everything before ours.
	if s.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, ""), time.Now().Add(closeWait)) == nil {
		bye := time.NewTimer(closeWait)
		defer bye.Stop()
		select {
		case <-s.read:
		case <-bye.C:
		}
	}
	s.conn.Close() // a connection that is already closed is what is wanted
	<-s.read
}
