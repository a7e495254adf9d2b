package stage

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

func TestOriginFilter(t *testing.T) {
	o := func(offset int64, index uint32) *Origin { return &Origin{offset, index} }
	type step struct {
		origin, prev *Origin
		want         Verdict
	}
	for name, c := range map[string]struct {
		filter OriginFilter
		steps  []step
	}{
		"in order":                   {OriginFilter{}, []step{{o(0, 0), nil, Accept}, {o(0, 1), o(0, 0), Accept}, {o(5, 0), o(0, 1), Accept}}},
		"repeated":                   {OriginFilter{}, []step{{o(0, 0), nil, Accept}, {o(0, 0), nil, Duplicate}, {o(1, 0), o(0, 0), Accept}, {o(0, 0), nil, Duplicate}}},
		"one missing":                {OriginFilter{}, []step{{o(0, 0), nil, Accept}, {o(2, 0), o(1, 0), Gap}, {o(1, 0), o(0, 0), Accept}, {o(2, 0), o(1, 0), Accept}}},
		"first one missing":          {OriginFilter{}, []step{{o(2, 0), o(1, 0), Gap}}},
		"open":                       {OpenFilter(), []step{{o(2, 0), o(1, 0), Accept}, {o(4, 0), o(3, 0), Gap}}},
		"from the middle":            {FilterAfter(o(7, 2)), []step{{o(7, 2), o(7, 1), Duplicate}, {o(8, 0), o(7, 2), Accept}}},
		"stage began again":          {FilterAfter(o(7, 2)), []step{{o(3, 0), nil, Duplicate}, {o(9, 0), nil, Accept}}},
		"fewer outputs of new logic": {FilterAfter(o(7, 2)), []step{{o(8, 0), o(7, 0), Accept}}},
	} {
		t.Run(name, func(t *testing.T) {
			for i, s := range c.steps {
				if got := c.filter.Accept(s.origin, s.prev); got != s.want {
					t.Errorf("step %d: %v after %v: verdict %d, want %d", i, s.origin, s.prev, got, s.want)
				}
			}
		})
	}
}

// TestOriginFilterLaw: writers that each write a part of one chain in order,
// from a place that is already in the log, in any interleaving and with any
// repetition, leave exactly the chain. A chain with a link taken out is a gap.
func TestOriginFilterLaw(t *testing.T) {
	type link struct{ origin, prev *Origin }
	rapid.Check(t, func(t *rapid.T) {
		var chain []link
		var prev *Origin
		offset := int64(0)
		for range rapid.IntRange(1, 30).Draw(t, "links") {
			o := &Origin{Offset: offset}
			if prev != nil && prev.Offset == offset {
				o.Index = prev.Index + 1
			}
			chain = append(chain, link{o, prev})
			prev = o
			offset += rapid.Int64Range(0, 2).Draw(t, "step")
		}
		// Each writer is the next link it writes; what is below written is in the log.
		var log []link
		written := 0
		writers := []int{0}
		for written < len(chain) {
			if rapid.IntRange(0, 5).Draw(t, "new writer") == 0 {
				writers = append(writers, rapid.IntRange(0, written).Draw(t, "from"))
			}
			w := rapid.IntRange(0, len(writers)-1).Draw(t, "writer")
			if at := writers[w]; at < len(chain) {
				log = append(log, chain[at])
				writers[w]++
				written = max(written, at+1)
			}
		}
		missing := rapid.IntRange(-1, len(chain)-2).Draw(t, "missing")
		var filter OriginFilter
		var got []link
		for _, l := range log {
			if missing >= 0 && l == chain[missing] {
				continue
			}
			switch filter.Accept(l.origin, l.prev) {
			case Accept:
				got = append(got, l)
			case Gap:
				if missing < 0 {
					t.Fatalf("gap at %v after %v", l.origin, l.prev)
				}
				if l != chain[missing+1] {
					t.Fatalf("gap found at %v, not at the link behind the missing one", l.origin)
				}
				return
			}
		}
		if missing >= 0 {
			t.Fatal("a missing link was not noticed")
		}
		if diff := cmp.Diff(chain, got, cmp.AllowUnexported(link{})); diff != "" {
			t.Fatalf("accepted is not the chain:\n%s", diff)
		}
	})
}

func TestReadHeaderOfOutput(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		origins := rapid.Custom(func(t *rapid.T) *Origin {
			return &Origin{rapid.Int64Min(0).Draw(t, "offset"), rapid.Uint32().Draw(t, "index")}
		})
		origin, prev := origins.Draw(t, "origin"), rapid.Ptr(rapid.Just(Origin{5, 6}), true).Draw(t, "prev")
		message := &callscopev1.Enriched{
			Uid: rapid.SliceOfN(rapid.Byte(), 1, 16).Draw(t, "uid"), AliveMs: rapid.Int64().Draw(t, "alive"), TimeMs: 1.5,
			Identity: &callscopev1.Identity{AppId: rapid.String().Draw(t, "app")},
		}
		value, err := encodeOutput(message, *origin, prev)
		if err != nil {
			t.Fatal(err)
		}
		if len(value) != cap(value) {
			t.Errorf("%d bytes in %d: the size was not known", len(value), cap(value))
		}
		uid, gotOrigin, gotPrev, err := ReadHeader(value)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(uid, message.Uid) || cmp.Diff(origin, gotOrigin) != "" || cmp.Diff(prev, gotPrev) != "" {
			t.Errorf("read %x %v %v", uid, gotOrigin, gotPrev)
		}
		// The protobuf library reads the same out of it.
		var whole callscopev1.Enriched
		if err := proto.Unmarshal(value, &whole); err != nil {
			t.Fatal(err)
		}
		message.Origin, message.Prev = toProto(origin), toProto(prev)
		if !proto.Equal(message, &whole) {
			t.Errorf("decoded as %v, want %v", &whole, message)
		}
	})
}

func TestReadHeaderTakesTheLast(t *testing.T) {
	field := func(number protowire.Number, value []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), value)
	}
	value := bytes.Join([][]byte{
		field(1, []byte("first")), appendOrigin(nil, 2, Origin{1, 1}), field(99, []byte("other")),
		protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 7), // right number, wrong type: another schema's
		field(1, []byte("last")), appendOrigin(nil, 2, Origin{2, 0}),
	}, nil)
	uid, origin, prev, err := ReadHeader(value)
	if err != nil || string(uid) != "last" || *origin != (Origin{2, 0}) || prev != nil {
		t.Errorf("read %q %v %v %v", uid, origin, prev, err)
	}
	if _, _, _, err := ReadHeader(value[:len(value)-1]); err == nil {
		t.Error("a cut record was read without error")
	}
}

// FuzzReadHeader compares with the protobuf library on any bytes: what the
// library decodes, ReadHeader reads, with the same uid.
func FuzzReadHeader(f *testing.F) {
	for _, m := range []proto.Message{
		&callscopev1.RecordHeader{},
		&callscopev1.RecordHeader{Uid: []byte("uid"), Origin: &callscopev1.Origin{Offset: 3, Index: 4}, Prev: &callscopev1.Origin{}},
		&callscopev1.Raw{Uid: []byte("uid"), EventType: "x", Payload: &callscopev1.Raw_Tick{Tick: &callscopev1.Tick{MonotonicMs: 1}}},
	} {
		value, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		uid, origin, prev, err := ReadHeader(value)
		var h callscopev1.RecordHeader
		if proto.Unmarshal(value, &h) != nil {
			return
		}
		if err != nil {
			t.Fatalf("the protobuf library decodes it: %v", err)
		}
		if !bytes.Equal(uid, h.Uid) || (origin == nil) != (h.Origin == nil) || (prev == nil) != (h.Prev == nil) {
			t.Errorf("read %x %v %v, the protobuf library %v", uid, origin, prev, &h)
		}
	})
}
