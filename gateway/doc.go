// Package gateway is an authenticated door into a running container: shell,
// port forwarding, service proxy and live logs. It does not know how the
// container was made.
//
// The door is an HTTPS server (Arvados' container gateway protocol). Its only
// legitimate client is the cluster's controller, which either connects to it or
// is reached through a tunnel that the server itself opens. Both sides prove in
// every request that they know a secret made for this one container; nothing
// else is behind the door, and nobody else passes it.
package gateway
