package callstatsrest

import (
	"encoding/json"
	"net/http"
)

// What clients make of an answer to an event or statistics post: status "success" is accepted; any other status is
// logged and loses the message; msg "Token has expired" makes them sign in again. The HTTP status is not looked at, and
// an answer that is no JSON is an uncaught error in the page.
var success = []byte(`{"status":"success"}`)

const tokenExpired = "Token has expired"

// joined answers a userJoined. Without the ucID the client would report nothing for the whole conference.
func joined(ucID string) []byte {
	return []byte(`{"status":"success","ucID":"` + ucID + `"}`) // a ucID is hexadecimal
}

func answerError(w http.ResponseWriter, status int, text string) {
	body, err := json.Marshal(map[string]string{"status": "error", "msg": text})
	if err != nil {
		body = []byte(`{"status":"error","msg":"The request failed."}`)
	}
	answerJSON(w, status, body)
}

func answerJSON(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that is gone needs no answer
}

func answerText(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // as above
}

// allowAnyOrigin must be on every answer, errors included, or the browser hides it. Every event has a path of its own
// and browsers preflight each, so without Max-Age they would double the requests; 7200 s is the most that Chromium
// takes.
func allowAnyOrigin(h http.Header) {
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "GET, POST, OPTIONS")
	h.Set("Access-Control-Allow-Headers", "authorization, content-type")
	h.Set("Access-Control-Max-Age", "7200")
}
