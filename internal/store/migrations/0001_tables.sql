-- Tables behind the public views. Rows are keyed by what never changes for them, so that inserting them again (after a
-- crash, by a late zombie, by a replay) collapses:
--   summaries: entity and newest version = (replay generation << 32) + revision
--   rows:      uid of the record and index in it, version = replay generation
-- is_deleted = 1 in a newer version takes a row away. The partition and every part of the sorting key are constant for a
-- row, which is what lets the views merge each partition alone (do_not_merge_across_partitions_select_final).
-- The day comes early in the sorting key: new parts then overlap old ones little, and a time range reads few granules.
-- A single conference is found through the bloom filters; granules are small where a table has few or long rows, so that
-- such a look-up reads little of it, and filters are exact enough that they seldom name a wrong one. No part of a sorting key is Nullable: with one, FINAL would
-- read whole partitions whatever a skip index has found (measured with EXPLAIN indexes = 1 on 26.7).
-- src_* say which record a row came from and where the sink's range began; only the sink reads them.
-- A line that holds nothing but a semicolon ends a statement.

CREATE TABLE IF NOT EXISTS {database}.conferences_rows {on_cluster}
(
    app_id String,
    conference_id String,
    conference_uid UUID,
    state LowCardinality(String),
    revision UInt32,
    logic_version UInt32,
    revision_reason LowCardinality(Nullable(String)),
    started_at DateTime64(3, 'UTC'),
    ended_at Nullable(DateTime64(3, 'UTC')),
    duration_ms Nullable(Int64),
    outcome LowCardinality(Nullable(String)),
    outcome_evidence Nullable(String) CODEC(ZSTD(1)),
    end_reason LowCardinality(Nullable(String)),
    participants UInt32,
    peak_participants UInt32,
    rejoins UInt32,
    max_joins UInt32,
    reopened UInt32,
    participant_minutes Nullable(Float64),
    media_participant_minutes Nullable(Float64),
    fabrics UInt32,
    fabrics_failed UInt32,
    fabrics_dropped UInt32,
    setup_delay_ms_min Nullable(Float64),
    setup_delay_ms_mean Nullable(Float64),
    setup_delay_ms_median Nullable(Float64),
    setup_delay_ms_max Nullable(Float64),
    setup_delays_unknown UInt32,
    audio_mos Nullable(Float64),
    audio_mos_min Nullable(Float64),
    audio_mos_p10 Nullable(Float64),
    audio_mos_median Nullable(Float64),
    audio_mos_p90 Nullable(Float64),
    audio_mos_max Nullable(Float64),
    audio_mos_share_below Nullable(Float64),
    video_score Nullable(Float64),
    video_score_min Nullable(Float64),
    video_score_p10 Nullable(Float64),
    video_score_median Nullable(Float64),
    video_score_p90 Nullable(Float64),
    video_score_max Nullable(Float64),
    video_score_share_below Nullable(Float64),
    audio_mos_model LowCardinality(Nullable(String)),
    video_score_model LowCardinality(Nullable(String)),
    worst_participant_uid Nullable(UUID),
    browsers Array(LowCardinality(String)),
    networks Array(LowCardinality(String)),
    feedback_overall Nullable(Float64),
    last_message_at DateTime64(3, 'UTC'),
    first_raw_offset Int64,
    last_raw_offset Int64,
    record_uid UUID,
    src_topic LowCardinality(String),
    src_partition Int32,
    src_offset Int64,
    src_range_start Int64,
    version UInt64,
    is_deleted UInt8,
    INDEX conference_id_index conference_id TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX conference_uid_index conference_uid TYPE bloom_filter(0.0001) GRANULARITY 1
)
ENGINE = {engine}(version, is_deleted)
PARTITION BY toYYYYMM(started_at)
ORDER BY (app_id, toDate(started_at), conference_id, conference_uid)
SETTINGS {deduplication}, index_granularity = 256
COMMENT 'Behind the view conferences.'
;

CREATE TABLE IF NOT EXISTS {database}.participants_rows {on_cluster}
(
    app_id String,
    conference_id String,
    conference_uid UUID,
    participant_uid UUID,
    user_id String,
    device_id String,
    state LowCardinality(String),
    revision UInt32,
    logic_version UInt32,
    revision_reason LowCardinality(Nullable(String)),
    joined_at DateTime64(3, 'UTC'),
    left_at Nullable(DateTime64(3, 'UTC')),
    present Bool,
    presence_ms Int64,
    joins UInt32,
    presence_joined_at Array(DateTime64(3, 'UTC')),
    presence_left_at Array(Nullable(DateTime64(3, 'UTC'))),
    left_reason LowCardinality(Nullable(String)),
    alias String,
    site_id LowCardinality(Nullable(String)),
    browser LowCardinality(Nullable(String)),
    browser_version LowCardinality(Nullable(String)),
    os LowCardinality(Nullable(String)),
    os_version LowCardinality(Nullable(String)),
    client_version LowCardinality(Nullable(String)),
    app_version LowCardinality(Nullable(String)),
    country LowCardinality(Nullable(String)),
    network LowCardinality(Nullable(String)),
    fabrics UInt32,
    fabrics_failed UInt32,
    audio_mos Nullable(Float64),
    audio_mos_min Nullable(Float64),
    audio_mos_p10 Nullable(Float64),
    audio_mos_median Nullable(Float64),
    audio_mos_p90 Nullable(Float64),
    audio_mos_max Nullable(Float64),
    audio_mos_share_below Nullable(Float64),
    video_score Nullable(Float64),
    video_score_min Nullable(Float64),
    video_score_p10 Nullable(Float64),
    video_score_median Nullable(Float64),
    video_score_p90 Nullable(Float64),
    video_score_max Nullable(Float64),
    video_score_share_below Nullable(Float64),
    loss_in Nullable(Float64),
    loss_in_min Nullable(Float64),
    loss_in_p10 Nullable(Float64),
    loss_in_median Nullable(Float64),
    loss_in_p90 Nullable(Float64),
    loss_in_max Nullable(Float64),
    loss_in_share_below Nullable(Float64),
    loss_out Nullable(Float64),
    loss_out_min Nullable(Float64),
    loss_out_p10 Nullable(Float64),
    loss_out_median Nullable(Float64),
    loss_out_p90 Nullable(Float64),
    loss_out_max Nullable(Float64),
    loss_out_share_below Nullable(Float64),
    jitter_in_ms Nullable(Float64),
    jitter_in_ms_min Nullable(Float64),
    jitter_in_ms_p10 Nullable(Float64),
    jitter_in_ms_median Nullable(Float64),
    jitter_in_ms_p90 Nullable(Float64),
    jitter_in_ms_max Nullable(Float64),
    jitter_in_ms_share_below Nullable(Float64),
    jitter_out_ms Nullable(Float64),
    jitter_out_ms_min Nullable(Float64),
    jitter_out_ms_p10 Nullable(Float64),
    jitter_out_ms_median Nullable(Float64),
    jitter_out_ms_p90 Nullable(Float64),
    jitter_out_ms_max Nullable(Float64),
    jitter_out_ms_share_below Nullable(Float64),
    rtt_ms Nullable(Float64),
    rtt_ms_min Nullable(Float64),
    rtt_ms_p10 Nullable(Float64),
    rtt_ms_median Nullable(Float64),
    rtt_ms_p90 Nullable(Float64),
    rtt_ms_max Nullable(Float64),
    rtt_ms_share_below Nullable(Float64),
    bitrate_in_kbps Nullable(Float64),
    bitrate_in_kbps_min Nullable(Float64),
    bitrate_in_kbps_p10 Nullable(Float64),
    bitrate_in_kbps_median Nullable(Float64),
    bitrate_in_kbps_p90 Nullable(Float64),
    bitrate_in_kbps_max Nullable(Float64),
    bitrate_in_kbps_share_below Nullable(Float64),
    bitrate_out_kbps Nullable(Float64),
    bitrate_out_kbps_min Nullable(Float64),
    bitrate_out_kbps_p10 Nullable(Float64),
    bitrate_out_kbps_median Nullable(Float64),
    bitrate_out_kbps_p90 Nullable(Float64),
    bitrate_out_kbps_max Nullable(Float64),
    bitrate_out_kbps_share_below Nullable(Float64),
    talk_ms Nullable(Int64),
    muted_ms Nullable(Int64),
    paused_ms Nullable(Int64),
    shared_ms Nullable(Int64),
    dominant_ms Nullable(Int64),
    audio_mos_model LowCardinality(Nullable(String)),
    video_score_model LowCardinality(Nullable(String)),
    feedback_overall Nullable(Float64),
    findings Array(LowCardinality(String)),
    findings_evidence Nullable(String) CODEC(ZSTD(1)),
    first_raw_offset Int64,
    last_raw_offset Int64,
    record_uid UUID,
    conference_started_at DateTime64(3, 'UTC'),
    src_topic LowCardinality(String),
    src_partition Int32,
    src_offset Int64,
    src_range_start Int64,
    version UInt64,
    is_deleted UInt8,
    INDEX conference_id_index conference_id TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX conference_uid_index conference_uid TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX joined_at_index joined_at TYPE minmax GRANULARITY 1
)
ENGINE = {engine}(version, is_deleted)
PARTITION BY toYYYYMM(conference_started_at)
ORDER BY (app_id, toDate(conference_started_at), conference_id, conference_uid, participant_uid)
SETTINGS {deduplication}, index_granularity = 256
COMMENT 'Behind the view participants.'
;

CREATE TABLE IF NOT EXISTS {database}.fabrics_rows {on_cluster}
(
    app_id String,
    conference_id String,
    conference_uid UUID,
    participant_uid UUID,
    user_id String,
    device_id String,
    fabric_uid UUID,
    connection_id String,
    remote_id String,
    state LowCardinality(String),
    revision UInt32,
    logic_version UInt32,
    revision_reason LowCardinality(Nullable(String)),
    started_at DateTime64(3, 'UTC'),
    ended_at Nullable(DateTime64(3, 'UTC')),
    end_reason LowCardinality(Nullable(String)),
    usage LowCardinality(Nullable(String)),
    remote_type LowCardinality(Nullable(String)),
    direction LowCardinality(Nullable(String)),
    outcome LowCardinality(Nullable(String)),
    setup_delay_ms Nullable(Float64),
    ice_gathering_delay_ms Nullable(Float64),
    ice_connectivity_delay_ms Nullable(Float64),
    failure_delay_ms Nullable(Float64),
    delay_source LowCardinality(Nullable(String)),
    failure_function LowCardinality(Nullable(String)),
    failure_reason LowCardinality(Nullable(String)),
    disruptions UInt32,
    disruption_ms Float64,
    relayed Nullable(Bool),
    rtt_ms Nullable(Float64),
    rtt_ms_min Nullable(Float64),
    rtt_ms_p10 Nullable(Float64),
    rtt_ms_median Nullable(Float64),
    rtt_ms_p90 Nullable(Float64),
    rtt_ms_max Nullable(Float64),
    rtt_ms_share_below Nullable(Float64),
    first_raw_offset Int64,
    last_raw_offset Int64,
    record_uid UUID,
    conference_started_at DateTime64(3, 'UTC'),
    src_topic LowCardinality(String),
    src_partition Int32,
    src_offset Int64,
    src_range_start Int64,
    version UInt64,
    is_deleted UInt8,
    INDEX conference_id_index conference_id TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX conference_uid_index conference_uid TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX started_at_index started_at TYPE minmax GRANULARITY 1
)
ENGINE = {engine}(version, is_deleted)
PARTITION BY toYYYYMM(conference_started_at)
ORDER BY (app_id, toDate(conference_started_at), conference_id, conference_uid, fabric_uid)
SETTINGS {deduplication}, index_granularity = 512
COMMENT 'Behind the view fabrics.'
;

CREATE TABLE IF NOT EXISTS {database}.streams_rows {on_cluster}
(
    app_id String,
    conference_id String,
    conference_uid UUID,
    participant_uid UUID,
    user_id String,
    device_id String,
    fabric_uid UUID,
    connection_id String,
    remote_id String,
    state LowCardinality(String),
    revision UInt32,
    logic_version UInt32,
    revision_reason LowCardinality(Nullable(String)),
    ssrc String,
    direction LowCardinality(String),
    media_type LowCardinality(Nullable(String)),
    owner_user_id Nullable(String),
    owner_source LowCardinality(Nullable(String)),
    usage_label LowCardinality(Nullable(String)),
    codec LowCardinality(Nullable(String)),
    started_at DateTime64(3, 'UTC'),
    ended_at Nullable(DateTime64(3, 'UTC')),
    samples UInt32,
    bitrate_kbps Nullable(Float64),
    bitrate_kbps_min Nullable(Float64),
    bitrate_kbps_p10 Nullable(Float64),
    bitrate_kbps_median Nullable(Float64),
    bitrate_kbps_p90 Nullable(Float64),
    bitrate_kbps_max Nullable(Float64),
    bitrate_kbps_share_below Nullable(Float64),
    loss Nullable(Float64),
    loss_min Nullable(Float64),
    loss_p10 Nullable(Float64),
    loss_median Nullable(Float64),
    loss_p90 Nullable(Float64),
    loss_max Nullable(Float64),
    loss_share_below Nullable(Float64),
    jitter_ms Nullable(Float64),
    jitter_ms_min Nullable(Float64),
    jitter_ms_p10 Nullable(Float64),
    jitter_ms_median Nullable(Float64),
    jitter_ms_p90 Nullable(Float64),
    jitter_ms_max Nullable(Float64),
    jitter_ms_share_below Nullable(Float64),
    rtt_ms Nullable(Float64),
    rtt_ms_min Nullable(Float64),
    rtt_ms_p10 Nullable(Float64),
    rtt_ms_median Nullable(Float64),
    rtt_ms_p90 Nullable(Float64),
    rtt_ms_max Nullable(Float64),
    rtt_ms_share_below Nullable(Float64),
    audio_mos Nullable(Float64),
    audio_mos_min Nullable(Float64),
    audio_mos_p10 Nullable(Float64),
    audio_mos_median Nullable(Float64),
    audio_mos_p90 Nullable(Float64),
    audio_mos_max Nullable(Float64),
    audio_mos_share_below Nullable(Float64),
    video_score Nullable(Float64),
    video_score_min Nullable(Float64),
    video_score_p10 Nullable(Float64),
    video_score_median Nullable(Float64),
    video_score_p90 Nullable(Float64),
    video_score_max Nullable(Float64),
    video_score_share_below Nullable(Float64),
    audio_mos_model LowCardinality(Nullable(String)),
    video_score_model LowCardinality(Nullable(String)),
    score_reasons Nullable(String) CODEC(ZSTD(1)),
    side LowCardinality(Nullable(String)),
    side_evidence Nullable(String) CODEC(ZSTD(1)),
    first_raw_offset Int64,
    last_raw_offset Int64,
    record_uid UUID,
    conference_started_at DateTime64(3, 'UTC'),
    src_topic LowCardinality(String),
    src_partition Int32,
    src_offset Int64,
    src_range_start Int64,
    version UInt64,
    is_deleted UInt8,
    INDEX conference_id_index conference_id TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX conference_uid_index conference_uid TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX started_at_index started_at TYPE minmax GRANULARITY 1
)
ENGINE = {engine}(version, is_deleted)
PARTITION BY toYYYYMM(conference_started_at)
ORDER BY (app_id, toDate(conference_started_at), conference_id, conference_uid, fabric_uid, direction, ssrc)
SETTINGS {deduplication}, index_granularity = 1024
COMMENT 'Behind the view streams.'
;

CREATE TABLE IF NOT EXISTS {database}.samples_rows {on_cluster}
(
    app_id String,
    conference_id String,
    conference_uid Nullable(UUID),
    participant_uid Nullable(UUID),
    user_id String,
    device_id String,
    fabric_uid Nullable(UUID),
    connection_id String,
    remote_id String,
    time DateTime64(3, 'UTC'),
    received_at DateTime64(3, 'UTC'),
    interval_ms Nullable(Float64),
    ssrc String,
    direction LowCardinality(Nullable(String)),
    media_type LowCardinality(Nullable(String)),
    owner_user_id Nullable(String),
    owner_source LowCardinality(Nullable(String)),
    usage_label LowCardinality(Nullable(String)),
    codec LowCardinality(Nullable(String)),
    bitrate_kbps Nullable(Float64),
    bytes Nullable(Float64),
    packets Nullable(Float64),
    packet_rate Nullable(Float64),
    packets_lost Nullable(Float64),
    loss Nullable(Float64),
    jitter_ms Nullable(Float64),
    rtt_ms Nullable(Float64),
    jitter_buffer_delay_ms Nullable(Float64),
    frame_rate Nullable(Float64),
    frame_width Nullable(Float64),
    frame_height Nullable(Float64),
    freeze_ms Nullable(Float64),
    freeze_count Nullable(Float64),
    concealment Nullable(Float64),
    concealment_events Nullable(Float64),
    samples_received Nullable(Float64),
    concealed_samples Nullable(Float64),
    audio_level Nullable(Float64),
    quality_limitation_reason LowCardinality(Nullable(String)),
    quality_limited_cpu_ms Nullable(Float64),
    quality_limited_bandwidth_ms Nullable(Float64),
    source_frame_rate Nullable(Float64),
    source_frame_height Nullable(Float64),
    reset Bool,
    silence LowCardinality(Nullable(String)),
    audio_mos Nullable(Float64),
    audio_delay_penalty Nullable(Float64),
    audio_loss_penalty Nullable(Float64),
    logic_version UInt32,
    record_uid UUID,
    idx UInt16,
    src_topic LowCardinality(String),
    src_partition Int32,
    src_offset Int64,
    src_range_start Int64,
    version UInt64,
    is_deleted UInt8,
    INDEX conference_id_index conference_id TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX conference_uid_index conference_uid TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX time_index time TYPE minmax GRANULARITY 1
)
ENGINE = {engine}(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, toDate(received_at), conference_id, received_at, record_uid, idx)
SETTINGS {deduplication}, index_granularity = 2048
COMMENT 'Behind the view samples.'
;

CREATE TABLE IF NOT EXISTS {database}.fabric_samples_rows {on_cluster}
(
    app_id String,
    conference_id String,
    conference_uid Nullable(UUID),
    participant_uid Nullable(UUID),
    user_id String,
    device_id String,
    fabric_uid Nullable(UUID),
    connection_id String,
    remote_id String,
    time DateTime64(3, 'UTC'),
    received_at DateTime64(3, 'UTC'),
    interval_ms Nullable(Float64),
    rtt_ms Nullable(Float64),
    available_outgoing_kbps Nullable(Float64),
    available_incoming_kbps Nullable(Float64),
    bytes_sent Nullable(Float64),
    bytes_received Nullable(Float64),
    relayed Nullable(Bool),
    local_candidate_type LowCardinality(Nullable(String)),
    remote_candidate_type LowCardinality(Nullable(String)),
    protocol LowCardinality(Nullable(String)),
    network_type LowCardinality(Nullable(String)),
    battery_level Nullable(Float64),
    logic_version UInt32,
    record_uid UUID,
    idx UInt16,
    src_topic LowCardinality(String),
    src_partition Int32,
    src_offset Int64,
    src_range_start Int64,
    version UInt64,
    is_deleted UInt8,
    INDEX conference_id_index conference_id TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX conference_uid_index conference_uid TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX time_index time TYPE minmax GRANULARITY 1
)
ENGINE = {engine}(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, toDate(received_at), conference_id, received_at, record_uid, idx)
SETTINGS {deduplication}, index_granularity = 2048
COMMENT 'Behind the view fabric_samples.'
;

CREATE TABLE IF NOT EXISTS {database}.events_rows {on_cluster}
(
    app_id String,
    conference_id String,
    conference_uid Nullable(UUID),
    participant_uid Nullable(UUID),
    user_id String,
    device_id String,
    fabric_uid Nullable(UUID),
    connection_id String,
    remote_id String,
    time DateTime64(3, 'UTC'),
    received_at DateTime64(3, 'UTC'),
    client_time Nullable(DateTime64(3, 'UTC')),
    event_type LowCardinality(String),
    original_type LowCardinality(String),
    reported Bool,
    orphan Bool,
    truncated Bool,
    data String CODEC(ZSTD(1)),
    logic_version UInt32,
    record_uid UUID,
    idx UInt16,
    src_topic LowCardinality(String),
    src_partition Int32,
    src_offset Int64,
    src_range_start Int64,
    version UInt64,
    is_deleted UInt8,
    INDEX conference_id_index conference_id TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX conference_uid_index conference_uid TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX time_index time TYPE minmax GRANULARITY 1
)
ENGINE = {engine}(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, toDate(received_at), conference_id, received_at, record_uid, idx)
SETTINGS {deduplication}, index_granularity = 1024
COMMENT 'Behind the view events.'
;

CREATE TABLE IF NOT EXISTS {database}.feedback_rows {on_cluster}
(
    app_id String,
    conference_id String,
    conference_uid Nullable(UUID),
    participant_uid Nullable(UUID),
    user_id String,
    device_id String,
    time DateTime64(3, 'UTC'),
    received_at DateTime64(3, 'UTC'),
    overall Nullable(Float64),
    audio Nullable(Float64),
    video Nullable(Float64),
    screen Nullable(Float64),
    comment String,
    logic_version UInt32,
    record_uid UUID,
    idx UInt16,
    src_topic LowCardinality(String),
    src_partition Int32,
    src_offset Int64,
    src_range_start Int64,
    version UInt64,
    is_deleted UInt8,
    INDEX conference_id_index conference_id TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX conference_uid_index conference_uid TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX time_index time TYPE minmax GRANULARITY 1
)
ENGINE = {engine}(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, toDate(received_at), conference_id, received_at, record_uid, idx)
SETTINGS {deduplication}, index_granularity = 16
COMMENT 'Behind the view feedback.'
;

CREATE TABLE IF NOT EXISTS {database}.failures_rows {on_cluster}
(
    app_id String,
    conference_id String,
    conference_uid Nullable(UUID),
    participant_uid Nullable(UUID),
    user_id String,
    device_id String,
    fabric_uid Nullable(UUID),
    connection_id String,
    remote_id String,
    time DateTime64(3, 'UTC'),
    received_at DateTime64(3, 'UTC'),
    event_type LowCardinality(String),
    function LowCardinality(Nullable(String)),
    reason LowCardinality(Nullable(String)),
    delay_ms Nullable(Float64),
    name String,
    message String,
    stack String CODEC(ZSTD(1)),
    is_log Bool,
    truncated Bool,
    local_sdp Nullable(String) CODEC(ZSTD(1)),
    remote_sdp Nullable(String) CODEC(ZSTD(1)),
    logic_version UInt32,
    record_uid UUID,
    idx UInt16,
    src_topic LowCardinality(String),
    src_partition Int32,
    src_offset Int64,
    src_range_start Int64,
    version UInt64,
    is_deleted UInt8,
    INDEX conference_id_index conference_id TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX conference_uid_index conference_uid TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX time_index time TYPE minmax GRANULARITY 1
)
ENGINE = {engine}(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, toDate(received_at), conference_id, received_at, record_uid, idx)
SETTINGS {deduplication}, index_granularity = 16
COMMENT 'Behind the view failures.'
;

CREATE TABLE IF NOT EXISTS {database}.precall_tests_rows {on_cluster}
(
    app_id String,
    test_id String,
    user_id String,
    device_id String,
    time DateTime64(3, 'UTC'),
    received_at DateTime64(3, 'UTC'),
    started_at Nullable(DateTime64(3, 'UTC')),
    ended_at Nullable(DateTime64(3, 'UTC')),
    status LowCardinality(Nullable(String)),
    test_version LowCardinality(Nullable(String)),
    provider LowCardinality(Nullable(String)),
    run_manually Nullable(Bool),
    run_by_user Nullable(Bool),
    media_connectivity Nullable(Bool),
    rtt_median_ms Nullable(Float64),
    rtt_average_ms Nullable(Float64),
    fraction_lost Nullable(Float64),
    throughput_kbps Nullable(Float64),
    endpoint_type LowCardinality(Nullable(String)),
    browser LowCardinality(Nullable(String)),
    browser_version LowCardinality(Nullable(String)),
    os LowCardinality(Nullable(String)),
    os_version LowCardinality(Nullable(String)),
    app_version LowCardinality(Nullable(String)),
    results String CODEC(ZSTD(1)),
    logic_version UInt32,
    record_uid UUID,
    idx UInt16,
    src_topic LowCardinality(String),
    src_partition Int32,
    src_offset Int64,
    src_range_start Int64,
    version UInt64,
    is_deleted UInt8,
    INDEX test_id_index test_id TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX user_id_index user_id TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX time_index time TYPE minmax GRANULARITY 1
)
ENGINE = {engine}(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
PRIMARY KEY (app_id, received_at)
ORDER BY (app_id, received_at, record_uid, idx, time, test_id, user_id)
SETTINGS {deduplication}, index_granularity = 32
COMMENT 'Behind the view precall_tests.'
;

CREATE TABLE IF NOT EXISTS {database}.precall_associations_rows {on_cluster}
(
    app_id String,
    test_id String,
    conference_id Nullable(String),
    conference_uid Nullable(UUID),
    received_at DateTime64(3, 'UTC'),
    logic_version UInt32,
    record_uid UUID,
    idx UInt16,
    src_topic LowCardinality(String),
    src_partition Int32,
    src_offset Int64,
    src_range_start Int64,
    version UInt64,
    is_deleted UInt8,
    INDEX test_id_index test_id TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX conference_id_index conference_id TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX conference_uid_index conference_uid TYPE bloom_filter(0.0001) GRANULARITY 1
)
ENGINE = {engine}(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, toDate(received_at), test_id, received_at, record_uid, idx)
SETTINGS {deduplication}, index_granularity = 32
COMMENT 'Which conference each pre-call test was associated with, behind the view precall_tests.'
;

CREATE TABLE IF NOT EXISTS {database}.participant_names_rows {on_cluster}
(
    app_id String,
    conference_id String,
    conference_uid UUID,
    participant_uid UUID,
    user_name String,
    revision UInt32,
    record_uid UUID,
    conference_started_at DateTime64(3, 'UTC'),
    src_topic LowCardinality(String),
    src_partition Int32,
    src_offset Int64,
    src_range_start Int64,
    version UInt64,
    is_deleted UInt8,
    INDEX conference_id_index conference_id TYPE bloom_filter(0.0001) GRANULARITY 1,
    INDEX conference_uid_index conference_uid TYPE bloom_filter(0.0001) GRANULARITY 1
)
ENGINE = {engine}(version, is_deleted)
PARTITION BY toYYYYMM(conference_started_at)
ORDER BY (app_id, toDate(conference_started_at), conference_id, conference_uid, participant_uid)
SETTINGS {deduplication}, index_granularity = 256
COMMENT 'Real names, behind the view participants_named alone.'
;
