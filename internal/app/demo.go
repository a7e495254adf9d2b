package app

import (
	"errors"
	"fmt"

	"github.com/callscope/callscope/internal/apps"
)

// The app of the recordings, which `callscope all --demo` adds. Its secret is public, so it is for loopback only.
const (
	demoAppID     = "123456789"
	demoAppSecret = "synthetic-app-secret-01"
)

// staticApps are the configured apps, with the demo app when asked for.
func (s *settings) staticApps(demo bool) (*apps.Static, error) {
	var list []*apps.App
	var errs []error
	configured := s.Apps
	if demo {
		configured = append([]apps.Config{{ID: demoAppID, Name: "demo", Secrets: []string{demoAppSecret}}}, configured...)
	}
	for _, cfg := range configured {
		a, err := apps.New(cfg)
		if err != nil {
			errs = append(errs, fmt.Errorf("apps: %w", err))
			continue
		}
		list = append(list, a)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	reg, err := apps.NewStatic(list...)
	if err != nil {
		return nil, fmt.Errorf("apps: %w", err)
	}
	return reg, nil
}
