// Package console is the door for root on the node itself: a socket in the
// runtime directory of a run, with the same SSH server behind it as behind the
// gateway. It needs no network and no secret, since nobody but root gets there.
//
// The commands of a session are children of the supervisor, not of the program
// at the terminal: that one may be stopped or killed, or detach, at any time,
// and a container ends only when all its processes have been reaped.
package console
