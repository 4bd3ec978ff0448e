package mount

import (
	"os"
	"testing"
	"time"
)

func TestSmoke(t *testing.T) {
	w := newWorld(t)
	loc := w.put([]byte("foobar"))
	pdh := w.publish(". "+loc+" 0:3:foo 3:3:dir/bar\n", time.Now().Add(time.Hour))
	w.mount()
	text, err := os.ReadFile(w.path("by_id", pdh, "dir/bar"))
	if err != nil || string(text) != "bar" {
		t.Errorf("%q %v\n%s", text, err, w.stderr)
	}
}
