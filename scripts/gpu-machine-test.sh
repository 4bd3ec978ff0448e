#!/bin/sh
# gpu-machine-test.sh KIT [OUT]: on a machine with an NVIDIA GPU, as root: does a
# container with GPUs have them, and one without none? KIT is made by
# scripts/gpu-kit.sh. What NVML says of the machine is left in OUT (or
# $OUT, or KIT/out), as a fixture for tests. Needs no network, no compiler and no
# CUDA. Exit status 1 if a check fails.
set -u
kit=$(cd "$1" && pwd) || exit 2
out=${2:-${OUT:-$kit/out}}
mkdir -p "$out"
image=$kit/debian.tar.zst
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
run=$work/crunch-run
gunzip -c "$kit/crunch-run.gz" >"$run" && chmod 755 "$run" || exit 2
export CRUNCH_RUN_STORE_DIR="$work/store" CRUNCH_RUN_LOCAL_DIR="$work/local" CRUNCH_RUN_RUNTIME_DIR="$work/run" CRUNCH_RUN_LOCK_DIR="$work/lock" CRUNCH_RUN_KEEP_CACHE_DIR="$work/keepcache" TMPDIR="$work"
mkdir "$work/lock"
# What the container is given to read.
mkdir "$work/probe" && cp "$kit/cudaprobe" "$work/probe/" || exit 2
failed=0
n=0

# check WHAT PATTERN FILE: does FILE have a line that matches PATTERN?
check() {
	n=$((n + 1))
	if grep -Eq -- "$2" "$3"; then
		echo "ok   $1"
	else
		echo "FAIL $1: no line matches '$2' in:"
		sed 's/^/     /' "$3" | tail -n 40
		failed=$((failed + 1))
	fi
}

# in_container OPTION... -- COMMAND...: stdout and stderr to $work/said, with the
# exit status as its last line.
in_container() {
	"$run" local --image "$image" --input probe="$work/probe" "$@" >"$work/said" 2>&1
	echo "exit status $?" >>"$work/said"
}

now_ms() { echo $(($(date +%s%N) / 1000000)); }
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

echo "== the machine"
uname -srm
nvidia-smi -L
nvidia-smi --query-gpu=driver_version,name,memory.total --format=csv,noheader
ls -l /dev/nvidia* 2>/dev/null
grep -E 'nvidia' /proc/devices
stat -fc 'cgroup file system: %T' /sys/fs/cgroup
ldd --version 2>/dev/null | head -n 1

echo "== what crunch-run finds"
"$run" gpus >"$work/said" 2>&1
cat "$work/said"
check "crunch-run gpus lists a GPU" '^[0-9:]+ +cuda +(GPU|MIG)-' "$work/said"
"$run" gpus --json >"$out/inventory.json" 2>"$work/said" && echo "fixture: $out/inventory.json"
nvidia-smi -q >"$out/nvidia-smi-q.txt" 2>&1
nvidia-smi topo -m >"$out/nvidia-smi-topo.txt" 2>&1
cp /proc/devices "$out/proc-devices.txt"
cp /proc/driver/nvidia/params "$out/proc-driver-nvidia-params.txt" 2>/dev/null
ls /usr/lib/x86_64-linux-gnu /usr/lib64 /usr/bin 2>/dev/null | grep -E 'nvidia|cuda' >"$out/driver-files.txt"

echo "== a container with a GPU"
in_container --verbose --gpus 1 -- nvidia-smi -L
check "nvidia-smi in a plain Debian image shows one GPU" '^GPU 0: ' "$work/said"
check "the log names the GPU" 'GPU [0-9:]+: .*, (GPU|MIG)-.* MiB' "$work/said"
in_container --gpus 1 -- nvidia-smi
check "nvidia-smi works" '^exit status 0$' "$work/said"
in_container --gpus 1 -- /in/probe/cudaprobe 3
check "a CUDA kernel runs" '^kernel ok on .*, 1 GPU' "$work/said"
in_container --verbose --gpus 1 -- sh -c '/in/probe/cudaprobe 12'
stats=$(ls -d "$work"/local/*/log/crunchstat.txt | tail -n 1)
log=$(ls -d "$work"/local/*/log/crunch-run.txt | tail -n 1)
check "statistics show the memory in use" ' gpu:[0-9:]+ .*[0-9]{9,} mem ' "$stats"
check "and the log its maximum" 'Maximum GPU .* memory usage was' "$log"
cp "$stats" "$log" "$out/"
in_container --gpus 1 -- sh -c 'ldconfig && /in/probe/cudaprobe'
check "also after ldconfig in the container" '^kernel ok' "$work/said"

echo "== access"
in_container -- sh -c 'ls /dev/nvidia* 2>&1; for d in 195:0 195:255; do /in/probe/cudaprobe open $d; done'
check "without --gpus there are no nodes" 'No such file' "$work/said"
check "and made by hand they cannot be opened" '^(mknod|open): Operation not permitted$' "$work/said"
grep -q '^open: ok' "$work/said" && { echo "FAIL a device was opened without --gpus"; failed=$((failed + 1)); }
gpus=$(nvidia-smi -L | grep -c '^GPU')
if [ "$gpus" -gt 1 ]; then
	in_container --gpus 1 -- sh -c 'for i in $(seq 0 15); do [ -e /dev/nvidia$i ] || /in/probe/cudaprobe open 195:$i; done'
	grep -q '^open: ok' "$work/said" && { echo "FAIL a GPU of others was opened"; failed=$((failed + 1)); }
	in_container --gpus "$gpus" -- /in/probe/cudaprobe
	check "all $gpus GPUs" "^kernel ok on .*, $gpus GPU" "$work/said"
fi
in_container --gpus $((gpus + 1)) -- true
check "more GPUs than there are: refused, back to the queue" 'state +Queued' "$work/said"
"$run" local --image "$image" --gpus "$gpus" -- sh -c 'echo ready; sleep 20' >"$work/first" 2>&1 &
first=$!
for _ in $(seq 300); do grep -q ready "$work/first" && break; sleep 0.1; done
in_container --gpus 1 -- true
check "a GPU that another container has is not given" "GPUs are in use: .*local-dz642-" "$work/said"
kill -INT "$first"; wait "$first" 2>/dev/null

echo "== start-up cost, ms from start to end of crunch-run local -- true, interleaved"
for _ in $(seq 10); do
	for gpu in 0 1; do
		began=$(now_ms)
		"$run" local --image "$image" --gpus $gpu -- true >/dev/null 2>&1 || failed=$((failed + 1))
		echo $(($(now_ms) - began)) >>"$work/ms.$gpu"
	done
done
echo "without: median $(median <"$work/ms.0")   all: $(tr '\n' ' ' <"$work/ms.0")"
echo "with:    median $(median <"$work/ms.1")   all: $(tr '\n' ' ' <"$work/ms.1")"

echo "== $n checks, $failed failed"
[ "$failed" = 0 ]
