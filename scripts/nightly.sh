#!/usr/bin/env bash
# What takes too long for every change: slow tests, the thread sanitizer, clang, clang-tidy, fuzzers, and short runs of the demo and of a
# comparison (into folders of their own under demo/ and compare/).
#   scripts/nightly.sh [SECONDS for each fuzzer, default 60]
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
export ASAN_SYMBOLIZER_PATH=/usr/bin/llvm-symbolizer-14 # clang looks for one without a version
fuzz_s=${1:-60}
[[ $fuzz_s =~ ^[0-9]+$ ]] || die "got '$fuzz_s', expected seconds"

tidy() {
  # Its counts of what it found in other people's headers and keeps to itself are left out.
  find moe -name '*.cc' | sort | xargs -P "$CORES" -n 1 clang-tidy-14 -p build/clang --quiet 2>&1 |
    { grep -v ' warnings generated' || true; }
}

fuzz() {
  local fuzzer name
  for fuzzer in build/fuzz/bin/*_fuzzer; do
    name=${fuzzer##*/}
    mkdir -p "build/fuzz/corpus/$name"
    echo "$name: $fuzz_s s"
    "$fuzzer" -max_total_time="$fuzz_s" -rss_limit_mb=2048 -timeout=20 -print_final_stats=1 -verbosity=0 \
      -artifact_prefix="build/fuzz/$name-" "build/fuzz/corpus/$name" $([[ ! -d fuzz/seeds/$name ]] || echo "fuzz/seeds/$name")
  done
}

step "set-up" scripts/setup.sh tests nightly benches
step "build (release)" build release
step "slow tests" run_tests release '^slow$' --no-tests=ignore
step "build (tsan)" build tsan
step "tests (tsan)" run_tests tsan '^fast$'
step "build (clang)" build clang -DMOE_BENCHES=ON
step "tests (clang)" run_tests clang '^fast$'
step "clang-tidy" tidy
if [[ -d fuzz ]]; then
  step "build (fuzzers)" build fuzz
  step "fuzzers" fuzz
fi
step "the demo, seconds instead of minutes" env MOE_DEMO_MINUTES=0.1 scripts/demo.sh
step "a comparison, seconds instead of minutes" scripts/compare.sh 0.02 1
finish_tests
