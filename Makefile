# One line a target; `make help` prints them. V=1 shows the commands.
ifeq ($(V),)
.SILENT:
endif
SHELL := /bin/sh
BIN := bin/callscope
export CGO_ENABLED ?= 0
GOFILES = $(shell git ls-files '*.go' ':!*.pb.go')

.DEFAULT_GOAL := help
.PHONY: help build run test race sim measure lint fmt proto proto-check bench fuzz e2e engine clean

help: ## print this help
	grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

build: ## build bin/callscope
	go build -trimpath -o $(BIN) ./cmd/callscope

engine: ## fetch the ClickHouse library once per machine (npm)
	sh internal/embedded/npm/fetch.sh

run: build engine ## start everything on loopback, play a recorded call and show its rows
	$(BIN) all --demo --log-level warn --play test/captures/two-users-hs256.jsonl --speed 8

test: engine ## every test: unit, whole chain in one and in several processes, Apache Kafka
	go test -count=1 -timeout 30m ./...

e2e: engine ## only the tests that drive the real binary
	go test -count=1 -timeout 30m -v ./test/...

race: engine ## the unit tests under the race detector (needs a C compiler)
	CGO_ENABLED=1 go test -race -count=1 -timeout 30m ./internal/... ./services/...

sim: engine ## 20,000 simulated logs of the enricher, of both stages and of the sink, under crashes and zombies
	GOGC=400 CALLSCOPE_SIM_SEEDS=20000 go test -p 1 -count=1 -timeout 30m -v -run '^(TestSimulation|TestSimulatedLogicChange|TestNegativeControls)$$' ./services/enricher ./test/sim
	go test -count=1 -timeout 30m -v -run '^TestSimulation$$' ./services/sink -sink-seeds 20000

measure: build engine ## the long runs (about an hour): queries on 10 million samples, kills and outages under load, replays of a million records
	CALLSCOPE_FULL=1 CALLSCOPE_OUTAGE=60s CALLSCOPE_REPLAY_RECORDS=1000000 go test -p 1 -count=1 -timeout 120m -v \
	  -run '^(TestQueryTimes|TestSinkKilled|TestEngine|TestZombieSink|TestBrokerOutage|TestVolume|TestLiveBesideReplay|TestInterruptedProcess)' \
	  ./test/queries ./test/crash ./test/load ./test/replay

GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
lint: ## formatting and golangci-lint
	unformatted=$$(gofmt -l $(GOFILES)); if [ -n "$$unformatted" ]; then echo "not formatted (make fmt): $$unformatted"; exit 1; fi
	go run $(GOLANGCI_LINT) run --timeout 15m

fmt: ## format all Go files
	gofmt -w $(GOFILES)

proto: ## generate the protobuf code again (Go tools only)
	go run ./proto/generate

proto-check: proto ## fail when the committed protobuf code is not what the .proto files give
	git diff --exit-code --stat -- proto || { echo "the generated protobuf code differs from the committed one: run 'make proto' and commit the result"; exit 1; }

bench: engine ## benchmarks
	go test -run '^$$' -bench . -benchmem ./...

FUZZTIME ?= 20s
fuzz: ## run every fuzz target for FUZZTIME (20s)
	# Go may report its own time limit as a failure ("context deadline exceeded") without a
	# failing input; that alone is the end of the time, everything else is a failure.
	log=$$(mktemp); for package in $$(go list ./...); do \
	  for target in $$(go test -list '^Fuzz' $$package 2>/dev/null | grep '^Fuzz'); do \
	    echo "$$package $$target"; \
	    if go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$package >$$log 2>&1; then tail -n 2 $$log; \
	    elif grep -q '^ *context deadline exceeded$$' $$log && ! grep -qE 'Failing input written|panic|hung or terminated' $$log; then echo "ended at its time limit"; \
	    else cat $$log; rm -f $$log; exit 1; fi; \
	  done; \
	done; rm -f $$log

clean: ## remove what was built
	rm -rf bin
