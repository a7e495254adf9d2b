package streamtest

import (
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// Broker is an in-memory broker, or several, on ports that stay the same over Stop and Start.
type Broker struct {
	t       testing.TB
	addrs   []string
	opts    []kfake.Opt
	persist bool

	mu      sync.Mutex
	cluster *kfake.Cluster
}

// Option changes how a Broker is made.
type Option func(*Broker)

// WithDataDir keeps records, topics and group offsets in dir, so that they survive Stop and Start.
func WithDataDir(dir string) Option {
	return func(b *Broker) {
		b.persist = true
		b.opts = append(b.opts, kfake.DataDir(dir))
	}
}

// WithOptions hands options to the broker library.
func WithOptions(opts ...kfake.Opt) Option {
	return func(b *Broker) { b.opts = append(b.opts, opts...) }
}

// StartBroker starts an in-memory broker for the time of the test and returns its host:port.
func StartBroker(t testing.TB, opts ...Option) (addr string) {
	t.Helper()
	return NewBroker(t, opts...).Addr()
}

// NewBroker is StartBroker for tests that stop the broker, inject faults or look inside. It creates no topics by itself
// and accepts group sessions from 100 ms on.
func NewBroker(t testing.TB, opts ...Option) *Broker {
	t.Helper()
	b := &Broker{t: t, opts: []kfake.Opt{
		kfake.NumBrokers(1), kfake.ClusterID("streamtest"), kfake.GroupMinSessionTimeout(100 * time.Millisecond),
	}}
	for _, o := range opts {
		o(b)
	}
	b.start(nil)
	t.Cleanup(b.stop)
	return b
}

// Addr is the host:port of the first broker.
func (b *Broker) Addr() string { return b.addrs[0] }

// Brokers is the host:port of all.
func (b *Broker) Brokers() []string { return slices.Clone(b.addrs) }

// Cluster gives access to the running broker: Control, Fault, Compact, ApplyRetention, GroupInfo …
func (b *Broker) Cluster() *kfake.Cluster {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cluster == nil {
		b.t.Fatal("the broker is stopped")
	}
	return b.cluster
}

// Stop ends the broker and cuts its connections. What it stored is there after Start only with WithDataDir.
func (b *Broker) Stop() {
	b.t.Helper()
	if !b.persist {
		b.t.Fatal("a broker without a data directory forgets everything when it stops: use WithDataDir")
	}
	b.stop()
}

// Start brings a stopped broker back on the same port.
func (b *Broker) Start() {
	b.t.Helper()
	var ports []int
	for _, addr := range b.addrs {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			b.t.Fatal(err)
		}
		n, err := strconv.Atoi(port)
		if err != nil {
			b.t.Fatal(err)
		}
		ports = append(ports, n)
	}
	b.start(ports)
}

// start takes free ports when it is given none.
func (b *Broker) start(ports []int) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cluster != nil {
		b.t.Fatal("the broker is running already")
	}
	opts := slices.Clone(b.opts)
	if len(ports) > 0 {
		opts = append(opts, kfake.Ports(ports...))
	}
	// Another process may hold a port for a moment, as the local end of a connection.
	Eventually(b.t, 10*time.Second, func() string {
		c, err := kfake.NewCluster(opts...)
		if err != nil {
			if len(ports) == 0 || !strings.Contains(err.Error(), "address already in use") {
				b.t.Fatalf("starting the in-memory broker: %v", err)
			}
			return err.Error()
		}
		b.cluster = c
		return ""
	})
	b.addrs = b.cluster.ListenAddrs()
}

func (b *Broker) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cluster != nil {
		b.cluster.Close()
		b.cluster = nil
	}
}
