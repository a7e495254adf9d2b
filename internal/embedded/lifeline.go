package embedded

import (
	"context"
	"errors"
	"io"
)

// ErrParentGone is the cause of a context that WatchLifeline ended.
var ErrParentGone = errors.New("the parent process has ended")

// WatchLifeline returns a context that ends with ctx, or when r reaches its
// end. A child process that was started with --lifeline calls it with its
// standard input, the read end of a pipe whose other end only its parent
// holds: the kernel closes that end however the parent ends, kill -9 included.
//
// The goroutine that reads r lives until r ends.
func WatchLifeline(ctx context.Context, r io.Reader) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, r) // its end is what counts, however it comes
		cancel(ErrParentGone)
	}()
	return ctx
}
