package app

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/callscope/callscope/internal/dumps"
	"github.com/callscope/callscope/services/gateway/vocabulary"
)

// The files that `callscope score` reads. Whatever they are, they become the messages that a callstats client would have
// sent, so that they go the way of every message.

const (
	formatCapture = "capture"
	maxScoreLine  = 64 << 20
)

// scoredMessage is one client message of a file.
type scoredMessage struct {
	atMs       float64 // when it arrived; the begin is any
	body       []byte
	transport  vocabulary.Transport
	conference string // of a REST message
	conn       int    // of a WebSocket message
}

// readScoreFile reads the messages of a file in the order of their time. It tells the format by the content.
func readScoreFile(name string, stdin io.Reader) (format string, messages []scoredMessage, err error) {
	data, err := readFile(name, stdin)
	if err != nil {
		return "", nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if isCapture(data) {
		format = formatCapture
		messages, err = readCapture(data)
		if err == nil && len(messages) == 0 {
			err = errors.New("it holds no getStats report and no event")
		}
	} else {
		format, messages, err = readDump(data)
	}
	if errors.Is(err, dumps.ErrForeign) {
		err = fmt.Errorf("it is neither a recording of callstats requests (lines with \"kind\"), nor a dump that is known: %w", err)
	}
	if err != nil {
		return format, nil, fmt.Errorf("reading %s: %w", name, err)
	}
	slices.SortStableFunc(messages, func(a, b scoredMessage) int { return cmp.Compare(a.atMs, b.atMs) })
	return format, messages, nil
}

// readFile reads a file, or standard input for "-", unpacked where it is gzip.
func readFile(name string, stdin io.Reader) ([]byte, error) {
	if name == "-" {
		return dumps.Read(stdin)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return dumps.Read(f)
}

// readDump reads a dump. Its user is called local, its one device is the dump, and who it talks to is mostly not known.
func readDump(data []byte) (format string, messages []scoredMessage, err error) {
	d, err := dumps.Parse(data)
	if err != nil {
		return "", nil, err
	}
	for _, m := range d.Messages {
		body, err := m.Body("local", "dump", "", d.ClientVersion())
		if err != nil {
			return d.Format, nil, err
		}
		messages = append(messages, scoredMessage{atMs: m.AtMs, body: body, conference: "dump"})
	}
	return d.Format, messages, nil
}

func isCapture(data []byte) bool {
	first, _, _ := bytes.Cut(bytes.TrimSpace(data), []byte("\n"))
	var line struct{ Kind string }
	return json.Unmarshal(first, &line) == nil && line.Kind != ""
}

// eachLine calls f with each line that is not empty; its error names the line.
func eachLine(data []byte, f func(line []byte) error) error {
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, maxScoreLine)
	for n := 1; lines.Scan(); n++ {
		if line := bytes.TrimSpace(lines.Bytes()); len(line) > 0 {
			if err := f(line); err != nil {
				return fmt.Errorf("line %d: %w", n, err)
			}
		}
	}
	return lines.Err()
}

// readCapture reads a recording of callstats requests, as in test/captures.
func readCapture(data []byte) ([]scoredMessage, error) {
	var messages []scoredMessage
	err := eachLine(data, func(text []byte) error {
		var line struct {
			T                              float64
			Kind, Method, Path, Body, Data string
			Conn                           int
		}
		if err := json.Unmarshal(text, &line); err != nil {
			return err
		}
		switch {
		case line.Kind == "ws-client":
			messages = append(messages, scoredMessage{atMs: line.T, body: []byte(line.Data), transport: vocabulary.WebSocket, conn: line.Conn})
		case line.Kind == "http" && line.Method == "POST" && strings.Contains(line.Path, "/conferences/"):
			_, rest, _ := strings.Cut(line.Path, "/conferences/")
			segment, _, _ := strings.Cut(rest, "/")
			conference, err := url.PathUnescape(segment)
			if err != nil {
				return fmt.Errorf("conference id: %w", err)
			}
			messages = append(messages, scoredMessage{atMs: line.T, body: []byte(line.Body), conference: conference})
		}
		return nil
	})
	return messages, err
}
