package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"reflect"
	"sync"
	"unsafe"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/uuid"
)

// encodeFunc writes the field at an offset of all rows as the data of one column of a block in the Native format,
// revision 0.
type encodeFunc func(out *proto.Buffer, rows rowSlice, offset uintptr)

// rowSlice is a slice of rows of any type. Reading fields by their place in memory takes a fifth of the time that
// reflection does.
type rowSlice struct {
	first  unsafe.Pointer
	n      int
	stride uintptr
}

// sliceOf takes a slice.
func sliceOf(v reflect.Value) rowSlice {
	return rowSlice{first: v.UnsafePointer(), n: v.Len(), stride: v.Type().Elem().Size()}
}

// field is the field at offset of row i, which must be a T or have its memory layout: columnType pairs the two.
func field[T any](rows rowSlice, i int, offset uintptr) *T {
	return (*T)(unsafe.Add(rows.first, uintptr(i)*rows.stride+offset))
}

// columnType gives the ClickHouse type for a field's type, and the function that encodes this field of all rows.
func columnType(t reflect.Type) (string, encodeFunc) {
	switch t {
	case reflect.TypeFor[string]():
		return "String", encodeStrings
	case reflect.TypeFor[*string]():
		return "Nullable(String)", encodeNullableStrings
	case reflect.TypeFor[Word]():
		return "LowCardinality(String)", encodeWords
	case reflect.TypeFor[OptionalWord]():
		return "LowCardinality(Nullable(String))", encodeOptionalWords
	case reflect.TypeFor[uuid.UUID]():
		return "UUID", encodeValues[proto.ColUUID]
	case reflect.TypeFor[*uuid.UUID]():
		return "Nullable(UUID)", encodeNullable[proto.ColUUID]
	case reflect.TypeFor[Time]():
		return "DateTime64(3, 'UTC')", encodeValues[proto.ColInt64]
	case reflect.TypeFor[*Time]():
		return "Nullable(DateTime64(3, 'UTC'))", encodeNullable[proto.ColInt64]
	case reflect.TypeFor[float64]():
		return "Float64", encodeValues[proto.ColFloat64]
	case reflect.TypeFor[*float64]():
		return "Nullable(Float64)", encodeNullable[proto.ColFloat64]
	case reflect.TypeFor[bool]():
		return "Bool", encodeValues[proto.ColBool]
	case reflect.TypeFor[*bool]():
		return "Nullable(Bool)", encodeNullable[proto.ColBool]
	case reflect.TypeFor[int32]():
		return "Int32", encodeValues[proto.ColInt32]
	case reflect.TypeFor[int64]():
		return "Int64", encodeValues[proto.ColInt64]
	case reflect.TypeFor[*int64]():
		return "Nullable(Int64)", encodeNullable[proto.ColInt64]
	case reflect.TypeFor[uint8]():
		return "UInt8", encodeValues[proto.ColUInt8]
	case reflect.TypeFor[uint16]():
		return "UInt16", encodeValues[proto.ColUInt16]
	case reflect.TypeFor[uint32]():
		return "UInt32", encodeValues[proto.ColUInt32]
	case reflect.TypeFor[uint64]():
		return "UInt64", encodeValues[proto.ColUInt64]
	case reflect.TypeFor[[]Word]():
		return "Array(LowCardinality(String))", encodeWordArrays
	case reflect.TypeFor[[]Time]():
		return "Array(DateTime64(3, 'UTC'))", encodeTimeArrays
	case reflect.TypeFor[[]*Time]():
		return "Array(Nullable(DateTime64(3, 'UTC')))", encodeNullableTimeArrays
	}
	panic(fmt.Sprintf("no ClickHouse type for %s", t))
}

// values is a column of values of one size.
type values[T any] interface {
	~[]T
	EncodeColumn(out *proto.Buffer)
}

// chunk is how many values are gathered at a time: they stay in the processor's cache, and make little garbage.
const chunk = 1024

func encodeValues[C values[T], T any](out *proto.Buffer, rows rowSlice, offset uintptr) {
	some := make(C, min(chunk, rows.n))
	for i := 0; i < rows.n; i += len(some) {
		some = some[:min(chunk, rows.n-i)]
		for k := range some {
			some[k] = *field[T](rows, i+k, offset)
		}
		some.EncodeColumn(out)
	}
}

func encodeNullable[C values[T], T any](out *proto.Buffer, rows rowSlice, offset uintptr) {
	nulls := len(out.Buf)
	out.Buf = append(out.Buf, make([]byte, rows.n)...)
	some := make(C, min(chunk, rows.n))
	for i := 0; i < rows.n; i += len(some) {
		some = some[:min(chunk, rows.n-i)]
		null := out.Buf[nulls+i:][:len(some)]
		clear(some)
		for k := range some {
			if value := *field[*T](rows, i+k, offset); value != nil {
				some[k] = *value
			} else {
				null[k] = 1
			}
		}
		some.EncodeColumn(out)
	}
}

// encodeNulls writes which values of a Nullable column are NULL.
func encodeNulls[T any](out *proto.Buffer, rows rowSlice, offset uintptr) {
	nulls := make(proto.ColUInt8, rows.n)
	for i := range nulls {
		if *field[*T](rows, i, offset) == nil {
			nulls[i] = 1
		}
	}
	nulls.EncodeColumn(out)
}

func encodeStrings(out *proto.Buffer, rows rowSlice, offset uintptr) {
	buf := out.Buf
	for i := range rows.n {
		buf = appendString(buf, *field[string](rows, i, offset))
	}
	out.Buf = buf
}

func encodeNullableStrings(out *proto.Buffer, rows rowSlice, offset uintptr) {
	encodeNulls[string](out, rows, offset)
	buf := out.Buf
	for i := range rows.n {
		if text := *field[*string](rows, i, offset); text != nil {
			buf = appendString(buf, *text)
		} else {
			buf = appendString(buf, "")
		}
	}
	out.Buf = buf
}

// appendString does what proto.Buffer.PutString does in a fifth of its time.
func appendString(buf []byte, s string) []byte {
	return append(binary.AppendUvarint(buf, uint64(len(s))), s...)
}

func encodeWords(out *proto.Buffer, rows rowSlice, offset uintptr) {
	encodeDictionary(out, rows, offset, newDictionary(rows.n))
}

func encodeOptionalWords(out *proto.Buffer, rows rowSlice, offset uintptr) {
	d := newDictionary(rows.n)
	d.words.Append("") // the first word is NULL, the second the type's default
	encodeDictionary(out, rows, offset, d)
}

func encodeDictionary(out *proto.Buffer, rows rowSlice, offset uintptr, d *dictionary) {
	for i := range rows.n {
		d.add(*field[string](rows, i, offset))
	}
	c := d.column()
	c.EncodeState(out)
	c.EncodeColumn(out)
}

// dictionary is a column of words on its way to LowCardinality: the different words, and for each row which one it is.
// The first word is the empty text.
type dictionary struct {
	words proto.ColStr
	index map[string]uint32
	keys  []uint32

	last    string // often the same as the one before
	lastKey uint32
}

func newDictionary(rows int) *dictionary {
	d := &dictionary{index: map[string]uint32{"": 0}, keys: make([]uint32, 0, rows)}
	d.words.Append("")
	return d
}

func (d *dictionary) add(word string) {
	if word != d.last {
		key, ok := d.index[word]
		if !ok {
			key = uint32(d.words.Rows())
			d.index[word] = key
			d.words.Append(word)
		}
		d.last, d.lastKey = word, key
	}
	d.keys = append(d.keys, d.lastKey)
}

func (d *dictionary) column() proto.ColLowCardinalityRaw {
	c := proto.ColLowCardinalityRaw{Index: &d.words}
	switch n := d.words.Rows(); {
	case n <= 1<<8:
		c.Key, c.Keys8 = proto.KeyUInt8, narrow[uint8](d.keys)
	case n <= 1<<16:
		c.Key, c.Keys16 = proto.KeyUInt16, narrow[uint16](d.keys)
	default:
		c.Key, c.Keys32 = proto.KeyUInt32, d.keys
	}
	return c
}

func narrow[T uint8 | uint16](keys []uint32) []T {
	all := make([]T, len(keys))
	for i, key := range keys {
		all[i] = T(key)
	}
	return all
}

// encodeOffsets writes where the arrays of the rows end, and returns the number of all their elements.
func encodeOffsets[T any](out *proto.Buffer, rows rowSlice, offset uintptr) int {
	ends := make(proto.ColUInt64, rows.n)
	n := 0
	for i := range ends {
		n += len(*field[[]T](rows, i, offset))
		ends[i] = uint64(n)
	}
	ends.EncodeColumn(out)
	return n
}

// elements are the arrays of all rows, one after the other.
func elements[T any](rows rowSlice, offset uintptr, n int) rowSlice {
	all := make([]T, 0, n)
	for i := range rows.n {
		all = append(all, *field[[]T](rows, i, offset)...)
	}
	return sliceOf(reflect.ValueOf(all))
}

func encodeTimeArrays(out *proto.Buffer, rows rowSlice, offset uintptr) {
	n := encodeOffsets[Time](out, rows, offset)
	encodeValues[proto.ColInt64](out, elements[Time](rows, offset, n), 0)
}

func encodeNullableTimeArrays(out *proto.Buffer, rows rowSlice, offset uintptr) {
	n := encodeOffsets[*Time](out, rows, offset)
	encodeNullable[proto.ColInt64](out, elements[*Time](rows, offset, n), 0)
}

func encodeWordArrays(out *proto.Buffer, rows rowSlice, offset uintptr) {
	d := newDictionary(rows.n)
	for i := range rows.n {
		for _, word := range *field[[]Word](rows, i, offset) {
			d.add(string(word))
		}
	}
	c := d.column()
	c.EncodeState(out)
	encodeOffsets[Word](out, rows, offset)
	c.EncodeColumn(out)
}

// nativeBlock gives rows as one block in the Native format, revision 0. A column is encoded when all before it are
// written, so that the server reads and parses one while the next is encoded.
type nativeBlock struct {
	table *table
	rows  rowSlice

	mu     sync.Mutex // an HTTP client may go on reading a body after it has answered
	closed bool
	next   int // column; -1 is the head
	out    proto.Buffer
	unread []byte
}

func newNativeBlock(t *table, rows rowSlice) *nativeBlock {
	return &nativeBlock{table: t, rows: rows, next: -1}
}

var errBlockClosed = errors.New("the insert has ended")

// encodeNext encodes the head or the next column. It fails with io.EOF behind the last one.
func (b *nativeBlock) encodeNext() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return errBlockClosed
	case b.next == len(b.table.columns):
		return io.EOF
	}
	b.out.Reset()
	if b.next < 0 {
		b.out.PutInt(len(b.table.columns))
		b.out.PutInt(b.rows.n)
	} else {
		c := b.table.columns[b.next]
		b.out.PutString(c.name)
		b.out.PutString(c.typ)
		c.encode(&b.out, b.rows, c.offset)
	}
	b.next++
	b.unread = b.out.Buf
	return nil
}

func (b *nativeBlock) Read(p []byte) (int, error) {
	for len(b.unread) == 0 {
		if err := b.encodeNext(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.unread)
	b.unread = b.unread[n:]
	return n, nil
}

// WriteTo writes column after column, each at once.
func (b *nativeBlock) WriteTo(w io.Writer) (total int64, err error) {
	for {
		n, err := w.Write(b.unread)
		b.unread = b.unread[n:]
		total += int64(n)
		if err != nil {
			return total, err
		}
		switch err := b.encodeNext(); {
		case errors.Is(err, io.EOF):
			return total, nil
		case err != nil:
			return total, err
		}
	}
}

// Close makes further reading fail. The rows are not looked at any more when it has returned.
func (b *nativeBlock) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return nil
}
