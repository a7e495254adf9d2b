package embedded

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go/compress"
)

const (
	headerCode         = "X-ClickHouse-Exception-Code"
	headerSummary      = "X-ClickHouse-Summary"
	headerExceptionTag = "X-ClickHouse-Exception-Tag"
	headerFormat       = "X-ClickHouse-Format"
	headerPID          = "X-Callscope-Engine-Pid"

	exceptionMarker = "__exception__"
	compressBytes   = 1 << 20 // per compressed block
)

var processID = strconv.Itoa(os.Getpid())

// answer writes the result of one statement. The first block of a streamed
// result waits until there is a second one or the end, so that a result of one
// block, and an error before the second, are whole answers with a status.
type answer struct {
	w          http.ResponseWriter
	format     string
	compressed bool

	compressor *compress.Writer
	pending    []byte
	sent       bool   // the status is sent
	tag        string // of the exception that may follow blocks
}

// whole answers with a complete result.
func (a *answer) whole(out []byte, stats statistics) error {
	summary, err := json.Marshal(map[string]string{
		"read_rows":     strconv.FormatUint(stats.rowsRead, 10),
		"read_bytes":    strconv.FormatUint(stats.bytesRead, 10),
		"written_rows":  strconv.FormatUint(stats.rowsWritten, 10),
		"written_bytes": strconv.FormatUint(stats.bytesWritten, 10),
		"result_rows":   strconv.FormatUint(stats.resultRows, 10),
	})
	if err != nil {
		return fmt.Errorf("encoding the summary: %w", err)
	}
	a.w.Header().Set(headerSummary, string(summary))
	return a.start(out)
}

// block answers with one block of a streamed result.
func (a *answer) block(ctx context.Context, block []byte) error {
	if err := ctx.Err(); err != nil {
		return err // the client has gone
	}
	if !a.sent && a.pending == nil {
		a.pending = append([]byte{}, block...)
		return nil
	}
	if !a.sent {
		a.tag = strings.ToLower(rand.Text()[:16])
		a.w.Header().Set(headerExceptionTag, a.tag)
		if err := a.start(a.pending); err != nil {
			return err
		}
		a.pending = nil
	}
	return a.write(block)
}

// end ends a streamed result.
func (a *answer) end(stats statistics) error {
	if a.sent {
		return nil
	}
	return a.whole(a.pending, stats)
}

// fail answers with an exception. When part of the result is on its way, the
// exception follows it in ClickHouse's framing and the connection is broken
// off, so that no client can take the part for the whole.
func (a *answer) fail(e *exception) {
	message := strings.ToValidUTF8(e.message, "?") + "\n"
	if !a.sent {
		a.w.Header().Set(headerCode, strconv.Itoa(e.code))
		a.w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
		a.w.WriteHeader(e.status)
		_ = a.write([]byte(message)) // the client has gone
		return
	}
	if len(message) > 15<<10 { // clients read an exception block up to 16 KiB
		message = message[:15<<10] + "\n"
	}
	if a.tag != "" {
		_ = a.write(fmt.Appendf(nil, "\r\n%s\r\n%s\r\n%s%d %s\r\n%s\r\n", exceptionMarker, a.tag, message, len(message), a.tag, exceptionMarker))
		_ = http.NewResponseController(a.w).Flush()
	}
	panic(http.ErrAbortHandler)
}

// start sends the status and the first bytes of the result.
func (a *answer) start(out []byte) error {
	if a.format != "" {
		a.w.Header().Set(headerFormat, a.format)
	}
	contentType := "text/plain; charset=UTF-8"
	switch format := strings.ToLower(a.format); {
	case strings.HasPrefix(format, "json"):
		contentType = "application/json; charset=UTF-8"
	case format == "native" || strings.HasPrefix(format, "rowbinary"):
		contentType = "application/octet-stream"
	case strings.HasPrefix(format, "csv"):
		contentType = "text/csv; charset=UTF-8"
	}
	a.w.Header().Set("Content-Type", contentType)
	a.w.WriteHeader(http.StatusOK)
	a.sent = true
	return a.write(out)
}

func (a *answer) write(out []byte) error {
	if !a.compressed {
		_, err := a.w.Write(out)
		return err
	}
	if a.compressor == nil {
		a.compressor = compress.NewWriter(compress.LevelZero, compress.LZ4)
	}
	for len(out) > 0 {
		n := min(len(out), compressBytes)
		if err := a.compressor.Compress(out[:n]); err != nil {
			return fmt.Errorf("compressing the answer: %w", err)
		}
		if _, err := a.w.Write(a.compressor.Data); err != nil {
			return err
		}
		out = out[n:]
	}
	return nil
}
