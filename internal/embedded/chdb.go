package embedded

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"unsafe"

	"github.com/ebitengine/purego"
)

// chdb is the C interface of the ClickHouse library (chdb.h, version 26.7),
// reduced to what the engine uses. Every function may block for as long as its
// statement runs; a connection takes one statement at a time, connections run
// in parallel. Memory behind a result belongs to the library until the result
// is destroyed.
type chdb struct {
	connect                  func(argc int32, argv **byte) *unsafe.Pointer
	closeConn                func(conn *unsafe.Pointer)
	setSignalHandlersEnabled func(enabled int32)

	queryWithParams func(conn unsafe.Pointer, query *byte, queryLen uintptr, format *byte, formatLen uintptr,
		names **byte, nameLens *uintptr, values **byte, valueLens *uintptr, count uintptr) unsafe.Pointer
	streamQueryWithParams func(conn unsafe.Pointer, query *byte, queryLen uintptr, format *byte, formatLen uintptr,
		names **byte, nameLens *uintptr, values **byte, valueLens *uintptr, count uintptr) unsafe.Pointer
	streamFetch  func(conn, stream unsafe.Pointer) unsafe.Pointer
	streamCancel func(conn, stream unsafe.Pointer)

	streamInsertWithParams func(conn unsafe.Pointer, query *byte, queryLen uintptr, format *byte, formatLen uintptr,
		names **byte, nameLens *uintptr, values **byte, valueLens *uintptr, count uintptr) unsafe.Pointer
	streamAppend       func(insert unsafe.Pointer, data *byte, length uintptr) int32
	streamDone         func(insert unsafe.Pointer) unsafe.Pointer
	streamCancelInsert func(insert unsafe.Pointer)
	streamInsertError  func(insert unsafe.Pointer) string
	destroyInsert      func(insert unsafe.Pointer)

	classifyQuery func(conn unsafe.Pointer, query *byte, queryLen uintptr, database *byte, databaseLen uintptr, analysis *queryAnalysis) int32

	resultBuffer           func(result unsafe.Pointer) unsafe.Pointer
	resultLength           func(result unsafe.Pointer) uintptr
	resultError            func(result unsafe.Pointer) string
	resultRowsRead         func(result unsafe.Pointer) uint64
	resultStorageRowsRead  func(result unsafe.Pointer) uint64
	resultStorageBytesRead func(result unsafe.Pointer) uint64
	resultRowsWritten      func(result unsafe.Pointer) uint64
	resultBytesWritten     func(result unsafe.Pointer) uint64
	destroyResult          func(result unsafe.Pointer)
}

// queryAnalysis is chdb_query_analysis_v1.
type queryAnalysis struct {
	structSize     uint32
	statementCount uint32
	_              uint32 // flags
	class          uint32
}

// classReadOnly is the chdb_query_class of statements that leave no trace.
const classReadOnly = 0

// loadCHDB loads the library and switches its signal handlers off. Loading is
// for the life of the process: the library cannot be unloaded.
func loadCHDB(path string) (*chdb, error) {
	handle, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("loading the ClickHouse library %s: %w", path, err)
	}
	var lib chdb
	for name, fn := range map[string]any{
		"chdb_connect":                     &lib.connect,
		"chdb_close_conn":                  &lib.closeConn,
		"chdb_set_signal_handlers_enabled": &lib.setSignalHandlersEnabled,
		"chdb_query_with_params_n":         &lib.queryWithParams,
		"chdb_stream_query_with_params_n":  &lib.streamQueryWithParams,
		"chdb_stream_fetch_result":         &lib.streamFetch,
		"chdb_stream_cancel_query":         &lib.streamCancel,
		"chdb_stream_insert_with_params_n": &lib.streamInsertWithParams,
		"chdb_stream_append":               &lib.streamAppend,
		"chdb_stream_done":                 &lib.streamDone,
		"chdb_stream_cancel_insert":        &lib.streamCancelInsert,
		"chdb_stream_insert_error":         &lib.streamInsertError,
		"chdb_destroy_insert_stream":       &lib.destroyInsert,
		"chdb_classify_query_n":            &lib.classifyQuery,
		"chdb_result_buffer":               &lib.resultBuffer,
		"chdb_result_length":               &lib.resultLength,
		"chdb_result_error":                &lib.resultError,
		"chdb_result_rows_read":            &lib.resultRowsRead,
		"chdb_result_storage_rows_read":    &lib.resultStorageRowsRead,
		"chdb_result_storage_bytes_read":   &lib.resultStorageBytesRead,
		"chdb_result_rows_written":         &lib.resultRowsWritten,
		"chdb_result_bytes_written":        &lib.resultBytesWritten,
		"chdb_destroy_query_result":        &lib.destroyResult,
	} {
		symbol, err := purego.Dlsym(handle, name)
		if err != nil {
			return nil, fmt.Errorf("the ClickHouse library %s has no function %s; callscope needs version %s: %w", path, name, LibraryVersion, err)
		}
		purego.RegisterFunc(fn, symbol)
	}
	lib.setSignalHandlersEnabled(0)
	return &lib, nil
}

// params holds named parameters in the shape the C functions take.
type params struct {
	names, values         []*byte
	nameLens, valueLens   []uintptr
	pinner                runtime.Pinner
	namesPtr, valuesPtr   **byte
	nameLenPtr, valLenPtr *uintptr
}

// newParams pins the strings of the map; call release after the C call.
func newParams(m map[string]string) *params {
	p := &params{}
	if len(m) == 0 {
		return p
	}
	pin := func(s string) *byte {
		b := append([]byte(s), 0)
		p.pinner.Pin(&b[0])
		return &b[0]
	}
	for name, value := range m {
		p.names = append(p.names, pin(name))
		p.nameLens = append(p.nameLens, uintptr(len(name)))
		p.values = append(p.values, pin(value))
		p.valueLens = append(p.valueLens, uintptr(len(value)))
	}
	p.namesPtr, p.valuesPtr = &p.names[0], &p.values[0]
	p.nameLenPtr, p.valLenPtr = &p.nameLens[0], &p.valueLens[0]
	return p
}

func (p *params) count() uintptr { return uintptr(len(p.names)) }

func (p *params) release() {
	p.pinner.Unpin()
	runtime.KeepAlive(p)
}

// statistics is what the library says about a finished statement.
type statistics struct {
	rowsRead, bytesRead, rowsWritten, bytesWritten, resultRows uint64
}

func (s *statistics) add(lib *chdb, result unsafe.Pointer) {
	s.rowsRead += lib.resultStorageRowsRead(result)
	s.bytesRead += lib.resultStorageBytesRead(result)
	s.rowsWritten += lib.resultRowsWritten(result)
	s.bytesWritten += lib.resultBytesWritten(result)
	s.resultRows += lib.resultRowsRead(result)
}

// session is one connection to the engine. It serves one statement at a time
// and keeps settings, current database and temporary tables until it is
// closed.
type session struct {
	lib  *chdb
	conn *unsafe.Pointer
}

var errConnect = errors.New("the ClickHouse library refused to open the data directory; it prints its reason on standard error")

// open makes a connection. The first one of the process starts the engine with
// args; later ones must name the same --path and cost about 0.3 ms.
func (lib *chdb) open(args []string) (*session, error) {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	argv := make([]*byte, 0, len(args)+2)
	for _, arg := range append([]string{"clickhouse"}, args...) {
		b := append([]byte(arg), 0)
		pinner.Pin(&b[0])
		argv = append(argv, &b[0])
	}
	argc := len(argv)
	conn := lib.connect(int32(argc), &append(argv, nil)[0])
	if conn == nil || *conn == nil {
		return nil, errConnect
	}
	return &session{lib: lib, conn: conn}, nil
}

func (s *session) close() { s.lib.closeConn(s.conn) }

// query runs one statement to its end and hands its whole output to write,
// also when it is empty. The bytes are valid only until write returns.
func (s *session) query(text, format string, parameters map[string]string, write func([]byte, statistics) error) error {
	p := newParams(parameters)
	result := s.lib.queryWithParams(*s.conn, unsafe.StringData(text), uintptr(len(text)), unsafe.StringData(format), uintptr(len(format)),
		p.namesPtr, p.nameLenPtr, p.valuesPtr, p.valLenPtr, p.count())
	p.release()
	if err := s.check(result); err != nil {
		return err
	}
	defer s.lib.destroyResult(result)
	var stats statistics
	stats.add(s.lib, result)
	return write(s.bytes(result), stats)
}

// exec runs a statement whose output does not matter.
func (s *session) exec(text string) error {
	return s.query(text, "Null", nil, func([]byte, statistics) error { return nil })
}

// stream runs one SELECT and hands its output to write block by block; the
// bytes are valid only until write returns. Each block is formatted by itself,
// so the format must be one whose outputs may be strung together. An error of
// write cancels the statement and is returned.
func (s *session) stream(text, format string, parameters map[string]string, write func([]byte) error) (statistics, error) {
	p := newParams(parameters)
	handle := s.lib.streamQueryWithParams(*s.conn, unsafe.StringData(text), uintptr(len(text)), unsafe.StringData(format), uintptr(len(format)),
		p.namesPtr, p.nameLenPtr, p.valuesPtr, p.valLenPtr, p.count())
	p.release()
	var stats statistics
	if err := s.check(handle); err != nil {
		return stats, err
	}
	defer s.lib.destroyResult(handle)
	for {
		more, err := s.fetch(handle, &stats, write)
		if err != nil {
			s.lib.streamCancel(*s.conn, handle)
			return stats, err
		}
		if !more {
			return stats, nil
		}
	}
}

func (s *session) fetch(handle unsafe.Pointer, stats *statistics, write func([]byte) error) (bool, error) {
	result := s.lib.streamFetch(*s.conn, handle)
	if err := s.check(result); err != nil {
		return false, err
	}
	defer s.lib.destroyResult(result)
	stats.add(s.lib, result)
	out := s.bytes(result)
	if len(out) == 0 {
		return false, nil
	}
	return true, write(out)
}

// insert runs an INSERT whose data, in the given format, is read from data.
// When reading fails the statement is cancelled: of what was read, only whole
// blocks of at least min_insert_block_size_rows rows may have been stored.
func (s *session) insert(statement, format string, parameters map[string]string, data io.Reader) (statistics, error) {
	p := newParams(parameters)
	handle := s.lib.streamInsertWithParams(*s.conn, unsafe.StringData(statement), uintptr(len(statement)), unsafe.StringData(format), uintptr(len(format)),
		p.namesPtr, p.nameLenPtr, p.valuesPtr, p.valLenPtr, p.count())
	p.release()
	if handle == nil {
		return statistics{}, errors.New("the ClickHouse library returned no insert")
	}
	defer s.lib.destroyInsert(handle)
	if message := s.lib.streamInsertError(handle); message != "" {
		return statistics{}, parseException(message)
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := data.Read(buf)
		if n > 0 && s.lib.streamAppend(handle, &buf[0], uintptr(n)) != 0 {
			break // the statement has ended; done says how
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			s.lib.streamCancelInsert(handle)
			return statistics{}, &bodyError{err}
		}
	}
	result := s.lib.streamDone(handle)
	if err := s.check(result); err != nil {
		return statistics{}, err
	}
	defer s.lib.destroyResult(result)
	var stats statistics
	stats.add(s.lib, result)
	return stats, nil
}

// bodyError is a failure of reading what the client sends.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return "reading the request body: " + e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }

// classify asks the engine's parser how many statements text holds and what
// they do. Text that does not parse has no statement.
func (s *session) classify(text string) (statements, class uint32) {
	analysis := queryAnalysis{structSize: uint32(unsafe.Sizeof(queryAnalysis{}))}
	if s.lib.classifyQuery(*s.conn, unsafe.StringData(text), uintptr(len(text)), nil, 0, &analysis) != 0 {
		return 0, 0
	}
	return analysis.statementCount, analysis.class
}

// check returns the error of a result and then destroys it.
func (s *session) check(result unsafe.Pointer) error {
	if result == nil {
		return errors.New("the ClickHouse library returned no result")
	}
	if message := s.lib.resultError(result); message != "" {
		s.lib.destroyResult(result)
		return parseException(message)
	}
	return nil
}

func (s *session) bytes(result unsafe.Pointer) []byte {
	n := s.lib.resultLength(result)
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(s.lib.resultBuffer(result)), n)
}
