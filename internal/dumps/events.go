package dumps

import (
	"encoding/json"
	"strings"
)

// failures says by which function of the API, and for which reason, a call that failed is a fabricSetupFailed: the
// names that callstats clients give their wrtcFuncNames.
var failures = map[string]struct{ function, reason string }{
	"createofferonfailure":                         {"createOffer", "NegotiationFailure"},
	"createansweronfailure":                        {"createAnswer", "NegotiationFailure"},
	"setremotedescriptiononfailure":                {"setRemoteDescription", "NegotiationFailure"},
	"setlocaldescriptiononfailure":                 {"setLocalDescription", "SDPGenerationError"},
	"addicecandidateonfailure":                     {"addIceCandidate", "SDPGenerationError"},
	"addicecandidatefailed":                        {"addIceCandidate", "SDPGenerationError"},
	"getusermediaonfailure":                        {"getUserMedia", "MediaConfigError"},
	"navigator.mediadevices.getusermediaonfailure": {"getUserMedia", "MediaConfigError"},
}

// failure is the message of a call that failed. An error's text begins with its name, as in "NotAllowedError: denied".
func failure(e entry, connectionID string, delayMs *float64) Message {
	known := failures[e.name]
	fields := map[string]any{"function": known.function, "reason": known.reason, "message": e.value, "messageType": "text"}
	if name, _, found := strings.Cut(e.value, ":"); found && strings.HasSuffix(name, "Error") && !strings.ContainsAny(name, " \n") {
		fields["name"], fields["messageType"] = name, "domError"
	}
	if delayMs != nil {
		fields["delay"] = *delayMs
	}
	return message(e.atMs, "fabricSetupFailed", connectionID, fields)
}

// eventName brings the names that the formats give an event to one form.
func eventName(name string) string {
	name = strings.ToLower(name)
	name = strings.TrimSuffix(name, " (legacy)")
	if rest, found := strings.CutPrefix(name, "on"); found {
		name = rest
	}
	return name
}

// state brings the spellings of a state to the one of the standard: connected, have-local-offer. Old browsers wrote
// ICEConnectionStateConnected, and some logs "checking => connected".
func state(text string) string {
	text = strings.Trim(strings.TrimSpace(text), `"`)
	if at := strings.LastIndex(text, "=>"); at >= 0 {
		text = strings.TrimSpace(text[at+2:])
	}
	text = strings.TrimPrefix(text, "k")
	for _, prefix := range []string{"ICEConnectionState", "IceConnectionState", "ICEGatheringState", "IceGatheringState", "SignalingState"} {
		if rest, found := strings.CutPrefix(text, prefix); found {
			text = rest
			break
		}
	}
	var out strings.Builder
	for i, r := range text {
		if r >= 'A' && r <= 'Z' {
			if i > 0 {
				out.WriteByte('-')
			}
			r += 'a' - 'A'
		}
		out.WriteRune(r)
	}
	return out.String()
}

func connected(state string) bool { return state == "connected" || state == "completed" }

// messages are those of the connection, whose entries are in order. They are what a client makes of the same states:
// see services/gateway/vocabulary for the names.
func (c *connection) messages() []Message {
	p := progress{c: c, createdMs: c.entries[0].atMs, ice: "new", gathering: "new", signaling: "stable"}
	for _, e := range c.entries {
		switch e.name {
		case "iceconnectionstatechange":
			p.hasICE = true
		case "connectionstatechange":
			p.hasStates = true
		}
	}
	p.add(p.createdMs, "addNewFabric", nil)
	for _, e := range c.entries {
		p.take(e)
	}
	return p.out
}

// progress is the state of a connection while its entries are read.
type progress struct {
	c         *connection
	out       []Message
	createdMs float64

	hasICE, hasStates         bool // whether the dump has such changes at all
	ice, gathering, signaling string
	iceSinceMs                float64
	checkingMs, gatheringMs   float64 // when it began, 0 for not yet
	gatheredMs                float64
	setUp, disrupted, closed  bool
	checkingDisrupted         bool
	disruptedMs               float64
	localSDP, remoteSDP       string
}

func (p *progress) add(atMs float64, eventType string, fields map[string]any) {
	p.out = append(p.out, message(atMs, eventType, p.c.id, fields))
}

func (p *progress) take(e entry) {
	if p.closed && e.name != reportEntry {
		return // what still arrives of a closed connection tells nothing of it
	}
	switch e.name {
	case reportEntry:
		if !p.closed && !p.setUp && !p.hasICE && !p.hasStates {
			p.connect(e.atMs, false) // it was connected before the dump begins, or its events are missing
		}
		p.out = append(p.out, Message{AtMs: e.atMs, EventType: "stats", ConnectionID: p.c.id, Fields: append(append([]byte(`{"stats":`), e.stats...), '}')})
	case "iceconnectionstatechange":
		p.iceState(e.atMs, state(e.value))
	case "connectionstatechange":
		if current := state(e.value); !p.hasICE {
			if current == "connecting" {
				current = "checking"
			}
			p.iceState(e.atMs, current)
		}
	case "icegatheringstatechange":
		current := state(e.value)
		p.change(e.atMs, "iceGatheringState", &p.gathering, current)
		switch {
		case current == "gathering" && p.gatheringMs == 0:
			p.gatheringMs = e.atMs
		case current == "complete" && p.gatheredMs == 0:
			p.gatheredMs = e.atMs
		}
	case "signalingstatechange":
		current := state(e.value)
		p.change(e.atMs, "signalingState", &p.signaling, current)
		if current == "closed" {
			p.close(e.atMs)
		}
	case "close", "stop":
		p.close(e.atMs)
	case "setlocaldescription", "setlocaldescriptiononsuccess":
		p.description(e, &p.localSDP, "localSDP", false)
	case "setremotedescription", "setremotedescriptiononsuccess":
		p.description(e, &p.remoteSDP, "remoteSDP", true)
	default:
		if _, failed := failures[e.name]; failed {
			delay := e.atMs - p.createdMs
			p.out = append(p.out, failure(e, p.c.id, &delay))
		}
	}
}

func (p *progress) close(atMs float64) {
	p.closed = true
	p.add(atMs, "fabricTerminated", nil)
}

// change tells of a state's change, and returns what it was.
func (p *progress) change(atMs float64, what string, now *string, next string) (before string) {
	before = *now
	if next == "" || next == before {
		return before
	}
	*now = next
	p.add(atMs, "fabricStateChange", map[string]any{"changedState": what, "prevState": before, "newState": next})
	return before
}

func (p *progress) iceState(atMs float64, current string) {
	before := p.change(atMs, "iceConnectionState", &p.ice, current)
	if current == "" || current == before {
		return
	}
	sinceMs := p.iceSinceMs
	p.iceSinceMs = atMs
	states := map[string]any{"prevIceConnectionState": before, "currIceConnectionState": current}
	with := func(name string, value float64) map[string]any {
		states[name] = value
		return states
	}
	if p.disrupted && current != "failed" && current != "closed" {
		p.disrupted = false
		p.add(atMs, "iceDisruptionEnd", with("delay", atMs-p.disruptedMs))
	}
	if p.checkingDisrupted && current != "failed" && current != "closed" {
		p.checkingDisrupted = false
		p.add(atMs, "iceConnectionDisruptionEnd", with("delay", atMs-p.disruptedMs))
	}
	delete(states, "delay")
	switch {
	case current == "checking" && p.checkingMs == 0:
		p.checkingMs = atMs
	case connected(current):
		if !p.setUp {
			p.connect(atMs, true)
		}
	case current == "disconnected" && p.setUp:
		p.disrupted, p.disruptedMs = true, atMs
		p.add(atMs, "iceDisruptionStart", with("prevIceConnectionStateTs", sinceMs))
	case current == "disconnected":
		p.checkingDisrupted, p.disruptedMs = true, atMs
		p.add(atMs, "iceConnectionDisruptionStart", with("prevIceConnectionStateTs", sinceMs))
	case current == "failed" && p.setUp:
		p.add(atMs, "fabricDropped", with("delay", atMs-p.createdMs))
	case current == "failed":
		p.add(atMs, "iceFailed", with("delay", atMs-p.createdMs))
	case current == "new":
		p.add(atMs, "iceRestarted", states)
	case current == "closed":
		p.closed = true // the change of state has ended the fabric
	}
}

// connect tells that the connection is set up, with the delays that the dump's own events give.
func (p *progress) connect(atMs float64, timed bool) {
	p.setUp = true
	fields := map[string]any{}
	if timed {
		fields["delay"] = atMs - p.createdMs
		if p.checkingMs != 0 {
			fields["iceConnectivityDelay"] = atMs - p.checkingMs
		}
		if p.gatheringMs != 0 && p.gatheredMs != 0 {
			fields["iceGatheringDelay"] = p.gatheredMs - p.gatheringMs
		}
	}
	p.add(atMs, "fabricSetup", fields)
}

// description submits an SDP that changed, and the SSRCs it announces.
func (p *progress) description(e entry, before *string, name string, remote bool) {
	sdp := e.value
	if sdp == "" || sdp == *before {
		return
	}
	*before = sdp
	p.add(e.atMs, "sdpSubmissionEvent", map[string]any{name: sdp})
	if entries := p.c.describe(sdp, remote); len(entries) > 0 {
		p.add(e.atMs, "ssrcMap", map[string]any{"ssrcData": entries})
	}
}

// describe takes SSRCs and ICE names out of an SDP.
func (c *connection) describe(sdp string, remote bool) []map[string]any {
	direction := "outbound"
	if remote {
		direction = "inbound"
	}
	var list []map[string]any
	index := map[string]map[string]any{}
	kind := ""
	for line := range strings.Lines(sdp) {
		line = strings.TrimRight(line, "\r\n")
		if media, found := strings.CutPrefix(line, "m="); found {
			kind, _, _ = strings.Cut(media, " ")
			clear(index)
		}
		if text, found := strings.CutPrefix(line, "a=ice-ufrag:"); found && text != "" {
			c.ufrags[ufrag{text, remote}] = true
		}
		rest, found := strings.CutPrefix(line, "a=ssrc:")
		if !found {
			continue
		}
		ssrc, attribute, _ := strings.Cut(rest, " ")
		if !decimal(ssrc) {
			continue
		}
		entry := index[ssrc]
		if entry == nil {
			entry = map[string]any{"ssrc": ssrc, "streamType": direction, "reportType": "local", "mediaType": kind}
			index[ssrc] = entry
			list = append(list, entry)
			c.streams[stream{ssrc, remote}] = true
		}
		if key, value, ok := strings.Cut(attribute, ":"); ok {
			switch key {
			case "cname", "msid", "mslabel", "label":
				entry[key] = value
			}
		}
	}
	return list
}

func decimal(s string) bool {
	if s == "" || len(s) > 10 {
		return false
	}
	for _, r := range s {
		if r < '0' || r > '9' {
			return false
		}
	}
	return true
}

// sdpOf finds the SDP in the value of an event: an object, an array of arguments, "type: offer, sdp: v=0...", or JSON
// as text. File format 3 of rtcstats writes sections that did not change as a bare "m=": of those there is none.
func sdpOf(value json.RawMessage) string {
	sdp := wholeSDP(value)
	for line := range strings.Lines(sdp) {
		if line = strings.TrimRight(line, "\r\n"); line == "m=" || line == "v=" {
			return ""
		}
	}
	return sdp
}

func wholeSDP(value json.RawMessage) string {
	var object struct{ SDP string }
	if json.Unmarshal(value, &object) == nil {
		return object.SDP
	}
	var list []json.RawMessage
	if json.Unmarshal(value, &list) == nil {
		if len(list) == 0 {
			return ""
		}
		if json.Unmarshal(list[0], &object) == nil {
			return object.SDP
		}
		return ""
	}
	var text string
	if json.Unmarshal(value, &text) != nil {
		return ""
	}
	if strings.HasPrefix(text, "{") && json.Unmarshal([]byte(text), &object) == nil {
		return object.SDP
	}
	if _, sdp, found := strings.Cut(text, "sdp: "); found {
		return sdp
	}
	return ""
}

// textOf is an event's value as text: a text itself, an error object's name and message, or the JSON.
func textOf(value json.RawMessage) string {
	var text string
	if json.Unmarshal(value, &text) == nil {
		return text
	}
	var list []json.RawMessage
	if json.Unmarshal(value, &list) == nil && len(list) == 1 {
		return textOf(list[0])
	}
	var object struct{ Name, Message string }
	if json.Unmarshal(value, &object) == nil && (object.Name != "" || object.Message != "") {
		return strings.Trim(object.Name+": "+object.Message, ": ")
	}
	if string(value) == "null" {
		return ""
	}
	return string(value)
}

// entryOf makes an entry of an event; only those that become a message have a value.
func entryOf(name string, atMs float64, value json.RawMessage) entry {
	e := entry{atMs: atMs, name: eventName(name)}
	switch e.name {
	case "setlocaldescription", "setlocaldescriptiononsuccess", "setremotedescription", "setremotedescriptiononsuccess":
		e.value = sdpOf(value)
	default:
		if _, failed := failures[e.name]; failed || strings.HasSuffix(e.name, "statechange") {
			e.value = strings.ToValidUTF8(textOf(value), "\uFFFD")
		}
	}
	return e
}
