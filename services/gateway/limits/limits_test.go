package limits

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

const client = "203.0.113.7:4242"

// TestRates: ten seconds' worth at once, then the rate.
func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Config{UserMessagesPerSecond: 2, AppMessagesPerSecond: 3, AddressMessagesPerSecond: 100})
		send := func(user string, n int) (passed int, last Scope) {
			for range n {
				if scope := l.Message("1", user, client, 10); scope == None {
					passed++
				} else {
					last = scope
				}
			}
			return passed, last
		}
		if n, scope := send("alice", 25); n != 20 || scope != User {
			t.Errorf("%d of alice passed, then %q; want 20, user", n, scope)
		}
		if n, scope := send("bob", 15); n != 10 || scope != App { // 30 of the app, less alice's 20
			t.Errorf("%d of bob passed, then %q; want 10, app", n, scope)
		}
		time.Sleep(time.Second) //nolint:forbidigo // fake time
		if n, _ := send("alice", 10); n != 2 {
			t.Errorf("%d of alice passed after a second, want 2", n)
		}
		if scope := l.Message("2", "alice", client, 10); scope != None {
			t.Errorf("the same user name of another app is held back: %q", scope)
		}
	})
}

func TestAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Config{AddressSignInsPerSecond: 1, AddressGenericsPerSecond: 1, AddressConnectionsPerSecond: 1, AddressBytesPerSecond: 100})
		for name, try := range map[string]func(string) bool{"sign-in": l.SignIn, "generics": l.Generics, "connection": l.Connection} {
			for _, tt := range []struct {
				address func(i int) string
				want    int
			}{
				{func(int) string { return client }, 10},
				{func(i int) string { return fmt.Sprintf("[::ffff:198.51.100.1]:%d", i) }, 10},
				{func(i int) string { return fmt.Sprintf("[2001:db8::%x]:1", i) }, 10},
				{func(i int) string { return fmt.Sprintf("[2001:db8:0:%x::1]:1", i+1) }, 20},
				{func(i int) string { return fmt.Sprintf("127.0.0.1:%d", i) }, 20},
				{func(int) string { return "no address" }, 10},
			} {
				passed := 0
				for i := range 20 {
					if try(tt.address(i)) {
						passed++
					}
				}
				if passed != tt.want {
					t.Errorf("%s of %s: %d of 20 passed, want %d", name, tt.address(1), passed, tt.want)
				}
			}
		}
		if scope := l.Message("1", "a", client, 1001); scope != Address {
			t.Errorf("more bytes than the burst: %q", scope)
		}
	})
}

func TestSignedIn(t *testing.T) {
	l := New(Config{AppSignInsPerSecond: 2, UserSignInsPerSecond: 1})
	count := make(map[Scope]int)
	for i := range 40 {
		count[l.SignedIn("1", fmt.Sprint(i%2))]++
	}
	if count[None] != 20 || count[User] != 20 {
		t.Errorf("got %v, want 20 each", count)
	}
	if scope := l.SignedIn("1", "another"); scope != App {
		t.Errorf("the 21st of the app: %q", scope)
	}
}

// TestMillionConferences: the cost of many ids is bounded, and other apps do not see it.
func TestMillionConferences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Config{AppConferencesPerHour: 1000})
		refused := 0
		for i := range 1_000_000 {
			if l.Conference("1", fmt.Sprint("room ", i)) == Conferences {
				refused++
			}
		}
		if refused != 999_000 {
			t.Errorf("refused %d of a million, want 999,000", refused)
		}
		if n := len(l.conferences["1"].seen); n != 1000 {
			t.Errorf("%d ids are held, want 1000", n)
		}
		if l.Conference("1", "room 3") != None || l.Conference("2", "room 5000000") != None || l.Conference("1", "") != None {
			t.Error("a known conference, another app's, or none at all is refused")
		}
		time.Sleep(time.Hour) //nolint:forbidigo // fake time
		if l.Conference("1", "room 5000000") != None {
			t.Error("a new conference is refused an hour later")
		}
	})
}

// TestBounded: many strangers take no more memory than the bound.
func TestBounded(t *testing.T) {
	l := New(Config{UserMessagesPerSecond: 1, AppMessagesPerSecond: -1, AddressMessagesPerSecond: -1})
	for i := range 200_000 {
		l.Message("1", fmt.Sprint(i), client, 1)
	}
	total := 0
	for i := range l.users.messages.shards {
		total += len(l.users.messages.shards[i].entries)
	}
	if total > shards*maxPerShard {
		t.Errorf("%d buckets are held, want at most %d", total, shards*maxPerShard)
	}
}

func TestNoLimit(t *testing.T) {
	l := New(Config{UserMessagesPerSecond: -1, UserBytesPerSecond: -1, AppMessagesPerSecond: -1, AppBytesPerSecond: -1, AddressMessagesPerSecond: -1, AddressBytesPerSecond: -1, AppConferencesPerHour: -1})
	for i := range 300_000 {
		if scope := l.Message("1", "a", client, 1<<20); scope != None {
			t.Fatalf("message %d: %q", i, scope)
		}
	}
	if l.Conference("1", "x") != None {
		t.Error("a conference was refused")
	}
}

func TestValidate(t *testing.T) {
	if err := (Config{}).Validate(1 << 20); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	if err := (Config{UserBytesPerSecond: 1000}).Validate(1 << 20); err == nil {
		t.Error("a rate at which the largest message never passes was accepted")
	}
}

func BenchmarkMessage(b *testing.B) {
	l := New(Config{UserMessagesPerSecond: 1 << 40, AppMessagesPerSecond: 1 << 40, AddressMessagesPerSecond: 1 << 40})
	b.ReportAllocs()
	for b.Loop() {
		l.Message("1", "alice", client, 1)
	}
}
