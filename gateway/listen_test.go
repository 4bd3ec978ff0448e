package gateway

import (
	"net"
	"strconv"
	"strings"
	"testing"
)

func TestListenVectors(t *testing.T) {
	for _, v := range spec(t).Listen {
		t.Run(v.Address, func(t *testing.T) {
			b, err := parseAddress(v.Address)
			if strings.HasSuffix(v.Address, ":40000") {
				b.port = "0" // somebody may have that port
				v.Initial = strings.Replace(v.Initial, "40000", "PORT", 1)
				v.ListenOn = strings.Replace(v.ListenOn, "40000", "PORT", 1)
			}
			var ls []net.Listener
			var address string
			if err == nil {
				ls, address, err = b.listen(t.Context())
			}
			if v.Error != "" {
				if err == nil || !strings.Contains(err.Error(), v.Error) {
					t.Errorf("%v, want %s", err, v.Error)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer ls[0].Close()
			port := strconv.Itoa(ls[0].Addr().(*net.TCPAddr).Port)
			switch v.Address {
			case ":0": // useless to the controller: a tunnel
				v.ListenOn, v.Initial, v.Tunnel = "127.0.0.1:PORT", "127.0.0.1:PORT", true
			case "127.0.0.1:0": // nobody else can come
				v.ListenOn = "127.0.0.1:PORT"
			}
			on := ls[0].Addr().String()
			if host, _, _ := net.SplitHostPort(on); host == "0.0.0.0" {
				on = "[::]:" + port // a machine without IPv6
			}
			if want := strings.Replace(v.ListenOn, "PORT", port, 1); on != want || len(ls) != 1 {
				t.Errorf("listens on %s, want %s", on, want)
			}
			if want := strings.Replace(v.Initial, "PORT", port, 1); address != want {
				t.Errorf("address %s, want %s", address, want)
			}
			if b.tunnel != v.Tunnel {
				t.Errorf("tunnel: %t", b.tunnel)
			}
		})
	}
}

// localhost is whatever address family the client prefers, and nothing else.
func TestListenOnLocalhost(t *testing.T) {
	b, err := parseAddress("localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	ls, address, err := b.listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(address)
	for i, l := range ls {
		defer l.Close()
		if want := net.JoinHostPort([]string{"127.0.0.1", "::1"}[i], port); l.Addr().String() != want {
			t.Errorf("listens on %s, want %s", l.Addr(), want)
		}
	}
	if address != "localhost:"+port {
		t.Error(address)
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = Start(t.Context(), Config{UUID: "u", Secret: "s3cr3t", Address: l.Addr().String()})
	if err == nil || !strings.Contains(err.Error(), "address already in use") || !strings.HasPrefix(err.Error(), "GatewayAddress: ") {
		t.Errorf("%v", err)
	}
}

func TestStartSaysWhere(t *testing.T) {
	s, book := open(t, nil)
	if want := "gateway server listening at " + s.Address() + "\n"; book.String() != want {
		t.Errorf("%q, want %q", book, want)
	}
}
