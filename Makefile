# Palisade: what one types. `make demo` and `make test` are the two commands of the README.

CARGO ?= cargo
FUZZ_SECONDS ?= 20
FLAGS =
COUNTERS = $(CURDIR)/target/counters
# What a request's way is like, for the compiler (`make profile`). Where RUSTFLAGS is set, cargo takes that instead.
PROFILE = "-Cprofile-use=$(CURDIR)/benches/palisade.profdata", "-Cllvm-args=-no-pgo-warn-mismatch"
# Functions that run together lie together (`make order`). For LLD, which rustc brings along and links with on this platform; where
# another linker is configured: `make build ORDER=`.
ifneq ($(wildcard $(shell rustc --print sysroot)/lib/rustlib/x86_64-unknown-linux-gnu/bin/gcc-ld/ld.lld),)
ORDER = , "-Clink-arg=-Wl,--symbol-ordering-file=$(CURDIR)/benches/palisade.order", "-Clink-arg=-Wl,--no-warn-symbol-ordering"
endif
RELEASE = $(CARGO) build --release --locked --config 'build.rustflags=[$(FLAGS)$(PROFILE)$(ORDER)]'

.PHONY: demo build static profile order test lint check reference fuzz bench bench-build bench-layers bench-instructions bench-accept bench-large bench-flat

# A small Rack app on real Puma behind Palisade, on loopback only; ends with Ctrl-C.
demo: build
	@deploy/demo/demo.sh target/release/palisade

build:
	$(RELEASE)

# For an empty image: target/<machine>-unknown-linux-gnu/release/palisade.
static: FLAGS = "-Ctarget-feature=+crt-static",
static:
	$(RELEASE) --target $(shell uname -m)-unknown-linux-gnu

# Measures anew what `build` compiles for, after a change of what a request meets. benches/profile.py says what it needs.
profile:
	CARGO_TARGET_DIR=$(COUNTERS) RUSTFLAGS="-Cprofile-generate=$(COUNTERS)/raw" $(CARGO) build --release --locked --bin palisade
	@rustc --edition 2024 -O benches/origin.rs -o $(COUNTERS)/release/origin
	CARGO_TARGET_DIR=$(COUNTERS) benches/profile.py --raw $(COUNTERS)/raw $(if $(INSTALL),--install)

# Which functions those are, for the linker, after `profile` or with other dependencies. benches/order.py.
order: bench-build static
	@benches/order.py $(if $(INSTALL),--install)
	@touch src/main.rs # cargo does not know of what the linker reads

# Every test, unit to end-to-end, against a real Puma. Says what it skipped and why; with CI set, a skip is a failure.
test:
	@deploy/demo/puma.sh --check || true
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		echo "$(CARGO) nextest run --locked --no-fail-fast"; \
		$(CARGO) nextest run --locked --no-fail-fast --success-output never --failure-output final; \
	else \
		echo "$(CARGO) test --locked --no-fail-fast (cargo-nextest is not installed)"; \
		$(CARGO) test --locked --no-fail-fast; \
	fi

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

# Writes proxy.toml and docs/configuration.md anew from the source.
reference:
	PALISADE_WRITE=1 $(CARGO) test --locked --lib the_reference_is_current

# Licences, banned crates, sources.
check:
	$(CARGO) deny --locked check bans licenses sources

# Builds every fuzz target and runs each for FUZZ_SECONDS. Works on the stable compiler, without sanitizers.
fuzz:
	@FUZZ_SECONDS=$(FUZZ_SECONDS) fuzz/run.sh

# Beside Debian's nginx and HAProxy, under two minutes; `make bench INSTALL=1` also installs what is missing. benches/README.md.
bench: bench-build
	@benches/bench.py $(if $(INSTALL),--install) $(BENCH)

bench-build:
	@$(RELEASE)
	@rustc --edition 2024 -O benches/origin.rs -o $${CARGO_TARGET_DIR:-target}/release/origin

# The price of the guard and of each layer.
bench-layers:
	$(CARGO) bench --locked --bench layers

# Instructions and allocations per request against benches/instructions.json; bench-accept makes what is found the baseline.
bench-instructions: bench-build
	@benches/instructions.py $(if $(INSTALL),--install)

bench-accept: bench-build
	@benches/instructions.py --accept

# 5 GiB each way.
bench-large: bench-build
	@benches/large.py

# Whether the price of a request stays what it is: beside idle connections, many keys, many fields, limits, a second worker.
bench-flat: bench-build
	@benches/flat.py
