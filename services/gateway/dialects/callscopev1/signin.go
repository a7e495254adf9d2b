package callscopev1

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"

	"github.com/google/uuid"
	"github.com/valyala/fastjson"

	"github.com/callscope/callscope/internal/apps"
	"github.com/callscope/callscope/services/gateway/auth"
	"github.com/callscope/callscope/services/gateway/limits"
	"github.com/callscope/callscope/services/gateway/vocabulary"
)

// nonceBytes is the length of a nonce.
const nonceBytes = 32

// hello is who a client says it is.
type hello struct {
	appID, userID, deviceID, clientVersion string
	customerToken, token, tokenError       string
	session                                string
	lostMessages                           uint64
}

// challenge is a nonce that waits for its proof. It lives in the connection that it was made for and is gone with the
// first proof or the next hello, so it needs no signature to be bound to the connection, short-lived and used once.
type challenge struct {
	hello  hello
	nonce  []byte
	madeAt time.Time
}

func readHello(members map[string]*fastjson.Value) (hello, error) {
	h := hello{
		appID: idText(members["appID"]), userID: memberText(members["userID"]), deviceID: memberText(members["deviceID"]),
		clientVersion: memberText(members["clientVersion"]), customerToken: memberText(members["customerToken"]),
		token: memberText(members["token"]), tokenError: memberText(members["tokenError"]), session: memberText(members["session"]),
	}
	if v := members["lostMessages"]; v != nil {
		h.lostMessages, _ = whole(v) // checked
	}
	given := 0
	for _, way := range []string{"customerToken", "token", "tokenError"} {
		if members[way] != nil {
			given++
		}
	}
	if given > 1 {
		return h, refuse("credentials", "Give at most one of customerToken, token and tokenError.")
	}
	if h.userID == "" {
		return h, refuse("user_id", "The userID is empty.")
	}
	for what, id := range map[string]string{"user_id": h.userID, "device_id": h.deviceID, "app_id": h.appID} {
		if err := vocabulary.CheckID(what, id); err != nil {
			return h, refuse(what, "%s", err.Error())
		}
	}
	if len(h.clientVersion) > maxVersionLen {
		return h, refuse("client_version", "The clientVersion is longer than %d bytes.", maxVersionLen)
	}
	if members["session"] != nil {
		if _, err := uuid.Parse(h.session); err != nil || len(h.session) != len(uuid.Nil.String()) {
			return h, refuse("session", "This is not a session that a server gave.")
		}
	}
	return h, nil
}

// hello answers the first message of a sign-in. It returns the code to close the connection with, 0 to go on.
func (c *connection) hello(h hello) int {
	c.challenge = nil
	if c.signedIn && (h.appID != c.identity.AppID || h.userID != c.identity.UserID || h.session != "" && h.session != c.session) {
		c.status(statusFrame{CsError: csProtoError, Reason: "identity", CsErrMsg: "Another app, user or session needs another connection.", Frame: c.frames})
		return 0
	}
	switch {
	case h.tokenError != "":
		c.h.log.Info("a client's application could not make a customer token", "app_id", clip(h.appID), "error", clip(h.tokenError))
		c.status(statusFrame{CsError: tokenGenerationError, Reason: "application", CsErrMsg: "The application could not make a customer token."})
		return closeRefused
	case h.customerToken != "":
		grant, refusal := c.h.authenticator.SignInCustomer(h.appID, h.userID, h.customerToken, c.origin)
		if refusal != nil && refusal.TokenExpired {
			c.status(statusFrame{CsError: tokenGenerationError, Reason: "token_expired", CsErrMsg: "The customer token has expired: let the application make a new one."})
			return closeRefused
		}
		return c.granted(h, grant)
	case h.token != "":
		identity, err := c.h.tokens.Verify(h.token, c.origin)
		if err != nil {
			return c.granted(h, nil)
		}
		return c.granted(h, &auth.Grant{Identity: identity, Token: h.token})
	}
	nonce := make([]byte, nonceBytes)
	if _, err := rand.Read(nonce); err != nil {
		c.h.log.Error("making a nonce failed", "error", err)
		return c.granted(h, nil)
	}
	c.challenge = &challenge{hello: h, nonce: nonce, madeAt: time.Now()}
	c.write(nonceFrame{"nonce", base64.RawURLEncoding.EncodeToString(nonce), c.h.cfg.NonceLifetime.Milliseconds()})
	return 0
}

// proof answers the third message of a sign-in. The nonce is gone whatever becomes of it.
func (c *connection) proof(text string) int {
	ch := c.challenge
	c.challenge = nil
	proof, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if ch == nil || err != nil || time.Since(ch.madeAt) > c.h.cfg.NonceLifetime {
		return c.granted(hello{}, nil)
	}
	grant, _ := c.h.authenticator.SignInProof(ch.hello.appID, ch.hello.userID, c.origin, ch.nonce, proof)
	return c.granted(ch.hello, grant)
}

// granted answers a sign-in. Every refusal looks the same.
func (c *connection) granted(h hello, grant *auth.Grant) int {
	var app *apps.App
	known := false
	if grant != nil {
		app, known = c.h.registry.Lookup(grant.AppID)
	}
	if !known || grant.AppID != h.appID || grant.UserID != h.userID {
		c.status(statusFrame{CsError: authError, Reason: "refused", CsErrMsg: "The sign-in was refused."})
		return closeRefused
	}
	if c.h.cfg.Limits != nil && h.token == "" {
		if scope := c.h.cfg.Limits.SignedIn(grant.AppID, grant.UserID); scope != limits.None {
			c.status(statusFrame{CsError: wsChannelFailure, Reason: "rate_limited", CsErrMsg: "Too many sign-ins of this " + string(scope) + ": try again later."})
			return closeTryAgainLater
		}
	}
	first := !c.signedIn
	c.identity, c.signedIn = grant.Identity, true
	resumed := h.session != "" || !first
	if first {
		c.session, c.deviceID = h.session, h.deviceID
		if c.session == "" {
			id, err := uuid.NewRandom()
			if err != nil {
				c.h.log.Error("making a session failed", "error", err)
				return closeTryAgainLater
			}
			c.session = id.String()
		}
		if c.deviceID == "" {
			c.deviceID = c.session
		}
		c.clientVersion = h.clientVersion
		c.sessionUID = sessionUID(grant.AppID, grant.UserID, c.session)
		c.h.lost.Add(float64(h.lostMessages))
	}
	c.share(grant.Identity)
	c.h.statuses.WithLabelValues(success, "signed_in").Inc()
	now := time.Now()
	c.write(signedInFrame{
		Type: "signedIn", CsError: success, CsErrMsg: "Signed in.",
		AppID: grant.AppID, UserID: grant.UserID, DeviceID: c.deviceID,
		Session: c.session, Resumed: resumed,
		Token: grant.Token, TokenExpiresInMs: grant.ExpiresAt.Sub(now).Milliseconds(),
		Window:        windowSizes{c.h.cfg.WindowMessages, c.h.cfg.WindowBytes},
		MaxFrameBytes: c.h.cfg.MaxFrameBytes, MaxBatchMessages: c.h.cfg.maxBatch(),
		SubmissionInterval: app.Settings.SubmissionIntervalMS, CollectSDP: app.Settings.CollectSDP,
		PingIntervalMs: c.h.cfg.PingInterval.Milliseconds(), ServerTime: epochMs(now),
	})
	return 0
}

// sessionUID names a session in the log. It contains who signed in, so nobody can use up the numbers of another user's
// session, and no gateway has to remember or sign one.
func sessionUID(appID, userID, session string) []byte {
	hash := sha256.New()
	for _, part := range []string{"callscope.v1 session", appID, userID, session} {
		hash.Write(binary.AppendUvarint(nil, uint64(len(part))))
		hash.Write([]byte(part))
	}
	return hash.Sum(nil)[:16]
}
