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

// valid reports whether what fastjson's parser accepted is JSON: the parser bounds the depth and checks the structure,
// but lets malformed numbers, control characters and unknown escapes pass. Its validator finds them and takes as long
// as the parser. Where nothing is escaped, only what stands outside the strings can be wrong, and the validator is asked
// about no more than that.
func valid(parsed []byte) bool {
	if bytes.IndexByte(parsed, '\\') >= 0 || hasControl(parsed) {
		return fastjson.ValidateBytes(parsed) == nil
	}
	for i := 0; i < len(parsed); {
		c := parsed[i]
		if c == '"' {
			n := bytes.IndexByte(parsed[i+1:], '"')
			if n < 0 {
				return false
			}
			i += n + 2
			continue
		}
		if separates[c] {
			i++
			continue
		}
		start, integer := i, c >= '1' && c <= '9'
		for i++; i < len(parsed) && !separates[parsed[i]]; i++ {
			integer = integer && parsed[i] >= '0' && parsed[i] <= '9'
		}
		zero := c == '0' && i == start+1
		if !integer && !zero && fastjson.ValidateBytes(parsed[start:i]) != nil {
			return false
		}
	}
	return true
}

// separates holds the characters that end a number or a literal.
var separates = [256]bool{',': true, ':': true, '{': true, '}': true, '[': true, ']': true, '"': true, ' ': true}

// hasControl reports whether a byte is less than a space, of eight at once: a byte that borrows when the space is
// subtracted gets its highest bit, which it did not have before.
func hasControl(b []byte) bool {
	const spaces, highest = 0x2020202020202020, 0x8080808080808080
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
		n, err = strconv.ParseFloat(string(v.MarshalTo(scratch)), 64)
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

// appendJSON writes a value as JSON. fastjson's own writer uses Go's escapes for control characters, which is no JSON.
// Numbers keep the client's digits.
func appendJSON(dst []byte, v *fastjson.Value) []byte {
	switch v.Type() {
	case fastjson.TypeObject:
		dst = append(dst, '{')
		start := len(dst)
		v.GetObject().Visit(func(key []byte, v *fastjson.Value) {
			if len(dst) > start {
				dst = append(dst, ',')
			}
			dst = append(appendString(dst, key), ':')
			dst = appendJSON(dst, v)
		})
		return append(dst, '}')
	case fastjson.TypeArray:
		dst = append(dst, '[')
		for i, v := range v.GetArray() {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendJSON(dst, v)
		}
		return append(dst, ']')
	case fastjson.TypeString:
		return appendString(dst, v.GetStringBytes())
	}
	return v.MarshalTo(dst)
}

func appendString(dst, s []byte) []byte {
	if hasControl(s) || bytes.IndexByte(s, '"') >= 0 || bytes.IndexByte(s, '\\') >= 0 {
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
