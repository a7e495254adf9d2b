package callscopev1

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/valyala/fastjson"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
	"github.com/callscope/callscope/services/gateway/intake"
	"github.com/callscope/callscope/services/gateway/limits"
	"github.com/callscope/callscope/services/gateway/vocabulary"
)

// frame handles one text frame, of which some bytes are reserved already. It returns the code to close the connection with, 0 to
// go on.
func (c *connection) frame(ctx context.Context, text []byte, reserved int64, receivedAt time.Time) int {
	// Whoever is beyond a quota, or finds the gateway's memory full, is slowed: the next frames wait in the network, and
	// nothing is lost.
	rest := int64(len(text)) - reserved
	wait := c.poll
	if reserved > 0 {
		wait = c.pollPart
	}
	if !c.within(ctx, len(text)) || !wait(ctx, func() bool { return c.h.intake.Reserve(rest) }) {
		c.h.intake.Free(reserved)
		return c.noRoom(ctx)
	}
	j, code, err := c.parse(text, receivedAt)
	if err != nil {
		reason, why := reasonOf(err)
		c.refuseFrame(intake.Invalid, reason, why)
	}
	if len(j.messages) == 0 {
		c.h.intake.Free(int64(len(text)))
		return code
	}
	j.bytes = int64(len(text))
	for range len(j.messages) - 1 {
		if !c.within(ctx, 0) {
			break // the connection is over, and enqueue counts the batch
		}
	}
	if !c.enqueue(ctx, j) {
		return closeServiceRestart
	}
	return code
}

// within waits until the quotas allow one more message. It returns false when ctx has ended.
func (c *connection) within(ctx context.Context, bytes int) bool {
	if !c.signedIn || c.h.cfg.Limits == nil {
		return true
	}
	return c.poll(ctx, func() bool {
		return c.h.cfg.Limits.Message(c.identity.AppID, c.identity.UserID, c.remoteAddr, bytes) == limits.None
	})
}

var parsers fastjson.ParserPool

// pooledFrameBytes is the largest frame whose parser is kept.
const pooledFrameBytes = 128 << 10

// parse reads a frame and answers it, or makes a job of its messages. Answers are written without a place for parsing:
// they take as long as the client likes.
func (c *connection) parse(text []byte, receivedAt time.Time) (j job, code int, err error) {
	c.h.parsing <- struct{}{}
	release := sync.OnceFunc(func() { <-c.h.parsing })
	defer release()
	p := parsers.Get()
	if len(text) <= pooledFrameBytes {
		defer parsers.Put(p)
	}
	typ, members, err := parseFrame(p, text)
	if err != nil {
		return j, 0, err
	}
	if typ != "batch" || !c.signedIn {
		release()
	}
	switch typ {
	case "hello":
		h, err := readHello(members)
		if err != nil {
			return j, 0, err
		}
		return j, c.hello(h), nil
	case "proof":
		return j, c.proof(memberText(members["proof"])), nil
	case "clock":
		c.write(clockFrame{"clock", json.Number(members["t0"].String()), epochMs(receivedAt), epochMs(time.Now())})
		return j, 0, nil
	case "ping":
		id := memberText(members["id"])
		if len(id) > maxPingBytes {
			return j, 0, refuse("ping", "The id of a ping has at most %d bytes.", maxPingBytes)
		}
		c.write(pongFrame{"pong", id})
		return j, 0, nil
	}
	if !c.signedIn {
		c.h.intake.Received(dialect)
		c.h.intake.Outcome(dialect, intake.Invalid, "not_signed_in")
		c.status(statusFrame{CsError: authError, Reason: "not_signed_in", CsErrMsg: "Sign in before sending messages.", Frame: c.frames})
		return j, closeRefused, nil
	}
	list := members["messages"].GetArray()
	if len(list) > c.h.cfg.maxBatch() {
		return j, 0, refuse("batch_size", "The batch has %d messages; at most maxBatchMessages are allowed.", len(list))
	}
	hash := intake.HashFrame(text)
	for i, v := range list {
		c.h.intake.Received(dialect)
		m := c.message(v, &intake.Arrival{
			Identity: c.identity, ReceivedAt: receivedAt, Origin: c.origin, UserAgent: c.userAgent, RemoteAddr: c.remoteAddr,
			Hash: sha256.Sum256(binary.BigEndian.AppendUint32(hash[:], uint32(i))),
		})
		j.messages = append(j.messages, m)
	}
	return j, 0, nil
}

// message makes the record of one message of a batch. What is refused here is counted here.
func (c *connection) message(v *fastjson.Value, arrival *intake.Arrival) message {
	var m message
	raw, err := c.raw(v, &m)
	var limited limits.Scope
	if err == nil && c.h.cfg.Limits != nil {
		limited = c.h.cfg.Limits.Conference(c.identity.AppID, raw.Claimed.ConferenceId)
	}
	if err == nil && limited == limits.None {
		m.notice = connectivity(raw)
		m.records, err = c.h.intake.Envelop([]*callscopev1.Raw{raw}, callscopev1.Dialect_DIALECT_CALLSCOPE, arrival)
	}
	var bad *vocabulary.Invalid
	outcome, reason, text := intake.Invalid, "", ""
	switch {
	case err == nil && limited == limits.None:
		return m
	case limited != limits.None:
		outcome, reason, text = intake.RateLimited, string(limited), "The app has named too many conferences within an hour."
	case errors.As(err, &bad):
		reason, text = bad.Reason, bad.Text
	default:
		if reason, text = reasonOf(err); reason == "internal" {
			outcome = intake.Shed
			c.h.log.Error("taking in a message failed", "error", err)
		}
	}
	c.h.intake.Outcome(dialect, outcome, reason)
	m.records = nil
	m.refused = &statusFrame{CsError: csProtoError, Reason: reason, CsErrMsg: text, Seq: m.seq, Frame: c.frames}
	return m
}

// raw reads one message of a batch.
func (c *connection) raw(v *fastjson.Value, m *message) (*callscopev1.Raw, error) {
	object, err := v.Object()
	if err != nil {
		return nil, refuse("message", "A message must be an object.")
	}
	// The number comes first, so that whatever else is wrong can be refused, and acknowledged, under it.
	seq, ok := uint64(0), false
	if v := object.Get("seq"); v != nil {
		seq, ok = whole(v)
	}
	if !ok || seq <= c.lastSeq {
		return nil, refuse("seq", "The seq must be a whole number up to 2^53-1 and above the last one, %d.", c.lastSeq)
	}
	c.lastSeq, m.seq = seq, seq
	members, err := checkMembers(object, messageRules, "")
	if err != nil {
		return nil, err
	}
	event := members["event"].GetObject()
	parsed, err := vocabulary.FromObject(event)
	if err != nil {
		return nil, err
	}
	conferenceID := memberText(members["conferenceID"])
	if err := vocabulary.CheckID("conference_id", conferenceID); err != nil {
		return nil, err
	}
	if conferenceID == "" && !outsideConference[parsed.EventType] {
		return nil, refuse("conference_id", "The message names no conference.")
	}
	if parsed.EventType == "reportError" {
		parsed.EventType, parsed.OriginalType = failureEvent(event), "reportError"
	} else if parsed.EventType == "fabricSetupFailed" || parsed.EventType == "applicationErrorLog" {
		return nil, refuse("event_type", "Send reportError, not %s.", parsed.EventType)
	}
	raw := parsed.Raw(conferenceID)[0] // several are only in what 3.24 and 3.26 send
	if err := complete(raw, event); err != nil {
		return nil, err
	}
	claimed := raw.Claimed
	if claimed.ConnectionId != "" && claimed.ConnectionId == c.identity.UserID {
		return nil, refuse("connection_id", "The connectionID must not be the userID.")
	}
	claimed.UserId = c.identity.UserID
	if claimed.DeviceId == "" {
		claimed.DeviceId = c.deviceID
	}
	claimed.ClientVersion = c.clientVersion
	claimed.SessionUid = c.sessionUID
	claimed.Sequence = &seq
	return raw, nil
}

// outsideConference are the events that may name no conference.
var outsideConference = map[string]bool{"preCallTestResults": true, "preCallTestNotification": true}

// The enumerations of the spec.
var (
	fabricUsages   = []string{"multiplex", "audio", "video", "screen", "data", "unbundled"}
	endpointTypes  = []string{"peer", "server"}
	directions     = []string{"sendonly", "receiveonly", "sendrecv", "inactive"}
	logFunctions   = []string{"applicationLog", "applicationError"}
	failureReasons = map[string]string{ // wrtcFuncNames, with the reason that the 3.73 client gives
		"getUserMedia": "MediaConfigError", "createOffer": "NegotiationFailure", "createAnswer": "NegotiationFailure",
		"setLocalDescription": "SDPGenerationError", "setRemoteDescription": "NegotiationFailure",
		"addIceCandidate": "SDPGenerationError", "iceConnectionFailure": "IceConnectionFailure",
		"signalingError": "SignalingError", "applicationLog": "ApplicationLog", "applicationError": "ApplicationLog",
	}
)

// failureEvent is the event that a reportError is: a log of the application is no failure.
func failureEvent(event *fastjson.Object) string {
	if slices.Contains(logFunctions, memberText(event.Get("function"))) {
		return "applicationErrorLog"
	}
	return "fabricSetupFailed"
}

// aboutFabric are the events, beside those with a payload of their own below, that make no sense without a fabric.
var aboutFabric = []string{
	"fabricSetup", "fabricStateChange", "fabricTransportSwitch", "fabricTerminated", "fabricHold", "fabricResume",
	"fabricDropped", "iceDisruptionStart", "iceDisruptionEnd", "iceConnectionDisruptionStart", "iceConnectionDisruptionEnd",
	"iceFailed", "iceAborted", "iceTerminated", "iceRestarted", "iceCompleted", "ssrcMap",
}

// complete checks what an event must have and fills in what the spec says of an absent member.
func complete(raw *callscopev1.Raw, event *fastjson.Object) error {
	if raw.Claimed.TimeMs == 0 || event.Get("timestamp").Type() != fastjson.TypeNumber {
		return refuse("timestamp", "The event has no timestamp in epoch milliseconds.")
	}
	fabric := slices.Contains(aboutFabric, raw.EventType)
	switch payload := raw.Payload.(type) {
	case *callscopev1.Raw_FabricAdded:
		p := payload.FabricAdded
		fabric = true
		if p.RemoteEndpointType == "" {
			p.RemoteEndpointType = "peer"
		}
		if p.FabricTransmissionDirection == "" {
			p.FabricTransmissionDirection = "sendrecv"
		}
		for _, e := range []struct {
			name, value string
			allowed     []string
		}{
			{"fabricUsage", p.FabricUsage, fabricUsages},
			{"remoteEndpointType", p.RemoteEndpointType, endpointTypes},
			{"fabricTransmissionDirection", p.FabricTransmissionDirection, directions},
		} {
			if !slices.Contains(e.allowed, e.value) {
				return refuse("enum", "The %s must be one of %s.", e.name, strings.Join(e.allowed, ", "))
			}
		}
		if raw.Claimed.RemoteId == "" {
			return refuse("remote_id", "addNewFabric needs a remoteID.")
		}
	case *callscopev1.Raw_Association:
		p := payload.Association
		fabric = true
		if _, err := strconv.ParseUint(p.Ssrc, 10, 32); err != nil {
			return refuse("ssrc", "The ssrc must be a decimal number below 2^32.")
		}
		if p.UserId == "" {
			return refuse("user_id", "associateMstWithUserID needs a userID.")
		}
		if err := vocabulary.CheckID("user_id", p.UserId); err != nil {
			return err
		}
	case *callscopev1.Raw_Failure:
		reason, known := failureReasons[payload.Failure.Function]
		if !known {
			return refuse("enum", "The function must be one of the wrtcFuncNames.")
		}
		if payload.Failure.Reason == "" {
			payload.Failure.Reason = reason
		}
	case *callscopev1.Raw_Feedback:
		p := payload.Feedback
		if p.Overall == nil {
			return refuse("feedback", "The feedback has no overall rating.")
		}
		for _, rating := range []*float64{p.Overall, p.Audio, p.Video, p.Screen} {
			if rating != nil && (*rating < 1 || *rating > 5 || *rating != float64(int(*rating))) {
				return refuse("feedback", "Ratings are whole numbers from 1 to 5.")
			}
		}
	case *callscopev1.Raw_Stats:
		fabric = true
		if v := event.Get("stats"); v == nil || v.Type() != fastjson.TypeArray {
			return refuse("stats", "The event has no array stats.")
		}
	case *callscopev1.Raw_PreCallTestResults:
		if v := event.Get("results"); v == nil || v.Type() != fastjson.TypeObject {
			return refuse("results", "The event has no object results.")
		}
	}
	if fabric && raw.Claimed.ConnectionId == "" {
		return refuse("connection_id", "%s needs a connectionID.", clip(raw.EventType))
	}
	return nil
}

// connectivity is what the client's application is told of a fabric whose connectivity checks failed.
func connectivity(raw *callscopev1.Raw) *statusFrame {
	failed := false
	switch raw.EventType {
	case "iceDisruptionStart", "iceConnectionDisruptionStart", "iceFailed", "fabricDropped":
		failed = true
	case "fabricStateChange":
		p := raw.GetFabricStateChange()
		failed = p.ChangedState == "iceConnectionState" && (p.NewState == "disconnected" || p.NewState == "failed")
	}
	if !failed {
		return nil
	}
	return &statusFrame{
		CsError: appConnectivityError, Reason: raw.EventType, CsErrMsg: "The connectivity checks of the PeerConnection failed.",
		Seq: raw.Claimed.GetSequence(), ConferenceID: raw.Claimed.ConferenceId, ConnectionID: raw.Claimed.ConnectionId,
	}
}

func mustMarshal(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic("callscopev1: marshalling an answer failed: " + err.Error()) // strings and numbers cannot fail
	}
	return text
}
