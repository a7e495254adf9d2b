package replay

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/callscope/callscope/internal/archive"
	"github.com/callscope/callscope/internal/replay"
	"github.com/callscope/callscope/internal/store/storetest"
	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/internal/stream/streamtest"
)

func ignore(replay.Progress) {}

func export(t testing.TB, c *chain, from, to float64) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "archive")
	m, err := replay.Export(t.Context(), c.client, at(from), at(to), dir, ignore)
	if err != nil || len(m.Files) == 0 {
		t.Fatalf("%+v, %v", m, err)
	}
	return dir
}

// readAll gives the records of a partition from start to end.
func readAll(t testing.TB, source replay.Source, partition int32, start, end int64) []stream.Record {
	t.Helper()
	var all []stream.Record
	for offset := start; offset < end; offset = start + int64(len(all)) {
		records, err := source.Read(t.Context(), partition, offset)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if r.Offset < end {
				all = append(all, r)
			}
		}
	}
	return all
}

func open(t testing.TB, dir string) *archive.Archive {
	t.Helper()
	a, err := archive.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func TestArchive(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(70))
	c.live()
	before := allRows(t, c.store)
	dir := export(t, c, -30, 100)
	a := open(t, dir)
	if err := a.Check(t.Context()); err != nil {
		t.Fatal(err)
	}

	t.Run("every record is in it", func(t *testing.T) {
		topic := replay.Topic{Client: c.client}
		for p := range int32(partitions) {
			start, end, err := a.Range(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			if first, _, err := topic.Range(t.Context(), p); err != nil || first != start || start == end {
				t.Fatalf("the archive has %d to %d of partition %d, the topic begins at %d: %v", start, end, p, first, err)
			}
			want, got := readAll(t, topic, p, start, end), readAll(t, a, p, start, end)
			for i := range want {
				if string(got[i].Value) != string(want[i].Value) || string(got[i].Key) != string(want[i].Key) || !got[i].Time.Equal(want[i].Time) {
					t.Fatalf("offset %d differs", want[i].Offset)
				}
			}
			rest, err := topic.Seek(t.Context(), p, at(100))
			if err != nil || rest != end {
				t.Errorf("the archive ends at %d and not at %d: %v", end, rest, err)
			}
		}
	})
	t.Run("replay from files", func(t *testing.T) {
		for _, ends := range [][2]float64{{-10, 50}, {0, 20}} {
			report, err := replay.Run(t.Context(), config(ends[0], ends[1]), a, c.store, quiet)
			if err != nil || report.Rows() != 0 || report.Conferences == 0 {
				t.Errorf("%v: %+v, %v", ends, report, err)
			}
		}
		cfg := config(0, 20)
		cfg.NewSummarizer = doubledDelays
		if report, err := replay.Run(t.Context(), cfg, a, c.store, quiet); err != nil || report.Rows() == 0 {
			t.Errorf("%+v, %v", report, err)
		}
		if report, err := replay.Run(t.Context(), config(0, 20), a, c.store, quiet); err != nil || report.Rows() == 0 {
			t.Errorf("%+v, %v", report, err)
		}
		if diff := changed(before, allRows(t, c.store)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("import", func(t *testing.T) {
		if n, err := replay.Import(t.Context(), c.client, a, ignore); !errors.Is(err, replay.ErrNotEmpty) || n != 0 {
			t.Errorf("importing into topics with records: %d, %v", n, err)
		}
		wide := openStreamOf(t, streamtest.StartBroker(t), partitions+1)
		if err := wide.EnsureTopics(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n, err := replay.Import(t.Context(), wide, a, ignore); err == nil || !strings.Contains(err.Error(), "callscope.raw.v1 has 3 partitions and the archive 2") || n != 0 {
			t.Errorf("importing into more partitions: %d, %v", n, err)
		}
		other := newChain(t)
		if _, err := replay.Import(t.Context(), other.client, a, ignore); err != nil {
			t.Fatal(err)
		}
		other.live()
		if diff := changed(before, allRows(t, other.store)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("damage", func(t *testing.T) {
		name := filepath.Join(dir, a.Manifest.Files[0].Name)
		whole, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for what, content := range map[string][]byte{"cut": whole[:len(whole)/2], "other byte": append(append([]byte{}, whole[:len(whole)-1]...), whole[len(whole)-1]^1)} {
			if err := os.WriteFile(name, content, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := open(t, dir).Check(t.Context()); !errors.Is(err, archive.ErrDamaged) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := os.Remove(filepath.Join(dir, "manifest.json")); err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Open(dir); !errors.Is(err, archive.ErrNoArchive) {
			t.Errorf("without manifest: %v", err)
		}
		// The half-written archive is no obstacle to another export.
		if _, err := replay.Export(t.Context(), c.client, at(0), at(20), dir, ignore); err != nil {
			t.Error(err)
		}
		if _, err := replay.Export(t.Context(), c.client, at(0), at(20), dir, ignore); err == nil {
			t.Error("an archive was overwritten")
		}
	})
	t.Run("nothing in range", func(t *testing.T) {
		empty := filepath.Join(t.TempDir(), "none")
		if _, err := replay.Export(t.Context(), c.client, at(-100), at(-90), empty, ignore); err == nil {
			t.Error("an empty export succeeded")
		}
		if _, err := os.Stat(empty); err == nil {
			t.Error("it left a directory")
		}
	})
}

// An archive that begins too late for the range is refused, and nothing is left behind.
func TestArchiveTooShort(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(60))
	c.live()
	for from, ends := range map[float64][2]float64{
		-1: {0, 20},  // a call that is open at 0 began before the archive does
		10: {0, 20},  // the range begins before it
		12: {11, 20}, // nothing was open then
	} {
		a := open(t, export(t, c, from, 100))
		if report, err := replay.Run(t.Context(), config(ends[0], ends[1]), a, c.store, quiet); !errors.Is(err, replay.ErrRetention) {
			t.Errorf("archive from %v, range %v: %+v, %v", from, ends, report, err)
		}
	}
	if left := storetest.Query(t, c.store, "SELECT name FROM system.tables WHERE database = currentDatabase() AND name LIKE 'replay%'"); len(left) > 0 {
		t.Errorf("tables are left: %v", left)
	}
}
