// Package app is the command line: it builds the services from the configuration, runs them in one process or each in
// its own, stops them in order, and turns what happens into one clear line and an exit code.
//
// It holds no logic of any stage. The path of a message through the services is the same however they are started.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/callscope/callscope/internal/config"
)

// The exit codes.
const (
	exitOK            = 0
	exitFailed        = 1
	exitUsage         = 2
	exitConfiguration = 3
	exitUnreachable   = 4 // a dependency: Kafka, ClickHouse, the gateway, the engine's library
	exitPartly        = 5 // a part of the work was done and stays done
	exitInterrupted   = 130
)

// codedError is an error with the exit code it leads to. Others lead to exitFailed.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// unreachable marks an error as that of a dependency.
func unreachable(err error) error {
	if err == nil {
		return nil
	}
	return &codedError{exitUnreachable, err}
}

// Main runs the command that args name and returns the exit code. The first interrupt or termination signal ends the
// command in order; a second one ends the process at once.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := untilSignal(context.Background(), stderr)
	defer stop()
	c := &cli{stdin: stdin, stdout: stdout, stderr: stderr, environ: os.Environ()}
	root := c.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	return c.exit(ctx, err)
}

// exit says what went wrong and returns the code for it.
func (c *cli) exit(ctx context.Context, err error) int {
	if err == nil {
		return exitOK
	}
	code, hint := exitFailed, ""
	var coded *codedError
	var bad *config.Error
	switch {
	case errors.As(err, &coded):
		code = coded.code
	case errors.As(err, &bad):
		code = exitConfiguration
	case !c.started: // the command line was not understood
		code, hint = exitUsage, "; `callscope help` lists the commands"
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		code, err = exitInterrupted, errors.New("interrupted")
	}
	fmt.Fprintf(c.stderr, "callscope: %v%s\n", err, hint)
	return code
}

// untilSignal returns a context that ends with the first signal. The second one exits.
func untilSignal(parent context.Context, stderr io.Writer) (context.Context, func()) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		for count := 0; ; count++ {
			select {
			case <-done:
				return
			case <-signals:
			}
			if count > 0 {
				fmt.Fprintln(stderr, "callscope: interrupted twice, ending at once")
				os.Exit(exitInterrupted)
			}
			cancel()
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel()
	}
}

// cli is what the commands share.
type cli struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	environ        []string

	started    bool // the command line was understood
	configFile string
	set        []string
	logLevel   string
	logFormat  string
	dataDir    string
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "callscope",
		Short: "Self-hosted, callstats.io-compatible call quality for WebRTC",
		Long: `Self-hosted, callstats.io-compatible call quality for WebRTC:
gateway -> Kafka -> enricher -> summarizer -> Kafka -> sink -> ClickHouse.

Settings come from --config FILE (or CALLSCOPE_CONFIG), then from the environment
as CALLSCOPE_SECTION__KEY, then from --set section.key=value; ` + "`callscope config`" + ` prints
what is in force and where it came from.

Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 bad configuration, 4 a dependency cannot
be reached, 5 partly done, 130 interrupted.`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRun:  func(*cobra.Command, []string) { c.started = true },
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetIn(c.stdin)
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	f := root.PersistentFlags()
	f.StringVar(&c.configFile, "config", "", "YAML file with settings")
	f.StringArrayVar(&c.set, "set", nil, "one setting, as section.key=value; may be given more than once")
	f.StringVar(&c.logLevel, "log-level", "", "debug, info, warn or error (log.level)")
	f.StringVar(&c.logFormat, "log-format", "", "text or json (log.format)")
	root.AddCommand(
		c.allCommand(), c.gatewayCommand(), c.enricherCommand(), c.summarizerCommand(), c.sinkCommand(),
		c.brokerCommand(), c.engineCommand(), c.migrateCommand(), c.configCommand(), c.versionCommand(),
		c.sqlCommand(), c.lagCommand(), c.playCommand(),
		c.replayCommand(), c.exportCommand(), c.importCommand(), c.eraseCommand(), c.importDumpCommand(),
		c.appsCommand(), c.tokenCommand(), c.scoreCommand(),
	)
	return root
}

// dataFlag gives a command the flag --data.
func (c *cli) dataFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.dataDir, "data", "", "directory for everything stored locally (data_dir)")
}

// load reads the configuration. It is not validated yet: what must be right depends on the command.
func (c *cli) load(flags ...config.Flag) (*settings, error) {
	src := config.Sources{File: c.configFile, Environ: c.environ, Set: c.set, Flags: flags}
	if src.File == "" {
		src.File = environValue(c.environ, config.EnvPrefix+"CONFIG")
	}
	for _, f := range []config.Flag{
		{Name: "--log-level", Key: "log.level", Value: c.logLevel},
		{Name: "--log-format", Key: "log.format", Value: c.logFormat},
		{Name: "--data", Key: "data_dir", Value: c.dataDir},
	} {
		if f.Value != "" {
			src.Flags = append(src.Flags, f)
		}
	}
	return loadSettings(src)
}

// logger writes to standard error: standard output is for what a command prints.
func (c *cli) logger(cfg LogConfig) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.Level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(c.stderr, options))
	}
	return slog.New(slog.NewTextHandler(c.stderr, options))
}
