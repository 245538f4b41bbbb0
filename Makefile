# The commands of this project. Everything they make lies below target/ (see scripts/lib.sh
# for the one exception: a clone that the unprivileged user cannot reach).

SHELL := /bin/bash
CARGO_TARGET_DIR := $(CURDIR)/target
PGRX_HOME := $(CURDIR)/target/pgrx
export CARGO_TARGET_DIR PGRX_HOME

.DEFAULT_GOAL := help
.PHONY: help demo report fuzz psql demo-stop test test-prediction soak scale bench bench-move bench-overhead bench-forecast bench-plan bench-sim bench-graph bench-place bench-split bench-citus chaos docs install check clean-run docs-test deb deb-test bench-scale

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## build, start a throwaway cluster, show the whole loop on a real trace
	@scripts/demo.sh run $(ARGS)

psql: ## open psql on the demo's cluster; scripts: make -s psql ARGS="-Atc 'SELECT 1'"
	@scripts/demo.sh psql $(ARGS)

report: ## the report of the demo's cluster, target/report.html
	@scripts/report.sh $(ARGS)

demo-stop: ## stop and remove the demo's cluster
	@scripts/demo.sh stop

test: ## every test, on PostgreSQL 15 and 18; TEST_PG=15 restricts
	@scripts/test.sh

test-prediction: ## how well the cost of five unlike triggers is predicted, with bars; on a quiet machine; PG=18
	@PG='$(PG)' scripts/test-prediction.sh

bench: ## a move against a bare copy and pg_repack; ARGS="--rows 200000 --rate 2000 --reads 0 --hold 10"
	@scripts/bench.sh $(ARGS)

bench-move: ## the same at 500/s, at 2000/s and with an open transaction, every bar PASS or MISSED
	@scripts/bench.sh --all $(ARGS)

chaos: ## 220 kills, cancels, locks, DDL and full disks under a ledger; PG=18 SEED=7 FAULTS=50
	@scripts/chaos.sh

soak: ## everything at once for a long time, faults included; MINUTES=30 PG=18 SEED=7
	@MINUTES='$(MINUTES)' PG='$(PG)' SEED='$(SEED)' scripts/soak.sh

scale: ## 500 connections, 200 managed tables, 2,000 slots, with figures; PG=18
	@PG='$(PG)' scripts/soak.sh scale

fuzz: ## every SQL function with random and hostile arguments; SECONDS=60 SEED=7 PG=18
	@FUZZ_SECONDS='$(SECONDS)' SEED='$(SEED)' PG='$(PG)' scripts/fuzz.sh

bench-overhead: ## what watching costs, in throughput; ARGS="--pg 18 --pairs 3 --seconds 5" for a short one
	@scripts/bench-overhead.sh $(ARGS)

bench-forecast: ## forecasts against the field; DATA=folder of timestamp,value files, STEP=1h ARGS="--refit 24"
	@scripts/bench-pure.sh forecast $(or $(DATA),data/series) --step $(or $(STEP),1h) $(ARGS)

bench-plan: ## how fast and how well placements are planned; ARGS="--slots 10000 --shards 100"
	@scripts/bench-pure.sh plan $(ARGS)

bench-sim: ## what foresight is worth on a simulated cluster; TRACE=folder of CSV files, or a key trace; ARGS="--seeds 5"
	@scripts/bench-pure.sh sim $(or $(TRACE),data/series) $(ARGS)

bench-graph: ## closures, influence and placement of a graph, against plain SQL; EDGES=edge list, plain or .xz
	@scripts/bench-graph.sh $(or $(EDGES),data/graphs/debian_bookworm.edges.xz) $(ARGS)

bench-place: ## keys that are used together, gathered, and a hot table balanced; TRACE=key trace ARGS="--only gather"
	@scripts/bench-place.sh $(or $(TRACE),demo/data/orm-busy.trace.xz) $(ARGS)

bench-split: ## a split, cold and prepared, its way back and a merge, against doing it by hand; ARGS="--rows 200000 --tables 4 --window 0"
	@scripts/bench-split.sh $(ARGS)

bench-citus: ## foreshard against the rebalance strategies of Citus, on a skew and through a day; needs an installed Citus; ARGS="--days 0"
	@scripts/bench-citus.sh $(ARGS)

bench-scale: ## a coordinator and nodes: what balancing by itself is worth against the best there is; ARGS="--nodes 3"
	@scripts/bench-scale.sh $(ARGS)

docs: ## what is generated of README.md and docs/, and the Rust documentation below target/doc
	@scripts/docs.sh
	@cargo doc --no-deps --document-private-items --workspace

docs-test: ## the SQL of README.md and docs/ runs, and what is generated is current; PG=18 FORESHARD_ONLY=tutorial
	@scripts/docs.sh test

deb: ## a Debian package, postgresql-15-foreshard, below target/deb
	@scripts/deb.sh

deb-test: ## install that package in a clean Debian root and do there what a new user does; needs root and mmdebstrap
	@scripts/deb-test.sh $(DEB)

install: ## install into a real server; PG_CONFIG=… names it
	@scripts/install.sh $(PG_CONFIG)

check: ## format, tidy, lints and documentation, without a server
	@scripts/bootstrap.sh 15
	@cargo fmt --all --check
	@cargo test --quiet -p foreshard_core
	@cargo clippy -p foreshard_core -p foreshard_test --all-targets -- -D warnings
	@cargo clippy -p foreshard --no-default-features --features pg15 -- -D warnings
	@RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --document-private-items --workspace

clean-run: ## stop and remove every cluster and staged installation; builds stay
	@scripts/clean-run.sh
