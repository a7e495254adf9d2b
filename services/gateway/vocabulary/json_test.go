package vocabulary

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/valyala/fastjson"
	"pgregory.net/rapid"
)

// sameJudgement compares valid with the library's validator about what its parser accepted.
func sameJudgement(t reporter, body []byte) {
	var p fastjson.Parser
	root, err := p.ParseBytes(body)
	if err != nil {
		return
	}
	if got, want := valid(body, root, isPlain(body)), fastjson.ValidateBytes(body) == nil; got != want {
		t.Fatalf("valid(%q) = %v, the validator says %v", body, got, want)
	}
}

// TestValid puts scalars, right and wrong ones, into every place that a value or a name can have.
func TestValid(t *testing.T) {
	places := []string{`%`, ` % `, `[%]`, `[1,% ,"x"]`, `{"a":%}`, `{"a": % ,"b":[%]}`, "{\"a\":\t%\n}", `["\\",%]`, `[true,%,null]`}
	scalars := []string{
		"0", "7", "10", "00", "01", "-0", "-", "-1", "+1", "1.", ".5", "1.5", "0.5", "1.2.3", "1e3", "1E+3", "1e", "1e-", "1-2", "12e3.4", "--1",
		"true", "false", "null", "nan", "NaN", "-inf", "Infinity", "inf", "+nan", "9007199254740993", strings.Repeat("9", 40),
		`""`, `"x"`, `"12"`, `"a:b,c{}[] "`, `"é"`, "\"a\x1fb\"", "\"12345678\x00\"", "\"\x7f\"", "\"\xc2\x80\"", `"\n"`, `"\q"`, `"\""`, `"\u00g0"`, `"\ud83d"`, `{}`, `[]`,
	}
	for _, place := range places {
		for _, scalar := range scalars {
			sameJudgement(t, []byte(strings.ReplaceAll(place, "%", scalar)))
		}
	}
	for _, name := range []string{`"a"`, `"a b"`, `"1"`, "\"\x01\"", `"\q"`, `"\t"`} {
		sameJudgement(t, []byte(`{`+name+`:1}`))
	}
}

// TestValidMutated changes some bytes of JSON.
func TestValidMutated(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		body, err := json.Marshal(jsonObject(3).Draw(rt, "message"))
		if err != nil {
			rt.Fatal(err)
		}
		for range rapid.IntRange(0, 3).Draw(rt, "changes") {
			at := rapid.IntRange(0, len(body)-1).Draw(rt, "at")
			body[at] = rapid.SampledFrom([]byte("0019-+.eE \"\\,:[]{}\x00\x1f\x20\x7f\nnt")).Draw(rt, "byte")
		}
		sameJudgement(rt, body)
	})
}

// TestNumber compares with the standard library, which reads any JSON number to the nearest float64.
func TestNumber(t *testing.T) {
	texts := []string{"0", "7", "-0", "-7", "10", "1.5", "1e3", "1E+3", "-2.5e-3", "1e400"}
	for digits := 1; digits < 20; digits++ {
		texts = append(texts, strings.Repeat("9", digits), "1"+strings.Repeat("0", digits-1)+"3", strings.Repeat("9", digits)+".25")
	}
	for _, text := range texts {
		var want float64
		wantOK := json.Unmarshal([]byte(text), &want) == nil
		got, ok := number(fastjson.MustParse(text), nil)
		if ok != wantOK || ok && (got != want || math.Signbit(got) != math.Signbit(want)) {
			t.Errorf("number(%s) = %v, %v; want %v, %v", text, got, ok, want, wantOK)
		}
	}
}

func TestHasControl(t *testing.T) {
	for size := range 20 {
		for at := range size {
			for c := range 256 {
				text := []byte(strings.Repeat("\xff \x7f\x80", 5)[:size])
				text[at] = byte(c)
				if got, want := hasControl(text), c < ' '; got != want {
					t.Fatalf("hasControl(%q) = %v", text, got)
				}
			}
		}
	}
}
