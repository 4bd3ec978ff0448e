package stats

import "time"

// Value is a number that may not be available.
type Value struct {
	N     int64
	Known bool
}

// Memory is what a group of processes has in memory, in bytes.
type Memory struct {
	Cache, Swap, RSS Value
	PgMajFault       Value // major page faults, a count
	// PeakRSS and PeakSwap are the kernel's own records of the highest RSS and
	// Swap, where it keeps them: they see what falls between two samples.
	PeakRSS, PeakSwap Value
}

func (m Memory) known() bool {
	return m.Cache.Known || m.Swap.Known || m.PgMajFault.Known || m.RSS.Known
}

// CPU is the processor time a group has used since it was made.
type CPU struct {
	User, System time.Duration
	CPUs         float64 // processors it may use
	Known        bool
}

// DiskIO is the traffic with one block device ("major:minor"), in bytes.
type DiskIO struct {
	Device        string
	Written, Read int64
}

// NetIO is the traffic of one network interface, in bytes.
type NetIO struct {
	Interface      string
	Sent, Received int64
}

// Filesystem is the occupation of a file system, in bytes. Available is what
// unprivileged users may still fill.
type Filesystem struct {
	Available, Used, Total int64
}

// Process is the resident memory of a process with a name of its own, in bytes.
type Process struct {
	Name string
	RSS  int64
}

// GPU is what a graphics processor is doing. What is not known is negative.
type GPU struct {
	Name        string // "0"; "1:0" for a part of one
	Utilisation int    // percent
	Used, Total int64  // memory, bytes
	Milliwatts  int64
}

// Sources are where the numbers come from. A nil source is a missing one, whose
// lines are left out. They are called from one goroutine.
type Sources struct {
	// Notices are the opening lines: what is read from where.
	Notices []string

	Memory     func() Memory // every second, so it must be cheap
	CPU        func() CPU
	Disks      func() []DiskIO
	Networks   func() []NetIO
	Filesystem func() (f Filesystem, ok bool)
	GPUs       func() []GPU
	// Processes lists those that are there. Its error is reported once.
	Processes func() ([]Process, error)
}
