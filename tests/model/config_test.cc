#include "moe/model/config.h"

#include <gtest/gtest.h>

#include "moe/model/model.h"
#include "testing/matchers.h"
#include "testing/tiny_model.h"

namespace moe::test {
namespace {

std::vector<ModelConfig> Configs() {
  std::vector<ModelConfig> configs{TinyMoe(), TinyMoe(), TinyMoe(), TinyDense()};
  configs[1].tie_embeddings = false;
  configs[1].qk_norm = QkNorm::kPerHead;
  configs[1].layers[0] = TinyDense().layers[0];
  configs[2].qk_norm = QkNorm::kWhole;
  configs[2].layers[1].moe.num_shared_experts = 2;
  configs[2].layers[1].moe.shared_expert_width = 32;
  return configs;
}

TEST(Config, CountsAreThoseOfTheModel) {
  for (const ModelConfig& config : Configs()) {
    const ParameterCount count = CountParameters(config);
    const Model model(config, DType::kF32, false);
    EXPECT_EQ(count.total, model.parameters().num_values());
    int64_t router = 0, experts = 0, norms = 0, shared = 0, dense = 0, attention = 0, idle = 0;
    for (const Parameter& p : model.parameters().all()) {
      const int64_t n = p.value.size();
      if (p.name.ends_with("router")) router += n;
      if (p.experts > 0) experts += n, idle += n / p.experts * (p.experts - 2);
      if (p.value.shape().size() == 1) norms += n;
      if (p.name.find(".shared.") != std::string::npos) shared += n;
      if (p.name.find(".dense.") != std::string::npos) dense += n;
      if (p.name.ends_with("qkv") || p.name.ends_with("out")) attention += n;
    }
    EXPECT_EQ(count.router, router);
    EXPECT_EQ(count.experts, experts);
    EXPECT_EQ(count.norms, norms);
    EXPECT_EQ(count.shared_experts, shared);
    EXPECT_EQ(count.dense_ffn, dense);
    EXPECT_EQ(count.attention, attention);
    EXPECT_EQ(count.embedding, 41 * 24);
    EXPECT_EQ(count.head, config.tie_embeddings ? 0 : 41 * 24);
    EXPECT_EQ(count.active, count.total - idle - (config.tie_embeddings ? 0 : 40 * 24));
  }
}

TEST(Config, CountsAndTwinsOfExpertsThatDiffer) {
  ModelConfig config = TinyMoe();
  MoeConfig& moe = config.layers[0].moe;
  std::vector<ExpertGroup> groups;
  for (const char* entry : {"3 silu 32", "1 gelu 32 plain deep", "2 zero", "2 constant"}) {
    groups.push_back(ParseExpertGroup(entry, "test").value());
  }
  moe.router.num_experts = 8, moe.router.top_k = 3;
  SetExperts(groups, moe);
  moe.num_shared_experts = 1, moe.shared_expert_width = 16, moe.shared_gate = true;
  ASSERT_TRUE(Validate(config, "test"));
  const ParameterCount count = CountParameters(config);
  const Model model(config, DType::kF32, false);
  EXPECT_EQ(count.total, model.parameters().num_values());
  const int64_t experts = 3 * 3 * 24 * 32 + (2 * 24 * 32 + 32 * 32) + 2 * 3 * 24, uniform = 4 * 3 * 24 * 16;
  EXPECT_EQ(count.experts, experts + uniform);
  EXPECT_EQ(count.shared_experts, 3 * 24 * 16 + 24);
  EXPECT_EQ(count.active, count.total - (experts - 3 * experts / 8) - uniform / 2);
  // To half a step of 16 gated FFN values.
  for (const TwinKind kind : {TwinKind::kEqualActive, TwinKind::kEqualTotal}) {
    const ModelConfig twin = DenseTwin(config, kind);
    const ParameterCount of_twin = CountParameters(twin);
    const int64_t want = kind == TwinKind::kEqualTotal ? count.total : count.active;
    const int64_t got = kind == TwinKind::kEqualTotal ? of_twin.total : of_twin.active;
    EXPECT_NEAR(static_cast<double>(got + count.router + 24), static_cast<double>(want), 3 * 24 * 8);
    EXPECT_EQ(twin.layers[0].ffn_width % 16, 0);
  }
}

TEST(Config, DenseTwinsDifferByTheRouterAlone) {
  for (const ModelConfig& config : Configs()) {
    const ParameterCount moe = CountParameters(config);
    const ModelConfig total = DenseTwin(config, TwinKind::kEqualTotal), active = DenseTwin(config, TwinKind::kEqualActive);
    EXPECT_FALSE(total.has_experts());
    EXPECT_FALSE(active.has_experts());
    EXPECT_TRUE(Validate(total, "twin"));
    EXPECT_EQ(CountParameters(total).total + moe.router, moe.total);
    EXPECT_EQ(CountParameters(active).active + moe.router, moe.active);
    EXPECT_EQ(Model(total, DType::kF32, false).parameters().num_values() + moe.router, moe.total);
  }
}

TEST(Config, EveryImpossibleShapeIsOneLine) {
  const auto error_of = [](auto change) {
    ModelConfig config = TinyMoe();
    change(config);
    const Status status = Validate(config, "model.toml");
    return status ? std::string("none") : status.error().Message();
  };
  EXPECT_EQ(error_of([](ModelConfig&) {}), "none");
  EXPECT_EQ(error_of([](ModelConfig& c) { c.vocab_size = 0; }), "[model.toml] got vocabulary size 0, expected 1 to 16777216");
  EXPECT_EQ(error_of([](ModelConfig& c) { c.hidden = -1; }), "[model.toml] got hidden size -1, expected 1 to 16777216");
  EXPECT_EQ(error_of([](ModelConfig& c) { c.head_width = 5; }), "[model.toml] got head width 5, expected an even number");
  EXPECT_EQ(error_of([](ModelConfig& c) { c.num_kv_heads = 3; }),
            "[model.toml] got 4 attention heads, expected a multiple of the 3 key-value heads");
  EXPECT_EQ(error_of([](ModelConfig& c) { c.layers.clear(); }), "[model.toml] got 0 layers, expected 1 to 4096");
  EXPECT_EQ(error_of([](ModelConfig& c) { c.rope_theta = 0; }), "[model.toml] got rope theta 0, expected a positive number");
  EXPECT_EQ(error_of([](ModelConfig& c) { c.norm_epsilon = -1; }),
            "[model.toml] got norm epsilon -1, expected a number that is not negative");
  EXPECT_EQ(error_of([](ModelConfig& c) { c.eos_id = 41; }),
            "[model.toml] got eos token 41, expected one of the 41 of the vocabulary");
  EXPECT_EQ(error_of([](ModelConfig& c) { c.layers[1] = LayerSpec{.ffn = FfnKind::kDense, .ffn_width = 24}; }),
            "[model.toml: layer 1] got FFN width 24, expected a positive multiple of 16");
  EXPECT_EQ(error_of([](ModelConfig& c) { c.layers[1].moe.router.top_k = 5; }),
            "[model.toml: layer 1: top_k] got 5, expected 1..4, the number of experts");
  EXPECT_EQ(error_of([](ModelConfig& c) { c.layers[0].moe.router.num_experts = 1 << 30; }),
            "[model.toml: layer 0] got experts 1073741824, expected at most 1048576");
  EXPECT_EQ(
      error_of([](ModelConfig& c) { c.layers[0].moe.num_shared_experts = c.layers[0].moe.shared_expert_width = 1 << 20; }),
      "[model.toml: layer 0] got shared experts' width 1099511627776, expected at most 16777216");
  EXPECT_EQ(error_of([](ModelConfig& c) {
              c.hidden = 1 << 20, c.layers[0].moe.router.num_experts = 1 << 20, c.layers[0].moe.expert_width = 1 << 20;
            }),
            "[model.toml] got 3.46e+18 parameters, expected at most 1e+15");
  EXPECT_EQ(error_of([](ModelConfig& c) { c.context = 1 << 24, c.head_width = 1 << 10; }),
            "[model.toml] got context 16777216 of heads 1024 wide, expected a product below 536870912");
}

}  // namespace
}  // namespace moe::test
