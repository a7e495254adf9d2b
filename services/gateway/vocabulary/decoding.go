package vocabulary

import (
	"sync"
	"unsafe"

	"github.com/valyala/fastjson"

	v1 "github.com/callscope/callscope/proto/callscope/v1"
)

// decoding is what the fields of one message share. A report has hundreds of optional numbers and of texts, so these are
// taken from blocks, and what is left over is collected in one place.
type decoding struct {
	truncated bool
	plain     bool // see isPlain
	parts     *parts
	left      []byte // the leftovers of the objects that are being read, those of an inner one behind the outer's
	other     []byte // entries of no known type
	scratch   [32]byte
}

// textBlockBytes is the size of the first block of texts. A text that is kept for long keeps its block.
const textBlockBytes = 1 << 10

var decodings = sync.Pool{New: func() any { return new(decoding) }}

// parts are what most of a report consists of. They go back to the pool only when somebody says that the raw messages that
// hold them are done with: see Recycle.
type parts struct {
	floats []float64
	rtp    []v1.RtpStats
	texts  []byte
}

var partsPool = sync.Pool{New: func() any { return new(parts) }}

// recycle empties p for the next message.
func (p *parts) recycle() {
	if cap(p.floats)*8+cap(p.texts) > 2*pooledBodyBytes {
		return
	}
	for i := range p.rtp {
		p.rtp[i].Reset()
	}
	p.floats, p.rtp, p.texts = p.floats[:0], p.rtp[:0], p.texts[:0]
	partsPool.Put(p)
}

// release gives d back. What was taken from its parts stays valid until they are recycled.
func (d *decoding) release() {
	d.parts = nil
	if cap(d.left)+cap(d.other) <= pooledBodyBytes {
		d.truncated, d.left, d.other = false, d.left[:0], d.other[:0]
		decodings.Put(d)
	}
}

func (d *decoding) float(n float64) *float64 {
	p := d.parts
	if len(p.floats) == cap(p.floats) { // the numbers of the full block keep it
		p.floats = make([]float64, 0, max(32, 2*cap(p.floats)))
	}
	p.floats = append(p.floats, n)
	return &p.floats[len(p.floats)-1]
}

func (d *decoding) rtp(t v1.RtpType) *v1.RtpStats {
	p := d.parts
	if len(p.rtp) == cap(p.rtp) {
		p.rtp = make([]v1.RtpStats, 0, min(max(4, 2*cap(p.rtp)), 64))
	}
	p.rtp = p.rtp[:len(p.rtp)+1]
	s := &p.rtp[len(p.rtp)-1]
	s.Type = t
	return s
}

// keep copies a text.
func (d *decoding) keep(s []byte) string {
	p := d.parts
	if len(s) == 0 || len(s) > pooledBodyBytes/4 {
		return string(s)
	}
	if cap(p.texts)-len(p.texts) < len(s) { // the texts of the full block keep it
		p.texts = make([]byte, 0, max(textBlockBytes, len(s), min(2*cap(p.texts), pooledBodyBytes)))
	}
	start := len(p.texts)
	p.texts = append(p.texts, s...)
	return unsafe.String(&p.texts[start], len(s)) // written to again only after Recycle
}

// bytes is text without the copy: valid until the next call.
func (d *decoding) bytes(v *fastjson.Value) []byte {
	if v == nil {
		return nil
	}
	switch v.Type() {
	case fastjson.TypeString:
		return v.GetStringBytes()
	case fastjson.TypeNumber, fastjson.TypeTrue, fastjson.TypeFalse:
		return v.MarshalTo(d.scratch[:0])
	}
	return nil
}

func (d *decoding) text(v *fastjson.Value) string { return d.keep(d.bytes(v)) }

func (d *decoding) number(v *fastjson.Value) (float64, bool) { return number(v, d.scratch[:0]) }

func (d *decoding) json(v *fastjson.Value) string {
	start := len(d.left)
	d.left = appendJSON(d.left, v, d.plain)
	s := d.keep(d.left[start:])
	d.left = d.left[:start]
	return s
}

// leftovers collects the members of an object that no field holds, as the inside of a JSON object: the end of d.left.
// Those of an object inside it must be finished before the next member is added.
type leftovers struct {
	d     *decoding
	start int
}

// begin starts the leftovers of an object of its own; object or drop ends them.
func (d *decoding) begin() leftovers {
	d.left = append(d.left, '{')
	return leftovers{d, len(d.left)}
}

func (l leftovers) empty() bool { return len(l.d.left) == l.start }

// object returns the JSON object, "" when nothing was left.
func (l leftovers) object() (s string) {
	if !l.empty() {
		l.d.left = append(l.d.left, '}')
		s = l.d.keep(l.d.left[l.start-1:])
	}
	l.drop()
	return s
}

func (l leftovers) drop() { l.d.left = l.d.left[:l.start-1] }

func (l leftovers) add(key []byte, v *fastjson.Value) {
	l.name(key)
	l.d.left = appendJSON(l.d.left, v, l.d.plain)
}

// name begins a member.
func (l leftovers) name(key []byte) {
	if !l.empty() {
		l.d.left = append(l.d.left, ',')
	}
	l.d.left = append(appendString(l.d.left, key, l.d.plain), ':')
}

// open begins a member that holds what an inner object leaves; close ends it and forgets it if that is nothing.
func (l leftovers) open(key []byte) (mark int, inner leftovers) {
	mark = len(l.d.left)
	l.name(key)
	return mark, l.d.begin()
}

func (l leftovers) close(mark int, inner leftovers) {
	if inner.empty() {
		l.d.left = l.d.left[:mark]
		return
	}
	l.d.left = append(l.d.left, '}')
}
