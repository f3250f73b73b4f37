#!/usr/bin/env bash
# An MoE against its dense twins, as recipes/demo.toml says, several seeds of a few minutes each; about four times MINUTES a seed:
#   scripts/compare.sh [MINUTES [SEEDS]]      default: 5 3
# First the three models train in turns, a few steps at a time: a machine that changes speed then slows all alike. By the step times
# measured there, for every seed: the MoE trains for MINUTES; the twin of equal active parameters for the same tokens, then for MINUTES;
# the twin of equal total parameters for MINUTES. All are evaluated on the held-out novel. Every comparison gets a folder of its own.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ $# -le 2 ]] || die "got '$3', expected at most MINUTES and SEEDS"
minutes=${1:-5} seeds=${2:-3}
[[ $minutes =~ ^[0-9]+([.][0-9]+)?$ ]] && awk "BEGIN { exit !($minutes > 0) }" || die "MINUTES: got '$minutes', expected a number above 0"
[[ $seeds =~ ^[1-9][0-9]?$ ]] || die "SEEDS: got '$seeds', expected 1..99"

moe=build/release/bin/moe
run=1
while [[ -e compare/$run ]]; do run=$((run + 1)); done
folder=compare/$run

# train FFN SEED STEPS FOLDER FLAG...
train() {
  local ffn=$1 seed=$2 steps=$3 out=$4
  shift 4
  mkdir -p "$out"
  "$moe" train recipes/demo.toml --out "$out/run" --json "$out/train.json" --set "model.ffn=$ffn" "train.seed=$seed" \
    train.minutes= "train.steps=$steps" "$@"
}

measure_speed() {
  local round ffn
  for round in 1 2 3 4 5 6 7 8 9; do
    for ffn in moe dense-active dense-total; do
      train "$ffn" 1 50 "$folder/speed/$ffn-$round" train.eval_every=0 train.checkpoint_every=0 >"$folder/speed.log"
      find "$folder/speed/$ffn-$round/run" -mindepth 1 ! -name metrics.jsonl -delete
    done
  done
  scripts/compare_report.py speed "$folder"
}

train_and_evaluate() {
  train "$@"
  "$moe" eval --model "$4/run" --data data/debian-prose-1/test.txt --json "$4/eval.json"
}

compare_seed() {
  local seed=$1 moe_steps active_steps total_steps
  read -r moe_steps active_steps total_steps < <(scripts/compare_report.py steps "$folder" "$minutes")
  train_and_evaluate moe "$seed" "$moe_steps" "$folder/moe-$seed"
  train_and_evaluate dense-active "$seed" "$moe_steps" "$folder/active-tokens-$seed"
  train_and_evaluate dense-active "$seed" "$active_steps" "$folder/active-seconds-$seed"
  train_and_evaluate dense-total "$seed" "$total_steps" "$folder/total-seconds-$seed"
}

step "set-up" scripts/setup.sh
step "build moe (release)" build_moe
step "corpus" scripts/corpus.py
mkdir -p "$folder"
step "step times, in turns" measure_speed
for ((seed = 1; seed <= seeds; ++seed)); do step "seed $seed" compare_seed "$seed"; done
echo "== comparison"
scripts/compare_report.py summary "$folder"
print_step_times
