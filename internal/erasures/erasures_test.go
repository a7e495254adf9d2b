package erasures

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	"github.com/callscope/callscope/internal/stream"
	pb "github.com/callscope/callscope/proto/callscope/v1"
)

const (
	masterKey = "0123456789abcdef0123456789abcdef"
	testApp   = "123456789"
	erasedAt  = int64(1_800_000_000_000)
)

var quiet = slog.New(slog.DiscardHandler)

// memory is a topic.
type memory struct {
	records []stream.Record
	failing error
}

func (m *memory) Fetch(_ context.Context, _ string, _ int32, offset int64, _ int, _ time.Duration) (stream.Batch, error) {
	b := stream.Batch{End: int64(len(m.records)), Next: offset}
	if offset < b.End {
		b.Records, b.Next = m.records[offset:offset+1], offset+1
	}
	return b, m.failing
}

func (m *memory) Offsets(context.Context, string, int32) (int64, int64, error) {
	return 0, int64(len(m.records)), m.failing
}

func (m *memory) Append(_ context.Context, _ string, _ int32, recs []stream.Record) (int64, error) {
	for _, r := range recs {
		r.Offset = int64(len(m.records))
		m.records = append(m.records, r)
	}
	return int64(len(m.records) - len(recs)), m.failing
}

func newKey(t testing.TB, text string) *Key {
	t.Helper()
	key, err := NewKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// viewOf is the view after users of the app were erased.
func viewOf(t testing.TB, users ...string) (*Key, *View) {
	t.Helper()
	key := newKey(t, masterKey)
	set, err := NewSet(&memory{}, key, quiet, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range users {
		if err := set.Put(t.Context(), key.Erasure(testApp, user, erasedAt, nil)); err != nil {
			t.Fatal(err)
		}
	}
	view, err := set.Current(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return key, view
}

// fill puts a text into every text field of a message, and something into every other one.
func fill(m protoreflect.Message, text string, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.ContainingOneof() != nil && !f.HasOptionalKeyword() && m.WhichOneof(f.ContainingOneof()) != nil || depth > 6 {
			continue
		}
		var v protoreflect.Value
		switch f.Kind() {
		case protoreflect.StringKind:
			v = protoreflect.ValueOfString(text)
		case protoreflect.MessageKind:
			sub := m.NewField(f)
			if f.IsList() {
				sub = sub.List().NewElement()
			}
			fill(sub.Message(), text, depth+1)
			v = sub
		default:
			continue
		}
		if f.IsList() {
			list := m.NewField(f).List()
			list.Append(v)
			v = protoreflect.ValueOfList(list)
		}
		m.Set(f, v)
	}
}

// texts calls each with every text of a message.
func texts(m protoreflect.Message, each func(name, text string)) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		values := []protoreflect.Value{v}
		if f.IsList() {
			values = nil
			for i := range v.List().Len() {
				values = append(values, v.List().Get(i))
			}
		}
		for _, v := range values {
			switch f.Kind() {
			case protoreflect.StringKind:
				each(strings.TrimPrefix(string(f.FullName()), "callscope.v1."), v.String())
			case protoreflect.MessageKind:
				texts(v.Message(), each)
			}
		}
		return true
	})
}

// messages gives every kind of message of the topics with a text everywhere.
func messages(text string) map[string]proto.Message {
	all := map[string]proto.Message{}
	for _, m := range []proto.Message{&pb.Raw{}, &pb.Enriched{}, &pb.Summary{}} {
		oneofs := m.ProtoReflect().Descriptor().Oneofs()
		bodies := oneofs.Get(oneofs.Len() - 1).Fields()
		for i := range bodies.Len() {
			filled := proto.Clone(m).ProtoReflect()
			body := filled.NewField(bodies.Get(i))
			fill(body.Message(), text, 0)
			filled.Set(bodies.Get(i), body)
			fill(filled, text, 0)
			switch m := filled.Interface().(type) {
			case *pb.Raw:
				m.Observed.AppId, m.Observed.ReceivedAtMs = testApp, erasedAt-1
			case *pb.Enriched:
				m.Identity.AppId, m.ReceivedAtMs = testApp, erasedAt-1
			case *pb.Summary:
				m.Identity.AppId, m.ConferenceStartedAtMs = testApp, erasedAt-1
			}
			all[string(bodies.Get(i).FullName())] = filled.Interface()
		}
	}
	return all
}

func erase(t testing.TB, v *View, m proto.Message) proto.Message {
	t.Helper()
	raw, ok := m.(*pb.Raw)
	if !ok {
		v.Prepare(m)
		return m
	}
	value, err := raw.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	r, err := v.Raw(stream.Record{Key: []byte(testApp + "\x00" + raw.Claimed.ConferenceId), Value: value})
	if err != nil {
		t.Fatal(err)
	}
	result := &pb.Raw{}
	if err := result.UnmarshalVT(r.Value); err != nil {
		t.Fatal(err)
	}
	if want := testApp + "\x00" + result.Claimed.ConferenceId; string(r.Key) != want {
		t.Errorf("the key became %q and not %q", r.Key, want)
	}
	return result
}

var oddIDs = []string{"alice", "alice@example.com", `o'neil "the\quote"`, "Zoë 🎉", "a b/c?d=e&f", "1234567", "7", "x", "erased", "-", "<b>"}

// Every text field of every message is covered, whoever's message it is, apart from words of vocabularies. A field that is
// new is in neither list and fails here if it keeps the id.
func TestEveryField(t *testing.T) {
	for _, id := range oddIDs {
		key, view := viewOf(t, id)
		for _, mine := range []bool{true, false} {
			for kind, m := range messages(id) {
				if !mine {
					switch m := m.(type) {
					case *pb.Raw:
						m.Claimed.UserId = "somebody else"
					case *pb.Enriched:
						m.Identity.UserId = "somebody else"
					case *pb.Summary:
						m.Identity.UserId = "somebody else"
					}
				}
				texts(erase(t, view, m).ProtoReflect(), func(name, text string) {
					if rules[protoreflect.FullName(name)] != word && contains(text, id) {
						t.Errorf("%s, user %q, his own %v: %s is %q", kind, id, mine, name, text)
					}
				})
			}
		}
		if p := key.Pseudonym(testApp, id); contains(p, id) {
			t.Errorf("the pseudonym of %q is %q", id, p)
		}
	}
}

// The fields that are left alone are listed once more, by what they hold, so that nobody adds one in passing: words of
// vocabularies, names and versions of software, networks and countries, SSRCs, and the app's id.
func TestWordsAreWords(t *testing.T) {
	kinds := regexp.MustCompile(`(_state|\.state|type|media|kind|_?reason|direction|usage|ssrc|browsers?|version|_name|\.os|country|networks?|model|outcome|function|level|protocol|transport|codec|mime_type|source|provider|status|semantics|preference|app_id|findings|side|role|implementation|changed_state)$`)
	for name, r := range rules {
		if r == word && !kinds.MatchString(string(name)) {
			t.Errorf("%s is left alone: say here why", name)
		}
	}
	for _, name := range []protoreflect.FullName{"UserJoined.user_name", "Identity.user_id", "Identity.conference_id", "StreamSummary.owner_user_id"} {
		if rules[name] == word {
			t.Errorf("%s is no word", name)
		}
	}
	known := map[protoreflect.FullName]bool{}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			name := protoreflect.FullName(strings.TrimPrefix(string(f.FullName()), "callscope.v1."))
			if !known[name] {
				known[name] = true
				if f.Kind() == protoreflect.MessageKind {
					walk(f.Message())
				}
			}
		}
	}
	for _, m := range []proto.Message{&pb.Raw{}, &pb.Enriched{}, &pb.Summary{}} {
		walk(m.ProtoReflect().Descriptor())
	}
	for name := range rules {
		if !known[name] {
			t.Errorf("there is a rule for %s, which no message has", name)
		}
	}
}

func TestDropped(t *testing.T) {
	_, view := viewOf(t, "alice")
	m := &pb.Enriched{
		Identity:     &pb.Identity{AppId: testApp, ConferenceId: "room", UserId: "alice", DeviceId: "phone", RemoteId: "bob", ConnectionId: "alice"},
		ReceivedAtMs: erasedAt - 1,
		Body: &pb.Enriched_Event{Event: &pb.Event{EventType: "applicationErrorLog", DataJson: `{"ip":"192.0.2.1"}`, Feedback: &pb.FeedbackGiven{Comment: "it was me"},
			Failure: &pb.FailureReported{Message: "secret", Stack: "at home", Reason: "none", LocalSdp: "v=0", RemoteSdp: "v=0"}}},
	}
	view.Prepare(m)
	event := m.GetEvent()
	if event.DataJson != "{}" || event.Feedback.Comment != "" || event.Failure.Message != "" || event.Failure.Stack != "" || event.Failure.LocalSdp != "" || event.Failure.RemoteSdp != "" {
		t.Errorf("what he said is still there: %v", event)
	}
	if event.EventType != "applicationErrorLog" || event.Failure.Reason != "none" || m.Identity.RemoteId != "bob" || m.Identity.ConferenceId != "room" {
		t.Errorf("too much is gone: %v", m)
	}
	if id := m.Identity; !strings.HasPrefix(id.UserId, "erased-") || id.ConnectionId != id.UserId || !strings.HasPrefix(id.DeviceId, "erased-") || id.DeviceId == id.UserId {
		t.Errorf("identity: %v", m.Identity)
	}
	peer := &pb.Enriched{
		Identity:     &pb.Identity{AppId: testApp, ConferenceId: "room", UserId: "bob", DeviceId: "phone", RemoteId: "alice"},
		ReceivedAtMs: erasedAt - 1,
		Body: &pb.Enriched_Event{Event: &pb.Event{EventType: "fabricSetupFailed", DataJson: `{"remoteSDP":"c=IN IP4 192.0.2.1"}`,
			Failure: &pb.FailureReported{Message: "lost alice", LocalSdp: "bob's", RemoteSdp: "alice's"}}},
	}
	view.Prepare(peer)
	if f := peer.GetEvent().Failure; f.RemoteSdp != "" || f.LocalSdp != "bob's" || !strings.HasPrefix(f.Message, "lost erased-") || peer.GetEvent().DataJson != "{}" || peer.Identity.DeviceId != "phone" {
		t.Errorf("what the peer says of him: %v", peer)
	}
}

// The tests that an association names are rows of their own.
func TestAssociationStays(t *testing.T) {
	key, view := viewOf(t, "alice")
	m := &pb.Enriched{
		Identity: &pb.Identity{AppId: testApp, ConferenceId: "room", UserId: "alice"}, ReceivedAtMs: erasedAt - 1,
		Body: &pb.Enriched_Event{Event: &pb.Event{EventType: KeptEvent, DataJson: `{"by":"alice","ids":["test-1"]}`}},
	}
	view.Prepare(m)
	if got, want := m.GetEvent().DataJson, `{"by":"`+key.Pseudonym(testApp, "alice")+`","ids":["test-1"]}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestFromBeforeWhen(t *testing.T) {
	key := newKey(t, masterKey)
	set, err := NewSet(&memory{}, key, quiet, nil)
	if err != nil {
		t.Fatal(err)
	}
	e := key.Erasure(testApp, "alice", erasedAt, nil)
	under := []byte("0123456789abcdef")
	if !key.AddConference(e, under, "under way") || key.AddConference(e, under, "under way") {
		t.Error("a conference is new once")
	}
	if err := set.Put(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	view, err := set.Current(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name       string
		app, room  string
		uid        []byte
		receivedMs int64
		erased     bool // as a row
		erasedRaw  bool // in files, where a conference has no uid
	}{
		{"before", testApp, "old", []byte("fedcba9876543210"), erasedAt - 1, true, true},
		{"a call that began later", testApp, "new", []byte("fedcba9876543210"), erasedAt, false, false},
		{"late, of a call that was under way", testApp, "under way", under, erasedAt + 60_000, true, true},
		{"a new call under the same id, days later", testApp, "under way", []byte("fedcba9876543210"), erasedAt + 48*3600_000, false, false},
		{"an orphan", testApp, "old", nil, erasedAt + 1, true, false},
		{"another app", "42", "old", under, erasedAt - 1, false, false},
		{"a pre-call test before", testApp, "", nil, erasedAt - 1, true, true},
		{"a pre-call test later", testApp, "", nil, erasedAt + 1, false, false},
	} {
		m := &pb.Enriched{Identity: &pb.Identity{AppId: test.app, ConferenceId: test.room, ConferenceUid: test.uid, UserId: "alice"}, ReceivedAtMs: test.receivedMs}
		view.Prepare(m)
		if got := m.Identity.UserId != "alice"; got != test.erased {
			t.Errorf("%s: erased %v", test.name, got)
		}
		raw := &pb.Raw{Claimed: &pb.Claimed{ConferenceId: test.room, UserId: "alice"}, Observed: &pb.Observed{AppId: test.app, ReceivedAtMs: test.receivedMs}}
		value, err := raw.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		r, err := view.Raw(stream.Record{Value: value})
		if err != nil {
			t.Fatal(err)
		}
		if got := !strings.Contains(string(r.Value), "alice"); got != test.erasedRaw {
			t.Errorf("%s: erased in files %v", test.name, got)
		}
	}
}

func TestStands(t *testing.T) {
	for _, test := range []struct {
		id, text string
		want     string // X is the pseudonym
	}{
		{"alice", "alice", "X"},
		{"alice", "malice alice's alice2 alice_ alice-1 (alice)", "malice X's alice2 alice_ X-1 (X)"},
		{"alice", "alice,alice,alice", "X,X,X"},
		{"alice", "alice@example.com @alice", "alice@example.com @X"},
		{"alice", `{"userID":"alice","alice":1}`, `{"userID":"X","X":1}`},
		{"a@b.c", "mail a@b.c.", "mail X."},
		{"o'neil \"q\"", `{"a":"o'neil \"q\""}`, `{"a":"X"}`},
		{"Zoë 🎉", `["Zo\u00eb \ud83c\udf89","Zoë 🎉","Zo%C3%AB%20%F0%9F%8E%89"]`, `["X","X","X"]`},
		{"<b>", `{"a":"\u003cb\u003e"}`, `{"a":"X"}`},
		{"7", `7`, "X"},
		{"7", `{"a":7,"b":"7","c":"at 7 o'clock"}`, `{"a":7,"b":"X","c":"at 7 o'clock"}`},
		{"12345", `{"a":12345,"b":"12345","c":[12345,-12345],"d":12345.5,"e":0.12345}`, `{"a":12345,"b":"X","c":[12345,-12345],"d":12345.5,"e":0.12345}`},
		{"12345", `user 12345 left room-12345 at 12:12345`, `user X left room-X at 12:X`},
		{"alice", "", ""},
	} {
		key, view := viewOf(t, test.id)
		got, _ := view.apps[testApp].replace(test.text, func(*user) bool { return true })
		if want := strings.ReplaceAll(test.want, "X", key.Pseudonym(testApp, test.id)); got != want {
			t.Errorf("%q in %q: %q, want %q", test.id, test.text, got, want)
		}
	}
}

// byPatterns is what a database makes of a text with Patterns.
func byPatterns(text, id, pseudonym string) string {
	for _, spelling := range Spellings(id) {
		for _, pattern := range Patterns(spelling) {
			re := regexp.MustCompile(pattern)
			for range 2 {
				text = re.ReplaceAllString(text, "${1}"+pseudonym+"${2}")
			}
		}
	}
	return text
}

// The function by hashes and the patterns replace the same, so that rows come out equal whichever way they went.
func TestPatternsAgree(t *testing.T) {
	ids := append(slices.Clone(oddIDs), "ab", "a.b", "12.5", "user-1")
	views := map[string]*View{}
	keys := newKey(t, masterKey)
	for _, id := range ids {
		_, views[id] = viewOf(t, id)
	}
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.SampledFrom(ids).Draw(t, "id")
		glue := []string{"", " ", ",", ":", `"`, "-", ".", "[", "]", "}", "a", "1", "_", "@", `\`, "é", "\n"}
		var text strings.Builder
		for range rapid.IntRange(0, 5).Draw(t, "parts") {
			text.WriteString(rapid.SampledFrom(glue).Draw(t, "glue"))
			text.WriteString(rapid.SampledFrom(append(Spellings(id), glue...)).Draw(t, "part"))
		}
		text.WriteString(rapid.SampledFrom(glue).Draw(t, "end"))
		p := keys.Pseudonym(testApp, id)
		got, _ := views[id].apps[testApp].replace(text.String(), func(*user) bool { return true })
		if want := byPatterns(text.String(), id, p); got != want {
			t.Fatalf("%q in %q: by hashes %q, by patterns %q", id, text.String(), got, want)
		}
	})
}

func TestTopicNamesNobody(t *testing.T) {
	key := newKey(t, masterKey)
	log := &memory{}
	set, err := NewSet(log, key, quiet, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"alice", "bob@example.com"} {
		e := key.Erasure(testApp, id, erasedAt, nil)
		key.AddConference(e, []byte("0123456789abcdef"), "room of "+id)
		if err := set.Put(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range log.records {
		for _, id := range []string{"alice", "bob", "room"} {
			if strings.Contains(string(r.Key)+string(r.Value), id) {
				t.Errorf("a record has %q in it", id)
			}
		}
	}
}

func TestSet(t *testing.T) {
	key, other := newKey(t, masterKey), newKey(t, strings.Repeat("z", 40))
	log := &memory{}
	reg := prometheus.NewPedanticRegistry()
	set, err := NewSet(log, key, quiet, reg)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := set.Current(t.Context()); err != nil || v.Position() != 0 {
		t.Errorf("an empty topic gives %d, %v", v.Position(), err)
	}
	if err := set.Put(t.Context(), key.Erasure(testApp, "alice", erasedAt, nil)); err != nil {
		t.Fatal(err)
	}
	log.records = append(log.records, stream.Record{Key: []byte("nonsense"), Value: []byte{0xff}, Offset: 1})
	v, err := set.Current(t.Context())
	if err != nil || v.Position() == 0 || v.Of(key, testApp, "alice") == nil || v.Of(key, testApp, "bob") != nil || v.Of(key, "1", "alice") != nil {
		t.Fatalf("%+v, %v", v, err)
	}
	v.Prepare(&pb.Enriched{Identity: &pb.Identity{AppId: testApp, UserId: "alice"}})
	v.Prepare(&pb.Summary{Identity: &pb.Identity{AppId: testApp, UserId: "alice"}})
	value, err := (&pb.Raw{Observed: &pb.Observed{AppId: testApp}, Claimed: &pb.Claimed{UserId: "alice"}}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Raw(stream.Record{Value: value}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[prometheus.Collector]float64{
		set.metrics.inForce: 1, set.metrics.invalid: 1, set.metrics.messages.WithLabelValues("enriched"): 1,
		set.metrics.messages.WithLabelValues("summary"): 1, set.metrics.messages.WithLabelValues("raw"): 1,
	} {
		if got := testutil.ToFloat64(name); got != want {
			t.Errorf("%v is %v, want %v", name, got, want)
		}
	}
	again := key.Erasure(testApp, "alice", erasedAt-1000, v.Of(key, testApp, "alice"))
	if again.ErasedAtMs != erasedAt {
		t.Error("an earlier time took the place of a later one")
	}
	for name, test := range map[string]struct {
		key  *Key
		want error
	}{"no key": {nil, ErrNoKey}, "another key": {other, ErrOtherKey}} {
		s, err := NewSet(log, test.key, quiet, nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := s.Current(t.Context()); !errors.Is(err, test.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	log.failing = errors.New("no broker")
	if _, err := set.Current(t.Context()); !errors.Is(err, log.failing) {
		t.Errorf("without a broker: %v", err)
	}
	if err := set.Put(t.Context(), again); !errors.Is(err, log.failing) {
		t.Errorf("without a broker: %v", err)
	}
	log.failing, log.records = nil, nil // the topic was made anew
	if v, err := set.Current(t.Context()); err != nil || v.Position() != 0 {
		t.Errorf("a new topic gives %d, %v", v.Position(), err)
	}
}

// breaking is a topic of which one fetch fails.
type breaking struct {
	memory
	fails int // offset
}

func (b *breaking) Fetch(ctx context.Context, topic string, partition int32, offset int64, maxBytes int, maxWait time.Duration) (stream.Batch, error) {
	if int(offset) == b.fails {
		b.fails = -1
		return stream.Batch{Start: -1, End: -1, Next: offset}, errors.New("the broker went away")
	}
	return b.memory.Fetch(ctx, topic, partition, offset, maxBytes, maxWait)
}

// What was read before reading broke off counts, also when nothing usable comes behind it.
func TestReadingBreaksOff(t *testing.T) {
	key := newKey(t, masterKey)
	log := &breaking{fails: 1}
	set, err := NewSet(log, key, quiet, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := set.Put(t.Context(), key.Erasure(testApp, "alice", erasedAt, nil)); err != nil {
		t.Fatal(err)
	}
	log.records = append(log.records, stream.Record{Key: []byte("nonsense"), Value: []byte{0xff}, Offset: 1})
	if _, err := set.Current(t.Context()); err == nil {
		t.Fatal("the failure was not seen")
	}
	v, err := set.Current(t.Context())
	if err != nil || v.Of(key, testApp, "alice") == nil {
		t.Errorf("alice is shown: %v", err)
	}
}

func TestKeyNeverPrints(t *testing.T) {
	if _, err := NewKey("short"); err == nil {
		t.Error("a short key was taken")
	}
	key := newKey(t, masterKey)
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(format, key); strings.Contains(text, masterKey[:8]) || !strings.Contains(text, key.id) {
			t.Errorf("%s prints %s", format, text)
		}
	}
	if got := fmt.Sprint((*Key)(nil)); got != "[no key of erasures]" {
		t.Error(got)
	}
}

func BenchmarkNobodyHit(b *testing.B) {
	users := make([]string, 1000)
	for i := range users {
		users[i] = fmt.Sprintf("user-%d@example.com", i*7919)
	}
	_, view := viewOf(b, users...)
	m := &pb.Enriched{Identity: &pb.Identity{AppId: testApp, ConferenceId: "conference", UserId: "somebody@example.com", DeviceId: strings.Repeat("d", 64), RemoteId: "another@example.com"},
		Body: &pb.Enriched_StreamSample{StreamSample: &pb.StreamSample{Ssrc: "123456", OwnerUserId: "somebody@example.com", MediaType: "audio", Codec: "audio/opus"}}}
	for b.Loop() {
		view.Prepare(m)
	}
}
