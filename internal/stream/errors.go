package stream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/segmentio/kafka-go"
)

var (
	// ErrTooLarge: the record is larger than MaxRecordBytes or than the topic allows. Sending it again cannot help.
	ErrTooLarge = errors.New("record too large for Kafka")
	// ErrOffsetOutOfRange: the offset lies before the first record kept or after the end of the partition.
	ErrOffsetOutOfRange = errors.New("offset out of range")
	// ErrFenced: the group has moved on and refused the commit. The caller no longer owns the partition and must drop
	// what it holds for it.
	ErrFenced = errors.New("fenced: the partition belongs to a newer generation of the group")
	// ErrClosed: the client or producer has been closed.
	ErrClosed = errors.New("Kafka client is closed")
)

// Transient reports whether the same call may succeed later without anybody changing anything: brokers that restart,
// leaders that move, timeouts, lost connections. Everything that is not known to be permanent is transient.
func Transient(err error) bool {
	if err == nil {
		return false
	}
	for _, permanent := range []error{ErrTooLarge, ErrOffsetOutOfRange, ErrFenced, ErrClosed, context.Canceled} {
		if errors.Is(err, permanent) {
			return false
		}
	}
	var pe *permanentError
	if errors.As(err, &pe) {
		return false
	}
	var ke kafka.Error
	if !errors.As(err, &ke) {
		return true
	}
	switch ke {
	case kafka.Unknown, kafka.BrokerNotAvailable, kafka.RebalanceInProgress:
		return true // kafka-go calls these not temporary; they are what a cluster in motion answers
	}
	return ke.Temporary()
}

// translate gives Kafka's codes that callers act on the names of this package, and keeps the original inside.
func translate(err error) error {
	var ke kafka.Error
	if !errors.As(err, &ke) {
		return err
	}
	switch ke {
	case kafka.MessageSizeTooLarge, kafka.RecordListTooLarge:
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	case kafka.OffsetOutOfRange:
		return fmt.Errorf("%w: %w", ErrOffsetOutOfRange, err)
	case kafka.IllegalGeneration, kafka.UnknownMemberId, kafka.RebalanceInProgress, kafka.GroupIdNotFound, kafka.FencedInstanceID:
		return fmt.Errorf("%w: %w", ErrFenced, err)
	}
	return err
}

// backoff waits before the attempt-th repetition (from 0): up to 50 ms doubled each time and capped at 1 s, with full
// jitter above a tenth of it, so that many callers do not come back together. It returns false when ctx ended.
func backoff(ctx context.Context, attempt int) bool {
	limit := min(50*time.Millisecond<<min(attempt, 10), time.Second)
	timer := time.NewTimer(limit/10 + rand.N(limit))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// retry repeats f while it fails with a transient error and ctx lives. Only for calls that may be repeated without harm.
func retry(ctx context.Context, f func() error) error {
	for attempt := 0; ; attempt++ {
		err := f()
		if err == nil || !Transient(err) || !backoff(ctx, attempt) {
			return err
		}
	}
}
