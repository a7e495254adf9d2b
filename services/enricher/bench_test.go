package enricher

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// open returns a partition with n open conferences of so many participants each,
// who have set up a fabric and, with stats, sent a report of a recording.
func open(b *testing.B, n, participants int, stats *callscopev1.Stats) (*partition, []*client) {
	p := newPartition(b)
	var clients []*client
	for i := range n {
		for user := range participants {
			c := &client{p: p, room: fmt.Sprint("conference ", i), user: fmt.Sprintf("user%d@example.test", user), device: fmt.Sprintf("%064x", i)}
			c.join()
			c.devices("f", "peer")
			c.ice("", "f", "peer", "checking", "connected")
			if stats != nil {
				raw := c.message("stats", "f", "peer")
				raw.Payload = &callscopev1.Raw_Stats{Stats: stats}
				c.send(raw)
			}
			clients = append(clients, c)
		}
	}
	return p, clients
}

func recordedStats(b *testing.B) *callscopev1.Stats {
	for _, message := range readCapture(b, "two-users-hs256") {
		if stats := message.raw.GetStats(); stats != nil {
			return stats
		}
	}
	b.Fatal("the recording has no stats")
	return nil
}

// benchmarkMessages measures decode, Step and encode of one kind of message,
// with n conferences of so many participants open.
func benchmarkMessages(b *testing.B, n, participants int, stats *callscopev1.Stats, message func(c *client) *callscopev1.Raw) {
	p, clients := open(b, n, participants, stats)
	const batch = 1_000
	var inputs []stage.Input
	b.ReportAllocs()
	bytes := 0
	var cpu, since time.Duration
	for i := 0; b.Loop(); i++ {
		if i%batch == 0 {
			b.StopTimer()
			if i > 0 {
				cpu += cpuTime() - since
			}
			p.wait(50) // nobody falls silent meanwhile
			p.inputs, p.outputs = nil, nil
			inputs = inputs[:0]
			for range batch {
				c := clients[(i+len(inputs)*7919)%len(clients)]
				raw := message(c)
				p.nextUID++
				raw.Uid, raw.Observed = testUID(p.nextUID), &callscopev1.Observed{
					AppId: "123456789", ReceivedAtMs: captureBaseMs + p.nowMs, ContentHash: hash(fmt.Sprint(p.nextUID)),
				}
				value, err := raw.MarshalVT()
				if err != nil {
					b.Fatal(err)
				}
				inputs = append(inputs, stage.Input{Offset: int64(i + len(inputs)), Key: []byte("123456789\x00" + c.room), Value: value})
			}
			since = cpuTime()
			b.StartTimer()
		}
		in := inputs[i%batch]
		outputs, err := p.m.Step(in)
		if err != nil {
			b.Fatal(err)
		}
		for _, out := range outputs {
			data := make([]byte, out.Message.SizeVT())
			if _, err := out.Message.MarshalToSizedBufferVT(data); err != nil {
				b.Fatal(err)
			}
		}
		bytes += len(in.Value)
	}
	cpu += cpuTime() - since
	b.SetBytes(int64(bytes / max(b.N, 1)))
	b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(b.N)/cpu.Seconds(), "records/s-and-core")
}

// cpuTime is what the process has used: on a busy machine the only time that
// can be compared.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkStep measures how many records one core takes, and how that grows
// with what is open: from few conferences to many, from two participants in one
// to 500.
func BenchmarkStep(b *testing.B) {
	stats := recordedStats(b)
	for _, size := range []struct{ conferences, participants int }{{1_000, 2}, {100_000, 2}, {10, 500}} {
		b.Run(fmt.Sprintf("event/conferences=%d/participants=%d", size.conferences, size.participants), func(b *testing.B) {
			benchmarkMessages(b, size.conferences, size.participants, nil, func(c *client) *callscopev1.Raw {
				raw := c.message("userAlive", "f", "peer")
				raw.Payload = &callscopev1.Raw_UserAlive{UserAlive: &callscopev1.UserAlive{}}
				return raw
			})
		})
	}
	// The record of a 20 KB report, with what callscope has no field for.
	full := proto.CloneOf(stats)
	full.OtherEntriesJson = "[" + strings.Repeat(" ", 20_000-full.SizeVT()) + "]"
	b.Run("stats20KB/conferences=1000/participants=2", func(b *testing.B) {
		benchmarkMessages(b, 1_000, 2, full, func(c *client) *callscopev1.Raw {
			for _, rtp := range full.Rtp {
				rtp.TimestampMs = float64(captureBaseMs + c.p.nowMs)
			}
			raw := c.message("stats", "f", "peer")
			raw.Payload = &callscopev1.Raw_Stats{Stats: full}
			return raw
		})
	})
	for _, size := range []struct{ conferences, participants int }{{1_000, 2}, {10_000, 2}, {10, 500}} {
		b.Run(fmt.Sprintf("stats/conferences=%d/participants=%d", size.conferences, size.participants), func(b *testing.B) {
			benchmarkMessages(b, size.conferences, size.participants, stats, func(c *client) *callscopev1.Raw {
				for _, rtp := range stats.Rtp {
					rtp.TimestampMs = float64(captureBaseMs + c.p.nowMs)
				}
				raw := c.message("stats", "f", "peer")
				raw.Payload = &callscopev1.Raw_Stats{Stats: stats}
				return raw
			})
		})
	}
}

// BenchmarkSnapshot measures what 10,000 open participants cost to write down
// and to read back.
func BenchmarkSnapshot(b *testing.B) {
	p, clients := open(b, 5_000, 2, recordedStats(b))
	p.wait(61_000) // the duplicate window is another matter
	for _, c := range clients {
		c.alive("f", "peer")
	}
	data, err := p.m.Snapshot()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("write", func(b *testing.B) {
		since := cpuTime()
		for b.Loop() {
			if _, err := p.m.Snapshot(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64((cpuTime()-since).Nanoseconds())/float64(b.N), "cpu-ns/op")
		b.ReportMetric(float64(len(data))/float64(len(clients)), "bytes/participant")
	})
	b.Run("restore", func(b *testing.B) {
		since := cpuTime()
		for b.Loop() {
			if err := NewMachine().Restore(FormatVersion, data); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64((cpuTime()-since).Nanoseconds())/float64(b.N), "cpu-ns/op")
	})
}
