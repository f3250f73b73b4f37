// The walk forward: embedding, layers, head. Pre-norm blocks: x += attention(norm(x)); x += ffn(norm(x)).

#include <algorithm>
#include <cmath>
#include <cstring>

#include "moe/base/rng.h"
#include "moe/model/model_pass.h"
#include "moe/ops/chunks.h"
#include "moe/ops/elementwise.h"
#include "moe/ops/embedding.h"
#include "moe/ops/loss.h"
#include "moe/ops/norm.h"

namespace moe {
namespace {

void CopyRows(MatView<const float> from, MatView<float> to, ExecContext& ctx) {
  ForEachChunk(from.rows, RowsPerChunk(from.cols), ctx, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) std::memcpy(to.row(t), from.row(t), static_cast<size_t>(from.cols) * sizeof(float));
  });
}

// Means weighted by tokens, sums added.
void AddStats(const RouterAux& aux, int64_t num_dropped, LayerStats* stats) {
  stats->tokens_per_expert.resize(aux.tokens_per_expert.size(), 0);
  for (size_t e = 0; e < aux.tokens_per_expert.size(); ++e) {
    stats->tokens_per_expert[e] += aux.tokens_per_expert[e];
    stats->num_slots += aux.tokens_per_expert[e];
  }
  const int64_t tokens = stats->num_tokens + aux.num_tokens;
  const double weight = tokens == 0 ? 0 : static_cast<double>(aux.num_tokens) / static_cast<double>(tokens);
  stats->balance_loss += weight * (aux.balance_loss - stats->balance_loss);
  stats->z_loss += weight * (aux.z_loss - stats->z_loss);
  stats->entropy += weight * (aux.entropy - stats->entropy);
  for (const auto& [name, loss] : kRouterLosses) stats->losses.*loss += weight * (aux.losses.*loss - stats->losses.*loss);
  stats->gate_sum += aux.gate_sum;
  stats->largest_logit = std::max(stats->largest_logit, aux.largest_logit);
  stats->num_tokens = tokens;
  stats->num_dropped += num_dropped;
}

}  // namespace

AttentionShape ModelPass::attention_shape() const {
  const ModelConfig& c = config();
  return {.num_heads = c.num_heads,
          .num_kv_heads = c.num_kv_heads,
          .head_width = c.head_width,
          .scale = 1.0f / std::sqrt(static_cast<float>(c.head_width)),
          .format = model.format_};
}

int64_t HeadChunkRows(int64_t vocab_size) {
  constexpr int64_t kMaxRows = 512, kMinRows = 64, kLogits = int64_t{1} << 22;  // 16 MiB
  return std::clamp(kLogits / vocab_size / kMinRows * kMinRows, kMinRows, kMaxRows);
}

Result<PassRows> ModelPass::CheckRows(const StepBatch& batch) const {
  const auto T = static_cast<int64_t>(batch.rows.size());
  const auto ids = ctx.arena.Alloc<int32_t>(T), positions = ctx.arena.Alloc<int32_t>(T);
  const auto valid = ctx.arena.Alloc<uint8_t>(T);
  const auto segments = ctx.arena.Alloc<Segment>(T);
  size_t num_segments = 0;
  bool padding = false;
  for (int64_t t = 0; t < T; ++t) {
    const RowInfo& row = batch.rows[static_cast<size_t>(t)];
    const auto at = static_cast<size_t>(t);
    valid[at] = row.valid;
    ids[at] = row.valid ? row.token_id : 0;
    positions[at] = row.valid ? row.position : 0;
    padding = padding || !row.valid;
    if (!row.valid) continue;
    if (row.token_id < 0 || row.token_id >= config().vocab_size) {
      return Err(fmt::format("row {}", t), "got token {}, expected one of the {} of the vocabulary", row.token_id,
                 config().vocab_size);
    }
    if (row.position < 0 || row.position >= config().context) {
      return Err(fmt::format("row {}", t), "got position {}, expected less than the context length {}", row.position,
                 config().context);
    }
    const bool adjacent = t > 0 && valid[at - 1] && num_segments > 0 && segments[num_segments - 1].sequence == row.sequence;
    if (adjacent) {
      MOE_CHECK(row.position == positions[at - 1] + 1, "row {}: position {} after {}", t, row.position, positions[at - 1]);
      ++segments[num_segments - 1].num_rows;
      continue;
    }
    segments[num_segments++] = {t, 1, row.sequence, row.position};
    if (batch.cache == nullptr) {
      MOE_CHECK(row.position == 0, "row {}: a sequence without a cache begins at position {}", t, row.position);
    } else {
      MOE_CHECK(row.sequence >= 0 && row.sequence < batch.cache->num_slots, "row {}: slot {} of {}", t, row.sequence,
                batch.cache->num_slots);
    }
  }
  if (batch.cache != nullptr) {
    MOE_CHECK(batch.cache->width == kv_width() && batch.cache->k.size() == config().layers.size(),
              "a cache of {} layers of width {}, expected {} of {}", batch.cache->k.size(), batch.cache->width,
              config().layers.size(), kv_width());
    for (const Segment& s : segments.first(num_segments)) {
      if (s.first_position + s.num_rows > batch.cache->capacity) {
        return Err(fmt::format("row {}", s.row_begin + s.num_rows - 1), "got position {}, expected less than the cache's {}",
                   s.first_position + s.num_rows - 1, batch.cache->capacity);
      }
    }
  }
  const auto sequence_begin = ctx.arena.Alloc<int32_t>(static_cast<int64_t>(num_segments) + 1);
  for (size_t i = 1; i < num_segments; ++i) sequence_begin[i] = static_cast<int32_t>(segments[i].row_begin);
  sequence_begin.front() = 0, sequence_begin.back() = static_cast<int32_t>(T);
  return PassRows{.ids = ids,
                  .positions = positions,
                  .valid = padding ? std::span<const uint8_t>(valid) : std::span<const uint8_t>(),
                  .segments = segments.first(num_segments),
                  .sequence_begin = num_segments > 0 ? sequence_begin : std::span<int32_t>(),
                  .key = batch.key,
                  .router_logits = batch.router_logits,
                  .forced_experts = batch.forced_experts};
}

Result<std::span<const int32_t>> ModelPass::CheckTargets(const PassRows& rows, std::span<const int32_t> targets) const {
  MOE_CHECK(targets.size() == rows.ids.size(), "{} targets for {} rows", targets.size(), rows.ids.size());
  const auto out = ctx.arena.Alloc<int32_t>(rows.num_rows());
  for (size_t t = 0; t < targets.size(); ++t) {
    if (targets[t] < -1 || targets[t] >= config().vocab_size) {
      return Err(fmt::format("row {}", t), "got target {}, expected one of the {} of the vocabulary", targets[t],
                 config().vocab_size);
    }
    out[t] = rows.valid.empty() || rows.valid[t] ? targets[t] : -1;
  }
  return out;
}

HeadsView ModelPass::Heads(const Block& block, const PassRows& rows, MatView<float> qkv, LayerSaved* saved,
                           bool already_rotated) const {
  const auto split = [&](MatView<float> m) {
    return HeadsView{m.Cols(0, query_width()), m.Cols(query_width(), kv_width()),
                     m.Cols(query_width() + kv_width(), kv_width())};
  };
  HeadsView heads = split(qkv);
  if (config().qk_norm != QkNorm::kNone) {
    const HeadsView raw = heads;
    heads = split(Matrix(qkv.rows, qkv.cols));
    const float epsilon = config().norm_epsilon;
    const auto rms = [&](std::span<float> LayerSaved::*span) { return saved ? saved->*span : std::span<float>(); };
    RmsNormForward(raw.q, block.attention.q_norm->value.span(), epsilon, heads.q, rms(&LayerSaved::q_rms), ctx);
    RmsNormForward(raw.k, block.attention.k_norm->value.span(), epsilon, heads.k, rms(&LayerSaved::k_rms), ctx);
    CopyRows(raw.v, heads.v, ctx);  // keys and values of a segment share their stride
  } else if (already_rotated) {
    return heads;
  }
  ApplyRope(model.rope_, rows.positions, RopeDirection::kForward, heads.q, ctx);
  ApplyRope(model.rope_, rows.positions, RopeDirection::kForward, heads.k, ctx);
  return heads;
}

std::span<AttentionSegment> ModelPass::Segments(const PassRows& rows, const HeadsView& heads, int64_t layer,
                                                KvCache* cache) const {
  const auto out = ctx.arena.Alloc<AttentionSegment>(static_cast<int64_t>(rows.segments.size()));
  for (size_t i = 0; i < out.size(); ++i) {
    const Segment& s = rows.segments[i];
    AttentionSegment& segment = out[i] = {.row_begin = s.row_begin, .num_rows = s.num_rows, .first_position = s.first_position};
    if (cache == nullptr) {
      segment.k = heads.k.row(s.row_begin), segment.v = heads.v.row(s.row_begin), segment.kv_stride = heads.k.stride;
      continue;
    }
    const auto bytes = static_cast<size_t>(cache->width) * sizeof(float);
    for (int64_t j = 0; j < s.num_rows; ++j) {
      std::memcpy(cache->key(layer, s.sequence, s.first_position + j), heads.k.row(s.row_begin + j), bytes);
      std::memcpy(cache->value(layer, s.sequence, s.first_position + j), heads.v.row(s.row_begin + j), bytes);
    }
    segment.k = cache->key(layer, s.sequence, 0), segment.v = cache->value(layer, s.sequence, 0);
    segment.kv_stride = cache->width;
  }
  return out;
}

void ModelPass::AttentionForward(const Block& block, int64_t layer, const PassRows& rows, KvCache* cache, MatView<float> normed,
                                 MatView<float> x, MatView<float> x_out, LayerSaved* saved) const {
  ctx.Enter(StepPart::kAttention);
  const int64_t T = rows.num_rows(), H = config().num_heads, G = config().num_kv_heads;
  if (saved != nullptr) {
    saved->x = x;
    saved->attention_rms = ctx.arena.Alloc<float>(T);
    saved->qkv = Matrix(T, query_width() + 2 * kv_width());
    if (config().qk_norm != QkNorm::kNone) {
      const bool whole = config().qk_norm == QkNorm::kWhole;
      saved->q_rms = ctx.arena.Alloc<float>(whole ? T : T * H), saved->k_rms = ctx.arena.Alloc<float>(whole ? T : T * G);
    }
    saved->attended = Matrix(T, query_width());
    saved->log_sum_exp = Matrix(T, H);
  }
  Arena::Scope scope(ctx.arena);
  const MatView<float> qkv = saved ? saved->qkv : Matrix(T, query_width() + 2 * kv_width());
  const MatView<float> attended = saved ? saved->attended : Matrix(T, query_width());
  RmsNormForward(x, block.attention.norm->value.span(), config().norm_epsilon, normed,
                 saved ? saved->attention_rms : std::span<float>(), ctx);
  LinearForward(block.attention.qkv, normed, qkv, Epilogue::kStore, ctx);
  const HeadsView heads = Heads(block, rows, qkv, saved, false);
  ZeroPadding(rows, attended);
  moe::AttentionForward(attention_shape(), heads.q, Segments(rows, heads, layer, cache), attended,
                        saved ? saved->log_sum_exp : MatView<float>(), ctx);
  if (saved != nullptr) CopyRows(x, x_out, ctx);
  LinearForward(block.attention.out, attended, x_out, Epilogue::kAccumulate, ctx);
}

Status ModelPass::FfnForward(const Block& block, const PassRows& rows, MatView<float> normed, MatView<float> x,
                             MatView<float> x_out, LayerSaved* saved, LayerStats* stats) const {
  ctx.Enter(StepPart::kExperts);
  const int64_t T = rows.num_rows(), F = block.spec.ffn_width;
  if (saved != nullptr) {
    saved->x_mid = x;
    saved->ffn_rms = ctx.arena.Alloc<float>(T);
  }
  RmsNormForward(x, block.ffn_norm->value.span(), config().norm_epsilon, normed, saved ? saved->ffn_rms : std::span<float>(),
                 ctx);
  if (block.spec.ffn == FfnKind::kDense) {
    const DType format = block.dense.down.format();
    if (saved != nullptr) saved->gate_up = AllocMat(T, 2 * F, format, ctx), saved->hidden = AllocMat(T, F, format, ctx);
    Arena::Scope scope(ctx.arena);
    const AnyMat hidden = saved ? saved->hidden : AllocMat(T, F, format, ctx);
    Gemm({.a = normed,
          .weight = &block.dense.gate_up.forward(),
          .epilogue = Epilogue::kSwiglu,
          .c = hidden,
          .pre_activation = saved ? saved->gate_up : AnyMat()},
         ctx);
    if (saved != nullptr) CopyRows(x, x_out, ctx);
    LinearForward(block.dense.down, hidden, x_out, Epilogue::kAccumulate, ctx);
    return {};
  }
  RouterAux aux;
  int64_t num_dropped = 0;
  LayerTokens tokens{.valid = rows.valid,
                     .ids = rows.ids,
                     .sequence_begin = rows.sequence_begin,
                     .key = MixBits(rows.key ^ MixBits(static_cast<uint64_t>(block.layer)))};
  if (!rows.forced_experts.empty()) tokens.forced = rows.forced_experts[static_cast<size_t>(block.layer)];
  if (!rows.router_logits.empty()) tokens.logits_out = rows.router_logits[static_cast<size_t>(block.layer)];
  if (saved != nullptr && stats != nullptr && block.spec.moe.router.global_loss > 0) {
    const auto before = ctx.arena.Alloc<int64_t>(static_cast<int64_t>(stats->tokens_per_expert.size()));
    std::ranges::copy(stats->tokens_per_expert, before.begin());
    tokens.tokens_before = before;
  }
  if (saved != nullptr) {  // y + x here, x + y below: the same bits
    MOE_TRY(block.moe.Forward(normed, tokens, x_out, &saved->moe, &aux, &num_dropped, ctx));
    Add(x, x_out, ctx);
    if (stats != nullptr) {
      AddStats(aux, num_dropped, stats);
      stats->capacity_factor = block.moe.training_capacity_factor();
    }
    return {};
  }
  Arena::Scope scope(ctx.arena);
  const MatView<float> y = Matrix(T, D());
  MOE_TRY(block.moe.Forward(normed, tokens, y, nullptr, &aux, &num_dropped, ctx));
  Add(y, x_out, ctx);
  if (stats != nullptr) AddStats(aux, num_dropped, stats);
  return {};
}

Result<MatView<float>> ModelPass::Layers(const PassRows& rows, KvCache* cache, MatView<float> normed,
                                         std::span<LayerSaved> saved, StepStats* stats) const {
  const int64_t T = rows.num_rows();
  MatView<float> x = Matrix(T, D());
  EmbeddingForward(model.embedding_->value.mat(), rows.ids, x, ctx);
  if (stats != nullptr) stats->layers.resize(model.blocks_.size());
  const auto next = [&] { return saved.empty() ? x : Matrix(T, D()); };  // when saving, every stage of the stream is kept
  for (size_t l = 0; l < model.blocks_.size(); ++l) {
    const Block& block = model.blocks_[l];
    LayerSaved* layer_saved = saved.empty() ? nullptr : &saved[l];
    MatView<float> x_out = next();
    AttentionForward(block, static_cast<int64_t>(l), rows, cache, normed, x, x_out, layer_saved);
    x = x_out, x_out = next();
    const Status status = FfnForward(block, rows, normed, x, x_out, layer_saved, stats ? &stats->layers[l] : nullptr);
    if (!status) return Err(fmt::format("layer {}", l), "{} {}", status.error().where, status.error().what);
    x = x_out;
  }
  ctx.Enter(StepPart::kOther);
  return x;
}

void ModelPass::ZeroPadding(const PassRows& rows, MatView<float> m) const {
  for (size_t t = 0; t < rows.valid.size(); ++t) {
    if (!rows.valid[t]) std::fill_n(m.row(static_cast<int64_t>(t)), m.cols, 0.0f);
  }
}

Result<MatView<float>> Model::Forward(const StepBatch& batch, StepStats* stats, ExecContext& ctx) const {
  const ModelPass pass{*this, ctx};
  const auto num_logits = static_cast<int64_t>(batch.logit_rows.size());
  const MatView<float> logits = pass.Matrix(num_logits, config_.vocab_size);
  Arena::Scope scope(ctx.arena);
  MOE_TRY(const PassRows rows, pass.CheckRows(batch));
  const MatView<float> normed = pass.Matrix(rows.num_rows(), config_.hidden);
  MOE_TRY(const MatView<float> x, pass.Layers(rows, batch.cache, normed, {}, stats));
  const MatView<float> asked = pass.Matrix(num_logits, config_.hidden);
  for (int64_t i = 0; i < num_logits; ++i) {
    const int64_t row = batch.logit_rows[static_cast<size_t>(i)];
    MOE_CHECK(row >= 0 && row < x.rows, "logit row {} of {}", row, x.rows);
    std::memcpy(asked.row(i), x.row(row), static_cast<size_t>(x.cols) * sizeof(float));
  }
  RmsNormForward(asked, final_norm_->value.span(), config_.norm_epsilon, asked, {}, ctx);
  LinearForward(head_, asked, logits, Epilogue::kStore, ctx);
  return logits;
}

Status Model::Evaluate(const StepBatch& batch, std::span<const int32_t> targets, StepStats* stats,
                       std::span<float> loss_per_row, ExecContext& ctx) const {
  const ModelPass pass{*this, ctx};
  Arena::Scope scope(ctx.arena);
  MOE_TRY(const PassRows rows, pass.CheckRows(batch));
  const int64_t T = rows.num_rows(), chunk = HeadChunkRows(config_.vocab_size);
  MOE_CHECK(loss_per_row.empty() || static_cast<int64_t>(loss_per_row.size()) == T, "{} losses for {} rows",
            loss_per_row.size(), T);
  MOE_TRY(const std::span<const int32_t> real_targets, pass.CheckTargets(rows, targets));
  const MatView<float> normed = pass.Matrix(T, config_.hidden);
  MOE_TRY(const MatView<float> x, pass.Layers(rows, batch.cache, normed, {}, stats));
  const MatView<float> logits = pass.Matrix(std::min(chunk, T), config_.vocab_size);
  const auto loss = ctx.arena.Alloc<float>(T);
  for (int64_t begin = 0; begin < T; begin += chunk) {
    const int64_t n = std::min(chunk, T - begin);
    const auto part = real_targets.subspan(static_cast<size_t>(begin), static_cast<size_t>(n));
    RmsNormForward(x.Rows(begin, n), final_norm_->value.span(), config_.norm_epsilon, normed.Rows(0, n), {}, ctx);
    LinearForward(head_, normed.Rows(0, n), logits.Rows(0, n), Epilogue::kStore, ctx);
    CrossEntropy(logits.Rows(0, n), part, 0.0f, loss.subspan(static_cast<size_t>(begin), static_cast<size_t>(n)), ctx);
  }
  MOE_TRY(pass.AddLoss(loss, real_targets, {}, stats));
  std::copy(loss.begin(), loss_per_row.empty() ? loss.begin() : loss.end(), loss_per_row.begin());
  return {};
}

Status ModelPass::AddLoss(std::span<const float> loss, std::span<const int32_t> targets, std::span<const LayerSaved> saved,
                          StepStats* stats) const {
  for (size_t t = 0; t < loss.size(); ++t) {
    if (targets[t] < 0) continue;
    if (!std::isfinite(loss[t])) return NotFinite(static_cast<int64_t>(t), loss[t], saved);
    if (stats == nullptr) continue;
    stats->loss_sum += static_cast<double>(loss[t]);
    ++stats->num_targets;
  }
  return {};
}

tl::unexpected<Error> ModelPass::NotFinite(int64_t row, float loss, std::span<const LayerSaved> saved) const {
  const auto finite = [&](MatView<const float> m) {
    return std::all_of(m.row(row), m.row(row) + m.cols, [](float v) { return std::isfinite(v); });
  };
  for (size_t l = 0; l < saved.size(); ++l) {
    if (!finite(saved[l].x) && l == 0) return Err("embedding", "got a value that is not finite for row {}", row);
    const bool attention = finite(saved[l].x_mid);
    if (attention && (l + 1 == saved.size() || finite(saved[l + 1].x))) continue;
    return Err(fmt::format("layer {}", l), "got a value that is not finite out of its {}, row {}",
               attention ? "FFN" : "attention", row);
  }
  return Err("loss", "got {} for row {}, expected a finite number", loss, row);
}

}  // namespace moe
