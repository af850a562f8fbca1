# Targets for people; `make help` lists them. What a target needs and how long it takes is in docs/testing.md.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export PATH := $(PATH):/usr/sbin:/sbin

# The packages whose tests mount filesystems; the race detector looks at all others.
MOUNTING := tandemfs/fs/mount|tandemfs/integration|tandemfs/integration/lab
FUZZTIME ?= 10s
BENCH ?=
CRASH_ROUNDS ?= 1000
CRASH_SEED ?= 20261123

.PHONY: help build check test crash demo fuzz bench-mount clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

build: ## build bin/tandemfs
	go build -trimpath -o bin/tandemfs ./cmd/tandemfs

check: ## formatting, vet, staticcheck, import walls, tests with the race detector where no mount is needed
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "run gofmt -w on:" $$unformatted; exit 1; }
	go vet ./...
	go tool staticcheck ./...
	go test -count=1 ./integration/walls
	go test -race -timeout 10m $$(go list ./... | grep -vxE '$(MOUNTING)')

test: ## install what the tests need (as root, on Debian) and run all of them
	integration/install.sh e2fsprogs xfsprogs btrfs-progs acl attr iproute2 rsync
	go test -timeout 14m ./...

crash: ## CRASH_ROUNDS (1000) rounds of load, kill of a daemon, restart, compare; CRASH_SEED makes others
	integration/install.sh e2fsprogs xfsprogs btrfs-progs acl attr iproute2 rsync
	TANDEMFS_CRASH_ROUNDS=$(CRASH_ROUNDS) go test -count=1 -v -timeout 24h \
		-run '^TestWhatWasKilledAtAnyMomentIsAsItWas$$' ./integration -seed $(CRASH_SEED)

demo: ## two nodes on this machine: protect, replicate, change, fail over (KEEP=1 leaves them running)
	integration/install.sh e2fsprogs
	KEEP=$${KEEP:-} integration/demo/demo.sh

fuzz: ## run every fuzz target for FUZZTIME (10s)
	@for package in $$(go list ./...); do \
		targets=$$(go test -list '^Fuzz' $$package | grep '^Fuzz' || true); \
		for target in $$targets; do \
			echo "$$package $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package; \
		done; \
	done

bench-mount: build ## the mount against the native directory and go-fuse's loopback (BENCH="-rounds 5 -rows small")
	integration/install.sh e2fsprogs xfsprogs btrfs-progs iproute2
	go build -o bin/benchmount ./integration/benchmount
	TANDEMFS_TEST_BINARY=$(CURDIR)/bin/tandemfs bin/benchmount $(BENCH)

clean: ## remove what was built
	rm -rf bin build
