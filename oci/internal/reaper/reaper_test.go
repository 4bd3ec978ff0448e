package reaper

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

// The program was made of the source that is here.
func TestProgramIsUpToDate(t *testing.T) {
	source, err := os.ReadFile("program/init.c")
	if err != nil {
		t.Fatal(err)
	}
	noted, err := os.ReadFile("program/init.sum")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(source)
	if !strings.HasPrefix(string(noted), hex.EncodeToString(sum[:])) {
		t.Error("program/init.c has changed since init.elf was made: run go generate")
	}
}

// Nobody can change the program.
func TestProgramIsSealed(t *testing.T) {
	f, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("the program can be written to")
	}
	if err := f.Truncate(0); err == nil {
		t.Error("the program can be truncated")
	}
}
