#include "moe/model/presets.h"

#include <algorithm>
#include <array>

#include "moe/base/edit_distance.h"
#include "moe/files/json.h"

namespace moe {
namespace {

struct Preset {
  std::string_view name;
  int64_t layers;
  ModelConfig (*make)();
  int64_t experts, top_k, expert_width;
  bool normalize;
  double balance_loss;
};

// From the config.json of each release, but for the last.
constexpr std::array kPresets = {
    // allenai/OLMoE-1B-7B-0924
    Preset{"olmoe-1b-7b", 16,
           [] {
             return ModelConfig{.vocab_size = 50304,
                                .hidden = 2048,
                                .num_heads = 16,
                                .num_kv_heads = 16,
                                .head_width = 128,
                                .context = 4096,
                                .rope_theta = 1e4,
                                .norm_epsilon = 1e-5f,
                                .tie_embeddings = false,
                                .qk_norm = QkNorm::kWhole,
                                .eos_id = 50279};
           },
           64, 8, 1024, false, 0.01},
    // Qwen/Qwen3-30B-A3B
    Preset{"qwen3-30b-a3b", 48,
           [] {
             return ModelConfig{.vocab_size = 151936,
                                .hidden = 2048,
                                .num_heads = 32,
                                .num_kv_heads = 4,
                                .head_width = 128,
                                .context = 40960,
                                .rope_theta = 1e6,
                                .norm_epsilon = 1e-6f,
                                .tie_embeddings = false,
                                .qk_norm = QkNorm::kPerHead,
                                .bos_id = 151643,
                                .eos_id = 151645};
           },
           128, 8, 768, true, 0.001},
    // Qwen/Qwen3-235B-A22B
    Preset{"qwen3-235b-a22b", 94,
           [] {
             return ModelConfig{.vocab_size = 151936,
                                .hidden = 4096,
                                .num_heads = 64,
                                .num_kv_heads = 4,
                                .head_width = 128,
                                .context = 40960,
                                .rope_theta = 1e6,
                                .norm_epsilon = 1e-6f,
                                .tie_embeddings = false,
                                .qk_norm = QkNorm::kPerHead,
                                .bos_id = 151643,
                                .eos_id = 151645};
           },
           128, 8, 1536, true, 0.001},
    // mistralai/Mixtral-8x7B-v0.1
    Preset{"mixtral-8x7b", 32,
           [] {
             return ModelConfig{.vocab_size = 32000,
                                .hidden = 4096,
                                .num_heads = 32,
                                .num_kv_heads = 8,
                                .head_width = 128,
                                .context = 32768,
                                .rope_theta = 1e6,
                                .norm_epsilon = 1e-5f,
                                .tie_embeddings = false,
                                .bos_id = 1,
                                .eos_id = 2};
           },
           8, 2, 14336, true, 0.02},
    // mistralai/Mixtral-8x22B-v0.1
    Preset{"mixtral-8x22b", 56,
           [] {
             return ModelConfig{.vocab_size = 32000,
                                .hidden = 6144,
                                .num_heads = 48,
                                .num_kv_heads = 8,
                                .head_width = 128,
                                .context = 65536,
                                .rope_theta = 1e6,
                                .norm_epsilon = 1e-5f,
                                .tie_embeddings = false,
                                .bos_id = 1,
                                .eos_id = 2};
           },
           8, 2, 16384, true, 0.001},
    // Nobody's release: many narrow experts, small enough to sweep whole on two cores
    Preset{"wide-64x8", 4,
           [] {
             return ModelConfig{.vocab_size = 1024,
                                .hidden = 1024,
                                .num_heads = 16,
                                .num_kv_heads = 4,
                                .head_width = 64,
                                .context = 4096,
                                .qk_norm = QkNorm::kPerHead};
           },
           64, 8, 512, true, 0.01},
};

}  // namespace

std::vector<std::string_view> PresetNames() {
  std::vector<std::string_view> names;
  for (const Preset& preset : kPresets) names.push_back(preset.name);
  return names;
}

Result<ModelConfig> PresetConfig(const std::string& name) {
  for (const Preset& preset : kPresets) {
    if (preset.name != name) continue;
    ModelConfig config = preset.make();
    LayerSpec layer{.ffn = FfnKind::kMoe};
    layer.moe.expert_width = preset.expert_width;
    layer.moe.router = {.num_experts = preset.experts,
                        .top_k = preset.top_k,
                        .normalize = preset.normalize,
                        .balance_loss = preset.balance_loss,
                        .z_loss = 0};
    config.layers.assign(static_cast<size_t>(preset.layers), layer);
    return config;
  }
  std::vector<std::string_view> names = PresetNames();
  const std::string_view shown = std::string_view(name).substr(0, 64);
  std::ranges::stable_sort(names, {}, [&](std::string_view known) { return EditDistance(shown, known); });
  return UsageErr(Printable(name), "got no file, folder or preset of this name, expected one of {}", fmt::join(names, ", "));
}

}  // namespace moe
