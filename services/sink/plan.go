package sink

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/callscope/callscope/internal/stage"
)

// progress is the metadata beside the committed offset of a source partition. It says what the sink may have written
// and what it has accepted, so that any other process can go on from there (design 3.7):
//
//	plan: offset = start of a range that is being inserted, end = its end
//	done: offset = end of a range that is complete in all tables, end absent
type progress struct {
	end    int64  // of the planned range; 0: no plan
	schema uint32 // of the rows of the plan
	// uid is that of the first record of a planned range, or of the last record before the offset when there is no plan.
	// It tells a topic from another one of the same name. Empty where there is no such record or it has none.
	uid    []byte
	filter filterState
}

// filterState is what the origin filter has accepted before the offset.
type filterState struct {
	last *stage.Origin
	open bool // nothing is known: take the next record whatever came before it
}

func (s filterState) filter() stage.OriginFilter {
	if s.open {
		return stage.OpenFilter()
	}
	return stage.FilterAfter(s.last)
}

const (
	originNone = "none"
	originOpen = "open"
)

func (p progress) String() string {
	var b strings.Builder
	b.WriteString("v=1")
	if p.end > 0 {
		fmt.Fprintf(&b, ";end=%d;schema=%d", p.end, p.schema)
	}
	switch {
	case p.filter.open:
		b.WriteString(";origin=" + originOpen)
	case p.filter.last == nil:
		b.WriteString(";origin=" + originNone)
	default:
		b.WriteString(";origin=" + p.filter.last.String())
	}
	b.WriteString(";uid=" + hex.EncodeToString(p.uid))
	return b.String()
}

var errMetadata = errors.New("the metadata beside the committed offset is not the sink's")

// parseProgress reads what String wrote. Empty metadata, which is what tools leave that reset offsets, means that
// nothing is known of what came before.
func parseProgress(text string) (progress, error) {
	if text == "" {
		return progress{filter: filterState{open: true}}, nil
	}
	fields := make(map[string]string)
	for part := range strings.SplitSeq(text, ";") {
		key, value, ok := strings.Cut(part, "=")
		if !ok {
			return progress{}, fmt.Errorf("%w: %q", errMetadata, text)
		}
		fields[key] = value
	}
	var p progress
	var err error
	bad := func(cause error) (progress, error) {
		return progress{}, fmt.Errorf("%w: %q: %w", errMetadata, text, cause)
	}
	if fields["v"] != "1" {
		return bad(fmt.Errorf("version %q is unknown, a newer callscope may have written it", fields["v"]))
	}
	if end, ok := fields["end"]; ok {
		if p.end, err = strconv.ParseInt(end, 10, 64); err != nil || p.end <= 0 {
			return bad(fmt.Errorf("end %q", end))
		}
		schema, err := strconv.ParseUint(fields["schema"], 10, 32)
		if err != nil {
			return bad(err)
		}
		p.schema = uint32(schema)
	}
	if p.uid, err = hex.DecodeString(fields["uid"]); err != nil {
		return bad(err)
	}
	switch origin := fields["origin"]; origin {
	case originOpen:
		p.filter.open = true
	case originNone:
	default:
		offset, index, ok := strings.Cut(origin, "/")
		if !ok {
			return bad(fmt.Errorf("origin %q", origin))
		}
		o, err := strconv.ParseInt(offset, 10, 64)
		if err != nil {
			return bad(err)
		}
		i, err := strconv.ParseUint(index, 10, 32)
		if err != nil {
			return bad(err)
		}
		p.filter.last = &stage.Origin{Offset: o, Index: uint32(i)}
	}
	return p, nil
}

// token names the rows of one range in one table for ClickHouse. It must never mean other rows: a topic that was made
// anew uses the same offsets again, hence the first record's uid, and another schema makes other rows.
func token(firstUID []byte, topic string, partition int32, start, end int64, table string, schema uint32) string {
	return fmt.Sprintf("%x/%s/%d/%d-%d/%s/%d", firstUID, topic, partition, start, end, table, schema)
}
