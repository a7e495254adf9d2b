// Package play plays recordings of callstats clients against a gateway, as the recorded clients would: it signs in
// afresh with the app's secret, uses the tokens and ucIDs that the gateway gives, speaks HTTP or WebSocket as recorded
// and moves the timestamps so that the call ends about now.
//
// It stands beside the gateway because only services/gateway may use the WebSocket library, and it uses nothing of the
// gateway's own code: it knows the wire alone, as a client does. It does not judge what becomes of the messages
// afterwards, and like the clients it sends nothing twice.
package play

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// The defaults of Config.
const (
	DefaultGateway = "http://127.0.0.1:8080"
	DefaultSecret  = "synthetic-app-secret-01" // of the app that `callscope all --demo` registers
	DefaultTimeout = 5 * time.Second           // what the clients allow
)

// Config says what is played, against what and how.
type Config struct {
	Recordings []Recording // played one after the other
	Gateway    string      // base URL; DefaultGateway when empty
	Secret     string      // app secret, or <base64 key id>:<secret>; DefaultSecret when empty
	// RootCAs are trusted to sign the gateway's certificate; nil: those that the system trusts.
	RootCAs *x509.CertPool
	// Speed divides the recorded spacing: 1 as recorded, 2 twice as fast, 0 as fast as the gateway answers. At 0 no
	// message overtakes one that another client sent more than a second earlier.
	Speed   float64
	Timeout time.Duration // for each answer; DefaultTimeout when 0
	// SignInFor bounds the repetition of a sign-in whose connection fails; 30 s when 0. The clients repeat it for ever.
	SignInFor time.Duration
	// Progress is called, one call at a time, when the outcome of a message is known, and again for a WebSocket frame
	// that is refused after it counted as sent. It may be nil.
	Progress func(Result)
}

// Recording is one capture file: JSON lines as `callstats-wire` captures have them.
type Recording struct {
	Name  string
	Lines io.Reader
}

// ReadFiles opens capture files. The recordings hold their whole content, so there is nothing to close.
func ReadFiles(paths []string) ([]Recording, error) {
	var list []Recording
	for _, path := range paths {
		lines, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading a recording: %w", err)
		}
		list = append(list, Recording{Name: filepath.Base(path), Lines: bytes.NewReader(lines)})
	}
	return list, nil
}

// ErrUnreachable is what Run returns when nothing listens at the gateway's address when it begins.
var ErrUnreachable = errors.New("the gateway cannot be reached")

// Outcome is what became of one message.
type Outcome string

// The outcomes.
const (
	Accepted Outcome = "accepted" // answered with success
	Sent     Outcome = "sent"     // a WebSocket frame that the protocol has no answer for, written to an open connection
	Refused  Outcome = "refused"  // answered with anything but success
	Failed   Outcome = "failed"   // no answer: the connection failed or the time was up
	NotSent  Outcome = "not sent" // the client had no token or no ucID for it, so it could not send it
)

// OK says whether the outcome is what a client hopes for.
func (o Outcome) OK() bool { return o == Accepted || o == Sent }

// Result is what became of one recorded line.
type Result struct {
	Recording string
	Seq       int    // of the recorded line
	Client    string // the user's id; empty for what nobody signed, such as clockSync
	Route     string // method and path with names for ids, or "WSS" and the event
	Event     string // the message's event type, as recorded; empty when it has none
	Outcome   Outcome
	Status    int       // HTTP status; 0 without an answer and for WebSocket frames
	Answer    string    // the answer's body
	Reason    string    // why it was refused, failed or was not sent
	SentAt    time.Time // when the sending began
}

// Report is what became of everything that was played.
type Report struct {
	Results  []Result      // in the recorded order, recording by recording
	Skipped  int           // recorded lines that are not the gateway's: preflights and requests to the page's own host
	Duration time.Duration // of the playing
}

// OK says whether everything that was played was accepted.
func (r Report) OK() bool {
	return !slices.ContainsFunc(r.Results, func(r Result) bool { return !r.Outcome.OK() })
}

// Run plays the recordings and returns what became of every message. An error means that it could not play at all or was
// cancelled; the report then has what was played before. Refusals and failed connections are in the report and are no
// error: the clients go on as well.
func Run(ctx context.Context, cfg Config) (Report, error) {
	var report Report
	if cfg.Gateway == "" {
		cfg.Gateway = DefaultGateway
	}
	if cfg.Secret == "" {
		cfg.Secret = DefaultSecret
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.SignInFor == 0 {
		cfg.SignInFor = 30 * time.Second
	}
	if cfg.Speed < 0 || math.IsNaN(cfg.Speed) || math.IsInf(cfg.Speed, 0) {
		return report, fmt.Errorf("the speed %v is not 0 or more", cfg.Speed)
	}
	base, err := url.Parse(cfg.Gateway)
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return report, fmt.Errorf("the gateway's address %q is no URL such as %s", cfg.Gateway, DefaultGateway)
	}
	key, err := parseSecret(cfg.Secret)
	if err != nil {
		return report, err
	}
	var recordings []*recording
	for _, r := range cfg.Recordings {
		parsed, err := parseRecording(r.Name, r.Lines)
		if err != nil {
			return report, err
		}
		recordings = append(recordings, parsed)
	}
	if err := reach(ctx, base); err != nil {
		return report, err
	}
	began := time.Now()
	p := &player{cfg: cfg, base: base, key: key}
	for _, r := range recordings {
		report.Results = append(report.Results, p.play(ctx, r)...)
		report.Skipped += r.skipped
		if ctx.Err() != nil {
			break
		}
	}
	report.Duration = time.Since(began)
	return report, ctx.Err()
}

// reach makes one connection, so that a wrong address is one clear error and not hundreds of failed messages.
func reach(ctx context.Context, base *url.URL) error {
	port := base.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[base.Scheme]
	}
	conn, err := (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, "tcp", net.JoinHostPort(base.Hostname(), port))
	if err != nil {
		return fmt.Errorf("%w at %s: %w", ErrUnreachable, base, err)
	}
	return conn.Close()
}

// player plays one recording after the other.
type player struct {
	cfg      Config
	base     *url.URL
	key      appSecret
	progress sync.Mutex
}

func (p *player) play(ctx context.Context, r *recording) []Result {
	if len(r.steps) == 0 {
		return nil
	}
	began := time.Now()
	first, last := r.steps[0].T, r.steps[len(r.steps)-1].T
	var playing time.Duration
	if p.cfg.Speed > 0 {
		playing = time.Duration(float64(last-first) / p.cfg.Speed * float64(time.Millisecond))
	}
	clock := r.clock(began.Add(playing).UnixMilli())
	pace := newPacer(began, first, p.cfg.Speed, len(r.clients))
	defer context.AfterFunc(ctx, pace.wake)()

	results := make([]*Result, len(r.steps))
	var wg sync.WaitGroup
	for i, name := range r.clients {
		c := newClient(p, r, name, clock)
		wg.Go(func() {
			defer c.close(ctx)
			defer pace.done(i)
			for n, s := range r.steps {
				if s.client != i || !pace.wait(ctx, i, s.T) {
					continue
				}
				results[n] = c.do(ctx, s)
			}
		})
	}
	wg.Wait()
	var list []Result
	for _, r := range results {
		if r != nil {
			list = append(list, *r)
		}
	}
	return list
}

// report passes the outcome of a message on, one call at a time.
func (p *player) report(r Result) {
	if p.cfg.Progress != nil {
		p.progress.Lock()
		defer p.progress.Unlock()
		p.cfg.Progress(r)
	}
}

// pacer keeps the recorded spacing, or at speed 0 the recorded order to within a second.
type pacer struct {
	began time.Time
	first int64 // recorded ms of the first message
	speed float64

	mu      sync.Mutex
	changed *sync.Cond
	at      []int64 // recorded ms of the message that each client is at
}

const overtakeMs = 1000

func newPacer(began time.Time, first int64, speed float64, clients int) *pacer {
	p := &pacer{began: began, first: first, speed: speed, at: slices.Repeat([]int64{first}, clients)}
	p.changed = sync.NewCond(&p.mu)
	return p
}

// wait returns when the message recorded at t is due, or false when ctx is done.
func (p *pacer) wait(ctx context.Context, client int, t int64) bool {
	if p.speed > 0 {
		due := p.began.Add(time.Duration(float64(t-p.first) / p.speed * float64(time.Millisecond)))
		timer := time.NewTimer(time.Until(due))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		return ctx.Err() == nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at[client] = t
	p.changed.Broadcast()
	for ctx.Err() == nil && slices.Min(p.at) < t-overtakeMs {
		p.changed.Wait()
	}
	return ctx.Err() == nil
}

func (p *pacer) done(client int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at[client] = math.MaxInt64
	p.changed.Broadcast()
}

func (p *pacer) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changed.Broadcast()
}
