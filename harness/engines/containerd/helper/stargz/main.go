// Command coldbench-stargz serves stargz-snapshotter's library to containerd over gRPC.
//
// The project's own command is a Go module that cannot be required by its version (it replaces its dependencies), so
// the library of the same version is served here. Flags and configuration file are those of containerd-stargz-grpc as
// far as they are used, so that either program serves.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/containerd/stargz-snapshotter/service/keychain/dockerconfig"
	"github.com/pelletier/go-toml/v2"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// config is the file's form: the library's own keys and the address of the metrics.
type config struct {
	service.Config
	MetricsAddress string `toml:"metrics_address"`
}

func main() {
	address := flag.String("address", "", "unix socket to serve on")
	root := flag.String("root", "", "state directory")
	file := flag.String("config", "", "configuration file (TOML)")
	version := flag.Bool("version", false, "say which version of the library this is")
	flag.Parse()
	if *version {
		fmt.Println("coldbench-stargz", libraryVersion())
		return
	}
	if err := run(*address, *root, *file); err != nil {
		fmt.Fprintln(os.Stderr, "coldbench-stargz:", err)
		os.Exit(1)
	}
}

// libraryVersion is the version of stargz-snapshotter that this program was built from.
func libraryVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == "github.com/containerd/stargz-snapshotter" {
				return module.Version
			}
		}
	}
	return "unknown"
}

// run serves until SIGINT or SIGTERM, then takes the snapshots' mounts away.
func run(address, root, file string) error {
	var c config
	if file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := toml.Unmarshal(text, &c); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	snapshotter, err := service.NewStargzSnapshotterService(context.Background(), root, &c.Config,
		service.WithCredsFuncs(dockerconfig.NewDockerconfigKeychain(context.Background())))
	if err != nil {
		return err
	}
	defer snapshotter.Close()
	if c.MetricsAddress != "" {
		listener, err := net.Listen("tcp", c.MetricsAddress)
		if err != nil {
			return err
		}
		mux := http.NewServeMux()
		mux.Handle("/metrics", promhttp.Handler())
		go func() { _ = http.Serve(listener, mux) }()
	}
	if err := os.MkdirAll(filepath.Dir(address), 0o700); err != nil {
		return err
	}
	if err := os.Remove(address); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGINT, unix.SIGTERM)
	go func() {
		<-ended
		server.Stop()
	}()
	return server.Serve(listener)
}
