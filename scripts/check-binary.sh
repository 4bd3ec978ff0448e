#!/bin/sh
# check-binary.sh FILE: fails when FILE needs a library that not every node has,
# or a glibc newer than 2.24 (Debian 9, RHEL 8).
set -eu
file=$1
limit=2.24
bad=0
for lib in $(readelf -d "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
	case $lib in
	libc.so.6 | libpthread.so.0 | libdl.so.2) ;;
	*) echo "$file needs $lib; only libc, libpthread and libdl are on every node" >&2; bad=1 ;;
	esac
done
newest=$(readelf -W --dyn-syms "$file" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -V | tail -n 1)
newest=${newest:-none}
if [ "$newest" != none ] && [ "$(printf '%s\n%s\n' "$newest" "$limit" | sort -V | tail -n 1)" != "$limit" ]; then
	echo "$file needs GLIBC_$newest; build it with 'make release' (limit $limit)" >&2
	bad=1
fi
# NVIDIA's functions are looked up when they are called. Bound at the start they
# would be needed on every node.
if readelf -W -d "$file" | grep -Eq 'BIND_NOW|FLAGS.*NOW'; then
	echo "$file is linked with -z now: it would not start without libnvidia-ml.so.1" >&2
	bad=1
fi
[ "$bad" = 0 ] || exit 1
echo "$file: libraries ok, newest symbol version GLIBC_$newest"
