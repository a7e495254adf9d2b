package store

import (
	"context"
	"fmt"
	"io"
	"iter"
	"reflect"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// Column is one column of a result.
type Column struct {
	Name string
	Type string // ClickHouse type
}

// Result is what a query gives, read while it arrives. It must be closed.
type Result struct {
	Columns []Column // empty for statements that give no rows

	rows   driver.Rows // nil for a statement without a result
	cancel context.CancelFunc
}

// Query runs one statement in callscope's database. Cancelling ctx stops it, also while rows are read.
func (s *Store) Query(ctx context.Context, sql string) (*Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	rows, err := s.conn.Query(ctx, sql)
	if err == io.EOF { //nolint:errorlint // within another error it is a connection that broke
		// Over the native protocol a statement without a result ends where the first block would be.
		cancel()
		return &Result{}, nil
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("querying: %w", err)
	}
	r := &Result{rows: rows, cancel: cancel}
	for _, c := range rows.ColumnTypes() {
		r.Columns = append(r.Columns, Column{Name: c.Name(), Type: c.DatabaseTypeName()})
	}
	return r, nil
}

// Rows gives the rows, once. The values of a row are what the driver makes of their types (string, float64, time.Time,
// uuid.UUID, slices, maps …), nil for NULL. An error is the last thing it gives.
func (r *Result) Rows() iter.Seq2[[]any, error] {
	return func(yield func([]any, error) bool) {
		if r.rows == nil {
			return
		}
		types := r.rows.ColumnTypes()
		for r.rows.Next() {
			targets := make([]any, len(types))
			for i, t := range types {
				targets[i] = reflect.New(t.ScanType()).Interface()
			}
			if err := r.rows.Scan(targets...); err != nil {
				yield(nil, fmt.Errorf("reading a row: %w", err))
				return
			}
			for i := range targets {
				targets[i] = plain(reflect.ValueOf(targets[i]).Elem())
			}
			if !yield(targets, nil) {
				return
			}
		}
		if err := r.rows.Err(); err != nil {
			yield(nil, fmt.Errorf("reading rows: %w", err))
		}
	}
}

// plain follows pointers, which stand for Nullable columns.
func plain(v reflect.Value) any {
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return nil
		}
		v = v.Elem()
	}
	return v.Interface()
}

// Close stops the query if it still runs and gives its connection back.
func (r *Result) Close() {
	if r.rows == nil {
		return
	}
	r.cancel()
	// The driver's reader waits for somebody to take its error; closing drains it. What it says is of no use any more.
	_ = r.rows.Close()
}
