package localcluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"crunch-oci/localcluster/internal/store"
)

// Where the cluster can be reached, and the servers there.

// listenAddr is one host address with its two services.
type listenAddr struct {
	api, keep net.Listener
}

// host is an address that clients on this machine can connect to.
func (a listenAddr) host() string {
	if ip := a.api.Addr().(*net.TCPAddr).IP; !ip.IsUnspecified() {
		return ip.String()
	}
	return "127.0.0.1"
}

func (a listenAddr) apiHost() string {
	return net.JoinHostPort(a.host(), strconv.Itoa(a.api.Addr().(*net.TCPAddr).Port))
}

func (a listenAddr) keepPort() int { return a.keep.Addr().(*net.TCPAddr).Port }

// ports are where the cluster listened last.
type ports struct{ API, Keep int }

// listenAgain is listen with the ports of the last start, if they are free, for
// clients that were told of them.
func (c *Cluster) listenAgain(ctx context.Context, o Options, db *store.DB) error {
	var last ports
	if err := db.View(ctx, func(tx *store.Tx) error {
		saved, err := tx.Setting("ports")
		if err == nil && saved != "" {
			err = json.Unmarshal([]byte(saved), &last)
		}
		return err
	}); err != nil {
		return fmt.Errorf("ports of the last start: %w", err)
	}
	if err := c.listen(ctx, o, last); err != nil {
		return err
	}
	now := ports{c.addrs[0].api.Addr().(*net.TCPAddr).Port, c.addrs[0].keepPort()}
	if now == last {
		return nil
	}
	saved, err := json.Marshal(now)
	if err != nil {
		return err
	}
	return db.Update(ctx, func(tx *store.Tx) error { return tx.SetSetting("ports", string(saved)) })
}

// listen opens both ports on each address, on the first one those of last where
// any will do.
func (c *Cluster) listen(ctx context.Context, o Options, last ports) error {
	var lc net.ListenConfig
	open := func(addr string) (net.Listener, error) {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		c.undo.Add("close "+l.Addr().String(), func(context.Context) error {
			if err := l.Close(); !errors.Is(err, net.ErrClosed) {
				return err
			}
			return nil // the server has closed it
		})
		return l, nil
	}
	openOr := func(host string, port int, other string) (net.Listener, error) {
		if port != 0 {
			if l, err := open(net.JoinHostPort(host, strconv.Itoa(port))); err == nil {
				return l, nil
			}
		}
		return open(other)
	}
	host, port, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return fmt.Errorf("address to listen on: %w", err)
	}
	if port != "0" {
		last.API = 0 // it is said which
	}
	addrs := []string{o.Listen}
	for _, h := range o.AlsoListen {
		addrs = append(addrs, net.JoinHostPort(h, "0"))
	}
	for i, addr := range addrs {
		if i > 0 {
			host, last = o.AlsoListen[i-1], ports{}
		}
		var a listenAddr
		if a.api, err = openOr(host, last.API, addr); err != nil {
			return err
		}
		if a.keep, err = openOr(host, last.Keep, net.JoinHostPort(host, "0")); err != nil {
			return err
		}
		c.addrs = append(c.addrs, a)
	}
	return nil
}

// keepAt finds the block server for a client of the API at the given local
// address: the one on the same address.
func (c *Cluster) keepAt(local net.Addr) (string, int) {
	if tcp, ok := local.(*net.TCPAddr); ok {
		for _, a := range c.addrs {
			l := a.api.Addr().(*net.TCPAddr)
			if l.Port == tcp.Port && (l.IP.IsUnspecified() || l.IP.Equal(tcp.IP)) {
				return tcp.IP.String(), a.keepPort()
			}
		}
	}
	return c.addrs[0].host(), c.addrs[0].keepPort()
}

// serve runs an HTTP server on one listener of each address until undone.
func (c *Cluster) serve(name string, h http.Handler, log *slog.Logger, config *tls.Config, pick func(listenAddr) net.Listener) {
	var protocols http.Protocols
	protocols.SetHTTP1(true) // what the real servers speak
	server := &http.Server{
		Handler: h, TLSConfig: config, Protocols: &protocols, ReadHeaderTimeout: time.Minute, IdleTimeout: 5 * time.Minute,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug), // handshakes that failed, and the like
	}
	var wg sync.WaitGroup
	for _, a := range c.addrs {
		l := pick(a)
		wg.Go(func() {
			var err error
			if config != nil {
				err = server.ServeTLS(l, "", "")
			} else {
				err = server.Serve(l)
			}
			if !errors.Is(err, http.ErrServerClosed) {
				log.Error("local cluster stopped listening", "service", name, "address", l.Addr().String(), "error", err)
			}
		})
	}
	c.undo.Add("stop "+name+" server", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, c.grace)
		defer cancel()
		err := server.Shutdown(ctx)
		if err != nil { // somebody is very slow
			err = server.Close()
		}
		wg.Wait()
		return err
	})
}
