package gateway

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// registerMetrics registers what concerns the gateway as a whole; messages are counted by intake, sign-ins by auth.
// It returns the counter of refused connections, by reason.
func registerMetrics(reg prometheus.Registerer, openSockets func() int64, ready func() error) (*prometheus.CounterVec, error) {
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "callscope_gateway_refused_connections_total",
		Help: "Connections closed unused: 80 % of the memory budget is taken (budget), or too many from one address (rate).",
	}, []string{"reason"})
	if reg == nil {
		return refused, nil
	}
	err := errors.Join(
		reg.Register(refused),
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
		return nil, fmt.Errorf("registering the gateway's counters: %w", err)
	}
	return refused, nil
}
