package vocabulary

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/valyala/fastjson"
)

// isPlain reports whether no string in a JSON text has an escape or could need one when it is written again.
func isPlain(text []byte) bool { return bytes.IndexByte(text, '\\') < 0 && !hasControl(text) }

// valid reports whether what fastjson's parser made root of is JSON: the parser bounds the depth and checks the structure,
// but lets malformed numbers, control characters and unknown escapes pass. Its validator finds them and takes as long
// as the parser. In a plain text only the numbers can be wrong, and they are looked at here.
func valid(text []byte, root *fastjson.Value, plain bool) bool {
	if !plain {
		return fastjson.ValidateBytes(text) == nil
	}
	var scratch [32]byte
	return validNumbers(root, scratch[:0])
}

func validNumbers(v *fastjson.Value, scratch []byte) bool {
	switch v.Type() {
	case fastjson.TypeObject:
		ok := true
		v.GetObject().Visit(func(_ []byte, v *fastjson.Value) {
			switch v.Type() {
			case fastjson.TypeNumber:
				ok = ok && isNumber(v.MarshalTo(scratch))
			case fastjson.TypeObject, fastjson.TypeArray:
				ok = ok && validNumbers(v, scratch)
			}
		})
		return ok
	case fastjson.TypeArray:
		for _, item := range v.GetArray() {
			if !validNumbers(item, scratch) {
				return false
			}
		}
	case fastjson.TypeNumber:
		return isNumber(v.MarshalTo(scratch))
	}
	return true
}

// isNumber follows RFC 8259, section 6: [-] integer [fraction] [exponent].
func isNumber(s []byte) bool {
	if len(s) > 0 && s[0] == '-' {
		s = s[1:]
	}
	n := digits(s)
	if n == 0 || n > 1 && s[0] == '0' {
		return false
	}
	if s = s[n:]; len(s) > 0 && s[0] == '.' {
		if n = digits(s[1:]); n == 0 {
			return false
		}
		s = s[1+n:]
	}
	if len(s) > 0 && (s[0] == 'e' || s[0] == 'E') {
		if s = s[1:]; len(s) > 0 && (s[0] == '+' || s[0] == '-') {
			s = s[1:]
		}
		n = digits(s)
		return n > 0 && n == len(s)
	}
	return len(s) == 0
}

// digits counts the decimal digits that s begins with.
func digits(s []byte) (n int) {
	for n < len(s) && '0' <= s[n] && s[n] <= '9' {
		n++
	}
	return n
}

// hasControl reports whether a byte is less than a space, of 32 or eight at once: a byte that borrows when the space is
// subtracted gets its highest bit, which it did not have before.
func hasControl(b []byte) bool {
	const spaces, highest = 0x2020202020202020, 0x8080808080808080
	for ; len(b) >= 32; b = b[32:] {
		w, x := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
		y, z := binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
		if ((w-spaces)&^w|(x-spaces)&^x|(y-spaces)&^y|(z-spaces)&^z)&highest != 0 {
			return true
		}
	}
	for ; len(b) >= 8; b = b[8:] {
		if x := binary.LittleEndian.Uint64(b); (x-spaces)&^x&highest != 0 {
			return true
		}
	}
	for _, c := range b {
		if c < ' ' {
			return true
		}
	}
	return false
}

// isText reports whether text can read the value. null counts as the empty string, as the spec says.
func isText(v *fastjson.Value) bool {
	switch v.Type() {
	case fastjson.TypeObject, fastjson.TypeArray:
		return false
	}
	return true
}

// text reads a string, or a number or boolean where a client writes one for a string. Everything else is "".
func text(v *fastjson.Value) string {
	if v == nil {
		return ""
	}
	switch v.Type() {
	case fastjson.TypeString:
		return string(v.GetStringBytes())
	case fastjson.TypeNumber, fastjson.TypeTrue, fastjson.TypeFalse:
		return string(v.MarshalTo(nil))
	}
	return ""
}

// number reads a finite number, or a string that holds one. fastjson's own conversion may be off in the last digit.
// The digits are put into scratch.
func number(v *fastjson.Value, scratch []byte) (float64, bool) {
	if v == nil {
		return 0, false
	}
	var n float64
	var err error
	switch v.Type() {
	case fastjson.TypeNumber:
		text := v.MarshalTo(scratch)
		if whole, ok := smallInteger(text); ok {
			return whole, true
		}
		n, err = strconv.ParseFloat(string(text), 64)
	case fastjson.TypeString:
		b := v.GetStringBytes()
		if len(b) == 0 || len(b) > 64 || b[0] > '9' {
			return 0, false // not "Infinity", "NaN" and the like
		}
		n, err = strconv.ParseFloat(string(b), 64)
	default:
		return 0, false
	}
	return n, err == nil && !math.IsInf(n, 0) && !math.IsNaN(n)
}

// smallInteger reads the counters that are most of a report, in a quarter of the time. Up to 15 digits a float64 is exact.
func smallInteger(text []byte) (n float64, ok bool) {
	if len(text) > 15 {
		return 0, false
	}
	whole := 0
	for _, c := range text {
		if c -= '0'; c > 9 {
			return 0, false
		}
		whole = whole*10 + int(c)
	}
	return float64(whole), len(text) > 0
}

func boolean(v *fastjson.Value) (value, ok bool) {
	switch v.Type() {
	case fastjson.TypeTrue:
		return true, true
	case fastjson.TypeFalse:
		return false, true
	case fastjson.TypeString:
		switch string(v.GetStringBytes()) {
		case "true":
			return true, true
		case "false":
			return false, true
		}
	}
	return false, false
}

// appendJSON writes a value as JSON; plain says what isPlain said of the text that it comes from. fastjson's own writer uses
// Go's escapes for control characters, which is no JSON. Numbers keep the client's digits.
func appendJSON(dst []byte, v *fastjson.Value, plain bool) []byte {
	switch v.Type() {
	case fastjson.TypeObject:
		dst = append(dst, '{')
		start := len(dst)
		v.GetObject().Visit(func(key []byte, v *fastjson.Value) {
			if len(dst) > start {
				dst = append(dst, ',')
			}
			dst = append(appendString(dst, key, plain), ':')
			dst = appendJSON(dst, v, plain)
		})
		return append(dst, '}')
	case fastjson.TypeArray:
		dst = append(dst, '[')
		for i, v := range v.GetArray() {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendJSON(dst, v, plain)
		}
		return append(dst, ']')
	case fastjson.TypeString:
		return appendString(dst, v.GetStringBytes(), plain)
	}
	return v.MarshalTo(dst)
}

func appendString(dst, s []byte, plain bool) []byte {
	if !plain && (!isPlain(s) || bytes.IndexByte(s, '"') >= 0) {
		quoted, err := json.Marshal(string(s))
		if err != nil {
			panic("vocabulary: marshalling a string failed: " + err.Error()) // it cannot
		}
		return append(dst, quoted...)
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// cutBytes shortens s to at most limit bytes without splitting a code point.
func cutBytes(s string, limit int) (string, bool) {
	if len(s) <= limit {
		return s, false
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit], true
}

// cutRunes shortens s to at most limit code points.
func cutRunes(s string, limit int) (string, bool) {
	if len(s) <= limit {
		return s, false
	}
	n := 0
	for i := range s {
		if n == limit {
			return s[:i], true
		}
		n++
	}
	return s, false
}
