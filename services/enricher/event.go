package enricher

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// newEvent returns the row of a message. It fails where the message's fields
// are no valid text.
func newEvent(raw *callscopev1.Raw) (*callscopev1.Event, error) {
	data, err := dataJSON(raw)
	if err != nil {
		return nil, err
	}
	event := &callscopev1.Event{
		EventType:    raw.EventType,
		OriginalType: raw.OriginalType,
		Reported:     true,
		DataJson:     data,
		Truncated:    raw.Truncated,
	}
	switch payload := raw.Payload.(type) {
	case *callscopev1.Raw_Feedback:
		event.Feedback = &callscopev1.FeedbackGiven{
			Overall: payload.Feedback.Overall,
			Audio:   payload.Feedback.Audio,
			Video:   payload.Feedback.Video,
			Screen:  payload.Feedback.Screen,
			Comment: payload.Feedback.Comment,
		}
	case *callscopev1.Raw_Failure:
		if raw.EventType == eventFabricSetupFailed || raw.EventType == eventApplicationErrorLog {
			event.Failure = failureOf(raw, payload.Failure)
		}
	case *callscopev1.Raw_IceEvent:
		if raw.EventType == eventIceFailed {
			event.Failure = &callscopev1.FailureReported{
				Function: functionIceConnectionFailure,
				Reason:   reasonIceConnectionFailure,
			}
		}
	}
	return event, nil
}

// failureOf returns the row of an error report. Its message may be the JSON of
// an error object; name and stack are then read from it where the client did
// not give them apart.
func failureOf(raw *callscopev1.Raw, failure *callscopev1.Failure) *callscopev1.FailureReported {
	row := &callscopev1.FailureReported{
		Function:  failure.Function,
		Reason:    failure.Reason,
		Name:      failure.Name,
		Message:   failure.Message,
		Stack:     failure.Stack,
		IsLog:     raw.EventType == eventApplicationErrorLog || isLog(failure.Function),
		Truncated: failure.Truncated || raw.Truncated,
		LocalSdp:  failure.LocalSdp,
		RemoteSdp: failure.RemoteSdp,
	}
	if (row.Name == "" || row.Stack == "") && strings.HasPrefix(row.Message, "{") {
		var object struct{ Name, Stack string }
		if json.Unmarshal([]byte(row.Message), &object) == nil {
			if row.Name == "" {
				row.Name = object.Name
			}
			if row.Stack == "" {
				row.Stack = object.Stack
			}
		}
	}
	return row
}

// complete adds to a failure what its fabric knows.
func (s *step) complete(event *callscopev1.Event) {
	if event.Failure == nil {
		return
	}
	event.Failure.DelayMs = s.failureDelay()
	if s.f == nil {
		return
	}
	if event.Failure.LocalSdp == "" && event.Failure.RemoteSdp == "" {
		event.Failure.LocalSdp = inflate(s.f.s.LocalSdp)
		event.Failure.RemoteSdp = inflate(s.f.s.RemoteSdp)
		event.Failure.Truncated = event.Failure.Truncated || s.f.s.SdpTruncated
	}
}

// failureDelay is the delay of a failure row: as reported, else since the first
// sight of its fabric. The 0 that clients report without a PeerConnection means
// that there is none.
func (s *step) failureDelay() *float64 {
	var reported *float64
	if failure := s.raw.GetFailure(); failure != nil {
		reported = failure.DelayMs
	} else if event := s.raw.GetIceEvent(); event != nil {
		reported = event.DelayMs
	}
	switch {
	case reported != nil && (*reported > 0 || *reported == 0 && s.connectionID != ""):
		return proto.Float64(*reported)
	case s.f != nil:
		if delay, known := s.f.since(s.raw.Claimed.TimeMs); known {
			return proto.Float64(delay)
		}
	}
	return nil
}

// realNames are the fields that must not be seen where everybody can look: real
// names are in the participant's facts alone.
var realNames = []string{"userName", "localUserIDObject"}

// jsonTexts are the fields that hold JSON as text; they become what they hold.
var jsonTexts = []string{"additionalIDs", "eventList", "stats", "results", "notification"}

// dataJSON returns the event's own fields as a JSON object with sorted keys:
// the typed ones under the spec's names, then whatever else the client sent.
func dataJSON(raw *callscopev1.Raw) (string, error) {
	fields := map[string]json.RawMessage{}
	if raw.ExtraJson != "" {
		if err := json.Unmarshal([]byte(raw.ExtraJson), &fields); err != nil || fields == nil {
			text, err := json.Marshal(raw.ExtraJson)
			if err != nil {
				return "", fmt.Errorf("keeping the further fields of %s: %w", raw.EventType, err)
			}
			fields = map[string]json.RawMessage{"extra": text}
		}
	}
	if payload := payloadOf(raw); payload != nil && proto.Size(payload) > 0 {
		// protojson's spacing differs from build to build on purpose; the
		// encoder below writes every value without spaces.
		typed, err := protojson.Marshal(payload)
		if err != nil {
			return "", fmt.Errorf("writing the fields of %s as JSON: %w", raw.EventType, err)
		}
		var typedFields map[string]json.RawMessage
		if err := json.Unmarshal(typed, &typedFields); err != nil {
			return "", fmt.Errorf("writing the fields of %s as JSON: %w", raw.EventType, err)
		}
		for _, key := range jsonTexts {
			var text string
			if json.Unmarshal(typedFields[key], &text) == nil && json.Valid([]byte(text)) {
				typedFields[key] = json.RawMessage(text)
			}
		}
		for key, value := range typedFields {
			fields[key] = value
		}
	}
	for _, key := range realNames {
		delete(fields, key)
	}
	if len(fields) == 0 {
		return "{}", nil
	}
	var data bytes.Buffer
	encoder := json.NewEncoder(&data)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(fields); err != nil {
		return "", fmt.Errorf("writing the fields of %s as JSON: %w", raw.EventType, err)
	}
	return strings.TrimSuffix(data.String(), "\n"), nil
}

// payloadOf returns the typed fields of the message, nil if it has none.
func payloadOf(raw *callscopev1.Raw) protoreflect.ProtoMessage {
	message := raw.ProtoReflect()
	field := message.WhichOneof(message.Descriptor().Oneofs().ByName("payload"))
	if field == nil {
		return nil
	}
	return message.Get(field).Message().Interface()
}
