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

// barrier_s is an estimate everywhere: to launch a kernel of a recorded graph and to let it drain. What steps take besides
// bytes / bandwidth is step_s once 8 barriers a layer are taken off.
constexpr std::array kSheets = {
    // Cache: 5120 bytes a clock at 1410 MHz. step_s: a model in three formats takes 3.0 ms more than bytes / 2039 GB/s (13.3,
    // 6.9 and 4.4 GB in 9.53, 6.43 and 5.08 ms); 0.5 ms are barriers.
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
          .barrier_s = 2e-6,
          .step_s = 2.5e-3,
          .source =
              "memory, bandwidth, f32, bf16, int8: NVIDIA A100 data sheet (80GB SXM); cache and its bandwidth: NVIDIA A100 "
              "architecture white paper; step_s: from tokens per second of Llama-2-7B at batch 1 in the README of "
              "pytorch-labs/gpt-fast; estimated: barrier_s"},
    // The sheet's 1979 and 3958 are with sparsity.
    Sheet{.name = "h100-sxm",
          .device = "NVIDIA H100 80GB SXM",
          .isa = "sm_90",
          .memory_bytes = 80 * kGiB,
          .cache_bytes = 50 * kMiB,
          .memory_bytes_per_s = 3350e9,
          .peak_f32 = 67e12,
          .peak_bf16 = 989.5e12,
          .peak_int8 = 1979e12,
          .barrier_s = 2e-6,
          .step_s = 2.5e-3,
          .source =
              "memory, bandwidth, f32, and bf16 and int8 as half of the rates with sparsity: NVIDIA H100 data sheet (SXM); "
              "cache: NVIDIA H100 architecture white paper, which does not say its bandwidth; estimated: barrier_s, step_s "
              "(as of a100-80g)"},
    // 1 PFLOP/s in FP4 with sparsity is 500 TFLOP/s without; a format of twice the bits has half the rate: 250 in 8, 125 in 16.
    // Users measure 356 in FP4, 188 in FP8, 92 in bf16: sums in float32 do not halve the rate as on GeForce (RTX 5070: 67).
    // step_s: a line through the times of two dense models is bytes / 231 GB/s + 1.4 ms; 0.5 ms are barriers.
    Sheet{.name = "dgx-spark",
          .device = "NVIDIA DGX Spark (GB10), GPU",
          .isa = "sm_121",
          .memory_bytes = 128 * kGiB,
          .cache_bytes = 24 * kMiB,
          .memory_bytes_per_s = 273e9,
          .peak_f32 = 31e12,
          .peak_bf16 = 125e12,
          .peak_int8 = 250e12,
          .barrier_s = 2e-6,
          .step_s = 1e-3,
          .source =
              "memory, bandwidth: NVIDIA DGX Spark data sheet; f32: NVIDIA at Hot Chips 2025; bf16, int8: deduced, 1/8 and "
              "1/4 of the data sheet's 1 PFLOP of FP4 with sparsity; cache: as the driver reports it; step_s: from batch 1 "
              "of the dense models in benches/external; estimated: barrier_s"},
    // bf16 is widened to float32: this GPU has no arithmetic of its own for it. step_s: two dense models take 3.2 and 4.3 ms
    // more than bytes / 800 GB/s; 1.2 ms are barriers.
    Sheet{.name = "m2-ultra",
          .device = "Apple M2 Ultra, 76-core GPU",
          .isa = "apple8",
          .memory_bytes = 192 * kGiB,
          .memory_bytes_per_s = 800e9,
          .peak_f32 = 27.2e12,
          .peak_bf16 = 27.2e12,
          .peak_int8 = 13.6e12,
          .barrier_s = 5e-6,
          .step_s = 2.5e-3,
          .source =
              "memory (the largest), bandwidth: Apple's press release of M2 Ultra; f32: Apple's page of Mac Pro 2023, 76-core "
              "GPU; int8: 16-bit integer rate in philipturner/metal-benchmarks; step_s: from batch 1 of the dense models in "
              "benches/external; estimated: bf16 (as f32), barrier_s"},
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
