package main

import (
	"context"
	"sync"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/typeurl/v2"
)

// events remembers when containerd did what, by its own event stream: the time is the daemon's, not this program's.
type events struct {
	lock     sync.Mutex
	changed  *sync.Cond
	content  map[string]int64 // digest: written into the content store
	prepared map[string]int64 // parent's chain ID: a layer above it began
	commited map[string]int64 // chain ID: the layer is there
	moments  map[string]int64 // image, create, start
}

// watch subscribes and follows the stream until the connection ends.
func watch(ctx context.Context, c *client.Client) *events {
	e := &events{content: map[string]int64{}, prepared: map[string]int64{}, commited: map[string]int64{}, moments: map[string]int64{}}
	e.changed = sync.NewCond(&e.lock)
	stream, failures := c.Subscribe(ctx, `topic=="/content/create"`, `topic~="/snapshot/"`, `topic=="/images/create"`, `topic~="/tasks/"`)
	go func() {
		for {
			select {
			case envelope := <-stream:
				if event, err := typeurl.UnmarshalAny(envelope.Event); err == nil {
					e.note(event, monotonicOf(envelope.Timestamp))
				}
			case <-failures:
				return
			}
		}
	}()
	return e
}

func (e *events) note(event any, at int64) {
	e.lock.Lock()
	defer e.lock.Unlock()
	switch found := event.(type) {
	case *apievents.ContentCreate:
		e.content[found.Digest] = at
	case *apievents.SnapshotPrepare:
		if _, known := e.prepared[found.Parent]; !known {
			e.prepared[found.Parent] = at
		}
	case *apievents.SnapshotCommit:
		e.commited[found.Name] = at
	case *apievents.ImageCreate:
		e.moments["image"] = at
	case *apievents.TaskCreate:
		e.moments["create"] = at
	case *apievents.TaskStart:
		e.moments["start"] = at
	}
	e.changed.Broadcast()
}

// moment is when something happened by the stream, or now if the stream does not say so within a second.
func (e *events) moment(name string) int64 {
	now := monotonic()
	late := time.AfterFunc(time.Second, e.changed.Broadcast)
	defer late.Stop()
	e.lock.Lock()
	defer e.lock.Unlock()
	for e.moments[name] == 0 && monotonic()-now < time.Second.Nanoseconds() {
		e.changed.Wait()
	}
	if at := e.moments[name]; at != 0 {
		return at
	}
	return now
}
