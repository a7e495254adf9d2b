package erasures

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/callscope/callscope/internal/stream"
	pb "github.com/callscope/callscope/proto/callscope/v1"
)

// Log is where the records are: callscope's Kafka client.
type Log interface {
	Fetch(ctx context.Context, topic string, partition int32, offset int64, maxBytes int, maxWait time.Duration) (stream.Batch, error)
	Offsets(ctx context.Context, topic string, partition int32) (start, end int64, err error)
	Append(ctx context.Context, topic string, partition int32, recs []stream.Record) (first int64, err error)
}

const (
	partition  = 0 // the topic's only one
	fetchBytes = 1 << 20
)

var (
	// ErrNoKey: there are erasures, and no key to recognise whom they are about.
	ErrNoKey = errors.New("there are erasures and no key to recognise the users with: give the registry.master_key, or registry.erasure_key, that `callscope erase` was used with")
	// ErrOtherKey: erasures were made with another key than the one given.
	ErrOtherKey = errors.New("erasures were made with another key: give the registry.master_key that `callscope erase` was used with, as registry.erasure_key where the master key has changed since")
)

// Set is the erasures of the topic. It reads when it is asked, has no goroutine of its own, and is safe for concurrent use.
type Set struct {
	log     Log
	key     *Key
	logger  *slog.Logger
	metrics *metrics

	mu   sync.Mutex
	next int64
	all  map[string]*pb.Erasure // by record key
	view *View
	// stale: all has more than view, because reading broke off in between.
	stale bool
}

// NewSet does no I/O. key may be nil, which is an error of Current once there are erasures. reg may be nil.
func NewSet(log Log, key *Key, logger *slog.Logger, reg prometheus.Registerer) (*Set, error) {
	m, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("registering the metrics of erasures: %w", err)
	}
	return &Set{log: log, key: key, logger: logger, metrics: m, all: map[string]*pb.Erasure{}, view: &View{metrics: m}}, nil
}

// Current gives all erasures that were acknowledged before the call. It asks the broker for the end of the topic every
// time, which is a small request, so no time that passes unseen (a paused process, a slow network) makes a view older
// than its caller thinks. Where it fails the caller must wait and not go on with an older view.
func (s *Set) Current(ctx context.Context) (*View, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	start, end, err := s.log.Offsets(ctx, stream.TopicErasures, partition)
	if err != nil {
		return nil, fmt.Errorf("looking for erasures: %w", err)
	}
	if end < s.next {
		// The topic was made anew: what it holds now is what counts.
		s.logger.Warn("the erasures topic is not the one that was read before, reading it from its beginning", "end", end, "read", s.next)
		s.next, s.all, s.view = start, map[string]*pb.Erasure{}, &View{metrics: s.metrics}
	}
	for s.next = max(s.next, start); s.next < end; {
		batch, err := s.log.Fetch(ctx, stream.TopicErasures, partition, s.next, fetchBytes, time.Second)
		if err != nil {
			return nil, fmt.Errorf("reading erasures: %w", err)
		}
		for _, r := range batch.Records {
			e, err := decode(r)
			if err != nil {
				s.metrics.invalid.Inc()
				s.logger.Error("a record of the erasures topic cannot be used and is left out", "offset", r.Offset, "error", err)
				continue
			}
			s.all[string(r.Key)] = e
			s.stale = true
		}
		if batch.Next == s.next && len(batch.Records) == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		s.next = batch.Next
	}
	if s.stale || s.view.err != nil {
		s.stale = false
		s.view = s.key.view(s.all, s.next, s.metrics)
		s.metrics.inForce.Set(float64(len(s.all)))
	}
	return s.view, s.view.err
}

// Put writes a record and makes sure that all replicas have it.
func (s *Set) Put(ctx context.Context, e *pb.Erasure) error {
	e.WrittenAtMs = time.Now().UnixMilli()
	value, err := e.MarshalVT()
	if err != nil {
		return fmt.Errorf("writing an erasure: %w", err)
	}
	if _, err := s.log.Append(ctx, stream.TopicErasures, partition, []stream.Record{{Key: recordKey(e), Value: value}}); err != nil {
		return fmt.Errorf("writing an erasure (whether it was stored is not known; erase again): %w", err)
	}
	return nil
}

// View is the erasures at one moment. It never changes.
type View struct {
	position int64
	apps     map[string]*app
	records  map[string]*pb.Erasure
	metrics  *metrics
	err      error
}

// Position tells views apart: it grows with every record of the topic. 0 is a view without any.
func (v *View) Position() int64 {
	if v == nil || len(v.apps) == 0 {
		return 0
	}
	return v.position
}

// Of is the record of a user, nil without.
func (v *View) Of(key *Key, appID, userID string) *pb.Erasure {
	return v.records[string(recordKey(&pb.Erasure{AppId: appID, UserHash: key.userHash(appID, userID)}))]
}

func (v *View) count(kind string, changed bool) {
	if changed && v.metrics != nil {
		v.metrics.messages.WithLabelValues(kind).Inc()
	}
}

// app is the erased users of one app.
type app struct {
	id          string
	key         *Key
	needles     []*needles // by length
	byPseudonym map[string]*user
}

type user struct {
	pseudonym        string
	erasedAtMs       int64
	conferences      map[string]bool // uids
	conferenceHashes map[string]bool
}

func (k *Key) view(all map[string]*pb.Erasure, position int64, m *metrics) *View {
	v := &View{position: position, apps: map[string]*app{}, records: maps.Clone(all), metrics: m}
	for _, e := range all {
		switch {
		case k == nil:
			v.err = ErrNoKey
		case e.KeyId != k.id:
			v.err = fmt.Errorf("%w: with %s, and this one is %s", ErrOtherKey, e.KeyId, k.id)
		}
		if v.err != nil {
			return v
		}
		a := v.apps[e.AppId]
		if a == nil {
			a = &app{id: e.AppId, key: k, byPseudonym: map[string]*user{}}
			v.apps[e.AppId] = a
		}
		u := &user{pseudonym: e.Pseudonym, erasedAtMs: e.ErasedAtMs, conferences: set(e.ConferenceUids), conferenceHashes: set(e.ConferenceHashes)}
		a.byPseudonym[u.pseudonym] = u
		for _, n := range e.Needles {
			a.add(n, u)
		}
	}
	for _, a := range v.apps {
		slices.SortFunc(a.needles, func(a, b *needles) int { return b.length - a.length })
	}
	return v
}

func (a *app) add(n *pb.ErasureNeedle, u *user) {
	if n.Bytes == 0 {
		return
	}
	i := slices.IndexFunc(a.needles, func(have *needles) bool { return have.length == int(n.Bytes) })
	if i < 0 {
		i = len(a.needles)
		a.needles = append(a.needles, &needles{length: int(n.Bytes), top: a.key.power(int(n.Bytes)), byWeak: map[uint64][]needle{}})
	}
	weak := n.Weak ^ a.key.mask(n.Hash)
	a.needles[i].byWeak[weak] = append(a.needles[i].byWeak[weak], needle{n.Hash, u})
}

func set(list [][]byte) map[string]bool {
	all := make(map[string]bool, len(list))
	for _, b := range list {
		all[string(b)] = true
	}
	return all
}
