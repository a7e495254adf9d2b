package callstatsrest

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"

	"github.com/callscope/callscope/services/gateway/auth"
	"github.com/callscope/callscope/services/gateway/limits"
)

// granted is the answer to a good sign-in.
type granted struct {
	AccessToken string   `json:"access_token"`
	TokenType   string   `json:"token_type"`
	ExpiresIn   int      `json:"expires_in"` // seconds
	Metadata    metadata `json:"metadata"`
}

// metadata tells 3.72 and later where to send what. While one of the bases is missing they drop everything silently,
// and without the configuration base they post their token to the page's own site.
type metadata struct {
	URLs struct {
		Events string `json:"events"`
		Stats  string `json:"stats"`
		Config string `json:"config"`
	} `json:"urls"`
}

// refused is the answer to any other. Without error actions a client would try again nine times a second for ever;
// with them it stays quiet for the life of its page. 3.24 and 3.26 read errorCode, later ones errorReason.
type refused struct {
	ErrorActions []errorAction `json:"urn:x-callstats:auth:errorActions"`
}

type errorAction struct {
	Action int         `json:"action"`
	Params errorParams `json:"params"`
}

type errorParams struct {
	ErrorReason string `json:"errorReason,omitempty"`
	ErrorCode   int    `json:"errorCode,omitempty"`
}

const (
	actionGetNewToken = 1
	actionReportError = 2

	invalidCredentials = 1 // errorCode
)

func refusedAnswer(r *auth.Refusal) refused {
	report := errorAction{Action: actionReportError, Params: errorParams{ErrorReason: "Invalid credentials", ErrorCode: invalidCredentials}}
	if r.TokenExpired {
		return refused{ErrorActions: []errorAction{{Action: actionGetNewToken}, report}}
	}
	return refused{ErrorActions: []errorAction{report}}
}

func (h *Handler) authenticate(w http.ResponseWriter, r *http.Request) {
	// Beyond a limit or without memory the connection is closed: any answer would either be final for the page or make
	// it ask nine times a second.
	if !h.cfg.Limits.SignIn(r.RemoteAddr) {
		h.intake.SignInRefused(string(limits.Address))
		closeWithoutAnswer()
	}
	if h.intake.Crowded() {
		h.intake.SignInRefused("budget")
		closeWithoutAnswer()
	}
	var form url.Values
	if r.Method == http.MethodPost {
		// Whatever is wrong with the form, the sign-in is refused like any other.
		if body, err := io.ReadAll(io.LimitReader(r.Body, maxSmallBodyBytes)); err == nil {
			form, _ = url.ParseQuery(string(body))
		}
	}
	clientID, code := form.Get("client_id"), form.Get("code")
	if form.Get("grant_type") != "authorization_code" {
		clientID, code = "", ""
	}
	grant, refusal := h.authenticator.SignIn(clientID, code, r.Header.Get("Origin"))
	if refusal == nil {
		if scope := h.cfg.Limits.SignedIn(grant.AppID, grant.UserID); scope != limits.None {
			h.intake.SignInRefused(string(scope))
			closeWithoutAnswer()
		}
	}
	status, answer := http.StatusOK, any(nil)
	if refusal != nil {
		status, answer = http.StatusUnauthorized, refusedAnswer(refusal)
	} else {
		answer = h.grantedAnswer(r, grant)
	}
	body, err := json.Marshal(answer)
	if err != nil {
		h.log.Error("writing the answer to a sign-in failed", "error", err)
		closeWithoutAnswer()
	}
	answerJSON(w, status, body)
}

func (h *Handler) grantedAnswer(r *http.Request, g *auth.Grant) granted {
	a := granted{AccessToken: g.Token, TokenType: "bearer", ExpiresIn: int(auth.Lifetime.Seconds())}
	base := h.base(r) + "/v1/apps"
	a.Metadata.URLs.Events, a.Metadata.URLs.Stats, a.Metadata.URLs.Config = base, base, base
	return a
}

// base is where the client reaches this gateway: as configured, or as this request did.
func (h *Handler) base(r *http.Request) string {
	if h.cfg.PublicURL != "" {
		return h.cfg.PublicURL
	}
	scheme := "http"
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
		scheme = "https"
	}
	return scheme + "://" + r.Host
}
