#!/bin/sh
# peer-runc.sh: builds runc of the version whose libcontainer we use, from the Go
# module proxy, with libseccomp, unless it has been built before; prints its path.
# It is a peer for benchmarks and the validation suite, no part of the product.
set -eu
cd "$(dirname "$0")/.."
PKG_CONFIG_PATH=$PWD/.build/pkgconfig
export PKG_CONFIG_PATH CGO_ENABLED=1
version=$(go list -m -f '{{.Version}}' github.com/opencontainers/runc)
program=$PWD/.build/peers/runc-$version
if [ ! -x "$program" ]; then
	mkdir -p .build/peers
	dir=$(go mod download -json "github.com/opencontainers/runc@$version" | sed -n 's/^\t*"Dir": "\(.*\)",*$/\1/p')
	go -C "$dir" build -trimpath -tags seccomp -ldflags "-s -w -X main.version=${version#v}" -o "$program.$$" . >&2
	mv "$program.$$" "$program"
fi
echo "$program"
