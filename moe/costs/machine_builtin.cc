#include <algorithm>
#include <array>

#include "moe/base/edit_distance.h"
#include "moe/base/printable.h"
#include "moe/costs/machine.h"

namespace moe {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kGiB = int64_t{1} << 30;

// What is published of a machine. FLOP/s are dense: sheets that count zeros of structured sparsity say twice as much.
struct Sheet {
  std::string_view name, device, isa;
  int64_t memory_bytes = 0;
  int64_t cache_bytes = 0;       // the last level that its cores share; 0: not published
  double cache_bytes_per_s = 0;  // 0: not published
  double memory_bytes_per_s = 0;
  double peak_f32 = 0, peak_bf16 = 0, peak_int8 = 0;
  double barrier_s = 0, step_s = 0;
  std::string_view source;
};

// What a step takes besides bytes / bandwidth grows with its layers, so nearly all of it is barrier_s: to launch a kernel and
// to let it drain, charged per piece of work that we count. Those are 5 or 6 a layer for one sequence, of a dense model (9 for
// several, 8 to 14 of a mixture); software launches more and smaller kernels, so this is more than one launch takes there.
// step_s is what a step pays once whatever its depth: to start a recorded graph, wait for it, fetch logits, choose a token.
// That is assumed, nowhere measured alone. Models fitted have 28 to 34 layers; times of one sequence are soft.
constexpr double kOncePerStep = 1e-4;

constexpr std::array kSheets = {
    // Cache: 5120 bytes a clock at 1410 MHz. barrier_s: a model in three formats takes 3.0 ms more than bytes / 2039 GB/s
    // (13.3, 6.9 and 4.4 GB in 9.53, 6.43 and 5.08 ms); of its 32 layers we count 161 pieces.
    Sheet{.name = "a100-80g",
          .device = "NVIDIA A100 80GB SXM",
          .isa = "sm_80",
          .memory_bytes = 80 * kGiB,
          .cache_bytes = 40 * kMiB,
          .cache_bytes_per_s = 5120 * 1.41e9,
          .memory_bytes_per_s = 2039e9,
          .peak_f32 = 19.5e12,
          .peak_bf16 = 312e12,
          .peak_int8 = 624e12,
          .barrier_s = 18e-6,
          .step_s = kOncePerStep,
          .source =
              "memory, bandwidth, f32, bf16, int8: NVIDIA A100 data sheet (80GB SXM); cache and its bandwidth: NVIDIA A100 "
              "architecture white paper; barrier_s: what Llama-2-7B in 3 formats takes besides bytes, over the 161 pieces "
              "of work of its 32 layers, from tokens per second at batch 1 in the README of pytorch-labs/gpt-fast; step_s: "
              "assumed, a graph's launch and sampling; times at batch 1 are soft"},
    // The sheet's 1979 and 3958 are with sparsity. Fixed costs are the A100's: nothing was measured. Its clock is 1.98 GHz, not
    // 1.41, and kernels may be launched before the one before has drained, so barrier_s is more likely too long than too short.
    Sheet{.name = "h100-sxm",
          .device = "NVIDIA H100 80GB SXM",
          .isa = "sm_90",
          .memory_bytes = 80 * kGiB,
          .cache_bytes = 50 * kMiB,
          .memory_bytes_per_s = 3350e9,
          .peak_f32 = 67e12,
          .peak_bf16 = 989.5e12,
          .peak_int8 = 1979e12,
          .barrier_s = 18e-6,
          .step_s = kOncePerStep,
          .source =
              "memory, bandwidth, f32, and bf16 and int8 as half of the rates with sparsity: NVIDIA H100 data sheet (SXM); "
              "cache: NVIDIA H100 architecture white paper, which does not say its bandwidth; barrier_s: copied from "
              "a100-80g, not measured here, probably too long (higher clock, overlapping launches); step_s: assumed, as "
              "there; times at batch 1 are soft"},
    // 1 PFLOP/s in FP4 with sparsity is 500 TFLOP/s without; a format of twice the bits has half the rate: 250 in 8, 125 in 16.
    // Users measure 356 in FP4, 188 in FP8, 92 in bf16: sums in float32 do not halve the rate as on GeForce (RTX 5070: 67).
    // barrier_s: bytes / 229 GB/s + 0.1 ms + 5.7 us a piece solves the times of two dense models (169 and 205 pieces).
    Sheet{.name = "dgx-spark",
          .device = "NVIDIA DGX Spark (GB10), GPU",
          .isa = "sm_121",
          .memory_bytes = 128 * kGiB,
          .cache_bytes = 24 * kMiB,
          .memory_bytes_per_s = 273e9,
          .peak_f32 = 31e12,
          .peak_bf16 = 125e12,
          .peak_int8 = 250e12,
          .barrier_s = 5.7e-6,
          .step_s = kOncePerStep,
          .source =
              "memory, bandwidth: NVIDIA DGX Spark data sheet; f32: NVIDIA at Hot Chips 2025; bf16, int8: deduced, 1/8 and "
              "1/4 of the data sheet's 1 PFLOP of FP4 with sparsity; cache: as the driver reports it; barrier_s: per piece "
              "of work, from 2 rows (batch 1, context 16) of the 2 dense models in benches/external, with the bandwidth "
              "free; step_s: assumed, a graph's launch and sampling; times at batch 1 are soft"},
    // bf16 is widened to float32: this GPU has no arithmetic of its own for it. barrier_s: two dense models take 3.1 and 4.3 ms
    // more than bytes / 800 GB/s, 0.1 ms of it once: 18 and 20 us for each of 169 and 205 pieces.
    Sheet{.name = "m2-ultra",
          .device = "Apple M2 Ultra, 76-core GPU",
          .isa = "apple8",
          .memory_bytes = 192 * kGiB,
          .memory_bytes_per_s = 800e9,
          .peak_f32 = 27.2e12,
          .peak_bf16 = 27.2e12,
          .peak_int8 = 13.6e12,
          .barrier_s = 19e-6,
          .step_s = kOncePerStep,
          .source =
              "memory (the largest), bandwidth: Apple's press release of M2 Ultra; f32: Apple's page of Mac Pro 2023, "
              "76-core GPU; int8: 16-bit integer rate in philipturner/metal-benchmarks; barrier_s: per piece of work, from "
              "2 rows (batch 1, context 16) of the 2 dense models in benches/external; step_s: assumed, handing over a step "
              "and sampling; times at batch 1 are soft; estimated: bf16 (as f32)"},
};

MachineProfile ProfileOf(const Sheet& sheet) {
  MachineProfile machine;
  machine.name = sheet.name;
  machine.cpu = sheet.device;
  machine.isa = sheet.isa;
  machine.source = sheet.source;
  machine.l3_bytes = sheet.cache_bytes;
  machine.memory_bytes = sheet.memory_bytes;
  if (sheet.cache_bytes_per_s > 0) {
    machine.weights_bytes_per_s.points.push_back({static_cast<double>(sheet.cache_bytes), sheet.cache_bytes_per_s});
  }
  // Of twice its size a cache that replaces the oldest holds nothing that is read again.
  const double from_memory = static_cast<double>(sheet.cache_bytes > 0 ? 2 * sheet.cache_bytes : kMiB);
  machine.weights_bytes_per_s.points.push_back({from_memory, sheet.memory_bytes_per_s});
  machine.peak_f32 = sheet.peak_f32, machine.peak_bf16 = sheet.peak_bf16, machine.peak_int8 = sheet.peak_int8;
  machine.barrier_s = sheet.barrier_s, machine.step_s = sheet.step_s;
  Complete(machine);
  return machine;
}

}  // namespace

std::vector<std::string_view> MachineNames() {
  std::vector<std::string_view> names;
  for (const Sheet& sheet : kSheets) names.push_back(sheet.name);
  return names;
}

Result<MachineProfile> BuiltInMachine(const std::string& name) {
  for (const Sheet& sheet : kSheets) {
    if (sheet.name == name) return ProfileOf(sheet);
  }
  std::vector<std::string_view> names = MachineNames();
  const std::string_view shown = std::string_view(name).substr(0, 64);
  std::ranges::stable_sort(names, {}, [&](std::string_view known) { return EditDistance(shown, known); });
  return UsageErr("--machine", "got '{}', expected a file or one of {}", Printable(name), fmt::join(names, ", "));
}

}  // namespace moe
