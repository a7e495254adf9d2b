package stream

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/callscope/callscope/internal/stream/streamtest"
)

// BenchmarkProduce measures single records of 8 KB by so many waiting goroutines: time per record, and CPU per record of
// client and in-memory broker together.
func BenchmarkProduce(b *testing.B) {
	for _, callers := range []int{1, 10, 100, 1000} {
		for _, codec := range []string{"none", "lz4", "zstd"} {
			b.Run(fmt.Sprintf("callers=%d/%s", callers, codec), func(b *testing.B) {
				c, err := Open(Config{Brokers: []string{streamtest.StartBroker(b, streamtest.WithDataDir(b.TempDir()))}, Compression: codec}, slog.New(slog.DiscardHandler), nil)
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				tc := topicConfig(Topic{Name: "bench", Partitions: 12, Configs: map[string]string{"retention.ms": "-1"}}, 1)
				if err := c.createTopics(b.Context(), []kafka.TopicConfig{tc}); err != nil {
					b.Fatal(err)
				}
				p := c.NewProducer("bench")
				defer p.Close()
				values := statsLike(64, 8<<10)
				if err := p.Produce(b.Context(), []byte("warm up"), values[0]); err != nil {
					b.Fatal(err)
				}
				var next atomic.Int64
				var wg sync.WaitGroup
				began := cpu()
				b.ResetTimer()
				for range callers {
					wg.Go(func() {
						for {
							i := next.Add(1)
							if i > int64(b.N) {
								return
							}
							if err := p.Produce(b.Context(), fmt.Appendf(nil, "key %d", i), values[i%64]); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				b.ReportMetric(float64((cpu()-began).Nanoseconds())/float64(b.N)/1000, "cpu-µs/record")
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)*float64(callers)/1e6, "latency-ms")
			})
		}
	}
}

// statsLike makes values of the texture of measurements in protobuf: every sixth byte a field's tag or length, four in
// ten the same from record to record, the rest numbers that change.
func statsLike(n, size int) [][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	base := make([]byte, size)
	for i := range base {
		base[i] = byte(r.Uint32())
	}
	values := make([][]byte, n)
	for v := range values {
		values[v] = make([]byte, size)
		for i := range base {
			switch {
			case i%6 == 0:
				values[v][i] = byte(i / 6 % 40)
			case i/16%5 < 2:
				values[v][i] = base[i]
			default:
				values[v][i] = byte(r.Uint32())
			}
		}
	}
	return values
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
