package stage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

const (
	chunkBytes = 256 << 10
	// chunksPerAppend keeps a request below Kafka's 1 MiB.
	chunksPerAppend = 3
	// snapshotBytesPerSecond bounds what snapshots cost: a state of 100 MiB is
	// written every 100 s.
	snapshotBytesPerSecond = 1 << 20
	// tombstonesPerAppend bounds one request that clears old snapshots.
	tombstonesPerAppend = 1000
	stateFetchBytes     = 4 << 20
)

// manifestKey and chunkKey are the keys in the state topic. No key is ever
// used again, because each snapshot has a fresh uid: compaction must not be
// able to take a chunk out of a complete snapshot.
func manifestKey(uid []byte) []byte { return uid }

func chunkKey(uid []byte, index uint32) []byte {
	return binary.BigEndian.AppendUint32(bytes.Clone(uid), index)
}

// snapshotWriter writes one snapshot in pieces; a piece may be repeated.
type snapshotWriter struct {
	manifest   *callscopev1.SnapshotManifest
	state      []byte
	chunkBytes int
	next       uint32 // chunk to write next
	began      time.Duration
}

func newSnapshotWriter(manifest *callscopev1.SnapshotManifest, state []byte, chunkBytes int, now time.Duration) *snapshotWriter {
	sum := sha256.Sum256(state)
	manifest.StateBytes = uint64(len(state))
	manifest.StateSha256 = sum[:]
	manifest.Chunks = uint32((len(state) + chunkBytes - 1) / chunkBytes)
	return &snapshotWriter{manifest: manifest, state: state, chunkBytes: chunkBytes, began: now}
}

// piece returns the next records to append, and whether the manifest is among
// them. The manifest goes behind the last chunk, so it is in the log only when
// all chunks are, or have been.
func (w *snapshotWriter) piece() (records []stream.Record, last bool, err error) {
	uid := w.manifest.SnapshotUid
	index := w.next
	for ; index < w.manifest.Chunks && len(records) < chunksPerAppend; index++ {
		from := int(index) * w.chunkBytes
		chunk := &callscopev1.SnapshotChunk{SnapshotUid: uid, Index: index, Data: w.state[from:min(from+w.chunkBytes, len(w.state))]}
		value, err := chunk.MarshalVT()
		if err != nil {
			return nil, false, fmt.Errorf("encoding snapshot chunk %d: %w", index, err)
		}
		records = append(records, stream.Record{Key: chunkKey(uid, index), Value: value})
	}
	if index < w.manifest.Chunks {
		return records, false, nil
	}
	value, err := w.manifest.MarshalVT()
	if err != nil {
		return nil, false, fmt.Errorf("encoding snapshot manifest: %w", err)
	}
	return append(records, stream.Record{Key: manifestKey(uid), Value: value}), true, nil
}

// wrote marks the records of the last piece as acknowledged.
func (w *snapshotWriter) wrote(records int) {
	w.next = min(w.next+uint32(records), w.manifest.Chunks)
}

// keys returns every key of a snapshot that was written whole.
func (w *snapshotWriter) keys() [][]byte {
	uid := w.manifest.SnapshotUid
	keys := [][]byte{manifestKey(uid)}
	for i := range w.manifest.Chunks {
		keys = append(keys, chunkKey(uid, i))
	}
	return keys
}

// tombstones are the records that take keys out of a compacted topic.
func tombstones(keys [][]byte) []stream.Record {
	records := make([]stream.Record, len(keys))
	for i, key := range keys {
		records[i] = stream.Record{Key: key}
	}
	return records
}

// storedState is what a partition of the state topic holds.
type storedState struct {
	// manifest of the complete snapshot with the highest input offset, nil
	// when there is none, and its state.
	manifest *callscopev1.SnapshotManifest
	state    []byte
	// keys of everything that is not deleted, in no order.
	keys [][]byte
	// everWritten is true when the partition has ever held a record.
	everWritten bool
	// bad says what could not be used, for people.
	bad error
}

// stateReader assembles snapshots out of the state topic's records. They may
// come in any order: a chunk that was sent twice may arrive for the second time
// long after its manifest, and compaction then removes the first copy.
type stateReader struct {
	parts map[string]*snapshotParts // by snapshot uid
	keys  map[string]struct{}
	best  *callscopev1.SnapshotManifest
	state []byte
	bad   []error // records that do not decode
}

type snapshotParts struct {
	manifest *callscopev1.SnapshotManifest
	chunks   map[uint32][]byte
}

func (r *stateReader) add(rec stream.Record) {
	if rec.Value == nil {
		delete(r.keys, string(rec.Key))
		if len(rec.Key) > 16 {
			delete(r.parts, string(rec.Key[:16]))
		}
		return
	}
	r.keys[string(rec.Key)] = struct{}{}
	if len(rec.Key) > 16 {
		var chunk callscopev1.SnapshotChunk
		if err := chunk.UnmarshalVT(rec.Value); err != nil {
			r.bad = append(r.bad, fmt.Errorf("decoding chunk at offset %d: %w", rec.Offset, err))
			return
		}
		parts := r.of(chunk.SnapshotUid)
		parts.chunks[chunk.Index] = chunk.Data
		r.complete(parts)
		return
	}
	m := &callscopev1.SnapshotManifest{}
	if err := m.UnmarshalVT(rec.Value); err != nil {
		r.bad = append(r.bad, fmt.Errorf("decoding manifest at offset %d: %w", rec.Offset, err))
		return
	}
	parts := r.of(m.SnapshotUid)
	parts.manifest = m
	r.complete(parts)
}

func (r *stateReader) of(uid []byte) *snapshotParts {
	parts := r.parts[string(uid)]
	if parts == nil {
		parts = &snapshotParts{chunks: map[uint32][]byte{}}
		r.parts[string(uid)] = parts
	}
	return parts
}

// complete takes a snapshot as the best one if it is whole and none with a
// higher offset has been found. Parts that are not needed are forgotten.
func (r *stateReader) complete(parts *snapshotParts) {
	m := parts.manifest
	if m == nil {
		return
	}
	if r.best != nil && (m.InputOffset < r.best.InputOffset || m.InputOffset == r.best.InputOffset && m.LogicVersion < r.best.LogicVersion) {
		delete(r.parts, string(m.SnapshotUid))
		return
	}
	if uint64(len(parts.chunks)) < uint64(m.Chunks) {
		return
	}
	size := 0
	for i := range m.Chunks {
		size += len(parts.chunks[i])
	}
	state := make([]byte, 0, size)
	for i := range m.Chunks {
		state = append(state, parts.chunks[i]...)
	}
	delete(r.parts, string(m.SnapshotUid))
	sum := sha256.Sum256(state)
	if uint64(len(state)) != m.StateBytes || !bytes.Equal(sum[:], m.StateSha256) {
		r.bad = append(r.bad, fmt.Errorf("the chunks of snapshot %x do not have the checksum of its manifest", m.SnapshotUid))
		return
	}
	r.best, r.state = m, state
}

// readState reads a partition of the state topic. It goes to the end, asks for
// the end again and continues until a complete snapshot is found or the end
// stands still: beside compaction, which may remove the snapshot that is just
// being read, a fixed end can find none.
func readState(ctx context.Context, log Log, topic string, partition int32) (storedState, error) {
	r := stateReader{parts: map[string]*snapshotParts{}, keys: map[string]struct{}{}}
	start, end, err := log.Offsets(ctx, topic, partition)
	if err != nil {
		return storedState{}, fmt.Errorf("looking for snapshots: %w", err)
	}
	for next := start; ; {
		for next < end {
			batch, err := log.Fetch(ctx, topic, partition, next, stateFetchBytes, 100*time.Millisecond)
			if errors.Is(err, stream.ErrOffsetOutOfRange) {
				// Compaction has moved the beginning past us.
				first, _, err := log.Offsets(ctx, topic, partition)
				if err != nil {
					return storedState{}, fmt.Errorf("looking for snapshots: %w", err)
				}
				if first <= next {
					return storedState{}, fmt.Errorf("looking for snapshots: state topic %s/%d ends before its end %d", topic, partition, end)
				}
				next = first
				continue
			}
			if err != nil {
				return storedState{}, fmt.Errorf("looking for snapshots: %w", err)
			}
			for _, rec := range batch.Records {
				r.add(rec)
			}
			next = max(next, batch.Next)
		}
		_, now, err := log.Offsets(ctx, topic, partition)
		if err != nil {
			return storedState{}, fmt.Errorf("looking for snapshots: %w", err)
		}
		if r.best != nil || now <= end {
			break
		}
		end = now
	}
	s := storedState{manifest: r.best, state: r.state, everWritten: end > 0}
	for _, key := range slices.Sorted(maps.Keys(r.keys)) {
		s.keys = append(s.keys, []byte(key))
	}
	s.bad = errors.Join(r.bad...)
	return s, nil
}

func toProto(o *Origin) *callscopev1.Origin {
	if o == nil {
		return nil
	}
	return &callscopev1.Origin{Offset: o.Offset, Index: o.Index}
}

func fromProto(o *callscopev1.Origin) *Origin {
	if o == nil {
		return nil
	}
	return &Origin{Offset: o.Offset, Index: o.Index}
}
