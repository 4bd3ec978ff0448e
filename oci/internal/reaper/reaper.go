// Package reaper has the program that is the first process of a container whose
// command is not made to be one (the setting "init"). The kernel leaves to a first
// process what others have not waited for, and keeps signals without a handler
// from it; many programs are made for neither. The same program makes containers
// under AppArmor or SELinux die with their creator; see program/init.c.
//
// The program needs no file in the container, no library and nothing of the host:
// it is in a sealed memory file (memfd_create(2)), which nobody can write to,
// whatever finds it as /proc/1/exe (CVE-2019-5736).
package reaper

import (
	_ "embed"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

//go:generate program/generate.sh

//go:embed program/init.elf
var program []byte

// Open returns the program, to be executed by its descriptor. label is the SELinux
// label of the container's files, or "".
func Open(label string) (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("crunch-init", flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("crunch-init", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("make the container's init (see /proc/sys/vm/memfd_noexec): %w", os.NewSyscallError("memfd_create", err))
	}
	f := os.NewFile(uintptr(fd), "crunch-init")
	_, err = f.Write(program)
	if err == nil {
		err = f.Chmod(0o555)
	}
	if err == nil && label != "" {
		if err = unix.Fsetxattr(fd, "security.selinux", append([]byte(label), 0), 0); err != nil {
			err = fmt.Errorf("label it %s: %w", label, err)
		}
	}
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make the container's init: %w", err), f.Close())
	}
	return f, nil
}
