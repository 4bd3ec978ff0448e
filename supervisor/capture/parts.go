package capture

import (
	"context"
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"crunch-oci/keep"
)

const (
	// partsAtOnce are hashed together, in the lanes of vector instructions.
	// What was hashed is sent while it is in the kernel's page cache still:
	// this many blocks, and those that are hashed meanwhile.
	partsAtOnce = 8
	// partsSent is how many blocks are on their way at the same time.
	partsSent = 4
)

// parts stores parts of files that make blocks of their own: whole ones, and
// ends of more than half a block, as a Collection would store them. None is held
// in memory. They are hashed where they lie, several together, and then sent from
// there. The server refuses what has changed in between; that is read again, in
// the ordinary way.
type parts struct {
	out    *keep.Collection
	failed func(error) // told at once when a block cannot be stored
	queue  chan *part
	ended  chan struct{}
}

// part is a block's worth of a file.
type part struct {
	keep.FilePart
	dest string // the file in the output collection

	done  chan struct{} // closed when the rest is known
	loc   keep.Locator
	again bool // it is not what it was, or cannot be read
	err   error
}

// partsOf divides a file, or returns nil if it is too small, or sparse.
func partsOf(f *os.File, dest string) (list []*part) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || newHoles(f).next >= 0 {
		return nil
	}
	for off := int64(0); st.Size-off > keep.MaxBlockSize/2; off += keep.MaxBlockSize {
		length := min(st.Size-off, keep.MaxBlockSize)
		list = append(list, &part{
			FilePart: keep.FilePart{File: f, Offset: off, Length: length},
			dest:     dest, done: make(chan struct{}),
		})
	}
	return list
}

func newParts(ctx context.Context, out *keep.Collection, failed func(error)) *parts {
	p := &parts{out: out, failed: failed, queue: make(chan *part, partsAtOnce), ended: make(chan struct{})}
	go p.run(ctx)
	return p
}

// store takes a file's parts. It returns when the last one has been taken.
func (p *parts) store(ctx context.Context, list []*part) {
	for _, one := range list {
		select {
		case p.queue <- one:
		case <-ctx.Done():
			one.end(ctx.Err())
		}
	}
}

// close ends the work, when nobody stores any more.
func (p *parts) close() {
	close(p.queue)
	<-p.ended
}

func (p *parts) run(ctx context.Context) {
	defer close(p.ended)
	var sending sync.WaitGroup
	defer sending.Wait()
	slots := make(chan struct{}, partsSent)
	for batch := p.batch(); len(batch) > 0; batch = p.batch() {
		list := make([]keep.FilePart, len(batch))
		for i, one := range batch {
			list[i] = one.FilePart
		}
		hashes, errs := keep.HashParts(ctx, list)
		for i, one := range batch {
			one.again = errs[i] != nil
			if one.again || ctx.Err() != nil {
				one.end(ctx.Err())
				continue
			}
			slots <- struct{}{}
			sending.Go(func() {
				one.end(p.send(ctx, one, hashes[i]))
				<-slots
			})
		}
	}
}

// batch waits for parts and takes what there is, up to partsAtOnce. None is the
// end.
func (p *parts) batch() (list []*part) {
	one, ok := <-p.queue
	for ok {
		list = append(list, one)
		if len(list) == partsAtOnce {
			break
		}
		select {
		case one, ok = <-p.queue:
		default:
			return list
		}
	}
	return list
}

func (p *parts) send(ctx context.Context, one *part, hash string) (err error) {
	if one.loc, err = p.out.WritePart(ctx, hash, one.FilePart); err == nil || ctx.Err() != nil {
		return err
	}
	now, _ := keep.HashParts(ctx, []keep.FilePart{one.FilePart})
	if one.again = errors.Is(err, keep.ErrUnreadable) || now[0] != hash; one.again {
		return nil
	}
	p.failed(copyError(one.dest, err))
	return err
}

func (p *part) end(err error) {
	p.err = err
	close(p.done)
}
