package stage

import (
	"encoding/binary"

	"github.com/google/uuid"
)

// namespace is the one namespace of every UUIDv5 that callscope makes. It is
// part of the data: changing it would give every entity another identity.
var namespace = uuid.MustParse("5d1a3f0e-8f0c-4c36-9e61-0b6a7c0e9d52")

// UID makes the UUIDv5 of the given name parts, 16 bytes. Each part is
// prefixed with its length as an uvarint, so that ("ab","c") and ("a","bc")
// differ. UUIDs are given as their 16 bytes.
func UID(parts ...[]byte) []byte {
	size := 0
	for _, part := range parts {
		size += binary.MaxVarintLen32 + len(part)
	}
	name := make([]byte, 0, size)
	for _, part := range parts {
		name = binary.AppendUvarint(name, uint64(len(part)))
		name = append(name, part...)
	}
	id := uuid.NewSHA1(namespace, name)
	return id[:]
}

// OutputUID makes the uid of the output with the given index of an input
// record: UUIDv5 of the record's uid and the index as big-endian uint32.
func OutputUID(inputUID []byte, index int) []byte {
	return UID(inputUID, binary.BigEndian.AppendUint32(nil, uint32(index)))
}

// TickOutputUID makes the uid of an output that a tick caused: UUIDv5 of the
// tick's uid, the entity's uid and the output's kind. Unlike an index it is
// the same when only part of the log is folded.
func TickOutputUID(tickUID, entityUID []byte, kind string) []byte {
	return UID(tickUID, entityUID, []byte(kind))
}
