package enricher

import "time"

// Config is what an operator may set of the enricher. Nothing here changes what
// it computes: the same log gives the same outputs under every Config.
type Config struct {
	// SnapshotInterval is the least time between two snapshots of a partition;
	// 0: 10 s.
	SnapshotInterval time.Duration
	// StopTimeout bounds saving at the end of an assignment, and lies below the
	// session timeout; 0: 5 s.
	StopTimeout time.Duration
	// StartWithoutState is the operator's consent to begin with nothing where a
	// snapshot should be and is not.
	StartWithoutState bool
}
