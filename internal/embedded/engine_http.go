package embedded

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	chproto "github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/ClickHouse/clickhouse-go/v2/lib/proto"
)

const (
	maxStatementBytes = 64 << 20  // of a statement without streamed data
	insertHeadBytes   = 256 << 10 // an INSERT in the body must name its format within these
	insertBufferBytes = 256 << 10
	helloStatement    = "SELECT displayName(), version(), revision(), timezone()"
)

// handler is the HTTP interface. Browsers are kept out: a page on another site
// must not reach a database without users by posting to loopback or by a DNS
// name that resolves to it.
func (e *Engine) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/ping", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(headerPID, processID)
		io.WriteString(w, "Ok.\n")
	})
	mux.HandleFunc("/{$}", e.serve)
	sameOrigin := http.NewCrossOriginProtection().Handler(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if !isLoopback(host) {
			http.Error(w, "the embedded engine answers only requests to a loopback address", http.StatusMisdirectedRequest)
			return
		}
		sameOrigin.ServeHTTP(w, r)
	})
}

func (e *Engine) serve(w http.ResponseWriter, r *http.Request) {
	e.busy.Add(1)
	defer e.busy.Done()
	a := &answer{w: w}
	if err := e.run(a, r); err != nil {
		if r.Context().Err() == nil {
			e.log.Debug("statement failed", "error", err)
		}
		a.fail(asException(err))
	}
}

func (e *Engine) run(a *answer, r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		return newException(http.StatusMethodNotAllowed, 48, "NOT_IMPLEMENTED", "method %s is not supported", r.Method)
	}
	q, err := parseRequest(r.URL.Query())
	if err != nil {
		return err
	}
	a.compressed, a.format = q.compress, q.defaultFormat
	if strings.TrimSpace(q.text) == "" && r.Method == http.MethodGet {
		return a.whole([]byte("Ok.\n"), statistics{})
	}
	body, err := requestBody(r, q.decompress)
	if err != nil {
		return err
	}

	select {
	case e.slots <- struct{}{}:
		defer func() { <-e.slots }()
	case <-r.Context().Done():
		return r.Context().Err()
	}

	insert, data, err := q.takeInsert(body)
	if err != nil {
		return err
	}
	if data == nil {
		if q.text, err = readStatement(q.text, body); err != nil {
			return err
		}
		if strings.TrimSpace(q.text) == helloStatement {
			return a.whole(e.hello.block(q.protocolVersion), statistics{})
		}
	}
	s, err := e.lib.open(e.args)
	if err != nil {
		return err
	}
	defer s.close()
	if data == nil {
		mark := "request " + strconv.FormatUint(e.requests.Add(1), 10)
		if comment := q.settings["log_comment"]; comment != "" {
			mark = comment + ", " + mark
		}
		q.settings["log_comment"] = mark
		defer e.killWhenDone(r.Context(), mark)()
	}
	if err := q.apply(s); err != nil {
		return err
	}
	if data != nil {
		if r.Method == http.MethodGet {
			return errReadOnly
		}
		// Values that fit the buffer can be looked at before they are run. Other
		// data is not waited for: the engine can begin while it comes.
		looked := 1
		if insert.format == "Values" {
			looked = insertHeadBytes
		}
		head, err := data.Peek(looked)
		if err != nil && !errors.Is(err, io.EOF) {
			return &bodyError{err}
		}
		if len(head) == 0 {
			// clickhouse-go sends an empty body when it fails to encode a batch.
			return newException(http.StatusBadRequest, 108, "NO_DATA_TO_INSERT", "No data to insert")
		}
		if errors.Is(err, io.EOF) && insert.format == "Values" {
			// The engine would pass over what follows the values.
			if n, _ := s.classify(insert.statement + "VALUES" + string(head)); n > 1 {
				return errMultiStatements
			}
		}
		stats, err := s.insert(insert.statement, insert.format, q.parameters, data)
		if err != nil {
			return err
		}
		return a.whole(nil, stats)
	}
	statements, class := s.classify(q.text)
	if statements > 1 {
		return errMultiStatements
	}
	if r.Method == http.MethodGet && class != classReadOnly {
		return errReadOnly
	}
	formats := namedFormats(q.text)
	if len(formats) > 0 {
		a.format = formats[len(formats)-1]
	}
	if class == classReadOnly && q.streamable(formats) {
		stats, err := s.stream(q.text, q.defaultFormat, q.parameters, func(block []byte) error {
			return a.block(r.Context(), block)
		})
		if err != nil {
			return err
		}
		return a.end(stats)
	}
	return s.query(q.text, q.defaultFormat, q.parameters, a.whole)
}

// killWhenDone ends the statement with this log_comment when ctx is done: its client has gone, and the library itself
// would run it to its end. Call stop when the statement has returned. An INSERT with data needs no mark: it ends with
// its data.
func (e *Engine) killWhenDone(ctx context.Context, mark string) (stop func()) {
	returned, killed := make(chan struct{}), make(chan struct{})
	forget := context.AfterFunc(ctx, func() {
		defer close(killed)
		statement := "KILL QUERY WHERE Settings['log_comment'] = '" + settingText.Replace(mark) + "' ASYNC"
		again := time.NewTicker(100 * time.Millisecond)
		defer again.Stop()
		for {
			// Before the statement is on the server's list there is nothing to kill.
			if err := e.exec(statement); err != nil {
				e.log.Warn("a statement whose client has gone was not killed", "error", err)
			}
			select {
			case <-returned:
				return
			case <-again.C:
			}
		}
	})
	return func() {
		close(returned)
		if !forget() {
			<-killed
		}
	}
}

// exec runs one statement in a session of its own.
func (e *Engine) exec(statement string) error {
	s, err := e.lib.open(e.args)
	if err != nil {
		return err
	}
	defer s.close()
	return s.exec(statement)
}

var (
	errMultiStatements = newException(http.StatusBadRequest, 62, "SYNTAX_ERROR", "Syntax error (Multi-statements are not allowed)")
	errReadOnly        = newException(http.StatusInternalServerError, 164, "READONLY", "Cannot execute a statement that changes something over GET: use POST")
)

// request is a statement with what comes with it in the URL.
type request struct {
	text            string
	database        string
	defaultFormat   string
	protocolVersion uint64
	compress        bool
	decompress      bool
	wait            bool // wait_end_of_query
	settings        map[string]string
	parameters      map[string]string
}

// ignoredParameters have no meaning here: there are no users and queries are
// not named; the rest tunes the HTTP layer of a ClickHouse server.
var ignoredParameters = []string{
	"query_id", "user", "password", "quota_key", "role", "stacktrace", "buffer_size", "add_http_cors_header",
	"enable_http_compression", "http_zlib_compression_level", "network_compression_method", "network_zstd_compression_level",
	"send_progress_in_http_headers", "http_headers_progress_interval_ms", "cancel_http_readonly_queries_on_client_close",
	"http_write_exception_in_output_format",
}

var identifierRe = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// parseRequest reads the URL's parameters. Every one without a meaning of its
// own is a setting; the engine refuses those it does not know.
func parseRequest(values url.Values) (*request, error) {
	q := &request{defaultFormat: "TabSeparated", settings: map[string]string{}, parameters: map[string]string{}}
	for name, all := range values {
		value := all[len(all)-1]
		switch {
		case name == "query":
			q.text = value
		case name == "database":
			q.database = value
		case name == "default_format":
			if !identifierRe.MatchString(value) {
				return nil, newException(http.StatusBadRequest, 73, "UNKNOWN_FORMAT", "Unknown format %q", value)
			}
			q.defaultFormat = value
		case name == "client_protocol_version":
			version, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return nil, newException(http.StatusBadRequest, 36, "BAD_ARGUMENTS", "client_protocol_version must be a number, not %q", value)
			}
			q.protocolVersion = version
		case name == "compress":
			q.compress = value == "1"
		case name == "decompress":
			q.decompress = value == "1"
		case name == "wait_end_of_query":
			q.wait = value == "1"
		case name == "session_id" || name == "session_timeout" || name == "session_check":
			return nil, newException(http.StatusBadRequest, 344, "SUPPORT_IS_DISABLED", "The embedded engine has no HTTP sessions: %s is not supported", name)
		case strings.HasPrefix(name, "param_"):
			// The value comes escaped as in a TabSeparated file, and that is
			// what the library takes too.
			q.parameters[strings.TrimPrefix(name, "param_")] = value
		case slices.Contains(ignoredParameters, name):
		case !identifierRe.MatchString(name):
			return nil, newException(http.StatusBadRequest, 115, "UNKNOWN_SETTING", "Unknown setting %q", name)
		default:
			q.settings[name] = value
		}
	}
	return q, nil
}

// settingText escapes text between quotes.
var settingText = strings.NewReplacer(`\`, `\\`, `'`, `\'`)

// apply puts database and settings into force on a session.
func (q *request) apply(s *session) error {
	if q.database != "" && q.database != "default" {
		if err := s.exec("USE `" + strings.NewReplacer("\\", "\\\\", "`", "\\`").Replace(q.database) + "`"); err != nil {
			return err
		}
	}
	if len(q.settings) == 0 {
		return nil
	}
	assignments := make([]string, 0, len(q.settings))
	for name, value := range q.settings {
		assignments = append(assignments, name+" = '"+settingText.Replace(value)+"'")
	}
	slices.Sort(assignments)
	return s.exec("SET " + strings.Join(assignments, ", "))
}

// takeInsert returns the INSERT of the request and a reader of its data, or no
// reader when the request is no INSERT with data after its text.
func (q *request) takeInsert(body *bufio.Reader) (insertText, *bufio.Reader, error) {
	if strings.TrimSpace(q.text) != "" {
		insert, ok := splitInsert(q.text)
		if !ok {
			return insert, nil, nil
		}
		inline := q.text[insert.data:]
		if trimmed := strings.TrimSpace(inline); trimmed == "" || trimmed == ";" {
			return insert, body, nil
		}
		return insert, bufio.NewReaderSize(io.MultiReader(strings.NewReader(inline), body), insertHeadBytes), nil
	}
	head, err := body.Peek(insertHeadBytes)
	if err != nil && err != io.EOF {
		return insertText{}, nil, &bodyError{err}
	}
	if !isInsert(string(head)) {
		return insertText{}, nil, nil
	}
	insert, ok := splitInsert(string(head))
	if !ok {
		return insert, nil, nil
	}
	if _, err := body.Discard(insert.data); err != nil {
		return insert, nil, &bodyError{err}
	}
	return insert, body, nil
}

// readStatement joins the text in the URL and the text in the body.
func readStatement(text string, body io.Reader) (string, error) {
	rest, err := io.ReadAll(io.LimitReader(body, maxStatementBytes+1))
	if err != nil {
		return "", &bodyError{err}
	}
	if len(rest) > maxStatementBytes {
		return "", newException(http.StatusRequestEntityTooLarge, 62, "SYNTAX_ERROR", "The statement is longer than %d bytes", maxStatementBytes)
	}
	switch {
	case strings.TrimSpace(text) == "":
		text = string(rest)
	case len(rest) > 0:
		text += "\n" + string(rest)
	}
	if strings.TrimSpace(text) == "" {
		return "", newException(http.StatusBadRequest, 62, "SYNTAX_ERROR", "Empty query")
	}
	return text, nil
}

// requestBody undoes the encodings of the body.
func requestBody(r *http.Request, blocks bool) (*bufio.Reader, error) {
	if media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); media == "multipart/form-data" {
		return nil, newException(http.StatusNotImplemented, 48, "NOT_IMPLEMENTED", "The embedded engine takes no external tables")
	}
	var body io.Reader = r.Body
	switch encoding := r.Header.Get("Content-Encoding"); encoding {
	case "", "identity":
	case "gzip":
		unzip, err := gzip.NewReader(body)
		if err != nil {
			return nil, &bodyError{err}
		}
		body = unzip
	default:
		return nil, newException(http.StatusUnsupportedMediaType, 89, "UNKNOWN_COMPRESSION_METHOD", "Unknown Content-Encoding %q: the embedded engine takes gzip", encoding)
	}
	if blocks {
		body = newBlockReader(body)
	}
	return bufio.NewReaderSize(body, insertHeadBytes), nil
}

// blockReader reads compressed blocks. It tells the end between two blocks
// from one inside a block, which must not pass for the end of the data, and
// stays at an error: compress.Reader would give its last block once more.
type blockReader struct {
	blocks *compress.Reader
	in     *countingReader
	err    error
}

func newBlockReader(r io.Reader) *blockReader {
	in := &countingReader{r: r}
	return &blockReader{blocks: compress.NewReader(in), in: in}
}

func (b *blockReader) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	before := b.in.n
	n, err := b.blocks.Read(p)
	if errors.Is(err, io.EOF) {
		err = io.EOF
		if b.in.n != before {
			err = io.ErrUnexpectedEOF
		}
	}
	b.err = err
	return n, err
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

var formatRe = regexp.MustCompile(`(?i)\bFORMAT\s+([A-Za-z][A-Za-z0-9]*)`)

// namedFormats returns what looks like FORMAT clauses in text, which may
// include words in a string.
func namedFormats(text string) []string {
	var formats []string
	for _, m := range formatRe.FindAllStringSubmatch(text, -1) {
		formats = append(formats, m[1])
	}
	return formats
}

// streamableFormats can be strung together from the outputs of single blocks.
var streamableFormats = []string{
	"native", "tabseparated", "tsv", "tabseparatedraw", "tsvraw", "csv", "jsoneachrow", "jsonlines", "ndjson", "jsoncompacteachrow", "rowbinary",
}

// streamable reports whether the statement, known to be read-only, may be
// answered block by block. It errs to the safe side: a big answer then waits
// in the engine's memory.
func (q *request) streamable(formats []string) bool {
	switch strings.ToUpper(firstWord(q.text)) {
	case "SELECT", "WITH":
	default:
		return false
	}
	if q.wait || q.settings["output_format_json_array_of_rows"] != "" || strings.Contains(q.text, "output_format_json_array_of_rows") {
		return false
	}
	if len(formats) == 0 {
		formats = []string{q.defaultFormat}
	}
	for _, format := range formats {
		if !slices.Contains(streamableFormats, strings.ToLower(format)) {
			return false
		}
	}
	return true
}

// serverHello answers the question that clickhouse-go asks on connecting.
type serverHello struct{ version, timezone string }

// block is that answer in the Native revision that the driver asked for. It
// names revision 0, so that the driver reads all further blocks as revision 0,
// the one that the library writes.
func (h serverHello) block(revision uint64) []byte {
	block := proto.NewBlock()
	for _, c := range [][2]string{{"displayName()", "String"}, {"version()", "String"}, {"revision()", "UInt32"}, {"timezone()", "String"}} {
		if err := block.AddColumn(c[0], column.Type(c[1])); err != nil {
			panic(err)
		}
	}
	if err := block.Append("callscope engine", h.version, uint32(0), h.timezone); err != nil {
		panic(err)
	}
	var out chproto.Buffer
	if err := block.Encode(&out, revision); err != nil {
		panic(err)
	}
	return out.Buf
}
