package enricher

import (
	"cmp"
	"slices"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

const (
	// seenForMs is how long, in alive time, record uids and content hashes are
	// remembered. Browsers repeat a body within milliseconds.
	seenForMs = 60_000
	// sessionForMs is how long a client's session is remembered after its last
	// message, so that one that comes back may send again what it had not seen
	// acknowledged.
	sessionForMs = 300_000
	// sequenceWindow is how far behind the highest sequence number of a session
	// a message may come and still be told from a duplicate.
	sequenceWindow = 1024
)

type seenKey [16]byte

type seenUntil struct {
	key     seenKey
	untilMs int64
}

// duplicates remembers what has been seen, for a bounded alive time.
type duplicates struct {
	seen   map[seenKey]struct{}
	expiry []seenUntil // in order
	// expired is how much of the front of expiry is already forgotten; the
	// slice is cut when that is half of it.
	expired  int
	sessions map[string]*session
}

// duplicateKeys is how one message would be recognised.
type duplicateKeys struct {
	record  seenKey
	content seenKey
	session *session // set where the dialect numbers its messages
	number  uint64
}

type session struct {
	s *callscopev1.EnricherSession
	t timer
}

func (s *session) deadline() int64   { return s.s.LastAliveMs + sessionForMs }
func (s *session) rank() int         { return rankSession }
func (s *session) entityUID() []byte { return s.s.SessionUid }
func (s *session) timer() *timer     { return &s.t }

func sessionKey(appID string, uid []byte) string { return appID + "\x00" + string(uid) }

// keysOf returns how the message would be recognised; its uid has 16 bytes. It
// changes nothing.
func (d *duplicates) keysOf(raw *callscopev1.Raw) duplicateKeys {
	claimed, observed := raw.GetClaimed(), raw.GetObserved()
	keys := duplicateKeys{record: seenKey(raw.Uid)}
	switch {
	case claimed != nil && claimed.Sequence != nil && len(claimed.GetSessionUid()) > 0:
		keys.number = claimed.GetSequence()
		keys.session = d.sessions[sessionKey(observed.AppId, claimed.SessionUid)]
		if keys.session == nil {
			keys.session = &session{s: &callscopev1.EnricherSession{
				AppId: observed.AppId, SessionUid: claimed.SessionUid, Seen: make([]uint64, sequenceWindow/64),
			}}
		}
	case len(observed.GetContentHash()) > 0:
		keys.content = seenKey(stage.UID([]byte(observed.AppId), []byte(claimed.GetConferenceId()),
			[]byte(claimed.GetUserId()), []byte(claimed.GetDeviceId()), observed.ContentHash))
	}
	return keys
}

// kind tells by what the message is a duplicate, empty if it is none.
func (d *duplicates) kind(k duplicateKeys) string {
	if _, found := d.seen[k.record]; found {
		return duplicateRecord
	}
	if k.session != nil {
		if k.session.has(k.number) {
			return duplicateSequence
		}
		return ""
	}
	if k.content != (seenKey{}) {
		if _, found := d.seen[k.content]; found {
			return duplicateContent
		}
	}
	return ""
}

// remember keeps the keys of an accepted message.
func (d *duplicates) remember(k duplicateKeys, aliveMs int64, queue *deadlines) {
	d.add(k.record, aliveMs+seenForMs)
	if k.session != nil {
		k.session.add(k.number)
		k.session.s.LastAliveMs = aliveMs
		d.sessions[sessionKey(k.session.s.AppId, k.session.s.SessionUid)] = k.session
		queue.schedule(k.session)
		return
	}
	if k.content != (seenKey{}) {
		d.add(k.content, aliveMs+seenForMs)
	}
}

func (d *duplicates) add(key seenKey, untilMs int64) {
	d.seen[key] = struct{}{}
	d.expiry = append(d.expiry, seenUntil{key, untilMs})
}

// forget drops what has expired by the alive time.
func (d *duplicates) forget(aliveMs int64) {
	for d.expired < len(d.expiry) && d.expiry[d.expired].untilMs <= aliveMs {
		delete(d.seen, d.expiry[d.expired].key)
		d.expired++
	}
	if d.expired > len(d.expiry)/2 {
		d.expiry = slices.Clone(d.expiry[d.expired:])
		d.expired = 0
	}
}

func (d *duplicates) forgetSession(s *session) {
	delete(d.sessions, sessionKey(s.s.AppId, s.s.SessionUid))
}

func (d *duplicates) empty() bool { return len(d.seen) == 0 && len(d.sessions) == 0 }

// sorted returns the sessions in the order of a snapshot.
func (d *duplicates) sorted() []*callscopev1.EnricherSession {
	list := make([]*callscopev1.EnricherSession, 0, len(d.sessions))
	for _, s := range d.sessions {
		list = append(list, s.s)
	}
	slices.SortFunc(list, func(a, b *callscopev1.EnricherSession) int {
		return cmp.Compare(sessionKey(a.AppId, a.SessionUid), sessionKey(b.AppId, b.SessionUid))
	})
	return list
}

// has tells whether the number was seen, or lies so far back that it must have
// been: a client never has that many messages unacknowledged.
func (s *session) has(number uint64) bool {
	if number > s.s.Highest {
		return false
	}
	behind := s.s.Highest - number
	return behind >= sequenceWindow || s.s.Seen[behind/64]&(1<<(behind%64)) != 0
}

func (s *session) add(number uint64) {
	if number > s.s.Highest {
		shift(s.s.Seen, number-s.s.Highest)
		s.s.Highest = number
	}
	behind := s.s.Highest - number
	s.s.Seen[behind/64] |= 1 << (behind % 64)
}

// shift moves every bit up by n and drops what leaves the window.
func shift(words []uint64, n uint64) {
	if n >= sequenceWindow {
		clear(words)
		return
	}
	whole, part := int(n/64), n%64
	for i := len(words) - 1; i >= 0; i-- {
		var word uint64
		if i >= whole {
			word = words[i-whole] << part
			if part > 0 && i > whole {
				word |= words[i-whole-1] >> (64 - part)
			}
		}
		words[i] = word
	}
}
