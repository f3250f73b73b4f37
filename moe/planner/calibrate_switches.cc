// Both ways of computing the same bits, in turn, where ops have two: what SwitchGains tells.

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "moe/base/clock.h"
#include "moe/costs/machine.h"
#include "moe/ops/gemm.h"
#include "moe/planner/bench_operands.h"
#include "moe/planner/calibrate_points.h"
#include "moe/planner/probe.h"

namespace moe {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
constexpr std::array<int64_t, 5> kPanels = {1, 2, 4, 8, 16};
constexpr std::array<int64_t, 2> kRows = {24, 48};  // two tiles or more on every kernel table
constexpr int64_t kInputs = 1024, kPanelsPerThread = 16;
constexpr std::array<double, 5> kOutputs = {0.5, 1, 2, 4, 8};  // of what the threads' L2 keep
constexpr int64_t kStreamInputs = 256, kStreamColumns = 1024, kMostOutput = int64_t{64} << 20;

// How many times as fast the second way is. Taking turns, as machines change their pace from one moment to the next.
struct Ways {
  KernelSwitches first, second;
  std::vector<double> ratios = {};

  template <class Work>
  void Run(Work&& work, ExecContext& ctx) {
    const KernelSwitches kept = ctx.switches;
    const auto seconds = [&](const KernelSwitches& switches) {
      ctx.switches = switches;
      const double start = NowSeconds();
      work();
      return NowSeconds() - start;
    };
    const bool swapped = ratios.size() % 2 != 0;
    const double one = seconds(swapped ? second : first), other = seconds(swapped ? first : second);
    ratios.push_back(swapped ? other / one : one / other);
    ctx.switches = kept;
  }
  double gain() const { return std::clamp(Summarize(ratios).median, 0.01, 100.0); }
};

// Items of so many panels, most of them whole: a thread's share of the last ones alone is split further.
struct ManyItems {
  BenchOperands own;
  AnyMat x;
  std::vector<GemmProblem> problems;

  ManyItems(DType format, int64_t rows, int64_t panels, ExecContext& ctx) {
    x = own.Activations(rows, kInputs, format, ctx);
    own.AddWeight(panels * kPanel, kInputs, format, ctx);
    const int64_t count = ctx.pool.num_threads() * std::max<int64_t>(2, kPanelsPerThread / panels);
    for (int64_t i = 0; i < count; ++i) {
      problems.push_back({.a = x, .weight = &own.weights[0], .c = AnyMat(own.Zeros(rows, panels * kPanel))});
    }
  }
};

void AddInterleavePoints(MachineProfile& machine, ExecContext& ctx, CalibrationPoints& points) {
  for (const int64_t panels : kPanels) {
    const auto logs = std::make_shared<double>(0);  // sum over formats and rows
    constexpr double kCases = 2 * kRows.size();
    for (const DType format : {DType::kF32, DType::kBf16}) {
      for (const int64_t rows : kRows) {
        const auto items = std::make_shared<ManyItems>(format, rows, panels, ctx);
        const auto ways = std::make_shared<Ways>(
            Ways{{.least_panels = kNever, .stream_bytes = kNever}, {.least_panels = 1, .stream_bytes = kNever}});
        const bool last = format == DType::kBf16 && rows == kRows.back();
        points.push_back(
            {.run = [=, &ctx] { ways->Run([&] { GroupedGemm(items->problems, ctx); }, ctx); },
             .use =
                 [=, &machine](double) {
                   *logs += std::log(ways->gain());
                   if (!last) return;
                   machine.switches.interleave.points.push_back({static_cast<double>(panels), std::exp(*logs / kCases)});
                 }});
      }
    }
  }
}

// A product, then the op that reads what it wrote.
void AddStreamPoints(MachineProfile& machine, ExecContext& ctx, CalibrationPoints& points) {
  const auto own = std::make_shared<BenchOperands>();
  own->AddWeight(kStreamColumns, kStreamInputs, DType::kBf16, ctx);
  const auto cached = static_cast<double>(CachedOutputBytes(ctx.pool.num_threads()));
  constexpr int64_t kRowBytes = kStreamColumns * 4;
  const int64_t most = std::min(kMostOutput, static_cast<int64_t>(kOutputs.back() * cached)) / kRowBytes;
  const AnyMat x = own->Activations(most, kStreamInputs, DType::kBf16, ctx);
  const MatView<float> c = own->Zeros(most, kStreamColumns);
  for (const double share : kOutputs) {
    const auto rows = static_cast<int64_t>(share * cached) / kRowBytes;
    if (rows > most) break;
    const auto ways = std::make_shared<Ways>(Ways{{.stream_bytes = kNever}, {.stream_bytes = 1}});
    const auto work = [=, &ctx] {
      Gemm({.a = x.Rows(0, rows), .weight = &own->weights[0], .c = AnyMat(c.Rows(0, rows))}, ctx);
      ctx.pool.ParallelFor(rows, [&](int64_t row, int) { static_cast<void>(ctx.kernels.sum_squares(c.row(row), c.cols)); });
    };
    points.push_back({.run = [=, &ctx] { ways->Run(work, ctx); },
                      .use =
                          [=, &machine](double) {
                            machine.switches.stream.points.push_back({static_cast<double>(rows * kRowBytes), ways->gain()});
                          }});
  }
}

}  // namespace

CalibrationPoints SwitchPoints(MachineProfile& machine, ExecContext& ctx) {
  CalibrationPoints points;
  AddInterleavePoints(machine, ctx, points);
  AddStreamPoints(machine, ctx, points);
  return points;
}

}  // namespace moe
