package stagetest

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// wallClock is a machine whose time is that of the process that steps it.
type wallClock struct {
	stage.Ticking
	w *world
}

// Step replaces the time that a tick carries.
func (c *wallClock) Step(in stage.Input) ([]stage.Output, error) {
	p := c.w.stepping
	var raw callscopev1.Raw
	if err := raw.UnmarshalVT(in.Value); err != nil || raw.GetTick() == nil || p == nil {
		return c.Ticking.Step(in)
	}
	c.w.result.Exercised = true
	raw.GetTick().MonotonicMs = (c.w.now + p.wall).Milliseconds()
	value, err := raw.MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("encoding a tick: %w", err)
	}
	in.Value = value
	return c.Ticking.Step(in)
}

// highestSeen is a machine before which messages are dropped whose number in
// their session is not the highest yet.
type highestSeen struct {
	stage.Ticking
	highest map[string]uint64
}

// Step drops the message or passes it on.
func (h *highestSeen) Step(in stage.Input) ([]stage.Output, error) {
	session, number := numberOf(in.Value)
	if number > 0 && number <= h.highest[session] {
		return nil, nil
	}
	if number > 0 {
		h.highest[session] = number
	}
	return h.Ticking.Step(in)
}

// numberOf returns the session and number of a client's message, 0 where it is
// not numbered.
func numberOf(value []byte) (session string, number uint64) {
	var raw callscopev1.Raw
	if err := raw.UnmarshalVT(value); err != nil {
		return "", 0
	}
	return string(raw.GetClaimed().GetSessionUid()), raw.GetClaimed().GetSequence()
}

// Snapshot puts the numbers before the machine's own state.
func (h *highestSeen) Snapshot() ([]byte, error) {
	keyed := map[string]uint64{}
	for session, number := range h.highest {
		keyed[fmt.Sprintf("%x", session)] = number
	}
	numbers, err := json.Marshal(keyed)
	if err != nil {
		return nil, err
	}
	state, err := h.Ticking.Snapshot()
	return append(append(binary.BigEndian.AppendUint32(nil, uint32(len(numbers))), numbers...), state...), err
}

// Restore reads what Snapshot wrote.
func (h *highestSeen) Restore(formatVersion uint32, data []byte) error {
	size := binary.BigEndian.Uint32(data)
	keyed := map[string]uint64{}
	if err := json.Unmarshal(data[4:4+size], &keyed); err != nil {
		return err
	}
	for text, number := range keyed {
		var session []byte
		if _, err := fmt.Sscanf(text, "%x", &session); err != nil {
			return err
		}
		h.highest[string(session)] = number
	}
	return h.Ticking.Restore(formatVersion, data[4+size:])
}

// Changed is a machine with the state of another and other outputs: what a
// later version of a stage may be. Each output says so in its logic version;
// of three or more outputs the last is missing, and a single one is followed
// by a copy with another uid.
type Changed struct{ stage.Ticking }

// Step changes the outputs of the machine's own Step.
func (c *Changed) Step(in stage.Input) ([]stage.Output, error) {
	outputs, err := c.Ticking.Step(in)
	for _, out := range outputs {
		out.Message.(*callscopev1.Enriched).LogicVersion += 1000
	}
	switch len(outputs) {
	case 0, 2:
	case 1:
		more := proto.CloneOf(outputs[0].Message.(*callscopev1.Enriched))
		more.Uid = stage.UID(more.Uid, []byte("more"))
		outputs = append(outputs, stage.Output{Key: outputs[0].Key, Message: more})
	default:
		outputs = outputs[:len(outputs)-1]
	}
	return outputs, err
}
