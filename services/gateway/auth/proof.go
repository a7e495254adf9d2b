package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"

	"github.com/callscope/callscope/internal/apps"
)

// ProofContext separates proofs from every other use of an app secret.
const ProofContext = "callscope.v1 proof"

// Proof is what a client of our own protocol answers to a nonce: HMAC-SHA256, keyed with the secret, of context, nonce,
// app id, user id and origin, each preceded by its length as four big-endian bytes, so that no two sign-ins have one text.
// docs/reference/protocol.md has a test vector.
func Proof(secret, nonce []byte, appID, userID, origin string) []byte {
	mac := hmac.New(sha256.New, secret)
	for _, part := range [][]byte{[]byte(ProofContext), nonce, []byte(appID), []byte(userID), []byte(origin)} {
		mac.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		mac.Write(part)
	}
	return mac.Sum(nil)
}

// SignInProof checks the proof of a client on a page of the given origin. The caller has to see to it that the nonce was
// made for this client, lately, and is used once. Neither an unknown app nor one in the middle of a rotation shows in the
// time. Exactly one of grant and refusal is set.
func (a *Authenticator) SignInProof(appID, userID, origin string, nonce, proof []byte) (*Grant, *Refusal) {
	at := attempt{method: "proof", appID: appID, userID: userID, origin: origin}
	app, known := a.registry.Lookup(appID)
	if !known {
		app = &apps.App{ID: appID}
	}
	good := false
	for i := range max(len(app.Secrets), apps.MaxSecrets) {
		key, real := a.dummyKey, i < len(app.Secrets)
		if real {
			key = app.Secrets[i].Key
		}
		equal := hmac.Equal(Proof(key, nonce, appID, userID, origin), proof)
		good = good || equal && real
	}
	switch {
	case !validUserID(userID):
		return nil, a.refuse(at, errClientID)
	case !known:
		return nil, a.refuse(at, errUnknownApp)
	case !good:
		return nil, a.refuse(at, errCredential)
	case !app.AllowsOrigin(origin):
		return nil, a.refuse(at, errOrigin)
	}
	return a.grant(at, app)
}
