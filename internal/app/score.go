package app

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/callscope/callscope/internal/quality"
	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
	"github.com/callscope/callscope/services/enricher"
	"github.com/callscope/callscope/services/gateway/vocabulary"
	"github.com/callscope/callscope/services/summarizer"
)

func (c *cli) scoreCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "score FILE...",
		Short: "Score recorded calls and print why",
		Long: `Score recorded calls and print why, without a server: a recording of callstats requests,
a dump of chrome://webrtc-internals, or an rtcstats dump; gzip is unpacked, and "-" is
standard input. The file's messages go through the same stages as live ones;
` + "`callscope import-dump`" + ` makes rows of a dump.

A dash is what is not known: nothing is scored while muted, held or paused, without
packets, or where the file tells neither loss nor round-trip time. Reasons are the points
that a score lost on average: of 100 for audio, of 5 for video.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			var errs []error
			for _, name := range args {
				if err := scoreFile(c.stdout, name, c.stdin); err != nil {
					errs = append(errs, err)
				}
			}
			err := errors.Join(errs...)
			if err != nil && len(errs) < len(args) {
				return &codedError{exitPartly, err}
			}
			return err
		},
	}
}

func scoreFile(w io.Writer, name string, stdin io.Reader) error {
	format, messages, err := readScoreFile(name, stdin)
	if err != nil {
		return err
	}
	raws, refused := rawMessages(messages)
	summaries, err := summarize(raws)
	if err != nil {
		return fmt.Errorf("scoring %s: %w", name, err)
	}
	fmt.Fprintf(w, "%s: %s, %d messages", name, format, len(raws))
	if refused > 0 {
		fmt.Fprintf(w, ", %d more were not understood", refused)
	}
	fmt.Fprintf(w, "\naudio MOS by %s, video score by %s\n", quality.AudioModel, quality.VideoModel)
	return printScores(w, summaries)
}

const scoreBeginMs = 1_700_000_000_000 // the time of a file's first message, where it has none

// rawMessages turns the messages into those of one partition and lets time pass between and after them.
func rawMessages(messages []scoredMessage) (raws []*callscopev1.Raw, refused int) {
	var all []*callscopev1.Raw
	devices := map[int]string{}
	for _, m := range messages {
		parsed, err := vocabulary.Parse(m.body, m.transport)
		if err != nil {
			refused++
			continue
		}
		if m.transport == vocabulary.WebSocket {
			if parsed.DeviceID() == "" {
				parsed.SetDeviceID(devices[m.conn])
			}
			devices[m.conn] = parsed.DeviceID()
		}
		for _, raw := range parsed.Raw(m.conference) {
			at := int64(m.atMs - messages[0].atMs)
			raw.Observed = &callscopev1.Observed{AppId: "1", ReceivedAtMs: scoreBeginMs + at}
			if first := int64(messages[0].atMs); first > scoreBeginMs/10 {
				raw.Observed.ReceivedAtMs = first + at
			}
			all = append(all, raw)
		}
		parsed.Release()
	}
	return all, refused
}

// summarize folds the messages through the stages and returns the last summary of every entity, in the order of their
// first. Time goes on for 60 s after the last message, so that what was open ends.
func summarize(raws []*callscopev1.Raw) ([]*callscopev1.Summary, error) {
	if len(raws) == 0 {
		return nil, errors.New("it holds no message that can be understood")
	}
	var inputs []stage.Input
	add := func(raw *callscopev1.Raw) error {
		raw.Uid = make([]byte, 16)
		binary.BigEndian.PutUint64(raw.Uid[8:], uint64(len(inputs)+1))
		value, err := raw.MarshalVT()
		if err != nil {
			return fmt.Errorf("encoding a message: %w", err)
		}
		inputs = append(inputs, stage.Input{Offset: int64(len(inputs)), Value: value})
		return nil
	}
	ticker := []byte("callscope score ")
	now := raws[0].Observed.ReceivedAtMs
	tick := func() error {
		err := add(&callscopev1.Raw{Payload: &callscopev1.Raw_Tick{Tick: &callscopev1.Tick{TickerUid: ticker, MonotonicMs: now, WallMs: now}}})
		now += 1000
		return err
	}
	for _, raw := range raws {
		for now < raw.Observed.ReceivedAtMs {
			if err := tick(); err != nil {
				return nil, err
			}
		}
		if err := add(raw); err != nil {
			return nil, err
		}
	}
	for range 60 {
		if err := tick(); err != nil {
			return nil, err
		}
	}
	var rejected error
	reject := func(offset int64, reason error) {
		if rejected == nil {
			rejected = fmt.Errorf("record %d: %w", offset, reason)
		}
	}
	var enriched []stage.Input
	err := stage.Fold(func() stage.Machine { return enricher.NewMachine() }, false, slices.Values(inputs), func(e stage.Emitted) error {
		enriched = append(enriched, stage.Input{Offset: int64(len(enriched)), Key: e.Key, Value: e.Value})
		return nil
	}, reject)
	if err != nil {
		return nil, err
	}
	latest := map[string]int{}
	var summaries []*callscopev1.Summary
	err = stage.Fold(func() stage.Machine { return summarizer.NewMachine() }, true, slices.Values(enriched), func(e stage.Emitted) error {
		s := &callscopev1.Summary{}
		if err := s.UnmarshalVT(e.Value); err != nil {
			return fmt.Errorf("decoding a summary: %w", err)
		}
		at, ok := latest[string(s.EntityUid)]
		if !ok {
			latest[string(s.EntityUid)] = len(summaries)
			summaries = append(summaries, s)
			return nil
		}
		summaries[at] = s
		return nil
	}, reject)
	if err == nil {
		err = rejected
	}
	return summaries, err
}

func printScores(w io.Writer, summaries []*callscopev1.Summary) error {
	for _, c := range summaries {
		conference := c.GetConference()
		if conference == nil {
			continue
		}
		outcome := conference.Outcome
		if outcome == "" {
			outcome = "outcome not known"
		}
		fmt.Fprintf(w, "\n%s: %s, %d participants, audio MOS %s, video score %s\n", c.Identity.ConferenceId, outcome,
			conference.Participants, meanText(conference.AudioMos, 2), meanText(conference.VideoScore, 2))
		streams := table{
			header: []string{"user", "stream", "media", "of", "samples", "kbit/s", "loss %", "jitter ms", "rtt ms", "audio MOS", "p10", "video score", "p10", "why"},
			right:  []bool{false, false, false, false, true, true, true, true, true, true, true, true, true, false},
		}
		for _, s := range summaries {
			if string(s.Identity.GetConferenceUid()) != string(c.Identity.ConferenceUid) {
				continue
			}
			if p := s.GetParticipant(); p != nil && len(p.Findings) > 0 {
				fmt.Fprintf(w, "%s: %s\n  %s\n", s.Identity.UserId, strings.Join(p.Findings, ", "), p.FindingsEvidenceJson)
			}
			if f := s.GetFabric(); f != nil {
				fmt.Fprintf(w, "%s: fabric %s: %s\n", s.Identity.UserId, s.Identity.ConnectionId, fabricText(f))
			}
			if st := s.GetStream(); st != nil {
				streams.add(s.Identity.UserId, st.Direction+" "+st.Ssrc, strings.TrimSpace(st.MediaType+" "+st.Codec), st.OwnerUserId,
					strconv.Itoa(int(st.Samples)), meanText(st.BitrateKbps, 0), percentText(st.Loss), meanText(st.JitterMs, 1), meanText(st.RttMs, 0),
					meanText(st.AudioMos, 2), numberText(st.AudioMos.GetP10(), st.AudioMos != nil && st.AudioMos.P10 != nil, 2),
					meanText(st.VideoScore, 2), numberText(st.VideoScore.GetP10(), st.VideoScore != nil && st.VideoScore.P10 != nil, 2), whyText(st))
			}
		}
		if err := streams.write(w); err != nil {
			return err
		}
	}
	return nil
}

// fabricText is how a fabric came about and went.
func fabricText(f *callscopev1.FabricSummary) string {
	parts := []string{f.Outcome}
	for _, delay := range []struct {
		what string
		ms   *float64
	}{{"set up in", f.SetupDelayMs}, {"ICE gathering", f.IceGatheringDelayMs}, {"ICE connectivity", f.IceConnectivityDelayMs}, {"failed after", f.FailureDelayMs}} {
		if delay.ms != nil {
			parts = append(parts, delay.what+" "+numberText(*delay.ms, true, 0)+" ms")
		}
	}
	if f.FailureReason != "" {
		parts = append(parts, strings.TrimSpace(f.FailureFunction+" "+f.FailureReason))
	}
	if f.Disruptions > 0 {
		parts = append(parts, fmt.Sprintf("%d disruptions of %.0f ms", f.Disruptions, f.DisruptionMs))
	}
	return strings.Join(parts, ", ")
}

func numberText(v float64, known bool, decimals int) string {
	if !known {
		return "-"
	}
	return strconv.FormatFloat(v, 'f', decimals, 64)
}

func meanText(d *callscopev1.Distribution, decimals int) string {
	return numberText(d.GetMean(), d != nil && d.Mean != nil, decimals)
}

func percentText(d *callscopev1.Distribution) string {
	return numberText(100*d.GetMean(), d != nil && d.Mean != nil, 2)
}

// whyText lists what the scores lost, and whose side made the stream poor.
func whyText(st *callscopev1.StreamSummary) string {
	var reasons map[string]map[string]float64
	var parts []string
	if st.ScoreReasonsJson != "" && json.Unmarshal([]byte(st.ScoreReasonsJson), &reasons) == nil {
		for _, kind := range []string{"audio", "video"} {
			for _, reason := range []string{"delay", "loss", "freeze", "frame_rate", "resolution"} {
				if points := reasons[kind][reason]; points > 0 {
					parts = append(parts, fmt.Sprintf("%s -%s", strings.ReplaceAll(reason, "_", " "), strconv.FormatFloat(points, 'f', 2, 64)))
				}
			}
		}
		if len(parts) == 0 {
			parts = append(parts, "nothing lost")
		}
	}
	if st.Side != "" {
		parts = append(parts, "side: "+st.Side)
	}
	if len(parts) == 0 {
		return "-"
	}
	return strings.Join(parts, ", ")
}
