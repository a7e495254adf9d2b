package vocabulary

import (
	"maps"
	"math"

	"github.com/valyala/fastjson"
)

// fields say which field of a message holds which JSON member, old spellings included. It is the place to look up what
// becomes of a client's member; what no table names goes to extra_json.
type fields[M any] map[string]field[M]

// A table finds fields by name. It is a hash table with linear probing, a power of two long and mostly empty: half of
// the members of a report are not in it, and a message has hundreds of them, for which a map takes three times as long.
type table[M any] []struct {
	name string
	put  field[M]
}

// compile makes the table of all fields that are given.
func compile[M any](parts ...fields[M]) table[M] {
	all := make(fields[M])
	for _, part := range parts {
		maps.Copy(all, part)
	}
	size := 4
	for size < 4*len(all) {
		size *= 2
	}
	t := make(table[M], size)
	for name, f := range all {
		i := slot([]byte(name)) % size
		for t[i].put != nil {
			i = (i + 1) % size
		}
		t[i].name, t[i].put = name, f
	}
	return t
}

// slot is a hash that looks at the length and three bytes of a name.
func slot(name []byte) int {
	n := len(name)
	if n == 0 {
		return 0
	}
	return n + 7*int(name[0]) + 31*int(name[n/2]) + 113*int(name[n-1])
}

// find returns nil for a name that the table does not have; a nil table has none.
func (t table[M]) find(name []byte) field[M] {
	mask := len(t) - 1
	for i := slot(name); mask >= 0; i++ {
		entry := &t[i&mask]
		if entry.put == nil || entry.name == string(name) {
			return entry.put
		}
	}
	return nil
}

// field puts a value into a message. It returns false when the value does not fit; then it is kept as a leftover.
// null never gets here: it means that the client did not say.
type field[M any] func(m *M, a argument) bool

type argument struct {
	leftovers
	key []byte
	v   *fastjson.Value
}

// decode puts the members of an object into m. Those that the table does not know, or that do not fit, go to left.
func decode[M any](left leftovers, o *fastjson.Object, t table[M], m *M) {
	o.Visit(func(key []byte, v *fastjson.Value) {
		if put := t.find(key); put == nil || v.Type() != fastjson.TypeNull && !put(m, argument{left, key, v}) {
			left.add(key, v)
		}
	})
}

// take puts one member into m or into the leftovers.
func take[M any](a argument, t table[M], m *M) {
	if put := t.find(a.key); put == nil || a.v.Type() != fastjson.TypeNull && !put(m, a) {
		a.add(a.key, a.v)
	}
}

// ignored is a member that another field or the message's type says already.
func ignored[M any](*M, argument) bool { return true }

func str[M any](field func(*M) *string) field[M] {
	return func(m *M, a argument) bool {
		if !isText(a.v) {
			return false
		}
		*field(m) = a.d.text(a.v)
		return true
	}
}

// sameStr is one of several spellings that a client may send side by side: the first counts, another value is kept as
// a leftover.
func sameStr[M any](field func(*M) *string) field[M] {
	return func(m *M, a argument) bool {
		if !isText(a.v) {
			return false
		}
		s := a.d.bytes(a.v)
		if first := *field(m); first != "" {
			return first == string(s)
		}
		*field(m) = a.d.keep(s)
		return true
	}
}

// cutStr is a text that is cut to a limit.
func cutStr[M any](field func(*M) *string, cut func(string, int) (string, bool), limit int) field[M] {
	return func(m *M, a argument) bool {
		if !isText(a.v) {
			return false
		}
		s, short := cut(a.d.text(a.v), limit)
		*field(m) = s
		a.d.truncated = a.d.truncated || short
		return true
	}
}

func num[M any](field func(*M) **float64) field[M] { return scaled(field, 1) }

// scaled is a number in another unit; factor turns the client's into ours.
func scaled[M any](field func(*M) **float64, factor float64) field[M] {
	return func(m *M, a argument) bool {
		n, ok := a.d.number(a.v)
		if !ok {
			return false
		}
		*field(m) = a.d.float(n * factor)
		return true
	}
}

// plainNum is a number whose absence is 0.
func plainNum[M any](field func(*M) *float64) field[M] {
	return func(m *M, a argument) bool {
		n, ok := a.d.number(a.v)
		if ok {
			*field(m) = n
		}
		return ok
	}
}

func uint32Num[M any](field func(*M) **uint32) field[M] {
	return func(m *M, a argument) bool {
		n, ok := a.d.number(a.v)
		if !ok || n < 0 || n > math.MaxUint32 || n != math.Trunc(n) {
			return false
		}
		u := uint32(n)
		*field(m) = &u
		return true
	}
}

func boolField[M any](field func(*M) **bool) field[M] {
	return func(m *M, a argument) bool {
		b, ok := boolean(a.v)
		if ok {
			*field(m) = &b
		}
		return ok
	}
}

func plainBool[M any](field func(*M) *bool) field[M] {
	return func(m *M, a argument) bool {
		b, ok := boolean(a.v)
		if ok {
			*field(m) = b
		}
		return ok
	}
}

// jsonOf keeps the value as JSON.
func jsonOf[M any](kind fastjson.Type, field func(*M) *string) field[M] {
	return func(m *M, a argument) bool {
		if a.v.Type() != kind {
			return false
		}
		*field(m) = a.d.json(a.v)
		return true
	}
}

// nested is an object with a table of its own. What it leaves is kept under its name.
func nested[M, N any](t table[N], field func(*M) **N) field[M] {
	return func(m *M, a argument) bool {
		if a.v.Type() != fastjson.TypeObject {
			return false
		}
		n := new(N)
		mark, left := a.open(a.key)
		decode(left, a.v.GetObject(), t, n)
		a.close(mark, left)
		*field(m) = n
		return true
	}
}

// inner is an object whose members belong to the message around it.
func inner[M any](t table[M]) field[M] {
	return func(m *M, a argument) bool {
		if a.v.Type() != fastjson.TypeObject {
			return false
		}
		mark, left := a.open(a.key)
		decode(left, a.v.GetObject(), t, m)
		a.close(mark, left)
		return true
	}
}

// list is an array of objects. What they leave is kept under the array's name, one object for each, so that the
// positions tell what belongs together.
func list[M, N any](t table[N], field func(*M) *[]*N) field[M] {
	return func(m *M, a argument) bool {
		if !isObjects(a.v) {
			return false
		}
		items := a.v.GetArray()
		block, out := make([]N, len(items)), make([]*N, len(items))
		mark := len(a.d.left)
		a.name(a.key)
		separator, some := byte('['), false
		for i, item := range items {
			a.d.left = append(a.d.left, separator)
			separator = ','
			left := a.d.begin()
			out[i] = &block[i]
			decode(left, item.GetObject(), t, out[i])
			some = some || !left.empty()
			a.d.left = append(a.d.left, '}')
		}
		*field(m) = out
		if some {
			a.d.left = append(a.d.left, ']')
		} else {
			a.d.left = a.d.left[:mark]
		}
		return true
	}
}

func isObjects(v *fastjson.Value) bool {
	if v.Type() != fastjson.TypeArray {
		return false
	}
	for _, item := range v.GetArray() {
		if item.Type() != fastjson.TypeObject {
			return false
		}
	}
	return true
}

func strs[M any](field func(*M) *[]string) field[M] {
	return func(m *M, a argument) bool {
		if a.v.Type() != fastjson.TypeArray {
			return false
		}
		var out []string
		for _, item := range a.v.GetArray() {
			if item.Type() != fastjson.TypeString {
				return false
			}
			out = append(out, a.d.text(item))
		}
		*field(m) = out
		return true
	}
}
