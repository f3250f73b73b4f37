#include "moe/mixture/shared_gate.h"

#include <cmath>

#include "moe/ops/chunks.h"

namespace moe {
namespace {

// fn(i, row of token i in a [T,D] matrix), in parallel.
template <class F>
void ForEachToken(const ValidRows& valid, int64_t D, ExecContext& ctx, F&& fn) {
  ForEachChunk(valid.count, RowsPerChunk(D), ctx, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) fn(i, valid.rows.empty() ? i : valid.rows[static_cast<size_t>(i)]);
  });
}

}  // namespace

void GateShared(const Parameter& w, MatView<const float> x, const ValidRows& valid, MoeSaved& saved, ExecContext& ctx) {
  const int64_t D = x.cols;
  ForEachToken(valid, D, ctx, [&](int64_t i, int64_t t) {
    const float gate = 1 / (1 + std::exp(-ctx.kernels.dot(w.value.data(), x.row(t), D)));
    saved.shared_gate[static_cast<size_t>(i)] = gate;
    ctx.kernels.scale(gate, D, saved.shared_out.row(i));
  });
}

// By z = w . x: the sigmoid's slope is gate (1 - gate), and out has the gate in it already.
std::span<const float> GateSharedBackward(const Parameter& w, MatView<const float> x, const ValidRows& valid,
                                          const MoeSaved& saved, MatView<const float> d_y, MatView<float> d_out,
                                          ExecContext& ctx) {
  const int64_t D = x.cols;
  const auto d_z = ctx.arena.Alloc<float>(valid.count);
  ForEachToken(valid, D, ctx, [&](int64_t i, int64_t) {
    const float gate = saved.shared_gate[static_cast<size_t>(i)];
    d_z[static_cast<size_t>(i)] = ctx.kernels.dot(saved.shared_out.row(i), d_y.row(i), D) * (1 - gate);
    const float* d = d_y.row(i);
    ctx.kernels.combine_f32(1, &gate, &d, nullptr, D, d_out.row(i));
  });
  const MatView<float> d_w(w.grad.data(), 1, D);
  const WeightGradProblem problem{
      .d_y = MatView<const float>(d_z.data(), valid.count, 1), .x = x, .x_rows = valid.rows, .d_w = d_w};
  GroupedWeightGrad({&problem, 1}, ctx);
  return d_z;
}

void AddSharedGateInput(const Parameter& w, std::span<const float> d_z, MatView<float> d_x, ExecContext& ctx) {
  ForEachChunk(d_x.rows, RowsPerChunk(d_x.cols), ctx, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const float* of_w = w.value.data();
      ctx.kernels.combine_f32(1, &d_z[static_cast<size_t>(i)], &of_w, d_x.row(i), d_x.cols, d_x.row(i));
    }
  });
}

}  // namespace moe
