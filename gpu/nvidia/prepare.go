package nvidia

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/gpu/device"
	"crunch-oci/gpu/host"
	"crunch-oci/internal/forkthread"
)

// prepareTimeout bounds each program that prepares the driver. Loading the
// module takes seconds per GPU.
const prepareTimeout = time.Minute

// Prepare loads the driver's kernel modules and makes the device nodes that its
// library opens, as far as they are missing: with nvidia-modprobe, or without
// it. It says what it has done, and what did not work; whether that matters
// shows later.
func Prepare(ctx context.Context, h host.Host) (notes []string) {
	p := preparer{ctx: ctx, host: h}
	if !p.has(frontendNames) {
		if !h.HasGPU(host.VendorNVIDIA) {
			return nil // nothing that a module would be for
		}
		// It loads the module and makes nvidiactl.
		if !p.run("nvidia-modprobe") {
			p.run("modprobe", "nvidia")
		}
	}
	if !p.has(frontendNames) {
		return p.notes // no driver, or one that does not load
	}
	if !p.has(uvmNames) || !p.exists("/dev/nvidia-uvm") || !p.exists("/dev/nvidia-uvm-tools") {
		if !p.run("nvidia-modprobe", "-c0", "-u") && !p.has(uvmNames) {
			p.run("modprobe", "nvidia-uvm")
		}
	}
	p.makeNode("/dev/nvidiactl", frontendNames, controlMinor)
	p.makeNode("/dev/nvidia-uvm", uvmNames, uvmMinor)
	p.makeNode("/dev/nvidia-uvm-tools", uvmNames, uvmToolsMinor)
	for _, minor := range minors(h) {
		name := fmt.Sprintf("/dev/nvidia%d", minor)
		if !p.exists(name) {
			p.run("nvidia-modprobe", fmt.Sprintf("-c%d", minor))
		}
		p.makeNode(name, frontendNames, minor)
	}
	return p.notes
}

// PrepareMIG makes the capability devices of MIG instances, which the library in
// the container does not need to find on the node, but tools on the node do.
func PrepareMIG(ctx context.Context, h host.Host, devices []device.Device) (notes []string) {
	p := preparer{ctx: ctx, host: h}
	for _, d := range devices {
		if d.Instance == nil {
			continue
		}
		for _, file := range capabilityFiles(d) {
			minor, _, err := readCapability(filepath.Join(h.Proc, file))
			if err == nil && !p.exists(fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", minor)) {
				p.run("nvidia-modprobe", "-f", filepath.Join("/proc", file))
			}
		}
	}
	return p.notes
}

type preparer struct {
	ctx   context.Context
	host  host.Host
	notes []string
}

func (p *preparer) note(format string, args ...any) {
	p.notes = append(p.notes, fmt.Sprintf(format, args...))
}

func (p *preparer) has(names []string) bool {
	_, ok, err := p.host.Major(names...)
	return ok && err == nil
}

func (p *preparer) exists(name string) bool {
	_, err := p.host.Stat(name)
	return err == nil
}

// run runs a program of the driver, chrooted to where the driver is, and tells
// whether it was there and succeeded.
func (p *preparer) run(name string, args ...string) bool {
	program := ""
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/sbin", "/bin"} {
		if source, inside, err := p.host.Resolve(filepath.Join(dir, name)); err == nil && executable(source) {
			program = inside
			break
		}
	}
	if program == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(p.ctx, prepareTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env, cmd.Dir = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, "/"
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if p.host.Root != "/" {
		cmd.SysProcAttr.Chroot = p.host.Root
	}
	output := new(tail)
	cmd.Stdout, cmd.Stderr = output, output
	var err error
	forkthread.Do(func() { err = cmd.Start() })
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		p.note("Warning [%s]: %v%s", strings.Join(append([]string{name}, args...), " "), err, output)
	}
	return err == nil
}

// makeNode makes a device node, unless it exists or the driver does not want it.
func (p *preparer) makeNode(name string, driver []string, minor int) {
	major, ok, err := p.host.Major(driver...)
	if err != nil || !ok || p.exists(name) {
		return
	}
	o := readOwner(p.host)
	if o.unwanted {
		return
	}
	path := p.host.DevPath(name)
	err = unix.Mknod(path, unix.S_IFCHR|o.mode, int(unix.Mkdev(uint32(major), uint32(minor))))
	if errors.Is(err, fs.ErrExist) {
		return
	}
	if err == nil {
		// The mode is as it should be whatever the umask.
		err = errors.Join(os.Chmod(path, os.FileMode(o.mode)), os.Lchown(path, int(o.uid), int(o.gid)))
	}
	if err != nil {
		p.note("Warning: make %s: %v", path, err)
	}
}

// minors are those of the GPUs that the kernel module has found.
func minors(h host.Host) (all []int) {
	files, err := filepath.Glob(filepath.Join(h.Proc, "driver/nvidia/gpus/*/information"))
	if err != nil {
		return nil
	}
	for _, f := range files {
		text, err := host.ReadText(f)
		if err != nil {
			continue
		}
		for line := range strings.Lines(text) {
			if key, value, _ := strings.Cut(line, ":"); key == "Device Minor" {
				if n, err := strconv.Atoi(strings.TrimSpace(value)); err == nil && n >= 0 && n < controlMinor {
					all = append(all, n)
				}
			}
		}
	}
	return all
}
