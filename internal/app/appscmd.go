package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/callscope/callscope/internal/apps"
	"github.com/callscope/callscope/internal/stream"
)

// appsFlags are what the commands below `callscope apps` share.
type appsFlags struct {
	c      *cli
	output string
}

func (c *cli) appsCommand() *cobra.Command {
	f := &appsFlags{c: c}
	cmd := &cobra.Command{
		Use:   "apps",
		Short: "Make and change apps: who may sign in, with what, from where",
		Long: `Make and change apps: who may sign in, with what, from where.

Apps are kept in the Kafka topic ` + stream.TopicApps + `; every gateway takes in a change within
two seconds, without a restart. Secrets are encrypted with registry.master_key, or with the
key that ` + "`callscope all`" + ` keeps below --data. Apps of the setting apps are not shown and not
changed here; where both have an id, the setting wins.

It asks the cluster of kafka.brokers, or without any the broker of a running ` + "`callscope all`" + `
at kafka.embedded_addr.`,
	}
	cmd.PersistentFlags().StringVarP(&f.output, "output", "o", "table", "table or json")
	cmd.PersistentFlags().StringVar(&c.dataDir, "data", "", "directory for everything stored locally (data_dir)")
	secret := &cobra.Command{Use: "secret", Short: "Add and revoke an app's secrets, of which two may be live during a rotation"}
	secret.AddCommand(f.secretAdd(), f.remove("revoke APP SECRET", "Revoke a secret: nobody signs in with it any more", (*apps.Editor).RevokeSecret, "revoked secret"))
	key := &cobra.Command{Use: "key", Short: "Add and revoke the public keys of the customer's ES256 tokens"}
	key.AddCommand(f.keyAdd(), f.remove("revoke APP KEY", "Revoke a public key: no token made with it signs in any more", (*apps.Editor).RevokeKey, "revoked key"))
	origin := &cobra.Command{Use: "origin", Short: "Add and remove the origins whose pages may sign in; without any, all may"}
	origin.AddCommand(f.originAdd(), f.originRemove())
	cmd.AddCommand(f.create(), f.list(), f.show(), f.update(), f.delete(), f.revokeTokens(), f.rekey(), secret, key, origin)
	return cmd
}

// edit opens the registry and hands it to f.
func (f *appsFlags) edit(ctx context.Context, do func(context.Context, *apps.Editor) error) error {
	if err := oneOf("--output", f.output, "table", "json"); err != nil {
		return err
	}
	s, err := f.c.load()
	if err != nil {
		return err
	}
	return f.c.withRegistry(ctx, s, do)
}

// withRegistry opens the registry with the master key that gateways of this configuration have.
func (c *cli) withRegistry(ctx context.Context, s *settings, do func(context.Context, *apps.Editor) error) error {
	s.useRunningBroker()
	_, keyErr := s.masterKey()
	if err := s.check(needKafka, func(*settings) error { return keyErr }); err != nil {
		return err
	}
	key, err := s.masterKey()
	if err == nil && key == nil {
		key, err = s.localMasterKey(false)
	}
	if err != nil {
		return err
	}
	client, err := stream.Open(s.Kafka.Config, c.logger(s.Log), nil)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Ping(ctx); err != nil {
		return interruptedOr(ctx, unreachable(err))
	}
	editor, err := apps.Open(ctx, client, key)
	if err != nil {
		return interruptedOr(ctx, fmt.Errorf("%w; the topic %s is made by `callscope migrate` and `callscope all`", err, stream.TopicApps))
	}
	return interruptedOr(ctx, masterKeyHint(do(ctx, editor)))
}

func masterKeyHint(err error) error {
	switch {
	case errors.Is(err, apps.ErrNoMasterKey):
		return fmt.Errorf("%w: give the gateways' registry.master_key (at least %d random characters, best in a file named by registry.master_key_file), or --data of the running `callscope all`", err, apps.MinMasterKeyBytes)
	case errors.Is(err, apps.ErrOtherMasterKey):
		return fmt.Errorf("%w: give the registry.master_key that the gateways have, or as registry.previous_master_key the one before it", err)
	}
	return err
}

// settingFlags are the flags of create and update for an app's settings.
func settingFlags(cmd *cobra.Command) func() map[string]string {
	values := make(map[string]*string)
	help := map[string]string{
		"name":                   "what people call the app",
		"submission_interval_ms": "how often clients send statistics",
		"collect_sdp":            "true or false: whether clients send SDPs",
		"rest_transport":         "true or false: whether 3.52 clients use REST instead of WebSocket",
		"require_expiry":         "true or false: refuse customer tokens without exp",
		"strict_tokens":          "true or false: accept only customer tokens with jti and exp, each of them once per gateway",
	}
	for _, name := range apps.SettingNames() {
		values[name] = cmd.Flags().String(strings.ReplaceAll(name, "_", "-"), "", help[name])
	}
	return func() map[string]string {
		set := make(map[string]string)
		for name, value := range values {
			if cmd.Flags().Changed(strings.ReplaceAll(name, "_", "-")) {
				set[name] = *value
			}
		}
		return set
	}
}

// secretFlags are the flags of create and secret add.
type secretFlags struct {
	file  string
	keyID bool
}

func (s *secretFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.file, "secret-file", "", "take the secret that clients have already from a file, - for standard input, instead of making one")
	cmd.Flags().BoolVar(&s.keyID, "with-key-id", false, "make the secret with a key id in front, which clients put into their tokens")
}

// secret makes a secret, or reads it. text is empty for one that was read.
func (s *secretFlags) secret(stdin io.Reader) (text string, secret apps.Secret, err error) {
	if s.file == "" {
		return apps.GenerateSecret(s.keyID)
	}
	var given []byte
	if s.file == "-" {
		given, err = io.ReadAll(io.LimitReader(stdin, 64<<10))
	} else {
		given, err = os.ReadFile(s.file)
	}
	if err != nil {
		return "", secret, fmt.Errorf("reading the secret: %w", err)
	}
	secret, err = apps.ParseSecret(strings.TrimSuffix(strings.TrimSuffix(string(given), "\n"), "\r"))
	if err != nil {
		return "", secret, fmt.Errorf("reading the secret: %w", err)
	}
	return "", secret, nil
}

// changed is what a command prints of what it did.
type changed struct {
	App      string `json:"app_id"`
	Done     string `json:"done"`
	Item     string `json:"item,omitempty"`
	SecretID string `json:"secret_id,omitempty"`
	Secret   string `json:"secret,omitempty"` // only when it was just made
}

func (f *appsFlags) print(d changed) error {
	if f.output == "json" {
		enc := json.NewEncoder(f.c.stdout)
		enc.SetEscapeHTML(false)
		return enc.Encode(d)
	}
	text := fmt.Sprintf("app %s: %s", d.App, d.Done)
	if d.Item != "" {
		text += " " + d.Item
	}
	if d.SecretID != "" {
		text += "\nsecret id: " + d.SecretID
	}
	if d.Secret != "" {
		text += "\nsecret:    " + d.Secret + "\nIt is shown this once only."
	}
	_, err := fmt.Fprintln(f.c.stdout, text)
	return err
}

func (f *appsFlags) create() *cobra.Command {
	var id string
	var secret secretFlags
	var noSecret bool
	cmd := &cobra.Command{
		Use: "create", Short: "Make an app with a secret", Args: cobra.NoArgs,
		Long: `Make an app with a secret, which is printed once and never again.`,
	}
	values := settingFlags(cmd)
	cmd.Flags().StringVar(&id, "id", "", "the AppID that clients have already; a free one by default")
	cmd.Flags().BoolVar(&noSecret, "no-secret", false, "make none: for apps whose users sign in with customer tokens")
	secret.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return f.edit(cmd.Context(), func(ctx context.Context, e *apps.Editor) error {
			appID := id
			if appID == "" {
				var err error
				if appID, err = e.FreeID(); err != nil {
					return err
				}
			}
			if err := f.c.notConfigured(appID); err != nil {
				return err
			}
			var text string
			var made *apps.Secret
			if !noSecret {
				t, s, err := secret.secret(f.c.stdin)
				if err != nil {
					return err
				}
				text, made = t, &s
			}
			secretID, err := e.Create(ctx, appID, values(), made)
			if err != nil {
				return err
			}
			return f.print(changed{App: appID, Done: "created", SecretID: secretID, Secret: text})
		})
	}
	return cmd
}

// notConfigured refuses an id that the setting apps has: what is kept in Kafka would have no effect.
func (c *cli) notConfigured(appID string) error {
	s, err := c.load()
	if err != nil {
		return err
	}
	for _, a := range s.Apps {
		if a.ID == appID {
			return fmt.Errorf("app %s is in the setting apps, which wins: change it there, or take it out first", appID)
		}
	}
	return nil
}

func (f *appsFlags) list() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Print all apps", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.edit(cmd.Context(), func(_ context.Context, e *apps.Editor) error {
				list := e.Apps()
				if f.output == "json" {
					out := []appJSON{}
					for _, a := range list {
						out = append(out, newAppJSON(a))
					}
					return writeJSON(f.c.stdout, out)
				}
				t := table{header: []string{"app_id", "name", "secrets", "keys", "origins", "created"}, right: []bool{true, false, true, true, true, false}}
				for _, a := range list {
					origins := strconv.Itoa(len(a.Origins))
					if len(a.Origins) == 0 {
						origins = "any"
					}
					t.add(a.ID, a.Settings["name"], strconv.Itoa(len(a.Secrets)), strconv.Itoa(len(a.Keys)), origins, at(a.Created))
				}
				return t.write(f.c.stdout)
			})
		},
	}
}

func (f *appsFlags) show() *cobra.Command {
	return &cobra.Command{
		Use: "show APP", Short: "Print one app, without its secrets", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.edit(cmd.Context(), func(_ context.Context, e *apps.Editor) error {
				a, err := e.Info(args[0])
				if err != nil {
					return err
				}
				if f.output == "json" {
					return writeJSON(f.c.stdout, newAppJSON(a))
				}
				t := table{header: []string{"what", "value", "since", "note"}}
				t.add("app_id", a.ID, at(a.Created), "")
				for _, name := range apps.SettingNames() {
					t.add(name, a.Settings[name], "", "")
				}
				for _, s := range a.Secrets {
					t.add("secret", s.ID, at(s.Added), "encrypted with master key "+s.Note)
				}
				for _, k := range a.Keys {
					t.add("key", k.ID, at(k.Added), "fingerprint "+k.Note)
				}
				for _, o := range a.Origins {
					t.add("origin", o, "", "")
				}
				return t.write(f.c.stdout)
			})
		},
	}
}

func (f *appsFlags) update() *cobra.Command {
	cmd := &cobra.Command{Use: "update APP", Short: "Change settings of an app; those not given stay", Args: cobra.ExactArgs(1)}
	values := settingFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		set := values()
		if len(set) == 0 {
			return &codedError{exitUsage, errors.New("nothing to change: give at least one setting, such as --name")}
		}
		return f.edit(cmd.Context(), func(ctx context.Context, e *apps.Editor) error {
			if err := e.Set(ctx, args[0], set); err != nil {
				return err
			}
			return f.print(changed{App: args[0], Done: "updated"})
		})
	}
	return cmd
}

func (f *appsFlags) delete() *cobra.Command {
	return f.whole("delete APP", "Delete an app: sign-ins and access tokens end at once, what was measured stays", (*apps.Editor).Delete, "deleted")
}

func (f *appsFlags) revokeTokens() *cobra.Command {
	return f.whole("revoke-tokens APP", "End all access tokens of an app: its clients sign in again, where they still may", (*apps.Editor).RevokeTokens, "revoked all access tokens")
}

func (f *appsFlags) whole(use, short string, do func(*apps.Editor, context.Context, string) error, done string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.edit(cmd.Context(), func(ctx context.Context, e *apps.Editor) error {
				if err := do(e, ctx, args[0]); err != nil {
					return err
				}
				return f.print(changed{App: args[0], Done: done})
			})
		},
	}
}

func (f *appsFlags) remove(use, short string, do func(*apps.Editor, context.Context, string, string) error, done string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.edit(cmd.Context(), func(ctx context.Context, e *apps.Editor) error {
				if err := do(e, ctx, args[0], args[1]); err != nil {
					return err
				}
				return f.print(changed{App: args[0], Done: done, Item: args[1]})
			})
		},
	}
}

func (f *appsFlags) secretAdd() *cobra.Command {
	var flags secretFlags
	cmd := &cobra.Command{
		Use: "add APP", Short: "Add a secret beside the one that is there, and print it once", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.edit(cmd.Context(), func(ctx context.Context, e *apps.Editor) error {
				text, secret, err := flags.secret(f.c.stdin)
				if err != nil {
					return err
				}
				id, err := e.AddSecret(ctx, args[0], secret)
				if err != nil {
					return err
				}
				return f.print(changed{App: args[0], Done: "added a secret", SecretID: id, Secret: text})
			})
		},
	}
	flags.add(cmd)
	return cmd
}

func (f *appsFlags) keyAdd() *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use: "add APP FILE", Short: "Add a P-256 public key from a PEM file, - for standard input", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var text []byte
			var err error
			if args[1] == "-" {
				text, err = io.ReadAll(io.LimitReader(f.c.stdin, 64<<10))
			} else {
				text, err = os.ReadFile(args[1])
			}
			if err != nil {
				return fmt.Errorf("reading the public key: %w", err)
			}
			return f.edit(cmd.Context(), func(ctx context.Context, e *apps.Editor) error {
				keyID, err := e.AddKey(ctx, args[0], id, text)
				if err != nil {
					return err
				}
				return f.print(changed{App: args[0], Done: "added key", Item: keyID})
			})
		},
	}
	cmd.Flags().StringVar(&id, "key-id", "", "the keyID in the customer's tokens; made of the key by default")
	return cmd
}

func (f *appsFlags) originAdd() *cobra.Command {
	return &cobra.Command{
		Use: "add APP ORIGIN", Short: "Allow pages of an origin, such as https://app.example.com; from the first one on, no others", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.edit(cmd.Context(), func(ctx context.Context, e *apps.Editor) error {
				normal, err := e.AddOrigin(ctx, args[0], args[1])
				if err != nil {
					return err
				}
				return f.print(changed{App: args[0], Done: "added origin", Item: normal})
			})
		},
	}
}

func (f *appsFlags) originRemove() *cobra.Command {
	var allowAll bool
	cmd := f.remove("remove APP ORIGIN", "Remove an origin: its pages sign in no more",
		func(e *apps.Editor, ctx context.Context, appID, origin string) error {
			err := e.RemoveOrigin(ctx, appID, origin, allowAll)
			if errors.Is(err, apps.ErrLastOrigin) {
				return fmt.Errorf("%w; add another first, or consent with --allow-all", err)
			}
			return err
		}, "removed origin")
	cmd.Flags().BoolVar(&allowAll, "allow-all", false, "consent to every origin when the last one is removed")
	return cmd
}

func at(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// appJSON is an app as JSON. Times are UTC.
type appJSON struct {
	ID       string            `json:"app_id"`
	Created  time.Time         `json:"created_at"`
	Settings map[string]string `json:"settings"`
	Secrets  []itemJSON        `json:"secrets"`
	Keys     []itemJSON        `json:"keys"`
	Origins  []string          `json:"origins"`
}

type itemJSON struct {
	ID          string    `json:"id"`
	Added       time.Time `json:"added_at"`
	MasterKeyID string    `json:"master_key_id,omitempty"`
	Fingerprint string    `json:"fingerprint,omitempty"`
}

func newAppJSON(a apps.Info) appJSON {
	out := appJSON{ID: a.ID, Created: a.Created.UTC(), Settings: a.Settings, Secrets: []itemJSON{}, Keys: []itemJSON{}, Origins: append([]string{}, a.Origins...)}
	for _, s := range a.Secrets {
		out.Secrets = append(out.Secrets, itemJSON{ID: s.ID, Added: s.Added.UTC(), MasterKeyID: s.Note})
	}
	for _, k := range a.Keys {
		out.Keys = append(out.Keys, itemJSON{ID: k.ID, Added: k.Added.UTC(), Fingerprint: k.Note})
	}
	return out
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
