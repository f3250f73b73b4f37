#include "moe/planner/ceilings.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <ctime>
#include <numeric>
#include <vector>

#include "moe/base/check.h"
#include "moe/base/clock.h"
#include "moe/base/cpu_info.h"
#include "moe/ops/chunks.h"
#include "moe/ops/gemm.h"

namespace moe {
namespace {

constexpr double kPeakSeconds = 2e-3;              // of one sample of multiply-adds
constexpr int kPeakTurns = 4;                      // into which it is cut
constexpr int kBarriers = 200;                     // of one sample
constexpr int64_t kPieceBytes = int64_t{8} << 20;  // of one thread at a time: in smaller ones prefetchers lose their way

}  // namespace

int64_t CeilingProbe::DefaultBytes() {
  // Virtual machines name caches of hundreds of megabytes, of which they have a part.
  return std::clamp(4 * GetCpuInfo().l3_bytes, int64_t{256} << 20, int64_t{1} << 30);
}

CeilingProbe::CeilingProbe(int64_t buffer_bytes, const KernelTable& kernels) : kernels_(kernels) {
  if (buffer_bytes < 0) buffer_bytes = DefaultBytes();
  num_chunks_ = std::max<int64_t>(1, CeilDiv(buffer_bytes, kChunkBytes));
  buffer_ = AllocateAligned(static_cast<size_t>(num_chunks_ * kChunkBytes));
  std::fill_n(Floats(0), num_chunks_ * kChunkBytes / 4, 1.0f);  // written, or all pages would be the one page of zeros
}

double CeilingProbe::Sample(Ceiling ceiling, ThreadPool& pool) {
  switch (ceiling) {
    case Ceiling::kRead:
      return Read(true, pool);
    case Ceiling::kReadChunks:
      return Read(false, pool);
    case Ceiling::kWeights:
      return Weights(pool);
    case Ceiling::kReadModifyWrite:
      return ReadModifyWrite(pool);
    case Ceiling::kOptimizerStream:
      return OptimizerStream(pool);
    case Ceiling::kPeakF32:
      return Peak(kernels_.peak_f32, pool);
    case Ceiling::kPeakBf16:
      return Peak(kernels_.peak_bf16, pool);
    case Ceiling::kPeakInt8:
      return Peak(kernels_.peak_int8, pool);
    case Ceiling::kBarrier:
      break;
  }
  const double start = NowSeconds();
  for (int i = 0; i < kBarriers; ++i) pool.ParallelFor(pool.num_threads(), [](int64_t, int) {});
  return (NowSeconds() - start) / kBarriers;
}

std::vector<int64_t> CeilingProbe::Order(bool in_order) {
  std::vector<int64_t> order(static_cast<size_t>(num_chunks_));
  std::iota(order.begin(), order.end(), int64_t{0});
  if (!in_order) {
    for (int64_t i = num_chunks_ - 1; i > 0; --i) {
      std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(rng_.Below(i + 1))]);
    }
  }
  return order;
}

double CeilingProbe::Read(bool in_order, ThreadPool& pool) {
  const std::vector<int64_t> order = Order(in_order);
  const int64_t at_once = in_order ? kPieceBytes / kChunkBytes : 1, count = kChunkBytes / 4;
  std::atomic<int64_t> sum = 0;  // exact: of ones
  const double start = NowSeconds();
  pool.ParallelFor(CeilDiv(num_chunks_, at_once), [&](int64_t piece, int) {
    for (int64_t i = piece * at_once; i < std::min(num_chunks_, (piece + 1) * at_once); ++i) {
      sum += static_cast<int64_t>(kernels_.sum_squares(Floats(order[static_cast<size_t>(i)] * kChunkBytes), count));
    }
  });
  const double seconds = NowSeconds() - start;
  MOE_CHECK(sum == num_chunks_ * count, "the probe summed {} over {} ones", sum.load(), num_chunks_ * count);
  return static_cast<double>(buffer_bytes()) / seconds;
}

double CeilingProbe::Weights(ThreadPool& pool) {
  constexpr int64_t kN = 2048, kK = 1024, kAtOnce = 4;  // one chunk is one matrix
  static_assert(kN * kK * 2 == kChunkBytes);
  ExecContext ctx{pool, arena_, kernels_};
  arena_.Reset();
  const AnyMat x(ctx.arena.AllocZero<Bf16>(kK).data(), DType::kBf16, 1, kK, kK);
  const AnyMat y(ctx.arena.Alloc<float>(kAtOnce * kN).data(), DType::kF32, kAtOnce, kN, kN);
  const std::vector<int64_t> order = Order(false);
  const double start = NowSeconds();
  for (int64_t first = 0; first < num_chunks_; first += kAtOnce) {
    std::array<PackedWeight, kAtOnce> weights;
    std::array<GemmProblem, kAtOnce> problems;
    const int64_t count = std::min(kAtOnce, num_chunks_ - first);
    for (int64_t i = 0; i < count; ++i) {
      const auto n = static_cast<size_t>(i);
      weights[n] = {.format = DType::kBf16,
                    .N = kN,
                    .K = kK,
                    .data = buffer_.get() + order[static_cast<size_t>(first + i)] * kChunkBytes};
      problems[n] = {.a = x, .weight = &weights[n], .c = y.Rows(i, 1)};
    }
    GroupedGemm(std::span(problems).first(static_cast<size_t>(count)), ctx);
  }
  return static_cast<double>(buffer_bytes()) / (NowSeconds() - start);
}

double CeilingProbe::ReadModifyWrite(ThreadPool& pool) {
  const double start = NowSeconds();
  pool.ParallelFor(num_chunks_, [&](int64_t i, int) { kernels_.scale(1.0f, kChunkBytes / 4, Floats(i * kChunkBytes)); });
  return 2 * static_cast<double>(buffer_bytes()) / (NowSeconds() - start);
}

double CeilingProbe::OptimizerStream(ThreadPool& pool) {
  constexpr int64_t kBlock = 4096, kArrays = 4;  // bytes of one array before the next
  const int64_t array = buffer_bytes() / kArrays / kBlock * kBlock, blocks = array / kBlock;
  const int64_t blocks_at_once = kChunkBytes / kBlock / kArrays;
  const double start = NowSeconds();
  pool.ParallelFor(CeilDiv(blocks, blocks_at_once), [&](int64_t piece, int) {
    for (int64_t i = piece * blocks_at_once; i < std::min(blocks, (piece + 1) * blocks_at_once); ++i) {
      for (int64_t a = 0; a < kArrays; ++a) kernels_.scale(1.0f, kBlock / 4, Floats(a * array + i * kBlock));
    }
  });
  return 2 * kArrays * static_cast<double>(array) / (NowSeconds() - start);
}

double CeilingProbe::Peak(double (*peak)(int64_t, float*), ThreadPool& pool) {
  int64_t steps = 1000;
  for (double seconds = 0;; steps *= 2) {
    float sink = 0;
    const double start = NowSeconds();
    peak(steps, &sink);
    seconds = NowSeconds() - start;
    if (seconds >= kPeakSeconds / kPeakTurns) break;
  }
  // The best of a few: threads that were just woken may for a moment share a core.
  std::vector<double> flop(static_cast<size_t>(pool.num_threads()));
  double best = 0;
  for (int i = 0; i < kPeakTurns; ++i) {
    const double start = NowSeconds();
    pool.ParallelFor(pool.num_threads(), [&](int64_t t, int) {
      float sink = 0;
      flop[static_cast<size_t>(t)] = peak(steps, &sink);
    });
    best = std::max(best, std::accumulate(flop.begin(), flop.end(), 0.0) / (NowSeconds() - start));
  }
  return best;
}

double CeilingProbe::Pace(ThreadPool& pool, double seconds) {
  constexpr int64_t kSteps = 2000;
  const auto thread_s = [] {
    std::timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  };
  std::vector<double> rates(static_cast<size_t>(pool.num_threads()));
  pool.ParallelFor(pool.num_threads(), [&](int64_t i, int) {
    float sink = 0;
    const double start = thread_s();
    double flop = 0, spent = 0;
    do flop += kernels_.peak_f32(kSteps, &sink), spent = thread_s() - start;
    while (spent < seconds);
    rates[static_cast<size_t>(i)] = flop / spent;
  });
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

}  // namespace moe
