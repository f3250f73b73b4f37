#!/usr/bin/env bash
# From nothing to a Mixture-of-Experts language model, in about MOE_DEMO_MINUTES (default 4) of training: sets up, builds `moe`,
# fetches English prose, trains an MoE and its dense twin of equal active parameters on the same tokens, evaluates both on a novel
# neither has seen, lets the MoE write a paragraph, and measures both kinds of model at every batch size, as small as they are and then wide.
# Every run gets a folder of its own, demo/1, demo/2, ...; packages, build and corpus are reused.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ $# -eq 0 ]] || die "got '$1', expected no arguments; MOE_DEMO_MINUTES=N sets the training time"
minutes=${MOE_DEMO_MINUTES:-4}
[[ $minutes =~ ^[0-9]+([.][0-9]+)?$ ]] && awk "BEGIN { exit !($minutes > 0) }" ||
  die "MOE_DEMO_MINUTES: got '$minutes', expected a number above 0"

moe=build/release/bin/moe
corpus=data/debian-prose-1
start=$EPOCHREALTIME

run=1
while [[ -e demo/$run ]]; do run=$((run + 1)); done
folder=demo/$run

# The value of a key in a JSON file.
json() {
  python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1" "$2"
}

train_moe() {
  # The MoE's step takes a little longer: it gets the larger part of the minutes, and its step count is the twin's too.
  "$moe" train recipes/demo.toml --out "$folder/moe" --json "$folder/moe-train.json" \
    --minutes "$(awk "BEGIN { print $minutes * 0.52 }")"
}

train_dense() {
  "$moe" train recipes/demo.toml --set model.ffn=dense-active --out "$folder/dense" --json "$folder/dense-train.json" \
    --set train.minutes= --set "train.steps=$(json "$folder/moe-train.json" steps)"
  echo
  scripts/demo_report.py losses "$folder"
}

evaluate() {
  local name
  for name in moe dense; do
    "$moe" eval --model "$folder/$name" --data "$corpus/test.txt" --json "$folder/$name-eval.json"
    echo
  done
}

generate() {
  "$moe" generate --model "$folder/moe" --prompt "She had always" -n 200 --temperature 0.7 --seed 1 \
    >"$folder/paragraph.txt" 2>"$folder/generate.log"
  cat "$folder/paragraph.txt"
  echo
  cat "$folder/generate.log"
}

sweep() {
  "$moe" sweep --model "$folder/moe" --json "$folder/sweep.json" | tee "$folder/sweep.txt"
  scripts/plot_sweep.py "$folder/sweep.json" "$folder/sweep.svg"
}

sweep_wide() {
  # One layer of random weights is enough to leave the caches, and needs half a gigabyte.
  "$moe" sweep --config wide-64x8 --layers 1 --json "$folder/sweep-wide.json" | tee "$folder/sweep-wide.txt"
  scripts/plot_sweep.py "$folder/sweep-wide.json" "$folder/sweep-wide.svg"
}

[[ $run -eq 1 ]] || echo "this run goes to $folder; earlier ones stay where they are"
step "set-up" scripts/setup.sh
step "build moe (release)" build_moe
step "corpus" scripts/corpus.py
mkdir -p "$folder"
step "train the MoE" train_moe
step "train its dense twin, same tokens, same seed" train_dense
step "evaluate both on the held-out novel" evaluate
step "generate a paragraph" generate
step "sweep the batch size" sweep
step "the same for a model too wide for the caches" sweep_wide
echo "== summary"
scripts/demo_report.py summary "$folder"
echo
print_step_times
awk "BEGIN { printf \"%8.1f s  all\n\", $EPOCHREALTIME - $start }"
