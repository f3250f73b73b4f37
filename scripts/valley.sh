#!/usr/bin/env bash
# How well the planner predicts this machine: every shape of benches/valley in decode, prefill and training beside its dense twins,
# predicted and measured; about half an hour. Every run gets a folder of its own:
#   scripts/valley.sh [SECONDS [SHAPE...]]      default: 40 seconds of measuring for each shape and phase, all shapes
# The machine's profile is the one that is kept (`moe probe` measures it anew); a copy stands in the folder. None of these shapes is
# used to measure the machine: `moe probe` times single ops.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

budget=${1:-40}
[[ $budget =~ ^[0-9]+([.][0-9]+)?$ ]] || die "SECONDS: got '$budget', expected a number"
[[ $# -le 1 ]] && shapes=(benches/valley/*.json) || shapes=("${@:2}")
moe=build/release/bin/moe
run=1
while [[ -e valley/$run ]]; do run=$((run + 1)); done
folder=valley/$run

sweep_all() {
  local shape name dtype
  cp "${XDG_CACHE_HOME:-$HOME/.cache}/moe/machine.json" "$folder/" 2>/dev/null || "$moe" probe --json "$folder/machine.json" >/dev/null
  for shape in "${shapes[@]}"; do
    name=$(basename "$shape" .json)
    [[ $(<"$shape") == *float32* ]] && dtype=f32 || dtype=bf16
    sweep() { "$moe" sweep --config "$shape" --dtype "$dtype" --routing uniform --verify --seconds "$budget" "$@"; }
    sweep --batches 1,2,4,8,16,32,64,128,256,512,1024 --json "$folder/$name.decode.json" >"$folder/$name.decode.txt"
    sweep --phase prefill --batches 1,2,4,8,16,32,64,128,256,512,1024 --json "$folder/$name.prefill.json" >"$folder/$name.prefill.txt"
    sweep --phase train --batches 1,2,4,8,16,32,64,128,256,1024 --json "$folder/$name.train.json" >"$folder/$name.train.txt"
    scripts/valley_report.py "$folder" | tail -1
  done
}

mkdir -p "$folder"
step "set-up" scripts/setup.sh
step "build" build release
step "sweeps" sweep_all
scripts/valley_report.py "$folder"
