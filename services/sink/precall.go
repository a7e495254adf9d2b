package sink

import (
	"math"

	"github.com/valyala/fastjson"

	"github.com/callscope/callscope/internal/store"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

const eventPrecallAssociate = "preCallTestAssociate"

// addPrecallTest gives the test's row. The real name that a result may carry is left out: it belongs to nobody who
// could be shown beside it.
func (b *blocks) addPrecallTest(d decoded, e *callscopev1.Enriched, t *callscopev1.PreCallTest) error {
	h, err := headOf(e)
	if err != nil {
		return err
	}
	r, endpoint := t.GetResults(), t.GetEndpoint()
	if r == nil {
		return bad("no_results", "pre-call test without results")
	}
	b.precallTests.add(d.record, store.PrecallTestRow{
		AppID: h.conference.AppID, TestID: r.Id, UserID: h.participant.UserID, DeviceID: h.participant.DeviceID,
		Time: h.time, ReceivedAt: h.receivedAt,
		StartedAt: optionalClientTime(r.StartTimestampMs), EndedAt: optionalClientTime(r.EndTimestampMs),
		Status: store.OptionalWord(r.Status), TestVersion: store.OptionalWord(r.Version), Provider: store.OptionalWord(r.Provider),
		RunManually: r.RunManually, RunByUser: r.RunByUser, MediaConnectivity: r.MediaConnectivity,
		RTTMedianMs: r.RttMedianMs, RTTAverageMs: r.RttAverageMs, FractionLost: r.FractionLost, ThroughputKbps: r.ThroughputKbps,
		EndpointType: store.OptionalWord(endpoint.GetType()),
		Browser:      store.OptionalWord(endpoint.GetBuildName()), BrowserVersion: store.OptionalWord(endpoint.GetBuildVersion()),
		OS: store.OptionalWord(endpoint.GetOs()), OSVersion: store.OptionalWord(endpoint.GetOsVersion()),
		AppVersion: store.OptionalWord(endpoint.GetAppVersion()),
		Results:    r.ResultsJson,
		RecordKey:  h.key, Source: d.source,
	})
	return nil
}

// addPrecallAssociations gives a row for each test that the event's ids name. Anything else in their place names none;
// the event's own row keeps it.
func (b *blocks) addPrecallAssociations(d decoded, h rowHead, data string) {
	v, err := fastjson.Parse(data)
	if err != nil {
		return
	}
	ids := v.GetArray("ids")
	for i, id := range ids[:min(len(ids), math.MaxUint16)] {
		text, err := id.StringBytes()
		if err != nil || len(text) == 0 {
			continue
		}
		key := h.key
		key.Index = uint16(i)
		b.precallAssociations.add(d.record, store.PrecallAssociationRow{
			AppID: h.conference.AppID, TestID: string(text),
			ConferenceID: &h.conference.ConferenceID, ConferenceUID: h.conference.ConferenceUID, ReceivedAt: h.receivedAt,
			RecordKey: key, Source: d.source,
		})
	}
}
