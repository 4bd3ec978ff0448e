package keep_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
)

func TestClientServiceHints(t *testing.T) {
	data := []byte("hinted")
	list, services := servers(t, 3, data)
	last := services[2]
	list[2].Put(data)
	loc, err := keep.ParseLocator(fmt.Sprintf("%s+%d+K@%s+K@zzzzz-bi6l4-unknownunknown0", md5hex(data), len(data), last.UUID))
	if err != nil {
		t.Fatal(err)
	}
	list[2].Signer.Key = ""
	client := keeptest.NewClient(t, nil, services...)
	if _, err := client.ReadBlock(t.Context(), loc); err != nil {
		t.Error(err)
	}
	if got := counts(list); !slices.Equal(got, []int{0, 0, 1}) {
		t.Errorf("requests %v", got)
	}
}

func TestClusterHints(t *testing.T) {
	listed := keep.FixedServices{{UUID: "a", URL: "http://a"}, {UUID: "b", URL: "https://keep.zzzzz.arvadosapi.com"}}
	for hints, want := range map[string][]string{
		"":                   {"http://a", "https://keep.zzzzz.arvadosapi.com"},
		"+K@xyzzy":           {"https://keep.xyzzy.arvadosapi.com", "http://a", "https://keep.zzzzz.arvadosapi.com"},
		"+K@zzzzz+K@xyzzy":   {"https://keep.zzzzz.arvadosapi.com", "https://keep.xyzzy.arvadosapi.com", "http://a"},
		"+K@ab@cd+K@a-b_c+K": {"http://a", "https://keep.zzzzz.arvadosapi.com"},
	} {
		loc, err := keep.ParseLocator("acbd18db4cc2f85cedef654fccc4a4d8+3" + hints)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range keep.HintedServices(loc, listed) {
			got = append(got, s.URL)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", hints, got, want)
		}
	}
}

func TestClientServiceListError(t *testing.T) {
	broken := errors.New("no API server")
	client := keeptest.NewClient(t, func(cfg *keep.ClientConfig) {
		cfg.Services = keep.ServiceListerFunc(func(context.Context) ([]keep.Service, error) { return nil, broken })
	})
	loc, _ := keep.ParseLocator("acbd18db4cc2f85cedef654fccc4a4d8+3")
	if _, err := client.ReadBlock(t.Context(), loc); !errors.Is(err, broken) {
		t.Error(err)
	}
	client = keeptest.NewClient(t, nil)
	if _, err := client.ReadBlock(t.Context(), loc); !errors.Is(err, keep.ErrNoServices) || errors.Is(err, keep.ErrNotFound) {
		t.Error(err)
	}
}

func TestParseServices(t *testing.T) {
	got, bad := keep.ParseServices(" http://10.0.0.1:25107/ ftp://x nonsense  https://keep.example ")
	want := keep.FixedServices{
		{UUID: "00000-bi6l4-000000000000000", URL: "http://10.0.0.1:25107", Type: "proxy"},
		{UUID: "00000-bi6l4-000000000000001", URL: "https://keep.example", Type: "proxy"},
	}
	if !slices.Equal(got, want) || !slices.Equal(bad, []string{"ftp://x", "nonsense"}) {
		t.Errorf("%+v, bad %q", got, bad)
	}
}

func TestServiceCache(t *testing.T) {
	var calls int
	var fail error
	var hook func()
	cache := keep.NewServiceCache(keep.ServiceListerFunc(func(context.Context) ([]keep.Service, error) {
		calls++
		if hook != nil {
			hook()
		}
		return []keep.Service{{UUID: strconv.Itoa(calls)}}, fail
	}))
	get := func() string {
		t.Helper()
		list, err := cache.KeepServices(t.Context())
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		return list[0].UUID
	}
	get()
	if get() != "1" {
		t.Error("list is not remembered")
	}
	cache.Expire()
	if get() != "2" {
		t.Error("list is not renewed")
	}
	// While one caller gets a new list, the others use the old one.
	calling, answer := make(chan struct{}), make(chan struct{})
	hook = func() {
		hook = nil
		close(calling)
		<-answer
	}
	cache.Expire()
	renewed := make(chan string)
	go func() {
		list, _ := cache.KeepServices(t.Context())
		renewed <- list[0].UUID
	}()
	<-calling
	if get() != "2" {
		t.Error("a reader waits for a list that it does not need")
	}
	close(answer)
	if got := <-renewed; got != "3" {
		t.Errorf("renewed list: %s", got)
	}
	cache.Expire()
	fail = errors.New("down")
	if get() != "3" {
		t.Error("old list is not kept when a new one cannot be had")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cache = keep.NewServiceCache(keep.ServiceListerFunc(func(context.Context) ([]keep.Service, error) {
		cancel()
		return nil, fail
	}))
	if _, err := cache.KeepServices(ctx); !errors.Is(err, fail) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A service that is restarted at another address is found there.
func TestServiceMoves(t *testing.T) {
	var server keeptest.Server
	loc := server.Put([]byte("foo"))
	there := server.Start(t)
	asked := 0
	cache := keep.NewServiceCache(keep.ServiceListerFunc(func(context.Context) ([]keep.Service, error) {
		if asked++; asked == 1 {
			return []keep.Service{{UUID: there.UUID, URL: "http://127.0.0.1:1", Type: "disk"}}, nil
		}
		return []keep.Service{there}, nil
	}))
	cache.DoubtAtOnce()
	client, err := keep.NewClient(keep.ClientConfig{
		Services: cache, Token: "v2/zzzzz-gj3su-000000000000000/abc", Retries: 1,
		RetryDelay: func(int) time.Duration { return 0 },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if data, err := client.ReadBlock(t.Context(), loc); err != nil || string(data) != "foo" {
		t.Errorf("%q, %v", data, err)
	}
}
