#pragma once
// config.json as Hugging Face's transformers writes it, to and from ModelConfig.

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "moe/model/hf_family.h"
#include "moe/tensor/dtype.h"

namespace moe {

// Errors name the key: missing, of another type, out of range, or asking for what we do not compute (scaled RoPE, sliding
// windows, biases, another activation, quantised weights). Keys that change no result are passed over.
Result<ModelConfig> ParseHfConfig(const nlohmann::json& object, const std::string& where);

// The text of config.json; `dtype` is what the tensors beside it have. What only training needs (capacity factor, z-loss) is
// kept in an object "moe_cpp", which other software passes over. Two configs with the same text are the same.
std::string HfConfigText(const ModelConfig& config, DType dtype);

}  // namespace moe
