package vocabulary

import (
	"github.com/valyala/fastjson"

	v1 "github.com/callscope/callscope/proto/callscope/v1"
)

// names translates event names of older clients, and of the spec where it differs from the 3.73 client.
var names = map[string]string{
	"autoFabricSetup":         "fabricSetup",
	"processedStats":          "stats",
	"audioUnMute":             "audioUnmute",
	"feedback":                "userFeedbackEvent",
	"userFeedback":            "userFeedbackEvent",
	"mediaPlaybackStartEvent": "mediaPlaybackStart",
	"mediaSuspendedEvent":     "mediaPlaybackSuspended",
	"connectedDevices":        "connectedDeviceList",
	"activeDevices":           "activeDeviceList",
}

// takers fill the payload of a raw message, by event type. They return further raw messages for what was more than one.
var takers = map[string]func(m *Message, raw *v1.Raw, left leftovers) []*v1.Raw{
	"stats": takeStats,
	"addNewFabric": event(fabricAddedTable, func(r *v1.Raw, p *v1.FabricAdded) {
		r.Payload = &v1.Raw_FabricAdded{FabricAdded: p}
	}),
	"associateMstWithUserID": event(associationTable, func(r *v1.Raw, p *v1.Association) {
		r.Payload = &v1.Raw_Association{Association: p}
	}),
	"ssrcMap":    takeSsrcMap,
	"userJoined": event(userJoinedTable, func(r *v1.Raw, p *v1.UserJoined) { r.Payload = &v1.Raw_UserJoined{UserJoined: p} }),
	"userDetails": event(userDetailsTable, func(r *v1.Raw, p *v1.UserDetails) {
		r.Payload = &v1.Raw_UserDetails{UserDetails: p}
	}),
	"userAlive":   event(userAliveTable, func(r *v1.Raw, p *v1.UserAlive) { r.Payload = &v1.Raw_UserAlive{UserAlive: p} }),
	"userLeft":    event(nil, func(r *v1.Raw, p *v1.UserLeft) { r.Payload = &v1.Raw_UserLeft{UserLeft: p} }),
	"fabricSetup": event(fabricSetupTable, func(r *v1.Raw, p *v1.FabricSetup) { r.Payload = &v1.Raw_FabricSetup{FabricSetup: p} }),

	"fabricSetupFailed":   event(failureTable, setFailure),
	"applicationErrorLog": event(failureTable, setFailure),

	"fabricStateChange": event(stateChangeTable, func(r *v1.Raw, p *v1.FabricStateChange) {
		r.Payload = &v1.Raw_FabricStateChange{FabricStateChange: p}
	}),
	"fabricTransportSwitch": event(transportSwitchTable, func(r *v1.Raw, p *v1.FabricTransportSwitch) {
		r.Payload = &v1.Raw_FabricTransportSwitch{FabricTransportSwitch: p}
	}),
	"fabricTerminated": event(nil, func(r *v1.Raw, p *v1.FabricTerminated) {
		r.Payload = &v1.Raw_FabricTerminated{FabricTerminated: p}
	}),
	"fabricHold":     event(nil, setFabricAction),
	"fabricResume":   event(nil, setFabricAction),
	"callUnAnswered": event(nil, setFabricAction),

	"iceDisruptionStart":           event(iceTable, setIceEvent),
	"iceDisruptionEnd":             event(iceTable, setIceEvent),
	"iceConnectionDisruptionStart": event(iceTable, setIceEvent),
	"iceConnectionDisruptionEnd":   event(iceTable, setIceEvent),
	"iceFailed":                    event(iceTable, setIceEvent),
	"iceAborted":                   event(iceTable, setIceEvent),
	"iceTerminated":                event(iceTable, setIceEvent),
	"iceRestarted":                 event(iceTable, setIceEvent),
	"iceCompleted":                 event(iceTable, setIceEvent),
	"fabricDropped":                event(iceTable, setIceEvent),
	"iceCandidateFound": event(candidateFoundTable, func(r *v1.Raw, p *v1.IceCandidateFound) {
		r.Payload = &v1.Raw_IceCandidateFound{IceCandidateFound: p}
	}),

	"audioMute":        event(mediaActionTable, setMediaAction),
	"audioUnmute":      event(mediaActionTable, setMediaAction),
	"videoPause":       event(mediaActionTable, setMediaAction),
	"videoResume":      event(mediaActionTable, setMediaAction),
	"screenShareStart": event(mediaActionTable, setMediaAction),
	"screenShareStop":  event(mediaActionTable, setMediaAction),

	"mediaPlaybackStart":     event(playbackTable, setPlayback),
	"mediaPlaybackSuspended": event(playbackTable, setPlayback),
	"mediaPlaybackStalled":   event(playbackTable, setPlayback),

	"oneWayMediaStart": event(disruptionTable, setDisruption),
	"oneWayMediaStop":  event(disruptionTable, setDisruption),
	"oneWayMedia":      event(disruptionTable, setDisruption),
	"audioDisruption":  event(disruptionTable, setDisruption),
	"circuitBreaker":   event(disruptionTable, setDisruption),

	"dominantSpeaker": event(nil, func(r *v1.Raw, p *v1.DominantSpeaker) {
		r.Payload = &v1.Raw_DominantSpeaker{DominantSpeaker: p}
	}),
	"activeDeviceList":    event(deviceListTable, setDeviceList),
	"connectedDeviceList": event(deviceListTable, setDeviceList),
	"sdpSubmissionEvent": event(sdpTable, func(r *v1.Raw, p *v1.SdpSubmission) {
		r.Payload = &v1.Raw_SdpSubmission{SdpSubmission: p}
	}),
	"userFeedbackEvent": event(feedbackEventTable, func(r *v1.Raw, p *v1.Feedback) { r.Payload = &v1.Raw_Feedback{Feedback: p} }),
	"callDetails":       event(callDetailsTable, func(r *v1.Raw, p *v1.CallDetails) { r.Payload = &v1.Raw_CallDetails{CallDetails: p} }),
	"customEvent":       event(customEventTable, func(r *v1.Raw, p *v1.CustomEvent) { r.Payload = &v1.Raw_CustomEvent{CustomEvent: p} }),
	"conferenceSummary": event(conferenceSummaryTable, func(r *v1.Raw, p *v1.ConferenceSummaryEvent) {
		r.Payload = &v1.Raw_ConferenceSummary{ConferenceSummary: p}
	}),
	"customStats": event(customStatsTable, func(r *v1.Raw, p *v1.CustomStats) { r.Payload = &v1.Raw_CustomStats{CustomStats: p} }),
	"preCallTestResults": event(preCallResultsTable, func(r *v1.Raw, p *v1.PreCallTestResults) {
		r.Payload = &v1.Raw_PreCallTestResults{PreCallTestResults: p}
	}),
	"preCallTestAssociate": event(preCallAssociateTable, func(r *v1.Raw, p *v1.PreCallTestAssociate) {
		r.Payload = &v1.Raw_PreCallTestAssociate{PreCallTestAssociate: p}
	}),
	"preCallTestNotification": event(preCallNotificationTable, func(r *v1.Raw, p *v1.PreCallTestNotification) {
		r.Payload = &v1.Raw_PreCallTestNotification{PreCallTestNotification: p}
	}),
	"userIDChangedEvent": event(userIDChangedTable, func(r *v1.Raw, p *v1.UserIdChanged) {
		r.Payload = &v1.Raw_UserIdChanged{UserIdChanged: p}
	}),
}

// takeOther keeps an event that no message describes.
func takeOther(m *Message, raw *v1.Raw, left leftovers) []*v1.Raw {
	return event(nil, func(r *v1.Raw, p *v1.OtherEvent) { r.Payload = &v1.Raw_Other{Other: p} })(m, raw, left)
}

func setFailure(r *v1.Raw, p *v1.Failure) { r.Payload = &v1.Raw_Failure{Failure: p} }
func setFabricAction(r *v1.Raw, p *v1.FabricAction) {
	r.Payload = &v1.Raw_FabricAction{FabricAction: p}
}
func setIceEvent(r *v1.Raw, p *v1.IceEvent) { r.Payload = &v1.Raw_IceEvent{IceEvent: p} }
func setMediaAction(r *v1.Raw, p *v1.MediaAction) {
	r.Payload = &v1.Raw_MediaAction{MediaAction: p}
}
func setPlayback(r *v1.Raw, p *v1.MediaPlayback) {
	r.Payload = &v1.Raw_MediaPlayback{MediaPlayback: p}
}
func setDisruption(r *v1.Raw, p *v1.MediaDisruption) {
	r.Payload = &v1.Raw_MediaDisruption{MediaDisruption: p}
}
func setDeviceList(r *v1.Raw, p *v1.DeviceList) { r.Payload = &v1.Raw_DeviceList{DeviceList: p} }

// event makes a taker from a table.
func event[M any](t table[M], set func(*v1.Raw, *M)) func(*Message, *v1.Raw, leftovers) []*v1.Raw {
	return func(m *Message, raw *v1.Raw, left leftovers) []*v1.Raw {
		p := new(M)
		m.members(left, func(a argument) { take(a, t, p) })
		set(raw, p)
		return nil
	}
}

// members calls f for every member that is not the envelope's. Clients of 3.24 and 3.26 put an event's own members into
// "value".
func (m *Message) members(left leftovers, f func(argument)) {
	m.object.Visit(func(key []byte, v *fastjson.Value) {
		if m.inEnvelope(key, v) {
			return
		}
		if m.Dialect == v1.Dialect_DIALECT_CALLSTATS_WS_324 && string(key) == "value" && v.Type() == fastjson.TypeObject {
			v.GetObject().Visit(func(key []byte, v *fastjson.Value) {
				if string(key) == "ucID" {
					return // userAlive repeats it
				}
				f(argument{left, key, v})
			})
			return
		}
		f(argument{left, key, v})
	})
}

var endpointTable = compile(fields[v1.EndpointInfo]{
	"type":         str(func(m *v1.EndpointInfo) *string { return &m.Type }),
	"buildName":    str(func(m *v1.EndpointInfo) *string { return &m.BuildName }),
	"name":         str(func(m *v1.EndpointInfo) *string { return &m.BuildName }),
	"buildVersion": str(func(m *v1.EndpointInfo) *string { return &m.BuildVersion }),
	"ver":          str(func(m *v1.EndpointInfo) *string { return &m.BuildVersion }),
	"appVersion":   cutStr(func(m *v1.EndpointInfo) *string { return &m.AppVersion }, cutRunes, maxAppVersionRunes),
	"appVer":       cutStr(func(m *v1.EndpointInfo) *string { return &m.AppVersion }, cutRunes, maxAppVersionRunes),
	"os":           str(func(m *v1.EndpointInfo) *string { return &m.Os }),
	"osVersion":    str(func(m *v1.EndpointInfo) *string { return &m.OsVersion }),
	"userAgent":    str(func(m *v1.EndpointInfo) *string { return &m.UserAgent }),
})

var userJoinedTable = compile(fields[v1.UserJoined]{
	"endpointInfo":            nested(endpointTable, func(m *v1.UserJoined) **v1.EndpointInfo { return &m.EndpointInfo }),
	"endpoint":                nested(endpointTable, func(m *v1.UserJoined) **v1.EndpointInfo { return &m.EndpointInfo }),
	"userName":                cutStr(func(m *v1.UserJoined) *string { return &m.UserName }, cutRunes, maxUserNameRunes),
	"localUserIDObject":       inner(localUserTable),
	"loginID":                 str(func(m *v1.UserJoined) *string { return &m.LoginId }),
	"additionalIDs":           jsonOf(fastjson.TypeObject, func(m *v1.UserJoined) *string { return &m.AdditionalIdsJson }),
	"disableGeoIP":            boolField(func(m *v1.UserJoined) **bool { return &m.DisableGeoIp }),
	"statsSubmissionInterval": num(func(m *v1.UserJoined) **float64 { return &m.StatsSubmissionIntervalMs }),
	"magicKey":                str(func(m *v1.UserJoined) *string { return &m.MagicKey }),
})

// localUserTable is the user object that an app passed instead of a user id; its alias is the user id.
var localUserTable = compile(fields[v1.UserJoined]{
	"userName": cutStr(func(m *v1.UserJoined) *string { return &m.UserName }, cutRunes, maxUserNameRunes),
})

var userDetailsTable = compile(fields[v1.UserDetails]{
	"userName": cutStr(func(m *v1.UserDetails) *string { return &m.UserName }, cutRunes, maxUserNameRunes),
	"localIpAddressInfo": list(compile(fields[v1.LocalIpAddress]{
		"address":       str(func(m *v1.LocalIpAddress) *string { return &m.Address }),
		"candidateType": candidateType(func(m *v1.LocalIpAddress) *string { return &m.CandidateType }),
	}), func(m *v1.UserDetails) *[]*v1.LocalIpAddress { return &m.LocalIpAddressInfo }),
	"collectIP": boolField(func(m *v1.UserDetails) **bool { return &m.CollectIp }),
})

var userAliveTable = compile(fields[v1.UserAlive]{
	"endpoint":     nested(endpointTable, func(m *v1.UserAlive) **v1.EndpointInfo { return &m.EndpointInfo }),
	"endpointInfo": nested(endpointTable, func(m *v1.UserAlive) **v1.EndpointInfo { return &m.EndpointInfo }),
})

// entryTypes translates the types of older getStats entries.
var entryTypes = map[string]string{
	"inboundrtp":      "inbound-rtp",
	"outboundrtp":     "outbound-rtp",
	"candidatepair":   "candidate-pair",
	"localcandidate":  "local-candidate",
	"remotecandidate": "remote-candidate",
}

func entryType(name string) string {
	if standard, old := entryTypes[name]; old {
		return standard
	}
	return name
}

// candidateType translates the candidate types of older browsers.
func candidateType[M any](field func(*M) *string) field[M] {
	return func(m *M, a argument) bool {
		if !isText(a.v) {
			return false
		}
		switch s := a.d.text(a.v); s {
		case "relayed":
			*field(m) = "relay"
		case "serverreflexive":
			*field(m) = "srflx"
		case "peerreflexive":
			*field(m) = "prflx"
		default:
			*field(m) = s
		}
		return true
	}
}

var candidateTable = compile(fields[v1.IceCandidate]{
	"id": str(func(m *v1.IceCandidate) *string { return &m.Id }),
	"type": func(m *v1.IceCandidate, a argument) bool {
		m.Type = entryType(a.d.text(a.v))
		return isText(a.v)
	},
	"transport":     sameStr(func(m *v1.IceCandidate) *string { return &m.Transport }),
	"protocol":      sameStr(func(m *v1.IceCandidate) *string { return &m.Transport }),
	"ip":            sameStr(func(m *v1.IceCandidate) *string { return &m.Ip }),
	"address":       sameStr(func(m *v1.IceCandidate) *string { return &m.Ip }),
	"ipAddress":     sameStr(func(m *v1.IceCandidate) *string { return &m.Ip }),
	"port":          uint32Num(func(m *v1.IceCandidate) **uint32 { return &m.Port }),
	"portNumber":    uint32Num(func(m *v1.IceCandidate) **uint32 { return &m.Port }),
	"candidateType": candidateType(func(m *v1.IceCandidate) *string { return &m.CandidateType }),
	"networkType":   str(func(m *v1.IceCandidate) *string { return &m.NetworkType }),
	"relayProtocol": str(func(m *v1.IceCandidate) *string { return &m.RelayProtocol }),
})

var pairTable = compile(fields[v1.IceCandidatePair]{
	"id":                   str(func(m *v1.IceCandidatePair) *string { return &m.Id }),
	"localCandidateId":     str(func(m *v1.IceCandidatePair) *string { return &m.LocalCandidateId }),
	"remoteCandidateId":    str(func(m *v1.IceCandidatePair) *string { return &m.RemoteCandidateId }),
	"state":                str(func(m *v1.IceCandidatePair) *string { return &m.State }),
	"nominated":            boolField(func(m *v1.IceCandidatePair) **bool { return &m.Nominated }),
	"googActiveConnection": plainBool(func(m *v1.IceCandidatePair) *bool { return &m.Selected }),
})

func decodePair(d *decoding, o *fastjson.Object, p *v1.IceCandidatePair) {
	left := d.begin()
	decode(left, o, pairTable, p)
	p.ExtraJson = left.object()
}

func pair[M any](field func(*M) **v1.IceCandidatePair) field[M] {
	return func(m *M, a argument) bool {
		if a.v.Type() != fastjson.TypeObject {
			return false
		}
		p := &v1.IceCandidatePair{}
		decodePair(a.d, a.v.GetObject(), p)
		*field(m) = p
		return true
	}
}

func pairs[M any](field func(*M) *[]*v1.IceCandidatePair) field[M] {
	return func(m *M, a argument) bool {
		if !isObjects(a.v) {
			return false
		}
		items := a.v.GetArray()
		block, out := make([]v1.IceCandidatePair, len(items)), make([]*v1.IceCandidatePair, len(items))
		for i, item := range items {
			out[i] = &block[i]
			decodePair(a.d, item.GetObject(), out[i])
		}
		*field(m) = out
		return true
	}
}

var fabricSetupTable = compile(fields[v1.FabricSetup]{
	"delay":                       num(func(m *v1.FabricSetup) **float64 { return &m.DelayMs }),
	"setupDelay":                  num(func(m *v1.FabricSetup) **float64 { return &m.DelayMs }),
	"iceGatheringDelay":           num(func(m *v1.FabricSetup) **float64 { return &m.IceGatheringDelayMs }),
	"iceConnectivityDelay":        num(func(m *v1.FabricSetup) **float64 { return &m.IceConnectivityDelayMs }),
	"remoteEndpointType":          str(func(m *v1.FabricSetup) *string { return &m.RemoteEndpointType }),
	"fabricTransmissionDirection": str(func(m *v1.FabricSetup) *string { return &m.FabricTransmissionDirection }),
	"localIceCandidates":          list(candidateTable, func(m *v1.FabricSetup) *[]*v1.IceCandidate { return &m.LocalIceCandidates }),
	"localCandidates":             list(candidateTable, func(m *v1.FabricSetup) *[]*v1.IceCandidate { return &m.LocalIceCandidates }),
	"remoteIceCandidates":         list(candidateTable, func(m *v1.FabricSetup) *[]*v1.IceCandidate { return &m.RemoteIceCandidates }),
	"remoteCandidates":            list(candidateTable, func(m *v1.FabricSetup) *[]*v1.IceCandidate { return &m.RemoteIceCandidates }),
	"iceCandidatePairs":           pairs(func(m *v1.FabricSetup) *[]*v1.IceCandidatePair { return &m.IceCandidatePairs }),
	"iceServers":                  strs(func(m *v1.FabricSetup) *[]string { return &m.IceServers }),
	"sdpSemantics":                str(func(m *v1.FabricSetup) *string { return &m.SdpSemantics }),
	"selectedCandidatePairID":     str(func(m *v1.FabricSetup) *string { return &m.SelectedCandidatePairId }),
})

// logText is a text of a failure, cut to the size that the spec gives to application logs.
func logText(field func(*v1.Failure) *string) field[v1.Failure] {
	return func(m *v1.Failure, a argument) bool {
		if !isText(a.v) {
			return false
		}
		s, short := cutBytes(a.d.text(a.v), maxLogBytes)
		*field(m) = s
		m.Truncated = m.Truncated || short
		a.d.truncated = a.d.truncated || short
		return true
	}
}

// errorFields are what an app gave to reportError as an object.
var errorFields = fields[v1.Failure]{
	"message": logText(func(m *v1.Failure) *string { return &m.Message }),
	"name":    logText(func(m *v1.Failure) *string { return &m.Name }),
	"stack":   logText(func(m *v1.Failure) *string { return &m.Stack }),
}

var errorTable = compile(errorFields)

var failureTable = compile(errorFields, fields[v1.Failure]{
	"delay":              num(func(m *v1.Failure) **float64 { return &m.DelayMs }),
	"failureDelay":       num(func(m *v1.Failure) **float64 { return &m.DelayMs }),
	"reason":             str(func(m *v1.Failure) *string { return &m.Reason }),
	"function":           str(func(m *v1.Failure) *string { return &m.Function }),
	"messageType":        str(func(m *v1.Failure) *string { return &m.MessageType }),
	"level":              str(func(m *v1.Failure) *string { return &m.Level }),
	"fabricState":        str(func(m *v1.Failure) *string { return &m.FabricState }),
	"iceConnectionState": str(func(m *v1.Failure) *string { return &m.IceConnectionState }),
	"magicKey":           str(func(m *v1.Failure) *string { return &m.MagicKey }),
	"endpoint":           nested(endpointTable, func(m *v1.Failure) **v1.EndpointInfo { return &m.Endpoint }),
	"endpointInfo":       nested(endpointTable, func(m *v1.Failure) **v1.EndpointInfo { return &m.Endpoint }),
	"localSDP":           str(func(m *v1.Failure) *string { return &m.LocalSdp }),
	"remoteSDP":          str(func(m *v1.Failure) *string { return &m.RemoteSdp }),
	// 3.24 and 3.26 send the error as the app gave it, an object or a text.
	"domError": func(m *v1.Failure, a argument) bool {
		if a.v.Type() == fastjson.TypeObject {
			m.MessageType = "json"
			return inner(errorTable)(m, a)
		}
		m.MessageType = "text"
		return errorFields["message"](m, a)
	},
})

var stateChangeTable = compile(fields[v1.FabricStateChange]{
	"changedState": str(func(m *v1.FabricStateChange) *string { return &m.ChangedState }),
	"prevState":    str(func(m *v1.FabricStateChange) *string { return &m.PrevState }),
	"newState":     str(func(m *v1.FabricStateChange) *string { return &m.NewState }),
	"currPair":     pair(func(m *v1.FabricStateChange) **v1.IceCandidatePair { return &m.CurrPair }),
})

var transportSwitchTable = compile(fields[v1.FabricTransportSwitch]{
	"prevIceCandidatePair":   pair(func(m *v1.FabricTransportSwitch) **v1.IceCandidatePair { return &m.PrevIceCandidatePair }),
	"prevPair":               pair(func(m *v1.FabricTransportSwitch) **v1.IceCandidatePair { return &m.PrevIceCandidatePair }),
	"currIceCandidatePair":   pair(func(m *v1.FabricTransportSwitch) **v1.IceCandidatePair { return &m.CurrIceCandidatePair }),
	"currPair":               pair(func(m *v1.FabricTransportSwitch) **v1.IceCandidatePair { return &m.CurrIceCandidatePair }),
	"relayType":              str(func(m *v1.FabricTransportSwitch) *string { return &m.RelayType }),
	"switchDelay":            num(func(m *v1.FabricTransportSwitch) **float64 { return &m.SwitchDelayMs }),
	"prevIceConnectionState": str(func(m *v1.FabricTransportSwitch) *string { return &m.PrevIceConnectionState }),
	"currIceConnectionState": str(func(m *v1.FabricTransportSwitch) *string { return &m.CurrIceConnectionState }),
	"localIceCandidates":     list(candidateTable, func(m *v1.FabricTransportSwitch) *[]*v1.IceCandidate { return &m.LocalIceCandidates }),
	"localCandidates":        list(candidateTable, func(m *v1.FabricTransportSwitch) *[]*v1.IceCandidate { return &m.LocalIceCandidates }),
	"remoteIceCandidates":    list(candidateTable, func(m *v1.FabricTransportSwitch) *[]*v1.IceCandidate { return &m.RemoteIceCandidates }),
	"remoteCandidates":       list(candidateTable, func(m *v1.FabricTransportSwitch) *[]*v1.IceCandidate { return &m.RemoteIceCandidates }),
})

var iceTable = compile(fields[v1.IceEvent]{
	"prevIceConnectionState":   str(func(m *v1.IceEvent) *string { return &m.PrevIceConnectionState }),
	"currIceConnectionState":   str(func(m *v1.IceEvent) *string { return &m.CurrIceConnectionState }),
	"prevIceConnectionStateTs": num(func(m *v1.IceEvent) **float64 { return &m.PrevIceConnectionStateTsMs }),
	"delay":                    num(func(m *v1.IceEvent) **float64 { return &m.DelayMs }),
	"failureDelay":             num(func(m *v1.IceEvent) **float64 { return &m.DelayMs }),
	"disruptionDelay":          num(func(m *v1.IceEvent) **float64 { return &m.DelayMs }),
	"prevIceCandidatePair":     pair(func(m *v1.IceEvent) **v1.IceCandidatePair { return &m.PrevIceCandidatePair }),
	"prevPair":                 pair(func(m *v1.IceEvent) **v1.IceCandidatePair { return &m.PrevIceCandidatePair }),
	"currIceCandidatePair":     pair(func(m *v1.IceEvent) **v1.IceCandidatePair { return &m.CurrIceCandidatePair }),
	"currPair":                 pair(func(m *v1.IceEvent) **v1.IceCandidatePair { return &m.CurrIceCandidatePair }),
	"localIceCandidates":       list(candidateTable, func(m *v1.IceEvent) *[]*v1.IceCandidate { return &m.LocalIceCandidates }),
	"localCandidates":          list(candidateTable, func(m *v1.IceEvent) *[]*v1.IceCandidate { return &m.LocalIceCandidates }),
	"remoteIceCandidates":      list(candidateTable, func(m *v1.IceEvent) *[]*v1.IceCandidate { return &m.RemoteIceCandidates }),
	"remoteCandidates":         list(candidateTable, func(m *v1.IceEvent) *[]*v1.IceCandidate { return &m.RemoteIceCandidates }),
	"iceCandidatePairs":        pairs(func(m *v1.IceEvent) *[]*v1.IceCandidatePair { return &m.IceCandidatePairs }),
})

var candidateFoundTable = compile(fields[v1.IceCandidateFound]{
	"transport":      str(func(m *v1.IceCandidateFound) *string { return &m.Transport }),
	"protocol":       str(func(m *v1.IceCandidateFound) *string { return &m.Protocol }),
	"typePreference": str(func(m *v1.IceCandidateFound) *string { return &m.TypePreference }),
	"address":        str(func(m *v1.IceCandidateFound) *string { return &m.Address }),
	"type":           str(func(m *v1.IceCandidateFound) *string { return &m.Type }),
	"media":          str(func(m *v1.IceCandidateFound) *string { return &m.Media }),
})

var mediaActionTable = compile(fields[v1.MediaAction]{
	"ssrc": str(func(m *v1.MediaAction) *string { return &m.Ssrc }),
})

var playbackTable = compile(fields[v1.MediaPlayback]{
	"ssrc":      str(func(m *v1.MediaPlayback) *string { return &m.Ssrc }),
	"highResTs": num(func(m *v1.MediaPlayback) **float64 { return &m.HighResTsMs }),
	"kind":      str(func(m *v1.MediaPlayback) *string { return &m.Kind }),
})

var disruptionTable = compile(fields[v1.MediaDisruption]{
	"mediaType":      str(func(m *v1.MediaDisruption) *string { return &m.MediaType }),
	"ssrc":           str(func(m *v1.MediaDisruption) *string { return &m.Ssrc }),
	"streamType":     str(func(m *v1.MediaDisruption) *string { return &m.StreamType }),
	"disruptionType": str(func(m *v1.MediaDisruption) *string { return &m.DisruptionType }),
})

var deviceTable = compile(fields[v1.MediaDevice]{
	"mediaDeviceID": str(func(m *v1.MediaDevice) *string { return &m.MediaDeviceId }),
	"deviceId":      str(func(m *v1.MediaDevice) *string { return &m.MediaDeviceId }),
	"groupID":       str(func(m *v1.MediaDevice) *string { return &m.GroupId }),
	"groupId":       str(func(m *v1.MediaDevice) *string { return &m.GroupId }),
	"kind":          str(func(m *v1.MediaDevice) *string { return &m.Kind }),
	"label":         str(func(m *v1.MediaDevice) *string { return &m.Label }),
})

var deviceListTable = compile(fields[v1.DeviceList]{
	"mediaDeviceList":  list(deviceTable, func(m *v1.DeviceList) *[]*v1.MediaDevice { return &m.MediaDeviceList }),
	"activeDevicelist": list(deviceTable, func(m *v1.DeviceList) *[]*v1.MediaDevice { return &m.MediaDeviceList }),
	"deviceList":       list(deviceTable, func(m *v1.DeviceList) *[]*v1.MediaDevice { return &m.MediaDeviceList }),
})

// sdpText is an SDP; 3.24 and 3.26 write -1 for one that did not change.
func sdpText(field func(*v1.SdpSubmission) *string) field[v1.SdpSubmission] {
	return func(m *v1.SdpSubmission, a argument) bool {
		if n, ok := a.d.number(a.v); ok && n == -1 {
			return true
		}
		if a.v.Type() != fastjson.TypeString {
			return false
		}
		*field(m) = a.d.text(a.v)
		return true
	}
}

var sdpFields = fields[v1.SdpSubmission]{
	"localSDP":  sdpText(func(m *v1.SdpSubmission) *string { return &m.LocalSdp }),
	"remoteSDP": sdpText(func(m *v1.SdpSubmission) *string { return &m.RemoteSdp }),
}

var sdpTable = compile(sdpFields, fields[v1.SdpSubmission]{
	"sdpPayload": inner(compile(fields[v1.SdpSubmission]{
		"sdp": inner(compile(sdpFields)),
	})),
})

var feedbackTable = compile(fields[v1.Feedback]{
	"overallRating":      num(func(m *v1.Feedback) **float64 { return &m.Overall }),
	"overall":            num(func(m *v1.Feedback) **float64 { return &m.Overall }),
	"audioQualityRating": num(func(m *v1.Feedback) **float64 { return &m.Audio }),
	"audio":              num(func(m *v1.Feedback) **float64 { return &m.Audio }),
	"videoQualityRating": num(func(m *v1.Feedback) **float64 { return &m.Video }),
	"video":              num(func(m *v1.Feedback) **float64 { return &m.Video }),
	"screen":             num(func(m *v1.Feedback) **float64 { return &m.Screen }),
	"comments":           str(func(m *v1.Feedback) *string { return &m.Comment }),
	"comment":            str(func(m *v1.Feedback) *string { return &m.Comment }),
})

var feedbackEventTable = compile(fields[v1.Feedback]{
	"feedback": inner(feedbackTable),
	"userQoe":  inner(feedbackTable),
})

var callDetailsTable = compile(fields[v1.CallDetails]{
	"callType":          str(func(m *v1.CallDetails) *string { return &m.CallType }),
	"role":              str(func(m *v1.CallDetails) *string { return &m.Role }),
	"contactQueue":      str(func(m *v1.CallDetails) *string { return &m.ContactQueue }),
	"contactQueueID":    str(func(m *v1.CallDetails) *string { return &m.ContactQueueId }),
	"routingProfile":    str(func(m *v1.CallDetails) *string { return &m.RoutingProfile }),
	"routingProfileID":  str(func(m *v1.CallDetails) *string { return &m.RoutingProfileId }),
	"contactID":         str(func(m *v1.CallDetails) *string { return &m.ContactId }),
	"originalContactID": str(func(m *v1.CallDetails) *string { return &m.OriginalContactId }),
	"acceptedAt":        num(func(m *v1.CallDetails) **float64 { return &m.AcceptedAtMs }),
	"connectedAt":       num(func(m *v1.CallDetails) **float64 { return &m.ConnectedAtMs }),
	"extensionVersion":  str(func(m *v1.CallDetails) *string { return &m.ExtensionVersion }),
	"shimVersion":       str(func(m *v1.CallDetails) *string { return &m.ShimVersion }),
})

var customEventTable = compile(fields[v1.CustomEvent]{
	"eventList": jsonOf(fastjson.TypeArray, func(m *v1.CustomEvent) *string { return &m.EventListJson }),
})

var conferenceSummaryTable = compile(fields[v1.ConferenceSummaryEvent]{
	"type":            str(func(m *v1.ConferenceSummaryEvent) *string { return &m.Type }),
	"pstnTime":        num(func(m *v1.ConferenceSummaryEvent) **float64 { return &m.PstnTime }),
	"ringingTime":     num(func(m *v1.ConferenceSummaryEvent) **float64 { return &m.RingingTime }),
	"contactID":       str(func(m *v1.ConferenceSummaryEvent) *string { return &m.ContactId }),
	"isCallForwarded": boolField(func(m *v1.ConferenceSummaryEvent) **bool { return &m.IsCallForwarded }),
})

var customStatsTable = compile(fields[v1.CustomStats]{
	"stats": jsonOf(fastjson.TypeArray, func(m *v1.CustomStats) *string { return &m.StatsJson }),
})

// resultsTable names what is asked for most; the whole of the results is kept beside it.
var resultsTable = compile(fields[v1.PreCallTestResults]{
	"id":             str(func(m *v1.PreCallTestResults) *string { return &m.Id }),
	"version":        str(func(m *v1.PreCallTestResults) *string { return &m.Version }),
	"status":         str(func(m *v1.PreCallTestResults) *string { return &m.Status }),
	"startTimestamp": num(func(m *v1.PreCallTestResults) **float64 { return &m.StartTimestampMs }),
	"endTimestamp":   num(func(m *v1.PreCallTestResults) **float64 { return &m.EndTimestampMs }),
	"provider":       str(func(m *v1.PreCallTestResults) *string { return &m.Provider }),
	"runManually":    boolField(func(m *v1.PreCallTestResults) **bool { return &m.RunManually }),
	"runByUser":      boolField(func(m *v1.PreCallTestResults) **bool { return &m.RunByUser }),
	"tests": inner(compile(fields[v1.PreCallTestResults]{
		"mediaConnectivity": boolField(func(m *v1.PreCallTestResults) **bool { return &m.MediaConnectivity }),
		"rtt": inner(compile(fields[v1.PreCallTestResults]{
			"median":  num(func(m *v1.PreCallTestResults) **float64 { return &m.RttMedianMs }),
			"average": num(func(m *v1.PreCallTestResults) **float64 { return &m.RttAverageMs }),
		})),
		"loss": inner(compile(fields[v1.PreCallTestResults]{
			"fractionLostBytes": num(func(m *v1.PreCallTestResults) **float64 { return &m.FractionLost }),
		})),
		"throughput": inner(compile(fields[v1.PreCallTestResults]{
			"average": num(func(m *v1.PreCallTestResults) **float64 { return &m.ThroughputKbps }),
		})),
	})),
})

var preCallResultsTable = compile(fields[v1.PreCallTestResults]{
	"results": func(m *v1.PreCallTestResults, a argument) bool {
		if a.v.Type() != fastjson.TypeObject {
			return false
		}
		kept := a.d.begin() // in results_json
		decode(kept, a.v.GetObject(), resultsTable, m)
		kept.drop()
		m.ResultsJson = a.d.json(a.v)
		return true
	},
	"userName": cutStr(func(m *v1.PreCallTestResults) *string { return &m.UserName }, cutRunes, maxUserNameRunes),
	"loginID":  str(func(m *v1.PreCallTestResults) *string { return &m.LoginId }),
})

var preCallAssociateTable = compile(fields[v1.PreCallTestAssociate]{
	"ids": strs(func(m *v1.PreCallTestAssociate) *[]string { return &m.Ids }),
})

var preCallNotificationTable = compile(fields[v1.PreCallTestNotification]{
	"notificationID":     str(func(m *v1.PreCallTestNotification) *string { return &m.NotificationId }),
	"notification":       jsonOf(fastjson.TypeObject, func(m *v1.PreCallTestNotification) *string { return &m.NotificationJson }),
	"endpointInfo":       nested(endpointTable, func(m *v1.PreCallTestNotification) **v1.EndpointInfo { return &m.EndpointInfo }),
	"localIP":            str(func(m *v1.PreCallTestNotification) *string { return &m.LocalIp }),
	"localIPNetworkType": str(func(m *v1.PreCallTestNotification) *string { return &m.LocalIpNetworkType }),
	"userName":           cutStr(func(m *v1.PreCallTestNotification) *string { return &m.UserName }, cutRunes, maxUserNameRunes),
	"loginID":            str(func(m *v1.PreCallTestNotification) *string { return &m.LoginId }),
})

var userIDChangedTable = compile(fields[v1.UserIdChanged]{
	"id":     str(func(m *v1.UserIdChanged) *string { return &m.Id }),
	"idType": str(func(m *v1.UserIdChanged) *string { return &m.IdType }),
})

var ssrcTable = compile(fields[v1.SsrcMapEntry]{
	"ssrc":               str(func(m *v1.SsrcMapEntry) *string { return &m.Ssrc }),
	"cname":              str(func(m *v1.SsrcMapEntry) *string { return &m.Cname }),
	"msid":               str(func(m *v1.SsrcMapEntry) *string { return &m.Msid }),
	"mslabel":            str(func(m *v1.SsrcMapEntry) *string { return &m.Mslabel }),
	"label":              str(func(m *v1.SsrcMapEntry) *string { return &m.Label }),
	"streamType":         str(func(m *v1.SsrcMapEntry) *string { return &m.StreamType }),
	"mediaType":          str(func(m *v1.SsrcMapEntry) *string { return &m.MediaType }),
	"reportType":         str(func(m *v1.SsrcMapEntry) *string { return &m.ReportType }),
	"userID":             str(func(m *v1.SsrcMapEntry) *string { return &m.UserId }),
	"remoteUserID":       str(func(m *v1.SsrcMapEntry) *string { return &m.RemoteUserId }),
	"usageLabel":         cutStr(func(m *v1.SsrcMapEntry) *string { return &m.UsageLabel }, cutBytes, maxUsageLabelBytes),
	"associatedVideoTag": str(func(m *v1.SsrcMapEntry) *string { return &m.AssociatedVideoTag }),
	"localStartTime":     num(func(m *v1.SsrcMapEntry) **float64 { return &m.LocalStartTimeMs }),
	"syncedStartTime":    num(func(m *v1.SsrcMapEntry) **float64 { return &m.SyncedStartTimeMs }),
})

var ssrcMapTable = compile(fields[v1.SsrcMap]{
	"ssrcData": list(ssrcTable, func(m *v1.SsrcMap) *[]*v1.SsrcMapEntry { return &m.SsrcData }),
})

// takeSsrcMap reads the array of newer clients, or the object keyed by SSRC of 3.24 and 3.26.
func takeSsrcMap(m *Message, raw *v1.Raw, left leftovers) []*v1.Raw {
	p := &v1.SsrcMap{}
	ws324 := m.Dialect == v1.Dialect_DIALECT_CALLSTATS_WS_324
	m.members(left, func(a argument) {
		if !ws324 || !isDecimal(a.key) || a.v.Type() != fastjson.TypeObject {
			take(a, ssrcMapTable, p)
			return
		}
		entry := &v1.SsrcMapEntry{Ssrc: a.d.keep(a.key)}
		mark, rest := a.open(a.key)
		decode(rest, a.v.GetObject(), ssrcTable, entry)
		a.close(mark, rest)
		p.SsrcData = append(p.SsrcData, entry)
	})
	raw.Payload = &v1.Raw_SsrcMap{SsrcMap: p}
	return nil
}

func isDecimal(b []byte) bool {
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(b) > 0
}
