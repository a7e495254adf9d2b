package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/services/enricher"
	"github.com/callscope/callscope/services/summarizer"
)

var (
	// ErrRunning: another process replays conferences of the range, or is on the same run.
	ErrRunning = errors.New("another replay is running")
	// ErrInterrupted: another run was interrupted, may have written a part of its rows, and overlaps with this one.
	ErrInterrupted = errors.New("an interrupted replay is in the way")
	// ErrNothingToResume: no interrupted run with these parameters was found.
	ErrNothingToResume = errors.New("there is nothing to resume")
	// ErrDiffers: an interrupted run would get rows of two kinds if it were resumed.
	ErrDiffers = errors.New("the interrupted replay cannot be resumed")
	// ErrTakenOver: another process resumed the run while this one gave no sign of life. It writes the rest.
	ErrTakenOver = errors.New("the replay was taken over by another process that resumed it")
	// ErrTakenAway: the tables of the run were dropped under it.
	ErrTakenAway = errors.New("the tables of the replay were taken away, as `callscope erase` and `callscope replay drop` do: start it again without --resume")
	// ErrUnknownRun: there is no run with that name.
	ErrUnknownRun = errors.New("there is no such replay")
)

// A process at work on a run says so every aliveEvery. It counts as dead when it said nothing for so long as DeadAfter.
const (
	aliveEvery = 10 * time.Second
	DeadAfter  = time.Minute
)

// plan is what a run is about, and what its rows depend on besides the log.
type plan struct {
	From   store.Time `json:"from_ms"`
	To     store.Time `json:"to_ms"`
	App    string     `json:"app"`
	DryRun bool       `json:"dry_run"`

	Source        string `json:"source"`
	Partitions    int    `json:"partitions"`
	FromBeginning bool   `json:"from_beginning"`
	Enricher      uint32 `json:"enricher_logic"`
	Summarizer    uint32 `json:"summarizer_logic"`
	Schema        uint32 `json:"schema"`
}

func (r *run) plan() plan {
	return plan{
		From: r.window.From, To: r.window.To, App: r.window.App, DryRun: r.cfg.DryRun,
		Source: r.source.Name(), Partitions: r.of, FromBeginning: r.cfg.FromBeginning,
		Enricher:   enricher.StageConfig(enricher.Config{}, nil).LogicVersion,
		Summarizer: summarizer.StageConfig(summarizer.Config{}, nil).LogicVersion,
		Schema:     store.SchemaVersion,
	}
}

// same tells whether two plans are about the same, so that one is looked for when the other is to be resumed.
func (p plan) same(q plan) bool {
	return p.From == q.From && p.To == q.To && p.App == q.App && p.DryRun == q.DryRun
}

// collides tells whether two runs might write the same rows. Apps are not told apart: one after the other costs nothing but
// time.
func (p plan) collides(q plan) bool {
	return !p.DryRun && !q.DryRun && p.From < q.To && q.From < p.To
}

// differences are in what the rows depend on, in words: the plan of an interrupted run, and now.
func (p plan) differences(now plan) []string {
	var list []string
	for _, v := range []struct {
		what      string
		then, now any
	}{
		{"the enricher's logic version", p.Enricher, now.Enricher},
		{"the summarizer's logic version", p.Summarizer, now.Summarizer},
		{"the schema version", p.Schema, now.Schema},
		{"the source of raw records", p.Source, now.Source},
		{"the number of partitions", p.Partitions, now.Partitions},
		{"--from-beginning", p.FromBeginning, now.FromBeginning},
	} {
		if v.then != v.now {
			list = append(list, fmt.Sprintf("%s was %v and is %v", v.what, v.then, v.now))
		}
	}
	return list
}

// Kept is a run that has tables in the store: it runs, or something is left of it.
type Kept struct {
	ID      string
	State   string // one of the constants below
	From    time.Time
	To      time.Time
	App     string // "" for all
	DryRun  bool
	Began   time.Time
	Age     time.Duration // since it began
	Silent  time.Duration // since its last sign of life
	Writing bool          // some of its rows may be in the public tables

	Finished, Partitions int // partitions folded, and of how many

	plan   plan
	source string
	owners []store.ShadowOwner
	now    store.Time
}

// The states of a run. Of the last two nothing but ID and Began is known.
const (
	StateRunning     = "running"
	StateInterrupted = "interrupted"
	StateUnreadable  = "unreadable" // it has just begun, or another version of callscope began it
	StateRemains     = "remains"    // of one that was being taken away; the next replay takes away the rest
)

func kept(s store.ShadowState) Kept {
	k := Kept{ID: s.Run, State: StateInterrupted, Began: time.UnixMilli(int64(s.Made)).UTC(), owners: s.Owners, now: s.Now}
	switch {
	case s.Remains:
		k.State = StateRemains
		return k
	case !s.Recorded || json.Unmarshal([]byte(s.Detail), &k.plan) != nil:
		k.State = StateUnreadable
		return k
	}
	k.From, k.To = time.UnixMilli(int64(k.plan.From)).UTC(), time.UnixMilli(int64(k.plan.To)).UTC()
	k.App, k.DryRun, k.source = k.plan.App, k.plan.DryRun, k.plan.Source
	k.Began, k.Age = time.UnixMilli(int64(s.Began)).UTC(), between(s.Began, s.Now)
	k.Silent = between(s.Heard, s.Now)
	if k.aliveBut("") {
		k.State = StateRunning
	}
	k.Writing, k.Finished, k.Partitions = s.Generation > 0, len(s.Finished), k.plan.Partitions
	return k
}

func between(a, b store.Time) time.Duration { return time.Duration(b-a) * time.Millisecond }

// aliveBut tells whether a process other than owner is at work on the run.
func (k Kept) aliveBut(owner string) bool {
	for _, o := range k.owners {
		if o.Name != owner && between(o.Seen, k.now) < DeadAfter {
			return true
		}
	}
	return false
}

// String describes the run in words.
func (k Kept) String() string {
	apps := "all apps"
	if k.App != "" {
		apps = "app " + k.App
	}
	kind := ""
	if k.DryRun {
		kind = ", a dry run"
	}
	phase := fmt.Sprintf("%d of %d partitions finished", k.Finished, k.Partitions)
	if k.Writing {
		phase = "rows are being written"
	}
	return fmt.Sprintf("run %s%s of conferences from %s to %s of %s, begun at %s, last sign of life %s ago, %s",
		k.ID, kind, exact(k.From), exact(k.To), apps, stamp(k.Began), k.Silent.Round(time.Second), phase)
}

// ResumeCommand is the command line that goes on with the run.
func (k Kept) ResumeCommand() string {
	command := "callscope replay --from " + exact(k.From) + " --to " + exact(k.To)
	if k.App != "" {
		command += " --app " + shellWord(k.App)
	}
	if k.DryRun {
		command += " --dry-run"
	}
	if strings.HasPrefix(k.source, "files/") {
		command += " --from-files DIRECTORY"
	}
	if k.plan.FromBeginning {
		command += " --from-beginning"
	}
	return command + " --resume"
}

// DropCommand is the command line that takes the run away.
func (k Kept) DropCommand() string { return "callscope replay drop " + k.ID }

// exact gives a time as --from and --to take it, not rounded.
func exact(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// shellWord quotes a text for a shell where that is needed.
func shellWord(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// Runs lists what has tables in the store, oldest first.
func Runs(ctx context.Context, st *store.Store) ([]Kept, error) {
	states, err := st.Shadows(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]Kept, len(states))
	for i, s := range states {
		list[i] = kept(s)
	}
	return list, nil
}

// Remove takes a run away that is not running: what it computed is lost. The error is ErrUnknownRun or ErrRunning where it
// is not possible.
func Remove(ctx context.Context, st *store.Store, id string) (Kept, error) {
	all, err := Runs(ctx, st)
	if err != nil {
		return Kept{}, err
	}
	for _, k := range all {
		switch {
		case k.ID != id:
		case k.State == StateRunning:
			return k, running(k)
		default:
			return k, st.Shadow(id).Drop(ctx)
		}
	}
	return Kept{}, fmt.Errorf("%w: %q; `callscope replay list` names those that there are", ErrUnknownRun, id)
}

func running(k Kept) error {
	return fmt.Errorf("%w: %s: wait until it ends, or interrupt it where it runs; if it was killed, it counts as interrupted %s after its last sign of life", ErrRunning, k, DeadAfter)
}

// prepare makes the run known and its tables, or takes up those of an interrupted one. It returns the partitions that
// were finished. Nothing is kept of a run that is refused.
func (r *run) prepare(ctx context.Context) (map[int32]string, error) {
	r.owner = uuid.NewString()
	now := r.plan()
	all, err := Runs(ctx, r.store)
	if err != nil {
		return nil, err
	}
	if r.cfg.Resume {
		return r.takeUp(ctx, now, all)
	}
	if err := inTheWay(all, now, "", ""); err != nil {
		return nil, err
	}
	detail, err := json.Marshal(now)
	if err != nil {
		return nil, fmt.Errorf("noting what the replay is about: %w", err)
	}
	// A name that was never used: who takes tables away ends the run that they belong to, and none that came after it.
	id := strings.ReplaceAll(uuid.NewString(), "-", "")[:12]
	r.shadow = r.store.Shadow(id)
	if err := r.shadow.Begin(ctx, r.owner, string(detail)); err != nil {
		return nil, errors.Join(err, r.shadow.Drop(context.WithoutCancel(ctx)))
	}
	// Two that begin at the same time see each other now, if not before, and both are refused.
	if all, err = Runs(ctx, r.store); err == nil {
		err = inTheWay(all, now, id, r.owner)
	}
	if err != nil {
		return nil, errors.Join(err, r.shadow.Drop(context.WithoutCancel(ctx)))
	}
	for _, k := range all {
		switch {
		case k.ID == id || k.State == StateRunning:
		case k.State == StateRemains, k.State == StateInterrupted && k.plan.same(now):
			r.log.Info("tables of an earlier replay are taken away", "run", k.ID, "state", k.State)
			if err := r.store.Shadow(k.ID).Drop(ctx); err != nil {
				return nil, r.ended(ctx, err)
			}
		default:
			r.warnOf(k)
		}
	}
	if err := r.shadow.Create(ctx); err != nil {
		return nil, r.ended(ctx, err)
	}
	return nil, nil
}

func (r *run) warnOf(k Kept) {
	attributes := []any{"run", k.ID, "state", k.State, "began", stamp(k.Began)}
	if k.State == StateInterrupted {
		attributes = append(attributes, "from", exact(k.From), "to", exact(k.To), "app", k.App, "age", k.Age.Round(time.Second).String(), "resume", k.ResumeCommand())
	}
	r.log.Warn("an interrupted replay keeps its tables until it is resumed or taken away", append(attributes, "drop", k.DropCommand())...)
}

// inTheWay tells what keeps a run from writing: id and owner are its own, once it has them.
func inTheWay(all []Kept, now plan, id, owner string) error {
	for _, k := range all {
		switch {
		case k.State == StateRunning && k.plan.collides(now) && (k.ID != id || k.aliveBut(owner)):
			return running(k)
		case k.State == StateInterrupted && k.plan.collides(now) && k.ID != id && !k.plan.same(now):
			return fmt.Errorf("%w: %s: go on with it by `%s`, or take it away with `%s`", ErrInterrupted, k, k.ResumeCommand(), k.DropCommand())
		}
	}
	return nil
}

// takeUp makes an interrupted run this process's.
func (r *run) takeUp(ctx context.Context, now plan, all []Kept) (map[int32]string, error) {
	var found *Kept
	for i := range all {
		if k := &all[i]; (k.State == StateRunning || k.State == StateInterrupted) && k.plan.same(now) {
			found = k // the newest: there may be two dry runs
		}
		if k := &all[i]; k.State == StateUnreadable {
			r.warnOf(*k)
		}
	}
	switch {
	case found == nil:
		return nil, fmt.Errorf("%w: no replay from %s to %s was interrupted, or it was finished since", ErrNothingToResume, stamp(r.cfg.From), stamp(r.cfg.To))
	case found.State == StateRunning:
		return nil, running(*found)
	}
	if list := found.plan.differences(now); len(list) > 0 {
		return nil, fmt.Errorf("%w: %s; its rows would be of two kinds: resume it with what it began with, or begin anew without --resume (%s)", ErrDiffers, strings.Join(list, ", "), found)
	}
	r.shadow = r.store.Shadow(found.ID)
	if err := r.shadow.Alive(ctx, r.owner); err != nil {
		return nil, err
	}
	// Another process may have done the same at the same time; then both are refused.
	all, err := Runs(ctx, r.store)
	if err == nil {
		err = inTheWay(all, now, found.ID, r.owner)
	}
	if err == nil {
		err = r.shadow.Create(ctx) // it may have been killed before all were made
	}
	if err != nil {
		return nil, r.ended(ctx, err)
	}
	state, err := r.shadow.State(ctx)
	if err != nil {
		return nil, r.ended(ctx, err)
	}
	return state.Finished, nil
}

// stillOurs gives a sign of life, and tells whether the run is still this process's.
func (r *run) stillOurs(ctx context.Context) error {
	err := r.shadow.Alive(ctx, r.owner)
	if err == nil {
		var state store.ShadowState
		if state, err = r.shadow.State(ctx); err == nil && (len(state.Owners) == 0 || state.Owners[len(state.Owners)-1].Name != r.owner) {
			return ErrTakenOver
		}
	}
	if errors.Is(err, store.ErrShadowGone) {
		return ErrTakenAway
	}
	return err
}

// stayAlive gives signs of life until ctx ends. When the run is this process's no more, it calls lost. Nothing else needs
// to end it: where nobody heard of it for long, whoever drops its tables makes it fail, and whoever resumes it writes the
// same rows.
func (r *run) stayAlive(ctx context.Context, lost context.CancelCauseFunc) {
	ticker := time.NewTicker(aliveEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		short, cancel := context.WithTimeout(ctx, DeadAfter/2)
		err := r.stillOurs(short)
		cancel()
		switch {
		case errors.Is(err, ErrTakenOver), errors.Is(err, ErrTakenAway):
			lost(err)
			return
		case err != nil && ctx.Err() == nil:
			r.log.Warn("the replay could not give a sign of life", "run", r.shadow.Run(), "error", err)
		}
	}
}

// endTimeout is for a note that ought to be written although the run was interrupted, or the server fails.
const endTimeout = 5 * time.Second

// ended notes that this process has stopped, so that the run may be resumed at once, and returns why it has: err, or what
// was behind it.
func (r *run) ended(ctx context.Context, err error) error {
	for _, reason := range []error{context.Cause(ctx), err} {
		if errors.Is(reason, ErrTakenOver) || errors.Is(reason, ErrTakenAway) {
			return reason
		}
	}
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	switch ending := r.shadow.End(short, r.owner); {
	case errors.Is(ending, store.ErrShadowGone):
		return fmt.Errorf("%w: %w", ErrTakenAway, err)
	case ending != nil:
		r.log.Warn("the interruption of the replay could not be noted: it counts as running for a while", "run", r.shadow.Run(), "for", DeadAfter, "error", ending)
	}
	return err
}
