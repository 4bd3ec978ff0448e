package localcluster

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"crunch-oci/keep"
)

// tracesLeftOut are traces, or requests of them by a part of their path, that
// TestTraces leaves out, with the reason.
var tracesLeftOut = map[string]string{
	"/ssh":                               "the recorder knew no such container; see TestShellAccess",
	"/b34f66f2ddd77c6e068093751e042a3c+": "a block of the recorder's image",
}

// TestTraces sends what the reference programs were recorded to send, value by
// value, and wants the statuses that they got.
func TestTraces(t *testing.T) {
	raw, err := os.ReadFile("../testdata/spec/arvados-api.json")
	if err != nil {
		t.Fatal(err)
	}
	var spec struct {
		Traces map[string][]struct {
			Method, Path, Token, Service string
			Headers, Query, Form         map[string]string
			Status                       int
		}
	}
	if err := json.Unmarshal(raw, &spec); err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for name, trace := range spec.Traces {
		if tracesLeftOut[name] != "" {
			used[name] = true
			continue
		}
		t.Run(name, func(t *testing.T) {
			p := setUp(t)
			r, container := p.submit(obj{"container_count_max": 1})
			me := str(p.user.must("GET", "users/current", nil), "uuid")
			known := []string{"xmpl1-dz642-7k2v9q4m1x8c3b5", container, "xmpl1-xvhdp-h5t0n2w8z6r1y4p", str(r, "uuid"), "xmpl1-tpzed-r3s3archer0n0e1", me}
			// The collections that are looked up.
			for _, manifest := range []string{". b1946ac92492d2347c6235b4d2611184+6 0:6:hello.txt\n", "", ". acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:foo.txt\n",
				". b34f66f2ddd77c6e068093751e042a3c+67108864 4c51c5a8e87bd0424495cc60e51f74dd+55605760 0:122714624:" + imageID + ".tar\n"} {
				p.root.must("POST", "collections", obj{"collection": obj{"owner_uuid": me, "manifest_text": manifest}})
			}
			own := p.user
			switch name {
			case "crunch_dispatch_local":
			case "arvados_client_logs": // of a finished container
				p.run(container, nil, "crunch-run.txt", "log\n", "stderr.txt", "oops\n")
			default:
				own = p.lock(container)
			}
			// A tail of a run begins when it has been running, and with the
			// log collection already made.
			first := trace[0].Method + " " + trace[0].Path
			if strings.HasSuffix(name, "_tail") && !strings.HasSuffix(first, "/secret_mounts") {
				p.update(container, obj{"state": "Running"})
				for _, old := range regexp.MustCompile(`xmpl1-4zz18-\d{15}`).FindAllString(fmt.Sprint(trace), -1) {
					known = append(known, old, str(p.dispatcher.collection(nil), "uuid"))
				}
			}
			who := map[string]*client{"dispatcher": p.dispatcher, "container": own, "user": p.user}
			made := map[string]int{} // records of each kind
			for i, e := range trace {
				skip := false
				for part := range tracesLeftOut {
					if strings.HasPrefix(part, "/") && strings.Contains(e.Path, part) {
						skip, used[part] = true, true
					}
				}
				if e.Service == "keepstore" || skip {
					continue
				}
				cl := who[e.Token]
				signer := keep.Signer{Key: p.c.ids.BlobSigningKey, TTL: signatureTTL}
				ours := func(s string) string {
					s = strings.NewReplacer(known...).Replace(s)
					s = strings.ReplaceAll(s, "xmpl1-", "zzzzz-")
					return regexp.MustCompile(`([0-9a-f]{32}\+\d+)\+A[0-9a-f]{40}@[0-9a-f]{8}`).ReplaceAllStringFunc(s, func(l string) string {
						return signer.SignLocator(strings.Split(l, "+A")[0], cl.token, time.Now().Add(time.Hour))
					})
				}
				query, form := url.Values{}, url.Values{}
				for k, v := range e.Query {
					query.Set(k, ours(v))
				}
				for k, v := range e.Form {
					form.Set(k, ours(v))
				}
				header := http.Header{}
				for k, v := range e.Headers {
					if k != "Upgrade" {
						header.Set(k, v)
					}
				}
				if len(form) > 0 {
					header.Set("Content-Type", "application/x-www-form-urlencoded")
				}
				target := cl.base + ours(e.Path)
				if len(query) > 0 {
					target += "?" + query.Encode()
				}
				a := cl.send(e.Method, target, header, []byte(form.Encode()))
				if a.status != e.Status {
					t.Errorf("request %d, %s %s: %d, want %d: %s", i, e.Method, e.Path, a.status, e.Status, a.body)
				}
				// The recorder numbered the records it made up.
				uuid := str(a.obj, "uuid")
				if e.Method == "POST" && len(uuid) == 27 {
					infix := uuid[5:12]
					made[infix]++
					known = append(known, fmt.Sprintf("xmpl1%s%015d", infix, made[infix]), uuid)
					if infix == "-4zz18-" { // the second one in some traces
						known = append(known, fmt.Sprintf("xmpl1%s%015d", infix, made[infix]+1), uuid)
					}
				}
			}
		})
	}
	for k, reason := range tracesLeftOut {
		if !used[k] || reason == "" {
			t.Errorf("tracesLeftOut[%q]: nothing is left out by it, or there is no reason", k)
		}
	}
}
