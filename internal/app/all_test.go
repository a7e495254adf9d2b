package app

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/callscope/callscope/internal/embedded"
)

// installation is a data directory with the addresses of what runs on it.
type installation struct {
	data, admin, broker, engine, gateway string
}

func (in installation) flags() []string {
	return []string{"--set", "admin.addr=" + in.admin, "--set", "kafka.embedded_addr=" + in.broker,
		"--set", "clickhouse.embedded_addr=" + in.engine, "--set", "gateway.addr=" + in.gateway}
}

func (in installation) all() []string {
	return append([]string{"all", "--demo", "--data", in.data}, in.flags()...)
}

// started is a running `callscope all`.
type started struct {
	*exec.Cmd
	stderr *strings.Builder
}

func (in installation) start(t *testing.T) started {
	t.Helper()
	cmd := started{command(t, nil, in.all()...), new(strings.Builder)}
	cmd.Cmd.Stderr = cmd.stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		answer, err := http.Get("http://" + in.admin + "/readyz?verbose")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err == nil && answer.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s", text)
		}
		return err
	})
	return cmd
}

func (s started) end(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := s.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	err := s.Wait()
	if signal != syscall.SIGKILL && err != nil {
		t.Errorf("%v:\n%s", err, s.stderr)
	}
}

// post sends one event of the demo app and returns the answer's JSON.
func (in installation) post(t *testing.T, path, contentType, token, body string) map[string]any {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+in.gateway+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var got map[string]any
	if err := json.NewDecoder(answer.Body).Decode(&got); err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d: %v, %v", path, answer.StatusCode, got, err)
	}
	return got
}

// The whole in one process: it starts with nothing, says what is in the way of a second one, survives a kill with what
// it had answered, and drains.
func TestAll(t *testing.T) {
	if _, err := embedded.FindLibrary(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("needs the ClickHouse library: %v", err)
	}
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	in := installation{filepath.Join(t.TempDir(), "data"), closedAddr(t), closedAddr(t), closedAddr(t), closedAddr(t)}
	all := in.start(t)

	second := in
	second.admin = "127.0.0.1:0"
	second.gateway = closedAddr(t)
	code, _, stderr := result(t, command(t, nil, quiet(second.all()...)...))
	if code != exitFailed || !strings.HasPrefix(stderr, "callscope: embedded broker failed: the embedded Kafka broker cannot use data directory "+in.data) {
		t.Errorf("a second one on the same directory: exit code %d: %s", code, stderr)
	}
	second = installation{filepath.Join(t.TempDir(), "other"), "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", in.gateway}
	code, _, stderr = result(t, command(t, nil, quiet(second.all()...)...))
	if code != exitFailed || !strings.HasPrefix(stderr, "callscope: gateway failed: ") || !strings.Contains(stderr, in.gateway) || !strings.Contains(stderr, "gateway.addr") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("a second one on the gateway's port: exit code %d: %s", code, stderr)
	}

	signed := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"userID": "ann", "appID": 123456789})
	code2, err := signed.SignedString([]byte(demoAppSecret))
	if err != nil {
		t.Fatal(err)
	}
	form := url.Values{"client_id": {"ann@" + demoAppID}, "code": {code2}, "grant_type": {"authorization_code"}}
	token, ok := in.post(t, "/authenticate", "application/x-www-form-urlencoded", "", form.Encode())["access_token"].(string)
	if !ok {
		t.Fatal("no token")
	}
	room := "/v1/apps/" + demoAppID + "/conferences/a%20room"
	event := func(eventType string) string {
		return fmt.Sprintf(`{"eventType":%q,"localID":"ann","deviceID":"d1","timestamp":%d}`, eventType, time.Now().UnixMilli())
	}
	ucID, ok := in.post(t, room, "application/json", token, event("userJoined"))["ucID"].(string)
	if !ok {
		t.Fatal("no ucID")
	}

	all.end(t, syscall.SIGKILL)
	all = in.start(t)
	// The token and the ucID of before the kill still hold.
	in.post(t, room+"/"+ucID+"/events/userdetails", "application/json", token, event("userDetails"))
	eventually(t, func() error {
		code, stdout, stderr := result(t, command(t, nil, append([]string{"sql", "-o", "ndjson",
			"SELECT conference_id, groupArray(event_type) AS events FROM (SELECT * FROM events ORDER BY received_at) GROUP BY conference_id"}, in.flags()...)...))
		if want := `{"conference_id":"a room","events":["userJoined","userDetails"]}` + "\n"; code != exitOK || stdout != want {
			return fmt.Errorf("exit code %d: %s%s", code, stdout, stderr)
		}
		return nil
	})
	code, stdout, stderr := result(t, command(t, nil, append([]string{"lag", "-o", "json"}, in.flags()...)...))
	var lag struct{ Groups []struct{ Group string } }
	if err := json.Unmarshal([]byte(stdout), &lag); err != nil || code != exitOK || len(lag.Groups) != 3 {
		t.Errorf("lag: exit code %d: %s%s", code, stdout, stderr)
	}
	code, _, stderr = result(t, command(t, nil, append([]string{"sql", "SELECT nope FROM conferences"}, in.flags()...)...))
	if code != exitFailed || !strings.HasPrefix(stderr, "callscope: ClickHouse answered with error 47: ") {
		t.Errorf("a wrong query: exit code %d: %s", code, stderr)
	}
	all.end(t, syscall.SIGTERM)
	if !strings.Contains(all.stderr.String(), "embedded broker is closed") {
		t.Errorf("it did not drain to the end:\n%s", all.stderr)
	}
}
