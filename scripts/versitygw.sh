#!/bin/sh
# versitygw.sh DIR: has DIR/versitygw-VERSION, the S3 server that tests of the
# block server's S3 volumes talk to, and prints its path. It is built once, from
# the Go module proxy (about a minute on two cores); it is no dependency of this
# module.
set -eu
version=v1.8.0
dir=${1:?usage: versitygw.sh DIR}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
program=$dir/versitygw-$version
(
	flock 9 # packages are tested at the same time
	if [ ! -x "$program" ]; then
		tmp=$(mktemp -d "$dir/tmp.XXXXXX")
		trap 'rm -rf "$tmp"' EXIT
		cd "$tmp" # outside of any module
		env -u GOFLAGS CGO_ENABLED=0 GOBIN="$tmp" GOWORK=off go install -trimpath -ldflags '-s -w' "github.com/versity/versitygw/cmd/versitygw@$version" >&2
		mv "$tmp/versitygw" "$program"
	fi
) 9>"$dir/lock"
echo "$program"
