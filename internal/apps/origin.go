package apps

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// AllowsOrigin reports whether a page of this origin may sign in. Origins are compared as RFC 6454 says: scheme, host
// and port, ASCII letters of scheme and host in any case, the default port written or not. With a list, a missing or
// opaque ("null") origin is refused. Programs that are no browser can send any origin they like: the list keeps an app's
// secret from being used on other people's pages, and no more.
func (a *App) AllowsOrigin(origin string) bool {
	if len(a.Origins) == 0 {
		return true
	}
	got, err := NormalOrigin(origin)
	if err != nil {
		return false
	}
	for _, o := range a.Origins {
		if want, err := NormalOrigin(o); err == nil && got == want {
			return true
		}
	}
	return false
}

// NormalOrigin returns the one spelling of an origin (scheme://host:port; without port for schemes that have no
// default), or an error for what is none. International names must be in their ASCII form (xn--), as browsers send them.
func NormalOrigin(origin string) (string, error) {
	bad := func(why string) (string, error) {
		return "", fmt.Errorf("%q is not an origin (%s): want scheme://host or scheme://host:port", origin, why)
	}
	// What browsers write has only these. Anything else would have to be decoded or folded before it is compared, which
	// is where look-alikes come from.
	for i := range len(origin) {
		if c := origin[i]; !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("+-._:/[]", c) >= 0) {
			return bad("a character that no origin has; international names are written in their xn-- form")
		}
	}
	u, err := url.Parse(origin)
	if err != nil || u.Scheme == "" {
		return bad("no scheme")
	}
	scheme, host, port := strings.ToLower(u.Scheme), strings.ToLower(u.Hostname()), u.Port()
	switch {
	case host == "":
		return bad("no host")
	case u.Path != "":
		return bad("it has a path")
	case strings.HasSuffix(u.Host, ":"):
		return bad("no port follows the colon")
	}
	if strings.HasPrefix(u.Host, "[") {
		ip, err := netip.ParseAddr(host)
		if err != nil || !ip.Is6() {
			return bad("no IPv6 address in the brackets")
		}
		host = "[" + ip.String() + "]"
	} else if strings.ContainsAny(host, "[]:/") {
		return bad("no usable host")
	}
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[scheme]
		if port == "" {
			return scheme + "://" + host, nil
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return bad("no usable port")
	}
	return scheme + "://" + host + ":" + port, nil
}
