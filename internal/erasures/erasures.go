// Package erasures keeps the compacted topic callscope.erasures.v1: which users of which apps must not be shown any more,
// and from before when. It finds such users in messages, puts a pseudonym in their place and drops what may say more
// about them.
//
// The topic names nobody. Ids are held as keyed hashes, so an id can be recognised where it is met, also inside of texts,
// and cannot be read out of the topic. The package does not change stored rows (internal/store does) and cannot reach
// what lies in Kafka, which its retention ends.
package erasures

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/callscope/callscope/internal/stream"
	pb "github.com/callscope/callscope/proto/callscope/v1"
)

// MinKeyBytes is the shortest text that NewKey takes.
const MinKeyBytes = 32

// Key makes the hashes. It never prints. A user that was erased under one key is not recognised under another, so it
// must stay as long as erasures are in force.
type Key struct {
	id   string // tells keys apart without saying anything about them
	mac  []byte
	base uint64 // of the rolling hash
}

// NewKey derives the key from the operator's master key, of at least MinKeyBytes random characters.
func NewKey(masterKey string) (*Key, error) {
	if len(masterKey) < MinKeyBytes {
		return nil, fmt.Errorf("has %d bytes, at least %d are needed", len(masterKey), MinKeyBytes)
	}
	var errs []error
	derive := func(what string, n int) []byte {
		b, err := hkdf.Key(sha256.New, []byte(masterKey), nil, "callscope erasures "+what, n)
		errs = append(errs, err)
		return b
	}
	k := &Key{id: hex.EncodeToString(derive("key id", 6)), mac: derive("hash", 32)}
	base := derive("rolling hash", 8)
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("deriving the key: %w", err)
	}
	k.base = binary.BigEndian.Uint64(base) % rollingPrime
	return k, nil
}

// String hides the key.
func (k *Key) String() string {
	if k == nil {
		return "[no key of erasures]"
	}
	return "[key of erasures " + k.id + "]"
}

// GoString hides the key from %#v.
func (k *Key) GoString() string { return k.String() }

// hash is the keyed hash of texts for one purpose. The length before each text keeps two lists from being one.
func (k *Key) hash(purpose string, texts ...string) []byte {
	h := hmac.New(sha256.New, k.mac)
	for _, text := range append([]string{purpose}, texts...) {
		h.Write(binary.AppendUvarint(nil, uint64(len(text))))
		h.Write([]byte(text))
	}
	return h.Sum(nil)
}

func (k *Key) userHash(app, user string) []byte { return k.hash("user", app, user) }

// ConferenceHash is how an Erasure names a conference_id.
func (k *Key) ConferenceHash(app, conference string) []byte {
	return k.hash("conference", app, conference)
}

// Pseudonym is what stands in the user's place: the same for all devices and calls, so that counts of users stay right.
func (k *Key) Pseudonym(app, user string) string {
	return unlike(user, hex.EncodeToString(k.hash("pseudonym", app, user)[:8]))
}

// unlike puts a word before a hash. Somebody may be called "erased": a pseudonym in which the id is found would be replaced
// again and again.
func unlike(user, sum string) string {
	for _, prefix := range []string{"erased-", "anonymous-"} {
		if p := prefix + sum; !slices.ContainsFunc(Spellings(user), func(s string) bool { return contains(p, s) }) {
			return p
		}
	}
	return "u" + sum
}

// DevicePseudonym is what stands in the place of one of the user's devices.
func (k *Key) DevicePseudonym(app, user, device string) string {
	if device == "" {
		return ""
	}
	return unlike(user, hex.EncodeToString(k.hash("device", app, user, device)[:8]))
}

// Erasure makes the record that erases a user from before erasedAtMs. An earlier record of the user may be given: its
// conferences stay in the new one, and the later of the two times.
func (k *Key) Erasure(app, user string, erasedAtMs int64, before *pb.Erasure) *pb.Erasure {
	e := &pb.Erasure{AppId: app, UserHash: k.userHash(app, user), KeyId: k.id, ErasedAtMs: erasedAtMs, Pseudonym: k.Pseudonym(app, user)}
	for _, spelling := range Spellings(user) {
		hash := k.hash("needle", app, spelling)
		e.Needles = append(e.Needles, &pb.ErasureNeedle{
			Bytes: uint32(len(spelling)), Weak: k.rolling(spelling) ^ k.mask(hash), Hash: hash,
		})
	}
	if before != nil {
		e.ErasedAtMs = max(e.ErasedAtMs, before.ErasedAtMs)
		e.ConferenceUids, e.ConferenceHashes = slices.Clone(before.ConferenceUids), slices.Clone(before.ConferenceHashes)
	}
	return e
}

// AddConference makes the record cover what comes of a conference after its time too. It tells whether that is new.
func (k *Key) AddConference(e *pb.Erasure, uid []byte, conference string) bool {
	if slices.ContainsFunc(e.ConferenceUids, func(have []byte) bool { return bytes.Equal(have, uid) }) {
		return false
	}
	e.ConferenceUids = append(e.ConferenceUids, uid)
	hash := k.ConferenceHash(e.AppId, conference)
	if !slices.ContainsFunc(e.ConferenceHashes, func(have []byte) bool { return bytes.Equal(have, hash) }) {
		e.ConferenceHashes = append(e.ConferenceHashes, hash)
	}
	return true
}

// mask hides a rolling hash, of which short ids could be read.
func (k *Key) mask(needle []byte) uint64 {
	return binary.BigEndian.Uint64(k.hash("mask", string(needle)))
}

func recordKey(e *pb.Erasure) []byte {
	return append([]byte(e.AppId+"\x00"), e.UserHash...)
}

// decode reads a record of the topic and checks it against its key.
func decode(r stream.Record) (*pb.Erasure, error) {
	e := &pb.Erasure{}
	if err := e.UnmarshalVT(r.Value); err != nil {
		return nil, fmt.Errorf("it does not decode: %w", err)
	}
	switch {
	case !bytes.Equal(recordKey(e), r.Key):
		return nil, errors.New("its key is another's")
	case e.AppId == "" || len(e.UserHash) != sha256.Size || e.Pseudonym == "" || e.ErasedAtMs <= 0 || len(e.Needles) == 0:
		return nil, errors.New("it says not whom, from when or what instead")
	}
	return e, nil
}
