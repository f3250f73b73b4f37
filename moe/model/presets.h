#pragma once
// Public models by name, and a shape to measure: shapes only. Left out is what this program cannot compute exactly (DeepSeek's
// latent attention, gpt-oss's attention sinks).

#include <string>
#include <string_view>
#include <vector>

#include "moe/model/config.h"

namespace moe {

std::vector<std::string_view> PresetNames();
// An unknown name is an error (wrong usage) that lists the names, nearest first.
Result<ModelConfig> PresetConfig(const std::string& name);

}  // namespace moe
