package callstatsws

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"github.com/callscope/callscope/services/gateway/auth"
	"github.com/callscope/callscope/services/gateway/intake"
	"github.com/callscope/callscope/services/gateway/limits"
	"github.com/callscope/callscope/services/gateway/vocabulary"
)

// frame turns a frame into a job. Frames that end here are counted here and have no records. Frames that are refused before
// anybody's limits are asked take from their address', and end the connection beyond that.
func (c *connection) frame(kind int, frame []byte) job {
	known := false // the limits have seen it
	refuse := func(o intake.Outcome, reason, text string) job {
		if !known && !c.h.cfg.Limits.Stranger(c.remoteAddr, len(frame)) {
			c.h.intake.Outcome(intake.DialectWS, intake.RateLimited, string(limits.Address))
			return job{code: websocket.CloseTryAgainLater}
		}
		c.h.intake.Outcome(intake.DialectWS, o, reason)
		return job{answer: failure(text)}
	}
	if kind != websocket.TextMessage {
		return refuse(intake.Unsupported, "binary", "Only text frames are supported.")
	}
	var j job
	var refused *refusal
	var limited limits.Scope
	err := c.h.intake.Parse(frame, vocabulary.WebSocket, func(m *vocabulary.Message) error {
		if refused = c.check(m); refused != nil {
			return nil
		}
		if m.EventType == "clockSync" { // an answer here is a sample for the client's clock, not a message to keep
			j.answer = fmt.Appendf(nil, `{"status":"200 OK","event":"clockSync","now":%d}`, time.Now().UnixMilli())
			return nil
		}
		if m.EncodedConferenceID == "" && !strings.HasPrefix(m.EventType, "preCallTest") {
			return &vocabulary.Invalid{Reason: "conference_id", Text: "The message names no conference."}
		}
		j.answer = c.answer(m)
		// A userJoined beyond a limit is answered like a stored one: without its ucID the client would wait for ever.
		known = true
		if limited = c.limited(m, len(frame)); limited != limits.None {
			if m.EventType != "userJoined" || limited == limits.Conferences {
				j.answer = failure("Too many messages.")
			}
			return nil
		}
		if m.DeviceID() == "" {
			m.SetDeviceID(c.deviceID)
		}
		c.deviceID = m.DeviceID()
		var err error
		j.records, err = c.h.intake.Records(m, "", &intake.Arrival{
			Identity:   c.identity,
			ReceivedAt: time.Now(),
			Origin:     c.origin,
			UserAgent:  c.userAgent,
			RemoteAddr: c.remoteAddr,
			Hash:       intake.HashFrame(frame),
		})
		return err
	})
	var bad *vocabulary.Invalid
	switch {
	case errors.As(err, &bad):
		return refuse(intake.Invalid, bad.Reason, bad.Text)
	case err != nil:
		c.h.log.Error("taking in a frame failed", "error", err)
		return refuse(intake.Shed, "internal", "The message could not be taken in.")
	case refused != nil:
		return refuse(refused.outcome, refused.reason, refused.text)
	case limited != limits.None:
		c.h.intake.Outcome(intake.DialectWS, intake.RateLimited, string(limited))
	case len(j.records) == 0:
		c.h.intake.Outcome(intake.DialectWS, intake.Generics, "clock_sync")
	}
	return j
}

func (c *connection) limited(m *vocabulary.Message, bytes int) limits.Scope {
	scope := c.h.cfg.Limits.Message(c.identity.AppID, c.identity.UserID, c.remoteAddr, bytes)
	if scope == limits.None {
		scope = c.h.cfg.Limits.Conference(c.identity.AppID, m.ConferenceID())
	}
	return scope
}

type refusal struct {
	outcome      intake.Outcome
	reason, text string
}

// invalidToken makes a client drop its token and sign in again.
const invalidToken = "Invalid client token."

// check verifies the token of a message. Clients send the same one with every frame, so it is verified once and then
// only compared, until it expires.
func (c *connection) check(m *vocabulary.Message) *refusal {
	if len(m.Token) == 0 || string(m.Token) != c.token || c.h.tokens.Recheck(c.identity, c.origin) != nil {
		token := string(m.Token)
		identity, err := c.h.tokens.Verify(token, c.origin)
		switch {
		case errors.Is(err, auth.ErrExpired):
			return &refusal{intake.AuthExpired, "", invalidToken}
		case err != nil:
			return &refusal{intake.Invalid, "token", invalidToken}
		}
		c.token, c.identity = token, identity
	}
	if m.AppID != "" && m.AppID != c.identity.AppID {
		return &refusal{intake.Invalid, "app", "The token belongs to another app."}
	}
	return nil
}

// answer is what the client waits for, nil where it waits for nothing: userJoined frees its queue, userAlive and
// fabricSetupFailed may give a conference its ucID, feedback clears the stored one.
func (c *connection) answer(m *vocabulary.Message) []byte {
	switch m.EventType {
	case "userJoined", "userAlive", "fabricSetupFailed":
		return mustMarshal(struct {
			Status             string `json:"status"`
			Event              string `json:"event"`
			ConferenceID       string `json:"conferenceID"` // as the client wrote it
			UcID               string `json:"ucID"`
			ConferenceDuration int    `json:"conferenceDuration"` // ms; 0: events from before the answer keep their ucID
		}{"200 OK", m.EventType, m.EncodedConferenceID, c.h.tokens.UcID(c.identity.AppID, m.ConferenceID()), 0})
	case "userFeedbackEvent":
		return []byte(`{"status":"200 OK","event":"feedback"}`)
	}
	return nil
}

func failure(reason string) []byte {
	return mustMarshal(struct {
		Status string `json:"status"`
		Reason string `json:"reason"`
	}{"Error", reason})
}

func mustMarshal(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic("callstatsws: marshalling an answer failed: " + err.Error()) // strings and numbers cannot fail
	}
	return text
}
