// Package nodecheck is "crunch-run check": can this node run containers, and
// what is to be done if it cannot? It does not know jobs.
//
// What can be tried is tried: a namespace is made, an overlay mounted where the
// image store and the temporary files are, and in the end a container is run.
// Nothing that is made outlives the check; mounts are made in the caller's mount
// namespace, which should be its own.
package nodecheck
