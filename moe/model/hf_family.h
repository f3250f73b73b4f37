#pragma once
// The model families of Hugging Face's transformers whose folders we read and write.

#include <cstdint>
#include <span>
#include <string_view>

#include "moe/model/config.h"

namespace moe {

enum class Family : uint8_t {
  kMixtral,   // no QkNorm, all layers MoE, normalised softmax gates
  kOlmoe,     // QkNorm::kWhole, all layers MoE
  kQwen3Moe,  // QkNorm::kPerHead, dense layers between the MoE ones
  kLlama,     // dense, no QkNorm
  kQwen3,     // dense, QkNorm::kPerHead
  kMoeCpp,    // whatever fits none of them: our own keys, see docs/formats/model-folder.md
};

struct FamilyInfo {
  Family family;
  std::string_view model_type, architecture;      // "mixtral", "MixtralForCausalLM"
  double rope_theta, norm_epsilon, balance_loss;  // defaults of the transformers classes, where config.json has none
};

std::span<const FamilyInfo> Families();
const FamilyInfo& InfoOf(Family family);

// The public family that computes exactly what the config says, or kMoeCpp.
Family FamilyOf(const ModelConfig& config);

}  // namespace moe
