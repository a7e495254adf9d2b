// Package callstatsrest speaks HTTPS as the callstats clients from 3.52 to 3.73 do: sign-in, clock, configuration,
// generics, and events and statistics as one POST each.
//
// It answers only what these clients act on. They re-send nothing and stop, or storm, on answers that are usual
// elsewhere, so the forms and the closed connections here are the protocol and no accident; see answers.go.
package callstatsrest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/callscope/callscope/services/gateway/auth"
	"github.com/callscope/callscope/services/gateway/intake"
	"github.com/callscope/callscope/services/gateway/limits"
	"github.com/callscope/callscope/services/gateway/vocabulary"
)

// Config of the dialect. The gateway fills it from its own.
type Config struct {
	// PublicURL is where clients reach this gateway, without a path. Empty: as each sign-in request reached it.
	PublicURL    string
	MaxBodyBytes int64
	// StoreTimeout is how long a message may take into Kafka before its connection is closed. Clients wait 5 s.
	StoreTimeout time.Duration
	// JoinPatience is how long a userJoined may take before it is answered anyway.
	JoinPatience time.Duration
	Limits       *limits.Limiter
}

// Handler serves all routes of the dialect, under any base path.
type Handler struct {
	cfg           Config
	authenticator *auth.Authenticator
	tokens        *auth.Tokens
	verified      *verified
	intake        *intake.Intake
	log           *slog.Logger
}

func New(cfg Config, authenticator *auth.Authenticator, tokens *auth.Tokens, in *intake.Intake, log *slog.Logger) *Handler {
	return &Handler{cfg: cfg, authenticator: authenticator, tokens: tokens, verified: &verified{tokens: tokens, limit: maxVerified}, intake: in, log: log}
}

// maxSmallBodyBytes bounds the bodies of sign-ins.
const maxSmallBodyBytes = 32 << 10

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	allowAnyOrigin(w.Header())
	if r.Method == http.MethodOptions {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	rt := parseRoute(rawPath(r))
	switch rt.kind {
	case routeEvent, routePreCall:
		h.event(w, r, rt)
	case routeAuthenticate:
		h.authenticate(w, r)
	case routeClockSync:
		h.clockSync(w, r)
	case routeGenerics:
		h.generics(w, r)
	case routeConfigurations, routeThresholds:
		h.configuration(w, r)
	case routeScript:
		answerText(w, http.StatusNotFound, "This gateway does not serve the client library yet. Load it from your own site and point it here; see docs/howto/point-clients.md.\n")
	default:
		if r.Method == http.MethodPost {
			h.intake.Received(intake.DialectREST)
			h.intake.Outcome(intake.DialectREST, intake.Unsupported, "route")
		}
		answerError(w, http.StatusNotFound, "There is nothing at this address. Events belong to <base>/<appID>/conferences/<conferenceID>/….")
	}
}

// clockSync must always be JSON: anything else stops a client's clock, and with it all its events, for good.
func (h *Handler) clockSync(w http.ResponseWriter, _ *http.Request) {
	answerJSON(w, http.StatusOK, fmt.Appendf(nil, `{"now":%d}`, time.Now().UnixMilli()))
}

// configuration has nothing to say: an empty object leaves clients at what the access token says.
func (h *Handler) configuration(w http.ResponseWriter, r *http.Request) {
	h.discard(r)
	answerJSON(w, http.StatusOK, []byte(`{}`))
}

// generics are log posts of the client library. They hold whole rejected messages at times, need no token and are not
// kept.
func (h *Handler) generics(w http.ResponseWriter, r *http.Request) {
	h.intake.Received(intake.DialectREST)
	if !h.cfg.Limits.Generics(r.RemoteAddr) {
		// Answered all the same: a client does not look at it, and reports its own failed posts by another.
		h.intake.Outcome(intake.DialectREST, intake.RateLimited, string(limits.Address))
		w.Header().Set("Connection", "close")
		answerJSON(w, http.StatusOK, success)
		return
	}
	h.discard(r)
	h.intake.Outcome(intake.DialectREST, intake.Generics, "")
	answerJSON(w, http.StatusOK, success)
}

// discard reads a body that is not used, so that the client gets its answer. Beyond a limit it does not care.
func (h *Handler) discard(r *http.Request) {
	_, _ = io.CopyN(io.Discard, r.Body, 4*h.cfg.MaxBodyBytes) // an unreadable body changes nothing here
}

var (
	errTooLarge = errors.New("body too large")
	errNoRoom   = errors.New("no room for the body")
)

// body reads the body and reserves its bytes as they arrive. free gives them back and must be called in every case.
func (h *Handler) body(r *http.Request) (body *bytes.Buffer, free func(), err error) {
	var reserved int64
	free = func() { h.intake.Free(reserved) }
	if r.ContentLength > h.cfg.MaxBodyBytes {
		return nil, free, errTooLarge
	}
	body = intake.Buffer()
	body.Grow(int(min(max(r.ContentLength+1, 512), 64<<10)))
	for {
		if body.Available() == 0 {
			body.Grow(body.Len())
		}
		rest := body.AvailableBuffer()
		n, err := r.Body.Read(rest[:cap(rest)])
		if !h.intake.Reserve(int64(n)) {
			return nil, free, errNoRoom
		}
		reserved += int64(n)
		body.Write(rest[:n])
		switch {
		case int64(body.Len()) > h.cfg.MaxBodyBytes:
			return nil, free, errTooLarge
		case errors.Is(err, io.EOF):
			return body, free, nil
		case err != nil:
			return nil, free, fmt.Errorf("reading the body: %w", err)
		}
	}
}

func (h *Handler) event(w http.ResponseWriter, r *http.Request, rt route) {
	deadline := time.Now().Add(h.cfg.StoreTimeout)
	h.intake.Received(intake.DialectREST)
	refuse := func(o intake.Outcome, reason string, status int, text string) {
		h.discard(r)
		h.intake.Outcome(intake.DialectREST, o, reason)
		answerError(w, status, text)
	}
	if r.Method != http.MethodPost {
		refuse(intake.Unsupported, "method", http.StatusMethodNotAllowed, "Events are sent with POST.")
		return
	}
	identity, err := h.verified.verify(bearer(r), r.Header.Get("Origin"))
	switch {
	case errors.Is(err, auth.ErrExpired):
		refuse(intake.AuthExpired, "", http.StatusUnauthorized, tokenExpired)
		return
	case err != nil:
		// The same words: they are the only ones on which a client signs in again.
		refuse(intake.Invalid, "token", http.StatusUnauthorized, tokenExpired)
		return
	case identity.AppID != rt.appID:
		refuse(intake.Invalid, "app", http.StatusForbidden, "The access token belongs to another app.")
		return
	case r.Header.Get("Content-Encoding") != "":
		refuse(intake.Unsupported, "encoding", http.StatusUnsupportedMediaType, "Compressed bodies are not supported.")
		return
	}
	conferenceID := ""
	if rt.kind == routeEvent {
		if conferenceID, err = conferenceOf(rt); err != nil {
			refuse(intake.Invalid, "conference_id", http.StatusBadRequest, err.Error())
			return
		}
	}

	buffer, free, err := h.body(r)
	arrival := &intake.Arrival{
		Identity:   identity,
		ReceivedAt: time.Now(),
		Origin:     r.Header.Get("Origin"),
		UserAgent:  r.UserAgent(),
		RemoteAddr: r.RemoteAddr,
	}
	switch {
	case errors.Is(err, errTooLarge):
		free()
		refuse(intake.Oversized, "body", http.StatusRequestEntityTooLarge, fmt.Sprintf("The message is larger than %d bytes.", h.cfg.MaxBodyBytes))
		return
	case errors.Is(err, errNoRoom):
		free()
		h.intake.Outcome(intake.DialectREST, intake.Shed, "memory")
		closeWithoutAnswer()
	case err != nil:
		free()
		h.intake.Outcome(intake.DialectREST, intake.Invalid, "incomplete")
		closeWithoutAnswer() // nobody is listening any more
	}
	body := buffer.Bytes()
	if scope := h.cfg.Limits.Message(identity.AppID, identity.UserID, r.RemoteAddr, len(body)); scope != limits.None {
		free()
		h.rateLimited(w, rt, identity.AppID, conferenceID, scope)
		return
	}
	if scope := h.cfg.Limits.Conference(identity.AppID, conferenceID); scope != limits.None {
		free()
		h.rateLimited(w, rt, identity.AppID, conferenceID, scope)
		return
	}
	arrival.Hash = intake.HashRequest(r.Method, rawPath(r), body)

	var eventType string
	var records []intake.Record
	err = h.intake.Parse(body, vocabulary.REST, func(m *vocabulary.Message) (err error) {
		eventType = m.EventType
		if rt.kind == routePreCall && !strings.HasPrefix(eventType, "preCallTest") {
			return &vocabulary.Invalid{Reason: "route", Text: "Only pre-call tests need no conference."}
		}
		records, err = h.intake.Records(m, conferenceID, arrival)
		return err
	})
	intake.Discard(buffer)
	var bad *vocabulary.Invalid
	switch {
	case errors.As(err, &bad):
		free()
		refuse(intake.Invalid, bad.Reason, http.StatusBadRequest, bad.Text)
		return
	case err != nil:
		free()
		h.log.Error("taking in a message failed", "error", err)
		h.intake.Outcome(intake.DialectREST, intake.Shed, "internal")
		closeWithoutAnswer()
	}

	join := eventType == "userJoined" && rt.kind == routeEvent
	if join {
		var stored bool
		if stored, err = h.intake.StoreJoin(intake.DialectREST, records, h.cfg.JoinPatience, free); !stored && err == nil {
			answerJSON(w, http.StatusOK, joined(h.tokens.UcID(identity.AppID, conferenceID))) // counted as unconfirmed
			return
		}
	} else {
		defer free()
		err = h.intake.StoreBy(deadline, records)
	}
	switch {
	case err == nil:
		h.intake.Outcome(intake.DialectREST, intake.Accepted, "")
	case h.intake.Failed(intake.DialectREST, err) == intake.Oversized:
		answerError(w, http.StatusRequestEntityTooLarge, "The message is larger than a stored record may be.")
		return
	default:
		closeWithoutAnswer()
	}
	if join {
		answerJSON(w, http.StatusOK, joined(h.tokens.UcID(identity.AppID, conferenceID)))
		return
	}
	answerJSON(w, http.StatusOK, success)
}

// rateLimited refuses a message beyond a limit. A closed connection would make browsers post it again, and a userJoined
// refused would silence the client for the whole conference, so that is answered like a stored one and only counted; its
// conference begins with the next message. Beyond the cap on conferences the silence is wanted.
func (h *Handler) rateLimited(w http.ResponseWriter, rt route, appID, conferenceID string, scope limits.Scope) {
	h.intake.Outcome(intake.DialectREST, intake.RateLimited, string(scope))
	if rt.join && scope != limits.Conferences {
		answerJSON(w, http.StatusOK, joined(h.tokens.UcID(appID, conferenceID)))
		return
	}
	answerError(w, http.StatusTooManyRequests, "Too many messages: the limit of this "+scopeNames[scope]+" is reached. Send less, or ask the operator for more (gateway.limits).")
}

var scopeNames = map[limits.Scope]string{
	limits.App: "app", limits.User: "user", limits.Address: "address", limits.Conferences: "app on conferences in an hour",
}

// closeWithoutAnswer is how temporary inability looks to these clients: the only failure on which they back off. An
// HTTP error would be final for some messages and a storm for others.
func closeWithoutAnswer() { panic(http.ErrAbortHandler) }

func bearer(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

func conferenceOf(rt route) (string, error) {
	id, err := url.PathUnescape(rt.conference)
	if err != nil {
		return "", errors.New("the conference id in the path is not percent-encoded properly")
	}
	if id == "" {
		return "", errors.New("the conference id in the path is empty")
	}
	return id, vocabulary.CheckID("conference_id", id)
}
