package callstatsrest

import (
	"net/http"
	"strings"
	"testing"
)

func TestParseRoute(t *testing.T) {
	for path, want := range map[string]route{
		"/v1/apps/123456789/conferences/a%2Fb":                   {routeEvent, "123456789", "a%2Fb"},
		"/v1/apps/123456789/conferences/a/u/events/fabric/setup": {routeEvent, "123456789", "a"},
		"/123456789/conferences/a/u/stats":                       {routeEvent, "123456789", "a"},
		"/events//123456789/conferences/a/u/customstats":         {routeEvent, "123456789", "a"},
		"/v1/apps/1/conferences/conferences/conferences":         {routeEvent, "1", "conferences"},
		"/v1/apps/1/conferences/2/conferences/x":                 {routeEvent, "1", "2"},
		"/v1/apps/1/conferences/":                                {routeEvent, "1", ""},
		"/v1/apps/1/conferences/authenticate":                    {routeEvent, "1", "authenticate"},
		"/v1/apps/1/conferences":                                 {},
		"/conferences/a":                                         {},
		"/v1/apps/x/conferences/a":                               {},
		"/v1/apps/1/events/precall":                              {routePreCall, "1", ""},
		"/1/events/precallnotification":                          {routePreCall, "1", ""},
		"/events/precall":                                        {},
		"/v1/apps/1/configurations":                              {routeConfigurations, "1", ""},
		"/v1/apps/1/configurations/internal":                     {routeConfigurations, "1", ""},
		"/1/configurations":                                      {routeConfigurations, "1", ""},
		"/configurations":                                        {},
		"/authenticate":                                          {kind: routeAuthenticate},
		"/auth/authenticate":                                     {kind: routeAuthenticate},
		"/clockSync":                                             {kind: routeClockSync},
		"/collector/generics":                                    {kind: routeGenerics},
		"/api-internal/v1/qmodelthresholds":                      {kind: routeThresholds},
		"/static/callstats.min.js":                               {kind: routeScript},
		"/static/callstats-ws.min.js":                            {kind: routeScript},
		"/callstats.min.js":                                      {},
		"/":                                                      {},
		"":                                                       {},
	} {
		if got := parseRoute(path); got != want {
			t.Errorf("%s is %+v, want %+v", path, got, want)
		}
	}
}

func TestRawPath(t *testing.T) {
	for uri, want := range map[string]string{
		"/a%2Fb?x=y":                     "/a%2Fb",
		"http://host/a%2Fb?x":            "/a%2Fb",
		"http://host":                    "/",
		"*":                              "*",
		"/v1//apps/../1/conferences/%3F": "/v1//apps/../1/conferences/%3F",
	} {
		if got := rawPath(&http.Request{RequestURI: uri}); got != want {
			t.Errorf("%s has path %s, want %s", uri, got, want)
		}
	}
}

func FuzzParseRoute(f *testing.F) {
	f.Add("/v1/apps/123456789/conferences/Demo%20room%20%2F%201/u/events/ssrcmap")
	f.Add("/1/conferences/%")
	f.Add("/1/configurations/internal")
	f.Add("//events/precall")
	f.Fuzz(func(t *testing.T, path string) {
		r := parseRoute(path)
		switch r.kind {
		case routeEvent, routePreCall, routeConfigurations:
			if !isNumber(r.appID) || !strings.Contains(path, "/"+r.appID+"/") && !strings.HasPrefix(path, r.appID+"/") {
				t.Fatalf("%q has app %q", path, r.appID)
			}
		default:
			if r.appID != "" || r.conference != "" {
				t.Fatalf("%q is %+v", path, r)
			}
		}
		if strings.Contains(r.conference, "/") {
			t.Fatalf("%q has conference %q", path, r.conference)
		}
		if id, err := conferenceOf(r); err == nil && (id == "" || len(id) > 256) {
			t.Fatalf("%q has conference id %q", path, id)
		}
	})
}
