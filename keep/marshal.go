package keep

import (
	"cmp"
	"context"
	"crypto/md5"
	"encoding/hex"
	"io/fs"
	"strconv"
)

// MarshalManifest stores everything that is still in memory and returns the
// manifest in the normalised form of the reference Go library: directories
// depth first with their own files before their subdirectories, all in byte
// order. It describes the tree as it was when the call began. Files may be
// written meanwhile and afterwards, and it may be called any number of times;
// calls wait for each other.
//
// Locators of blocks that another cluster signed stay as they are. The API
// server does not accept them: who saves the manifest asks a Localizer first.
//
// The error of an upload that failed, in the background or now, is returned;
// the data stays in memory, and the next call tries again. If ctx ends, the
// uploads go on until Close.
func (c *Collection) MarshalManifest(ctx context.Context) (string, error) {
	if err := c.lockMarshal(ctx); err != nil {
		return "", err
	}
	defer c.unlockMarshal()

	c.mu.Lock()
	c.failed, c.stuck, c.buffered = nil, 0, 0
	p := packer{c: c, short: true}
	p.tree(c.root)
	snapshot := c.freeze(nil, c.root, []byte("."))
	for _, zeros := range c.zeros {
		if zeros != nil && zeros.inMemory() {
			c.claim(zeros)
			p.claimed = append(p.claimed, zeros)
		}
	}
	c.mu.Unlock()

	c.uploadAll(ctx, p.claimed)
	if err := c.wait(ctx, snapshot); err != nil {
		return "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spare = nil
	return render(snapshot), nil
}

func (c *Collection) lockMarshal(ctx context.Context) error {
	select {
	case c.marshalMu <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Collection) unlockMarshal() { <-c.marshalMu }

// wait returns when nothing that the snapshot refers to is being uploaded any
// more, with the first error: an upload that is left behind and fails later
// would be held against the next attempt.
func (c *Collection) wait(ctx context.Context, snapshot []frozenDir) (err error) {
	for _, dir := range snapshot {
		for _, f := range dir.files {
			for _, e := range f.extents {
				err = cmp.Or(err, c.waitFor(ctx, e.src))
				if ctx.Err() != nil {
					return ctx.Err()
				}
			}
		}
	}
	return err
}

func (c *Collection) waitFor(ctx context.Context, src *source) error {
	for {
		c.mu.RLock()
		uploading, stored, failed := src.uploading, src.data == nil, c.failed
		c.mu.RUnlock()
		switch {
		case stored:
			return nil
		case uploading == nil && cmp.Or(failed, ctx.Err(), c.ctx.Err()) != nil:
			return cmp.Or(failed, ctx.Err(), fs.ErrClosed)
		case uploading == nil:
			// Whose write it was did not wait until it could begin.
			if c.claimAgain(src) {
				c.upload(ctx, src)
			}
			continue
		}
		select {
		case <-uploading:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// frozenDir is a directory that has a stream of its own, as it was at one
// moment.
type frozenDir struct {
	stream []byte // escaped stream name
	files  []frozenFile
}

type frozenFile struct {
	name    string
	extents []extent
}

// freeze lists the directories from n down that must appear in the manifest.
func (c *Collection) freeze(list []frozenDir, n *node, stream []byte) []frozenDir {
	entries := n.list()
	d := frozenDir{stream: stream}
	for _, e := range entries {
		if e.dir == nil {
			d.files = append(d.files, frozenFile{e.name, c.fill(e.extents)})
		}
	}
	if len(d.files) > 0 || len(entries) == 0 && n.parent != nil {
		list = append(list, d)
	}
	for _, e := range entries {
		if e.dir != nil {
			sub := append(stream[:len(stream):len(stream)], '/')
			list = c.freeze(list, e, appendEscaped(sub, e.name, true))
		}
	}
	return list
}

// fill returns a copy of list in which holes are parts of blocks of zeros.
func (c *Collection) fill(list []extent) []extent {
	out := make([]extent, 0, len(list))
	for _, e := range list {
		if e.src != hole {
			out = append(out, e)
			continue
		}
		which, size := 0, max(int64(c.blockSize)/64, 1)
		if e.len > size {
			which, size = 1, int64(c.blockSize)
		}
		if c.zeros[which] == nil {
			c.zeros[which] = &source{data: make([]byte, size), size: size, sealed: true}
		}
		for e.len > 0 {
			part := extent{c.zeros[which], 0, min(e.len, size), e.off}
			out = append(out, part)
			e.off, e.len = e.off+part.len, e.len-part.len
		}
	}
	return out
}

func render(dirs []frozenDir) string {
	var text []byte
	for _, d := range dirs {
		text = append(text, d.stream...)
		if len(d.files) == 0 {
			text = append(text, " "+emptyText+" 0:0:\\056\n"...)
			continue
		}
		var s streamWriter
		for _, f := range d.files {
			s.file(f)
		}
		if s.end == 0 {
			text = append(text, " "+emptyText...)
		}
		text = append(text, s.blocks...)
		text = append(text, s.files...)
		text = append(text, '\n')
	}
	return string(text)
}

// streamWriter builds the block and the file tokens of one manifest line, each
// with a space before it.
type streamWriter struct {
	blocks, files []byte
	last          string // the block listed last
	start, end    int64  // of it in the stream
}

func (s *streamWriter) file(f frozenFile) {
	var pos, length int64
	first := len(s.files)
	for _, e := range f.extents {
		e.segments(func(seg Segment) bool {
			// Only the block listed last is used again: this is the form
			// the reference writes.
			if loc := seg.Locator.String(); loc != s.last {
				s.blocks = append(append(s.blocks, ' '), loc...)
				s.last, s.start = loc, s.end
				s.end += seg.Locator.Size()
			}
			at := s.start + seg.Offset
			if length > 0 && pos+length == at {
				length += seg.Length
				return true
			}
			if length > 0 {
				s.token(pos, length, f.name)
			}
			pos, length = at, seg.Length
			return true
		})
	}
	if length > 0 || len(s.files) == first {
		s.token(pos, length, f.name)
	}
}

func (s *streamWriter) token(pos, length int64, name string) {
	s.files = append(s.files, ' ')
	s.files = strconv.AppendInt(s.files, pos, 10)
	s.files = append(s.files, ':')
	s.files = strconv.AppendInt(s.files, length, 10)
	s.files = append(s.files, ':')
	s.files = appendEscaped(s.files, name, true)
}

// PortableDataHash returns the content address of a manifest: the MD5 of its
// text with every block token cut to HASH+SIZE, "+", and that text's length.
// It depends on the exact text, not on the tree.
func PortableDataHash(manifest string) string {
	text := mapBlockTokens(manifest, false, cutHints)
	sum := md5.Sum([]byte(text))
	return hex.EncodeToString(sum[:]) + "+" + strconv.Itoa(len(text))
}

// cutHints leaves of a block token the hash and, if there is one, the size.
func cutHints(token string) string {
	end := hashLen
	if rest := token[hashLen:]; len(rest) > 1 && rest[1] >= '0' && rest[1] <= '9' {
		end += 2
		for end < len(token) && token[end] >= '0' && token[end] <= '9' {
			end++
		}
	}
	return token[:end]
}
