package enricher

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/stage/stagetest"
	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// recordedLog is the raw log of one partition that holds every recording, all
// at the same time, and a tick each second.
func recordedLog(t *testing.T) []stream.Record {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(expected, "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings found: %v", err)
	}
	var messages []timedRaw
	for i, file := range files {
		for _, m := range readCapture(t, strings.TrimSuffix(filepath.Base(file), ".json")) {
			m.raw.Uid = stage.UID([]byte{byte(i)}, m.raw.Uid) // each recording counts for itself
			m.raw.Observed.AppId = fmt.Sprint(100+i, m.raw.Observed.AppId)
			messages = append(messages, m)
		}
	}
	slices.SortStableFunc(messages, func(a, b timedRaw) int { return int(a.t - b.t) })
	p := newPartition(t)
	for _, m := range messages {
		p.until(m.t)
		p.send(m.raw)
	}
	p.wait(420_000)
	var records []stream.Record
	for _, in := range p.inputs {
		records = append(records, stream.Record{Key: in.Key, Value: in.Value})
	}
	return records
}

var errKilled = errors.New("killed")

// outputsOf runs the stage over the log until all is processed and returns the
// SHA-256 of what a consumer accepts, positions aside, and how often the
// process was killed.
func outputsOf(t *testing.T, records []stream.Record, firstOffset int64, batch int, kill float64) (sum [32]byte, kills int) {
	t.Helper()
	log := stagetest.NewLog("input", "output", "state")
	for range firstOffset {
		log.Skip("input")
	}
	log.DeleteBefore("input", firstOffset)
	if _, err := log.Append(context.Background(), "input", 0, records); err != nil {
		t.Fatal(err)
	}
	log.Batch = batch
	rng := rand.New(rand.NewPCG(1, uint64(batch)))
	now, killed := time.Duration(0), false
	log.Fail = func(string, string) error {
		now += time.Duration(rng.IntN(300)) * time.Millisecond
		if rng.Float64() < kill {
			killed = true
		}
		if killed {
			return errKilled
		}
		return nil
	}
	cfg := StageConfig(Config{StartWithoutState: firstOffset > 0}, func(int32) stage.Machine { return NewMachine() })
	cfg.InputTopic, cfg.OutputTopic, cfg.StateTopic = "input", "output", "state"
	cfg.Ticks = false // the log has its ticks
	s := stage.New(cfg, nil, slog.New(slog.DiscardHandler), nil)
	env := stage.Env{
		Log: log, Committer: log, Now: func() time.Time { return time.UnixMilli(captureBaseMs).Add(now) },
		Monotonic: func() time.Duration { return now },
		NewUID: func() []byte {
			return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, rng.Uint64()), rng.Uint64())
		},
		Logger: slog.New(slog.DiscardHandler),
	}
	p := s.NewPartition(0, env)
	end := firstOffset + int64(len(records))
	for ctx := context.Background(); p.Next() < end || log.Committed < end; {
		err := p.Advance(ctx)
		if errors.Is(err, errKilled) {
			p, killed = s.NewPartition(0, env), false
			kills++
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	h := sha256.New()
	var filter stage.OriginFilter
	for _, r := range log.Records("output") {
		_, origin, prev, err := stage.ReadHeader(r.Value)
		if err != nil {
			t.Fatal(err)
		}
		switch filter.Accept(origin, prev) {
		case stage.Gap:
			t.Fatalf("%v follows %v, which was never seen", origin, prev)
		case stage.Duplicate:
			continue
		}
		var e callscopev1.Enriched
		if err := e.UnmarshalVT(r.Value); err != nil {
			t.Fatal(err)
		}
		withoutPositions(&e)
		data, err := e.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		h.Write(binary.AppendUvarint(nil, uint64(len(r.Key))))
		h.Write(r.Key)
		h.Write(binary.AppendUvarint(nil, uint64(len(data))))
		h.Write(data)
	}
	return [32]byte(h.Sum(nil)), kills
}

// withoutPositions takes away what a copied topic numbers in its own way.
func withoutPositions(e *callscopev1.Enriched) {
	e.Origin, e.Prev = nil, nil
	if c := e.GetConference(); c != nil {
		c.FirstRawOffset, c.LastRawOffset = 0, 0
	}
	if p := e.GetParticipant(); p != nil {
		p.FirstRawOffset = 0
	}
	if f := e.GetFabric(); f != nil {
		f.FirstRawOffset = 0
	}
	if s := e.GetStream(); s != nil {
		s.FirstRawOffset = 0
	}
}

// The same log gives the same outputs in any batches, on any number of cores,
// whatever is killed, and as a copied topic whose offsets are others.
func TestDeterminism(t *testing.T) {
	records := recordedLog(t)
	want, _ := outputsOf(t, records, 0, 500, 0)
	t.Logf("%d records, SHA-256 of the outputs %x", len(records), want)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	killed := 0
	for _, cores := range []int{1, 2} {
		runtime.GOMAXPROCS(cores)
		for _, batch := range []int{1, 7, 500} {
			for _, kill := range []float64{0, 0.02} {
				for _, first := range []int64{0, 12_345} {
					if first > 0 && (kill > 0 || cores > 1) {
						continue // killed before its first snapshot, a process is refused the second time
					}
					got, kills := outputsOf(t, records, first, batch, kill)
					killed += kills
					if got != want {
						t.Errorf("batches of %d on %d cores from offset %d, %d kills: %x", batch, cores, first, kills, got)
					}
				}
			}
		}
	}
	t.Logf("%d kills", killed)
	if killed < 50 {
		t.Errorf("only %d kills", killed)
	}
}
