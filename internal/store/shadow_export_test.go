package store

// ReplayKeys are the columns that name a row in a replay, by table.
func ReplayKeys() map[string][]string { return keys }
