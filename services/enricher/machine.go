package enricher

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

const (
	// LogicVersion is written into every output. It changes with every change
	// of what Step gives for the same log.
	LogicVersion = 2
	// FormatVersion is that of the snapshots.
	FormatVersion = 2
)

// The times of design 4, all in alive milliseconds.
const (
	idleAfterMs       = 30_000  // a silent participant has left
	leaveAfterMs      = 3_000   // without a fabric, after its last one ended
	endAfterMs        = 10_000  // a conference with nobody in it, after its last message
	forgottenAfterMs  = 300_000 // grace
	clockToleratedMs  = 60_000  // a client's clock may be off before it is corrected
	rankParticipant   = 1
	rankConference    = 2
	rankSession       = 3
	duplicateRecord   = "record"
	duplicateSequence = "sequence"
	duplicateContent  = "content"
)

// Machine is the enricher's state of one partition and its Step function: a
// stage.Ticking. The zero value is not usable; call NewMachine.
type Machine struct {
	alive     stage.AliveTime
	rooms     map[string][]*conference // by key; oldest first, open or in grace
	perApp    map[string]int           // conferences in rooms, by app
	dup       duplicates
	deadlines deadlines
	agents    *userAgents
	sdps      deflater
	counts    Counts
}

// Counts are what became of the input since the machine was made. They are no
// part of the state: each process counts its own input.
type Counts struct {
	Processed           uint64 // records that were applied, ticks included
	DuplicateRecords    uint64
	DuplicateSequences  uint64
	DuplicateContents   uint64
	IgnoredTicks        uint64 // of superseded tickers
	Orphans             uint64 // closing messages for which no conference was known
	ConferencesBegun    uint64
	ConferencesReopened uint64
	StreamsOverLimit    uint64 // reports of streams beyond what a fabric may have
	// Messages that would have begun something beyond what may be open.
	ConferencesOverLimit, ParticipantsOverLimit, FabricsOverLimit uint64
}

// NewMachine returns the machine of an empty partition.
func NewMachine() *Machine {
	return &Machine{
		rooms:  map[string][]*conference{},
		perApp: map[string]int{},
		dup:    duplicates{seen: map[seenKey]struct{}{}, sessions: map[string]*session{}},
		agents: sharedUserAgents(),
	}
}

// Counts returns what became of the input so far.
func (m *Machine) Counts() Counts { return m.counts }

// WantsTicks tells whether anything is open, in grace, or in the duplicate window.
func (m *Machine) WantsTicks() bool { return len(m.rooms) > 0 || !m.dup.empty() }

// Ticker returns the uid of the ticker that the state follows.
func (m *Machine) Ticker() []byte { return m.alive.Ticker() }

// AliveMs returns the partition's alive time.
func (m *Machine) AliveMs() int64 { return m.alive.Ms() }

// Step applies one raw record. Its errors are about the record alone: it cannot
// be read, or names no app, and never will.
func (m *Machine) Step(in stage.Input) ([]stage.Output, error) {
	raw := &callscopev1.Raw{}
	if err := raw.UnmarshalVT(in.Value); err != nil {
		return nil, fmt.Errorf("reading a raw record: %w", err)
	}
	if len(raw.Uid) != 16 {
		return nil, fmt.Errorf("reading a raw record: its uid has %d bytes, not 16", len(raw.Uid))
	}
	if tick := raw.GetTick(); tick != nil {
		return m.stepTick(raw, tick), nil
	}
	if raw.GetObserved().GetAppId() == "" {
		return nil, fmt.Errorf("reading a raw record: it names no app")
	}
	if raw.Claimed == nil {
		raw.Claimed = &callscopev1.Claimed{}
	}

	keys := m.dup.keysOf(raw)
	switch m.dup.kind(keys) {
	case duplicateRecord:
		m.counts.DuplicateRecords++
		return nil, nil
	case duplicateSequence:
		m.counts.DuplicateSequences++
		return nil, nil
	case duplicateContent:
		m.counts.DuplicateContents++
		return nil, nil
	}
	s := &step{m: m, raw: raw, offset: in.Offset, aliveMs: m.alive.Ms(), key: bytes.Clone(in.Key)}
	if raw.GetStats() == nil {
		event, err := newEvent(raw)
		if err != nil {
			return nil, err
		}
		s.event = event
	}
	m.dup.remember(keys, s.aliveMs, &m.deadlines)
	m.counts.Processed++
	if raw.Claimed.ConferenceId == "" {
		s.outsideConference()
	} else {
		s.apply()
	}
	return s.outputs, nil
}

// stepTick lets time pass: first everything that waited for it, in the order of
// its deadlines, then one time record.
func (m *Machine) stepTick(raw *callscopev1.Raw, tick *callscopev1.Tick) []stage.Output {
	if !m.alive.Apply(tick) {
		m.counts.IgnoredTicks++
		return nil
	}
	m.counts.Processed++
	t := &tickStep{m: m, uid: raw.Uid, aliveMs: m.alive.Ms()}
	// What is due can make something else due: whoever leaves last may leave a
	// conference whose last message is old enough.
	for due := m.deadlines.due(t.aliveMs); len(due) > 0; due = m.deadlines.due(t.aliveMs) {
		for _, w := range due {
			switch w := w.(type) {
			case *participant:
				t.participantDue(w)
			case *conference:
				t.conferenceDue(w)
			case *session:
				m.dup.forgetSession(w)
			}
		}
	}
	m.dup.forget(t.aliveMs)
	t.outputs = append(t.outputs, stage.Output{Message: &callscopev1.Enriched{
		Uid:          stage.TickOutputUID(raw.Uid, nil, "time_passed"),
		AliveMs:      t.aliveMs,
		LogicVersion: LogicVersion,
		Body:         &callscopev1.Enriched_TimePassed{TimePassed: &callscopev1.TimePassed{WallMs: tick.WallMs}},
	}})
	return t.outputs
}

// tickStep collects the outputs of one tick.
type tickStep struct {
	m       *Machine
	uid     []byte
	aliveMs int64
	outputs []stage.Output
}

func (t *tickStep) participantDue(p *participant) {
	at, reason := p.s.LeavingAtMs, p.s.LeavingReason
	if !p.s.Leaving {
		at, reason = p.s.LastReceivedAtMs, reasonIdle
	}
	p.leave(at, p.s.LastTimeMs, reason)
	for _, f := range p.fabrics {
		if f.changed {
			f.changed = false
			f.s.Facts.RevisionReason = ""
			t.add(p.c.key(), p.s.LastReceivedAtMs, f.s.Uid, "fabric", f.enriched())
		}
	}
	p.changed = false
	p.s.Facts.RevisionReason = ""
	t.add(p.c.key(), p.s.LastReceivedAtMs, p.s.Uid, "participant", p.enriched())
	t.m.deadlines.schedule(p.c)
}

func (t *tickStep) conferenceDue(c *conference) {
	if c.s.Facts.State == callscopev1.ConferenceState_CONFERENCE_STATE_OPEN {
		c.end(t.aliveMs)
		t.m.deadlines.schedule(c)
	} else {
		c.s.Facts.State = callscopev1.ConferenceState_CONFERENCE_STATE_FORGOTTEN
		t.m.forget(c)
	}
	c.changed = false
	t.add(c.key(), c.s.Facts.LastMessageAtMs, c.s.Uid, "conference", c.enriched())
}

// add appends facts about an entity. Their time is that of the last message
// that was received about it.
func (t *tickStep) add(key []byte, receivedAtMs int64, entityUID []byte, kind string, e *callscopev1.Enriched) {
	e.Uid = stage.TickOutputUID(t.uid, entityUID, kind)
	e.AliveMs = t.aliveMs
	e.TimeMs = float64(receivedAtMs)
	e.ReceivedAtMs = receivedAtMs
	e.LogicVersion = LogicVersion
	t.outputs = append(t.outputs, stage.Output{Key: key, Message: e})
}

// forget drops a conference that nothing can change any more.
func (m *Machine) forget(c *conference) {
	if m.perApp[c.s.AppId]--; m.perApp[c.s.AppId] == 0 {
		delete(m.perApp, c.s.AppId)
	}
	key := roomKey(c.s.AppId, c.s.ConferenceId)
	room := slices.DeleteFunc(m.rooms[key], func(other *conference) bool { return other == c })
	if len(room) == 0 {
		delete(m.rooms, key)
		return
	}
	m.rooms[key] = room
}

func roomKey(appID, conferenceID string) string { return appID + "\x00" + conferenceID }
