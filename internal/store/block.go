package store

import (
	"bytes"
	"context"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"
	chcolumn "github.com/ClickHouse/clickhouse-go/v2/lib/column"
)

// MaxBlockRows is the largest number of rows that one insert may have: the server makes one block of them, which is
// what the deduplication token covers.
const MaxBlockRows = 200_000

// Time is a point in time, epoch milliseconds; DateTime64(3, 'UTC') in ClickHouse.
type Time int64

// Word is a text of few different values; LowCardinality(String) in ClickHouse.
type Word string

// OptionalWord is a Word where the empty text means unknown, which is NULL in ClickHouse.
type OptionalWord string

// column is one column of a table and the field of a row that fills it.
type column struct {
	name   string
	typ    string  // ClickHouse type
	offset uintptr // of the field in the row
	encode encodeFunc
}

// table is a table and the shape of its rows.
type table struct {
	name    string
	row     reflect.Type
	columns []column
	insert  string // INSERT statement, with %s for the database
	types   []clickhouse.ColumnNameAndType
}

// tables are all tables that rows can be inserted into, by name.
var tables = func() map[string]*table {
	all := make(map[string]*table)
	for _, row := range []Row{
		ConferenceRow{}, ParticipantRow{}, FabricRow{}, StreamRow{}, SampleRow{}, FabricSampleRow{}, EventRow{}, FeedbackRow{},
		FailureRow{}, PrecallTestRow{}, PrecallAssociationRow{}, ParticipantNameRow{},
	} {
		t := newTable(row)
		all[t.name] = t
	}
	return all
}()

func newTable(row Row) *table {
	t := &table{name: row.Table(), row: reflect.TypeOf(row)}
	t.columns = appendColumns(nil, "", 0, t.row)
	var names []string
	for _, c := range t.columns {
		names = append(names, c.name)
		t.types = append(t.types, clickhouse.ColumnNameAndType{Name: c.name, Type: c.typ})
	}
	t.insert = "INSERT INTO %s." + t.name + " (" + strings.Join(names, ", ") + ")"
	return t
}

// appendColumns lists the columns of a row type: fields with a ch tag, embedded structs in place, and Distributions as
// seven columns whose names begin with the tag.
func appendColumns(list []column, prefix string, offset uintptr, t reflect.Type) []column {
	for i := range t.NumField() {
		f := t.Field(i)
		at := offset + f.Offset
		tag, tagged := f.Tag.Lookup("ch")
		switch {
		case f.Anonymous:
			list = appendColumns(list, prefix, at, f.Type)
		case !tagged:
			panic(fmt.Sprintf("field %s of %s has no ch tag", f.Name, t))
		case f.Type == reflect.TypeFor[Distribution]():
			list = appendColumns(list, prefix+tag, at, f.Type)
		default:
			c := column{name: prefix + tag, offset: at}
			c.typ, c.encode = columnType(f.Type)
			list = append(list, c)
		}
	}
	return list
}

// Insert stores rows, a slice of the table's row type with 1 to MaxBlockRows rows, as one block under a deduplication
// token: within the table's deduplication window a second block with the same token is dropped, so the same token must
// always mean the same rows.
//
// An error that is not Permanent leaves open whether the block was stored. Repeat with the same rows: under the same token
// where the store is Replicated; elsewhere under a new one, because a server that was killed may remember the token of rows
// that it lost. What is then stored twice collapses by its key. A Permanent error stored nothing; split the rows to find those to blame. Nothing is repeated inside.
//
// The rows are not looked at any more when Insert has returned, whatever it returns.
func (s *Store) Insert(ctx context.Context, tableName, token string, rows any) (err error) {
	t, ok := tables[tableName]
	v := reflect.ValueOf(rows)
	switch {
	case !ok:
		return fmt.Errorf("inserting into %s: there is no such table", tableName)
	case v.Kind() != reflect.Slice || v.Type().Elem() != t.row:
		return fmt.Errorf("inserting into %s: rows are %T and must be []%s", tableName, rows, t.row)
	case v.Len() == 0 || v.Len() > MaxBlockRows:
		return fmt.Errorf("inserting into %s: %d rows, want 1 to %d", tableName, v.Len(), MaxBlockRows)
	case token == "":
		return fmt.Errorf("inserting into %s: no deduplication token", tableName)
	}
	started := time.Now()
	defer func() {
		switch {
		case err == nil:
			s.metrics.inserts.WithLabelValues(tableName, "ok").Inc()
			s.metrics.rows.WithLabelValues(tableName).Add(float64(v.Len()))
			s.metrics.seconds.WithLabelValues(tableName).Observe(time.Since(started).Seconds())
			return
		case Permanent(err):
			s.metrics.inserts.WithLabelValues(tableName, "permanent").Inc()
		default:
			s.metrics.inserts.WithLabelValues(tableName, "transient").Inc()
		}
		err = fmt.Errorf("inserting %d rows into %s: %w", v.Len(), tableName, err)
	}()

	return s.send(ctx, t, fmt.Sprintf(t.insert, s.cfg.Database), insertSettings(token), v)
}

// send inserts a slice of the table's row type as one block.
func (s *Store) send(ctx context.Context, t *table, statement string, settings clickhouse.Settings, v reflect.Value) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.InsertTimeout)
	defer cancel()
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(settings), clickhouse.WithColumnNamesAndTypes(t.types))
	all := sliceOf(v)
	var err error
	if s.cfg.Protocol == ProtocolHTTP && s.cfg.Compression == "none" {
		err = s.stream(ctx, t, statement, all)
	} else {
		err = s.sendBatch(ctx, t, statement, all)
	}
	switch {
	case err == nil:
		return nil
	case rowCodes[code(err)]:
		return fmt.Errorf("%w: %w", ErrBadRow, err)
	case spaceCodes[code(err)], strings.Contains(err.Error(), "No space left on device"):
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// stream sends rows as the body of an HTTP request.
func (s *Store) stream(ctx context.Context, t *table, statement string, rows rowSlice) error {
	body := newNativeBlock(t, rows)
	defer body.Close()
	return s.conn.InsertFormat(ctx, "Native", statement, body)
}

// sendBatch sends rows as the driver sends batches: over the native protocol, and compressed.
func (s *Store) sendBatch(ctx context.Context, t *table, statement string, rows rowSlice) error {
	batch, err := s.conn.PrepareBatch(ctx, statement)
	if err != nil {
		return err
	}
	defer batch.Close()
	columns := batch.Columns()
	if err := sameTypes(t, columns); err != nil {
		return err // not the rows' fault
	}
	var encoded proto.Buffer
	for i, c := range t.columns {
		encoded.Reset()
		c.encode(&encoded, rows, c.offset)
		if err := decodeColumn(columns[i], encoded.Buf, rows.n); err != nil {
			return fmt.Errorf("handing column %s to the driver: %w", c.name, err)
		}
	}
	return batch.Send()
}

// decodeColumn fills a column of the driver from its data in the Native format.
func decodeColumn(c chcolumn.Interface, data []byte, rows int) error {
	r := proto.NewReader(bytes.NewReader(data))
	if c, ok := c.(chcolumn.CustomSerialization); ok {
		if err := c.ReadStatePrefix(r); err != nil {
			return err
		}
	}
	if err := c.Decode(r, rows); err != nil {
		return err
	}
	if c.Rows() != rows {
		return fmt.Errorf("it has %d values for %d rows", c.Rows(), rows)
	}
	return nil
}

// sameTypes compares what the server wants with what the rows are. Over HTTP the rows' own types are sent and the server
// converts.
func sameTypes(t *table, columns []chcolumn.Interface) error {
	if len(columns) != len(t.columns) {
		return fmt.Errorf("the server wants %d columns, the rows have %d", len(columns), len(t.columns))
	}
	for i, c := range t.columns {
		if got := string(columns[i].Type()); got != c.typ {
			return fmt.Errorf("column %s is %s in the table and %s in the rows: somebody changed the table", c.name, got, c.typ)
		}
	}
	return nil
}

// insertSettings are what an insert depends on, whatever the server's defaults are.
func insertSettings(token string) clickhouse.Settings {
	return clickhouse.Settings{
		"async_insert":               0, // a server-side batch loses the token's meaning
		"insert_deduplicate":         1,
		"insert_deduplication_token": token,
		// A block that spans many months (a replay) is still one block.
		"max_partitions_per_insert_block": 0,
	}
}
