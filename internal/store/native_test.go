package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"reflect"
	"testing"
	"testing/iotest"
	"time"

	chproto "github.com/ClickHouse/ch-go/proto"
	chcolumn "github.com/ClickHouse/clickhouse-go/v2/lib/column"
	chblock "github.com/ClickHouse/clickhouse-go/v2/lib/proto"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"pgregory.net/rapid"
)

// The driver's own reader says what a block holds.
func TestNativeBlockHoldsTheRows(t *testing.T) {
	for name, table := range tables {
		t.Run(name, rapid.MakeCheck(func(t *rapid.T) {
			n := rapid.SampledFrom([]int{1, 2, 7, chunk, chunk + 1}).Draw(t, "rows")
			rows := reflect.MakeSlice(reflect.SliceOf(table.row), n, n)
			for i := range min(n, 7) { // a long block repeats its rows
				fill(t, rows.Index(i))
			}
			for i := 7; i < n; i++ {
				rows.Index(i).Set(rows.Index(i % 7))
			}
			block := decodeBlock(t, table, rows)
			for i := range n {
				if i >= 7 && i < chunk-1 {
					continue // as one of the first seven
				}
				for k, field := range leaves(rows.Index(i)) {
					want, got := agreed(field), agreed(reflect.ValueOf(block.Columns[k].Row(i, false)))
					if diff := cmp.Diff(want, got); diff != "" {
						t.Fatalf("row %d, column %s (-want +got):\n%s", i, table.columns[k].name, diff)
					}
				}
			}
		}))
	}
}

// Over the native protocol the driver sends what it has decoded from the rows, in the server's revision.
func TestNativeProtocolHoldsTheRows(t *testing.T) {
	const revision = 54483 // with a byte for custom serialization before each column
	for name, table := range tables {
		t.Run(name, rapid.MakeCheck(func(t *rapid.T) {
			n := rapid.SampledFrom([]int{1, 2, 7}).Draw(t, "rows")
			rows := reflect.MakeSlice(reflect.SliceOf(table.row), n, n)
			for i := range n {
				fill(t, rows.Index(i))
			}
			b := chblock.NewBlock()
			for _, c := range table.columns {
				if err := b.AddColumn(c.name, chcolumn.Type(c.typ)); err != nil {
					t.Fatal(err)
				}
			}
			if err := sameTypes(table, b.Columns); err != nil {
				t.Fatal(err)
			}
			var encoded chproto.Buffer
			for i, c := range table.columns {
				encoded.Reset()
				c.encode(&encoded, sliceOf(rows), c.offset)
				if err := decodeColumn(b.Columns[i], encoded.Buf, n); err != nil {
					t.Fatal(err)
				}
			}
			var sent chproto.Buffer
			if err := b.Encode(&sent, revision); err != nil {
				t.Fatal(err)
			}
			got := chblock.NewBlock()
			if err := got.Decode(sent.Reader(), revision); err != nil {
				t.Fatal(err)
			}
			for i := range n {
				for k, field := range leaves(rows.Index(i)) {
					if diff := cmp.Diff(agreed(field), agreed(reflect.ValueOf(got.Columns[k].Row(i, false)))); diff != "" {
						t.Fatalf("row %d, column %s (-want +got):\n%s", i, table.columns[k].name, diff)
					}
				}
			}
		}))
	}
}

// nativeServer speaks just enough of the native protocol to give the same answer to every statement, and then hangs up.
func nativeServer(t *testing.T, answer ...byte) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var hello chproto.Buffer
	hello.PutByte(0)
	hello.PutString("server")
	for _, n := range []uint64{26, 7, 54420} { // version and revision
		hello.PutUVarInt(n)
	}
	hello.PutString("UTC")
	hello.PutString("server")
	hello.PutUVarInt(1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			for _, bytes := range [][]byte{hello.Buf, answer} {
				// What the client says arrives in one piece each time, and does not matter.
				if _, err := conn.Read(make([]byte, 1<<16)); err != nil {
					break
				}
				if _, err := conn.Write(bytes); err != nil {
					break
				}
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
	})
	return listener.Addr().String()
}

// Over HTTP such a statement is an empty answer, over the native protocol the end of the stream.
func TestStatementsWithoutResultOverTheNativeProtocol(t *testing.T) {
	const endOfStream = 5
	query := func(answer ...byte) (*Result, error) {
		s, err := Open(Config{Addr: []string{nativeServer(t, answer...)}, Protocol: ProtocolNative}, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s.Query(t.Context(), "ALTER TABLE events_rows MATERIALIZE TTL")
	}
	result, err := query(endOfStream)
	if err != nil {
		t.Fatalf("a statement that was run fails: %v", err)
	}
	for row, err := range result.Rows() {
		t.Errorf("row %v, %v", row, err)
	}
	result.Close()
	if len(result.Columns) != 0 {
		t.Errorf("columns %v", result.Columns)
	}
	if _, err := query(); err == nil {
		t.Error("a statement succeeds whose connection broke")
	}
}

func TestDictionariesOfAllSizes(t *testing.T) {
	for _, words := range []int{1, 255, 256, 257, 1<<16 - 1, 1 << 16, 1<<16 + 1} {
		t.Run(fmt.Sprint(words), func(t *testing.T) {
			rows := make([]EventRow, words+3)
			for i := range rows {
				// The words, the empty one among them, then some once more.
				if k := i % words; k > 0 {
					rows[i].EventType = Word(fmt.Sprint("word ", k))
				}
			}
			rows[words].EventType = ""
			table := tables[EventRow{}.Table()]
			block := decodeBlock(t, table, reflect.ValueOf(rows))
			for k, c := range table.columns {
				if c.name != "event_type" {
					continue
				}
				for i, row := range rows {
					if got := block.Columns[k].Row(i, false); got != string(row.EventType) {
						t.Fatalf("row %d: %q, want %q", i, got, row.EventType)
					}
				}
			}
		})
	}
}

func TestNativeBlockIsTheSameInPieces(t *testing.T) {
	rows := reflect.ValueOf(make([]SampleRow, 3))
	table := tables[SampleRow{}.Table()]
	var whole bytes.Buffer
	if n, err := newNativeBlock(table, sliceOf(rows)).WriteTo(&whole); err != nil || n != int64(whole.Len()) {
		t.Fatalf("WriteTo: %d of %d bytes, %v", n, whole.Len(), err)
	}
	pieces, err := io.ReadAll(iotest.OneByteReader(newNativeBlock(table, sliceOf(rows))))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(whole.Bytes(), pieces) {
		t.Error("Read gives other bytes than WriteTo")
	}
}

func TestClosedBlockDoesNotEnd(t *testing.T) {
	b := newNativeBlock(tables[SampleRow{}.Table()], sliceOf(reflect.ValueOf(make([]SampleRow, 3))))
	if _, err := b.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	b.Close()
	// What is cut off must not look like the whole.
	if _, err := io.ReadAll(b); !errors.Is(err, errBlockClosed) {
		t.Errorf("Read: %v", err)
	}
	if _, err := b.WriteTo(io.Discard); !errors.Is(err, errBlockClosed) {
		t.Errorf("WriteTo: %v", err)
	}
}

func decodeBlock(t interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}, table *table, rows reflect.Value) *chblock.Block {
	t.Helper()
	var data bytes.Buffer
	if _, err := newNativeBlock(table, sliceOf(rows)).WriteTo(&data); err != nil {
		t.Fatal(err)
	}
	block := chblock.NewBlock()
	if err := block.Decode(chproto.NewReader(&data), 0); err != nil {
		t.Fatal(err)
	}
	if data.Len() > 0 {
		t.Fatalf("%d bytes follow the block", data.Len())
	}
	for i, c := range table.columns {
		if got := block.Columns[i]; got.Name() != c.name || string(got.Type()) != c.typ || got.Rows() != rows.Len() {
			t.Fatalf("column %d is %s %s with %d rows, want %s %s with %d", i, got.Name(), got.Type(), got.Rows(), c.name, c.typ, rows.Len())
		}
	}
	return block
}

// leaves are the fields of a row that are columns.
func leaves(v reflect.Value) (all []reflect.Value) {
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.Struct:
			all = append(all, leaves(f)...)
		default:
			all = append(all, f)
		}
	}
	return all
}

// fill sets every field to a value, to zero, or to nothing.
func fill(t *rapid.T, row reflect.Value) {
	for i, f := range leaves(row) {
		f.Set(draw(t, fmt.Sprint("field ", i), f.Type()))
	}
}

func draw(t *rapid.T, label string, typ reflect.Type) reflect.Value {
	switch {
	case typ == reflect.TypeFor[uuid.UUID]():
		return reflect.ValueOf(rapid.Make[uuid.UUID]().Draw(t, label))
	case typ == reflect.TypeFor[Time]():
		return reflect.ValueOf(Time(rapid.Int64Range(0, 7258118399999).Draw(t, label)))
	case typ.Kind() == reflect.String:
		return reflect.ValueOf(rapid.SampledFrom([]string{"", "a", "b", "ö\x00\xff", string(make([]byte, 300))}).Draw(t, label)).Convert(typ)
	case typ.Kind() == reflect.Pointer:
		if rapid.Bool().Draw(t, label+" is null") {
			return reflect.Zero(typ)
		}
		p := reflect.New(typ.Elem())
		p.Elem().Set(draw(t, label, typ.Elem()))
		return p
	case typ.Kind() == reflect.Slice:
		n := rapid.IntRange(0, 3).Draw(t, label+" length")
		s := reflect.MakeSlice(typ, n, n)
		for i := range n {
			s.Index(i).Set(draw(t, label, typ.Elem()))
		}
		return s
	case typ.Kind() == reflect.Bool:
		return reflect.ValueOf(rapid.Bool().Draw(t, label))
	case typ.Kind() == reflect.Float64:
		return reflect.ValueOf(rapid.SampledFrom([]float64{0, 1, -2.5, 1e300}).Draw(t, label))
	case typ.ConvertibleTo(reflect.TypeFor[uint64]()):
		return reflect.ValueOf(rapid.Uint64().Draw(t, label)).Convert(typ)
	}
	t.Fatalf("no values of %s", typ)
	return reflect.Value{}
}

// agreed turns a field, or what the driver read for it, into what both must agree on: nil for NULL, milliseconds for
// times, slices of such values.
func agreed(v reflect.Value) any {
	if !v.IsValid() {
		return nil
	}
	switch x := v.Interface().(type) {
	case OptionalWord:
		if x == "" {
			return nil
		}
		return string(x)
	case Time:
		return int64(x)
	case time.Time:
		return x.UnixMilli()
	case uuid.UUID:
		return x.String()
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return agreed(v.Elem())
	case reflect.Interface:
		return agreed(v.Elem())
	case reflect.String:
		return v.String()
	case reflect.Slice:
		all := []any{}
		for i := range v.Len() {
			all = append(all, agreed(v.Index(i)))
		}
		return all
	default:
		return fmt.Sprint(v.Interface())
	}
}
