package callstatsrest

import (
	"net/http"
	"strings"
	"testing"
)

func TestParseRoute(t *testing.T) {
	for path, want := range map[string]route{
		"/v1/apps/123456789/conferences/a%2Fb":                   {kind: routeEvent, appID: "123456789", conference: "a%2Fb", join: true},
		"/v1/apps/123456789/conferences/a/u/events/fabric/setup": {kind: routeEvent, appID: "123456789", conference: "a"},
		"/123456789/conferences/a/u/stats":                       {kind: routeEvent, appID: "123456789", conference: "a"},
		"/events//123456789/conferences/a/u/customstats":         {kind: routeEvent, appID: "123456789", conference: "a"},
		"/v1/apps/1/conferences/conferences/conferences":         {kind: routeEvent, appID: "1", conference: "conferences"},
		"/v1/apps/1/conferences/2/conferences/x":                 {kind: routeEvent, appID: "1", conference: "2"},
		"/v1/apps/1/conferences/":                                {kind: routeEvent, appID: "1", join: true},
		"/v1/apps/1/conferences/authenticate":                    {kind: routeEvent, appID: "1", conference: "authenticate", join: true},
		"/v1/apps/1/conferences":                                 {},
		"/conferences/a":                                         {},
		"/v1/apps/x/conferences/a":                               {},
		"/v1/apps/1/events/precall":                              {kind: routePreCall, appID: "1"},
		"/1/events/precallnotification":                          {kind: routePreCall, appID: "1"},
		"/events/precall":                                        {},
		"/v1/apps/1/configurations":                              {kind: routeConfigurations, appID: "1"},
		"/v1/apps/1/configurations/internal":                     {kind: routeConfigurations, appID: "1"},
		"/1/configurations":                                      {kind: routeConfigurations, appID: "1"},
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
