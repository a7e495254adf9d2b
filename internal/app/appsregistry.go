package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/callscope/callscope/internal/apps"
)

// masterKeyFile holds the master key of an installation that configured none.
const masterKeyFile = "apps-master-key"

// masterKey is the configured one, which also opens what the previous one encrypted; nil without.
func (s *settings) masterKey() (*apps.MasterKey, error) {
	if !s.Registry.MasterKey.IsSet() {
		if s.Registry.PreviousMasterKey.IsSet() {
			return nil, errors.New("registry.previous_master_key: is set without registry.master_key, which replaces it")
		}
		return nil, nil
	}
	key, err := apps.NewMasterKey(s.Registry.MasterKey.Reveal())
	if err != nil {
		return nil, fmt.Errorf("registry.master_key: %w", err)
	}
	if !s.Registry.PreviousMasterKey.IsSet() {
		return key, nil
	}
	previous, err := apps.NewMasterKey(s.Registry.PreviousMasterKey.Reveal())
	if err != nil {
		return nil, fmt.Errorf("registry.previous_master_key: %w", err)
	}
	return key.WithPrevious(previous), nil
}

// localMasterKey is the one that `callscope all` keeps in its data directory. It is made only by the process that
// serves: a command that made one would encrypt with a key that no gateway has. It is nil where there is none.
func (s *settings) localMasterKey(make bool) (*apps.MasterKey, error) {
	if !make {
		if _, err := os.Stat(filepath.Join(s.secretsDir(), masterKeyFile)); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
	}
	text, err := localSecret(s.secretsDir(), masterKeyFile)
	if err != nil {
		return nil, err
	}
	return apps.NewMasterKey(text.Reveal())
}

// startRegistry starts to follow the apps in Kafka and returns when all of them are known.
func (p *process) startRegistry(ctx context.Context) (*apps.Registry, error) {
	static, err := p.staticApps(p.demo)
	if err != nil {
		return nil, err
	}
	key, err := p.masterKey()
	if err == nil && key == nil && p.local {
		key, err = p.localMasterKey(true)
	}
	if err != nil {
		return nil, err
	}
	registry, err := apps.NewRegistry(static, key, p.log, p.reg)
	if err != nil {
		return nil, err
	}
	follow := func(ctx context.Context) error { return registry.Follow(ctx, p.client) }
	if err := p.group.start(ctx, service{name: "apps registry", run: follow, ready: registry.Ready}); err != nil {
		return nil, err
	}
	if key == nil {
		p.log.Warn("registry.master_key is not set: apps made with `callscope apps` can sign in with customer tokens only, not with secrets")
	}
	if registry.Count() == 0 {
		p.log.Warn("there are no apps: nobody can sign in until `callscope apps create` makes one, or the setting apps names one")
	}
	return registry, nil
}
