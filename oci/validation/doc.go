// Package validation runs the validation suite of the Open Containers Initiative
// (github.com/opencontainers/runtime-tools) against package oci, beside runc of
// our libcontainer's version. All of it is in tests: the suite wants a runtime
// with the command line of runc, which the test program offers in another role.
package validation
