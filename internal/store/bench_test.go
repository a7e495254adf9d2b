package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/store/storetest"
)

// BenchmarkInsert measures rows per second into the samples table, next to what the engine itself does with rows of the
// same table in the same run.
func BenchmarkInsert(b *testing.B) {
	s := storetest.Engine(b)
	const size = 20_000
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
	// Turn by turn, so that whatever else the machine does hits both alike.
	b.Run("ratio", func(b *testing.B) {
		storetest.Exec(b, s, "CREATE TABLE IF NOT EXISTS block AS samples_rows ENGINE = Memory")
		storetest.Exec(b, s, fmt.Sprintf("INSERT INTO block SELECT * FROM samples_rows LIMIT %d - (SELECT count() FROM block)", size))
		storetest.Exec(b, s, "CREATE TABLE IF NOT EXISTS limit_rows AS samples_rows")
		var ours, engines time.Duration
		b.ResetTimer()
		for n := range b.N {
			started := time.Now()
			if err := s.Insert(b.Context(), "samples_rows", fmt.Sprint("ratio/", b.N, "/", n), rows); err != nil {
				b.Fatal(err)
			}
			ours += time.Since(started)
			started = time.Now()
			storetest.Exec(b, s, "INSERT INTO limit_rows SELECT * FROM block")
			engines += time.Since(started)
		}
		b.ReportMetric(engines.Seconds()/ours.Seconds(), "of-the-engine's-rows/s")
	})
	b.Run("engine", func(b *testing.B) {
		storetest.Exec(b, s, "CREATE TABLE IF NOT EXISTS source AS samples_rows ENGINE = Memory")
		storetest.Exec(b, s, fmt.Sprintf("INSERT INTO source SELECT * FROM samples_rows LIMIT %d - (SELECT count() FROM source)", size))
		storetest.Exec(b, s, "CREATE TABLE IF NOT EXISTS target AS samples_rows")
		b.ResetTimer()
		for range b.N {
			storetest.Exec(b, s, "INSERT INTO target SELECT * FROM source")
		}
		b.ReportMetric(float64(b.N)*size/b.Elapsed().Seconds(), "rows/s")
	})
}
