package app

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/callscope/callscope/internal/config"
)

const localSecretBytes = 32

// localSecret returns a secret of this installation that nobody configured, made at random at the first start and kept
// in a file that only its owner may read, so that a restart keeps what was signed with it valid.
func localSecret(dir, name string) (config.Secret, error) {
	path := filepath.Join(dir, name)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeLocalSecret(dir, path)
	}
	if err != nil {
		return config.Secret{}, fmt.Errorf("reading the secret kept in %s: %w", path, err)
	}
	secret := strings.TrimSpace(string(text))
	if len(secret) < 2*localSecretBytes {
		return config.Secret{}, fmt.Errorf("the secret kept in %s is cut short; delete the file to have another made, after which clients sign in again", path)
	}
	return config.NewSecret(secret), nil
}

func makeLocalSecret(dir, path string) (config.Secret, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return config.Secret{}, fmt.Errorf("making the directory for secrets: %w", err)
	}
	random := make([]byte, localSecretBytes)
	if _, err := rand.Read(random); err != nil {
		return config.Secret{}, fmt.Errorf("making a secret: %w", err)
	}
	text := hex.EncodeToString(random)
	// It appears whole or not at all; a process that made one at the same time wins or loses whole, too.
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // made with 0600
	if err != nil {
		return config.Secret{}, fmt.Errorf("keeping a new secret: %w", err)
	}
	_, err = f.WriteString(text + "\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Link(f.Name(), path)
	}
	err = errors.Join(err, os.Remove(f.Name()))
	switch {
	case errors.Is(err, fs.ErrExist):
		return localSecret(dir, filepath.Base(path))
	case err != nil:
		return config.Secret{}, fmt.Errorf("keeping a new secret in %s: %w", path, err)
	}
	return config.NewSecret(text), nil
}
