package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
)

// The topics. A change that old readers cannot follow is a new topic with the next version.
const (
	TopicRaw             = "callscope.raw.v1"
	TopicEnriched        = "callscope.enriched.v1"
	TopicSummaries       = "callscope.summaries.v1"
	TopicRejected        = "callscope.rejected.v1"
	TopicStateEnricher   = "callscope.state.enricher.v1"
	TopicStateSummarizer = "callscope.state.summarizer.v1"
	TopicApps            = "callscope.apps.v1"
	TopicErasures        = "callscope.erasures.v1"
)

// The consumer groups.
const (
	GroupEnricher   = "callscope-enricher"
	GroupSummarizer = "callscope-summarizer"
	GroupSink       = "callscope-sink"
)

// Topic is a topic as callscope makes it.
type Topic struct {
	Name       string
	Partitions int
	Compacted  bool // cleanup.policy compact: the last record of each key stays for good; otherwise delete
	// Aligned topics have equal partition counts: what comes from partition p goes to partition p.
	Aligned bool
	Configs map[string]string // all settings given at creation, cleanup.policy among them
}

// Topics returns the topics of callscope with the configured sizes and retention, in a fixed order.
func (c *Client) Topics() []Topic {
	cfg := c.cfg
	// Segments are small because the embedded broker frees whole segments and reads them all when it starts.
	common := map[string]string{
		"segment.bytes":       strconv.Itoa(64 << 20),
		"max.message.bytes":   strconv.Itoa(maxBatchBytes),
		"min.insync.replicas": "1",
	}
	if cfg.ReplicationFactor >= 3 {
		common["min.insync.replicas"] = "2"
	}
	kept := func(name string, retention time.Duration, aligned bool) Topic {
		configs := maps.Clone(common)
		configs["cleanup.policy"] = "delete"
		configs["retention.ms"] = strconv.FormatInt(retention.Milliseconds(), 10)
		configs["retention.bytes"] = "-1"
		if cfg.RetentionBytes > 0 {
			configs["retention.bytes"] = strconv.FormatInt(cfg.RetentionBytes, 10)
		}
		return Topic{Name: name, Partitions: cfg.Partitions, Aligned: aligned, Configs: configs}
	}
	compacted := func(name string, partitions int, aligned bool) Topic {
		configs := maps.Clone(common)
		configs["cleanup.policy"] = "compact"
		// The embedded broker applies retention whatever the policy is, so it must be off explicitly.
		configs["retention.ms"] = "-1"
		configs["retention.bytes"] = "-1"
		return Topic{Name: name, Partitions: partitions, Compacted: true, Aligned: aligned, Configs: configs}
	}
	// Superseded snapshots are most of a state topic and a restore reads them all: clean early, forget tombstones soon.
	state := func(name string) Topic {
		t := compacted(name, cfg.Partitions, true)
		t.Configs["min.cleanable.dirty.ratio"] = "0.2"
		t.Configs["delete.retention.ms"] = strconv.FormatInt(time.Hour.Milliseconds(), 10)
		return t
	}
	rejected := kept(TopicRejected, cfg.RejectedRetention, false)
	rejected.Configs["max.message.bytes"] = strconv.Itoa(rejectedBatchBytes)
	return []Topic{
		kept(TopicRaw, cfg.RawRetention, true),
		kept(TopicEnriched, cfg.EnrichedRetention, true),
		kept(TopicSummaries, cfg.SummariesRetention, true),
		rejected,
		state(TopicStateEnricher),
		state(TopicStateSummarizer),
		// One partition: small, and read as a whole by whoever needs it.
		compacted(TopicApps, 1, false),
		compacted(TopicErasures, 1, false),
	}
}

// EnsureTopics creates the topics that are missing and then checks all as CheckTopics does. Topics that exist are never
// changed. It refuses before creating anything when the result would have unequal partition counts.
func (c *Client) EnsureTopics(ctx context.Context) error {
	have, err := c.partitionCounts(ctx)
	if err != nil {
		return fmt.Errorf("ensuring topics: %w", err)
	}
	planned := maps.Clone(have)
	var missing []kafka.TopicConfig
	for _, t := range c.Topics() {
		if have[t.Name] > 0 {
			continue
		}
		planned[t.Name] = t.Partitions
		missing = append(missing, topicConfig(t, c.cfg.ReplicationFactor))
	}
	if err := c.checkAligned(planned, have); err != nil {
		return fmt.Errorf("ensuring topics: %w", err)
	}
	if len(missing) > 0 {
		if err := c.createTopics(ctx, missing); err != nil {
			return fmt.Errorf("ensuring topics: %w", err)
		}
	}
	// Brokers learn of new topics one after the other, so a topic may be unknown for a moment after its creation.
	ctx, cancel := context.WithTimeout(ctx, 3*c.cfg.RequestTimeout)
	defer cancel()
	return retry(ctx, func() error { return c.CheckTopics(ctx) })
}

func topicConfig(t Topic, replicationFactor int) kafka.TopicConfig {
	tc := kafka.TopicConfig{Topic: t.Name, NumPartitions: t.Partitions, ReplicationFactor: replicationFactor}
	for _, name := range slices.Sorted(maps.Keys(t.Configs)) {
		tc.ConfigEntries = append(tc.ConfigEntries, kafka.ConfigEntry{ConfigName: name, ConfigValue: t.Configs[name]})
	}
	return tc
}

func (c *Client) createTopics(ctx context.Context, topics []kafka.TopicConfig) error {
	return retry(ctx, func() error {
		res, err := c.api(c.cfg.RequestTimeout).CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: topics})
		if err != nil {
			return fmt.Errorf("creating topics: %w", err)
		}
		var errs []error
		for _, t := range topics {
			// Another process may have created it in the meantime; whether it is right is checked afterwards.
			if err := res.Errors[t.Topic]; err != nil && !errors.Is(err, kafka.TopicAlreadyExists) {
				errs = append(errs, fmt.Errorf("creating topic %s with %d partitions and replication factor %d: %w", t.Topic, t.NumPartitions, t.ReplicationFactor, err))
				continue
			}
			c.log.Info("created topic", "topic", t.Topic, "partitions", t.NumPartitions)
		}
		return errors.Join(errs...)
	})
}

// CheckTopics reads the topics from the cluster and returns an error with one line for each thing that makes callscope
// unsafe: a missing topic, unequal partition counts of raw, enriched, summaries and the state topics, a compacted topic
// that is not (or the reverse), a limit of record sizes that is too low.
func (c *Client) CheckTopics(ctx context.Context) error {
	have, err := c.partitionCounts(ctx)
	if err != nil {
		return fmt.Errorf("checking topics: %w", err)
	}
	var missing []string
	for _, t := range c.Topics() {
		if have[t.Name] == 0 {
			missing = append(missing, t.Name)
		}
	}
	var errs []error
	if len(missing) > 0 {
		errs = append(errs, &missingTopicsError{brokers: c.cfg.Brokers, topics: missing})
	}
	errs = append(errs, c.checkAligned(have, have))
	if len(missing) == 0 {
		errs = append(errs, c.checkConfigs(ctx))
		if n := have[TopicRaw]; n != c.cfg.Partitions {
			c.log.Warn("the topics exist with another partition count; the configured one is not used", "partitions", n, "configured", c.cfg.Partitions)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("checking topics: %w", err)
	}
	return nil
}

// missingTopicsError is transient: topics appear when somebody creates them.
type missingTopicsError struct{ brokers, topics []string }

func (e *missingTopicsError) Error() string {
	return fmt.Sprintf("Kafka at %s has no topic %s: create the topics with the settings callscope documents, or let a callscope process that may create topics start first",
		strings.Join(e.brokers, ","), strings.Join(e.topics, ", "))
}

// Is lets callers test for errors of kind kafka.UnknownTopicOrPartition without knowing this type.
func (e *missingTopicsError) Is(target error) bool { return target == kafka.UnknownTopicOrPartition }

// permanentError marks what stays wrong until a person changes it.
type permanentError struct{ msg string }

func (e *permanentError) Error() string { return e.msg }

// checkAligned compares the counts of the aligned topics, leaving out unknown ones. have are those that exist already.
func (c *Client) checkAligned(counts, have map[string]int) error {
	var list []string
	seen := make(map[int]bool)
	for _, t := range c.Topics() {
		n := counts[t.Name]
		if !t.Aligned || n == 0 {
			continue
		}
		seen[n] = true
		note := ""
		if have[t.Name] == 0 {
			note = " (to be created)"
		}
		list = append(list, fmt.Sprintf("%s %d%s", t.Name, n, note))
	}
	if len(seen) > 1 {
		return &permanentError{fmt.Sprintf("partition counts differ: %s. What comes from partition p must go to partition p, so they must be equal. Set kafka.partitions to what the existing topics have, or delete the topics that differ if their records are not needed; to grow, cut over to new topic versions",
			strings.Join(list, ", "))}
	}
	return nil
}

// checkConfigs compares the settings that safety depends on. Where the cluster does not let us read them, it only logs.
func (c *Client) checkConfigs(ctx context.Context) error {
	req := &kafka.DescribeConfigsRequest{}
	want := make(map[string]Topic)
	for _, t := range c.Topics() {
		want[t.Name] = t
		req.Resources = append(req.Resources, kafka.DescribeConfigRequestResource{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: t.Name, ConfigNames: []string{"cleanup.policy", "max.message.bytes"},
		})
	}
	res, err := c.api(c.cfg.RequestTimeout).DescribeConfigs(ctx, req)
	if err != nil {
		return fmt.Errorf("reading topic settings: %w", err)
	}
	var errs []error
	for _, r := range res.Resources {
		if errors.Is(r.Error, kafka.TopicAuthorizationFailed) || errors.Is(r.Error, kafka.ClusterAuthorizationFailed) {
			c.log.Warn("not allowed to read topic settings, so they are not checked", "topic", r.ResourceName)
			continue
		}
		if r.Error != nil {
			errs = append(errs, fmt.Errorf("reading the settings of topic %s: %w", r.ResourceName, r.Error))
			continue
		}
		t := want[r.ResourceName]
		for _, e := range r.ConfigEntries {
			switch e.ConfigName {
			case "cleanup.policy":
				if e.ConfigValue != t.Configs["cleanup.policy"] {
					errs = append(errs, &permanentError{fmt.Sprintf("topic %s has cleanup.policy=%s and must have %s, otherwise Kafka removes records that are needed", t.Name, e.ConfigValue, t.Configs["cleanup.policy"])})
				}
			case "max.message.bytes":
				got, err := strconv.Atoi(e.ConfigValue)
				need, _ := strconv.Atoi(t.Configs["max.message.bytes"])
				if err != nil || got < need {
					errs = append(errs, &permanentError{fmt.Sprintf("topic %s has max.message.bytes=%s and must have at least %d", t.Name, e.ConfigValue, need)})
				}
			}
		}
	}
	return errors.Join(errs...)
}

// partitionCounts asks the cluster, past the cache of the connection pool, for the partition counts of callscope's
// topics. Missing topics are left out.
func (c *Client) partitionCounts(ctx context.Context) (map[string]int, error) {
	if err := c.open(); err != nil {
		return nil, err
	}
	var names []string
	for _, t := range c.Topics() {
		names = append(names, t.Name)
	}
	transport := c.newTransport()
	defer transport.CloseIdleConnections()
	api := &kafka.Client{Addr: c.addr, Transport: transport, Timeout: c.cfg.RequestTimeout}
	res, err := api.Metadata(ctx, &kafka.MetadataRequest{Topics: names})
	if err != nil {
		return nil, fmt.Errorf("asking Kafka at %s for its topics: %w; %s", strings.Join(c.cfg.Brokers, ","), err, adviceFor(err))
	}
	counts := make(map[string]int)
	for _, t := range res.Topics {
		if t.Error != nil && !errors.Is(t.Error, kafka.UnknownTopicOrPartition) {
			return nil, fmt.Errorf("asking Kafka for topic %s: %w", t.Name, t.Error)
		}
		if n := len(t.Partitions); n > 0 {
			counts[t.Name] = n
		}
	}
	return counts, nil
}

// PartitionCount returns how many partitions a topic has. The answer may be 2 s old.
func (c *Client) PartitionCount(ctx context.Context, topic string) (int, error) {
	t, err := c.topicMetadata(ctx, topic)
	return len(t.Partitions), err
}

func (c *Client) topicMetadata(ctx context.Context, topic string) (kafka.Topic, error) {
	if err := c.open(); err != nil {
		return kafka.Topic{}, err
	}
	res, err := c.api(c.cfg.RequestTimeout).Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
	if err != nil {
		return kafka.Topic{}, fmt.Errorf("reading the layout of %s: %w", topic, err)
	}
	for _, t := range res.Topics {
		if t.Name != topic {
			continue
		}
		if t.Error == nil && len(t.Partitions) == 0 {
			t.Error = kafka.UnknownTopicOrPartition
		}
		if t.Error != nil {
			return kafka.Topic{}, fmt.Errorf("reading the layout of %s: %w", topic, t.Error)
		}
		return t, nil
	}
	return kafka.Topic{}, fmt.Errorf("reading the layout of %s: %w", topic, kafka.UnknownTopicOrPartition)
}

// Kept says how long records of a topic may stay at the longest, as the cluster has it: its retention and the time until a
// segment is closed, since whole segments are removed. 0 means for good, or until a later record of the key where the
// topic is compacted.
func (c *Client) Kept(ctx context.Context, topic string) (time.Duration, error) {
	if err := c.open(); err != nil {
		return 0, err
	}
	res, err := c.api(c.cfg.RequestTimeout).DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: []kafka.DescribeConfigRequestResource{{
		ResourceType: kafka.ResourceTypeTopic, ResourceName: topic, ConfigNames: []string{"retention.ms", "segment.ms"},
	}}})
	if err != nil {
		return 0, fmt.Errorf("reading how long %s keeps records: %w", topic, err)
	}
	values := map[string]int64{"retention.ms": -1, "segment.ms": (7 * 24 * time.Hour).Milliseconds()}
	for _, r := range res.Resources {
		if r.Error != nil {
			return 0, fmt.Errorf("reading how long %s keeps records: %w", topic, r.Error)
		}
		for _, e := range r.ConfigEntries {
			if n, err := strconv.ParseInt(e.ConfigValue, 10, 64); err == nil {
				values[e.ConfigName] = n
			}
		}
	}
	if values["retention.ms"] < 0 {
		return 0, nil
	}
	return time.Duration(values["retention.ms"]+values["segment.ms"]) * time.Millisecond, nil
}
