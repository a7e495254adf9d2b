package sink

import (
	"testing"

	"github.com/callscope/callscope/internal/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }
