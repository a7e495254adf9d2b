package apps

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/callscope/callscope/internal/stream"
	pb "github.com/callscope/callscope/proto/callscope/v1"
)

const rekeyBatch = 500 // records written at a time

// Rekey encrypts every secret that was encrypted with another key with the editor's master key, which must open them
// (MasterKey.WithPrevious), and returns how many there were. Secrets that it cannot open stay as they are, and the error
// names those of apps that exist.
//
// A rewritten record keeps its version, so it does not count where somebody changed the secret meanwhile (state.late);
// Rekey then writes the change again, so that it is also what compaction keeps. Interrupted, it may be run again.
func (e *Editor) Rekey(ctx context.Context) (int, error) {
	if e.key == nil {
		return 0, ErrNoMasterKey
	}
	rewritten := make(map[string]bool)
	for {
		var recs []stream.Record
		var left []error
		for _, appID := range slices.Sorted(maps.Keys(e.state)) {
			for _, item := range slices.Sorted(maps.Keys(e.state[appID])) {
				r := e.state[appID][item]
				key := string(recordKey(appID, item))
				sealed, err := e.reseal(r)
				switch {
				case err != nil && e.item(appID, item) == r:
					left = append(left, fmt.Errorf("app %s: %s: %w", appID, clip(item), err))
				case err == nil && sealed != nil:
					r = &pb.AppRecord{
						AppId: appID, Item: item, Life: r.GetLife(), Version: r.GetVersion(), WrittenAtMs: r.GetWrittenAtMs(),
						Content: &pb.AppRecord_Secret{Secret: sealed},
					}
					rewritten[key] = true
				}
				if sealed == nil && !e.late[key] {
					continue
				}
				value, err := r.MarshalVT()
				if err != nil {
					return len(rewritten), fmt.Errorf("writing %s of app %s: %w", clip(item), appID, err)
				}
				recs = append(recs, stream.Record{Key: []byte(key), Value: value})
			}
		}
		if len(recs) == 0 {
			return len(rewritten), errors.Join(left...)
		}
		for batch := range slices.Chunk(recs, rekeyBatch) {
			if _, err := e.log.Append(ctx, stream.TopicApps, partition, batch); err != nil {
				return len(rewritten), fmt.Errorf("writing to the apps registry (run it again, it goes on where it was): %w", err)
			}
		}
		// What somebody changed meanwhile shows now.
		if err := e.read(ctx, func(int64, *pb.AppRecord) {}); err != nil {
			return len(rewritten), fmt.Errorf("reading the apps registry back (run it again, it goes on where it was): %w", err)
		}
	}
}

// reseal encrypts a secret with the editor's master key; nil when it is, or when r holds none.
func (e *Editor) reseal(r *pb.AppRecord) (*pb.AppSecret, error) {
	if r.GetSecret() == nil || r.GetDeleted() || r.GetSecret().GetMasterKeyId() == e.key.id {
		return nil, nil
	}
	secret, err := e.key.open(r.GetSecret(), place(r))
	if err != nil {
		return nil, err
	}
	return e.key.seal(secret, place(r))
}
