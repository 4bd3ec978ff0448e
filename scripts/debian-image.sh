#!/bin/sh
# debian-image.sh OUT.tar [PACKAGE...]: a Debian image (this machine's release,
# debootstrap's minbase variant and the named packages) in "docker save" format,
# from the mirror apt is configured with.
set -eu
out=$1
shift
here=$(dirname "$0")
mkdir -p "$(dirname "$out")"
target=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' | awk '$3 == "main" && $2 !~ /-/ && $1 !~ /security/ { print; exit }')
[ -n "$target" ] || { echo "debian-image.sh: apt has no Debian mirror configured (run apt-get update)" >&2; exit 1; }
mirror=${target%% *}
suite=$(echo "$target" | cut -d' ' -f2)
rootfs=$(mktemp -d "$(dirname "$out")/.rootfs.XXXXXX")
trap 'rm -rf "$rootfs"' EXIT
include=$(echo "$*" | tr ' ' ,)
debootstrap --variant=minbase ${include:+--include="$include"} "$suite" "$rootfs" "$mirror" >"$out.log" 2>&1 ||
	{ tail -n 20 "$out.log" >&2; echo "debian-image.sh: debootstrap failed, see $out.log" >&2; exit 1; }
rm -rf "$rootfs"/var/cache/apt/archives/*.deb "$rootfs"/var/lib/apt/lists/* "$rootfs/etc/apt/sources.list" "$out.log"
chmod 755 "$rootfs"
"$here/make-image.sh" "$rootfs" "$out" debian:"$suite"
