package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
)

// web serves HTTP on a port, on the loopback interface only, and an echo on the
// next one.
func web(port int) {
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port+1))
	check(err)
	go echo(l)
	next := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello from the container") })
	mux.HandleFunc("/seen", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s\n", r.Method, r.RequestURI, r.Host)
		_ = r.Header.WriteSubset(w, nil)
		_, _ = io.Copy(w, r.Body)
	})
	mux.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://elsewhere.invalid/", http.StatusFound)
	})
	// The second event comes when somebody asks for it.
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "one\n")
		_ = http.NewResponseController(w).Flush()
		<-next
		fmt.Fprint(w, "two\n")
	})
	mux.HandleFunc("/next", func(http.ResponseWriter, *http.Request) { next <- struct{}{} })
	mux.HandleFunc("/broken", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		fmt.Fprint(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	// Enough of RFC 6455 for bytes to flow.
	mux.HandleFunc("/socket", func(w http.ResponseWriter, r *http.Request) {
		conn, in, err := http.NewResponseController(w).Hijack()
		check(err)
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
		_, _ = io.Copy(conn, in)
	})
	l, err = net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
	check(err)
	fmt.Fprintln(os.Stderr, "serving")
	check(http.Serve(l, mux))
}

// echo repeats what it is told when it has been told all.
func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		check(err)
		go func() {
			defer c.Close()
			all, _ := io.ReadAll(c)
			_, _ = c.Write(all)
		}()
	}
}
