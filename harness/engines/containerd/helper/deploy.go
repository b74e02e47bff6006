package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/transfer"
	imagestore "github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const stopTimeout = 10 * time.Second

// deployment is the one image and container of this process's life.
type deployment struct {
	client    *client.Client
	out       *output
	events    *events
	container client.Container
	task      client.Task
	exit      <-chan client.ExitStatus
}

// deploy goes from nothing to a running process; of an error it says in which phase.
func (d *deployment) deploy(ctx context.Context, r request) (string, error) {
	begun := monotonic()
	platform, err := platforms.Parse(r.Platform)
	if err != nil {
		return "pull", err
	}
	image, err := d.pull(ctx, r, platform, begun)
	if err != nil {
		return "pull", err
	}
	pulled := d.events.moment("image")
	d.out.send(message{Event: "phase", Name: "create", StartNS: pulled})
	if err := d.create(ctx, r, image); err != nil {
		return "create", err
	}
	created := d.events.moment("create")
	d.out.send(message{Event: "created", PID: d.task.Pid(), StartNS: pulled, EndNS: created, Namespaces: hold(d.task.Pid())})
	d.out.send(message{Event: "phase", Name: "start", StartNS: created})
	if err := d.task.Start(ctx); err != nil {
		return "start", err
	}
	d.out.send(message{Event: "span", Name: "create", StartNS: pulled, EndNS: created})
	d.out.send(message{Event: "span", Name: "start", StartNS: created, EndNS: d.events.moment("start")})
	d.out.send(message{Event: "started"})
	go func() {
		status := <-d.exit
		d.out.send(message{Event: "exited", Code: status.ExitCode(), EndNS: monotonicOf(status.ExitTime())})
	}()
	return "", nil
}

// hold opens the namespaces of a process that does not run yet, for the harness, which finds them among our descriptors
// also when that process has ended. The order is that of harness.kernel.namespaces.KINDS.
func hold(pid uint32) []int {
	held := []int{}
	for _, kind := range []string{"cgroup", "ipc", "uts", "net", "pid", "mnt"} {
		descriptor, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil
		}
		held = append(held, descriptor)
	}
	return held
}

// confine gives the container what the harness allows: its system call filter, and what the scenario asks for beyond.
// containerd's own default has Docker's capabilities, devices, paths and no_new_privs, and no filter.
func confine(r request) []oci.SpecOpts {
	if r.Privileged {
		return []oci.SpecOpts{oci.WithPrivileged, oci.WithAllDevicesAllowed, oci.WithNewPrivileges}
	}
	options := []oci.SpecOpts{oci.WithAddedCapabilities(r.Capabilities)}
	for _, path := range r.Devices {
		options = append(options, oci.WithDevices(path, path, "rwm"))
	}
	return append(options, func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
		s.Linux.Seccomp = r.Seccomp
		return nil
	})
}

// progress keeps when the daemon told of something first.
type progress struct {
	lock     sync.Mutex
	manifest int64
	waiting  map[string]int64
}

func (p *progress) note(told transfer.Progress) {
	p.lock.Lock()
	defer p.lock.Unlock()
	if told.Event == "fetching image content" {
		p.manifest = monotonic()
	}
	if told.Event == "waiting" && told.Desc != nil {
		p.waiting[told.Desc.Digest.String()] = monotonic()
	}
}

// pull has containerd's transfer service pull and unpack the image. Labels for remote snapshotters are the daemon's to
// add: the proxy plugin's export enable_remote_snapshot_annotations in its configuration has it do so.
func (d *deployment) pull(ctx context.Context, r request, platform ocispec.Platform, begun int64) (client.Image, error) {
	source, err := registry.NewOCIRegistry(ctx, r.Reference, registry.WithDefaultScheme(r.Scheme))
	if err != nil {
		return nil, err
	}
	store := imagestore.NewStore(r.Reference, imagestore.WithPlatforms(platform), imagestore.WithUnpack(platform, r.Snapshotter))
	told := &progress{waiting: map[string]int64{}}
	if err := d.client.Transfer(ctx, source, store, transfer.WithProgress(told.note)); err != nil {
		return nil, err
	}
	found, err := d.client.ImageService().Get(ctx, r.Reference)
	if err != nil {
		return nil, err
	}
	image := client.NewImageWithPlatform(d.client, found, platforms.OnlyStrict(platform))
	return image, d.report(ctx, r, image, told, begun)
}

// report says what the pull consisted of, as spans and as lists of layers.
func (d *deployment) report(ctx context.Context, r request, image client.Image, told *progress, begun int64) error {
	store := d.client.ContentStore()
	manifest, err := images.Manifest(ctx, store, image.Target(), image.Platform())
	if err != nil {
		return err
	}
	diffIDs, err := image.RootFS(ctx)
	if err != nil {
		return err
	}
	chainIDs := identity.ChainIDs(slices.Clone(diffIDs)) // it computes in place
	d.events.moment("image")
	told.lock.Lock()
	defer told.lock.Unlock()
	d.events.lock.Lock()
	defer d.events.lock.Unlock()
	d.out.send(message{Event: "span", Name: "resolve", StartNS: begun, EndNS: max(told.manifest, begun)})
	unpacked, sizes := []int{}, []int64{}
	for number, layer := range manifest.Layers {
		sizes = append(sizes, layer.Size)
		fetched := d.events.content[layer.Digest.String()]
		if fetched != 0 {
			waited := told.waiting[layer.Digest.String()]
			if waited == 0 || waited > fetched {
				waited = told.manifest
			}
			d.out.send(message{Event: "span", Name: "fetch", Layer: &number, StartNS: waited, EndNS: fetched})
		}
		if number >= len(chainIDs) {
			continue
		}
		parent := ""
		if number > 0 {
			parent = chainIDs[number-1].String()
		}
		if commited := d.events.commited[chainIDs[number].String()]; commited != 0 {
			unpacked = append(unpacked, number)
			start := max(d.events.prepared[parent], fetched)
			if start == 0 {
				start = told.manifest
			}
			d.out.send(message{Event: "span", Name: "unpack", Layer: &number, StartNS: start, EndNS: commited})
		}
	}
	if len(unpacked) < len(manifest.Layers) {
		start := max(d.events.content[manifest.Config.Digest.String()], begun)
		d.out.send(message{Event: "span", Name: "mount", StartNS: start, EndNS: d.events.moments["image"], Detail: r.Snapshotter})
	}
	d.out.send(message{Event: "pulled", Sizes: sizes, Unpacked: unpacked})
	return nil
}

// create makes snapshot, container and task; its process does not run yet.
func (d *deployment) create(ctx context.Context, r request, image client.Image) error {
	options := []oci.SpecOpts{
		oci.WithImageConfig(image), oci.WithHostNamespace(specs.NetworkNamespace), oci.WithCgroup(r.Cgroup),
		oci.WithEnv(r.Env), oci.WithMounts([]specs.Mount{bind(r.Hosts, "/etc/hosts"), bind(r.Resolv, "/etc/resolv.conf")}),
	}
	options = append(options, confine(r)...)
	if len(r.Args) > 0 {
		options = append(options, oci.WithProcessArgs(r.Args...))
	}
	if r.Cwd != "" {
		options = append(options, oci.WithProcessCwd(r.Cwd))
	}
	if r.User != "" {
		options = append(options, oci.WithUser(r.User))
	}
	container, err := d.client.NewContainer(ctx, r.ID,
		client.WithImage(image), client.WithSnapshotter(r.Snapshotter), client.WithNewSnapshot(r.ID, image),
		client.WithRuntime("io.containerd.runc.v2", &runcoptions.Options{BinaryName: r.Runtime, Root: r.RuntimeRoot}),
		client.WithNewSpec(options...))
	if err != nil {
		return err
	}
	d.container = container
	set := cio.NewFIFOSet(cio.Config{Stdout: r.Stdout, Stderr: r.Stderr}, nil)
	task, err := container.NewTask(ctx, func(string) (cio.IO, error) { return cio.Load(set) })
	if err != nil {
		return err
	}
	d.task = task
	d.exit, err = task.Wait(ctx)
	return err
}

func bind(source, target string) specs.Mount {
	return specs.Mount{Type: "bind", Source: source, Destination: target, Options: []string{"rbind", "rprivate"}}
}

// stop takes container, snapshot and shim away, as far as that goes within its time.
func (d *deployment) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if d.task != nil {
		_ = d.task.Kill(ctx, syscall.SIGKILL)
		_, _ = d.task.Delete(ctx, client.WithProcessKill)
	}
	if d.container != nil {
		_ = d.container.Delete(ctx, client.WithSnapshotCleanup)
	}
}
