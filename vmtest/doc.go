// Package vmtest runs the tests of containers on kernels that this machine does
// not have: in a QEMU virtual machine with Debian's kernel, on pure cgroup v2, once
// with a minimal init and once with systemd as PID 1. It holds only tests; "make
// test-vm" runs all of them, "make test" a short form.
//
// The test programs are compiled here and carried on a second disk. The machine is
// emulated (no KVM), so everything in it takes ten to twenty times as long.
//
// Which end-to-end tests run in the machine, and why others do not, says the table
// in endtoend_test.go. With VMTEST_LONG=1, -run 'TestUnifiedWithSystemd/end_to_end_3$'
// chooses one machine of "make test-vm"; VMTEST_ONLY="cmd/crunch-run:TestBridge oci:." chooses tests
// by hand; VMTEST_CONSOLE=FILE has the machine's console written to FILE.BOOT
// meanwhile.
package vmtest
