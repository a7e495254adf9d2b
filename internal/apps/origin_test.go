package apps

import (
	"strings"
	"testing"
)

// TestOrigins: what a browser on an allowed page sends, and everything that only looks like it.
func TestOrigins(t *testing.T) {
	listed := &App{Origins: []string{"https://app.example.test", "http://localhost:8000", "https://[2001:db8::1]:8443", "capacitor://localhost", "https://xn--bcher-kva.example", "http://plain.test:80"}}
	same := strings.Fields(`
		https://app.example.test https://app.example.test:443 HTTPS://app.example.test https://APP.EXAMPLE.TEST hTTps://App.Example.Test:443
		http://localhost:8000 HTTP://LOCALHOST:8000 https://[2001:db8::1]:8443 https://[2001:DB8::1]:8443
		https://[2001:0db8:0:0:0:0:0:1]:8443 https://[2001:db8:0::1]:8443 capacitor://localhost CAPACITOR://localhost
		https://xn--bcher-kva.example https://XN--BCHER-KVA.example http://plain.test http://plain.test:80`)
	other := strings.Fields(`
		http://app.example.test http://app.example.test:443 https://app.example.test:80 https://app.example.test:8443 https://app.example.test:4430
		https://app.example.test:0 https://app.example.test:00443 https://app.example.test:+443 https://app.example.test:443x https://app.example.test:65979
		https://app.example.test: https://app.example.test:443: https://app.example.test. https://app.example.test.:443 https://.app.example.test
		https://xapp.example.test https://app.example.test.evil.tk https://app.example.testevil.tk https://evil.tk/app.example.test https://evil.tk/https://app.example.test
		https://app.example.test@evil.tk https://evil.tk@app.example.test https://x:y@app.example.test https://@app.example.test
		https://app.example.test# https://app.example.test#x https://app.example.test? https://app.example.test?x https://app.example.test/ https://app.example.test/x
		https:///app.example.test https:app.example.test https:/app.example.test //app.example.test app.example.test app.example.test:443
		https://example.test https://test https://sub.app.example.test https://app-example.test https://appXexample.test
		https://app.example.test,https://evil.tk https://evil.tk,https://app.example.test https://app.example.test;evil https://app.example.test|x https://*.example.test https://*
		https://%61pp.example.test https://app%2eexample.test https://app.example.test%00 https://app.example.test%20 https://app.example%2Etest
		https://app.example.test\evil.tk https:\\app.example.test https://app.example.test\@evil.tk https://app．example.test https://ａpp.example.test https://app。example.test
		https://арр.example.test https://app.example.teſt https://[app.example.test] https://[app.example.test]:443
		ftp://app.example.test wss://app.example.test ws://app.example.test file:// file://app.example.test javascript://app.example.test data:text/html null NULL undefined about:blank
		blob:https://app.example.test filesystem:https://app.example.test chrome-extension://app.example.test view-source:https://app.example.test
		http://localhost http://localhost:80 http://localhost:8001 https://localhost:8000 http://127.0.0.1:8000 http://[::1]:8000 http://LOCALHOST.:8000 http://localhoſt:8000 http://localhost:08000
		https://[2001:db8::1] https://[2001:db8::1]:443 https://[2001:db8::2]:8443 https://2001:db8::1:8443 https://[2001:db8::1%25eth0]:8443 https://[2001:db8::1:8443 https://[::ffff:192.0.2.1]:8443 https://[]:8443
		capacitor://localhost:80 capacitor://localhost:443 capacitor:// ionic://localhost capacitor://localhost/ capacitor://local
		https://bücher.example https://xn--bcher-kva.example. https://xn--bcher-kvb.example
		http://plain.test:8080 https://plain.test https://plain.test:80 :// https:// https http://`)
	other = append(other, "", " ", "https://app.example.test ", " https://app.example.test", "https://app.example.test\n", "https://app.example.test\x00", "https://app.example.test\x00.evil.tk",
		"https://app.exam ple.test", "https://app.example.test https://evil.tk", "https://evil.tk https://app.example.test", "https://app.example.test\thttps://x", "\xff", strings.Repeat("a", 1<<16))
	for _, o := range same {
		if !listed.AllowsOrigin(o) {
			t.Errorf("%q is refused", o)
		}
	}
	for _, o := range other {
		if listed.AllowsOrigin(o) {
			t.Errorf("%q is allowed", o)
		}
	}
	if n := len(same) + len(other); n < 100 {
		t.Errorf("only %d origins were tried", n)
	}
	// An entry that is none matches nothing; it does not open the list.
	broken := &App{Origins: []string{"https://a.test/x"}}
	for _, o := range []string{"https://a.test/x", "https://a.test", "", "null"} {
		if broken.AllowsOrigin(o) {
			t.Errorf("%q is allowed by an entry that is no origin", o)
		}
	}
}

// FuzzOrigin: an origin has one spelling, which is itself an origin, and equal only to itself.
func FuzzOrigin(f *testing.F) {
	for _, o := range []string{"https://app.example.test", "HTTP://[::1]:80", "capacitor://localhost", "https://a:443@b", "null", "https://[fe80::1%25x]"} {
		f.Add(o)
	}
	f.Fuzz(func(t *testing.T, origin string) {
		normal, err := NormalOrigin(origin)
		if err != nil {
			return
		}
		if again, err := NormalOrigin(normal); err != nil || again != normal {
			t.Fatalf("%q is %q, which is %q (%v)", origin, normal, again, err)
		}
		for _, r := range origin {
			if r <= ' ' || r >= 0x7f || strings.ContainsRune("@?#%\\,*", r) {
				t.Fatalf("%q passes as an origin", origin)
			}
		}
		if (&App{Origins: []string{"https://app.example.test"}}).AllowsOrigin(origin) && !strings.EqualFold(strings.TrimSuffix(origin, ":443"), "https://app.example.test") {
			t.Fatalf("%q is allowed", origin)
		}
	})
}
