#include "moe/model/config.h"

#include <cmath>

namespace moe {
namespace {

int64_t DenseFfnValues(int64_t D, int64_t F) {
  return 3 * D * F;  // gate, up, down
}

Status ValidateLayer(const LayerSpec& layer, const std::string& where) {
  if (layer.ffn == FfnKind::kMoe) return Validate(layer.moe, where);
  if (layer.ffn_width <= 0 || layer.ffn_width % 16 != 0) {
    return Err(where, "got FFN width {}, expected a positive multiple of 16", layer.ffn_width);
  }
  return {};
}

}  // namespace

bool ModelConfig::has_experts() const {
  for (const LayerSpec& layer : layers) {
    if (layer.ffn == FfnKind::kMoe) return true;
  }
  return false;
}

Status Validate(const ModelConfig& config, const std::string& where) {
  // Generous ceilings: what is above them is a corrupt file, and products of two of them stay far from overflow.
  constexpr int64_t kMaxWidth = int64_t{1} << 24, kMaxLayers = 4096, kMaxRopeTable = int64_t{1} << 29;
  const auto positive = [&](const char* name, int64_t value) -> Status {
    if (value < 1 || value > kMaxWidth) return Err(where, "got {} {}, expected 1 to {}", name, value, kMaxWidth);
    return {};
  };
  MOE_TRY(positive("vocabulary size", config.vocab_size));
  MOE_TRY(positive("hidden size", config.hidden));
  MOE_TRY(positive("attention heads", config.num_heads));
  MOE_TRY(positive("key-value heads", config.num_kv_heads));
  MOE_TRY(positive("head width", config.head_width));
  MOE_TRY(positive("context", config.context));
  if (config.num_heads % config.num_kv_heads != 0) {
    return Err(where, "got {} attention heads, expected a multiple of the {} key-value heads", config.num_heads,
               config.num_kv_heads);
  }
  if (config.head_width % 2 != 0) return Err(where, "got head width {}, expected an even number", config.head_width);
  MOE_TRY(positive("query width", config.num_heads * config.head_width));
  if (config.context * config.head_width >= kMaxRopeTable) {
    return Err(where, "got context {} of heads {} wide, expected a product below {}", config.context, config.head_width,
               kMaxRopeTable);
  }
  if (!std::isfinite(config.rope_theta) || config.rope_theta <= 0) {
    return Err(where, "got rope theta {}, expected a positive number", config.rope_theta);
  }
  if (!std::isfinite(config.norm_epsilon) || config.norm_epsilon < 0) {
    return Err(where, "got norm epsilon {}, expected a number that is not negative", config.norm_epsilon);
  }
  for (const auto& [name, id] : {std::pair{"bos", config.bos_id}, std::pair{"eos", config.eos_id}}) {
    if (id < -1 || id >= config.vocab_size) {
      return Err(where, "got {} token {}, expected one of the {} of the vocabulary", name, id, config.vocab_size);
    }
  }
  if (config.layers.empty() || config.layers.size() > size_t{kMaxLayers}) {
    return Err(where, "got {} layers, expected 1 to {}", config.layers.size(), kMaxLayers);
  }
  for (size_t l = 0; l < config.layers.size(); ++l) {
    MOE_TRY(ValidateLayer(config.layers[l], fmt::format("{}: layer {}", where, l)));
  }
  return {};
}

ParameterCount CountParameters(const ModelConfig& config) {
  const int64_t D = config.hidden, P = config.head_width, H = config.num_heads, G = config.num_kv_heads;
  const auto num_layers = static_cast<int64_t>(config.layers.size());
  ParameterCount count;
  count.embedding = config.vocab_size * D;
  count.head = config.tie_embeddings ? 0 : config.vocab_size * D;
  count.attention = num_layers * ((H + 2 * G) * P * D + D * H * P);
  count.norms = (2 * num_layers + 1) * D;
  if (config.qk_norm == QkNorm::kPerHead) count.norms += num_layers * 2 * P;
  if (config.qk_norm == QkNorm::kWhole) count.norms += num_layers * (H + G) * P;
  int64_t idle = 0;  // experts a token did not choose
  for (const LayerSpec& layer : config.layers) {
    if (layer.ffn == FfnKind::kDense) {
      count.dense_ffn += DenseFfnValues(D, layer.ffn_width);
      continue;
    }
    const MoeConfig& moe = layer.moe;
    const int64_t expert = DenseFfnValues(D, moe.expert_width);
    count.router += moe.router.num_experts * D;
    count.experts += moe.router.num_experts * expert;
    count.shared_experts += DenseFfnValues(D, moe.shared_width());
    idle += (moe.router.num_experts - moe.router.top_k) * expert;
  }
  count.total = count.embedding + count.head + count.attention + count.norms + count.router + count.experts +
                count.shared_experts + count.dense_ffn;
  count.active = count.total - idle - (config.tie_embeddings ? 0 : count.embedding - D);
  return count;
}

ModelConfig DenseTwin(const ModelConfig& config, TwinKind kind) {
  ModelConfig twin = config;
  for (LayerSpec& layer : twin.layers) {
    if (layer.ffn == FfnKind::kDense) continue;
    const MoeConfig& moe = layer.moe;
    const int64_t experts = kind == TwinKind::kEqualActive ? moe.router.top_k : moe.router.num_experts;
    layer = LayerSpec{.ffn = FfnKind::kDense, .ffn_width = experts * moe.expert_width + moe.shared_width()};
  }
  return twin;
}

}  // namespace moe
