// Any bytes as a config.json, or (after a 'P') as a JSON merge patch on a good one: an error in one line, or a config that says
// the same when it is written and read again, and that can be counted.

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "moe/base/check.h"
#include "moe/model/hf_config.h"
#include "moe/model/model.h"
#include "moe/model/presets.h"

using Json = nlohmann::json;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Json good = Json::parse(moe::HfConfigText(moe::PresetConfig("qwen3-30b-a3b").value(), moe::DType::kF32));
  const std::string text(reinterpret_cast<const char*>(data), size);
  const bool patch = text.starts_with('P');
  Json json = Json::parse(text.begin() + (patch ? 1 : 0), text.end(), nullptr, false);
  if (json.is_discarded()) return 0;
  if (patch) {
    Json patched = good;
    patched.merge_patch(json);
    json = patched;
  }
  const auto config = moe::ParseHfConfig(json, "fuzz");
  if (!config) {
    MOE_CHECK(config.error().Message().find('\n') == std::string::npos, "{}", config.error().Message());
    return 0;
  }
  const std::string written = moe::HfConfigText(*config, moe::DType::kF32);
  const auto again = moe::ParseHfConfig(Json::parse(written), "fuzz");
  MOE_CHECK(again.has_value(), "{}", again ? "" : again.error().Message());
  MOE_CHECK(moe::HfConfigText(*again, moe::DType::kF32) == written, "{}", written);
  MOE_CHECK(moe::CountParameters(*config).total >= moe::CountParameters(*config).active);
  MOE_CHECK(moe::TrainingMemory(*config, moe::DType::kBf16, 1).total() > 0);
  MOE_CHECK(moe::CountParameters(moe::DenseTwin(*config, moe::TwinKind::kEqualTotal)).total <=
            moe::CountParameters(*config).total);
  return 0;
}
