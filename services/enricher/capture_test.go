package enricher

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// The converter below reads recordings on its own: it shares nothing with the
// gateway, so that what the two agree on is worth something.

const (
	captures = "../../test/captures"
	expected = "../../test/expected"
)

// captureBaseMs is the gateway time of a recording's t = 0.
const captureBaseMs = 1_795_343_000_000

type object map[string]any

func (o object) text(keys ...string) string {
	for _, key := range keys {
		switch v := o[key].(type) {
		case string:
			return v
		case float64:
			return strconv.FormatFloat(v, 'f', -1, 64)
		}
	}
	return ""
}

func (o object) number(keys ...string) *float64 {
	for _, key := range keys {
		if v, ok := o[key].(float64); ok {
			return &v
		}
	}
	return nil
}

func (o object) object(key string) object {
	v, _ := o[key].(map[string]any)
	return v
}

func (o object) list(key string) []object {
	var list []object
	values, _ := o[key].([]any)
	for _, v := range values {
		if v, ok := v.(map[string]any); ok {
			list = append(list, v)
		}
	}
	return list
}

type timedRaw struct {
	t   int64
	raw *callscopev1.Raw
}

// readCapture returns the messages of a recording that a gateway would pass on.
func readCapture(t testing.TB, name string) []timedRaw {
	t.Helper()
	file, err := os.Open(filepath.Join(captures, name+".jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 4<<20)
	devices := map[float64]string{}
	var messages []timedRaw
	for lines.Scan() {
		var line object
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		var raw *callscopev1.Raw
		switch line.text("kind") {
		case "http":
			raw = convertREST(t, line)
		case "ws-client":
			raw = convertFrame(t, line, devices)
		}
		if raw == nil {
			continue
		}
		at := int64(*line.number("t"))
		raw.Uid = testUID(uint64(*line.number("seq")))
		raw.Observed.AppId = "123456789"
		raw.Observed.ReceivedAtMs = captureBaseMs + at
		messages = append(messages, timedRaw{at, raw})
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return messages
}

func testUID(n uint64) []byte {
	uid := make([]byte, 16)
	binary.BigEndian.PutUint64(uid[8:], n)
	return uid
}

func hash(parts ...string) []byte {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return sum[:]
}

func convertREST(t testing.TB, line object) *callscopev1.Raw {
	path := line.text("path")
	found := strings.Contains(path, "/apps/")
	if line.text("method") != "POST" {
		return nil
	}
	var conferenceID string
	switch {
	case strings.Contains(path, "/conferences/"):
		_, rest, _ := strings.Cut(path, "/conferences/")
		segment, _, _ := strings.Cut(rest, "/")
		var err error
		if conferenceID, err = url.PathUnescape(segment); err != nil {
			t.Fatal(err)
		}
	case found && strings.HasSuffix(path, "/events/precall"):
	default:
		return nil
	}
	var body object
	if err := json.Unmarshal([]byte(line.text("body")), &body); err != nil {
		t.Fatal(err)
	}
	raw := convertBody(body)
	raw.Claimed.ConferenceId = conferenceID
	raw.Observed.ContentHash = hash("POST", path, line.text("body"))
	return raw
}

func convertBody(body object) *callscopev1.Raw {
	raw := &callscopev1.Raw{
		EventType: body.text("eventType"),
		Claimed: &callscopev1.Claimed{
			UserId: body.text("localID"), DeviceId: body.text("deviceID"), ConnectionId: body.text("connectionID"),
			RemoteId: body.text("remoteID"), ClientVersion: body.text("callstatsVersion"), SiteId: body.text("siteID"),
		},
		Observed: &callscopev1.Observed{},
	}
	if at := body.number("timestamp"); at != nil {
		raw.Claimed.TimeMs = *at
	}
	setPayload(raw, body)
	return raw
}

func convertFrame(t testing.TB, line object, devices map[float64]string) *callscopev1.Raw {
	var frame object
	if err := json.Unmarshal([]byte(line.text("data")), &frame); err != nil {
		t.Fatal(err)
	}
	unescape := func(id string) string {
		plain, err := url.PathUnescape(id)
		if err != nil {
			t.Fatal(err)
		}
		return plain
	}
	var raw *callscopev1.Raw
	if frame["confID"] != nil { // 3.52: a REST body in a frame
		if frame.text("eventType") == "processedStats" {
			frame["eventType"] = "stats"
		}
		raw = convertBody(frame)
		raw.Claimed.ConferenceId = unescape(frame.text("confID"))
	} else {
		raw = convert324(frame)
		raw.Claimed.ConferenceId = unescape(frame.text("conferenceID"))
	}
	raw.Claimed.UserId, raw.Claimed.RemoteId = unescape(raw.Claimed.UserId), unescape(raw.Claimed.RemoteId)
	conn := *line.number("conn")
	if raw.Claimed.DeviceId == "" {
		raw.Claimed.DeviceId = devices[conn]
	}
	devices[conn] = raw.Claimed.DeviceId
	raw.Observed.ContentHash = hash(line.text("data"))
	return raw
}

// convert324 rewrites a frame of 3.24 as the body that 3.73 would send.
func convert324(frame object) *callscopev1.Raw {
	body := object{}
	maps.Copy(body, frame.object("value"))
	body["eventType"] = frame.text("action", "channel")
	body["localID"] = frame.text("localID", "userID")
	body["remoteID"] = frame.text("remoteID")
	body["deviceID"] = frame.text("deviceID")
	body["connectionID"] = frame.text("pcID")
	body["callstatsVersion"] = frame.text("version")
	if at := frame.number("apiTS"); at != nil {
		body["timestamp"] = *at
	}
	original := ""
	switch frame.text("action", "channel") {
	case "autoFabricSetup":
		original, body["eventType"], body["delay"] = "autoFabricSetup", "fabricSetup", body["setupDelay"]
		body["localIceCandidates"], body["remoteIceCandidates"] = body["localCandidates"], body["remoteCandidates"]
	case "processedStats":
		original, body["eventType"] = "processedStats", "stats"
		var entries []any
		for _, statistics := range frame.list("processedStatistics") {
			for _, stream := range statistics.list("streams") {
				entry := stream.object("data")
				if usage := stream.text("usage"); usage != "" {
					entry["associated"], entry["usage"] = stream.text("userID"), usage
				}
				entries = append(entries, map[string]any(entry))
			}
			entries = append(entries, statistics["Transport"].([]any)...)
		}
		body["stats"] = entries
	case "userJoined", "userAlive":
		endpoint := body.object("endpoint")
		body["endpointInfo"] = map[string]any{
			"type": endpoint["type"], "buildName": endpoint["name"], "buildVersion": endpoint["ver"],
			"appVersion": endpoint["appVer"], "os": endpoint["os"], "osVersion": endpoint["osVersion"],
			"userAgent": endpoint["userAgent"],
		}
	case "fabricSetupFailed", "applicationErrorLog":
		if domError := body.object("domError"); domError != nil {
			maps.Copy(body, map[string]any{"message": domError["message"], "name": domError["name"], "stack": domError["stack"]})
		} else {
			body["message"] = body["domError"]
		}
	case "ssrcMap":
		var entries []any
		value := frame.object("value")
		for _, ssrc := range slices.Sorted(maps.Keys(value)) {
			entry := value.object(ssrc)
			if entry != nil {
				entry["ssrc"] = ssrc
				entries = append(entries, map[string]any(entry))
			}
		}
		body["ssrcData"] = entries
	case "sdpSubmissionEvent":
		sdp := frame.object("sdpPayload").object("sdp")
		body["localSDP"], body["remoteSDP"] = sdp["localSDP"], sdp["remoteSDP"]
	case "userFeedbackEvent":
		qoe := frame.object("userQoe")
		body["feedback"] = map[string]any{
			"overallRating": qoe["overall"], "audioQualityRating": qoe["audio"], "videoQualityRating": qoe["video"],
			"comments": qoe["comment"],
		}
	}
	raw := convertBody(body)
	raw.OriginalType = original
	return raw
}

func setPayload(raw *callscopev1.Raw, body object) {
	switch raw.EventType {
	case "userJoined":
		raw.Payload = &callscopev1.Raw_UserJoined{UserJoined: &callscopev1.UserJoined{
			EndpointInfo: endpoint(body.object("endpointInfo")), UserName: body.text("userName"),
		}}
	case "userDetails":
		raw.Payload = &callscopev1.Raw_UserDetails{UserDetails: &callscopev1.UserDetails{UserName: body.text("userName")}}
	case "userAlive":
		raw.Payload = &callscopev1.Raw_UserAlive{UserAlive: &callscopev1.UserAlive{EndpointInfo: endpoint(body.object("endpointInfo"))}}
	case "userLeft":
		raw.Payload = &callscopev1.Raw_UserLeft{UserLeft: &callscopev1.UserLeft{}}
	case "fabricSetup":
		setup := &callscopev1.FabricSetup{
			DelayMs: body.number("delay"), IceGatheringDelayMs: body.number("iceGatheringDelay"),
			IceConnectivityDelayMs:      body.number("iceConnectivityDelay"),
			RemoteEndpointType:          body.text("remoteEndpointType"),
			FabricTransmissionDirection: body.text("fabricTransmissionDirection"),
			SelectedCandidatePairId:     body.text("selectedCandidatePairID"),
		}
		for _, candidate := range body.list("localIceCandidates") {
			setup.LocalIceCandidates = append(setup.LocalIceCandidates, &callscopev1.IceCandidate{Id: candidate.text("id"), CandidateType: candidate.text("candidateType")})
		}
		for _, candidate := range body.list("remoteIceCandidates") {
			setup.RemoteIceCandidates = append(setup.RemoteIceCandidates, &callscopev1.IceCandidate{Id: candidate.text("id"), CandidateType: candidate.text("candidateType")})
		}
		for _, pair := range body.list("iceCandidatePairs") {
			setup.IceCandidatePairs = append(setup.IceCandidatePairs, &callscopev1.IceCandidatePair{
				Id: pair.text("id"), LocalCandidateId: pair.text("localCandidateId"), RemoteCandidateId: pair.text("remoteCandidateId"),
				Selected: pair.text("googActiveConnection") == "true",
			})
		}
		raw.Payload = &callscopev1.Raw_FabricSetup{FabricSetup: setup}
	case "fabricSetupFailed", "applicationErrorLog":
		raw.Payload = &callscopev1.Raw_Failure{Failure: &callscopev1.Failure{
			DelayMs: body.number("delay", "failureDelay"), Reason: body.text("reason"), Function: body.text("function"),
			Name: body.text("name"), Message: body.text("message"), Stack: body.text("stack"),
			Endpoint: endpoint(body.object("endpoint")),
		}}
	case "fabricStateChange":
		raw.Payload = &callscopev1.Raw_FabricStateChange{FabricStateChange: &callscopev1.FabricStateChange{
			ChangedState: body.text("changedState"), PrevState: body.text("prevState"), NewState: body.text("newState"),
		}}
	case "fabricTransportSwitch":
		raw.Payload = &callscopev1.Raw_FabricTransportSwitch{FabricTransportSwitch: &callscopev1.FabricTransportSwitch{RelayType: body.text("relayType")}}
	case "fabricTerminated":
		raw.Payload = &callscopev1.Raw_FabricTerminated{FabricTerminated: &callscopev1.FabricTerminated{}}
	case "fabricHold", "fabricResume":
		raw.Payload = &callscopev1.Raw_FabricAction{FabricAction: &callscopev1.FabricAction{}}
	case "iceDisruptionStart", "iceDisruptionEnd", "iceConnectionDisruptionStart", "iceConnectionDisruptionEnd", "iceFailed",
		"iceAborted", "iceTerminated", "iceRestarted", "fabricDropped":
		raw.Payload = &callscopev1.Raw_IceEvent{IceEvent: &callscopev1.IceEvent{
			PrevIceConnectionState: body.text("prevIceConnectionState"), CurrIceConnectionState: body.text("currIceConnectionState"),
			DelayMs: body.number("delay", "failureDelay", "disruptionDelay"),
		}}
	case "ssrcMap":
		ssrcMap := &callscopev1.SsrcMap{}
		for _, entry := range body.list("ssrcData") {
			ssrcMap.SsrcData = append(ssrcMap.SsrcData, &callscopev1.SsrcMapEntry{
				Ssrc: entry.text("ssrc"), StreamType: entry.text("streamType"), UserId: entry.text("userID"),
				RemoteUserId: entry.text("remoteUserID"), UsageLabel: entry.text("usageLabel"),
			})
		}
		raw.Payload = &callscopev1.Raw_SsrcMap{SsrcMap: ssrcMap}
	case "sdpSubmissionEvent":
		raw.Payload = &callscopev1.Raw_SdpSubmission{SdpSubmission: &callscopev1.SdpSubmission{LocalSdp: body.text("localSDP"), RemoteSdp: body.text("remoteSDP")}}
	case "userFeedbackEvent":
		feedback := body.object("feedback")
		raw.Payload = &callscopev1.Raw_Feedback{Feedback: &callscopev1.Feedback{
			Overall: feedback.number("overallRating"), Audio: feedback.number("audioQualityRating"),
			Video: feedback.number("videoQualityRating"), Comment: feedback.text("comments"),
		}}
	case "mediaPlaybackStart", "mediaPlaybackSuspended", "mediaPlaybackStalled":
		raw.Payload = &callscopev1.Raw_MediaPlayback{MediaPlayback: &callscopev1.MediaPlayback{Ssrc: body.text("ssrc"), Kind: body.text("kind")}}
	case "preCallTestResults":
		results, _ := json.Marshal(body["results"])
		raw.Payload = &callscopev1.Raw_PreCallTestResults{PreCallTestResults: &callscopev1.PreCallTestResults{
			Id: body.object("results").text("id"), ResultsJson: string(results), UserName: body.text("userName"),
		}}
	case "preCallTestAssociate":
		associate := &callscopev1.PreCallTestAssociate{}
		ids, _ := body["ids"].([]any)
		for _, id := range ids {
			associate.Ids = append(associate.Ids, id.(string))
		}
		raw.Payload = &callscopev1.Raw_PreCallTestAssociate{PreCallTestAssociate: associate}
	case "stats":
		raw.Payload = &callscopev1.Raw_Stats{Stats: convertStats(body)}
	default:
		extra, _ := json.Marshal(body)
		raw.ExtraJson = string(extra)
		raw.Payload = &callscopev1.Raw_Other{Other: &callscopev1.OtherEvent{}}
	}
}

func endpoint(o object) *callscopev1.EndpointInfo {
	if o == nil {
		return nil
	}
	return &callscopev1.EndpointInfo{
		Type: o.text("type"), BuildName: o.text("buildName", "name"), BuildVersion: o.text("buildVersion", "ver"),
		AppVersion: o.text("appVersion", "appVer"), Os: o.text("os"), OsVersion: o.text("osVersion"), UserAgent: o.text("userAgent"),
	}
}

func convertStats(body object) *callscopev1.Stats {
	stats := &callscopev1.Stats{BatteryLevel: body.object("batteryStatus").number("batteryLevel")}
	types := map[string]callscopev1.RtpType{
		"inbound-rtp": callscopev1.RtpType_RTP_TYPE_INBOUND, "outbound-rtp": callscopev1.RtpType_RTP_TYPE_OUTBOUND,
		"remote-inbound-rtp": callscopev1.RtpType_RTP_TYPE_REMOTE_INBOUND, "remote-outbound-rtp": callscopev1.RtpType_RTP_TYPE_REMOTE_OUTBOUND,
	}
	for _, e := range body.list("stats") {
		stamp := 0.0
		if at := e.number("timestamp"); at != nil {
			stamp = *at
		}
		switch kind := e.text("type"); kind {
		case "inbound-rtp", "outbound-rtp", "remote-inbound-rtp", "remote-outbound-rtp":
			limits := e.object("qualityLimitationDurations")
			stats.Rtp = append(stats.Rtp, &callscopev1.RtpStats{
				Type: types[kind], Id: e.text("id"), Ssrc: e.text("ssrc"), Kind: e.text("kind", "mediaType"), TimestampMs: stamp,
				MimeType: e.text("mimeType"), PacketsReceived: e.number("packetsReceived"), PacketsLost: e.number("packetsLost"),
				PacketsSent: e.number("packetsSent"), BytesReceived: e.number("bytesReceived"), BytesSent: e.number("bytesSent"),
				Jitter: e.number("jitter"), RoundTripTime: e.number("roundTripTime"), TotalRoundTripTime: e.number("totalRoundTripTime"),
				RoundTripTimeMeasurements: e.number("roundTripTimeMeasurements"), JitterBufferDelay: e.number("jitterBufferDelay"),
				JitterBufferEmittedCount: e.number("jitterBufferEmittedCount"), AudioLevel: e.number("audioLevel"),
				TotalSamplesReceived: e.number("totalSamplesReceived"), ConcealedSamples: e.number("concealedSamples"),
				SilentConcealedSamples: e.number("silentConcealedSamples"), ConcealmentEvents: e.number("concealmentEvents"),
				FrameWidth: e.number("frameWidth"), FrameHeight: e.number("frameHeight"), FramesPerSecond: e.number("framesPerSecond"),
				FramesDecoded: e.number("framesDecoded"), FramesEncoded: e.number("framesEncoded"), FreezeCount: e.number("freezeCount"),
				TotalFreezesDuration: e.number("totalFreezesDuration"), QualityLimitationReason: e.text("qualityLimitationReason"),
				QualityLimitationCpu: limits.number("cpu"), QualityLimitationBandwidth: limits.number("bandwidth"),
				LocalId: e.text("localId"), RemoteId: e.text("remoteId"), MediaSourceId: e.text("mediaSourceId"),
				AssociatedUserId: e.text("associated"), UsageLabel: e.text("usage"),
			})
		case "candidate-pair":
			pair := &callscopev1.CandidatePairStats{
				Id: e.text("id"), LocalCandidateId: e.text("localCandidateId"), RemoteCandidateId: e.text("remoteCandidateId"),
				State: e.text("state"), CurrentRoundTripTime: e.number("currentRoundTripTime"), TotalRoundTripTime: e.number("totalRoundTripTime"),
				ResponsesReceived: e.number("responsesReceived"), AvailableOutgoingBitrate: e.number("availableOutgoingBitrate"),
				BytesSent: e.number("bytesSent"), BytesReceived: e.number("bytesReceived"), TimestampMs: stamp,
			}
			if nominated, ok := e["nominated"].(bool); ok {
				pair.Nominated = proto.Bool(nominated)
			}
			stats.CandidatePairs = append(stats.CandidatePairs, pair)
		case "local-candidate", "remote-candidate":
			stats.Candidates = append(stats.Candidates, &callscopev1.CandidateStats{
				Id: e.text("id"), Remote: kind == "remote-candidate", CandidateType: e.text("candidateType"),
				Protocol: e.text("protocol"), NetworkType: e.text("networkType"),
			})
		case "transport":
			stats.Transports = append(stats.Transports, &callscopev1.TransportStats{
				Id: e.text("id"), SelectedCandidatePairId: e.text("selectedCandidatePairId"),
				BytesSent: e.number("bytesSent"), BytesReceived: e.number("bytesReceived"),
			})
		case "media-source":
			stats.MediaSources = append(stats.MediaSources, &callscopev1.MediaSourceStats{
				Id: e.text("id"), Kind: e.text("kind"), AudioLevel: e.number("audioLevel"),
			})
		}
		stats.ReportTimeMs = max(stats.ReportTimeMs, stamp)
	}
	return stats
}
