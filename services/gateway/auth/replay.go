package auth

import (
	"sync"
	"time"
)

const (
	// replayEntries bounds the cache: about 100 MB. Only signed tokens of strict apps get in.
	replayEntries = 1 << 20
	// replaySweep is how often entries whose time is over are removed.
	replaySweep = time.Minute
	// maxStrictLifetime is how far ahead exp of a strict app's token may be, and maxJTIBytes how long its jti.
	maxStrictLifetime = 24 * time.Hour
	maxJTIBytes       = 256
)

// replays remembers the customer tokens that strict apps have used on this gateway, until they expire.
type replays struct {
	mu    sync.Mutex
	until map[string]time.Time // by app id and jti
	swept time.Time
}

// use reports whether a token is used for the first time. When the cache is full nothing is: what cannot be remembered
// could be used again.
func (r *replays) use(appID, jti string, until time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if now.Sub(r.swept) >= replaySweep {
		r.swept = now
		for key, end := range r.until {
			if now.After(end) {
				delete(r.until, key)
			}
		}
	}
	key := appID + "\x00" + jti
	if end, used := r.until[key]; used && !now.After(end) {
		return errReplayed
	}
	if len(r.until) >= replayEntries {
		return errReplayCache
	}
	r.until[key] = until
	return nil
}
