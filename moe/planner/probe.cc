#include "moe/planner/probe.h"

#include <algorithm>
#include <memory>
#include <numeric>

#include "moe/base/arena.h"
#include "moe/base/check.h"
#include "moe/base/clock.h"
#include "moe/base/cpu_info.h"
#include "moe/base/interrupt.h"
#include "moe/base/rng.h"
#include "moe/base/thread_pool.h"
#include "moe/planner/bandwidth_probe.h"

namespace moe {
namespace {

constexpr int kMinRounds = 3;
constexpr double kPeakSeconds = 2e-3;         // of one sample of multiply-adds
constexpr int kBarriers = 200;                // of one sample
constexpr int64_t kPiece = int64_t{1} << 20;  // bytes that a thread takes at a time where the order is the memory's

std::vector<int> ThreadCounts(int max_threads) {
  std::vector<int> counts;
  for (int t = 1; t < max_threads; t *= 2) counts.push_back(t);
  counts.push_back(max_threads);
  return counts;
}

class Prober {
 public:
  Prober(int64_t buffer_bytes, const KernelTable& kernels) : kernels_(kernels) {
    const int64_t chunk = Ceilings::kChunkBytes;
    num_chunks_ = std::max<int64_t>(1, buffer_bytes / chunk);
    buffer_ = AllocateAligned(static_cast<size_t>(num_chunks_ * chunk));
    std::fill_n(floats(0), num_chunks_ * chunk / 4, 1.0f);
  }

  double Read(ThreadPool& pool) { return Stream(pool, kPiece, num_chunks_ * Ceilings::kChunkBytes / kPiece, {}, &Prober::Sum); }
  double ReadChunks(ThreadPool& pool) {
    std::vector<int64_t> order(static_cast<size_t>(num_chunks_));
    std::iota(order.begin(), order.end(), int64_t{0});
    for (int64_t i = num_chunks_ - 1; i > 0; --i)
      std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(rng_.Below(i + 1))]);
    return Stream(pool, Ceilings::kChunkBytes, num_chunks_, order, &Prober::Sum);
  }
  double ReadModifyWrite(ThreadPool& pool) {
    return 2 * Stream(pool, kPiece, num_chunks_ * Ceilings::kChunkBytes / kPiece, {}, &Prober::Change);
  }

  // FLOP per second of all threads together, each doing as much.
  double Peak(ThreadPool& pool, double (*peak)(int64_t, float*)) {
    float sink = 0;
    int64_t steps = 1000;
    for (double seconds = 0; seconds < kPeakSeconds / 4; steps *= 2) {
      const double start = NowSeconds();
      peak(steps, &sink);
      seconds = NowSeconds() - start;
      if (seconds >= kPeakSeconds / 4) break;
    }
    steps *= 4;
    std::vector<double> flop(static_cast<size_t>(pool.num_threads()));
    const double start = NowSeconds();
    pool.ParallelFor(pool.num_threads(), [&](int64_t i, int) {
      float own = 0;
      flop[static_cast<size_t>(i)] = peak(steps, &own);
    });
    return std::accumulate(flop.begin(), flop.end(), 0.0) / (NowSeconds() - start);
  }

  double Barrier(ThreadPool& pool) {
    const double start = NowSeconds();
    for (int i = 0; i < kBarriers; ++i) pool.ParallelFor(pool.num_threads(), [](int64_t, int) {});
    return (NowSeconds() - start) / kBarriers;
  }

 private:
  float* floats(int64_t byte) { return reinterpret_cast<float*>(buffer_.get() + byte); }
  void Sum(float* from, int64_t count) {
    MOE_CHECK(kernels_.sum_squares(from, count) == static_cast<double>(count), "read wrong");
  }
  void Change(float* x, int64_t count) { kernels_.scale(1.0f, count, x); }

  // Bytes per second of `work` on pieces of `size` bytes, in order or as `order` says.
  double Stream(ThreadPool& pool, int64_t size, int64_t count, const std::vector<int64_t>& order,
                void (Prober::*work)(float*, int64_t)) {
    const double start = NowSeconds();
    pool.ParallelFor(count, [&](int64_t i, int) {
      const int64_t piece = order.empty() ? i : order[static_cast<size_t>(i)];
      (this->*work)(floats(piece * size), size / 4);
    });
    return static_cast<double>(count * size) / (NowSeconds() - start);
  }

  const KernelTable& kernels_;
  AlignedBytes buffer_;  // float32 ones
  int64_t num_chunks_ = 0;
  Rng rng_{1};
};

// One figure: how it is measured, and where it goes.
struct Figure {
  double (*sample)(Prober&, ThreadPool&, const KernelTable&);
  Measured Ceilings::*result;
};
const Figure kFigures[] = {
    {[](Prober& p, ThreadPool& pool, const KernelTable&) { return p.Read(pool); }, &Ceilings::read_bytes_per_s},
    {[](Prober& p, ThreadPool& pool, const KernelTable&) { return p.ReadChunks(pool); }, &Ceilings::chunk_read_bytes_per_s},
    {[](Prober& p, ThreadPool& pool, const KernelTable&) { return p.ReadModifyWrite(pool); }, &Ceilings::rmw_bytes_per_s},
    {[](Prober& p, ThreadPool& pool, const KernelTable& k) { return p.Peak(pool, k.peak_f32); }, &Ceilings::peak_f32},
    {[](Prober& p, ThreadPool& pool, const KernelTable& k) { return p.Peak(pool, k.peak_bf16); }, &Ceilings::peak_bf16},
    {[](Prober& p, ThreadPool& pool, const KernelTable& k) { return p.Peak(pool, k.peak_int8); }, &Ceilings::peak_int8},
    {[](Prober& p, ThreadPool& pool, const KernelTable&) { return p.Barrier(pool); }, &Ceilings::barrier_s},
};
constexpr size_t kNumFigures = std::size(kFigures);

Measured Summarize(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  const size_t middle = samples.size() / 2;
  const double median = samples.size() % 2 != 0 ? samples[middle] : (samples[middle - 1] + samples[middle]) / 2;
  return {.median = median, .min = samples.front(), .max = samples.back()};
}

}  // namespace

MachineProbe ProbeMachine(const ProbeOptions& options, const KernelTable& kernels,
                          const std::function<void(double)>& progress) {
  MOE_CHECK(options.max_threads > 0, "{} threads", options.max_threads);
  const std::vector<int> counts = ThreadCounts(options.max_threads);
  std::vector<std::unique_ptr<ThreadPool>> pools;
  for (const int count : counts) pools.push_back(std::make_unique<ThreadPool>(count));
  Prober prober(options.buffer_bytes < 0 ? BandwidthProbe::DefaultBytes() : options.buffer_bytes, kernels);
  std::vector<std::vector<double>> samples(counts.size() * kNumFigures);
  MachineProbe out{.cpu = GetCpuInfo().name, .isa = kernels.name};
  const double start = NowSeconds();
  const auto share = [&] { return std::min(1.0, (NowSeconds() - start) / options.seconds); };
  for (; out.rounds < kMinRounds || share() < 1; ++out.rounds) {
    if (out.rounds > 0 && InterruptRequested()) {
      out.interrupted = true;
      break;
    }
    for (size_t figure = 0; figure < kNumFigures; ++figure) {
      for (size_t t = 0; t < counts.size(); ++t) {
        samples[t * kNumFigures + figure].push_back(kFigures[figure].sample(prober, *pools[t], kernels));
        if (progress) progress(std::min(share(), static_cast<double>(out.rounds + 1) / kMinRounds));
      }
    }
  }
  for (size_t t = 0; t < counts.size(); ++t) {
    Ceilings ceilings{.threads = pools[t]->num_threads()};
    for (size_t figure = 0; figure < kNumFigures; ++figure) {
      ceilings.*kFigures[figure].result = Summarize(samples[t * kNumFigures + figure]);
    }
    out.by_threads.push_back(ceilings);
  }
  return out;
}

}  // namespace moe
