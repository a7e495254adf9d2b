package embedded

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestFindLibrary(t *testing.T) {
	cache := t.TempDir()
	set := func(t *testing.T, ours, others string) {
		t.Setenv(libraryEnv, ours)
		t.Setenv(otherLibraryEnv, others)
		t.Setenv("XDG_CACHE_HOME", cache)
		t.Setenv("HOME", cache)
	}
	file := filepath.Join(t.TempDir(), "libchdb.so")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("our variable first", func(t *testing.T) {
		set(t, file, "/nonexistent")
		if got, err := FindLibrary(); got != file || err != nil {
			t.Errorf("FindLibrary() = %q, %v", got, err)
		}
	})
	t.Run("then the common one", func(t *testing.T) {
		set(t, "", file)
		if got, err := FindLibrary(); got != file || err != nil {
			t.Errorf("FindLibrary() = %q, %v", got, err)
		}
	})
	t.Run("a variable that names nothing", func(t *testing.T) {
		set(t, "/nonexistent/libchdb.so", file)
		if _, err := FindLibrary(); err == nil || !strings.Contains(err.Error(), libraryEnv) || !strings.Contains(err.Error(), "/nonexistent/libchdb.so") {
			t.Errorf("error = %v", err)
		}
	})
	t.Run("a variable that names a folder", func(t *testing.T) {
		set(t, cache, "")
		if _, err := FindLibrary(); err == nil || !strings.Contains(err.Error(), "not a file") {
			t.Errorf("error = %v", err)
		}
	})
	t.Run("nothing", func(t *testing.T) {
		set(t, "", "")
		_, err := FindLibrary()
		if err == nil || !strings.Contains(err.Error(), "make engine") || !strings.Contains(err.Error(), "clickhouse.addr") {
			t.Errorf("error = %v, want both ways out", err)
		}
	})
	t.Run("the cache", func(t *testing.T) {
		set(t, "", "")
		userCache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		platform, err := libraryPlatform(runtime.GOOS, runtime.GOARCH)
		if err != nil {
			t.Skip(err)
		}
		want := filepath.Join(userCache, "callscope/engine", LibraryVersion, "node_modules/@chdb/lib-"+platform, "libchdb.so")
		if err := os.MkdirAll(filepath.Dir(want), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(want, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := FindLibrary(); got != want || err != nil {
			t.Errorf("FindLibrary() = %q, %v, want %q", got, err, want)
		}
	})
}

func TestLibraryPlatform(t *testing.T) {
	if _, err := libraryPlatform("plan9", "386"); err == nil || !strings.Contains(err.Error(), "clickhouse.addr") {
		t.Errorf("error = %v", err)
	}
}

// The version is written in three places.
func TestLibraryVersionIsThePinnedOne(t *testing.T) {
	var pkg struct {
		OptionalDependencies map[string]string `json:"optionalDependencies"`
	}
	var lock struct {
		Packages map[string]struct {
			Version   string `json:"version"`
			Integrity string `json:"integrity"`
			Resolved  string `json:"resolved"`
		} `json:"packages"`
	}
	for file, into := range map[string]any{"npm/package.json": &pkg, "npm/package-lock.json": &lock} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, into); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if strings.Contains(string(b), "://") {
			t.Errorf("%s holds an address", file)
		}
	}
	for _, system := range []string{"linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64"} {
		goos, goarch, _ := strings.Cut(system, "/")
		platform, err := libraryPlatform(goos, goarch)
		if err != nil {
			t.Error(err)
		}
		name := "@chdb/lib-" + platform
		if got := pkg.OptionalDependencies[name]; got != LibraryVersion {
			t.Errorf("package.json has %s %q, want %q", name, got, LibraryVersion)
		}
		if got := lock.Packages["node_modules/"+name].Version; got != LibraryVersion {
			t.Errorf("package-lock.json has %s %q, want %q", name, got, LibraryVersion)
		}
	}
	if !strings.HasPrefix(lock.Packages["node_modules/@chdb/lib-linux-x64-gnu"].Integrity, "sha512-") {
		t.Error("package-lock.json has no checksum for linux-x64-gnu")
	}
}
