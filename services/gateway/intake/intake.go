// Package intake takes a client message from the dialects into Kafka: it bounds what is in memory, builds the envelope,
// produces the record and counts the outcome. Every dialect uses it the same way: Received, Reserve, Parse, Records,
// Store, Outcome.
//
// It does not know transports or tokens, and it does not answer clients.
package intake

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
	"github.com/callscope/callscope/services/gateway/auth"
	"github.com/callscope/callscope/services/gateway/vocabulary"
)

// Producer writes records to the raw topic. Produce returns nil when the record is on all in-sync replicas; it repeats
// transient failures until ctx ends. stream.ErrTooLarge is permanent.
type Producer interface {
	Produce(ctx context.Context, key, value []byte) error
}

// Intake is safe for concurrent use. Its New is inert; Close ends what it keeps trying.
type Intake struct {
	*Metrics
	producer Producer
	log      *slog.Logger
	limit    int64
	used     atomic.Int64
	parsing  chan struct{}

	ipv4Bits, ipv6Bits int
	locations          locations

	// life ends when the gateway gives up what is still in memory.
	life context.Context
	end  context.CancelFunc
	kept sync.WaitGroup
}

// New makes an intake that holds at most budgetBytes of messages at a time.
func New(producer Producer, budgetBytes int64, log *slog.Logger, reg prometheus.Registerer) (*Intake, error) {
	in := &Intake{
		producer: producer,
		log:      log,
		limit:    budgetBytes,
		// Parsing is CPU work: more of it at a time gains nothing, and a parsed message takes many times its size.
		parsing:  make(chan struct{}, 2*runtime.GOMAXPROCS(0)),
		ipv4Bits: DefaultIPv4Bits,
		ipv6Bits: DefaultIPv6Bits,
	}
	in.life, in.end = context.WithCancel(context.Background())
	var err error
	in.Metrics, err = newMetrics(reg, func() float64 { return float64(in.used.Load()) })
	return in, err
}

// GiveUp ends everything that is still being tried. What is not stored by then is counted as shed or lost.
func (in *Intake) GiveUp() { in.end() }

// Close gives up and waits until all is counted. No message may be taken in afterwards.
func (in *Intake) Close() {
	in.end()
	in.kept.Wait()
}

// Life is the context of everything that may outlive its connection.
func (in *Intake) Life() context.Context { return in.life }

// Reserve takes n bytes out of the budget. When it returns false there is no room, and the message must be shed.
func (in *Intake) Reserve(n int64) bool {
	if in.used.Add(n) > in.limit {
		in.used.Add(-n)
		return false
	}
	return true
}

// Crowded reports whether so much of the budget is taken that nobody new should come in. What is connected goes on.
func (in *Intake) Crowded() bool { return in.used.Load() > in.limit/5*4 }

// Free gives n reserved bytes back.
func (in *Intake) Free(n int64) { in.used.Add(-n) }

// Arrival is what the gateway saw of a message, apart from its content.
type Arrival struct {
	Identity   auth.Identity
	ReceivedAt time.Time
	Origin     string
	UserAgent  string
	RemoteAddr string // host:port
	// Hash is the content hash: see HashRequest and HashFrame.
	Hash [sha256.Size]byte
}

// HashRequest identifies the content of an HTTP request, so that a body that a browser posts twice is seen as one.
func HashRequest(method, rawPath string, body []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(method + " " + rawPath + "\n"))
	h.Write(body)
	return [sha256.Size]byte(h.Sum(nil))
}

// HashFrame identifies the content of a WebSocket frame.
func HashFrame(frame []byte) [sha256.Size]byte { return sha256.Sum256(frame) }

// buffers hold messages between the network and the parser. Without them the bodies, and what a growing slice leaves
// behind, would be most of what the garbage collector has to do.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// pooledBufferBytes is the largest buffer that is kept for the next message.
const pooledBufferBytes = 128 << 10

// Buffer returns an empty buffer for a message that is being received. Discard takes it back once the message is parsed,
// and nothing in it may be used afterwards; where that is inconvenient the buffer may also be forgotten.
func Buffer() *bytes.Buffer { return buffers.Get().(*bytes.Buffer) }

// Discard takes a buffer back.
func Discard(b *bytes.Buffer) {
	if b.Cap() <= pooledBufferBytes {
		b.Reset()
		buffers.Put(b)
	}
}

// freeFrameBytes is how much of a frame may arrive before anything of it is reserved: what a connection may cost anyway.
const freeFrameBytes = 64 << 10

// ErrNoRoom is what an Arriving frame returns when the budget has no room for more of it.
var ErrNoRoom = errors.New("no room for the frame")

// Arriving reads a frame and reserves what comes beyond 64 KiB as it comes. Without that frames that are large and slow, or
// never end, would take memory that nobody counts. The rest is to be reserved once the frame is complete.
type Arriving struct {
	R        io.Reader
	Reserve  func(n int64) bool
	Reserved int64 // to be freed in every case

	read int64
}

func (a *Arriving) Read(p []byte) (int, error) {
	n, err := a.R.Read(p)
	a.read += int64(n)
	if more := a.read - freeFrameBytes - a.Reserved; more > 0 {
		if !a.Reserve(more) {
			return 0, ErrNoRoom
		}
		a.Reserved += more
	}
	return n, err
}

// Record is one record for the raw topic.
type Record struct{ Key, Value []byte }

// Parse reads a message while one of the places for parsing is held. f must not keep the message.
func (in *Intake) Parse(body []byte, transport vocabulary.Transport, f func(*vocabulary.Message) error) error {
	in.parsing <- struct{}{}
	defer func() { <-in.parsing }()
	m, err := vocabulary.Parse(body, transport)
	if err != nil {
		return err
	}
	defer m.Release()
	return f(m)
}

// Records makes the records of a message. conferenceID is the one of the path on REST.
func (in *Intake) Records(m *vocabulary.Message, conferenceID string, a *Arrival) ([]Record, error) {
	defer m.Recycle() // the records are bytes
	return in.Envelop(m.Raw(conferenceID), m.Dialect, a)
}

// Envelop makes the records of raw messages, which get their uid and what the gateway observed.
func (in *Intake) Envelop(raws []*callscopev1.Raw, dialect callscopev1.Dialect, a *Arrival) ([]Record, error) {
	var records []Record
	where := in.locate(a.RemoteAddr)
	for i, raw := range raws {
		uid, err := uuid.NewV7()
		if err != nil {
			return nil, fmt.Errorf("making a uid: %w", err)
		}
		raw.Uid = uid[:]
		if raw.Claimed.UserId == "" {
			raw.Claimed.UserId = a.Identity.UserID
		}
		hash := a.Hash
		if i > 0 { // several reports of one frame are no duplicates of each other
			hash = sha256.Sum256(append(hash[:], byte(i), byte(i>>8)))
		}
		raw.Observed = &callscopev1.Observed{
			AppId:        a.Identity.AppID,
			ReceivedAtMs: a.ReceivedAt.UnixMilli(),
			Dialect:      dialect,
			Origin:       validUTF8(a.Origin),
			UserAgent:    validUTF8(a.UserAgent),
			ContentHash:  hash[:],
			IpMasked:     where.masked,
			Country:      where.country,
			Network:      where.network,
			TokenId:      a.Identity.TokenID,
			TokenUserId:  a.Identity.UserID,
		}
		value, err := raw.MarshalVT()
		if err != nil {
			return nil, fmt.Errorf("marshalling a message: %w", err)
		}
		records = append(records, Record{Key: key(a.Identity.AppID, raw.Claimed), Value: value})
		if len(raw.Claimed.UserId) > vocabulary.LongUserIDBytes {
			in.longUsers.Inc()
		}
		if raw.Truncated {
			in.truncated.Inc()
		}
	}
	return records, nil
}

// key chooses the partition: all messages of a conference go to one, in order.
func key(appID string, c *callscopev1.Claimed) []byte {
	k := append([]byte(appID), 0)
	if c.ConferenceId == "" {
		return append(append(k, 0), c.UserId...)
	}
	return append(k, c.ConferenceId...)
}

// Store writes records in order. It returns nil when Kafka has all of them on all replicas.
func (in *Intake) Store(ctx context.Context, records []Record) error {
	start := time.Now()
	for _, r := range records {
		if err := in.producer.Produce(ctx, r.Key, r.Value); err != nil {
			return err
		}
	}
	in.storeTimes.Observe(time.Since(start).Seconds())
	return nil
}

// Failed counts a message that Store could not write, and says which outcome it is: Oversized or Shed.
func (in *Intake) Failed(dialect string, err error) Outcome {
	if errors.Is(err, stream.ErrTooLarge) {
		in.Outcome(dialect, Oversized, "record")
		return Oversized
	}
	in.Outcome(dialect, Shed, "store")
	if !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		in.log.Error("writing a message to Kafka failed for good", "error", err)
	}
	return Shed
}

// StoreJoin writes the records of a userJoined. When that takes longer than patience it returns false, counts the
// message as join_unconfirmed and goes on trying until the gateway ends; otherwise it returns like Store. free is called
// when the records are no longer needed.
func (in *Intake) StoreJoin(dialect string, records []Record, patience time.Duration, free func()) (stored bool, err error) {
	if err := in.life.Err(); err != nil {
		free()
		return false, err
	}
	done := make(chan error, 1)
	var answered atomic.Bool // decides between the waiting caller and the late acknowledgement
	in.kept.Go(func() {
		defer free()
		err := in.Store(in.life, records)
		if answered.CompareAndSwap(false, true) {
			done <- err
			return
		}
		if err == nil {
			in.joins.WithLabelValues("stored").Inc()
			return
		}
		in.joins.WithLabelValues("lost").Inc()
		in.log.Warn("a userJoined that was answered could not be stored", "error", err)
	})
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-done:
		return err == nil, err
	case <-timer.C:
		if answered.CompareAndSwap(false, true) {
			in.Outcome(dialect, JoinUnconfirmed, "")
			return false, nil
		}
		err := <-done
		return err == nil, err
	}
}

// validUTF8 makes a header fit a protobuf string.
func validUTF8(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// StoreBy is Store until a deadline. The client's connection may end before it: what was received completely is still
// stored.
func (in *Intake) StoreBy(deadline time.Time, records []Record) error {
	ctx, cancel := context.WithDeadline(in.life, deadline)
	defer cancel()
	return in.Store(ctx, records)
}
