#!/bin/sh
# node.sh COMMAND...: runs a command on what looks like a compute node of its own:
# a network with one address besides the loopback's, a host name, and below this
# process's own cgroups a whole tree of them. Nothing of it is left at the end.
set -eu
own=e2e-slurm-$$
groups=
cleanup() {
	for group in $groups; do
		find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
	done
}
trap cleanup EXIT
while IFS=: read -r _ controllers path; do
	name=${controllers#name=}
	parent=/sys/fs/cgroup/${name:-unified}$path
	mkdir "$parent/$own"
	groups="$groups $parent/$own"
	if [ "$name" = cpuset ]; then
		cat "$parent/cpuset.cpus" >"$parent/$own/cpuset.cpus"
		cat "$parent/cpuset.mems" >"$parent/$own/cpuset.mems"
	fi
done </proc/self/cgroup

# The command's process goes into the groups first; then they are the roots of
# its own view of them.
export GROUPS_OF_NODE="$groups"
sh -euc '
	for group in $GROUPS_OF_NODE; do echo $$ >"$group/cgroup.procs"; done
	unset GROUPS_OF_NODE
	exec unshare --cgroup --mount --net --uts sh -euc "
		umount -R -l /sys/fs/cgroup
		mount -t tmpfs cgroup /sys/fs/cgroup
		while IFS=: read -r _ controllers _; do
			name=\${controllers#name=}
			dir=/sys/fs/cgroup/\${name:-unified}
			mkdir \"\$dir\"
			case \$controllers in
			\"\") mount -t cgroup2 cgroup2 \"\$dir\" ;;
			name=*) mount -t cgroup -o \"none,\$controllers\" cgroup \"\$dir\" ;;
			*) mount -t cgroup -o \"\$controllers\" cgroup \"\$dir\" ;;
			esac
		done </proc/self/cgroup
		hostname slurm-node
		ip link set lo up
		ip link add slurm0 type veth peer name slurm1
		ip address add 10.77.0.1/24 dev slurm0
		ip link set slurm0 up
		ip link set slurm1 up
		exec \"\$@\"
	" sh "$@"
' sh "$@" &
command=$!
trap 'kill $command 2>/dev/null; wait $command || true; exit 143' TERM INT
wait $command
