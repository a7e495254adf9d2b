package app

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// Off a terminal there is a line every 10 s, also while nothing moves, and none before anything is known.
func TestProgressLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := newProgress(&out, "records")
		defer p.stop()
		<-time.After(10500 * time.Millisecond)
		for i := range 15 {
			p.set("folding", int64(i+1)*100, 5000)
			<-time.After(time.Second)
		}
		p.set("comparing samples", 1500, 5000)
		<-time.After(20 * time.Second)
		p.stop()
		p.set("writing samples", 1500, 5000)
		<-time.After(time.Minute)
		want := "folding: 1000 of 5000 records\ncomparing samples: 1500 of 5000 records\ncomparing samples: 1500 of 5000 records\n"
		if out.String() != want {
			t.Errorf("printed\n%swant\n%s", &out, want)
		}
	})
}

// openTerminal returns a pseudo-terminal: what the program writes to, and what a person sees.
func openTerminal(t *testing.T) (program *os.File, seen func() string) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo-terminal here:", err)
	}
	number, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(errors.Join(err, screen.Close()))
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(errors.Join(err, screen.Close()))
	}
	var mu sync.Mutex
	var text strings.Builder
	done := make(chan struct{})
	go func() {
		defer close(done)
		chunk := make([]byte, 4096)
		for {
			n, err := screen.Read(chunk)
			mu.Lock()
			text.Write(chunk[:n])
			mu.Unlock()
			if err != nil {
				return // the program's side is closed
			}
		}
	}()
	t.Cleanup(func() {
		if err := program.Close(); err != nil {
			t.Error(err)
		}
		<-done
		if err := screen.Close(); err != nil {
			t.Error(err)
		}
	})
	return program, func() string {
		mu.Lock()
		defer mu.Unlock()
		return text.String()
	}
}

// On a terminal there is a bar with the phase, the share and the count, which goes away at the end.
func TestProgressBar(t *testing.T) {
	terminal, seen := openTerminal(t)
	p := newProgress(terminal, "records")
	defer p.stop()
	p.set("folding", 1250, 5000)
	deadline := time.After(10 * time.Second)
	for poll := time.NewTicker(150 * time.Millisecond); ; {
		p.set("folding", 1250, 5000)
		if text := seen(); strings.Contains(text, "folding") && strings.Contains(text, "25%") && strings.Contains(text, "1250/5000") {
			poll.Stop()
			break
		}
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatalf("the terminal shows %q", seen())
		}
	}
	if strings.Contains(seen(), "\n") {
		t.Errorf("lines on a terminal: %q", seen())
	}
	p.stop()
	if _, err := terminal.WriteString("|"); err != nil {
		t.Fatal(err)
	}
	for !strings.HasSuffix(seen(), "|") {
		select {
		case <-deadline:
			t.Fatalf("the terminal shows %q", seen())
		default:
		}
	}
	if text := strings.TrimSuffix(seen(), "|"); !strings.HasSuffix(text, "\r") && !strings.HasSuffix(text, "\x1b[2K") && !strings.HasSuffix(text, "\x1b[K") {
		t.Errorf("the bar is left: %q", text)
	}
}
