#include "moe/ops/norm.h"

#include "moe/ops/chunks.h"

namespace moe {

void RmsNormForward(MatView<const float> x, std::span<const float> weight, float epsilon, MatView<float> y,
                    std::span<float> inv_rms, ExecContext& ctx) {
  const int64_t T = x.rows, D = x.cols;
  MOE_CHECK(static_cast<int64_t>(weight.size()) == D && y.rows == T && y.cols == D, "x [{},{}] weight [{}] y [{},{}]", T, D,
            weight.size(), y.rows, y.cols);
  MOE_CHECK(inv_rms.empty() || static_cast<int64_t>(inv_rms.size()) == T, "inv_rms [{}] for {} rows", inv_rms.size(), T);
  ForEachChunk(T, RowsPerChunk(D), ctx, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const float inv = ctx.kernels.rms_norm(x.row(t), weight.data(), D, epsilon, y.row(t));
      if (!inv_rms.empty()) inv_rms[static_cast<size_t>(t)] = inv;
    }
  });
}

void RmsNormBackward(MatView<const float> x, std::span<const float> weight, std::span<const float> inv_rms,
                     MatView<const float> d_y, MatView<float> d_x, std::span<float> d_weight, ExecContext& ctx) {
  const int64_t T = x.rows, D = x.cols;
  MOE_CHECK(static_cast<int64_t>(weight.size()) == D && static_cast<int64_t>(d_weight.size()) == D,
            "weight [{}] d_weight [{}], expected [{}]", weight.size(), d_weight.size(), D);
  MOE_CHECK(static_cast<int64_t>(inv_rms.size()) == T, "inv_rms [{}] for {} rows", inv_rms.size(), T);
  MOE_CHECK(d_y.rows == T && d_y.cols == D && d_x.rows == T && d_x.cols == D, "d_y [{},{}] d_x [{},{}], expected [{},{}]",
            d_y.rows, d_y.cols, d_x.rows, d_x.cols, T, D);
  // d_weight sums over rows: each chunk by itself, then the chunks in order.
  constexpr int64_t kRows = 64;
  Arena::Scope scope(ctx.arena);
  const int64_t chunks = CeilDiv(T, kRows);
  const auto partial = ctx.arena.Alloc<float>(chunks * D);
  ForEachChunk(T, kRows, ctx, [&](int64_t begin, int64_t end, int) {
    float* d_w = partial.data() + begin / kRows * D;
    std::fill_n(d_w, D, 0.0f);
    for (int64_t t = begin; t < end; ++t) {
      ctx.kernels.rms_norm_backward(x.row(t), weight.data(), inv_rms[static_cast<size_t>(t)], d_y.row(t), D, d_x.row(t), d_w);
    }
  });
  for (int64_t c = 0; c < chunks; ++c) ctx.kernels.add(partial.data() + c * D, D, d_weight.data());
}

}  // namespace moe
