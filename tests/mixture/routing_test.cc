#include "moe/mixture/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "moe/mixture/moe_layer.h"
#include "tests/mixture/router_fixture.h"

namespace moe::test {
namespace {

std::string MessageOf(const Status& status) {
  return status ? "" : status.error().Message();
}

TEST(ValidateRouter, NamesTheKeyWhatItGotAndWhatItExpected) {
  const auto message = [](const RouterConfig& config) { return MessageOf(Validate(config, "r.toml")); };
  EXPECT_EQ(message({}), "");
  EXPECT_EQ(message({.num_experts = 0}), "[r.toml: experts] got 0, expected at least 1");
  EXPECT_EQ(message({.num_experts = -3}), "[r.toml: experts] got -3, expected at least 1");
  EXPECT_EQ(message({.num_experts = 4, .top_k = 5}), "[r.toml: top_k] got 5, expected 1..4, the number of experts");
  EXPECT_EQ(message({.num_experts = 4, .top_k = 0}), "[r.toml: top_k] got 0, expected 1..4, the number of experts");
  EXPECT_EQ(message({.capacity_factor = -1}),
            "[r.toml: capacity_factor] got -1, expected a positive number, or 0 for dropless");
  EXPECT_EQ(message({.capacity_factor = NAN}),
            "[r.toml: capacity_factor] got nan, expected a positive number, or 0 for dropless");
  EXPECT_EQ(message({.balance_loss = -0.5}), "[r.toml: balance_loss] got -0.5, expected 0 or a positive number");
  EXPECT_EQ(message({.z_loss = INFINITY}), "[r.toml: z_loss] got inf, expected 0 or a positive number");
}

TEST(RouterScore, EveryOneHasANameOfItsOwn) {
  EXPECT_EQ(Name(RouterScore::kSoftmax), "softmax");
  EXPECT_EQ(Name(RouterScore::kTopKSoftmax), "topk_softmax");
  for (const auto& [name, score] : kRouterScores) EXPECT_EQ(Name(score), name);
}

TEST(ValidateMoe, WidthsAreMultiplesOf16) {
  const auto message = [](const MoeConfig& config) { return MessageOf(Validate(config, "c")); };
  EXPECT_EQ(message({.expert_width = 48}), "");
  EXPECT_EQ(message({.expert_width = 0}), "[c: expert_width] got 0, expected a multiple of 16");
  EXPECT_EQ(message({.expert_width = -16}), "[c: expert_width] got -16, expected a multiple of 16");
  EXPECT_EQ(message({.expert_width = 40}), "[c: expert_width] got 40, expected a multiple of 16");
  EXPECT_EQ(message({.expert_width = 32, .num_shared_experts = -1}), "[c: shared_experts] got -1, expected 0 or more");
  EXPECT_EQ(message({.expert_width = 32, .num_shared_experts = 1, .shared_expert_width = 24}),
            "[c: shared_expert_width] got 24, expected a multiple of 16");
  EXPECT_EQ(message({.expert_width = 32, .num_shared_experts = 2, .shared_expert_width = 24}), "");
}

TEST(Route, ChoosesTheLargestLogitsInOrderForAnyK) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    const int64_t E = 1 + rng.Below(seed % 10 == 0 ? 300 : 70), k = 1 + rng.Below(E), T = rng.Below(9);
    Router router({.num_experts = E, .top_k = k, .normalize = false});
    auto logits = NormalFloats(T * E, rng, 3);
    if (seed % 4 == 0) {
      for (float& z : logits) z = std::round(z);  // ties
    }
    const Routing routing = router.Run(logits).value();
    for (int64_t t = 0; t < T; ++t) {
      const float* z = logits.data() + t * E;
      std::vector<int32_t> order(static_cast<size_t>(E));
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return z[a] > z[b]; });
      EXPECT_EQ(routing.slot_begin[static_cast<size_t>(t)], t * k);
      for (int64_t j = 0; j < k; ++j) {
        EXPECT_EQ(routing.expert[static_cast<size_t>(t * k + j)], order[static_cast<size_t>(j)]) << "token " << t;
      }
    }
  }
}

TEST(Route, HugeLogitsNeitherOverflowNorVanish) {
  for (const float shift : {0.0f, 1e4f, -1e4f, 3e38f, -3e38f}) {
    SCOPED_TRACE(shift);
    Router router({.num_experts = 4, .top_k = 2});
    RouterSaved saved;
    const Routing routing = router.Run({shift, shift, shift, shift}, {}, &saved).value();
    EXPECT_EQ(Floats(routing.gate), (std::vector<float>{0.5f, 0.5f}));
    EXPECT_EQ(Floats(saved.probs.row_span(0)), (std::vector<float>(4, 0.25f)));
    EXPECT_NEAR(routing.aux.entropy, std::log(4.0), 4 * kEpsF32);
  }
  // The others' exp is 0: gates and gradients stay finite.
  Router router({.num_experts = 3, .top_k = 3});
  RouterSaved saved;
  const Routing routing = router.Run({-500, 500, 0}, {}, &saved).value();
  EXPECT_EQ(Floats(routing.expert), (std::vector<float>{1, 2, 0}));
  EXPECT_EQ(Floats(routing.gate), (std::vector<float>{1, 0, 0}));
  for (const float d : router.Back(routing, saved, {1, 2, 3})) EXPECT_TRUE(std::isfinite(d));
}

TEST(Route, ProbabilitiesMayTakeTheLogitsPlace) {
  Rng rng(5);
  const auto logits = NormalFloats(130 * 7, rng);
  Router a({.num_experts = 7, .top_k = 3}), b({.num_experts = 7, .top_k = 3});
  RouterSaved apart, in_place;
  std::vector<float> memory = logits;
  in_place.probs = {memory.data(), 130, 7};
  const Routing one = a.Run(logits, {}, &apart).value();
  const Routing other = Route(b.config, in_place.probs, {}, &in_place, b.ctx).value();
  ExpectSameBits(Floats(std::span(apart.probs.data, logits.size())), memory);
  ExpectSameBits(one.gate, other.gate);
  ExpectSameBits(one.expert, other.expert);
  EXPECT_EQ(one.aux.balance_loss, other.aux.balance_loss);
}

TEST(Route, WithoutSavedItSaysTheSame) {
  Rng rng(6);
  const auto logits = NormalFloats(70 * 5, rng);
  Router router({.num_experts = 5, .top_k = 2});
  RouterSaved saved;
  const Routing with = router.Run(logits, {}, &saved).value(), without = router.Run(logits).value();
  ExpectSameBits(with.gate, without.gate);
  ExpectSameBits(with.expert, without.expert);
  EXPECT_EQ(with.aux.balance_loss, without.aux.balance_loss);
  EXPECT_EQ(with.aux.z_loss, without.aux.z_loss);
  EXPECT_EQ(with.aux.entropy, without.aux.entropy);
}

TEST(Route, NoTokensCostNothing) {
  Router router({.num_experts = 5, .top_k = 2});
  RouterSaved saved;
  const Routing routing = router.Run({}, {}, &saved).value();
  EXPECT_EQ(routing.expert.size(), 0u);
  EXPECT_EQ(routing.aux.num_tokens, 0);
  EXPECT_EQ(routing.aux.balance_loss, 0);
  EXPECT_EQ(routing.aux.z_loss, 0);
  EXPECT_EQ(routing.aux.entropy, 0);
  EXPECT_EQ(routing.aux.tokens_per_expert.size(), 5u);
  EXPECT_TRUE(router.Back(routing, saved, {}).empty());
}

TEST(Route, ZLossIsTheMeanSquaredLogSumExp) {
  Router router({.num_experts = 2, .top_k = 1, .normalize = false});
  // logsumexp(0, 0) = ln 2; logsumexp(3, 3) = 3 + ln 2
  const Routing routing = router.Run({0, 0, 3, 3}).value();
  const double ln2 = std::log(2.0);
  EXPECT_NEAR(routing.aux.z_loss, (ln2 * ln2 + (3 + ln2) * (3 + ln2)) / 2, 1e-14);
}

}  // namespace
}  // namespace moe::test
