package config

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
)

const (
	fileSuffix  = "_file"
	bytesSuffix = "_bytes"
)

// field is one setting: a leaf of the configuration struct.
type field struct {
	key    string
	value  reflect.Value // settable
	secret bool
}

var (
	secretType      = reflect.TypeFor[Secret]()
	durationType    = reflect.TypeFor[time.Duration]()
	unmarshalerType = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// fieldsOf lists the settings of a pointer to a struct in the order of its fields. Fields without a koanf tag are no
// settings; a tag ",squash" puts a struct's fields beside its neighbours, where those before it hide its fields of the
// same name.
func fieldsOf(target any) []field {
	v := reflect.ValueOf(target)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("config.Load needs a pointer to a struct, not %T", target))
	}
	return appendFields(nil, "", v.Elem())
}

func appendFields(list []field, prefix string, v reflect.Value) []field {
	for i := range v.NumField() {
		name, options, _ := strings.Cut(v.Type().Field(i).Tag.Get("koanf"), ",")
		squash := options == "squash"
		if name == "-" || name == "" && !squash {
			continue
		}
		f := field{key: prefix + name, value: v.Field(i), secret: v.Field(i).Type() == secretType}
		switch {
		case squash:
			list = appendFields(list, prefix, f.value)
		case f.value.Kind() == reflect.Struct && !isText(f.value):
			list = appendFields(list, f.key+".", f.value)
		case !slices.ContainsFunc(list, func(g field) bool { return g.key == f.key }):
			list = append(list, f)
		}
	}
	return list
}

func isText(v reflect.Value) bool { return v.Addr().Type().Implements(unmarshalerType) }

// decode puts raw, as a YAML file or a text gave it, into f. The error says what was there and what is allowed.
func decode(f field, raw any) error {
	v, text := f.value, ""
	switch raw := raw.(type) {
	case string:
		text = raw
	case nil:
		return errors.New("has no value")
	default:
		text = fmt.Sprint(raw)
	}
	list, isList := raw.([]any)
	_, isMap := raw.(map[string]any)
	scalar := !isList && !isMap
	switch {
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() != reflect.Struct && !isText(v):
		return decodeList(f, raw, list, isList)
	case v.Kind() == reflect.Map, v.Kind() == reflect.Slice && !isText(v):
		return decodeDeep(f, raw)
	case !scalar:
		return errors.New("want one value, not a list or a section")
	case isText(v):
		if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text)); err != nil {
			return fmt.Errorf("%q is not allowed: %w", text, err)
		}
	case v.Type() == durationType:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is not a duration; write a number with its unit, such as 500ms, 10s or 2h30m", text)
		}
		v.SetInt(int64(d))
	case v.Kind() == reflect.String:
		v.SetString(text)
	case v.Kind() == reflect.Bool:
		switch strings.ToLower(text) {
		case "true":
			v.SetBool(true)
		case "false":
			v.SetBool(false)
		default:
			return fmt.Errorf("%q is not true or false", text)
		}
	case v.CanInt(), v.CanUint():
		return decodeWhole(f, text)
	case v.CanFloat():
		n, err := strconv.ParseFloat(text, v.Type().Bits())
		if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
			return fmt.Errorf("%q is not a number", text)
		}
		v.SetFloat(n)
	default:
		panic(fmt.Sprintf("setting %s has the type %s, which nothing can be decoded into", f.key, v.Type()))
	}
	return nil
}

func decodeWhole(f field, text string) error {
	what, n, err := "a whole number", int64(0), error(nil)
	if strings.HasSuffix(f.key, bytesSuffix) {
		what = "a size; write bytes, or a number with KB, MB, GB, KiB, MiB or GiB"
		n, err = parseSize(text)
	} else {
		n, err = strconv.ParseInt(text, 10, 64)
	}
	if err != nil {
		return fmt.Errorf("%q is not %s", text, what)
	}
	if f.value.CanUint() {
		if n < 0 || f.value.OverflowUint(uint64(n)) {
			return fmt.Errorf("%s is out of range; it must fit in %d bits without a sign", text, f.value.Type().Bits())
		}
		f.value.SetUint(uint64(n))
		return nil
	}
	if f.value.OverflowInt(n) {
		return fmt.Errorf("%s is out of range; it must fit in %d bits", text, f.value.Type().Bits())
	}
	f.value.SetInt(n)
	return nil
}

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

func parseSize(text string) (int64, error) {
	factor := int64(1)
	number := strings.TrimSpace(text)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(number, u.suffix); ok {
			number, factor = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err == nil && (n > math.MaxInt64/factor || n < math.MinInt64/factor) {
		err = strconv.ErrRange
	}
	return n * factor, err
}

// decodeList takes a YAML list, or text with commas between the values; empty text is an empty list.
func decodeList(f field, raw any, list []any, isList bool) error {
	if text, ok := raw.(string); ok && strings.TrimSpace(text) != "" {
		for part := range strings.SplitSeq(text, ",") {
			list = append(list, strings.TrimSpace(part))
		}
	} else if !ok && !isList {
		list = []any{raw}
	}
	values := reflect.MakeSlice(f.value.Type(), len(list), len(list))
	for i, item := range list {
		if err := decode(field{key: f.key, value: values.Index(i)}, item); err != nil {
			return fmt.Errorf("value %d: %w", i+1, err)
		}
	}
	f.value.Set(values)
	return nil
}

// decodeDeep takes maps and lists of structs, from YAML or as JSON text.
func decodeDeep(f field, raw any) error {
	if text, ok := raw.(string); ok {
		raw = nil
		if err := json.Unmarshal([]byte(text), &raw); err != nil {
			return fmt.Errorf("is not valid JSON, which this setting needs when it is given as text: %w", err)
		}
	}
	fresh := reflect.New(f.value.Type())
	d, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		TagName: "koanf", ErrorUnused: true, WeaklyTypedInput: true, Result: fresh.Interface(),
		DecodeHook: mapstructure.ComposeDecodeHookFunc(
			mapstructure.StringToTimeDurationHookFunc(), mapstructure.TextUnmarshallerHookFunc()),
	})
	if err != nil {
		return err
	}
	if err := d.Decode(raw); err != nil {
		return errors.New(oneLine(err))
	}
	f.value.Set(fresh.Elem())
	return nil
}
