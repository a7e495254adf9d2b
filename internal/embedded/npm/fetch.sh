#!/bin/sh
# Fetches the pinned ClickHouse library for `callscope engine` into the user's
# cache folder, where FindLibrary looks for it. Does nothing when it is there.
# npm checks the package against the lock file's checksum; nothing of it is run.
set -eu

fail() {
	echo "engine library: $*" >&2
	exit 1
}

here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)

case "$(uname -s)/$(uname -m)" in
Linux/x86_64 | Linux/amd64) platform=linux-x64-gnu ;;
Linux/aarch64 | Linux/arm64) platform=linux-arm64-gnu ;;
Darwin/x86_64) platform=darwin-x64 ;;
Darwin/arm64) platform=darwin-arm64 ;;
*) fail "none is published for $(uname -s) on $(uname -m): set clickhouse.addr to use a ClickHouse server" ;;
esac

version=$(sed -n "s|.*\"@chdb/lib-$platform\": *\"\\([^\"]*\\)\".*|\\1|p" "$here/package.json")
[ -n "$version" ] || fail "package.json names no version for $platform"

# The same folder as Go's os.UserCacheDir.
if [ "$(uname -s)" = Darwin ]; then
	[ -n "${HOME:-}" ] || fail "HOME is not set"
	cache=$HOME/Library/Caches
elif [ -n "${XDG_CACHE_HOME:-}" ]; then
	case "$XDG_CACHE_HOME" in
	/*) cache=$XDG_CACHE_HOME ;;
	*) fail "XDG_CACHE_HOME must be an absolute path, not $XDG_CACHE_HOME" ;;
	esac
else
	[ -n "${HOME:-}" ] || fail "neither XDG_CACHE_HOME nor HOME is set"
	cache=$HOME/.cache
fi

folder=$cache/callscope/engine/$version
package=node_modules/@chdb/lib-$platform

complete() {
	[ -f "$1/$package/libchdb.so" ] || [ -f "$1/$package/libchdb.dylib" ]
}

if complete "$folder"; then
	echo "engine library: $version is in $folder"
	exit 0
fi

command -v npm >/dev/null 2>&1 || fail "npm is needed once to fetch it: install Node.js with npm, or set clickhouse.addr to use a ClickHouse server"

mkdir -p "$(dirname -- "$folder")"
temp=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$temp"' EXIT
trap 'exit 1' HUP INT TERM

echo "engine library: fetching $version for $platform (about 180 MB, once)"
cp "$here/package.json" "$here/package-lock.json" "$temp/"
(cd "$temp" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null) ||
	fail "npm could not fetch @chdb/lib-$platform $version; try again, or set clickhouse.addr to use a ClickHouse server"
# npm passes over an optional package that it cannot get or whose checksum is wrong.
complete "$temp" || fail "npm installed no @chdb/lib-$platform $version: it could not be reached, is not published for this system, or its checksum is wrong; try again, or set clickhouse.addr to use a ClickHouse server"

# The rename makes it visible whole. A folder that is there by now is either
# another run's, complete, or the leftover of a broken one.
complete "$folder" || rm -rf "$folder"
if ! complete "$folder"; then
	mv "$temp" "$folder"
fi
echo "engine library: $version is ready in $folder"
