CREATE DATABASE IF NOT EXISTS callscope 
;
CREATE TABLE IF NOT EXISTS callscope.schema_migrations 
ENGINE = ReplacingMergeTree
ORDER BY version
;

CREATE TABLE IF NOT EXISTS callscope.conferences_rows 
ENGINE = ReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(started_at)
ORDER BY (app_id, toDate(started_at), conference_id, conference_uid)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 256
;
CREATE TABLE IF NOT EXISTS callscope.participants_rows 
ENGINE = ReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(conference_started_at)
ORDER BY (app_id, toDate(conference_started_at), conference_id, conference_uid, participant_uid)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 256
;
CREATE TABLE IF NOT EXISTS callscope.fabrics_rows 
ENGINE = ReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(conference_started_at)
ORDER BY (app_id, toDate(conference_started_at), conference_id, conference_uid, fabric_uid)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 512
;
CREATE TABLE IF NOT EXISTS callscope.streams_rows 
ENGINE = ReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(conference_started_at)
ORDER BY (app_id, toDate(conference_started_at), conference_id, conference_uid, fabric_uid, direction, ssrc)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 1024
;
CREATE TABLE IF NOT EXISTS callscope.samples_rows 
ENGINE = ReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, toDate(received_at), conference_id, received_at, record_uid, idx)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 2048
;
CREATE TABLE IF NOT EXISTS callscope.fabric_samples_rows 
ENGINE = ReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, toDate(received_at), conference_id, received_at, record_uid, idx)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 2048
;
CREATE TABLE IF NOT EXISTS callscope.events_rows 
ENGINE = ReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, toDate(received_at), conference_id, received_at, record_uid, idx)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 1024
;
CREATE TABLE IF NOT EXISTS callscope.feedback_rows 
ENGINE = ReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, toDate(received_at), conference_id, received_at, record_uid, idx)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 16
;
CREATE TABLE IF NOT EXISTS callscope.failures_rows 
ENGINE = ReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, toDate(received_at), conference_id, received_at, record_uid, idx)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 16
;
CREATE TABLE IF NOT EXISTS callscope.precall_tests_rows 
ENGINE = ReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
PRIMARY KEY (app_id, received_at)
ORDER BY (app_id, received_at, record_uid, idx, time, test_id, user_id)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 32
;
CREATE TABLE IF NOT EXISTS callscope.precall_associations_rows 
ENGINE = ReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, toDate(received_at), test_id, received_at, record_uid, idx)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 32
;
CREATE TABLE IF NOT EXISTS callscope.participant_names_rows 
ENGINE = ReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(conference_started_at)
ORDER BY (app_id, toDate(conference_started_at), conference_id, conference_uid, participant_uid)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 256
;

CREATE OR REPLACE VIEW callscope.conferences 
;
CREATE OR REPLACE VIEW callscope.participants 
;
CREATE OR REPLACE VIEW callscope.fabrics 
;
CREATE OR REPLACE VIEW callscope.streams 
;
CREATE OR REPLACE VIEW callscope.samples 
;
CREATE OR REPLACE VIEW callscope.fabric_samples 
;
CREATE OR REPLACE VIEW callscope.events 
;
CREATE OR REPLACE VIEW callscope.feedback 
;
CREATE OR REPLACE VIEW callscope.failures 
;
CREATE OR REPLACE VIEW callscope.precall_tests 
;
CREATE OR REPLACE VIEW callscope.participants_named 
;
CREATE OR REPLACE VIEW callscope.apps_usage 
;
CREATE ROLE IF NOT EXISTS callscope_analyst 
;
CREATE ROLE IF NOT EXISTS callscope_support 
;
GRANT  SELECT ON callscope.apps_usage, SELECT ON callscope.conferences, SELECT ON callscope.conferences_rows, SELECT ON callscope.events, SELECT ON callscope.events_rows, SELECT ON callscope.fabric_samples, SELECT ON callscope.fabric_samples_rows, SELECT ON callscope.fabrics, SELECT ON callscope.fabrics_rows, SELECT ON callscope.failures, SELECT ON callscope.failures_rows, SELECT ON callscope.feedback, SELECT ON callscope.feedback_rows, SELECT ON callscope.participants, SELECT ON callscope.participants_rows, SELECT ON callscope.precall_associations_rows, SELECT ON callscope.precall_tests, SELECT ON callscope.precall_tests_rows, SELECT ON callscope.samples, SELECT ON callscope.samples_rows, SELECT ON callscope.streams, SELECT ON callscope.streams_rows TO callscope_analyst
;
GRANT  SELECT ON callscope.* TO callscope_support
;
