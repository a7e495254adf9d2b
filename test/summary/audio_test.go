package summary

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// The audio MOS of a recording as a person would compute it from the published
// model (E-model on the fullband scale, Opus: Ie 10.2, Bpl 4.3), in the order in
// which ITU-T G.107 writes it.

// opusMOS is the MOS of an interval: effective loss in percent, one-way delay
// in milliseconds.
func opusMOS(lossPercent, delayMs float64) float64 {
	const ie, bpl = 10.2, 4.3
	idd := 0.0
	if delayMs > 100 {
		x := math.Log10(delayMs/100) / math.Log10(2)
		idd = 25 * (math.Pow(1+math.Pow(x, 6), 1.0/6) - 3*math.Pow(1+math.Pow(x/3, 6), 1.0/6) + 2)
	}
	ieEff := ie + (132-ie)*lossPercent/(lossPercent+bpl)
	r := (148 - 1.48*idd - ieEff) / 1.48
	mos := 1 + 0.035*r + r*(r-60)*(100-r)*7e-6
	switch {
	case r < 0:
		mos = 1
	case r > 100:
		mos = 4.5
	}
	return max(mos, 1)
}

func TestOpusMOSIsThePublishedOne(t *testing.T) {
	for _, v := range []struct{ rtt, loss, mos float64 }{
		{60, 0, 4.408}, {60, 1, 3.929}, {60, 2, 3.452}, {60, 5, 2.515}, {60, 10, 1.852}, {60, 20, 1.429}, {400, 0, 4.131}, {2000, 0, 2.508},
	} {
		if got := opusMOS(v.loss, 40+20+v.rtt/2); math.Abs(got-v.mos) > 0.0006 {
			t.Errorf("rtt %v, loss %v: %v, want %v", v.rtt, v.loss, got, v.mos)
		}
	}
}

// quiet is a time in which somebody sent no sound on purpose.
type quiet struct {
	user, connection string // connection is empty: all
	hold             bool
	from, to         float64 // t of the recording
}

func quietTimes(lines []captureLine) []quiet {
	var all []quiet
	for _, l := range lines {
		var o object
		if json.Unmarshal([]byte(l.text()), &o) != nil {
			continue
		}
		event := text(o, "eventType", "action")
		user, connection := plain(text(o, "localID", "userID")), text(o, "connectionID", "pcID")
		if plain(connection) == user {
			connection = ""
		}
		switch event {
		case "audioMute", "fabricHold":
			all = append(all, quiet{user, connection, event == "fabricHold", float64(l.T), math.Inf(1)})
		case "audioUnmute", "audioUnMute", "fabricResume":
			for i, q := range all {
				if q.user == user && (connection == "" || q.connection == connection) && q.hold == (event == "fabricResume") && math.IsInf(q.to, 1) {
					all[i].to = float64(l.T)
				}
			}
		}
	}
	return all
}

// naiveAudio computes the MOS of all intervals of inbound audio, by "user
// connection ssrc".
func naiveAudio(lines []captureLine) map[string][]point {
	type before struct {
		stream, peer object
		ms           float64
	}
	scores, last, fabrics, remotes := map[string][]point{}, map[string]before{}, map[string]*naiveFabric{}, map[string]string{}
	lastPair := map[string]object{}
	quiets := quietTimes(lines)
	for _, l := range lines {
		var o object
		if json.Unmarshal([]byte(l.text()), &o) != nil {
			continue
		}
		user, connection := plain(text(o, "localID", "userID")), text(o, "connectionID", "pcID")
		if connection == "" || plain(connection) == user {
			continue
		}
		at, ok := number(o, "timestamp")
		if !ok {
			at, _ = number(o, "apiTS")
		}
		key := user + " " + connection
		f := fabrics[key]
		if f == nil {
			f = &naiveFabric{first: at}
			fabrics[key] = f
		}
		if remote := plain(text(o, "remoteID")); remote != "" && remotes[key] == "" {
			remotes[key] = remote
		}
		inside := o
		if value, ok := o["value"].(object); ok {
			inside = value
		}
		event, state := text(o, "eventType", "action", "channel"), text(inside, "newState")
		iceIsUp := event == "fabricStateChange" && text(inside, "changedState") == "iceConnectionState" && (state == "connected" || state == "completed")
		if f.setUp == 0 && (event == "fabricSetup" || event == "autoFabricSetup" || iceIsUp) {
			f.setUp = at
		}
		begin := f.setUp
		if begin == 0 {
			begin = f.first
		}
		for _, r := range reportsOf(o, at) {
			pair := pairInUse(r.entries)
			pairBefore, again := lastPair[key]
			if again && pairBefore == nil {
				pairBefore = object{} // the report before knew of none: nothing to compare with
			}
			path, hasPath := roundTrip(pair, pairBefore, "responsesReceived", "currentRoundTripTime")
			lastPair[key] = pair
			for _, s := range r.entries {
				if text(s, "type") != "inbound-rtp" || text(s, "kind", "mediaType") != "audio" {
					continue
				}
				stream := fmt.Sprintf("%s %.0f", key, s["ssrc"])
				peer := entry(r.entries, func(p object) bool {
					return text(p, "type") == "remote-outbound-rtp" && (text(p, "localId") == text(s, "id") || p["ssrc"] == s["ssrc"])
				})
				was := last[stream]
				now, _ := number(s, "timestamp")
				ms := now - was.ms
				if was.stream == nil {
					ms = r.at - begin
				}
				if !(ms > 0) {
					continue
				}
				last[stream] = before{stream: s, peer: peer, ms: now}
				rtt, hasRTT := roundTrip(peer, was.peer, "roundTripTimeMeasurements", "roundTripTime")
				if !hasRTT {
					rtt, hasRTT = path, hasPath
				}
				loss, hasLoss := effectiveLoss(s, was.stream)
				if grown(s, was.stream, "packetsReceived") > 0 && hasRTT && hasLoss && !quietIn(quiets, user, connection, remotes, float64(l.T)-ms, float64(l.T)) {
					mos := opusMOS(100*loss, playout(s, was.stream)+20+rtt/2)
					scores[stream] = append(scores[stream], point{math.Round(mos*1e4) / 1e4, ms})
				}
			}
		}
	}
	return scores
}

type naiveReport struct {
	at      float64
	entries []object
}

func reportsOf(o object, at float64) []naiveReport {
	objects := func(list any) []object {
		var all []object
		items, _ := list.([]any)
		for _, item := range items {
			if one, ok := item.(object); ok {
				all = append(all, one)
			}
		}
		return all
	}
	var reports []naiveReport
	if stats := objects(o["stats"]); stats != nil {
		reports = append(reports, naiveReport{at, stats})
	}
	for _, p := range objects(o["processedStatistics"]) {
		r := naiveReport{at: at, entries: objects(p["Transport"])}
		if made, ok := number(p, "apiTS"); ok {
			r.at = made
		}
		for _, s := range objects(p["streams"]) {
			if data, ok := s["data"].(object); ok {
				r.entries = append(r.entries, data)
			}
		}
		reports = append(reports, r)
	}
	return reports
}

func entry(entries []object, match func(object) bool) object {
	if i := slices.IndexFunc(entries, match); i >= 0 {
		return entries[i]
	}
	return nil
}

// pairInUse is the candidate pair that the transport names. Older clients send
// its numbers in the transport's entry.
func pairInUse(entries []object) object {
	transport := entry(entries, func(o object) bool { return text(o, "type") == "transport" })
	id := text(transport, "selectedCandidatePairId")
	pair := entry(entries, func(o object) bool { return text(o, "type") == "candidate-pair" && text(o, "id") == id })
	if pair != nil || transport == nil {
		return pair
	}
	of := object{"id": id}
	for _, key := range []string{"currentRoundTripTime", "totalRoundTripTime", "responsesReceived"} {
		of[key] = transport[key]
	}
	return of
}

// grown is what a counter grew by since the report before, of which nil is the
// beginning; NaN where it is not known.
func grown(o, before object, key string) float64 {
	after, ok := number(o, key)
	was, had := number(before, key)
	if !ok || before != nil && !had {
		return math.NaN()
	}
	return after - was
}

// roundTrip is the mean of the interval's measurements in milliseconds, else
// the current value.
func roundTrip(o, before object, measurements, current string) (float64, bool) {
	if o == nil {
		return 0, false
	}
	if text(before, "id") != text(o, "id") {
		if before != nil {
			before = object{} // another pair: nothing to compare with
		}
	}
	if n := grown(o, before, measurements); n > 0 {
		if total := grown(o, before, "totalRoundTripTime"); total >= 0 {
			return 1000 * total / n, true
		}
	}
	v, ok := number(o, current)
	return 1000 * v, ok
}

// effectiveLoss is what had to be made up of the sound, 0 to 1; of a client that
// does not count it, the share of packets lost.
func effectiveLoss(o, before object) (float64, bool) {
	samples := grown(o, before, "totalSamplesReceived")
	madeUp := grown(o, before, "concealedSamples") - grown(o, before, "silentConcealedSamples")
	if samples > 0 && !math.IsNaN(madeUp) {
		return min(max(madeUp/samples, 0), 1), true
	}
	lost := grown(o, before, "packetsLost")
	if expected := lost + grown(o, before, "packetsReceived"); expected > 0 {
		return min(max(lost/expected, 0), 1), true
	}
	return 0, false
}

// playout is the time in the jitter buffer, 40 ms where it is not known.
func playout(o, before object) float64 {
	if ms := 1000 * grown(o, before, "jitterBufferDelay") / grown(o, before, "jitterBufferEmittedCount"); ms >= 0 {
		return ms
	}
	return 40
}

// quietIn tells whether the sound on the connection was off on purpose in any
// part of an interval: held here, or held or muted by the other user on
// a connection that leads here.
func quietIn(quiets []quiet, user, connection string, remotes map[string]string, since, until float64) bool {
	other := remotes[user+" "+connection]
	return slices.ContainsFunc(quiets, func(q quiet) bool {
		here := q.hold && q.user == user && q.connection == connection
		there := q.user == other && (q.connection == "" || remotes[other+" "+q.connection] == user)
		return (here || there) && q.from < until && q.to > since
	})
}

// For every recording, the audio MOS of every stream, participant and
// conference is what a person would compute from the reports.
func TestAudioMOSOfCapturesAgreesWithANaiveComputation(t *testing.T) {
	var streams, values, quietStreams int
	for _, file := range captures(t) {
		name := strings.TrimSuffix(filepath.Base(file), ".jsonl")
		t.Run(name, func(t *testing.T) {
			lines := captureLines(t, file)
			want := naiveAudio(lines)
			text, err := os.ReadFile("../expected/" + name + ".json")
			if err != nil {
				t.Fatal(err)
			}
			var expected struct{ Conferences []expectedConference }
			if err := json.Unmarshal(text, &expected); err != nil {
				t.Fatal(err)
			}
			_, stored := fold(t, rawLog(t, lines))
			summaries := latest(t, stored)
			ofParticipant := map[string][]point{}
			seen := 0
			for _, s := range summaries {
				st := s.GetStream()
				if st == nil {
					continue
				}
				if st.Direction != "inbound" || st.MediaType != "audio" {
					if st.AudioMos != nil {
						t.Errorf("%s %s %s has an audio MOS", s.Identity.UserId, st.Direction, st.MediaType)
					}
					continue
				}
				key := fmt.Sprintf("%s %s %s", s.Identity.UserId, s.Identity.ConnectionId, st.Ssrc)
				points := want[key]
				check(t, key+" audio MOS", st.AudioMos, points, 3.5, nil)
				if len(points) > 0 {
					seen++
				}
				streams, values = streams+1, values+len(points)
				if len(points) < int(st.Samples) {
					quietStreams++
				}
				ofParticipant[string(s.Identity.ParticipantUid)] = append(ofParticipant[string(s.Identity.ParticipantUid)], points...)
			}
			if seen != len(want) {
				t.Errorf("%d streams with scores, want %d", seen, len(want))
			}
			for _, s := range summaries {
				switch body := s.Body.(type) {
				case *callscopev1.Summary_Participant:
					check(t, s.Identity.UserId+" audio MOS", body.Participant.AudioMos, ofParticipant[string(s.EntityUid)], 3.5, nil)
				case *callscopev1.Summary_Conference:
					checkConferenceMOS(t, s, summaries, ofParticipant, expected.Conferences)
				}
			}
		})
	}
	t.Logf("%d streams, %d intervals", streams, values)
	if streams < 20 || values < 45 || quietStreams < 3 {
		t.Errorf("only %d streams with %d scores were compared, %d with intervals without score", streams, values, quietStreams)
	}
}

// checkConferenceMOS wants every participant to count with its time of presence.
func checkConferenceMOS(t *testing.T, s *callscopev1.Summary, summaries []*callscopev1.Summary, ofParticipant map[string][]point, expected []expectedConference) {
	t.Helper()
	var all []point
	for _, want := range expected {
		if want.ConferenceID != s.Identity.ConferenceId || beginMs+want.StartedT != s.GetConference().StartedAtMs {
			continue
		}
		for _, p := range want.Participants {
			presence := 0.0
			for _, interval := range p.Intervals {
				if interval.LeftT != nil {
					presence += float64(*interval.LeftT - interval.JoinedT)
				}
			}
			for _, o := range summaries {
				if o.GetParticipant() == nil || o.Identity.UserId != p.User || o.Identity.DeviceId != p.Device || string(o.Identity.ConferenceUid) != string(s.EntityUid) {
					continue
				}
				total := 0.0
				for _, one := range ofParticipant[string(o.EntityUid)] {
					total += math.Round(one.ms)
				}
				for _, one := range ofParticipant[string(o.EntityUid)] {
					all = append(all, point{one.value, 1e6 * math.Round(one.ms) / total * presence}) // no whole milliseconds
				}
			}
		}
	}
	check(t, "conference audio MOS", s.GetConference().AudioMos, all, 3.5, nil)
}
