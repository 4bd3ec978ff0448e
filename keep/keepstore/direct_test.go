package keepstore

import (
	"bytes"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// What happens to the disk while a block comes in costs neither the block nor
// leaves anything: it goes to the next volume, or the client hears why not.
func TestDiskFailsMidPut(t *testing.T) {
	data := randomBytes(21, 8<<20)
	for name, test := range map[string]struct {
		volumes int
		spoil   func(root string) error
		status  int
		body    string // of the error
	}{
		"full, another volume": {2, fill, http.StatusOK, ""},
		"full":                 {1, fill, http.StatusInsufficientStorage, "insufficient storage\n"},
		"directory removed":    {1, func(root string) error { return os.RemoveAll(filepath.Join(root, md5hex(data)[:3])) }, http.StatusOK, ""},
		"directory replaced": {1, func(root string) error {
			name := filepath.Join(root, md5hex(data)[:3])
			if err := os.RemoveAll(name); err != nil {
				return err
			}
			return os.WriteFile(name, nil, 0o600)
		}, http.StatusServiceUnavailable, "volume unavailable\n"},
	} {
		t.Run(name, func(t *testing.T) {
			c := twoVolumes(t, func(cfg *Config) {
				for i := range cfg.Volumes {
					cfg.Volumes[i].StorageClasses = nil
				}
				cfg.Volumes = cfg.Volumes[:test.volumes]
			})
			first := dir(probeOrder(c.srv.mounts, md5hex(data))[0]).root
			if err := syscall.Mount("tmpfs", first, "tmpfs", 0, "size=80m"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = syscall.Unmount(first, syscall.MNT_DETACH) })

			body, sender := io.Pipe()
			req, err := http.NewRequest(http.MethodPut, c.url+"/"+md5hex(data), body)
			if err != nil {
				t.Fatal(err)
			}
			req.ContentLength = int64(len(data))
			req.Header.Set("Authorization", "Bearer "+userToken)
			defer sender.Close()
			answered := make(chan reply, 1)
			go func() {
				resp, err := c.http.Do(req)
				if err != nil {
					answered <- reply{err: err}
					return
				}
				defer resp.Body.Close()
				text, err := io.ReadAll(resp.Body)
				answered <- reply{status: resp.StatusCode, body: string(text), err: err}
			}()
			_, _ = sender.Write(data[:1<<20])
			waitFor(t, "the file", func() bool { return len(files(t, first)) == 1 })
			if err := test.spoil(first); err != nil {
				t.Fatal(err)
			}
			_, err = sender.Write(data[1<<20:])
			sender.CloseWithError(err)
			r := <-answered
			if r.err != nil || r.status != test.status || test.body != "" && r.body != test.body {
				t.Fatalf("%d %q %v", r.status, r.body, r.err)
			}
			if test.status == http.StatusOK {
				c.want(c.do("GET", "/"+strings.TrimSpace(r.body), userToken, nil), http.StatusOK, string(data))
			}
			for _, name := range files(t, first) {
				if strings.HasPrefix(filepath.Base(name), "tmp") {
					t.Errorf("%s is left", name)
				}
			}
		})
	}
}

// A body that is not the block leaves nothing, whatever is wrong with it.
func TestWrongBody(t *testing.T) {
	c := start(t, nil)
	data := randomBytes(22, 1<<20)
	c.want(c.do("PUT", "/"+md5hex(data), userToken, data[1:]), 400, "content hash "+md5hex(data[1:])+" did not match specified locator "+md5hex(data)+"\n")
	big := randomBytes(23, maxBlockSize+1)
	req, err := http.NewRequest(http.MethodPut, c.url+"/"+md5hex(big), io.MultiReader(bytes.NewReader(big))) // of unknown length
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := c.http.Do(req); err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("too large: %d", resp.StatusCode)
		}
	}
	if left := files(t, c.cfg.Volumes[0].Root); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// fill takes all space of the file system at root.
func fill(root string) error {
	f, err := os.Create(filepath.Join(root, "filler"))
	if err != nil {
		return err
	}
	defer f.Close()
	piece := make([]byte, 1<<20)
	for {
		if _, err := f.Write(piece); err != nil {
			return nil
		}
	}
}

// files lists the files below root.
func files(t *testing.T, root string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			list = append(list, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}
