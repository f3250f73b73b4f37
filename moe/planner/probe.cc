#include "moe/planner/probe.h"

#include <algorithm>
#include <memory>

#include "moe/base/check.h"
#include "moe/base/clock.h"
#include "moe/base/cpu_info.h"
#include "moe/base/interrupt.h"
#include "moe/base/thread_pool.h"

namespace moe {
namespace {

constexpr int kMinRounds = 3;

std::vector<std::unique_ptr<ThreadPool>> MakePools(int max_threads) {
  std::vector<std::unique_ptr<ThreadPool>> pools;
  for (int t = 1; t < max_threads; t *= 2) pools.push_back(std::make_unique<ThreadPool>(t));
  pools.push_back(std::make_unique<ThreadPool>(max_threads));
  return pools;
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

}  // namespace moe
