package store

// SchemaStatements is the whole schema of a configuration, for tests outside the package.
func SchemaStatements(cfg Config) []string {
	cfg = cfg.withDefaults()
	var all []string
	for _, m := range migrations {
		for _, statement := range m.statements {
			all = append(all, cfg.render(statement))
		}
	}
	return append(all, cfg.roleStatements()...)
}
