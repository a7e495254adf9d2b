package store_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/store/storetest"
)

// BenchmarkInsert measures rows per second into the samples table, next to what the engine itself does with rows of the
// same table in the same run.
func BenchmarkInsert(b *testing.B) {
	const size = 20_000
	s := storetest.Engine(b)
	rows := sampleRows(size)
	b.Run("rows", func(b *testing.B) {
		for n := range b.N {
			for i := range rows {
				rows[i].RecordUID = uid(byte(i))
				rows[i].RecordUID[0], rows[i].RecordUID[1], rows[i].RecordUID[2], rows[i].RecordUID[3] = byte(i>>8), byte(n), byte(n>>8), byte(b.N)
			}
			if err := s.Insert(b.Context(), "samples_rows", fmt.Sprint(b.N, "/", n), rows); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)*size/b.Elapsed().Seconds(), "rows/s")
	})
	b.Run("ratio", func(b *testing.B) { benchmarkRatio(b, s, rows) })
	// As many as the sink inserts at a time when it has a backlog.
	b.Run("full_range", func(b *testing.B) { benchmarkRatio(b, s, sampleRows(50_000)) })
	b.Run("engine", func(b *testing.B) {
		fillBlock(b, s, rows)
		b.ResetTimer()
		for range b.N {
			storetest.Exec(b, s, "INSERT INTO limit_rows SELECT * FROM block")
		}
		b.ReportMetric(float64(b.N)*size/b.Elapsed().Seconds(), "rows/s")
	})
}

// benchmarkRatio inserts turn by turn with the engine, so that whatever else the machine does hits both alike. It reports
// the ratio of all the time that each took, and the median of the turns, which a turn with bad luck does not change.
func benchmarkRatio(b *testing.B, s *store.Store, rows []store.SampleRow) {
	fillBlock(b, s, rows)
	var ours, engines time.Duration
	var turns []float64
	b.ResetTimer()
	for range b.N {
		started := time.Now()
		if err := s.Insert(b.Context(), "samples_rows", fmt.Sprint(time.Now().UnixNano()), rows); err != nil {
			b.Fatal(err)
		}
		our := time.Since(started)
		started = time.Now()
		storetest.Exec(b, s, "INSERT INTO limit_rows SELECT * FROM block")
		engine := time.Since(started)
		ours, engines = ours+our, engines+engine
		turns = append(turns, engine.Seconds()/our.Seconds())
	}
	slices.Sort(turns)
	b.ReportMetric(engines.Seconds()/ours.Seconds(), "of-the-engine's-rows/s")
	b.ReportMetric(turns[len(turns)/2], "median-of-turns")
}

// fillBlock brings exactly these rows into the engine's memory, as the table block: the engine writes less where a key
// comes twice in a block.
func fillBlock(b *testing.B, s *store.Store, rows []store.SampleRow) {
	storetest.Exec(b, s, "DROP TABLE IF EXISTS block")
	storetest.Exec(b, s, "CREATE TABLE block AS samples_rows ENGINE = Memory")
	storetest.Exec(b, s, "CREATE TABLE IF NOT EXISTS limit_rows AS samples_rows")
	storetest.Exec(b, s, "TRUNCATE TABLE samples_rows")
	if err := s.Insert(b.Context(), "samples_rows", fmt.Sprint("source/", time.Now().UnixNano()), rows); err != nil {
		b.Fatal(err)
	}
	storetest.Exec(b, s, "INSERT INTO block SELECT * FROM samples_rows")
	if n := storetest.Query(b, s, "SELECT count() FROM block")[0][0]; n != uint64(len(rows)) {
		b.Fatalf("the engine inserts %d rows at a time, want %d", n, len(rows))
	}
}

func sampleRows(size int) []store.SampleRow {
	rows := make([]store.SampleRow, size)
	for i := range rows {
		conf := uid(byte(i / 100))
		rows[i] = store.SampleRow{
			ConferenceRef:  store.ConferenceRef{AppID: "123456789", ConferenceID: fmt.Sprint("room-", i/100), ConferenceUID: &conf},
			ParticipantRef: store.ParticipantRef{ParticipantUID: &conf, UserID: fmt.Sprint("user-", i/20), DeviceID: "device"},
			FabricRef:      store.FabricRef{FabricUID: &conf, ConnectionID: "connection", RemoteID: "remote"},
			Time:           day + store.Time(i), ReceivedAt: day + store.Time(i), SSRC: fmt.Sprint(i % 4), Direction: "inbound", MediaType: "audio", Codec: "audio/opus",
			BitrateKbps: ptr(float64(i)), Packets: ptr(500.0), PacketsLost: ptr(1.0), Loss: ptr(0.002), JitterMs: ptr(3.5), RTTMs: ptr(40.0), AudioLevel: ptr(0.5),
			Source: store.Source{Topic: "t", Offset: int64(i)},
		}
	}
	return rows
}
