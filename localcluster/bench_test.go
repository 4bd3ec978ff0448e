package localcluster

import (
	"testing"
)

// What a supervisor's poll costs.
func BenchmarkGetContainer(b *testing.B) {
	p := setUp(b)
	_, container := p.submit(nil)
	for b.Loop() {
		p.dispatcher.must("GET", "containers/"+container+`?select=["state","priority"]`, nil)
	}
}

// From submission to Final with log and output: nine requests of three
// parties, without the blocks. Synced to disk, as a cluster that is kept is.
func BenchmarkWholeLife(b *testing.B) {
	c := start(b, Options{})
	user := clientOf(b, c, c.UserToken())
	p := parties{c, user, user.as(c.DispatcherToken()), user.as(c.SystemRootToken())}
	user.image("busybox:latest")
	log := p.saveLog("crunch-run.txt", "x")
	for b.Loop() {
		_, container := p.submit(nil)
		own := p.lock(container)
		p.update(container, obj{"state": "Running", "log": log})
		p.update(container, obj{"exit_code": 0})
		out := own.must("POST", "collections", obj{"collection": obj{"manifest_text": "", "is_trashed": true}})
		p.update(container, obj{"state": "Complete", "exit_code": 0, "log": log, "output": out["portable_data_hash"]})
	}
}
