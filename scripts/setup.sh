#!/usr/bin/env bash
# Installs the Debian 12 packages that this tree uses and the machine lacks; says which; does nothing when all are there.
#   scripts/setup.sh [tests] [checks] [nightly] [benches]
# Without a word: what building `moe` and the demo need. Each word adds what that kind of work needs.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

packages=(g++ cmake ninja-build pkg-config libcli11-dev nlohmann-json3-dev libtomlplusplus-dev libfmt-dev libexpected-dev
  libxxhash-dev libpcre2-dev libutf8proc-dev libjs-chart.js python3 libreadline8) # the last two: scripts/corpus.py
for profile in "$@"; do
  case $profile in
    tests) packages+=(libgtest-dev) ;;
    checks) packages+=(libgtest-dev clang-format-14 binutils) ;;
    nightly) packages+=(libgtest-dev chromium clang-14 clang-tidy-14 libclang-rt-14-dev llvm-14 python3-torch) ;;
    benches) packages+=(libbenchmark-dev libxsmm-dev libdnnl-dev libopenblas-dev) ;; # all but the first: peers to measure beside
    *) die "got '$profile', expected tests, checks, nightly or benches" ;;
  esac
done

command -v dpkg-query >/dev/null || die "this is not a Debian system; install what matches: ${packages[*]}"
missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
  [[ $status == "ii "* || " ${missing[*]:-} " == *" $package "* ]] || missing+=("$package")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

as_root=()
if [[ $(id -u) -ne 0 ]]; then
  command -v sudo >/dev/null || die "these packages are missing, and neither root nor sudo is at hand; as root run: apt-get install ${missing[*]}"
  as_root=(sudo)
fi
echo "installing ${#missing[@]} Debian packages: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3)
"${apt[@]}" update >"$log" 2>&1 || { echo "apt-get update failed; going on with the package lists at hand" >&2; tail -5 "$log" >&2; }
"${apt[@]}" install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1 || {
  tail -20 "$log" >&2
  die "apt-get could not install: ${missing[*]}"
}
