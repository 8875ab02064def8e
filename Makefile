# Gatekeeper: `make run` to try it, `make test` to check everything. Both install what a fresh Debian or Ubuntu lacks
# when run as root; otherwise they list it and stop.

CARGO ?= cargo
ARGS ?=

.PHONY: help run test build lint release static tarball soak fuzz audit advisories bench clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

run: ## server and agent of this machine, in this terminal (ARGS='--listen 127.0.0.1:5001')
	@.ci/prerequisites build
	$(CARGO) build --locked --bins
	@exec target/debug/gatekeeper dev $(ARGS)

test: ## everything there is, on real databases, sockets and processes
	@.ci/prerequisites test
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) build --locked --bins
	@rm -f target/facilities
	skip=$$(.ci/prerequisites skip) && GATEKEEPER_FACILITIES=$(CURDIR)/target/facilities \
		$(CARGO) test --locked --workspace -- $(ARGS) $$skip
	@echo "What the kernel and the machine were asked for:" && sort -u target/facilities

build: ## all programs, for debugging
	$(CARGO) build --locked --bins

lint: ## format and clippy only
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

release: ## all programs, optimised, in target/release
	@.ci/prerequisites build
	$(CARGO) build --locked --release --bins

static: ## all programs, for any Linux of this architecture, in target/static
	@.ci/prerequisites build
	@packaging/static

tarball: static ## those, with units for systemd, to be unpacked into /usr/local
	@packaging/tarball

soak: ## the long runs: hundreds of kills instead of ten
	@.ci/prerequisites test
	$(CARGO) build --locked --bins
	skip=$$(.ci/prerequisites skip) && GATEKEEPER_SOAK=1 $(CARGO) test --locked -p it -- $(ARGS) $$skip
	GATEKEEPER_SOAK=1 $(CARGO) test --locked -p gk-scan random
	$(MAKE) audit fuzz tarball

fuzz: ## ten minutes for every parser of other people's bytes (FUZZ_SECONDS=600)
	@command -v cargo-fuzz >/dev/null || $(CARGO) install --locked cargo-fuzz
	for target in netlink cgroup contact words; do \
		mkdir -p target/fuzz/$$target && \
		$(CARGO) fuzz run --sanitizer none $$target target/fuzz/$$target fuzz/corpus/$$target -- \
			-max_total_time=$${FUZZ_SECONDS:-600} -max_len=16384 -print_final_stats=1 || exit 1; \
	done

audit: ## licences, sources and who depends on what, as deny.toml says; needs no network
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --locked check --hide-inclusion-graph bans licenses sources

advisories: ## known weaknesses of what we depend on; fetches the database of them from GitHub
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --locked check --hide-inclusion-graph advisories

bench: release ## how fast, as ratios, into docs/benchmarks.md
	$(CARGO) run --locked --release -p bench -- $(ARGS)

clean: ## forget everything built
	$(CARGO) clean
