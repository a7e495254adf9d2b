package config

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// WriteYAML writes every setting in force with its origin as a comment. Secrets are hidden; what was not a secret can be
// used as a configuration file.
func (l *Loaded) WriteYAML(w io.Writer) error {
	root := &yaml.Node{Kind: yaml.MappingNode}
	for _, f := range l.fields {
		parts := strings.Split(f.key, ".")
		at := root
		for _, section := range parts[:len(parts)-1] {
			at = child(at, section)
		}
		value := &yaml.Node{}
		if err := value.Encode(f.display()); err != nil {
			return fmt.Errorf("writing setting %s: %w", f.key, err)
		}
		flow(value)
		value.LineComment = l.Origin(f.key)
		at.Content = append(at.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: parts[len(parts)-1]}, value)
	}
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return fmt.Errorf("writing the settings: %w", err)
	}
	return enc.Close()
}

// child is the section of that name, made when it is missing.
func child(at *yaml.Node, name string) *yaml.Node {
	for i := 0; i < len(at.Content); i += 2 {
		if at.Content[i].Value == name {
			return at.Content[i+1]
		}
	}
	section := &yaml.Node{Kind: yaml.MappingNode}
	at.Content = append(at.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: name}, section)
	return section
}

// flow puts lists and maps on one line, where their origin can stand beside them.
func flow(n *yaml.Node) {
	if n.Kind != yaml.ScalarNode {
		n.Style = yaml.FlowStyle
	}
}

// WriteJSON writes a list of {"key", "value", "origin"} in the order of the settings. Secrets are hidden.
func (l *Loaded) WriteJSON(w io.Writer) error {
	type setting struct {
		Key    string `json:"key"`
		Value  any    `json:"value"`
		Origin string `json:"origin"`
	}
	list := make([]setting, len(l.fields))
	for i, f := range l.fields {
		list[i] = setting{f.key, f.display(), l.Origin(f.key)}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(list); err != nil {
		return fmt.Errorf("writing the settings: %w", err)
	}
	return nil
}

// display is the value as a file would spell it.
func (f field) display() any { return plain(f.key, f.value) }

// plain makes a value of YAML's types. name is the field's; what it calls a secret is hidden whatever its type is,
// because lists and maps of a package without Secret may hold some too.
func plain(name string, v reflect.Value) any {
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return nil
		}
		v = v.Elem()
	}
	if v.Kind() == reflect.String && v.Len() > 0 && namesSecret(name) {
		return hidden
	}
	switch x := v.Interface().(type) {
	case time.Duration:
		return shortDuration(x)
	case Secret:
		return x.String()
	}
	switch v.Kind() {
	case reflect.Slice:
		list := make([]any, v.Len())
		for i := range list {
			list[i] = plain(name, v.Index(i))
		}
		return list
	case reflect.Map:
		m := make(map[string]any, v.Len())
		for _, key := range v.MapKeys() {
			m[fmt.Sprint(key.Interface())] = plain(name, v.MapIndex(key))
		}
		return m
	case reflect.Struct:
		if v.Type().Implements(reflect.TypeFor[fmt.Stringer]()) {
			return fmt.Sprint(v.Interface())
		}
		m := make(map[string]any)
		for i := range v.NumField() {
			if name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("koanf"), ","); name != "" && name != "-" {
				if value := plain(name, v.Field(i)); value != nil {
					m[name] = value
				}
			}
		}
		return m
	}
	return v.Interface()
}

func namesSecret(name string) bool {
	name = lastPart(name)
	return !strings.HasSuffix(name, fileSuffix) && (strings.Contains(name, "secret") || strings.Contains(name, "password"))
}

// shortDuration is 168h where Duration.String is 168h0m0s.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
