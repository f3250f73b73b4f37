#pragma once
// Models small enough for a naive twin, and batches to feed them.

#include <cstdint>
#include <numeric>
#include <vector>

#include "moe/base/rng.h"
#include "moe/model/model.h"

namespace moe::test {

// Two layers of four experts, two heads sharing each key; every extent another number. Change what a test is about.
inline ModelConfig TinyMoe() {
  ModelConfig c{.vocab_size = 41, .hidden = 24, .num_heads = 4, .num_kv_heads = 2, .head_width = 6, .context = 32};
  LayerSpec layer{.ffn = FfnKind::kMoe};
  layer.moe.router.num_experts = 4;
  layer.moe.router.top_k = 2;
  layer.moe.expert_width = 16;
  c.layers.assign(2, layer);
  return c;
}

inline ModelConfig TinyDense() {
  ModelConfig c = TinyMoe();
  c.layers.assign(2, LayerSpec{.ffn = FfnKind::kDense, .ffn_width = 32});
  return c;
}

// Weights large enough that every part of the model matters: Initialize's 0.02 would leave attention and experts near zero.
inline void FillParameters(Model& model, uint64_t seed, ExecContext& ctx, double deviation = 0.3) {
  uint64_t stream = 0;
  for (Parameter& parameter : model.parameters().all()) {
    Rng rng(seed, stream++);
    const double mean = parameter.value.shape().size() == 1 ? 1.0 : 0.0;
    for (float& x : parameter.value.span()) x = static_cast<float>(mean + deviation * rng.Normal());
  }
  model.Repack(ctx);
}

// Owns what a StepBatch looks at.
struct TinyBatch {
  std::vector<RowInfo> rows;
  std::vector<int32_t> targets;     // the next token; -1 in the last row of a sequence and in padding
  std::vector<int32_t> logit_rows;  // all rows

  StepBatch step(KvCache* cache = nullptr) const { return {.rows = rows, .logit_rows = logit_rows, .cache = cache}; }
  int64_t num_targets() const {
    return std::accumulate(targets.begin(), targets.end(), int64_t{0}, [](int64_t n, int32_t t) { return n + (t >= 0); });
  }
};

// Random tokens: `lengths` real rows of each sequence, then padding up to the longest of them when `pad`.
inline TinyBatch RandomBatch(const ModelConfig& config, const std::vector<int64_t>& lengths, uint64_t seed, bool pad = false) {
  Rng rng(seed, 77);
  TinyBatch batch;
  int64_t longest = 0;
  for (const int64_t length : lengths) longest = std::max(longest, length);
  for (size_t s = 0; s < lengths.size(); ++s) {
    for (int64_t p = 0; p < (pad ? longest : lengths[s]); ++p) {
      const bool valid = p < lengths[s];
      batch.rows.push_back({.sequence = static_cast<int32_t>(s),
                            .position = static_cast<int32_t>(p),
                            .token_id = valid ? static_cast<int32_t>(rng.Below(config.vocab_size)) : 0,
                            .valid = valid});
      batch.targets.push_back(-1);
      if (valid && p > 0) batch.targets[batch.targets.size() - 2] = batch.rows.back().token_id;
    }
  }
  batch.logit_rows.resize(batch.rows.size());
  std::iota(batch.logit_rows.begin(), batch.logit_rows.end(), 0);
  return batch;
}

}  // namespace moe::test
