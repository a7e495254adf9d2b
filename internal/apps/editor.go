package apps

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/callscope/callscope/internal/stream"
	pb "github.com/callscope/callscope/proto/callscope/v1"
)

var (
	// ErrUnknownApp: the registry has no app with this id.
	ErrUnknownApp = errors.New("the registry has no such app")
	// ErrUnknownItem: the app has no such secret, key or origin.
	ErrUnknownItem = errors.New("the app has no such item")
	// ErrExists: what shall be added is there already.
	ErrExists = errors.New("it is there already")
	// ErrConflict: somebody else changed the same item at the same time, and the change that came last stands.
	ErrConflict = errors.New("somebody else changed the same item at the same time")
	// ErrTooManySecrets: a rotation needs two.
	ErrTooManySecrets = fmt.Errorf("the app has %d secrets already: revoke one first", MaxSecrets)
	// ErrLastOrigin: without origins an app allows all.
	ErrLastOrigin = errors.New("it is the last origin, and an app without any allows every origin")
)

// MaxSecrets is how many secrets an app may have at a time.
const MaxSecrets = 2

// Editor changes the registry. Changes of different items by different editors never touch each other. It is for one
// command: it reads the topic when it is opened and after every change, and is not safe for concurrent use.
type Editor struct {
	log   Log
	key   *MasterKey
	state state
	next  int64
	late  map[string]bool // keys of items whose last record does not count (state.late)
}

// Open reads the registry. key may be nil where no secret is added or read.
func Open(ctx context.Context, log Log, key *MasterKey) (*Editor, error) {
	e := &Editor{log: log, key: key, state: make(state), late: make(map[string]bool)}
	start, _, err := log.Offsets(ctx, stream.TopicApps, partition)
	if err == nil {
		e.next = start
		err = e.read(ctx, func(int64, *pb.AppRecord) {})
	}
	if err != nil {
		return nil, fmt.Errorf("reading the apps registry: %w", err)
	}
	return e, nil
}

// read takes in what was written up to now, and calls each with every usable record that changes something.
func (e *Editor) read(ctx context.Context, each func(offset int64, r *pb.AppRecord)) error {
	for {
		batch, err := e.log.Fetch(ctx, stream.TopicApps, partition, e.next, fetchBytes, time.Millisecond)
		if err != nil {
			return err
		}
		for i := range batch.Records {
			if r, err := decodeRecord(batch.Records[i].Key, batch.Records[i].Value); err == nil {
				item := string(batch.Records[i].Key)
				if e.late[item] = e.state.late(r); e.late[item] {
					continue
				}
				before := e.state[r.GetAppId()][r.GetItem()]
				e.state.put(r)
				if before != nil && rewrites(r, before) {
					continue // it changes nothing
				}
				each(batch.Records[i].Offset, r)
			}
		}
		e.next = batch.Next
		if e.next >= batch.End {
			return nil
		}
	}
}

// change is one item to be written.
type change struct {
	item   string
	record pb.AppRecord // content or deleted; the rest is filled in
}

// commit writes changes of one app as one batch and makes sure that they are what stands.
func (e *Editor) commit(ctx context.Context, appID string, life []byte, changes ...*change) error {
	var recs []stream.Record
	written := make(map[string]*pb.AppRecord)
	for _, c := range changes {
		r := &c.record
		r.AppId, r.Item, r.Life = appID, c.item, life
		r.Version = e.state[appID][c.item].GetVersion() + 1
		r.WrittenAtMs = time.Now().UnixMilli()
		if len(r.Item) > maxItemBytes {
			return fmt.Errorf("%q is longer than %d bytes", clip(r.Item), maxItemBytes)
		}
		value, err := r.MarshalVT()
		if err != nil {
			return fmt.Errorf("writing %s of app %s: %w", c.item, appID, err)
		}
		recs = append(recs, stream.Record{Key: recordKey(appID, c.item), Value: value})
		written[c.item] = r
	}
	seen := e.next
	first, err := e.log.Append(ctx, stream.TopicApps, partition, recs)
	if err != nil {
		return fmt.Errorf("writing to the apps registry (whether it was stored is not known; `callscope apps show` tells): %w", err)
	}
	var others []string
	// Between what we had read and what we wrote somebody may have written the same item; after it, too.
	err = e.read(ctx, func(offset int64, r *pb.AppRecord) {
		mine := written[r.GetItem()]
		if r.GetAppId() != appID || mine == nil || offset >= first && offset < first+int64(len(recs)) {
			return
		}
		if !proto.Equal(r, mine) {
			whose := "theirs"
			if offset < first {
				whose = "this one"
			}
			others = append(others, fmt.Sprintf("%s (%s came last and stands)", r.GetItem(), whose))
		}
	})
	if err != nil {
		return fmt.Errorf("reading the apps registry back after writing at offset %d: %w", first, err)
	}
	// Compaction may have removed the other's record, but not the one that stands.
	for _, item := range slices.Sorted(maps.Keys(written)) {
		if now := e.state[appID][item]; !proto.Equal(now, written[item]) && !rewrites(now, written[item]) && len(others) == 0 {
			others = append(others, item+" (theirs came last and stands)")
		}
	}
	if len(others) > 0 {
		return fmt.Errorf("changing app %s: %w: %s, read up to %d, written at %d; look with `callscope apps show %s` and repeat what is missing",
			appID, ErrConflict, strings.Join(others, ", "), seen, first, appID)
	}
	return nil
}

// life returns the life of an app that exists.
func (e *Editor) life(appID string) ([]byte, error) {
	if e.state.live(appID) == nil {
		return nil, fmt.Errorf("app %s: %w", appID, ErrUnknownApp)
	}
	return e.state[appID][itemApp].GetLife(), nil
}

func (e *Editor) item(appID, item string) *pb.AppRecord {
	for _, r := range e.state.live(appID) {
		if r.GetItem() == item {
			return r
		}
	}
	return nil
}

func settingChanges(values map[string]string) ([]*change, error) {
	var changes []*change
	for _, name := range slices.Sorted(maps.Keys(values)) {
		set := settings[name]
		if set == nil {
			return nil, fmt.Errorf("%q is no setting of an app: there are %s", name, strings.Join(SettingNames(), ", "))
		}
		if len(values[name]) > maxValueBytes {
			return nil, fmt.Errorf("%s: longer than %d bytes", name, maxValueBytes)
		}
		if err := set(new(App), values[name]); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		changes = append(changes, settingChange(name, values[name]))
	}
	return changes, nil
}

func settingChange(name, text string) *change {
	return &change{itemSetting + name, pb.AppRecord{Content: &pb.AppRecord_Setting{Setting: &pb.AppSetting{Value: text}}}}
}

// Create makes an app with settings by name and, unless it is nil, a secret. It returns the secret's id.
func (e *Editor) Create(ctx context.Context, appID string, values map[string]string, secret *Secret) (secretID string, err error) {
	if err := CheckID(appID); err != nil {
		return "", err
	}
	if e.state.live(appID) != nil {
		return "", fmt.Errorf("app %s: %w", appID, ErrExists)
	}
	life := make([]byte, 16)
	if _, err := rand.Read(life); err != nil {
		return "", fmt.Errorf("making an app: %w", err)
	}
	changes, err := settingChanges(values)
	if err != nil {
		return "", err
	}
	changes = append([]*change{{itemApp, pb.AppRecord{}}}, changes...)
	// Tokens of an earlier app with this id, or of one in the configuration, are not this one's.
	changes = append(changes, settingChange(settingEpoch, strconv.FormatInt(time.Now().UnixMilli(), 10)))
	if secret != nil {
		c, id, err := e.secretChange(appID, life, *secret)
		if err != nil {
			return "", err
		}
		changes, secretID = append(changes, c), id
	}
	return secretID, e.commit(ctx, appID, life, changes...)
}

// FreeID returns an app id that the registry has not got.
func (e *Editor) FreeID() (string, error) {
	for {
		var b [4]byte
		if _, err := rand.Read(b[:]); err != nil {
			return "", fmt.Errorf("making an app id: %w", err)
		}
		n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
		if id := strconv.FormatUint(uint64(100_000_000+n%900_000_000), 10); e.state[id] == nil {
			return id, nil
		}
	}
}

// Set changes settings by name.
func (e *Editor) Set(ctx context.Context, appID string, values map[string]string) error {
	life, err := e.life(appID)
	if err != nil {
		return err
	}
	changes, err := settingChanges(values)
	if err != nil {
		return err
	}
	return e.commit(ctx, appID, life, changes...)
}

// Delete removes an app with everything that it has; nobody signs in to it any more, and its access tokens end.
func (e *Editor) Delete(ctx context.Context, appID string) error {
	life, err := e.life(appID)
	if err != nil {
		return err
	}
	changes := []*change{{itemApp, pb.AppRecord{Deleted: true}}}
	for _, r := range e.state.live(appID) {
		if r.GetItem() != itemApp {
			changes = append(changes, &change{r.GetItem(), pb.AppRecord{Deleted: true}})
		}
	}
	return e.commit(ctx, appID, life, changes...)
}

// RevokeTokens ends all access tokens of an app that exist; clients sign in again by themselves where they still may.
func (e *Editor) RevokeTokens(ctx context.Context, appID string) error {
	life, err := e.life(appID)
	if err != nil {
		return err
	}
	a, _ := e.state.build(appID, nil)
	epoch := max(a.TokenEpoch+1, uint64(time.Now().UnixMilli()))
	return e.commit(ctx, appID, life, settingChange(settingEpoch, strconv.FormatUint(epoch, 10)))
}

// GenerateSecret makes a secret of 192 random bits and returns it also as customers hold it. With a key id a client's
// token says which of an app's secrets it was made with.
func GenerateSecret(withKeyID bool) (string, Secret, error) {
	random := make([]byte, 24+8)
	if _, err := rand.Read(random); err != nil {
		return "", Secret{}, fmt.Errorf("making a secret: %w", err)
	}
	text := base64.RawURLEncoding.EncodeToString(random[:24])
	if withKeyID {
		text = base64.StdEncoding.EncodeToString(random[24:]) + ":" + text
	}
	secret, err := ParseSecret(text)
	return text, secret, err
}

func (e *Editor) secretChange(appID string, life []byte, secret Secret) (*change, string, error) {
	id := secret.KeyID
	if id == "" {
		random := make([]byte, 4)
		if _, err := rand.Read(random); err != nil {
			return nil, "", fmt.Errorf("making a secret's id: %w", err)
		}
		id = hex.EncodeToString(random)
	}
	if e.item(appID, itemSecret+id) != nil {
		return nil, "", fmt.Errorf("secret %s of app %s: %w", id, appID, ErrExists)
	}
	if err := e.CheckMasterKey(); err != nil {
		return nil, "", err
	}
	item := itemSecret + id
	sealed, err := e.key.seal(secret, place(&pb.AppRecord{AppId: appID, Item: item, Life: life}))
	if err != nil {
		return nil, "", fmt.Errorf("encrypting a secret of app %s: %w", appID, err)
	}
	return &change{item, pb.AppRecord{Content: &pb.AppRecord_Secret{Secret: sealed}}}, id, nil
}

// CheckMasterKey returns an error when there is no master key, or when the registry's secrets were encrypted with
// one that it does not open: then the gateways have another, and could not read what is written with this one.
func (e *Editor) CheckMasterKey() error {
	if e.key == nil {
		return ErrNoMasterKey
	}
	for _, appID := range slices.Sorted(maps.Keys(e.state)) {
		for _, r := range e.state.live(appID) {
			if s := r.GetSecret(); s != nil && !e.key.opens(s.GetMasterKeyId()) {
				return fmt.Errorf("the registry's secrets (%s of app %s) were %w: %s, and this is %s", r.GetItem(), appID, ErrOtherMasterKey, s.GetMasterKeyId(), e.key.id)
			}
		}
	}
	return nil
}

// AddSecret adds a secret, of which an app may have MaxSecrets, and returns its id.
func (e *Editor) AddSecret(ctx context.Context, appID string, secret Secret) (secretID string, err error) {
	life, err := e.life(appID)
	if err != nil {
		return "", err
	}
	n := 0
	for _, r := range e.state.live(appID) {
		if r.GetSecret() != nil {
			n++
		}
	}
	if n >= MaxSecrets {
		return "", fmt.Errorf("app %s: %w", appID, ErrTooManySecrets)
	}
	c, secretID, err := e.secretChange(appID, life, secret)
	if err != nil {
		return "", err
	}
	return secretID, e.commit(ctx, appID, life, c)
}

// RevokeSecret removes a secret: nobody signs in with it any more.
func (e *Editor) RevokeSecret(ctx context.Context, appID, secretID string) error {
	return e.remove(ctx, appID, itemSecret+secretID)
}

// AddKey adds a P-256 public key in PEM under the key id that the customer's tokens name, or one made of the key when
// keyID is empty, and returns the key id.
func (e *Editor) AddKey(ctx context.Context, appID, keyID string, pemText []byte) (string, error) {
	life, err := e.life(appID)
	if err != nil {
		return "", err
	}
	key, err := ParsePublicKey(pemText)
	if err != nil {
		return "", fmt.Errorf("adding a key to app %s: %w", appID, err)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("adding a key to app %s: %w", appID, err)
	}
	if keyID == "" {
		keyID = fingerprint(der)
	}
	if e.item(appID, itemKey+keyID) != nil {
		return "", fmt.Errorf("key %s of app %s: %w", clip(keyID), appID, ErrExists)
	}
	return keyID, e.commit(ctx, appID, life, &change{itemKey + keyID, pb.AppRecord{Content: &pb.AppRecord_Key{Key: &pb.AppKey{PublicKey: der}}}})
}

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:8])
}

// RevokeKey removes a public key: no token made with it signs in any more.
func (e *Editor) RevokeKey(ctx context.Context, appID, keyID string) error {
	return e.remove(ctx, appID, itemKey+keyID)
}

// AddOrigin adds an origin to the list and returns it in its one spelling.
func (e *Editor) AddOrigin(ctx context.Context, appID, origin string) (string, error) {
	life, err := e.life(appID)
	if err != nil {
		return "", err
	}
	normal, err := NormalOrigin(origin)
	if err != nil {
		return "", err
	}
	if e.item(appID, itemOrigin+normal) != nil {
		return "", fmt.Errorf("origin %s of app %s: %w", normal, appID, ErrExists)
	}
	return normal, e.commit(ctx, appID, life, &change{itemOrigin + normal, pb.AppRecord{}})
}

// RemoveOrigin removes an origin. The last one goes only with allowAll, because the app then allows every origin.
func (e *Editor) RemoveOrigin(ctx context.Context, appID, origin string, allowAll bool) error {
	if normal, err := NormalOrigin(origin); err == nil {
		origin = normal
	}
	n := 0
	for _, r := range e.state.live(appID) {
		if strings.HasPrefix(r.GetItem(), itemOrigin) {
			n++
		}
	}
	if n == 1 && !allowAll && e.item(appID, itemOrigin+origin) != nil {
		return fmt.Errorf("origin %s of app %s: %w", origin, appID, ErrLastOrigin)
	}
	return e.remove(ctx, appID, itemOrigin+origin)
}

func (e *Editor) remove(ctx context.Context, appID, item string) error {
	life, err := e.life(appID)
	if err != nil {
		return err
	}
	if e.item(appID, item) == nil {
		return fmt.Errorf("%s of app %s: %w", clip(item), appID, ErrUnknownItem)
	}
	return e.commit(ctx, appID, life, &change{item, pb.AppRecord{Deleted: true}})
}

// App returns an app as gateways with the editor's master key see it, and why parts of it are left out.
func (e *Editor) App(appID string) (*App, error) {
	a, left := e.state.build(appID, e.key)
	if a == nil {
		return nil, fmt.Errorf("app %s: %w", appID, ErrUnknownApp)
	}
	var errs []error
	for _, l := range left {
		errs = append(errs, fmt.Errorf("%s: %w", l.record.GetItem(), l.err))
	}
	return a, errors.Join(errs...)
}

// Info describes an app without its secrets.
type Info struct {
	ID       string
	Created  time.Time
	Settings map[string]string // in force, as on the command line
	Secrets  []ItemInfo
	Keys     []ItemInfo
	Origins  []string
}

// ItemInfo describes a secret or a public key.
type ItemInfo struct {
	ID      string
	Added   time.Time
	Note    string // a secret's master key, a public key's fingerprint
	InKeyID bool   // the secret is given out with its id in front
}

// Apps describes all apps, ordered by id as a number.
func (e *Editor) Apps() []Info {
	var list []Info
	for appID := range e.state {
		if info, err := e.Info(appID); err == nil {
			list = append(list, info)
		}
	}
	slices.SortFunc(list, func(a, b Info) int {
		if len(a.ID) != len(b.ID) {
			return len(a.ID) - len(b.ID)
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list
}

// Info describes one app.
func (e *Editor) Info(appID string) (Info, error) {
	a, _ := e.state.build(appID, nil)
	if a == nil {
		return Info{}, fmt.Errorf("app %s: %w", appID, ErrUnknownApp)
	}
	info := Info{
		ID: appID, Created: time.UnixMilli(e.state[appID][itemApp].GetWrittenAtMs()),
		Settings: map[string]string{
			settingName:              a.Name,
			"submission_interval_ms": strconv.Itoa(a.Settings.SubmissionIntervalMS),
			"collect_sdp":            strconv.FormatBool(a.Settings.CollectSDP),
			"rest_transport":         strconv.FormatBool(a.Settings.RESTTransport),
			"require_expiry":         strconv.FormatBool(a.Settings.RequireExpiry),
			"strict_tokens":          strconv.FormatBool(a.Settings.StrictTokens),
		},
		Origins: a.Origins,
	}
	for _, r := range e.state.live(appID) {
		_, name, _ := strings.Cut(r.GetItem(), "/")
		one := ItemInfo{ID: name, Added: time.UnixMilli(r.GetWrittenAtMs())}
		switch {
		case r.GetSecret() != nil:
			one.Note, one.InKeyID = r.GetSecret().GetMasterKeyId(), r.GetSecret().GetKeyId() != ""
			info.Secrets = append(info.Secrets, one)
		case r.GetKey() != nil:
			one.Note = fingerprint(r.GetKey().GetPublicKey())
			info.Keys = append(info.Keys, one)
		}
	}
	return info, nil
}
