#include "moe/model/config.h"

#include <algorithm>
#include <cmath>

namespace moe {
namespace {

int64_t DenseFfnValues(int64_t D, int64_t F) {
  return 3 * D * F;  // gate, up, down
}

// Generous ceilings: what is above them is a corrupt file, and no count below overflows.
constexpr int64_t kMaxWidth = int64_t{1} << 24, kMaxExperts = int64_t{1} << 20, kMaxLayers = 4096;
constexpr int64_t kMaxRopeTable = int64_t{1} << 29;
constexpr double kMaxParameters = 1e15;

Status ValidateMoe(const MoeConfig& moe, const std::string& where) {
  const auto at_most = [&](const char* name, int64_t value, int64_t max) -> Status {
    if (value > max) return Err(where, "got {} {}, expected at most {}", name, value, max);
    return {};
  };
  MOE_TRY(at_most("experts", moe.router.num_experts, kMaxExperts));
  MOE_TRY(at_most("expert width", moe.expert_width, kMaxWidth));
  for (const ExpertGroup& group : moe.groups) MOE_TRY(at_most("expert width", group.spec.width, kMaxWidth));
  MOE_TRY(at_most("shared experts", moe.num_shared_experts, kMaxExperts));
  MOE_TRY(at_most("shared expert width", moe.shared_expert_width, kMaxWidth));
  MOE_TRY(Validate(moe, where));
  return at_most("shared experts' width", moe.shared_width(), kMaxWidth);
}

Status ValidateLayer(const LayerSpec& layer, const std::string& where) {
  if (layer.ffn == FfnKind::kMoe) {
    const RouterConfig& router = layer.moe.router;
    if (router.selection == RouterSelection::kExpertChoice && !router.allow_noncausal) {
      return Err(where + ": selection",
                 "got expert_choice, expected another: experts that choose among all tokens see later ones, which a model that "
                 "predicts the next token must not; allow_noncausal = true allows it");
    }
    return ValidateMoe(layer.moe, where);
  }
  if (layer.ffn_width > kMaxWidth) return Err(where, "got FFN width {}, expected at most {}", layer.ffn_width, kMaxWidth);
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
  const auto D = static_cast<double>(config.hidden);
  double parameters = static_cast<double>(config.vocab_size) * D;
  for (size_t l = 0; l < config.layers.size(); ++l) {
    const LayerSpec& layer = config.layers[l];
    MOE_TRY(ValidateLayer(layer, fmt::format("{}: layer {}", where, l)));
    parameters += 4 * D * static_cast<double>(config.num_heads * config.head_width);
    const bool dense = layer.ffn == FfnKind::kDense;
    parameters += 3 * D * static_cast<double>(dense ? layer.ffn_width : layer.moe.shared_width());
    if (dense) continue;
    for (const ExpertGroup& group : layer.moe.experts()) {
      parameters += static_cast<double>(group.count) * RoughValuesOf(group.spec, config.hidden);
    }
  }
  if (parameters > kMaxParameters) {
    return Err(where, "got {:.3g} parameters, expected at most {:g}", parameters, kMaxParameters);
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
    count.router += NumGateValues(moe.router, D) + (moe.router.selects_by_bias() ? moe.router.num_experts : 0);
    count.experts += ExpertValues(moe, D);
    count.shared_experts += DenseFfnValues(D, moe.shared_width()) + (moe.shared_gate ? D : 0);
    idle += ExpertValues(moe, D) - ActiveExpertValues(moe, D);
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
    const int64_t values =
        kind == TwinKind::kEqualActive ? ActiveExpertValues(moe, config.hidden) : ExpertValues(moe, config.hidden);
    const int64_t step = DenseFfnValues(config.hidden, 16), width = (values + step / 2) / step * 16 + moe.shared_width();
    layer = LayerSpec{.ffn = FfnKind::kDense, .ffn_width = std::max<int64_t>(16, width)};
  }
  return twin;
}

}  // namespace moe
