#include "moe/ops/norm.h"

#include "moe/ops/chunks.h"

namespace moe {

void RmsNormForward(MatView<const float> x, std::span<const float> weight, float epsilon, MatView<float> y,
                    std::span<float> inv_rms, ExecContext& ctx) {
  const int64_t T = x.rows, D = static_cast<int64_t>(weight.size());
  MOE_CHECK(D > 0 && x.cols % D == 0 && y.rows == T && y.cols == x.cols, "x [{},{}] weight [{}] y [{},{}]", T, x.cols, D,
            y.rows, y.cols);
  const int64_t heads = x.cols / D;
  MOE_CHECK(inv_rms.empty() || static_cast<int64_t>(inv_rms.size()) == T * heads, "inv_rms [{}] for {} rows of {} norms",
            inv_rms.size(), T, heads);
  ForEachChunk(T, RowsPerChunk(x.cols), ctx, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        const float inv = ctx.kernels.rms_norm(x.row(t) + h * D, weight.data(), D, epsilon, y.row(t) + h * D);
        if (!inv_rms.empty()) inv_rms[static_cast<size_t>(t * heads + h)] = inv;
      }
    }
  });
}

void RmsNormBackward(MatView<const float> x, std::span<const float> weight, std::span<const float> inv_rms,
                     MatView<const float> d_y, MatView<float> d_x, std::span<float> d_weight, ExecContext& ctx) {
  const int64_t T = x.rows, D = static_cast<int64_t>(weight.size());
  MOE_CHECK(D > 0 && x.cols % D == 0 && static_cast<int64_t>(d_weight.size()) == D, "x [{},{}] weight [{}] d_weight [{}]", T,
            x.cols, D, d_weight.size());
  const int64_t heads = x.cols / D;
  MOE_CHECK(static_cast<int64_t>(inv_rms.size()) == T * heads, "inv_rms [{}] for {} rows of {} norms", inv_rms.size(), T,
            heads);
  MOE_CHECK(d_y.rows == T && d_y.cols == x.cols && d_x.rows == T && d_x.cols == x.cols,
            "d_y [{},{}] d_x [{},{}], expected [{},{}]", d_y.rows, d_y.cols, d_x.rows, d_x.cols, T, x.cols);
  // d_weight sums over rows: each chunk by itself, then the chunks in order.
  constexpr int64_t kRows = 64;
  Arena::Scope scope(ctx.arena);
  const int64_t chunks = CeilDiv(T, kRows);
  const auto partial = ctx.arena.Alloc<float>(chunks * D);
  ForEachChunk(T, kRows, ctx, [&](int64_t begin, int64_t end, int) {
    float* d_w = partial.data() + begin / kRows * D;
    std::fill_n(d_w, D, 0.0f);
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        ctx.kernels.rms_norm_backward(x.row(t) + h * D, weight.data(), inv_rms[static_cast<size_t>(t * heads + h)],
                                      d_y.row(t) + h * D, D, d_x.row(t) + h * D, d_w);
      }
    }
  });
  for (int64_t c = 0; c < chunks; ++c) ctx.kernels.add(partial.data() + c * D, D, d_weight.data());
}

}  // namespace moe
