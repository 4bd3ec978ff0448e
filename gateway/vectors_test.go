package gateway

import (
	"encoding/json"
	"os"
	"testing"
)

// vectors are testdata/spec/gateway.json, as far as HTTP is concerned.
type vectors struct {
	Names struct {
		UUID   string `json:"container_uuid"`
		Token  string `json:"system_root_token"`
		Secret string `json:"auth_secret"`
		Prefix string `json:"webdav_prefix"`
	} `json:"names"`
	AuthSecret []struct {
		Secret string `json:"auth_secret"`
		UUID   string `json:"container_uuid"`
		Token  string `json:"system_root_token"`
	} `json:"auth_secret"`
	CertAuth []struct {
		Name     string `json:"name"`
		Secret   string `json:"auth_secret"`
		DER      []byte `json:"cert_der_base64"`
		Request  string `json:"x_arvados_authorization"`
		Response string `json:"x_arvados_authorization_response"`
	} `json:"cert_auth"`
	Dispatch struct {
		Files        map[string]string `json:"files"`
		Cases        []dispatchCase    `json:"cases"`
		NoCollection dispatchCase      `json:"no_log_collection"`
		NoAddress    []dispatchCase    `json:"no_container_address"`
		MustDiffer   []dispatchCase    `json:"must_differ_from_reference"`
	} `json:"dispatch"`
	Range []struct {
		Content      string   `json:"content"`
		Range        string   `json:"range"`
		Status       int      `json:"status"`
		ContentRange *string  `json:"content_range"`
		Body         string   `json:"body"`
		Multipart    []string `json:"multipart"`
	} `json:"webdav_range"`
	SSHUpgrade struct {
		Request  string `json:"request_example"`
		Response string `json:"response"`
		Forms    []struct {
			Form       string `json:"form"`
			DetachKeys string `json:"detach_keys"`
			LoginUser  string `json:"login_username"`
		} `json:"form_decoding"`
	} `json:"ssh_upgrade"`
	Listen []struct {
		Address  string `json:"GatewayAddress"`
		ListenOn string `json:"listens_on"`
		Initial  string `json:"initial_address"`
		Tunnel   bool   `json:"tunnel"`
		Error    string `json:"error"`
	} `json:"listen_address"`
	Forward struct {
		From string `json:"from_controller"`
		See  struct {
			Line    string            `json:"request_line"`
			Host    string            `json:"Host"`
			Headers map[string]string `json:"headers"`
			Absent  []string          `json:"absent"`
			Body    string            `json:"body"`
			Framing string            `json:"recommended_framing"`
		} `json:"service_must_see"`
		Answers string `json:"service_answers"`
		Back    struct {
			Status  int                 `json:"status"`
			Headers map[string][]string `json:"headers"`
			Body    string              `json:"body"`
		} `json:"controller_must_see"`
	} `json:"forward_http"`
}

type dispatchCase struct {
	Name         string            `json:"name"`
	Cause        string            `json:"cause"`
	Method       string            `json:"method"`
	Path         string            `json:"path"`
	Headers      map[string]string `json:"headers"`
	Status       int               `json:"status"`
	Body         *string           `json:"body"`
	AuthResponse bool              `json:"auth_response_header"`
	Reply        map[string]string `json:"response_headers"`
	Required     string            `json:"required"`
}

func spec(t testing.TB) *vectors {
	t.Helper()
	data, err := os.ReadFile("../testdata/spec/gateway.json")
	if err != nil {
		t.Fatal(err)
	}
	v := new(vectors)
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
	return v
}

type dispatcherSecret struct {
	Token  string `json:"system_root_token"`
	UUID   string `json:"uuid"`
	Secret string `json:"secret"`
}

// dispatcherSecrets are the secrets that dispatchers have given.
func dispatcherSecrets(t testing.TB) []dispatcherSecret {
	t.Helper()
	text, err := os.ReadFile("../testdata/spec/cli-and-dispatch.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Secrets []dispatcherSecret `json:"gateway_auth_secret"`
	}
	if err := json.Unmarshal(text, &v); err != nil || len(v.Secrets) == 0 {
		t.Fatalf("%d secrets, %v", len(v.Secrets), err)
	}
	return v.Secrets
}
