# The commands of the project. `make` alone lists them.
#
# Everything compiles with one profile (release) into one directory, so that each dependency
# compiles once. Each cargo command names one package for the same reason: over the whole
# workspace, dependencies would get the features that both packages ask for, which is another
# compilation of them. scripts/cargo keeps RocksDB beyond this directory: it takes ten minutes.

TARGET := $(or $(CARGO_TARGET_DIR),target)
BROKER := $(TARGET)/release/leveret

# Tests run the broker's own code with debug assertions and overflow checks on; dependencies stay
# as they are. `build` comes after them where both run, and puts the plain binary back.
CHECKED := --config profile.release.package.leveret.debug-assertions=true \
	--config profile.release.package.leveret.overflow-checks=true

# In CI no client library may be skipped because its toolchain is missing.
REQUIRE_ALL := $(if $(filter true 1,$(CI)),--require-all)

.DEFAULT_GOAL := help
.PHONY: help setup build run test unit conformance soak bench bench-micro fmt fmt-check lint clean

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what building and testing need (Debian and Ubuntu)
	scripts/setup test

build: ## Build the broker
	scripts/cargo build --release --locked -p leveret

run: ## Build the broker and serve on port 5672, with ./data; ARGS='--amqp-listen ...' adds options
	scripts/setup build
	@$(MAKE) --no-print-directory build
	exec $(BROKER) --config config/leveret.toml $(ARGS)

# The steps run one after the other also under `make -j`: cargo uses all cores by itself.
test: ## Check everything: format, lints, unit and protocol tests, real clients
	scripts/setup test
	@$(MAKE) --no-print-directory fmt-check
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory conformance

unit: ## Run the tests of the broker's code
	scripts/cargo test --release --locked -p leveret $(CHECKED)

conformance: build ## Run client libraries of six languages against the release binary
	cargo run --release --locked -p conformance -- --broker $(BROKER) $(REQUIRE_ALL)

soak: ## Kill the broker for ten minutes and see what survives; ARGS='--minutes 60' and others
	scripts/soak $(ARGS)

bench: build ## Measure the broker; ARGS='--quick --only auto-ack' and others
	scripts/bench $(ARGS)

bench-micro: ## Measure single parts of the broker; ARGS='queue --quick' and others
	scripts/cargo bench --locked -p leveret --bench micro -- $(ARGS)

fmt: ## Format all Rust code
	cargo fmt --all

fmt-check:
	cargo fmt --all --check

lint: ## Run clippy over all Rust code; warnings are errors
	scripts/cargo clippy --release --locked -p leveret --all-targets -- -D warnings
	cargo check --release --locked -p leveret --no-default-features --all-targets
	cargo clippy --release --locked -p conformance --all-targets -- -D warnings

clean: ## Remove what was built
	cargo clean
