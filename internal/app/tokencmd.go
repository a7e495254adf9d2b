package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/callscope/callscope/internal/apps"
)

// customerTokenLifetime is what the spec recommends.
const customerTokenLifetime = 10 * time.Minute

func (c *cli) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Make tokens for trying out sign-ins"}
	cmd.AddCommand(c.tokenMintCommand())
	return cmd
}

// mint is what `callscope token mint` is asked for.
type mint struct {
	appID, userID, keyFile, keyID string
	output                        string
}

func (c *cli) tokenMintCommand() *cobra.Command {
	var m mint
	cmd := &cobra.Command{
		Use:   "mint --app APP --user USER",
		Short: "Print a token with which a user can sign in, as a client or the customer's server would make it",
		Long: `Print a token with which a user can sign in: the field code of a client's authenticate form,
or the customerToken of callscope's own protocol.

Without --private-key it is what a client makes with the app's secret (HS256), from the setting
apps or from the registry with its master key; like a client's it never expires. With
--private-key it is what the customer's server makes (ES256): valid for 10 minutes, with a jti.

It is no access token: those come from a gateway alone, in answer to this one. Whoever has the
printed token can sign in as that user.`,
		Example: `  callscope token mint --app 123456789 --user alice
  callscope token mint --app 123456789 --user alice --private-key key.pem --key-id 0102030405060709`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.mint(cmd.Context(), m) },
	}
	f := cmd.Flags()
	f.StringVar(&m.appID, "app", "", "the AppID")
	f.StringVar(&m.userID, "user", "", "the user's id")
	f.StringVar(&m.keyFile, "private-key", "", "PEM file of the customer's private key (P-256)")
	f.StringVar(&m.keyID, "key-id", "", "the key's id in the app; with --private-key")
	f.StringVarP(&m.output, "output", "o", "text", "text or json")
	c.dataFlag(cmd)
	return cmd
}

// minted is a token as JSON.
type minted struct {
	ClientID string `json:"client_id"` // the form field beside it
	Code     string `json:"code"`
	Method   string `json:"method"`
	Expires  *int64 `json:"exp"` // seconds since 1970; null for never
}

func (c *cli) mint(ctx context.Context, m mint) error {
	if err := oneOf("--output", m.output, "text", "json"); err != nil {
		return err
	}
	usage := func(text string) error { return &codedError{exitUsage, errors.New(text)} }
	switch {
	case m.appID == "" || m.userID == "":
		return usage("--app and --user are needed")
	case (m.keyFile == "") != (m.keyID == ""):
		return usage("--private-key and --key-id belong together")
	}
	if err := apps.CheckID(m.appID); err != nil {
		return usage("--app: " + err.Error())
	}
	number, err := strconv.ParseInt(m.appID, 10, 64)
	if err != nil {
		return usage("--app: " + err.Error())
	}
	out := minted{ClientID: m.userID + "@" + m.appID, Method: "HS256"}
	claims := jwt.MapClaims{"userID": m.userID, "appID": number}
	if m.keyFile != "" {
		now := time.Now().Truncate(time.Second)
		expires := now.Add(customerTokenLifetime).Unix()
		out.Method, out.Expires = "ES256", &expires
		claims["keyID"], claims["iat"], claims["nbf"], claims["exp"], claims["jti"] = m.keyID, now.Unix(), now.Add(-5*time.Minute).Unix(), expires, uuid.NewString()
		text, err := os.ReadFile(m.keyFile)
		if err != nil {
			return fmt.Errorf("reading --private-key: %w", err)
		}
		key, err := jwt.ParseECPrivateKeyFromPEM(text)
		if err != nil {
			return fmt.Errorf("reading --private-key %s: %w", m.keyFile, err)
		}
		if out.Code, err = jwt.NewWithClaims(jwt.SigningMethodES256, claims).SignedString(key); err != nil {
			return fmt.Errorf("signing with --private-key %s, which must be on P-256: %w", m.keyFile, err)
		}
	} else {
		secret, err := c.appSecret(ctx, m.appID)
		if err != nil {
			return err
		}
		if secret.KeyID != "" {
			claims["keyId"] = secret.KeyID
		}
		token := jwt.NewWithClaims(jwt.SigningMethodHS256, claims)
		delete(token.Header, "typ") // clients send none
		if out.Code, err = token.SignedString(secret.Key); err != nil {
			return fmt.Errorf("signing with the app's secret: %w", err)
		}
	}
	if m.output == "json" {
		return writeJSON(c.stdout, out)
	}
	_, err = fmt.Fprintln(c.stdout, out.Code)
	return err
}

// appSecret is the first secret of an app of the configuration, or else of the registry.
func (c *cli) appSecret(ctx context.Context, appID string) (apps.Secret, error) {
	s, err := c.load()
	if err != nil {
		return apps.Secret{}, err
	}
	static, err := s.staticApps(false)
	if err := s.check(func(*settings) error { return err }); err != nil {
		return apps.Secret{}, err
	}
	found, ok := static.Lookup(appID)
	if !ok {
		err = c.withRegistry(ctx, s, func(_ context.Context, e *apps.Editor) error {
			found, err = e.App(appID)
			if err != nil && found != nil && len(found.Secrets) > 0 {
				return nil // what else is wrong with the app is not in the way
			}
			return err
		})
		if err != nil {
			return apps.Secret{}, err
		}
	}
	if len(found.Secrets) == 0 {
		return apps.Secret{}, fmt.Errorf("app %s has no secret: add one with `callscope apps secret add %s`, or sign with --private-key", appID, appID)
	}
	return found.Secrets[0], nil
}
