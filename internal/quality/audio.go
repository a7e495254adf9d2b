package quality

import "math"

// AudioModel names the formula behind every audio MOS. The number at its end
// changes with any constant or step of it.
const AudioModel = "emodel-opus-fullband/1"

// The constants of the E-model on the fullband scale (ITU-T G.107.2) for Opus.
const (
	// fullbandScale is the anchor of the fullband scale, 148, over that of the
	// narrowband scale, 100.
	fullbandAnchor = 148.0
	fullbandScale  = 1.48
	// maxImpairment is the 132 of the loss term: what remains of the scale.
	maxImpairment = 132.0
	// opusIe and opusBpl are Opus' equipment impairment and packet-loss
	// robustness. No ITU table holds Opus; these are the values in public use
	// (wireapp/wire-avs). A Bpl this small is only fair to effective loss, what
	// was actually concealed.
	opusIe  = 10.2
	opusBpl = 4.3
	// packetMs is one Opus packet.
	packetMs = 20.0
	// undisturbedMs is the delay that costs nothing (mT of G.107, clause 7.4).
	undisturbedMs = 100.0
)

// DefaultPlayoutDelayMs stands for the jitter buffer of a client that does not
// report one: the delay a browser's audio buffer settles at on a calm network.
const DefaultPlayoutDelayMs = 40.0

// AudioInput is what one listener's stream went through in one interval.
type AudioInput struct {
	// Loss is effective loss, 0 to 1: concealed and not silent samples over
	// samples received where the client counts them, else packet loss.
	Loss float64
	// BurstRatio is G.107's BurstR, 1 for random loss; 0 means 1.
	BurstRatio float64
	// RTTMs is the round-trip time of the network path.
	RTTMs float64
	// PlayoutDelayMs is the time in the jitter buffer.
	PlayoutDelayMs float64
}

// AudioScore is an audio MOS with what it lost where, on the R' scale of 0 to 100.
type AudioScore struct {
	MOS          float64 // 1 to 4.5, four decimals
	R            float64 // R' of G.107.2: 148 less impairments, over 1.48
	DelayPenalty float64 // points of R' lost to delay, four decimals
	LossPenalty  float64 // points of R' lost to packet loss, four decimals
}

// Heard is what a report tells of one listener's stream in one interval; nil is
// unknown.
type Heard struct {
	Concealment    *float64 // share of samples concealed and not silent, 0 to 1
	Loss           *float64 // share of packets lost, 0 to 1
	RTTMs          *float64 // of the stream, by its sender's reports
	PathRTTMs      *float64 // of the selected candidate pair
	PlayoutDelayMs *float64
}

// ScoreHeard scores an interval by what is known of it: the loss is what was
// concealed, else packet loss; the round-trip time is the stream's, else the
// path's; an unknown playout delay is DefaultPlayoutDelayMs. It answers false
// without a loss or without a round-trip time. Values that are no measure
// (negative, not finite) count as unknown. Whether there was anything to hear
// is for the caller to know.
func ScoreHeard(h Heard) (AudioScore, bool) {
	first := func(values ...*float64) (float64, bool) {
		for _, v := range values {
			if v != nil && known(*v) {
				return *v, true
			}
		}
		return 0, false
	}
	loss, hasLoss := first(h.Concealment, h.Loss)
	rtt, hasRTT := first(h.RTTMs, h.PathRTTMs)
	if !hasLoss || !hasRTT {
		return AudioScore{}, false
	}
	in := AudioInput{Loss: loss, RTTMs: rtt, PlayoutDelayMs: DefaultPlayoutDelayMs}
	if playout, ok := first(h.PlayoutDelayMs); ok {
		in.PlayoutDelayMs = playout
	}
	return AudioMOS(in)
}

// AudioMOS is the E-model of ITU-T G.107.2 with constants for Opus. It answers
// false where an input is not a number or negative; the loss is clamped to 1.
func AudioMOS(in AudioInput) (AudioScore, bool) {
	burst := in.BurstRatio
	if burst == 0 {
		burst = 1
	}
	for _, v := range [...]float64{in.Loss, burst, in.RTTMs, in.PlayoutDelayMs} {
		if !finite(v) || v < 0 {
			return AudioScore{}, false
		}
	}
	delayMs := in.PlayoutDelayMs + packetMs + in.RTTMs/2
	idd := float64(fullbandScale * delayImpairment(delayMs))
	percent := float64(100 * min(in.Loss, 1))
	lossImpairment := float64((maxImpairment-opusIe)*percent) / (percent/burst + opusBpl)
	r := (fullbandAnchor - idd - (opusIe + lossImpairment)) / fullbandScale
	return AudioScore{
		MOS: round4(mosOfR(r)), R: r,
		DelayPenalty: round4(idd / fullbandScale), LossPenalty: round4(lossImpairment / fullbandScale),
	}, true
}

// delayImpairment is Idd of G.107 clause 7.4 with default sensitivity (sT 1,
// mT 100 ms), on the narrowband scale. It is 0 up to 100 ms.
func delayImpairment(delayMs float64) float64 {
	if delayMs <= undisturbedMs {
		return 0
	}
	x := math.Log2(delayMs / undisturbedMs)
	return max(0, float64(25*(sixthRoot(1+pow6(x))-float64(3*sixthRoot(1+pow6(x/3)))+2)))
}

func pow6(x float64) float64 {
	square := float64(x * x)
	return float64(float64(square*square) * square)
}

func sixthRoot(x float64) float64 { return math.Cbrt(math.Sqrt(x)) }

// mosOfR is G.107 Annex B. The curve dips below 1 near R = 3, so it is clamped.
func mosOfR(r float64) float64 {
	switch {
	case r <= 0:
		return 1
	case r >= 100:
		return 4.5
	}
	cubic := float64(float64(float64(7e-6*r)*(r-60)) * (100 - r))
	return max(1, 1+float64(0.035*r)+cubic)
}
