package store

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/callscope/callscope/test/chaintest"
)

const demoSecret = "synthetic-app-secret-01"

// client is one callstats REST client.
type client struct {
	t             *testing.T
	gateway, user string
	token         string
}

func signIn(t *testing.T, gateway, user string) client {
	t.Helper()
	code, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"userID": user, "appID": appID}).SignedString([]byte(demoSecret))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.PostForm("http://"+gateway+"/authenticate", url.Values{"client_id": {user + "@" + appID}, "code": {code}, "grant_type": {"authorization_code"}})
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var granted struct {
		Token string `json:"access_token"`
	}
	if err := json.NewDecoder(response.Body).Decode(&granted); err != nil || granted.Token == "" {
		t.Fatalf("signing in as %q: %s, %v", user, response.Status, err)
	}
	return client{t, gateway, user, granted.Token}
}

// post sends an event to a path below the app's conferences. It must be accepted.
func (c client) post(path string, event map[string]any) map[string]any {
	c.t.Helper()
	body, err := json.Marshal(event)
	if err != nil {
		c.t.Fatal(err)
	}
	request, err := http.NewRequest(http.MethodPost, "http://"+c.gateway+"/v1/apps/"+appID+"/conferences/"+path, strings.NewReader(string(body)))
	if err != nil {
		c.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+c.token)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		c.t.Fatal(err)
	}
	defer response.Body.Close()
	var answer map[string]any
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || answer["status"] != "success" {
		c.t.Fatalf("%s: %s, %v, %v", path, response.Status, answer, err)
	}
	return answer
}

// TestIDsMeanNothingInSQL: conference, user, device and remote ids, names, aliases and comments that look like SQL
// go through the whole chain and come out byte by byte, and nothing of the database is gone afterwards.
func TestIDsMeanNothingInSQL(t *testing.T) {
	s := start(t, filepath.Join(t.TempDir(), "engine"))
	tables := count(t, s.engine, "SELECT count() FROM system.tables WHERE database = 'callscope'")
	began := time.Now().UTC()
	nasty := []string{
		`'; DROP TABLE events_rows; --`, `' OR '1'='1`, `\' OR 1=1 --`, `\\'; DROP DATABASE callscope; --`, "`events_rows`", `"events_rows"`, `{database}.{table:Identifier}`,
		`$$ $1 ? :name @x %s %d`, `/* */ UNION SELECT * FROM participant_names_rows`, "a\tb\nc\\N", "\u2019; DROP TABLE samples_rows", `') , (toUUID('00000000-0000-0000-0000-000000000000'), '`,
	}
	for i, id := range nasty {
		c := signIn(t, s.gateway, id)
		at := func(k int) int64 { return time.Now().UnixMilli() + int64(k) }
		event := func(name string, k int, more map[string]any) map[string]any {
			e := map[string]any{"eventType": name, "localID": id, "deviceID": id, "timestamp": at(k)}
			for key, v := range more {
				e[key] = v
			}
			return e
		}
		room := url.PathEscape(id)
		uc := c.post(room, event("userJoined", 0, map[string]any{"userName": id}))["ucID"]
		below := room + "/" + url.PathEscape(fmt.Sprint(uc)) + "/events/"
		c.post(below+"userdetails", event("userDetails", 1, map[string]any{"userName": id, "aliasName": id}))
		connection := fmt.Sprintf("pc'%d", i)
		c.post(below+"fabric/setup", event("fabricSetup", 2, map[string]any{"remoteID": "to " + id, "connectionID": connection, "delay": 12, "iceConnectivityDelay": 5}))
		c.post(below+"feedback", event("userFeedbackEvent", 3, map[string]any{"feedback": map[string]any{"overallRating": 3, "comments": id}}))
		c.post(below+"fabric/terminated", event("fabricTerminated", 4, map[string]any{"remoteID": "to " + id, "connectionID": connection}))
	}
	chaintest.Eventually(t, 90*time.Second, "the calls ending", func() string {
		a, err := chaintest.Query(s.engine, "SELECT countIf(state IN ('final', 'revised')) AS n FROM conferences")
		if err != nil {
			return err.Error()
		}
		if n := int(a.Rows[0][0].(float64)); n != len(nasty) {
			return fmt.Sprintf("%d of %d have ended", n, len(nasty))
		}
		return ""
	})
	for _, id := range nasty {
		is := func(column string) string { return column + " = unhex('" + hex.EncodeToString([]byte(id)) + "')" }
		all := is("conference_id") + " AND " + is("user_id") + " AND " + is("device_id")
		for _, check := range []struct {
			from string
			want int
		}{
			{"conferences WHERE " + is("conference_id"), 1},
			{"participants WHERE " + all, 1},
			{"participants_named WHERE " + all + " AND " + is("user_name"), 1},
			{"fabrics WHERE " + all + " AND " + is("substring(remote_id, 4)") + " AND outcome = 'setup'", 1},
			{"feedback WHERE " + all + " AND " + is("comment"), 1},
			{"events WHERE " + all + " AND event_type = 'fabricSetup'", 1},
		} {
			if n := count(t, s.engine, "SELECT count() FROM "+check.from); n != check.want {
				t.Errorf("id %q: %d rows in %s, want %d", id, n, check.from, check.want)
			}
		}
	}
	if n := count(t, s.engine, "SELECT count() FROM system.tables WHERE database = 'callscope'"); n != tables {
		t.Errorf("there are %d tables and views, there were %d", n, tables)
	}
	if n := count(t, s.engine, "SELECT count() FROM conferences"); n != len(nasty) {
		t.Errorf("%d conferences, want %d", n, len(nasty))
	}

	// The command line hands ids to the server too.
	for _, id := range nasty[:4] {
		refused(t, 2, "--app: ", append([]string{"token", "mint", "--app", id, "--user", id}, s.kafka()...)...)
		refused(t, 1, "(?i)unknown app", append([]string{"replay", "--from", began.Add(-time.Hour).Format(time.RFC3339), "--to", began.Add(time.Hour).Format(time.RFC3339), "--dry-run", "--app", id}, s.servers()...)...)
	}
	out := succeeded(t, append([]string{"sql", "--output", "ndjson", "SELECT conference_id FROM conferences WHERE conference_id = unhex('" + hex.EncodeToString([]byte(nasty[0])) + "')"}, s.clickhouse()...)...)
	if want := `{"conference_id":"'; DROP TABLE events_rows; --"}` + "\n"; out != want {
		t.Errorf("callscope sql prints %s, want %s", out, want)
	}
}
