package stage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// restore builds the state from the newest snapshot, or from nothing where the
// partition never had one. It leaves the partition unchanged when it fails.
func (p *Partition) restore(ctx context.Context) error {
	began := p.env.Monotonic()
	stored, err := readState(ctx, p.env.Log, p.cfg.StateTopic, p.number)
	if err != nil {
		return err
	}
	start, end, err := p.env.Log.Offsets(ctx, p.cfg.InputTopic, p.number)
	if err != nil {
		return fmt.Errorf("restoring: %w", err)
	}
	m := stored.manifest
	without := "" // why the operator's override is needed, if it is
	switch {
	case m == nil && stored.everWritten:
		without = fmt.Sprintf("state topic %s/%d has been written but holds no complete snapshot", p.cfg.StateTopic, p.number)
		if stored.bad != nil {
			without += fmt.Sprintf(" (%v)", stored.bad)
		}
	case m == nil && start > 0:
		without = fmt.Sprintf("state topic %s/%d has never been written, but %s/%d begins at offset %d: its first records have expired and nothing tells what was in them",
			p.cfg.StateTopic, p.number, p.cfg.InputTopic, p.number, start)
	case m == nil:
	default:
		if err := p.checkVersions(m); err != nil {
			return err
		}
		if start > m.InputOffset {
			without = fmt.Sprintf("the snapshot continues at offset %d, but %s/%d begins at %d: the records between have expired unprocessed, or the topic was made anew",
				m.InputOffset, p.cfg.InputTopic, p.number, start)
			break
		}
		if err := p.checkInput(ctx, m, start, end); err != nil {
			return err
		}
	}
	if without != "" {
		if !p.cfg.StartWithoutState {
			return fmt.Errorf("%w: %s. If the records can be brought back, restore the topic. To go on without what is lost, set start_without_state for the %s: calls that were open begin again at the first record that is left",
				ErrRefused, without, p.cfg.Name)
		}
		p.env.Logger.Warn("starting without state, as configured", "reason", without, "offset", start)
		m = nil
	}

	machine := p.cfg.NewMachine(p.number)
	if _, ok := machine.(Ticking); p.cfg.Ticks && !ok {
		return fmt.Errorf("%w: stage %s is to be given ticks, but its machine takes none", ErrRefused, p.cfg.Name)
	}
	f := folder{machine: machine, last: fromProto(m.GetLastOutputOrigin())}
	next := m.GetInputOffset()
	// At offset 0 there is no state: the manifest only says that the partition
	// began from nothing.
	if next > 0 {
		if err := restoreMachine(machine, m.FormatVersion, stored.state); err != nil {
			return fmt.Errorf("%w: decoding the state of snapshot %x (offset %d, format %d): %w. Run the version that wrote it, or repair this one",
				ErrRefused, m.SnapshotUid, m.InputOffset, m.FormatVersion, err)
		}
	}
	if m == nil {
		next = start
	}
	filter := FilterAfter(fromProto(m.GetLastInputOrigin()))
	if next > 0 && m.GetLastInputOrigin() == nil {
		filter = OpenFilter() // began in the middle, and has accepted nothing yet
	}

	p.folder, p.filter, p.next = f, filter, next
	p.lastUID = bytes.Clone(m.GetLastInputUid())
	p.leftovers, p.own = stored.keys, nil
	p.snapshotAt = p.env.Monotonic()
	p.snapshotNext, p.snapshotClean, p.snapshotBytes = -1, m.GetCleanShutdown(), len(stored.state)
	if m != nil {
		p.snapshotNext = m.InputOffset
	}
	// A state from nothing is written down at once, so that from here on its
	// absence is known to be a loss. So is the first state of a new logic: no
	// older one may then take over.
	p.snapshotNow = m == nil || m.LogicVersion < p.cfg.LogicVersion
	p.end, p.doubts = end, 0
	p.restores++
	if p.restores > 1 {
		p.metrics.rebuilds.Inc()
	}
	took := p.env.Monotonic() - began
	p.metrics.restoreSeconds.Set(took.Seconds())
	p.metrics.snapshotBytes.Set(float64(len(stored.state)))
	p.env.Logger.Info("state restored", "offset", next, "input_end", end, "snapshot", m != nil, "state_bytes", len(stored.state), "seconds", took.Seconds())
	if m != nil && m.LogicVersion < p.cfg.LogicVersion {
		p.env.Logger.Info("logic has changed", "from_version", m.LogicVersion, "to_version", p.cfg.LogicVersion, "offset", next, "after_clean_shutdown", m.CleanShutdown)
	}
	p.observeLag(nil)
	return nil
}

// restoreMachine turns a panic over bytes that it does not understand into an
// error.
func restoreMachine(m Machine, formatVersion uint32, state []byte) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return m.Restore(formatVersion, state)
}

func (p *Partition) checkVersions(m *callscopev1.SnapshotManifest) error {
	if m.LogicVersion > p.cfg.LogicVersion || m.FormatVersion > p.cfg.FormatVersion {
		return fmt.Errorf("%w: snapshot %x of %s/%d was written by logic version %d, format %d; this is logic version %d, format %d. Run the newer version again, or restore a copy of the state topic from before it ran",
			ErrRefused, m.SnapshotUid, p.cfg.StateTopic, p.number, m.LogicVersion, m.FormatVersion, p.cfg.LogicVersion, p.cfg.FormatVersion)
	}
	if m.InputTopic != p.cfg.InputTopic || m.Partition != p.number {
		return fmt.Errorf("%w: %s/%d holds the state of %s/%d, not of %s/%d. Check which topics are configured",
			ErrRefused, p.cfg.StateTopic, p.number, m.InputTopic, m.Partition, p.cfg.InputTopic, p.number)
	}
	return nil
}

// checkInput reads the snapshot's last input record again: its uid tells
// whether the topic is the one that the state belongs to. It may be missing
// only when the topic has expired exactly up to the snapshot's offset.
func (p *Partition) checkInput(ctx context.Context, m *callscopev1.SnapshotManifest, start, end int64) error {
	const advice = "The topic was made anew, or another cluster is configured. Configure the right one; if the topic had to be made anew, make the topics behind it and all state topics anew too, with all stages and the sink stopped"
	if end < m.InputOffset {
		return p.doubt(ErrRefused, "the snapshot continues at offset %d, but %s/%d ends at %d. %s", m.InputOffset, p.cfg.InputTopic, p.number, end, advice)
	}
	if start == m.InputOffset {
		return nil // also at offset 0, where nothing was read yet
	}
	at := m.InputOffset - 1
	batch, err := p.env.Log.Fetch(ctx, p.cfg.InputTopic, p.number, at, 1, time.Second)
	if errors.Is(err, stream.ErrOffsetOutOfRange) {
		return fmt.Errorf("checking the input: the record before the snapshot went while it was looked for: %w", err)
	}
	if err != nil {
		return fmt.Errorf("checking the input: %w", err)
	}
	if len(batch.Records) == 0 || batch.Records[0].Offset != at {
		return p.doubt(ErrRefused, "%s/%d has no record at offset %d, which the snapshot has as its last. %s", p.cfg.InputTopic, p.number, at, advice)
	}
	_, uid, _, _ := judge(batch.Records[0].Value, false, nil)
	if !bytes.Equal(uid, m.LastInputUid) {
		return p.doubt(ErrRefused, "the record at offset %d of %s/%d is %x, but the snapshot's last was %x. %s", at, p.cfg.InputTopic, p.number, uid, m.LastInputUid, advice)
	}
	return nil
}
