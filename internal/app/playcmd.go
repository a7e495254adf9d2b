package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/callscope/callscope/services/gateway/play"
)

func (c *cli) playCommand() *cobra.Command {
	var cfg play.Config
	var verbose bool
	cmd := &cobra.Command{
		Use:   "play FILE...",
		Short: "Play recorded calls against a gateway, as the recorded clients would",
		Long: `Play recorded calls against a gateway, as the recorded clients would: it signs in
afresh with the app's secret, uses the tokens and ucIDs that the gateway gives, speaks
HTTP or WebSocket as recorded, and moves all timestamps so that the call ends about now.

It exits with 0 when everything was answered with success and with 1 otherwise; what was
refused, failed or could not be sent is printed in full. Like the clients it sends nothing
twice.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.play(cmd.Context(), cfg, args, verbose) },
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Gateway, "gateway", play.DefaultGateway, "base URL of the gateway")
	f.StringVar(&cfg.Secret, "app-secret", play.DefaultSecret, "secret of the recorded app, or <base64 key id>:<secret>")
	f.Float64Var(&cfg.Speed, "speed", 1, "how many times faster than recorded; 0 is as fast as the gateway answers")
	f.BoolVarP(&verbose, "verbose", "v", false, "print every message")
	return cmd
}

func (c *cli) play(ctx context.Context, cfg play.Config, files []string, verbose bool) error {
	var err error
	if cfg.Recordings, err = play.ReadFiles(files); err != nil {
		return err
	}
	settled, started, last := 0, time.Now(), time.Now()
	cfg.Progress = func(r play.Result) {
		settled++
		switch {
		case verbose:
			fmt.Fprintln(c.stdout, r)
		case time.Since(last) >= 10*time.Second:
			last = time.Now()
			fmt.Fprintf(c.stderr, "played %d messages in %s\n", settled, time.Since(started).Round(time.Second))
		}
	}
	report, err := play.Run(ctx, cfg)
	if err != nil && len(report.Results) == 0 {
		if errors.Is(err, play.ErrUnreachable) {
			return unreachable(fmt.Errorf("%w; start one with `callscope all --demo`, or give its address with --gateway", err))
		}
		return interruptedOr(ctx, err)
	}
	if err := errors.Join(report.WriteSummary(c.stdout), err); err != nil {
		return interruptedOr(ctx, err)
	}
	if !report.OK() {
		return errors.New("not everything was answered with success; see above")
	}
	return nil
}
