# Targets for people; `make help` lists them. What a target needs and how long it takes is in docs/testing.md.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export PATH := $(PATH):/usr/sbin:/sbin

# The packages whose tests mount filesystems; the race detector looks at all others.
MOUNTING := tandemfs/fs/mount|tandemfs/integration|tandemfs/integration/lab|tandemfs/integration/benchsnapshot
FUZZTIME ?= 10s
NETFAULT_ROUNDS ?= 200
BENCH ?=
CRASH_ROUNDS ?= 1000
CRASH_SEED ?= 20261123
GROWTH_OPERATIONS ?= 1000000
POWERCUT_ROUNDS ?= 200
POWERCUT_SEED ?= 20261123
MODEL_SECONDS ?= 3600
SOAK_SECONDS ?= 3600

.PHONY: help build check test crash powercut demo fuzz growth model faults soak netfault bench-mount bench-snapshot clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

build: ## build bin/tandemfs
	go build -trimpath -o bin/tandemfs ./cmd/tandemfs

check: ## formatting, vet, staticcheck, import walls, tests with the race detector where no mount is needed
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "run gofmt -w on:" $$unformatted; exit 1; }
	go vet ./...
	go tool staticcheck ./...
	go test -count=1 ./integration/walls
	go test -race -timeout 10m $$(go list ./... | grep -vxE '$(MOUNTING)')

test: ## install what the tests need (as root, on Debian), run all of them, and each fuzz target for a while
	integration/install.sh e2fsprogs xfsprogs btrfs-progs acl attr iproute2 rsync
	go test -timeout 14m ./...
	$(MAKE) fuzz

crash: ## CRASH_ROUNDS (1000) rounds of load, kill of a daemon, restart, compare; CRASH_SEED makes others
	integration/install.sh e2fsprogs xfsprogs btrfs-progs acl attr iproute2 rsync
	TANDEMFS_CRASH_ROUNDS=$(CRASH_ROUNDS) go test -count=1 -v -timeout 24h \
		-run '^TestWhatWasKilledAtAnyMomentIsAsItWas$$' ./integration -seed $(CRASH_SEED)

powercut: ## POWERCUT_ROUNDS (200) rounds of load, loss of power, recovery, compare; POWERCUT_SEED makes others
	integration/install.sh e2fsprogs xfsprogs iproute2
	TANDEMFS_POWERCUT_ROUNDS=$(POWERCUT_ROUNDS) go test -count=1 -v -timeout 24h \
		-run '^TestPowerCutsLoseNothingThatWasSyncedAndNoCopyIsWrong$$' ./integration -seed $(POWERCUT_SEED)

demo: ## two nodes on this machine: protect, replicate, change, fail over (KEEP=1 leaves them running)
	integration/install.sh e2fsprogs
	KEEP=$${KEEP:-} integration/demo/demo.sh

# Inputs are hardly made smaller: where there are connections, what they reach differs from run to run. When its
# time is over Go's fuzzer sometimes calls that a failure; one that is real leaves the input behind.
fuzz: ## run every fuzz target for FUZZTIME (10s)
	@for package in $$(go list ./...); do \
		targets=$$(go test -list '^Fuzz' $$package | grep '^Fuzz' || true); \
		for target in $$targets; do \
			echo "$$package $$target"; \
			said=$$(go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$package 2>&1) || { \
				printf '%s\n' "$$said"; \
				grep -qx ' *context deadline exceeded' <<<"$$said" && ! grep -q 'Failing input' <<<"$$said"; }; \
			tail -n 1 <<<"$$said"; \
		done; \
	done

growth: ## what a journal takes in a week without a peer, GROWTH_OPERATIONS (1000000) operations
	TANDEMFS_GROWTH_OPERATIONS=$(GROWTH_OPERATIONS) go test -count=1 -v -timeout 2h \
		-run '^TestAWeekWithoutAPeerTakesWhatItsFilesTake$$' ./journal

model: ## random histories of snapshots against a model, for MODEL_SECONDS (3600) on each filesystem
	integration/install.sh e2fsprogs xfsprogs btrfs-progs iproute2
	TANDEMFS_MODEL_SECONDS=$(MODEL_SECONDS) go test -count=1 -timeout 0 -v ./integration \
		-run '^TestSnapshotsStayWhatTheModelSaysOnEveryFilesystem$$'

faults: ## every system call of volume and journal made to fail, in every way and at every moment
	TANDEMFS_FAULTS=all go test -count=1 -v -timeout 4h -run 'WhateverCallFails' ./fs/volume ./journal

soak: ## snapshots that come and go among changes, for SOAK_SECONDS (3600)
	integration/install.sh e2fsprogs xfsprogs btrfs-progs iproute2
	TANDEMFS_SOAK_SECONDS=$(SOAK_SECONDS) go test -count=1 -timeout 0 -v ./integration \
		-run '^TestSnapshotsComeAndGoAndNothingStays$$'

netfault: ## NETFAULT_ROUNDS (200) faults of the network under load, each of which must heal
	integration/install.sh e2fsprogs iproute2
	TANDEMFS_NETFAULT=$(NETFAULT_ROUNDS) go test -count=1 -v -timeout 4h -run TestTheCopyOutlivesAnyFaultOfTheNetwork ./integration

bench-mount: build ## the mount against the native directory and go-fuse's loopback (BENCH="-rounds 5 -rows small")
	integration/install.sh e2fsprogs xfsprogs btrfs-progs iproute2
	go build -o bin/benchmount ./integration/benchmount
	TANDEMFS_TEST_BINARY=$(CURDIR)/bin/tandemfs bin/benchmount $(BENCH)

bench-snapshot: build ## what snapshots, overwriting with them and their differences cost (BENCH="-tables seal")
	integration/install.sh e2fsprogs xfsprogs btrfs-progs iproute2
	go build -o bin/benchsnapshot ./integration/benchsnapshot
	TANDEMFS_TEST_BINARY=$(CURDIR)/bin/tandemfs bin/benchsnapshot $(BENCH)

clean: ## remove what was built
	rm -rf bin build
