#!/bin/sh
# demo.sh: what "make run" shows. An image from Debian's busybox, an input
# collection, a command that reads it and writes to stdout, stderr and two files.
set -eu
cd "$(dirname "$0")/.."
b=.build
[ -e $b/busybox.tar ] || scripts/busybox-image.sh $b/busybox.tar
rm -rf $b/demo-input $b/demo-output
mkdir -p $b/demo-input
printf 'adenine\ncytosine\nguanine\nthymine\n' >$b/demo-input/bases.txt

./crunch-run local --image $b/busybox.tar --input demo=$b/demo-input --output $b/demo-output --vcpus 1 --ram 256MiB -- \
	sh -c '
	echo "hello from $(hostname), uid $(id -u)"
	echo "reading /in/demo/bases.txt" >&2
	mkdir result
	sort -r /in/demo/bases.txt >result/sorted.txt
	wc -c </in/demo/bases.txt >result/size.txt
	echo "wrote $(ls result | wc -l) files"'
