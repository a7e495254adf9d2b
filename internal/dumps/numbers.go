package dumps

import (
	"encoding/json"
	"strconv"
	"strings"
)

// File format 3 of rtcstats writes known names as numbers. The numbers below are the format's; they never change.

var methods = map[string]string{
	"1": "getStats", "g": "getStats", "2": "createOffer", "3": "createOfferOnSuccess", "4": "createAnswer", "5": "createAnswerOnSuccess",
	"6": "setLocalDescription", "7": "setLocalDescriptionOnSuccess", "8": "setRemoteDescription", "9": "setRemoteDescriptionOnSuccess",
	"10": "addIceCandidate", "11": "addIceCandidateOnSuccess", "12": "createOfferOnFailure", "13": "createAnswerOnFailure",
	"14": "setLocalDescriptionOnFailure", "15": "setRemoteDescriptionOnFailure", "16": "addIceCandidateOnFailure",
	"20": "onicecandidate", "21": "onicecandidateerror", "22": "ontrack", "23": "onsignalingstatechange", "24": "oniceconnectionstatechange",
	"25": "onconnectionstatechange", "26": "onicegatheringstatechange", "27": "onnegotiationneeded", "28": "ondatachannel",
	"36": "close", "37": "restartIce", "39": "create", "40": "constraints",
	"60": "navigator.mediaDevices.getUserMedia", "61": "navigator.mediaDevices.getUserMediaOnSuccess", "62": "navigator.mediaDevices.getUserMediaOnFailure",
}

// methodName reads a line's method, "" if it is none. A number that means nothing here stays one.
func methodName(value json.RawMessage) string {
	var name string
	if json.Unmarshal(value, &name) != nil {
		var number float64
		if json.Unmarshal(value, &number) != nil || number < 1 || number > 1000 || string(value) == "null" {
			return ""
		}
		name = strconv.Itoa(int(number))
	}
	if full, known := methods[name]; known {
		return full
	}
	return name
}

var types = []string{
	1: "inbound-rtp", 2: "outbound-rtp", 3: "remote-inbound-rtp", 4: "remote-outbound-rtp", 5: "transport", 6: "candidate-pair", 7: "local-candidate",
	8: "remote-candidate", 9: "data-channel", 10: "peer-connection", 11: "certificate", 12: "media-source", 13: "media-playout", 14: "codec",
}

func typeName(number float64) string {
	if n := int(number); n > 0 && n < len(types) {
		return types[n]
	}
	return "unknown"
}

// properties has the names of the numbers from 4 on; a dot is a number that was given up.
var properties = strings.Fields(`
payloadType transportId mimeType clockRate channels sdpFmtpLine
ssrc kind codecId . packetsReceived packetsLost jitter trackIdentifier mid remoteId
framesDecoded keyFramesDecoded framesDropped frameWidth frameHeight framesPerSecond qpSum totalDecodeTime totalInterFrameDelay totalSquaredInterFrameDelay
pauseCount totalPausesDuration freezeCount totalFreezesDuration lastPacketReceivedTimestamp headerBytesReceived packetsDiscarded fecPacketsReceived fecPacketsDiscarded fecBytesReceived
fecSsrc bytesReceived nackCount firCount pliCount totalProcessingDelay estimatedPlayoutTimestamp jitterBufferDelay jitterBufferTargetDelay jitterBufferEmittedCount
jitterBufferMinimumDelay totalSamplesReceived concealedSamples silentConcealedSamples concealmentEvents insertedSamplesForDeceleration removedSamplesForAcceleration audioLevel totalAudioEnergy totalSamplesDuration
framesReceived decoderImplementation playoutId powerEfficientDecoder framesAssembledFromMultiplePackets totalAssemblyTime contentType googTimingFrameInfo retransmittedPacketsReceived retransmittedBytesReceived
rtxSsrc totalCorruptionProbability totalSquaredCorruptionProbability corruptionMeasurements localId roundTripTime totalRoundTripTime fractionLost roundTripTimeMeasurements packetsSent
bytesSent mediaSourceId rid encodingIndex headerBytesSent retransmittedPacketsSent retransmittedBytesSent targetBitrate totalEncodedBytesTarget framesSent
hugeFramesSent framesEncoded keyFramesEncoded totalEncodeTime totalPacketSendDelay qualityLimitationReason qualityLimitationDurations qualityLimitationResolutionChanges encoderImplementation powerEfficientEncoder
active scalabilityMode remoteTimestamp reportsSent echoReturnLoss echoReturnLossEnhancement width height frames synthesizedSamplesDuration
synthesizedSamplesEvents totalPlayoutDelay totalSamplesCount dataChannelsOpened dataChannelsClosed label protocol dataChannelIdentifier state messagesSent
messagesReceived iceRole iceLocalUsernameFragment dtlsState iceState selectedCandidatePairId localCertificateId remoteCertificateId tlsVersion dtlsCipher
dtlsRole srtpCipher selectedCandidatePairChanges rtcpTransportStatsId address port candidateType priority url relayProtocol
foundation relatedAddress relatedPort usernameFragment tcpType networkType . . localCandidateId remoteCandidateId
nominated lastPacketSentTimestamp currentRoundTripTime availableOutgoingBitrate availableIncomingBitrate requestsReceived requestsSent responsesReceived responsesSent consentRequestsSent
packetsDiscardedOnSend bytesDiscardedOnSend . fingerprint fingerprintAlgorithm base64Certificate issuerCertificateId psnrMeasurements psnrSum packetsReceivedWithEct1
packetsReceivedWithCe packetsReportedAsLost packetsReportedAsLostButRecovered packetsWithBleachedEct1Marking packetsSentWithEct1 ccfbMessagesSent ccfbMessagesReceived`)

func propertyName(name string) string {
	if name == "t" {
		return "timestamp"
	}
	if !decimal(name) {
		return name
	}
	n, err := strconv.Atoi(name)
	if err != nil || n < 4 || n-4 >= len(properties) || properties[n-4] == "." {
		return name
	}
	return properties[n-4]
}
