package embedded

import "strings"

// insertText is an INSERT statement whose data follows its text.
type insertText struct {
	statement string // up to FORMAT or VALUES
	format    string
	data      int // offset of the data in the text
}

// splitInsert finds where the data of an INSERT begins in text, which may end
// anywhere in the data. It returns ok false for other statements, for INSERT …
// SELECT, and when the text ends before the data's format is named.
func splitInsert(text string) (insert insertText, ok bool) {
	s := scanner{text: text}
	if word, _ := s.word(); !strings.EqualFold(word, "INSERT") {
		return insertText{}, false
	}
	previous := "INSERT"
	for {
		word, start := s.word()
		if word == "" {
			return insertText{}, false
		}
		isName := strings.EqualFold(previous, "INTO") || strings.EqualFold(previous, "TABLE") || strings.HasSuffix(text[:start], ".")
		previous = word
		if isName {
			continue
		}
		switch strings.ToUpper(word) {
		case "SELECT", "WITH", "FROM", "WATCH":
			return insertText{}, false
		case "VALUES":
			return insertText{text[:start], "Values", s.at}, true
		case "FORMAT":
			format, _ := s.word()
			if format == "" {
				return insertText{}, false
			}
			// The data begins after the first line end, or else after the
			// blanks: ClickHouse's own rule.
			data := s.at
			for data < len(text) && strings.IndexByte(" \t\f\r", text[data]) >= 0 {
				data++
			}
			if data < len(text) && text[data] == '\n' {
				data++
			}
			return insertText{text[:start], format, data}, true
		}
	}
}

// isInsert reports whether the first word of text is INSERT.
func isInsert(text string) bool { return strings.EqualFold(firstWord(text), "INSERT") }

func firstWord(text string) string {
	word, _ := (&scanner{text: text}).word()
	return word
}

// scanner walks over SQL text and stops at words and quoted text outside of
// brackets.
type scanner struct {
	text  string
	at    int
	depth int
}

// word returns the next word, or quoted text with its quotes, and its offset,
// or "" at the end of the text. It passes over comments, brackets with what is
// in them, numbers and punctuation.
func (s *scanner) word() (string, int) {
	for s.at < len(s.text) {
		rest := s.text[s.at:]
		c := rest[0]
		switch {
		case strings.HasPrefix(rest, "--"):
			s.skipPast(rest, "\n")
		case strings.HasPrefix(rest, "/*"):
			s.skipPast(rest, "*/")
		case c == '\'' || c == '"' || c == '`':
			start := s.at
			s.skipQuoted(rest, c)
			if s.depth <= 0 {
				return s.text[start:s.at], start
			}
		case c == '(' || c == '[' || c == '{':
			s.depth++
			s.at++
		case c == ')' || c == ']' || c == '}':
			s.depth--
			s.at++
		case isWordByte(c):
			n := 1
			for n < len(rest) && isWordByte(rest[n]) {
				n++
			}
			start := s.at
			s.at += n
			if s.depth <= 0 && (c < '0' || c > '9') {
				return rest[:n], start
			}
		default:
			s.at++
		}
	}
	return "", len(s.text)
}

func (s *scanner) skipPast(rest, end string) {
	if i := strings.Index(rest, end); i >= 0 {
		s.at += i + len(end)
		return
	}
	s.at = len(s.text)
}

func (s *scanner) skipQuoted(rest string, quote byte) {
	for i := 1; i < len(rest); i++ {
		switch rest[i] {
		case '\\':
			i++
		case quote: // a doubled quote reads as the end and a new beginning
			s.at += i + 1
			return
		}
	}
	s.at = len(s.text)
}

func isWordByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}
