// Command coldbench-estargz-convert converts an image to eStargz as ctr-remote does: with the same libraries, without a
// containerd that runs.
//
// ctr-remote's own module replaces its libraries by directories beside it, so that no pinned build makes it. What it
// does for "image convert --oci --estargz" is here: containerd's converter, with stargz-snapshotter's function for a
// layer, over a content store. The store is a directory, which is at the same time the blobs of an OCI layout.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
	"github.com/containerd/stargz-snapshotter/estargz"
	nativeconverter "github.com/containerd/stargz-snapshotter/nativeconverter/estargz"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// level is ctr-remote's own default.
const level = 9

// labels keeps in memory what containerd keeps in its database.
type labels struct {
	mutex sync.Mutex
	of    map[digest.Digest]map[string]string
}

func (l *labels) Get(d digest.Digest) (map[string]string, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return maps.Clone(l.of[d]), nil
}

func (l *labels) Set(d digest.Digest, all map[string]string) error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.of[d] = maps.Clone(all)
	return nil
}

func (l *labels) Update(d digest.Digest, some map[string]string) (map[string]string, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.of[d] == nil {
		l.of[d] = map[string]string{}
	}
	for key, value := range some {
		if value == "" {
			delete(l.of[d], key)
		} else {
			l.of[d][key] = value
		}
	}
	return maps.Clone(l.of[d]), nil
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: coldbench-estargz-convert LAYOUT TAG OUT")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "coldbench-estargz-convert:", err)
		os.Exit(1)
	}
}

func run(layout, tag, out string) error {
	source, err := find(layout, tag)
	if err != nil {
		return err
	}
	if err := link(layout, out); err != nil {
		return err
	}
	store, err := local.NewLabeledStore(out, &labels{of: map[digest.Digest]map[string]string{}})
	if err != nil {
		return err
	}
	layer := nativeconverter.LayerConvertFunc(estargz.WithCompressionLevel(level))
	made, err := converter.DefaultIndexConvertFunc(layer, true, platforms.All)(context.Background(), store, source)
	if err != nil {
		return err
	}
	if made == nil {
		return fmt.Errorf("nothing of %s was converted", tag)
	}
	made.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{*made}}
	index.SchemaVersion = 2
	if err := write(filepath.Join(out, "index.json"), index); err != nil {
		return err
	}
	return write(filepath.Join(out, ocispec.ImageLayoutFile), ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
}

// find gives the descriptor that a layout has under a tag.
func find(layout, tag string) (ocispec.Descriptor, error) {
	text, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("%s: %w", layout, err)
	}
	for _, entry := range index.Manifests {
		if entry.Annotations[ocispec.AnnotationRefName] == tag {
			return entry, nil
		}
	}
	return ocispec.Descriptor{}, fmt.Errorf("%s has no tag %s", layout, tag)
}

// link puts the layout's blobs into the store without copying them: containerd has pulled them before it converts.
func link(layout, out string) error {
	blobs := filepath.Join("blobs", string(digest.SHA256))
	if err := os.MkdirAll(filepath.Join(out, blobs), 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(layout, blobs))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := filepath.Join(blobs, entry.Name())
		if err := os.Symlink(filepath.Join(layout, name), filepath.Join(out, name)); err != nil {
			return err
		}
	}
	return nil
}

func write(path string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}
