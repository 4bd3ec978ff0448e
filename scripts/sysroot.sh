#!/bin/sh
# sysroot.sh DIR: unpacks Debian bullseye's C library below DIR, for a binary
# that runs on any node with a glibc of the last ten years. Packages come from
# the mirror apt is configured with; DIR's name is final only when it is whole.
set -eu
dir=$(realpath -m "$1")

mirror=$(apt-get indextargets --format '$(REPO_URI) $(COMPONENT)' 'Created-By: Packages' | awk '$2 == "main" && $1 !~ /security/ { print $1; exit }')
[ -n "$mirror" ] || { echo "sysroot.sh: apt has no Debian mirror configured (run apt-get update)" >&2; exit 1; }

tmp=$dir.tmp
rm -rf "$tmp" "$dir"
mkdir -p "$tmp/apt/lists/partial" "$tmp/apt/cache/archives/partial" "$tmp/apt/parts" "$tmp/debs" "$tmp/root"
: >"$tmp/apt/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bullseye main" >"$tmp/apt/sources.list"
apt="apt-get -qq -o Dir::Etc::sourcelist=$tmp/apt/sources.list -o Dir::Etc::sourceparts=$tmp/apt/parts
 -o Dir::Etc::preferencesparts=$tmp/apt/parts -o Dir::State::lists=$tmp/apt/lists -o Dir::State::status=$tmp/apt/status
 -o Dir::Cache=$tmp/apt/cache -o APT::Sandbox::User=root -o Acquire::Languages=none -o APT::Architecture=amd64"
$apt update
(cd "$tmp/debs" && $apt download libc6 libc6-dev linux-libc-dev libcrypt1 libcrypt-dev)
for deb in "$tmp"/debs/*.deb; do dpkg -x "$deb" "$tmp/root"; done
# Absolute links would lead out of the sysroot.
find "$tmp/root" -type l -lname '/*' | while read -r link; do
	ln -sfnr "$tmp/root$(readlink "$link")" "$link"
done
# libseccomp's interface has not changed since; this machine's static library is
# linked, and libc symbols in it resolve against the older libc.
cp /usr/include/seccomp.h /usr/include/seccomp-syscalls.h "$tmp/root/usr/include/"
cp "/usr/lib/$(gcc -print-multiarch)/libseccomp.a" "$tmp/root/usr/lib/x86_64-linux-gnu/"
mv "$tmp/root" "$dir"
rm -rf "$tmp"
touch "$dir/.complete"
