package streamtest

import (
	"encoding/base64"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

// recorder is a test that may fail without failing this one.
type recorder struct {
	testing.TB
	failure string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) {
	r.failure = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestEventually(t *testing.T) {
	calls := 0
	Eventually(t, time.Minute, func() string {
		if calls++; calls < 5 {
			return "not yet"
		}
		return ""
	})
	if calls != 5 {
		t.Errorf("%d calls, want 5", calls)
	}
	r := &recorder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		Eventually(r, 10*time.Millisecond, func() string { return "never there" })
	}()
	<-done
	if !strings.Contains(r.failure, "never there") {
		t.Errorf("the failure does not give the reason: %q", r.failure)
	}
}

func TestJavaMajor(t *testing.T) {
	for text, want := range map[string]int{
		"openjdk version \"17.0.15\" 2025-04-15\nOpenJDK Runtime Environment": 17,
		"openjdk version \"21\" 2023-09-19":                                   21,
		"openjdk version \"26-ea\" 2026-03-17":                                26,
		"java version \"1.8.0_402\"":                                          1,
		"no java here":                                                        0,
	} {
		if got := javaMajor(text); got != want {
			t.Errorf("javaMajor(%q) = %d, want %d", text, got, want)
		}
	}
}

func TestClusterIDIsKafkas(t *testing.T) {
	seen := make(map[string]bool)
	for range 100 {
		id := randomClusterID()
		raw, err := base64.RawURLEncoding.DecodeString(id)
		if err != nil || len(raw) != 16 || strings.HasPrefix(id, "-") || seen[id] {
			t.Fatalf("%q: %d bytes, %v", id, len(raw), err)
		}
		seen[id] = true
	}
}

// TestPomHasTheVersion: the cache folder is named by the constant, and what is in it comes from the pom.
func TestPomHasTheVersion(t *testing.T) {
	if !strings.Contains(string(pom), "<version>"+KafkaVersion+"</version>") {
		t.Errorf("pom.xml does not name version %s", KafkaVersion)
	}
}
