package enricher

import (
	"math"
	"testing"

	"google.golang.org/protobuf/proto"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// Alice listens to bob over a path of 60 ms. The values are the E-model's, by
// the published vectors for 60 ms and 40 ms of playout delay: 4.408 without
// loss, 2.515 with 5 %.
func TestAudioMOSOfSamples(t *testing.T) {
	for name, test := range map[string]struct {
		lost   float64 // of 100 packets that should have come in the last 5 s
		before func(p *partition, alice, bob *client)
		change func(rtp *callscopev1.RtpStats)
		noPath bool
		want   float64 // NaN: none
	}{
		"no loss": {want: 4.408},
		"5 %":     {lost: 5, want: 2.515},
		"bob is muted": {want: math.NaN(), before: func(_ *partition, _, bob *client) {
			bob.does("audioMute", "b1", "alice")
		}},
		"bob was muted for a part of the interval": {want: math.NaN(), before: func(p *partition, _, bob *client) {
			bob.does("audioMute", "b1", "alice")
			p.wait(1_000)
			bob.does("audioUnmute", "b1", "alice")
		}},
		"alice's own mute is nothing to what she hears": {want: 4.408, before: func(_ *partition, alice, _ *client) {
			alice.does("audioMute", "a1", "bob")
		}},
		"bob holds": {want: math.NaN(), before: func(_ *partition, _, bob *client) {
			bob.does("fabricHold", "b1", "alice")
		}},
		"alice holds": {want: math.NaN(), before: func(_ *partition, alice, _ *client) {
			alice.does("fabricHold", "a1", "bob")
		}},
		"video":          {want: math.NaN(), change: func(rtp *callscopev1.RtpStats) { rtp.Kind = "video" }},
		"no packets":     {want: math.NaN(), change: func(rtp *callscopev1.RtpStats) { rtp.PacketsReceived = proto.Float64(100) }},
		"packets unsaid": {want: math.NaN(), change: func(rtp *callscopev1.RtpStats) { rtp.PacketsReceived = nil }},
		"no round trip":  {want: math.NaN(), noPath: true},
	} {
		t.Run(name, func(t *testing.T) {
			p, alice, bob := newPair(t)
			alice.begin("a1", "bob")
			bob.begin("b1", "alice")
			report := func(rtp *callscopev1.RtpStats) *callscopev1.StreamSample {
				rtps := []*callscopev1.RtpStats{rtp}
				if !test.noPath {
					rtps = append(rtps, &callscopev1.RtpStats{
						Type: callscopev1.RtpType_RTP_TYPE_REMOTE_OUTBOUND, Id: "R", LocalId: rtp.Id, Ssrc: rtp.Ssrc, RoundTripTime: proto.Float64(0.06),
					})
				}
				for _, e := range alice.stats("a1", "bob", rtps...) {
					if s := e.GetStreamSample(); s != nil {
						return s
					}
				}
				t.Fatal("no sample")
				return nil
			}
			p.wait(5_000)
			report(inbound("7", 100, 0, 1000))
			p.wait(2_000)
			if test.before != nil {
				test.before(p, alice, bob)
			}
			p.wait(2_000)
			rtp := inbound("7", 200-test.lost, test.lost, 2000)
			if test.change != nil {
				test.change(rtp)
			}
			sample := report(rtp)
			got := sample.AudioMos
			if (got == nil) != (sample.AudioDelayPenalty == nil) || (got == nil) != (sample.AudioLossPenalty == nil) {
				t.Errorf("MOS and what it lost go together: %v", sample)
			}
			if want := (132 - 10.2) * test.lost / (test.lost + 4.3) / 1.48; got != nil && math.Abs(*sample.AudioLossPenalty-want) > 1e-3 {
				t.Errorf("lost %v to loss, want %v", *sample.AudioLossPenalty, want)
			}
			switch {
			case math.IsNaN(test.want):
				if got != nil {
					t.Errorf("MOS %v, want none", *got)
				}
			case got == nil || math.Abs(*got-test.want) > 0.005:
				t.Errorf("MOS %v, want %v", got, test.want)
			}
		})
	}
}
