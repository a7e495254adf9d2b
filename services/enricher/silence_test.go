package enricher

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// mesh is a call of alice, bob and carol, in which bob sends alice audio and
// video; direct, or each by one fabric to a server.
type mesh struct {
	p                 *partition
	alice, bob, carol *client
	sent              float64
	server            bool
}

func newMesh(t *testing.T, server bool) *mesh {
	p, alice, bob := newPair(t)
	m := &mesh{p: p, alice: alice, bob: bob, carol: &client{p: p, room: "room", user: "carol", device: "d-carol"}, server: server}
	if server {
		alice.begin("a1", "sfu")
		bob.begin("b1", "sfu")
		m.carol.begin("c1", "sfu")
		return m
	}
	alice.begin("a1", "bob")
	bob.begin("b1", "alice")
	bob.begin("b2", "carol")
	m.carol.begin("c1", "bob")
	return m
}

// report lets everybody report after 5 s and returns the silence of what alice
// gets of bob, then of what bob sends on the fabric b1: audio, video.
func (m *mesh) report(t *testing.T) []callscopev1.Silence {
	t.Helper()
	m.p.wait(5_000)
	m.sent += 100
	remote := map[bool][2]string{false: {"bob", "alice"}, true: {"sfu", "sfu"}}[m.server]
	got := make([]callscopev1.Silence, 4)
	for i, side := range []struct {
		c                  *client
		connection, remote string
	}{{m.alice, "a1", remote[0]}, {m.bob, "b1", remote[1]}} {
		sound, picture := inbound("7", m.sent, 0, 10*m.sent), inbound("8", m.sent, 0, 10*m.sent)
		picture.Kind = "video"
		for _, rtp := range []*callscopev1.RtpStats{sound, picture} {
			rtp.AssociatedUserId = "bob"
			if i == 1 {
				rtp.Type, rtp.PacketsSent, rtp.PacketsReceived, rtp.PacketsLost = callscopev1.RtpType_RTP_TYPE_OUTBOUND, rtp.PacketsReceived, nil, nil
			}
		}
		for _, e := range side.c.stats(side.connection, side.remote, sound, picture) {
			if s := e.GetStreamSample(); s != nil {
				got[2*i+map[string]int{"7": 0, "8": 1}[s.Ssrc]] = s.Silence
			}
		}
	}
	if bob2 := "b2"; !m.server {
		m.bob.alive(bob2, "carol")
	}
	m.carol.alive("c1", "bob")
	return got
}

const (
	muted  = callscopev1.Silence_SILENCE_MUTED
	paused = callscopev1.Silence_SILENCE_PAUSED
	held   = callscopev1.Silence_SILENCE_HELD
)

// What somebody switches off on purpose makes the samples silent, and so does
// the part of an interval in which it was off.
func TestSilence(t *testing.T) {
	bob := func(m *mesh) *client { return m.bob }
	alice := func(m *mesh) *client { return m.alice }
	carol := func(m *mesh) *client { return m.carol }
	none := []callscopev1.Silence{heard, heard, heard, heard}
	for name, test := range map[string]struct {
		by                 func(*mesh) *client
		off, on            string
		connection, remote string
		server             bool
		want               []callscopev1.Silence // while it is off
	}{
		"muted":                           {by: bob, off: "audioMute", on: "audioUnmute", connection: "b1", remote: "alice", want: []callscopev1.Silence{muted, heard, muted, heard}},
		"paused":                          {by: bob, off: "videoPause", on: "videoResume", connection: "b1", remote: "alice", want: []callscopev1.Silence{heard, paused, heard, paused}},
		"held by who sends":               {by: bob, off: "fabricHold", on: "fabricResume", connection: "b1", remote: "alice", want: []callscopev1.Silence{held, held, held, held}},
		"held by who listens":             {by: alice, off: "fabricHold", on: "fabricResume", connection: "a1", remote: "bob", want: []callscopev1.Silence{held, held, heard, heard}},
		"muted, no fabric named":          {by: bob, off: "audioMute", on: "audioUnmute", want: []callscopev1.Silence{muted, heard, muted, heard}},
		"muted towards somebody else":     {by: bob, off: "audioMute", on: "audioUnmute", connection: "b2", remote: "carol", want: none},
		"held towards somebody else":      {by: bob, off: "fabricHold", on: "fabricResume", connection: "b2", remote: "carol", want: none},
		"somebody else mutes":             {by: carol, off: "audioMute", on: "audioUnmute", connection: "c1", remote: "bob", want: none},
		"who listens mutes":               {by: alice, off: "audioMute", on: "audioUnmute", connection: "a1", remote: "bob", want: none},
		"muted through a server":          {by: bob, off: "audioMute", on: "audioUnmute", connection: "b1", remote: "sfu", server: true, want: []callscopev1.Silence{muted, heard, muted, heard}},
		"somebody else through a server":  {by: carol, off: "videoPause", on: "videoResume", connection: "c1", remote: "sfu", server: true, want: none},
		"held towards a server by sender": {by: bob, off: "fabricHold", on: "fabricResume", connection: "b1", remote: "sfu", server: true, want: []callscopev1.Silence{held, held, held, held}},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t, test.server)
			for i, want := range [][]callscopev1.Silence{none, none, test.want, test.want, test.want, none} {
				if diff := cmp.Diff(want, m.report(t)); diff != "" {
					t.Errorf("report %d (-want +got)\n%s", i, diff)
				}
				switch i {
				case 1:
					test.by(m).does(test.off, test.connection, test.remote)
				case 3: // the interval of the next report begins with it off
					m.p.wait(500)
					test.by(m).does(test.on, test.connection, test.remote)
				}
			}
		})
	}
}

// What is switched off while no fabric is named holds for those that follow,
// until it is switched on or its participant has left and joins anew.
func TestSilenceOfLaterFabrics(t *testing.T) {
	silenceOf := func(p *partition, bob *client, connection string) callscopev1.Silence {
		for _, e := range bob.stats(connection, "alice", &callscopev1.RtpStats{
			Type: callscopev1.RtpType_RTP_TYPE_OUTBOUND, Id: "O", Ssrc: connection, Kind: "audio", PacketsSent: proto.Float64(100),
		}) {
			if s := e.GetStreamSample(); s != nil {
				return s.Silence
			}
		}
		p.t.Fatal("no sample")
		return heard
	}
	p, alice, bob := newPair(t)
	alice.begin("a1", "bob")
	bob.join()
	bob.does("audioMute", "", "")
	bob.devices("b1", "alice")
	p.wait(5_000)
	if got := silenceOf(p, bob, "b1"); got != muted {
		t.Errorf("a fabric begun while muted: %v", got)
	}
	bob.does("audioUnmute", "b1", "alice") // of that fabric alone
	p.wait(5_000)
	bob.devices("b2", "alice")
	p.wait(5_000)
	if got := []callscopev1.Silence{silenceOf(p, bob, "b1"), silenceOf(p, bob, "b2")}; !cmp.Equal(got, []callscopev1.Silence{heard, muted}) {
		t.Errorf("after one was unmuted: %v", got)
	}
	bob.left("", "")
	p.wait(5_000)
	alice.alive("a1", "bob")
	bob.begin("b3", "alice")
	p.wait(5_000)
	if got := silenceOf(p, bob, "b3"); got != heard {
		t.Errorf("after leaving and joining anew: %v", got)
	}
}

// Two devices of one user are silent only when both are; a device that left
// counts for the interval in which it did.
func TestSilenceOfTwoDevices(t *testing.T) {
	m := newMesh(t, false)
	other := &client{p: m.p, room: "room", user: "bob", device: "d-other"}
	other.begin("o1", "alice")
	listen := func() callscopev1.Silence {
		other.alive("o1", "alice")
		return m.report(t)[0]
	}
	listen()
	m.bob.does("audioMute", "b1", "alice")
	if got := listen(); got != heard {
		t.Errorf("one is muted: %v", got)
	}
	other.does("audioMute", "o1", "alice")
	if got := listen(); got != muted {
		t.Errorf("both are muted: %v", got)
	}
	m.p.wait(1_000)
	m.bob.left("", "")
	m.p.wait(100)
	other.left("", "")
	m.p.wait(1_000)
	m.sent += 100
	for _, e := range m.alice.stats("a1", "bob", inbound("7", m.sent, 0, 10*m.sent)) {
		if s := e.GetStreamSample(); s != nil && s.Silence != muted {
			t.Errorf("both left muted: %v", s.Silence)
		}
	}
}
