//go:build seccomp

package sshd_test

const seccompBuilt = true
