// Package network connects a container's network namespace to the world:
// bridge, address leases, nftables, CNI. So far containers have only network
// "none" (loopback) and "host", which need nothing from here.
package network
