#!/bin/sh
# deps.sh GROUP...: installs the Debian packages of the named groups that are
# missing, from the mirrors apt is configured with. Asks apt nothing when
# nothing is missing. Groups: build, run, test, dispatchers.
set -eu

packages() {
	case $1 in
	build) echo "gcc libc6-dev libseccomp-dev pkg-config binutils ca-certificates" ;;
	run) echo "busybox-static" ;;
	# Peers and oracles of the tests: image tools, another runtime, file attributes,
	# clients, a virtual machine.
	test) echo "
		busybox-static
		curl
		rclone
		cadaver
		skopeo
		umoci
		podman
		buildah
		containerd
		docker.io
		runc
		zstd
		bzip2
		attr
		libcap2-bin
		debootstrap
		procps
		iproute2
		e2fsprogs
		xfsprogs
		nftables
		iptables
		containernetworking-plugins
		python3-googleapi
		qemu-system-x86
		secilc
		openssh-server
		openssh-client
		python3-paramiko
		tmux
		git
		sqlite3
		python3
	" ;;
	dispatchers) echo "slurmctld slurmd slurm-client munge" ;;
	*) echo "deps.sh: unknown group '$1' (build, run, test or dispatchers)" >&2; exit 2 ;;
	esac
}

missing=
for group in "$@"; do
	for p in $(packages "$group"); do
		state=$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)
		[ "$state" = installed ] || missing="$missing $p"
	done
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "deps.sh: these Debian packages are missing and only root can install them:$missing" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
echo "installing:$missing"
# The list of available packages may never have been fetched, or be too old.
# shellcheck disable=SC2086
install() { apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 $missing >"$log" 2>&1 </dev/null; }
log=$(mktemp)
# The tests start the servers they need themselves; nobody has asked for one on
# this machine.
policy=/usr/sbin/policy-rc.d
if [ -e "$policy" ]; then
	policy=
else
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 0755 "$policy"
fi
trap 'rm -f "$log" ${policy:+"$policy"}' EXIT
if ! install; then
	apt-get update -qq >"$log" 2>&1 || { cat "$log" >&2; echo "deps.sh: apt-get update failed (above); check apt's sources and the network" >&2; exit 1; }
	install || { cat "$log" >&2; echo "deps.sh: apt-get could not install:$missing (above)" >&2; exit 1; }
fi
