#include "moe/planner/probe.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "moe/base/check.h"
#include "moe/base/clock.h"
#include "moe/base/cpu_info.h"
#include "moe/base/interrupt.h"
#include "moe/base/thread_pool.h"
#include "moe/planner/calibrate.h"

namespace moe {
namespace {

constexpr int kMinRounds = 3;
constexpr double kCeilingsShare = 0.15;  // of the time, when a profile follows

std::vector<std::unique_ptr<ThreadPool>> MakePools(int max_threads) {
  std::vector<std::unique_ptr<ThreadPool>> pools;
  for (int t = 1; t < max_threads; t *= 2) pools.push_back(std::make_unique<ThreadPool>(t));
  pools.push_back(std::make_unique<ThreadPool>(max_threads));
  return pools;
}

// Medians of the profile in place of those of fewer rounds, so that one figure has one value.
void TakeMedians(const MachineProfile& m, CeilingsOf& ceilings) {
  const std::pair<Ceiling, double> both[] = {{Ceiling::kRead, m.read_bytes_per_s},
                                             {Ceiling::kWeights, m.memory_bytes_per_s()},
                                             {Ceiling::kReadModifyWrite, m.rmw_bytes_per_s},
                                             {Ceiling::kPeakF32, m.peak_f32},
                                             {Ceiling::kPeakBf16, m.peak_bf16},
                                             {Ceiling::kPeakInt8, m.peak_int8},
                                             {Ceiling::kBarrier, m.barrier_s}};
  for (const auto& [ceiling, median] : both) {
    Measured& of = ceilings.values[static_cast<size_t>(ceiling)];
    of = {.median = median, .min = std::min(of.min, median), .max = std::max(of.max, median)};
  }
}

}  // namespace

Measured Summarize(std::vector<double> samples) {
  MOE_CHECK(!samples.empty(), "nothing measured");
  std::sort(samples.begin(), samples.end());
  const size_t middle = samples.size() / 2;
  const double median = samples.size() % 2 != 0 ? samples[middle] : (samples[middle - 1] + samples[middle]) / 2;
  return {.median = median, .min = samples.front(), .max = samples.back()};
}

MachineProbe ProbeMachine(const ProbeOptions& options, const KernelTable& kernels,
                          const std::function<void(double)>& progress) {
  MOE_CHECK(options.max_threads > 0, "{} threads", options.max_threads);
  const auto pools = MakePools(options.max_threads);
  CeilingProbe probe(options.buffer_bytes, kernels);
  std::vector<std::array<std::vector<double>, kNumCeilings>> samples(pools.size());
  MachineProbe out{.cpu = GetCpuInfo().name, .isa = kernels.name};
  const double start = NowSeconds();
  const auto share = [&] { return std::min(1.0, (NowSeconds() - start) / options.seconds); };
  for (; out.rounds < kMinRounds || share() < 1; ++out.rounds) {
    if (out.rounds > 0 && InterruptRequested()) {
      out.interrupted = true;
      break;
    }
    for (size_t c = 0; c < kNumCeilings; ++c) {
      for (size_t t = 0; t < pools.size(); ++t) samples[t][c].push_back(probe.Sample(static_cast<Ceiling>(c), *pools[t]));
      if (progress) progress(std::min(share(), (out.rounds + static_cast<double>(c + 1) / kNumCeilings) / kMinRounds));
    }
  }
  for (size_t t = 0; t < pools.size(); ++t) {
    CeilingsOf ceilings{.threads = pools[t]->num_threads()};
    std::transform(samples[t].begin(), samples[t].end(), ceilings.values.begin(), Summarize);
    out.by_threads.push_back(ceilings);
  }
  return out;
}

MeasuredProfile MeasureProfile(double seconds, int64_t buffer_bytes, const std::function<void(double)>& progress,
                               ExecContext& ctx) {
  const double sample_s = seconds > 0 ? CalibrateOptions{}.sample_s : 0;
  Calibration c = Calibrate({.seconds = seconds, .sample_s = sample_s, .buffer_bytes = buffer_bytes}, progress, ctx);
  if (c.interrupted) return {.interrupted = true};
  if (progress) progress(1);
  return {.machine = std::move(c.machine), .rounds = c.rounds};
}

MachineProbe ProbeWhole(const ProbeOptions& options, const std::function<void(double)>& progress, ExecContext& ctx) {
  ProbeOptions ceilings = options;
  ceilings.max_threads = ctx.pool.num_threads(), ceilings.seconds = kCeilingsShare * options.seconds;
  const auto part = [&](double from, double to) {
    return [&progress, from, to](double share) {
      if (progress) progress(from + (to - from) * share);
    };
  };
  const double start = NowSeconds();
  MachineProbe probe = ProbeMachine(ceilings, ctx.kernels, part(0, kCeilingsShare));
  if (probe.interrupted) return probe;
  const double left = options.seconds - (NowSeconds() - start);
  MeasuredProfile measured = MeasureProfile(left, options.buffer_bytes, part(kCeilingsShare, 1), ctx);
  probe.interrupted = measured.interrupted, probe.profile_rounds = measured.rounds;
  if (measured.interrupted) return probe;
  TakeMedians(measured.machine, probe.by_threads.back());
  probe.profile = std::move(measured.machine);
  probe.seconds = NowSeconds() - start;
  return probe;
}

}  // namespace moe
