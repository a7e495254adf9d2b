package enricher

import (
	"fmt"
	"slices"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// Snapshot encodes the whole state.
func (m *Machine) Snapshot() ([]byte, error) {
	state := &callscopev1.EnricherState{Alive: m.alive.State(), Sessions: m.dup.sorted()}
	names := make([]string, 0, len(m.rooms))
	for name := range m.rooms {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, c := range m.rooms[name] {
			state.Conferences = append(state.Conferences, c.s)
		}
	}
	for _, seen := range m.dup.expiry[m.dup.expired:] {
		state.SeenKeys = append(state.SeenKeys, seen.key[:]...)
		state.SeenUntilMs = append(state.SeenUntilMs, seen.untilMs)
	}
	data, err := state.MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("encoding the state: %w", err)
	}
	return data, nil
}

// Restore replaces the state by one that Snapshot encoded.
func (m *Machine) Restore(formatVersion uint32, data []byte) error {
	if formatVersion != FormatVersion {
		return fmt.Errorf("restoring the enricher's state: its format is %d, this build reads %d", formatVersion, FormatVersion)
	}
	state := &callscopev1.EnricherState{}
	if err := state.UnmarshalVT(data); err != nil {
		return fmt.Errorf("restoring the enricher's state: %w", err)
	}
	if len(state.SeenKeys) != len(seenKey{})*len(state.SeenUntilMs) {
		return fmt.Errorf("restoring the enricher's state: %d bytes of duplicate keys for %d times",
			len(state.SeenKeys), len(state.SeenUntilMs))
	}
	restored := NewMachine()
	restored.agents, restored.counts = m.agents, m.counts
	restored.alive = stage.AliveTimeOf(state.Alive)
	for i, untilMs := range state.SeenUntilMs {
		restored.dup.add(seenKey(state.SeenKeys[i*len(seenKey{}):]), untilMs)
	}
	for _, s := range state.Sessions {
		if len(s.Seen) != sequenceWindow/64 {
			return fmt.Errorf("restoring the enricher's state: a session's window has %d words", len(s.Seen))
		}
		known := &session{s: s}
		restored.dup.sessions[sessionKey(s.AppId, s.SessionUid)] = known
		restored.deadlines.schedule(known)
	}
	for _, s := range state.Conferences {
		c := restoreConference(s)
		restored.perApp[s.AppId]++
		name := roomKey(s.AppId, s.ConferenceId)
		restored.rooms[name] = append(restored.rooms[name], c)
		restored.deadlines.schedule(c)
		for _, p := range c.participants {
			restored.deadlines.schedule(p)
		}
	}
	*m = *restored
	return nil
}

// restoreConference builds the indexes over a conference's state.
func restoreConference(s *callscopev1.EnricherConference) *conference {
	c := &conference{s: s, byKey: map[participantKey]*participant{}, byUser: map[string][]*participant{}}
	for _, ps := range s.Participants {
		p := &participant{c: c, s: ps, byConnection: map[string]*fabric{}}
		c.index(p)
		for _, fs := range ps.Fabrics {
			f := &fabric{p: p, s: fs}
			p.index(f)
			for _, ss := range fs.Streams {
				f.indexStream(&rtpStream{f: f, s: ss})
			}
			for _, owner := range fs.Owners {
				f.indexOwner(owner)
			}
		}
	}
	return c
}
