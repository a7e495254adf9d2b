// Package test holds the tests that look at callscope as a whole. Its folders
// drive the real binary; this file checks who imports whom.
package test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/callscope/callscope/"

type listedPackage struct {
	ImportPath   string
	Dir          string
	GoFiles      []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func listPackages(t *testing.T) []listedPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports,TestImports,XTestImports", module+"...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("listing packages: %v", err)
	}
	var packages []listedPackage
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listedPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("reading the package list: %v", err)
		}
		packages = append(packages, p)
	}
	if len(packages) < 10 {
		t.Fatalf("listed %d packages only: the list is broken", len(packages))
	}
	return packages
}

// owners says which packages may import a library. A prefix ends with a slash.
var owners = []struct {
	library string
	allowed []string
	reason  string
}{
	{"github.com/segmentio/kafka-go", []string{"internal/stream/"}, "internal/stream owns Kafka"},
	{"github.com/twmb/franz-go", []string{"internal/stream/", "internal/embedded/"}, "internal/stream owns Kafka, internal/embedded the embedded broker"},
	{"github.com/ClickHouse/clickhouse-go", []string{"internal/store/", "internal/embedded/"}, "internal/store owns ClickHouse; internal/embedded speaks its format"},
	{"github.com/ClickHouse/ch-go", []string{"internal/store/", "internal/embedded/"}, "internal/store owns ClickHouse; internal/embedded speaks its format"},
	{"github.com/gorilla/websocket", []string{"services/gateway/"}, "only the gateway speaks WebSocket"},
	{"github.com/knadh/koanf", []string{"internal/config/"}, "internal/config owns configuration"},
	{"github.com/spf13/cobra", []string{"internal/app/"}, "internal/app owns the command line"},
}

// layers says which of our packages a package may import.
var layers = []struct {
	from    string
	allowed []string
}{
	{"cmd/", []string{"internal/app/"}},
	{"internal/app/", []string{"services/", "internal/", "proto/"}},
	{"services/", []string{"internal/stage/", "internal/stream/", "internal/store/", "internal/apps/", "internal/erasures/", "internal/quality/", "internal/config/", "proto/"}},
	{"internal/stage/", []string{"internal/stage/", "internal/stream/", "proto/"}},
	{"internal/replay/", []string{"services/", "internal/archive/", "internal/stage/", "internal/stream/", "internal/store/", "proto/"}},
	{"internal/archive/", []string{"internal/stream/"}},
	{"internal/apps/", []string{"internal/stream/", "internal/config/", "proto/"}},
	{"internal/erasures/", []string{"internal/stream/", "proto/"}},
	{"internal/stream/", []string{"internal/stream/", "internal/config/"}},
	{"internal/store/", []string{"internal/store/", "internal/config/"}},
	{"internal/embedded/", []string{"internal/embedded/"}},
	{"internal/config/", nil},
	{"internal/dumps/", nil},
	{"internal/quality/", nil},
	{"proto/", []string{"proto/"}},
}

func within(path string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(path+"/", prefix) })
}

// service returns "services/<name>/" for a package of a service, else "".
func service(path string) string {
	parts := strings.Split(path, "/")
	if len(parts) < 2 || parts[0] != "services" {
		return ""
	}
	return parts[0] + "/" + parts[1] + "/"
}

func isTestSupport(path string) bool {
	last := path[strings.LastIndex(path, "/")+1:]
	return strings.HasSuffix(last, "test") && strings.Contains(path, "/")
}

func TestImportRules(t *testing.T) {
	for _, p := range listPackages(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		for _, imported := range p.Imports {
			for _, owner := range owners {
				if (imported == owner.library || strings.HasPrefix(imported, owner.library+"/")) && !within(from, owner.allowed) {
					t.Errorf("%s imports %s: %s", from, imported, owner.reason)
				}
			}
			ours, found := strings.CutPrefix(imported, module)
			if !found {
				continue
			}
			if isTestSupport(ours) && !isTestSupport(from) && !strings.HasPrefix(from+"/", "test/") {
				t.Errorf("%s imports %s: test support belongs in _test.go files and in test/", from, ours)
			}
			for _, layer := range layers {
				if !strings.HasPrefix(from+"/", layer.from) || isTestSupport(from) {
					continue
				}
				if !within(ours, layer.allowed) && (service(from) == "" || service(from) != service(ours)) {
					t.Errorf("%s imports %s: allowed are %v", from, ours, layer.allowed)
				}
			}
		}
		for _, imported := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			ours := strings.TrimPrefix(imported, module)
			if service(from) != "" && service(ours) != "" && service(from) != service(ours) {
				t.Errorf("%s imports %s: services share a topic and a message, never code", from, ours)
			}
		}
		for _, banned := range []string{"util", "utils", "common", "helpers", "pkg"} {
			if slices.Contains(strings.Split(from, "/"), banned) {
				t.Errorf("%s: a package is named by what it holds, not %q", from, banned)
			}
		}
	}
}

// TestStagesArePure keeps the clock, the network and randomness out of the
// packages whose output must be the same on every run (design 3.2).
func TestStagesArePure(t *testing.T) {
	banned := []string{"net", "net/http", "os", "math/rand", "math/rand/v2", "crypto/rand"}
	checked := 0
	for _, p := range listPackages(t) {
		switch strings.TrimPrefix(p.ImportPath, module) {
		case "services/enricher", "services/summarizer", "internal/quality":
		default:
			continue
		}
		checked++
		for _, imported := range p.Imports {
			if slices.Contains(banned, imported) {
				t.Errorf("%s imports %s: a stage is a pure function of its log", p.ImportPath, imported)
			}
		}
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatalf("parsing %s: %v", name, err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if x, ok := call.X.(*ast.Ident); ok && x.Name == "time" &&
					slices.Contains([]string{"Now", "Since", "Until", "After", "Tick", "NewTimer", "NewTicker", "Sleep"}, call.Sel.Name) {
					t.Errorf("%s reads the clock by time.%s: time is in the log", name, call.Sel.Name)
				}
				return true
			})
		}
	}
	if checked < 3 {
		t.Fatalf("checked %d packages, want the enricher, the summarizer and quality", checked)
	}
}
