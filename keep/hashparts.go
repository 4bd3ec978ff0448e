package keep

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"hash"
	"io"
	"runtime"

	md5simd "github.com/minio/md5-simd"
	"golang.org/x/sync/errgroup"
)

const (
	// hashLanes is how many parts are hashed at once by the lanes of vector
	// instructions; of fewer than minLanes, each is faster for itself.
	hashLanes = 16
	minLanes  = 4
	// hashPiece is how much of a part is read at once, in bytes: what
	// md5-simd takes for one lane.
	hashPiece = 32 << 10
)

// HashParts returns the MD5 of each part in hex digits, and nil, or "" and why
// it could not be read to its end; io.ErrUnexpectedEOF if the file is shorter.
// The more parts, the faster: up to 16 are hashed at once, in little memory.
func HashParts(ctx context.Context, parts []FilePart) (hashes []string, errs []error) {
	hashes, errs = make([]string, len(parts)), make([]error, len(parts))
	if len(parts) < minLanes {
		var group errgroup.Group
		group.SetLimit(runtime.GOMAXPROCS(0))
		for i := range parts {
			group.Go(func() error {
				hashInTurn(ctx, []hash.Hash{md5.New()}, parts[i:i+1], hashes[i:i+1], errs[i:i+1])
				return nil
			})
		}
		_ = group.Wait()
		return hashes, errs
	}
	server := md5simd.NewServer()
	defer server.Close()
	for i := 0; i < len(parts); i += hashLanes {
		end := min(i+hashLanes, len(parts))
		sums := make([]hash.Hash, end-i)
		for j := range sums {
			h := server.NewHash()
			defer h.Close()
			sums[j] = h
		}
		hashInTurn(ctx, sums, parts[i:end], hashes[i:end], errs[i:end])
	}
	return hashes, errs
}

// hashInTurn feeds the sums piece by piece, so that lanes are busy together.
func hashInTurn(ctx context.Context, sums []hash.Hash, parts []FilePart, hashes []string, errs []error) {
	buf := make([]byte, hashPiece)
	for off, left := int64(0), len(parts); left > 0; off += hashPiece {
		for i, part := range parts {
			if hashes[i] != "" || errs[i] != nil {
				continue
			}
			n, err := part.ReadAt(buf, off)
			_, _ = sums[i].Write(buf[:n])
			switch {
			case off+int64(n) == part.Length:
				hashes[i] = hex.EncodeToString(sums[i].Sum(nil))
			case ctx.Err() != nil:
				errs[i] = ctx.Err()
			case err == nil:
				continue
			case err == io.EOF:
				errs[i] = io.ErrUnexpectedEOF
			default:
				errs[i] = err
			}
			left--
		}
	}
}
