// Package sshd is the SSH side of the gateway: sessions and port forwarding into
// one container (gateway.md section 5). Who may come in has been decided before a
// connection gets here; SSH's own authentication proves nothing.
//
// A connection carries channels. A session channel runs one command, whose
// argument vector is split by [Split] and never seen by a shell, with or without
// a terminal; a direct-tcpip channel is a connection to a port in the container.
package sshd
