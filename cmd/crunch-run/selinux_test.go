package main_test

import (
	"os"
	"strings"
	"testing"

	"crunch-oci/arvados"
)

// With labels the root, and the files made for the container, have the label for
// files, so that the label for processes may write them; "check" says whether labels
// protect anything. The policy is that of vmtest.
func TestSELinux(t *testing.T) {
	if b, _ := os.ReadFile("/sys/fs/selinux/enforce"); string(b) != "1" {
		t.Skip("this kernel has no SELinux, or enforces nothing")
	}
	const label, mountLabel = "system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"
	n := newNode(t)
	was := n.env
	n.env = append(was, "CRUNCH_RUN_SELINUX_LABEL="+label, "CRUNCH_RUN_SELINUX_MOUNT_LABEL="+mountLabel)
	c := startCluster(t, n)
	image := c.storeTools(t)
	uuid := c.submit(t, image, sh(`cat /proc/self/attr/current | tr -d '\0'; echo; grep ' / / ' /proc/self/mountinfo | grep -c 'context="`+mountLabel+`"'
		echo x >/new; echo more >>/etc/passwd; echo data >/out/f; cat /conf; (echo x >/conf) 2>&1`), attrs{
		"mounts": attrs{"/out": attrs{"kind": "tmp", "capacity": 1 << 20}, "/conf": attrs{"kind": "text", "content": "configured\n"}}})
	record := c.finished(t, n, c.supervise(t, n, uuid), uuid, 0, arvados.StateComplete)
	got, want := stamped(t, c.log(t, record, "stdout.txt")), label+"\n1\nconfigured\n"
	if !strings.HasPrefix(got, want) || c.files(t, record.Output)["f"] != "data\n" {
		t.Errorf("got %q, want %q; %s", got, want, c.log(t, record, "stderr.txt"))
	}
	if res := n.run(t, "check", "--timeout=2m"); !strings.Contains(res.stdout, "SELinux label "+label) {
		t.Error(res.stdout, res.stderr)
	}
	n.env = append(was, "CRUNCH_RUN_SELINUX_LABEL=system_u:system_r:no_such_t:s0")
	uuid = c.submit(t, image, sh("true"), nil)
	p := c.supervise(t, n, uuid)
	c.finished(t, n, p, uuid, 1, arvados.StateLocked)
	const advice = "setting selinux-label: SELinux label system_u:system_r:no_such_t:s0: the node's policy has no such"
	if text := p.stderr.String(); !strings.Contains(text, advice) {
		t.Error(text)
	}
	if res := n.run(t, "check", "--timeout=2m"); res.code == 0 || !strings.Contains(res.stdout, "the node's policy has no such") {
		t.Error(res.stdout, res.stderr)
	}
}
