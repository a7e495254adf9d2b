package vocabulary

import (
	"strings"
	"sync"

	"github.com/valyala/fastjson"
)

// decoding is what the fields of one message share. A report has hundreds of optional numbers and of texts, so these are
// taken from blocks, and what is left over is collected in one place.
type decoding struct {
	truncated bool
	floats    []float64
	texts     strings.Builder
	left      []byte // the leftovers of the objects that are being read, those of an inner one behind the outer's
	other     []byte // entries of no known type
	scratch   [32]byte
}

// textBlockBytes is the size of a block of texts. A text that is kept for long keeps its block.
const textBlockBytes = 4 << 10

var decodings = sync.Pool{New: func() any { return new(decoding) }}

// release gives d back. What was taken from it stays valid.
func (d *decoding) release() {
	if cap(d.left)+cap(d.other) <= pooledBodyBytes {
		d.truncated, d.left, d.other = false, d.left[:0], d.other[:0]
		decodings.Put(d)
	}
}

func (d *decoding) float(n float64) *float64 {
	if len(d.floats) == cap(d.floats) {
		d.floats = make([]float64, 0, 64)
	}
	d.floats = append(d.floats, n)
	return &d.floats[len(d.floats)-1]
}

// keep copies a text.
func (d *decoding) keep(s []byte) string {
	if len(s) > textBlockBytes/4 {
		return string(s)
	}
	if d.texts.Cap()-d.texts.Len() < len(s) {
		d.texts.Reset() // the texts of the full block keep it
		d.texts.Grow(textBlockBytes)
	}
	start := d.texts.Len()
	d.texts.Write(s)
	return d.texts.String()[start:]
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
	d.left = appendJSON(d.left, v)
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
	l.d.left = appendJSON(l.d.left, v)
}

// name begins a member.
func (l leftovers) name(key []byte) {
	if !l.empty() {
		l.d.left = append(l.d.left, ',')
	}
	l.d.left = append(appendString(l.d.left, key), ':')
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
