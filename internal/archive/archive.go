// Package archive keeps raw records in files beyond Kafka's retention: one compressed file for each partition and hour,
// and a manifest with the checksum of each, which is written last. A directory without a manifest is no archive.
//
// It does not look into the records and knows nothing of Kafka's protocol or of calls.
package archive

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/callscope/callscope/internal/stream"
)

const (
	manifestName = "manifest.json"
	format       = 1
	// maxField bounds a key or value: no record of a topic is larger.
	maxField = 64 << 20
)

var (
	// ErrNoArchive: the directory holds no finished archive.
	ErrNoArchive = errors.New("no finished archive")
	// ErrDamaged: a file is not what the manifest says.
	ErrDamaged = errors.New("the archive is damaged")
)

// Manifest says what an archive holds.
type Manifest struct {
	Format     int       `json:"format"`
	Topic      string    `json:"topic"`
	Partitions int       `json:"partitions"`
	From       time.Time `json:"from"`
	To         time.Time `json:"to"`
	Files      []File    `json:"files"` // by partition, then by offset
}

// File is one file of an archive.
type File struct {
	Name      string    `json:"name"`
	Partition int32     `json:"partition"`
	Hour      time.Time `json:"hour"` // of its first record
	First     int64     `json:"first_offset"`
	End       int64     `json:"end_offset"` // behind the last one
	Records   int64     `json:"records"`
	Bytes     int64     `json:"bytes"`
	SHA256    string    `json:"sha256"`
}

// Writer makes an archive. Its methods are not safe for concurrent use, except Partition's results of different
// partitions.
type Writer struct {
	dir      string
	manifest Manifest
}

// Create prepares a directory, which may exist but must not hold an archive. Files of an export that was cut short are
// taken away.
func Create(dir, topic string, partitions int, from, to time.Time) (*Writer, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("making the archive's directory: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("looking into the archive's directory: %w", err)
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case name == manifestName:
			return nil, fmt.Errorf("%s already holds an archive: give another directory", dir)
		case name == manifestName+".part", strings.HasPrefix(name, "raw-") && (strings.HasSuffix(name, ".zst") || strings.HasSuffix(name, ".zst.part")):
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return nil, fmt.Errorf("taking away an unfinished file: %w", err)
			}
		default:
			return nil, fmt.Errorf("%s holds %s, which is no part of an archive: give an empty directory", dir, name)
		}
	}
	return &Writer{dir: dir, manifest: Manifest{Format: format, Topic: topic, Partitions: partitions, From: from.UTC(), To: to.UTC()}}, nil
}

// Partition begins the files of one partition.
func (w *Writer) Partition(number int32) *PartitionWriter {
	return &PartitionWriter{dir: w.dir, number: number}
}

// Finish writes the manifest; the archive exists from then on.
func (w *Writer) Finish(partitions []*PartitionWriter) (Manifest, error) {
	for _, p := range partitions {
		w.manifest.Files = append(w.manifest.Files, p.files...)
	}
	slices.SortFunc(w.manifest.Files, func(a, b File) int {
		if a.Partition != b.Partition {
			return int(a.Partition) - int(b.Partition)
		}
		return int(min(max(a.First-b.First, -1), 1))
	})
	text, err := json.MarshalIndent(w.manifest, "", "  ")
	if err != nil {
		return w.manifest, fmt.Errorf("writing the manifest: %w", err)
	}
	part := filepath.Join(w.dir, manifestName+".part")
	f, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return w.manifest, fmt.Errorf("writing the manifest: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return w.manifest, fmt.Errorf("writing the manifest: %w", errors.Join(err, os.Remove(part)))
	}
	if err := os.Rename(part, filepath.Join(w.dir, manifestName)); err != nil {
		return w.manifest, fmt.Errorf("writing the manifest: %w", err)
	}
	return w.manifest, syncDir(w.dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("writing through the archive's directory: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// PartitionWriter writes the files of one partition.
type PartitionWriter struct {
	dir    string
	number int32
	files  []File

	current File
	file    *os.File
	sum     hash.Hash
	zstd    *zstd.Encoder
	out     *bufio.Writer
}

// Write adds a record. Offsets must rise.
func (p *PartitionWriter) Write(r stream.Record) error {
	hour := r.Time.UTC().Truncate(time.Hour)
	if p.file != nil && hour.After(p.current.Hour) {
		if err := p.Close(); err != nil {
			return err
		}
	}
	if p.file == nil {
		if err := p.open(r, hour); err != nil {
			return err
		}
	}
	head := binary.AppendUvarint(nil, uint64(r.Offset))
	head = binary.AppendVarint(head, r.Time.UnixMilli())
	head = binary.AppendUvarint(head, uint64(len(r.Key)))
	head = append(head, r.Key...)
	head = binary.AppendUvarint(head, uint64(len(r.Value)))
	_, err := p.out.Write(head)
	if err == nil {
		_, err = p.out.Write(r.Value)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", p.current.Name, err)
	}
	p.current.End = r.Offset + 1
	p.current.Records++
	return nil
}

func (p *PartitionWriter) open(r stream.Record, hour time.Time) error {
	p.current = File{Name: fmt.Sprintf("raw-%03d-%s-%d.zst", p.number, hour.Format("20060102T15"), r.Offset), Partition: p.number, Hour: hour, First: r.Offset}
	f, err := os.OpenFile(filepath.Join(p.dir, p.current.Name+".part"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("making %s: %w", p.current.Name, err)
	}
	p.file, p.sum = f, sha256.New()
	if p.zstd, err = zstd.NewWriter(io.MultiWriter(f, p.sum)); err != nil {
		return fmt.Errorf("making %s: %w", p.current.Name, err)
	}
	p.out = bufio.NewWriterSize(p.zstd, 256<<10)
	return nil
}

// Close finishes the file under way. Call it once behind the last record.
func (p *PartitionWriter) Close() error {
	if p.file == nil {
		return nil
	}
	err := errors.Join(p.out.Flush(), p.zstd.Close(), p.file.Sync())
	info, statErr := p.file.Stat()
	err = errors.Join(err, statErr, p.file.Close())
	p.file = nil
	part := filepath.Join(p.dir, p.current.Name+".part")
	if err != nil {
		return fmt.Errorf("writing %s: %w", p.current.Name, errors.Join(err, os.Remove(part)))
	}
	p.current.Bytes, p.current.SHA256 = info.Size(), hex.EncodeToString(p.sum.Sum(nil))
	if err := os.Rename(part, filepath.Join(p.dir, p.current.Name)); err != nil {
		return fmt.Errorf("finishing %s: %w", p.current.Name, err)
	}
	p.files = append(p.files, p.current)
	return nil
}

// Archive is a finished archive, to be read. It gives records the way a topic does.
type Archive struct {
	dir      string
	Manifest Manifest
	readers  []*reader
}

// Open reads the manifest of a directory.
func Open(dir string) (*Archive, error) {
	text, err := os.ReadFile(filepath.Join(dir, manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w in %s: %s is missing, so the export was cut short or was never there", ErrNoArchive, dir, manifestName)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the archive's manifest: %w", err)
	}
	a := &Archive{dir: dir}
	decoder := json.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(&a.Manifest); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, manifestName, err)
	}
	m := &a.Manifest
	if m.Format != format {
		return nil, fmt.Errorf("%w in %s: format %d is unknown, this callscope reads %d", ErrNoArchive, dir, m.Format, format)
	}
	if m.Partitions < 1 || m.Partitions > 10000 {
		return nil, fmt.Errorf("%w: the manifest speaks of %d partitions", ErrDamaged, m.Partitions)
	}
	a.readers = make([]*reader, m.Partitions)
	for i := range a.readers {
		a.readers[i] = &reader{dir: dir}
	}
	for _, f := range m.Files {
		if f.Partition < 0 || int(f.Partition) >= m.Partitions || f.Name != filepath.Base(f.Name) || f.First < 0 || f.First >= f.End || f.Records != f.End-f.First {
			return nil, fmt.Errorf("%w: the manifest's entry of %q makes no sense", ErrDamaged, f.Name)
		}
		r := a.readers[f.Partition]
		if n := len(r.files); n > 0 && r.files[n-1].End != f.First {
			return nil, fmt.Errorf("%w: offsets %d to %d of partition %d are in no file", ErrDamaged, r.files[n-1].End, f.First-1, f.Partition)
		}
		r.files = append(r.files, f)
	}
	return a, nil
}

// Check reads every file and compares it with the manifest.
func (a *Archive) Check(ctx context.Context) error {
	for _, f := range a.Manifest.Files {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		file, err := os.Open(filepath.Join(a.dir, f.Name))
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		sum := sha256.New()
		n, err := io.Copy(sum, file)
		if err := errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("%w: reading %s: %w", ErrDamaged, f.Name, err)
		}
		if n != f.Bytes || hex.EncodeToString(sum.Sum(nil)) != f.SHA256 {
			return fmt.Errorf("%w: %s has %d bytes of another checksum than the manifest's (%d bytes): copy it again", ErrDamaged, f.Name, n, f.Bytes)
		}
	}
	return nil
}

// Close gives up the open files.
func (a *Archive) Close() error {
	var errs []error
	for _, r := range a.readers {
		errs = append(errs, r.close())
	}
	return errors.Join(errs...)
}

// Name tells archives apart.
func (a *Archive) Name() string {
	text, err := json.Marshal(a.Manifest)
	if err != nil {
		return a.dir
	}
	return fmt.Sprintf("files/%x", sha256.Sum256(text))
}

// Partitions is the partition count of the topic.
func (a *Archive) Partitions(context.Context) (int, error) { return a.Manifest.Partitions, nil }

// Range gives the first offset of a partition and the one behind the last.
func (a *Archive) Range(_ context.Context, partition int32) (start, end int64, err error) {
	files := a.readers[partition].files
	if len(files) == 0 {
		return 0, 0, nil
	}
	return files[0].First, files[len(files)-1].End, nil
}

// Seek gives the first offset whose record was written at t or later, by the files' hours and then record by record.
func (a *Archive) Seek(ctx context.Context, partition int32, t time.Time) (int64, error) {
	start, end, err := a.Range(ctx, partition)
	if err != nil {
		return 0, err
	}
	offset := start
	for _, f := range a.readers[partition].files {
		if f.Hour.After(t) {
			break
		}
		offset = f.First
	}
	for offset < end {
		records, err := a.Read(ctx, partition, offset)
		if err != nil {
			return 0, err
		}
		for _, r := range records {
			if !r.Time.Before(t) {
				return r.Offset, nil
			}
		}
		offset = records[len(records)-1].Offset + 1
	}
	return end, nil
}

// Read gives some records from an offset on. Reading on where the last call ended is fast.
func (a *Archive) Read(_ context.Context, partition int32, offset int64) ([]stream.Record, error) {
	r := a.readers[partition]
	if r.file == nil || r.next != offset {
		if err := r.seek(offset); err != nil {
			return nil, err
		}
	}
	var list []stream.Record
	for size := 0; size < 4<<20; {
		record, err := r.read()
		if errors.Is(err, io.EOF) {
			if len(list) > 0 {
				break
			}
			if err := r.seek(offset); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		record.Topic, record.Partition = a.Manifest.Topic, partition
		list = append(list, record)
		size += len(record.Key) + len(record.Value)
	}
	return list, nil
}

// reader reads the files of one partition.
type reader struct {
	dir   string
	files []File

	current File
	file    *os.File
	zstd    *zstd.Decoder
	in      *bufio.Reader
	next    int64
}

func (r *reader) close() error {
	if r.file == nil {
		return nil
	}
	r.zstd.Close()
	err := r.file.Close()
	r.file = nil
	return err
}

func (r *reader) seek(offset int64) error {
	if err := r.close(); err != nil {
		return fmt.Errorf("closing %s: %w", r.current.Name, err)
	}
	i := slices.IndexFunc(r.files, func(f File) bool { return f.First <= offset && offset < f.End })
	if i < 0 {
		return fmt.Errorf("offset %d is in no file of the archive", offset)
	}
	r.current = r.files[i]
	file, err := os.Open(filepath.Join(r.dir, r.current.Name))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	decoder, err := zstd.NewReader(file, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, r.current.Name, errors.Join(err, file.Close()))
	}
	r.file, r.zstd, r.in, r.next = file, decoder, bufio.NewReaderSize(decoder, 256<<10), r.current.First
	for r.next < offset {
		if _, err := r.read(); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) read() (stream.Record, error) {
	var record stream.Record
	offset, err := binary.ReadUvarint(r.in)
	if errors.Is(err, io.EOF) && r.next == r.current.End {
		return record, io.EOF
	}
	damaged := func(err error) error {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("%w: %s behind offset %d: %w", ErrDamaged, r.current.Name, r.next, err)
	}
	if err != nil {
		return record, damaged(err)
	}
	ms, err := binary.ReadVarint(r.in)
	if err != nil {
		return record, damaged(err)
	}
	if record.Key, err = r.field(); err != nil {
		return record, damaged(err)
	}
	if record.Value, err = r.field(); err != nil {
		return record, damaged(err)
	}
	if int64(offset) != r.next {
		return record, damaged(fmt.Errorf("found offset %d", offset))
	}
	record.Offset, record.Time = int64(offset), time.UnixMilli(ms)
	r.next++
	return record, nil
}

func (r *reader) field() ([]byte, error) {
	n, err := binary.ReadUvarint(r.in)
	if err != nil || n == 0 {
		return nil, err
	}
	if n > maxField {
		return nil, fmt.Errorf("a field of %d bytes", n)
	}
	field := make([]byte, n)
	_, err = io.ReadFull(r.in, field)
	return field, err
}
