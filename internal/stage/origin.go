package stage

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of RecordHeader and Origin (record.proto).
const (
	fieldUID    = 1
	fieldOrigin = 2
	fieldPrev   = 3

	fieldOriginOffset = 1
	fieldOriginIndex  = 2
)

// Origin is where in its input partition a stage output came from. It orders
// the outputs of one partition and identifies no row.
type Origin struct {
	Offset int64  // of the input record
	Index  uint32 // among the outputs of that input, from 0
}

// After reports whether o comes after other; a nil other is before everything.
func (o Origin) After(other *Origin) bool {
	if other == nil {
		return true
	}
	if o.Offset != other.Offset {
		return o.Offset > other.Offset
	}
	return o.Index > other.Index
}

// String is for logs: "offset/index".
func (o Origin) String() string { return fmt.Sprintf("%d/%d", o.Offset, o.Index) }

// Verdict is what an OriginFilter says of a record.
type Verdict uint8

const (
	// Accept: the record is the next one.
	Accept Verdict = iota + 1
	// Duplicate: the record, or a later one, was accepted before. Drop it.
	Duplicate
	// Gap: a record before this one was never seen. Stop and alarm.
	Gap
)

// OriginFilter decides by origin and prev which records of a partition a
// consumer takes (design 3.5). The zero value has accepted nothing and insists
// on seeing the partition from its first output on.
type OriginFilter struct {
	last *Origin
	open bool
}

// FilterAfter returns a filter that has accepted everything up to last. With
// nil it is the zero value.
func FilterAfter(last *Origin) OriginFilter {
	if last == nil {
		return OriginFilter{}
	}
	copied := *last
	return OriginFilter{last: &copied}
}

// OpenFilter returns a filter for a consumer that starts in the middle of a
// partition and cannot know what came before: it takes the first record
// whatever its prev is.
func OpenFilter() OriginFilter { return OriginFilter{open: true} }

// Accept judges a record and, when it accepts, remembers its origin. prev is
// nil for the first output of a partition, also when its stage lost its state
// and began again.
func (f *OriginFilter) Accept(origin, prev *Origin) Verdict {
	v := f.check(origin, prev)
	if v == Accept {
		f.accept(*origin)
	}
	return v
}

func (f *OriginFilter) check(origin, prev *Origin) Verdict {
	switch {
	case !origin.After(f.last):
		return Duplicate
	case f.open || prev == nil || !prev.After(f.last):
		return Accept
	default:
		return Gap
	}
}

func (f *OriginFilter) accept(origin Origin) {
	f.last, f.open = &origin, false
}

// Last returns the origin accepted last, nil before the first.
func (f *OriginFilter) Last() *Origin {
	if f.last == nil {
		return nil
	}
	copied := *f.last
	return &copied
}

// ReadHeader reads the RecordHeader of a record of any stage topic without
// decoding the rest. uid shares memory with value and is nil where absent;
// origin and prev are nil where absent, as in raw. Of a field that occurs
// twice the last counts; other fields are skipped. An error means that value
// is not a protobuf message.
func ReadHeader(value []byte) (uid []byte, origin, prev *Origin, err error) {
	for len(value) > 0 {
		number, kind, n := protowire.ConsumeTag(value)
		if n < 0 {
			return nil, nil, nil, fmt.Errorf("reading record header: %w", protowire.ParseError(n))
		}
		value = value[n:]
		if number > fieldPrev || kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, value); n < 0 {
				return nil, nil, nil, fmt.Errorf("reading record header: %w", protowire.ParseError(n))
			}
			value = value[n:]
			continue
		}
		field, n := protowire.ConsumeBytes(value)
		if n < 0 {
			return nil, nil, nil, fmt.Errorf("reading record header: %w", protowire.ParseError(n))
		}
		value = value[n:]
		switch number {
		case fieldUID:
			uid = field
		case fieldOrigin:
			origin, err = readOrigin(field)
		case fieldPrev:
			prev, err = readOrigin(field)
		}
		if err != nil {
			return nil, nil, nil, fmt.Errorf("reading origin in record header: %w", err)
		}
	}
	return uid, origin, prev, nil
}

func readOrigin(field []byte) (*Origin, error) {
	var o Origin
	for len(field) > 0 {
		number, kind, n := protowire.ConsumeTag(field)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		field = field[n:]
		if kind != protowire.VarintType || number > fieldOriginIndex {
			if n = protowire.ConsumeFieldValue(number, kind, field); n < 0 {
				return nil, protowire.ParseError(n)
			}
			field = field[n:]
			continue
		}
		v, n := protowire.ConsumeVarint(field)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		field = field[n:]
		if number == fieldOriginOffset {
			o.Offset = int64(v)
		} else {
			o.Index = uint32(v)
		}
	}
	return &o, nil
}

// encodeOutput marshals the message with origin and prev behind it, which
// protobuf allows because fields have no order.
func encodeOutput(m Message, origin Origin, prev *Origin) ([]byte, error) {
	size := m.SizeVT()
	total := size + protowire.SizeTag(fieldOrigin) + protowire.SizeBytes(originSize(origin))
	if prev != nil {
		total += protowire.SizeTag(fieldPrev) + protowire.SizeBytes(originSize(*prev))
	}
	value := make([]byte, size, total)
	if _, err := m.MarshalToSizedBufferVT(value); err != nil {
		return nil, fmt.Errorf("encoding output: %w", err)
	}
	value = appendOrigin(value, fieldOrigin, origin)
	if prev != nil {
		value = appendOrigin(value, fieldPrev, *prev)
	}
	return value, nil
}

func originSize(o Origin) int {
	return protowire.SizeTag(fieldOriginOffset) + protowire.SizeVarint(uint64(o.Offset)) +
		protowire.SizeTag(fieldOriginIndex) + protowire.SizeVarint(uint64(o.Index))
}

func appendOrigin(b []byte, field protowire.Number, o Origin) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(originSize(o)))
	b = protowire.AppendTag(b, fieldOriginOffset, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(o.Offset))
	b = protowire.AppendTag(b, fieldOriginIndex, protowire.VarintType)
	return protowire.AppendVarint(b, uint64(o.Index))
}
