package app

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/callscope/callscope/internal/apps"
	"github.com/callscope/callscope/internal/dumps"
	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
	"github.com/callscope/callscope/services/gateway/vocabulary"
)

// dumpImport is what `callscope import-dump` is asked for.
type dumpImport struct {
	appID, conferenceID string
	users               []string
	dryRun, again       bool
}

func (c *cli) importDumpCommand() *cobra.Command {
	var d dumpImport
	cmd := &cobra.Command{
		Use:   "import-dump FILE... --app APP",
		Short: "Make rows of dumps that a browser or rtcstats recorded",
		Long: `Make rows of calls that something else recorded: dumps of chrome://webrtc-internals and
rtcstats dumps, plain or packed with gzip; "-" is standard input. They become raw records, as
if a client had sent them, with the times of the dump; the running stages do the rest.

Each file is one participant, each of its PeerConnections one fabric. Give the dumps of all
ends of a call together, with one --conference: then they become participants of one
conference, and streams get the user who sent them. Without --conference each file is a
conference with the file's name; without --user a participant is called as the dump says,
else as the file.

All files are read before anything is written. A conference with a bad file is left out, the
others are written. Importing the same files again writes nothing. A conference that is open
is never imported into.`,
		Example: `  callscope import-dump alice.txt bob.txt --app 123456789 --conference standup --user alice --user bob
  callscope import-dump dump.gz --app 123456789 --dry-run`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.importDumps(cmd.Context(), d, args) },
	}
	f := cmd.Flags()
	f.StringVar(&d.appID, "app", "", "the AppID that the calls belong to")
	f.StringVar(&d.conferenceID, "conference", "", "the conferenceID of all files; the file's name without it")
	f.StringArrayVar(&d.users, "user", nil, "the userID of a file's participant; once for each file, in their order")
	f.BoolVar(&d.dryRun, "dry-run", false, "print what would be written, and ask no server")
	f.BoolVar(&d.again, "again", false, "write although an import of the same files is there that was cut off; wait 6 minutes after it")
	c.dataFlag(cmd)
	return cmd
}

// dumpedFile is one file to import.
type dumpedFile struct {
	name      string
	sum       [sha256.Size]byte
	userID    string
	dump      *dumps.Dump
	records   int
	oversized int
	err       error // why it cannot be imported, and no other file of its conference
}

// dumpedConference is one conference to write.
type dumpedConference struct {
	id       string
	files    []*dumpedFile
	uid      uuid.UUID
	messages []dumpedMessage // in the order of their time
}

type dumpedMessage struct {
	file  *dumpedFile
	atMs  int64
	value []byte
}

func (c *cli) importDumps(ctx context.Context, d dumpImport, names []string) error {
	if d.appID == "" {
		return usage(errors.New("--app is missing: give the AppID that the calls belong to; `callscope apps list` shows them"))
	}
	if err := apps.CheckID(d.appID); err != nil {
		return usage(fmt.Errorf("--app: %w", err))
	}
	files, err := d.read(names, c.stdin)
	if err != nil {
		return err
	}
	conferences, left := d.conferences(files)
	if d.dryRun {
		conferences, left = d.build(conferences, left, true)
		d.print(c.stdout, "would be written", conferences)
	}
	if d.dryRun || len(conferences) == 0 {
		return left.outcome(len(conferences))
	}
	app, err := c.importedApp(ctx, d.appID)
	if err != nil {
		return left.and(err)
	}
	if conferences, left = d.build(conferences, left, app.Settings.CollectSDP); len(conferences) == 0 {
		return left.outcome(0)
	}
	var failed error
	err = c.withServers(ctx, true, true, func(client *stream.Client, st *store.Store, _ *slog.Logger) error {
		failed = d.write(ctx, client, st, c.stdout, conferences, left)
		return failed
	})
	var coded *codedError
	switch {
	case errors.As(failed, &coded) && coded.code == exitPartly:
		return failed // which is told also when a signal came besides
	case failed == nil && err != nil:
		return left.and(err) // it did not come to writing
	}
	return err
}

// leftOut is why conferences are not imported, one error for each file or conference.
type leftOut []error

// and is another error that ends the command, with what would have been left out.
func (l leftOut) and(err error) error { return errors.Join(append(slices.Clone(l), err)...) }

// outcome is the error of a command that has done its work for so many other conferences.
func (l leftOut) outcome(done int) error {
	switch {
	case len(l) == 0:
		return nil
	case done == 0:
		return fmt.Errorf("nothing was written: %w", errors.Join(l...))
	}
	return &codedError{exitPartly, fmt.Errorf("%d conferences are imported, others were left out: %w", done, errors.Join(l...))}
}

// importedApp is the app of the setting apps, or else of the registry.
func (c *cli) importedApp(ctx context.Context, appID string) (*apps.App, error) {
	s, err := c.load()
	if err != nil {
		return nil, err
	}
	static, err := s.staticApps(false)
	if err := s.check(func(*settings) error { return err }); err != nil {
		return nil, err
	}
	if a, ok := static.Lookup(appID); ok {
		return a, nil
	}
	var found *apps.App
	err = c.withRegistry(ctx, s, func(_ context.Context, e *apps.Editor) error {
		var err error
		if found, err = e.App(appID); found != nil {
			return nil // what is wrong with its secrets is not in the way
		}
		return err
	})
	if errors.Is(err, apps.ErrUnknownApp) {
		return nil, fmt.Errorf("%w; `callscope apps list` shows the apps, `callscope apps create` makes one", err)
	}
	return found, err
}

// read reads all files. What is wrong with one of them is kept in it.
func (d *dumpImport) read(names []string, stdin io.Reader) ([]*dumpedFile, error) {
	given := map[string]string{}
	for _, name := range names {
		base := baseName(name)
		switch other, taken := given[base]; {
		case taken && name == "-" && other == "-":
			return nil, usage(errors.New(`"-" is given twice: standard input can be read once`))
		case taken && d.conferenceID == "":
			return nil, usage(fmt.Errorf("%s and %s would be one conference, %q: give --conference when they are of one call, else import them apart", other, name, base))
		}
		given[base] = name
	}
	switch {
	case len(d.users) != 0 && len(d.users) != len(names):
		return nil, usage(fmt.Errorf("--user is given %d times for %d files: give it once for each file, in their order, or not at all", len(d.users), len(names)))
	case slices.Contains(names, "-") && d.conferenceID == "":
		return nil, usage(errors.New("--conference is missing: standard input has no name that could stand for it"))
	}
	for _, user := range append(slices.Clone(d.users), d.conferenceID) {
		if err := vocabulary.CheckID("id", user); err != nil {
			return nil, usage(err)
		}
	}
	var files []*dumpedFile
	for i, name := range names {
		f := &dumpedFile{name: name}
		files = append(files, f)
		data, err := readFile(name, stdin)
		if err == nil {
			f.sum = sha256.Sum256(data)
			f.dump, err = dumps.Parse(data)
		}
		if err != nil {
			f.err = fmt.Errorf("reading %s: %w", name, err)
			continue
		}
		for _, other := range files[:i] {
			if other.sum == f.sum {
				f.err = fmt.Errorf("reading %s: it is the same as %s", name, other.name)
			}
		}
		f.userID = f.dump.UserID
		if f.userID == "" {
			f.userID = baseName(name)
		}
		if len(d.users) > 0 {
			f.userID = d.users[i]
		}
	}
	return files, nil
}

// baseName is a file's name without folder and endings.
func baseName(name string) string {
	if name == "-" {
		return "stdin"
	}
	base := filepath.Base(name)
	for _, ending := range []string{".gz", ".json", ".jsonl", ".ndjson", ".txt", ".log"} {
		if short := strings.TrimSuffix(base, ending); short != "" {
			base = short
		}
	}
	return base
}

// conferences groups the files. A conference with a bad file is left out: with other files it would be another one.
func (d *dumpImport) conferences(files []*dumpedFile) (good []*dumpedConference, left leftOut) {
	var list []*dumpedConference
	byID := map[string]*dumpedConference{}
	for _, f := range files {
		id := d.conferenceID
		if id == "" {
			id = baseName(f.name)
		}
		if byID[id] == nil {
			byID[id] = &dumpedConference{id: id}
			list = append(list, byID[id])
		}
		byID[id].files = append(byID[id].files, f)
	}
	for _, conf := range list {
		bad := len(left)
		for _, f := range conf.files {
			if f.err != nil {
				left = append(left, f.err)
			}
		}
		if len(left) == bad {
			good = append(good, conf)
		}
	}
	return good, left
}

// build makes the records of the conferences, and leaves out those of which there can be none.
func (d *dumpImport) build(conferences []*dumpedConference, left leftOut, sdp bool) ([]*dumpedConference, leftOut) {
	var good []*dumpedConference
	for _, conf := range conferences {
		if err := conf.build(d.appID, sdp); err != nil {
			left = append(left, err)
			continue
		}
		good = append(good, conf)
	}
	return good, left
}

// build makes the records. Their uids, and the device of each participant, come from the content of all files of the
// conference: the same files give the same rows, other files never mix with them.
func (conf *dumpedConference) build(appID string, sdp bool) error {
	parts := [][]byte{[]byte("import-dump"), []byte(appID), []byte(conf.id)}
	for _, f := range conf.files {
		parts = append(parts, f.sum[:], []byte(f.userID))
	}
	set := stage.UID(parts...)
	now := time.Now()
	for _, f := range conf.files {
		device := "dump-" + hex.EncodeToString(stage.UID(set, f.sum[:]))
		remotes := map[string]string{}
		for _, c := range f.dump.Connections {
			if c.ID == f.userID {
				return fmt.Errorf("importing %s: its user and its PeerConnection are both called %q, which would hide the fabric; give another --user", f.name, c.ID)
			}
			remotes[c.ID] = conf.remote(f, c)
		}
		index := uint64(0)
		add := func(m dumps.Message) error {
			if m.EventType == "sdpSubmissionEvent" && !sdp {
				return nil
			}
			body, err := m.Body(f.userID, device, remotes[m.ConnectionID], f.dump.ClientVersion())
			if err != nil {
				return err
			}
			parsed, err := vocabulary.Parse(body, vocabulary.REST)
			if err != nil {
				return fmt.Errorf("its %s at %s: %w", m.EventType, timeText(int64(m.AtMs)), err)
			}
			defer parsed.Release()
			for _, raw := range parsed.Raw(conf.id) {
				index++
				raw.Uid = stage.UID(set, f.sum[:], binary.BigEndian.AppendUint64(nil, index))
				hash := sha256.Sum256(raw.Uid) // what a dump has twice happened twice
				raw.Observed = &callscopev1.Observed{
					AppId: appID, ReceivedAtMs: int64(math.Floor(m.AtMs)), Dialect: callscopev1.Dialect_DIALECT_IMPORT, UserAgent: f.dump.UserAgent, ContentHash: hash[:],
				}
				if err := conf.add(f, raw); err != nil {
					return err
				}
			}
			return nil
		}
		for _, m := range f.dump.Messages {
			if m.AtMs > float64(now.Add(24*time.Hour).UnixMilli()) {
				return fmt.Errorf("importing %s: its %s is of %s, which is yet to come: the clock of the recording was wrong", f.name, m.EventType, timeText(int64(m.AtMs)))
			}
			err := add(m)
			if err == nil && m.EventType == "addNewFabric" {
				for owners := range conf.owners(f, m) {
					err = errors.Join(err, add(owners))
				}
			}
			if err != nil {
				return fmt.Errorf("importing %s: %w", f.name, err)
			}
		}
	}
	for _, f := range conf.files {
		f.dump.Messages = nil // the records have them
	}
	if len(conf.messages) == 0 {
		return fmt.Errorf("importing %s: every message is too large for Kafka", conf.files[0].name)
	}
	slices.SortStableFunc(conf.messages, func(a, b dumpedMessage) int { return cmp.Compare(a.atMs, b.atMs) })
	first := &callscopev1.Raw{}
	if err := first.UnmarshalVT(conf.messages[0].value); err != nil {
		return fmt.Errorf("reading a record again: %w", err)
	}
	conf.uid = uuid.UUID(stage.UID([]byte(appID), []byte(conf.id), first.Uid))
	return nil
}

func (conf *dumpedConference) add(f *dumpedFile, raw *callscopev1.Raw) error {
	value, err := raw.MarshalVT()
	if err != nil {
		return fmt.Errorf("encoding a message: %w", err)
	}
	if len(value) > stream.MaxRecordBytes-len(conf.id)-64 {
		f.oversized++
		return nil
	}
	f.records++
	conf.messages = append(conf.messages, dumpedMessage{file: f, atMs: raw.Observed.ReceivedAtMs, value: value})
	return nil
}

// remote finds who is at the other end of a PeerConnection: the one file that has an ICE user name fragment of its
// remote description as a local one.
func (conf *dumpedConference) remote(f *dumpedFile, c dumps.Connection) string {
	if c.RemoteID != "" {
		return c.RemoteID
	}
	remote := ""
	for _, other := range conf.files {
		if other == f {
			continue
		}
		for _, theirs := range other.dump.Connections {
			if slices.ContainsFunc(theirs.LocalUfrags, func(u string) bool { return slices.Contains(c.RemoteUfrags, u) }) {
				if remote != "" && remote != other.userID {
					return ""
				}
				remote = other.userID
			}
		}
	}
	return remote
}

// owners tells, after a fabric's addNewFabric, which of its inbound streams another file of the conference sends.
func (conf *dumpedConference) owners(f *dumpedFile, added dumps.Message) func(func(dumps.Message) bool) {
	return func(yield func(dumps.Message) bool) {
		senders := map[string]string{}
		for _, other := range conf.files {
			if other == f {
				continue
			}
			for _, c := range other.dump.Connections {
				for _, ssrc := range c.Outbound {
					if user, taken := senders[ssrc]; taken && user != other.userID {
						senders[ssrc] = "" // two send it: nobody's
						continue
					}
					senders[ssrc] = other.userID
				}
			}
		}
		for _, c := range f.dump.Connections {
			if c.ID != added.ConnectionID {
				continue
			}
			var owned []dumps.Owned
			for _, ssrc := range c.Inbound {
				if user := senders[ssrc]; user != "" {
					owned = append(owned, dumps.Owned{SSRC: ssrc, UserID: user})
				}
			}
			if len(owned) > 0 {
				yield(dumps.Owners(added.AtMs, c.ID, owned))
			}
		}
	}
}

func timeText(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02 15:04:05.000 UTC") }

// write appends the records of every conference that is not there yet, and tells what became of all.
func (d *dumpImport) write(ctx context.Context, client *stream.Client, st *store.Store, out io.Writer, conferences []*dumpedConference, left leftOut) error {
	partitions, err := client.PartitionCount(ctx, stream.TopicRaw)
	if err != nil {
		return left.and(unreachable(fmt.Errorf("asking for the partitions of %s, which `callscope migrate` and `callscope all` make: %w", stream.TopicRaw, err)))
	}
	done := 0
	var write []*dumpedConference
	for _, conf := range conferences {
		found, err := d.find(ctx, st, conf)
		if err != nil {
			return left.and(err)
		}
		switch found {
		case conferenceIsThere:
			fmt.Fprintf(out, "conference %q: an import of the same files is there, nothing was written\n", conf.id)
			done++
		case conferenceIsOpen:
			left = append(left, fmt.Errorf("conference %q is open: what is imported would join it; give another --conference, or wait until it has ended", conf.id))
		case conferenceWasCutOff:
			left = append(left, fmt.Errorf("an import of conference %q was cut off and has ended there: wait 6 minutes after it, then run the command with --again, and its samples and events are completed, or give another --conference", conf.id))
		default:
			write = append(write, conf)
		}
	}
	for i, conf := range write {
		// A conference is written whole also when a signal comes: a second one ends the process at once.
		if err := ctx.Err(); err != nil {
			fmt.Fprintf(out, "interrupted: %d of %d conferences were written; run the command again for the others\n", i, len(write))
			return err
		}
		records := make([]stream.Record, 0, len(conf.messages))
		key := append(append([]byte(d.appID), 0), conf.id...)
		for _, m := range conf.messages {
			records = append(records, stream.Record{Key: key, Value: m.value})
		}
		err := appendAll(context.WithoutCancel(ctx), client, stream.PartitionOf(key, partitions), records, conf.lastRecords())
		if err != nil {
			left = append(left, fmt.Errorf("%d of %d conferences were written, and of %q a part may be; run the command again within 30 s and it goes on, later see --again: %w", i, len(write), conf.id, err))
			return &codedError{exitPartly, errors.Join(left...)}
		}
		d.print(out, "written", []*dumpedConference{conf})
	}
	return left.outcome(done + len(write))
}

const (
	appendBytes   = 900 << 10
	appendRecords = 2_000
	appendTimeout = 60 * time.Second
)

// lastRecords is how many records have the time of the last one, by which find knows a conference that is there as a
// whole.
func (conf *dumpedConference) lastRecords() int {
	last := len(conf.messages) - 1
	first, _ := slices.BinarySearchFunc(conf.messages, conf.messages[last].atMs, func(m dumpedMessage, at int64) int { return cmp.Compare(m.atMs, at) })
	return last + 1 - first
}

// appendAll appends records in order, the last ones in one request. What a failed request may have written is written
// again: the enricher drops records by their uid.
func appendAll(ctx context.Context, client *stream.Client, partition int32, records []stream.Record, last int) error {
	for len(records) > 0 {
		n, size := 0, 0
		for n < len(records) && n < appendRecords && (n == 0 || size+len(records[n].Value) < appendBytes) {
			size += len(records[n].Value)
			n++
		}
		if rest := len(records) - last; n < len(records) && n > rest && rest > 0 {
			n = rest
		}
		if err := appendOne(ctx, client, partition, records[:n]); err != nil {
			return err
		}
		records = records[n:]
	}
	return nil
}

func appendOne(ctx context.Context, client *stream.Client, partition int32, records []stream.Record) error {
	ctx, cancel := context.WithTimeout(ctx, appendTimeout)
	defer cancel()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		_, err := client.Append(ctx, stream.TopicRaw, partition, records)
		if err == nil || !stream.Transient(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// found is what the store has of a conference that is to be imported.
type found int

const (
	conferenceIsToWrite found = iota // nothing, a part that was written just now, or all where --again is given
	conferenceIsThere
	conferenceIsOpen    // one of the same id, whoever is in it: what is imported would join it
	conferenceWasCutOff // a part, which has ended
)

// find looks for the conference.
func (d *dumpImport) find(ctx context.Context, st *store.Store, conf *dumpedConference) (found, error) {
	result, err := st.Query(ctx, fmt.Sprintf(
		"SELECT toString(conference_uid), state, toUnixTimestamp64Milli(last_message_at) FROM conferences WHERE app_id = %s AND conference_id = %s",
		sqlText(d.appID), sqlText(conf.id)))
	if err != nil {
		return 0, fmt.Errorf("asking for conferences of the same id: %w", serverError(err))
	}
	defer result.Close()
	lastMs := conf.messages[len(conf.messages)-1].atMs
	there, cutOff := false, false
	for row, err := range result.Rows() {
		if err != nil {
			return 0, fmt.Errorf("asking for conferences of the same id: %w", serverError(err))
		}
		uid, state := fmt.Sprint(row[0]), fmt.Sprint(row[1])
		last, _ := row[2].(int64)
		switch {
		case uid == conf.uid.String() && last >= lastMs:
			there = true
		case uid == conf.uid.String() && state == "partial":
			return conferenceIsToWrite, nil // another run was cut off just now: what it wrote is dropped, the rest goes on
		case uid == conf.uid.String():
			cutOff = true
		case state == "partial":
			return conferenceIsOpen, nil
		}
	}
	switch {
	case d.again:
		return conferenceIsToWrite, nil
	case there:
		return conferenceIsThere, nil
	case cutOff:
		return conferenceWasCutOff, nil
	}
	return conferenceIsToWrite, nil
}

func sqlText(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

func (d *dumpImport) print(out io.Writer, done string, conferences []*dumpedConference) {
	for _, conf := range conferences {
		first, last := conf.messages[0].atMs, conf.messages[len(conf.messages)-1].atMs
		fmt.Fprintf(out, "conference %q, %s to %s: %d records %s\n", conf.id, timeText(first), timeText(last), len(conf.messages), done)
		for _, f := range conf.files {
			fmt.Fprintf(out, "  %s: %s, user %q, %d fabrics, %d records", f.name, f.dump.ClientVersion(), f.userID, len(f.dump.Connections), f.records)
			if f.dump.Unused > 0 {
				fmt.Fprintf(out, "; %d entries without a time or with a malformed value left out", f.dump.Unused)
			}
			if f.oversized > 0 {
				fmt.Fprintf(out, "; %d messages too large for Kafka left out", f.oversized)
			}
			fmt.Fprintln(out)
		}
		fmt.Fprintf(out, "  callscope sql \"SELECT user_id, connection_id, outcome, setup_delay_ms FROM fabrics WHERE conference_uid = '%s'\"\n", conf.uid)
	}
}
