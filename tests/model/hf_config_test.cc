#include "moe/model/hf_config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "moe/model/load.h"
#include "moe/model/presets.h"
#include "testing/hf_cases.h"
#include "testing/temp_dir.h"

namespace moe::test {
namespace {

using nlohmann::json;

// A released mixture as its config.json says it, a few keys that change nothing included.
json Olmoe() {
  return json::parse(R"({
    "architectures": ["OlmoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "clip_qkv": null,
    "eos_token_id": 50279, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 1024,
    "max_position_embeddings": 4096, "model_type": "olmoe", "norm_topk_prob": false, "num_attention_heads": 16,
    "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 16, "num_key_value_heads": 16,
    "output_router_logits": false, "pad_token_id": 1, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 10000.0,
    "router_aux_loss_coef": 0.01, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true,
    "vocab_size": 50304})");
}
json Qwen3Moe() {
  return json::parse(R"({
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "bos_token_id": 151643, "decoder_sparse_step": 1,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144,
    "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe",
    "moe_intermediate_size": 768, "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
    "rope_scaling": null, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": null,
    "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 151936})");
}
json Mixtral() {
  return json::parse(R"({
    "architectures": ["MixtralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mixtral",
    "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "num_local_experts": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
    "sliding_window": null, "tie_word_embeddings": false, "vocab_size": 32000})");
}

std::string TextOf(const json& object) {
  const auto config = ParseHfConfig(object, "config.json");
  return config ? HfConfigText(*config, DType::kBf16) : config.error().Message();
}

TEST(HfConfig, ReleasedConfigsAreThePresets) {
  for (const auto& [released, preset] :
       {std::pair{Olmoe(), "olmoe-1b-7b"}, std::pair{Qwen3Moe(), "qwen3-30b-a3b"}, std::pair{Mixtral(), "mixtral-8x7b"}}) {
    EXPECT_EQ(TextOf(released), HfConfigText(PresetConfig(preset).value(), DType::kBf16)) << preset;
  }
}

TEST(HfConfig, PresetsHaveThePublishedSizes) {
  const auto check = [](const char* name, double total, double active) {  // billions, as announced
    const ParameterCount count = CountParameters(PresetConfig(name).value());
    EXPECT_NEAR(static_cast<double>(count.total) / 1e9, total, 0.05 * 1.001) << name;
    EXPECT_NEAR(static_cast<double>(count.active + count.embedding) / 1e9, active, 0.2)
        << name;  // embeddings are announced too
  };
  check("olmoe-1b-7b", 6.9, 1.3);
  check("qwen3-30b-a3b", 30.5, 3.3);
  check("qwen3-235b-a22b", 235.1, 22);
  check("mixtral-8x7b", 46.7, 12.9);
  check("mixtral-8x22b", 140.6, 39.1);
  check("wide-64x8", 0.4, 0.1);
  for (const std::string_view name : PresetNames()) {
    const ModelConfig config = PresetConfig(std::string(name)).value();
    EXPECT_TRUE(Validate(config, std::string(name)));
    EXPECT_NE(FamilyOf(config), Family::kMoeCpp);
  }
}

TEST(HfConfig, AnUnknownPresetListsTheNearestFirst) {
  const auto config = LoadModelConfig("mixtral-8x7");
  ASSERT_FALSE(config);
  EXPECT_EQ(config.error().exit_code, 2);
  EXPECT_EQ(config.error().Message().find("[mixtral-8x7] got no file, folder or preset of this name, expected one of "
                                          "mixtral-8x7b, mixtral-8x22b, "),
            0u)
      << config.error().Message();
}

TEST(HfConfig, EveryConfigComesBackAsItWas) {
  for (const HfCase& c : HfCases()) {
    SCOPED_TRACE(c.name);
    const std::string text = HfConfigText(c.config, DType::kF32);
    EXPECT_EQ(InfoOf(FamilyOf(c.config)).model_type, c.model_type);
    EXPECT_EQ(json::parse(text)["model_type"], c.model_type);
    const auto back = ParseHfConfig(json::parse(text), "config.json");
    ASSERT_TRUE(back) << back.error().Message();
    EXPECT_EQ(HfConfigText(*back, DType::kF32), text);
    ASSERT_EQ(back->layers.size(), c.config.layers.size());
    for (size_t l = 0; l < back->layers.size(); ++l) {
      const LayerSpec &got = back->layers[l], &want = c.config.layers[l];
      EXPECT_EQ(got.ffn, want.ffn);
      if (want.ffn == FfnKind::kDense) {
        EXPECT_EQ(got.ffn_width, want.ffn_width);
        continue;
      }
      EXPECT_EQ(got.moe.router.num_experts, want.moe.router.num_experts);
      EXPECT_EQ(got.moe.router.top_k, want.moe.router.top_k);
      EXPECT_EQ(got.moe.router.score, want.moe.router.score);
      EXPECT_EQ(got.moe.router.normalize, want.moe.router.normalize);
      EXPECT_EQ(got.moe.router.capacity.factor, want.moe.router.capacity.factor);
      EXPECT_EQ(got.moe.router.balance_loss, want.moe.router.balance_loss);
      EXPECT_EQ(got.moe.router.z_loss, want.moe.router.z_loss);
      EXPECT_EQ(got.moe.expert_width, want.moe.expert_width);
      EXPECT_EQ(got.moe.shared_width(), want.moe.shared_width());
    }
    EXPECT_EQ(back->qk_norm, c.config.qk_norm);
    EXPECT_EQ(back->tie_embeddings, c.config.tie_embeddings);
    EXPECT_EQ(back->norm_epsilon, c.config.norm_epsilon);
    EXPECT_EQ(back->rope_theta, c.config.rope_theta);
    EXPECT_EQ(back->bos_id, c.config.bos_id);
    EXPECT_EQ(back->eos_id, c.config.eos_id);
    EXPECT_EQ(back->head_width, c.config.head_width);
    EXPECT_EQ(CountParameters(*back).total, CountParameters(c.config).total);
  }
}

TEST(HfConfig, AbsentKeysMeanWhatTransformersMeans) {
  json minimal = Qwen3Moe();
  for (const char* key : {"head_dim", "num_key_value_heads", "norm_topk_prob", "mlp_only_layers", "decoder_sparse_step",
                          "rms_norm_eps", "rope_theta", "tie_word_embeddings", "bos_token_id", "router_aux_loss_coef"}) {
    minimal.erase(key);
  }
  minimal["eos_token_id"] = {151645, 151643};
  const ModelConfig config = ParseHfConfig(minimal, "config.json").value();
  EXPECT_EQ(config.head_width, 64);  // 2048 / 32
  EXPECT_EQ(config.num_kv_heads, 32);
  EXPECT_FALSE(config.layers[0].moe.router.normalize);
  EXPECT_EQ(config.layers[0].moe.router.balance_loss, 0.001);
  EXPECT_EQ(config.layers[0].moe.router.z_loss, 0);
  EXPECT_EQ(config.layers[47].ffn, FfnKind::kMoe);
  EXPECT_EQ(config.norm_epsilon, 1e-6f);
  EXPECT_EQ(config.rope_theta, 1e4);
  EXPECT_FALSE(config.tie_embeddings);
  EXPECT_EQ(config.bos_id, -1);
  EXPECT_EQ(config.eos_id, 151645);
  json mixtral = Mixtral();
  mixtral.erase("rope_theta");
  EXPECT_EQ(ParseHfConfig(mixtral, "config.json")->rope_theta, 1e6);
  mixtral["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 5e5}};  // transformers 5
  EXPECT_EQ(ParseHfConfig(mixtral, "config.json")->rope_theta, 5e5);
  mixtral["num_experts"] = mixtral["num_local_experts"];
  mixtral.erase("num_local_experts");
  EXPECT_EQ(ParseHfConfig(mixtral, "config.json")->layers[0].moe.router.num_experts, 8);
}

TEST(HfConfig, Qwen3MoeChoosesItsDenseLayers) {
  json mixed = Qwen3Moe();
  mixed["num_hidden_layers"] = 6, mixed["decoder_sparse_step"] = 2, mixed["mlp_only_layers"] = {3};
  const ModelConfig config = ParseHfConfig(mixed, "config.json").value();
  std::string kinds;
  for (const LayerSpec& layer : config.layers) kinds += layer.ffn == FfnKind::kMoe ? 'm' : 'd';
  EXPECT_EQ(kinds, "dmdddm");
  EXPECT_EQ(config.layers[0].ffn_width, 6144);
  EXPECT_EQ(config.layers[1].moe.expert_width, 768);
}

TEST(HfConfig, WhatWeCannotDoIsOneLine) {
  const auto error_of = [](json object, const char* key, const json& value) {
    object[key] = value;
    return TextOf(object);
  };
  EXPECT_EQ(TextOf(json::array()), "[config.json] got [], expected an object");
  EXPECT_EQ(error_of(Mixtral(), "model_type", "gpt2"),
            "[config.json] model_type: got \"gpt2\", expected one of mixtral, olmoe, qwen3_moe, llama, qwen3, moe_cpp");
  EXPECT_EQ(error_of(Mixtral(), "hidden_size", nullptr), "[config.json] hidden_size: got nothing, expected an integer");
  EXPECT_EQ(error_of(Mixtral(), "hidden_size", 40.5), "[config.json] hidden_size: got 40.5, expected an integer");
  EXPECT_EQ(error_of(Mixtral(), "hidden_size", 18446744073709551615u),
            "[config.json] hidden_size: got 18446744073709551615, expected an integer below 1099511627776");
  EXPECT_EQ(error_of(Mixtral(), "hidden_act", "gelu"), "[config.json] hidden_act: got \"gelu\", expected \"silu\"");
  EXPECT_EQ(error_of(Mixtral(), "attention_bias", true),
            "[config.json] attention_bias: got true, expected none: it is not supported");
  EXPECT_EQ(error_of(Olmoe(), "clip_qkv", 8.0), "[config.json] clip_qkv: got 8.0, expected none: it is not supported");
  EXPECT_EQ(error_of(Olmoe(), "quantization_config", json::object({{"quant_method", "fp8"}})),
            "[config.json] quantization_config: got {\"quant_method\":\"fp8\"}, expected none: it is not supported");
  EXPECT_EQ(error_of(Mixtral(), "sliding_window", 4096),
            "[config.json] sliding_window: got 4096, expected none, or at least max_position_embeddings, 32768: it is not "
            "supported");
  EXPECT_EQ(error_of(Mixtral(), "rope_parameters", {{"rope_type", "yarn"}}),
            "[config.json: rope_parameters] rope_type: got \"yarn\", expected \"default\": it is not supported");
  EXPECT_EQ(error_of(Mixtral(), "num_experts_per_tok", 9),
            "[config.json: layer 0: top_k] got 9, expected 1..8, the number of experts");
  EXPECT_EQ(error_of(Mixtral(), "intermediate_size", 100),
            "[config.json: layer 0: expert_width] got 100, expected a multiple of 16");
  EXPECT_EQ(error_of(Olmoe(), "num_attention_heads", 15),
            "[config.json] num_attention_heads: got 15, expected a divisor of hidden_size, 2048");
  EXPECT_EQ(error_of(Qwen3Moe(), "mlp_only_layers", {48}), "[config.json] mlp_only_layers: got 48, expected a layer, 0 to 47");
  EXPECT_EQ(error_of(Mixtral(), "num_hidden_layers", 1000000),
            "[config.json] num_hidden_layers: got 1000000, expected 1 to 4096");
  EXPECT_EQ(error_of(Olmoe(), "scoring_func", "sigmoid"),
            "[config.json] scoring_func: got \"sigmoid\", expected none or \"softmax\": olmoe has no other");
  EXPECT_EQ(error_of(Qwen3Moe(), "routed_scaling_factor", 2.5),
            "[config.json] routed_scaling_factor: got 2.5, expected none or 1.0: qwen3_moe has no other");
  EXPECT_EQ(error_of(Qwen3Moe(), "routed_scaling_factor", 1), TextOf(Qwen3Moe()));
  EXPECT_EQ(error_of(Mixtral(), "norm_topk_prob", false),
            "[config.json] norm_topk_prob: got false, expected none or true: mixtral has no other");
  EXPECT_NE(error_of(Olmoe(), "norm_topk_prob", true).find("\"norm_topk_prob\": true"), std::string::npos);
  for (const char* key : {"n_group", "topk_group", "n_shared_experts", "shared_expert_intermediate_size", "topk_method"}) {
    EXPECT_TRUE(error_of(Olmoe(), key, 4).starts_with(fmt::format("[config.json] {}: got 4, expected none or ", key)));
  }
  EXPECT_EQ(error_of(Mixtral(), "eos_token_id", "</s>"),
            "[config.json] eos_token_id: got \"</s>\", expected a token id or a list of them");
}

TEST(HfConfig, GroupsOfExpertsAreReadStrictly) {
  ModelConfig config = TinyMoe();
  MoeConfig& moe = config.layers[1].moe;
  moe.router.num_experts = 3;
  SetExperts({{.spec = {.width = 32}, .count = 2}, {.spec = {.kind = ExpertKind::kZero}, .count = 1}}, moe);
  const json object = json::parse(HfConfigText(config, DType::kF32));
  EXPECT_EQ(object["layers"][1]["expert_groups"], json({"2 silu 32", "1 zero"}));
  EXPECT_FALSE(object["layers"][1].contains("moe_intermediate_size"));
  EXPECT_FALSE(object["layers"][0].contains("expert_groups"));
  const auto error_with = [&](const char* key, const json& value) {
    json changed = object;
    changed["layers"][1][key] = value;
    return TextOf(changed);
  };
  const std::string where = "[config.json: layers: 1: expert_groups] ";
  EXPECT_EQ(error_with("expert_groups", "2 silu 32"), where + "got \"2 silu 32\", expected a list of strings");
  EXPECT_EQ(error_with("expert_groups", json::array()), where + "got [], expected a list of strings");
  EXPECT_EQ(error_with("expert_groups", {2}), where + "got the entry 2, expected a string");
  EXPECT_EQ(error_with("expert_groups", {"2 silu 32 wide", "1 zero"}),
            where + "got the entry \"2 silu 32 wide\", expected at most plain and deep, each once, after the width");
  EXPECT_EQ(error_with("expert_groups", {"2 silu 32"}),
            "[config.json: layer 1: expert_groups] got 2 experts in all groups, expected 3");
  EXPECT_EQ(error_with("moe_intermediate_size", 32), where + "got it beside moe_intermediate_size, expected one of them");
  EXPECT_EQ(error_with("shared_expert_gate", true),
            "[config.json: layer 1: shared_expert_gate] got true without shared experts, expected both");
  EXPECT_EQ(error_with("shared_expert_gate", 1), "[config.json: layers: 1] shared_expert_gate: got 1, expected true or false");
}

TEST(HfConfig, EveryPolicyIsReadAndWritten) {
  ModelConfig config = PresetConfig("olmoe-1b-7b").value();
  RouterConfig router;
  const auto set = [&] {
    for (LayerSpec& layer : config.layers) layer.moe.router = router;
  };
  for (const std::string_view name : PolicyNames()) {
    SCOPED_TRACE(name);
    router = ParsePolicy(name, 64, "test").value();
    set();
    const json object = json::parse(HfConfigText(config, DType::kF32));
    const auto read = ParseHfConfig(object, "config.json");
    ASSERT_TRUE(read) << read.error().Message();
    EXPECT_EQ(read->layers.back().moe.router, router);
    // Only what all who read the format compute goes by the family's name.
    const bool plain = AsServed(router) == PlainRouter(64, router.top_k, router.normalize);
    EXPECT_EQ(object["model_type"], plain ? "olmoe" : "moe_cpp");
  }
  router = ParsePolicy("deepseek-v3", 64, "test").value();
  set();
  const json object = json::parse(HfConfigText(config, DType::kF32));
  const auto error_with = [&](const char* key, const json& value) {
    json changed = object;
    changed["layers"].back()["router"][key] = value;
    return TextOf(changed);
  };
  std::string scores;
  for (const auto& [name, score] : kRouterScores) scores += fmt::format("{}\"{}\"", scores.empty() ? "" : " or ", name);
  EXPECT_TRUE(error_with("score", "sine").ends_with("router] score: got \"sine\", expected " + scores));
  EXPECT_NE(error_with("scale", "1").find("router] scale: got \"1\", expected a number"), std::string::npos);
  EXPECT_NE(error_with("groups", 2.5).find("router] groups: got 2.5, expected an integer"), std::string::npos);
  EXPECT_NE(error_with("normalize", 1).find("router] normalize: got 1, expected true or false"), std::string::npos);
  EXPECT_NE(error_with("skale", 1).find("router] got the unknown key \"skale\""), std::string::npos);
  EXPECT_NE(error_with("groups", 7).find(": groups] got 7, expected a divisor of the 64 experts"), std::string::npos);
  EXPECT_NE(error_with("top_k", 2).find("router] got the unknown key \"top_k\""), std::string::npos);
  json changed = object;
  changed["layers"].back()["n_group"] = 8;
  EXPECT_NE(TextOf(changed).find("got the unknown key \"n_group\""), std::string::npos);
  changed = json::parse(HfConfigText(PresetConfig("olmoe-1b-7b").value(), DType::kF32));
  changed["moe_cpp"] = {{"score", "sigmoid"}};
  EXPECT_EQ(TextOf(changed),
            "[config.json] moe_cpp: got {\"score\":\"sigmoid\"}, expected training's part of a policy only: olmoe is served "
            "otherwise");
  changed = object;
  changed["layers"].back()["router"] = 3;
  EXPECT_NE(TextOf(changed).find("router] got 3, expected an object"), std::string::npos);
}

// A layer's policy stood beside its shape at first, in other words.
TEST(HfConfig, EarlierModelsAreRead) {
  ModelConfig config = PresetConfig("olmoe-1b-7b").value();
  RouterConfig& router = config.layers[0].moe.router;
  router.score = RouterScore::kSigmoid, router.normalize = false, router.capacity.factor = 1.25;
  router.balance_loss = 0.02, router.z_loss = 0.003;
  json object = json::parse(HfConfigText(config, DType::kF32));
  ASSERT_EQ(object["model_type"], "moe_cpp");
  json& layer = object["layers"][0];
  layer.erase("router");
  layer["scoring_func"] = "sigmoid", layer["norm_topk_prob"] = false, layer["capacity_factor"] = 1.25;
  layer["router_aux_loss_coef"] = 0.02, layer["router_z_loss_coef"] = 0.003;
  const auto read = ParseHfConfig(object, "config.json");
  ASSERT_TRUE(read) << read.error().Message();
  EXPECT_EQ(read->layers[0].moe.router, router);

  object = json::parse(HfConfigText(PresetConfig("olmoe-1b-7b").value(), DType::kF32));
  object["moe_cpp"] = {{"capacity_factor", 1.5}, {"router_z_loss_coef", 0.003}};
  const auto family = ParseHfConfig(object, "config.json");
  ASSERT_TRUE(family) << family.error().Message();
  EXPECT_EQ(family->layers[0].moe.router.capacity.factor, 1.5);
  EXPECT_EQ(family->layers[0].moe.router.z_loss, 0.003);
}

TEST(HfConfig, IsFoundByFolderFileOrName) {
  const TempDir dir;
  WriteFile(dir / "config.json", HfConfigText(PresetConfig("olmoe-1b-7b").value(), DType::kF32));
  EXPECT_EQ(LoadModelConfig(dir.path().string())->hidden, 2048);
  EXPECT_EQ(LoadModelConfig(dir / "config.json")->hidden, 2048);
  EXPECT_EQ(LoadModelConfig("olmoe-1b-7b")->hidden, 2048);
  const auto missing = LoadModelConfig(dir / "other.json");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().what, "there is no such file or folder");
}

}  // namespace
}  // namespace moe::test
