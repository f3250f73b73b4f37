#include "moe/ops/loss.h"

#include <cmath>

#include "moe/ops/chunks.h"

namespace moe {

void CrossEntropy(MatView<float> logits, std::span<const int32_t> targets, float grad_scale, std::span<float> loss,
                  ExecContext& ctx) {
  const int64_t T = logits.rows, V = logits.cols;
  MOE_CHECK(static_cast<int64_t>(targets.size()) == T && static_cast<int64_t>(loss.size()) == T,
            "logits [{},{}] targets [{}] loss [{}]", T, V, targets.size(), loss.size());
  for (const int32_t target : targets) MOE_CHECK(target >= -1 && target < V, "target {} of {}", target, V);
  const bool with_grad = grad_scale != 0.0f;
  Arena::Scope scope(ctx.arena);
  const auto scratch = ctx.arena.Alloc<float>(with_grad ? 0 : V * ctx.pool.num_threads());
  const KernelTable& k = ctx.kernels;
  ForEachChunk(T, RowsPerChunk(V), ctx, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t t = begin; t < end; ++t) {
      float* x = logits.row(t);
      const int32_t target = targets[static_cast<size_t>(t)];
      float& row_loss = loss[static_cast<size_t>(t)];
      if (target < 0) {
        row_loss = 0.0f;
        if (with_grad) std::fill_n(x, V, 0.0f);
        continue;
      }
      const float max = k.max(x, V), x_target = x[target];
      const float sum = k.exp_sum(x, max, V, with_grad ? x : scratch.data() + thread * V);
      // log sum exp(x) - x_target; the max is taken off first, so that nothing cancels in float32
      row_loss = static_cast<float>(std::log(static_cast<double>(sum)) + (static_cast<double>(max) - x_target));
      if (with_grad) {
        k.scale(grad_scale / sum, V, x);
        x[target] -= grad_scale;
      }
    }
  });
}

}  // namespace moe
