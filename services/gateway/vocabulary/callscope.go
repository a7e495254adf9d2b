package vocabulary

import (
	"github.com/valyala/fastjson"

	v1 "github.com/callscope/callscope/proto/callscope/v1"
)

// FromObject reads an event of our own protocol, whose frames carry several. The object must come from valid JSON in
// valid UTF-8 and outlive the Message. The error is an *Invalid.
func FromObject(event *fastjson.Object) (*Message, error) {
	m := &Message{object: event}
	if err := m.readCallscopeHead(); err != nil {
		return nil, err
	}
	return m, nil
}

// readCallscopeHead reads an event of our own protocol. Its user is the one who signed in and its conference, number and
// session are the frame's, so none of them is read here.
func (m *Message) readCallscopeHead() error {
	m.Dialect = v1.Dialect_DIALECT_CALLSCOPE
	h := m.head()
	m.claimed = &v1.Claimed{
		DeviceId:     text(h.deviceID),
		ConnectionId: text(h.connectionID),
		RemoteId:     text(h.remoteID),
		TimeMs:       m.clientTime(h.timestamp),
		SiteId:       text(h.siteID),
	}
	return m.name(text(h.eventType))
}

func (m *Message) inCallscopeEnvelope(key []byte, v *fastjson.Value) bool {
	switch string(key) {
	case "eventType", "deviceID", "connectionID", "remoteID", "siteID":
		return isText(v)
	case "timestamp":
		return m.clientTime(v) != 0
	}
	return false
}

// Messages that only our own protocol has.

var fabricAddedTable = compile(fields[v1.FabricAdded]{
	"fabricUsage":                 str(func(m *v1.FabricAdded) *string { return &m.FabricUsage }),
	"remoteEndpointType":          str(func(m *v1.FabricAdded) *string { return &m.RemoteEndpointType }),
	"fabricTransmissionDirection": str(func(m *v1.FabricAdded) *string { return &m.FabricTransmissionDirection }),
})

var associationTable = compile(fields[v1.Association]{
	"ssrc":               str(func(m *v1.Association) *string { return &m.Ssrc }),
	"userID":             str(func(m *v1.Association) *string { return &m.UserId }),
	"usageLabel":         cutStr(func(m *v1.Association) *string { return &m.UsageLabel }, cutBytes, maxUsageLabelBytes),
	"associatedVideoTag": str(func(m *v1.Association) *string { return &m.AssociatedVideoTag }),
})
