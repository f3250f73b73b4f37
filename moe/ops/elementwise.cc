#include "moe/ops/elementwise.h"

#include <algorithm>

#include "moe/ops/chunks.h"

namespace moe {
namespace {

constexpr int64_t kChunk = 16384;  // elements

}  // namespace

AnyMat AllocMat(int64_t rows, int64_t cols, DType dtype, ExecContext& ctx) {
  return {ctx.arena.Alloc<std::byte>(rows * cols * SizeOf(dtype)).data(), dtype, rows, cols, cols};
}

ConstAnyMat Rounded(ConstAnyMat x, DType format, ExecContext& ctx) {
  if (x.dtype == format || format == DType::kF32) return x;
  const MatView<const float> from = x.as<const float>();
  const MatView<Bf16> to = AllocMat(x.rows, x.cols, DType::kBf16, ctx).as<Bf16>();
  ForEachChunk(x.rows, RowsPerChunk(x.cols), ctx, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) ctx.kernels.to_bf16(from.row(t), x.cols, to.row(t));
  });
  return to;
}

void Add(MatView<const float> x, MatView<float> y, ExecContext& ctx) {
  MOE_CHECK(x.rows == y.rows && x.cols == y.cols, "x [{},{}] y [{},{}]", x.rows, x.cols, y.rows, y.cols);
  ForEachChunk(x.rows, RowsPerChunk(x.cols), ctx, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) ctx.kernels.add(x.row(t), x.cols, y.row(t));
  });
}

void SwigluBackward(ConstAnyMat gate_up, ConstAnyMat d_h, AnyMat d_gate_up, ExecContext& ctx) {
  const int64_t T = d_h.rows, F = d_h.cols;
  const DType dtype = d_gate_up.dtype;
  MOE_CHECK(F % 16 == 0, "width {} is no multiple of 16", F);
  MOE_CHECK(gate_up.rows == T && gate_up.cols == 2 * F && d_gate_up.rows == T && d_gate_up.cols == 2 * F,
            "gate_up [{},{}] d_gate_up [{},{}], expected [{},{}]", gate_up.rows, gate_up.cols, d_gate_up.rows, d_gate_up.cols,
            T, 2 * F);
  MOE_CHECK(gate_up.dtype == dtype && d_h.dtype == dtype, "gate_up of {}, d_h of {}, d_gate_up of {}", Name(gate_up.dtype),
            Name(d_h.dtype), Name(dtype));
  ForEachChunk(T, RowsPerChunk(F), ctx, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      if (dtype == DType::kBf16) {
        ctx.kernels.swiglu_backward_bf16(static_cast<const Bf16*>(gate_up.row(t)), static_cast<const Bf16*>(d_h.row(t)), F,
                                         static_cast<Bf16*>(d_gate_up.row(t)));
      } else {
        ctx.kernels.swiglu_backward_f32(static_cast<const float*>(gate_up.row(t)), static_cast<const float*>(d_h.row(t)), F,
                                        static_cast<float*>(d_gate_up.row(t)));
      }
    }
  });
}

double SumSquares(std::span<const float> x, ExecContext& ctx) {
  const auto n = static_cast<int64_t>(x.size());
  Arena::Scope scope(ctx.arena);
  const auto partial = ctx.arena.Alloc<double>(CeilDiv(n, kChunk));
  // Several chunks in a row for a thread: prefetchers run past the end of what it reads.
  const int64_t at_once = std::clamp<int64_t>(CeilDiv(n, kChunk) / (4 * ctx.pool.num_threads()), 1, 16);
  ForEachChunk(CeilDiv(n, kChunk), at_once, ctx, [&](int64_t first, int64_t last, int) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i * kChunk;
      partial[static_cast<size_t>(i)] = ctx.kernels.sum_squares(x.data() + begin, std::min(kChunk, n - begin));
    }
  });
  double sum = 0.0;
  for (const double p : partial) sum += p;
  return sum;
}

}  // namespace moe
