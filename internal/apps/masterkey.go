package apps

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	pb "github.com/callscope/callscope/proto/callscope/v1"
)

// MinMasterKeyBytes is the shortest text that NewMasterKey takes.
const MinMasterKeyBytes = 32

// MasterKey encrypts app secrets in the topic. It never prints.
type MasterKey struct {
	id       string // tells keys apart without saying anything about them
	aead     cipher.AEAD
	previous *MasterKey // opens what it encrypted; nil without
}

// NewMasterKey takes the operator's text, of at least MinMasterKeyBytes random characters.
func NewMasterKey(text string) (*MasterKey, error) {
	if len(text) < MinMasterKeyBytes {
		return nil, fmt.Errorf("has %d bytes, at least %d are needed", len(text), MinMasterKeyBytes)
	}
	key, err := hkdf.Key(sha256.New, []byte(text), nil, "callscope apps registry secrets", 32)
	if err != nil {
		return nil, fmt.Errorf("deriving the key: %w", err)
	}
	id, err := hkdf.Key(sha256.New, []byte(text), nil, "callscope apps registry key id", 6)
	if err != nil {
		return nil, fmt.Errorf("deriving the key's id: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("making the cipher: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("making the cipher: %w", err)
	}
	return &MasterKey{id: hex.EncodeToString(id), aead: aead}, nil
}

// WithPrevious also opens what an earlier master key encrypted, while it is being replaced (Editor.Rekey).
func (k *MasterKey) WithPrevious(previous *MasterKey) *MasterKey {
	both := *k
	both.previous = previous
	return &both
}

// opens says whether it can open what the key with this id encrypted.
func (k *MasterKey) opens(id string) bool {
	return k != nil && (k.id == id || k.previous.opens(id))
}

// String hides the key.
func (k *MasterKey) String() string {
	if k == nil {
		return "[no master key]"
	}
	return "[master key " + k.id + "]"
}

// GoString hides the key from %#v.
func (k *MasterKey) GoString() string { return k.String() }

var (
	// ErrNoMasterKey: a secret has to be read or written and there is no master key.
	ErrNoMasterKey = errors.New("no master key is set")
	// ErrOtherMasterKey: a secret was encrypted with another master key than the one given.
	ErrOtherMasterKey = errors.New("encrypted with another master key")
)

// seal encrypts a secret for one place: moved to another app, item or life it does not open.
func (k *MasterKey) seal(secret Secret, place []byte) (*pb.AppSecret, error) {
	if k == nil {
		return nil, ErrNoMasterKey
	}
	nonce := make([]byte, k.aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("making a nonce: %w", err)
	}
	return &pb.AppSecret{
		KeyId: secret.KeyID, MasterKeyId: k.id, Nonce: nonce,
		Ciphertext: k.aead.Seal(nil, nonce, secret.Key, append(place, secret.KeyID...)),
	}, nil
}

func (k *MasterKey) open(s *pb.AppSecret, place []byte) (Secret, error) {
	switch {
	case k == nil:
		return Secret{}, fmt.Errorf("%w, and the secret was encrypted with %s", ErrNoMasterKey, s.GetMasterKeyId())
	case s.GetMasterKeyId() != k.id && k.previous.opens(s.GetMasterKeyId()):
		return k.previous.open(s, place)
	case s.GetMasterKeyId() != k.id:
		return Secret{}, fmt.Errorf("%w: %s, not %s", ErrOtherMasterKey, s.GetMasterKeyId(), k.id)
	case len(s.GetNonce()) != k.aead.NonceSize():
		return Secret{}, errors.New("damaged: the nonce has the wrong length")
	}
	key, err := k.aead.Open(nil, s.GetNonce(), s.GetCiphertext(), append(place, s.GetKeyId()...))
	if err != nil {
		return Secret{}, errors.New("damaged, or moved from another app or item: it does not decrypt")
	}
	if len(key) == 0 {
		return Secret{}, errors.New("damaged: the secret is empty")
	}
	return Secret{KeyID: s.GetKeyId(), Key: key}, nil
}
