package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/callscope/callscope/internal/apps"
	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
)

func (f *appsFlags) rekey() *cobra.Command {
	return &cobra.Command{
		Use: "rekey", Short: "Encrypt all secrets with a new master key", Args: cobra.NoArgs,
		Long: `Encrypt all secrets of the registry with registry.master_key that were encrypted with
registry.previous_master_key. Give both to every gateway first, restart them, run this with the
same two, and take the previous one away when it is done. Sign-ins work all the time. It may be
interrupted and run again, and while others change apps.

Erased users are recognised by registry.erasure_key, which is the master key where it is not set:
where ` + "`callscope erase`" + ` was used, set it to the old master key everywhere first.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.c.erasuresKeepTheirKey(cmd.Context()); err != nil {
				return err
			}
			return f.edit(cmd.Context(), func(ctx context.Context, e *apps.Editor) error {
				n, err := e.Rekey(ctx)
				if err != nil {
					if n > 0 {
						err = errors.Join(fmt.Errorf("%d secrets were encrypted with the new master key, not all", n), err)
					}
					return err
				}
				if f.output == "json" {
					return writeJSON(f.c.stdout, map[string]int{"rewritten": n})
				}
				_, err = fmt.Fprintf(f.c.stdout, "secrets encrypted with the new master key: %d; none is left under another\n", n)
				return err
			})
		},
	}
}

// erasuresKeepTheirKey refuses a change of the master key that would leave erased users unrecognised: their hashes cannot
// be made anew, because nothing holds their ids.
func (c *cli) erasuresKeepTheirKey(ctx context.Context) error {
	s, err := c.load()
	if err != nil || s.Registry.ErasureKey.IsSet() {
		return err
	}
	return c.withServers(ctx, true, false, func(client *stream.Client, _ *store.Store, _ *slog.Logger) error {
		_, end, err := client.Offsets(ctx, stream.TopicErasures, 0)
		if err != nil {
			return fmt.Errorf("looking for erasures: %w", err)
		}
		if end > 0 {
			return errors.New("users were erased, and they are recognised by the master key: give all sinks and this command the old master key as registry.erasure_key first, and keep it")
		}
		return nil
	})
}
