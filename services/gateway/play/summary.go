package play

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// WriteSummary writes what was answered for people: a count per recording, route and outcome, then everything that was
// not accepted, in full.
func (r Report) WriteSummary(w io.Writer) error {
	type row struct{ recording, route, outcome string }
	counts := make(map[row]int)
	var order []row
	clients := make(map[string]bool)
	accepted := 0
	for _, result := range r.Results {
		at := row{result.Recording, result.Route, result.outcome()}
		if counts[at]++; counts[at] == 1 {
			order = append(order, at)
		}
		if result.Client != "" {
			clients[result.Recording+"\x00"+result.Client] = true
		}
		if result.Outcome.OK() {
			accepted++
		}
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i, at := range order {
		if i == 0 || order[i-1].recording != at.recording {
			fmt.Fprintf(table, "%s\n", at.recording)
		}
		fmt.Fprintf(table, "  %d\t%s\t%s\n", counts[at], at.outcome, at.route)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, result := range r.Results {
		if !result.Outcome.OK() {
			if _, err := fmt.Fprintln(w, result); err != nil {
				return err
			}
		}
	}
	_, err := fmt.Fprintf(w, "played %d messages of %d clients in %s: %d accepted, %d not\n",
		len(r.Results), len(clients), r.Duration.Round(10*time.Millisecond), accepted, len(r.Results)-accepted)
	return err
}

func (r Result) outcome() string {
	if r.Status != 0 {
		return fmt.Sprintf("%s %d", r.Outcome, r.Status)
	}
	return string(r.Outcome)
}

// String is one line with everything that is known of the result.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s line %d", r.Recording, r.Seq)
	if r.Client != "" {
		fmt.Fprintf(&b, " of %s", r.Client)
	}
	fmt.Fprintf(&b, ": %s", r.Route)
	if r.Event != "" && !strings.HasSuffix(r.Route, r.Event) {
		fmt.Fprintf(&b, " (%s)", r.Event)
	}
	fmt.Fprintf(&b, ": %s", r.outcome())
	if r.Reason != "" {
		fmt.Fprintf(&b, ": %s", r.Reason)
	}
	if r.Answer != "" && !r.Outcome.OK() {
		fmt.Fprintf(&b, ": %s", r.Answer)
	}
	return b.String()
}

// Accepted lists the numbers of the recorded lines that were answered with success, by recording.
func (r Report) Accepted() map[string][]int {
	list := make(map[string][]int)
	for _, result := range r.Results {
		if result.Outcome == Accepted {
			list[result.Recording] = append(list[result.Recording], result.Seq)
		}
	}
	return list
}
