package summarizer

import "time"

// Config is what an operator may set. Nothing of it changes what a summary
// says: summaries depend on the log alone.
type Config struct {
	// SnapshotInterval is the least time between two snapshots of a
	// partition's state; 0 means 10 s.
	SnapshotInterval time.Duration
	// StopTimeout bounds saving at the end of an assignment, and lies below the
	// session timeout; 0 means 5 s.
	StopTimeout time.Duration
	// StartWithoutState consents to begin with nothing where stored state
	// should be and is not. Conferences that are open at that moment get
	// summaries of what is read from then on.
	StartWithoutState bool
}
