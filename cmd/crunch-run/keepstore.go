package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"crunch-oci/keep/keepstore"
	"crunch-oci/supervisor/config"
	"crunch-oci/supervisor/localkeep"
)

const keepstoreUsage = `Usage: crunch-run keepstore [-config FILE]

Serves Keep blocks from the Directory and S3 volumes of a cluster's configuration,
as Arvados' keepstore does. -config - (JSON) reads it from stdin. The supervisor starts
it as the node's local keepstore; it can be started by hand as well:

  ARVADOS_SERVICE_INTERNAL_URL=http://10.0.0.5:25107 crunch-run keepstore -config /etc/arvados/config.yml
`

const (
	// keepstoreHeader bounds the header of a request, in bytes. A token and a
	// locator are not even 1 KiB.
	keepstoreHeader = 64 << 10
	// keepstoreConnections is how many may be open: far more than requests may
	// be waiting (API.MaxConcurrentRequests and MaxQueuedRequests).
	keepstoreConnections = 1024
)

// keepstoreGrace bounds how long requests may go on when the server is stopped.
const keepstoreGrace = 10 * time.Second

// runKeepstore is the block server.
func runKeepstore(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("keepstore", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	path := flags.String("config", config.DefaultClusterFile, "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, keepstoreUsage)
		return 0
	case err != nil || flags.NArg() > 0:
		return fail(stderr, 2, "crunch-run keepstore: error parsing command line arguments (try -h)")
	}
	_, stop, release := stopSignals(true)
	defer release()
	if err := serveKeepstore(stop, *path, stdin, stderr); err != nil {
		return fail(stderr, 1, "crunch-run keepstore: %v", err)
	}
	return 0
}

func serveKeepstore(ctx context.Context, path string, stdin io.Reader, stderr io.Writer) error {
	var cluster json.RawMessage
	var err error
	if path == "-" {
		cluster, err = oneCluster(stdin)
	} else if _, cluster, err = config.ReadClusterFile(path); err != nil {
		err = fmt.Errorf("could not load config file %s: %w", path, err)
	}
	if err != nil {
		return err
	}
	where := os.Getenv("ARVADOS_SERVICE_INTERNAL_URL")
	listener, err := keepstoreListener(where)
	if err != nil {
		return err
	}
	defer listener.Close()
	cfg, err := keepstore.ConfigFromCluster(cluster, where)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(stderr, nil))
	cfg.Logger = log
	handler, err := keepstore.New(cfg)
	if err != nil {
		return err
	}
	defer handler.Close()
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute, IdleTimeout: 2 * time.Minute, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		MaxHeaderBytes: keepstoreHeader}
	keepstore.LimitConnections(server, keepstoreConnections)
	log.Info("listening", "url", where)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepstoreGrace)
	defer cancel()
	err = server.Shutdown(grace)
	<-ended
	return err
}

// oneCluster reads {"Clusters":{ID:{...}}}.
func oneCluster(stdin io.Reader) (json.RawMessage, error) {
	var file struct{ Clusters map[string]json.RawMessage }
	if err := json.NewDecoder(stdin).Decode(&file); err != nil {
		return nil, fmt.Errorf("read configuration from stdin: %w", err)
	}
	if len(file.Clusters) != 1 {
		return nil, fmt.Errorf("read configuration from stdin: %d clusters are defined in it instead of one", len(file.Clusters))
	}
	for _, c := range file.Clusters {
		return c, nil
	}
	return nil, nil // not reached
}

// keepstoreListener is the socket inherited from the supervisor, or a new one.
func keepstoreListener(where string) (net.Listener, error) {
	if text := os.Getenv(localkeep.ListenFD); text != "" {
		fd, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %q is no file descriptor", localkeep.ListenFD, text)
		}
		f := os.NewFile(uintptr(fd), "listener")
		defer f.Close()
		return net.FileListener(f)
	}
	u, err := url.Parse(where)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return nil, fmt.Errorf("ARVADOS_SERVICE_INTERNAL_URL: %q must be the server's own URL, such as http://10.0.0.5:25107", where)
	}
	return net.Listen("tcp", u.Host)
}
