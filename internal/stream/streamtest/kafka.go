package streamtest

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
)

// KafkaVersion is the Apache Kafka that StartKafka runs. It is the one in pom.xml.
const KafkaVersion = "4.3.0"

//go:embed kafka/pom.xml
var pom []byte

// KafkaAvailable reports whether this machine can run Apache Kafka: Java 17 or newer, and Maven to get the jars with.
func KafkaAvailable() (ok bool, why string) {
	out, err := exec.Command("java", "-version").CombinedOutput()
	if err != nil {
		return false, fmt.Sprintf("java does not run (%v): install Java 17 or newer", err)
	}
	if v := javaMajor(string(out)); v < 17 {
		return false, fmt.Sprintf("java is version %d: install Java 17 or newer", v)
	}
	if haveJars() {
		return true, ""
	}
	if _, err := exec.LookPath("mvn"); err != nil {
		return false, "mvn is not on the PATH: install Maven"
	}
	return true, ""
}

// javaMajor reads the first number of `java -version`, as in: openjdk version "17.0.15" 2025-04-15. 0 if there is none.
func javaMajor(version string) int {
	_, rest, _ := strings.Cut(version, `"`)
	digits, _, _ := strings.Cut(rest, `"`)
	digits, _, _ = strings.Cut(digits, ".")
	n, err := strconv.Atoi(strings.TrimSuffix(digits, "-ea"))
	if err != nil {
		return 0
	}
	return n
}

// StartKafka starts Apache Kafka, one broker on loopback with empty directories, for the time of the test and returns its
// host:port. Without Java or Maven the test is skipped and says why; with CI=true it fails instead. The jars are fetched
// once per machine and user.
func StartKafka(t testing.TB) (addr string) {
	t.Helper()
	if ok, why := KafkaAvailable(); !ok {
		if os.Getenv("CI") == "true" {
			t.Fatalf("Apache Kafka cannot run: %s", why)
		}
		t.Skipf("Apache Kafka cannot run: %s", why)
	}
	libs, err := fetchJars()
	if err != nil {
		t.Fatalf("getting Apache Kafka %s: %v", KafkaVersion, err)
	}
	for attempt := 1; ; attempt++ {
		addr, err := startKafka(t, libs)
		if err == nil {
			return addr
		}
		// Between choosing a free port and Kafka's listening on it somebody else may have taken it.
		if attempt == 3 || !strings.Contains(err.Error(), "BindException") {
			t.Fatalf("starting Apache Kafka: %v", err)
		}
	}
}

func startKafka(t testing.TB, libs string) (addr string, err error) {
	dir := t.TempDir()
	ports, err := freePorts(2)
	if err != nil {
		return "", err
	}
	config := filepath.Join(dir, "server.properties")
	if err := os.WriteFile(config, serverProperties(dir, ports[0], ports[1]), 0o600); err != nil {
		return "", err
	}
	// slf4j-simple writes to standard error.
	classpath := filepath.Join(libs, "*")
	format := exec.Command("java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", classpath, "kafka.tools.StorageTool",
		"format", "--standalone", "-t", randomClusterID(), "-c", config)
	if out, err := format.CombinedOutput(); err != nil {
		return "", fmt.Errorf("formatting the storage: %w\n%s", err, tail(out))
	}
	logPath := filepath.Join(dir, "kafka.log")
	log, err := os.Create(logPath)
	if err != nil {
		return "", err
	}
	defer log.Close()
	server := exec.Command("java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", classpath, "kafka.Kafka", config)
	server.Stdout, server.Stderr = log, log
	if err := server.Start(); err != nil {
		return "", err
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = server.Wait() // killed below, or reported through the log
	}()
	stop := func() {
		_ = server.Process.Kill() // fails only when it has ended by itself
		<-exited
	}
	addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0]))
	for deadline := time.Now().Add(60 * time.Second); ; {
		if answers(addr) {
			t.Cleanup(stop)
			return addr, nil
		}
		select {
		case <-exited:
			return "", fmt.Errorf("it ended at once:\n%s", tailOf(logPath))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			stop()
			return "", fmt.Errorf("no answer on %s after 60 s:\n%s", addr, tailOf(logPath))
		}
	}
}

// answers reports whether the broker serves metadata.
func answers(addr string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	conn, err := kafka.DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return false
	}
	brokers, err := conn.Brokers()
	return err == nil && len(brokers) == 1
}

func serverProperties(dir string, port, controllerPort int) []byte {
	return fmt.Appendf(nil, `process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:%[2]d
listeners=PLAINTEXT://127.0.0.1:%[1]d,CONTROLLER://127.0.0.1:%[2]d
advertised.listeners=PLAINTEXT://127.0.0.1:%[1]d
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=%[3]s
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=100
auto.create.topics.enable=false
log.cleaner.backoff.ms=200
`, port, controllerPort, filepath.Join(dir, "data"))
}

// freePorts returns ports that were free a moment ago.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// randomClusterID is a UUID in Kafka's spelling. The first byte is fixed, because an id must not begin with a dash.
func randomClusterID() string {
	var id [16]byte
	rand.Read(id[:])
	id[0] = 1
	return base64.RawURLEncoding.EncodeToString(id[:])
}

func jarsDir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, "callscope", "kafka", KafkaVersion), nil
}

func haveJars() bool {
	dir, err := jarsDir()
	if err != nil {
		return false
	}
	jars, err := filepath.Glob(filepath.Join(dir, "kafka_*.jar"))
	return err == nil && len(jars) > 0
}

// fetchJars returns the folder with Kafka's jars and fills it first if it is not there. The folder appears complete or
// not at all, so several test processes may do this at a time.
func fetchJars() (string, error) {
	dir, err := jarsDir()
	if err != nil || haveJars() {
		return dir, err
	}
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(parent, "fetching-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := os.WriteFile(filepath.Join(work, "pom.xml"), pom, 0o600); err != nil {
		return "", err
	}
	libs := filepath.Join(work, "libs")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	mvn := exec.CommandContext(ctx, "mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory="+libs)
	mvn.Dir = work
	if out, err := mvn.CombinedOutput(); err != nil {
		return "", fmt.Errorf("mvn dependency:copy-dependencies: %w\n%s", err, tail(out))
	}
	if err := os.Rename(libs, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	if !haveJars() {
		return "", fmt.Errorf("%s holds no kafka jar", dir)
	}
	return dir, nil
}

func tailOf(path string) []byte {
	b, err := os.ReadFile(path)
	if err != nil {
		return []byte(err.Error())
	}
	return tail(b)
}

// tail returns the last 4 KiB.
func tail(b []byte) []byte { return b[max(0, len(b)-4096):] }
