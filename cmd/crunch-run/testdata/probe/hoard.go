package main

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
)

// hoard makes as many of a thing as it is allowed to, but not more than limit,
// and holds them until somebody makes /out/go.
func hoard(kind string, limit int) {
	one := map[string]func(int) error{
		"files": func(int) error {
			_, err := syscall.Open("/dev/null", syscall.O_RDONLY, 0)
			return err
		},
		"inotify": func(int) error { // of which a user has few (fs.inotify.max_user_instances)
			_, err := syscall.InotifyInit1(syscall.IN_CLOEXEC)
			return err
		},
		"terminals": func(int) error { // of which the machine has few (kernel.pty.max)
			_, err := syscall.Open("/dev/ptmx", syscall.O_RDWR|syscall.O_NOCTTY, 0)
			return err
		},
		"locks": func(i int) error {
			f, err := os.Create("/tmp/lock" + strconv.Itoa(i))
			if err != nil {
				return err
			}
			return syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		},
		"pipes": func(int) error { // full ones: their memory is a user's (fs.pipe-user-pages-soft)
			var p [2]int
			if err := syscall.Pipe2(p[:], syscall.O_NONBLOCK); err != nil {
				return err
			}
			_, err := syscall.Write(p[1], make([]byte, 65536))
			return err
		},
	}[kind]
	var reserve [8]*os.File // to tell of it
	var err error
	for i := range reserve {
		reserve[i], err = os.Open("/dev/null")
		check(err)
	}
	count := 0
	for ; count < limit && err == nil; count++ {
		err = one(count)
	}
	if err != nil {
		count--
	}
	for _, f := range reserve {
		_ = f.Close()
	}
	fmt.Println(kind, count, err)
	check(os.WriteFile("/out/hoarding", nil, 0o644))
	for {
		if _, err := os.Stat("/out/go"); err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
