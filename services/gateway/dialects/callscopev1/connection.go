package callscopev1

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sync/semaphore"

	"github.com/callscope/callscope/services/gateway/auth"
	"github.com/callscope/callscope/services/gateway/intake"
)

const (
	closeTryAgainLater  = websocket.CloseTryAgainLater
	closeServiceRestart = websocket.CloseServiceRestart
)

// connection is one client's socket. The reader answers everything but batches at once and turns batches into jobs; the
// storer writes their messages to Kafka one after the other, which keeps the client's order, and acknowledges them.
type connection struct {
	h                             *Handler
	socket                        *websocket.Conn
	origin, userAgent, remoteAddr string

	queue           chan job
	messages, bytes *semaphore.Weighted // the window
	stopped         atomic.Bool         // no more frames are wanted
	evicted         atomic.Bool         // the client does not read
	writing         sync.Mutex          // the library allows one writer
	shared          atomic.Pointer[auth.Identity]

	// Of the reader only.
	frames        uint64 // text and binary frames received
	challenge     *challenge
	signedIn      bool
	identity      auth.Identity
	session       string
	sessionUID    []byte
	deviceID      string
	clientVersion string
	lastSeq       uint64
}

// job is one batch on its way to Kafka and back.
type job struct {
	messages []message
	bytes    int64 // held in the window and in the gateway's budget
}

// message is one message of a batch: records to store, or why it is refused.
type message struct {
	seq     uint64
	records []intake.Record
	refused *statusFrame // counted already
	notice  *statusFrame // sent once the message is stored
}

var errStopped = errors.New("no more frames are wanted")

// share lets other goroutines see who signed in.
func (c *connection) share(id auth.Identity) { c.shared.Store(&id) }

func (c *connection) run() {
	ctx, cancel := context.WithCancel(c.h.intake.Life())
	defer cancel()
	code := make(chan int, 1)
	var storer sync.WaitGroup
	storer.Go(func() { code <- c.store(ctx) })

	ended := make(chan struct{})
	var watcher sync.WaitGroup
	var tokenEnded atomic.Bool
	watcher.Go(func() { c.watch(ended, &tokenEnded, cancel) })

	reason := c.read(ctx)
	close(ended)
	watcher.Wait()
	if reason == closeServiceRestart {
		if tokenEnded.Load() {
			reason = closeTokenEnded
			c.status(statusFrame{CsError: authError, Reason: "token_ended", CsErrMsg: "The token has expired or was revoked: sign in again."})
		} else {
			c.write(reconnectFrame{"reconnect", c.h.comeBack().Milliseconds()})
		}
	}
	close(c.queue)
	limit := time.AfterFunc(c.h.cfg.StoreTimeout, cancel)
	storer.Wait()
	limit.Stop()
	if stored := <-code; stored != 0 {
		reason = stored
	}
	if reason != 0 {
		c.close(reason)
	}
	_ = c.socket.Close() // the connection is over either way
}

// watch pings the client, warns it before its token ends and ends the connection of one that is gone or no longer
// allowed.
func (c *connection) watch(ended <-chan struct{}, tokenEnded *atomic.Bool, cancel func()) {
	tick := time.NewTicker(c.h.cfg.PingInterval)
	defer tick.Stop()
	var warned string // the token that the client was warned of
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
		}
		if c.control(websocket.PingMessage, nil) != nil {
			// The client is gone, and the reader may be waiting for room, not for the network.
			c.stopReading()
			time.AfterFunc(c.h.cfg.StoreTimeout, cancel)
			return
		}
		identity := c.shared.Load()
		if identity == nil {
			continue
		}
		if c.h.tokens.Recheck(*identity, c.origin) != nil {
			tokenEnded.Store(true)
			c.stopReading()
			return
		}
		if left := time.Until(identity.ExpiresAt); left < auth.Lifetime/10 && warned != identity.TokenID {
			warned = identity.TokenID
			c.write(tokenExpiringFrame{"tokenExpiring", left.Milliseconds()})
		}
	}
}

// stopReading makes the reader return. It may be called from any goroutine.
func (c *connection) stopReading() {
	c.stopped.Store(true)
	_ = c.socket.NetConn().SetReadDeadline(time.Unix(1, 0)) // a closed connection has stopped already
}

// idleLimit is how long nothing may come from a client, not even the answer to a ping.
func (c *connection) idleLimit() time.Duration { return 2*c.h.cfg.PingInterval + c.h.cfg.WriteTimeout }

// read takes frames until the connection ends. It returns the code to close it with, 0 when the client is gone.
func (c *connection) read(ctx context.Context) int {
	// Frames above the limit are read to their end and refused, so that those after them are not lost; far above it
	// the connection is given up.
	c.socket.SetReadLimit(16 * c.h.cfg.MaxFrameBytes)
	signInBy := time.Now().Add(c.h.cfg.SignInTimeout)
	extend := func() error {
		by := time.Now().Add(c.idleLimit())
		if !c.signedIn && signInBy.Before(by) {
			by = signInBy
		}
		if err := c.socket.SetReadDeadline(by); err != nil {
			return err
		}
		if c.stopped.Load() { // after the deadline, because stopReading sets it in the opposite order
			return errStopped
		}
		return nil
	}
	ended := func(err error) int {
		switch {
		case c.stopped.Load():
			return closeServiceRestart
		case errors.Is(err, websocket.ErrReadLimit):
			c.h.intake.Received(dialect)
			c.h.intake.Outcome(dialect, intake.Oversized, "frame")
			return websocket.CloseMessageTooBig
		case !c.signedIn && !time.Now().Before(signInBy):
			c.status(statusFrame{CsError: authError, Reason: "timeout", CsErrMsg: "Nobody signed in in time."})
			return closeSignInTimeout
		}
		return 0
	}
	inFrame := false // a frame has to be there in time, whatever else its client answers
	c.socket.SetPongHandler(func(string) error {
		if inFrame {
			return nil
		}
		return extend()
	})
	for {
		inFrame = false
		if err := extend(); err != nil {
			return ended(err)
		}
		kind, r, err := c.socket.NextReader()
		if err != nil {
			if malformedFraming(err) { // the library has answered with 1002
				c.h.intake.Received(dialect)
				c.h.intake.Outcome(dialect, intake.Invalid, "framing")
			}
			return ended(err)
		}
		if err := extend(); err != nil {
			return ended(err)
		}
		inFrame = true
		c.frames++
		arriving := &intake.Arriving{R: r, Reserve: func(n int64) bool {
			return c.pollPart(ctx, func() bool { return c.h.intake.Reserve(n) })
		}}
		frame, err := io.ReadAll(io.LimitReader(arriving, c.h.cfg.MaxFrameBytes+1))
		receivedAt := time.Now()
		tooLarge := int64(len(frame)) > c.h.cfg.MaxFrameBytes
		if err != nil || tooLarge || kind != websocket.TextMessage {
			c.h.intake.Free(arriving.Reserved)
		}
		if err == nil && tooLarge {
			_, err = io.Copy(io.Discard, r)
		}
		switch {
		case errors.Is(err, intake.ErrNoRoom):
			return c.noRoom(ctx)
		case errors.Is(err, websocket.ErrReadLimit):
			return ended(err)
		case err != nil:
			c.h.intake.Received(dialect)
			c.h.intake.Outcome(dialect, intake.Invalid, "incomplete")
			return ended(err)
		case tooLarge:
			c.refuseFrame(intake.Oversized, "too_large", "The frame is larger than maxFrameBytes.")
			continue
		case kind != websocket.TextMessage:
			c.refuseFrame(intake.Unsupported, "binary", "Only text frames are supported.")
			continue
		}
		if code := c.frame(ctx, frame, arriving.Reserved, receivedAt); code != 0 {
			return code
		}
		if c.stopped.Load() {
			return closeServiceRestart
		}
	}
}

// pollPart is poll for who holds part of the memory that they need. It does not wait for ever: others may hold what is
// missing, and wait for that part.
func (c *connection) pollPart(ctx context.Context, try func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, c.h.cfg.StoreTimeout)
	defer cancel()
	return c.poll(ctx, try)
}

// noRoom counts a frame that there was no memory for and returns the code to close the connection with.
func (c *connection) noRoom(ctx context.Context) int {
	c.h.intake.Received(dialect)
	c.h.intake.Outcome(dialect, intake.Shed, "memory")
	if ctx.Err() != nil {
		return closeServiceRestart
	}
	return closeTryAgainLater
}

// refuseFrame counts a frame that is refused as a whole and tells the client.
func (c *connection) refuseFrame(o intake.Outcome, reason, text string) {
	c.h.intake.Received(dialect)
	c.h.intake.Outcome(dialect, o, reason)
	c.status(statusFrame{CsError: csProtoError, Reason: reason, CsErrMsg: text, Frame: c.frames})
}

// wait repeats try, which blocks until it succeeds or its context ends, and tells the client meanwhile to slow down. It
// returns false when ctx has ended.
func (c *connection) wait(ctx context.Context, try func(context.Context) bool) bool {
	next := c.h.cfg.ThrottleAfter
	for {
		attempt, cancel := context.WithTimeout(ctx, next)
		done := try(attempt)
		cancel()
		switch {
		case done:
			return true
		case ctx.Err() != nil:
			return false
		}
		// After the first notice one for every second ping is enough: it says that the server lives and is still full.
		next = max(c.h.cfg.PingInterval/2, c.h.cfg.ThrottleAfter)
		c.h.throttled.Inc()
		c.write(throttleFrame{"throttle", next.Milliseconds()})
	}
}

// poll waits until try succeeds where nothing tells when it could.
func (c *connection) poll(ctx context.Context, try func() bool) bool {
	if try() {
		return true
	}
	return c.wait(ctx, func(ctx context.Context) bool {
		for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
			select {
			case <-ctx.Done():
				return false
			case <-time.After(pause):
			}
			if try() {
				return true
			}
		}
	})
}

// enqueue waits until the window has room for a batch whose bytes are reserved already. When it returns false the batch
// is counted and the connection is over.
func (c *connection) enqueue(ctx context.Context, j job) bool {
	if !c.enter(ctx, c.messages, int64(len(j.messages))) {
		c.h.intake.Free(j.bytes)
		c.shed(j.messages)
		return false
	}
	if !c.enter(ctx, c.bytes, c.weight(j)) {
		c.messages.Release(int64(len(j.messages)))
		c.h.intake.Free(j.bytes)
		c.shed(j.messages)
		return false
	}
	c.queue <- j // it has room for as many batches as the window has for messages
	return true
}

func (c *connection) enter(ctx context.Context, window *semaphore.Weighted, n int64) bool {
	return window.TryAcquire(n) || c.wait(ctx, func(ctx context.Context) bool { return window.Acquire(ctx, n) == nil })
}

// weight is what a batch takes of the window; one that is larger than the window takes all of it.
func (c *connection) weight(j job) int64 { return min(j.bytes, c.h.cfg.WindowBytes) }

func (c *connection) done(j job) {
	c.messages.Release(int64(len(j.messages)))
	c.bytes.Release(c.weight(j))
	c.h.intake.Free(j.bytes)
}

// shed counts messages that are not stored. Their client, if it lives, still has them and sends them again.
func (c *connection) shed(messages []message) {
	for _, m := range messages {
		if m.refused == nil {
			c.h.intake.Outcome(dialect, intake.Shed, "store")
		}
	}
}

// store writes the messages to Kafka in order and acknowledges them. Behind a message that could not be stored no other
// is tried, so an acknowledgement always stands for everything before it. It returns the code to close the connection
// with, or 0.
func (c *connection) store(ctx context.Context) (code int) {
	for j := range c.queue {
		var acked uint64
		for i, m := range j.messages {
			if code != 0 {
				c.shed(j.messages[i:])
				break
			}
			if m.refused != nil {
				c.status(*m.refused)
				acked = max(acked, m.seq)
				continue
			}
			err := c.h.intake.Store(ctx, m.records)
			switch {
			case err == nil:
				c.h.intake.Outcome(dialect, intake.Accepted, "")
				if m.notice != nil {
					c.status(*m.notice)
				}
				acked = m.seq
			case c.h.intake.Failed(dialect, err) == intake.Oversized:
				c.status(statusFrame{CsError: csProtoError, Reason: "record", Seq: m.seq, CsErrMsg: "The message is larger than a stored record may be."})
				acked = m.seq
			default:
				code = closeTryAgainLater
				c.stopReading()
			}
		}
		c.done(j)
		if acked != 0 {
			c.write(ackFrame{"ack", acked})
		}
	}
	return code
}

// status tells the client what happened to something that it sent, or to the connection.
func (c *connection) status(s statusFrame) {
	s.Type = "status"
	c.h.statuses.WithLabelValues(s.CsError, s.Reason).Inc()
	c.write(s)
}

// write sends one frame. A client that does not read is gone: its connection ends.
func (c *connection) write(frame any) {
	text := mustMarshal(frame)
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.socket.SetWriteDeadline(time.Now().Add(c.h.cfg.WriteTimeout)); err != nil {
		c.stopReading()
		return
	}
	err := c.socket.WriteMessage(websocket.TextMessage, text)
	if err == nil {
		return
	}
	var network net.Error
	if errors.As(err, &network) && network.Timeout() && c.evicted.CompareAndSwap(false, true) {
		c.h.intake.Evicted()
	}
	c.stopReading()
}

func (c *connection) control(kind int, data []byte) error {
	return c.socket.WriteControl(kind, data, time.Now().Add(c.h.cfg.WriteTimeout))
}

// lingerLimit is how long a client may take to receive what was written before the connection is closed.
const lingerLimit = time.Second

func (c *connection) close(code int) {
	err := c.control(websocket.CloseMessage, websocket.FormatCloseMessage(code, ""))
	if err != nil && !errors.Is(err, websocket.ErrCloseSent) && !errors.Is(err, net.ErrClosed) {
		c.h.log.Debug("closing a connection failed", "code", code, "error", err)
		return
	}
	// Let the client read our last frames: closing a socket with unread data in it would discard them.
	conn := c.socket.NetConn()
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || conn.SetReadDeadline(time.Now().Add(lingerLimit)) != nil {
		return
	}
	_, _ = io.Copy(io.Discard, conn) // until the client closes or the limit
}

// malformedFraming reports whether the client broke the WebSocket protocol itself.
func malformedFraming(err error) bool {
	var closed *websocket.CloseError
	var network net.Error
	return !errors.Is(err, websocket.ErrReadLimit) && !errors.As(err, &closed) && !errors.As(err, &network) && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed)
}
