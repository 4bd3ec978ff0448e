package dispatch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pricesMode is Arvados' own.
	pricesMode = 0o777
	// maxPrices bounds the list of prices, in bytes; a year of hourly ones is
	// half a megabyte.
	maxPrices = 64 << 20
	// pricesPatience bounds the wait for the prices: the dispatcher waits for
	// the list of runs, and sends the prices again with the next one.
	pricesPatience = 30 * time.Second
)

// SavePrices puts what stdin holds in place of the list of prices, as it is; an
// empty one changes nothing. What goes wrong is the error; the caller goes on
// without.
func (d Dir) SavePrices(stdin io.Reader) error {
	data, err := readWithin(stdin, pricesPatience)
	if err != nil {
		return fmt.Errorf("error reading price data from stdin: %w", err)
	}
	if len(data) == 0 {
		return nil
	}
	path := d.Prices()
	tmp := fmt.Sprintf("%s~%d", path, os.Getpid())
	if err := writeNew(tmp, data); err != nil {
		return fmt.Errorf("error writing price data to %s: %w", tmp, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("error renaming %s to %s: %w", tmp, path, err)
	}
	return nil
}

// ReadPrices reads the list of prices; fs.ErrNotExist if there is none. Where the
// directory is everybody's, others may have made what is there.
func (d Dir) ReadPrices() ([]byte, error) {
	f, err := openRegular(d.Prices(), os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPrices+1))
	if err == nil && len(data) > maxPrices {
		return nil, fmt.Errorf("%s: more than %d bytes", d.Prices(), maxPrices)
	}
	return data, err
}

// readWithin reads all of r in at most d. The goroutine left reading then ends
// with the program.
func readWithin(r io.Reader, d time.Duration) ([]byte, error) {
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		data, err := io.ReadAll(io.LimitReader(r, maxPrices+1))
		if err == nil && len(data) > maxPrices {
			data, err = nil, fmt.Errorf("more than %d bytes", maxPrices)
		}
		done <- result{data, err}
	}()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case r := <-done:
		return r.data, r.err
	case <-timer.C:
		return nil, fmt.Errorf("no end after %v", d)
	}
}

// writeNew writes a file that is not there, and leaves none behind if it cannot.
// What a killed process of the same number has left is replaced.
func writeNew(path string, data []byte) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, pricesMode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(path)
	}
	return err
}
