// Package streamtest starts Kafka brokers for tests: the in-memory one, which can be stopped and started again, and
// Apache Kafka from its published jars. It is imported from tests only. It does not know callscope's topics.
package streamtest

import (
	"testing"
	"time"
)

// Eventually calls check until it returns "", and fails the test with check's last reason when deadline has passed.
func Eventually(t testing.TB, deadline time.Duration, check func() string) {
	t.Helper()
	end := time.Now().Add(deadline)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		reason := check()
		if reason == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %s still: %s", deadline, reason)
		}
		<-time.After(pause)
	}
}
