package callstatsrest

import (
	"net/http"
	"strings"
)

type routeKind int

const (
	routeUnknown routeKind = iota
	routeAuthenticate
	routeClockSync
	routeGenerics
	routeConfigurations
	routeThresholds
	routeScript
	routeEvent   // …/<appID>/conferences/<conferenceID>[/…]
	routePreCall // …/<appID>/events/precall, without a conference
)

type route struct {
	kind       routeKind
	appID      string
	conference string // still percent-encoded
	join       bool   // …/conferences/<conferenceID> alone: where clients send userJoined
}

// rawPath is the path as the client wrote it. The decoded one cannot tell a slash between segments from one inside an
// id.
func rawPath(r *http.Request) string {
	path, _, _ := strings.Cut(r.RequestURI, "?")
	if !strings.HasPrefix(path, "/") { // absolute form, as sent to proxies
		if _, rest, found := strings.Cut(path, "://"); found {
			if slash := strings.IndexByte(rest, '/'); slash >= 0 {
				return rest[slash:]
			}
			return "/"
		}
	}
	return path
}

// parseRoute finds out what a path means. Clients build it below any base path that they were given, on any host, so
// only its end counts. What follows the conference id (the ucID and a suffix for each kind of event) says nothing that
// the body does not.
func parseRoute(path string) route {
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	n := len(segments)
	for i := 1; i+1 < n; i++ {
		if segments[i] == "conferences" && isNumber(segments[i-1]) {
			return route{kind: routeEvent, appID: segments[i-1], conference: segments[i+1], join: i+2 == n}
		}
	}
	last, before, beforeThat := segments[n-1], at(segments, n-2), at(segments, n-3)
	switch last {
	case "authenticate":
		return route{kind: routeAuthenticate}
	case "clockSync":
		return route{kind: routeClockSync}
	case "generics":
		return route{kind: routeGenerics}
	case "qmodelthresholds":
		return route{kind: routeThresholds}
	case "callstats.min.js", "callstats-ws.min.js":
		if before == "static" {
			return route{kind: routeScript}
		}
	case "configurations":
		if isNumber(before) {
			return route{kind: routeConfigurations, appID: before}
		}
	case "internal":
		if before == "configurations" && isNumber(beforeThat) {
			return route{kind: routeConfigurations, appID: beforeThat}
		}
	case "precall", "precallnotification":
		if before == "events" && isNumber(beforeThat) {
			return route{kind: routePreCall, appID: beforeThat}
		}
	}
	return route{}
}

func at(segments []string, i int) string {
	if i < 0 {
		return ""
	}
	return segments[i]
}

func isNumber(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
