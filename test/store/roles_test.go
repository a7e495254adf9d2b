package store

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/callscope/callscope/test/chaintest"
)

// grantRe finds the grants of the schema, of which internal/store keeps this file.
var grantRe = regexp.MustCompile(`(?m)^GRANT +(SELECT ON .*) TO (callscope_\w+)$`)

// TestRoles gives the rights that a migration grants to two people on an engine with access control, and asks every view
// for each: the analyst reads all but the real names, which the support role reads too. The embedded engine takes users
// and roles from a file only, and everybody who asks it is its default user; a view that is read with the rights of
// somebody else shows what that person may.
func TestRoles(t *testing.T) {
	golden, err := os.ReadFile(filepath.Join("..", "..", "internal", "store", "testdata", "single.golden.sql"))
	if err != nil {
		t.Fatal(err)
	}
	type grants struct {
		Query []string `xml:"query"`
	}
	type user struct {
		XMLName  xml.Name
		Password string `xml:"password"`
		Networks struct {
			IP string `xml:"ip"`
		} `xml:"networks"`
		Profile string  `xml:"profile"`
		Quota   string  `xml:"quota"`
		Grants  *grants `xml:"grants,omitempty"`
		Manages int     `xml:"access_management"`
	}
	type role struct {
		XMLName xml.Name
		Grants  grants `xml:"grants"`
	}
	type file struct {
		XMLName  xml.Name `xml:"clickhouse"`
		Profiles struct {
			Default string `xml:"default"`
		} `xml:"profiles"`
		Quotas struct {
			Default string `xml:"default"`
		} `xml:"quotas"`
		Roles struct{ List []role } `xml:"roles"`
		Users struct{ List []user } `xml:"users"`
	}
	var users file
	person := func(name string, grants *grants, manages int) {
		u := user{XMLName: xml.Name{Local: name}, Profile: "default", Quota: "default", Grants: grants, Manages: manages}
		u.Networks.IP = "::/0"
		users.Users.List = append(users.Users.List, u)
	}
	person("default", nil, 1)
	person("maria", &grants{[]string{"GRANT callscope_analyst"}}, 0)
	person("sam", &grants{[]string{"GRANT callscope_support"}}, 0)
	for _, m := range grantRe.FindAllStringSubmatch(string(golden), -1) {
		var list []string
		for grant := range strings.SplitSeq(m[1], ", ") {
			list = append(list, "GRANT "+grant)
		}
		users.Roles.List = append(users.Roles.List, role{xml.Name{Local: m[2]}, grants{list}})
	}
	if len(users.Roles.List) != 2 {
		t.Fatalf("the schema grants something to %d roles, want 2", len(users.Roles.List))
	}
	dir := t.TempDir()
	text, err := xml.MarshalIndent(users, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	config := "<clickhouse><users_config>" + filepath.Join(dir, "users.xml") + "</users_config></clickhouse>"
	// The engine adds to its configuration, which says nothing, what lies in the directory of that name beside it.
	additions := filepath.Join(dir, "data", "callscope-config.d")
	if err := os.MkdirAll(additions, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{filepath.Join(dir, "users.xml"): string(text), filepath.Join(additions, "users.xml"): config} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	engine, broker := chaintest.FreeAddress(t), chaintest.FreeAddress(t)
	e := chaintest.Start(t, "callscope engine", "engine", "--data", filepath.Join(dir, "data"), "--addr", engine)
	b := chaintest.Start(t, "callscope broker", "broker", "--data", dir, "--set", "kafka.embedded_addr="+broker)
	chaintest.Listening(t, e, engine)
	chaintest.Listening(t, b, broker)
	succeeded(t, "migrate", "--set", "clickhouse.addr="+engine, "--set", "clickhouse.protocol=http", "--set", "kafka.brokers="+broker, "--log-level", "error")
	chaintest.MustQuery(t, engine, "CREATE DATABASE probe")

	// may tells whether somebody may read something, and fails on any other error.
	may := func(who, what string) bool {
		t.Helper()
		view := "probe." + who + "_" + what
		chaintest.MustQuery(t, engine, "CREATE VIEW "+view+" DEFINER = "+who+" SQL SECURITY DEFINER AS SELECT * FROM callscope."+what)
		_, err := chaintest.Query(engine, "SELECT * FROM "+view+" LIMIT 1")
		if err != nil && !strings.Contains(err.Error(), who+": Not enough privileges") {
			t.Errorf("%s reading %s: %v", who, what, err)
		}
		return err == nil
	}
	views := chaintest.MustQuery(t, engine, "SELECT name FROM system.tables WHERE database = 'callscope' AND engine = 'View' ORDER BY name").Records()
	if len(views) < 12 {
		t.Fatalf("only %d views", len(views))
	}
	for _, r := range views {
		view := r.Text("name")
		if got, want := may("maria", view), view != "participants_named"; got != want {
			t.Errorf("the analyst may read %s: %v, want %v", view, got, want)
		}
		if !may("sam", view) {
			t.Errorf("the support role may not read %s", view)
		}
	}
	if may("maria", "participant_names_rows") {
		t.Error("the analyst may read the real names behind the views")
	}
	for _, who := range []string{"maria", "sam"} {
		granted := chaintest.MustQuery(t, engine, "SELECT DISTINCT access_type FROM system.grants WHERE role_name IN (SELECT granted_role_name FROM system.role_grants WHERE user_name = '"+who+"')").Rows
		if len(granted) != 1 || granted[0][0] != "SELECT" {
			t.Errorf("%s may do %v, want to read alone", who, granted)
		}
	}
}
