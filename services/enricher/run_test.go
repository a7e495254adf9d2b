package enricher

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// partition is a log and the machine that reads it.
type partition struct {
	t       testing.TB
	m       *Machine
	inputs  []stage.Input
	outputs []*callscopev1.Enriched
	nowMs   int64 // recording or scenario time; alive time follows it in ticks
	ticked  int64
	nextUID uint64
	lastUID []byte
}

func newPartition(t testing.TB) *partition {
	p := &partition{t: t, m: NewMachine(), nextUID: 1 << 32}
	p.tick()
	return p
}

// step appends one record to the log and applies it.
func (p *partition) step(key []byte, raw *callscopev1.Raw) []*callscopev1.Enriched {
	p.t.Helper()
	value, err := raw.MarshalVT()
	if err != nil {
		p.t.Fatal(err)
	}
	in := stage.Input{Offset: int64(len(p.inputs)), Key: key, Value: value}
	p.inputs = append(p.inputs, in)
	outputs := enrichedOf(p.t, p.m, in)
	p.outputs = append(p.outputs, outputs...)
	return outputs
}

// enrichedOf applies one record and returns the outputs as their readers get them.
func enrichedOf(t testing.TB, m *Machine, in stage.Input) []*callscopev1.Enriched {
	t.Helper()
	outputs, err := m.Step(in)
	if err != nil {
		t.Fatal(err)
	}
	list := make([]*callscopev1.Enriched, len(outputs))
	for i, out := range outputs {
		e := out.Message.(*callscopev1.Enriched)
		data, err := e.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		list[i] = &callscopev1.Enriched{}
		if err := list[i].UnmarshalVT(data); err != nil {
			t.Fatal(err)
		}
		if e.GetTimePassed() == nil && !bytes.Equal(out.Key, []byte(e.Identity.AppId+"\x00"+e.Identity.ConferenceId)) && e.Identity.ConferenceId != "" {
			t.Fatalf("output of %q has the key %q", e.Identity.ConferenceId, out.Key)
		}
	}
	return list
}

func (p *partition) tick() []*callscopev1.Enriched {
	p.t.Helper()
	p.nextUID++
	return p.step(nil, &callscopev1.Raw{
		Uid: testUID(p.nextUID),
		Payload: &callscopev1.Raw_Tick{Tick: &callscopev1.Tick{
			TickerUid: testUID(1), MonotonicMs: p.ticked, WallMs: captureBaseMs + p.ticked,
		}},
	})
}

// until lets time pass, a tick each second.
func (p *partition) until(nowMs int64) {
	p.t.Helper()
	for p.ticked+1000 <= nowMs {
		p.ticked += 1000
		p.tick()
	}
	p.nowMs = nowMs
}

func (p *partition) wait(ms int64) { p.t.Helper(); p.until(p.nowMs + ms) }

// send applies a message at the current time.
func (p *partition) send(raw *callscopev1.Raw) []*callscopev1.Enriched {
	p.t.Helper()
	if raw.Uid == nil {
		p.nextUID++
		raw.Uid = testUID(p.nextUID)
	}
	if raw.Observed == nil {
		raw.Observed = &callscopev1.Observed{}
	}
	if raw.Observed.AppId == "" {
		raw.Observed.AppId = "123456789"
	}
	if raw.Observed.ReceivedAtMs == 0 {
		raw.Observed.ReceivedAtMs = captureBaseMs + p.nowMs
	}
	p.lastUID = raw.Uid
	return p.step([]byte(raw.Observed.AppId+"\x00"+raw.GetClaimed().GetConferenceId()), raw)
}

// sprint writes the values with a space between any two.
func sprint(values ...any) string { return strings.TrimSuffix(fmt.Sprintln(values...), "\n") }

func tickOf(uid, ticker uint64, monotonicMs int64) *callscopev1.Raw {
	return &callscopev1.Raw{Uid: testUID(uid), Payload: &callscopev1.Raw_Tick{Tick: &callscopev1.Tick{
		TickerUid: testUID(ticker), MonotonicMs: monotonicMs,
	}}}
}

func observedHash(body string) *callscopev1.Observed {
	return &callscopev1.Observed{ContentHash: hash(body)}
}

// manyStreams reports n streams with the SSRCs after from.
func manyStreams(from, n int) []*callscopev1.RtpStats {
	var rtp []*callscopev1.RtpStats
	for i := range n {
		rtp = append(rtp, inbound(fmt.Sprint(from+i+1), 1, 0, 1))
	}
	return rtp
}
