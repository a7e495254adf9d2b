package embedded

import (
	"fmt"
	"syscall"

	"github.com/ebitengine/purego"
)

// signalAction holds what the C library's sigaction writes, which no platform
// makes longer than 152 bytes. Only whole values are saved and put back, so
// its fields do not matter here.
type signalAction [256]byte

// keepSignalHandlers runs fn and then puts back every signal handler that fn
// replaced. The ClickHouse library and what it links install handlers while
// they load and start; Go needs its own for SIGTERM, for preemption (SIGURG)
// and for faults. Nothing else may change handlers meanwhile.
func keepSignalHandlers(fn func() error) (restored []syscall.Signal, err error) {
	symbol, err := purego.Dlsym(purego.RTLD_DEFAULT, "sigaction")
	if err != nil {
		return nil, fmt.Errorf("finding sigaction: %w", err)
	}
	var sigaction func(signal int32, set, get *signalAction) int32
	purego.RegisterFunc(&sigaction, symbol)

	const signals = 32 // 1 to 31; the real-time ones belong to the C library
	var before [signals]signalAction
	var known [signals]bool
	for s := int32(1); s < signals; s++ {
		known[s] = sigaction(s, nil, &before[s]) == 0
	}
	err = fn()
	for s := int32(1); s < signals; s++ {
		var after signalAction
		if !known[s] || sigaction(s, nil, &after) != 0 || after == before[s] {
			continue
		}
		if sigaction(s, &before[s], nil) == 0 {
			restored = append(restored, syscall.Signal(s))
		}
	}
	return restored, err
}
