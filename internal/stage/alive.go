package stage

import (
	"bytes"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

const (
	// maxTickStepMs bounds what one tick adds to alive time: a longer silence
	// means that the pipe was not alive, and nobody may be timed out for it.
	maxTickStepMs = 5000
	// rememberedTickers is how many superseded tickers are still ignored.
	rememberedTickers = 16
)

// AliveTime is the time of a partition: it advances only while ticks arrive,
// so an outage, a backlog or a wrong clock closes nobody's call (design 3.3).
// The zero value is a partition that never saw a tick.
type AliveTime struct {
	ticker     []byte
	superseded [][]byte // oldest first
	lastMs     int64    // monotonic ms of the followed ticker's last tick
	aliveMs    int64
}

// Apply takes one tick and tells whether the state follows its ticker. A tick
// of a superseded ticker changes nothing. The first tick of a new ticker takes
// over and advances by 0, each later one by the difference of its monotonic
// time, at least 0 and at most 5 s.
func (a *AliveTime) Apply(tick *callscopev1.Tick) bool {
	if len(tick.GetTickerUid()) == 0 {
		return false
	}
	if bytes.Equal(tick.TickerUid, a.ticker) {
		a.aliveMs += min(max(tick.MonotonicMs-a.lastMs, 0), maxTickStepMs)
		a.lastMs = max(a.lastMs, tick.MonotonicMs)
		return true
	}
	for _, old := range a.superseded {
		if bytes.Equal(old, tick.TickerUid) {
			return false
		}
	}
	if a.ticker != nil {
		a.superseded = append(a.superseded, a.ticker)
		if len(a.superseded) > rememberedTickers {
			a.superseded = a.superseded[1:]
		}
	}
	a.ticker = bytes.Clone(tick.TickerUid)
	a.lastMs = tick.MonotonicMs
	return true
}

// Ms returns the alive time in milliseconds since the partition's first tick.
func (a *AliveTime) Ms() int64 { return a.aliveMs }

// Ticker returns the uid of the ticker that is followed, nil before the first.
func (a *AliveTime) Ticker() []byte { return a.ticker }

// State returns the alive time for a snapshot.
func (a *AliveTime) State() *callscopev1.AliveState {
	return &callscopev1.AliveState{
		TickerUid: a.ticker, SupersededUids: a.superseded, LastMonotonicMs: a.lastMs, AliveMs: a.aliveMs,
	}
}

// AliveTimeOf restores the alive time from a snapshot; nil gives the zero value.
func AliveTimeOf(s *callscopev1.AliveState) AliveTime {
	a := AliveTime{superseded: s.GetSupersededUids(), lastMs: s.GetLastMonotonicMs(), aliveMs: s.GetAliveMs()}
	if len(s.GetTickerUid()) > 0 {
		a.ticker = s.TickerUid
	}
	return a
}
