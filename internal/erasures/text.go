package erasures

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/bits"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf16"
)

// Spellings are the ways in which an id is written inside of texts: as it is, escaped as in JSON, as in JSON that is
// ASCII alone, and as in URLs (callstats clients write connection ids so). Each is there once.
func Spellings(id string) []string {
	quote := func(escapeHTML bool) string {
		var b bytes.Buffer
		encoder := json.NewEncoder(&b)
		encoder.SetEscapeHTML(escapeHTML)
		if err := encoder.Encode(id); err != nil {
			return id // no text that is valid UTF-8 fails, and other ids never get this far
		}
		return strings.TrimSuffix(strings.TrimPrefix(strings.TrimSuffix(b.String(), "\n"), `"`), `"`)
	}
	plain := quote(false)
	var ascii strings.Builder
	for _, r := range plain {
		if r < 0x80 {
			ascii.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&ascii, `\u%04x`, unit)
		}
	}
	// encodeURIComponent leaves more as it is than Go does.
	uri := strings.NewReplacer("+", "%20", "%21", "!", "%27", "'", "%28", "(", "%29", ")", "%2A", "*").Replace(url.QueryEscape(id))
	var list []string
	for _, s := range []string{id, plain, quote(true), ascii.String(), uri} {
		if s != "" && !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

// shortID: an id of fewer bytes is recognised only as a whole value or a whole JSON string. Anywhere else it would be a
// part of words that mean something different.
const shortID = 4

// numeric tells whether an id reads as a number. In JSON it is then left alone where it is one: most numbers there are
// measurements.
func numeric(id string) bool {
	digit := false
	for i := range len(id) {
		switch c := id[i]; {
		case '0' <= c && c <= '9':
			digit = true
		case strings.IndexByte("+-.eE", c) < 0:
			return false
		}
	}
	return digit
}

// isWordByte tells whether a letter, digit or underscore of ASCII beside an id makes it a part of a longer word.
func isWordByte(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_'
}

// stands tells whether text[from:to], which has the bytes of an id, is the id and no part of something else. The store's
// rewriting of rows follows the same rules by Patterns, and a test holds one against the other.
func stands(text string, from, to int) bool {
	id := text[from:to]
	before, after := -1, -1
	if from > 0 {
		before = int(text[from-1])
	}
	if to < len(text) {
		after = int(text[to])
	}
	if len(id) < shortID {
		return (before < 0 || before == '"') && (after < 0 || after == '"' || after == '\\')
	}
	if isWordByte(id[0]) && before >= 0 && isWordByte(byte(before)) || isWordByte(id[len(id)-1]) && after >= 0 && isWordByte(byte(after)) {
		return false
	}
	if after == '@' && isWordByte(id[len(id)-1]) {
		return false // the local part of somebody's address
	}
	if !numeric(id) {
		return true
	}
	if before == '.' || after == '.' {
		return false
	}
	return !(is(before, ":,[-") && is(after, ",]}"))
}

// Patterns are the rule of stands as regular expressions (RE2), for whoever rewrites texts in a database. Each has two
// groups, what is before the spelling and after it. What is between two spellings is a part of the first match, so
// replacing has to be done twice.
func Patterns(spelling string) []string {
	const word = `0-9A-Za-z_`
	id, first, last := regexp.QuoteMeta(spelling), "", ""
	if isWordByte(spelling[0]) {
		first = word
	}
	if isWordByte(spelling[len(spelling)-1]) {
		last = word + "@"
	}
	switch {
	case len(spelling) < shortID:
		return []string{`(^|")` + id + `($|["\\])`}
	case numeric(spelling):
		return []string{
			`(^|[^:,\[\-.` + first + `])` + id + `($|[^.` + last + `])`,
			`([:,\[\-])` + id + `($|[^.,\]}` + last + `])`,
		}
	}
	before, after := "()", "()"
	if first != "" {
		before = `(^|[^` + first + `])`
	}
	if last != "" {
		after = `($|[^` + last + `])`
	}
	return []string{before + id + after}
}

func is(c int, any string) bool { return c >= 0 && strings.IndexByte(any, byte(c)) >= 0 }

// contains tells whether a spelling stands in a text.
func contains(text, spelling string) bool {
	for from := 0; ; from++ {
		i := strings.Index(text[from:], spelling)
		if i < 0 {
			return false
		}
		if from += i; stands(text, from, from+len(spelling)) {
			return true
		}
	}
}

// The rolling hash is a polynomial over the bytes with a secret base (Rabin and Karp), so that all places of a text are
// tried in one pass for each length of ids. It only chooses what the keyed hash then confirms.
const rollingPrime = 1<<61 - 1

func mulMod(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	sum := lo&rollingPrime + (lo>>61 | hi<<3)
	if sum >= rollingPrime {
		sum -= rollingPrime
	}
	return sum
}

func (k *Key) rolling(text string) uint64 {
	h := uint64(0)
	for i := range len(text) {
		h = k.push(h, text[i])
	}
	return h
}

func (k *Key) push(h uint64, c byte) uint64 {
	h = mulMod(h, k.base) + uint64(c) + 1
	if h >= rollingPrime {
		h -= rollingPrime
	}
	return h
}

// power is base to the n-th.
func (k *Key) power(n int) uint64 {
	p := uint64(1)
	for range n {
		p = mulMod(p, k.base)
	}
	return p
}

// needles are the spellings of one length.
type needles struct {
	length int
	top    uint64 // base to the length: what a byte counts when it leaves
	byWeak map[uint64][]needle
}

type needle struct {
	hash []byte
	user *user
}

// match is a place in a text where a user stands.
type match struct {
	from, to int
	user     *user
}

// find gives the places where erased users stand, from left to right, the longest of those that overlap. covered says
// whether a user's erasure speaks of the message.
func (a *app) find(text string, covered func(*user) bool) []match {
	var all []match
	for _, n := range a.needles {
		if n.length > len(text) {
			continue
		}
		h := a.key.rolling(text[:n.length])
		for from := 0; ; from++ {
			for _, candidate := range n.byWeak[h] {
				id := text[from : from+n.length]
				if covered(candidate.user) && stands(text, from, from+n.length) && bytes.Equal(a.key.hash("needle", a.id, id), candidate.hash) {
					all = append(all, match{from, from + n.length, candidate.user})
					break
				}
			}
			if from+n.length >= len(text) {
				break
			}
			h = a.key.push(h, text[from+n.length])
			out := mulMod(uint64(text[from])+1, n.top)
			if h < out {
				h += rollingPrime
			}
			h -= out
		}
	}
	slices.SortFunc(all, func(a, b match) int {
		if a.from != b.from {
			return a.from - b.from
		}
		return b.to - a.to
	})
	kept, end := all[:0], 0
	for _, m := range all {
		if m.from >= end {
			kept, end = append(kept, m), m.to
		}
	}
	return kept
}

// replace puts pseudonyms into a text. changed is false where nobody stands in it.
func (a *app) replace(text string, covered func(*user) bool) (result string, changed bool) {
	if text == "" {
		return text, false
	}
	matches := a.find(text, covered)
	if len(matches) == 0 {
		return text, false
	}
	var b strings.Builder
	end := 0
	for _, m := range matches {
		b.WriteString(text[end:m.from])
		b.WriteString(m.user.pseudonym)
		end = m.to
	}
	b.WriteString(text[end:])
	return b.String(), true
}

// whole is the user that the whole text names, in any spelling, or by pseudonym; nil for none.
func (a *app) whole(text string, covered func(*user) bool) *user {
	if text == "" {
		return nil
	}
	if u := a.byPseudonym[text]; u != nil && covered(u) {
		return u
	}
	for _, m := range a.find(text, covered) {
		if m.from == 0 && m.to == len(text) {
			return m.user
		}
	}
	return nil
}
