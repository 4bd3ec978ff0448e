#!/bin/sh
# gpu-kit.sh DIR: collects in DIR, small enough to be carried to another machine
# (under 64 MB), what scripts/gpu-machine-test.sh needs there: the release
# binary, a plain Debian image without anything of CUDA, and a program that uses
# a GPU. Needs build/crunch-run (make release).
set -eu
dir=$1
here=$(dirname "$0")
mkdir -p "$dir"
gzip -c build/crunch-run >"$dir/crunch-run.gz"
gcc -O1 -Wall -o "$dir/cudaprobe" "$here/gpu/cudaprobe.c" -ldl
[ -e "$dir/debian.tar.zst" ] || {
	tmp=$(mktemp -d "$dir/.tmp.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	"$here/debian-image.sh" "$tmp/debian.tar"
	zstd -q -19 -T0 -o "$tmp/debian.tar.zst" "$tmp/debian.tar"
	mv "$tmp/debian.tar.zst" "$dir/debian.tar.zst"
}
ls -l "$dir"
