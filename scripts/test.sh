#!/usr/bin/env bash
# Sets up, builds everything as users run it (preset release), runs the fast tests. With --slow: the slow ones too.
# Debug checks, poisoned memory and sanitizers are the business of scripts/check.sh.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

labels='^fast$'
for argument in "$@"; do
  case $argument in
    --slow) labels='^(fast|slow)$' ;;
    *) die "got '$argument', expected nothing or --slow" ;;
  esac
done

step "set-up" scripts/setup.sh tests
step "build (release)" build release
step "tests" run_tests release "$labels"
finish_tests
