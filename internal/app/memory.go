package app

// ballastBytes are never touched, so they take address space and no memory. Go collects garbage whenever the heap has
// doubled. A gateway keeps a few megabytes alive and makes as much garbage in a few hundred messages, so without ballast
// it collects all the time, a seventh of its CPU; a large heap, as an enricher may have, hardly notices it. Unlike a
// higher GOGC it costs a bounded amount: so much more garbage before it is collected.
const ballastBytes = 64 << 20

// ballast must be kept reachable while services run. It is nil where the operator has set how garbage is collected:
// then GOGC and GOMEMLIMIT mean what Go's documentation says.
func ballast(environ []string) []byte {
	if environValue(environ, "GOGC") != "" || environValue(environ, "GOMEMLIMIT") != "" {
		return nil
	}
	return make([]byte, ballastBytes)
}
