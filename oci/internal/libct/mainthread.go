package libct

import "runtime"

// Keep the main goroutine on the main thread, and so everything else off it.
//
// To open the sources of mounts, libcontainer sends a thread into the
// container's mount namespace and lets it end there, by ending a goroutine that
// is locked to it. Go cannot end the main thread, though: it would stay in the
// container's namespace for ever, keep all its mounts alive, and, since
// /proc/self is the main thread, show them as this process's own.
func init() { runtime.LockOSThread() }
