package summarizer

import (
	"github.com/callscope/callscope/internal/quality"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// The sides that can make a stream poor.
const (
	sideSender      = "sender"
	sideNetworkUp   = "networkUp"
	sideNetworkDown = "networkDown"
	sideReceiver    = "receiver"
)

const (
	// A stream is poor when it scored below the threshold for this share of the
	// time that was scored, and at least this long.
	poorShare = 0.1
	poorMs    = 20_000
	// Loss at or above lossBad explains a poor stream (2 % take the audio MOS to
	// 3.45); loss below lossGood does not.
	lossBad  = 0.02
	lossGood = 0.01
	// A sender is limited by its processor or bandwidth when it is for this share
	// of the measured time, and at least this long.
	limitedShare = 0.2
	limitedMs    = 20_000
	// A receiver that shows less than this share of the frames that were sent, or
	// makes up more than this share of the sound, though nothing was lost, cannot
	// keep up.
	shownShare     = 0.7
	concealedShare = 0.05
)

// sideEvidence is what a side was concluded from. Losses are 0 to 1, absent
// where unknown; limits and shares likewise.
type sideEvidence struct {
	Rule           string   `json:"rule"`
	PublisherUID   string   `json:"publisher_uid"`
	Direct         bool     `json:"direct"` // no server between the two
	LossReceived   *float64 `json:"loss_received,omitempty"`
	LossSent       *float64 `json:"loss_sent,omitempty"`
	CPUShare       *float64 `json:"cpu_share,omitempty"`
	BandwidthShare *float64 `json:"bandwidth_share,omitempty"`
	FramesSent     *float64 `json:"frame_rate_sent,omitempty"`
	FramesShown    *float64 `json:"frame_rate_shown,omitempty"`
	Concealed      *float64 `json:"concealed,omitempty"`
}

// side is whose side made a stream poor.
type side struct {
	name      string
	evidence  sideEvidence
	publisher *participant
}

// side says whose side made an inbound stream of p poor, nil where the stream
// is not poor or nothing can be said. Both sides must be known: the stream's
// owner publishes a stream of the same SSRC and kind in this conference, has
// reported it, and is somebody else. The first rule that holds decides.
//
//	rule            holds when                                                        side
//	senderFroze     the publisher's source ran for 15 s without a frame sent          sender
//	senderCPU       its encoder was limited by the processor for 20 % of the time     sender
//	through a server, which reports the loss of the way up and sends on what it got:
//	lossUp          loss up ≥ 2 %, loss received < 1 %                                networkUp
//	lossDown        loss received ≥ 2 %, loss up < 1 %                                networkDown
//	bandwidthUp     its encoder was limited by the bandwidth for 20 % of the time,    networkUp
//	                loss received < 1 %
//	directly, where both report the loss of one way, which is ≥ 2 % by both, and
//	others tell the ends of it apart:
//	lossUp          the publisher loses ≥ 2 % to all its other remotes (one at        networkUp
//	                least), the receiver < 1 % of what others send
//	lossDown        the receiver loses ≥ 2 % of what all others send (one at least),  networkDown
//	                the publisher < 1 % to its other remotes
//	in any case, when both losses are known and < 1 %:
//	framesShown     less than 70 % of the frames sent are shown                       receiver
//	soundConcealed  more than 5 % of the sound is made up                             receiver
//
// Loss that is bad on both sides of a server says nothing: some servers pass
// the gaps of the way up on, others hide them.
func (c *conference) side(p *participant, f *fabric, st *streamState) *side {
	if st.facts.Direction != callscopev1.Direction_DIRECTION_INBOUND || !st.poor() {
		return nil
	}
	publisher, from, sent := c.publisherOf(p, st)
	if sent == nil {
		return nil
	}
	direct := f.remoteID != "" && f.remoteID == publisher.userID && f.facts.GetRemoteType() != "server"
	s := &side{publisher: publisher, evidence: sideEvidence{
		PublisherUID: uidText(publisher.uid), Direct: direct,
		LossReceived: st.wholeLoss(), LossSent: sent.wholeLoss(),
		CPUShare: sent.share(sumCPUMs), BandwidthShare: sent.share(sumBandwidthMs),
		FramesSent: sent.frameRate(), FramesShown: st.frameRate(), Concealed: st.concealed(),
	}}
	e := &s.evidence
	s.name, e.Rule = sideOf(e, sent, func() (up, down lossOfOthers) {
		return publisher.lossTo(from), p.lossFrom(publisher.userID)
	})
	if s.name == "" {
		return nil
	}
	return s
}

// lossOfOthers is how the streams to or from other users fared.
type lossOfOthers struct{ bad, good, all int }

func sideOf(e *sideEvidence, sent *streamState, others func() (up, down lossOfOthers)) (name, rule string) {
	bad := func(loss *float64) bool { return loss != nil && *loss >= lossBad }
	good := func(loss *float64) bool { return loss != nil && *loss < lossGood }
	switch {
	case sent.sums[sumLongestMs] >= runMs:
		return sideSender, "senderFroze"
	case sent.limited(sumCPUMs):
		return sideSender, "senderCPU"
	}
	if !e.Direct {
		switch {
		case bad(e.LossSent) && good(e.LossReceived):
			return sideNetworkUp, "lossUp"
		case bad(e.LossReceived) && good(e.LossSent):
			return sideNetworkDown, "lossDown"
		case sent.limited(sumBandwidthMs) && good(e.LossReceived):
			return sideNetworkUp, "bandwidthUp"
		}
	} else if bad(e.LossSent) && bad(e.LossReceived) {
		up, down := others()
		switch {
		case up.all > 0 && up.bad == up.all && down.good == down.all && down.all > 0:
			return sideNetworkUp, "lossUp"
		case down.all > 0 && down.bad == down.all && up.good == up.all && up.all > 0:
			return sideNetworkDown, "lossDown"
		}
	}
	if good(e.LossSent) && good(e.LossReceived) {
		switch {
		case e.FramesSent != nil && e.FramesShown != nil && *e.FramesSent >= 1 && *e.FramesShown < float64(shownShare**e.FramesSent):
			return sideReceiver, "framesShown"
		case e.Concealed != nil && *e.Concealed > concealedShare:
			return sideReceiver, "soundConcealed"
		}
	}
	return "", ""
}

// publisherOf finds who sends an inbound stream: its owner's outbound stream of
// the same SSRC and kind. Two of them say nothing.
func (c *conference) publisherOf(p *participant, st *streamState) (publisher *participant, from *fabric, sent *streamState) {
	for _, o := range c.byUser[st.facts.OwnerUserId] {
		if o == p {
			continue
		}
		for _, f := range o.fabrics {
			s := f.byKey[streamKey{st.facts.Ssrc, callscopev1.Direction_DIRECTION_OUTBOUND}]
			if s == nil || s.samples == 0 || s.facts.MediaType != st.facts.MediaType {
				continue
			}
			if sent != nil {
				return nil, nil, nil
			}
			publisher, from, sent = o, f, s
		}
	}
	return publisher, from, sent
}

// poor tells whether the stream scored below the threshold for long enough.
func (st *streamState) poor() bool {
	m := st.audioMOS
	if st.facts.MediaType == "video" {
		m = st.videoScore
	}
	return m != nil && m.belowMs >= poorMs && float64(m.belowMs) >= float64(poorShare*float64(m.weight()))
}

func (st *streamState) wholeLoss() *float64 { return shareOf(st.lost, st.expected) }

func (st *streamState) share(sum int) *float64 {
	if st.facts.MediaType != "video" {
		return nil
	}
	return shareOf(float64(st.sums[sum]), float64(st.sums[sumMeasuredMs]))
}

// limited tells whether the encoder of an outbound video was limited by what
// the sum counts.
func (st *streamState) limited(sum int) bool {
	share := st.share(sum)
	return share != nil && *share >= limitedShare && st.sums[sum] >= limitedMs
}

func (st *streamState) frameRate() *float64 {
	if st.sums[sumRateMs] == 0 {
		return nil
	}
	return new(round4(float64(st.sums[sumFrames]) / float64(st.sums[sumRateMs])))
}

func (st *streamState) concealed() *float64 {
	return shareOf(float64(st.sums[sumConcealed]), float64(st.sums[sumSamples]))
}

func shareOf(part, whole float64) *float64 {
	share, ok := quality.ShareOf(part, whole)
	if !ok {
		return nil
	}
	return new(round4(share))
}

// lossTo is how a publisher's streams on its other fabrics fared, those that
// lead to users directly.
func (p *participant) lossTo(except *fabric) lossOfOthers {
	var others lossOfOthers
	for _, f := range p.fabrics {
		if f != except && f.remoteID != "" && f.remoteID != except.remoteID && f.facts.GetRemoteType() != "server" {
			others.count(f, callscopev1.Direction_DIRECTION_OUTBOUND, "")
		}
	}
	return others
}

// lossFrom is how a receiver's streams of other owners fared.
func (p *participant) lossFrom(except string) lossOfOthers {
	var others lossOfOthers
	for _, f := range p.fabrics {
		others.count(f, callscopev1.Direction_DIRECTION_INBOUND, except)
	}
	return others
}

func (l *lossOfOthers) count(f *fabric, direction callscopev1.Direction, exceptOwner string) {
	for _, st := range f.streams {
		if st.facts.Direction != direction || direction == callscopev1.Direction_DIRECTION_INBOUND && st.facts.OwnerUserId == exceptOwner {
			continue
		}
		loss := st.wholeLoss()
		if loss == nil {
			continue
		}
		l.all++
		switch {
		case *loss >= lossBad:
			l.bad++
		case *loss < lossGood:
			l.good++
		}
	}
}
