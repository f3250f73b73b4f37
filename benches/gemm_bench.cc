// How much of the machine's multiply-add peak do the matrix products reach? Beside every product the same threads do as many
// FLOP in a loop that never leaves the registers. `fraction`: the median over such pairs, fair on a busy machine too;
// `fraction_best`, flop_per_s, peak_flop_per_s: of the best product and the best loop.
//   gemm_bench [--benchmark_filter=dense/f32/512x512x512]
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "moe/base/clock.h"
#include "moe/base/cpu_info.h"
#include "moe/base/rng.h"
#include "moe/ops/gemm.h"
#include "moe/tensor/tensor.h"

namespace moe {
namespace {

struct Shape {
  int64_t M, N, K;
};

struct Machine {
  explicit Machine(int num_threads) : pool(num_threads), ctx{pool, arena, **SelectKernelTable()} {}
  ThreadPool pool;
  Arena arena;
  ExecContext ctx;
};

// Seconds that all threads together need for `flop` FLOP between registers.
double PeakSeconds(double flop, DType format, ExecContext& ctx) {
  const auto peak = format == DType::kBf16 ? ctx.kernels.peak_bf16 : ctx.kernels.peak_f32;
  const int threads = ctx.pool.num_threads();
  float sink = 0;
  const double flop_per_step = peak(1, &sink);
  const auto steps = static_cast<int64_t>(std::ceil(flop / flop_per_step / threads));
  const double start = NowSeconds();
  ctx.pool.ParallelFor(threads, [&](int64_t, int) {
    float own_sink = 0;
    peak(steps, &own_sink);
    benchmark::DoNotOptimize(own_sink);
  });
  const double seconds = NowSeconds() - start;
  return seconds * flop / (static_cast<double>(steps * threads) * flop_per_step);
}

Tensor Random(int64_t rows, int64_t cols, uint64_t seed) {
  Tensor t({rows, cols});
  Rng rng(seed);
  for (float& x : t.span()) x = static_cast<float>(rng.Uniform() - 0.5);
  return t;
}

// Product and probe in turn, so that what else the machine does hits both alike.
template <class F>
void Measure(benchmark::State& state, const Shape& s, DType format, ExecContext& ctx, F&& product) {
  const double flop = 2.0 * static_cast<double>(s.M) * static_cast<double>(s.N) * static_cast<double>(s.K);
  double best = INFINITY, best_peak = INFINITY;
  std::vector<double> fractions;
  product();
  for (auto _ : state) {
    const double peak_seconds = PeakSeconds(flop, format, ctx), start = NowSeconds();
    product();
    const double seconds = NowSeconds() - start;
    state.SetIterationTime(seconds);
    best = std::min(best, seconds), best_peak = std::min(best_peak, peak_seconds);
    fractions.push_back(peak_seconds / seconds);
  }
  const auto middle = fractions.begin() + static_cast<int64_t>(fractions.size() / 2);
  std::nth_element(fractions.begin(), middle, fractions.end());
  using benchmark::Counter;
  state.counters["flop_per_s"] = Counter(flop / best, Counter::kDefaults, Counter::kIs1000);
  state.counters["peak_flop_per_s"] = Counter(flop / best_peak, Counter::kDefaults, Counter::kIs1000);
  state.counters["fraction_best"] = best_peak / best;
  state.counters["fraction"] = *middle;
}

// y [M,N] = x [M,K] W^T
void Dense(benchmark::State& state, Shape s, DType format, int threads) {
  Machine machine(threads);
  const Tensor x = Random(s.M, s.K, 1), w = Random(s.N, s.K, 2), y({s.M, s.N});
  const auto size = static_cast<size_t>(PackedBytes(format, s.N, s.K, PackSide::kForward));
  const AlignedBytes bytes = AllocateAligned(size);
  const PackedWeight packed = Pack(w.mat(), format, PackSide::kForward, {bytes.get(), size}, machine.ctx);
  Measure(state, s, format, machine.ctx, [&] { Gemm({.a = x.mat(), .weight = &packed, .c = y.mat()}, machine.ctx); });
}

// d_w [N,K] += d_y [M,N]^T x [M,K]
void Backward(benchmark::State& state, Shape s, DType format, int threads) {
  Machine machine(threads);
  const Tensor x = Random(s.M, s.K, 1), d_y = Random(s.M, s.N, 2), d_w({s.N, s.K});
  const WeightGradProblem problem{.d_y = d_y.mat(), .x = x.mat(), .d_w = d_w.mat(), .format = format};
  Measure(state, s, format, machine.ctx, [&] { GroupedWeightGrad({&problem, 1}, machine.ctx); });
}

void Register() {
  const std::vector<Shape> shapes = {{512, 512, 512}, {64, 512, 512}, {4096, 512, 256}, {1024, 1024, 1024}, {256, 2048, 2048}};
  std::vector<int> threads = {1};
  if (GetCpuInfo().num_threads > 1) threads.push_back(GetCpuInfo().num_threads);
  const auto add = [](const std::string& group, const Shape& s, DType format, int num_threads, auto run) {
    const std::string name = fmt::format("{}/{}/{}x{}x{}/threads:{}", group, Name(format), s.M, s.N, s.K, num_threads);
    benchmark::RegisterBenchmark(name.c_str(), run, s, format, num_threads)->UseManualTime()->Unit(benchmark::kMicrosecond);
  };
  for (const DType format : {DType::kF32, DType::kBf16}) {
    for (const int n : threads) {
      for (const Shape& s : shapes) add("dense", s, format, n, Dense);
      for (const Shape& s : shapes) add("backward", s, format, n, Backward);
    }
  }
}

}  // namespace
}  // namespace moe

int main(int argc, char** argv) {
  const auto table = moe::SelectKernelTable();
  if (!table) {
    fmt::print(stderr, "gemm_bench: {}\n", table.error().Message());
    return table.error().exit_code;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::AddCustomContext("isa", (*table)->name);
  moe::Register();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
