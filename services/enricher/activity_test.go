package enricher

import (
	"testing"

	"google.golang.org/protobuf/proto"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// does sends an event that has no fields of its own.
func (c *client) does(eventType, connection, remote string) []*callscopev1.Enriched {
	raw := c.message(eventType, connection, remote)
	raw.Payload = &callscopev1.Raw_MediaAction{MediaAction: &callscopev1.MediaAction{}}
	switch eventType {
	case "fabricHold", "fabricResume":
		raw.Payload = &callscopev1.Raw_FabricAction{FabricAction: &callscopev1.FabricAction{}}
	case "mediaPlaybackStart":
		raw.Payload = &callscopev1.Raw_MediaPlayback{MediaPlayback: &callscopev1.MediaPlayback{}}
	case "fabricTransportSwitch":
		raw.Payload = &callscopev1.Raw_FabricTransportSwitch{FabricTransportSwitch: &callscopev1.FabricTransportSwitch{}}
	}
	return c.send(raw)
}

func newestFabric(p *partition, user string) *callscopev1.FabricFacts {
	var facts *callscopev1.FabricFacts
	for _, e := range p.outputs {
		if e.GetFabric() != nil && e.Identity.UserId == user {
			facts = e.GetFabric()
		}
	}
	return facts
}

// times writes an activity: how often and how long, then its intervals in
// scenario time, the open one last.
func times(a *callscopev1.Activity) string {
	if a == nil {
		return "none"
	}
	text := sprint(a.Count, a.TotalMs)
	for _, interval := range a.Intervals {
		text = sprint(text, interval.FromMs-captureBaseMs, interval.ToMs-captureBaseMs)
	}
	if a.SinceMs != nil {
		text = sprint(text, *a.SinceMs-captureBaseMs, "open")
	}
	return text
}

// In the first second alice and bob have joined and set up; each case then says
// what alice does at 1 s, 2 s and so on.
func TestActivities(t *testing.T) {
	for name, test := range map[string]struct {
		events []string // of alice, one a second; empty: nothing
		then   func(p *partition, alice, bob *client)
		of     func(p *callscopev1.ParticipantFacts, f *callscopev1.FabricFacts) *callscopev1.Activity
		want   string
	}{
		"muted and not": {
			events: []string{"audioMute", "", "audioUnmute", "audioMute"},
			of: func(p *callscopev1.ParticipantFacts, _ *callscopev1.FabricFacts) *callscopev1.Activity {
				return p.AudioMute
			},
			want: "2 2000 1000 3000 4000 open",
		},
		"muted twice, unmuted twice": {
			events: []string{"audioMute", "audioMute", "audioUnmute", "audioUnmute"},
			of: func(p *callscopev1.ParticipantFacts, _ *callscopev1.FabricFacts) *callscopev1.Activity {
				return p.AudioMute
			},
			want: "1 2000 1000 3000",
		},
		"unmuted without a mute": {
			events: []string{"audioUnmute", "videoResume", "screenShareStop"},
			of: func(p *callscopev1.ParticipantFacts, _ *callscopev1.FabricFacts) *callscopev1.Activity {
				return p.AudioMute
			},
			want: "none",
		},
		"leaving ends a pause": {
			events: []string{"videoPause", "", "userLeft"},
			of: func(p *callscopev1.ParticipantFacts, _ *callscopev1.FabricFacts) *callscopev1.Activity {
				return p.VideoPause
			},
			want: "1 2000 1000 3000",
		},
		"silence interrupts a share": {
			events: []string{"screenShareStart"},
			then: func(p *partition, alice, bob *client) {
				keepAlive(40_000, map[*client]string{bob: "b1"})
				alice.alive("a1", "bob")
			},
			of: func(p *callscopev1.ParticipantFacts, _ *callscopev1.FabricFacts) *callscopev1.Activity {
				return p.ScreenShare
			},
			want: "2 0 1000 1000 42000 open",
		},
		"joining anew takes nothing up": {
			events: []string{"screenShareStart"},
			then: func(p *partition, alice, bob *client) {
				keepAlive(40_000, map[*client]string{bob: "b1"})
				alice.join()
				alice.alive("a1", "bob")
			},
			of: func(p *callscopev1.ParticipantFacts, _ *callscopev1.FabricFacts) *callscopev1.Activity {
				return p.ScreenShare
			},
			want: "1 0 1000 1000",
		},
		"somebody else speaks": {
			events: []string{"dominantSpeaker", "dominantSpeaker"},
			then:   func(p *partition, alice, bob *client) { bob.does("dominantSpeaker", "b1", "alice") },
			of: func(p *callscopev1.ParticipantFacts, _ *callscopev1.FabricFacts) *callscopev1.Activity {
				return p.DominantSpeaker
			},
			want: "1 2000 1000 3000",
		},
		"held and resumed": {
			events: []string{"fabricHold", "fabricHold", "fabricResume"},
			of:     func(_ *callscopev1.ParticipantFacts, f *callscopev1.FabricFacts) *callscopev1.Activity { return f.Hold },
			want:   "1 2000 1000 3000",
		},
		"the end of a fabric ends its hold": {
			events: []string{"fabricHold", "fabricTerminated", "fabricResume"},
			of:     func(_ *callscopev1.ParticipantFacts, f *callscopev1.FabricFacts) *callscopev1.Activity { return f.Hold },
			want:   "1 1000 1000 2000",
		},
		"still held after silence": {
			events: []string{"fabricHold"},
			then: func(p *partition, alice, bob *client) {
				keepAlive(40_000, map[*client]string{bob: "b1"})
				alice.alive("a1", "bob")
			},
			of:   func(_ *callscopev1.ParticipantFacts, f *callscopev1.FabricFacts) *callscopev1.Activity { return f.Hold },
			want: "2 0 1000 1000 42000 open",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, alice, bob := newPair(t)
			alice.begin("a1", "bob")
			bob.begin("b1", "alice")
			for _, event := range test.events {
				switch event {
				case "":
				case "fabricTerminated":
					alice.terminate("a1", "bob")
				case "userLeft":
					alice.left("a1", "bob")
				default:
					alice.does(event, "a1", "bob")
				}
				p.wait(1_000)
			}
			if test.then != nil {
				test.then(p, alice, bob)
			}
			if got := times(test.of(newestParticipant(p, "alice"), newestFabric(p, "alice"))); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// An activity of many intervals stays small and keeps counting.
func TestActivitiesAreBounded(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("a1", "bob")
	for range 3 * maxIntervals {
		alice.does("audioMute", "a1", "bob")
		p.wait(10)
		alice.does("audioUnmute", "a1", "bob")
	}
	mute := newestParticipant(p, "alice").AudioMute
	if len(mute.Intervals) != maxIntervals || mute.Count != 3*maxIntervals || mute.TotalMs != 30*maxIntervals {
		t.Errorf("%d intervals, count %d, total %d ms", len(mute.Intervals), mute.Count, mute.TotalMs)
	}
}

func TestFirstMediaAndTransport(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("a1", "bob")
	p.wait(4_500)
	alice.stats("a1", "bob", inbound("7", 0, 0, 0))
	if facts := newestFabric(p, "alice"); facts.FirstMediaMs != nil {
		t.Errorf("media before the first packet: %v", facts)
	}
	p.wait(5_000)
	alice.stats("a1", "bob", inbound("7", 10, 0, 100))
	if facts := newestFabric(p, "alice"); facts.GetFirstMediaMs() != 10_000 || facts.FirstMediaSource != "report" {
		t.Errorf("after the first packets: %v", facts)
	}
	for range 2 { // the second changes nothing
		p.wait(2_000)
		alice.does("mediaPlaybackStart", "a1", "bob")
	}
	alice.does("fabricTransportSwitch", "a1", "bob")
	alice.does("fabricTransportSwitch", "a1", "bob")
	facts := newestFabric(p, "alice")
	if facts.GetFirstMediaMs() != 12_000 || facts.FirstMediaSource != "playback" || facts.TransportSwitches != 2 {
		t.Errorf("after a playback and two switches: %v", facts)
	}
}

func TestActiveDevices(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("a1", "bob")
	for _, n := range []int{1, 2, 40} {
		raw := alice.message("activeDeviceList", "a1", "bob")
		list := &callscopev1.DeviceList{}
		for i := range n {
			list.MediaDeviceList = append(list.MediaDeviceList, &callscopev1.MediaDevice{Kind: "audioinput", Label: sprint("microphone", i)})
		}
		raw.Payload = &callscopev1.Raw_DeviceList{DeviceList: list}
		alice.send(raw)
		got := newestParticipant(p, "alice").ActiveDevices
		if len(got) != min(n, maxDevices) || !proto.Equal(got[0], list.MediaDeviceList[0]) {
			t.Errorf("of %d devices, %v", n, got)
		}
	}
}
