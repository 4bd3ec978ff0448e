// Package cgroups is one cgroup directory as a Go value: where a container's
// cgroup lives, which processes are in it, what they used, whether the kernel
// killed one of them for want of memory, and how all of it is ended.
//
// A control group is one directory on cgroup v2, and one directory in each
// mounted hierarchy on v1; [Cgroup] hides the difference. Limits are set by
// whoever starts the container (the runtime does so from the OCI spec); this
// package reads them back. Statistics are read by pure parsing of files below
// a root ([Reader]), so that tests need only files.
//
// Kernel documentation: Documentation/admin-guide/cgroup-v2.rst and
// Documentation/admin-guide/cgroup-v1/.
package cgroups
