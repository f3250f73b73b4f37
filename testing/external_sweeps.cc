#include "testing/external_sweeps.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "testing/temp_dir.h"

namespace moe::test {
namespace {

using nlohmann::json;

ModelConfig ShapeOf(const json& c) {
  ModelConfig config{.vocab_size = c.at("vocab_size"),
                     .hidden = c.at("hidden_size"),
                     .num_heads = c.at("num_attention_heads"),
                     .num_kv_heads = c.at("num_key_value_heads"),
                     .head_width = c.at("head_dim"),
                     .context = c.at("max_position_embeddings"),
                     .tie_embeddings = c.at("tie_word_embeddings")};
  const std::string type = c.at("model_type");
  if (type == "qwen3_moe" || type == "gemma3_text") config.qk_norm = QkNorm::kPerHead;
  LayerSpec layer{.ffn = FfnKind::kDense};
  if (c.contains("num_experts")) {
    layer.ffn = FfnKind::kMoe;
    layer.moe.router.num_experts = c.at("num_experts");
    layer.moe.router.top_k = c.at("num_experts_per_tok");
    layer.moe.expert_width = c.at("moe_intermediate_size");
  } else {
    layer.ffn_width = c.at("intermediate_size");
  }
  config.layers.assign(c.at("num_hidden_layers").get<size_t>(), layer);
  return config;
}

ExternalModel ModelOf(const std::string& name, const json& m) {
  const json &c = m.at("config"), &bytes = m.at("weight_bytes_per_value");
  ExternalModel model{.name = name, .config = ShapeOf(c)};
  model.window = c.value("sliding_window", 0), model.num_sliding = c.value("num_sliding_layers", 0);
  model.attention_bytes = bytes.at("attention");
  model.experts_bytes = bytes.contains("experts") ? bytes.at("experts") : bytes.at("ffn");
  model.router_bytes = bytes.value("router", 0.0);
  model.head_bytes = bytes.at("head");
  model.kv_bytes = m.at("kv_bytes_per_value");
  model.total_parameters = m.at("total_parameters"), model.active_parameters = m.at("active_parameters");
  return model;
}

template <class T>
size_t IndexOf(const std::vector<T>& all, const std::string& name) {
  return static_cast<size_t>(std::ranges::find(all, name, &T::name) - all.begin());
}

void AddRows(const json& sweep, ExternalSweeps& out) {
  ExternalRow row{.machine = IndexOf(out.machines, sweep.at("machine")),
                  .model = IndexOf(out.models, sweep.at("model")),
                  .decode = sweep.at("phase") == "decode",
                  .tool = sweep.at("tool"),
                  .prompt = sweep.at("prompt")};
  if (!row.decode) {
    row.batch = sweep.at("batch"), row.depth = sweep.at("depth"), row.tokens_per_step = sweep.at("tokens_per_step");
    row.s = static_cast<double>(row.prompt) / sweep.at("tokens_per_s").get<double>();
    out.rows.push_back(row);
    return;
  }
  row.context = sweep.at("context");
  for (size_t i = 0; i < sweep.at("batches").size(); ++i) {
    row.batch = sweep["batches"][i], row.s = sweep.at("s_per_step").at(i);
    out.rows.push_back(row);
  }
}

}  // namespace

double ExternalModel::MeanPositions(double positions) const {
  const auto layers = static_cast<double>(config.layers.size()), sliding = static_cast<double>(num_sliding);
  return (sliding * std::min(positions, static_cast<double>(window)) + (layers - sliding) * positions) / layers;
}

ExternalSweeps LoadExternalSweeps(const std::string& path) {
  const json file = json::parse(ReadFile(path));
  ExternalSweeps out;
  for (const auto& [name, m] : file.at("machines").items()) out.machines.push_back({name, m.at("experts_shared_from_batch")});
  for (const auto& [name, m] : file.at("models").items()) out.models.push_back(ModelOf(name, m));
  for (const json& sweep : file.at("sweeps")) AddRows(sweep, out);
  return out;
}

}  // namespace moe::test
