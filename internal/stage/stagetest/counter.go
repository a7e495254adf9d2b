package stagetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/google/uuid"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

const (
	// counterIdleMs is the alive time after which a Counter closes a conference.
	counterIdleMs = 10_000
	// counterSeenMs is how long a Counter remembers the uid of a record.
	counterSeenMs = 60_000
)

// The event types that a Counter knows; it counts any other.
const (
	// EventRefused makes Step return an error and leave the state as it was.
	EventRefused = "refused"
	// EventPanics makes Step panic with the state half changed.
	EventPanics = "panics"
	// EventBurst makes three outputs.
	EventBurst = "burst"
)

// Counter is a small machine over raw records for tests of the runtime: it
// counts the records of each conference, drops repeated uids, and closes a
// conference after 10 s of alive time without a record.
type Counter struct {
	alive stage.AliveTime
	open  map[string]*counted
	seen  map[string]int64 // alive ms by record uid

	// TimerMs replaces alive time in the timers, for showing what goes wrong
	// then. Nil in everything that should work.
	TimerMs func() int64
	// Ballast makes every snapshot larger by so many bytes.
	Ballast int
}

type counted struct {
	UID    []byte
	N      int
	LastMs int64
}

// NewCounter returns a Counter that has seen nothing.
func NewCounter() *Counter {
	return &Counter{open: map[string]*counted{}, seen: map[string]int64{}}
}

// Step counts one record or lets one tick pass.
func (c *Counter) Step(in stage.Input) ([]stage.Output, error) {
	var raw callscopev1.Raw
	if err := raw.UnmarshalVT(in.Value); err != nil {
		return nil, fmt.Errorf("decoding raw record: %w", err)
	}
	if tick := raw.GetTick(); tick != nil {
		return c.tick(&raw, tick), nil
	}
	if raw.EventType == EventRefused {
		return nil, errors.New("refused as asked")
	}
	if _, known := c.seen[string(raw.Uid)]; known {
		return nil, nil
	}
	c.seen[string(raw.Uid)] = c.alive.Ms()
	id := raw.GetClaimed().GetConferenceId()
	conference := c.open[id]
	if conference == nil {
		conference = &counted{UID: stage.UID([]byte("conference"), raw.Uid)}
		c.open[id] = conference
	}
	conference.N++
	if raw.EventType == EventPanics {
		panic("panic as asked")
	}
	conference.LastMs = c.now()
	n := 1
	if raw.EventType == EventBurst {
		n = 3
	}
	var outputs []stage.Output
	for i := range n {
		outputs = append(outputs, c.output(stage.OutputUID(raw.Uid, i), id, conference, raw.EventType))
	}
	return outputs, nil
}

func (c *Counter) now() int64 {
	if c.TimerMs != nil {
		return c.TimerMs()
	}
	return c.alive.Ms()
}

func (c *Counter) tick(raw *callscopev1.Raw, tick *callscopev1.Tick) []stage.Output {
	if !c.alive.Apply(tick) {
		return nil
	}
	outputs := []stage.Output{{Message: &callscopev1.Enriched{
		Uid: stage.OutputUID(raw.Uid, 0), AliveMs: c.alive.Ms(),
		Body: &callscopev1.Enriched_TimePassed{TimePassed: &callscopev1.TimePassed{WallMs: tick.WallMs}},
	}}}
	for _, id := range slices.Sorted(maps.Keys(c.open)) {
		if conference := c.open[id]; c.now()-conference.LastMs >= counterIdleMs {
			outputs = append(outputs, c.output(stage.TickOutputUID(raw.Uid, conference.UID, "closed"), id, conference, "closed"))
			delete(c.open, id)
		}
	}
	maps.DeleteFunc(c.seen, func(_ string, at int64) bool { return c.alive.Ms()-at >= counterSeenMs })
	return outputs
}

func (c *Counter) output(uid []byte, id string, conference *counted, event string) stage.Output {
	return stage.Output{Key: []byte(id), Message: &callscopev1.Enriched{
		Uid: uid, AliveMs: c.alive.Ms(),
		Identity: &callscopev1.Identity{ConferenceId: id, ConferenceUid: conference.UID},
		Body:     &callscopev1.Enriched_Event{Event: &callscopev1.Event{EventType: event, DataJson: fmt.Sprintf(`{"n":%d}`, conference.N)}},
	}}
}

// WantsTicks is true while a conference is open or a uid is remembered.
func (c *Counter) WantsTicks() bool { return len(c.open) > 0 || len(c.seen) > 0 }

// Ticker returns the uid of the ticker that the counter follows.
func (c *Counter) Ticker() []byte { return c.alive.Ticker() }

type counterState struct {
	Alive   []byte
	Open    map[string]*counted
	Seen    map[string]int64
	Ballast []byte
}

// Snapshot encodes the counter as JSON.
func (c *Counter) Snapshot() ([]byte, error) {
	alive, err := c.alive.State().MarshalVT()
	if err != nil {
		return nil, err
	}
	s := counterState{Alive: alive, Open: c.open, Seen: map[string]int64{}}
	for uid, at := range c.seen {
		s.Seen[uuid.UUID([]byte(uid)).String()] = at
	}
	if c.Ballast > 0 {
		s.Ballast = make([]byte, c.Ballast)
	}
	return json.Marshal(s)
}

// Restore reads what Snapshot wrote; there is one format version, 1.
func (c *Counter) Restore(formatVersion uint32, data []byte) error {
	if formatVersion != 1 {
		return fmt.Errorf("format version %d", formatVersion)
	}
	s := counterState{Open: map[string]*counted{}}
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	var alive callscopev1.AliveState
	if err := alive.UnmarshalVT(s.Alive); err != nil {
		return err
	}
	c.alive, c.open, c.seen = stage.AliveTimeOf(&alive), s.Open, map[string]int64{}
	for text, at := range s.Seen {
		uid, err := uuid.Parse(text)
		if err != nil {
			return err
		}
		c.seen[string(uid[:])] = at
	}
	return nil
}

// CounterRecord makes the raw record of a random client message for a Counter.
func CounterRecord(rng *rand.Rand, event string) (key, value []byte) {
	var uid [16]byte
	for i := range uid {
		uid[i] = byte(rng.Uint32())
	}
	id := fmt.Sprintf("conference-%d", rng.IntN(5))
	raw := &callscopev1.Raw{
		Uid: uid[:], EventType: event, Claimed: &callscopev1.Claimed{ConferenceId: id},
		Payload: &callscopev1.Raw_Other{Other: &callscopev1.OtherEvent{}},
	}
	value, err := raw.MarshalVT()
	if err != nil {
		panic(err) // no message of ours can fail to marshal
	}
	return []byte(id), value
}

// Totals is a small machine over a Counter's output, for tests of a stage
// behind a stage: it adds up the records of each conference and puts the sum
// out when the conference closes.
type Totals struct{ open map[string]int64 }

// NewTotals returns a Totals that has seen nothing.
func NewTotals() *Totals { return &Totals{open: map[string]int64{}} }

// Step takes one output of a Counter.
func (t *Totals) Step(in stage.Input) ([]stage.Output, error) {
	var e callscopev1.Enriched
	if err := e.UnmarshalVT(in.Value); err != nil {
		return nil, fmt.Errorf("decoding enriched record: %w", err)
	}
	event := e.GetEvent()
	if event == nil {
		return nil, nil
	}
	id := e.Identity.GetConferenceId()
	t.open[id]++
	if event.EventType != "closed" {
		return nil, nil
	}
	out := &callscopev1.Enriched{
		Uid: stage.OutputUID(e.Uid, 0), AliveMs: e.AliveMs, Identity: e.Identity,
		Body: &callscopev1.Enriched_Event{Event: &callscopev1.Event{EventType: "total", DataJson: fmt.Sprintf(`{"records":%d}`, t.open[id])}},
	}
	delete(t.open, id)
	return []stage.Output{{Key: in.Key, Message: out}}, nil
}

// Snapshot encodes the sums as JSON.
func (t *Totals) Snapshot() ([]byte, error) { return json.Marshal(t.open) }

// Restore reads what Snapshot wrote.
func (t *Totals) Restore(_ uint32, data []byte) error {
	t.open = map[string]int64{}
	return json.Unmarshal(data, &t.open)
}
