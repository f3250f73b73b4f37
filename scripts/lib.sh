# Sourced by the scripts beside it: leaves the shell in the repository's root.
set -euo pipefail
export LC_ALL=C.UTF-8
if [[ ${1:-} == -h || ${1:-} == --help ]]; then # the comment that a script begins with
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  exit 0
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CORES=$(nproc)
STEP_TIMES=()
NUM_PASSED=0
NUM_FAILED=0

die() {
  echo "${0##*/}: $*" >&2
  exit 1
}

# step NAME COMMAND...: runs it and prints how long it took. Not inside a condition: there `set -e` would be off.
step() {
  local name=$1 start=$EPOCHREALTIME seconds
  shift
  echo "== $name"
  "$@"
  seconds=$(awk "BEGIN { printf \"%.1f\", $EPOCHREALTIME - $start }")
  STEP_TIMES+=("$(printf '%8s s  %s' "$seconds" "$name")")
  echo "-- $name: $seconds s"
}

print_step_times() {
  echo "== time of each step"
  printf '%s\n' "${STEP_TIMES[@]}"
}

# configure PRESET [-DNAME=VALUE...]
configure() {
  local preset=$1 folder=build/$1 log
  shift
  if [[ -f $folder/CMakeCache.txt ]] && ! grep -qx "CMAKE_HOME_DIRECTORY:INTERNAL=$PWD" "$folder/CMakeCache.txt"; then
    rm -rf "$folder" # made when the repository lay elsewhere
  fi
  log=$(cmake --preset "$preset" "$@" 2>&1) || { echo "$log" >&2; die "cmake --preset $preset failed"; }
}

# compile PRESET [TARGET...]
compile() {
  local folder=build/$1 quiet=()
  shift
  [[ -t 1 ]] || quiet=(--quiet)
  [[ -e $folder/.ninja_log ]] || echo "  compiling; the first time this takes some minutes"
  ninja -C "$folder" -j "$CORES" "${quiet[@]}" "$@"
}

# build PRESET [-DNAME=VALUE...]: everything.
build() {
  configure "$@"
  compile "$1"
}

# build_moe: the program alone, as users run it, into build/release/bin/moe. Needs no test library.
build_moe() {
  if [[ -f build/release/build.ninja ]] && grep -qx "CMAKE_HOME_DIRECTORY:INTERNAL=$PWD" build/release/CMakeCache.txt; then
    compile release moe # keeps what it was configured for
  else
    configure release -DMOE_TESTS=OFF
    compile release moe
  fi
}

# run_tests PRESET LABELS [CTEST-ARGUMENTS...]: adds to NUM_PASSED and NUM_FAILED; a failed test does not end the script.
# LABELS is a regular expression; ctest's lines on tests that pass are left out.
run_tests() {
  local folder=build/$1 labels=$2 log=build/$1/ctest.log status=0 summary failed total skipped
  shift 2
  ctest --test-dir "$folder" -j "$CORES" -L "$labels" --output-on-failure --no-tests=error "$@" 2>&1 | tee "$log" |
    { grep --line-buffered -vE '^ +Start +[0-9]+:|Test +#[0-9]+: .* Passed +[0-9.]+ sec|^Internal ctest' || true; } || status=$?
  summary=$(grep -E '^[0-9]+% tests passed, [0-9]+ tests failed out of [0-9]+' "$log" || true)
  if [[ -z $summary ]]; then
    [[ $status -ne 0 ]] || return 0 # none has these labels, which --no-tests=ignore allows
    echo "no test ran" >&2
    NUM_FAILED=$((NUM_FAILED + 1))
    return 0
  fi
  failed=$(sed -E 's/.*passed, ([0-9]+) tests failed.*/\1/' <<<"$summary")
  total=$(sed -E 's/.*out of ([0-9]+).*/\1/' <<<"$summary")
  skipped=$(grep -c '\*\*\*Skipped' "$log" || true)
  [[ $status -eq 0 || $failed -gt 0 ]] || failed=1
  NUM_PASSED=$((NUM_PASSED + total - failed - skipped))
  NUM_FAILED=$((NUM_FAILED + failed))
}

# Closing line; the exit status of the script.
finish_tests() {
  print_step_times
  echo "$NUM_PASSED passed, $NUM_FAILED failed"
  [[ $NUM_FAILED -eq 0 ]]
}

# Every C++ file of ours.
cpp_files() {
  local folder
  for folder in moe testing tests fuzz benches lab examples; do
    [[ ! -d $folder ]] || find "$folder" -name '*.cc' -o -name '*.h'
  done | sort
}
