package intake

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	v1 "github.com/callscope/callscope/proto/callscope/v1"
	"github.com/callscope/callscope/services/gateway/auth"
	"github.com/callscope/callscope/services/gateway/vocabulary"
)

func TestMaskIP(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.77:1234":                    "192.0.2.0",
		"192.0.2.77":                         "192.0.2.0",
		"[2001:db8:1:2:3:4:5:6]:443":         "2001:db8:1::",
		"[::ffff:192.0.2.77]:443":            "192.0.2.0",
		"[fe80::1%eth0]:443":                 "fe80::",
		"[::1]:443":                          "::",
		"":                                   "",
		"@":                                  "",
		"not an address":                     "",
		"collector.callstats.io:443":         "",
		"192.0.2.77, 198.51.100.7:forwarded": "",
	} {
		if got := newIntake(t, nil).locate(in).masked; got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

type producerFunc func(ctx context.Context) error

func (f producerFunc) Produce(ctx context.Context, _, _ []byte) error { return f(ctx) }

func newIntake(t *testing.T, p Producer) *Intake {
	t.Helper()
	in, err := New(p, 1000, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func TestReserve(t *testing.T) {
	in := newIntake(t, nil)
	if !in.Reserve(600) || in.Reserve(401) || !in.Reserve(400) || in.Reserve(1) {
		t.Error("the budget of 1000 bytes is not kept")
	}
	in.Free(600)
	if !in.Reserve(600) {
		t.Error("what was given back cannot be reserved again")
	}
}

// TestStoreJoin: within its patience a join is like any message, afterwards it is answered and kept.
func TestStoreJoin(t *testing.T) {
	for _, tc := range []struct {
		name        string
		takes       time.Duration
		fails       error
		stored      bool
		err         error
		unconfirmed float64
		result      string
	}{
		{"in time", 2 * time.Second, nil, true, nil, 0, ""},
		{"refused in time", 2 * time.Second, errors.ErrUnsupported, false, errors.ErrUnsupported, 0, ""},
		{"late", 60 * time.Second, nil, false, nil, 1, "stored"},
		{"refused late", 60 * time.Second, errors.ErrUnsupported, false, nil, 1, "lost"},
	} {
		synctest.Test(t, func(t *testing.T) {
			in := newIntake(t, producerFunc(func(context.Context) error {
				<-time.After(tc.takes)
				return tc.fails
			}))
			freed := false
			stored, err := in.StoreJoin(DialectREST, []Record{{}}, 3*time.Second, func() { freed = true })
			if stored != tc.stored || !errors.Is(err, tc.err) {
				t.Errorf("%s: %v, %v", tc.name, stored, err)
			}
			if n := testutil.ToFloat64(in.messages.WithLabelValues(DialectREST, string(JoinUnconfirmed), "")); n != tc.unconfirmed {
				t.Errorf("%s: counted %v unconfirmed", tc.name, n)
			}
			in.kept.Wait()
			if !freed {
				t.Errorf("%s: the memory was not given back", tc.name)
			}
			for _, result := range []string{"stored", "lost"} {
				want := 0.0
				if result == tc.result {
					want = 1
				}
				if n := testutil.ToFloat64(in.joins.WithLabelValues(result)); n != want {
					t.Errorf("%s: %s counted %v times", tc.name, result, n)
				}
			}
			in.Close()
			if _, err := in.StoreJoin(DialectREST, nil, time.Second, func() {}); !errors.Is(err, context.Canceled) {
				t.Errorf("%s: after the end: %v", tc.name, err)
			}
		})
	}
}

// TestRecordsCount: long user ids and cut texts are counted, several reports have several hashes.
func TestRecordsCount(t *testing.T) {
	in := newIntake(t, nil)
	user := make([]byte, 129)
	for i := range user {
		user[i] = 'u'
	}
	body := `{"channel":"processedStats","version":"3.24.6","conferenceID":"r","localID":"` + string(user) + `","processedStatistics":[{},{}]}`
	arrival := &Arrival{Identity: auth.Identity{AppID: "1", UserID: "token user"}, ReceivedAt: time.UnixMilli(5), Hash: HashFrame([]byte(body)), UserAgent: "a\xffb"}
	var records []Record
	err := in.Parse([]byte(body), vocabulary.WebSocket, func(m *vocabulary.Message) (err error) {
		records, err = in.Records(m, "", arrival)
		return err
	})
	if err != nil || len(records) != 2 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	var first, second v1.Raw
	if err := errors.Join(first.UnmarshalVT(records[0].Value), second.UnmarshalVT(records[1].Value)); err != nil {
		t.Fatal(err)
	}
	if string(first.Observed.ContentHash) == string(second.Observed.ContentHash) {
		t.Error("two reports of one frame have one hash: the second would be dropped as a duplicate")
	}
	if first.Observed.UserAgent != "a\uFFFDb" {
		t.Errorf("user agent %q", first.Observed.UserAgent)
	}
	if n := testutil.ToFloat64(in.longUsers); n != 2 {
		t.Errorf("counted %v long user ids", n)
	}
	err = in.Parse([]byte(`{"eventType":"applicationErrorLog","message":"`+string(make21K())+`"}`), vocabulary.REST, func(m *vocabulary.Message) (err error) {
		records, err = in.Records(m, "room", arrival)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := testutil.ToFloat64(in.truncated); n != 1 {
		t.Errorf("counted %v cut messages", n)
	}
	if err := first.UnmarshalVT(records[0].Value); err != nil || string(records[0].Key) != "1\x00room" {
		t.Errorf("key %q, %v", records[0].Key, err)
	}
}

func make21K() []byte {
	b := make([]byte, 21<<10)
	for i := range b {
		b[i] = 'x'
	}
	return b
}
