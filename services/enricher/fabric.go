package enricher

import (
	"google.golang.org/protobuf/proto"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// What ends, states, failures and delays are called in the facts.
const (
	endClosed = "closed" // the others are named by their events

	stateIceConnection = "iceConnectionState"
	stateIceGathering  = "iceGatheringState"
	stateSignaling     = "signalingState"

	functionIceConnectionFailure = "iceConnectionFailure"
	reasonIceConnectionFailure   = "IceConnectionFailure"

	delayReported = "reported"
	delayComputed = "computed"

	firstMediaPlayback = "playback"
	firstMediaReport   = "report"
)

// fabric is one PeerConnection of a participant.
type fabric struct {
	p       *participant
	s       *callscopev1.EnricherFabric
	streams map[streamKey]*rtpStream
	owners  map[streamKey]*callscopev1.EnricherOwner
	changed bool // its facts must be written
}

func (f *fabric) open() bool { return f.s.Facts.EndedAtMs == nil }

// endedByIdleness tells whether the fabric ended only because nobody was heard.
func (f *fabric) endedByIdleness() bool { return !f.open() && !f.s.EndedExplicitly }

// apply changes the open fabric by what the message tells, and returns by what
// the message ends it, empty if it does not.
func (f *fabric) apply(raw *callscopev1.Raw, sdps *deflater) string {
	timeMs, receivedAtMs := raw.Claimed.TimeMs, raw.Observed.ReceivedAtMs
	if f.s.RemoteId == "" && raw.Claimed.RemoteId != "" {
		f.s.RemoteId = raw.Claimed.RemoteId
		f.changed = true
	}
	switch payload := raw.Payload.(type) {
	case *callscopev1.Raw_FabricAdded:
		if timeMs != 0 {
			f.s.FirstTimeMs = timeMs // the moment itself, not the first sight
		}
		f.set(&f.s.Facts.Usage, payload.FabricAdded.FabricUsage)
		f.set(&f.s.Facts.RemoteType, payload.FabricAdded.RemoteEndpointType)
		f.set(&f.s.Facts.Direction, payload.FabricAdded.FabricTransmissionDirection)
	case *callscopev1.Raw_FabricSetup:
		f.setupReported(payload.FabricSetup, timeMs, receivedAtMs)
	case *callscopev1.Raw_FabricStateChange:
		return f.stateChanged(payload.FabricStateChange, timeMs, receivedAtMs)
	case *callscopev1.Raw_IceEvent:
		return f.iceEvent(raw.EventType, payload.IceEvent, timeMs, receivedAtMs)
	case *callscopev1.Raw_Failure:
		if raw.EventType == eventFabricSetupFailed && !isLog(payload.Failure.Function) {
			f.failed(payload.Failure.Function, payload.Failure.Reason, payload.Failure.DelayMs, timeMs)
		}
	case *callscopev1.Raw_FabricAction:
		switch raw.EventType {
		case eventFabricHold:
			f.hold(true, receivedAtMs)
		case eventFabricResume:
			f.hold(false, receivedAtMs)
		}
	case *callscopev1.Raw_FabricTransportSwitch:
		f.s.Facts.TransportSwitches++
		f.changed = true
	case *callscopev1.Raw_MediaPlayback:
		if raw.EventType == eventMediaPlaybackStart {
			f.firstMedia(timeMs, firstMediaPlayback)
		}
	case *callscopev1.Raw_SdpSubmission:
		f.keepSDPs(payload.SdpSubmission, sdps)
	case *callscopev1.Raw_FabricTerminated:
		return eventFabricTerminated
	}
	return ""
}

func (f *fabric) hold(held bool, atMs int64) {
	if f.s.Facts.Held == held {
		return
	}
	f.s.Facts.Held = held
	f.changed = true
	if held {
		begin(&f.s.Facts.Hold, atMs)
	} else {
		end(f.s.Facts.Hold, atMs)
	}
}

// firstMedia notes when media was first received. A report shows it late, so
// the first playback takes its place.
func (f *fabric) firstMedia(timeMs float64, source string) {
	facts := f.s.Facts
	if facts.FirstMediaSource == source || facts.FirstMediaSource == firstMediaPlayback {
		return
	}
	if delay, known := f.since(timeMs); known {
		facts.FirstMediaMs, facts.FirstMediaSource = proto.Float64(delay), source
		f.changed = true
	}
}

// set takes over a value that the message gives.
func (f *fabric) set(field *string, value string) {
	if value != "" && value != *field {
		*field = value
		f.changed = true
	}
}

func (f *fabric) setupReported(setup *callscopev1.FabricSetup, timeMs float64, receivedAtMs int64) {
	f.setUp(timeMs, receivedAtMs, true)
	f.setIceFailed(false)
	facts := f.s.Facts
	if facts.SetUpAtMs == nil { // something else had shown it, but not when
		f.setUpAt(timeMs, receivedAtMs)
	}
	f.set(&facts.RemoteType, setup.RemoteEndpointType)
	f.set(&facts.Direction, setup.FabricTransmissionDirection)
	if facts.DelaySource != delayReported && setup.DelayMs != nil && *setup.DelayMs >= 0 {
		facts.SetupDelayMs, facts.DelaySource = proto.Float64(*setup.DelayMs), delayReported
		f.changed = true
	}
	if facts.IceGatheringDelayMs == nil && setup.IceGatheringDelayMs != nil &&
		(*setup.IceGatheringDelayMs > 0 || f.s.Gathered) {
		facts.IceGatheringDelayMs = proto.Float64(*setup.IceGatheringDelayMs)
		f.changed = true
	}
	if facts.IceConnectivityDelayMs == nil && setup.IceConnectivityDelayMs != nil {
		facts.IceConnectivityDelayMs = proto.Float64(*setup.IceConnectivityDelayMs)
		f.changed = true
	}
	f.relayedBy(setup)
}

// relayedBy takes the use of a relay from the selected pair of a fabricSetup;
// at that moment the client may not have selected one yet.
func (f *fabric) relayedBy(setup *callscopev1.FabricSetup) {
	types := map[string]string{}
	for _, candidate := range setup.LocalIceCandidates {
		types[candidate.Id] = candidate.CandidateType
	}
	for _, candidate := range setup.RemoteIceCandidates {
		types[candidate.Id] = candidate.CandidateType
	}
	for _, pair := range setup.IceCandidatePairs {
		if !pair.Selected && (setup.SelectedCandidatePairId == "" || pair.Id != setup.SelectedCandidatePairId) {
			continue
		}
		local, remote := types[pair.LocalCandidateId], types[pair.RemoteCandidateId]
		if local != "" || remote != "" {
			f.setRelayed(isRelay(local) || isRelay(remote))
		}
		return
	}
}

func isRelay(candidateType string) bool {
	return candidateType == "relay" || candidateType == "relayed"
}

func (f *fabric) setRelayed(relayed bool) {
	if f.s.Facts.Relayed == nil || *f.s.Facts.Relayed != relayed {
		f.s.Facts.Relayed = proto.Bool(relayed)
		f.changed = true
	}
}

// setUp notes that the fabric is connected. When that happened is known unless
// the message only shows that it did.
func (f *fabric) setUp(timeMs float64, receivedAtMs int64, timeKnown bool) {
	if f.s.SetUp {
		return
	}
	f.s.SetUp = true
	f.s.CheckingDisrupted, f.s.IceFailed = false, false
	f.changed = true
	if timeKnown {
		f.setUpAt(timeMs, receivedAtMs)
	}
}

func (f *fabric) setUpAt(timeMs float64, receivedAtMs int64) {
	f.changed = true
	f.s.Facts.SetUpAtMs = proto.Int64(receivedAtMs)
	f.s.SetUpTimeMs = timeMs
	if delay, known := f.since(timeMs); known {
		f.s.Facts.SetupDelayMs, f.s.Facts.DelaySource = proto.Float64(delay), delayComputed
	}
}

// since returns the time from the first sight of the fabric, on its client's
// clock. It is unknown where the client gave no time, or one before the first.
func (f *fabric) since(timeMs float64) (float64, bool) {
	if timeMs == 0 || f.s.FirstTimeMs == 0 || timeMs <= f.s.FirstTimeMs {
		return 0, false
	}
	return timeMs - f.s.FirstTimeMs, true
}

func (f *fabric) stateChanged(change *callscopev1.FabricStateChange, timeMs float64, receivedAtMs int64) string {
	switch change.ChangedState {
	case stateIceConnection:
		return f.iceState(change.PrevState, change.NewState, timeMs, receivedAtMs)
	case stateIceGathering:
		if change.NewState == "complete" {
			f.s.Gathered = true
		}
	case stateSignaling:
		if change.NewState == "closed" {
			return endClosed
		}
	}
	return ""
}

// iceState follows the ICE connection state.
func (f *fabric) iceState(previous, current string, timeMs float64, receivedAtMs int64) string {
	if connected(previous) {
		f.setUp(timeMs, receivedAtMs, false)
	}
	switch current {
	case "connected", "completed":
		f.setUp(timeMs, receivedAtMs, true)
		f.setIceFailed(false)
	case "checking":
		f.s.CheckingDisrupted = false
	case "disconnected":
		if previous == "checking" {
			f.checkingDisrupted()
		}
	case "failed":
		f.setIceFailed(true)
	case "closed":
		return endClosed
	}
	return ""
}

func connected(state string) bool { return state == "connected" || state == "completed" }

// checkingDisrupted notes a disruption before set-up, unless it is the peer's
// leaving.
func (f *fabric) checkingDisrupted() {
	if !f.s.SetUp && !f.peerHasLeft() {
		f.s.CheckingDisrupted = true
	}
}

// setIceFailed notes that the connection failed, unless because the peer has
// left, or that it is back.
func (f *fabric) setIceFailed(failed bool) {
	if failed && f.peerHasLeft() || failed == f.s.IceFailed {
		return
	}
	f.s.IceFailed = failed
	if !f.s.SetUp { // otherwise it matters at the end
		f.changed = true
	}
}

func (f *fabric) peerHasLeft() bool {
	return f.s.RemoteId != "" && f.p.c.hasLeft(f.s.RemoteId, f.p.s.UserId)
}

func (f *fabric) iceEvent(eventType string, event *callscopev1.IceEvent, timeMs float64, receivedAtMs int64) string {
	ends := f.iceState(event.PrevIceConnectionState, event.CurrIceConnectionState, timeMs, receivedAtMs)
	switch eventType {
	case eventIceDisruptionStart: // by definition after set-up
		f.setUp(timeMs, receivedAtMs, false)
		if !f.s.Disrupted {
			f.s.Disrupted, f.s.DisruptedSinceMs = true, timeMs
			f.s.Facts.Disruptions++
			f.changed = true
		}
	case eventIceDisruptionEnd:
		if f.s.Disrupted {
			f.s.DisruptionMs += f.disrupted(event.DelayMs, timeMs)
			f.s.Disrupted, f.s.DisruptedSinceMs = false, 0
			f.changed = true
		}
	case eventIceConnectionDisruptionStart:
		f.checkingDisrupted()
	case eventIceConnectionDisruptionEnd:
		f.s.CheckingDisrupted = false
	case eventIceCompleted:
		f.iceState("", "completed", timeMs, receivedAtMs)
	case eventFabricDropped: // by definition after set-up
		f.setUp(timeMs, receivedAtMs, false)
		f.setIceFailed(true)
	case eventIceFailed:
		// An app may report it of a connection whose ICE state is another.
		if event.CurrIceConnectionState == "" {
			f.setIceFailed(true)
		}
		if !f.peerHasLeft() {
			f.failed(functionIceConnectionFailure, reasonIceConnectionFailure, event.DelayMs, timeMs)
		}
	case eventIceTerminated:
		return eventIceTerminated
	case eventIceAborted:
		return eventIceAborted
	}
	return ends
}

// disrupted returns how long the open disruption lasted: what the client
// reports, else the difference of the client's own times.
func (f *fabric) disrupted(reported *float64, timeMs float64) float64 {
	if reported != nil && *reported > 0 {
		return *reported
	}
	if f.s.DisruptedSinceMs == 0 || timeMs == 0 {
		return 0
	}
	return max(timeMs-f.s.DisruptedSinceMs, 0)
}

// failed notes the first failure report.
func (f *fabric) failed(function, reason string, delay *float64, timeMs float64) {
	if f.s.FailureReported {
		return
	}
	f.s.FailureReported = true
	f.s.FailureFunction, f.s.FailureReason = function, reason
	if delay != nil && *delay >= 0 {
		f.s.FailureDelayMs = proto.Float64(*delay)
	} else if computed, known := f.since(timeMs); known {
		f.s.FailureDelayMs = proto.Float64(computed)
	}
	f.changed = true
}

// end ends the fabric. An explicit end is final; an end by idleness is undone
// by the next message of the fabric that is not closing.
func (f *fabric) end(atMs int64, timeMs float64, reason string, explicit bool) {
	f.s.Facts.EndedAtMs = proto.Int64(atMs)
	f.s.Facts.EndReason = reason
	f.s.EndedTimeMs = timeMs
	f.s.EndedExplicitly = explicit
	end(f.s.Facts.Hold, atMs)
	f.changed = true
	f.derive()
}

// endExplicitly makes the end of an idle fabric explicit and leaves its time.
func (f *fabric) endExplicitly(reason string) {
	f.s.EndedExplicitly = true
	f.set(&f.s.Facts.EndReason, reason)
}

// reopen undoes an end by idleness. A fabric that was held still is.
func (f *fabric) reopen(atMs int64) {
	if f.s.Facts.Held {
		begin(&f.s.Facts.Hold, atMs)
	}
	f.s.Facts.EndedAtMs = nil
	f.s.Facts.EndReason = ""
	f.s.EndedTimeMs = 0
	f.changed = true
}

// derive brings the facts that follow from the others up to date.
func (f *fabric) derive() {
	facts := f.s.Facts
	facts.Outcome = f.outcome()
	facts.FailureFunction, facts.FailureReason, facts.FailureDelayMs = "", "", nil
	switch {
	case f.s.SetUp: // a set-up fabric has no failure
	case f.s.FailureReported:
		facts.FailureFunction, facts.FailureReason = f.s.FailureFunction, f.s.FailureReason
		if f.s.FailureDelayMs != nil {
			facts.FailureDelayMs = proto.Float64(*f.s.FailureDelayMs)
		}
	case facts.Outcome == callscopev1.FabricOutcome_FABRIC_OUTCOME_FAILED:
		facts.FailureReason = reasonIceConnectionFailure
	}
	facts.DisruptionMs = f.s.DisruptionMs
	if !f.open() && f.s.Disrupted {
		facts.DisruptionMs += f.disrupted(nil, f.s.EndedTimeMs)
	}
}

func (f *fabric) outcome() callscopev1.FabricOutcome {
	switch {
	case f.s.SetUp && f.s.IceFailed && !f.open():
		return callscopev1.FabricOutcome_FABRIC_OUTCOME_DROPPED
	case f.s.SetUp:
		return callscopev1.FabricOutcome_FABRIC_OUTCOME_SETUP
	case f.s.FailureReported, f.s.IceFailed, f.s.CheckingDisrupted && !f.open():
		return callscopev1.FabricOutcome_FABRIC_OUTCOME_FAILED
	case !f.open():
		return callscopev1.FabricOutcome_FABRIC_OUTCOME_ABORTED
	default:
		return callscopev1.FabricOutcome_FABRIC_OUTCOME_PENDING
	}
}

func (f *fabric) enriched() *callscopev1.Enriched {
	return &callscopev1.Enriched{
		Identity: identity(f.p.c, f.p, f),
		Body:     &callscopev1.Enriched_Fabric{Fabric: proto.CloneOf(f.s.Facts)},
	}
}
