package stage

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"testing"
)

// TestUID computes the UUIDv5 by hand, after RFC 9562: SHA-1 of namespace and
// name, cut to 16 bytes, with version and variant set.
func TestUID(t *testing.T) {
	space, err := hex.DecodeString("5d1a3f0e8f0c4c369e610b6a7c0e9d52")
	if err != nil {
		t.Fatal(err)
	}
	want := func(name string) []byte {
		sum := sha1.Sum(append(bytes.Clone(space), name...))
		sum[6] = sum[6]&0x0f | 0x50
		sum[8] = sum[8]&0x3f | 0x80
		return sum[:16]
	}
	uid16 := []byte("0123456789abcdef")
	long := bytes.Repeat([]byte("x"), 300) // length 300 is 0xac 0x02 as uvarint
	for name, c := range map[string]struct{ got, want []byte }{
		"no parts":    {UID(), want("")},
		"one part":    {UID([]byte("ab")), want("\x02ab")},
		"two parts":   {UID([]byte("ab"), []byte("c")), want("\x02ab\x01c")},
		"empty part":  {UID(nil, []byte("c")), want("\x00\x01c")},
		"long part":   {UID(long), want("\xac\x02" + string(long))},
		"output":      {OutputUID(uid16, 258), want("\x100123456789abcdef\x04\x00\x00\x01\x02")},
		"tick output": {TickOutputUID(uid16, []byte("e"), "closed"), want("\x100123456789abcdef\x01e\x06closed")},
	} {
		if !bytes.Equal(c.got, c.want) {
			t.Errorf("%s: %x, want %x", name, c.got, c.want)
		}
	}
}
