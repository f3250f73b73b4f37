// Work on rows, routing and attention, everything in the caches.

#include <cmath>
#include <cstring>
#include <numeric>

#include "moe/costs/op_time.h"
#include "moe/mixture/combine.h"
#include "moe/mixture/dispatch_plan.h"
#include "moe/mixture/routing.h"
#include "moe/ops/attention.h"
#include "moe/ops/elementwise.h"
#include "moe/ops/loss.h"
#include "moe/ops/norm.h"
#include "moe/ops/rope.h"
#include "moe/planner/bench_operands.h"
#include "moe/planner/calibrate_points.h"

namespace moe {
namespace {

constexpr int64_t kTokens = 256, kWidth = 512, kChoices = 2;

struct RowOperands {
  BenchOperands own;
  MatView<float> a, b, c;
  AnyMat slots, hidden, gate_up;
  RopeTable rope;
  std::vector<int32_t> positions, slot_begin, slot_expert, slot_row, targets;
  std::vector<float> gate, d_gate, inv_rms, d_weight, loss;
  Routing routing;
};

std::shared_ptr<RowOperands> MakeRowOperands(ExecContext& ctx) {
  auto o = std::make_shared<RowOperands>();
  constexpr DType kFormat = DType::kBf16;
  o->a = o->own.Matrix(kTokens, kWidth, ctx), o->b = o->own.Matrix(kTokens, kWidth, ctx), o->c = o->own.Zeros(kTokens, kWidth);
  o->slots = o->own.Activations(kTokens * kChoices, kWidth, kFormat, ctx);
  o->hidden = o->own.Activations(kTokens, kWidth, kFormat, ctx);
  o->gate_up = o->own.Activations(kTokens, 2 * kWidth, kFormat, ctx);
  o->rope = MakeRopeTable(kTokens, 64, 1e4);
  o->positions.resize(kTokens), std::iota(o->positions.begin(), o->positions.end(), 0);
  o->targets = o->positions;
  for (int32_t t = 0; t <= kTokens; ++t) o->slot_begin.push_back(t * static_cast<int32_t>(kChoices));
  o->slot_row.resize(kTokens * kChoices), o->slot_expert.assign(kTokens * kChoices, 0);
  for (size_t s = 0; s < o->slot_row.size(); ++s) o->slot_row[s] = static_cast<int32_t>((s * 97) % o->slot_row.size());
  o->gate.assign(kTokens * kChoices, 0.5f), o->d_gate = o->gate;
  o->inv_rms.assign(kTokens, 1), o->d_weight.assign(kWidth, 0), o->loss.assign(kTokens, 0);
  o->routing = {.slot_begin = o->slot_begin, .expert = o->slot_expert, .gate = o->gate};
  return o;
}

}  // namespace

CalibrationPoints RowOpPoints(MachineProfile& machine, ExecContext& ctx) {
  CalibrationPoints points;
  const auto o = MakeRowOperands(ctx);
  constexpr double kValues = static_cast<double>(kTokens * kWidth), kSlotValues = kValues * kChoices;
  const auto add = [&](RowOp op, double values, std::function<void()> run) {
    points.push_back({.run = std::move(run), .use = [=, &machine](double s) {
                        if (op != RowOp::kCopyAlone) s = std::max(s - machine.barrier_s, s / 2);
                        machine.row_op_s[static_cast<size_t>(op)] = s / values;
                      }});
  };
  const std::span<const float> ones(o->inv_rms);
  const std::span<float> gradient(o->d_weight);
  const std::span<const float> weight = o->a.row_span(0);
  add(RowOp::kNorm, kValues, [=, &ctx] { RmsNormForward(o->a, weight, 1e-5f, o->c, {}, ctx); });
  add(RowOp::kRope, kValues, [=, &ctx] { ApplyRope(o->rope, o->positions, RopeDirection::kForward, o->b, ctx); });
  add(RowOp::kRound, kValues, [=, &ctx] {
    Arena::Scope scope(ctx.arena);
    Rounded(o->a, DType::kBf16, ctx);
  });
  add(RowOp::kAdd, kValues, [=, &ctx] { Add(o->a, o->c, ctx); });
  add(RowOp::kCopy, kValues, [=, &ctx] {
    ctx.pool.ParallelFor(kTokens / 16,
                         [&](int64_t i, int) { std::memcpy(o->c.row(i * 16), o->a.row(i * 16), 16 * kWidth * sizeof(float)); });
  });
  add(RowOp::kCopyAlone, kValues, [=] {
    for (int64_t t = 0; t < kTokens; ++t) std::memcpy(o->c.row(t), o->a.row(t), kWidth * sizeof(float));
  });
  add(RowOp::kCombine, kSlotValues, [=, &ctx] { Combine(o->routing, o->slot_row, o->gate, o->slots, {}, {}, o->c, ctx); });
  add(RowOp::kNormBackward, kValues, [=, &ctx] { RmsNormBackward(o->a, weight, ones, o->b, o->c, gradient, ctx); });
  add(RowOp::kSwigluBackward, kValues, [=, &ctx] { SwigluBackward(o->gate_up, o->hidden, o->gate_up, ctx); });
  add(RowOp::kCombineBackward, kSlotValues,
      [=, &ctx] { CombineBackward(o->routing, o->slot_row, o->gate, o->slots, o->a, o->d_gate, o->slots, ctx); });
  add(RowOp::kCrossEntropy, kValues, [=, &ctx] { CrossEntropy(o->c, o->targets, 1.0f, o->loss, ctx); });
  add(RowOp::kSumSquares, kValues, [=, &ctx] { SumSquares({o->a.data, kTokens * kWidth}, ctx); });
  return points;
}

CalibrationPoints RoutingPoints(MachineProfile& machine, ExecContext& ctx) {
  struct Case {
    int64_t tokens, experts, top_k;
  };
  constexpr Case kCases[] = {{1, 8, 2}, {256, 8, 2}, {256, 64, 2}, {256, 64, 8}};
  struct Times {
    double forward[4], backward[4];
  };
  // call + T (token + E expert + k slot), from four cases.
  const auto solve = [](const double* s) {
    RoutingCost cost;
    const double per_slot = (s[3] - s[2]) / 256 / 6, per_expert = (s[2] - s[1]) / 256 / 56;
    cost.slot_s = std::max(per_slot, 1e-12), cost.expert_s = std::max(per_expert, 1e-12);
    const double one = 8 * cost.expert_s + 2 * cost.slot_s;
    cost.token_s = std::max((s[1] - s[0]) / 255 - one, 1e-12);
    cost.call_s = std::max(s[0] - cost.token_s - one, 1e-9);
    return cost;
  };
  CalibrationPoints points;
  const auto times = std::make_shared<Times>();
  for (size_t i = 0; i < std::size(kCases); ++i) {
    const Case c = kCases[i];
    const auto o = std::make_shared<BenchOperands>();
    const MatView<float> logits = o->Matrix(c.tokens, c.experts, ctx), d_logits = o->Zeros(c.tokens, c.experts);
    const RouterConfig config{.num_experts = c.experts, .top_k = c.top_k};
    const auto d_gate = std::make_shared<std::vector<float>>(static_cast<size_t>(c.tokens * c.top_k), 0.1f);
    for (const bool backward : {false, true}) {
      points.push_back({.run =
                            [=, keep = o, &ctx] {
                              Arena::Scope scope(ctx.arena);
                              RouterSaved saved;
                              auto routing = Route(config, {.logits = logits}, backward ? &saved : nullptr, ctx);
                              const DispatchPlan plan = BuildDispatchPlan(*routing, c.experts, {}, ctx);
                              if (backward) RouteBackward(config, *routing, saved, plan.slot_row, *d_gate, 1.0f, d_logits, ctx);
                            },
                        .use =
                            [=, &machine](double s) {
                              (backward ? times->backward : times->forward)[i] = s;
                              if (!backward || i + 1 < std::size(kCases)) return;
                              for (size_t j = 0; j < std::size(kCases); ++j) times->backward[j] -= times->forward[j];
                              machine.routing = solve(times->forward), machine.routing_backward = solve(times->backward);
                            }});
    }
  }
  return points;
}

CalibrationPoints AttentionPoints(MachineProfile& machine, ExecContext& ctx) {
  constexpr int64_t kHeadWidth = 64, kHeads = 4;
  struct Case {
    int64_t segments, rows, past, group;
  };
  // One row against two lengths of past first: they tell what comes with a row from what comes with a key.
  constexpr Case kCases[] = {{16, 1, 31, 1}, {16, 1, 127, 1}, {8, 1, 127, 4}, {8, 16, 0, 1},
                             {4, 64, 0, 1},  {2, 256, 0, 1},  {1, 1024, 0, 1}};
  struct Operands {
    BenchOperands own;
    MatView<float> q, out, k, v, log_sum_exp, d_out, d_q, d_k, d_v;
    std::vector<AttentionSegment> segments;
  };
  struct Times {
    double short_s = 0;
    AttentionCost cost;
  };
  CalibrationPoints points;
  for (const DType format : {DType::kF32, DType::kBf16}) {
    const auto times = std::make_shared<Times>();
    times->cost.format = format;
    for (size_t i = 0; i < std::size(kCases); ++i) {
      const Case c = kCases[i];
      const int64_t H = kHeads * c.group, keys = c.past + c.rows, T = c.segments * c.rows;
      const AttentionShape shape{
          .num_heads = H, .num_kv_heads = kHeads, .head_width = kHeadWidth, .scale = 0.125f, .format = format};
      const auto o = std::make_shared<Operands>();
      o->q = o->own.Matrix(T, H * kHeadWidth, ctx), o->out = o->own.Zeros(T, H * kHeadWidth);
      o->k = o->own.Matrix(c.segments * keys, kHeads * kHeadWidth, ctx);
      o->v = o->own.Matrix(c.segments * keys, kHeads * kHeadWidth, ctx);
      for (int64_t s = 0; s < c.segments; ++s) {
        o->segments.push_back({.row_begin = s * c.rows,
                               .num_rows = c.rows,
                               .first_position = c.past,
                               .k = o->k.row(s * keys),
                               .v = o->v.row(s * keys),
                               .kv_stride = o->k.stride});
      }
      const double row_heads = static_cast<double>(T * H);
      const double pairs = AttentionOp{.segments = static_cast<double>(c.segments),
                                       .rows = static_cast<double>(c.rows),
                                       .first_position = static_cast<double>(c.past)}
                               .computed_pairs();
      const double values = pairs * static_cast<double>(H * kHeadWidth), x = static_cast<double>(c.rows * c.group);
      points.push_back({.run = [=, &ctx] { AttentionForward(shape, o->q, o->segments, o->out, {}, ctx); },
                        .use =
                            [=, &machine](double s) {
                              s = std::max(s - machine.barrier_s, s / 2);
                              AttentionCost& cost = times->cost;
                              if (i == 0) {
                                times->short_s = s;
                                return;
                              }
                              if (i == 1) {
                                const double slope =
                                    std::max((s - times->short_s) / (128 - 32), s / 256);  // per key, all row-heads
                                cost.row_s = std::max(times->short_s - 32 * slope, 0.0) / row_heads;
                              }
                              const double left = std::max(s - row_heads * cost.row_s, s / 4);
                              // Two products of P for a pair: at most at the peak.
                              cost.pair_s.points.push_back({x, std::max(left / values, 4 / machine.peak_flop_per_s(format))});
                              if (i + 1 == std::size(kCases)) machine.attention.push_back(cost);
                            }});
      if (c.past > 0 || c.rows < 64) continue;
      o->log_sum_exp = o->own.Zeros(T, H);
      o->d_out = o->own.Matrix(T, H * kHeadWidth, ctx), o->d_q = o->own.Zeros(T, H * kHeadWidth);
      o->d_k = o->own.Zeros(T, kHeads * kHeadWidth), o->d_v = o->own.Zeros(T, kHeads * kHeadWidth);
      AttentionForward(shape, o->q, o->segments, o->out, o->log_sum_exp, ctx);
      points.insert(points.end() - 1, CalibrationPoint{.run =
                                                           [=, &ctx] {
                                                             AttentionBackward(shape, o->q, o->k, o->v, o->segments, o->out,
                                                                               o->log_sum_exp, o->d_out, o->d_q, o->d_k, o->d_v,
                                                                               ctx);
                                                           },
                                                       .use =
                                                           [=](double s) {
                                                             times->cost.backward_pair_s.points.push_back({x, s / values});
                                                           }});
    }
  }
  return points;
}

}  // namespace moe
