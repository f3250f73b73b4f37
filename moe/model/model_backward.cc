// Forward, loss, and the walk back.

#include <algorithm>

#include "moe/model/model_pass.h"
#include "moe/ops/elementwise.h"
#include "moe/ops/embedding.h"
#include "moe/ops/loss.h"
#include "moe/ops/norm.h"

namespace moe {

void ModelPass::HeadForwardBackward(MatView<const float> x, std::span<const int32_t> targets, float grad_scale,
                                    MatView<float> normed, MatView<float> d_x, std::span<float> loss) const {
  Arena::Scope scope(ctx.arena);
  const int64_t T = x.rows, chunk = std::min(HeadChunkRows(config().vocab_size), T);
  const std::span<const float> weight = model.final_norm_->value.span();
  const MatView<float> logits = Matrix(chunk, config().vocab_size);
  const auto rms = ctx.arena.Alloc<float>(chunk);
  for (int64_t begin = 0; begin < T; begin += chunk) {
    const int64_t n = std::min(chunk, T - begin);
    const auto part = [&](auto span) { return span.subspan(static_cast<size_t>(begin), static_cast<size_t>(n)); };
    const MatView<const float> x_part = x.Rows(begin, n);
    const MatView<float> y = normed.Rows(begin, n), d_part = d_x.Rows(begin, n), logits_part = logits.Rows(0, n);
    const auto rms_part = rms.first(static_cast<size_t>(n));
    RmsNormForward(x_part, weight, config().norm_epsilon, y, rms_part, ctx);
    LinearForward(model.head_, y, logits_part, Epilogue::kStore, ctx);
    CrossEntropy(logits_part, part(targets), grad_scale, part(loss), ctx);
    LinearBackward(model.head_, y, logits_part, d_part, Epilogue::kStore, ctx);
    RmsNormBackward(x_part, weight, rms_part, d_part, d_part, model.final_norm_->grad.span(), ctx);
  }
}

void ModelPass::FfnBackward(const Block& block, LayerSaved& saved, float aux_scale, MatView<float> normed,
                            MatView<float> d_normed, MatView<float> d_x) const {
  ctx.Enter(StepPart::kExperts);
  Arena::Scope scope(ctx.arena);
  const std::span<const float> weight = block.ffn_norm->value.span();
  RmsNormForward(saved.x_mid, weight, config().norm_epsilon, normed, {}, ctx);
  if (block.spec.ffn == FfnKind::kDense) {
    const AnyMat d_hidden = AllocMat(d_x.rows, block.spec.ffn_width, block.dense.down.format(), ctx);
    LinearBackward(block.dense.down, saved.hidden, d_x, d_hidden, Epilogue::kStore, ctx);
    SwigluBackward(saved.gate_up, d_hidden, saved.gate_up, ctx);
    LinearBackward(block.dense.gate_up, normed, saved.gate_up, d_normed, Epilogue::kStore, ctx);
  } else {
    block.moe.Backward(normed, saved.moe, d_x, aux_scale, d_normed, ctx);
  }
  RmsNormBackward(saved.x_mid, weight, saved.ffn_rms, d_normed, d_normed, block.ffn_norm->grad.span(), ctx);
  Add(d_normed, d_x, ctx);
}

void ModelPass::AttentionBackward(const Block& block, const PassRows& rows, LayerSaved& saved, MatView<float> normed,
                                  MatView<float> d_normed, MatView<float> d_x) const {
  ctx.Enter(StepPart::kAttention);
  Arena::Scope scope(ctx.arena);
  const AttentionWeights& weights = block.attention;
  const MatView<float> d_attended = Matrix(d_x.rows, query_width());
  LinearBackward(weights.out, saved.attended, d_x, d_attended, Epilogue::kStore, ctx);

  const HeadsView heads = Heads(block, rows, saved.qkv, nullptr, true);
  const MatView<float> d_qkv = Matrix(d_x.rows, saved.qkv.cols);
  const MatView<float> d_q = d_qkv.Cols(0, query_width()), d_k = d_qkv.Cols(query_width(), kv_width()),
                       d_v = d_qkv.Cols(query_width() + kv_width(), kv_width());
  ZeroPadding(rows, d_qkv);
  moe::AttentionBackward(attention_shape(), heads.q, heads.k, heads.v, Segments(rows, heads, 0, nullptr), saved.attended,
                         saved.log_sum_exp, d_attended, d_q, d_k, d_v, ctx);
  ApplyRope(model.rope_, rows.positions, RopeDirection::kBackward, d_q, ctx);
  ApplyRope(model.rope_, rows.positions, RopeDirection::kBackward, d_k, ctx);
  if (config().qk_norm != QkNorm::kNone) {
    const MatView<float> q = saved.qkv.Cols(0, query_width()), k = saved.qkv.Cols(query_width(), kv_width());
    RmsNormBackward(q, weights.q_norm->value.span(), saved.q_rms, d_q, d_q, weights.q_norm->grad.span(), ctx);
    RmsNormBackward(k, weights.k_norm->value.span(), saved.k_rms, d_k, d_k, weights.k_norm->grad.span(), ctx);
  }
  const std::span<const float> weight = weights.norm->value.span();
  RmsNormForward(saved.x, weight, config().norm_epsilon, normed, {}, ctx);
  LinearBackward(weights.qkv, normed, d_qkv, d_normed, Epilogue::kStore, ctx);
  RmsNormBackward(saved.x, weight, saved.attention_rms, d_normed, d_normed, weights.norm->grad.span(), ctx);
  Add(d_normed, d_x, ctx);
}

Status Model::ForwardBackward(const StepBatch& batch, std::span<const int32_t> targets, float grad_scale, float aux_scale,
                              StepStats* stats, ExecContext& ctx) {
  MOE_CHECK(training_, "a model that only infers has no gradients");
  MOE_CHECK(batch.cache == nullptr, "training reads no cache");
  MOE_CHECK(grad_scale != 0.0f, "gradients scaled by 0");
  const ModelPass pass{*this, ctx};
  Arena::Scope scope(ctx.arena);
  MOE_TRY(const PassRows rows, pass.CheckRows(batch));
  const int64_t T = rows.num_rows();
  MOE_TRY(const std::span<const int32_t> real_targets, pass.CheckTargets(rows, targets));
  const auto saved = ctx.arena.AllocZero<LayerSaved>(static_cast<int64_t>(blocks_.size()));
  const auto loss = ctx.arena.Alloc<float>(T);
  const MatView<float> normed = pass.Matrix(T, config_.hidden), d_normed = pass.Matrix(T, config_.hidden),
                       d_x = pass.Matrix(T, config_.hidden);

  MOE_TRY(const MatView<float> x, pass.Layers(rows, nullptr, normed, saved, stats));
  pass.HeadForwardBackward(x, real_targets, grad_scale, normed, d_x, loss);
  MOE_TRY(pass.AddLoss(loss, real_targets, saved, stats));
  for (size_t l = blocks_.size(); l-- > 0;) {
    pass.FfnBackward(blocks_[l], saved[l], aux_scale, normed, d_normed, d_x);
    pass.AttentionBackward(blocks_[l], rows, saved[l], normed, d_normed, d_x);
  }
  ctx.Enter(StepPart::kOther);
  EmbeddingBackward(rows.ids, d_x, embedding_->grad.mat(), ctx);
  return {};
}

}  // namespace moe
