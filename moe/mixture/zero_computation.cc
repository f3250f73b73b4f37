#include "moe/mixture/zero_computation.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "moe/ops/chunks.h"

namespace moe {
namespace {

// x of a row of the layout.
ConstAnyMat RowOfInput(const ExpertLayout& layout, int64_t row) {
  const int64_t at = layout.row_token.empty() ? row : layout.row_token[static_cast<size_t>(row)];
  return layout.input.Rows(at, 1);
}

float DotWith(ConstAnyMat x, const float* w, const KernelTable& k) {
  if (x.dtype == DType::kBf16) return k.dot_bf16(static_cast<const Bf16*>(x.data), w, x.cols);
  return k.dot(static_cast<const float*>(x.data), w, x.cols);
}
// y [n] = base + sum over i of a[i] * rows[i]; base null: 0.
void Combined(std::span<const float> a, std::span<const void* const> rows, DType dtype, const float* base, int64_t n, float* y,
              const KernelTable& k) {
  const auto count = static_cast<int64_t>(a.size());
  if (dtype == DType::kBf16)
    return k.combine_bf16(count, a.data(), reinterpret_cast<const Bf16* const*>(rows.data()), base, n, y);
  k.combine_f32(count, a.data(), reinterpret_cast<const float* const*>(rows.data()), base, n, y);
}
void Store(const float* from, int64_t n, AnyMat to, const KernelTable& k) {
  if (to.dtype == DType::kBf16) return k.to_bf16(from, n, static_cast<Bf16*>(to.data));
  std::memcpy(to.data, from, static_cast<size_t>(n) * sizeof(float));
}

// One expert a1 x + a2 v.
struct Constant {
  float *v, *w;  // [D], [2,D]
  int64_t D;

  // (a1, a2), the softmax of two logits.
  std::pair<float, float> Shares(ConstAnyMat x, const KernelTable& k) const {
    const float lead = DotWith(x, w, k) - DotWith(x, w + D, k), a1 = 1 / (1 + std::exp(-lead));
    return {a1, 1 - a1};
  }
};

// fn(first row, rows, experts' number i in its group) of every expert that has rows of the plan; buckets may have more.
template <class F>
void ForEachExpert(const ExpertWeights& group, const MoeSaved& saved, F&& fn) {
  for (int64_t i = 0; i < group.count; ++i) {
    const int64_t e = group.first + i;
    if (saved.plan.rows_of(e) > 0) fn(int64_t{saved.layout.begin[static_cast<size_t>(e)]}, saved.plan.rows_of(e), i);
  }
}

// fn(row, scratch [D]) for rows [begin, begin + n), in parallel.
template <class F>
void ForEachRow(int64_t begin, int64_t n, int64_t D, ExecContext& ctx, F&& fn) {
  Arena::Scope scope(ctx.arena);
  const auto scratch = ctx.arena.Alloc<float>(D * ctx.pool.num_threads());
  ForEachChunk(n, RowsPerChunk(D), ctx, [&](int64_t r0, int64_t r1, int thread) {
    for (int64_t r = r0; r < r1; ++r) fn(begin + r, scratch.data() + thread * D);
  });
}

void CopyRow(ConstAnyMat from, AnyMat to) {
  std::memcpy(to.data, from.data, static_cast<size_t>(to.cols * SizeOf(to.dtype)));
}

Constant ConstantOf(const Tensor& v, const Tensor& w, int64_t i, int64_t D) {
  return {v.data() + i * D, w.data() + i * 2 * D, D};
}

}  // namespace

std::span<const uint8_t> WithoutZeroExperts(const MoeWeights& weights, const Routing& routing, std::span<const uint8_t> kept,
                                            int64_t& num_zero, ExecContext& ctx) {
  num_zero = 0;
  const auto is_zero = [&](int32_t expert) {
    for (const ExpertWeights& group : weights.experts) {
      if (group.spec.kind == ExpertKind::kZero && expert >= group.first && expert < group.first + group.count) return true;
    }
    return false;
  };
  const bool has_zero =
      std::ranges::any_of(weights.experts, [](const ExpertWeights& g) { return g.spec.kind == ExpertKind::kZero; });
  if (!has_zero) return kept;
  const auto out = ctx.arena.Alloc<uint8_t>(static_cast<int64_t>(routing.expert.size()));
  for (size_t s = 0; s < out.size(); ++s) {
    const bool zero = is_zero(routing.expert[s]);
    num_zero += zero ? 1 : 0;
    out[s] = !zero && (kept.empty() || kept[s] != 0) ? 1 : 0;
  }
  return out;
}

void RunZeroComputation(const ExpertWeights& group, const MoeSaved& saved, ExecContext& ctx) {
  if (group.spec.kind != ExpertKind::kCopy && group.spec.kind != ExpertKind::kConstant) return;
  const int64_t D = saved.expert_out.cols;
  const KernelTable& k = ctx.kernels;
  ForEachExpert(group, saved, [&](int64_t begin, int64_t n, int64_t i) {
    ForEachRow(begin, n, D, ctx, [&](int64_t row, float* sum) {
      const ConstAnyMat x = RowOfInput(saved.layout, row);
      const AnyMat out = saved.expert_out.Rows(row, 1);
      if (group.spec.kind == ExpertKind::kCopy) return CopyRow(x, out);
      const Constant constant = ConstantOf(group.constant->value, group.mix->value, i, D);
      const auto [a1, a2] = constant.Shares(x, k);
      const void *of_x = x.data, *of_v = constant.v;
      Combined({&a1, 1}, {&of_x, 1}, x.dtype, nullptr, D, sum, k);
      Combined({&a2, 1}, {&of_v, 1}, DType::kF32, sum, D, sum, k);
      Store(sum, D, out, k);
    });
  });
}

// With z the difference of the logits and s = <d, x - v>: d_x = a1 d + (W1 - W2) d_z, d_v += a2 d, d_W1 += d_z x, d_W2 -= d_z
// x, d_z = a1 a2 s.
void RunZeroComputationBackward(const ExpertWeights& group, const MoeSaved& saved, ConstAnyMat d_out, AnyMat d_input,
                                ExecContext& ctx) {
  if (group.spec.kind != ExpertKind::kCopy && group.spec.kind != ExpertKind::kConstant) return;
  const int64_t D = d_out.cols;
  const KernelTable& k = ctx.kernels;
  ForEachExpert(group, saved, [&](int64_t begin, int64_t n, int64_t i) {
    if (group.spec.kind == ExpertKind::kCopy) {
      return ForEachRow(begin, n, D, ctx, [&](int64_t row, float*) { CopyRow(d_out.Rows(row, 1), d_input.Rows(row, 1)); });
    }
    Arena::Scope scope(ctx.arena);
    const Constant constant = ConstantOf(group.constant->value, group.mix->value, i, D);
    const auto a2 = ctx.arena.Alloc<float>(n), d_z = ctx.arena.Alloc<float>(n), minus = ctx.arena.Alloc<float>(n);
    const auto x_rows = ctx.arena.Alloc<const void*>(n), d_rows = ctx.arena.Alloc<const void*>(n);
    ForEachRow(begin, n, D, ctx, [&](int64_t row, float* sum) {
      const auto r = static_cast<size_t>(row - begin);
      const ConstAnyMat x = RowOfInput(saved.layout, row), d = d_out.Rows(row, 1);
      const auto shares = constant.Shares(x, k);
      const float one = 1;
      x_rows[r] = x.data, d_rows[r] = d.data;
      Combined({&one, 1}, {&x_rows[r], 1}, x.dtype, nullptr, D, sum, k);  // x in float32
      a2[r] = shares.second;
      d_z[r] = shares.first * shares.second * (DotWith(d, sum, k) - DotWith(d, constant.v, k));
      minus[r] = -d_z[r];
      const float both[] = {d_z[r], minus[r]};
      const void* of_w[] = {constant.w, constant.w + D};
      Combined({&shares.first, 1}, {&d_rows[r], 1}, d.dtype, nullptr, D, sum, k);
      Combined(both, of_w, DType::kF32, sum, D, sum, k);
      Store(sum, D, d_input.Rows(row, 1), k);
    });
    const Constant grad = ConstantOf(group.constant->grad, group.mix->grad, i, D);
    constexpr int64_t kColumns = 256;  // cut alike for any number of threads
    ForEachChunk(D, kColumns, ctx, [&](int64_t c0, int64_t c1, int) {
      for (size_t r = 0; r < static_cast<size_t>(n); ++r) {  // in row order
        const auto add = [&](float a, const void* of, DType dtype, float* to) {
          const void* from = static_cast<const std::byte*>(of) + c0 * SizeOf(dtype);
          Combined({&a, 1}, {&from, 1}, dtype, to + c0, c1 - c0, to + c0, k);
        };
        add(a2[r], d_rows[r], d_out.dtype, grad.v);
        add(d_z[r], x_rows[r], saved.layout.input.dtype, grad.w);
        add(minus[r], x_rows[r], saved.layout.input.dtype, grad.w + D);
      }
    });
  });
}

}  // namespace moe
