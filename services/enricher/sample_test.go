package enricher

import (
	"bufio"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// rtpEntries reads the RTP entries of every stats message straight from a
// recording, in order, with what the peer says of each beside it.
func rtpEntries(t *testing.T, name string) (entries []map[string]any) {
	t.Helper()
	file, err := os.Open(filepath.Join(captures, name+".jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var line struct{ Kind, Method, Path, Body string }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		if line.Method != "POST" || !strings.HasSuffix(line.Path, "/stats") {
			continue
		}
		var body struct {
			ConnectionID string
			Stats        []map[string]any
		}
		if err := json.Unmarshal([]byte(line.Body), &body); err != nil {
			t.Fatal(err)
		}
		for _, e := range body.Stats {
			if e["type"] != "inbound-rtp" && e["type"] != "outbound-rtp" {
				continue
			}
			for _, other := range body.Stats {
				if other["localId"] == e["id"] {
					e["peer"] = other
				}
			}
			e["stream"] = body.ConnectionID + " " + e["id"].(string)
			entries = append(entries, e)
		}
	}
	return entries
}

// The samples of the recordings are what a pocket calculator makes of them.
func TestSamplesOfRecordings(t *testing.T) {
	for _, name := range []string{"two-users-hs256", "mesh3", "no-submission-interval", "es256-token-generator", "proxy-config"} {
		t.Run(name, func(t *testing.T) {
			entries := rtpEntries(t, name)
			p := play(t, readCapture(t, name))
			last := map[string]map[string]any{}
			i, later := 0, 0
			for _, e := range p.outputs {
				s := e.GetStreamSample()
				if s == nil {
					continue
				}
				entry := entries[i]
				i++
				before, known := last[entry["stream"].(string)]
				last[entry["stream"].(string)] = entry
				// A client that polls too often posts a report twice: nothing
				// lies between the two.
				twice := known && entry["timestamp"] == before["timestamp"]
				grown := func(key string) float64 {
					now, sent := entry[key].(float64)
					if !sent || twice {
						return math.NaN()
					}
					if !known {
						return now
					}
					return now - before[key].(float64)
				}
				packets, bytes := "packetsReceived", "bytesReceived"
				if entry["type"] == "outbound-rtp" {
					packets, bytes = "packetsSent", "bytesSent"
				}
				same(t, "packets", s.Packets, grown(packets))
				same(t, "bytes", s.Bytes, grown(bytes))
				if s.GetReset_() {
					t.Errorf("a reset in %v", entry)
				}
				switch {
				case twice:
					same(t, "interval", s.IntervalMs, math.NaN())
				case known:
					later++
					dt := entry["timestamp"].(float64) - before["timestamp"].(float64)
					same(t, "interval", s.IntervalMs, dt)
					same(t, "bitrate", s.BitrateKbps, grown(bytes)*8/dt)
					same(t, "packet rate", s.PacketRate, grown(packets)/dt*1000)
				case s.GetIntervalMs() < 3_000 || s.GetIntervalMs() > 26_000:
					t.Errorf("the first interval has %v ms", s.GetIntervalMs())
				}
				if entry["type"] == "inbound-rtp" {
					same(t, "lost", s.PacketsLost, grown("packetsLost"))
					same(t, "loss", s.Loss, grown("packetsLost")/(grown("packetsLost")+grown(packets)))
					same(t, "jitter", s.JitterMs, entry["jitter"].(float64)*1000)
					same(t, "samples", s.SamplesReceived, grown("totalSamplesReceived"))
					same(t, "concealment", s.Concealment, (grown("concealedSamples")-grown("silentConcealedSamples"))/grown("totalSamplesReceived"))
					same(t, "freeze", s.FreezeMs, grown("totalFreezesDuration")*1000)
					same(t, "buffer", s.JitterBufferDelayMs, grown("jitterBufferDelay")/grown("jitterBufferEmittedCount")*1000)
				} else if peer, _ := entry["peer"].(map[string]any); peer != nil {
					if _, sent := peer["jitter"]; sent {
						same(t, "jitter", s.JitterMs, peer["jitter"].(float64)*1000)
					}
				}
				if width, sent := entry["frameWidth"].(float64); sent {
					same(t, "width", s.FrameWidth, width)
				} else if s.FrameWidth != nil {
					t.Errorf("a width in %v", entry)
				}
			}
			if i != len(entries) || name != "proxy-config" && later == 0 {
				t.Errorf("%d samples, %d of them not the first, of %d entries", i, later, len(entries))
			}
		})
	}
}

func same(t *testing.T, what string, got *float64, want float64) {
	t.Helper()
	switch {
	case math.IsNaN(want):
		if got != nil {
			t.Errorf("%s is %v, want none", what, *got)
		}
	case got == nil:
		t.Errorf("%s is missing, want %v", what, want)
	case math.Abs(*got-want) > 1e-9*math.Max(1, math.Abs(want)):
		t.Errorf("%s is %v, want %v", what, *got, want)
	}
}

func TestCountersThatBeginAnew(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("f", "bob")
	p.wait(10_000)
	report := func(packets, lost, bytes float64, change func(*callscopev1.RtpStats)) *callscopev1.StreamSample {
		rtp := inbound("7", packets, lost, bytes)
		if change != nil {
			change(rtp)
		}
		for _, e := range alice.stats("f", "bob", rtp) {
			if s := e.GetStreamSample(); s != nil {
				return s
			}
		}
		t.Fatal("no sample")
		return nil
	}
	first := report(1000, 10, 100_000, nil)
	same(t, "first interval", first.IntervalMs, 10_000)
	same(t, "first packets", first.Packets, 1000)
	same(t, "first loss", first.Loss, 10.0/1010)
	same(t, "first bitrate", first.BitrateKbps, 80)

	p.wait(10_000)
	fallen := report(50, 0, 5_000, nil)
	if !fallen.Reset_ || fallen.Packets != nil || fallen.Loss != nil || fallen.BitrateKbps != nil {
		t.Errorf("after a reset: %v", fallen)
	}
	p.wait(5_000)
	next := report(150, -2, 15_000, nil)
	same(t, "packets after a reset", next.Packets, 100)
	same(t, "lost may fall", next.PacketsLost, -2)
	same(t, "loss is never negative", next.Loss, 0)

	same(t, "the same report again", report(150, -2, 15_000, nil).Packets, math.NaN())
	p.wait(5_000)
	overtaken := report(120, -2, 12_000, func(r *callscopev1.RtpStats) { r.TimestampMs = float64(captureBaseMs + p.nowMs - 8_000) })
	if overtaken.IntervalMs != nil || overtaken.Reset_ {
		t.Errorf("a report that was overtaken gave %v", overtaken)
	}
	moved := report(250, -2, 25_000, func(r *callscopev1.RtpStats) { r.Id = "another" })
	same(t, "packets under another id", moved.Packets, 100)
	same(t, "interval under another id", moved.IntervalMs, 5_000)
}

// A browser's clock that is set back makes one interval of unknown length, and
// nothing is lost of what was counted.
func TestClockSetBack(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("f", "bob")
	skewMs := int64(0)
	report := func(n float64) (stream *callscopev1.StreamSample, path *callscopev1.FabricSample) {
		p.wait(5_000)
		timestampMs := float64(captureBaseMs + p.nowMs + skewMs)
		rtp := inbound("7", 100*n, n, 10_000*n)
		rtp.TimestampMs = timestampMs
		raw := alice.message("stats", "f", "bob")
		raw.Payload = &callscopev1.Raw_Stats{Stats: &callscopev1.Stats{
			Rtp: []*callscopev1.RtpStats{rtp}, ReportTimeMs: timestampMs,
			CandidatePairs: []*callscopev1.CandidatePairStats{{Id: "1", Selected: true, TimestampMs: timestampMs, BytesReceived: proto.Float64(11_000 * n)}},
		}}
		for _, e := range alice.send(raw) {
			if e.GetStreamSample() != nil {
				stream = e.GetStreamSample()
			}
			if e.GetFabricSample() != nil {
				path = e.GetFabricSample()
			}
		}
		return stream, path
	}
	report(1)
	skewMs = -3_600_000
	s, path := report(2)
	same(t, "packets when the clock was set back", s.Packets, 100)
	same(t, "loss when the clock was set back", s.Loss, 1.0/101)
	same(t, "interval when the clock was set back", s.IntervalMs, math.NaN())
	same(t, "bitrate when the clock was set back", s.BitrateKbps, math.NaN())
	same(t, "received when the clock was set back", path.BytesReceived, 11_000)
	same(t, "transport's interval when the clock was set back", path.IntervalMs, math.NaN())
	s, path = report(3)
	same(t, "packets after that", s.Packets, 100)
	same(t, "interval after that", s.IntervalMs, 5_000)
	same(t, "bitrate after that", s.BitrateKbps, 16)
	same(t, "received after that", path.BytesReceived, 11_000)
	same(t, "transport's interval after that", path.IntervalMs, 5_000)
}

func TestWhatThePeerSays(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("f", "bob")
	send := func(sent, lost, rtt, measurements float64) *callscopev1.StreamSample {
		p.wait(5_000)
		out := &callscopev1.RtpStats{Type: callscopev1.RtpType_RTP_TYPE_OUTBOUND, Id: "O", Ssrc: "7", Kind: "audio", PacketsSent: &sent, BytesSent: &sent}
		peer := &callscopev1.RtpStats{
			Type: callscopev1.RtpType_RTP_TYPE_REMOTE_INBOUND, Id: "R", LocalId: "O", Ssrc: "7", PacketsLost: &lost,
			RoundTripTime: proto.Float64(0.5), TotalRoundTripTime: &rtt, RoundTripTimeMeasurements: &measurements, Jitter: proto.Float64(0.002),
		}
		for _, e := range alice.stats("f", "bob", peer, out) {
			if s := e.GetStreamSample(); s != nil {
				return s
			}
		}
		t.Fatal("no sample")
		return nil
	}
	s := send(100, 0, 0.2, 2)
	same(t, "rtt", s.RttMs, 100)
	same(t, "jitter", s.JitterMs, 2)
	s = send(200, 25, 0.8, 4)
	same(t, "lost", s.PacketsLost, 25)
	same(t, "loss", s.Loss, 0.25)
	same(t, "rtt", s.RttMs, 300)
	s = send(300, 25, 0.8, 4)
	same(t, "rtt without a new measurement", s.RttMs, 500)
	s = send(400, 3, 0.1, 1) // the peer began anew
	same(t, "lost", s.PacketsLost, math.NaN())
	same(t, "packets", s.Packets, 100)
}

func TestFabricSamples(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("f", "bob")
	send := func(stats *callscopev1.Stats) []*callscopev1.Enriched {
		p.wait(5_000)
		raw := alice.message("stats", "f", "bob")
		stats.ReportTimeMs = float64(captureBaseMs + p.nowMs)
		raw.Payload = &callscopev1.Raw_Stats{Stats: stats}
		return alice.send(raw)
	}
	pair := func(id, local string, sent, rtt, responses float64) *callscopev1.CandidatePairStats {
		return &callscopev1.CandidatePairStats{
			Id: id, LocalCandidateId: local, RemoteCandidateId: "r", State: "succeeded", Nominated: proto.Bool(true), BytesSent: &sent,
			TotalRoundTripTime: &rtt, ResponsesReceived: &responses, CurrentRoundTripTime: proto.Float64(0.9), AvailableOutgoingBitrate: proto.Float64(300_000),
		}
	}
	candidates := []*callscopev1.CandidateStats{
		{Id: "h", CandidateType: "host", Protocol: "udp", NetworkType: "wifi"}, {Id: "t", CandidateType: "relay", Protocol: "tcp"}, {Id: "r", Remote: true, CandidateType: "srflx"},
	}
	outputs := send(&callscopev1.Stats{Candidates: candidates, CandidatePairs: []*callscopev1.CandidatePairStats{pair("1", "h", 1000, 0.1, 1), pair("2", "t", 10, 0, 0)}})
	s := outputs[1].GetFabricSample()
	same(t, "rtt", s.RttMs, 100)
	same(t, "available", s.AvailableOutgoingKbps, 300)
	same(t, "sent", s.BytesSent, 1000)
	same(t, "interval", s.IntervalMs, 5_000)
	if s.GetRelayed() || s.Relayed == nil || s.Protocol != "udp" || s.NetworkType != "wifi" || s.RemoteCandidateType != "srflx" {
		t.Errorf("the busiest nominated pair gave %v", s)
	}
	if facts := outputs[2].GetFabric(); facts.Relayed == nil || facts.GetRelayed() {
		t.Errorf("facts %v", facts)
	}
	// The transport names another pair: what it carried before is unknown.
	outputs = send(&callscopev1.Stats{
		Candidates: candidates, CandidatePairs: []*callscopev1.CandidatePairStats{pair("1", "h", 2000, 0.2, 2), pair("2", "t", 500, 0.4, 2)},
		Transports: []*callscopev1.TransportStats{{Id: "T", SelectedCandidatePairId: "2"}},
	})
	s = outputs[1].GetFabricSample()
	same(t, "rtt", s.RttMs, 900)
	same(t, "sent", s.BytesSent, math.NaN())
	if !s.GetRelayed() || !outputs[2].GetFabric().GetRelayed() {
		t.Errorf("relayed: %v", s)
	}
	outputs = send(&callscopev1.Stats{
		Candidates: candidates, CandidatePairs: []*callscopev1.CandidatePairStats{pair("1", "h", 2000, 0.2, 2), pair("2", "t", 1500, 0.8, 4)},
		Transports: []*callscopev1.TransportStats{{Id: "T", SelectedCandidatePairId: "2"}},
	})
	s = outputs[1].GetFabricSample()
	same(t, "rtt", s.RttMs, 200)
	same(t, "sent", s.BytesSent, 1000)
	if outputs = send(&callscopev1.Stats{}); len(outputs) != 1 {
		t.Errorf("a report of nothing gave %v", kindsOf(outputs))
	}
}

func TestStreamsOverLimitAreBounded(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("f", "bob")
	for i := range 9 {
		p.wait(1_000)
		for _, e := range alice.stats("f", "bob", manyStreams(i*1_000, 1_000)...) {
			if s := e.GetStreamSample(); s != nil && s.Ssrc == "9000" && (s.Packets != nil || s.OwnerSource != callscopev1.OwnerSource_OWNER_SOURCE_UNKNOWN) {
				t.Errorf("a stream beyond the limit gave %v", s)
			}
		}
	}
	if got := p.m.Counts().StreamsOverLimit; got != 9_000-maxStreams {
		t.Errorf("counted %d streams over the limit", got)
	}
}
