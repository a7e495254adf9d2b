package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/callscope/callscope/internal/apps"
	"github.com/callscope/callscope/internal/erasures"
	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

const (
	// eraseSettle is how long `callscope erase` waits between writing its record and rewriting rows: sinks then have
	// nearly always seen it, so that few rows are left behind whose newer version has taken the user out.
	eraseSettle = 3 * time.Second
	// eraseLookback is how old the last message of a call may be that something may still come of.
	eraseLookback = 24 * time.Hour
	// eraseRounds bounds how often rows that came in meanwhile are rewritten.
	eraseRounds = 5
)

type eraseOptions struct {
	app, user, userFile, before string
	dryRun, json                bool
}

func (c *cli) eraseCommand() *cobra.Command {
	var o eraseOptions
	cmd := &cobra.Command{
		Use:   "erase --app APP --user USER",
		Short: "Take a user out of everything that is stored, and of what still comes of former calls",
		Long: `Take a user out of everything that is stored, and of what still comes of former calls.

A pseudonym stands in the user's place in every column, the same in all calls, so that counts
stay right; names, SDPs, logs and comments are dropped. The erasure is written to the topic
` + stream.TopicErasures + `, without the user's id: sinks, replay, export and import
honour it from then on, and calls that begin later are shown. Then stored rows are rewritten.

The receipt says what was rewritten, and what remains in Kafka and until when. Archives that
were exported before are not changed. Repeating the command finishes what was interrupted.

It needs the registry.erasure_key or registry.master_key of the sinks, or the key that ` + "`callscope all`" + ` keeps below --data.`,
		Example: `  callscope erase --app 123456789 --user alice --dry-run
  callscope erase --app 123456789 --user-file id.txt --json > receipt.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.erase(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.app, "app", "", "the AppID")
	f.StringVar(&o.user, "user", "", "the user's id, exactly as clients send it")
	f.StringVar(&o.userFile, "user-file", "", "read the user's id from a file, - for standard input; a line break at its end is no part of it")
	f.StringVar(&o.before, "before", "", "erase what was received before this time instead of now, such as 2026-11-01T10:00:00Z")
	f.BoolVar(&o.dryRun, "dry-run", false, "count the rows and change nothing")
	f.BoolVar(&o.json, "json", false, "print the receipt as JSON")
	c.dataFlag(cmd)
	return cmd
}

// receipt is what an erasure did. It does not name the user.
type receipt struct {
	App         string              `json:"app_id"`
	Pseudonym   string              `json:"pseudonym"`
	DryRun      bool                `json:"dry_run"`
	ErasedAt    time.Time           `json:"erased_at"` // what was received before it is erased
	WrittenAt   time.Time           `json:"written_at"`
	Conferences int                 `json:"conferences_under_way"` // whose late messages are erased too
	Tables      []store.ErasedTable `json:"tables"`
	Rows        uint64              `json:"rows"`
	Complete    bool                `json:"complete"`
	Replays     int                 `json:"replay_tables_dropped"`
	Remains     []remainder         `json:"remains"`
}

// remainder is a place where the user's data still is.
type remainder struct {
	Where string     `json:"where"`
	Until *time.Time `json:"until"` // null: nothing ends it by itself
	Note  string     `json:"note"`
}

func (o *eraseOptions) userID(stdin io.Reader) (string, error) {
	if (o.user == "") == (o.userFile == "") {
		return "", usage(errors.New("give the user's id with either --user or --user-file"))
	}
	if o.user != "" {
		return o.user, nil
	}
	read := func() ([]byte, error) { return os.ReadFile(o.userFile) }
	if o.userFile == "-" {
		read = func() ([]byte, error) { return io.ReadAll(io.LimitReader(stdin, 64<<10)) }
	}
	text, err := read()
	if err != nil {
		return "", usage(fmt.Errorf("--user-file: %w", err))
	}
	id := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	if id == "" {
		return "", usage(errors.New("--user-file: it holds no id"))
	}
	return id, nil
}

func (c *cli) erase(ctx context.Context, o eraseOptions) error {
	if err := apps.CheckID(o.app); err != nil {
		return usage(fmt.Errorf("--app: %w", err))
	}
	userID, err := o.userID(c.stdin)
	if err != nil {
		return err
	}
	now := time.Now()
	erasedAt := now
	if o.before != "" {
		if erasedAt, err = parseTime("--before", o.before); err != nil {
			return err
		}
		if erasedAt.After(now) {
			return usage(fmt.Errorf("--before: %s is still to come", o.before))
		}
	}
	s, err := c.load()
	if err != nil {
		return err
	}
	key, err := s.erasureKey(false)
	if err != nil {
		return err
	}
	if key == nil {
		return s.loaded.Invalid(errors.New("registry.master_key: neither it nor registry.erasure_key is set, and without them sinks could not recognise the user: give what the sinks have, or --data of the running `callscope all`"))
	}
	return c.withServers(ctx, true, true, func(client *stream.Client, st *store.Store, log *slog.Logger) error {
		if err := st.CheckSchema(ctx); err != nil {
			return err
		}
		e := erasing{cli: c, options: o, key: key, client: client, store: st, log: log, userID: userID}
		if err := e.knowApp(ctx, s); err != nil {
			return err
		}
		err := e.run(ctx, erasedAt)
		if err != nil && e.written && ctx.Err() == nil {
			err = &codedError{exitPartly, fmt.Errorf("the erasure is in force for everything that comes, and some stored rows are not rewritten; run the command again to finish: %w", err)}
		}
		return err
	})
}

// erasing is one run of the command.
type erasing struct {
	*cli
	options eraseOptions
	userID  string
	key     *erasures.Key
	client  *stream.Client
	store   *store.Store
	log     *slog.Logger

	written bool // the record is in the topic
}

// knowApp returns an error for an app that neither the settings, the registry nor the store knows: most likely a typing
// error, after which the erasure would protect nobody.
func (e *erasing) knowApp(ctx context.Context, s *settings) error {
	for _, a := range s.Apps {
		if a.ID == e.options.app {
			return nil
		}
	}
	known, err := e.store.HasApp(ctx, e.options.app)
	if err != nil || known {
		return err
	}
	editor, err := apps.Open(ctx, e.client, nil)
	if err != nil {
		return err
	}
	for _, a := range editor.Apps() {
		if a.ID == e.options.app {
			return nil
		}
	}
	return fmt.Errorf("unknown app %s: neither the settings nor the registry name it, and nothing of it is stored", e.options.app)
}

func (e *erasing) run(ctx context.Context, erasedAt time.Time) error {
	set, err := erasures.NewSet(e.client, e.key, e.log, nil)
	if err != nil {
		return err
	}
	view, err := set.Current(ctx)
	if err != nil {
		return err
	}
	record := e.key.Erasure(e.options.app, e.userID, erasedAt.UnixMilli(), view.Of(e.key, e.options.app, e.userID))
	if _, err := e.addConferences(ctx, record); err != nil {
		return err
	}
	r := &receipt{App: e.options.app, Pseudonym: record.Pseudonym, DryRun: e.options.dryRun}
	if !e.options.dryRun {
		if err := e.put(ctx, set, record); err != nil {
			return err
		}
		if r.Replays, err = e.store.DropShadows(ctx); err != nil {
			return err
		}
	}
	r.ErasedAt, r.WrittenAt, r.Conferences = time.UnixMilli(record.ErasedAtMs).UTC(), time.UnixMilli(record.WrittenAtMs).UTC(), len(record.ConferenceUids)
	if r.Remains, err = e.remains(ctx); err != nil {
		return err
	}
	err = e.rewrite(ctx, record, r)
	if r.Tables == nil && err != nil {
		return err
	}
	return errors.Join(err, r.print(e.stdout, e.options.json))
}

// put writes the record, lets the sinks see it, and looks again for calls of the user that had just begun: their rows
// were on the way.
func (e *erasing) put(ctx context.Context, set *erasures.Set, record *callscopev1.Erasure) error {
	for {
		if err := set.Put(ctx, record); err != nil {
			return err
		}
		e.written = true
		select {
		case <-time.After(eraseSettle):
		case <-ctx.Done():
			return ctx.Err()
		}
		if more, err := e.addConferences(ctx, record); err != nil || !more {
			return err
		}
	}
}

// addConferences takes up the user's calls that are under way, or that something may still come of. A call that begins
// after the erasure is shown.
func (e *erasing) addConferences(ctx context.Context, record *callscopev1.Erasure) (more bool, err error) {
	heard := record.ErasedAtMs - eraseLookback.Milliseconds()
	list, err := e.store.ConferencesOf(ctx, e.options.app, append(erasures.Spellings(e.userID), record.Pseudonym), store.Time(heard), store.Time(record.ErasedAtMs))
	for _, c := range list {
		more = e.key.AddConference(record, c.ConferenceUID[:], c.ConferenceID) || more
	}
	return more, err
}

// rewrite changes the stored rows until there are none left.
func (e *erasing) rewrite(ctx context.Context, record *callscopev1.Erasure, r *receipt) error {
	erasure := store.Erasure{
		App: e.options.app, Pseudonym: record.Pseudonym, Before: store.Time(record.ErasedAtMs),
		Device:     func(device string) string { return e.key.DevicePseudonym(e.options.app, e.userID, device) },
		PeerFields: erasures.PeerFields(), KeptEvent: erasures.KeptEvent,
	}
	for _, text := range erasures.Spellings(e.userID) {
		erasure.Spellings = append(erasure.Spellings, store.Spelling{Text: text, Patterns: erasures.Patterns(text)})
	}
	for _, uid := range record.ConferenceUids {
		erasure.Conferences = append(erasure.Conferences, [16]byte(uid))
	}
	for range eraseRounds {
		tables, err := e.store.Erase(ctx, erasure, e.options.dryRun)
		found := r.add(tables)
		if err != nil || e.options.dryRun {
			return err
		}
		if found == 0 {
			r.Complete = true
			return nil
		}
	}
	return fmt.Errorf("rows that show the user were still coming in after %d rounds", eraseRounds)
}

func (r *receipt) add(tables []store.ErasedTable) (found uint64) {
	for _, t := range tables {
		found += t.Rows
		known := false
		for i := range r.Tables {
			if r.Tables[i].Table == t.Table {
				r.Tables[i].Rows, known = r.Tables[i].Rows+t.Rows, true
			}
		}
		if !known {
			r.Tables = append(r.Tables, t)
		}
	}
	r.Rows += found
	return found
}

// remains says what the command does not reach.
func (e *erasing) remains(ctx context.Context) ([]remainder, error) {
	var list []remainder
	for _, topic := range []string{stream.TopicRaw, stream.TopicEnriched, stream.TopicSummaries, stream.TopicRejected} {
		kept, err := e.client.Kept(ctx, topic)
		if err != nil {
			return nil, err
		}
		r := remainder{Where: "Kafka topic " + topic, Note: "by its retention"}
		if kept > 0 {
			until := time.Now().Add(kept).UTC().Truncate(time.Second)
			r.Until = &until
		} else {
			r.Note = "the topic's retention is unbounded: give it one"
		}
		list = append(list, r)
	}
	for _, topic := range []string{stream.TopicStateEnricher, stream.TopicStateSummarizer} {
		list = append(list, remainder{Where: "Kafka topic " + topic, Note: "snapshots of calls that are under way, until those calls are over and the topic is compacted"})
	}
	return append(list, remainder{Where: "archives that were exported before", Note: "not changed: delete them, or import and export them again"},
		remainder{Where: "backups of ClickHouse and Kafka", Note: "not changed"}), nil
}

func (r *receipt) print(w io.Writer, asJSON bool) error {
	if asJSON {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(r)
	}
	verb := "rewritten"
	if r.DryRun {
		verb = "to rewrite"
		fmt.Fprintln(w, "dry run: nothing was changed")
	}
	fmt.Fprintf(w, "app %s: the user is shown as %s in everything from before %s\n", r.App, r.Pseudonym, r.ErasedAt.Format(time.RFC3339))
	if r.Conferences > 0 {
		fmt.Fprintf(w, "%d calls of the day before are covered as a whole, whatever still comes of them\n", r.Conferences)
	}
	t := table{header: []string{"table", "rows " + verb}, right: []bool{false, true}}
	for _, row := range r.Tables {
		t.add(strings.TrimSuffix(row.Table, "_rows"), fmt.Sprint(row.Rows))
	}
	if err := t.write(w); err != nil {
		return err
	}
	if r.Replays > 0 {
		fmt.Fprintf(w, "%d tables of unfinished replays were dropped: begin those replays anew\n", r.Replays)
	}
	fmt.Fprintln(w, "what remains:")
	for _, place := range r.Remains {
		until := ""
		if place.Until != nil {
			until = " until " + place.Until.Format(time.RFC3339)
		}
		fmt.Fprintf(w, "  %s%s: %s\n", place.Where, until, place.Note)
	}
	if !r.Complete && !r.DryRun {
		fmt.Fprintln(w, "NOT COMPLETE: run the command again")
	}
	return nil
}

// erasureKey is made of registry.erasure_key or else of the master key, nil without both. In `callscope all`, which makes
// a master key of its own, make is true.
func (s *settings) erasureKey(make bool) (*erasures.Key, error) {
	if s.Registry.ErasureKey.IsSet() {
		key, err := erasures.NewKey(s.Registry.ErasureKey.Reveal())
		if err != nil {
			return nil, s.loaded.Invalid(fmt.Errorf("registry.erasure_key: %w", err))
		}
		return key, nil
	}
	text := s.Registry.MasterKey
	if !text.IsSet() {
		if _, err := os.Stat(filepath.Join(s.secretsDir(), masterKeyFile)); !make && errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		var err error
		if text, err = localSecret(s.secretsDir(), masterKeyFile); err != nil {
			return nil, err
		}
	}
	key, err := erasures.NewKey(text.Reveal())
	if err != nil {
		return nil, s.loaded.Invalid(fmt.Errorf("registry.master_key: %w", err))
	}
	return key, nil
}

// erasureSet is the erasures that a service honours.
func (s *settings) erasureSet(client *stream.Client, local bool, log *slog.Logger, reg prometheus.Registerer) (*erasures.Set, error) {
	key, err := s.erasureKey(local)
	if err != nil {
		return nil, err
	}
	return erasures.NewSet(client, key, log, reg)
}

// erasuresNow is what a command honours that writes rows or files.
func (c *cli) erasuresNow(ctx context.Context, client *stream.Client, log *slog.Logger) (*erasures.View, error) {
	s, err := c.load()
	if err != nil {
		return nil, err
	}
	set, err := s.erasureSet(client, false, log, nil)
	if err != nil {
		return nil, err
	}
	return set.Current(ctx)
}

// errErasedMeanwhile: rows were written that were made before an erasure.
var errErasedMeanwhile = errors.New("somebody was erased while the command ran: run that `callscope erase` again, and then this command")

// sameErasures returns errErasedMeanwhile where there are others now than in a view.
func (c *cli) sameErasures(ctx context.Context, client *stream.Client, view *erasures.View, log *slog.Logger) error {
	now, err := c.erasuresNow(ctx, client, log)
	if err == nil && now.Position() != view.Position() {
		err = errErasedMeanwhile
	}
	return err
}
