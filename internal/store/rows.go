package store

import "github.com/google/uuid"

// Row is one row of one table. Its fields are the table's columns in order: ch tags name them, Distribution stands for
// seven columns. Pointers and OptionalWords are NULL where the value is unknown.
type Row interface {
	// Table is the name of the table without the database.
	Table() string
}

// Distribution is how a measure is spread over an entity. Shares are 0 to 1, the others have the measure's unit.
type Distribution struct {
	Mean       *float64 `ch:""`
	Min        *float64 `ch:"_min"`
	P10        *float64 `ch:"_p10"`
	Median     *float64 `ch:"_median"`
	P90        *float64 `ch:"_p90"`
	Max        *float64 `ch:"_max"`
	ShareBelow *float64 `ch:"_share_below"`
}

// Source is which record a row came from, and which version of the row it is.
type Source struct {
	Topic     Word  `ch:"src_topic"`
	Partition int32 `ch:"src_partition"`
	Offset    int64 `ch:"src_offset"`
	// RangeStart is the first offset of the range that was inserted with this row. Ranges are inserted one after the
	// other, so everything before the start of the newest one is complete in all tables.
	RangeStart int64 `ch:"src_range_start"`
	// Version decides which of two rows with the same key is shown, the higher one. Summaries: SummaryVersion; others:
	// the replay generation, 0 for live.
	Version   uint64 `ch:"version"`
	IsDeleted uint8  `ch:"is_deleted"` // 1: takes the row away
}

// SummaryVersion orders the rows of one entity: by replay generation (0 is live), then by revision.
func SummaryVersion(generation, revision uint32) uint64 {
	return uint64(generation)<<32 | uint64(revision)
}

// ConferenceKey names a conference.
type ConferenceKey struct {
	AppID         string    `ch:"app_id"`
	ConferenceID  string    `ch:"conference_id"`
	ConferenceUID uuid.UUID `ch:"conference_uid"`
}

// ParticipantKey names a participant.
type ParticipantKey struct {
	ParticipantUID uuid.UUID `ch:"participant_uid"`
	UserID         string    `ch:"user_id"`
	DeviceID       string    `ch:"device_id"`
}

// FabricKey names a fabric.
type FabricKey struct {
	FabricUID    uuid.UUID `ch:"fabric_uid"`
	ConnectionID string    `ch:"connection_id"`
	RemoteID     string    `ch:"remote_id"`
}

// ConferenceRef is a ConferenceKey of a row that may belong to no conference.
type ConferenceRef struct {
	AppID         string     `ch:"app_id"`
	ConferenceID  string     `ch:"conference_id"`
	ConferenceUID *uuid.UUID `ch:"conference_uid"`
}

// ParticipantRef is a ParticipantKey of a row that may belong to no participant.
type ParticipantRef struct {
	ParticipantUID *uuid.UUID `ch:"participant_uid"`
	UserID         string     `ch:"user_id"`
	DeviceID       string     `ch:"device_id"`
}

// FabricRef is a FabricKey of a row that may belong to no fabric.
type FabricRef struct {
	FabricUID    *uuid.UUID `ch:"fabric_uid"`
	ConnectionID string     `ch:"connection_id"`
	RemoteID     string     `ch:"remote_id"`
}

// Revision is which revision of a summary a row is.
type Revision struct {
	State          Word         `ch:"state"` // partial, final, revised
	Revision       uint32       `ch:"revision"`
	LogicVersion   uint32       `ch:"logic_version"`
	RevisionReason OptionalWord `ch:"revision_reason"`
}

// Provenance is what a summary was computed from.
type Provenance struct {
	FirstRawOffset int64     `ch:"first_raw_offset"`
	LastRawOffset  int64     `ch:"last_raw_offset"`
	RecordUID      uuid.UUID `ch:"record_uid"` // of the summary record
}

// Models are what made an entity's scores.
type Models struct {
	AudioMOSModel   OptionalWord `ch:"audio_mos_model"`
	VideoScoreModel OptionalWord `ch:"video_score_model"`
}

// RecordKey identifies a row by the record it came from.
type RecordKey struct {
	LogicVersion uint32    `ch:"logic_version"`
	RecordUID    uuid.UUID `ch:"record_uid"`
	Index        uint16    `ch:"idx"` // among the rows of this table from the same record
}

// ConferenceRow is one revision of a conference's summary.
type ConferenceRow struct {
	ConferenceKey
	Revision
	StartedAt               Time         `ch:"started_at"`
	EndedAt                 *Time        `ch:"ended_at"`
	DurationMs              *int64       `ch:"duration_ms"`
	Outcome                 OptionalWord `ch:"outcome"`
	OutcomeEvidence         *string      `ch:"outcome_evidence"`
	EndReason               OptionalWord `ch:"end_reason"`
	Participants            uint32       `ch:"participants"`
	PeakParticipants        uint32       `ch:"peak_participants"`
	Rejoins                 uint32       `ch:"rejoins"`
	MaxJoins                uint32       `ch:"max_joins"`
	Reopened                uint32       `ch:"reopened"`
	ParticipantMinutes      *float64     `ch:"participant_minutes"`
	MediaParticipantMinutes *float64     `ch:"media_participant_minutes"`
	Fabrics                 uint32       `ch:"fabrics"`
	FabricsFailed           uint32       `ch:"fabrics_failed"`
	FabricsDropped          uint32       `ch:"fabrics_dropped"`
	SetupDelayMsMin         *float64     `ch:"setup_delay_ms_min"`
	SetupDelayMsMean        *float64     `ch:"setup_delay_ms_mean"`
	SetupDelayMsMedian      *float64     `ch:"setup_delay_ms_median"`
	SetupDelayMsMax         *float64     `ch:"setup_delay_ms_max"`
	SetupDelaysUnknown      uint32       `ch:"setup_delays_unknown"`
	AudioMOS                Distribution `ch:"audio_mos"`
	VideoScore              Distribution `ch:"video_score"`
	Models
	WorstParticipantUID *uuid.UUID `ch:"worst_participant_uid"`
	Browsers            []Word     `ch:"browsers"`
	Networks            []Word     `ch:"networks"`
	FeedbackOverall     *float64   `ch:"feedback_overall"`
	LastMessageAt       Time       `ch:"last_message_at"`
	Provenance
	Source
}

// ParticipantRow is one revision of a participant's summary.
type ParticipantRow struct {
	ConferenceKey
	ParticipantKey
	Revision
	JoinedAt         Time         `ch:"joined_at"`
	LeftAt           *Time        `ch:"left_at"`
	Present          bool         `ch:"present"`
	PresenceMs       int64        `ch:"presence_ms"`
	Joins            uint32       `ch:"joins"`
	PresenceJoinedAt []Time       `ch:"presence_joined_at"`
	PresenceLeftAt   []*Time      `ch:"presence_left_at"`
	LeftReason       OptionalWord `ch:"left_reason"`
	Alias            string       `ch:"alias"`
	SiteID           OptionalWord `ch:"site_id"`
	Browser          OptionalWord `ch:"browser"`
	BrowserVersion   OptionalWord `ch:"browser_version"`
	OS               OptionalWord `ch:"os"`
	OSVersion        OptionalWord `ch:"os_version"`
	ClientVersion    OptionalWord `ch:"client_version"`
	AppVersion       OptionalWord `ch:"app_version"`
	Country          OptionalWord `ch:"country"`
	Network          OptionalWord `ch:"network"`
	Fabrics          uint32       `ch:"fabrics"`
	FabricsFailed    uint32       `ch:"fabrics_failed"`
	AudioMOS         Distribution `ch:"audio_mos"`
	VideoScore       Distribution `ch:"video_score"`
	LossIn           Distribution `ch:"loss_in"`
	LossOut          Distribution `ch:"loss_out"`
	JitterInMs       Distribution `ch:"jitter_in_ms"`
	JitterOutMs      Distribution `ch:"jitter_out_ms"`
	RTTMs            Distribution `ch:"rtt_ms"`
	BitrateInKbps    Distribution `ch:"bitrate_in_kbps"`
	BitrateOutKbps   Distribution `ch:"bitrate_out_kbps"`
	TalkMs           *int64       `ch:"talk_ms"`
	MutedMs          *int64       `ch:"muted_ms"`
	PausedMs         *int64       `ch:"paused_ms"`
	SharedMs         *int64       `ch:"shared_ms"`
	DominantMs       *int64       `ch:"dominant_ms"`
	Models
	FeedbackOverall  *float64 `ch:"feedback_overall"`
	Findings         []Word   `ch:"findings"`
	FindingsEvidence *string  `ch:"findings_evidence"`
	Provenance
	ConferenceStartedAt Time `ch:"conference_started_at"`
	Source
}

// ParticipantNameRow is the real name of a participant. It has a table of its own, so that reading it can be a right of
// its own.
type ParticipantNameRow struct {
	ConferenceKey
	ParticipantUID      uuid.UUID `ch:"participant_uid"`
	UserName            string    `ch:"user_name"`
	Revision            uint32    `ch:"revision"`
	RecordUID           uuid.UUID `ch:"record_uid"`
	ConferenceStartedAt Time      `ch:"conference_started_at"`
	Source
}

// FabricRow is one revision of a fabric's summary.
type FabricRow struct {
	ConferenceKey
	ParticipantKey
	FabricKey
	Revision
	StartedAt              Time         `ch:"started_at"`
	EndedAt                *Time        `ch:"ended_at"`
	EndReason              OptionalWord `ch:"end_reason"`
	Usage                  OptionalWord `ch:"usage"`
	RemoteType             OptionalWord `ch:"remote_type"`
	Direction              OptionalWord `ch:"direction"`
	Outcome                OptionalWord `ch:"outcome"`
	SetupDelayMs           *float64     `ch:"setup_delay_ms"`
	ICEGatheringDelayMs    *float64     `ch:"ice_gathering_delay_ms"`
	ICEConnectivityDelayMs *float64     `ch:"ice_connectivity_delay_ms"`
	FailureDelayMs         *float64     `ch:"failure_delay_ms"`
	DelaySource            OptionalWord `ch:"delay_source"`
	FailureFunction        OptionalWord `ch:"failure_function"`
	FailureReason          OptionalWord `ch:"failure_reason"`
	Disruptions            uint32       `ch:"disruptions"`
	DisruptionMs           float64      `ch:"disruption_ms"`
	Relayed                *bool        `ch:"relayed"`
	RTTMs                  Distribution `ch:"rtt_ms"`
	Provenance
	ConferenceStartedAt Time `ch:"conference_started_at"`
	Source
}

// StreamRow is one revision of a stream's summary.
type StreamRow struct {
	ConferenceKey
	ParticipantKey
	FabricKey
	Revision
	SSRC        string       `ch:"ssrc"`
	Direction   Word         `ch:"direction"`
	MediaType   OptionalWord `ch:"media_type"`
	OwnerUserID *string      `ch:"owner_user_id"`
	OwnerSource OptionalWord `ch:"owner_source"`
	UsageLabel  OptionalWord `ch:"usage_label"`
	Codec       OptionalWord `ch:"codec"`
	StartedAt   Time         `ch:"started_at"`
	EndedAt     *Time        `ch:"ended_at"`
	Samples     uint32       `ch:"samples"`
	BitrateKbps Distribution `ch:"bitrate_kbps"`
	Loss        Distribution `ch:"loss"`
	JitterMs    Distribution `ch:"jitter_ms"`
	RTTMs       Distribution `ch:"rtt_ms"`
	AudioMOS    Distribution `ch:"audio_mos"`
	VideoScore  Distribution `ch:"video_score"`
	Models
	ScoreReasons *string      `ch:"score_reasons"` // JSON text
	Side         OptionalWord `ch:"side"`
	SideEvidence *string      `ch:"side_evidence"` // JSON text
	Provenance
	ConferenceStartedAt Time `ch:"conference_started_at"`
	Source
}

// SampleRow is what one stream did in one interval.
type SampleRow struct {
	ConferenceRef
	ParticipantRef
	FabricRef
	Time                      Time         `ch:"time"`
	ReceivedAt                Time         `ch:"received_at"`
	IntervalMs                *float64     `ch:"interval_ms"`
	SSRC                      string       `ch:"ssrc"`
	Direction                 OptionalWord `ch:"direction"`
	MediaType                 OptionalWord `ch:"media_type"`
	OwnerUserID               *string      `ch:"owner_user_id"`
	OwnerSource               OptionalWord `ch:"owner_source"`
	UsageLabel                OptionalWord `ch:"usage_label"`
	Codec                     OptionalWord `ch:"codec"`
	BitrateKbps               *float64     `ch:"bitrate_kbps"`
	Bytes                     *float64     `ch:"bytes"`
	Packets                   *float64     `ch:"packets"`
	PacketRate                *float64     `ch:"packet_rate"`
	PacketsLost               *float64     `ch:"packets_lost"`
	Loss                      *float64     `ch:"loss"`
	JitterMs                  *float64     `ch:"jitter_ms"`
	RTTMs                     *float64     `ch:"rtt_ms"`
	JitterBufferDelayMs       *float64     `ch:"jitter_buffer_delay_ms"`
	FrameRate                 *float64     `ch:"frame_rate"`
	FrameWidth                *float64     `ch:"frame_width"`
	FrameHeight               *float64     `ch:"frame_height"`
	FreezeMs                  *float64     `ch:"freeze_ms"`
	FreezeCount               *float64     `ch:"freeze_count"`
	Concealment               *float64     `ch:"concealment"`
	ConcealmentEvents         *float64     `ch:"concealment_events"`
	SamplesReceived           *float64     `ch:"samples_received"`
	ConcealedSamples          *float64     `ch:"concealed_samples"`
	AudioLevel                *float64     `ch:"audio_level"`
	QualityLimitationReason   OptionalWord `ch:"quality_limitation_reason"`
	QualityLimitedCPUMs       *float64     `ch:"quality_limited_cpu_ms"`
	QualityLimitedBandwidthMs *float64     `ch:"quality_limited_bandwidth_ms"`
	SourceFrameRate           *float64     `ch:"source_frame_rate"`
	SourceFrameHeight         *float64     `ch:"source_frame_height"`
	Reset                     bool         `ch:"reset"`
	Silence                   OptionalWord `ch:"silence"`
	AudioMOS                  *float64     `ch:"audio_mos"`
	AudioDelayPenalty         *float64     `ch:"audio_delay_penalty"`
	AudioLossPenalty          *float64     `ch:"audio_loss_penalty"`
	RecordKey
	Source
}

// FabricSampleRow is what the selected candidate pair of one fabric did in one interval.
type FabricSampleRow struct {
	ConferenceRef
	ParticipantRef
	FabricRef
	Time                  Time         `ch:"time"`
	ReceivedAt            Time         `ch:"received_at"`
	IntervalMs            *float64     `ch:"interval_ms"`
	RTTMs                 *float64     `ch:"rtt_ms"`
	AvailableOutgoingKbps *float64     `ch:"available_outgoing_kbps"`
	AvailableIncomingKbps *float64     `ch:"available_incoming_kbps"`
	BytesSent             *float64     `ch:"bytes_sent"`
	BytesReceived         *float64     `ch:"bytes_received"`
	Relayed               *bool        `ch:"relayed"`
	LocalCandidateType    OptionalWord `ch:"local_candidate_type"`
	RemoteCandidateType   OptionalWord `ch:"remote_candidate_type"`
	Protocol              OptionalWord `ch:"protocol"`
	NetworkType           OptionalWord `ch:"network_type"`
	BatteryLevel          *float64     `ch:"battery_level"`
	RecordKey
	Source
}

// EventRow is one message other than statistics, or a derived event.
type EventRow struct {
	ConferenceRef
	ParticipantRef
	FabricRef
	Time         Time   `ch:"time"`
	ReceivedAt   Time   `ch:"received_at"`
	ClientTime   *Time  `ch:"client_time"`
	EventType    Word   `ch:"event_type"`
	OriginalType Word   `ch:"original_type"`
	Reported     bool   `ch:"reported"`
	Orphan       bool   `ch:"orphan"`
	Truncated    bool   `ch:"truncated"`
	Data         string `ch:"data"` // JSON text
	RecordKey
	Source
}

// FeedbackRow is one userFeedbackEvent.
type FeedbackRow struct {
	ConferenceRef
	ParticipantRef
	Time       Time     `ch:"time"`
	ReceivedAt Time     `ch:"received_at"`
	Overall    *float64 `ch:"overall"`
	Audio      *float64 `ch:"audio"`
	Video      *float64 `ch:"video"`
	Screen     *float64 `ch:"screen"`
	Comment    string   `ch:"comment"`
	RecordKey
	Source
}

// FailureRow is one reported failure or application log.
type FailureRow struct {
	ConferenceRef
	ParticipantRef
	FabricRef
	Time       Time         `ch:"time"`
	ReceivedAt Time         `ch:"received_at"`
	EventType  Word         `ch:"event_type"`
	Function   OptionalWord `ch:"function"`
	Reason     OptionalWord `ch:"reason"`
	DelayMs    *float64     `ch:"delay_ms"`
	Name       string       `ch:"name"`
	Message    string       `ch:"message"`
	Stack      string       `ch:"stack"`
	IsLog      bool         `ch:"is_log"`
	Truncated  bool         `ch:"truncated"`
	LocalSDP   *string      `ch:"local_sdp"`
	RemoteSDP  *string      `ch:"remote_sdp"`
	RecordKey
	Source
}

// PrecallTestRow is one pre-call test result.
type PrecallTestRow struct {
	AppID             string       `ch:"app_id"`
	TestID            string       `ch:"test_id"`
	UserID            string       `ch:"user_id"`
	DeviceID          string       `ch:"device_id"`
	Time              Time         `ch:"time"`
	ReceivedAt        Time         `ch:"received_at"`
	StartedAt         *Time        `ch:"started_at"`
	EndedAt           *Time        `ch:"ended_at"`
	Status            OptionalWord `ch:"status"`
	TestVersion       OptionalWord `ch:"test_version"`
	Provider          OptionalWord `ch:"provider"`
	RunManually       *bool        `ch:"run_manually"`
	RunByUser         *bool        `ch:"run_by_user"`
	MediaConnectivity *bool        `ch:"media_connectivity"`
	RTTMedianMs       *float64     `ch:"rtt_median_ms"`
	RTTAverageMs      *float64     `ch:"rtt_average_ms"`
	FractionLost      *float64     `ch:"fraction_lost"`
	ThroughputKbps    *float64     `ch:"throughput_kbps"`
	EndpointType      OptionalWord `ch:"endpoint_type"`
	Browser           OptionalWord `ch:"browser"`
	BrowserVersion    OptionalWord `ch:"browser_version"`
	OS                OptionalWord `ch:"os"`
	OSVersion         OptionalWord `ch:"os_version"`
	AppVersion        OptionalWord `ch:"app_version"`
	Results           string       `ch:"results"` // JSON text
	RecordKey
	Source
}

// PrecallAssociationRow says that a conference named a pre-call test as its own.
type PrecallAssociationRow struct {
	AppID         string     `ch:"app_id"`
	TestID        string     `ch:"test_id"`
	ConferenceID  *string    `ch:"conference_id"` // never NULL; the view shows the column as it is stored
	ConferenceUID *uuid.UUID `ch:"conference_uid"`
	ReceivedAt    Time       `ch:"received_at"`
	RecordKey
	Source
}

func (ConferenceRow) Table() string         { return "conferences_rows" }
func (ParticipantRow) Table() string        { return "participants_rows" }
func (ParticipantNameRow) Table() string    { return "participant_names_rows" }
func (FabricRow) Table() string             { return "fabrics_rows" }
func (StreamRow) Table() string             { return "streams_rows" }
func (SampleRow) Table() string             { return "samples_rows" }
func (FabricSampleRow) Table() string       { return "fabric_samples_rows" }
func (EventRow) Table() string              { return "events_rows" }
func (FeedbackRow) Table() string           { return "feedback_rows" }
func (FailureRow) Table() string            { return "failures_rows" }
func (PrecallTestRow) Table() string        { return "precall_tests_rows" }
func (PrecallAssociationRow) Table() string { return "precall_associations_rows" }
