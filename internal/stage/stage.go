// Package stage runs a pure function over the partitions of a topic: it reads
// the log, steps a Machine, writes its outputs, snapshots its state and starts
// again from the snapshot. It knows Kafka only through internal/stream and
// knows nothing of what the records mean; it does not decide what a call is.
package stage

import (
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// Machine is the state of one partition of a stage and the function over it.
//
// Step must be a pure function of the state and the input: no clock, no
// randomness, no I/O, no settings, no dependence on map order and no
// goroutines. The same log then gives the same outputs on every run, which is
// what makes crashes, zombies and replays harmless.
type Machine interface {
	// Step applies one input record and returns its outputs in order. An error
	// is permanent: the record is set aside with it, and Step must have left
	// the state as it was.
	Step(in Input) ([]Output, error)
	// Snapshot encodes the whole state. Equal states give equal bytes.
	Snapshot() ([]byte, error)
	// Restore replaces the state by one that Snapshot encoded under the given
	// format version.
	Restore(formatVersion uint32, data []byte) error
}

// Ticking is a Machine whose partition needs ticks: the runtime appends one to
// the input partition each second while WantsTicks is true.
type Ticking interface {
	Machine
	// WantsTicks tells whether anything in the state waits for time to pass.
	WantsTicks() bool
	// Ticker returns the uid of the ticker that the state follows, nil before
	// the first tick. A runtime that sees another uid than its own, after its
	// own was followed, has been superseded and takes a fresh one.
	Ticker() []byte
}

// Input is one record of the input partition. Value must not be changed or kept.
type Input struct {
	Offset     int64
	Key, Value []byte
}

// Output is one record for the output partition. The machine sets everything
// of the message but the origin and prev of its RecordHeader, which the
// runtime adds.
type Output struct {
	Key     []byte
	Message Message
}

// Message is what vtprotobuf generates for every message.
type Message interface {
	SizeVT() int
	MarshalToSizedBufferVT([]byte) (int, error)
}

var (
	_ Message = (*callscopev1.Enriched)(nil)
	_ Message = (*callscopev1.Summary)(nil)
)
