package intake

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// writeDatabase writes a MaxMind file that knows one IPv4 network, by the published description of the format.
func writeDatabase(t *testing.T, network string, record []byte) string {
	t.Helper()
	prefix := netip.MustParsePrefix(network)
	address := prefix.Addr().As4()
	nodes := uint32(prefix.Bits())
	var file bytes.Buffer
	put24 := func(n uint32) { file.Write([]byte{byte(n >> 16), byte(n >> 8), byte(n)}) }
	for i := range nodes {
		next := i + 1
		if next == nodes {
			next = nodes + 16 // the data section begins here
		}
		if address[i/8]>>(7-i%8)&1 == 0 {
			put24(next)
			put24(nodes) // nothing is known
		} else {
			put24(nodes)
			put24(next)
		}
	}
	file.Write(make([]byte, 16))
	file.Write(record)
	file.WriteString("\xab\xcd\xefMaxMind.com")
	file.WriteByte(7<<5 | 9)
	file.WriteString(mmdbString("node_count") + "\xc4")
	file.Write(binary.BigEndian.AppendUint32(nil, nodes))
	file.WriteString(mmdbString("record_size") + "\xa1\x18" + mmdbString("ip_version") + "\xa1\x04")
	file.WriteString(mmdbString("database_type") + mmdbString("Test") + mmdbString("languages") + "\x00\x04")
	file.WriteString(mmdbString("binary_format_major_version") + "\xa1\x02" + mmdbString("binary_format_minor_version") + "\xa0")
	file.WriteString(mmdbString("build_epoch") + "\x01\x02\x01" + mmdbString("description") + "\xe0")
	name := filepath.Join(t.TempDir(), "test.mmdb")
	if err := os.WriteFile(name, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func mmdbString(s string) string { return string(rune(2<<5|len(s))) + s } // shorter than 29 bytes

func TestLocations(t *testing.T) {
	country := writeDatabase(t, "203.0.113.0/24", []byte("\xe1"+mmdbString("country")+"\xe1"+mmdbString("iso_code")+mmdbString("FI")))
	network := writeDatabase(t, "203.0.113.0/25", []byte("\xe1\x5d\x01autonomous_system_organization"+mmdbString("Example Networks")))
	in := newIntake(t, nil)
	if err := in.OpenLocations(country, network); err != nil {
		t.Fatal(err)
	}
	defer in.CloseLocations()
	for address, want := range map[string]location{
		"203.0.113.7:4242":          {"203.0.113.0", "FI", "Example Networks"},
		"[::ffff:203.0.113.7]:4242": {"203.0.113.0", "FI", "Example Networks"},
		"203.0.113.200:4242":        {"203.0.113.0", "FI", ""},
		"198.51.100.1:4242":         {"198.51.100.0", "", ""},
		"[2001:db8:1:2::3]:4242":    {"2001:db8:1::", "", ""}, // the files know IPv4 alone
		"no address":                {},
	} {
		if got := in.locate(address); got != want {
			t.Errorf("%s: %+v, want %+v", address, got, want)
		}
	}
	in.Mask(32, 128)
	if got := in.locate("203.0.113.7:4242").masked; got != "203.0.113.7" {
		t.Errorf("unmasked: %s", got)
	}
}

func TestLocationsMissing(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "broken.mmdb")
	if err := os.WriteFile(broken, []byte("no database"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{broken, filepath.Join(t.TempDir(), "none.mmdb")} {
		err := newIntake(t, nil).OpenLocations("", name)
		if err == nil || !strings.Contains(err.Error(), "gateway.network_file") || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v", err)
		}
	}
}
