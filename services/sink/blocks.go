package sink

import (
	"slices"

	"github.com/callscope/callscope/internal/store"
)

// blocks are the rows of a range of records, table by table, in the order of the records.
type blocks struct {
	conferences         block[store.ConferenceRow]
	participants        block[store.ParticipantRow]
	participantNames    block[store.ParticipantNameRow]
	fabrics             block[store.FabricRow]
	streams             block[store.StreamRow]
	samples             block[store.SampleRow]
	fabricSamples       block[store.FabricSampleRow]
	events              block[store.EventRow]
	feedback            block[store.FeedbackRow]
	failures            block[store.FailureRow]
	precallTests        block[store.PrecallTestRow]
	precallAssociations block[store.PrecallAssociationRow]
}

// tableRows is one table's part of blocks.
type tableRows interface {
	table() string
	len() int
	slice(from, to int) any // rows as store.Insert takes them
	record(row int) int     // index of the record that the row came from
	reset()                 // takes all rows out and keeps the memory
}

// tables returns all parts, empty ones too. The order does not matter: they are complete together or repeated together.
func (b *blocks) tables() []tableRows {
	return []tableRows{&b.conferences, &b.participants, &b.participantNames, &b.fabrics, &b.streams, &b.samples,
		&b.fabricSamples, &b.events, &b.feedback, &b.failures, &b.precallTests, &b.precallAssociations}
}

func (b *blocks) rows() int {
	return len(b.conferences.rows) + len(b.participants.rows) + len(b.participantNames.rows) + len(b.fabrics.rows) +
		len(b.streams.rows) + len(b.samples.rows) + len(b.fabricSamples.rows) + len(b.events.rows) + len(b.feedback.rows) +
		len(b.failures.rows) + len(b.precallTests.rows) + len(b.precallAssociations.rows)
}

func (b *blocks) reset() {
	for _, t := range b.tables() {
		t.reset()
	}
}

type block[R store.Row] struct {
	rows    []R
	records []int
}

// maxGrowth is how many rows memory is taken for in advance, at most: about what a full range has.
const maxGrowth = 1 << 16

func (b *block[R]) add(record int, row R) {
	if n := len(b.rows); n == cap(b.rows) && n < maxGrowth {
		// append alone would copy each of these large rows about five times on the way to a full range.
		b.rows = slices.Grow(b.rows, min(max(3*n, 64), maxGrowth-n))
	}
	b.rows = append(b.rows, row)
	b.records = append(b.records, record)
}

func (b *block[R]) table() string {
	var row R
	return row.Table()
}

func (b *block[R]) len() int               { return len(b.rows) }
func (b *block[R]) slice(from, to int) any { return b.rows[from:to] }
func (b *block[R]) record(row int) int     { return b.records[row] }

func (b *block[R]) reset() {
	clear(b.rows) // they point to what was decoded
	b.rows, b.records = b.rows[:0], b.records[:0]
}
