package embedded

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// LibraryVersion is the pinned version of the ClickHouse library, the one that
// npm/package-lock.json names.
const LibraryVersion = "26.7.3-stable.1"

// Environment variables that name a library file. The first is ours, the
// second is what the library's other users set.
const (
	libraryEnv      = "CALLSCOPE_ENGINE_LIBRARY"
	otherLibraryEnv = "CHDB_LIBCHDB_PATH"
)

// FindLibrary returns the path of the ClickHouse library: the file named by
// CALLSCOPE_ENGINE_LIBRARY, else by CHDB_LIBCHDB_PATH, else the pinned version
// in the user's cache folder, where npm/fetch.sh puts it. The error says what
// to do.
func FindLibrary() (string, error) {
	for _, name := range []string{libraryEnv, otherLibraryEnv} {
		if path := os.Getenv(name); path != "" {
			if err := regularFile(path); err != nil {
				return "", fmt.Errorf("%s names no ClickHouse library: %w", name, err)
			}
			return path, nil
		}
	}
	platform, err := libraryPlatform(runtime.GOOS, runtime.GOARCH)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the cache folder that holds the ClickHouse library: %w; set %s to the library's path", err, libraryEnv)
	}
	folder := filepath.Join(cache, "callscope", "engine", LibraryVersion, "node_modules", "@chdb", "lib-"+platform)
	for _, file := range []string{"libchdb.so", "libchdb.dylib"} {
		if path := filepath.Join(folder, file); regularFile(path) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("the embedded engine needs the ClickHouse library %s, which is not in %s: run `make engine` to fetch it, or set clickhouse.addr to use a ClickHouse server", LibraryVersion, folder)
}

// libraryPlatform is the platform's name in the library's package names.
func libraryPlatform(goos, goarch string) (string, error) {
	switch goos + "/" + goarch {
	case "linux/amd64":
		return "linux-x64-gnu", nil
	case "linux/arm64":
		return "linux-arm64-gnu", nil
	case "darwin/amd64":
		return "darwin-x64", nil
	case "darwin/arm64":
		return "darwin-arm64", nil
	}
	return "", fmt.Errorf("there is no ClickHouse library for %s/%s: set clickhouse.addr to use a ClickHouse server", goos, goarch)
}

func regularFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", path)
	}
	return nil
}
