package enricher

import (
	"google.golang.org/protobuf/proto"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// maxStreams bounds the streams, and the associations of streams not yet seen,
// that one fabric may have.
const maxStreams = 8192

type streamKey struct {
	ssrc      string
	direction callscopev1.Direction // unspecified: both
}

// rtpStream is one SSRC in one direction of a fabric.
type rtpStream struct {
	f       *fabric
	s       *callscopev1.EnricherStream
	changed bool // its facts must be written
}

func (s *step) streamChanged(st *rtpStream) {
	if !st.changed {
		st.changed = true
		s.streams = append(s.streams, st)
	}
}

// streamOf returns the stream of the report, and begins it at its first. It is
// nil beyond what a fabric may have.
func (s *step) streamOf(f *fabric, direction callscopev1.Direction, rtp *callscopev1.RtpStats) *rtpStream {
	key := streamKey{rtp.Ssrc, direction}
	st := f.streams[key]
	isNew := st == nil
	if isNew {
		if len(f.s.Streams) >= maxStreams {
			s.m.counts.StreamsOverLimit++
			return nil
		}
		st = &rtpStream{f: f, s: &callscopev1.EnricherStream{Facts: &callscopev1.StreamFacts{
			Ssrc: rtp.Ssrc, Direction: direction,
			StartedAtMs: s.raw.Observed.ReceivedAtMs, FirstRawOffset: s.offset,
		}}}
		f.indexStream(st)
		f.s.Streams = append(f.s.Streams, st.s)
		st.own(f.defaultOwner(direction))
		// What was said before: of both directions, then of this one.
		st.own(f.owners[streamKey{ssrc: key.ssrc}])
		st.own(f.owners[key])
	}
	facts := st.s.Facts
	changed := isNew
	if facts.OwnerSource == callscopev1.OwnerSource_OWNER_SOURCE_UNKNOWN {
		changed = st.own(f.defaultOwner(direction)) || changed
	}
	if rtp.Kind != "" && facts.MediaType != rtp.Kind {
		facts.MediaType, changed = rtp.Kind, true
	}
	if rtp.MimeType != "" && facts.Codec != rtp.MimeType {
		facts.Codec, changed = rtp.MimeType, true
	}
	if !f.s.EndedExplicitly || isNew {
		changed = st.own(reportedOwner(rtp)) || changed
	}
	if changed {
		s.streamChanged(st)
	}
	return st
}

func (f *fabric) indexStream(st *rtpStream) {
	if f.streams == nil {
		f.streams = map[streamKey]*rtpStream{}
	}
	f.streams[streamKey{st.s.Facts.Ssrc, st.s.Facts.Direction}] = st
}

// defaultOwner is the local user for what is sent and the remote user for what
// is received; unknown where the fabric has no remote user.
func (f *fabric) defaultOwner(direction callscopev1.Direction) *callscopev1.EnricherOwner {
	owner := &callscopev1.EnricherOwner{UserId: f.p.s.UserId, Source: callscopev1.OwnerSource_OWNER_SOURCE_DEFAULT}
	if direction == callscopev1.Direction_DIRECTION_INBOUND {
		owner.UserId = f.s.RemoteId
		if f.s.RemoteId == "" {
			owner.Source = callscopev1.OwnerSource_OWNER_SOURCE_UNKNOWN
		}
	}
	return owner
}

// reportedOwner is the association that the report itself carries, nil if none.
func reportedOwner(rtp *callscopev1.RtpStats) *callscopev1.EnricherOwner {
	if rtp.AssociatedUserId == "" && rtp.UsageLabel == "" {
		return nil
	}
	return &callscopev1.EnricherOwner{
		UserId: rtp.AssociatedUserId, UsageLabel: rtp.UsageLabel,
		Source: callscopev1.OwnerSource_OWNER_SOURCE_ASSOCIATION,
	}
}

// own gives the stream to a user, and tells whether that changes anything. A
// label without a user leaves the owner as it is; the same owner again leaves
// the source as it is.
func (st *rtpStream) own(owner *callscopev1.EnricherOwner) bool {
	if owner == nil {
		return false
	}
	facts := st.s.Facts
	changed := false
	says := owner.UserId != "" || owner.Source == callscopev1.OwnerSource_OWNER_SOURCE_UNKNOWN
	same := owner.UserId == facts.OwnerUserId &&
		(owner.Source == facts.OwnerSource || associated(owner.Source) && associated(facts.OwnerSource))
	if says && !same {
		facts.OwnerUserId, facts.OwnerSource = owner.UserId, owner.Source
		changed = true
	}
	if owner.UsageLabel != "" && owner.UsageLabel != facts.UsageLabel {
		facts.UsageLabel = owner.UsageLabel
		changed = true
	}
	return changed
}

func associated(source callscopev1.OwnerSource) bool {
	return source == callscopev1.OwnerSource_OWNER_SOURCE_ASSOCIATION || source == callscopev1.OwnerSource_OWNER_SOURCE_SSRC_MAP
}

// associate gives streams to users, now or when they are first reported.
func (s *step) associate(f *fabric, owner *callscopev1.EnricherOwner) {
	for _, direction := range []callscopev1.Direction{
		callscopev1.Direction_DIRECTION_INBOUND, callscopev1.Direction_DIRECTION_OUTBOUND,
	} {
		if owner.Direction != callscopev1.Direction_DIRECTION_UNSPECIFIED && owner.Direction != direction {
			continue
		}
		key := streamKey{owner.Ssrc, direction}
		if st := f.streams[key]; st != nil && st.own(owner) {
			s.streamChanged(st)
		}
		// What is said of one direction goes before what is said of both.
		if known := f.owners[key]; known != nil && direction != owner.Direction {
			replaceOwner(known, owner)
		}
	}
	known := f.owners[streamKey{owner.Ssrc, owner.Direction}]
	switch {
	case known != nil:
		replaceOwner(known, owner)
	case len(f.owners) >= maxStreams:
		s.m.counts.StreamsOverLimit++
	default:
		f.indexOwner(owner)
		f.s.Owners = append(f.s.Owners, owner)
	}
}

// replaceOwner takes over what the newer association says.
func replaceOwner(known, newer *callscopev1.EnricherOwner) {
	if newer.UserId != "" {
		known.UserId, known.Source = newer.UserId, newer.Source
	}
	if newer.UsageLabel != "" {
		known.UsageLabel = newer.UsageLabel
	}
}

func (f *fabric) indexOwner(owner *callscopev1.EnricherOwner) {
	if f.owners == nil {
		f.owners = map[streamKey]*callscopev1.EnricherOwner{}
	}
	f.owners[streamKey{owner.Ssrc, owner.Direction}] = owner
}

// applyAssociations takes the associations out of an ssrcMap or an association.
// A bare userID in an ssrcMap is the sender's own and says nothing.
func (s *step) applyAssociations(f *fabric) {
	switch payload := s.raw.Payload.(type) {
	case *callscopev1.Raw_SsrcMap:
		for _, entry := range payload.SsrcMap.SsrcData {
			user := entry.RemoteUserId
			if user == "" && entry.UsageLabel != "" {
				user = entry.UserId
			}
			if entry.Ssrc == "" || user == "" && entry.UsageLabel == "" {
				continue
			}
			s.associate(f, &callscopev1.EnricherOwner{
				Ssrc: entry.Ssrc, Direction: directionOf(entry.StreamType), UserId: user,
				UsageLabel: entry.UsageLabel, Source: callscopev1.OwnerSource_OWNER_SOURCE_SSRC_MAP,
			})
		}
	case *callscopev1.Raw_Association:
		if payload.Association.Ssrc == "" {
			return
		}
		s.associate(f, &callscopev1.EnricherOwner{
			Ssrc: payload.Association.Ssrc, UserId: payload.Association.UserId,
			UsageLabel: payload.Association.UsageLabel, Source: callscopev1.OwnerSource_OWNER_SOURCE_ASSOCIATION,
		})
	}
}

func directionOf(streamType string) callscopev1.Direction {
	switch streamType {
	case "inbound":
		return callscopev1.Direction_DIRECTION_INBOUND
	case "outbound":
		return callscopev1.Direction_DIRECTION_OUTBOUND
	default:
		return callscopev1.Direction_DIRECTION_UNSPECIFIED
	}
}

func (st *rtpStream) enriched() *callscopev1.Enriched {
	return &callscopev1.Enriched{
		Identity: identity(st.f.p.c, st.f.p, st.f),
		Body:     &callscopev1.Enriched_Stream{Stream: proto.CloneOf(st.s.Facts)},
	}
}
