#!/bin/sh
# Makes init.elf of init.c, and notes which init.c it was made of.
set -eu
cd "$(dirname "$0")"
gcc -Wall -Wextra -Werror -Os -static -nostdlib -ffreestanding -fno-pic -no-pie -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none \
	-Wl,--build-id=none -Wl,-z,noseparate-code -Wl,-z,noexecstack -s -o init.elf init.c
objcopy --remove-section=.comment init.elf
sha256sum init.c >init.sum
