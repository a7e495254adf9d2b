package gateway

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/callscope/callscope/services/gateway/limits"
)

type networks []netip.Prefix

// parseNetworks reads networks and single addresses.
func parseNetworks(texts []string) (networks, error) {
	var all networks
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if addr, addrErr := netip.ParseAddr(text); addrErr == nil {
			prefix, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil {
			return nil, fmt.Errorf("%q is neither a network (10.0.0.0/8) nor an address", text)
		}
		all = append(all, prefix)
	}
	return all, nil
}

func (n networks) contain(addr netip.Addr) bool {
	for _, prefix := range n {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}

// clientAddr is the host:port of the client. Every proxy appends the address that it saw to X-Forwarded-For, so the
// client's is the last one that no trusted proxy has; what stands before it may be invented.
func (n networks) clientAddr(r *http.Request) string {
	addr := limits.ParseAddress(r.RemoteAddr)
	if !n.contain(addr) {
		return r.RemoteAddr
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop := limits.ParseAddress(strings.TrimSpace(hops[i]))
		if hop.IsUnspecified() {
			break // not an address: the proxy before it is the last that is known
		}
		if addr = hop; !n.contain(addr) {
			break
		}
	}
	return net.JoinHostPort(addr.String(), "0")
}
