// Command callscope is the only program of callscope. What it does is in internal/app.
package main

import (
	"os"

	"github.com/callscope/callscope/internal/app"
)

func main() { os.Exit(app.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
