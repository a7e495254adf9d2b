package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"github.com/callscope/callscope/internal/stream"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// write makes an archive of one list of records for each partition.
func write(t rapid.TB, dir string, partitions [][]stream.Record) Manifest {
	t.Helper()
	w, err := Create(dir, "raw", len(partitions), noon, noon.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	var writers []*PartitionWriter
	for number, list := range partitions {
		p := w.Partition(int32(number))
		for _, r := range list {
			if err := p.Write(r); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		writers = append(writers, p)
	}
	m, err := w.Finish(writers)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// readFrom reads a partition from an offset to its end.
func readFrom(a *Archive, partition int32, offset int64) (all []stream.Record, err error) {
	_, end, err := a.Range(context.Background(), partition)
	for err == nil && offset < end {
		var list []stream.Record
		if list, err = a.Read(context.Background(), partition, offset); err == nil {
			all = append(all, list...)
			offset = list[len(list)-1].Offset + 1
		}
	}
	return all, err
}

func mustOpen(t rapid.TB, dir string) *Archive {
	t.Helper()
	a, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// What was written is read, from every offset and time, in files by hour.
func TestRoundTrip(t *testing.T) {
	parent := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		dir := filepath.Join(parent, fmt.Sprint(n))
		partitions := make([][]stream.Record, rapid.IntRange(1, 3).Draw(t, "partitions"))
		for p := range partitions {
			offset, at := rapid.Int64Range(0, 1<<40).Draw(t, "first offset"), noon
			for range rapid.IntRange(0, 12).Draw(t, "records") {
				partitions[p] = append(partitions[p], stream.Record{
					Topic: "raw", Partition: int32(p), Offset: offset, Time: at.Local(),
					Key:   rapid.OneOf(rapid.Just([]byte(nil)), rapid.SliceOfN(rapid.Byte(), 1, 20)).Draw(t, "key"),
					Value: rapid.OneOf(rapid.Just([]byte(nil)), rapid.SliceOfN(rapid.Byte(), 1, 400)).Draw(t, "value"),
				})
				offset++
				at = at.Add(time.Duration(rapid.IntRange(0, 90*60*1000).Draw(t, "pause")) * time.Millisecond)
			}
		}
		m := write(t, dir, partitions)
		a := mustOpen(t, dir)
		defer a.Close()
		if err := a.Check(context.Background()); err != nil {
			t.Fatal(err)
		}
		if again := a.Manifest; !cmp.Equal(m, again) {
			t.Fatalf("the manifest is read as something else: %s", cmp.Diff(m, again))
		}
		for p, want := range partitions {
			hours := map[time.Time]bool{}
			for i, r := range want {
				hours[r.Time.UTC().Truncate(time.Hour)] = true
				got, err := readFrom(a, int32(p), r.Offset)
				if err != nil || !cmp.Equal(want[i:], got) {
					t.Fatalf("from offset %d: %v %s", r.Offset, err, cmp.Diff(want[i:], got))
				}
				first := i
				for first > 0 && want[first-1].Time.Equal(r.Time) {
					first--
				}
				if offset, err := a.Seek(context.Background(), int32(p), r.Time); err != nil || offset != want[first].Offset {
					t.Fatalf("seeking %s found %d, want %d: %v", r.Time, offset, want[first].Offset, err)
				}
			}
			files := 0
			for _, f := range m.Files {
				if f.Partition == int32(p) {
					files++
				}
			}
			if files != len(hours) {
				t.Fatalf("%d files for the records of %d hours", files, len(hours))
			}
		}
	})
}

// some is an archive of one small file, one that is repetitive and one of another partition.
func some(t testing.TB) (dir string, m Manifest, partitions [][]stream.Record) {
	t.Helper()
	dir = t.TempDir()
	partitions = make([][]stream.Record, 2)
	for i := range 40 {
		p := i % 2
		partitions[p] = append(partitions[p], stream.Record{
			Topic: "raw", Partition: int32(p), Offset: 100 + int64(i/2), Time: noon.Add(time.Duration(i) * 2 * time.Minute).Local(), Key: []byte("app\x00room"),
			Value: bytes.Repeat([]byte("jitter and loss, "), 10),
		})
	}
	return dir, write(t, dir, partitions), partitions
}

func TestFilesAreCompressedByHour(t *testing.T) {
	_, m, partitions := some(t)
	var plain, stored int64
	for _, list := range partitions {
		for _, r := range list {
			plain += int64(len(r.Key) + len(r.Value))
		}
	}
	var names []string
	for _, f := range m.Files {
		stored += f.Bytes
		names = append(names, f.Name)
	}
	if stored*5 > plain {
		t.Errorf("%d bytes of records take %d bytes", plain, stored)
	}
	want := []string{"raw-000-20261124T12-100.zst", "raw-000-20261124T13-115.zst", "raw-001-20261124T12-100.zst", "raw-001-20261124T13-115.zst"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
}

// Wherever a file ends too early, and whichever byte is another, the check names it, and reading without a check never
// gives other records.
func TestDamagedFiles(t *testing.T) {
	dir, m, partitions := some(t)
	n := 0
	for _, f := range m.Files {
		path := filepath.Join(dir, f.Name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		damaged := map[string][]byte{"longer": append(bytes.Clone(whole), 0)}
		for i := range whole {
			damaged[fmt.Sprintf("cut at %d", i)] = whole[:i]
			other := bytes.Clone(whole)
			other[i] ^= 1 << (i % 8)
			damaged[fmt.Sprintf("byte %d changed", i)] = other
		}
		for what, content := range damaged {
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			a := mustOpen(t, dir)
			if err := a.Check(t.Context()); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), f.Name) || !strings.Contains(err.Error(), "checksum") {
				t.Errorf("%s %s: %v", f.Name, what, err)
			}
			if n++; n%5 > 0 {
				if err := a.Close(); err != nil {
					t.Error(err)
				}
				continue
			}
			want := partitions[f.Partition]
			got, err := readFrom(a, f.Partition, want[0].Offset)
			if err != nil && !errors.Is(err, ErrDamaged) {
				t.Errorf("%s %s: reading it: %v", f.Name, what, err)
			}
			if err == nil && len(got) != len(want) || len(got) > len(want) || len(got) > 0 && !cmp.Equal(want[:len(got)], got) {
				t.Errorf("%s %s: other records were read, error %v: %s", f.Name, what, err, cmp.Diff(want, got))
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := mustOpen(t, dir).Check(t.Context()); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), f.Name) {
			t.Errorf("without %s: %v", f.Name, err)
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := mustOpen(t, dir)
	if err := a.Check(t.Context()); err != nil {
		t.Errorf("restored: %v", err)
	}
}

func TestDamagedManifest(t *testing.T) {
	dir, m, _ := some(t)
	path := filepath.Join(dir, manifestName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, content []byte) {
		t.Helper()
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNoArchive) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range bytes.TrimSpace(whole) {
		try(fmt.Sprintf("cut at %d", i), whole[:i])
	}
	for what, change := range map[string]func(*Manifest){
		"another format":   func(m *Manifest) { m.Format++ },
		"no partitions":    func(m *Manifest) { m.Partitions = 0 },
		"fewer partitions": func(m *Manifest) { m.Partitions = 1 },
		"a file is missing": func(m *Manifest) {
			m.Files = append(m.Files[:0:0], m.Files[0], m.Files[2])
			m.Files[1].Partition = 0
			m.Files[1].First = 130
		},
		"another folder": func(m *Manifest) { m.Files[0].Name = "../" + m.Files[0].Name },
		"no records":     func(m *Manifest) { m.Files[0].End = m.Files[0].First },
		"fewer records":  func(m *Manifest) { m.Files[0].Records-- },
		"offset below 0": func(m *Manifest) { m.Files[0].First = -1 },
	} {
		other := m
		other.Files = append([]File(nil), m.Files...)
		change(&other)
		text, err := json.Marshal(other)
		if err != nil {
			t.Fatal(err)
		}
		try(what, text)
	}
}

// An export that ends anywhere leaves no archive, and what it leaves is no obstacle.
func TestUnfinished(t *testing.T) {
	dir, m, partitions := some(t)
	if err := os.Remove(filepath.Join(dir, manifestName)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, m.Files[3].Name), filepath.Join(dir, m.Files[3].Name+".part")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, ErrNoArchive) {
		t.Errorf("opened: %v", err)
	}
	again := write(t, dir, partitions)
	if diff := cmp.Diff(m, again); diff != "" {
		t.Errorf("the second export is another: %s", diff)
	}
	if _, err := Create(dir, "raw", 2, noon, noon); err == nil {
		t.Error("an archive was begun over another one")
	}
	// The manifest was under way.
	if err := os.Rename(filepath.Join(dir, manifestName), filepath.Join(dir, manifestName+".part")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, ErrNoArchive) {
		t.Errorf("opened with half a manifest: %v", err)
	}
	write(t, dir, partitions)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(m.Files)+1 {
		t.Errorf("%d files are there, want %d: %v", len(entries), len(m.Files)+1, err)
	}
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "holiday.jpg"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(foreign, "raw", 2, noon, noon); err == nil || !strings.Contains(err.Error(), "holiday.jpg") {
		t.Errorf("a foreign file: %v", err)
	}
}

// FuzzFile reads any bytes as the content of a file: records or ErrDamaged.
func FuzzFile(f *testing.F) {
	record := binary.AppendVarint(binary.AppendUvarint(nil, 7), noon.UnixMilli())
	f.Add(append(record, 1, 'k', 2, 'v', 'w'))
	f.Add(append(record, 0xff, 0xff, 0xff, 0x7f))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, content []byte) {
		var file bytes.Buffer
		w, err := zstd.NewWriter(&file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(file.Bytes())
		dir := t.TempDir()
		text, err := json.Marshal(Manifest{Format: format, Topic: "raw", Partitions: 1, Files: []File{{
			Name: "raw.zst", First: 7, End: 9, Records: 2, Bytes: int64(file.Len()), SHA256: hex.EncodeToString(sum[:]),
		}}})
		if err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string][]byte{manifestName: text, "raw.zst": file.Bytes()} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		a := mustOpen(t, dir)
		defer a.Close()
		if err := a.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		records, err := readFrom(a, 0, 7)
		if err != nil && !errors.Is(err, ErrDamaged) || err == nil && len(records) != 2 {
			t.Errorf("%d records, %v", len(records), err)
		}
	})
}
