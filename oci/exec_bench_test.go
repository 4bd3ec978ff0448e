package oci_test

import "testing"

// BenchmarkExec starts a command in a running container and waits for its end.
func BenchmarkExec(b *testing.B) {
	c := newBox(b)
	for b.Loop() {
		if r := execIn(b, c.ctr, sh("true"), ""); r.code != 0 {
			b.Fatalf("%+v", r)
		}
	}
}
