#!/bin/sh
# vm-image.sh DIR: what a virtual machine for the tests boots: DIR/vmlinuz (the
# kernel of Debian's linux-image-cloud-amd64), DIR/initrd (busybox and the modules
# for the disk) and DIR/root.ext4 (a Debian with systemd), from the mirror apt is
# configured with. Does nothing when all is there, made by the same script.
set -eu
dir=$1
cmp -s "$0" "$dir/.made-by" && exit 0
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
log=$dir/log
fail() { tail -n 20 "$log" >&2; echo "vm-image.sh: $* failed, see $log" >&2; exit 1; }
work=$(mktemp -d "$dir/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

# The kernel package is only unpacked: this machine must not boot it.
kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ { print $2; exit }')
[ -n "$kernel" ] || { echo "vm-image.sh: apt knows no linux-image-cloud-amd64 (run apt-get update)" >&2; exit 1; }
mkdir "$work/deb"
(cd "$work/deb" && apt-get download -q "$kernel") >"$log" 2>&1 || fail "apt-get download $kernel"
dpkg-deb -x "$work"/deb/*.deb "$work/kernel"
version=$(ls "$work/kernel/lib/modules")
cp "$work/kernel/boot/vmlinuz-$version" "$dir/vmlinuz"

# The root disk. Tests run with systemd as PID 1 or without it.
target=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' | awk '$3 == "main" && $2 !~ /-/ && $1 !~ /security/ { print; exit }')
[ -n "$target" ] || { echo "vm-image.sh: apt has no Debian mirror configured (run apt-get update)" >&2; exit 1; }
mirror=${target%% *}
suite=$(echo "$target" | cut -d' ' -f2)
root=$work/root
debootstrap --variant=minbase --include=systemd-sysv,dbus,kmod,iproute2,nftables,procps,libcap2-bin,attr,apparmor,xfsprogs,busybox-static,openssh-client,tmux,iptables,containernetworking-plugins \
	"$suite" "$root" "$mirror" >>"$log" 2>&1 || fail debootstrap
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/doc "$root"/usr/share/locale
mkdir -p "$root/lib/modules" "$root/test"
mv "$work/kernel/lib/modules/$version" "$root/lib/modules/"
chroot "$root" depmod "$version" >>"$log" 2>&1 || fail depmod
mke2fs -q -t ext4 -d "$root" "$work/root.ext4" 1500m >>"$log" 2>&1 || fail mke2fs

# The initrd mounts the disk and hands over.
init=$work/initrd
mkdir -p "$init/bin" "$init/lib/modules/$version" "$init/proc" "$init/sys" "$init/dev" "$init/root"
cp /bin/busybox "$init/bin/busybox"
for module in virtio_mmio virtio_blk ext4; do
	chroot "$root" modprobe -S "$version" --show-depends "$module"
done 2>>"$log" | awk '$1 == "insmod" { print $2 }' | sort -u >"$work/modules"
while read -r file; do
	mkdir -p "$init/$(dirname "$file")"
	cp "$root/$file" "$init/$file"
done <"$work/modules"
cp "$root/lib/modules/$version"/modules.* "$init/lib/modules/$version/"
cat >"$init/init" <<'EOF'
#!/bin/busybox sh
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs dev /dev
for m in virtio_mmio virtio_blk ext4; do $bb modprobe $m; done
for i in $($bb seq 200); do [ -e /dev/vdb ] && break; $bb usleep 20000; done
$bb mount -t ext4 /dev/vda /root && $bb mount -t ext4 /dev/vdb /root/test || { echo "initrd: no disk"; $bb reboot -f; }
$bb mount --move /dev /root/dev
$bb umount /sys /proc
next=/sbin/init
for word in $(/bin/busybox cat /root/test/init); do next=$word; done
exec $bb switch_root /root $next
EOF
chmod 755 "$init/init"
(cd "$init" && find . | busybox cpio -o -H newc 2>>"$log" | gzip -1) >"$dir/initrd" || fail cpio
mv "$work/root.ext4" "$dir/root.ext4"
cp "$0" "$dir/.made-by"
