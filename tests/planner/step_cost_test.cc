#include "moe/planner/step_cost.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "moe/base/rng.h"
#include "testing/tiny_model.h"

namespace moe {
namespace {

// D 64, 4 query heads of 16, 2 key heads; one MoE layer of 8 experts top-2 width 32 with a shared expert, one dense of
// width 48.
ModelConfig SmallConfig() {
  ModelConfig config{.vocab_size = 100, .hidden = 64, .num_heads = 4, .num_kv_heads = 2, .head_width = 16, .context = 128};
  LayerSpec moe{.ffn = FfnKind::kMoe};
  moe.moe.router.num_experts = 8;
  moe.moe.router.top_k = 2;
  moe.moe.expert_width = 32;
  moe.moe.num_shared_experts = 1;
  config.layers = {moe, LayerSpec{.ffn = FfnKind::kDense, .ffn_width = 48}};
  return config;
}

TEST(DecodeCost, MatchesACountByHand) {
  const std::vector<double> distinct = {5, 0};
  const StepCost f32 = DecodeCost(SmallConfig(), DType::kF32, {.batch = 3, .context = 9}, distinct);
  // per layer: norm 64; qkv [128,64] and out [64,64]; cache 3 sequences * 10 positions * (keys, values) * 32
  EXPECT_EQ(f32.attention.bytes, 2 * 4.0 * (64 + 128 * 64 + 64 * 64 + 3 * 10 * 2 * 32));
  EXPECT_EQ(f32.attention.flop, 2 * 2.0 * (3 * (128 * 64 + 64 * 64) + 3 * 10 * 2 * 64));
  EXPECT_EQ(f32.router.bytes, 4.0 * 32 * 64);  // 8 experts fill a panel of 32
  EXPECT_EQ(f32.router.flop, 2.0 * 3 * 8 * 64);
  // norms 2*64; 5 experts and the shared one of (64 + 32) * 64... gate_up [64,64], down [64,32]; dense gate_up [96,64], down
  // [64,48]
  EXPECT_EQ(f32.ffn.bytes, 4.0 * (2 * 64 + 6 * (64 * 64 + 64 * 32) + 96 * 64 + 64 * 48));
  EXPECT_EQ(f32.ffn.flop, 2.0 * 3 * (3 * (64 * 64 + 64 * 32) + 96 * 64 + 64 * 48));
  // last norm, three embedding rows, head [100,64] stored as 128 outputs
  EXPECT_EQ(f32.other.bytes, 4.0 * (64 + 3 * 64 + 128 * 64));
  EXPECT_EQ(f32.other.flop, 2.0 * 3 * 100 * 64);
  const Cost total = f32.total();
  EXPECT_EQ(total.bytes, f32.attention.bytes + f32.router.bytes + f32.ffn.bytes + f32.other.bytes);
  EXPECT_EQ(total.flop, f32.attention.flop + f32.router.flop + f32.ffn.flop + f32.other.flop);

  ModelConfig hidden = SmallConfig();
  hidden.layers[0].moe.router.gate = GateNetwork::kMlp, hidden.layers[0].moe.router.gate_width = 40;
  const StepCost mlp = DecodeCost(hidden, DType::kF32, {.batch = 3, .context = 9}, distinct);
  EXPECT_EQ(mlp.router.bytes, 4.0 * (64 * 64 + 32 * 40));  // 40 values fill two panels
  EXPECT_EQ(mlp.router.flop, 2.0 * 3 * (40 * 64 + 8 * 40));

  // bf16 halves the packed matrices and nothing else: not norms, cache, embedding rows or the router.
  const StepCost bf16 = DecodeCost(SmallConfig(), DType::kBf16, {.batch = 3, .context = 9}, distinct);
  EXPECT_EQ(f32.attention.bytes - bf16.attention.bytes, 2 * 2.0 * (128 * 64 + 64 * 64));
  EXPECT_EQ(f32.router.bytes, bf16.router.bytes);
  EXPECT_EQ(f32.ffn.bytes - bf16.ffn.bytes, 2.0 * (6 * (64 * 64 + 64 * 32) + 96 * 64 + 64 * 48));
  EXPECT_EQ(f32.other.bytes - bf16.other.bytes, 2.0 * 128 * 64);
  EXPECT_EQ(f32.total().flop, bf16.total().flop);
}

TEST(DecodeCost, CountsExpertsThatDifferAsTheirMean) {
  ModelConfig config = SmallConfig();
  MoeConfig& moe = config.layers[0].moe;
  moe.num_shared_experts = 0;
  std::vector<ExpertGroup> groups;
  for (const char* entry : {"2 silu 32", "1 gelu 64 plain deep", "2 zero", "2 copy", "1 constant"}) {
    groups.push_back(ParseExpertGroup(entry, "test").value());
  }
  SetExperts(groups, moe);
  const StepCost cost = DecodeCost(config, DType::kF32, {.batch = 4, .context = 9}, std::vector<double>{8, 0});
  const double swiglu = 3 * 64 * 32, deep = 2 * 64 * 64 + 64 * 64, dense = 3 * 64 * 48, constant = 3 * 64;
  EXPECT_EQ(cost.ffn.bytes, 4.0 * (2 * 64 + 2 * swiglu + deep + constant + dense));
  // Eight rows, one for each expert in the mean.
  EXPECT_EQ(cost.ffn.flop, 2.0 * (2 * swiglu + deep + 4 * 64 + 4 * dense));
}

TEST(DecodeCost, CountsQkNormWeights) {
  ModelConfig config = SmallConfig();
  const std::vector<double> distinct = {2, 0};
  const double none = DecodeCost(config, DType::kF32, {}, distinct).attention.bytes;
  config.qk_norm = QkNorm::kPerHead;
  EXPECT_EQ(DecodeCost(config, DType::kF32, {}, distinct).attention.bytes - none, 2 * 4.0 * (16 + 16));
  config.qk_norm = QkNorm::kWhole;
  EXPECT_EQ(DecodeCost(config, DType::kF32, {}, distinct).attention.bytes - none, 2 * 4.0 * (64 + 32));
}

TEST(DecodeCost, GrowsWithBatchContextAndExperts) {
  const ModelConfig config = SmallConfig();
  double bytes = 0, flop = 0;
  for (const int64_t batch : {1, 2, 3, 8, 64, 1000}) {
    const Cost cost = DecodeCost(config, DType::kBf16, {batch, 16}, UniformDistinctExperts(config, batch)).total();
    EXPECT_GT(cost.bytes, bytes) << batch;
    EXPECT_GT(cost.flop, flop) << batch;
    bytes = cost.bytes, flop = cost.flop;
  }
  const std::vector<double> few = {2, 0}, all = {8, 0};
  const auto total = [&](int64_t context, const std::vector<double>& distinct) {
    return DecodeCost(config, DType::kBf16, {4, context}, distinct).total();
  };
  EXPECT_GT(total(17, few).bytes, total(16, few).bytes);
  EXPECT_GT(total(17, few).flop, total(16, few).flop);
  EXPECT_GT(total(16, all).bytes, total(16, few).bytes);
  EXPECT_EQ(total(16, all).flop, total(16, few).flop);  // the same rows, wherever they go
}

TEST(DecodeCost, OfAnMoeLiesBetweenItsTwins) {
  ModelConfig config = SmallConfig();
  config.layers.pop_back();
  const ModelConfig active = DenseTwin(config, TwinKind::kEqualActive), all = DenseTwin(config, TwinKind::kEqualTotal);
  const std::vector<double> none = {0};
  for (const int64_t batch : {1, 7, 500}) {
    const DecodeStep step{batch, 16};
    const StepCost moe = DecodeCost(config, DType::kBf16, step, UniformDistinctExperts(config, batch));
    const StepCost like_active = DecodeCost(active, DType::kBf16, step, none),
                   like_all = DecodeCost(all, DType::kBf16, step, none);
    EXPECT_EQ(moe.ffn.flop, like_active.ffn.flop);
    EXPECT_LT(moe.ffn.flop, like_all.ffn.flop);
    EXPECT_GE(moe.ffn.bytes, like_active.ffn.bytes);
    EXPECT_LE(moe.ffn.bytes, like_all.ffn.bytes);
    EXPECT_EQ(moe.attention.bytes, like_all.attention.bytes);
    EXPECT_EQ(like_all.router.bytes, 0);
  }
  // every expert touched: what is read is the equal-total twin
  const std::vector<double> every = {8};
  EXPECT_EQ(DecodeCost(config, DType::kBf16, {500, 16}, every).ffn.bytes,
            DecodeCost(all, DType::kBf16, {500, 16}, none).ffn.bytes);
}

TEST(UniformDistinctExperts, StaysWithinItsLimits) {
  Rng rng(1);
  for (int i = 0; i < 300; ++i) {
    const int64_t E = 1 + rng.Below(256), k = 1 + rng.Below(E), B = 1 + rng.Below(300);
    const double d = UniformDistinctExperts(E, k, B), more = UniformDistinctExperts(E, k, B + 1);
    EXPECT_GE(d, static_cast<double>(k) * (1 - 1e-12)) << E << " " << k << " " << B;
    EXPECT_LE(d, static_cast<double>(std::min(E, B * k)) * (1 + 1e-12)) << E << " " << k << " " << B;
    EXPECT_GE(more, d);
  }
  EXPECT_EQ(UniformDistinctExperts(64, 8, 0), 0);
  EXPECT_DOUBLE_EQ(UniformDistinctExperts(64, 8, 1), 8);
  EXPECT_DOUBLE_EQ(UniformDistinctExperts(4, 4, 9), 4);
}

// The formula against routing drawn at random: each of B tokens takes k different experts.
TEST(UniformDistinctExperts, IsTheMeanOfRandomRouting) {
  constexpr int64_t E = 16, k = 3, B = 6, kTrials = 4000;
  Rng rng(7);
  double sum = 0, sum_squares = 0;
  for (int64_t trial = 0; trial < kTrials; ++trial) {
    std::vector<bool> touched(E, false);
    for (int64_t token = 0; token < B; ++token) {
      std::vector<int> order(E);
      std::iota(order.begin(), order.end(), 0);
      for (int64_t i = 0; i < k; ++i) {
        std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(i + rng.Below(E - i))]);
        touched[static_cast<size_t>(order[static_cast<size_t>(i)])] = true;
      }
    }
    const double count = static_cast<double>(std::count(touched.begin(), touched.end(), true));
    sum += count, sum_squares += count * count;
  }
  const double mean = sum / kTrials, error = std::sqrt((sum_squares / kTrials - mean * mean) / kTrials);
  EXPECT_NEAR(mean, UniformDistinctExperts(E, k, B), 4 * error);
}

TEST(SaturationBatch, IsWhere95PercentAreTouched) {
  ModelConfig config = SmallConfig();
  EXPECT_DOUBLE_EQ(SaturationBatch(config), 8.0 / 2 * std::log(20.0));
  config.layers[0].moe.router.num_experts = 64;
  config.layers[0].moe.router.top_k = 1;
  const auto tokens = static_cast<int64_t>(std::lround(SaturationBatch(config)));
  EXPECT_NEAR(UniformDistinctExperts(64, 1, tokens) / 64, 0.95, 0.005);
  config.layers.erase(config.layers.begin());
  EXPECT_EQ(SaturationBatch(config), 0);
}

// Experts of 1024 and their dense twin of 4096: only the latter's way down has rows of more than 2048 values.
TEST(ValuesOfWideRows, AreThoseOfMatricesWithManyInputs) {
  ModelConfig config = test::TinyMoe();
  config.hidden = 512, config.head_width = 64, config.num_heads = 8, config.num_kv_heads = 8;
  for (LayerSpec& layer : config.layers) {
    layer.ffn = FfnKind::kMoe;
    layer.moe = {};
    layer.moe.router.num_experts = 4, layer.moe.router.top_k = 2, layer.moe.expert_width = 1024;
  }
  EXPECT_EQ(ValuesOfWideRows(config), 0);
  const ModelConfig twin = DenseTwin(config, TwinKind::kEqualTotal);
  EXPECT_EQ(ValuesOfWideRows(twin), static_cast<double>(config.layers.size()) * 512 * 4096);
  config.layers.resize(1);
  config.layers[0].moe.expert_width = 4096;
  EXPECT_EQ(ValuesOfWideRows(config), 4.0 * 512 * 4096);
  config.hidden = 4096;  // now everything is wide but the routers and norms
  const ParameterCount count = CountParameters(config);
  EXPECT_EQ(ValuesOfWideRows(config), static_cast<double>(count.embedding + count.experts + count.attention) -
                                          512.0 * 4096);  // attention's way out has 512 inputs
}

}  // namespace
}  // namespace moe
