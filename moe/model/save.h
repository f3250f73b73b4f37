#pragma once

#include <string>

#include "moe/model/model.h"

namespace moe {

// Writes config.json and model.safetensors into an existing folder, each atomically, tensor by tensor, with checksums. dtype
// kF32 or kBf16 (masters rounded). The model has its masters (checked). The same model gives the same bytes.
Status SaveModel(const Model& model, const std::string& folder, DType dtype);

}  // namespace moe
