package app

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// build is what the binary knows of its own making.
type build struct {
	Version   string `json:"version"`  // of the module; "(devel)" when built from a work tree without a version
	Revision  string `json:"revision"` // of the source, with "+changes" when the work tree had some; may be empty
	Time      string `json:"time"`     // of the revision; may be empty
	GoVersion string `json:"go_version"`
	Platform  string `json:"platform"` // os/architecture
}

func readBuild() build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return build{Version: "unknown"}
	}
	b := build{Version: info.Main.Version, GoVersion: info.GoVersion}
	if b.Version == "" {
		b.Version = "(devel)"
	}
	values := make(map[string]string)
	for _, s := range info.Settings {
		values[s.Key] = s.Value
	}
	b.Revision, b.Time = values["vcs.revision"], values["vcs.time"]
	if values["vcs.modified"] == "true" {
		b.Revision += "+changes"
	}
	b.Platform = values["GOOS"] + "/" + values["GOARCH"]
	return b
}

func (b build) write(w io.Writer) error {
	_, err := fmt.Fprintf(w, "callscope %s\n", b.Version)
	for _, line := range []struct{ name, value string }{
		{"revision", b.Revision}, {"of", b.Time}, {"built with", b.GoVersion}, {"for", b.Platform},
	} {
		if err == nil && line.value != "" {
			_, err = fmt.Fprintf(w, "  %s %s\n", line.name, line.value)
		}
	}
	return err
}

func (c *cli) versionCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "version", Short: "Print what this binary is", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := oneOf("--output", output, "text", "json"); err != nil {
				return err
			}
			if output == "json" {
				return json.NewEncoder(c.stdout).Encode(readBuild())
			}
			return readBuild().write(c.stdout)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}
