package erase

import (
	"os"
	"testing"

	"github.com/callscope/callscope/test/chaintest"
)

func TestMain(m *testing.M) { os.Exit(chaintest.Main(m)) }
