// Package network connects a container's network namespace to the world: a
// bridge of our own with address leases, masquerading and name servers, or a
// network that the site describes for CNI.
//
// Everything happens in the network namespace of the calling process, whichever
// that is. The kernel holds the state: a container's lease is its interface on
// the bridge, which goes with the container's namespace, whatever was killed;
// the bridge's subnet is its address. One lock file (see state.go) keeps
// processes from changing the bridge at the same time, and tells the last user,
// who removes bridge and rules.
//
// What is changed on the host, and stays: net.ipv4.ip_forward, and with IPv6
// net.ipv6.conf.all.forwarding, are switched on, as Docker does. Rules of others
// are never touched; if they are in the way that is said (see Obstacles).
package network
