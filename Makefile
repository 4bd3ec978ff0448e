# Everything a developer does here has a target; "make help" lists them.
# "make run" and "make test" need only Go, git and make on Debian, as root:
# they install what else is missing.

SHELL := /bin/sh
B := .build
TAGS := seccomp,netgo,osusergo
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
# libseccomp is linked statically: compute nodes do not have it.
PC := $(CURDIR)/$(B)/pkgconfig
export CGO_ENABLED := 1
# go-nvml wraps what NVIDIA calls deprecated, with a warning each.
CFLAGS := -O2 -g -Wno-deprecated-declarations
export CGO_CFLAGS := $(CFLAGS)
export PKG_CONFIG_PATH := $(PC)

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
DEPGUARD := github.com/OpenPeeDeeP/depguard/v2/cmd/depguard@v2.3.0
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## install every Debian package that building, running and testing need
	@scripts/deps.sh build run test

.PHONY: build-deps
build-deps: $(PC)/libseccomp.pc

$(PC)/libseccomp.pc:
	@scripts/deps.sh build
	@mkdir -p $(PC)
	@printf 'Name: libseccomp\nDescription: libseccomp, static\nVersion: %s\nLibs: -l:libseccomp.a\n' "$$(env -u PKG_CONFIG_PATH pkg-config --modversion libseccomp)" >$@

.PHONY: build
build: build-deps ## build ./crunch-run for this machine
	go build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o crunch-run ./cmd/crunch-run

# gcc looks for start files and libraries beside itself before it looks into a
# sysroot, unless -B and -L point there.
SYSROOT := $(CURDIR)/$(B)/sysroot
SYSROOT_LIB := $(SYSROOT)/usr/lib/x86_64-linux-gnu
SYSROOT_FLAGS := --sysroot=$(SYSROOT) -B$(SYSROOT_LIB) -L$(SYSROOT_LIB) -L$(SYSROOT)/lib/x86_64-linux-gnu

.PHONY: release
release: build-deps $(B)/sysroot/.complete ## build build/crunch-run for any x86-64 node (glibc 2.24 or newer), and check it
	CGO_CFLAGS="$(CFLAGS) $(SYSROOT_FLAGS)" CGO_LDFLAGS="$(SYSROOT_FLAGS)" \
	go build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS) -linkmode external -extldflags "$(SYSROOT_FLAGS)"' -o build/crunch-run ./cmd/crunch-run
	scripts/check-binary.sh build/crunch-run
	cp LICENSE LICENSES/* build/

$(B)/sysroot/.complete: scripts/sysroot.sh $(PC)/libseccomp.pc
	scripts/sysroot.sh $(B)/sysroot

.PHONY: static
static: build-deps ## build build/crunch-run-static: no libraries at all (no NVIDIA GPUs)
	go build -trimpath -tags $(TAGS),nonvml -ldflags '$(LDFLAGS) -linkmode external -extldflags "-static"' -o build/crunch-run-static ./cmd/crunch-run
	scripts/check-binary.sh build/crunch-run-static

.PHONY: run
run: ## run a first container: a small Debian busybox image, an input, an output
	@scripts/deps.sh build run
	@$(MAKE) --no-print-directory build
	@scripts/demo.sh

.PHONY: test
test: ## static checks, the release build, and every test, as root, with real containers
	@scripts/deps.sh build run test
	@scripts/validation-suite.sh create default linux_ns_itype process_user root_readonly_true >/dev/null
	@$(MAKE) --no-print-directory build lint release versitygw
	go test -tags $(TAGS) -race -timeout 30m ./...

.PHONY: versitygw
versitygw: ## build the S3 server that tests use, once
	@scripts/versitygw.sh $(B)/versitygw >/dev/null

.PHONY: test-quick
test-quick: build ## the tests without the race detector
	go test -tags $(TAGS) ./...

.PHONY: test-vm
test-vm: build-deps ## the container tests on pure cgroup v2, without and with systemd, in a virtual machine (an hour or two)
	@scripts/deps.sh build run test
	VMTEST_LONG=1 go test -tags $(TAGS) -count=1 -timeout 3h -v ./vmtest

.PHONY: test-dispatchers
test-dispatchers: build-deps ## jobs under Slurm's own daemons, on a node made for it (some minutes)
	@scripts/deps.sh build run test dispatchers
	CRUNCH_RUN_TEST_SLURM=1 go test -tags $(TAGS) -count=1 -timeout 15m -v -run TestSlurm ./cmd/crunch-run/

.PHONY: validation
validation: build-deps ## the OCI's validation suite with us and with runc; writes doc/validation.md (some minutes)
	@scripts/deps.sh build run test
	CRUNCH_RUN_VALIDATION_REPORT=$(CURDIR)/doc/validation.md go test -tags $(TAGS) -count=1 -timeout 1h -v -run TestSuite ./oci/validation/

.PHONY: soak
soak: build-deps ## the long forms of the random and mass tests, all cells of the tables (about five minutes)
	LOCALCLUSTER_TEST_STEPS=long CRUNCH_RUN_TEST_LONG=1 go test -tags $(TAGS) -count=1 -timeout 30m ./localcluster/...
	CRUNCH_RUN_TEST_LONG=1 go test -tags $(TAGS) -count=1 -timeout 30m -run 'TestDispatch|TestCrowd|TestBridgeStarts|TestOpenSSH|TestAbuse|TestFlood|TestImageCommandsKilled' ./cmd/crunch-run/
	CRUNCH_RUN_TEST_LONG=1 go test -tags $(TAGS) -count=1 -timeout 30m ./oci/network/
	IMAGESTORE_TEST_LONG=1 go test -tags $(TAGS) -count=1 -timeout 30m ./imagestore/...
	OCI_TEST_LONG=1 go test -tags $(TAGS) -count=1 -timeout 30m -run "Links|Descriptors" ./oci/
	KEEP_TEST_LONG=1 go test -tags $(TAGS) -count=1 -timeout 30m -run 'TestFsx|TestTmpMemory' ./keep/mount/
	SSHD_TEST_LONG=1 go test -tags $(TAGS) -count=1 -timeout 30m -run TestBulk ./gateway/sshd/
	POWERCUT_MOMENTS=100 go test -tags $(TAGS) -count=1 -timeout 30m -run TestPowerCut ./internal/powercut/ ./imagestore/ ./keep/keepstore/ ./supervisor/unfinished/ ./localcluster/

.PHONY: chaos
chaos: build-deps ## 1,000 containers, half of them with something killed at a random moment (ten minutes)
	@scripts/deps.sh build run test
	CRUNCH_RUN_TEST_LONG=1 go test -tags $(TAGS) -count=1 -timeout 4h -v -run TestChaos ./cmd/crunch-run/

.PHONY: faults
faults: build-deps ## every fault at every point of a run; writes the tables of doc/reliability.md (half an hour)
	@scripts/deps.sh build run test
	go build -trimpath -tags $(TAGS),faults -ldflags '-s -w -X main.version=1.2.3-e2e' -o $(B)/faults/crunch-run ./cmd/crunch-run
	CRUNCH_RUN_TEST_FAULTS=1 CRUNCH_RUN_TEST_FAULTS_REPORT=$(CURDIR)/doc/reliability.md CRUNCH_RUN_TEST_PROGRAM=$(CURDIR)/$(B)/faults/crunch-run \
	go test -tags $(TAGS),faults -count=1 -timeout 3h -parallel 6 -run TestFaultsOf ./cmd/crunch-run/

.PHONY: gpu-kit
gpu-kit: release ## collect in .build/gpu-kit what "make test-gpu" needs, to carry it to a machine with a GPU
	@scripts/deps.sh build test
	scripts/gpu-kit.sh $(B)/gpu-kit

.PHONY: test-gpu
test-gpu: gpu-kit ## real NVIDIA GPUs: on a machine with one, or there: scripts/gpu-machine-test.sh .build/gpu-kit
	scripts/gpu-machine-test.sh $(B)/gpu-kit

.PHONY: bench
bench: ## benchmarks beside their peers; writes what doc/performance.md shows
	@scripts/deps.sh build run test
	@$(MAKE) --no-print-directory build
	scripts/bench.sh

.PHONY: lint
lint: build-deps fmt vet staticcheck imports mod ## all static checks

.PHONY: fmt
fmt: ## gofmt
	@files=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$files" ] || { echo "gofmt wants: $$files" >&2; exit 1; }

.PHONY: vet
vet: build-deps ## go vet
	go vet -tags $(TAGS) ./...

.PHONY: staticcheck
staticcheck: build-deps ## staticcheck
	go run $(STATICCHECK) -tags $(TAGS) ./...

.PHONY: imports
imports: build-deps ## the import rules of the map (.depguard.yml)
	GOFLAGS=-tags=$(TAGS) go run $(DEPGUARD) ./...

.PHONY: mod
mod: ## go.mod says what is used
	go mod tidy -diff

.PHONY: vuln
vuln: build-deps ## govulncheck, where its database can be reached
	go run $(GOVULNCHECK) -tags $(TAGS) ./...

.PHONY: clean
clean: ## remove what was built
	rm -rf crunch-run build $(B)
