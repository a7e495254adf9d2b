package app

import "testing"

func TestBallast(t *testing.T) {
	for _, tc := range []struct {
		name    string
		environ []string
		want    int
	}{
		{"nothing set", []string{"GOMAXPROCS=1"}, 64 << 20},
		{"GOGC", []string{"GOGC=100"}, 0},
		{"GOMEMLIMIT", []string{"GOMEMLIMIT=512MiB"}, 0},
	} {
		if got := len(ballast(tc.environ)); got != tc.want {
			t.Errorf("%s: %d bytes, want %d", tc.name, got, tc.want)
		}
	}
}
