package stagetest

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// Calls makes the raw records of a few clients in two rooms, by chance: they
// join, set up fabrics, report, mute, fail, leave and come back. Some number
// their messages and send what was not acknowledged again, out of order. It is
// one simulation's Next, and its Check holds the output against what was sent
// without knowing any rule of the enricher but one: a message is one output,
// the first of its record.
type Calls struct {
	clients []*caller
	nowMs   int64
	sent    []*callscopev1.Raw
	held    []*callscopev1.Raw // overtaken by others
}

// caller is one client. Its counters only grow.
type caller struct {
	room, user, device, remote string
	fabric                     int
	session                    []byte // of numbered messages, nil for others
	number                     uint64
	packets                    float64
	skewMs                     float64
}

const (
	callsApp     = "123456789"
	callsEpochMs = 1_767_323_045_000
)

// NewCalls returns clients that have sent nothing.
func NewCalls() *Calls {
	c := &Calls{nowMs: callsEpochMs}
	for i, user := range []string{"alice", "bob", "carol"} {
		for _, room := range []string{"room", "other"} {
			if user == "carol" && room == "other" {
				continue
			}
			client := &caller{room: room, user: user, device: "d-" + user, remote: []string{"bob", "alice", "alice"}[i]}
			if user != "bob" {
				client.session = stage.UID([]byte(room), []byte(user))
			}
			if user == "carol" {
				client.skewMs = 86_400_000
			}
			c.clients = append(c.clients, client)
		}
	}
	return c
}

// Next makes the next record that the gateway writes.
func (c *Calls) Next(rng *rand.Rand) (key, value []byte) {
	c.nowMs += rng.Int64N(3_000)
	var raw *callscopev1.Raw
	switch p := rng.IntN(20); {
	case p < 3 && len(c.held) > 0:
		i := rng.IntN(len(c.held))
		raw = c.held[i]
		c.held = slices.Delete(c.held, i, i+1)
	case p == 3 && len(c.sent) > 0: // once more, as the gateway takes it: another record
		raw = proto.CloneOf(c.sent[len(c.sent)-1-rng.IntN(min(len(c.sent), 10))])
		raw.Uid = nil
	default:
		raw = c.message(rng)
		if raw.Claimed.Sequence != nil && rng.IntN(4) == 0 && len(c.held) < 5 {
			c.held = append(c.held, raw)
			raw = c.message(rng)
		}
	}
	if raw.Uid == nil {
		raw.Uid = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, rng.Uint64()), rng.Uint64())
	}
	raw.Observed.ReceivedAtMs = c.nowMs
	c.sent = append(c.sent, raw)
	value, err := raw.MarshalVT()
	if err != nil {
		panic(err) // no message of ours can fail to marshal
	}
	return []byte(callsApp + "\x00" + raw.Claimed.ConferenceId), value
}

// message lets a client send something.
func (c *Calls) message(rng *rand.Rand) *callscopev1.Raw {
	client := c.clients[rng.IntN(len(c.clients))]
	raw := &callscopev1.Raw{
		Claimed: &callscopev1.Claimed{
			ConferenceId: client.room, UserId: client.user, DeviceId: client.device, RemoteId: client.remote,
			ConnectionId: fmt.Sprintf("%s-%d", client.user, client.fabric), TimeMs: float64(c.nowMs) + client.skewMs,
		},
		Observed: &callscopev1.Observed{AppId: callsApp},
	}
	fabricState := func(from, to string) *callscopev1.Raw_FabricStateChange {
		return &callscopev1.Raw_FabricStateChange{FabricStateChange: &callscopev1.FabricStateChange{ChangedState: "iceConnectionState", PrevState: from, NewState: to}}
	}
	switch p := rng.IntN(40); {
	case p < 4:
		raw.EventType, raw.Claimed.ConnectionId, raw.Claimed.RemoteId = "userJoined", "", ""
		raw.Payload = &callscopev1.Raw_UserJoined{UserJoined: &callscopev1.UserJoined{UserName: client.user}}
	case p < 9:
		raw.EventType, raw.Payload = "fabricStateChange", fabricState("checking", "connected")
	case p < 10:
		raw.EventType, raw.Payload = "fabricStateChange", fabricState("connected", "failed")
	case p < 12:
		raw.EventType = "fabricSetup"
		raw.Payload = &callscopev1.Raw_FabricSetup{FabricSetup: &callscopev1.FabricSetup{DelayMs: proto.Float64(float64(rng.IntN(900)))}}
	case p < 24:
		raw.EventType = "stats"
		raw.Payload = &callscopev1.Raw_Stats{Stats: client.stats(rng, raw.Claimed.TimeMs)}
	case p < 28:
		raw.EventType = "userAlive"
		raw.Payload = &callscopev1.Raw_UserAlive{UserAlive: &callscopev1.UserAlive{}}
	case p < 31:
		raw.EventType = []string{"audioMute", "audioUnmute", "videoPause", "videoResume", "screenShareStart", "screenShareStop"}[rng.IntN(6)]
		raw.Payload = &callscopev1.Raw_MediaAction{MediaAction: &callscopev1.MediaAction{}}
	case p < 32:
		raw.EventType = "dominantSpeaker"
		raw.Payload = &callscopev1.Raw_DominantSpeaker{DominantSpeaker: &callscopev1.DominantSpeaker{}}
	case p < 33:
		raw.EventType = []string{"fabricHold", "fabricResume"}[rng.IntN(2)]
		raw.Payload = &callscopev1.Raw_FabricAction{FabricAction: &callscopev1.FabricAction{}}
	case p < 34:
		raw.EventType = []string{"iceDisruptionStart", "iceDisruptionEnd", "iceFailed"}[rng.IntN(3)]
		raw.Payload = &callscopev1.Raw_IceEvent{IceEvent: &callscopev1.IceEvent{}}
	case p < 35:
		raw.EventType = "fabricSetupFailed"
		raw.Payload = &callscopev1.Raw_Failure{Failure: &callscopev1.Failure{Function: "createOffer", Reason: "NegotiationFailure"}}
	case p < 36:
		raw.EventType = "ssrcMap"
		raw.Payload = &callscopev1.Raw_SsrcMap{SsrcMap: &callscopev1.SsrcMap{SsrcData: []*callscopev1.SsrcMapEntry{{Ssrc: "1", RemoteUserId: "dave", UsageLabel: "screen"}}}}
	case p < 37:
		raw.EventType = "userFeedbackEvent"
		raw.Claimed.ConnectionId = ""
		raw.Payload = &callscopev1.Raw_Feedback{Feedback: &callscopev1.Feedback{Overall: proto.Float64(float64(1 + rng.IntN(5)))}}
	case p < 39:
		raw.EventType = "fabricTerminated"
		raw.Payload = &callscopev1.Raw_FabricTerminated{FabricTerminated: &callscopev1.FabricTerminated{}}
		client.fabric++
	default:
		raw.EventType = "userLeft"
		raw.Payload = &callscopev1.Raw_UserLeft{UserLeft: &callscopev1.UserLeft{}}
		client.fabric++
	}
	if client.session != nil {
		client.number++
		raw.Claimed.SessionUid, raw.Claimed.Sequence = client.session, proto.Uint64(client.number)
		return raw
	}
	hash := sha256.Sum256(binary.BigEndian.AppendUint64(nil, rng.Uint64()))
	raw.Observed.ContentHash = hash[:]
	return raw
}

func (c *caller) stats(rng *rand.Rand, timeMs float64) *callscopev1.Stats {
	c.packets += float64(rng.IntN(500))
	if rng.IntN(20) == 0 {
		c.packets = 0
	}
	lost := float64(rng.IntN(10))
	return &callscopev1.Stats{
		ReportTimeMs: timeMs,
		Rtp: []*callscopev1.RtpStats{
			{Type: callscopev1.RtpType_RTP_TYPE_INBOUND, Id: "I", Ssrc: "1", Kind: "audio", PacketsReceived: proto.Float64(c.packets), BytesReceived: proto.Float64(80 * c.packets), PacketsLost: &lost},
			{Type: callscopev1.RtpType_RTP_TYPE_OUTBOUND, Id: "O", Ssrc: "2", Kind: "video", PacketsSent: proto.Float64(2 * c.packets), BytesSent: proto.Float64(900 * c.packets)},
		},
		CandidatePairs: []*callscopev1.CandidatePairStats{{Id: "P", Selected: true, CurrentRoundTripTime: proto.Float64(0.05), BytesSent: proto.Float64(900 * c.packets)}},
	}
}

// Check tells whether each message that was sent is in the output once:
// numbered ones exactly, because a client's number is remembered as long as
// the client lives, others at least, because a copy of a record that comes
// more than a minute later is not known as one. It is a Check of Options.
func (c *Calls) Check(inputs, accepted []stream.Record) error {
	outputs := map[string]int{} // by uid
	for _, r := range accepted {
		uid, _, _, err := stage.ReadHeader(r.Value)
		if err != nil {
			return err
		}
		outputs[string(uid)]++
	}
	type message struct {
		session string
		number  uint64
		hash    string
	}
	there := map[message]map[string]bool{} // the uids of its copies
	for _, r := range inputs {
		var raw callscopev1.Raw
		if err := raw.UnmarshalVT(r.Value); err != nil {
			return err
		}
		if raw.GetTick() != nil {
			continue
		}
		m := message{string(raw.Claimed.SessionUid), raw.Claimed.GetSequence(), string(raw.Observed.ContentHash)}
		if there[m] == nil {
			there[m] = map[string]bool{}
		}
		there[m][string(stage.OutputUID(raw.Uid, 0))] = true
	}
	for m, uids := range there {
		n := 0
		for uid := range uids {
			n += outputs[uid]
		}
		if n == 0 || n > 1 && m.hash == "" {
			return fmt.Errorf("message %d of session %x (hash %x) is %d times in the output", m.number, m.session, m.hash, n)
		}
	}
	return nil
}
