package apps

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "github.com/callscope/callscope/proto/callscope/v1"
)

// Items of an app, as in AppRecord.item.
const (
	itemApp       = "app"
	itemSetting   = "setting/"
	itemSecret    = "secret/"
	itemKey       = "key/"
	itemOrigin    = "origin/"
	settingName   = "name"
	settingEpoch  = "token_epoch"
	maxItemBytes  = 1024
	maxValueBytes = 1024
)

// setting reads the text of one setting into an app. The text is the same in the topic and on the command line.
var settings = map[string]func(a *App, text string) error{
	settingName: func(a *App, text string) error {
		a.Name = text
		return nil
	},
	settingEpoch: func(a *App, text string) (err error) {
		a.TokenEpoch, err = strconv.ParseUint(text, 10, 53) // it travels in tokens that JavaScript reads
		return err
	},
	"submission_interval_ms": func(a *App, text string) error {
		ms, err := strconv.Atoi(text)
		if err != nil {
			return errors.New("not a whole number of milliseconds")
		}
		a.Settings.SubmissionIntervalMS = ms
		return checkInterval(ms)
	},
	"collect_sdp":    boolSetting(func(s *Settings) *bool { return &s.CollectSDP }),
	"rest_transport": boolSetting(func(s *Settings) *bool { return &s.RESTTransport }),
	"require_expiry": boolSetting(func(s *Settings) *bool { return &s.RequireExpiry }),
	"strict_tokens":  boolSetting(func(s *Settings) *bool { return &s.StrictTokens }),
}

func boolSetting(field func(*Settings) *bool) func(*App, string) error {
	return func(a *App, text string) error {
		switch text {
		case "true", "false":
			*field(&a.Settings) = text == "true"
			return nil
		}
		return fmt.Errorf("%q is neither true nor false", text)
	}
}

// SettingNames lists the settings that Change sets, in order.
func SettingNames() []string {
	names := slices.Sorted(maps.Keys(settings))
	return slices.DeleteFunc(names, func(n string) bool { return n == settingEpoch })
}

func recordKey(appID, item string) []byte { return []byte(appID + "\x00" + item) }

// place is what a secret's ciphertext is tied to.
func place(r *pb.AppRecord) []byte {
	return append(append(recordKey(r.GetAppId(), r.GetItem()), 0), r.GetLife()...)
}

// decodeRecord reads a record of the topic and checks it against its key.
func decodeRecord(key, value []byte) (*pb.AppRecord, error) {
	r := new(pb.AppRecord)
	if err := r.UnmarshalVT(value); err != nil {
		return nil, fmt.Errorf("reading it: %w", err)
	}
	if !bytes.Equal(key, recordKey(r.GetAppId(), r.GetItem())) {
		return nil, errors.New("its key is not that of what it holds")
	}
	if err := CheckID(r.GetAppId()); err != nil {
		return nil, err
	}
	if len(r.GetItem()) > maxItemBytes || len(r.GetSetting().GetValue()) > maxValueBytes {
		return nil, errors.New("longer than anything this version writes")
	}
	kind, name, _ := strings.Cut(r.GetItem(), "/")
	known := map[string]bool{
		itemApp: name == "", "setting": true, "secret": name != "" && r.GetSecret() != nil, "key": name != "" && r.GetKey() != nil,
		"origin": name != "",
	}[kind]
	if !known && !r.GetDeleted() {
		return nil, fmt.Errorf("item %q is of a kind that this version does not know", clip(r.GetItem()))
	}
	return r, nil
}

func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), 128)], "\uFFFD") }

// state is what the topic says: the last record of every item of every app.
type state map[string]map[string]*pb.AppRecord

// put takes in a record and reports whether its writer had not seen the one before it.
func (s state) put(r *pb.AppRecord) (conflict bool) {
	items := s[r.GetAppId()]
	if items == nil {
		items = make(map[string]*pb.AppRecord)
		s[r.GetAppId()] = items
	}
	before := items[r.GetItem()]
	items[r.GetItem()] = r
	return before != nil && r.GetVersion() <= before.GetVersion() && !rewrites(r, before)
}

// rewrites says whether r is what Editor.Rekey made of before, or the same.
func rewrites(r, before *pb.AppRecord) bool {
	if r.GetVersion() != before.GetVersion() || r.GetDeleted() != before.GetDeleted() || !bytes.Equal(r.GetLife(), before.GetLife()) {
		return false
	}
	return proto.Equal(r, before) || r.GetSecret() != nil && before.GetSecret() != nil && r.GetSecret().GetMasterKeyId() != before.GetSecret().GetMasterKeyId()
}

// late says whether r does not count: it is a secret's record that Editor.Rekey rewrote under its old version while
// somebody changed that secret. What was revoked in between stays revoked.
func (s state) late(r *pb.AppRecord) bool {
	return strings.HasPrefix(r.GetItem(), itemSecret) && r.GetVersion() < s[r.GetAppId()][r.GetItem()].GetVersion()
}

// live returns the items of an app as it is now, by name and in order; nil when there is no such app.
func (s state) live(appID string) []*pb.AppRecord {
	items := s[appID]
	app := items[itemApp]
	if app == nil || app.GetDeleted() {
		return nil
	}
	var list []*pb.AppRecord
	for _, name := range slices.Sorted(maps.Keys(items)) {
		if r := items[name]; !r.GetDeleted() && bytes.Equal(r.GetLife(), app.GetLife()) {
			list = append(list, r)
		}
	}
	return list
}

// itemError is why one item of an app is left out.
type itemError struct {
	record *pb.AppRecord
	err    error
}

// build makes the app of its live items. What cannot be used is left out and returned; the app has the rest.
func (s state) build(appID string, key *MasterKey) (*App, []itemError) {
	items := s.live(appID)
	if items == nil {
		return nil, nil
	}
	a := &App{ID: appID, PublicKeys: make(map[string]*ecdsa.PublicKey), Settings: DefaultSettings()}
	var left []itemError
	for _, r := range items {
		if err := a.add(r, key); err != nil {
			left = append(left, itemError{r, err})
		}
	}
	return a, left
}

func (a *App) add(r *pb.AppRecord, key *MasterKey) error {
	kind, name, _ := strings.Cut(r.GetItem(), "/")
	switch kind + "/" {
	case itemSetting:
		set := settings[name]
		if set == nil {
			return errors.New("a setting that this version does not know")
		}
		changed := *a
		if err := set(&changed, r.GetSetting().GetValue()); err != nil {
			return err
		}
		*a = changed
	case itemSecret:
		secret, err := key.open(r.GetSecret(), place(r))
		if err != nil {
			return err
		}
		a.Secrets = append(a.Secrets, secret)
	case itemKey:
		public, err := parsePKIX(r.GetKey().GetPublicKey())
		if err != nil {
			return err
		}
		a.PublicKeys[name] = public
	case itemOrigin:
		// One that does not parse matches nothing, and leaving it out could leave the list empty, which allows all.
		a.Origins = append(a.Origins, name)
	}
	return nil
}

func parsePKIX(der []byte) (*ecdsa.PublicKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("not an ECDSA key on P-256, which ES256 needs")
	}
	return key, nil
}
