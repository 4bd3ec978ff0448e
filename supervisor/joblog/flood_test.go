package joblog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"crunch-oci/keep"
)

// awayStore is a Keep that is away for a while: it fails, or does not answer.
type awayStore struct {
	blocks
	back    chan struct{}
	hanging bool
}

func (a *awayStore) WriteBlock(ctx context.Context, data []byte, o keep.WriteOptions) (keep.Locator, error) {
	if a.hanging {
		select {
		case <-a.back:
		case <-ctx.Done():
			return keep.Locator{}, ctx.Err()
		}
	}
	return a.blocks.WriteBlock(ctx, data, o)
}

// garbage is the same binary stream each time; a line of it has 256 bytes on
// average.
func garbage() io.Reader { return rand.NewChaCha8([32]byte{1}) }

// However much a container writes while Keep is away, at most two blocks of it
// and what is in a pipe are taken: the container waits. When Keep is back,
// nothing is missing, and no byte is another one.
func TestFloodWhileKeepIsAway(t *testing.T) {
	const block, total, piece = 64 << 20, 200 << 20, 1 << 20
	for how, hanging := range map[string]bool{"failing": false, "hanging": true} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &awayStore{back: make(chan struct{}), hanging: hanging}
				if !hanging {
					store.set(errTest)
				}
				c, err := keep.NewCollection("", store)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				l, err := New(Config{UUID: testUUID, Tree: InCollection(c), Saver: new(recorder)})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				var saver sync.WaitGroup
				saver.Go(func() { l.Run(ctx) })
				defer saver.Wait()
				defer cancel()
				out, err := l.Stream("stdout.txt", StreamOptions{Stamp: true})
				if err != nil {
					t.Fatal(err)
				}
				var taken atomic.Int64
				written := make(chan error, 1)
				go func() {
					from, buf := garbage(), make([]byte, piece)
					for taken.Load() < total {
						if _, err := io.ReadFull(from, buf); err != nil {
							panic(err)
						}
						if _, err := out.Write(buf); err != nil {
							written <- err
							return
						}
						taken.Add(piece)
					}
					written <- nil
				}()
				synctest.Wait()
				select {
				case err := <-written:
					t.Fatalf("all of it was taken, or an error: %v", err)
				default:
				}
				if n := taken.Load(); n > 2*block+2*piece {
					t.Errorf("%d MiB were taken while Keep was away", n>>20)
				}
				store.set(nil)
				close(store.back)
				if err := <-written; err != nil {
					t.Fatal(err)
				}
				if _, err := l.Final(ctx, "Complete"); err != nil {
					t.Fatal(err)
				}
				checkGarbage(t, c, "stdout.txt", total)
			})
		})
	}
}

// checkGarbage checks that a file of the log is garbage with a time stamp before
// each line.
func checkGarbage(t *testing.T, c *keep.Collection, name string, size int64) {
	t.Helper()
	f, err := c.OpenFile(name, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want, lines := garbage(), bufio.NewReaderSize(f, 1<<20)
	var seen int64
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			break
		}
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if loc := stampPattern.FindIndex(line); loc == nil || loc[0] != 0 {
			t.Fatalf("after %d bytes: line without stamp: %.80q", seen, line)
		}
		line = line[len(stampLayout):]
		expect := make([]byte, len(line))
		if _, err := io.ReadFull(want, expect); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(line, expect) {
			t.Fatalf("after %d bytes: %.80q, want %.80q", seen, line, expect)
		}
		seen += int64(len(line))
	}
	if seen != size {
		t.Errorf("%d bytes, want %d", seen, size)
	}
}
