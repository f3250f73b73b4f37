#include "moe/costs/op_time.h"

#include <algorithm>
#include <cmath>

#include "moe/tensor/packed_weight.h"

namespace moe {

double Conditions::BytesPerS(double working_set) const {
  const Curve& curve = machine.weights_bytes_per_s;
  const double slowest = curve.points.back().y, here = curve.At(working_set);
  if (curve.points.size() == 1) return slowest * memory;
  // Of a pass over the set the part that misses the caches goes at memory's pace.
  const double fastest = std::max(here, curve.points.front().y);
  const double missed = fastest > slowest ? (1 / here - 1 / fastest) / (1 / slowest - 1 / fastest) : 1;
  return 1 / ((1 - missed) / (fastest * compute) + missed / (slowest * memory));
}

double Overlapped(double compute_s, double memory_s, double overlap) {
  const double most = std::max(compute_s, memory_s);
  if (most <= 0) return 0;
  const double ratio = std::min(compute_s, memory_s) / most;
  return most * std::pow(1 + std::pow(ratio, overlap), 1 / overlap);
}

OpTime TimeOf(const ProductOp& op, const Conditions& now) {
  const MachineProfile& machine = now.machine;
  const ProductCost& cost = machine.product(op.format, op.kind);
  const StreamCost& stream = machine.stream(op.format, op.kind);
  const double panels = std::ceil(op.N / static_cast<double>(kPanel));
  OpTime time;
  double matrices = 0;
  for (const RowsOfMatrices& m : op.rows) {
    if (m.rows <= 0) continue;
    time.compute_s += m.matrices * panels * cost.PanelSeconds(m.rows, op.K);
    matrices += m.matrices;
  }
  if (matrices <= 0) return time;
  time.compute_s /= now.compute;
  time.memory_s =
      op.bytes / (now.BytesPerS(op.reuse_bytes) * stream.efficiency) + op.row_bytes / now.BytesPerS(op.row_reuse_bytes);
  time.fixed_s = (machine.barrier_s + matrices * stream.matrix_s + stream.list_s) / now.compute;
  time.s = Overlapped(time.compute_s, time.memory_s, stream.overlap) + time.fixed_s;
  return time;
}

OpTime TimeOf(const RowWork& work, const Conditions& now) {
  if (work.values <= 0) return {};
  const MachineProfile& machine = now.machine;
  const bool alone = work.op == RowOp::kCopyAlone;
  // Of the busiest thread: of the last turn it has a whole chunk, unless the only one is smaller.
  const double threads = machine.threads, turns = std::floor(work.chunks / threads);
  const double busiest = turns + std::min(1.0, work.chunks - turns * threads);
  OpTime time{.compute_s = work.values * machine.row_op_s[static_cast<size_t>(work.op)] / now.compute};
  if (!alone) time.compute_s *= busiest * threads / work.chunks;
  // The rate in cache is part of what was measured; what memory adds comes on top.
  time.memory_s = work.values * BytesPerValue(work.op) / now.BytesPerS(work.working_set);
  time.fixed_s = alone || work.chunks <= 1 ? 0 : machine.barrier_s / now.compute;
  constexpr double kOverlap = 4;
  time.s = Overlapped(time.compute_s, time.memory_s, kOverlap) + time.fixed_s;
  return time;
}

double AttentionOp::computed_pairs() const {
  constexpr double kKeys = static_cast<double>(kPanel);
  const auto of = [&](double count, double n) {
    if (n <= 1) return count * n * std::ceil((first_position + 1) / kKeys) * kKeys;
    return count * n * (std::floor(first_position / kKeys) * kKeys + (n - 1) / 2 + kKeys);
  };
  return of(segments, rows) + of(1, last_rows);
}

OpTime TimeOf(const AttentionOp& op, const Conditions& now) {
  return TimeOf(op, now.machine.attention_of(op.format), now);
}

OpTime TimeOf(const AttentionOp& op, const AttentionCost& cost, const Conditions& now) {
  const MachineProfile& machine = now.machine;
  const double group = op.heads / std::max(1.0, op.kv_heads);
  const Curve& pair_s = op.backward ? cost.backward_pair_s : cost.pair_s;
  OpTime time{.compute_s = op.computed_pairs() * op.heads * op.head_width * pair_s.At(op.rows * group)};
  time.compute_s += op.all_rows() * op.heads * cost.row_s;
  time.compute_s /= now.compute;
  time.memory_s = op.kv_bytes() / (now.BytesPerS(op.kv_working_set) * cost.efficiency);
  time.fixed_s = machine.barrier_s * (op.rows * group > 1 ? 2 : 1) / now.compute;
  time.s = Overlapped(time.compute_s, time.memory_s, cost.overlap) + time.fixed_s;
  return time;
}

}  // namespace moe
