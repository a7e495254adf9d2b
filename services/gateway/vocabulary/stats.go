package vocabulary

import (
	"strings"

	"github.com/valyala/fastjson"

	v1 "github.com/callscope/callscope/proto/callscope/v1"
)

// takeStats reads the getStats entries of newer clients ("stats"), or the processed reports of 3.24 and 3.26.
func takeStats(m *Message, raw *v1.Raw, left leftovers) (more []*v1.Raw) {
	s := &v1.Stats{}
	d := left.d
	entries := report{d: d, stats: s}
	var reports []*fastjson.Value
	m.members(left, func(a argument) {
		switch string(a.key) {
		case "stats":
			if a.v.Type() == fastjson.TypeArray {
				for _, entry := range a.v.GetArray() {
					entries.entry(entry)
				}
				return
			}
		case "processedStatistics":
			if m.Dialect == v1.Dialect_DIALECT_CALLSTATS_WS_324 && isObjects(a.v) {
				reports = a.v.GetArray()
				return
			}
		}
		take(a, reportTable, s)
	})
	entries.finish()
	if len(reports) == 0 {
		raw.Payload = &v1.Raw_Stats{Stats: s}
		return nil
	}
	fabricState := s.FabricState
	for i, v := range reports {
		part, ps, rest := raw, s, left
		if i > 0 {
			part = &v1.Raw{EventType: raw.EventType, OriginalType: raw.OriginalType}
			ps = &v1.Stats{FabricState: fabricState}
			rest = d.begin()
			more = append(more, part)
		}
		// Each report has its own time; everything else of the envelope is the same.
		c := m.claimed
		part.Claimed = &v1.Claimed{
			ConferenceId: c.ConferenceId, UserId: c.UserId, DeviceId: c.DeviceId, ConnectionId: c.ConnectionId,
			RemoteId: c.RemoteId, TimeMs: c.TimeMs, ClientVersion: c.ClientVersion, SiteId: c.SiteId,
		}
		takeProcessed(v.GetObject(), part, ps, rest)
		part.Payload = &v1.Raw_Stats{Stats: ps}
		if i > 0 {
			part.ExtraJson = rest.object()
		}
	}
	return more
}

// reportTable holds what stands beside the entries.
var reportTable = compile(fields[v1.Stats]{
	"fabricState":     str(func(m *v1.Stats) *string { return &m.FabricState }),
	"connectionState": str(func(m *v1.Stats) *string { return &m.ConnectionState }),
	"wifiStats":       jsonOf(fastjson.TypeObject, func(m *v1.Stats) *string { return &m.WifiStatsJson }),
	"batteryStatus": inner(compile(fields[v1.Stats]{
		"batteryLevel":      num(func(m *v1.Stats) **float64 { return &m.BatteryLevel }),
		"isBatteryCharging": boolField(func(m *v1.Stats) **bool { return &m.BatteryCharging }),
	})),
})

// takeProcessed reads one of the reports of 3.24 and 3.26: streams around the browser's RTP entries, and the transports.
func takeProcessed(o *fastjson.Object, raw *v1.Raw, s *v1.Stats, left leftovers) {
	d := left.d
	r := report{d: d, stats: s}
	o.Visit(func(key []byte, v *fastjson.Value) {
		switch string(key) {
		case "streams":
			if isObjects(v) {
				for _, stream := range v.GetArray() {
					r.stream(stream.GetObject())
				}
				return
			}
		case "Transport":
			if v.Type() == fastjson.TypeArray {
				for _, entry := range v.GetArray() {
					r.entry(entry)
				}
				return
			}
		case "apiTS":
			if t := clientTime(v, d.scratch[:0]); t != 0 {
				raw.Claimed.TimeMs = t
				return
			}
		}
		take(argument{left, key, v}, reportTable, s)
	})
	r.finish()
}

// report collects the entries of one getStats report.
type report struct {
	d     *decoding
	stats *v1.Stats
	// borrowed are the candidate pairs that transport entries carry inside them.
	borrowed []*v1.CandidatePairStats
}

// entry sorts one entry by its type.
func (r *report) entry(v *fastjson.Value) {
	if v.Type() != fastjson.TypeObject {
		r.keep(v)
		return
	}
	o := v.GetObject()
	typ := entryType(r.d.text(o.Get("type")))
	switch typ {
	case "inbound-rtp", "outbound-rtp", "remote-inbound-rtp", "remote-outbound-rtp":
		r.rtp(o, rtpType(typ, o))
	case "ssrc":
		r.legacyRTP(o)
	case "candidate-pair":
		p := &v1.CandidatePairStats{}
		p.ExtraJson = decoded(r.d, o, pairStatsTable, p)
		r.stats.CandidatePairs = append(r.stats.CandidatePairs, p)
		r.time(p.TimestampMs)
	case "googCandidatePair":
		p := &v1.CandidatePairStats{}
		p.ExtraJson = decoded(r.d, o, legacyPairTable, p)
		r.stats.CandidatePairs = append(r.stats.CandidatePairs, p)
	case "local-candidate", "remote-candidate":
		c := &v1.CandidateStats{Remote: typ == "remote-candidate"}
		c.ExtraJson = decoded(r.d, o, candidateStatsTable, c)
		r.stats.Candidates = append(r.stats.Candidates, c)
	case "transport":
		r.transport(o)
	case "media-source":
		s := &v1.MediaSourceStats{}
		s.ExtraJson = decoded(r.d, o, mediaSourceTable, s)
		r.stats.MediaSources = append(r.stats.MediaSources, s)
	default:
		r.keep(v)
	}
}

func (r *report) keep(v *fastjson.Value) {
	separator := byte(',')
	if len(r.d.other) == 0 {
		separator = '['
	}
	r.d.other = appendJSON(append(r.d.other, separator), v, r.d.plain)
}

// decoded puts the members of an object into m and returns what is left, "" for nothing.
func decoded[M any](d *decoding, o *fastjson.Object, t table[M], m *M) string {
	left := d.begin()
	decode(left, o, t, m)
	return left.object()
}

// time moves the report's time on: entries of the peer's reports are older than the report.
func (r *report) time(ms float64) {
	r.stats.ReportTimeMs = max(r.stats.ReportTimeMs, ms)
}

func rtpType(typ string, o *fastjson.Object) v1.RtpType {
	remote, _ := booleanMember(o, "isRemote")
	switch {
	case typ == "remote-inbound-rtp", typ == "inbound-rtp" && remote:
		return v1.RtpType_RTP_TYPE_REMOTE_INBOUND
	case typ == "remote-outbound-rtp", typ == "outbound-rtp" && remote:
		return v1.RtpType_RTP_TYPE_REMOTE_OUTBOUND
	case typ == "inbound-rtp":
		return v1.RtpType_RTP_TYPE_INBOUND
	default:
		return v1.RtpType_RTP_TYPE_OUTBOUND
	}
}

func isLocal(t v1.RtpType) bool {
	return t == v1.RtpType_RTP_TYPE_INBOUND || t == v1.RtpType_RTP_TYPE_OUTBOUND
}

func (r *report) rtp(o *fastjson.Object, t v1.RtpType) {
	left := r.d.begin()
	r.decodeRTP(left, o, t).ExtraJson = left.object()
}

func (r *report) decodeRTP(left leftovers, o *fastjson.Object, t v1.RtpType) *v1.RtpStats {
	s := r.d.rtp(t)
	decode(left, o, rtpTable, s)
	return r.addRTP(s, o)
}

func (r *report) addRTP(s *v1.RtpStats, o *fastjson.Object) *v1.RtpStats {
	if s.Kind == "" {
		s.Kind = r.d.text(o.Get("csioMediaType"))
	}
	r.stats.Rtp = append(r.stats.Rtp, s)
	if isLocal(s.Type) {
		r.time(s.TimestampMs)
	}
	return s
}

// transport reads a transport entry. Callstats clients merge the selected pair's members into it; where the report has
// no entry for that pair, as in 3.24, the pair is taken out of it again.
func (r *report) transport(o *fastjson.Object) {
	t := &v1.TransportStats{}
	t.ExtraJson = decoded(r.d, o, transportTable, t)
	r.stats.Transports = append(r.stats.Transports, t)
	if ms, ok := r.d.number(o.Get("timestamp")); ok {
		r.time(ms)
	}
	if t.SelectedCandidatePairId != "" && o.Get("localCandidateId") != nil {
		p := &v1.CandidatePairStats{}
		known := r.d.begin() // in the transport entry
		decode(known, o, pairStatsTable, p)
		known.drop()
		p.Id = t.SelectedCandidatePairId
		r.borrowed = append(r.borrowed, p)
	}
}

// finish marks the selected pairs and closes the report.
func (r *report) finish() {
	if len(r.d.other) > 0 {
		r.stats.OtherEntriesJson = r.d.keep(append(r.d.other, ']'))
		r.d.other = r.d.other[:0]
	}
	for _, p := range r.borrowed {
		if !hasPair(r.stats.CandidatePairs, p.Id) {
			r.stats.CandidatePairs = append(r.stats.CandidatePairs, p)
		}
	}
	for _, t := range r.stats.Transports {
		for _, p := range r.stats.CandidatePairs {
			if p.Id != "" && p.Id == t.SelectedCandidatePairId {
				p.Selected = true
			}
		}
	}
}

func hasPair(pairs []*v1.CandidatePairStats, id string) bool {
	for _, p := range pairs {
		if p.Id == id {
			return true
		}
	}
	return false
}

// stream reads an RTP entry of 3.24 or 3.26 with what the client wrote around it.
func (r *report) stream(o *fastjson.Object) {
	data := o.Get("data")
	left := r.d.begin()
	var s *v1.RtpStats
	switch {
	case data == nil || data.Type() != fastjson.TypeObject:
		s = r.addRTP(r.d.rtp(r.streamType(o)), o)
	default:
		switch typ := entryType(r.d.text(data.Get("type"))); typ {
		case "ssrc":
			s = r.decodeLegacyRTP(left, data.GetObject())
		case "inbound-rtp", "outbound-rtp", "remote-inbound-rtp", "remote-outbound-rtp":
			s = r.decodeRTP(left, data.GetObject(), rtpType(typ, data.GetObject()))
		default:
			s = r.decodeRTP(left, data.GetObject(), r.streamType(o))
		}
	}
	userID := ""
	o.Visit(func(key []byte, v *fastjson.Value) {
		switch string(key) {
		case "data":
			if v.Type() == fastjson.TypeObject {
				return
			}
		case "userID":
			userID = r.d.text(v)
			return
		}
		take(argument{left, key, v}, streamTable, s)
	})
	// A user id is an association only beside a usage label: these clients also put the remote user on outbound
	// streams that nobody associated.
	switch {
	case s.AssociatedUserId == "" && s.UsageLabel != "":
		s.AssociatedUserId = userID
	case userID != "" && userID != s.AssociatedUserId:
		left.name([]byte("userID"))
		r.d.left = appendString(r.d.left, []byte(userID), r.d.plain)
	}
	s.ExtraJson = left.object()
}

func (r *report) streamType(o *fastjson.Object) v1.RtpType {
	outbound := r.d.text(o.Get("streamType")) == "outbound"
	remote := r.d.text(o.Get("reportType")) == "remote"
	switch {
	case outbound && remote: // what the peer reports of our outbound stream
		return v1.RtpType_RTP_TYPE_REMOTE_INBOUND
	case outbound:
		return v1.RtpType_RTP_TYPE_OUTBOUND
	case remote:
		return v1.RtpType_RTP_TYPE_REMOTE_OUTBOUND
	default:
		return v1.RtpType_RTP_TYPE_INBOUND
	}
}

var streamTable = compile(fields[v1.RtpStats]{
	"ssrc":               sameStr(func(m *v1.RtpStats) *string { return &m.Ssrc }),
	"streamType":         ignored[v1.RtpStats],
	"reportType":         ignored[v1.RtpStats],
	"cname":              sameStr(func(m *v1.RtpStats) *string { return &m.Cname }),
	"msid":               sameStr(func(m *v1.RtpStats) *string { return &m.Msid }),
	"usage":              usageLabel,
	"usageLabel":         usageLabel,
	"remoteUserID":       str(func(m *v1.RtpStats) *string { return &m.AssociatedUserId }),
	"associatedVideoTag": str(func(m *v1.RtpStats) *string { return &m.AssociatedVideoTag }),
})

var usageLabel = cutStr(func(m *v1.RtpStats) *string { return &m.UsageLabel }, cutBytes, maxUsageLabelBytes)

func booleanMember(o *fastjson.Object, name string) (value, ok bool) {
	v := o.Get(name)
	if v == nil {
		return false, false
	}
	return boolean(v)
}

var rtpTable = compile(fields[v1.RtpStats]{
	"type":      ignored[v1.RtpStats],
	"isRemote":  ignored[v1.RtpStats],
	"id":        str(func(m *v1.RtpStats) *string { return &m.Id }),
	"ssrc":      str(func(m *v1.RtpStats) *string { return &m.Ssrc }),
	"kind":      sameStr(func(m *v1.RtpStats) *string { return &m.Kind }),
	"mediaType": sameStr(func(m *v1.RtpStats) *string { return &m.Kind }),
	"timestamp": plainNum(func(m *v1.RtpStats) *float64 { return &m.TimestampMs }),

	"mimeType":        str(func(m *v1.RtpStats) *string { return &m.MimeType }),
	"payloadType":     uint32Num(func(m *v1.RtpStats) **uint32 { return &m.PayloadType }),
	"clockRate":       num(func(m *v1.RtpStats) **float64 { return &m.ClockRate }),
	"trackIdentifier": str(func(m *v1.RtpStats) *string { return &m.TrackIdentifier }),
	"mid":             str(func(m *v1.RtpStats) *string { return &m.Mid }),

	"packetsReceived":           num(func(m *v1.RtpStats) **float64 { return &m.PacketsReceived }),
	"packetsLost":               num(func(m *v1.RtpStats) **float64 { return &m.PacketsLost }),
	"packetsSent":               num(func(m *v1.RtpStats) **float64 { return &m.PacketsSent }),
	"packetsDiscarded":          num(func(m *v1.RtpStats) **float64 { return &m.PacketsDiscarded }),
	"discardedPackets":          num(func(m *v1.RtpStats) **float64 { return &m.PacketsDiscarded }),
	"bytesReceived":             num(func(m *v1.RtpStats) **float64 { return &m.BytesReceived }),
	"bytesSent":                 num(func(m *v1.RtpStats) **float64 { return &m.BytesSent }),
	"headerBytesReceived":       num(func(m *v1.RtpStats) **float64 { return &m.HeaderBytesReceived }),
	"headerBytesSent":           num(func(m *v1.RtpStats) **float64 { return &m.HeaderBytesSent }),
	"jitter":                    num(func(m *v1.RtpStats) **float64 { return &m.Jitter }),
	"fractionLost":              num(func(m *v1.RtpStats) **float64 { return &m.FractionLost }),
	"roundTripTime":             num(func(m *v1.RtpStats) **float64 { return &m.RoundTripTime }),
	"mozRtt":                    scaled(func(m *v1.RtpStats) **float64 { return &m.RoundTripTime }, 1e-3),
	"totalRoundTripTime":        num(func(m *v1.RtpStats) **float64 { return &m.TotalRoundTripTime }),
	"roundTripTimeMeasurements": num(func(m *v1.RtpStats) **float64 { return &m.RoundTripTimeMeasurements }),
	"jitterBufferDelay":         num(func(m *v1.RtpStats) **float64 { return &m.JitterBufferDelay }),
	"jitterBufferEmittedCount":  num(func(m *v1.RtpStats) **float64 { return &m.JitterBufferEmittedCount }),

	"audioLevel":             num(func(m *v1.RtpStats) **float64 { return &m.AudioLevel }),
	"totalAudioEnergy":       num(func(m *v1.RtpStats) **float64 { return &m.TotalAudioEnergy }),
	"totalSamplesReceived":   num(func(m *v1.RtpStats) **float64 { return &m.TotalSamplesReceived }),
	"totalSamplesDuration":   num(func(m *v1.RtpStats) **float64 { return &m.TotalSamplesDuration }),
	"concealedSamples":       num(func(m *v1.RtpStats) **float64 { return &m.ConcealedSamples }),
	"silentConcealedSamples": num(func(m *v1.RtpStats) **float64 { return &m.SilentConcealedSamples }),
	"concealmentEvents":      num(func(m *v1.RtpStats) **float64 { return &m.ConcealmentEvents }),

	"frameWidth":           num(func(m *v1.RtpStats) **float64 { return &m.FrameWidth }),
	"frameHeight":          num(func(m *v1.RtpStats) **float64 { return &m.FrameHeight }),
	"framesPerSecond":      num(func(m *v1.RtpStats) **float64 { return &m.FramesPerSecond }),
	"framesDecoded":        num(func(m *v1.RtpStats) **float64 { return &m.FramesDecoded }),
	"framesReceived":       num(func(m *v1.RtpStats) **float64 { return &m.FramesReceived }),
	"framesDropped":        num(func(m *v1.RtpStats) **float64 { return &m.FramesDropped }),
	"framesEncoded":        num(func(m *v1.RtpStats) **float64 { return &m.FramesEncoded }),
	"framesSent":           num(func(m *v1.RtpStats) **float64 { return &m.FramesSent }),
	"keyFramesDecoded":     num(func(m *v1.RtpStats) **float64 { return &m.KeyFramesDecoded }),
	"keyFramesEncoded":     num(func(m *v1.RtpStats) **float64 { return &m.KeyFramesEncoded }),
	"freezeCount":          num(func(m *v1.RtpStats) **float64 { return &m.FreezeCount }),
	"totalFreezesDuration": num(func(m *v1.RtpStats) **float64 { return &m.TotalFreezesDuration }),
	"pauseCount":           num(func(m *v1.RtpStats) **float64 { return &m.PauseCount }),
	"totalPausesDuration":  num(func(m *v1.RtpStats) **float64 { return &m.TotalPausesDuration }),
	"totalDecodeTime":      num(func(m *v1.RtpStats) **float64 { return &m.TotalDecodeTime }),
	"totalEncodeTime":      num(func(m *v1.RtpStats) **float64 { return &m.TotalEncodeTime }),
	"qpSum":                num(func(m *v1.RtpStats) **float64 { return &m.QpSum }),
	"nackCount":            num(func(m *v1.RtpStats) **float64 { return &m.NackCount }),
	"pliCount":             num(func(m *v1.RtpStats) **float64 { return &m.PliCount }),
	"firCount":             num(func(m *v1.RtpStats) **float64 { return &m.FirCount }),

	"retransmittedPacketsSent":     num(func(m *v1.RtpStats) **float64 { return &m.RetransmittedPacketsSent }),
	"retransmittedPacketsReceived": num(func(m *v1.RtpStats) **float64 { return &m.RetransmittedPacketsReceived }),
	"targetBitrate":                num(func(m *v1.RtpStats) **float64 { return &m.TargetBitrate }),
	"qualityLimitationReason":      str(func(m *v1.RtpStats) *string { return &m.QualityLimitationReason }),
	"qualityLimitationDurations": inner(compile(fields[v1.RtpStats]{
		"cpu":       num(func(m *v1.RtpStats) **float64 { return &m.QualityLimitationCpu }),
		"bandwidth": num(func(m *v1.RtpStats) **float64 { return &m.QualityLimitationBandwidth }),
	})),
	"totalInterFrameDelay":        num(func(m *v1.RtpStats) **float64 { return &m.TotalInterFrameDelay }),
	"totalSquaredInterFrameDelay": num(func(m *v1.RtpStats) **float64 { return &m.TotalSquaredInterFrameDelay }),
	"localId":                     str(func(m *v1.RtpStats) *string { return &m.LocalId }),
	"remoteId":                    str(func(m *v1.RtpStats) *string { return &m.RemoteId }),
	"mediaSourceId":               str(func(m *v1.RtpStats) *string { return &m.MediaSourceId }),
	"encoderImplementation":       str(func(m *v1.RtpStats) *string { return &m.EncoderImplementation }),
	"decoderImplementation":       str(func(m *v1.RtpStats) *string { return &m.DecoderImplementation }),
	"rid":                         str(func(m *v1.RtpStats) *string { return &m.Rid }),

	"usageLabel":         usageLabel,
	"remoteUserID":       str(func(m *v1.RtpStats) *string { return &m.AssociatedUserId }),
	"associatedVideoTag": str(func(m *v1.RtpStats) *string { return &m.AssociatedVideoTag }),
	"cname":              str(func(m *v1.RtpStats) *string { return &m.Cname }),
	"msid":               str(func(m *v1.RtpStats) *string { return &m.Msid }),
})

var pairStatsTable = compile(fields[v1.CandidatePairStats]{
	"type":                     ignored[v1.CandidatePairStats],
	"id":                       str(func(m *v1.CandidatePairStats) *string { return &m.Id }),
	"timestamp":                plainNum(func(m *v1.CandidatePairStats) *float64 { return &m.TimestampMs }),
	"localCandidateId":         str(func(m *v1.CandidatePairStats) *string { return &m.LocalCandidateId }),
	"remoteCandidateId":        str(func(m *v1.CandidatePairStats) *string { return &m.RemoteCandidateId }),
	"state":                    str(func(m *v1.CandidatePairStats) *string { return &m.State }),
	"nominated":                boolField(func(m *v1.CandidatePairStats) **bool { return &m.Nominated }),
	"selected":                 plainBool(func(m *v1.CandidatePairStats) *bool { return &m.Selected }), // Firefox
	"googActiveConnection":     plainBool(func(m *v1.CandidatePairStats) *bool { return &m.Selected }),
	"currentRoundTripTime":     num(func(m *v1.CandidatePairStats) **float64 { return &m.CurrentRoundTripTime }),
	"totalRoundTripTime":       num(func(m *v1.CandidatePairStats) **float64 { return &m.TotalRoundTripTime }),
	"responsesReceived":        num(func(m *v1.CandidatePairStats) **float64 { return &m.ResponsesReceived }),
	"availableOutgoingBitrate": num(func(m *v1.CandidatePairStats) **float64 { return &m.AvailableOutgoingBitrate }),
	"availableIncomingBitrate": num(func(m *v1.CandidatePairStats) **float64 { return &m.AvailableIncomingBitrate }),
	"bytesSent":                num(func(m *v1.CandidatePairStats) **float64 { return &m.BytesSent }),
	"bytesReceived":            num(func(m *v1.CandidatePairStats) **float64 { return &m.BytesReceived }),
	"packetsSent":              num(func(m *v1.CandidatePairStats) **float64 { return &m.PacketsSent }),
	"packetsReceived":          num(func(m *v1.CandidatePairStats) **float64 { return &m.PacketsReceived }),
	"requestsSent":             num(func(m *v1.CandidatePairStats) **float64 { return &m.RequestsSent }),
})

var candidateStatsTable = compile(fields[v1.CandidateStats]{
	"type":          ignored[v1.CandidateStats],
	"isRemote":      ignored[v1.CandidateStats],
	"id":            str(func(m *v1.CandidateStats) *string { return &m.Id }),
	"candidateType": candidateType(func(m *v1.CandidateStats) *string { return &m.CandidateType }),
	"protocol":      sameStr(func(m *v1.CandidateStats) *string { return &m.Protocol }),
	"transport":     sameStr(func(m *v1.CandidateStats) *string { return &m.Protocol }),
	"networkType":   str(func(m *v1.CandidateStats) *string { return &m.NetworkType }),
	"relayProtocol": str(func(m *v1.CandidateStats) *string { return &m.RelayProtocol }),
	"address":       sameStr(func(m *v1.CandidateStats) *string { return &m.Address }),
	"ip":            sameStr(func(m *v1.CandidateStats) *string { return &m.Address }),
	"ipAddress":     sameStr(func(m *v1.CandidateStats) *string { return &m.Address }),
	"port":          uint32Num(func(m *v1.CandidateStats) **uint32 { return &m.Port }),
	"portNumber":    uint32Num(func(m *v1.CandidateStats) **uint32 { return &m.Port }),
})

var transportTable = compile(fields[v1.TransportStats]{
	"type":                         ignored[v1.TransportStats],
	"id":                           str(func(m *v1.TransportStats) *string { return &m.Id }),
	"selectedCandidatePairId":      str(func(m *v1.TransportStats) *string { return &m.SelectedCandidatePairId }),
	"bytesSent":                    num(func(m *v1.TransportStats) **float64 { return &m.BytesSent }),
	"bytesReceived":                num(func(m *v1.TransportStats) **float64 { return &m.BytesReceived }),
	"packetsSent":                  num(func(m *v1.TransportStats) **float64 { return &m.PacketsSent }),
	"packetsReceived":              num(func(m *v1.TransportStats) **float64 { return &m.PacketsReceived }),
	"selectedCandidatePairChanges": num(func(m *v1.TransportStats) **float64 { return &m.SelectedCandidatePairChanges }),
	"dtlsState":                    str(func(m *v1.TransportStats) *string { return &m.DtlsState }),
	"iceState":                     str(func(m *v1.TransportStats) *string { return &m.IceState }),
})

var mediaSourceTable = compile(fields[v1.MediaSourceStats]{
	"type":                 ignored[v1.MediaSourceStats],
	"id":                   str(func(m *v1.MediaSourceStats) *string { return &m.Id }),
	"kind":                 str(func(m *v1.MediaSourceStats) *string { return &m.Kind }),
	"trackIdentifier":      str(func(m *v1.MediaSourceStats) *string { return &m.TrackIdentifier }),
	"audioLevel":           num(func(m *v1.MediaSourceStats) **float64 { return &m.AudioLevel }),
	"totalAudioEnergy":     num(func(m *v1.MediaSourceStats) **float64 { return &m.TotalAudioEnergy }),
	"totalSamplesDuration": num(func(m *v1.MediaSourceStats) **float64 { return &m.TotalSamplesDuration }),
	"width":                num(func(m *v1.MediaSourceStats) **float64 { return &m.Width }),
	"height":               num(func(m *v1.MediaSourceStats) **float64 { return &m.Height }),
	"framesPerSecond":      num(func(m *v1.MediaSourceStats) **float64 { return &m.FramesPerSecond }),
	"frames":               num(func(m *v1.MediaSourceStats) **float64 { return &m.Frames }),
})

// The statistics of Chrome before the standard: everything is a string, times are milliseconds, audio levels go to
// 32767, and an outbound stream's entry also holds what the peer reported of it.

func (r *report) legacyRTP(o *fastjson.Object) {
	left := r.d.begin()
	r.decodeLegacyRTP(left, o).ExtraJson = left.object()
}

func (r *report) decodeLegacyRTP(left leftovers, o *fastjson.Object) *v1.RtpStats {
	outbound := o.Get("packetsSent") != nil || strings.HasSuffix(r.d.text(o.Get("id")), "_send")
	s := r.d.rtp(v1.RtpType_RTP_TYPE_INBOUND)
	t := legacyInboundTable
	if outbound {
		s.Type = v1.RtpType_RTP_TYPE_OUTBOUND
		t = legacyOutboundTable
	}
	decode(left, o, t, s)
	if s.MimeType != "" && s.Kind != "" {
		s.MimeType = s.Kind + "/" + s.MimeType // googCodecName has the name alone
	}
	r.addRTP(s, o)
	if outbound {
		peer := r.d.rtp(v1.RtpType_RTP_TYPE_REMOTE_INBOUND)
		peer.Ssrc, peer.Kind, peer.LocalId, peer.TimestampMs = s.Ssrc, s.Kind, s.Id, s.TimestampMs
		known := r.d.begin() // in the outbound entry
		decode(known, o, legacyPeerTable, peer)
		known.drop()
		if peer.PacketsLost != nil || peer.RoundTripTime != nil || peer.Jitter != nil {
			r.stats.Rtp = append(r.stats.Rtp, peer)
		}
	}
	return s
}

const audioLevelScale = 1.0 / 32767

// legacyFields are those of both directions.
var legacyFields = fields[v1.RtpStats]{
	"type":          ignored[v1.RtpStats],
	"id":            str(func(m *v1.RtpStats) *string { return &m.Id }),
	"ssrc":          str(func(m *v1.RtpStats) *string { return &m.Ssrc }),
	"mediaType":     sameStr(func(m *v1.RtpStats) *string { return &m.Kind }),
	"kind":          sameStr(func(m *v1.RtpStats) *string { return &m.Kind }),
	"timestamp":     plainNum(func(m *v1.RtpStats) *float64 { return &m.TimestampMs }),
	"googCodecName": str(func(m *v1.RtpStats) *string { return &m.MimeType }),
	"googTrackId":   str(func(m *v1.RtpStats) *string { return &m.TrackIdentifier }),

	"totalAudioEnergy":     num(func(m *v1.RtpStats) **float64 { return &m.TotalAudioEnergy }),
	"totalSamplesDuration": num(func(m *v1.RtpStats) **float64 { return &m.TotalSamplesDuration }),
	"qpSum":                num(func(m *v1.RtpStats) **float64 { return &m.QpSum }),
}

var legacyInboundTable = compile(legacyFields, fields[v1.RtpStats]{
	"packetsReceived":         num(func(m *v1.RtpStats) **float64 { return &m.PacketsReceived }),
	"packetsLost":             num(func(m *v1.RtpStats) **float64 { return &m.PacketsLost }),
	"bytesReceived":           num(func(m *v1.RtpStats) **float64 { return &m.BytesReceived }),
	"googJitterReceived":      scaled(func(m *v1.RtpStats) **float64 { return &m.Jitter }, 1e-3),
	"audioOutputLevel":        scaled(func(m *v1.RtpStats) **float64 { return &m.AudioLevel }, audioLevelScale),
	"framesDecoded":           num(func(m *v1.RtpStats) **float64 { return &m.FramesDecoded }),
	"googFrameWidthReceived":  num(func(m *v1.RtpStats) **float64 { return &m.FrameWidth }),
	"googFrameHeightReceived": num(func(m *v1.RtpStats) **float64 { return &m.FrameHeight }),
	"googFrameRateReceived":   num(func(m *v1.RtpStats) **float64 { return &m.FramesPerSecond }),
	"googNacksSent":           num(func(m *v1.RtpStats) **float64 { return &m.NackCount }),
	"googPlisSent":            num(func(m *v1.RtpStats) **float64 { return &m.PliCount }),
	"googFirsSent":            num(func(m *v1.RtpStats) **float64 { return &m.FirCount }),
})

var legacyOutboundTable = compile(legacyFields, fields[v1.RtpStats]{
	"packetsSent":         num(func(m *v1.RtpStats) **float64 { return &m.PacketsSent }),
	"bytesSent":           num(func(m *v1.RtpStats) **float64 { return &m.BytesSent }),
	"audioInputLevel":     scaled(func(m *v1.RtpStats) **float64 { return &m.AudioLevel }, audioLevelScale),
	"framesEncoded":       num(func(m *v1.RtpStats) **float64 { return &m.FramesEncoded }),
	"googFrameWidthSent":  num(func(m *v1.RtpStats) **float64 { return &m.FrameWidth }),
	"googFrameHeightSent": num(func(m *v1.RtpStats) **float64 { return &m.FrameHeight }),
	"googFrameRateSent":   num(func(m *v1.RtpStats) **float64 { return &m.FramesPerSecond }),
	"googNacksReceived":   num(func(m *v1.RtpStats) **float64 { return &m.NackCount }),
	"googPlisReceived":    num(func(m *v1.RtpStats) **float64 { return &m.PliCount }),
	"googFirsReceived":    num(func(m *v1.RtpStats) **float64 { return &m.FirCount }),
	"packetsLost":         ignored[v1.RtpStats], // in the peer's entry
	"googRtt":             ignored[v1.RtpStats],
	"googJitterReceived":  ignored[v1.RtpStats],
})

var legacyPeerTable = compile(fields[v1.RtpStats]{
	"packetsLost":        num(func(m *v1.RtpStats) **float64 { return &m.PacketsLost }),
	"googRtt":            scaled(func(m *v1.RtpStats) **float64 { return &m.RoundTripTime }, 1e-3),
	"googJitterReceived": scaled(func(m *v1.RtpStats) **float64 { return &m.Jitter }, 1e-3),
})

var legacyPairTable = compile(fields[v1.CandidatePairStats]{
	"type":                 ignored[v1.CandidatePairStats],
	"id":                   str(func(m *v1.CandidatePairStats) *string { return &m.Id }),
	"timestamp":            plainNum(func(m *v1.CandidatePairStats) *float64 { return &m.TimestampMs }),
	"localCandidateId":     str(func(m *v1.CandidatePairStats) *string { return &m.LocalCandidateId }),
	"remoteCandidateId":    str(func(m *v1.CandidatePairStats) *string { return &m.RemoteCandidateId }),
	"googActiveConnection": plainBool(func(m *v1.CandidatePairStats) *bool { return &m.Selected }),
	"googRtt":              scaled(func(m *v1.CandidatePairStats) **float64 { return &m.CurrentRoundTripTime }, 1e-3),
	"bytesSent":            num(func(m *v1.CandidatePairStats) **float64 { return &m.BytesSent }),
	"bytesReceived":        num(func(m *v1.CandidatePairStats) **float64 { return &m.BytesReceived }),
	"packetsSent":          num(func(m *v1.CandidatePairStats) **float64 { return &m.PacketsSent }),
	"responsesReceived":    num(func(m *v1.CandidatePairStats) **float64 { return &m.ResponsesReceived }),
	"requestsSent":         num(func(m *v1.CandidatePairStats) **float64 { return &m.RequestsSent }),
})
