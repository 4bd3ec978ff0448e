package oci

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"crunch-oci/cgroups"
)

// procStat is what /proc/PID/stat says about kinship (proc(5)).
type procStat struct {
	parent, group, session int
	exiting                bool   // it ends, or has ended and is not reaped
	start                  uint64 // in clock ticks after boot
}

func readProcStat(pid int) (procStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	return parseProcStat(string(b))
}

// parseProcStat parses a line of which the second field, a name in parentheses,
// may contain anything.
func parseProcStat(line string) (s procStat, err error) {
	const flagsField, startField = 9 - 3, 22 - 3 // counted from the third
	const pfExiting = 0x4                        // include/linux/sched.h
	f := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
	if len(f) <= startField {
		return s, fmt.Errorf("process status %q is too short", line)
	}
	for i, p := range []*int{&s.parent, &s.group, &s.session} {
		if *p, err = strconv.Atoi(f[i+1]); err != nil {
			return s, fmt.Errorf("process status: %w", err)
		}
	}
	flags, err := strconv.ParseUint(f[flagsField], 10, 64)
	if err != nil {
		return s, fmt.Errorf("process status: %w", err)
	}
	s.exiting = flags&pfExiting != 0
	if s.start, err = strconv.ParseUint(f[startField], 10, 64); err != nil {
		return s, fmt.Errorf("process status: %w", err)
	}
	return s, nil
}

// killTree kills process leader, which started at start (proc(5)), and all that
// can be told to come from it: descendants, and members of its session and of
// theirs. Only processes of cg are looked at.
//
// They are stopped before any is killed, because the children of a dead process
// can no longer be told from others. The leader itself may be dead already.
func killTree(cg *cgroups.Cgroup, leader int, start uint64) error {
	stopped := make(map[int]*os.Process)
	defer func() {
		for _, p := range stopped {
			_ = p.Release()
		}
	}()
	// Each round finds what the one before was too late to stop; in the end there
	// is nobody left to fork.
	const rounds = 100
	for range rounds {
		family, err := family(cg, leader, start)
		if err != nil {
			return fmt.Errorf("kill a session: %w", err)
		}
		news := false
		for pid, stat := range family {
			if stopped[pid] != nil {
				continue
			}
			p, err := os.FindProcess(pid)
			if err != nil {
				continue // it has ended
			}
			// The handle may be one of a process that got the number since.
			if now, err := readProcStat(pid); err != nil || now.start != stat.start {
				_ = p.Release()
				continue
			}
			if err := p.Signal(syscall.SIGSTOP); err != nil {
				_ = p.Release()
				continue
			}
			stopped[pid], news = p, true
		}
		if !news {
			break
		}
	}
	var errs []error
	for pid, p := range stopped {
		if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, fmt.Errorf("kill process %d of a session: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

// family returns the processes of a session that are in the container's cgroup.
func family(cg *cgroups.Cgroup, leader int, start uint64) (map[int]procStat, error) {
	pids, err := cg.Procs()
	if err != nil {
		return nil, err
	}
	all := make(map[int]procStat, len(pids))
	for _, pid := range pids {
		if s, err := readProcStat(pid); err == nil && s.start >= start {
			all[pid] = s
		}
	}
	if l, ok := all[leader]; ok && l.start != start {
		return nil, nil // another process has its number: nobody of the session is left
	}
	members := make(map[int]procStat)
	sessions, groups := map[int]bool{leader: true}, map[int]bool{leader: true}
	for grown := true; grown; {
		grown = false
		for pid, s := range all {
			_, child := members[s.parent]
			if _, ok := members[pid]; ok || !child && !sessions[s.session] && !groups[s.group] && pid != leader {
				continue
			}
			members[pid] = s
			sessions[s.session], groups[s.group] = true, true
			grown = true
		}
	}
	return members, nil
}
