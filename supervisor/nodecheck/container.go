package nodecheck

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// trueProgram is a program that ends with status 0 at once, and needs no
// library: an ELF executable for x86-64 with one segment.
var trueProgram = []byte{
	0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, // 64 bits, little-endian
	2, 0, 0x3e, 0, 1, 0, 0, 0, // executable, x86-64, version 1
	0x78, 0, 0x40, 0, 0, 0, 0, 0, // entry: 0x400078
	0x40, 0, 0, 0, 0, 0, 0, 0, // program headers at 64
	0, 0, 0, 0, 0, 0, 0, 0, // no sections
	0, 0, 0, 0, 0x40, 0, 0x38, 0, 1, 0, 0, 0, 0, 0, 0, 0, // sizes
	1, 0, 0, 0, 5, 0, 0, 0, // load, readable and executable
	0, 0, 0, 0, 0, 0, 0, 0, // from the beginning
	0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, // to 0x400000
	0x81, 0, 0, 0, 0, 0, 0, 0, 0x81, 0, 0, 0, 0, 0, 0, 0, // 129 bytes
	0, 0x10, 0, 0, 0, 0, 0, 0, // alignment
	0x31, 0xff, // xor edi, edi
	0xb8, 0x3c, 0, 0, 0, // mov eax, 60 (exit)
	0x0f, 0x05, // syscall
}

// trialContainer mounts an overlay as containers have it, with its lower part in
// the image store and its upper among the temporary files, and runs a container
// in it.
func trialContainer(c *checker) {
	if c.SiteErr != nil {
		return
	}
	lower, removeLower, err := c.NewDir(existing(c.Site.StoreDir))
	if err != nil {
		return // said by those who look at the directories
	}
	defer c.tidy(removeLower)
	scratch, removeScratch, err := c.NewDir(existing(c.TempDir))
	if err != nil {
		return
	}
	defer c.tidy(removeScratch)
	root, err := makeOverlay(lower, scratch)
	if err != nil {
		advice := "modprobe overlay (and list it in /etc/modules-load.d)"
		if supported("overlay") {
			advice = fmt.Sprintf("put the image store (store-dir, %s) and temporary files (TMPDIR, %s) on local file systems such as ext4 or xfs (with ftype=1), which are no overlays themselves", c.Site.StoreDir, c.TempDir)
		}
		c.fail(advice, "an overlay of image store and temporary files: %v", err)
		return
	}
	defer c.tidy(func() error { return unix.Unmount(root, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
	if err := useOverlay(root); err != nil {
		c.fail("put the image store and temporary files on local file systems with extended attributes, such as ext4 or xfs", "the overlay of image store and temporary files is of no use: %v", err)
		return
	}
	c.ok("overlay of image store and temporary files")
	if c.Site.UserNamespaceCount != 0 {
		c.tryMapping(lower, scratch)
	}
	if c.Trial == nil {
		return
	}
	warnings, err := c.Trial(c.ctx, root)
	for _, w := range warnings {
		c.warn("see \"cgroups\" above", "%s", w)
	}
	switch {
	case err != nil && c.ctx.Err() != nil:
		c.fail("look for what keeps this node busy, or wait longer (--timeout)", "a container had not ended after %v", c.Patience)
	case err != nil:
		c.fail("this is what every container on this node will meet", "a container cannot be run: %v", err)
	default:
		c.ok("a container was run")
	}
}

// tidy removes something at the end of a check.
func (c *checker) tidy(remove func() error) {
	if err := remove(); err != nil {
		c.warn("", "left behind: %v", err)
	}
}

// makeOverlay fills lower, and mounts an overlay of it in scratch.
func makeOverlay(lower, scratch string) (root string, err error) {
	if err := errors.Join(os.Mkdir(filepath.Join(lower, "dir"), 0o755), os.Chmod(lower, 0o755)); err != nil {
		return "", err
	}
	for name, text := range map[string][]byte{"true": trueProgram, "file": []byte("lower"), "dir/inner": nil} {
		if err := os.WriteFile(filepath.Join(lower, name), text, 0o755); err != nil {
			return "", err
		}
	}
	return mountOverlay(lower, scratch)
}

// mountOverlay mounts one of lower below dir, where its other directories are made.
func mountOverlay(lower, dir string) (root string, err error) {
	for _, name := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return "", err
		}
	}
	// Short names, without what mount(2) gives a meaning to.
	var options []string
	for _, o := range []struct{ name, dir string }{{"lowerdir", lower}, {"upperdir", filepath.Join(dir, "upper")}, {"workdir", filepath.Join(dir, "work")}} {
		f, err := os.Open(o.dir)
		if err != nil {
			return "", err
		}
		defer f.Close()
		options = append(options, fmt.Sprintf("%s=/proc/self/fd/%d", o.name, f.Fd()))
	}
	root = filepath.Join(dir, "root")
	if err := unix.Mount("crunch-run-check", root, "overlay", 0, strings.Join(options, ",")); err != nil {
		return "", fmt.Errorf("mount: %w", err)
	}
	return root, nil
}

// useOverlay does what needs devices and extended attributes of the upper file
// system: it removes a file, and replaces a directory.
func useOverlay(root string) error {
	if err := os.Remove(filepath.Join(root, "file")); err != nil {
		return err
	}
	dir := filepath.Join(root, "dir")
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755)); err != nil {
		return err
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return errors.New("a directory that was made again shows what was in the old one")
	}
	return nil
}
