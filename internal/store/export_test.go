package store

// SchemaStatements is the whole schema of a configuration, with its retention and roles, for tests outside the package.
func SchemaStatements(cfg Config) []string {
	cfg = cfg.withDefaults()
	all := []string{cfg.render("CREATE DATABASE IF NOT EXISTS {database} {on_cluster}"), cfg.render(bookkeeping)}
	for _, m := range migrations {
		for _, statement := range m.statements {
			all = append(all, cfg.render(statement))
		}
	}
	for table := range retentionOf {
		if ttl := cfg.Retention.ttl(table); ttl != "" {
			all = append(all, cfg.render("ALTER TABLE {database}."+table+" {on_cluster} MODIFY TTL "+ttl))
		}
	}
	return append(all, cfg.roleStatements()...)
}

// TTL is the TTL expression of a table.
func (r Retention) TTL(table string) string { return r.ttl(table) }

// MutationSettings are the settings of an erasure's mutations.
func MutationSettings(cfg Config) map[string]any { return cfg.mutationSettings() }
