package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// Retention says how many days rows are kept, counted from the begin of their conference for summaries and from the
// receipt of their message for everything else. 0 keeps them for good. Migrate puts it into force.
type Retention struct {
	SummariesDays int `koanf:"summaries_days"` // conferences, participants, fabrics, streams
	NamesDays     int `koanf:"names_days"`     // real names; 0: as long as the summaries
	SamplesDays   int `koanf:"samples_days"`   // samples, fabric_samples
	EventsDays    int `koanf:"events_days"`
	FailuresDays  int `koanf:"failures_days"` // failures and application logs, with their SDPs
	FeedbackDays  int `koanf:"feedback_days"`
	PrecallDays   int `koanf:"precall_days"`

	Apps []AppRetention `koanf:"apps"` // apps that differ
}

// AppRetention is the retention of one app. 0 means what holds for every app, -1 that the app's rows are kept for good.
// Real names never stay longer than the summaries because of what holds for every app.
type AppRetention struct {
	ID            string `koanf:"id"`
	SummariesDays int    `koanf:"summaries_days"`
	NamesDays     int    `koanf:"names_days"`
	SamplesDays   int    `koanf:"samples_days"`
	EventsDays    int    `koanf:"events_days"`
	FailuresDays  int    `koanf:"failures_days"`
	FeedbackDays  int    `koanf:"feedback_days"`
	PrecallDays   int    `koanf:"precall_days"`
}

const maxRetentionDays = 36_500

// retentionOf names the setting that a table goes by, and the column that its rows' age is counted from. The column is
// constant for a row, whatever its version, so that all versions go together.
var retentionOf = map[string]struct{ setting, column string }{
	"conferences_rows":          {"summaries_days", "started_at"},
	"participants_rows":         {"summaries_days", "conference_started_at"},
	"fabrics_rows":              {"summaries_days", "conference_started_at"},
	"streams_rows":              {"summaries_days", "conference_started_at"},
	"participant_names_rows":    {"names_days", "conference_started_at"},
	"samples_rows":              {"samples_days", "received_at"},
	"fabric_samples_rows":       {"samples_days", "received_at"},
	"events_rows":               {"events_days", "received_at"},
	"failures_rows":             {"failures_days", "received_at"},
	"feedback_rows":             {"feedback_days", "received_at"},
	"precall_tests_rows":        {"precall_days", "received_at"},
	"precall_associations_rows": {"precall_days", "received_at"},
}

func (r Retention) days() map[string]int {
	names := r.NamesDays
	if names == 0 {
		names = r.SummariesDays
	}
	return map[string]int{"summaries_days": r.SummariesDays, "names_days": names, "samples_days": r.SamplesDays, "events_days": r.EventsDays,
		"failures_days": r.FailuresDays, "feedback_days": r.FeedbackDays, "precall_days": r.PrecallDays}
}

func (r AppRetention) days(all Retention) map[string]int {
	names := r.NamesDays
	if names == 0 && (all.NamesDays == 0 || r.SummariesDays > 0 && r.SummariesDays < all.NamesDays) {
		names = r.SummariesDays
	}
	return map[string]int{"summaries_days": r.SummariesDays, "names_days": names, "samples_days": r.SamplesDays, "events_days": r.EventsDays,
		"failures_days": r.FailuresDays, "feedback_days": r.FeedbackDays, "precall_days": r.PrecallDays}
}

// App ids go into statements as text, so they are limited to what they are: decimal numbers.
var appIDRe = regexp.MustCompile(`^[0-9]{1,20}$`)

func (r Retention) validate(bad func(key, format string, args ...any)) {
	for _, setting := range slices.Sorted(maps.Keys(r.days())) {
		if days := r.days()[setting]; days < 0 || days > maxRetentionDays {
			bad("retention."+setting, "%d is not between 0 (kept for good) and %d", days, maxRetentionDays)
		}
	}
	seen := make(map[string]bool)
	for _, app := range r.Apps {
		if !appIDRe.MatchString(app.ID) || seen[app.ID] {
			bad("retention.apps", "%q is not the AppID, a decimal number, of an app that is not in the list yet", app.ID)
		}
		seen[app.ID] = true
		for _, setting := range slices.Sorted(maps.Keys(app.days(r))) {
			if days := app.days(r)[setting]; days < -1 || days > maxRetentionDays {
				bad("retention.apps", "app %s: %s: %d is not between -1 (kept for good) and %d", app.ID, setting, days, maxRetentionDays)
			}
		}
	}
}

// ttl is the TTL expression of a table, as ClickHouse writes it back; empty when nothing ever goes.
func (r Retention) ttl(table string) string {
	of := retentionOf[table]
	after := func(days int) string { return fmt.Sprintf("toDateTime(%s) + toIntervalDay(%d)", of.column, days) }
	var own, expressions []string
	apps := slices.Clone(r.Apps)
	slices.SortFunc(apps, func(a, b AppRetention) int { return strings.Compare(a.ID, b.ID) })
	for _, app := range apps {
		days := app.days(r)[of.setting]
		if days == 0 {
			continue
		}
		own = append(own, "'"+app.ID+"'")
		if days > 0 {
			expressions = append(expressions, after(days)+" WHERE app_id = '"+app.ID+"'")
		}
	}
	switch days := r.days()[of.setting]; {
	case days == 0:
	case len(own) == 0:
		expressions = append(expressions, after(days))
	case len(own) == 1:
		expressions = append(expressions, after(days)+" WHERE app_id != "+own[0])
	default:
		expressions = append(expressions, after(days)+" WHERE app_id NOT IN ("+strings.Join(own, ", ")+")")
	}
	return strings.Join(expressions, ", ")
}

var ttlRe = regexp.MustCompile(` TTL (.*?)(?: SETTINGS |$)`)

// applyRetention changes the TTL of the tables where it is another than it should be. Rows that are too old go with the
// next merges; it waits for none of them.
func (s *Store) applyRetention(ctx context.Context, conn driver.Conn) error {
	rows, err := conn.Query(ctx, fmt.Sprintf("SELECT name, engine_full FROM system.tables WHERE database = '%s'", s.cfg.Database))
	if err != nil {
		return fmt.Errorf("reading the tables' retention: %w", err)
	}
	defer rows.Close()
	have := make(map[string]string)
	for rows.Next() {
		var name, engine string
		if err := rows.Scan(&name, &engine); err != nil {
			return fmt.Errorf("reading the tables' retention: %w", err)
		}
		have[name] = ""
		if m := ttlRe.FindStringSubmatch(engine); m != nil {
			have[name] = m[1]
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("reading the tables' retention: %w", err)
	}
	var errs []error
	for _, table := range slices.Sorted(maps.Keys(retentionOf)) {
		want := s.cfg.Retention.ttl(table)
		if have[table] == want {
			continue
		}
		change := "MODIFY TTL " + want
		if want == "" {
			change = "REMOVE TTL"
		}
		if err := conn.Exec(ctx, s.cfg.render("ALTER TABLE {database}."+table+" {on_cluster} "+change)); err != nil {
			errs = append(errs, fmt.Errorf("setting the retention of %s: %w", table, err))
			continue
		}
		s.log.Info("changed how long rows are kept", "table", table, "ttl", want)
	}
	return errors.Join(errs...)
}
