package play

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// client plays what one recorded client sent, one message after the other.
type client struct {
	*player
	rec   *recording
	name  string
	times shift
	http  *http.Client

	tokens map[string]string // the gateway's token for each recorded one
	token  string            // the newest of the gateway's
	ucIDs  map[string]string // the gateway's ucID by conference id, as the requests spell it
	socks  map[int]*socket   // by recorded connection
}

func newClient(p *player, rec *recording, name string, times shift) *client {
	transport := &http.Transport{Proxy: nil, DisableCompression: true, TLSClientConfig: &tls.Config{RootCAs: p.cfg.RootCAs}}
	return &client{
		player: p, rec: rec, name: name, times: times,
		http: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		tokens: make(map[string]string), ucIDs: make(map[string]string), socks: make(map[int]*socket),
	}
}

// close ends the connections that the recording left open. It waits for answers still to come unless ctx is done.
func (c *client) close(ctx context.Context) {
	for _, s := range c.socks {
		if ctx.Err() != nil {
			s.giveUp("interrupted")
		}
		s.close(closeGoingAway)
	}
	c.http.CloseIdleConnections()
}

// do plays one line. It returns nil for lines that have no outcome of their own.
func (c *client) do(ctx context.Context, s step) *Result {
	r := &Result{
		Recording: c.rec.name, Seq: s.Seq, Client: c.name, Route: routeOf(s), Event: s.msg.event(), SentAt: time.Now(),
	}
	switch s.Kind {
	case kindWSOpen:
		return c.open(ctx, s, r)
	case kindWSFrame:
		return c.send(ctx, s, r)
	case kindWSClose:
		if sock := c.socks[s.Conn]; sock != nil {
			sock.close(s.Code)
			delete(c.socks, s.Conn)
		}
		return nil
	}
	if s.isSignIn() {
		c.signIn(ctx, s, r)
	} else {
		c.post(ctx, s, r)
	}
	c.report(*r)
	return r
}

// signIn posts a fresh token. A failed connection is tried again as the clients do, with their back-off: a sign-in
// carries no message, and without it nothing else of this client can be played.
func (c *client) signIn(ctx context.Context, s step, r *Result) {
	body, err := signInForm(s.Body, c.key)
	if err != nil {
		r.Outcome, r.Reason = NotSent, err.Error()
		return
	}
	giveUp := time.Now().Add(c.cfg.SignInFor)
	for n := 1; ; n++ {
		c.exchange(ctx, s, r, s.Path, body, "")
		if r.Outcome != Failed || ctx.Err() != nil || time.Now().After(giveUp) {
			break
		}
		select {
		case <-time.After(signInBackOff(n)):
		case <-ctx.Done():
		}
	}
	answer := parseSignIn([]byte(r.Answer))
	if r.Outcome != Accepted {
		return
	}
	if answer.AccessToken == "" {
		r.Outcome, r.Reason = Refused, "the answer has no bearer token that a client would take"
		return
	}
	c.token = answer.AccessToken
	if old := recordedToken(s.line); old != "" {
		c.tokens[old] = answer.AccessToken
	}
}

// signInBackOff is how long the clients wait after the n-th failed connection: about 0.1 s at first, 10 s at last.
func signInBackOff(n int) time.Duration {
	return time.Duration((100 + 9900/(1+math.Exp(-0.5*float64(n-15)))) * float64(time.Millisecond))
}

// tokenFor is the gateway's token where the recording has that one.
func (c *client) tokenFor(recorded string) string {
	if token, ok := c.tokens[recorded]; ok {
		return token
	}
	return c.token
}

// post plays any other request.
func (c *client) post(ctx context.Context, s step, r *Result) {
	token := ""
	if recorded := s.bearer(); recorded != "" {
		if token = c.tokenFor(recorded); token == "" {
			r.Outcome, r.Reason = NotSent, "the client has no token: its sign-in was not answered with one"
			return
		}
	}
	path := s.Path
	at := splitConference(path)
	if at.ucID != "" {
		ucID := c.ucIDs[at.conference]
		if ucID == "" {
			r.Outcome, r.Reason = NotSent, "the client has no ucID: its userJoined was not answered with one"
			return
		}
		path = at.before + at.conference + "/" + url.PathEscape(ucID) + at.after
	}
	c.exchange(ctx, s, r, path, rewrite(s.Body, c.times, c.replace(s.msg)), token)
	if r.Outcome == Accepted && at.conference != "" && at.ucID == "" {
		var joined struct {
			UcID string `json:"ucID"`
		}
		if json.Unmarshal([]byte(r.Answer), &joined) != nil || joined.UcID == "" {
			r.Outcome, r.Reason = Refused, "the answer to userJoined has no ucID"
			return
		}
		c.ucIDs[at.conference] = joined.UcID
	}
}

// replace gives the values that the gateway gave where the recording has the recording server's.
func (c *client) replace(m message) func(key, value string) (string, bool) {
	return func(key, value string) (string, bool) {
		switch key {
		case "token":
			if _, known := c.tokens[value]; known || value == m.Token {
				return c.tokenFor(value), true
			}
		case "ucID":
			if ucID := c.ucIDs[m.conference()]; ucID != "" {
				return ucID, true
			}
		}
		return "", false
	}
}

// forwarded are the recorded headers that the gateway may look at.
var forwarded = []string{"origin", "referer", "content-type", "accept"}

// exchange sends one request and puts the answer and its outcome into r.
func (c *client) exchange(ctx context.Context, s step, r *Result, path, body, token string) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, s.Method, c.base.String(), strings.NewReader(body))
	if err != nil {
		r.Outcome, r.Reason = NotSent, err.Error()
		return
	}
	// Opaque keeps the path's percent-encoding as it was recorded.
	req.URL = &url.URL{Scheme: c.base.Scheme, Host: c.base.Host, Opaque: strings.TrimSuffix(c.base.EscapedPath(), "/") + path}
	if s.Method == http.MethodGet {
		req.Body, req.ContentLength, req.GetBody = nil, 0, nil
	}
	for _, name := range forwarded {
		if value := s.Headers[name]; value != "" {
			req.Header.Set(name, value)
		}
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	r.Status, r.Answer, r.SentAt = 0, "", time.Now()
	answer, err := c.http.Do(req)
	if err != nil {
		r.Outcome, r.Reason = Failed, plainError(err)
		return
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		r.Outcome, r.Reason = Failed, "reading the answer: "+plainError(err)
		return
	}
	r.Status, r.Answer = answer.StatusCode, string(text)
	r.Outcome, r.Reason = judge(answer.StatusCode, text)
}

// plainError takes the URL out of an http.Client's error; the result has it already.
func plainError(err error) string {
	var in *url.Error
	if errors.As(err, &in) {
		if in.Timeout() {
			return "no answer in time"
		}
		err = in.Err
	}
	return err.Error()
}

// judge reads an answer: success is a status of 2xx and JSON whose "status", if it has one, is "success". The clients
// look at the JSON alone, but a gateway that says the one thing and means the other is worth seeing.
func judge(status int, body []byte) (Outcome, string) {
	var answer struct {
		Status *string `json:"status"`
		Msg    string  `json:"msg"`
	}
	switch err := json.Unmarshal(body, &answer); {
	case status < 200 || status > 299:
		return Refused, fmt.Sprintf("status %d", status)
	case err != nil:
		return Refused, "the answer is no JSON object"
	case answer.Status != nil && *answer.Status != "success":
		return Refused, strings.TrimSpace(*answer.Status + " " + answer.Msg)
	}
	return Accepted, ""
}

// conferencePath is a request's path taken apart at the conference.
type conferencePath struct {
	before     string // up to and with "/conferences/"
	conference string // percent-encoded; empty when the path has none
	ucID       string // empty for a userJoined
	after      string // "/events/..."
}

func splitConference(path string) conferencePath {
	const marker = "/conferences/"
	at := strings.Index(path, marker)
	if at < 0 {
		return conferencePath{before: path}
	}
	p := conferencePath{before: path[:at+len(marker)]}
	var rest string
	p.conference, rest, _ = strings.Cut(path[at+len(marker):], "/")
	if rest != "" {
		p.ucID, p.after, _ = strings.Cut(rest, "/")
		p.after = "/" + p.after
	}
	return p
}

// routeOf names what a line was sent to, with names in place of ids.
func routeOf(s step) string {
	if s.Kind == kindWSOpen {
		return "WSS " + s.Path
	}
	if s.Kind != kindHTTP {
		return "WSS " + s.msg.event()
	}
	path := s.Path
	if at := splitConference(path); at.conference != "" {
		path = at.before + "{conferenceID}"
		if at.ucID != "" {
			path += "/{ucID}" + at.after
		}
	}
	parts := strings.Split(path, "/")
	for i, part := range parts {
		if part != "" && strings.Trim(part, "0123456789") == "" {
			parts[i] = "{appID}"
		}
	}
	return s.Method + " " + strings.Join(parts, "/")
}
