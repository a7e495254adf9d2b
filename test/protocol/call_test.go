package protocol

import (
	"testing"
)

// wholeCall sends a call of two users and wants the rows to say what was sent.
func wholeCall(t *testing.T, d *deployment) {
	const room = "room/1 ü%2F"
	alice := mustConnect(t, d, credentials{appID: openApp, userID: "alice", secret: openSecret},
		object{"deviceID": "laptop", "clientVersion": "example 1.0"})
	bob := mustConnect(t, d, credentials{appID: openApp, userID: "bob", customerToken: d.customerToken(t, d.key, customerClaims("bob"))},
		object{"deviceID": "phone"})
	start := now() - 40_000
	report := func(n int64, ssrc, loss int64) []object {
		return []object{{"type": "inbound-rtp", "id": "in", "kind": "audio", "ssrc": ssrc, "timestamp": start + 10_000*n,
			"packetsReceived": 500*n - loss*n, "packetsLost": loss * n, "bytesReceived": 40_000 * n, "jitter": 0.012}}
	}
	pair := object{"id": "pair1", "localCandidateId": "l1", "remoteCandidateId": "r1", "state": "succeeded", "nominated": true, "googActiveConnection": true}
	local := []object{{"id": "l1", "type": "local-candidate", "transport": "udp", "ip": "192.0.2.1", "port": 5000, "candidateType": "host"}}
	remote := []object{{"id": "r1", "type": "remote-candidate", "transport": "udp", "ip": "192.0.2.2", "port": 5001, "candidateType": "srflx"}}
	sdp := "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=ü\r\n"

	users := []struct {
		c       *client
		batches [][]object
	}{{alice, [][]object{
		{{"eventType": "userJoined", "timestamp": start, "userName": "Alice Example", "endpointInfo": object{"type": "browser",
			"buildName": "Chrome", "buildVersion": "131.0", "os": "Linux", "osVersion": "6", "appVersion": "7.1"}},
			{"eventType": "addNewFabric", "timestamp": start + 100, "connectionID": "pcA", "remoteID": "bob", "fabricUsage": "multiplex",
				"remoteEndpointType": "peer", "fabricTransmissionDirection": "sendrecv"}},
		{{"eventType": "fabricStateChange", "timestamp": start + 200, "connectionID": "pcA", "remoteID": "bob",
			"changedState": "iceConnectionState", "prevState": "new", "newState": "checking"},
			{"eventType": "fabricSetup", "timestamp": start + 900, "connectionID": "pcA", "remoteID": "bob", "delay": 800,
				"iceGatheringDelay": 150, "iceConnectivityDelay": 250, "localIceCandidates": local, "remoteIceCandidates": remote,
				"iceCandidatePairs": []object{pair}},
			{"eventType": "associateMstWithUserID", "timestamp": start + 950, "connectionID": "pcA", "remoteID": "bob", "ssrc": 2222,
				"userID": "bob", "usageLabel": "microphone"}},
		{{"eventType": "stats", "timestamp": start + 10_001, "connectionID": "pcA", "remoteID": "bob", "stats": report(1, 2222, 10)}},
		{{"eventType": "stats", "timestamp": start + 20_001, "connectionID": "pcA", "remoteID": "bob", "stats": report(2, 2222, 10)},
			{"eventType": "audioMute", "timestamp": start + 20_500, "connectionID": "pcA", "ssrc": "1111"},
			{"eventType": "stats", "timestamp": start + 30_001, "connectionID": "pcA", "remoteID": "bob", "stats": report(3, 2222, 10)}},
		{{"eventType": "userFeedback", "timestamp": start + 31_000, "feedback": object{"overall": 4, "audio": 3, "video": 2, "screen": 5, "comment": "läuft"}},
			{"eventType": "fabricTerminated", "timestamp": start + 32_000, "connectionID": "pcA", "remoteID": "bob"},
			{"eventType": "userLeft", "timestamp": start + 33_000}},
	}}, {bob, [][]object{
		{{"eventType": "userJoined", "timestamp": start + 50, "endpointInfo": object{"type": "native", "buildName": "App", "os": "iOS"}}},
		{{"eventType": "addNewFabric", "timestamp": start + 150, "connectionID": "pcB", "remoteID": "alice", "fabricUsage": "audio",
			"fabricTransmissionDirection": "receiveonly"},
			{"eventType": "reportError", "timestamp": start + 450, "connectionID": "pcB", "remoteID": "alice", "function": "setRemoteDescription",
				"domError": object{"name": "InvalidStateError", "message": "not now", "stack": "at pc.js:1"}, "localSDP": sdp, "remoteSDP": "v=1"}},
		{{"eventType": "userLeft", "timestamp": start + 33_500}},
	}}}
	var wantEvents []row
	for _, user := range users {
		for _, batch := range user.batches {
			if err := user.c.post(room, batch...); err != nil {
				t.Fatal(err)
			}
			for _, event := range batch {
				if event["eventType"] != "stats" {
					connection, _ := event["connectionID"].(string)
					wantEvents = append(wantEvents, row{"user_id": user.c.who.userID, "device_id": user.c.hello["deviceID"], "connection_id": connection,
						"original_type": event["eventType"], "at": float64(event["timestamp"].(int64))})
				}
			}
			if err := user.c.awaitAck(user.c.next); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range user.c.statuses {
			t.Errorf("%s was told %s", user.c.who.userID, f.text)
		}
	}
	in := " WHERE conference_id = " + sqlText(room)
	d.wantRows(t, "SELECT user_id, device_id, connection_id, original_type, toUnixTimestamp64Milli(time) AS at FROM events"+in+
		" AND reported ORDER BY user_id, at", wantEvents)
	d.wantRows(t, "SELECT toUnixTimestamp64Milli(time) AS at, ssrc, direction, media_type, owner_user_id, usage_label, interval_ms, bytes, packets, packets_lost, "+
		"loss, bitrate_kbps, jitter_ms FROM samples"+in+" ORDER BY time LIMIT 10 OFFSET 1", []row{
		sampleRow(start + 20_001), sampleRow(start + 30_001)})
	// Counters are cumulative from the start, so the first report is an interval too.
	d.wantRows(t, "SELECT toUnixTimestamp64Milli(time) AS at, bytes, packets, packets_lost FROM samples"+in+" ORDER BY time LIMIT 1",
		[]row{{"at": float64(start + 10_001), "bytes": 40_000.0, "packets": 490.0, "packets_lost": 10.0}})
	d.wantRows(t, "SELECT user_id, overall, audio, video, screen, comment FROM feedback"+in,
		[]row{{"user_id": "alice", "overall": 4.0, "audio": 3.0, "video": 2.0, "screen": 5.0, "comment": "läuft"}})
	d.wantRows(t, "SELECT user_id, connection_id, function, reason, name, message, stack, local_sdp, remote_sdp, is_log, delay_ms FROM failures"+in,
		[]row{{"user_id": "bob", "connection_id": "pcB", "function": "setRemoteDescription", "reason": "NegotiationFailure",
			"name": "InvalidStateError", "message": "not now", "stack": "at pc.js:1", "local_sdp": sdp, "remote_sdp": "v=1", "is_log": false,
			"delay_ms": 300.0}})
	d.wantRows(t, "SELECT user_id, connection_id, remote_id, usage, remote_type, direction, outcome, setup_delay_ms, ice_gathering_delay_ms, "+
		"ice_connectivity_delay_ms, failure_delay_ms, failure_function FROM fabrics"+in+" ORDER BY user_id", []row{
		{"user_id": "alice", "connection_id": "pcA", "remote_id": "bob", "usage": "multiplex", "remote_type": "peer", "direction": "sendrecv", "outcome": "setup",
			"setup_delay_ms": 800.0, "ice_gathering_delay_ms": 150.0, "ice_connectivity_delay_ms": 250.0, "failure_delay_ms": nil, "failure_function": nil},
		{"user_id": "bob", "connection_id": "pcB", "remote_id": "alice", "usage": "audio", "remote_type": "peer", "direction": "receiveonly", "outcome": "failed",
			"setup_delay_ms": nil, "ice_gathering_delay_ms": nil, "ice_connectivity_delay_ms": nil, "failure_delay_ms": 300.0, "failure_function": "setRemoteDescription"}})
	d.wantRows(t, "SELECT user_id, device_id, joins, left_reason, browser, os, app_version, client_version FROM participants"+in+" ORDER BY user_id", []row{
		{"user_id": "alice", "device_id": "laptop", "joins": 1.0, "left_reason": "userLeft", "browser": "Chrome", "os": "Linux", "app_version": "7.1", "client_version": "example 1.0"},
		{"user_id": "bob", "device_id": "phone", "joins": 1.0, "left_reason": "userLeft", "browser": "App", "os": "iOS", "app_version": nil, "client_version": nil}})
	d.wantRows(t, "SELECT user_id, user_name FROM participants_named"+in+" AND user_name IS NOT NULL", []row{{"user_id": "alice", "user_name": "Alice Example"}})
}

// sampleRow is an interval of 10 s with 500 packets expected, 10 of them lost,
// and 40 000 bytes.
func sampleRow(at int64) row {
	return row{"at": float64(at), "ssrc": "2222", "direction": "inbound", "media_type": "audio", "owner_user_id": "bob", "usage_label": "microphone",
		"interval_ms": 10_000.0, "bytes": 40_000.0, "packets": 490.0, "packets_lost": 10.0, "loss": 0.02, "bitrate_kbps": 32.0, "jitter_ms": 12.0}
}
