# The front door. `make setup` once; `make demo` shows it; `make test` proves it. CI runs `make test` and nothing else.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: help setup build release demo demo-stop test test-unit test-kernel test-node test-cluster test-nft-versions test-old-kernels lint fmt deny bench-pods bench-services e2e-node e2e-node-more e2e-network e2e-kubectl e2e-storage clean-host

DENY := build/tools/bin/cargo-deny

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18
setup: ## install missing packages (apt), build the Go programs and the test images
	@tests/scripts/setup.sh
build: ## debug build of the agent and of the CNI plugin
	cargo build --locked -p nodelet -p nodelet-cni
release: ## small and fast build
	cargo build --locked --release -p nodelet -p nodelet-cni
demo: ## two web pods and a Service, alone (KEEP=1 leaves them running)
	@KEEP=$(KEEP) tests/scripts/demo.sh
demo-stop: ## stop what KEEP=1 left running
	@tests/scripts/demo.sh stop
test: setup ## all tiers; ends with "N passed, N failed"
	@tests/scripts/test.sh lint unit kernel node cluster
test-unit: ## pure code and fakes: no privilege
	@tests/scripts/test.sh unit
test-kernel: ## nftables and CNI in network namespaces: root
	@tests/scripts/test.sh kernel
test-node: setup ## the agent with real containerd: root
	@tests/scripts/test.sh node
test-cluster: setup ## the agent with a real control plane: root
	@tests/scripts/test.sh cluster
test-nft-versions: ## our tables, listed by the nft of every Debian: root, downloads 50 MB
	@tests/scripts/nft-versions.sh $(ARGS)
test-old-kernels: ## the Services suite on Linux 5.10 and 6.1 in emulated machines: root, downloads 60 MB
	@tests/scripts/old-kernels.sh $(ARGS)
lint: deny ## formatting, clippy, dependencies
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
deny: $(DENY) ## licences, sources and banned crates
	$(DENY) --locked check bans licenses sources
$(DENY):
	cargo install --locked --root build/tools cargo-deny --version 0.20.2
fmt: ## format
	cargo fmt --all
bench-pods: setup ## pods: floor and agent, ARGS="--reference ..." measures another agent beside it
	cargo build --locked --release -p nodelet -p nodelet-cni
	cargo run --locked --release -p nodelet-tests --bin bench-pods -- $(ARGS)
bench-services: setup ## Services: 10,000 x 10 endpoints
	cargo build --locked --release -p nodelet -p nodelet-cni
	cargo run --locked --release -p nodelet-tests --bin bench-services -- $(ARGS)
e2e-node e2e-node-more e2e-network e2e-kubectl e2e-storage: setup ## upstream's suite (AGENT=kubelet for the reference, FOCUS=regex)
	cargo build --locked --release -p nodelet -p nodelet-cni
	NODELET_BIN=target/release/nodelet NODELET_CNI_BIN=target/release/nodelet-cni \
	  cargo run --locked -p nodelet-tests --bin e2e -- $(patsubst e2e-%,%,$@) \
	  --agent $(or $(AGENT),nodelet) --procs $(or $(PROCS),8) $(if $(FOCUS),--focus '$(FOCUS)') $(ARGS)
clean-host: ## remove what crashed tests left
	@tests/scripts/clean-host.sh
