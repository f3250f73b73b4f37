#pragma once
// One tiny config for every way a model can lie on the disk.

#include <string>
#include <vector>

#include "testing/tiny_model.h"

namespace moe::test {

struct HfCase {
  std::string name;
  ModelConfig config;
  std::string model_type;
};

inline std::vector<HfCase> HfCases() {
  std::vector<HfCase> cases;
  const auto add = [&](const char* name, const char* model_type, ModelConfig config, auto change) {
    change(config);
    cases.push_back({name, config, model_type});
  };
  const auto each_moe = [](ModelConfig& c, auto change) {
    for (LayerSpec& layer : c.layers) change(layer.moe);
  };
  const LayerSpec dense{.ffn = FfnKind::kDense, .ffn_width = 48};
  add("mixtral", "mixtral", TinyMoe(), [](ModelConfig& c) { c.bos_id = 0, c.eos_id = 40; });
  add("mixtral with a head", "mixtral", TinyMoe(), [&](ModelConfig& c) {
    c.tie_embeddings = false, c.head_width = 10, c.rope_theta = 5e5, c.norm_epsilon = 1e-6f;
    each_moe(c, [](MoeConfig& m) { m.router.capacity.factor = 1.25, m.router.balance_loss = 0.125, m.router.z_loss = 0.5; });
  });
  add("olmoe", "olmoe", TinyMoe(), [&](ModelConfig& c) {
    c.qk_norm = QkNorm::kWhole;
    each_moe(c, [](MoeConfig& m) { m.router.normalize = false; });
  });
  add("olmoe, normalised", "olmoe", TinyMoe(), [](ModelConfig& c) { c.qk_norm = QkNorm::kWhole, c.tie_embeddings = false; });
  add("qwen3_moe", "qwen3_moe", TinyMoe(), [](ModelConfig& c) { c.qk_norm = QkNorm::kPerHead; });
  add("qwen3_moe with a dense layer", "qwen3_moe", TinyMoe(), [&](ModelConfig& c) {
    c.qk_norm = QkNorm::kPerHead, c.tie_embeddings = false, c.head_width = 8;
    c.layers.insert(c.layers.begin(), dense);
    c.layers[1].moe.router.normalize = c.layers[2].moe.router.normalize = false;
  });
  add("llama", "llama", TinyDense(), [](ModelConfig&) {});
  add("qwen3", "qwen3", TinyDense(), [](ModelConfig& c) { c.qk_norm = QkNorm::kPerHead, c.tie_embeddings = false; });
  add("own: dense, norm over all heads", "moe_cpp", TinyDense(), [](ModelConfig& c) { c.qk_norm = QkNorm::kWhole; });
  add("own: dense layer without QkNorm", "moe_cpp", TinyMoe(), [&](ModelConfig& c) { c.layers[0] = dense; });
  add("own: raw probabilities without QkNorm", "moe_cpp", TinyMoe(),
      [&](ModelConfig& c) { each_moe(c, [](MoeConfig& m) { m.router.normalize = false; }); });
  add("own: whole QkNorm, heads wider than the model", "moe_cpp", TinyMoe(),
      [](ModelConfig& c) { c.qk_norm = QkNorm::kWhole, c.head_width = 8; });
  add("own: everything differs", "moe_cpp", TinyMoe(), [&](ModelConfig& c) {
    c.tie_embeddings = false, c.qk_norm = QkNorm::kPerHead;
    c.layers.push_back(dense);
    c.layers.push_back(LayerSpec{.ffn = FfnKind::kDense, .ffn_width = 16});
    MoeConfig &a = c.layers[0].moe, &b = c.layers[1].moe;
    a.router.score = RouterScore::kTopKSoftmax, a.num_shared_experts = 1;
    b.router.num_experts = 3, b.router.top_k = 1, b.router.normalize = false, b.expert_width = 32;
    b.num_shared_experts = 2, b.shared_expert_width = 16, b.router.capacity.factor = 2, b.router.z_loss = 0;
  });
  add("own: gate networks, gates on the input", "moe_cpp", TinyMoe(), [&](ModelConfig& c) {
    c.qk_norm = QkNorm::kPerHead, c.layers.push_back(c.layers[0]);
    RouterConfig &mlp = c.layers[0].moe.router, &cosine = c.layers[1].moe.router;
    mlp.gate = GateNetwork::kMlp, mlp.gate_width = 6;
    cosine.gate = GateNetwork::kCosine, cosine.gate_width = 5;
    c.layers[2].moe.router.gates_input = true;
  });
  const auto give = [](MoeConfig& m, std::initializer_list<const char*> entries) {
    std::vector<ExpertGroup> groups;
    m.router.num_experts = 0;
    for (const char* entry : entries) {
      groups.push_back(ParseExpertGroup(entry, "test").value());
      m.router.num_experts += groups.back().count;
    }
    SetExperts(groups, m);
  };
  add("own: experts of many kinds, other counts per layer", "moe_cpp", TinyMoe(), [&](ModelConfig& c) {
    give(c.layers[0].moe, {"2 silu 16", "1 relu2 32 plain", "1 gelu 16 plain deep", "1 gelu_tanh 16 deep", "1 zero"});
    give(c.layers[1].moe, {"1 constant", "1 copy", "1 silu 16 plain"});
    c.layers[1].moe.num_shared_experts = 1, c.layers[1].moe.shared_expert_width = 32, c.layers[1].moe.shared_gate = true;
  });
  add("own: experts alike but plain", "moe_cpp", TinyMoe(),
      [&](ModelConfig& c) { each_moe(c, [&](MoeConfig& m) { give(m, {"4 relu2 16 plain"}); }); });
  return cases;
}

}  // namespace moe::test
