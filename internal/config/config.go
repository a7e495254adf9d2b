// Package config loads the settings of a process, says where each came from and reports everything that is wrong with
// them at once.
//
// It knows no setting itself: the caller gives a struct whose fields carry koanf tags and hold the defaults. It starts
// nothing, and it does not judge values beyond their type; whoever owns a setting checks it and hands the errors to
// Loaded.Invalid.
package config

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
)

// EnvPrefix begins the name of every environment variable that holds a setting: CALLSCOPE_SECTION__KEY.
const EnvPrefix = "CALLSCOPE_"

// otherVariables begin with EnvPrefix and are no settings: the configuration file's path, read by the command line, and
// the engine library's, read by internal/embedded.
var otherVariables = map[string]bool{EnvPrefix + "CONFIG": true, EnvPrefix + "ENGINE_LIBRARY": true}

// Sources are where settings come from, the weakest first. What the target holds already, its defaults, is weaker still.
type Sources struct {
	File    string   // a YAML file's path; empty for none
	Environ []string // "NAME=value" as of os.Environ; only CALLSCOPE_SECTION__KEY is looked at
	Set     []string // "section.key=value" as of --set
	Flags   []Flag   // flags that stand for a setting
}

// Flag is a command-line flag that was given and stands for the setting Key.
type Flag struct{ Name, Key, Value string }

// Loaded is what is in force and where each value came from.
type Loaded struct {
	fields  []field // in the order of the struct
	origins map[string]string
}

// OriginDefault is the origin of a value that nobody set.
const OriginDefault = "default"

// Load puts the settings of src over the defaults in target, a pointer to a struct whose fields have koanf tags.
// Environment variables without a double underscore that are no setting outside of all sections are ignored unless they
// look like a mistyped setting, because container platforms make such variables by themselves (CALLSCOPE_GATEWAY_PORT). The error is an *Error that has every
// problem found.
func Load(target any, src Sources) (*Loaded, error) {
	l := &Loaded{fields: fieldsOf(target), origins: make(map[string]string)}
	var problems []string
	for _, layer := range []func(Sources) (layer, []string){fileLayer, l.envLayer, setLayer, flagLayer} {
		loaded, bad := layer(src)
		problems = append(problems, bad...)
		if loaded.koanf != nil {
			problems = append(problems, l.apply(loaded)...)
		}
	}
	if len(problems) > 0 {
		return l, &Error{Problems: problems}
	}
	return l, nil
}

// layer is one source, parsed.
type layer struct {
	koanf *koanf.Koanf
	// origin says where the value of key came from, for people.
	origin func(key string) string
	// spell writes key as this source spells it.
	spell func(key string) string
}

func asIs(key string) string { return key }

func fileLayer(src Sources) (layer, []string) {
	if src.File == "" {
		return layer{}, nil
	}
	k := koanf.New(".")
	if err := k.Load(file.Provider(src.File), yaml.Parser()); err != nil {
		var path *os.PathError
		if errors.As(err, &path) {
			return layer{}, []string{fmt.Sprintf("cannot read the configuration file %s: %v", src.File, path.Err)}
		}
		return layer{}, []string{fmt.Sprintf("the configuration file %s is not valid YAML: %s", src.File, oneLine(err))}
	}
	return layer{k, func(string) string { return src.File }, asIs}, nil
}

func envName(key string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "__"))
}

func (l *Loaded) envLayer(src Sources) (layer, []string) {
	var problems []string
	k := koanf.New(".")
	err := k.Load(env.Provider(".", env.Opt{
		Prefix:      EnvPrefix,
		EnvironFunc: func() []string { return src.Environ },
		TransformFunc: func(name, value string) (string, any) {
			key := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, EnvPrefix), "__", "."))
			if strings.Contains(key, ".") || l.known(key) {
				return key, value
			}
			if near := l.nearest(key, 2); !otherVariables[name] && near != "" {
				problems = append(problems, fmt.Sprintf("environment variable %s is no setting; did you mean %s?", name, envName(near)))
			}
			return "", nil
		},
	}), nil)
	if err != nil {
		problems = append(problems, fmt.Sprintf("cannot read the environment: %s", oneLine(err)))
	}
	slices.Sort(problems)
	return layer{k, func(key string) string { return "environment variable " + envName(key) }, envName}, problems
}

func setLayer(src Sources) (layer, []string) {
	var problems []string
	values := make(map[string]any)
	for _, s := range src.Set {
		key, value, ok := strings.Cut(s, "=")
		if !ok || key == "" {
			problems = append(problems, fmt.Sprintf("--set %s: want --set section.key=value", s))
			continue
		}
		values[key] = value
	}
	k := koanf.New(".")
	if err := k.Load(confmap.Provider(values, "."), nil); err != nil {
		problems = append(problems, fmt.Sprintf("cannot read --set: %s", oneLine(err)))
	}
	return layer{k, func(key string) string { return "--set " + key }, asIs}, problems
}

func flagLayer(src Sources) (layer, []string) {
	var problems []string
	values, names := make(map[string]any), make(map[string]string)
	for _, f := range src.Flags {
		values[f.Key], names[f.Key] = f.Value, f.Name
	}
	k := koanf.New(".")
	if err := k.Load(confmap.Provider(values, "."), nil); err != nil {
		problems = append(problems, fmt.Sprintf("cannot read the flags: %s", oneLine(err)))
	}
	return layer{k, func(key string) string { return names[key] }, asIs}, problems
}

// apply decodes the values of one layer into the struct and returns what is wrong with it.
func (l *Loaded) apply(from layer) []string {
	var problems []string
	bad := func(key, format string, args ...any) {
		problems = append(problems, fmt.Sprintf("%s: %s (from %s)", from.spell(key), fmt.Sprintf(format, args...), from.origin(key)))
	}
	for _, key := range slices.Sorted(maps.Keys(from.koanf.All())) {
		value := from.koanf.Get(key)
		switch {
		case l.known(key):
		case l.isSection(key) && isEmpty(value):
		case l.isSection(key):
			bad(key, "is a section, not a setting; its settings are %s", strings.Join(l.below(key), ", "))
		default:
			if near := l.nearest(key, max(2, len(key)/4)); near != "" {
				bad(key, "unknown setting; did you mean %s?", from.spell(near))
			} else {
				bad(key, "unknown setting; `callscope config` prints those there are")
			}
		}
	}
	for _, f := range l.fields {
		inline, byFile := from.koanf.Exists(f.key), f.secret && from.koanf.Exists(f.key+fileSuffix)
		switch {
		case inline && byFile:
			bad(f.key, "given twice, also as %s; keep one", from.spell(f.key+fileSuffix))
		case inline && f.value.Kind() != reflect.Map && hasKeys(from.koanf.Get(f.key)):
			// What stands below is reported above.
		case inline:
			if err := decode(f, from.koanf.Get(f.key)); err != nil {
				bad(f.key, "%v", err)
			}
			l.origins[f.key] = from.origin(f.key)
		case byFile:
			path := fmt.Sprint(from.koanf.Get(f.key + fileSuffix))
			text, err := os.ReadFile(path)
			if err != nil {
				bad(f.key+fileSuffix, "cannot read the secret's file: %v", err)
			}
			// Editors and `echo` end a file with a line break that is no part of the secret.
			f.value.Set(reflect.ValueOf(NewSecret(strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r"))))
			l.origins[f.key] = fmt.Sprintf("file %s named by %s", path, from.origin(f.key+fileSuffix))
		}
	}
	return problems
}

// known says whether key is a setting, a secret's `_file` form or an entry of a setting that is a map.
func (l *Loaded) known(key string) bool {
	return slices.ContainsFunc(l.fields, func(f field) bool {
		return key == f.key || f.secret && key == f.key+fileSuffix ||
			f.value.Kind() == reflect.Map && strings.HasPrefix(key, f.key+".")
	})
}

func (l *Loaded) isSection(key string) bool { return len(l.below(key)) > 0 }

func (l *Loaded) below(section string) []string {
	var keys []string
	for _, f := range l.fields {
		if strings.HasPrefix(f.key, section+".") {
			keys = append(keys, f.key)
		}
	}
	return keys
}

func isEmpty(v any) bool {
	_, isMap := v.(map[string]any)
	return v == nil || isMap && !hasKeys(v)
}

func hasKeys(v any) bool {
	m, _ := v.(map[string]any)
	return len(m) > 0
}

// nearest is the setting that key most likely meant, at most limit edits away, or empty. A setting of the same name in
// another section counts as one edit.
func (l *Loaded) nearest(key string, limit int) string {
	best, bestDistance := "", limit+1
	for _, f := range l.fields {
		names := []string{f.key}
		if f.secret {
			names = append(names, f.key+fileSuffix)
		}
		for _, name := range names {
			d := min(editDistance(key, name), editDistance(letters.Replace(key), letters.Replace(name)))
			if lastPart(key) == lastPart(name) {
				d = min(d, 1)
			}
			if d < bestDistance {
				best, bestDistance = name, d
			}
		}
	}
	return best
}

// letters takes out of a key what environment variables write in one way only.
var letters = strings.NewReplacer(".", "", "_", "")

func lastPart(key string) string { return key[strings.LastIndexByte(key, '.')+1:] }

// editDistance is the Levenshtein distance in bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// Origin says where the value of key came from: OriginDefault, the file's path, "environment variable NAME" or
// "--set section.key".
func (l *Loaded) Origin(key string) string {
	if o := l.origins[key]; o != "" {
		return o
	}
	return OriginDefault
}

// IsSet says whether any source gave key a value.
func (l *Loaded) IsSet(key string) bool { return l.origins[key] != "" }

// Invalid makes one *Error of what the owners of the settings found wrong, or nil when nothing is. Each error, or each
// of joined errors, begins with the key that it is about ("kafka.brokers: ..."); the value's origin is added to it.
func (l *Loaded) Invalid(errs ...error) error {
	var problems []string
	for _, err := range flatten(errs) {
		problem := oneLine(err)
		if key, _, ok := strings.Cut(problem, ": "); ok && l.known(key) {
			if l.IsSet(key) {
				problem += " (from " + l.Origin(key) + ")"
			} else {
				problem += " (nobody set it)"
			}
		}
		problems = append(problems, problem)
	}
	if len(problems) == 0 {
		return nil
	}
	return &Error{Problems: problems}
}

// flatten takes joined errors apart. An error that wraps a joined one in more words stays whole.
func flatten(errs []error) []error {
	var flat []error
	for _, err := range errs {
		if err == nil {
			continue
		}
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			flat = append(flat, flatten(joined.Unwrap())...)
			continue
		}
		flat = append(flat, err)
	}
	return flat
}

// Error is everything that is wrong with a configuration. Each problem has the setting's full key, what is wrong, what
// is allowed and where the value came from.
type Error struct{ Problems []string }

func (e *Error) Error() string {
	if len(e.Problems) == 1 {
		return "bad configuration: " + e.Problems[0]
	}
	return fmt.Sprintf("bad configuration, %d problems:\n  %s", len(e.Problems), strings.Join(e.Problems, "\n  "))
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
