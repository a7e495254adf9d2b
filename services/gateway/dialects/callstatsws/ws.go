// Package callstatsws speaks WebSocket as the callstats clients 3.24 and 3.26, and 3.52 where its token says so: JSON
// text frames, each with the access token, of which a few are answered.
//
// It serves the socket alone; these clients sign in and keep their clocks over HTTPS (callstatsrest).
package callstatsws

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sync/semaphore"

	"github.com/callscope/callscope/services/gateway/auth"
	"github.com/callscope/callscope/services/gateway/intake"
	"github.com/callscope/callscope/services/gateway/limits"
)

// Path ends the address of the socket.
const Path = "/csiows/collectCallStats"

// Config of the dialect. The gateway fills it from its own.
type Config struct {
	MaxFrameBytes int64
	// What one connection may have received and not stored; then its frames stay in the network.
	WindowMessages int
	WindowBytes    int64
	// StoreTimeout is how long the frames of a connection that has ended may still take into Kafka. While a
	// connection lives they have no limit: its client is slowed instead.
	StoreTimeout time.Duration
	WriteTimeout time.Duration
	PingInterval time.Duration
	// DrainSpread is over how long the connections are closed at shutdown.
	DrainSpread time.Duration
	Limits      *limits.Limiter
}

// Handler serves connections. They are hijacked from the HTTP server, so it keeps them itself.
type Handler struct {
	cfg      Config
	tokens   *auth.Tokens
	intake   *intake.Intake
	log      *slog.Logger
	upgrader websocket.Upgrader

	mu          sync.Mutex
	connections map[*connection]struct{}
	draining    bool
	running     sync.WaitGroup
	open        atomic.Int64
}

func New(cfg Config, tokens *auth.Tokens, in *intake.Intake, log *slog.Logger) *Handler {
	return &Handler{
		cfg: cfg, tokens: tokens, intake: in, log: log,
		upgrader: websocket.Upgrader{
			HandshakeTimeout: 5 * time.Second,
			Subprotocols:     []string{"echo-protocol"},
			ReadBufferSize:   4096,
			WriteBufferSize:  1024,
			WriteBufferPool:  &sync.Pool{},
			// Nothing here rests on cookies, and an app's origins are checked where the token is made.
			CheckOrigin: func(*http.Request) bool { return true },
			Error: func(w http.ResponseWriter, _ *http.Request, status int, reason error) {
				http.Error(w, "This address is a WebSocket of callstats clients: "+reason.Error(), status)
			},
		},
		connections: make(map[*connection]struct{}),
	}
}

// Open is the number of open connections.
func (h *Handler) Open() int64 { return h.open.Load() }

// ServeHTTP returns when the connection has ended and everything that it sent is counted.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Closed without an answer, like every temporary inability.
	if !h.cfg.Limits.SignIn(r.RemoteAddr) {
		h.intake.SignInRefused(string(limits.Address))
		panic(http.ErrAbortHandler)
	}
	if h.intake.Crowded() {
		h.intake.SignInRefused("budget")
		panic(http.ErrAbortHandler)
	}
	socket, err := h.upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // the upgrader has answered
	}
	c := &connection{
		h: h, socket: socket,
		origin: r.Header.Get("Origin"), userAgent: r.UserAgent(), remoteAddr: r.RemoteAddr,
		queue:  make(chan job, h.cfg.WindowMessages),
		window: semaphore.NewWeighted(h.cfg.WindowBytes),
	}
	if !h.add(c) {
		c.close(websocket.CloseServiceRestart)
		_ = socket.Close()
		return
	}
	defer h.remove(c)
	c.run()
}

func (h *Handler) add(c *connection) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.draining {
		return false
	}
	h.connections[c] = struct{}{}
	h.running.Add(1)
	h.open.Add(1)
	return true
}

func (h *Handler) remove(c *connection) {
	h.mu.Lock()
	delete(h.connections, c)
	h.mu.Unlock()
	h.open.Add(-1)
	h.running.Done()
}

// Drain lets every connection finish what it has received, closes it with 1012 (service restart) and returns when all
// have ended. New ones are refused from now on. The connections are closed one by one over DrainSpread, and serve until
// then: their clients come back at once, and not all of them at the same time. When ctx ends, the rest is closed.
func (h *Handler) Drain(ctx context.Context) {
	h.mu.Lock()
	h.draining = true
	rest := make([]*connection, 0, len(h.connections))
	for c := range h.connections {
		rest = append(rest, c)
	}
	h.mu.Unlock()
	interval := h.cfg.DrainSpread / time.Duration(max(len(rest), 1))
	tick := time.NewTicker(max(interval, time.Microsecond))
	defer tick.Stop()
	for _, c := range rest {
		c.stopReading()
		if h.open.Load() == 0 {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	h.running.Wait()
}

// connection is one client's socket. The reader turns frames into jobs; the writer stores them one after the other,
// which keeps the client's order in Kafka and in the answers.
type connection struct {
	h                             *Handler
	socket                        *websocket.Conn
	origin, userAgent, remoteAddr string

	queue   chan job
	window  *semaphore.Weighted
	stopped atomic.Bool // no more frames are wanted

	// Of the reader only.
	token    string
	identity auth.Identity
	deviceID string
}

// job is one frame on its way to Kafka and back.
type job struct {
	records []intake.Record
	answer  []byte // nil: none
	bytes   int64  // held in the window and in the gateway's budget
	code    int    // to close the connection with instead; 0: none
}

var errStopped = errors.New("the gateway is shutting down")

func (c *connection) run() {
	ctx, cancel := context.WithCancel(c.h.intake.Life())
	defer cancel()
	code := make(chan int, 1)
	var writer sync.WaitGroup
	writer.Go(func() { code <- c.store(ctx) })

	var ping *time.Timer
	ping = time.AfterFunc(c.h.cfg.PingInterval, func() {
		if c.control(websocket.PingMessage, nil) == nil {
			ping.Reset(c.h.cfg.PingInterval)
			return
		}
		// The client is gone, and the reader may be waiting for room, not for the network.
		c.stopReading()
		time.AfterFunc(c.h.cfg.StoreTimeout, cancel)
	})
	reason := c.read(ctx)
	ping.Stop()
	close(c.queue)
	limit := time.AfterFunc(c.h.cfg.StoreTimeout, cancel)
	writer.Wait()
	limit.Stop()
	if stored := <-code; stored != 0 {
		reason = stored
	}
	if reason != 0 {
		c.close(reason)
	}
	_ = c.socket.Close() // the connection is over either way
}

// lingerLimit is how long a client may take to receive what was written before the connection is closed.
const lingerLimit = time.Second

// linger lets the client read our last frames: closing a socket with unread data in it would discard them.
func (c *connection) linger() {
	conn := c.socket.NetConn()
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || conn.SetReadDeadline(time.Now().Add(lingerLimit)) != nil {
		return
	}
	_, _ = io.Copy(io.Discard, conn) // until the client closes or the limit
}

// idleLimit is how long nothing may come from a client, not even the answer to a ping.
func (c *connection) idleLimit() time.Duration { return 2*c.h.cfg.PingInterval + c.h.cfg.WriteTimeout }

// stopReading makes the reader return. It may be called from any goroutine.
func (c *connection) stopReading() {
	c.stopped.Store(true)
	_ = c.socket.NetConn().SetReadDeadline(time.Unix(1, 0)) // a closed connection has stopped already
}

// read takes frames until the connection ends. It returns the code to close it with, 0 when the client is gone.
func (c *connection) read(ctx context.Context) int {
	// Frames above the limit are read to their end and refused, so that those after them are not lost; far above it
	// the connection is given up.
	c.socket.SetReadLimit(16 * c.h.cfg.MaxFrameBytes)
	extend := func() error {
		if err := c.socket.SetReadDeadline(time.Now().Add(c.idleLimit())); err != nil {
			return err
		}
		if c.stopped.Load() { // after the deadline, because stopReading sets it in the opposite order
			return errStopped
		}
		return nil
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
		if extend() != nil {
			return c.stopCode()
		}
		kind, r, err := c.socket.NextReader()
		if err != nil {
			if errors.Is(err, websocket.ErrReadLimit) {
				c.h.intake.Received(intake.DialectWS)
				c.h.intake.Outcome(intake.DialectWS, intake.Oversized, "frame")
				return websocket.CloseMessageTooBig
			}
			if malformed(err) { // the library has answered with 1002
				c.h.intake.Received(intake.DialectWS)
				c.h.intake.Outcome(intake.DialectWS, intake.Invalid, "frame")
			}
			return c.stopCode()
		}
		if extend() != nil {
			return c.stopCode()
		}
		inFrame = true
		buffer := intake.Buffer()
		arriving := &intake.Arriving{R: r, Reserve: c.h.intake.Reserve}
		length, err := buffer.ReadFrom(io.LimitReader(arriving, c.h.cfg.MaxFrameBytes+1))
		tooLarge := length > c.h.cfg.MaxFrameBytes
		if err == nil && !tooLarge && !c.h.intake.Reserve(length-arriving.Reserved) {
			err = intake.ErrNoRoom
		}
		if err != nil || tooLarge {
			c.h.intake.Free(arriving.Reserved)
		}
		if err == nil && tooLarge {
			_, err = io.Copy(io.Discard, r)
		}
		c.h.intake.Received(intake.DialectWS)
		switch {
		case errors.Is(err, intake.ErrNoRoom):
			c.h.intake.Outcome(intake.DialectWS, intake.Shed, "memory")
			return websocket.CloseTryAgainLater
		case errors.Is(err, websocket.ErrReadLimit):
			c.h.intake.Outcome(intake.DialectWS, intake.Oversized, "frame")
			return websocket.CloseMessageTooBig
		case err != nil:
			c.h.intake.Outcome(intake.DialectWS, intake.Invalid, "incomplete")
			return c.stopCode()
		case tooLarge:
			c.h.intake.Outcome(intake.DialectWS, intake.Oversized, "frame")
			if !c.enqueue(ctx, job{answer: failure("The message is too large.")}) {
				return c.stopCode()
			}
			continue
		}
		j := c.frame(kind, buffer.Bytes())
		j.bytes = length
		intake.Discard(buffer)
		if j.code != 0 {
			c.h.intake.Free(length)
			return j.code
		}
		if !c.enqueue(ctx, j) {
			return c.stopCode()
		}
	}
}

// malformed reports whether the client broke the WebSocket protocol itself: reserved bits, as of a compressed frame,
// unmasked frames and the like. All other errors are ends of the connection.
func malformed(err error) bool {
	var closed *websocket.CloseError
	var network net.Error
	return !errors.As(err, &closed) && !errors.As(err, &network) && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed)
}

func (c *connection) stopCode() int {
	if c.stopped.Load() {
		return websocket.CloseServiceRestart
	}
	return 0
}

// enqueue waits until the window has room. When it returns false the job is counted and the connection is over.
func (c *connection) enqueue(ctx context.Context, j job) bool {
	if c.window.Acquire(ctx, c.weight(j)) != nil {
		c.h.intake.Free(j.bytes)
		c.shed(j)
		return false
	}
	select {
	case c.queue <- j:
		return true
	case <-ctx.Done():
		c.done(j)
		c.shed(j)
		return false
	}
}

// weight is what a job takes of the window; one that is larger than the window takes all of it.
func (c *connection) weight(j job) int64 { return min(j.bytes, c.h.cfg.WindowBytes) }

func (c *connection) done(j job) {
	c.window.Release(c.weight(j))
	c.h.intake.Free(j.bytes)
}

func (c *connection) shed(j job) {
	if len(j.records) > 0 { // the others are counted already
		c.h.intake.Outcome(intake.DialectWS, intake.Shed, "store")
	}
}

// store writes the jobs to Kafka in order and answers them. It returns the code to close the connection with, or 0.
func (c *connection) store(ctx context.Context) (code int) {
	for j := range c.queue {
		answer := j.answer
		if len(j.records) > 0 {
			switch err := c.h.intake.Store(ctx, j.records); {
			case err == nil:
				c.h.intake.Outcome(intake.DialectWS, intake.Accepted, "")
			case c.h.intake.Failed(intake.DialectWS, err) == intake.Oversized:
				answer = failure("The message is larger than a stored record may be.")
			default:
				// Without its answer the client would take the message for stored. The frames behind it are
				// still tried, and counted.
				answer = nil
				code = websocket.CloseTryAgainLater
				c.stopReading()
			}
		}
		c.done(j)
		if answer != nil && code != websocket.ClosePolicyViolation && !c.write(answer) {
			// A client that does not read is gone. What it sent is still stored, its answers are not tried again.
			code = websocket.ClosePolicyViolation
			c.h.intake.Evicted()
			c.stopReading()
		}
	}
	return code
}

func (c *connection) write(answer []byte) bool {
	if err := c.socket.SetWriteDeadline(time.Now().Add(c.h.cfg.WriteTimeout)); err != nil {
		return false
	}
	return c.socket.WriteMessage(websocket.TextMessage, answer) == nil
}

func (c *connection) control(kind int, data []byte) error {
	return c.socket.WriteControl(kind, data, time.Now().Add(c.h.cfg.WriteTimeout))
}

func (c *connection) close(code int) {
	err := c.control(websocket.CloseMessage, websocket.FormatCloseMessage(code, ""))
	if err != nil && !errors.Is(err, websocket.ErrCloseSent) && !errors.Is(err, net.ErrClosed) {
		c.h.log.Debug("closing a connection failed", "code", code, "error", err)
		return
	}
	c.linger()
}
