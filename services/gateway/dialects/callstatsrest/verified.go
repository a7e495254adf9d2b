package callstatsrest

import (
	"crypto/sha256"
	"sync"

	"github.com/callscope/callscope/services/gateway/auth"
)

// maxVerified bounds the tokens that are remembered: 200 bytes or so each. Above it one of them, whichever, is forgotten.
const maxVerified = 32 << 10

// verified remembers the tokens that were good. Clients send the same one with every message, and checking its signature
// and reading its claims is a fifth of what a message of 1 KB costs. Expiry, origin and revocation are looked at every time.
// Tokens that were refused are not remembered.
type verified struct {
	tokens *auth.Tokens
	limit  int // of tokens

	mu         sync.Mutex
	identities map[[sha256.Size]byte]auth.Identity // by the token's hash
}

// verify returns what auth.Tokens.Verify would.
func (v *verified) verify(token, origin string) (auth.Identity, error) {
	key := sha256.Sum256([]byte(token))
	v.mu.Lock()
	identity, known := v.identities[key]
	v.mu.Unlock()
	if known && v.tokens.Recheck(identity, origin) == nil {
		return identity, nil
	}
	identity, err := v.tokens.Verify(token, origin)
	v.mu.Lock()
	defer v.mu.Unlock()
	if err != nil {
		delete(v.identities, key)
		return auth.Identity{}, err
	}
	if v.identities == nil {
		v.identities = make(map[[sha256.Size]byte]auth.Identity)
	}
	if _, known := v.identities[key]; !known && len(v.identities) >= v.limit {
		for other := range v.identities {
			delete(v.identities, other)
			break
		}
	}
	v.identities[key] = identity
	return identity, nil
}
