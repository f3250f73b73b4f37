#pragma once
// config.json as Hugging Face's transformers writes it, to and from ModelConfig.

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "moe/model/config.h"
#include "moe/tensor/dtype.h"

namespace moe {

// Families whose files we read and write.
enum class Family : uint8_t {
  kMixtral,   // no QkNorm, all layers MoE, normalised softmax gates
  kOlmoe,     // QkNorm::kWhole, all layers MoE
  kQwen3Moe,  // QkNorm::kPerHead, dense layers between the MoE ones
  kLlama,     // dense, no QkNorm
  kQwen3,     // dense, QkNorm::kPerHead
  kMoeCpp,    // whatever fits none of them: our own keys, see docs/formats/model_folder.md
};

// The public family that computes exactly what the config says, or kMoeCpp.
Family FamilyOf(const ModelConfig& config);
std::string_view ModelType(Family family);     // "mixtral"
std::string_view Architecture(Family family);  // "MixtralForCausalLM"

// Errors name the key: missing, of another type, out of range, or asking for what we do not compute (scaled RoPE, sliding
// windows, biases, another activation, quantised weights). Keys that change no result are passed over.
Result<ModelConfig> ParseHfConfig(const nlohmann::json& json, const std::string& where);

// The text of config.json; `dtype` is what the tensors beside it have. What only training needs (capacity factor, z-loss) is
// kept in an object "moe_cpp", which other software passes over. Two configs with the same text are the same.
std::string HfConfigText(const ModelConfig& config, DType dtype);

}  // namespace moe
