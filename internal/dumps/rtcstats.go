package dumps

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
)

// readRTCStats reads an rtcstats dump: lines of [method, PeerConnection, value, ..., time]. The time is that of the
// event, or since file format 3 what has passed since the line before. Jitsi's clients put a sequence number behind the
// time. The reports of getStats may hold only what changed since the report before.
func (s *source) readRTCStats(data []byte) error {
	s.format, s.version = RTCStats, "0"
	r := rtcstats{source: s, reports: map[string]map[string]map[string]any{}}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, maxLineBytes)
	for n := 1; lines.Scan(); n++ {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 || bytes.HasPrefix(line, []byte("RTCStatsDump")) {
			continue
		}
		if err := r.line(line); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return fmt.Errorf("a line has more than %d MiB", maxLineBytes>>20)
	}
	return lines.Err()
}

type rtcstats struct {
	*source
	relative bool
	nowMs    float64
	reports  map[string]map[string]map[string]any // the last of each PeerConnection
}

func (r *rtcstats) line(line []byte) error {
	if line[0] == '{' {
		var head struct {
			FileFormat float64
			UserAgent  string
			StartTime  float64
		}
		if err := json.Unmarshal(line, &head); err != nil {
			return jsonError(err)
		}
		if head.FileFormat > 0 && head.FileFormat < 1000 {
			r.version = strconv.Itoa(int(head.FileFormat))
		}
		r.relative = head.FileFormat >= 3
		if head.UserAgent != "" {
			r.userAgent = head.UserAgent
		}
		if r.relative && plausible(head.StartTime) {
			r.nowMs = head.StartTime
		}
		return nil
	}
	var event []json.RawMessage
	if err := json.Unmarshal(line, &event); err != nil {
		return jsonError(err)
	}
	if len(event) < 3 {
		r.unused++ // a comment of the recorder
		return nil
	}
	name := methodName(event[0])
	if name == "" {
		return errors.New("its first value is no method's name or known number")
	}
	atMs, ok := r.time(event)
	if !ok {
		atMs = 0 // counted where it is used
	}
	var pc string
	if json.Unmarshal(event[1], &pc) != nil {
		var number float64
		if json.Unmarshal(event[1], &number) == nil && string(event[1]) != "null" {
			pc = string(event[1])
		}
	}
	return r.event(name, pc, event[2], atMs)
}

// time takes a line's time.
func (r *rtcstats) time(event []json.RawMessage) (float64, bool) {
	var last float64
	known := json.Unmarshal(event[len(event)-1], &last) == nil && string(event[len(event)-1]) != "null"
	if r.relative {
		switch {
		case known && plausible(last): // the first line has the time itself
			r.nowMs = last
		case known:
			r.nowMs += last
		}
		return r.nowMs, known
	}
	for at := len(event) - 1; at >= 2 && at >= len(event)-2; at-- {
		var ms float64
		if json.Unmarshal(event[at], &ms) == nil && plausible(ms) {
			return ms, true
		}
	}
	return 0, false
}

func (r *rtcstats) event(name, pc string, value json.RawMessage, atMs float64) error {
	lower := strings.ToLower(name)
	switch lower {
	case reportEntry:
		if pc == "" {
			r.unused++
			return nil
		}
		report, err := r.complete(pc, value)
		if err != nil {
			return fmt.Errorf("a getStats report: %w", err)
		}
		return r.report(pc, atMs, report)
	case "identity", "connectioninfo":
		r.format = RTCStatsJitsi
		r.identity(value)
		return nil
	case "constraints":
		r.constraints(pc, value)
		return nil
	}
	e := entryOf(name, atMs, value)
	if _, failed := failures[e.name]; failed && strings.Contains(e.name, "getusermedia") {
		if !plausible(atMs) {
			r.unused++
			return nil
		}
		r.media = append(r.media, e)
		return nil
	}
	if pc != "" {
		r.add(pc, e)
	}
	return nil
}

// identity reads who a dump is of. Jitsi writes an object, or one as text.
func (r *rtcstats) identity(value json.RawMessage) {
	var text string
	if json.Unmarshal(value, &text) == nil {
		value = json.RawMessage(text)
	}
	var who struct {
		UserID, EndpointID, ClientID, DisplayName, UserAgent any
	}
	if json.Unmarshal(value, &who) != nil {
		r.unused++
		return
	}
	for _, id := range []any{who.UserID, who.EndpointID, who.ClientID} {
		if id, ok := id.(string); ok && id != "" && r.userID == "" {
			r.userID = id
		}
	}
	if name, ok := who.DisplayName.(string); ok && name != "" {
		r.userName = name
	}
	if agent, ok := who.UserAgent.(string); ok && agent != "" && r.userAgent == "" {
		r.userAgent = agent
	}
}

// constraints reads the ids that applications give to the recorder as constraints of a PeerConnection.
func (r *rtcstats) constraints(pc string, value json.RawMessage) {
	var given struct {
		Optional []struct{ RtcStatsClientID, RtcStatsPeerID string }
	}
	if pc == "" || json.Unmarshal(value, &given) != nil {
		return
	}
	for _, one := range given.Optional {
		if one.RtcStatsClientID != "" {
			r.userID = one.RtcStatsClientID
		}
		if one.RtcStatsPeerID != "" {
			r.connection(pc).remoteID = one.RtcStatsPeerID
		}
	}
}

// complete completes a report by the one before it. An entry's time of 0, or none, is the report's own; null says that
// the entry is gone. File format 3 writes many names as numbers.
func (r *rtcstats) complete(pc string, value json.RawMessage) (map[string]map[string]any, error) {
	var changes map[string]json.RawMessage
	if err := json.Unmarshal(value, &changes); err != nil {
		return nil, jsonError(err)
	}
	whole := r.reports[pc]
	if whole == nil {
		whole = map[string]map[string]any{}
		r.reports[pc] = whole
	}
	var reportTime any
	for _, name := range []string{"timestamp", "t"} {
		var ms float64
		if text, ok := changes[name]; ok && json.Unmarshal(text, &ms) == nil {
			reportTime = ms
			delete(changes, name)
		}
	}
	for id, text := range changes {
		if string(text) == "null" {
			delete(whole, id)
			continue
		}
		var changed map[string]any
		if json.Unmarshal(text, &changed) != nil {
			r.unused++
			continue
		}
		entry := maps.Clone(whole[id])
		if entry == nil {
			entry = map[string]any{}
		}
		delete(entry, "timestamp")
		for name, v := range changed {
			name = propertyName(name)
			switch v := v.(type) {
			case float64:
				if name == "type" {
					entry[name] = typeName(v)
					continue
				}
			case map[string]any: // of these too only what changed
				before, ok := entry[name].(map[string]any)
				if ok {
					merged := maps.Clone(before)
					maps.Copy(merged, v)
					entry[name] = merged
					continue
				}
			}
			entry[name] = v
		}
		whole[id] = entry
	}
	complete := make(map[string]map[string]any, len(whole))
	for id, entry := range whole {
		if reportTime != nil && (entry["timestamp"] == nil || entry["timestamp"] == 0.0 || changes[id] == nil) {
			entry = maps.Clone(entry)
			entry["timestamp"] = reportTime
		}
		complete[id] = entry
	}
	return complete, nil
}
