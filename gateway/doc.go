// Package gateway is an authenticated door into a running container: shell,
// port forwarding, service proxy and live logs. It does not know how the
// container was made.
//
// So far it holds only what it will need from a container; the server follows.
package gateway
