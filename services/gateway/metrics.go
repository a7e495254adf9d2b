package gateway

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// registerMetrics registers what concerns the gateway as a whole; messages are counted by intake, sign-ins by auth.
func registerMetrics(reg prometheus.Registerer, openSockets func() int64, ready func() error) error {
	if reg == nil {
		return nil
	}
	err := errors.Join(
		reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "callscope_gateway_websocket_connections",
			Help: "Open WebSocket connections.",
		}, func() float64 { return float64(openSockets()) })),
		reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "callscope_gateway_ready",
			Help: "1 while the gateway accepts clients.",
		}, func() float64 {
			if ready() != nil {
				return 0
			}
			return 1
		})),
	)
	if err != nil {
		return fmt.Errorf("registering the gateway's counters: %w", err)
	}
	return nil
}
