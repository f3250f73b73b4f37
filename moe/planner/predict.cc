#include "moe/planner/predict.h"

#include <algorithm>

namespace moe {
namespace {

struct Timed {
  OpTime time;
  double imbalance_s = 0;
};

struct Timer {
  const Conditions& now;
  const StepOp& op;

  Timed operator()(ProductOp product) const {
    product.rows = op.rows;
    Timed out{TimeOf(product, now)};
    if (!op.uneven) return out;
    RowsOfMatrices even{0, 0};
    for (const RowsOfMatrices& m : op.rows) even.matrices += m.matrices, even.rows += m.matrices * m.rows;
    if (even.matrices <= 0) return out;
    even.rows = std::max(1.0, even.rows / even.matrices);
    product.rows = {&even, 1};
    out.imbalance_s = std::max(0.0, out.time.s - TimeOf(product, now).s);
    return out;
  }
  Timed operator()(const RowWork& work) const { return {TimeOf(work, now)}; }
  Timed operator()(const AttentionOp& attention) const { return {TimeOf(attention, now)}; }
  Timed operator()(const RoutingOp& r) const {
    const RoutingCost& cost = r.backward ? now.machine.routing_backward : now.machine.routing;
    const double s = cost.At(r.tokens, r.experts, r.top_k) / now.compute;
    return {{.compute_s = s, .s = s}};
  }
  Timed operator()(const StreamOp& stream) const {
    const double rate = stream.wide ? now.machine.adamw_wide_bytes_per_s : now.machine.adamw_bytes_per_s;
    const double s = stream.bytes / (rate * now.memory);
    return {{.memory_s = s, .s = s}};
  }
};

}  // namespace

StepTime Predict(const StepModel& model, const Step& step, const Conditions& now) {
  const StepOps ops = OpsOf(model, step);
  StepTime out{.s = now.machine.step_s, .sync_s = now.machine.step_s};
  for (const StepOp& op : ops.ops) {
    const Timed timed = std::visit(Timer{now, op}, op.op);
    out.s += timed.time.s;
    out.imbalance_s += timed.imbalance_s, out.sync_s += timed.time.fixed_s;
    out.part_s[static_cast<size_t>(op.part)] += timed.time.s - timed.imbalance_s - timed.time.fixed_s;
    out.memory_s += timed.time.memory_s, out.compute_s += timed.time.compute_s;
    out.bytes += op.bytes, out.flop += op.flop;
    out.part_flop[static_cast<size_t>(op.part)] += op.flop;
  }
  double layers = 0;
  for (size_t l = 0; l < ops.distinct_experts.size(); ++l) {
    if (model.config.layers[l].ffn == FfnKind::kMoe) out.distinct_experts += ops.distinct_experts[l], ++layers;
  }
  if (layers > 0) out.distinct_experts /= layers;
  return out;
}

}  // namespace moe
