package stream

import (
	"errors"
	"fmt"
	"testing"

	"github.com/segmentio/kafka-go"
	"pgregory.net/rapid"
)

// The hashes are those of Apache Kafka's own UtilsTest.testMurmur2.
var murmur2Vectors = map[string]int32{
	"21":                         -973932308,
	"foobar":                     -790332482,
	"a-little-bit-long-string":   -985981536,
	"a-little-bit-longer-string": -1486304829,
	"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
	"abc": 479470107,
}

func TestPartitionOfIsThatOfKafkasJavaClient(t *testing.T) {
	for key, hash := range murmur2Vectors {
		for _, n := range []int{1, 2, 4, 12, 97, 65536} {
			want := (hash & 0x7fffffff) % int32(n) // Utils.toPositive(hash) % n
			if got := PartitionOf([]byte(key), n); got != want {
				t.Errorf("PartitionOf(%q, %d) = %d, want %d", key, n, got, want)
			}
		}
	}
}

func TestPartitionOfStaysInRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOf(rapid.Byte()).Draw(t, "key")
		n := rapid.IntRange(1, 64).Draw(t, "partitions")
		p := PartitionOf(key, n)
		if p < 0 || int(p) >= n {
			t.Fatalf("partition %d of %d", p, n)
		}
		if again := PartitionOf(key, n); again != p {
			t.Fatalf("partition %d, then %d", p, again)
		}
	})
}

func TestTransient(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{errors.New("EOF or anything else about a connection"), true},
		{kafka.UnknownTopicOrPartition, true},
		{kafka.NotLeaderForPartition, true},
		{kafka.NotEnoughReplicas, true},
		{kafka.BrokerNotAvailable, true},
		{kafka.Unknown, true},
		{kafka.TopicAuthorizationFailed, false},
		{kafka.InvalidRecord, false},
		{translate(kafka.MessageSizeTooLarge), false},
		{translate(kafka.OffsetOutOfRange), false},
		{translate(kafka.RebalanceInProgress), false},
		{&permanentError{"counts differ"}, false},
		{&missingTopicsError{}, true},
		{ErrClosed, false},
	} {
		if got := Transient(tc.err); got != tc.want {
			t.Errorf("Transient(%v) = %t, want %t", tc.err, got, tc.want)
		}
		if tc.err != nil {
			if got := Transient(fmt.Errorf("doing something: %w", tc.err)); got != tc.want {
				t.Errorf("wrapped: Transient(%v) = %t, want %t", tc.err, got, tc.want)
			}
		}
	}
}

func TestReasonKind(t *testing.T) {
	for reason, want := range map[string]string{
		"bad_envelope":                 "bad_envelope",
		"bad_envelope: field 3: wrong": "bad_envelope",
		"":                             "other",
		"Something went wrong":         "other",
		"user 4711 has no device":      "other",
		"a_kind_that_is_far_too_long_to_be_a_label_value": "other",
	} {
		if got := reasonKind(reason); got != want {
			t.Errorf("reasonKind(%q) = %q, want %q", reason, got, want)
		}
	}
}
