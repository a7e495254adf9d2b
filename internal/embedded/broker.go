package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

const (
	retentionInterval  = 30 * time.Second
	compactionInterval = 5 * time.Minute
)

// BrokerConfig configures a Broker.
type BrokerConfig struct {
	DataDir    string // required; made when missing
	Addr       string // host:port on loopback, default 127.0.0.1:9092; port 0 takes a free port
	Partitions int    // partitions of a topic made without a count, default 4
	Sync       bool   // fsync every batch before it is acknowledged: an acknowledged record survives power loss too, not only the process
}

// Broker is a single-node Kafka broker on a data directory (franz-go's kfake).
//
// It makes no topics by itself: make each with its partition count and
// configuration. Give every topic retention.ms or retention.bytes and
// segment.bytes of at most 64 MiB, since a start reads every segment. A
// compacted topic needs retention.ms=-1: retention here ignores the cleanup
// policy and would delete its records after seven days.
//
// It keeps one copy and its disk format is promised for one version back only:
// it is no archive.
type Broker struct {
	cfg   BrokerConfig
	log   *slog.Logger
	ready chan struct{}
	addr  string // written before ready is closed

	retentionInterval, compactionInterval time.Duration
}

// NewBroker returns a broker that does nothing until Run.
func NewBroker(cfg BrokerConfig, log *slog.Logger) *Broker {
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:9092"
	}
	if cfg.Partitions <= 0 {
		cfg.Partitions = 4
	}
	return &Broker{
		cfg: cfg, log: log, ready: make(chan struct{}),
		retentionInterval: retentionInterval, compactionInterval: compactionInterval,
	}
}

// Ready is closed when the broker accepts connections.
func (b *Broker) Ready() <-chan struct{} { return b.ready }

// Addr is the host:port that the broker listens on and advertises. It is empty
// until Ready is closed.
func (b *Broker) Addr() string {
	select {
	case <-b.ready:
		return b.addr
	default:
		return ""
	}
}

// Run serves until ctx is done, then writes everything to disk and returns
// nil. It is called once. It fails when the directory is in use, the address
// is taken or not loopback, or the stored data cannot be read.
func (b *Broker) Run(ctx context.Context) error {
	const what = "the embedded Kafka broker"
	release, err := lockDir(what, b.cfg.DataDir)
	if err != nil {
		return err
	}
	defer release()
	listener, err := listenLoopback(what, b.cfg.Addr, "kafka.embedded_addr")
	if err != nil {
		return err
	}
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.ClusterID("callscope-embedded"),
		kfake.DefaultNumPartitions(b.cfg.Partitions),
		kfake.DataDir(b.cfg.DataDir),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return listener, nil }),
		kfake.WithLogger(brokerLogger{b.log}),
	}
	if b.cfg.Sync {
		opts = append(opts, kfake.SyncWrites())
	}
	started := time.Now()
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		return errors.Join(fmt.Errorf("starting the embedded Kafka broker on %s: %w", b.cfg.DataDir, err), closeUnlessClosed(listener))
	}
	b.addr = listener.Addr().String()
	close(b.ready)
	b.log.Info("embedded broker is up", "addr", b.addr, "data_dir", b.cfg.DataDir, "sync", b.cfg.Sync, "start_ms", time.Since(started).Milliseconds())

	retention := time.NewTicker(b.retentionInterval)
	defer retention.Stop()
	compaction := time.NewTicker(b.compactionInterval)
	defer compaction.Stop()
	for {
		select {
		case <-ctx.Done():
			cluster.Close()
			b.log.Info("embedded broker is closed", "addr", b.addr)
			return nil
		case <-retention.C:
			b.maintain("retention", cluster.ApplyRetention)
		case <-compaction.C:
			b.maintain("compaction", cluster.Compact)
		}
	}
}

// maintain runs one maintenance pass and warns about a long one: every request
// waits meanwhile.
func (b *Broker) maintain(what string, pass func()) {
	started := time.Now()
	pass()
	if took := time.Since(started); took > time.Second {
		b.log.Warn("embedded broker maintenance was slow", "pass", what, "took_ms", took.Milliseconds())
	}
}

// closeUnlessClosed closes the listener of a cluster that did not start, which
// may or may not have closed it already.
func closeUnlessClosed(l net.Listener) error {
	if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// brokerLogger passes the broker's own messages on.
type brokerLogger struct{ log *slog.Logger }

func (l brokerLogger) Logf(level kfake.LogLevel, format string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case kfake.LogLevelError:
		to = slog.LevelError
	case kfake.LogLevelWarn:
		to = slog.LevelWarn
	}
	ctx := context.Background()
	if l.log.Enabled(ctx, to) {
		l.log.Log(ctx, to, "embedded broker", "message", fmt.Sprintf(format, args...))
	}
}
