package dispatch

import (
	"net"
	"os/exec"
	"time"
)

// journalSocket is where systemd-journald takes the output of services
// (systemd-journald.service(8)).
const journalSocket = "/run/systemd/journal/stdout"

// journalPatience bounds the wait for a journal whose queue is full.
const journalPatience = time.Second

// throughJournal returns the command line that runs a command with its output in
// the journal, or ok false if there is no journal: systemd-cat would fail then,
// and the run with it.
//
// systemd-cat executes what follows in its own place. The second one is there to
// be executed by the first, so that an error message of the second, which could
// not execute the command, is in the journal.
func throughJournal(command []string) (line []string, ok bool) {
	cat, err := exec.LookPath("systemd-cat")
	if err != nil {
		return nil, false
	}
	conn, err := net.DialTimeout("unix", journalSocket, journalPatience)
	if err != nil {
		return nil, false
	}
	_ = conn.Close()
	const identifier = "--identifier=crunch-run"
	return append([]string{cat, identifier, cat, identifier}, command...), true
}
