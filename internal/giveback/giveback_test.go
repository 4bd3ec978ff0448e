package giveback

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Pages of the program that nobody uses are gone afterwards; the program goes on.
func TestMemory(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	before := 0
	for _, m := range mappings(t, program) {
		// All of it, as if the start had used it.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_POPULATE_READ); errno == unix.EINVAL {
			t.Skip("this kernel cannot be asked to map pages (before 5.14)")
		} else if errno != 0 {
			t.Fatal(errno)
		}
		before += int(m.end-m.start) >> 10
	}
	if now := resident(t, program); now < before*3/4 || before == 0 {
		t.Fatalf("%d kB of %d are mapped before", now, before)
	}
	for range 2 {
		Memory()
		// The test and the runtime use some.
		if now := resident(t, program); now > before*3/4 {
			t.Errorf("%d kB of the program are mapped still, of %d", now, before)
		}
	}
	text, err := json.Marshal(map[string]any{"hash": fmt.Sprintf("%x", sha256.Sum256([]byte("abc")))})
	if want := `{"hash":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}`; err != nil || string(text) != want {
		t.Error(string(text), err)
	}
}

// Pages that might be gone for good are kept.
func TestLocal(t *testing.T) {
	if !local("/proc/self/exe") || local("/nosuch") {
		t.Error("this program is not local, or a file that does not exist is")
	}
	for _, magic := range []int64{unix.NFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC, lustre} {
		if !slices.Contains(remote, magic) {
			t.Errorf("%x is taken for a file system of this machine", magic)
		}
	}
}

// mappings are those of a file that are given back.
func mappings(t *testing.T, path string) []mapping {
	t.Helper()
	text, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	var ours strings.Builder
	for _, one := range regexp.MustCompile(`(?ms)^[0-9a-f]+-[0-9a-f]+ .*?^VmFlags:.*?$`).FindAllString(string(text), -1) {
		if first, _, _ := strings.Cut(one, "\n"); strings.HasSuffix(first, path) {
			ours.WriteString(one + "\n")
		}
	}
	return unchanged(strings.NewReader(ours.String()))
}

// resident is how much of a file is mapped unchanged and in memory, in kB.
func resident(t *testing.T, path string) (total int) {
	t.Helper()
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	ours := false
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if !strings.HasSuffix(f[0], ":") {
			ours = len(f) > 5 && f[5] == path && !strings.Contains(f[1], "w")
		}
		if ours && f[0] == "Rss:" {
			kb, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			total += kb
		}
	}
	return total
}

func TestUnchanged(t *testing.T) {
	entry := func(header, anonymous, swap string) string {
		return header + "\nSize:   8 kB\nRss:   8 kB\nAnonymous:  " + anonymous + " kB\nSwap:  " + swap + " kB\nLocked:   0 kB\nVmFlags: rd ex mr\n"
	}
	for name, c := range map[string]struct {
		entry string
		want  bool
	}{
		"code":                    {entry("00400000-00402000 r-xp 00000000 08:01 123 /usr/bin/x", "0", "0"), true},
		"constants":               {entry("7f0000400000-7f0000402000 r--p 00000000 08:01 123 /usr/lib/x.so", "0", "0"), true},
		"deleted program":         {entry("00400000-00402000 r-xp 00000000 08:01 123 /usr/bin/x (deleted)", "0", "0"), true},
		"relocated, protected":    {entry("00400000-00402000 r--p 00000000 08:01 123 /usr/bin/x", "4", "0"), false},
		"the same, swapped":       {entry("00400000-00402000 r--p 00000000 08:01 123 /usr/bin/x", "0", "4"), false},
		"data":                    {entry("00400000-00402000 rw-p 00000000 08:01 123 /usr/bin/x", "0", "0"), false},
		"shared":                  {entry("00400000-00402000 r--s 00000000 08:01 123 /run/x", "0", "0"), false},
		"heap":                    {entry("00400000-00402000 rw-p 00000000 00:00 0 [heap]", "0", "0"), false},
		"guard":                   {entry("00400000-00402000 r--p 00000000 00:00 0", "0", "0"), false},
		"vdso":                    {entry("00400000-00402000 r-xp 00000000 00:00 0 [vdso]", "0", "0"), false},
		"cut off":                 {"00400000-00402000 r-xp 00000000 08:01 123 /usr/bin/x\nRss: 8 kB\n", false},
		"not addresses":           {entry("zz-00402000 r-xp 00000000 08:01 123 /usr/bin/x", "0", "0"), false},
		"nothing":                 {"", false},
		"locked, for a deadline":  {strings.Replace(entry("00400000-00402000 r-xp 00000000 08:01 123 /usr/bin/x", "0", "0"), "Locked:   0", "Locked:   8", 1), false},
		"kernel without the line": {"00400000-00402000 r-xp 00000000 08:01 123 /usr/bin/x\nVmFlags: rd\n", false},
	} {
		if got := unchanged(strings.NewReader(c.entry)); (len(got) == 1) != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
