#include "moe/train/recipe_from.h"

#include <filesystem>

#include "moe/model/hf_config.h"
#include "moe/model/load.h"

namespace moe {

Status TakeShape(const std::string& where, Recipe& recipe) {
  const std::string folder = recipe.model.from;
  std::error_code ignored;
  if (!std::filesystem::is_directory(folder, ignored)) return Err(where, "got {}, expected a model folder", folder);
  MOE_TRY(const ModelConfig config, LoadModelConfig(folder));
  ModelRecipe& m = recipe.model;
  m = {.from = folder,
       .vocab_size = config.vocab_size,
       .layers = std::ssize(config.layers),
       .hidden = config.hidden,
       .heads = config.num_heads,
       .kv_heads = config.num_kv_heads,
       .head_width = config.head_width,
       .context = config.context,
       .ffn = config.has_experts() ? RecipeFfn::kMoe : RecipeFfn::kDense,
       .qk_norm = config.qk_norm,
       .tie_embeddings = config.tie_embeddings,
       .rope_theta = config.rope_theta,
       .norm_epsilon = std::strtod(fmt::format("{}", config.norm_epsilon).c_str(), nullptr)};  // 1e-06, as its float is written
  const MoeConfig* first = nullptr;
  bool same_experts = true, same_top_k = true;
  for (int64_t l = 0; l < m.layers; ++l) {
    const LayerSpec& layer = config.layers[static_cast<size_t>(l)];
    const RouterConfig& router = layer.moe.router;
    const bool dense = layer.ffn == FfnKind::kDense;
    m.layer_experts.push_back(dense ? 0 : router.num_experts);
    m.layer_top_k.push_back(dense ? 0 : router.top_k);
    if (dense) {
      m.ffn_width = layer.ffn_width;
      if (config.has_experts()) m.dense_layers.push_back(l);
      continue;
    }
    if (first == nullptr) first = &layer.moe;
    same_experts = same_experts && router.num_experts == first->router.num_experts;
    same_top_k = same_top_k && router.top_k == first->router.top_k;
  }
  if (same_experts) m.layer_experts.clear();
  if (same_top_k) m.layer_top_k.clear();
  if (first != nullptr) {
    m.experts = first->router.num_experts, m.top_k = first->router.top_k;
    if (first->groups.empty()) m.expert_width = first->expert_width;
    m.expert_groups = first->groups;
    m.shared_experts = first->num_shared_experts, m.shared_expert_width = first->shared_expert_width;
    m.shared_expert_gate = first->shared_gate;
    if (recipe.router.policy.empty()) recipe.router.config = first->router;
  }
  recipe.tokenizer = {.kind = TokenizerKind::kFile, .file = folder + "/tokenizer.json"};

  Recipe said = recipe;  // with the model's own router
  if (first != nullptr) said.router.config = first->router;
  const auto again = MakeModelConfig(said, config.vocab_size, config.bos_id, config.eos_id, where);
  if (!again || HfConfigText(*again, DType::kF32) != HfConfigText(config, DType::kF32)) {
    return Err(where,
               "got {}, whose layers differ in more than their number of experts, expected a model that a recipe describes",
               folder);
  }
  return {};
}

}  // namespace moe
