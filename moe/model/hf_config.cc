#include "moe/model/hf_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>

#include "moe/files/json.h"
#include "moe/model/hf_router.h"

namespace moe {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

// Shortest text that reads back as the same float: 1e-05, not 9.99999974e-06.
double Shortest(float x) {
  return std::strtod(fmt::format("{}", x).c_str(), nullptr);
}

// ---- reading ----------------------------------------------------------------------------------------------------------------

// Typed access to one object. A null counts as absent, as in Python.
class Reader {
 public:
  Reader(const json& object, std::string where) : object_(object), where_(std::move(where)) {}

  const std::string& where() const { return where_; }
  bool Has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }
  const json& at(const char* key) const { return object_[key]; }

  // No default: the key must be there.
  Result<int64_t> Int(const char* key, std::optional<int64_t> absent = {}) const {
    if (!Has(key)) return Default(key, absent, "an integer");
    if (!at(key).is_number_integer()) return WrongType<int64_t>(key, "an integer");
    const int64_t value = at(key).get<int64_t>();
    const bool wraps = at(key).is_number_unsigned() && value < 0;
    if (wraps || value < -kLimit || value > kLimit) {
      return Err(where_, "{}: got {}, expected an integer below {}", key, at(key).dump(), kLimit);
    }
    return value;
  }
  Result<double> Number(const char* key, std::optional<double> absent = {}) const {
    if (!Has(key)) return Default(key, absent, "a number");
    if (!at(key).is_number()) return WrongType<double>(key, "a number");
    return at(key).get<double>();
  }
  Result<bool> Bool(const char* key, std::optional<bool> absent = {}) const {
    if (!Has(key)) return Default(key, absent, "true or false");
    if (!at(key).is_boolean()) return WrongType<bool>(key, "true or false");
    return at(key).get<bool>();
  }
  Result<std::string> String(const char* key, const std::optional<std::string>& absent = {}) const {
    if (!Has(key)) return Default(key, absent, "a string");
    if (!at(key).is_string()) return WrongType<std::string>(key, "a string");
    return at(key).get<std::string>();
  }
  // A token id, the first of a list of them, or -1 for none.
  Result<int32_t> TokenId(const char* key) const {
    if (!Has(key)) return -1;
    const json& value = at(key).is_array() && !at(key).empty() ? at(key)[0] : at(key);
    if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() > INT32_MAX) {
      return WrongType<int32_t>(key, "a token id or a list of them");
    }
    return value.get<int32_t>();
  }
  // The object less some keys.
  json Without(std::initializer_list<const char*> keys) const {
    json rest = object_;
    for (const char* key : keys) rest.erase(key);
    return rest;
  }
  // What we do not compute must be absent, null, false or 0.
  Status Unused(const char* key) const {
    if (!Has(key) || at(key) == false || (at(key).is_number() && at(key).get<double>() == 0)) return {};
    return Err(where_, "{}: got {}, expected none: it is not supported", key, Printable(at(key).dump()));
  }

 private:
  static constexpr int64_t kLimit = int64_t{1} << 40;

  template <class T>
  Result<T> Default(const char* key, const std::optional<T>& absent, const char* expected) const {
    if (absent) return *absent;
    return Err(where_, "{}: got nothing, expected {}", key, expected);
  }
  template <class T>
  Result<T> WrongType(const char* key, const char* expected) const {
    return Err(where_, "{}: got {}, expected {}", key, Printable(at(key).dump()), expected);
  }

  const json& object_;
  std::string where_;
};

Result<Family> ParseFamily(const Reader& reader) {
  MOE_TRY(const std::string type, reader.String("model_type"));
  std::string known;
  for (const FamilyInfo& info : Families()) {
    if (type == info.model_type) return info.family;
    known += (known.empty() ? "" : ", ") + std::string(info.model_type);
  }
  return Err(reader.where(), "model_type: got \"{}\", expected one of {}", Printable(type), known);
}

Status RefuseWhatWeDoNotCompute(const Reader& reader) {
  for (const char* key : {"attention_bias", "mlp_bias", "clip_qkv", "quantization_config", "rope_scaling",
                          "router_jitter_noise", "partial_rotary_factor"}) {
    const bool harmless = std::string_view(key) == "partial_rotary_factor" && reader.Has(key) && reader.at(key) == 1.0;
    if (!harmless) MOE_TRY(reader.Unused(key));
  }
  MOE_TRY(const std::string activation, reader.String("hidden_act", "silu"));
  if (activation != "silu") return Err(reader.where(), "hidden_act: got \"{}\", expected \"silu\"", Printable(activation));
  MOE_TRY(const bool uses_window, reader.Bool("use_sliding_window", true));
  if (!uses_window || !reader.Has("sliding_window")) return {};
  MOE_TRY(const int64_t window, reader.Int("sliding_window"));
  MOE_TRY(const int64_t context, reader.Int("max_position_embeddings"));
  if (window >= context) return {};
  return Err(reader.where(),
             "sliding_window: got {}, expected none, or at least max_position_embeddings, {}: it is not supported", window,
             context);
}

// transformers 5 nests what transformers 4 has at the top.
Result<double> ParseRopeTheta(const Reader& reader, double absent) {
  if (!reader.Has("rope_parameters")) return reader.Number("rope_theta", absent);
  if (!reader.at("rope_parameters").is_object()) return Err(reader.where(), "rope_parameters: expected an object");
  const Reader rope(reader.at("rope_parameters"), reader.where() + ": rope_parameters");
  MOE_TRY(const std::string type, rope.String("rope_type", "default"));
  if (type != "default") {
    return Err(rope.where(), "rope_type: got \"{}\", expected \"default\": it is not supported", Printable(type));
  }
  return rope.Number("rope_theta", absent);
}

// Their width, or the groups of those that differ.
Status ParseExperts(const Reader& reader, MoeConfig& moe) {
  if (!reader.Has("expert_groups")) {
    MOE_TRY(moe.expert_width, reader.Int("moe_intermediate_size"));
    return {};
  }
  const std::string where = reader.where() + ": expert_groups";
  if (reader.Has("moe_intermediate_size")) return Err(where, "got it beside moe_intermediate_size, expected one of them");
  const json& list = reader.at("expert_groups");
  if (!list.is_array() || list.empty()) return Err(where, "got {}, expected a list of strings", Printable(list.dump()));
  std::vector<ExpertGroup> groups;
  for (const json& entry : list) {
    if (!entry.is_string()) return Err(where, "got the entry {}, expected a string", Printable(entry.dump()));
    MOE_TRY(groups.emplace_back(), ParseExpertGroup(entry.get<std::string>(), where));
  }
  SetExperts(std::move(groups), moe);
  return {};
}

Result<LayerSpec> ParseMoeCppLayer(const Reader& reader) {
  LayerSpec layer;
  MOE_TRY(const std::string kind, reader.String("ffn"));
  if (kind == "dense") {
    layer.ffn = FfnKind::kDense;
    MOE_TRY(layer.ffn_width, reader.Int("intermediate_size"));
    return layer;
  }
  if (kind != "moe") return Err(reader.where(), "ffn: got \"{}\", expected \"dense\" or \"moe\"", Printable(kind));
  MoeConfig& moe = layer.moe;
  RouterConfig& router = moe.router;
  MOE_TRY(router.num_experts, reader.Int("num_experts"));
  MOE_TRY(router.top_k, reader.Int("num_experts_per_tok"));
  MOE_TRY(ParseExperts(reader, moe));
  MOE_TRY(moe.num_shared_experts, reader.Int("n_shared_experts", 0));
  MOE_TRY(moe.shared_expert_width, reader.Int("shared_expert_intermediate_size", 0));
  MOE_TRY(moe.shared_gate, reader.Bool("shared_expert_gate", false));
  router = PlainRouter(router.num_experts, router.top_k, true);
  if (reader.Has("router")) MOE_TRY(ReadRouterJson(reader.at("router"), reader.where() + ": router", router));
  MOE_TRY(
      ReadRouterJson(reader.Without({"ffn", "num_experts", "num_experts_per_tok", "moe_intermediate_size", "expert_groups",
                                     "n_shared_experts", "shared_expert_intermediate_size", "shared_expert_gate", "router"}),
                     reader.where(), router));  // where the first models have their policy
  return layer;
}

// Keys of other families' routing, which this one's readers ignore: they must say what it does anyway.
Status RefuseOtherRouting(Family family, const Reader& reader) {
  const std::pair<const char*, json> kSaysNothing[] = {
      {"scoring_func", "softmax"}, {"topk_method", "greedy"}, {"routed_scaling_factor", 1.0},         {"n_group", 1},
      {"topk_group", 1},           {"n_shared_experts", 0},   {"shared_expert_intermediate_size", 0}, {"norm_topk_prob", true}};
  for (const auto& [key, neutral] : kSaysNothing) {
    if (neutral == true && family != Family::kMixtral) continue;  // the others read it
    if (!reader.Has(key) || reader.at(key) == neutral) continue;
    return Err(reader.where(), "{}: got {}, expected none or {}: {} has no other", key, Printable(reader.at(key).dump()),
               neutral.dump(), InfoOf(family).model_type);
  }
  return {};
}

// The MoE layer of a public family.
Result<LayerSpec> ParseMoeLayer(Family family, const Reader& reader) {
  LayerSpec layer{.ffn = FfnKind::kMoe};
  MoeConfig& moe = layer.moe;
  RouterConfig& router = moe.router;
  const bool mixtral = family == Family::kMixtral;
  const char *usual = mixtral ? "num_local_experts" : "num_experts", *other = mixtral ? "num_experts" : "num_local_experts";
  MOE_TRY(router.num_experts, reader.Int(reader.Has(usual) || !reader.Has(other) ? usual : other));
  MOE_TRY(router.top_k, reader.Int("num_experts_per_tok"));
  MOE_TRY(moe.expert_width, reader.Int(family == Family::kQwen3Moe ? "moe_intermediate_size" : "intermediate_size"));
  router = PlainRouter(router.num_experts, router.top_k, mixtral);
  if (!mixtral) {
    MOE_TRY(router.normalize, reader.Bool("norm_topk_prob", false));
  }
  MOE_TRY(router.balance_loss, reader.Number("router_aux_loss_coef", InfoOf(family).balance_loss));
  MOE_TRY(RefuseOtherRouting(family, reader));
  const bool normalize = router.normalize;
  if (reader.Has("moe_cpp")) MOE_TRY(ReadRouterJson(reader.at("moe_cpp"), reader.where() + ": moe_cpp", router));
  if (AsServed(router) != PlainRouter(router.num_experts, router.top_k, normalize)) {
    return Err(reader.where(), "moe_cpp: got {}, expected training's part of a policy only: {} is served otherwise",
               Printable(reader.at("moe_cpp").dump()), InfoOf(family).model_type);
  }
  return layer;
}

Result<std::vector<LayerSpec>> ParseLayers(Family family, const Reader& reader) {
  constexpr int64_t kMaxLayers = 4096;
  MOE_TRY(const int64_t count, reader.Int("num_hidden_layers"));
  if (count < 1 || count > kMaxLayers) {
    return Err(reader.where(), "num_hidden_layers: got {}, expected 1 to {}", count, kMaxLayers);
  }
  std::vector<LayerSpec> layers;
  if (family == Family::kMoeCpp) {
    if (!reader.Has("layers") || !reader.at("layers").is_array() || static_cast<int64_t>(reader.at("layers").size()) != count) {
      return Err(reader.where(), "layers: expected a list of {} objects", count);
    }
    for (const json& layer : reader.at("layers")) {
      const std::string where = fmt::format("{}: layers: {}", reader.where(), layers.size());
      if (!layer.is_object()) return Err(where, "got {}, expected an object", Printable(layer.dump()));
      MOE_TRY(layers.emplace_back(), ParseMoeCppLayer(Reader(layer, where)));
    }
    return layers;
  }
  LayerSpec dense{.ffn = FfnKind::kDense}, moe;
  const bool has_moe = family != Family::kLlama && family != Family::kQwen3;
  if (has_moe) {
    MOE_TRY(moe, ParseMoeLayer(family, reader));
  }
  std::vector<bool> is_dense(static_cast<size_t>(count), !has_moe);
  if (family == Family::kQwen3Moe) {
    MOE_TRY(const int64_t step, reader.Int("decoder_sparse_step", 1));
    if (step < 1) return Err(reader.where(), "decoder_sparse_step: got {}, expected at least 1", step);
    for (size_t l = 0; l < is_dense.size(); ++l) is_dense[l] = (static_cast<int64_t>(l) + 1) % step != 0;
    if (reader.Has("mlp_only_layers")) {
      const json& list = reader.at("mlp_only_layers");
      if (!list.is_array()) return Err(reader.where(), "mlp_only_layers: expected a list of layers");
      for (const json& l : list) {
        if (!l.is_number_integer() || l.get<int64_t>() < 0 || l.get<int64_t>() >= count) {
          return Err(reader.where(), "mlp_only_layers: got {}, expected a layer, 0 to {}", Printable(l.dump()), count - 1);
        }
        is_dense[l.get<size_t>()] = true;
      }
    }
  }
  if (std::any_of(is_dense.begin(), is_dense.end(), [](bool d) { return d; })) {
    MOE_TRY(dense.ffn_width, reader.Int("intermediate_size"));
  }
  for (const bool d : is_dense) layers.push_back(d ? dense : moe);
  return layers;
}

// ---- writing ----------------------------------------------------------------------------------------------------------------

ordered_json MoeCppLayer(const LayerSpec& layer) {
  if (layer.ffn == FfnKind::kDense) return {{"ffn", "dense"}, {"intermediate_size", layer.ffn_width}};
  const MoeConfig& moe = layer.moe;
  const RouterConfig& router = moe.router;
  ordered_json out = {{"ffn", "moe"}, {"num_experts", router.num_experts}, {"num_experts_per_tok", router.top_k}};
  if (moe.groups.empty()) out["moe_intermediate_size"] = moe.expert_width;
  for (const ExpertGroup& group : moe.groups) out["expert_groups"].push_back(ToText(group));
  out["n_shared_experts"] = moe.num_shared_experts;
  out["shared_expert_intermediate_size"] = moe.shared_expert_width;
  if (moe.shared_gate) out["shared_expert_gate"] = true;
  out["router"] = RouterJson(router, PlainRouter(router.num_experts, router.top_k, true));
  return out;
}

void WriteMoe(Family family, const ModelConfig& config, ordered_json& out) {
  const LayerSpec *moe = nullptr, *dense = nullptr;
  ordered_json mlp_only = ordered_json::array();
  for (size_t l = 0; l < config.layers.size(); ++l) {
    const LayerSpec& layer = config.layers[l];
    (layer.ffn == FfnKind::kMoe ? moe : dense) = &layer;
    if (layer.ffn == FfnKind::kDense) mlp_only.push_back(l);
  }
  if (moe == nullptr) {
    out["intermediate_size"] = dense->ffn_width;
    return;
  }
  const RouterConfig& router = moe->moe.router;
  const int64_t width = moe->moe.expert_width;
  out[family == Family::kMixtral ? "num_local_experts" : "num_experts"] = router.num_experts;
  out["num_experts_per_tok"] = router.top_k;
  if (family == Family::kQwen3Moe) {
    out["intermediate_size"] = dense != nullptr ? dense->ffn_width : width * router.top_k;
    out["moe_intermediate_size"] = width;
    out["decoder_sparse_step"] = 1;
    out["mlp_only_layers"] = mlp_only;
  } else {
    out["intermediate_size"] = width;
  }
  if (family != Family::kMixtral) out["norm_topk_prob"] = router.normalize;
  out["router_aux_loss_coef"] = router.balance_loss;
  RouterConfig said = PlainRouter(router.num_experts, router.top_k, router.normalize);
  said.balance_loss = router.balance_loss;
  if (const ordered_json rest = RouterJson(router, said); !rest.empty()) out["moe_cpp"] = rest;
}

constexpr std::array<std::string_view, 3> kQkNorms = {"none", "per_head", "whole"};

}  // namespace

Result<ModelConfig> ParseHfConfig(const json& object, const std::string& where) {
  if (!object.is_object()) return Err(where, "got {}, expected an object", Printable(object.dump()));
  const Reader reader(object, where);
  MOE_TRY(const Family family, ParseFamily(reader));
  MOE_TRY(RefuseWhatWeDoNotCompute(reader));
  const FamilyInfo& info = InfoOf(family);
  ModelConfig config;
  MOE_TRY(config.vocab_size, reader.Int("vocab_size"));
  MOE_TRY(config.hidden, reader.Int("hidden_size"));
  MOE_TRY(config.num_heads, reader.Int("num_attention_heads"));
  MOE_TRY(config.num_kv_heads, reader.Int("num_key_value_heads", config.num_heads));
  MOE_TRY(config.context, reader.Int("max_position_embeddings"));
  if (family == Family::kOlmoe || !reader.Has("head_dim")) {
    if (config.num_heads < 1 || config.hidden % config.num_heads != 0) {
      return Err(where, "num_attention_heads: got {}, expected a divisor of hidden_size, {}", config.num_heads, config.hidden);
    }
    config.head_width = config.hidden / config.num_heads;
  } else {
    MOE_TRY(config.head_width, reader.Int("head_dim"));
  }
  MOE_TRY(config.rope_theta, ParseRopeTheta(reader, info.rope_theta));
  MOE_TRY(const double epsilon, reader.Number("rms_norm_eps", info.norm_epsilon));
  config.norm_epsilon = static_cast<float>(epsilon);
  MOE_TRY(config.tie_embeddings, reader.Bool("tie_word_embeddings", false));
  MOE_TRY(config.bos_id, reader.TokenId("bos_token_id"));
  MOE_TRY(config.eos_id, reader.TokenId("eos_token_id"));
  if (family == Family::kOlmoe) config.qk_norm = QkNorm::kWhole;
  if (family == Family::kQwen3Moe || family == Family::kQwen3) config.qk_norm = QkNorm::kPerHead;
  if (family == Family::kMoeCpp) {
    MOE_TRY(const std::string norm, reader.String("qk_norm", "none"));
    const auto found = std::find(kQkNorms.begin(), kQkNorms.end(), norm);
    if (found == kQkNorms.end()) {
      return Err(where, "qk_norm: got \"{}\", expected \"none\", \"per_head\" or \"whole\"", Printable(norm));
    }
    config.qk_norm = static_cast<QkNorm>(found - kQkNorms.begin());
  }
  MOE_TRY(config.layers, ParseLayers(family, reader));
  MOE_TRY(Validate(config, where));
  return config;
}

std::string HfConfigText(const ModelConfig& config, DType dtype) {
  const Family family = FamilyOf(config);
  ordered_json out;
  out["architectures"] = {InfoOf(family).architecture};
  out["model_type"] = InfoOf(family).model_type;
  out["vocab_size"] = config.vocab_size;
  out["hidden_size"] = config.hidden;
  out["num_hidden_layers"] = config.layers.size();
  out["num_attention_heads"] = config.num_heads;
  out["num_key_value_heads"] = config.num_kv_heads;
  out["head_dim"] = config.head_width;
  out["max_position_embeddings"] = config.context;
  out["rope_theta"] = config.rope_theta;
  out["rms_norm_eps"] = Shortest(config.norm_epsilon);
  out["hidden_act"] = "silu";
  out["attention_bias"] = false;
  out["tie_word_embeddings"] = config.tie_embeddings;
  out["bos_token_id"] = config.bos_id < 0 ? ordered_json() : ordered_json(config.bos_id);
  out["eos_token_id"] = config.eos_id < 0 ? ordered_json() : ordered_json(config.eos_id);
  out["torch_dtype"] = dtype == DType::kBf16 ? "bfloat16" : "float32";
  if (family == Family::kMoeCpp) {
    out["qk_norm"] = kQkNorms[static_cast<size_t>(config.qk_norm)];
    out["layers"] = ordered_json::array();
    for (const LayerSpec& layer : config.layers) out["layers"].push_back(MoeCppLayer(layer));
  } else {
    WriteMoe(family, config, out);
  }
  return out.dump(2) + "\n";
}

}  // namespace moe
