package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/callscope/callscope/internal/config"
	"github.com/callscope/callscope/internal/embedded"
	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/services/enricher"
	"github.com/callscope/callscope/services/gateway"
	"github.com/callscope/callscope/services/sink"
	"github.com/callscope/callscope/services/summarizer"
)

// process is one process that runs services: `callscope all`, or one service by its own name.
type process struct {
	*settings
	log   *slog.Logger
	reg   *prometheus.Registry
	group *group
	demo  bool
	local bool // everything runs in this process, so keys that nobody configured may be its own

	// The settings of what is embedded are known when it runs; what an operator configured stays as it is.
	kafka      stream.Config
	clickhouse store.Config
	client     *stream.Client
	store      *store.Store
}

func newProcess(s *settings, log *slog.Logger, demo bool) *process {
	return &process{
		settings: s, log: log, reg: newRegistry(), group: newGroup(log), demo: demo,
		kafka: s.Kafka.Config, clickhouse: s.ClickHouse.Config,
	}
}

func (c *cli) allCommand() *cobra.Command {
	var demo bool
	var call democall
	cmd := &cobra.Command{
		Use:   "all",
		Short: "Run every service in this process",
		Long: `Run every service in this process, through the same topics and the same code as
separate processes.

Without kafka.brokers it starts an embedded broker, and without clickhouse.addr an embedded
engine, both on loopback with their data below --data.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.load()
			if err != nil {
				return err
			}
			if err := s.check(needData, needAdmin, needKafkaOrBroker, needClickHouseOrEngine, needGateway(demo, true), needSink); err != nil {
				return err
			}
			if s.embedsEngine() {
				// Before anything starts, since nothing of it would be of use.
				if _, err := embedded.FindLibrary(); err != nil {
					return unreachable(err)
				}
			}
			if len(call.files) > 0 && !demo {
				return &codedError{exitUsage, errors.New("--play needs --demo: the recordings are of its app")}
			}
			return c.serve(cmd.Context(), s, demo, func(p *process, ctx context.Context) error {
				if err := p.startAll(ctx); err != nil || len(call.files) == 0 {
					return err
				}
				return p.group.start(ctx, service{
					name: "recorded call", drain: 2 * time.Second, ready: func() error { return nil },
					run: func(ctx context.Context) error {
						if err := call.show(ctx, c, p); err != nil {
							return err
						}
						<-ctx.Done()
						return nil
					},
				})
			})
		},
	}
	c.dataFlag(cmd)
	cmd.Flags().StringArrayVar(&call.files, "play", nil, "play this recording and print its rows; may be given more than once")
	cmd.Flags().Float64Var(&call.speed, "speed", 1, "how many times faster than recorded --play plays")
	cmd.Flags().BoolVar(&demo, "demo", false, "add the app of the recordings, AppID "+demoAppID+", on loopback only")
	return cmd
}

func (c *cli) gatewayCommand() *cobra.Command {
	return c.serviceCommand("gateway", "Run the gateway: HTTPS and WebSocket in, Kafka out", (*process).startGateway, needKafka, needGateway(false, false))
}

func (c *cli) enricherCommand() *cobra.Command {
	return c.serviceCommand("enricher", "Run the enricher: identity, lifecycle, interval samples", (*process).startEnricher, needKafka)
}

func (c *cli) summarizerCommand() *cobra.Command {
	return c.serviceCommand("summarizer", "Run the summarizer: summaries of calls", (*process).startSummarizer, needKafka)
}

func (c *cli) sinkCommand() *cobra.Command {
	return c.serviceCommand("sink", "Run the sink: Kafka in, ClickHouse out", func(p *process, ctx context.Context) error {
		if err := p.connectStore(ctx); err != nil {
			return err
		}
		return p.startSink(ctx)
	}, needKafka, needClickHouse, needSink)
}

func (c *cli) serviceCommand(name, short string, start func(*process, context.Context) error, needs ...need) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.load()
			if err != nil {
				return err
			}
			if err := s.check(append(needs, needAdmin)...); err != nil {
				return err
			}
			return c.serve(cmd.Context(), s, false, func(p *process, ctx context.Context) error {
				if err := p.connect(ctx); err != nil {
					return err
				}
				if err := p.client.CheckTopics(ctx); err != nil {
					return err
				}
				return start(p, ctx)
			})
		},
	}
}

// serve runs services until a signal or a failure, and stops them in order. A clean stop after a signal is success.
func (c *cli) serve(ctx context.Context, s *settings, demo bool, start func(*process, context.Context) error) error {
	defer runtime.KeepAlive(ballast(c.environ))
	log := c.logger(s.Log)
	p := newProcess(s, log, demo)
	admin := newAdminServer(s, p.group, p.reg, log)
	err := p.group.start(ctx, service{name: "admin server", run: admin.Run, ready: closed(admin.ready), drain: 2 * time.Second})
	if err == nil {
		err = start(p, ctx)
	}
	if err == nil {
		log.Info("callscope is up", "admin", s.Admin.Addr)
		err = p.group.wait(ctx)
	}
	if ctx.Err() != nil {
		log.Info("stopping; a second signal ends the process at once")
		if errors.Is(err, context.Canceled) {
			err = nil // told to stop while it started
		}
	}
	return errors.Join(err, p.group.stop())
}

// startAll starts everything in the order in which one depends on the other.
func (p *process) startAll(ctx context.Context) error {
	p.local = true
	if p.embedsBroker() {
		if err := p.startBroker(ctx); err != nil {
			return err
		}
	}
	if p.embedsEngine() {
		if err := p.startEngine(ctx); err != nil {
			return err
		}
	}
	if err := p.connect(ctx); err != nil {
		return err
	}
	if err := p.client.EnsureTopics(ctx); err != nil {
		return err
	}
	if err := p.connectStore(ctx); err != nil {
		return err
	}
	if err := p.store.Migrate(ctx); err != nil {
		return err
	}
	for _, start := range []func(context.Context) error{p.startSink, p.startSummarizer, p.startEnricher, p.startGateway} {
		if err := start(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (p *process) startBroker(ctx context.Context) error {
	broker := embedded.NewBroker(embedded.BrokerConfig{
		DataDir: p.brokerDir(), Addr: p.Kafka.EmbeddedAddr, Partitions: p.Kafka.Partitions, Sync: p.Kafka.EmbeddedSync,
	}, p.log)
	if err := p.group.start(ctx, service{name: "embedded broker", run: broker.Run, ready: closed(broker.Ready())}); err != nil {
		return err
	}
	p.kafka.Brokers = []string{broker.Addr()}
	return nil
}

func (p *process) startEngine(ctx context.Context) error {
	engine := embedded.NewEngineProcess(embedded.ProcessConfig{
		DataDir: p.engineDir(), Addr: p.ClickHouse.EmbeddedAddr,
		Args: []string{
			"--set", fmt.Sprintf("clickhouse.embedded_max_memory_bytes=%d", p.ClickHouse.EmbeddedMaxMemoryBytes),
			"--log-level", p.Log.Level.String(),
		},
	}, p.log, p.reg)
	if err := p.group.start(ctx, service{name: "embedded engine", run: engine.Run, ready: closed(engine.Ready())}); err != nil {
		return err
	}
	p.clickhouse.Addr = []string{engine.Addr()}
	if p.clickhouse.Protocol == "" {
		p.clickhouse.Protocol = store.ProtocolHTTP
	}
	return nil
}

// connect opens the Kafka client and makes sure that the cluster answers.
func (p *process) connect(ctx context.Context) error {
	client, err := stream.Open(p.kafka, p.log, p.reg)
	if err != nil {
		return err
	}
	p.client = client
	p.group.atStop("Kafka client", client.Close)
	return unreachable(client.Ping(ctx))
}

// connectStore opens the ClickHouse store and makes sure that the server answers.
func (p *process) connectStore(ctx context.Context) error {
	st, err := store.Open(p.clickhouse, p.log, p.reg)
	if err != nil {
		return err
	}
	p.store = st
	p.group.atStop("ClickHouse client", st.Close)
	if err := st.Ping(ctx); err != nil && !errors.Is(err, store.ErrNoDatabase) {
		return unreachable(err)
	}
	return nil
}

func (p *process) startGateway(ctx context.Context) error {
	registry, err := p.startRegistry(ctx)
	if err != nil {
		return err
	}
	cfg := p.gatewayConfig()
	if cfg.TokenKey == "" {
		key, err := localSecret(p.secretsDir(), "gateway-token-key")
		if err != nil {
			return err
		}
		cfg.TokenKey = key.Reveal()
	}
	producer := p.client.NewProducer(stream.TopicRaw)
	p.group.atStop("Kafka producer", producer.Close)
	g, err := gateway.New(cfg, registry, producer, p.log, p.reg)
	if err != nil {
		return err
	}
	return p.group.start(ctx, service{name: "gateway", run: g.Run, ready: g.Ready, drain: cfg.DrainDelay + cfg.DrainTimeout + 5*time.Second})
}

func (p *process) startSink(ctx context.Context) error {
	s, err := sink.New(p.Sink, p.client, p.store, p.log, p.reg)
	if err != nil {
		return err
	}
	erased, err := p.erasureSet(p.client, p.local, p.log, p.reg)
	if err != nil {
		return err
	}
	s.HonourErasures(erased)
	return p.group.start(ctx, service{name: "sink", run: s.Run, ready: p.member(stream.GroupSink, s.Ready), drain: p.consumerDrain()})
}

func (p *process) startEnricher(ctx context.Context) error {
	cfg := enricher.Config{SnapshotInterval: p.Enricher.SnapshotInterval, StopTimeout: p.stopTimeout(), StartWithoutState: p.Enricher.StartWithoutState}
	e := enricher.New(cfg, p.client, p.log, p.reg)
	return p.group.start(ctx, service{name: "enricher", run: e.Run, ready: p.member(stream.GroupEnricher, e.Ready), drain: p.consumerDrain()})
}

func (p *process) startSummarizer(ctx context.Context) error {
	cfg := summarizer.Config{SnapshotInterval: p.Summarizer.SnapshotInterval, StopTimeout: p.stopTimeout(), StartWithoutState: p.Summarizer.StartWithoutState}
	s := summarizer.New(cfg, p.client, p.log, p.reg)
	return p.group.start(ctx, service{name: "summarizer", run: s.Run, ready: p.member(stream.GroupSummarizer, s.Ready), drain: p.consumerDrain()})
}

// stopTimeout is for a stage's last outputs and state. While they are written it sends no heartbeats, so it lies below the
// session timeout.
func (p *process) stopTimeout() time.Duration { return min(5*time.Second, p.kafka.SessionTimeout/2) }

// consumerDrain has room for what comes last and then, where Kafka does not answer, for half a session until the client
// cuts its connections, and for one attempt to leave the group.
func (p *process) consumerDrain() time.Duration {
	return max(defaultDrain, 10*time.Second+p.kafka.SessionTimeout/2)
}

// member makes a consumer's readiness check say too when it is not in its group, as while Kafka is away: then it has no
// partitions, of which nothing can be wrong.
func (p *process) member(groupID string, ready func() error) func() error {
	return func() error {
		if err := p.client.Outside(groupID); err != nil {
			return err
		}
		return ready()
	}
}

// closed makes a readiness check of a channel that is closed when something is ready.
func closed(ready <-chan struct{}) func() error {
	return func() error {
		select {
		case <-ready:
			return nil
		default:
			return errors.New("starting")
		}
	}
}

func (c *cli) brokerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "broker",
		Short: "Run the embedded Kafka broker alone",
		Long: `Run the embedded Kafka broker alone, on kafka.embedded_addr (loopback only) with its data
below --data. It makes no topics; ` + "`callscope migrate`" + ` does.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.load()
			if err != nil {
				return err
			}
			s.Kafka.Brokers = nil // this is the broker, whatever its clients are told
			if err := s.check(needData, needKafkaOrBroker); err != nil {
				return err
			}
			p := newProcess(s, c.logger(s.Log), false)
			if err = p.startBroker(cmd.Context()); err == nil {
				err = p.group.wait(cmd.Context())
			}
			return errors.Join(err, p.group.stop())
		},
	}
	c.dataFlag(cmd)
	return cmd
}

func (c *cli) engineCommand() *cobra.Command {
	var addr, data string
	var lifeline bool
	cmd := &cobra.Command{
		Use:   "engine",
		Short: "Run the embedded ClickHouse engine alone",
		Long: `Run the embedded ClickHouse engine alone, behind ClickHouse's HTTP interface (loopback
only). It makes no tables; ` + "`callscope migrate`" + ` does.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var flags []config.Flag
			if addr != "" {
				flags = append(flags, config.Flag{Name: "--addr", Key: "clickhouse.embedded_addr", Value: addr})
			}
			s, err := c.load(flags...)
			if err != nil {
				return err
			}
			if data == "" {
				data = s.engineDir()
			}
			if err := s.check(needEngine); err != nil {
				return err
			}
			if _, err := embedded.FindLibrary(); err != nil {
				return unreachable(err)
			}
			ctx := cmd.Context()
			if lifeline {
				ctx = embedded.WatchLifeline(ctx, c.stdin)
			}
			return embedded.NewEngine(embedded.EngineConfig{
				DataDir: data, Addr: s.ClickHouse.EmbeddedAddr, MaxMemoryBytes: s.ClickHouse.EmbeddedMaxMemoryBytes,
			}, c.logger(s.Log)).Run(ctx)
		},
	}
	f := cmd.Flags()
	f.StringVar(&addr, "addr", "", "host:port to listen on (clickhouse.embedded_addr)")
	f.StringVar(&data, "data", "", "directory of the engine's own data; \"engine\" below data_dir by default")
	f.BoolVar(&lifeline, "lifeline", false, "end when standard input ends; for the process that started this one")
	return cmd
}

func (c *cli) migrateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "migrate",
		Short: "Make the Kafka topics and the ClickHouse tables, or bring them up to date",
		Long: `Make the Kafka topics and the ClickHouse tables and views, or bring them up to date.

It may be repeated. Topics that exist are checked and never changed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.migrate(cmd.Context()) },
	}
}

func (c *cli) migrate(ctx context.Context) error {
	s, err := c.load()
	if err != nil {
		return err
	}
	s.useRunningBroker()
	s.useRunningEngine()
	if err := s.check(needKafka, needClickHouse); err != nil {
		return err
	}
	log := c.logger(s.Log)
	p := newProcess(s, log, false)
	err = func() error {
		// Both are reached before either is changed.
		if err := errors.Join(p.connect(ctx), p.connectStore(ctx)); err != nil {
			return err
		}
		if err := p.client.EnsureTopics(ctx); err != nil {
			return err
		}
		fmt.Fprintln(c.stdout, "Kafka topics are there")
		if err := p.store.Migrate(ctx); err != nil {
			return &codedError{exitPartly, err} // the topics stay
		}
		fmt.Fprintf(c.stdout, "ClickHouse database %s is up to date\n", p.store.Database())
		return nil
	}()
	return interruptedOr(ctx, errors.Join(err, p.group.stop()))
}

func (c *cli) configCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check the settings and print what is in force and where it came from",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := oneOf("--output", output, "yaml", "json"); err != nil {
				return err
			}
			s, err := c.load()
			if err != nil {
				return err
			}
			write := s.loaded.WriteYAML
			if output == "json" {
				write = s.loaded.WriteJSON
			}
			return errors.Join(write(c.stdout), s.check(
				needData, needAdmin, needKafkaOrBroker, needClickHouseOrEngine, needGateway(false, true), needSink))
		},
	}
	c.dataFlag(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "yaml", "yaml or json")
	return cmd
}
