package stage

import (
	"bytes"
	"context"
	"fmt"

	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// ticking returns the machine when this partition has to be given ticks.
func (p *Partition) ticking() Ticking {
	if !p.cfg.Ticks {
		return nil
	}
	m, _ := p.folder.machine.(Ticking)
	return m
}

// tickDue paces ticks by the monotonic clock. A late tick harms nobody: what
// counts is the time that it carries.
func (p *Partition) tickDue() bool {
	m := p.ticking()
	return m != nil && m.WantsTicks() && (!p.ticked || p.env.Monotonic()-p.tickedAt >= tickInterval)
}

func (p *Partition) tick(ctx context.Context) error {
	now := p.env.Monotonic()
	if p.resting && p.ticked {
		p.rested += now - p.tickedAt
	}
	p.resting = false
	// A tick that failed is not repeated; the next one carries its time too.
	p.ticked, p.tickedAt = true, now
	raw := &callscopev1.Raw{
		Uid: p.env.NewUID(),
		Payload: &callscopev1.Raw_Tick{Tick: &callscopev1.Tick{
			TickerUid: p.tickerUID, MonotonicMs: (now - p.rested).Milliseconds(), WallMs: p.env.Now().UnixMilli(),
		}},
	}
	value, err := raw.MarshalVT()
	if err != nil {
		return fmt.Errorf("encoding tick: %w", err)
	}
	offset, err := p.env.Log.Append(ctx, p.cfg.InputTopic, p.number, []stream.Record{{Value: value}})
	if err != nil {
		return fmt.Errorf("writing a tick: %w", err)
	}
	p.tickerOffset = offset
	p.metrics.ticks.Inc()
	return nil
}

// superseded reports whether a tick of ours was stepped and the state follows
// another ticker nevertheless: it has followed ours, or refused to.
func (p *Partition) superseded() bool {
	m := p.ticking()
	return m != nil && p.tickerOffset >= 0 && p.tickerOffset < p.next && !bytes.Equal(m.Ticker(), p.tickerUID)
}

// renewTicker takes a fresh ticker uid, but only as owner of the partition: a
// former owner must not take time back from the present one, and a commit
// tells the two apart.
func (p *Partition) renewTicker(ctx context.Context) error {
	if err := p.commit(ctx); err != nil {
		return fmt.Errorf("renewing the ticker: %w", err)
	}
	p.tickerUID, p.tickerOffset, p.ticked = p.env.NewUID(), -1, false
	return nil
}
