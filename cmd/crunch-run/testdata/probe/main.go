// Command probe looks at a container from the inside and prints what it finds,
// in plain lines that tests compare.
package main

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fail("usage: probe tree|self|as|eat|flood|line|deep|hoard|zombies|traced|web|whoami ...")
	}
	args := os.Args[2:]
	switch os.Args[1] {
	case "tree": // tree DIR...: everything about the files below
		for _, dir := range args {
			check(filepath.WalkDir(dir, show))
		}
	case "self": // self: who runs this, with which capabilities
		self()
	case "as": // as UID PROGRAM ARG...: runs it as another user
		cmd := exec.Command(args[1], args[2:]...)
		id := uint32(number(args[0]))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		check(cmd.Run())
	case "eat": // eat MIB [SECONDS]: uses that much memory, for so long, and ends
		var kept [][]byte
		for range number(args[0]) {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			kept = append(kept, b)
		}
		if len(args) > 1 {
			time.Sleep(time.Duration(number(args[1])) * time.Second)
		}
		fmt.Println("ate", len(kept))
	case "flood": // flood LINES: numbered lines of 100 bytes
		w := bufio.NewWriterSize(os.Stdout, 1<<16)
		for i := range number(args[0]) {
			_, err := fmt.Fprintf(w, "%099d\n", i)
			check(err)
		}
		check(w.Flush())
	case "line": // line BYTES: one line of that many bytes
		w := bufio.NewWriter(os.Stdout)
		for range number(args[0]) {
			check(w.WriteByte('x'))
		}
		check(w.WriteByte('\n'))
		check(w.Flush())
	case "hoard": // hoard KIND LIMIT: makes so many of a thing at most, says how many, and waits for /out/go
		hoard(args[0], number(args[1]))
	case "deep": // deep DIR COUNT: directories in each other, longer than any path can name
		check(os.Chdir(args[0]))
		for range number(args[1]) {
			check(syscall.Mkdir("directory", 0o755))
			check(syscall.Chdir("directory"))
		}
		fmt.Println(args[1])
	case "traced": // traced leader|exec|thread|thread-signal|thread-exec: makes its parent its tracer
		traced(args[0])
	case "zombies": // zombies COUNT: children that nobody waits for
		for range number(args[0]) {
			check(exec.Command("/bin/true").Start())
		}
		time.Sleep(200 * time.Millisecond)
		fmt.Println("left", args[0])
	case "web": // web PORT: serves HTTP, and an echo on the next port
		web(number(args[0]))
	case "whoami": // whoami: asks the Arvados API whose token this is
		whoami()
	default:
		fail("unknown command " + os.Args[1])
	}
}

// show prints a line: path, type, mode, owner, times, links, content.
func show(path string, d fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return err
	}
	line := fmt.Sprintf("%s %06o %d:%d mtime=%d.%09d", strconv.Quote(path), st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		line += fmt.Sprintf(" nlink=%d size=%d sha256=%.12x", st.Nlink, st.Size, sha256.Sum256(data))
		if st.Size > 1<<20 && st.Blocks*512 < st.Size/2 {
			line += " sparse"
		}
	case syscall.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		line += " -> " + strconv.Quote(target)
	case syscall.S_IFCHR, syscall.S_IFBLK:
		line += fmt.Sprintf(" rdev=%d", st.Rdev)
	}
	fmt.Println(line + xattrs(path))
	return nil
}

// xattrs lists the extended attributes, except those the kernel makes.
func xattrs(path string) string {
	buf := make([]byte, 1<<16)
	n, err := syscall.Listxattr(path, buf)
	if err != nil {
		return ""
	}
	var line string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "security.selinux") || strings.HasPrefix(name, "system.") {
			continue
		}
		value := make([]byte, 1<<16)
		if n, err := syscall.Getxattr(path, name, value); err == nil {
			line += fmt.Sprintf(" %s=%x", name, value[:n])
		}
	}
	return line
}

func self() {
	status, err := os.ReadFile("/proc/self/status")
	check(err)
	for line := range strings.Lines(string(status)) {
		for _, key := range []string{"Uid:", "Gid:", "Groups:", "CapEff:", "CapBnd:", "NoNewPrivs:", "Seccomp:"} {
			if strings.HasPrefix(line, key) {
				fmt.Println(strings.Join(strings.Fields(line), " "))
			}
		}
	}
}

// whoami asks as Arvados' own clients do, with what the environment says.
func whoami() {
	certificates, err := os.ReadFile("/etc/arvados/ca-certificates.crt")
	check(err)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(certificates) {
		fail("no certificate in the bundle")
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	req, err := http.NewRequest("GET", "https://"+os.Getenv("ARVADOS_API_HOST")+"/arvados/v1/users/current", nil)
	check(err)
	req.Header.Set("Authorization", "Bearer "+os.Getenv("ARVADOS_API_TOKEN"))
	resp, err := client.Do(req)
	check(err)
	defer resp.Body.Close()
	var user struct{ UUID string }
	check(json.NewDecoder(resp.Body).Decode(&user))
	fmt.Println(resp.StatusCode, user.UUID)
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	check(err)
	return n
}

func check(err error) {
	if err != nil {
		fail(err.Error())
	}
}

func fail(text string) {
	fmt.Fprintln(os.Stderr, "probe:", text)
	os.Exit(2)
}
