// Package dispatch is what dispatchers touch: detach, list, kill, run locks
// and prices. It does not know the container. So far the supervisor runs in the
// foreground only.
package dispatch
