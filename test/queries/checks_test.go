package queries

import (
	"cmp"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/callscope/callscope/test/chaintest"
)

type record = chaintest.Record

// checks give the right answer to each question, in the order that the query promises.
var checks = map[string]func(w world) [][]any{
	"How many conferences were there each day, and how did they go?": func(w world) [][]any {
		// One recording has only failed connections; nothing drops. Outcomes beyond that are the summarizer's.
		is := func(outcomes ...string) int {
			return len(w.all("conferences", func(r record) bool { return slices.Contains(outcomes, r.Text("outcome")) }))
		}
		return [][]any{{w.day, len(recordings), is("success"), is("partialFailure", "totalFailure"), is("dropped")}}
	},
	"Participant-minutes per app and day": func(w world) [][]any {
		people, minutes, users := 0, 0.0, map[string]bool{}
		for _, e := range w.want {
			for _, c := range e.Conferences {
				people += len(c.Participants)
				for _, p := range c.Participants {
					users[p.User] = true
				}
			}
		}
		for _, p := range w.views["participants"] {
			minutes += p["presence_ms"].(float64) / 60000
		}
		return [][]any{{"123456789", w.day, len(recordings), people, len(users), near{minutes, 1}}}
	},
	"Which were the worst conferences yesterday?": func(w world) [][]any {
		rows := slices.Clone(w.views["conferences"])
		bad := func(r record) int {
			if slices.Contains([]string{"totalFailure", "partialFailure", "dropped"}, r.Text("outcome")) {
				return 0
			}
			return 1
		}
		slices.SortFunc(rows, func(a, b record) int {
			return cmp.Or(cmp.Compare(bad(a), bad(b)), nullsLast(a, b, "audio_mos", 1), cmp.Compare(a.Text("conference_id"), b.Text("conference_id")))
		})
		out := columns(rows[:10], "conference_id", "conference_uid", "outcome", "audio_mos", "video_score", "feedback_overall")
		// The recording in which nobody can reach anybody is the worst.
		out[0][0], out[0][3] = w.want["failed-setup"].Conferences[0].ConferenceID, nil
		return out
	},
	"Failures by reason this week": func(w world) [][]any {
		count, calls := map[string]int{}, map[string]int{}
		for _, e := range w.want {
			here := map[string]bool{}
			for _, f := range e.Failures {
				if f.IsLog {
					continue
				}
				count[f.Reason]++
				if !here[f.Reason] {
					here[f.Reason] = true
					calls[f.Reason]++
				}
			}
		}
		var out [][]any
		for reason, n := range count {
			out = append(out, []any{reason, n, calls[reason]})
		}
		return sorted(out, desc(1), asc(0))
	},
	"Which function fails in which browser?": func(w world) [][]any {
		type key struct {
			function string
			browser  any
		}
		count := map[key]int{}
		for _, e := range w.want {
			for _, f := range e.Failures {
				if !f.IsLog {
					count[key{f.Function, w.participant(e.Conferences[0].ConferenceID, f.User)["browser"]}]++
				}
			}
		}
		var out [][]any
		for k, n := range count {
			out = append(out, []any{k.function, k.browser, n})
		}
		return sorted(out, desc(2), asc(0), asc(1))
	},
	"Which users have the most failed connections?": func(w world) [][]any {
		all, failed := map[string]int{}, map[string]int{}
		for _, e := range w.want {
			for _, f := range e.Conferences[0].Fabrics {
				all[f.User]++
				if f.Outcome == "failed" {
					failed[f.User]++
				}
			}
		}
		var out [][]any
		for user, n := range failed {
			out = append(out, []any{user, all[user], n})
		}
		return sorted(out, desc(2), asc(0))
	},
	"How long does setting up a connection take, by browser?": func(w world) [][]any {
		delays := map[any][]float64{}
		for _, e := range w.want {
			for _, f := range e.Conferences[0].Fabrics {
				if f.Outcome == "setup" && f.DelaySource != nil && *f.DelaySource == "reported" {
					browser := w.participant(e.Conferences[0].ConferenceID, f.User)["browser"]
					delays[browser] = append(delays[browser], *f.SetupDelayMs)
				}
			}
		}
		var out [][]any
		for browser, values := range delays {
			out = append(out, []any{browser, len(values), near{quantile(values, 0.5), 2}, near{quantile(values, 0.95), 2}})
		}
		return sorted(out, desc(1), asc(0))
	},
	"Where does the time of a slow set-up go: gathering or connectivity?": func(w world) [][]any {
		var out [][]any
		for _, e := range w.want {
			for _, f := range e.Conferences[0].Fabrics {
				if f.Outcome == "setup" && f.SetupDelayMs != nil {
					out = append(out, []any{e.Conferences[0].ConferenceID, f.User, f.Remote, *f.SetupDelayMs, about(f.IceGatheringDelayMs), about(f.IceConnectivityDelayMs)})
				}
			}
		}
		out = sorted(out, desc(3))[:5]
		for _, row := range out {
			row[3] = near{row[3].(float64), 2}
		}
		return out
	},
	"How do connections end, by outcome?": func(w world) [][]any {
		count, all := map[string]int{}, 0
		for _, e := range w.want {
			for _, f := range e.Conferences[0].Fabrics {
				count[f.Outcome]++
				all++
			}
		}
		var out [][]any
		for outcome, n := range count {
			out = append(out, []any{outcome, n, near{float64(n) / float64(all), 4}})
		}
		return sorted(out, desc(1), asc(0))
	},
	"What share of connections is relayed, by network?": func(w world) [][]any {
		all, relayed := map[any]int{}, map[any]int{}
		for _, f := range w.all("fabrics", func(r record) bool { return r["relayed"] != nil }) {
			network := w.byUID(f)["network"]
			all[network]++
			if f["relayed"] == true {
				relayed[network]++
			}
		}
		var out [][]any
		for network, n := range all {
			out = append(out, []any{network, n, relayed[network], near{float64(relayed[network]) / float64(n), 4}})
		}
		return sorted(out, desc(1), asc(0))
	},
	"How do connections to each server or peer compare?": func(w world) [][]any {
		type key struct {
			kind   any
			remote string
		}
		all, failed, relayed, delays, rtt := map[key]int{}, map[key]int{}, map[key]int{}, map[key][]float64{}, map[key][]float64{}
		for _, e := range w.want {
			for _, f := range e.Conferences[0].Fabrics {
				row := w.fabric(e.Conferences[0].ConferenceID, f.ConnectionID)
				k := key{row["remote_type"], f.Remote}
				all[k]++
				if f.Outcome == "failed" {
					failed[k]++
				}
				if row["relayed"] == true {
					relayed[k]++
				}
				if f.SetupDelayMs != nil {
					delays[k] = append(delays[k], *f.SetupDelayMs)
				}
				if v, ok := row.Number("rtt_ms"); ok {
					rtt[k] = append(rtt[k], v)
				}
			}
		}
		var out [][]any
		for k, n := range all {
			row := []any{k.kind, k.remote, n, failed[k], relayed[k], nil, nil}
			if len(delays[k]) > 0 {
				row[5] = near{quantile(delays[k], 0.95), 2}
			}
			if len(rtt[k]) > 0 {
				row[6] = near{mean(rtt[k]), 1}
			}
			out = append(out, row)
		}
		out = sorted(out, desc(3), desc(2), asc(0), asc(1))
		return out[:min(len(out), 20)]
	},
	"Drop rate per client version": func(w world) [][]any {
		up, versions := map[any]int{}, map[any]bool{}
		for _, e := range w.want {
			for _, f := range e.Conferences[0].Fabrics {
				version := w.participant(e.Conferences[0].ConferenceID, f.User)["client_version"]
				versions[version] = true
				if f.Outcome == "setup" {
					up[version]++
				}
			}
		}
		var out [][]any
		for version := range versions {
			row := []any{version, up[version], 0, any(0)}
			if up[version] == 0 {
				row[3] = nil
			}
			out = append(out, row)
		}
		return sorted(out, asc(0))
	},
	"Which connections were disrupted, and for how long?": func(w world) [][]any {
		var out [][]any
		for _, f := range w.all("fabrics", func(r record) bool { return r["disruptions"].(float64) > 0 }) {
			out = append(out, []any{f["conference_id"], f["user_id"], f["remote_id"], f["disruptions"], f["disruption_ms"]})
		}
		total := 0.0
		for _, e := range w.want {
			for _, f := range e.Conferences[0].Fabrics {
				total += f.Disruptions
			}
		}
		if total == 0 {
			return nil // no recording holds one
		}
		return sorted(out, desc(4))
	},
	"Churn: how many participants come back in the same conference?": func(w world) [][]any {
		all, again := 0, 0
		for _, e := range w.want {
			for _, p := range e.Conferences[0].Participants {
				all++
				if p.Joins > 1 {
					again++
				}
			}
		}
		return [][]any{{w.day, all, again, near{float64(again) / float64(all), 4}}}
	},
	"Why do participants leave?": func(w world) [][]any {
		count := map[string]int{}
		for _, e := range w.want {
			for _, p := range e.Conferences[0].Participants {
				count[p.Intervals[len(p.Intervals)-1].LeftReason]++
			}
		}
		var out [][]any
		for reason, n := range count {
			out = append(out, []any{reason, n})
		}
		return sorted(out, desc(1), asc(0))
	},
	"Who is in a call right now?": func(world) [][]any { return nil }, // everybody has left by then
	"How many people are in calls at the same time?": func(w world) [][]any {
		type step struct {
			at     time.Time
			change int
		}
		var steps []step
		for _, p := range w.views["participants"] {
			for _, at := range p["presence_joined_at"].([]any) {
				steps = append(steps, step{moment(at.(string)), 1})
			}
			for _, at := range p["presence_left_at"].([]any) {
				steps = append(steps, step{moment(at.(string)), -1}) // everybody has left by then
			}
		}
		intervals := 0
		for _, e := range w.want {
			for _, p := range e.Conferences[0].Participants {
				intervals += len(p.Intervals)
			}
		}
		if len(steps) != 2*intervals {
			return [][]any{{"presence begins and ends", len(steps), "want", 2 * intervals}}
		}
		slices.SortFunc(steps, func(a, b step) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.change, b.change)) })
		peak, present := map[string]int{}, 0
		for _, s := range steps {
			hour := s.at.Truncate(time.Hour).Format("2006-01-02 15:04:05")
			peak[hour] = max(peak[hour], present, present+s.change)
			present += s.change
		}
		var out [][]any
		for hour, n := range peak {
			out = append(out, []any{hour, n})
		}
		return sorted(out, asc(0))
	},
	"How long are conferences, and how large?": func(w world) [][]any {
		minutes, peak := map[int][]float64{}, map[int]float64{}
		for _, e := range w.want {
			n := len(e.Conferences[0].Participants)
			c := w.conference(e.Conferences[0].ConferenceID)
			minutes[n] = append(minutes[n], c["duration_ms"].(float64)/60000)
			peak[n] = max(peak[n], c["peak_participants"].(float64))
		}
		var out [][]any
		for n, values := range minutes {
			out = append(out, []any{n, len(values), near{mean(values), 2}, peak[n]})
		}
		return sorted(out, asc(0))
	},
	"When is it busy?": func(w world) [][]any {
		joins, users := map[int]int{}, map[int]map[string]bool{}
		for _, p := range w.views["participants"] {
			hour := moment(p.Text("joined_at")).Hour()
			joins[hour]++
			if users[hour] == nil {
				users[hour] = map[string]bool{}
			}
			users[hour][p.Text("user_id")] = true
		}
		var out [][]any
		for hour, n := range joins {
			out = append(out, []any{hour, n, len(users[hour])})
		}
		return sorted(out, asc(0))
	},
	"Audio quality by browser": func(w world) [][]any {
		return measured(w.views["participants"], func(r record) []any { return []any{r["browser"]} }, "audio_mos", func(key []any, values []float64) []any {
			return append(key, len(values), near{mean(values), 2}, near{quantile(values, 0.1), 2})
		}, func(a, b []any) int { return cmp.Compare(a[2].(near).value, b[2].(near).value) })
	},
	"Which operating systems and browser versions sound worst?": func(w world) [][]any {
		heard := w.all("participants", func(r record) bool { return r["audio_mos"] != nil })
		var out [][]any
		for _, group := range grouped(heard, func(r record) []any { return []any{r["os"], r["browser"], r["browser_version"]} }) {
			out = append(out, append(group.key, len(group.rows), near{mean(values(group.rows, "audio_mos")), 2}, near{mean(values(group.rows, "audio_mos_share_below")), 4}))
		}
		return sorted(out, func(a, b []any) int {
			return cmp.Compare(math.Round(a[4].(near).value*100), math.Round(b[4].(near).value*100))
		}, asc(0), asc(1), asc(2))
	},
	"Does the feedback agree with the MOS?": func(w world) [][]any {
		scores, answers := map[float64][]float64{}, map[float64]int{}
		for _, e := range w.want {
			for _, f := range e.Feedback {
				if f.Overall == nil {
					continue
				}
				answers[*f.Overall]++
				if mos, ok := w.participant(e.Conferences[0].ConferenceID, f.User).Number("audio_mos"); ok {
					scores[*f.Overall] = append(scores[*f.Overall], mos)
				}
			}
		}
		var out [][]any
		for rating, n := range answers {
			row := []any{rating, n, nil}
			if len(scores[rating]) > 0 {
				row[2] = near{mean(scores[rating]), 2}
			}
			out = append(out, row)
		}
		return sorted(out, asc(0))
	},
	"What do unhappy users say?": func(w world) [][]any {
		var out [][]any
		for _, e := range w.want {
			for _, f := range e.Feedback {
				if f.Overall != nil && *f.Overall <= 2 {
					comment := ""
					if f.Comment != nil {
						comment = *f.Comment
					}
					out = append(out, []any{anything{}, e.Conferences[0].ConferenceID, f.User, *f.Overall, comment})
				}
			}
		}
		return out // one of the recordings has one
	},
	"What share of the measured time was excellent, fair or bad?": func(w world) [][]any {
		return measured(w.all("samples", func(r record) bool { return r["label"] != nil }), func(r record) []any { return []any{r["label"]} }, "interval_ms",
			func(key []any, values []float64) []any { return append(key, len(values), near{sum(values) / 60000, 2}) }, nil)
	},
	"Loss, jitter and round-trip time by media type": func(w world) [][]any {
		rows := w.all("samples", func(r record) bool {
			packets, ok := r.Number("packets")
			return r.Text("direction") == "inbound" && ok && packets > 0
		})
		var out [][]any
		for _, group := range grouped(rows, func(r record) []any { return []any{r["media_type"]} }) {
			lost, all := 0.0, 0.0
			for _, r := range group.rows {
				packets, _ := r.Number("packets")
				if n, ok := r.Number("packets_lost"); ok {
					lost += n
					all += packets + n
				}
			}
			out = append(out, []any{group.key[0], near{lost / all, 5}, near{quantile(values(group.rows, "jitter_ms"), 0.95), 6}})
		}
		return sorted(out, asc(0))
	},
	"Whose media arrives badly? The senders behind the worst received streams": func(w world) [][]any {
		rows := w.all("streams", func(r record) bool {
			return r.Text("direction") == "inbound" && r.Text("media_type") == "audio" && r["audio_mos"] != nil
		})
		var out [][]any
		for _, group := range grouped(rows, func(r record) []any { return []any{r["owner_user_id"]} }) {
			out = append(out, []any{group.key[0], len(group.rows), near{mean(values(group.rows, "audio_mos")), 2}, near{slices.Max(values(group.rows, "loss")), 4}})
		}
		return sorted(out, func(a, b []any) int {
			return cmp.Or(cmp.Compare(math.Round(a[2].(near).value*100), math.Round(b[2].(near).value*100)), asc(0)(a, b))
		})
	},
	"Which codecs are in use, and at what bitrate?": func(w world) [][]any {
		var out [][]any
		for _, group := range grouped(w.all("streams", func(r record) bool { return r["codec"] != nil }), func(r record) []any { return []any{r["codec"], r["direction"]} }) {
			row := append(group.key, len(group.rows), nil)
			if kbps := values(group.rows, "bitrate_kbps"); len(kbps) > 0 {
				row[3] = near{mean(kbps), 1}
			}
			out = append(out, row)
		}
		return sorted(out, asc(0), asc(1))
	},
	"Where did the picture freeze?": func(w world) [][]any {
		rows := w.all("samples", func(r record) bool {
			return r.Text("direction") == "inbound" && r.Text("media_type") == "video" && r["freeze_ms"] != nil
		})
		var out [][]any
		for _, group := range grouped(rows, func(r record) []any { return []any{r["conference_id"], r["user_id"], r["ssrc"]} }) {
			row := append(group.key, sum(values(group.rows, "freeze_ms")), nil)
			if rates := values(group.rows, "frame_rate"); len(rates) > 0 {
				row[4] = near{mean(rates), 1}
			}
			out = append(out, row)
		}
		out = sorted(out, desc(3), asc(0), asc(1), asc(2))
		return out[:min(len(out), 20)]
	},
	"Which findings are frequent?": func(w world) [][]any {
		count := map[string]int{}
		for _, p := range w.views["participants"] {
			for _, finding := range p["findings"].([]any) {
				count[finding.(string)]++
			}
		}
		var out [][]any
		for finding, n := range count {
			out = append(out, []any{finding, n})
		}
		return sorted(out, desc(1), asc(0))
	},
	"In which calls could somebody not be heard?": func(w world) [][]any {
		rows := w.all("participants", func(r record) bool { return slices.Contains(r["findings"].([]any), any("oneWayAudio")) })
		out := columns(rows, "conference_id", "user_id", "joined_at", "presence_ms", "findings_evidence")
		return sorted(out, desc(2), asc(0), asc(1))
	},
	"What runs out there? Operating systems and browsers": func(w world) [][]any {
		var out [][]any
		for _, group := range grouped(w.views["participants"], func(r record) []any { return []any{r["os"], r["browser"]} }) {
			users := map[string]bool{}
			for _, r := range group.rows {
				users[r.Text("user_id")] = true
			}
			out = append(out, append(group.key, len(group.rows), len(users)))
		}
		return sorted(out, desc(2), asc(0), asc(1))
	},
	"How much did each user send?": func(w world) [][]any {
		var out [][]any
		for _, group := range grouped(w.all("samples", func(r record) bool { return r.Text("direction") == "outbound" }), func(r record) []any { return []any{r["user_id"]} }) {
			if megabytes := sum(values(group.rows, "bytes")) / 1e6; megabytes >= 0.0005 {
				out = append(out, []any{group.key[0], megabytes})
			}
		}
		out = sorted(out, desc(1), asc(0))
		for _, row := range out {
			row[1] = near{row[1].(float64), 3}
		}
		return out
	},
	"Are pre-call tests a sign of what follows?": func(w world) [][]any {
		type key struct{ test, call any }
		rtt, tests := map[key][]float64{}, map[key]int{}
		for _, r := range w.views["precall_tests"] {
			k := key{r["status"], nil}
			for _, c := range w.views["conferences"] {
				if r["conference_uid"] != nil && c["conference_uid"] == r["conference_uid"] {
					k.call = c["outcome"]
				}
			}
			tests[k]++
			if v, ok := r.Number("rtt_median_ms"); ok {
				rtt[k] = append(rtt[k], v)
			}
		}
		var out [][]any
		for k, n := range tests {
			row := []any{k.test, k.call, n, nil}
			if len(rtt[k]) > 0 {
				row[3] = near{mean(rtt[k]), 1}
			}
			out = append(out, row)
		}
		if len(w.views["precall_tests"]) != w.want["precall"].PrecallWithoutConference {
			return [][]any{{"the number of pre-call tests is wrong"}}
		}
		return sorted(out, asc(0), asc(1))
	},
	"What do clients send, and under which name?": func(w world) [][]any {
		// How often each name was sent is in the expectations; what it means today is in the rows.
		sent := map[string]int{}
		for _, e := range w.want {
			for name, n := range e.Events {
				sent[name] += n
			}
		}
		var out [][]any
		got := map[string]int{}
		for _, group := range grouped(w.all("events", func(r record) bool { return r["reported"] == true }), func(r record) []any { return []any{r["event_type"], r["original_type"]} }) {
			out = append(out, append(group.key, len(group.rows)))
			got[group.key[1].(string)] += len(group.rows)
		}
		for name, n := range sent {
			if got[name] != n {
				return [][]any{{"sent as", name, n, "times, stored", got[name]}}
			}
		}
		return sorted(out, desc(2), asc(0), asc(1))
	},
	"How much is kept of each app, and since when?": func(w world) [][]any {
		calls, first, last := map[any]bool{}, "9999", ""
		for _, r := range w.views["samples"] {
			calls[r["conference_uid"]] = true
			first, last = min(first, r.Text("time")), max(last, r.Text("time"))
		}
		return [][]any{{"123456789", len(w.views["samples"]), len(calls), first[:10], last[:10]}}
	},
	"One conference: who was there, and how did it go for them?": func(w world) [][]any {
		rows := w.all("participants", demoRoom)
		slices.SortFunc(rows, func(a, b record) int {
			return cmp.Or(cmp.Compare(a.Text("joined_at"), b.Text("joined_at")), cmp.Compare(a.Text("user_id"), b.Text("user_id")))
		})
		out := columns(rows, "user_id", "joined_at", "left_at", "left_reason", "joins", "fabrics", "fabrics_failed", "audio_mos", "findings")
		for i, p := range w.want["two-users-hs256"].Conferences[0].Participants { // in the order of joining
			out[i][0], out[i][3], out[i][4] = p.User, p.Intervals[0].LeftReason, p.Joins
		}
		return out
	},
	"One conference: its timeline": func(w world) [][]any {
		rows := w.all("events", func(r record) bool { return demoRoom(r) && r.Text("event_type") != "userAlive" })
		slices.SortStableFunc(rows, func(a, b record) int {
			return cmp.Or(cmp.Compare(a.Text("time"), b.Text("time")), cmp.Compare(a.Text("event_type"), b.Text("event_type")), cmp.Compare(a.Text("user_id"), b.Text("user_id")))
		})
		out := columns(rows, "time", "user_id", "event_type", "remote_id", "data")
		for _, row := range out {
			row[3], row[4] = anything{}, anything{} // equal moments come in any order
		}
		return out
	},
	"One conference: its connections": func(w world) [][]any {
		var out [][]any
		for _, f := range w.want["two-users-hs256"].Conferences[0].Fabrics {
			for _, r := range w.all("fabrics", func(r record) bool { return demoRoom(r) && r.Text("user_id") == f.User }) {
				out = append(out, []any{f.User, f.Remote, f.Outcome, near{*f.SetupDelayMs, 2}, nil, 0, r["relayed"], r["rtt_ms"]})
			}
		}
		return sorted(out, asc(0), asc(1))
	},
	"One conference: the quality of what was received, over time": func(w world) [][]any {
		var out [][]any
		for _, group := range grouped(w.all("samples", func(r record) bool { return demoRoom(r) && r.Text("direction") == "inbound" }), func(r record) []any {
			return []any{moment(r.Text("time")).Truncate(time.Minute).Format("2006-01-02 15:04:05"), r["user_id"], r["owner_user_id"], r["media_type"]}
		}) {
			row := append(group.key, nil, nil, nil)
			if kbps := values(group.rows, "bitrate_kbps"); len(kbps) > 0 {
				row[4] = near{mean(kbps), 1}
			}
			if loss := values(group.rows, "loss"); len(loss) > 0 {
				row[5] = slices.Max(loss)
			}
			if mos := values(group.rows, "audio_mos"); len(mos) > 0 {
				row[6] = slices.Min(mos)
			}
			out = append(out, row)
		}
		return sorted(out, asc(0), asc(1), asc(2), asc(3))
	},
	"One conference: what the application logged": func(w world) [][]any {
		var out [][]any
		for _, f := range w.want["two-users-hs256"].Failures { // in the order of time
			name := ""
			if f.Name != nil {
				name = *f.Name
			}
			message := any(f.Message)
			if strings.HasPrefix(f.Message, "{") {
				message = anything{}
			}
			out = append(out, []any{anything{}, f.User, name, message})
		}
		return out
	},
	"One conference: its pre-call tests": func(w world) [][]any {
		var out [][]any
		for _, m := range recorded("precall", "preCallTestAssociate") { // from the recording itself
			for _, id := range m["ids"].([]any) {
				for _, r := range recorded("precall", "preCallTestResults") {
					if results := r["results"].(map[string]any); results["id"] == id {
						row := w.all("precall_tests", func(r record) bool { return r["test_id"] == id })[0]
						out = append(out, []any{m["localID"], id, results["status"], row["rtt_median_ms"], row["fraction_lost"], row["throughput_kbps"]})
					}
				}
			}
		}
		if len(out) != w.want["precall"].PrecallWithoutConference {
			return [][]any{{"the number of pre-call tests is wrong"}}
		}
		return sorted(out, asc(0), asc(1))
	},
	"One conference: real names": func(w world) [][]any {
		names := map[string]any{}
		for _, m := range recorded("precall", "userJoined") {
			if m["userName"] != nil {
				names[m["localID"].(string)] = m["userName"]
			}
		}
		var out [][]any
		for _, p := range w.want["precall"].Conferences[0].Participants {
			out = append(out, []any{p.User, w.participant("precall-room", p.User)["alias"], names[p.User]})
		}
		if len(names) == 0 {
			return [][]any{{"the recording has no real name"}}
		}
		return sorted(out, asc(0))
	},
	"One user's history": func(w world) [][]any {
		rows := w.all("participants", func(r record) bool { return r.Text("user_id") == "alice@example.test" })
		slices.SortFunc(rows, func(a, b record) int { return cmp.Compare(b.Text("joined_at"), a.Text("joined_at")) })
		out := columns(rows, "conference_id", "joined_at", "presence_ms", "fabrics", "fabrics_failed", "audio_mos", "feedback_overall")
		for _, row := range out {
			row[2] = near{row[2].(float64) / 1000, 0}
		}
		return out
	},
}

func demoRoom(r record) bool { return r.Text("conference_id") == "Demo room / 1" }

func (w world) conference(id string) record {
	return w.all("conferences", func(r record) bool { return r.Text("conference_id") == id })[0]
}

// fabric finds a connection by the id that its client gave it, which no two of a recording share.
func (w world) fabric(conference, connection string) record {
	found := w.all("fabrics", func(r record) bool {
		return r.Text("conference_id") == conference && r.Text("connection_id") == connection
	})
	if len(found) != 1 {
		return record{}
	}
	return found[0]
}

// recorded gives the messages of one type that a capture's clients posted.
func recorded(capture, eventType string) []map[string]any {
	text, err := os.ReadFile(filepath.Join("..", "captures", capture+".jsonl"))
	if err != nil {
		panic(err)
	}
	var all []map[string]any
	for line := range strings.Lines(string(text)) {
		var exchange struct {
			Body string `json:"body"`
		}
		var body map[string]any
		if json.Unmarshal([]byte(line), &exchange) == nil && json.Unmarshal([]byte(exchange.Body), &body) == nil && body["eventType"] == eventType {
			all = append(all, body)
		}
	}
	return all
}

func (w world) participant(conference, user string) record {
	found := w.all("participants", func(r record) bool { return r.Text("conference_id") == conference && r.Text("user_id") == user })
	if len(found) != 1 {
		return record{}
	}
	return found[0]
}

func (w world) byUID(r record) record {
	return w.all("participants", func(p record) bool { return p["participant_uid"] == r["participant_uid"] })[0]
}

func columns(rows []record, names ...string) [][]any {
	var out [][]any
	for _, r := range rows {
		var row []any
		for _, name := range names {
			row = append(row, r[name])
		}
		out = append(out, row)
	}
	return out
}

type group struct {
	key  []any
	rows []record
}

func grouped(rows []record, key func(record) []any) []group {
	var groups []group
	for _, r := range rows {
		k := key(r)
		i := slices.IndexFunc(groups, func(g group) bool { return slices.Equal(g.key, k) })
		if i < 0 {
			i = len(groups)
			groups = append(groups, group{key: k})
		}
		groups[i].rows = append(groups[i].rows, r)
	}
	return groups
}

// measured groups rows that have a value and makes a row of each group.
func measured(rows []record, key func(record) []any, column string, make func(key []any, values []float64) []any, order func(a, b []any) int) [][]any {
	var out [][]any
	for _, g := range grouped(rows, key) {
		if v := values(g.rows, column); len(v) > 0 {
			out = append(out, make(g.key, v))
		}
	}
	if order == nil {
		order = asc(0)
	}
	return sorted(out, order)
}

func values(rows []record, column string) []float64 {
	var out []float64
	for _, r := range rows {
		if v, ok := r.Number(column); ok {
			out = append(out, v)
		}
	}
	return out
}

func sum(values []float64) (total float64) {
	for _, v := range values {
		total += v
	}
	return total
}

func mean(values []float64) float64 { return sum(values) / float64(len(values)) }

// quantile is ClickHouse's quantileExact: the value at place level × size, counted from 0.
func quantile(values []float64, level float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	ordered := slices.Sorted(slices.Values(values))
	return ordered[min(int(level*float64(len(ordered))), len(ordered)-1)]
}

func about(v *float64) any {
	if v == nil {
		return nil
	}
	return near{*v, 2}
}

func moment(text string) time.Time {
	at, err := time.Parse("2006-01-02 15:04:05.000", text)
	if err != nil {
		panic(err)
	}
	return at
}

func asc(column int) func(a, b []any) int {
	return func(a, b []any) int { return compare(a[column], b[column]) }
}

func desc(column int) func(a, b []any) int {
	return func(a, b []any) int { return compare(b[column], a[column]) }
}

// compare orders as ClickHouse does: NULL last.
func compare(a, b any) int {
	if a == nil || b == nil {
		switch {
		case a == b:
			return 0
		case a == nil:
			return 1
		}
		return -1
	}
	switch a := a.(type) {
	case string:
		return cmp.Compare(a, b.(string))
	case int:
		return cmp.Compare(a, b.(int))
	}
	return cmp.Compare(a.(float64), b.(float64))
}

func nullsLast(a, b record, column string, direction int) int {
	x, hasX := a.Number(column)
	y, hasY := b.Number(column)
	switch {
	case hasX && hasY:
		return direction * cmp.Compare(x, y)
	case hasX:
		return -1
	case hasY:
		return 1
	}
	return 0
}

func sorted(rows [][]any, by ...func(a, b []any) int) [][]any {
	slices.SortStableFunc(rows, func(a, b []any) int {
		for _, order := range by {
			if c := order(a, b); c != 0 {
				return c
			}
		}
		return 0
	})
	return rows
}
