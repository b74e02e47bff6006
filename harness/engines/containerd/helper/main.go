// Command coldbench-containerd-helper pulls an image, creates a container and starts it through containerd's gRPC API.
//
// It is told what to do by JSON lines on stdin and answers by JSON lines on stdout, with times of CLOCK_MONOTONIC. It
// runs inside the simulated machine, is connected before T0 and does as little as it can: containerd's transfer service
// pulls, so that no byte of an image passes through this program, and containerd's own events say when something was
// done, so that no delay of this program distorts a time.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// namespace is containerd's name for the room our images and containers are in.
const namespace = "coldbench"

// request is one line of stdin. Everything but do belongs to "deploy".
type request struct {
	Do          string   `json:"do"`
	Reference   string   `json:"reference"`
	Scheme      string   `json:"scheme"`
	Platform    string   `json:"platform"`
	Snapshotter string   `json:"snapshotter"`
	ID          string   `json:"id"`
	Cgroup      string   `json:"cgroup"`
	Args        []string `json:"args"`
	Env         []string `json:"env"`
	Cwd         string   `json:"cwd"`
	User        string   `json:"user"`
	Hosts       string   `json:"hosts"`
	Resolv      string   `json:"resolv"`
	Stdout      string   `json:"stdout"`
	Stderr      string   `json:"stderr"`
	Runtime     string   `json:"runtime"`
	RuntimeRoot string   `json:"runtime_root"`

	Capabilities []string            `json:"capabilities"`
	Devices      []string            `json:"devices"`
	Privileged   bool                `json:"privileged"`
	Seccomp      *specs.LinuxSeccomp `json:"seccomp"`
}

// message is one line of stdout. Times are nanoseconds of CLOCK_MONOTONIC.
type message struct {
	Event    string  `json:"event"`
	Name     string  `json:"name,omitempty"`
	Layer    *int    `json:"layer,omitempty"`
	StartNS  int64   `json:"start_ns,omitempty"`
	EndNS    int64   `json:"end_ns,omitempty"`
	Detail   string  `json:"detail,omitempty"`
	Version  string  `json:"version,omitempty"`
	PID      uint32  `json:"pid,omitempty"`
	Sizes    []int64 `json:"sizes,omitempty"`
	Unpacked []int   `json:"unpacked,omitempty"`
	// Namespaces are descriptors of this process: see hold.
	Namespaces []int  `json:"namespaces,omitempty"`
	Code       uint32 `json:"code"`
	Phase      string `json:"phase,omitempty"`
	Kind       string `json:"kind,omitempty"`
	Message    string `json:"message,omitempty"`
}

// output serialises the lines of stdout.
type output struct {
	lock    sync.Mutex
	encoder *json.Encoder
}

func (o *output) send(m message) {
	o.lock.Lock()
	defer o.lock.Unlock()
	if err := o.encoder.Encode(m); err != nil {
		fmt.Fprintln(os.Stderr, "helper: the harness does not listen:", err)
		os.Exit(1)
	}
}

func (o *output) failed(phase string, err error) {
	o.send(message{Event: "failed", Phase: phase, Kind: kindOf(err), Message: err.Error()})
}

// kindOf names the kind of an error as containerd does.
func kindOf(err error) string {
	switch {
	case errdefs.IsNotFound(err):
		return "not-found"
	case errdefs.IsUnavailable(err):
		return "unavailable"
	case errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		return "denied"
	case errdefs.IsInvalidArgument(err):
		return "invalid"
	}
	return ""
}

// monotonic is CLOCK_MONOTONIC in nanoseconds, the clock of the harness.
func monotonic() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // Linux always has this clock
	}
	return t.Nano()
}

// monotonicOf is the same for a time of the wall clock that lies in the recent past.
func monotonicOf(t time.Time) int64 {
	return monotonic() - time.Since(t.Round(0)).Nanoseconds()
}

func main() {
	address := flag.String("address", "/run/containerd/containerd.sock", "containerd's socket")
	flag.Parse()
	out := &output{encoder: json.NewEncoder(os.Stdout)}
	if err := serve(*address, out); err != nil {
		out.failed("boot", err)
		os.Exit(1)
	}
}

// serve connects, says so, and obeys until stdin ends.
func serve(address string, out *output) error {
	ctx := namespaces.WithNamespace(context.Background(), namespace)
	c, err := client.New(address, client.WithTimeout(30*time.Second))
	if err != nil {
		return err
	}
	defer c.Close()
	version, err := c.Version(ctx)
	if err != nil {
		return err
	}
	seen := watch(ctx, c)
	out.send(message{Event: "up", Version: version.Version})
	deployed := &deployment{client: c, out: out, events: seen}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("not a request: %w", err)
		}
		switch r.Do {
		case "deploy":
			if phase, err := deployed.deploy(ctx, r); err != nil {
				out.failed(phase, err)
			}
		case "stop":
			deployed.stop(ctx)
			out.send(message{Event: "stopped"})
		default:
			return fmt.Errorf("asked to do %q: expected deploy or stop", r.Do)
		}
	}
	return lines.Err()
}
