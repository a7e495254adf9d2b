package intake

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/oschwald/maxminddb-golang/v2"
)

// What is kept of a client's address unless configured otherwise.
const (
	DefaultIPv4Bits = 24
	DefaultIPv6Bits = 48
)

// Mask sets how many leading bits of addresses are stored. It must be called before the first message.
func (in *Intake) Mask(ipv4Bits, ipv6Bits int) { in.ipv4Bits, in.ipv6Bits = ipv4Bits, ipv6Bits }

// locations are MaxMind databases; nil ones know nothing.
type locations struct{ country, network *maxminddb.Reader }

// OpenLocations opens the MaxMind databases that are given. It must be called before the first message.
func (in *Intake) OpenLocations(countryFile, networkFile string) error {
	for _, f := range []struct {
		setting, name string
		db            **maxminddb.Reader
	}{
		{"gateway.country_file", countryFile, &in.locations.country},
		{"gateway.network_file", networkFile, &in.locations.network},
	} {
		if f.name == "" {
			continue
		}
		db, err := maxminddb.Open(f.name)
		if err != nil {
			in.CloseLocations()
			return fmt.Errorf("opening %s (%s): %w", f.setting, f.name, err)
		}
		*f.db = db
	}
	return nil
}

// CloseLocations is called after the last message.
func (in *Intake) CloseLocations() {
	for _, db := range []*maxminddb.Reader{in.locations.country, in.locations.network} {
		if db != nil {
			_ = db.Close() // it was only read
		}
	}
	in.locations = locations{}
}

type location struct{ masked, country, network string }

// locate looks an address up and cuts it. What is no address gives nothing.
func (in *Intake) locate(remoteAddr string) location {
	host, _, err := net.SplitHostPort(remoteAddr)
	if err != nil {
		host = remoteAddr
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return location{}
	}
	addr = addr.Unmap().WithZone("")
	l := location{masked: mask(addr, in.ipv4Bits, in.ipv6Bits)}
	if db := in.locations.country; db != nil {
		var record struct {
			Country struct {
				Code string `maxminddb:"iso_code"`
			} `maxminddb:"country"`
		}
		if db.Lookup(addr).Decode(&record) == nil { // an address that the file cannot tell has no country
			l.country = validUTF8(record.Country.Code)
		}
	}
	if db := in.locations.network; db != nil {
		var record struct {
			Owner string `maxminddb:"autonomous_system_organization"`
		}
		if db.Lookup(addr).Decode(&record) == nil { // likewise
			l.network = validUTF8(record.Owner)
		}
	}
	return l
}

// mask removes what identifies one connection.
func mask(addr netip.Addr, ipv4Bits, ipv6Bits int) string {
	bits := ipv6Bits
	if addr.Is4() {
		bits = ipv4Bits
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return ""
	}
	return prefix.Addr().String()
}
