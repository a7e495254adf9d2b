package app

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/callscope/callscope/internal/store"
)

func (c *cli) sqlCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   `sql "QUERY"`,
		Short: "Run one SQL statement and print its rows",
		Long: `Run one SQL statement in callscope's database and print its rows.

It asks the server of clickhouse.addr, or without one the engine of a running
` + "`callscope all`" + ` at clickhouse.embedded_addr. A query of "-" is read from standard input.`,
		Example: `  callscope sql "SELECT conference_id, outcome, participants FROM conferences ORDER BY started_at"`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneOf("--output", output, "table", "json", "ndjson", "csv"); err != nil {
				return err
			}
			query := args[0]
			if query == "-" {
				text, err := io.ReadAll(c.stdin)
				if err != nil {
					return fmt.Errorf("reading the query: %w", err)
				}
				query = string(text)
			}
			return c.sql(cmd.Context(), query, output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json, ndjson or csv")
	return cmd
}

func (c *cli) sql(ctx context.Context, query, output string) error {
	s, err := c.load()
	if err != nil {
		return err
	}
	s.useRunningEngine()
	if err := s.check(needClickHouse); err != nil {
		return err
	}
	st, err := store.Open(s.ClickHouse.Config, c.logger(s.Log), nil)
	if err != nil {
		return err
	}
	defer st.Close()
	if err := st.Ping(ctx); err != nil && !errors.Is(err, store.ErrNoDatabase) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return unreachable(err)
	} else if err != nil {
		return err
	}
	result, err := st.Query(ctx, query)
	if err != nil {
		return interruptedOr(ctx, serverError(err))
	}
	defer result.Close()
	return interruptedOr(ctx, serverError(writeRows(c.stdout, output, result.Columns, result.Rows())))
}

var serverMessage = regexp.MustCompile(`(?s)code: (\d+), message: (.*)`)

// serverError is what ClickHouse said, without what the driver was doing when it did.
func serverError(err error) error {
	if err == nil {
		return nil
	}
	if m := serverMessage.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("ClickHouse answered with error %s: %s", m[1], strings.TrimSpace(m[2]))
	}
	return err
}

// interruptedOr is ctx's error when ctx is done: what was cancelled fails in many words.
func interruptedOr(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// useRunningEngine takes the engine of a running `callscope all` where no server is configured.
func (s *settings) useRunningEngine() {
	if s.embedsEngine() {
		s.ClickHouse.Addr = []string{s.ClickHouse.EmbeddedAddr}
		if s.ClickHouse.Protocol == "" {
			s.ClickHouse.Protocol = store.ProtocolHTTP
		}
	}
}

// useRunningBroker takes the broker of a running `callscope all` where no cluster is configured.
func (s *settings) useRunningBroker() {
	if s.embedsBroker() {
		s.Kafka.Brokers = []string{s.Kafka.EmbeddedAddr}
	}
}

func oneOf(flag, value string, allowed ...string) error {
	if !slices.Contains(allowed, value) {
		return &codedError{exitUsage, fmt.Errorf("%s: %q is not one of %s", flag, value, strings.Join(allowed, ", "))}
	}
	return nil
}

// rowSeq is what store.Result.Rows gives.
type rowSeq = func(yield func([]any, error) bool)

// writeRows writes rows as they come; only a table waits for the last one. JSON is a list of objects, NDJSON one object
// a line, both with the columns in order, numbers as the database has them and times in RFC 3339; a column name that
// occurs twice is there twice. CSV and tables write values as ClickHouse does; NULL is \N in CSV and NULL in a table.
func writeRows(w io.Writer, output string, columns []store.Column, rows rowSeq) error {
	if len(columns) == 0 {
		// A statement without rows; reading to the end tells whether it worked.
		for _, err := range rows {
			if err != nil {
				return err
			}
		}
		return nil
	}
	out := bufio.NewWriter(w)
	var err error
	switch output {
	case "json", "ndjson":
		err = writeJSONRows(out, output == "json", columns, rows)
	case "csv":
		err = writeCSVRows(out, columns, rows)
	default:
		err = writeTableRows(out, columns, rows)
	}
	return errors.Join(err, out.Flush())
}

func writeTableRows(w io.Writer, columns []store.Column, rows rowSeq) error {
	var t table
	for _, c := range columns {
		t.header = append(t.header, c.Name)
		t.right = append(t.right, isNumber(c.Type))
	}
	for row, err := range rows {
		if err != nil {
			return err
		}
		values := make([]string, len(row))
		for i, v := range row {
			values[i] = "NULL"
			if v != nil {
				values[i] = textOf(v, columns[i].Type)
			}
		}
		t.add(values...)
	}
	if err := t.write(w); err != nil {
		return err
	}
	word := "rows"
	if len(t.rows) == 1 {
		word = "row"
	}
	_, err := fmt.Fprintf(w, "(%d %s)\n", len(t.rows), word)
	return err
}

func writeCSVRows(w io.Writer, columns []store.Column, rows rowSeq) error {
	out := csv.NewWriter(w)
	line := make([]string, len(columns))
	for i, c := range columns {
		line[i] = c.Name
	}
	if err := out.Write(line); err != nil {
		return err
	}
	for row, err := range rows {
		if err != nil {
			out.Flush()
			return err
		}
		for i, v := range row {
			line[i] = `\N`
			if v != nil {
				line[i] = textOf(v, columns[i].Type)
			}
		}
		if err := out.Write(line); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

func writeJSONRows(w *bufio.Writer, list bool, columns []store.Column, rows rowSeq) error {
	names := make([][]byte, len(columns))
	for i, c := range columns {
		name, err := encodeJSON(c.Name)
		if err != nil {
			return err
		}
		names[i] = name
	}
	before := ""
	if list {
		before = "[\n"
	}
	for row, err := range rows {
		if err != nil {
			return err
		}
		w.WriteString(before)
		w.WriteByte('{')
		for i, v := range row {
			if i > 0 {
				w.WriteByte(',')
			}
			value, err := encodeJSON(jsonValue(v, columns[i].Type))
			if err != nil {
				return fmt.Errorf("writing column %s: %w", columns[i].Name, err)
			}
			w.Write(names[i])
			w.WriteByte(':')
			w.Write(value)
		}
		w.WriteByte('}')
		if before = ",\n"; !list {
			before = "\n"
		}
	}
	switch {
	case list && before == "[\n":
		w.WriteString("[]\n")
	case list:
		w.WriteString("\n]\n")
	case before != "":
		w.WriteString("\n")
	}
	return nil
}

// encodeJSON leaves <, > and & as they are: this is no HTML.
func encodeJSON(v any) ([]byte, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return []byte(strings.TrimSuffix(b.String(), "\n")), nil
}

var numberType = regexp.MustCompile(`^(LowCardinality\()?(Nullable\()?(U?Int|Float|Decimal)`)

func isNumber(columnType string) bool { return numberType.MatchString(columnType) }

// textOf writes a value for a table or CSV: text as it is, times as ClickHouse does in UTC, lists and maps as JSON.
func textOf(v any, columnType string) string {
	switch v := v.(type) {
	case string:
		return v
	case time.Time:
		return v.UTC().Format(timeLayout(columnType, " "))
	case fmt.Stringer:
		return v.String()
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	case float32:
		return strconv.FormatFloat(float64(v), 'g', -1, 32)
	}
	switch reflect.ValueOf(v).Kind() {
	case reflect.Slice, reflect.Array, reflect.Map, reflect.Struct:
		if text, err := encodeJSON(jsonValue(v, columnType)); err == nil {
			return string(text)
		}
	}
	return fmt.Sprint(v)
}

var dateTime64 = regexp.MustCompile(`DateTime64\((\d)`)

// timeLayout has as many digits as the column's type; separator stands between date and time.
func timeLayout(columnType, separator string) string {
	const date, clock = "2006-01-02", "15:04:05"
	if m := dateTime64.FindStringSubmatch(columnType); m != nil {
		if m[1] == "0" {
			return date + separator + clock
		}
		digits, _ := strconv.Atoi(m[1]) // the pattern has one digit
		return date + separator + clock + "." + strings.Repeat("0", digits)
	}
	if strings.Contains(columnType, "DateTime") {
		return date + separator + clock
	}
	return date
}

// jsonValue makes a value that encodes to JSON: times in RFC 3339, infinities and NaN null, since JSON has none.
func jsonValue(v any, columnType string) any {
	switch v := v.(type) {
	case time.Time:
		text := v.UTC().Format(timeLayout(columnType, "T"))
		if strings.Contains(text, "T") {
			text += "Z"
		}
		return text
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil
		}
		return v
	case float32:
		if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
			return nil
		}
		return v
	case []byte:
		if !strings.Contains(columnType, "Array(") {
			return string(v)
		}
		numbers := make([]int, len(v)) // Array(UInt8)
		for i, n := range v {
			numbers[i] = int(n)
		}
		return numbers
	case json.Marshaler, fmt.Stringer:
		return fmt.Sprint(v)
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Pointer:
		if r.IsNil() {
			return nil
		}
		return jsonValue(r.Elem().Interface(), columnType)
	case reflect.Slice, reflect.Array:
		list := make([]any, r.Len())
		for i := range list {
			list[i] = jsonValue(r.Index(i).Interface(), columnType)
		}
		return list
	case reflect.Map:
		m := make(map[string]any, r.Len())
		for _, key := range r.MapKeys() {
			m[fmt.Sprint(key.Interface())] = jsonValue(r.MapIndex(key).Interface(), columnType)
		}
		return m
	}
	return v
}
