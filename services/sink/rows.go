package sink

import (
	"iter"

	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// Prepare changes a message before it becomes rows: *callscopev1.Enriched or *callscopev1.Summary.
type Prepare func(message any)

// Rows makes the rows of records outside of the service: a replay stores what the sink would have stored. The zero value
// is empty. It is not safe for concurrent use.
type Rows struct{ blocks blocks }

// AddEnriched adds the rows of one message of the topic enriched. record says where it is from; its bytes are not used.
// The error says why the message can never become rows; nothing of it is then added.
func (r *Rows) AddEnriched(prepare Prepare, record stream.Record, e *callscopev1.Enriched) error {
	if prepare != nil {
		prepare(e)
	}
	return r.blocks.addEnriched(decodedOf(record), e)
}

// AddSummary is AddEnriched for the topic summaries.
func (r *Rows) AddSummary(prepare Prepare, record stream.Record, s *callscopev1.Summary) error {
	if prepare != nil {
		prepare(s)
	}
	return r.blocks.addSummary(decodedOf(record), s)
}

func decodedOf(r stream.Record) decoded {
	return decoded{source: store.Source{Topic: store.Word(r.Topic), Partition: r.Partition, Offset: r.Offset, RangeStart: r.Offset}}
}

// Len is the number of rows of all tables together.
func (r *Rows) Len() int { return r.blocks.rows() }

// Tables gives the tables that have rows with their rows, as store.Insert takes them.
func (r *Rows) Tables() iter.Seq2[string, any] {
	return func(yield func(string, any) bool) {
		for _, t := range r.blocks.tables() {
			if t.len() > 0 && !yield(t.table(), t.slice(0, t.len())) {
				return
			}
		}
	}
}

// Reset empties r. What Tables gave must not be used afterwards.
func (r *Rows) Reset() { r.blocks.reset() }

// AddRecord adds the rows of one record as it is in the topic enriched or summaries. rangeStart is the first offset of
// the records that are stored together with it.
func (r *Rows) AddRecord(prepare Prepare, record stream.Record, rangeStart int64) error {
	_, err := r.blocks.decode(prepare, record, 0, rangeStart)
	return err
}
