package app

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// The image must have the dynamic linker that the binary asks for, which it does even without cgo; without it the
// container ends with "no such file or directory".
func TestImageHasWhatTheBinaryNeeds(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("reads the binary as one for Linux")
	}
	text, err := os.ReadFile("../../deploy/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	images := regexp.MustCompile(`(?m)^FROM (\S+)`).FindAllStringSubmatch(string(text), -1)
	if len(images) < 2 || !strings.Contains(string(text), "CGO_ENABLED=0 go build") {
		t.Fatalf("the Dockerfile is not what this test knows:\n%s", text)
	}
	path := filepath.Join(t.TempDir(), "callscope")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", path, "github.com/callscope/callscope/cmd/callscope")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	binary, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	dynamic := slices.ContainsFunc(binary.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
	image := images[len(images)-1][1]
	if bare := image == "scratch" || strings.Contains(image, "distroless/static"); bare && dynamic {
		t.Errorf("%s has no dynamic linker, and the binary asks for one", image)
	}
}
