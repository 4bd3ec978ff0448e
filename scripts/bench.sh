#!/bin/sh
# bench.sh: the figures of doc/performance.md, each beside a peer doing the same
# work in the same run. The machine should be otherwise idle. BENCH_STARTS=20
# BENCH_PARALLEL=8 makes the first one short.
set -eu
cd "$(dirname "$0")/.."
tags=seccomp,netgo,osusergo
PKG_CONFIG_PATH=$PWD/.build/pkgconfig
export PKG_CONFIG_PATH

run() {
	package=$1 pattern=$2
	shift 2
	echo "== go test $package -bench $pattern $*"
	sync
	go test -tags $tags -run '^$' -bench "$pattern" -timeout 60m "$@" "$package" | grep -E '^Benchmark|^load|^\||--- FAIL|panic' || true
}

uname -sr
nproc
run ./bench 'Start' -benchtime 1x
run ./oci 'Life' -benchtime 50x
BENCH_SUPERVISORS=1,50 run ./bench 'IdleMemory' -benchtime 1x
run ./bench 'Output' -benchtime 1x
run ./imagestore 'Unpack' -benchtime 3x
run ./keep 'Get|Put|MD5|CollectionRead|CollectionWrite'
run ./keep/mount 'SequentialRead|CachedRead|HTTP'
KEEP_BENCH_MIB=2048 KEEP_BENCH_FILES=58000 KEEP_BENCH_COLLECTIONS=2000 KEEP_BENCH_RUNS=5 run ./keep/mount 'Table' -benchtime 1x
CAPTURE_BENCH_MIB=2048 CAPTURE_BENCH_FILES=100000 CAPTURE_BENCH_RUNS=5 run ./supervisor/capture 'Table' -benchtime 1x
run ./keep/keepstore 'Server' -benchtime 3x
run ./localcluster 'Start'
