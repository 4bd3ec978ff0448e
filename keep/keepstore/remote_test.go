package keepstore

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"crunch-oci/keep"
)

// A block of another cluster is fetched with a token that is good there only,
// and becomes a local one if that is asked for.
func TestRemote(t *testing.T) {
	const id = "zbbbb"
	there := start(t, nil)
	u, _ := url.Parse(there.url)
	host, port, _ := net.SplitHostPort(u.Host)
	portNumber, _ := strconv.Atoi(port)
	salted, err := keep.SaltToken(userToken, id)
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	var lists atomic.Bool
	lists.Store(true)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.URL.Path != "/arvados/v1/keep_services/accessible" || r.Header.Get("Authorization") != "Bearer "+salted || !lists.Load() {
			http.NotFound(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"items": []any{map[string]any{
			"uuid": "zbbbb-bi6l4-000000000000000", "service_host": host, "service_port": portNumber, "service_type": "disk"}}})
	}))
	defer api.Close()
	here := start(t, func(cfg *Config) {
		cfg.BlobSigningKey = "another key"
		cfg.RemoteClusters = map[string]RemoteCluster{id: {Host: strings.TrimPrefix(api.URL, "http://"), Scheme: "http"}, "*": {}}
	})
	data := randomBytes(8, 1<<20)
	hash := md5hex(data)
	there.put(data)
	local := there.srv.signer.SignLocator(fmt.Sprintf("%s+%d", hash, len(data)), salted, time.Now().Add(time.Hour))
	remote := strings.Replace(local, "+A", "+R"+id+"-", 1)

	here.want(here.do("GET", "/"+remote, userToken, nil), 200, string(data))
	r := here.do("HEAD", "/"+remote, userToken, nil)
	if r.status != 200 || r.header.Get("X-Keep-Locator") != "" || r.header.Get("Content-Length") != fmt.Sprint(len(data)) {
		t.Errorf("HEAD: %+v", r)
	}
	if got := here.do("GET", "/index", rootToken, nil).body; got != "\n" {
		t.Errorf("a block was stored without being asked for: %s", got)
	}
	r = here.do("HEAD", "/"+remote, userToken, nil, "X-Keep-Signature", "local, time="+time.Now().UTC().Format(time.RFC3339))
	signed := r.header.Get("X-Keep-Locator")
	if r.status != 200 || !strings.HasPrefix(signed, fmt.Sprintf("%s+%d+A", hash, len(data))) {
		t.Fatalf("HEAD, to be made local: %+v", r)
	}
	here.want(here.do("GET", "/"+signed, userToken, nil), 200, string(data))
	if n := asked.Load(); n != 1 {
		t.Errorf("the list of services was asked for %d times", n)
	}
	// The client of this project goes the same way.
	client, err := keep.NewClient(keep.ClientConfig{Token: userToken, Services: keep.FixedServices{{UUID: "u", URL: here.url, Type: "proxy"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	loc, _ := keep.ParseLocator(remote)
	if made, err := client.LocalLocator(t.Context(), loc); err != nil || made.IsRemote() || made.Hash() != hash {
		t.Errorf("LocalLocator: %v %v", made, err)
	}

	tampered := strings.Replace(remote, "-"+remote[strings.Index(remote, "-")+1:][:4], "-0000", 1)
	absent := there.srv.signer.SignLocator(md5hex([]byte("absent"))+"+6", salted, time.Now().Add(time.Hour))
	for _, x := range []struct {
		path, token string
		status      int
		want        string
	}{
		{remote, "", 401, "no token provided in Authorization header\n"},
		{remote, strings.Repeat("1", 50), 400, keep.ErrObsoleteToken.Error() + "\n"},
		{remote, "v2/zzzzz-gj3su-aey2u9zwnz5ggdk/" + strings.Repeat("a", 40), 400, keep.ErrTokenSalted.Error() + "\n"},
		{strings.Replace(remote, id, "zcccc", 1), userToken, 400, "remote cluster not configured\n"},
		{strings.Replace(remote, "-", "", 1), userToken, 400, "bad remote signature hint\n"},
		{strings.Replace(remote, id, "zb", 1), userToken, 400, "bad remote signature hint\n"},
		{remote + "+R" + id + "-x@y", userToken, 400, "bad remote signature hint\n"},
		{strings.Replace(absent, "+A", "+R"+id+"-", 1), userToken, 404, "file does not exist\n"},
		{tampered, userToken, 400, "remote cluster zbbbb: invalid signature\n"},
	} {
		if r := here.do("GET", "/"+x.path, x.token, nil); r.status != x.status || r.body != x.want {
			t.Errorf("%s: %d %q, want %d %q", x.path, r.status, r.body, x.status, x.want)
		}
	}
}
