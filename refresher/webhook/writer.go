package webhook

import (
	"context"
	"errors"

	"go.uber.org/zap"
)

const (
	maxBatch       = 256     // commits that share one fsync
	compactMinimum = 1 << 20 // bytes; a smaller file is left as it is
)

// ErrClosed is returned by an outbox that was closed.
var ErrClosed = errors.New("the outbox is closed")

// commit is something that has to be on the disk before it is true.
type commit struct {
	frames  []byte
	rewrite bool         // of the whole file, after apply
	apply   func()       // with the outbox's lock, once the frames are on the disk
	result  chan<- error // buffered
}

// write is the goroutine that owns the file. Commits that arrive while one is
// being written share the next fsync.
func (o *Outbox) write() {
	defer o.disk.close()
	for first := range o.commits {
		batch := []commit{first}
	gather:
		for len(batch) < maxBatch {
			select {
			case c, ok := <-o.commits:
				if !ok {
					break gather
				}
				batch = append(batch, c)
			default:
				break gather
			}
		}
		o.commitAll(batch)
	}
}

func (o *Outbox) commitAll(batch []commit) {
	var frames []byte
	rewrite := false
	for _, c := range batch {
		frames = append(frames, c.frames...)
		rewrite = rewrite || c.rewrite
	}
	err := o.mend()
	if err == nil && len(frames) > 0 {
		err = o.disk.append(frames)
	}
	if err == nil {
		o.mu.Lock()
		for _, c := range batch {
			c.apply()
		}
		o.mu.Unlock()
		if rewrite {
			err = o.compact()
		}
	}
	for _, c := range batch {
		c.result <- err
	}
	if err == nil && o.wasteful() {
		if err := o.compact(); err != nil {
			o.log.Error("compacting the webhook outbox (it goes on growing)", zap.Error(err))
		}
	}
}

// mend writes the file anew where an earlier write has failed.
func (o *Outbox) mend() error {
	if o.disk.f != nil {
		return nil
	}
	return o.compact()
}

func (o *Outbox) wasteful() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.disk.size > compactMinimum && o.disk.size > 2*o.liveSize()
}

// compact writes the file anew with what is pending and remembered. Only the
// writer changes either, so what it copies here is what the file holds.
func (o *Outbox) compact() error {
	o.mu.Lock()
	records := o.snapshot()
	o.mu.Unlock()
	var content []byte
	for _, rec := range records {
		var err error
		if content, err = appendFrame(content, rec); err != nil {
			return err
		}
	}
	return o.disk.rewrite(content)
}

// commit hands c to the writer and waits. After an error of ctx it may still
// come to pass.
func (o *Outbox) commit(ctx context.Context, frames []byte, rewrite bool, apply func()) error {
	result := make(chan error, 1)
	select {
	case o.commits <- commit{frames: frames, rewrite: rewrite, apply: apply, result: result}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// enter lets a caller use the writer until it calls o.users.Done.
func (o *Outbox) enter() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return ErrClosed
	}
	o.users.Add(1)
	return nil
}
