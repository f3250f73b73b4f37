#include "moe/model/hf_family.h"

#include <array>

namespace moe {
namespace {

constexpr std::array kFamilies = {
    FamilyInfo{Family::kMixtral, "mixtral", "MixtralForCausalLM", 1e6, 1e-5, 0.001},
    FamilyInfo{Family::kOlmoe, "olmoe", "OlmoeForCausalLM", 1e4, 1e-5, 0.01},
    FamilyInfo{Family::kQwen3Moe, "qwen3_moe", "Qwen3MoeForCausalLM", 1e4, 1e-6, 0.001},
    FamilyInfo{Family::kLlama, "llama", "LlamaForCausalLM", 1e4, 1e-6, 0},
    FamilyInfo{Family::kQwen3, "qwen3", "Qwen3ForCausalLM", 1e4, 1e-6, 0},
    FamilyInfo{Family::kMoeCpp, "moe_cpp", "MoeCppForCausalLM", 1e4, 1e-5, 0},
};

bool SameMoe(const MoeConfig& a, const MoeConfig& b) {
  return a.router == b.router && a.experts() == b.experts() && a.shared_width() == b.shared_width() &&
         a.shared_gate == b.shared_gate;
}

}  // namespace

std::span<const FamilyInfo> Families() {
  return kFamilies;
}
const FamilyInfo& InfoOf(Family family) {
  return kFamilies[static_cast<size_t>(family)];
}

Family FamilyOf(const ModelConfig& config) {
  const LayerSpec *moe = nullptr, *dense = nullptr;
  for (const LayerSpec& layer : config.layers) {
    const LayerSpec*& first = layer.ffn == FfnKind::kMoe ? moe : dense;
    if (first == nullptr) first = &layer;
    const bool same = layer.ffn == FfnKind::kMoe ? SameMoe(layer.moe, first->moe) : layer.ffn_width == first->ffn_width;
    if (!same) return Family::kMoeCpp;
  }
  if (moe == nullptr) {
    if (config.qk_norm == QkNorm::kNone) return Family::kLlama;
    return config.qk_norm == QkNorm::kPerHead ? Family::kQwen3 : Family::kMoeCpp;
  }
  const RouterConfig& router = moe->moe.router;
  const bool plain = AsServed(router) == PlainRouter(router.num_experts, router.top_k, router.normalize);
  if (moe->moe.shared_width() > 0 || !moe->moe.groups.empty() || !plain) return Family::kMoeCpp;
  switch (config.qk_norm) {
    case QkNorm::kNone:
      return dense == nullptr && moe->moe.router.normalize ? Family::kMixtral : Family::kMoeCpp;
    case QkNorm::kWhole:  // OLMoE knows no head_dim
      return dense == nullptr && config.num_heads * config.head_width == config.hidden ? Family::kOlmoe : Family::kMoeCpp;
    case QkNorm::kPerHead:
      return Family::kQwen3Moe;
  }
  return Family::kMoeCpp;
}

}  // namespace moe
