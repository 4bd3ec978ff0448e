#!/bin/sh
# validation-suite.sh [PROGRAM...]: builds programs of the Open Containers
# Initiative's validation suite (all of them by default) from the Go module proxy,
# unless they have been built before. Prints the directory in which they must be
# started; they are in its bin.
set -eu
cd "$(dirname "$0")/.."
version=v0.9.1-0.20251114084447-edf4cb3d2116
dir=$PWD/.build/validation/$version
mkdir -p "$dir/bin"
exec 9>"$dir/lock"
flock 9
if [ ! -d "$dir/source" ]; then
	cd "$dir" # not in our module: it is no dependency
	module=$(GOFLAGS=-mod=mod go mod download -json "github.com/opencontainers/runtime-tools@$version" | sed -n 's/^\t*"Dir": "\(.*\)",*$/\1/p')
	rm -rf source.new
	cp -r "$module" source.new
	chmod -R u+w source.new
	# Vendored packages take precedence, and are older than what go.mod asks for.
	rm -rf source.new/vendor
	mv source.new source
fi
cd "$dir/source"
build() {
	[ -x "$dir/bin/$1" ] && return
	CGO_ENABLED=0 go build -mod=mod -trimpath -o "$dir/bin/$1" "$2" >&2
}
build runtimetest ./cmd/runtimetest
cp "$dir/bin/runtimetest" .
[ $# -gt 0 ] || set -- $(ls validation | grep -vx util)
for p in "$@"; do
	build "$p" "./validation/$p"
done
echo "$dir"
