package enricher

import (
	"math"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/callscope/callscope/internal/quality"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// The counters that are kept of a stream's last report, NaN where it had none.
// Those before monotone never fall while the browser's object lives.
const (
	countPackets = iota
	countBytes
	countFrames
	countSamples
	countConcealed
	countSilentConcealed
	countConcealments
	countEmitted
	countBufferDelay
	countFreezes
	countFreezeTime
	countLimitedCPU
	countLimitedBandwidth
	monotone
)

const (
	countLost            = monotone + iota // may fall: late duplicates repair losses
	countRTT                               // of the peer's report, an object of its own
	countRTTMeasurements                   // likewise
	counters
)

// The counters that are kept of a fabric's last report.
const (
	countBytesSent = iota
	countBytesReceived
	countPairRTT
	countPairResponses
	transportCounters
)

// applyStats appends what a getStats report gives: its place in time, a sample
// of the transport, and one of each RTP stream.
func (s *step) applyStats(stats *callscopev1.Stats) {
	s.addStatsReceived()
	if s.f == nil {
		return
	}
	id := identity(s.c, s.p, s.f)
	// The transport comes first: its round trip is what the streams are judged by.
	path := s.fabricSample(stats)
	if path != nil {
		s.add(s.key, &callscopev1.Enriched{
			Identity: id,
			Body:     &callscopev1.Enriched_FabricSample{FabricSample: path},
		})
	}
	peers := peerReports(stats)
	for _, rtp := range stats.Rtp {
		direction := rtpDirection(rtp.Type)
		if direction == callscopev1.Direction_DIRECTION_UNSPECIFIED {
			continue
		}
		st := s.streamOf(s.f, direction, rtp)
		sample := s.streamSample(st, direction, rtp, peers.of(rtp), stats)
		s.score(sample, path)
		if direction == callscopev1.Direction_DIRECTION_INBOUND && s.f.open() &&
			(count(rtp.FramesDecoded) > 0 || count(rtp.PacketsReceived) > 0) {
			s.f.firstMedia(s.raw.Claimed.TimeMs, firstMediaReport)
		}
		s.add(s.key, &callscopev1.Enriched{
			Identity: id,
			Body:     &callscopev1.Enriched_StreamSample{StreamSample: sample},
		})
	}
}

func (s *step) addStatsReceived() {
	entries := uint32(0)
	for _, rtp := range s.raw.GetStats().GetRtp() {
		if rtpDirection(rtp.Type) != callscopev1.Direction_DIRECTION_UNSPECIFIED {
			entries++
		}
	}
	s.add(s.key, &callscopev1.Enriched{Body: &callscopev1.Enriched_StatsReceived{
		StatsReceived: &callscopev1.StatsReceived{RtpEntries: entries},
	}})
}

func rtpDirection(t callscopev1.RtpType) callscopev1.Direction {
	switch t {
	case callscopev1.RtpType_RTP_TYPE_INBOUND:
		return callscopev1.Direction_DIRECTION_INBOUND
	case callscopev1.RtpType_RTP_TYPE_OUTBOUND:
		return callscopev1.Direction_DIRECTION_OUTBOUND
	default:
		return callscopev1.Direction_DIRECTION_UNSPECIFIED
	}
}

// peers finds what the peer says of our streams.
type peers struct {
	byLocalID, byID map[string]*callscopev1.RtpStats
	bySSRC          map[streamKey]*callscopev1.RtpStats
}

func peerReports(stats *callscopev1.Stats) peers {
	p := peers{
		byLocalID: map[string]*callscopev1.RtpStats{},
		byID:      map[string]*callscopev1.RtpStats{},
		bySSRC:    map[streamKey]*callscopev1.RtpStats{},
	}
	for _, rtp := range stats.Rtp {
		var ours callscopev1.Direction
		switch rtp.Type {
		case callscopev1.RtpType_RTP_TYPE_REMOTE_INBOUND: // of what we send
			ours = callscopev1.Direction_DIRECTION_OUTBOUND
		case callscopev1.RtpType_RTP_TYPE_REMOTE_OUTBOUND: // of what we receive
			ours = callscopev1.Direction_DIRECTION_INBOUND
		default:
			continue
		}
		if rtp.LocalId != "" {
			p.byLocalID[rtp.LocalId] = rtp
		}
		if rtp.Id != "" {
			p.byID[rtp.Id] = rtp
		}
		p.bySSRC[streamKey{rtp.Ssrc, ours}] = rtp
	}
	return p
}

// of returns the peer's report of our stream, nil if there is none.
func (p peers) of(rtp *callscopev1.RtpStats) *callscopev1.RtpStats {
	if peer := p.byLocalID[rtp.Id]; peer != nil {
		return peer
	}
	if peer := p.byID[rtp.RemoteId]; peer != nil {
		return peer
	}
	return p.bySSRC[streamKey{rtp.Ssrc, rtpDirection(rtp.Type)}]
}

// streamSample returns what the stream did since its last report, and keeps the
// report for the next. Without a stream to compare with, only what holds at one
// moment is known.
func (s *step) streamSample(st *rtpStream, direction callscopev1.Direction, rtp, peer *callscopev1.RtpStats, stats *callscopev1.Stats) *callscopev1.StreamSample {
	sample := &callscopev1.StreamSample{
		Ssrc: rtp.Ssrc, Direction: direction, MediaType: rtp.Kind, Codec: rtp.MimeType,
		FrameWidth:              value(rtp.FrameWidth),
		FrameHeight:             value(rtp.FrameHeight),
		FrameRate:               value(rtp.FramesPerSecond),
		QualityLimitationReason: rtp.QualityLimitationReason,
	}
	if direction == callscopev1.Direction_DIRECTION_INBOUND {
		sample.AudioLevel = value(rtp.AudioLevel)
		sample.JitterMs = milliseconds(rtp.Jitter)
	} else {
		if source := mediaSource(rtp, stats); source != nil {
			sample.AudioLevel = value(source.AudioLevel)
			sample.SourceFrameRate = value(source.FramesPerSecond)
			sample.SourceFrameHeight = value(source.Height)
		}
		if peer != nil {
			sample.JitterMs = milliseconds(peer.Jitter)
		}
	}
	if peer != nil {
		sample.RttMs = milliseconds(peer.RoundTripTime)
	}
	if st == nil {
		sample.OwnerSource = callscopev1.OwnerSource_OWNER_SOURCE_UNKNOWN
		return sample
	}
	facts := st.s.Facts
	sample.OwnerUserId, sample.OwnerSource, sample.UsageLabel = facts.OwnerUserId, facts.OwnerSource, facts.UsageLabel
	if sample.MediaType == "" {
		sample.MediaType = facts.MediaType
	}
	if sample.Codec == "" {
		sample.Codec = facts.Codec
	}

	now := countersOf(direction, rtp, peer)
	reportTimeMs := s.reportTime(rtp.TimestampMs, stats)
	var interval delta
	if len(st.s.Counters) != counters {
		interval = delta{before: make([]float64, counters), now: now, ms: s.sinceSetUp()}
	} else {
		interval = delta{before: st.s.Counters, now: now, ms: reportTimeMs - st.s.ReportTimeMs}
		if interval.ms <= 0 {
			if !interval.grew(monotone) {
				return sample // the same report again, or one that was overtaken
			}
			interval.ms = math.NaN() // the browser's clock was set back
		}
		interval.reset = interval.fell(monotone)
		if now[countRTTMeasurements] < st.s.Counters[countRTTMeasurements] && direction == callscopev1.Direction_DIRECTION_OUTBOUND {
			interval.before = slices.Clone(interval.before)
			interval.before[countLost] = math.NaN() // the peer counts anew
		}
	}
	st.s.Counters, st.s.ReportTimeMs = now, reportTimeMs
	interval.fill(sample, direction)
	return sample
}

// reportTime returns when an entry was made, on the browser's clock.
func (s *step) reportTime(timestampMs float64, stats *callscopev1.Stats) float64 {
	switch {
	case timestampMs > 0:
		return timestampMs
	case stats.ReportTimeMs > 0:
		return stats.ReportTimeMs
	default:
		return s.raw.Claimed.TimeMs
	}
}

// sinceSetUp returns the time from the fabric's set-up, or else its first
// sight, to the report, NaN if unknown. Both are times of the client's messages:
// the browser's own report times may be of another clock.
func (s *step) sinceSetUp() float64 {
	begin := s.f.s.SetUpTimeMs
	if begin == 0 {
		begin = s.f.s.FirstTimeMs
	}
	if begin == 0 || s.raw.Claimed.TimeMs <= begin {
		return math.NaN()
	}
	return s.raw.Claimed.TimeMs - begin
}

// countersOf returns the counters of a report.
func countersOf(direction callscopev1.Direction, rtp, peer *callscopev1.RtpStats) []float64 {
	c := make([]float64, counters)
	if direction == callscopev1.Direction_DIRECTION_INBOUND {
		c[countPackets], c[countBytes] = count(rtp.PacketsReceived), count(rtp.BytesReceived)
		c[countFrames] = count(first(rtp.FramesDecoded, rtp.FramesReceived))
		c[countLost] = number(rtp.PacketsLost)
	} else {
		c[countPackets], c[countBytes] = count(rtp.PacketsSent), count(rtp.BytesSent)
		c[countFrames] = count(first(rtp.FramesEncoded, rtp.FramesSent))
		c[countLost] = math.NaN()
		if peer != nil {
			c[countLost] = number(peer.PacketsLost)
		}
	}
	c[countSamples] = count(rtp.TotalSamplesReceived)
	c[countConcealed], c[countSilentConcealed] = count(rtp.ConcealedSamples), count(rtp.SilentConcealedSamples)
	c[countConcealments] = count(rtp.ConcealmentEvents)
	c[countEmitted], c[countBufferDelay] = count(rtp.JitterBufferEmittedCount), count(rtp.JitterBufferDelay)
	c[countFreezes], c[countFreezeTime] = count(rtp.FreezeCount), count(rtp.TotalFreezesDuration)
	c[countLimitedCPU], c[countLimitedBandwidth] = count(rtp.QualityLimitationCpu), count(rtp.QualityLimitationBandwidth)
	c[countRTT], c[countRTTMeasurements] = math.NaN(), math.NaN()
	if peer != nil {
		c[countRTT], c[countRTTMeasurements] = count(peer.TotalRoundTripTime), count(peer.RoundTripTimeMeasurements)
	}
	return c
}

// delta is the difference of two reports.
type delta struct {
	before, now []float64
	ms          float64 // NaN: unknown
	reset       bool
}

// of returns how much a counter grew; NaN where a report lacks it or where the
// counters began anew.
func (d delta) of(counter int) float64 {
	if d.reset && counter <= countLost {
		return math.NaN()
	}
	return d.now[counter] - d.before[counter]
}

// fell tells whether one of the counters before end is lower than it was: the
// browser's object is another one.
func (d delta) fell(end int) bool {
	for i := range end {
		if d.now[i] < d.before[i] {
			return true
		}
	}
	return false
}

// grew tells whether one of the counters before end is higher than it was, and
// none lower: the report is the later one, whatever its time says.
func (d delta) grew(end int) bool {
	grew := false
	for i := range end {
		grew = grew || d.now[i] > d.before[i]
	}
	return grew && !d.fell(end)
}

// fill adds to the sample what needs a difference. NaN, which an unknown value
// makes of everything computed from it, becomes an absent value in known.
func (d delta) fill(sample *callscopev1.StreamSample, direction callscopev1.Direction) {
	sample.IntervalMs = known(d.ms)
	sample.Reset_ = d.reset
	packets, lost := d.of(countPackets), d.of(countLost)
	sample.Packets = known(packets)
	sample.PacketsLost = known(lost)
	sample.PacketRate = known(float64(1000*packets) / d.ms)
	sample.Bytes = known(d.of(countBytes))
	sample.BitrateKbps = known(float64(8*d.of(countBytes)) / d.ms)
	if direction == callscopev1.Direction_DIRECTION_INBOUND {
		sample.Loss = share(quality.LossRatio(packets, lost))
	} else {
		sample.Loss = share(quality.ShareOf(lost, packets))
	}
	if sample.FrameRate == nil {
		sample.FrameRate = known(float64(1000*d.of(countFrames)) / d.ms)
	}
	sample.FreezeCount = known(d.of(countFreezes))
	sample.FreezeMs = known(float64(1000 * d.of(countFreezeTime)))
	sample.SamplesReceived = known(d.of(countSamples))
	concealed := max(d.of(countConcealed)-d.of(countSilentConcealed), 0)
	sample.ConcealedSamples = known(concealed)
	sample.ConcealmentEvents = known(d.of(countConcealments))
	sample.Concealment = share(quality.ShareOf(concealed, d.of(countSamples)))
	if emitted := d.of(countEmitted); emitted > 0 {
		sample.JitterBufferDelayMs = known(float64(1000*d.of(countBufferDelay)) / emitted)
	}
	sample.QualityLimitedCpuMs = known(float64(1000 * d.of(countLimitedCPU)))
	sample.QualityLimitedBandwidthMs = known(float64(1000 * d.of(countLimitedBandwidth)))
	if mean := meanRTT(d.of(countRTT), d.of(countRTTMeasurements)); mean != nil {
		sample.RttMs = mean
	}
}

// meanRTT is the mean of the measurements of an interval in milliseconds, nil
// if it had none; the current value is then the last resort.
func meanRTT(seconds, measurements float64) *float64 {
	if seconds < 0 || !(measurements > 0) {
		return nil
	}
	return known(float64(1000*seconds) / measurements)
}

// share returns a share from 0 to 1, nil where it is not known.
func share(value float64, known bool) *float64 {
	if !known {
		return nil
	}
	return &value
}

// known returns the value, nil where it is none.
func known(v float64) *float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	return proto.Float64(v)
}

// value returns a reported measure, nil where it is none. What is measured here
// is never negative.
func value(v *float64) *float64 {
	if v == nil || *v < 0 {
		return nil
	}
	return known(*v)
}

// number returns a reported value, NaN where it is none.
func number(v *float64) float64 {
	if v == nil || math.IsInf(*v, 0) {
		return math.NaN()
	}
	return *v
}

// count returns a reported counter, NaN where it is none.
func count(v *float64) float64 {
	if n := number(v); n >= 0 {
		return n
	}
	return math.NaN()
}

func milliseconds(seconds *float64) *float64 {
	if value(seconds) == nil {
		return nil
	}
	return known(float64(1000 * *seconds))
}

func first(a, b *float64) *float64 {
	if a != nil {
		return a
	}
	return b
}

// mediaSource returns the media source that is sent, nil if none is known.
func mediaSource(rtp *callscopev1.RtpStats, stats *callscopev1.Stats) *callscopev1.MediaSourceStats {
	if rtp.MediaSourceId == "" {
		return nil
	}
	for _, source := range stats.MediaSources {
		if source.Id == rtp.MediaSourceId {
			return source
		}
	}
	return nil
}

// selectedPair returns the candidate pair in use, nil if none is known.
func selectedPair(stats *callscopev1.Stats) *callscopev1.CandidatePairStats {
	for _, transport := range stats.Transports {
		for _, pair := range stats.CandidatePairs {
			if transport.SelectedCandidatePairId != "" && pair.Id == transport.SelectedCandidatePairId {
				return pair
			}
		}
	}
	for _, pair := range stats.CandidatePairs {
		if pair.Selected {
			return pair
		}
	}
	var most *callscopev1.CandidatePairStats
	for _, pair := range stats.CandidatePairs {
		if !pair.GetNominated() || pair.State != "succeeded" {
			continue
		}
		if most == nil || pair.GetBytesSent()+pair.GetBytesReceived() > most.GetBytesSent()+most.GetBytesReceived() {
			most = pair
		}
	}
	return most
}

// fabricSample returns what the transport did since the fabric's last report,
// nil where the report tells nothing of it.
func (s *step) fabricSample(stats *callscopev1.Stats) *callscopev1.FabricSample {
	pair := selectedPair(stats)
	if pair == nil && len(stats.Transports) == 0 && stats.BatteryLevel == nil {
		return nil
	}
	sample := &callscopev1.FabricSample{BatteryLevel: value(stats.BatteryLevel)}
	now := []float64{math.NaN(), math.NaN(), math.NaN(), math.NaN()}
	source, timestampMs, pairID := "", 0.0, ""
	if pair != nil {
		pairID, timestampMs = pair.Id, pair.TimestampMs
		sample.RttMs = milliseconds(pair.CurrentRoundTripTime)
		sample.AvailableOutgoingKbps = kilobits(pair.AvailableOutgoingBitrate)
		sample.AvailableIncomingKbps = kilobits(pair.AvailableIncomingBitrate)
		now[countPairRTT], now[countPairResponses] = count(pair.TotalRoundTripTime), count(pair.ResponsesReceived)
		now[countBytesSent], now[countBytesReceived] = count(pair.BytesSent), count(pair.BytesReceived)
		source = "pair " + pair.Id
		s.candidates(sample, pair, stats)
	}
	for _, transport := range stats.Transports { // outlives its pairs
		if transport.BytesSent != nil || transport.BytesReceived != nil {
			now[countBytesSent], now[countBytesReceived] = count(transport.BytesSent), count(transport.BytesReceived)
			source = "transport " + transport.Id
			break
		}
	}

	state := s.f.s
	reportTimeMs := s.reportTime(timestampMs, stats)
	interval := delta{before: make([]float64, transportCounters), now: now, ms: s.sinceSetUp()}
	if len(state.TransportCounters) == transportCounters {
		interval.before = slices.Clone(state.TransportCounters)
		interval.ms = reportTimeMs - state.ReportTimeMs
		if interval.ms <= 0 {
			if source == state.BytesSourceId && !interval.grew(transportCounters) {
				return sample // the same report again, or one that was overtaken
			}
			interval.ms = math.NaN() // the browser's clock was set back
		}
		if pairID != "" && state.PairId != "" && pairID != state.PairId && s.f.open() {
			state.Facts.PairChanges++
			s.f.changed = true
		}
		// What began anew has nothing to be compared with.
		if source != state.BytesSourceId || interval.fell(countBytesReceived+1) {
			interval.before[countBytesSent], interval.before[countBytesReceived] = math.NaN(), math.NaN()
		}
		if pairID != state.PairId || interval.fell(transportCounters) {
			interval.before[countPairRTT], interval.before[countPairResponses] = math.NaN(), math.NaN()
		}
	}
	state.TransportCounters, state.ReportTimeMs, state.BytesSourceId, state.PairId = now, reportTimeMs, source, pairID
	sample.IntervalMs = known(interval.ms)
	sample.BytesSent = known(now[countBytesSent] - interval.before[countBytesSent])
	sample.BytesReceived = known(now[countBytesReceived] - interval.before[countBytesReceived])
	rtt := now[countPairRTT] - interval.before[countPairRTT]
	if mean := meanRTT(rtt, now[countPairResponses]-interval.before[countPairResponses]); mean != nil {
		sample.RttMs = mean
	}
	return sample
}

func kilobits(bits *float64) *float64 {
	if value(bits) == nil {
		return nil
	}
	return known(*bits / 1000)
}

// candidates adds what is known of the two ends of the pair in use.
func (s *step) candidates(sample *callscopev1.FabricSample, pair *callscopev1.CandidatePairStats, stats *callscopev1.Stats) {
	for _, candidate := range stats.Candidates {
		switch candidate.Id {
		case pair.LocalCandidateId:
			sample.LocalCandidateType = candidate.CandidateType
			sample.Protocol = candidate.Protocol
			sample.NetworkType = candidate.NetworkType
		case pair.RemoteCandidateId:
			sample.RemoteCandidateType = candidate.CandidateType
		}
	}
	if sample.LocalCandidateType == "" && sample.RemoteCandidateType == "" {
		return
	}
	relayed := isRelay(sample.LocalCandidateType) || isRelay(sample.RemoteCandidateType)
	sample.Relayed = proto.Bool(relayed)
	if !s.f.s.EndedExplicitly {
		s.f.setRelayed(relayed)
	}
}
