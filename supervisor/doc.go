// Package supervisor is the life of one container, from its record in state
// Locked to Complete, Cancelled or back to Queued (spec: lifecycle). It is the
// only place where order and failure policy live: what is done when stands in
// the table of steps in run.go, what happens after the last step, or after the
// first that failed, in finish.go.
//
// It knows the record, and the ideas of image, bundle, process, mount and log;
// how each is done belongs to the packages it calls, through the interfaces in
// ports.go.
package supervisor
