package sink

import (
	"errors"
	"fmt"
	"time"

	"github.com/callscope/callscope/internal/store"
)

// Config says how the sink cuts the log into ranges. A zero value means the default in the comment.
type Config struct {
	// MaxWait is how long a record waits for others before it is inserted: 1 s. It is the larger part of the time from
	// gateway to query.
	MaxWait time.Duration `koanf:"max_wait"`
	// MaxRows and MaxRangeBytes bound one range: 50,000 rows of all tables together, 16 MiB of records.
	MaxRows       int   `koanf:"max_rows"`
	MaxRangeBytes int64 `koanf:"max_range_bytes"`
	// Parallel is how many ranges may be in memory and under way at a time, of all partitions: 4.
	Parallel int `koanf:"parallel"`
	// AcceptGaps goes on where records are missing from a topic, instead of stopping that partition until a person has
	// looked. Each gap is still counted and logged. For a single start, after the records are known to be gone.
	AcceptGaps bool `koanf:"accept_gaps"`
}

func (c Config) withDefaults() Config {
	setDefault(&c.MaxWait, time.Second)
	setDefault(&c.MaxRows, 50_000)
	setDefault(&c.MaxRangeBytes, 16<<20)
	setDefault(&c.Parallel, 4)
	return c
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Validate returns one joined error; each line names the key it is about. Zero values stand for their defaults.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("sink."+key+": "+format, args...))
	}
	if c.MaxWait < time.Millisecond || c.MaxWait > time.Minute {
		bad("max_wait", "%s is not between 1ms and 1m", c.MaxWait)
	}
	// A record gives at most a few rows beyond the limit.
	if c.MaxRows < 1 || c.MaxRows > store.MaxBlockRows/2 {
		bad("max_rows", "%d is not between 1 and %d", c.MaxRows, store.MaxBlockRows/2)
	}
	if c.MaxRangeBytes < 1<<10 || c.MaxRangeBytes > 256<<20 {
		bad("max_range_bytes", "%d is not between 1 KiB and 256 MiB", c.MaxRangeBytes)
	}
	if c.Parallel < 1 || c.Parallel > 256 {
		bad("parallel", "%d is not between 1 and 256", c.Parallel)
	}
	return errors.Join(errs...)
}
