package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/regular"
)

func TestReadMessage(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want Message
	}{
		"null":              {"null", Message{}},
		"empty":             {"{}", Message{}},
		"null members":      {`{"Env":null,"Cluster":null,"KeepBuffers":null}`, Message{}},
		"cases of letters":  {`{"ENV":{"a":"b"},"keepbuffers":3,"ec2SPOTcheck":true}`, Message{Env: map[string]string{"a": "b"}, KeepBuffers: 3, EC2SpotCheck: true}},
		"unknown keys":      {`{"Env":{},"Future":{"x":[1]},"KeepBuffers":-1}`, Message{Env: map[string]string{}, KeepBuffers: -1}},
		"something follows": {`{"KeepBuffers":1} {"KeepBuffers":2} garbage`, Message{KeepBuffers: 1}},
		"cluster":           {`{"Cluster":{"A": 1.50}}`, Message{Cluster: json.RawMessage(`{"A": 1.50}`)}},
	} {
		got, err := ReadMessage(strings.NewReader(tc.text))
		if err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %#v %v", name, got, err)
		}
	}
	for text, want := range map[string]string{
		"":                      "decode stdin: EOF",
		"  \n":                  "decode stdin: EOF",
		`{"Env":`:               "decode stdin: unexpected EOF",
		"x":                     "decode stdin: invalid character",
		`[]`:                    "decode stdin: json: cannot unmarshal array",
		`{"KeepBuffers":1.5}`:   "decode stdin: json: cannot unmarshal number",
		`{"Env":{"T":["tok"]}}`: "decode stdin: json: cannot unmarshal array",
		`{"Env":"tok"}`:         "decode stdin: json: cannot unmarshal string",
	} {
		_, err := ReadMessage(strings.NewReader(text))
		if err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "tok") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestDispatcherMessages(t *testing.T) {
	var cloud []struct {
		Name       string
		StartStdin string `json:"start_stdin"`
	}
	readVectors(t, "dispatch_cloud", &cloud)
	read := 0
	for _, c := range cloud {
		if c.StartStdin == "" {
			continue
		}
		m, err := ReadMessage(strings.NewReader(c.StartStdin))
		if err != nil || m.Env["ARVADOS_API_HOST"] != "zzzzz.example.com" || !json.Valid([]byte(m.Env["InstanceType"])) || m.Cluster != nil {
			t.Errorf("%s: %v %v", c.Name, m, err)
		}
		if s := fmt.Sprintf("%v %+v %#v", m, m, m); strings.Contains(s, "systemroottoken") {
			t.Errorf("the token shows: %s", s)
		}
		read++
	}
	if read == 0 {
		t.Error("no messages")
	}
}

// A message larger than any pipe, read as it comes.
func TestHugeMessage(t *testing.T) {
	padding := bytes.Repeat([]byte("x"), 20<<20)
	r, w := io.Pipe()
	go func() {
		fmt.Fprintf(w, `{"Env":{"K":"v"},"Cluster":{"Padding":"%s"},"KeepBuffers":4}`, padding)
		// The writer may stay open: the message is complete.
	}()
	m, err := ReadMessage(r)
	if err != nil || m.KeepBuffers != 4 || len(m.Cluster) < len(padding) {
		t.Error(m, err)
	}
}

// What never ends is refused, before it has taken the node's memory.
func TestEndlessMessage(t *testing.T) {
	for name, begin := range map[string]string{"blanks": " ", "a value": `{"Env":{"K":"`} {
		r := io.MultiReader(strings.NewReader(begin), endless(' '))
		if _, err := ReadMessage(r); err == nil || err.Error() != "decode stdin: no end after 64 MiB" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// endless is a reader of one character, for ever.
type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

func TestSetEnv(t *testing.T) {
	got := map[string]string{}
	set := func(k, v string) error { got[k] = v; return nil }
	m := Message{Env: map[string]string{"A": "1", "B": ""}}
	if err := m.SetEnv(set); err != nil || !reflect.DeepEqual(got, m.Env) {
		t.Error(got, err)
	}
	for _, key := range []string{"", "A=B", "A\x00"} {
		err := Message{Env: map[string]string{key: "token"}}.SetEnv(os.Setenv)
		if err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("setenv(%q): ", key)) || strings.Contains(err.Error(), "token") {
			t.Errorf("%q: %v", key, err)
		}
	}
}

func TestTakeEnvironment(t *testing.T) {
	t.Setenv("GatewayAuthSecret", "s3cret")
	t.Setenv("GatewayAddress", "[fd00::5]:0")
	t.Setenv("TMPDIR", "/scratch")
	t.Setenv("CUDA_VISIBLE_DEVICES", "")
	e := TakeEnvironment()
	if e.GatewayAuthSecret != "s3cret" || e.GatewayAddress != "[fd00::5]:0" || e.TempDir != "/scratch" || e.CUDADevices == nil || *e.CUDADevices != "" {
		t.Errorf("%+v", e)
	}
	if _, ok := os.LookupEnv("GatewayAuthSecret"); ok {
		t.Error("children would inherit the gateway's secret")
	}
	if strings.Contains(fmt.Sprintf("%v %+v %#v", e, e, e), "s3cret") {
		t.Error("the secret shows")
	}
}

func TestParseCluster(t *testing.T) {
	var vectors []struct {
		Name    string
		Cluster json.RawMessage
	}
	readVectors(t, "keepstore_decision", &vectors)
	for _, v := range vectors {
		if string(v.Cluster) == "null" {
			continue
		}
		if c, err := ParseCluster(v.Cluster); err != nil || c.Collections.DefaultReplication != 2 || len(c.Volumes) != 1 {
			t.Errorf("%s: %v %v", v.Name, c, err)
		}
	}
	c, err := ParseCluster(json.RawMessage(`{"ManagementToken":"mtoken","Other":[1],"API":"changed type","Volumes":{"v":{"Driver":{},"AccessViaHosts":{"http://h/":{"ReadOnly":true}}}}}`))
	if err != nil || c.Containers.LocalKeepLogsToContainerLog != "none" || c.Containers.LocalKeepBlobBuffersPerVCPU != 1 || len(c.Volumes["v"].AccessViaHosts) != 1 {
		t.Errorf("%v %v", c, err)
	}
	if strings.Contains(fmt.Sprintf("%v %+v %#v", c, c, c), "mtoken") {
		t.Error("the management token shows")
	}
	if _, err := ParseCluster(json.RawMessage(`{"Volumes":7}`)); err == nil {
		t.Error("volumes of a wrong type are accepted")
	}
}

func TestReadClusterFile(t *testing.T) {
	write := func(text string) string {
		path := filepath.Join(t.TempDir(), "config.yml")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	id, raw, err := ReadClusterFile(write("AutoReloadConfig: true\nClusters:\n  zzzzz:\n    ManagementToken: m\n    Containers: {LocalKeepBlobBuffersPerVCPU: 2}\n    Odd: {1: a, true: [{2: b}]}\n"))
	if err != nil || id != "zzzzz" {
		t.Fatal(id, err)
	}
	if c, err := ParseCluster(raw); err != nil || c.ManagementToken != "m" || c.Containers.LocalKeepBlobBuffersPerVCPU != 2 {
		t.Error(c, err)
	}
	if !strings.Contains(string(raw), `"Odd":{"1":"a","true":[{"2":"b"}]}`) {
		t.Errorf("keys that keepstore may need are lost: %s", raw)
	}
	for text, want := range map[string]string{
		"":                              "no clusters",
		"Clusters: {}":                  "no clusters",
		"Clusters: {a: {}, b: {}}":      "2 clusters",
		"Clusters: [":                   "yaml",
		"Clusters: {a: {Volumes: [x]}}": "cluster configuration",
	} {
		if _, _, err := ReadClusterFile(write(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if id, _, err := ReadClusterFile(write("Clusters: {zzzzz: }")); err != nil || id != "zzzzz" {
		t.Error(id, err)
	}
	pipe := filepath.Join(t.TempDir(), "config.yml")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ReadClusterFile(pipe); !errors.Is(err, regular.ErrNot) {
		t.Error(err)
	}
	_, _, err = ReadClusterFile("/nonexistent/config.yml")
	if !errors.Is(err, os.ErrNotExist) || err.Error() != "open /nonexistent/config.yml: no such file or directory" {
		t.Error(err)
	}
}

func TestLoadClusterFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yml")
	got := LoadClusterFile(path)
	if want := "could not load config file " + path + ": open " + path + ": no such file or directory"; got.Config != nil || len(got.Notes) != 1 || got.Notes[0] != want {
		t.Errorf("%q, want %q", got.Notes, want)
	}
	if err := os.WriteFile(path, []byte("Clusters: {zzzzz: {ManagementToken: mtoken}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	got = LoadClusterFile(path)
	if got.ID != "zzzzz" || got.Config == nil || len(got.Notes) != 1 || got.Notes[0] != "loaded config file "+path {
		t.Errorf("%v %q", got, got.Notes)
	}
	if s := fmt.Sprintf("%v %+v %#v", got, got, got); strings.Contains(s, "mtoken") {
		t.Errorf("the management token shows: %s", s)
	}
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte(`{"Env":{"A":"b"},"KeepBuffers":1,"EC2SpotCheck":true,"Cluster":{"Volumes":{"v":{}}}}`))
	f.Add([]byte(`null garbage`))
	f.Add([]byte(`{"env":{"":"\u0000"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ReadMessage(bytes.NewReader(data))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "decode stdin: ") {
				t.Error(err)
			}
			return
		}
		if m.Cluster != nil {
			ParseCluster(m.Cluster)
		}
		m.SetEnv(func(k, v string) error { return nil })
	})
}

func FuzzClusterFile(f *testing.F) {
	f.Add([]byte("Clusters:\n  zzzzz:\n    Volumes: {v: {Replication: 2}}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, raw, err := parseClusterFile(data, "f")
		if err == nil && !json.Valid(raw) {
			t.Errorf("%s", raw)
		}
	})
}
