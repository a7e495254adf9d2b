package play

import (
	"encoding/json"
	"strconv"
)

// shift moves the numbers from..to by so many milliseconds. The zero value moves nothing.
type shift struct{ from, to, by int64 }

// rewrite changes a JSON text in place: it moves every number that is an epoch time within the shift and asks replace
// for the new value of every string that is a field's value. All else stays byte for byte: the order of keys, numbers
// beyond 2^53, fractions, spacing and doubled keys. A text that is not valid JSON comes back as it is.
func rewrite(text string, times shift, replace func(key, value string) (string, bool)) string {
	if !json.Valid([]byte(text)) {
		return text
	}
	out := make([]byte, 0, len(text)+len(text)/16)
	key := "" // of the field whose value comes next
	for i := 0; i < len(text); {
		switch c := text[i]; {
		case c == '"':
			end := stringEnd(text, i)
			raw := text[i:end]
			if isKey(text, end) {
				key = unquote(raw)
			} else if key != "" {
				if value, ok := replace(key, unquote(raw)); ok {
					quoted, _ := json.Marshal(value) // a string always marshals
					raw = string(quoted)
				}
				key = ""
			}
			out = append(out, raw...)
			i = end
		case c == '-' || c >= '0' && c <= '9':
			end := i + 1
			for end < len(text) && isNumberByte(text[end]) {
				end++
			}
			out = times.appendMoved(out, text[i:end])
			key = ""
			i = end
		default:
			if c == '{' || c == '[' {
				key = ""
			}
			out = append(out, c)
			i++
		}
	}
	return string(out)
}

// stringEnd is the position after the string that begins at start; the text is valid JSON.
func stringEnd(text string, start int) int {
	i := start + 1
	for text[i] != '"' {
		if text[i] == '\\' {
			i++
		}
		i++
	}
	return i + 1
}

// isKey says whether what ended at i is a field's name.
func isKey(text string, i int) bool {
	for i < len(text) && (text[i] == ' ' || text[i] == '\t' || text[i] == '\n' || text[i] == '\r') {
		i++
	}
	return i < len(text) && text[i] == ':'
}

func unquote(raw string) string {
	var s string
	_ = json.Unmarshal([]byte(raw), &s) // valid: the whole text is
	return s
}

func isNumberByte(c byte) bool {
	return c >= '0' && c <= '9' || c == '.' || c == 'e' || c == 'E' || c == '+' || c == '-'
}

// appendMoved writes number with its whole part moved and its fraction as it was.
func (s shift) appendMoved(out []byte, number string) []byte {
	whole := 0
	for whole < len(number) && number[whole] >= '0' && number[whole] <= '9' {
		whole++
	}
	ms, err := strconv.ParseInt(number[:whole], 10, 64)
	plain := whole == len(number) || number[whole] == '.' && !hasExponent(number[whole:])
	if err != nil || !plain || ms < s.from || ms > s.to || s.by == 0 {
		return append(out, number...)
	}
	out = strconv.AppendInt(out, ms+s.by, 10)
	return append(out, number[whole:]...)
}

func hasExponent(s string) bool {
	for i := range len(s) {
		if s[i] == 'e' || s[i] == 'E' {
			return true
		}
	}
	return false
}
