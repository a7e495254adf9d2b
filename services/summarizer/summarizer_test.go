package summarizer

import (
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// New does nothing yet: it needs no broker, starts nothing and registers its
// metrics once.
func TestNewIsInert(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	s := New(Config{}, nil, slog.New(slog.DiscardHandler), reg)
	if err := s.Ready(); err == nil {
		t.Error("ready before Run")
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "callscope_") {
			t.Errorf("metric %s has another prefix", f.GetName())
		}
	}
}

// What makes summaries reads nothing but the log.
func TestTheMachineIsPure(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	looked := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") || slices.Contains([]string{"summarizer.go", "config.go", "metrics.go"}, name) {
			continue
		}
		looked++
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range file.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			for _, forbidden := range []string{"net", "os", "time", "context", "math/rand", "crypto/rand", "log"} {
				if path == forbidden || strings.HasPrefix(path, forbidden+"/") {
					t.Errorf("%s imports %s", name, path)
				}
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if _, found := n.(*ast.GoStmt); found {
				t.Errorf("%s starts a goroutine", name)
			}
			return true
		})
	}
	if looked < 6 {
		t.Errorf("only %d files were looked at", looked)
	}
}
