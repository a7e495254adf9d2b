package vocabulary

import (
	"math"

	"github.com/valyala/fastjson"
)

// A table says which field of a message holds which JSON member, old spellings included. It is the place to look up
// what becomes of a client's member; what no table names goes to extra_json.
type table[M any] map[string]field[M]

// field puts a value into a message. It returns false when the value does not fit; then it is kept as a leftover.
// null never gets here: it means that the client did not say.
type field[M any] func(m *M, a *argument) bool

type argument struct {
	d    *decoding
	key  []byte
	v    *fastjson.Value
	left *leftovers
}

// decoding is what the fields of one message share.
type decoding struct {
	truncated bool
	floats    []float64 // numbers are kept in blocks, because a report has hundreds of optional ones
}

func (d *decoding) float(n float64) *float64 {
	if len(d.floats) == cap(d.floats) {
		d.floats = make([]float64, 0, 64)
	}
	d.floats = append(d.floats, n)
	return &d.floats[len(d.floats)-1]
}

// decode puts the members of an object into m. Those that the table does not know, or that do not fit, go to left.
func decode[M any](d *decoding, o *fastjson.Object, t table[M], m *M, left *leftovers) {
	a := &argument{d: d, left: left}
	o.Visit(func(key []byte, v *fastjson.Value) {
		a.key, a.v = key, v
		take(a, t, m)
	})
}

// take puts one member into m or into the leftovers.
func take[M any](a *argument, t table[M], m *M) {
	if f, known := t[string(a.key)]; known && (a.v.Type() == fastjson.TypeNull || f(m, a)) {
		return
	}
	a.left.add(a.key, a.v)
}

// ignored is a member that another field or the message's type says already.
func ignored[M any](*M, *argument) bool { return true }

func str[M any](field func(*M) *string) field[M] {
	return func(m *M, a *argument) bool {
		if !isText(a.v) {
			return false
		}
		*field(m) = text(a.v)
		return true
	}
}

// sameStr is one of several spellings that a client may send side by side: the first counts, another value is kept as
// a leftover.
func sameStr[M any](field func(*M) *string) field[M] {
	return func(m *M, a *argument) bool {
		if !isText(a.v) {
			return false
		}
		s := text(a.v)
		if *field(m) == "" {
			*field(m) = s
		}
		return *field(m) == s
	}
}

// cutStr is a text that is cut to a limit.
func cutStr[M any](field func(*M) *string, cut func(string, int) (string, bool), limit int) field[M] {
	return func(m *M, a *argument) bool {
		if !isText(a.v) {
			return false
		}
		s, short := cut(text(a.v), limit)
		*field(m) = s
		a.d.truncated = a.d.truncated || short
		return true
	}
}

func num[M any](field func(*M) **float64) field[M] { return scaled(field, 1) }

// scaled is a number in another unit; factor turns the client's into ours.
func scaled[M any](field func(*M) **float64, factor float64) field[M] {
	return func(m *M, a *argument) bool {
		n, ok := number(a.v)
		if !ok {
			return false
		}
		*field(m) = a.d.float(n * factor)
		return true
	}
}

// plainNum is a number whose absence is 0.
func plainNum[M any](field func(*M) *float64) field[M] {
	return func(m *M, a *argument) bool {
		n, ok := number(a.v)
		if ok {
			*field(m) = n
		}
		return ok
	}
}

func uint32Num[M any](field func(*M) **uint32) field[M] {
	return func(m *M, a *argument) bool {
		n, ok := number(a.v)
		if !ok || n < 0 || n > math.MaxUint32 || n != math.Trunc(n) {
			return false
		}
		u := uint32(n)
		*field(m) = &u
		return true
	}
}

func boolField[M any](field func(*M) **bool) field[M] {
	return func(m *M, a *argument) bool {
		b, ok := boolean(a.v)
		if ok {
			*field(m) = &b
		}
		return ok
	}
}

func plainBool[M any](field func(*M) *bool) field[M] {
	return func(m *M, a *argument) bool {
		b, ok := boolean(a.v)
		if ok {
			*field(m) = b
		}
		return ok
	}
}

// jsonOf keeps the value as JSON.
func jsonOf[M any](kind fastjson.Type, field func(*M) *string) field[M] {
	return func(m *M, a *argument) bool {
		if a.v.Type() != kind {
			return false
		}
		*field(m) = string(appendJSON(nil, a.v))
		return true
	}
}

// nested is an object with a table of its own. What it leaves is kept under its name.
func nested[M, N any](t table[N], field func(*M) **N) field[M] {
	return func(m *M, a *argument) bool {
		if a.v.Type() != fastjson.TypeObject {
			return false
		}
		var left leftovers
		n := new(N)
		decode(a.d, a.v.GetObject(), t, n, &left)
		*field(m) = n
		a.keep(left.object())
		return true
	}
}

// inner is an object whose members belong to the message around it.
func inner[M any](t table[M]) field[M] {
	return func(m *M, a *argument) bool {
		if a.v.Type() != fastjson.TypeObject {
			return false
		}
		var left leftovers
		decode(a.d, a.v.GetObject(), t, m, &left)
		a.keep(left.object())
		return true
	}
}

func (a *argument) keep(object string) {
	if object != "" {
		a.left.addJSON(a.key, object)
	}
}

// list is an array of objects. What they leave is kept under the array's name, one object for each, so that the
// positions tell what belongs together.
func list[M, N any](t table[N], field func(*M) *[]*N) field[M] {
	return func(m *M, a *argument) bool {
		items, ok := objects(a.v)
		if !ok {
			return false
		}
		out := make([]*N, len(items))
		some, rest := false, []byte{'['}
		for i, o := range items {
			var left leftovers
			out[i] = new(N)
			decode(a.d, o, t, out[i], &left)
			if i > 0 {
				rest = append(rest, ',')
			}
			some = some || len(left.members) > 0
			rest = append(append(append(rest, '{'), left.members...), '}')
		}
		*field(m) = out
		if some {
			a.keep(string(append(rest, ']')))
		}
		return true
	}
}

func objects(v *fastjson.Value) ([]*fastjson.Object, bool) {
	if v.Type() != fastjson.TypeArray {
		return nil, false
	}
	items := v.GetArray()
	out := make([]*fastjson.Object, len(items))
	for i, item := range items {
		if item.Type() != fastjson.TypeObject {
			return nil, false
		}
		out[i] = item.GetObject()
	}
	return out, true
}

func strs[M any](field func(*M) *[]string) field[M] {
	return func(m *M, a *argument) bool {
		if a.v.Type() != fastjson.TypeArray {
			return false
		}
		var out []string
		for _, item := range a.v.GetArray() {
			if item.Type() != fastjson.TypeString {
				return false
			}
			out = append(out, string(item.GetStringBytes()))
		}
		*field(m) = out
		return true
	}
}
