// Products of every kind and number of rows, weights and rows in the caches.

#include <algorithm>
#include <array>

#include "moe/costs/machine.h"
#include "moe/ops/gemm.h"
#include "moe/planner/bench_operands.h"
#include "moe/planner/calibrate_points.h"

namespace moe {
namespace {

constexpr std::array<int64_t, 17> kRows = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024};
constexpr double kManyRows = 48;  // of fewer the rate climbs from one number to the next
constexpr std::array<int64_t, 7> kGradRows = {1, 4, 16, 64, 256, 512, 1024};
// Two lengths of the contraction tell what comes once per panel from what comes with every input.
constexpr int64_t kShort = 256, kLong = 1024, kOutputs = 1024;
// Gradients of few rows are little more than their sums coming and going. Several matrices of 1 MiB: one alone lies in the
// cores' own caches or passes from one to the other, as it happens, which makes a factor of 2.5.
constexpr int64_t kGradSide = 512, kMostGrads = 8, kGradRowsInAll = 512;

// Times of a kind by rows, for both lengths.
struct KindTimes {
  std::vector<CurvePoint> short_s, long_s;
};

struct Operands {
  BenchOperands own;
  AnyMat x, y;
};

std::shared_ptr<Operands> Make(DType format, ProductKind kind, int64_t K, ExecContext& ctx) {
  auto o = std::make_shared<Operands>();
  const DType in = kind == ProductKind::kLinear ? DType::kF32 : format;
  o->x = o->own.Activations(kRows.back(), K, in, ctx);
  o->y = kind == ProductKind::kLinear
             ? AnyMat(o->own.Zeros(kRows.back(), kOutputs))
             : o->own.Outputs(kRows.back(), kind == ProductKind::kGateUp ? kOutputs / 2 : kOutputs, format);
  o->own.AddWeight(kOutputs, K, format, ctx);
  return o;
}

// step_s from the difference, panel_s from what is left; neither falls as rows grow.
ProductCost CostOf(DType format, ProductKind kind, const KindTimes& measured) {
  const KindTimes times{MiddleRates({measured.short_s}, kManyRows).points, MiddleRates({measured.long_s}, kManyRows).points};
  ProductCost cost{.format = format, .kind = kind};
  constexpr double kPanels = static_cast<double>(kOutputs) / kPanel;
  for (size_t i = 0; i < times.short_s.size(); ++i) {
    const double rows = times.short_s[i].x, a = times.short_s[i].y / kPanels, b = times.long_s[i].y / kPanels;
    const double step = std::max((b - a) / static_cast<double>(kLong - kShort), 0.5 * b / static_cast<double>(kLong));
    cost.step_s.points.push_back({rows, step});
    cost.panel_s.points.push_back({rows, std::max(b - static_cast<double>(kLong) * step, 1e-12)});
  }
  cost.step_s = NeverFalling(std::move(cost.step_s)), cost.panel_s = NeverFalling(std::move(cost.panel_s));
  return cost;
}

void AddGradPoints(DType format, MachineProfile& machine, ExecContext& ctx, CalibrationPoints& points) {
  struct Grad {
    BenchOperands own;
    AnyMat x, d_y;
    std::vector<MatView<float>> d_w;
    Curve curve;
  };
  auto g = std::make_shared<Grad>();
  g->x = g->own.Activations(kGradRows.back(), kGradSide, format, ctx);
  g->d_y = g->own.Activations(kGradRows.back(), kGradSide, format, ctx);
  for (int64_t i = 0; i < kMostGrads; ++i) g->d_w.push_back(g->own.Zeros(kGradSide, kGradSide));
  for (const int64_t rows : kGradRows) {
    const int64_t count = std::clamp<int64_t>(kGradRowsInAll / rows, 1, kMostGrads);
    points.push_back({.run =
                          [=, &ctx] {
                            std::array<WeightGradProblem, kMostGrads> problems;
                            for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
                              problems[i] = {
                                  .d_y = g->d_y.Rows(0, rows), .x = g->x.Rows(0, rows), .d_w = g->d_w[i], .format = format};
                            }
                            GroupedWeightGrad(std::span(problems).first(static_cast<size_t>(count)), ctx);
                          },
                      .use =
                          [=, &machine](double s) {
                            s = std::max(s - machine.barrier_s, s / 2) / static_cast<double>(count);
                            g->curve.points.push_back({static_cast<double>(rows), s * kPanel / kGradSide / kGradSide});
                            if (rows == kGradRows.back()) {
                              machine.products.push_back(
                                  {.format = format, .kind = ProductKind::kWeightGrad, .step_s = NeverFalling(g->curve)});
                            }
                          }});
  }
}

}  // namespace

CalibrationPoints ProductPoints(MachineProfile& machine, ExecContext& ctx) {
  CalibrationPoints points;
  for (const DType format : {DType::kF32, DType::kBf16}) {
    for (const ProductKind kind : {ProductKind::kLinear, ProductKind::kGateUp, ProductKind::kDown}) {
      const auto times = std::make_shared<KindTimes>();
      for (const int64_t K : {kShort, kLong}) {
        const auto o = Make(format, kind, K, ctx);
        for (const int64_t rows : kRows) {
          points.push_back({.run =
                                [=, &ctx] {
                                  Gemm({.a = o->x.Rows(0, rows),
                                        .weight = &o->own.weights[0],
                                        .epilogue = kind == ProductKind::kGateUp ? Epilogue::kSwiglu : Epilogue::kStore,
                                        .c = o->y.Rows(0, rows)},
                                       ctx);
                                },
                            .use =
                                [=, &machine](double s) {
                                  s = std::max(s - machine.barrier_s, s / 2);
                                  (K == kShort ? times->short_s : times->long_s).push_back({static_cast<double>(rows), s});
                                  if (K == kLong && rows == kRows.back())
                                    machine.products.push_back(CostOf(format, kind, *times));
                                }});
        }
      }
    }
    AddGradPoints(format, machine, ctx, points);
  }
  return points;
}

}  // namespace moe
