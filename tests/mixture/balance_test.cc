#include "moe/mixture/balance.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "testing/matchers.h"
#include "testing/random.h"
#include "tests/mixture/layer_fixture.h"

namespace moe::test {
namespace {

TEST(SelectionBias, TheSignRuleMovesByTheRateAndStaysCentred) {
  const RouterConfig config{.num_experts = 4, .balance_bias = BiasRule::kSign, .bias_rate = 0.01};
  std::vector<float> bias = {0.5f, 0, 0, -0.5f};
  UpdateSelectionBias(config, std::vector<int64_t>{1, 2, 3, 10}, bias);  // mean 4: up, up, up, down; the mean change is 0.005
  ExpectClose(bias, std::vector<double>{0.505, 0.005, 0.005, -0.515}, Tolerance{.absolute = 4 * kEpsF32});
  // At the mean nothing is to be done, whatever the others need.
  bias = {0, 0, 0};
  const RouterConfig three{.num_experts = 3, .balance_bias = BiasRule::kSign, .bias_rate = 1};
  UpdateSelectionBias(three, std::vector<int64_t>{5, 4, 6}, bias);
  EXPECT_EQ(bias, (std::vector<float>{0, 1, -1}));
}

TEST(SelectionBias, DoesNotDriftHoweverLongTheSameExpertsLack) {
  const RouterConfig config{.num_experts = 5, .balance_bias = BiasRule::kSign, .bias_rate = 0.001};
  std::vector<float> bias(5);
  for (int step = 0; step < 10000; ++step) UpdateSelectionBias(config, std::vector<int64_t>{1, 1, 1, 1, 100}, bias);
  EXPECT_NEAR(std::accumulate(bias.begin(), bias.end(), 0.0), 0,
              1e-2);  // of biases up to 16, each off by 10,000 roundings at most
  EXPECT_GT(bias[0], 3);
}

TEST(SelectionBias, CountsBeyondFloatsAreCompared) {
  const RouterConfig config{.num_experts = 2, .balance_bias = BiasRule::kSign, .bias_rate = 1};
  std::vector<float> bias(2);
  const int64_t n = int64_t{1} << 40;
  UpdateSelectionBias(config, std::vector<int64_t>{n, n + 1}, bias);
  EXPECT_EQ(bias, (std::vector<float>{1, -1}));
}

TEST(SelectionBias, TheLoadRuleIsAnAverageOfWhatTheLoadAsksFor) {
  const RouterConfig config{.num_experts = 2, .balance_bias = BiasRule::kLoad, .bias_rate = 0.5};
  std::vector<float> bias(2);
  const std::vector<int64_t> load = {30, 10};  // 1.5 and 0.5 of the mean
  UpdateSelectionBias(config, load, bias);
  ExpectClose(bias, std::vector<double>{-0.025, 0.025}, Tolerance{.absolute = kEpsF32});
  for (int step = 0; step < 300; ++step) UpdateSelectionBias(config, load, bias);
  ExpectClose(bias, std::vector<double>{-0.25, 0.25}, Tolerance{.absolute = 1e-6});
}

TEST(SelectionBias, NoTokensAndNoRuleChangeNothing) {
  std::vector<float> bias = {0.25f, -0.5f};
  const std::vector<float> before = bias;
  for (const BiasRule rule : {BiasRule::kSign, BiasRule::kLoad, BiasRule::kKept}) {
    const RouterConfig config{.num_experts = 2, .balance_bias = rule, .bias_rate = 1};
    UpdateSelectionBias(config, std::vector<int64_t>{0, 0}, bias);
    EXPECT_EQ(bias, before);
  }
  UpdateSelectionBias({.num_experts = 2, .balance_bias = BiasRule::kKept}, std::vector<int64_t>{1, 9}, bias);
  EXPECT_EQ(bias, before);
  const ThrowingChecks guard;
  EXPECT_THROW(UpdateSelectionBias({.num_experts = 3}, std::vector<int64_t>{1, 9}, bias), CheckError);
}

TEST(CapacityFactor, FollowsTheDropsWithinItsBounds) {
  const CapacityConfig config{.factor = 1, .target_drop = 0.05, .least_factor = 0.5, .most_factor = 2};
  EXPECT_DOUBLE_EQ(NextCapacityFactor(config, 100, 25, 1.0), 1.1);
  EXPECT_DOUBLE_EQ(NextCapacityFactor(config, 100, 0, 1.0), 0.975);
  EXPECT_DOUBLE_EQ(NextCapacityFactor(config, 100, 5, 1.3), 1.3);
  EXPECT_EQ(NextCapacityFactor(config, 100, 100, 1.9), 2);
  EXPECT_EQ(NextCapacityFactor(config, 100, 0, 0.51), 0.5);
  EXPECT_EQ(NextCapacityFactor(config, 0, 0, 1.3), 1.3);
}

// The layer selects by it, and weighs without it; its gradient stays 0.
TEST(SelectionBias, ChoosesButDoesNotWeigh) {
  LayerOptions options;
  options.config.router.balance_bias = BiasRule::kSign;
  options.config.router.normalize = false;
  Layer layer(options);
  Rng rng(1);
  const auto x = NormalFloats(20 * options.D, rng), d_y = NormalFloats(20 * options.D, rng);
  const auto bias = layer.parameter("selection_bias").value.span();
  std::fill(bias.begin(), bias.end(), 0.0f);
  const LayerStep plain = layer.Train(x, d_y);
  bias[3] = 2;  // above every probability
  const LayerStep step = layer.Train(x, d_y);
  EXPECT_EQ(step.tokens_per_expert[3], 20);
  ExpectSameBits(step.probs, plain.probs);
  for (size_t s = 0; s < step.expert.size(); ++s) {
    const double p = step.probs[s / 2 * 4 + static_cast<size_t>(step.expert[s])];
    EXPECT_NEAR(step.gate[s], p, 4 * kEpsF32 * p);  // one divides, the other multiplies by the reciprocal
  }
  for (const float g : layer.parameter("selection_bias").grad.span()) EXPECT_EQ(g, 0);
}

}  // namespace
}  // namespace moe::test
