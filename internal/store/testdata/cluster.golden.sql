CREATE DATABASE IF NOT EXISTS callscope ON CLUSTER main
;
CREATE TABLE IF NOT EXISTS callscope.schema_migrations ON CLUSTER main
ENGINE = ReplicatedReplacingMergeTree
ORDER BY version
;

CREATE TABLE IF NOT EXISTS callscope.conferences_rows ON CLUSTER main
ENGINE = ReplicatedReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(started_at)
ORDER BY (app_id, toDate(started_at), conference_id, conference_uid)
SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800, index_granularity = 256
;
CREATE TABLE IF NOT EXISTS callscope.participants_rows ON CLUSTER main
ENGINE = ReplicatedReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(conference_started_at)
ORDER BY (app_id, toDate(conference_started_at), conference_id, conference_uid, participant_uid)
SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800, index_granularity = 256
;
CREATE TABLE IF NOT EXISTS callscope.fabrics_rows ON CLUSTER main
ENGINE = ReplicatedReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(conference_started_at)
ORDER BY (app_id, toDate(conference_started_at), conference_id, conference_uid, fabric_uid)
SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800, index_granularity = 512
;
CREATE TABLE IF NOT EXISTS callscope.streams_rows ON CLUSTER main
ENGINE = ReplicatedReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(conference_started_at)
ORDER BY (app_id, toDate(conference_started_at), conference_id, conference_uid, fabric_uid, direction, ssrc)
SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800, index_granularity = 1024
;
CREATE TABLE IF NOT EXISTS callscope.samples_rows ON CLUSTER main
ENGINE = ReplicatedReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, toDate(received_at), conference_id, received_at, record_uid, idx)
SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800, index_granularity = 2048
;
CREATE TABLE IF NOT EXISTS callscope.fabric_samples_rows ON CLUSTER main
ENGINE = ReplicatedReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, toDate(received_at), conference_id, received_at, record_uid, idx)
SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800, index_granularity = 2048
;
CREATE TABLE IF NOT EXISTS callscope.events_rows ON CLUSTER main
ENGINE = ReplicatedReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, toDate(received_at), conference_id, received_at, record_uid, idx)
SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800, index_granularity = 1024
;
CREATE TABLE IF NOT EXISTS callscope.feedback_rows ON CLUSTER main
ENGINE = ReplicatedReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, toDate(received_at), conference_id, received_at, record_uid, idx)
SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800, index_granularity = 16
;
CREATE TABLE IF NOT EXISTS callscope.failures_rows ON CLUSTER main
ENGINE = ReplicatedReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, toDate(received_at), conference_id, received_at, record_uid, idx)
SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800, index_granularity = 16
;
CREATE TABLE IF NOT EXISTS callscope.precall_tests_rows ON CLUSTER main
ENGINE = ReplicatedReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
PRIMARY KEY (app_id, received_at)
ORDER BY (app_id, received_at, record_uid, idx, time, test_id, user_id)
SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800, index_granularity = 32
;
CREATE TABLE IF NOT EXISTS callscope.precall_associations_rows ON CLUSTER main
ENGINE = ReplicatedReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, toDate(received_at), test_id, received_at, record_uid, idx)
SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800, index_granularity = 32
;
CREATE TABLE IF NOT EXISTS callscope.participant_names_rows ON CLUSTER main
ENGINE = ReplicatedReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(conference_started_at)
ORDER BY (app_id, toDate(conference_started_at), conference_id, conference_uid, participant_uid)
SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800, index_granularity = 256
;

CREATE OR REPLACE VIEW callscope.conferences ON CLUSTER main
;
CREATE OR REPLACE VIEW callscope.participants ON CLUSTER main
;
CREATE OR REPLACE VIEW callscope.fabrics ON CLUSTER main
;
CREATE OR REPLACE VIEW callscope.streams ON CLUSTER main
;
CREATE OR REPLACE VIEW callscope.samples ON CLUSTER main
;
CREATE OR REPLACE VIEW callscope.fabric_samples ON CLUSTER main
;
CREATE OR REPLACE VIEW callscope.events ON CLUSTER main
;
CREATE OR REPLACE VIEW callscope.feedback ON CLUSTER main
;
CREATE OR REPLACE VIEW callscope.failures ON CLUSTER main
;
CREATE OR REPLACE VIEW callscope.precall_tests ON CLUSTER main
;
CREATE OR REPLACE VIEW callscope.participants_named ON CLUSTER main
;
CREATE OR REPLACE VIEW callscope.apps_usage ON CLUSTER main
;
ALTER TABLE callscope.fabric_samples_rows ON CLUSTER main MODIFY TTL toDateTime(received_at) + toIntervalDay(7) WHERE app_id = '7', toDateTime(received_at) + toIntervalDay(30) WHERE app_id NOT IN ('7', '8')
;
ALTER TABLE callscope.samples_rows ON CLUSTER main MODIFY TTL toDateTime(received_at) + toIntervalDay(7) WHERE app_id = '7', toDateTime(received_at) + toIntervalDay(30) WHERE app_id NOT IN ('7', '8')
;
CREATE ROLE IF NOT EXISTS callscope_analyst ON CLUSTER main
;
CREATE ROLE IF NOT EXISTS callscope_support ON CLUSTER main
;
GRANT ON CLUSTER main SELECT ON callscope.apps_usage, SELECT ON callscope.conferences, SELECT ON callscope.conferences_rows, SELECT ON callscope.events, SELECT ON callscope.events_rows, SELECT ON callscope.fabric_samples, SELECT ON callscope.fabric_samples_rows, SELECT ON callscope.fabrics, SELECT ON callscope.fabrics_rows, SELECT ON callscope.failures, SELECT ON callscope.failures_rows, SELECT ON callscope.feedback, SELECT ON callscope.feedback_rows, SELECT ON callscope.participants, SELECT ON callscope.participants_rows, SELECT ON callscope.precall_associations_rows, SELECT ON callscope.precall_tests, SELECT ON callscope.precall_tests_rows, SELECT ON callscope.samples, SELECT ON callscope.samples_rows, SELECT ON callscope.streams, SELECT ON callscope.streams_rows TO callscope_analyst
;
GRANT ON CLUSTER main SELECT ON callscope.* TO callscope_support
;
