#!/usr/bin/env bash
# An MoE against its dense twins, as recipes/demo.toml says, several seeds of a few minutes each; about four times MINUTES a seed:
#   scripts/compare.sh [MINUTES [SEEDS]]      default: 5 3
# For every seed the MoE trains for MINUTES; the twin of equal active parameters for the same tokens, then for the same seconds; the
# twin of equal total parameters for MINUTES. All are evaluated on the held-out novel. Every comparison gets a folder of its own.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ $# -le 2 ]] || die "got '$3', expected at most MINUTES and SEEDS"
minutes=${1:-5} seeds=${2:-3}
[[ $minutes =~ ^[0-9]+([.][0-9]+)?$ ]] && awk "BEGIN { exit !($minutes > 0) }" || die "MINUTES: got '$minutes', expected a number above 0"
[[ $seeds =~ ^[1-9][0-9]?$ ]] || die "SEEDS: got '$seeds', expected 1..99"

moe=build/release/bin/moe
run=1
while [[ -e compare/$run ]]; do run=$((run + 1)); done
folder=compare/$run

# A Python expression over the JSON result of a training, named t.
of() {
  python3 -c 'import json, sys; t = json.load(open(sys.argv[1])); print(eval(sys.argv[2]))' "$folder/$1/train.json" "$2"
}

# train NAME FFN SEED FLAG...
train() {
  local name=$1 ffn=$2 seed=$3
  shift 3
  mkdir -p "$folder/$name"
  "$moe" train recipes/demo.toml --out "$folder/$name/run" --json "$folder/$name/train.json" \
    --set "model.ffn=$ffn" --set "train.seed=$seed" "$@"
  "$moe" eval --model "$folder/$name/run" --data data/debian-prose-1/test.txt --json "$folder/$name/eval.json"
}

# Steps of the twin that take as long as the MoE's, at the speed that the twin has just shown.
steps_in_equal_seconds() {
  awk "BEGIN { print int($(of "moe-$1" 't["seconds"]') * $(of "active-tokens-$1" 't["steps"] / t["seconds"]')) }"
}

compare_seed() {
  local seed=$1
  train "moe-$seed" moe "$seed" --minutes "$minutes"
  train "active-tokens-$seed" dense-active "$seed" --set train.minutes= --set "train.steps=$(of "moe-$seed" 't["steps"]')"
  train "active-seconds-$seed" dense-active "$seed" --set train.minutes= --set "train.steps=$(steps_in_equal_seconds "$seed")"
  train "total-seconds-$seed" dense-total "$seed" --minutes "$minutes"
}

step "set-up" scripts/setup.sh
step "build moe (release)" build_moe
step "corpus" scripts/corpus.py
for ((seed = 1; seed <= seeds; ++seed)); do step "seed $seed" compare_seed "$seed"; done
echo "== comparison"
scripts/compare_report.py "$folder"
print_step_times
