package erasures

import (
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/callscope/callscope/internal/stream"
	pb "github.com/callscope/callscope/proto/callscope/v1"
)

// rule is what happens to a text field. Without one, every text of a message gets pseudonyms where users stand in it,
// so that a field that is new is covered before anybody thinks of it.
type rule int

const (
	_ rule = iota
	// id: names a user, a device or a connection. It is replaced as a whole: "alice@example.com" is not "alice".
	id
	// word: a name out of a fixed vocabulary, or of software. A user who is called "audio" does not change what a stream is.
	word
	// drop: emptied in what the user sent, or what is about him; elsewhere as without a rule.
	drop
	// dropObject: as drop, leaving an empty JSON object.
	dropObject
	// name: the pseudonym in what is the user's, if there was anything; elsewhere as without a rule.
	name
	// device: the pseudonym of the user's device; elsewhere as id.
	device
	// dropPeer: emptied also in what others sent about their connection to him: his addresses, his SDP.
	dropPeer
)

// rules are by message and field. A whole message is dropped by its field's rule.
var rules = map[protoreflect.FullName]rule{
	"Identity.app_id": word, "Identity.device_id": device, "Identity.user_id": id, "Identity.remote_id": id, "Identity.connection_id": id,
	"Claimed.user_id": id, "Claimed.remote_id": id, "Claimed.connection_id": id,
	"SsrcMapEntry.user_id": id, "SsrcMapEntry.remote_user_id": id, "Association.user_id": id, "RtpStats.associated_user_id": id,
	"StreamSample.owner_user_id": id, "StreamFacts.owner_user_id": id, "StreamSummary.owner_user_id": id,
	"Observed.app_id": word, "Observed.country": word, "Observed.network": word, "Observed.ip_masked": drop,
	"Observed.token_id": drop, "Observed.token_user_id": name,
	"Claimed.device_id": device, "Claimed.client_version": word,
	"Raw.event_type": word, "Raw.original_type": word, "Raw.extra_json": drop,

	"EndpointInfo.type": word, "EndpointInfo.build_name": word, "EndpointInfo.build_version": word, "EndpointInfo.app_version": word,
	"EndpointInfo.os": word, "EndpointInfo.os_version": word,
	"UserJoined.user_name": name, "UserJoined.login_id": drop, "UserJoined.additional_ids_json": drop, "UserJoined.magic_key": drop,
	"UserDetails.user_name": name, "UserDetails.local_ip_address_info": drop,
	"LocalIpAddress.address": dropPeer, "LocalIpAddress.candidate_type": word,
	"FabricAdded.fabric_usage": word, "FabricAdded.remote_endpoint_type": word, "FabricAdded.fabric_transmission_direction": word,
	"IceCandidate.type": word, "IceCandidate.transport": word, "IceCandidate.ip": dropPeer, "IceCandidate.candidate_type": word,
	"IceCandidate.network_type": word, "IceCandidate.relay_protocol": word,
	"IceCandidatePair.state": word, "IceCandidatePair.extra_json": dropPeer,
	"FabricSetup.remote_endpoint_type": word, "FabricSetup.fabric_transmission_direction": word, "FabricSetup.sdp_semantics": word,
	"Failure.function": word, "Failure.message": drop, "Failure.message_type": word, "Failure.stack": drop, "Failure.level": word,
	"Failure.fabric_state": word, "Failure.ice_connection_state": word, "Failure.magic_key": drop,
	"Failure.local_sdp": drop, "Failure.remote_sdp": dropPeer,
	"FabricStateChange.changed_state": word, "FabricStateChange.prev_state": word, "FabricStateChange.new_state": word,
	"FabricTransportSwitch.relay_type": word, "FabricTransportSwitch.prev_ice_connection_state": word, "FabricTransportSwitch.curr_ice_connection_state": word,
	"IceEvent.prev_ice_connection_state": word, "IceEvent.curr_ice_connection_state": word,
	"IceCandidateFound.transport": word, "IceCandidateFound.protocol": word, "IceCandidateFound.type_preference": word,
	"IceCandidateFound.address": dropPeer, "IceCandidateFound.type": word, "IceCandidateFound.media": word,
	"MediaAction.ssrc": word, "MediaPlayback.ssrc": word, "MediaPlayback.kind": word,
	"MediaDisruption.media_type": word, "MediaDisruption.ssrc": word, "MediaDisruption.stream_type": word, "MediaDisruption.disruption_type": word,
	"MediaDevice.media_device_id": drop, "MediaDevice.group_id": drop, "MediaDevice.kind": word, "MediaDevice.label": drop,
	"SsrcMapEntry.ssrc": word, "SsrcMapEntry.stream_type": word, "SsrcMapEntry.media_type": word, "SsrcMapEntry.report_type": word,
	"Association.ssrc":        word,
	"SdpSubmission.local_sdp": drop, "SdpSubmission.remote_sdp": dropPeer,
	"Feedback.comment":      drop,
	"CallDetails.call_type": word, "CallDetails.role": word, "CallDetails.contact_id": drop, "CallDetails.original_contact_id": drop,
	"CallDetails.extension_version": word, "CallDetails.shim_version": word,
	"CustomEvent.event_list_json": drop, "ConferenceSummaryEvent.type": word, "ConferenceSummaryEvent.contact_id": drop, "CustomStats.stats_json": drop,
	"PreCallTestResults.version": word, "PreCallTestResults.status": word, "PreCallTestResults.provider": word, "PreCallTestResults.results_json": dropObject,
	"PreCallTestNotification.notification_json": drop, "PreCallTestNotification.local_ip": drop, "PreCallTestNotification.local_ip_network_type": word,
	"PreCallTestNotification.user_name": name, "PreCallTestNotification.login_id": drop,
	"UserIdChanged.id": name, "UserIdChanged.id_type": word,

	"Stats.fabric_state": word, "Stats.connection_state": word, "Stats.wifi_stats_json": drop, "Stats.other_entries_json": drop,
	"RtpStats.ssrc": word, "RtpStats.kind": word, "RtpStats.mime_type": word, "RtpStats.quality_limitation_reason": word,
	"RtpStats.encoder_implementation": word, "RtpStats.decoder_implementation": word, "RtpStats.extra_json": drop,
	"CandidatePairStats.state": word, "CandidatePairStats.extra_json": drop,
	"CandidateStats.candidate_type": word, "CandidateStats.protocol": word, "CandidateStats.network_type": word, "CandidateStats.relay_protocol": word,
	"CandidateStats.address": dropPeer, "CandidateStats.extra_json": dropPeer,
	"TransportStats.dtls_state": word, "TransportStats.ice_state": word, "TransportStats.extra_json": drop,
	"MediaSourceStats.kind": word, "MediaSourceStats.extra_json": drop,

	"Event.event_type": word, "Event.original_type": word, "Event.data_json": dropObject,
	"FeedbackGiven.comment":    drop,
	"FailureReported.function": word, "FailureReported.message": drop, "FailureReported.stack": drop,
	"FailureReported.local_sdp": drop, "FailureReported.remote_sdp": dropPeer,
	"StreamSample.ssrc": word, "StreamSample.media_type": word, "StreamSample.codec": word, "StreamSample.quality_limitation_reason": word,
	"FabricSample.local_candidate_type": word, "FabricSample.remote_candidate_type": word, "FabricSample.protocol": word, "FabricSample.network_type": word,
	"ConferenceFacts.end_reason": word, "ConferenceFacts.revision_reason": word,
	"PresenceInterval.left_reason": word,
	"ParticipantFacts.left_reason": word, "ParticipantFacts.client_version": word, "ParticipantFacts.browser": word, "ParticipantFacts.browser_version": word,
	"ParticipantFacts.os": word, "ParticipantFacts.os_version": word, "ParticipantFacts.app_version": word,
	"ParticipantFacts.user_name": name, "ParticipantFacts.login_id": drop, "ParticipantFacts.additional_ids_json": drop,
	"ParticipantFacts.country": word, "ParticipantFacts.network": word, "ParticipantFacts.ip_masked": drop, "ParticipantFacts.revision_reason": word,
	"ParticipantFacts.active_devices": drop,
	"FabricFacts.end_reason":          word, "FabricFacts.usage": word, "FabricFacts.remote_type": word, "FabricFacts.direction": word,
	"FabricFacts.delay_source": word, "FabricFacts.failure_function": word, "FabricFacts.revision_reason": word, "FabricFacts.first_media_source": word,
	"StreamFacts.ssrc": word, "StreamFacts.media_type": word, "StreamFacts.codec": word,

	"Summary.reason": word, "Summary.audio_mos_model": word, "Summary.video_score_model": word,
	"ConferenceSummary.outcome": word, "ConferenceSummary.end_reason": word, "ConferenceSummary.browsers": word, "ConferenceSummary.networks": word,
	"ParticipantSummary.left_reason": word, "ParticipantSummary.alias": name, "ParticipantSummary.user_name": name,
	"ParticipantSummary.browser": word, "ParticipantSummary.browser_version": word, "ParticipantSummary.os": word, "ParticipantSummary.os_version": word,
	"ParticipantSummary.client_version": word, "ParticipantSummary.app_version": word, "ParticipantSummary.country": word, "ParticipantSummary.network": word,
	"ParticipantSummary.findings": word,
	"FabricSummary.usage":         word, "FabricSummary.remote_type": word, "FabricSummary.direction": word, "FabricSummary.outcome": word,
	"FabricSummary.delay_source": word, "FabricSummary.failure_function": word, "FabricSummary.end_reason": word,
	"StreamSummary.ssrc": word, "StreamSummary.direction": word, "StreamSummary.media_type": word, "StreamSummary.owner_source": word,
	"StreamSummary.codec": word, "StreamSummary.side": word,
}

func ruleOf(field protoreflect.FieldDescriptor) rule {
	return rules[protoreflect.FullName(strings.TrimPrefix(string(field.FullName()), "callscope.v1."))]
}

// KeptEvent is an event whose own fields give rows of their own: the ids of tests. They are kept.
const KeptEvent = "preCallTestAssociate"

// peerFields in an event's data hold addresses or descriptions of the other side.
var peerFields = []string{`"remoteIceCandidates"`, `"remoteSDP"`, `"iceCandidatePairs"`, `"prevIceCandidatePair"`, `"currIceCandidatePair"`, `"currPair"`, `"address"`}

// PeerFields lists them, as they stand in the JSON of an event. With any of them, the data of an event about a
// connection to an erased user is emptied.
func PeerFields() []string { return peerFields }

// lateFor is how long records that know no conference uid are taken for what still comes of a call that was under way:
// calls may go on for long, and a conference id may be used again the next day.
const lateFor = 24 * time.Hour

// Prepare changes a message in place before it becomes rows: *callscopev1.Enriched or *callscopev1.Summary, of which
// nobody else may hold a part. It is a sink.Prepare.
func (v *View) Prepare(message any) {
	switch m := message.(type) {
	case *pb.Enriched:
		v.enriched(m)
	case *pb.Summary:
		v.summary(m)
	}
}

func (v *View) enriched(m *pb.Enriched) {
	a := v.apps[m.GetIdentity().GetAppId()]
	if a == nil {
		return
	}
	who := m.Identity
	e := eraser{app: a, covered: func(u *user) bool {
		return m.ReceivedAtMs < u.erasedAtMs || u.conferences[string(who.ConferenceUid)] ||
			len(who.ConferenceUid) == 0 && who.ConferenceId != "" // an orphan: late, of a call that is over
	}}
	e.erase(m, who.UserId, who.RemoteId, who.DeviceId)
	v.count("enriched", e.changed)
}

func (v *View) summary(m *pb.Summary) {
	a := v.apps[m.GetIdentity().GetAppId()]
	if a == nil {
		return
	}
	e := eraser{app: a, covered: func(u *user) bool {
		return m.ConferenceStartedAtMs < u.erasedAtMs || u.conferences[string(m.Identity.ConferenceUid)]
	}}
	e.erase(m, m.Identity.UserId, m.Identity.RemoteId, m.Identity.DeviceId)
	v.count("summary", e.changed)
}

// Raw gives a raw record without erased users: key and value. It is r itself where there are none. A fold of such records
// gives consistent calls, in which the user is another one.
func (v *View) Raw(r stream.Record) (stream.Record, error) {
	if len(v.apps) == 0 {
		return r, nil
	}
	m := &pb.Raw{}
	if err := m.UnmarshalVT(r.Value); err != nil {
		return r, nil //nolint:nilerr // no stage can read it either: it becomes no row
	}
	a := v.apps[m.GetObserved().GetAppId()]
	if a == nil {
		return r, nil
	}
	if m.Claimed == nil {
		m.Claimed = &pb.Claimed{}
	}
	received, conference := m.Observed.ReceivedAtMs, string(a.key.ConferenceHash(a.id, m.Claimed.ConferenceId))
	e := eraser{app: a, covered: func(u *user) bool {
		return received < u.erasedAtMs || u.conferenceHashes[conference] && received < u.erasedAtMs+lateFor.Milliseconds()
	}}
	e.erase(m, m.Claimed.UserId, m.Claimed.RemoteId, m.Claimed.DeviceId)
	v.count("raw", e.changed)
	if !e.changed {
		return r, nil
	}
	value, err := m.MarshalVT()
	if err != nil {
		return r, err
	}
	r.Value = value
	// As the gateway makes it (design 2).
	if m.Claimed.ConferenceId != "" {
		r.Key = []byte(m.Observed.AppId + "\x00" + m.Claimed.ConferenceId)
	} else {
		r.Key = []byte(m.Observed.AppId + "\x00\x00" + m.Claimed.UserId)
	}
	return r, nil
}

// eraser changes one message.
type eraser struct {
	app     *app
	covered func(*user) bool
	own     *user // whose message it is
	peer    *user // whom the connection is to
	devices map[string]string
	kept    bool // the data of this event are
	changed bool
}

func (e *eraser) erase(m protoreflect.ProtoMessage, userID, remoteID, deviceID string) {
	e.own, e.peer = e.app.whole(userID, e.covered), e.app.whole(remoteID, e.covered)
	if e.own != nil && e.own.pseudonym != userID {
		e.devices = map[string]string{deviceID: e.app.key.DevicePseudonym(e.app.id, userID, deviceID)}
	}
	e.message(m.ProtoReflect())
}

func (e *eraser) message(m protoreflect.Message) {
	if event, ok := m.Interface().(*pb.Event); ok {
		e.event(event)
	}
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		r := ruleOf(field)
		switch {
		case field.Kind() == protoreflect.MessageKind && r == drop && e.own != nil:
			m.Clear(field)
			e.changed = true
		case field.Kind() == protoreflect.MessageKind && field.IsList():
			for i := range value.List().Len() {
				e.message(value.List().Get(i).Message())
			}
		case field.Kind() == protoreflect.MessageKind:
			e.message(value.Message())
		case field.Kind() != protoreflect.StringKind || r == word:
		case field.IsList():
			list := value.List()
			for i := range list.Len() {
				if text, ok := e.text(r, list.Get(i).String()); ok {
					list.Set(i, protoreflect.ValueOfString(text))
				}
			}
		default:
			if text, ok := e.text(r, value.String()); ok {
				m.Set(field, protoreflect.ValueOfString(text))
			}
		}
		return true
	})
}

// event decides about an event's own fields, which are JSON.
func (e *eraser) event(m *pb.Event) {
	e.kept = m.EventType == KeptEvent
	if e.own != nil || e.peer == nil {
		return // the rule of the field
	}
	for _, field := range peerFields {
		if strings.Contains(m.DataJson, field) {
			m.DataJson, e.changed = "{}", true
			return
		}
	}
}

// text gives what a field's text becomes.
func (e *eraser) text(r rule, text string) (string, bool) {
	result, changed := text, false
	switch {
	case text == "":
	case e.own != nil && (r == drop || r == dropPeer), e.peer != nil && r == dropPeer:
		result, changed = "", true
	case e.own != nil && r == dropObject && !e.kept:
		result, changed = "{}", text != "{}"
	case e.own != nil && r == name:
		result, changed = e.own.pseudonym, text != e.own.pseudonym
	case r == device && e.devices[text] != "":
		result, changed = e.devices[text], true
	case r == id || r == device:
		if u := e.app.whole(text, e.covered); u != nil {
			result, changed = u.pseudonym, text != u.pseudonym
		}
	default:
		result, changed = e.app.replace(text, e.covered)
	}
	e.changed = e.changed || changed
	return result, changed
}
