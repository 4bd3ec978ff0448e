// Package oci turns an image configuration and a request into an OCI bundle,
// and a bundle into a running process: a bundle is written down, then becomes
// a process.
//
// [NewSpec] builds the runtime specification from small edits, each in a file
// of its own; [WriteBundle] writes it down, in a form other OCI runtimes accept
// as well. [Runtime.Create], [Container.Start], [Container.Wait],
// [Container.Kill] and [Container.Delete] are the verbs of the OCI runtime
// specification. What the process finds is what Docker would give it, because
// images are made for Docker.
//
// Two promises matter to callers. A container never outlives the process that
// created it, however that ends: its init has a parent-death signal and, until
// the command is executed, a lifeline to the creator (see [Init]). And Kill and
// Delete never report success while a process of the container lives.
//
// While the container runs, [Container.Exec] starts a further command in it, and
// [Container.Dial] connects to a port of its network.
//
// Only the package internal/libct below imports runc's libcontainer, whose API
// is not stable. A program that creates containers must call [Init] first
// thing when [IsInit] says so, and must import, for their side effects,
// github.com/opencontainers/runc/libcontainer/nsenter (the C part of the
// container's init) and github.com/opencontainers/cgroups/devices (without
// which device rules are refused).
package oci
