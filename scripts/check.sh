#!/usr/bin/env bash
# What must hold before a change lands, beyond scripts/test.sh: format, layers, instruction sets, and the fast tests with debug
# checks under the address and undefined-behaviour sanitizers.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
[[ $# -eq 0 ]] || die "got '$1', expected no argument"

check_format() {
  cpp_files | xargs clang-format-14 --dry-run --Werror
}

step "set-up" scripts/setup.sh tests checks
step "format" check_format
step "layers" python3 tools/check_layers.py
step "build (release)" build release
step "instruction sets" python3 tools/check_isa_symbols.py build/release
step "build (asan)" build asan
export UBSAN_OPTIONS=print_stacktrace=1
step "tests (asan, ubsan)" run_tests asan '^fast$'
finish_tests
