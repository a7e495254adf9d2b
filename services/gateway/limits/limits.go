// Package limits bounds what one app, one user and one address may ask of a gateway: token buckets for connections,
// sign-ins, messages, bytes and log posts, and a cap on the conferences that an app may name.
//
// Everything is counted by this process alone and forgotten with it: N gateways allow up to N times as much. It does
// not answer clients; each dialect has its own safe answer to a refusal.
package limits

import (
	"fmt"
	"hash/maphash"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Scope says whose limit was reached; it is the reason label of the outcome rate_limited. "" is none.
type Scope string

const (
	None        Scope = ""
	App         Scope = "app"
	User        Scope = "user"
	Address     Scope = "address"
	Conferences Scope = "conferences" // too many distinct conference ids of one app
)

// burstSeconds is how much of its rate somebody may use at once after a pause.
const burstSeconds = 10

// Config of the limits. A zero value means the default in the comment, a negative one no limit. Who was quiet may send
// ten seconds' worth at once.
type Config struct {
	AppMessagesPerSecond int64 `koanf:"app_messages_per_second"` // 20000
	AppBytesPerSecond    int64 `koanf:"app_bytes_per_second"`    // 128 MiB
	AppSignInsPerSecond  int64 `koanf:"app_sign_ins_per_second"` // 1000

	// AppConferencesPerHour is how many distinct conference ids an app may name in an hour; 100000. Each takes 16
	// bytes or so in the gateway, and far more behind it.
	AppConferencesPerHour int64 `koanf:"app_conferences_per_hour"`

	UserMessagesPerSecond int64 `koanf:"user_messages_per_second"` // 200
	UserBytesPerSecond    int64 `koanf:"user_bytes_per_second"`    // 4 MiB
	UserSignInsPerSecond  int64 `koanf:"user_sign_ins_per_second"` // 5

	// By address: an IPv4 address or an IPv6 /64 network. Loopback has none of these limits: whoever is there is a
	// proxy or the operator. Set gateway.trusted_proxies so that clients behind a proxy count by their own address.
	AddressConnectionsPerSecond int64 `koanf:"address_connections_per_second"` // 200
	AddressSignInsPerSecond     int64 `koanf:"address_sign_ins_per_second"`    // 50: sign-ins and WebSocket handshakes
	AddressMessagesPerSecond    int64 `koanf:"address_messages_per_second"`    // 2000
	AddressBytesPerSecond       int64 `koanf:"address_bytes_per_second"`       // 32 MiB
	AddressGenericsPerSecond    int64 `koanf:"address_generics_per_second"`    // 20: log posts of the client library
}

// Defaults are the limits in force where nothing is set.
func Defaults() Config {
	return Config{
		AppMessagesPerSecond: 20_000, AppBytesPerSecond: 128 << 20, AppSignInsPerSecond: 1000, AppConferencesPerHour: 100_000,
		UserMessagesPerSecond: 200, UserBytesPerSecond: 4 << 20, UserSignInsPerSecond: 5,
		AddressConnectionsPerSecond: 200, AddressSignInsPerSecond: 50, AddressMessagesPerSecond: 2000,
		AddressBytesPerSecond: 32 << 20, AddressGenericsPerSecond: 20,
	}
}

// WithDefaults replaces zero values.
func (c Config) WithDefaults() Config {
	d := Defaults()
	for _, f := range []struct{ value, def *int64 }{
		{&c.AppMessagesPerSecond, &d.AppMessagesPerSecond}, {&c.AppBytesPerSecond, &d.AppBytesPerSecond},
		{&c.AppSignInsPerSecond, &d.AppSignInsPerSecond}, {&c.AppConferencesPerHour, &d.AppConferencesPerHour},
		{&c.UserMessagesPerSecond, &d.UserMessagesPerSecond}, {&c.UserBytesPerSecond, &d.UserBytesPerSecond},
		{&c.UserSignInsPerSecond, &d.UserSignInsPerSecond},
		{&c.AddressConnectionsPerSecond, &d.AddressConnectionsPerSecond}, {&c.AddressSignInsPerSecond, &d.AddressSignInsPerSecond},
		{&c.AddressMessagesPerSecond, &d.AddressMessagesPerSecond}, {&c.AddressBytesPerSecond, &d.AddressBytesPerSecond},
		{&c.AddressGenericsPerSecond, &d.AddressGenericsPerSecond},
	} {
		if *f.value == 0 {
			*f.value = *f.def
		}
	}
	return c
}

// Validate returns an error that names the key. maxMessageBytes is the largest message that must be possible at all.
func (c Config) Validate(maxMessageBytes int64) error {
	c = c.WithDefaults()
	for _, n := range []struct {
		key string
		v   int64
	}{
		{"app_bytes_per_second", c.AppBytesPerSecond}, {"user_bytes_per_second", c.UserBytesPerSecond},
		{"address_bytes_per_second", c.AddressBytesPerSecond},
	} {
		if n.v > 0 && n.v < maxMessageBytes/burstSeconds+1 {
			return fmt.Errorf("gateway.limits.%s: with %d a message of gateway.max_message_bytes (%d) could never pass; give at least a tenth of it, or -1 for no limit", n.key, n.v, maxMessageBytes)
		}
	}
	return nil
}

// Limiter is safe for concurrent use. It starts nothing.
type Limiter struct {
	cfg  Config
	seed maphash.Seed

	apps, users, addresses                  traffic
	connections, generics                   buckets
	appSignIns, userSignIns, addressSignIns buckets
	conferencesMu                           sync.Mutex
	conferences                             map[string]*conferenceSet // app
}

type traffic struct{ messages, bytes buckets }

// New makes a limiter with all buckets full.
func New(cfg Config) *Limiter {
	cfg = cfg.WithDefaults()
	l := &Limiter{cfg: cfg, seed: maphash.MakeSeed(), conferences: make(map[string]*conferenceSet)}
	l.apps = traffic{newBuckets(cfg.AppMessagesPerSecond), newBuckets(cfg.AppBytesPerSecond)}
	l.users = traffic{newBuckets(cfg.UserMessagesPerSecond), newBuckets(cfg.UserBytesPerSecond)}
	l.addresses = traffic{newBuckets(cfg.AddressMessagesPerSecond), newBuckets(cfg.AddressBytesPerSecond)}
	l.connections, l.generics = newBuckets(cfg.AddressConnectionsPerSecond), newBuckets(cfg.AddressGenericsPerSecond)
	l.appSignIns, l.userSignIns = newBuckets(cfg.AppSignInsPerSecond), newBuckets(cfg.UserSignInsPerSecond)
	l.addressSignIns = newBuckets(cfg.AddressSignInsPerSecond)
	return l
}

// Connection reports whether an address may open another connection. remoteAddr is host:port, as everywhere here.
func (l *Limiter) Connection(remoteAddr string) bool { return l.byAddress(&l.connections, remoteAddr) }

// SignIn reports whether an address may try to sign in, or open a WebSocket. It is asked before any credential is
// looked at.
func (l *Limiter) SignIn(remoteAddr string) bool { return l.byAddress(&l.addressSignIns, remoteAddr) }

// Generics reports whether an address may post another log entry of the client library.
func (l *Limiter) Generics(remoteAddr string) bool { return l.byAddress(&l.generics, remoteAddr) }

// SignedIn is asked once a credential was good, so that nobody can use up somebody else's sign-ins.
func (l *Limiter) SignedIn(appID, userID string) Scope {
	now := time.Now()
	if !l.userSignIns.allow(l.key(appID, userID), now, 1) {
		return User
	}
	if !l.appSignIns.allow(l.key(appID, ""), now, 1) {
		return App
	}
	return None
}

// Stranger takes one message of the given size out of the buckets of its address and reports whether they had it. It is for
// messages that are refused before it is known who sent them; of all others Message does that.
func (l *Limiter) Stranger(remoteAddr string, bytes int) bool {
	address, limited := l.addressKey(remoteAddr)
	return !limited || l.addresses.allow(address, time.Now(), bytes)
}

// Message takes one message of the given size out of the buckets of its address, user and app. The narrowest limit is
// asked first, so a user beyond theirs takes nothing from the others of the app.
func (l *Limiter) Message(appID, userID, remoteAddr string, bytes int) Scope {
	now := time.Now()
	if address, limited := l.addressKey(remoteAddr); limited && !l.addresses.allow(address, now, bytes) {
		return Address
	}
	if !l.users.allow(l.key(appID, userID), now, bytes) {
		return User
	}
	if !l.apps.allow(l.key(appID, ""), now, bytes) {
		return App
	}
	return None
}

func (t *traffic) allow(key uint64, now time.Time, bytes int) bool {
	return t.messages.allow(key, now, 1) && t.bytes.allow(key, now, bytes)
}

func (l *Limiter) byAddress(b *buckets, remoteAddr string) bool {
	key, limited := l.addressKey(remoteAddr)
	return !limited || b.allow(key, time.Now(), 1)
}

// addressKey returns false for loopback. What is no address shares one bucket.
func (l *Limiter) addressKey(remoteAddr string) (uint64, bool) {
	addr := ParseAddress(remoteAddr)
	switch {
	case addr.IsLoopback():
		return 0, false
	case addr.Is6():
		if prefix, err := addr.Prefix(64); err == nil {
			addr = prefix.Addr()
		}
	}
	bytes := addr.As16()
	return maphash.Bytes(l.seed, bytes[:]), true
}

// ParseAddress reads the address of host:port, or of a host alone. It is the IPv6 address :: for what is neither.
func ParseAddress(remoteAddr string) netip.Addr {
	host := remoteAddr
	if h, _, err := net.SplitHostPort(remoteAddr); err == nil {
		host = h
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.IPv6Unspecified()
	}
	return addr.Unmap().WithZone("")
}

func (l *Limiter) key(appID, userID string) uint64 {
	var h maphash.Hash
	h.SetSeed(l.seed)
	h.WriteString(appID)
	h.WriteByte(0)
	h.WriteString(userID)
	return h.Sum64()
}

const (
	shards = 16
	// maxPerShard bounds a map: 16 shards of it hold 65,536 buckets, of some 200 bytes each, for each kind of limit.
	maxPerShard = 4096
	// evictionSample is how many buckets are compared to find one to forget.
	evictionSample = 8
)

// buckets are token buckets by key. Above the bound the longest unused of a sample is forgotten; a bucket that was not
// used for burstSeconds is full and loses nothing by that.
type buckets struct {
	perSecond rate.Limit
	burst     int
	shards    *[shards]shard // nil: no limit
}

type shard struct {
	mu      sync.Mutex
	entries map[uint64]*entry
}

type entry struct {
	bucket *rate.Limiter
	used   time.Time
}

func newBuckets(perSecond int64) buckets {
	if perSecond < 0 {
		return buckets{}
	}
	return buckets{perSecond: rate.Limit(perSecond), burst: int(perSecond * burstSeconds), shards: new([shards]shard)}
}

func (b *buckets) allow(key uint64, now time.Time, n int) bool {
	if b.shards == nil {
		return true
	}
	s := &b.shards[key%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[key]
	if e == nil {
		if s.entries == nil {
			s.entries = make(map[uint64]*entry)
		}
		if len(s.entries) >= maxPerShard {
			s.evict()
		}
		e = &entry{bucket: rate.NewLimiter(b.perSecond, b.burst)}
		s.entries[key] = e
	}
	e.used = now
	return e.bucket.AllowN(now, n)
}

func (s *shard) evict() {
	var oldest uint64
	var used time.Time
	n := 0
	for key, e := range s.entries { // the order of a map is random
		if n == 0 || e.used.Before(used) {
			oldest, used = key, e.used
		}
		if n++; n == evictionSample {
			break
		}
	}
	delete(s.entries, oldest)
}

// conferenceSet is what an app has named since begun.
type conferenceSet struct {
	begun time.Time
	seen  map[uint64]struct{}
}

const conferenceWindow = time.Hour

// Conference reports whether an app may name this conference: it has named it within the hour, or has named fewer
// others than allowed. The set is emptied every hour.
func (l *Limiter) Conference(appID, conferenceID string) Scope {
	if l.cfg.AppConferencesPerHour < 0 || conferenceID == "" {
		return None
	}
	key, now := maphash.String(l.seed, conferenceID), time.Now()
	l.conferencesMu.Lock()
	defer l.conferencesMu.Unlock()
	set := l.conferences[appID]
	if set == nil || now.Sub(set.begun) >= conferenceWindow {
		set = &conferenceSet{begun: now, seen: make(map[uint64]struct{})}
		l.conferences[appID] = set
	}
	if _, known := set.seen[key]; known {
		return None
	}
	if int64(len(set.seen)) >= l.cfg.AppConferencesPerHour {
		return Conferences
	}
	set.seen[key] = struct{}{}
	return None
}
