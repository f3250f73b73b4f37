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
  EXPECT_EQ(message({.capacity = {.factor = -1}}), "[r.toml: capacity_factor] got -1, expected a number of at least 0");
  EXPECT_EQ(message({.capacity = {.factor = NAN}}), "[r.toml: capacity_factor] got nan, expected a number of at least 0");
  EXPECT_EQ(message({.balance_loss = -0.5}), "[r.toml: balance_loss] got -0.5, expected a number of at least 0");
  EXPECT_EQ(message({.z_loss = INFINITY}), "[r.toml: z_loss] got inf, expected a number of at least 0");
}

TEST(ParsePolicy, AnyBytesGiveAPolicyOrOneLine) {
  Rng rng(9);
  std::vector<std::string> words = {"=", ",", "true", "1e309", "-0", "nan", "99999999999999999999", "top_k=", "score=sigmoid,"};
  for (const std::string_view name : PolicyNames()) words.emplace_back(name);
  const RouterConfig any;
  VisitRouter(any, [&](std::string_view name, const auto&, const auto&) { words.push_back(std::string(name) + "="); });
  int good = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    for (int64_t n = rng.Below(6); n > 0; --n) {
      text += rng.Below(8) == 0 ? RandomBytes(rng.Below(5), rng) : words[static_cast<size_t>(rng.Below(std::ssize(words)))];
    }
    const auto policy = ParsePolicy(text, 1 + rng.Below(64), "p");
    if (policy) {
      ++good;
      EXPECT_TRUE(Validate(*policy, "p"));
    } else {
      EXPECT_EQ(policy.error().Message().find('\n'), std::string::npos) << policy.error().Message();
    }
  }
  EXPECT_GT(good, 500);
}

TEST(ValidateRouter, RefusesWhatDoesNotGoTogether) {
  const auto message = [](const std::string& policy, int64_t E = 8) {
    const auto parsed = ParsePolicy(policy, E, "p");
    return parsed ? std::string() : parsed.error().Message();
  };
  const std::vector<std::pair<const char*, const char*>> bad = {
      {"groups=3", "[p: groups] got 3, expected a divisor of the 8 experts"},
      {"groups=8,top_groups=2,group_score=sum_of_two", "[p: groups] got 8 of one expert, expected two or more in each"},
      {"groups=2,top_groups=3", "[p: top_groups] got 3, expected 1..2"},
      {"groups=4,top_groups=1,top_k=3", "[p: top_k] got 3, expected 1..2, the experts of 1 groups"},
      {"score=sparsemixer,normalize=false,top_k=3", "[p: top_k] got 3, expected 1 or 2"},
      {"score=sparsemixer", "[p: normalize] got true with sparsemixer"},
      {"score=relu,selection=hash", "[p: selection] got hash with relu"},
      {"selection=hash", "[p: balance_loss] got 0.01 with hash, expected 0"},
      {"scale=1e300", "[p: scale] got 1e+300, expected a number above 0 and at most 1000000"},
      {"top_k=2,drop=score", "[p: drop] expected no such key: nothing is dropped without"},
      {"mixtral,bias_rate=1", "[p: bias_rate] expected no such key: balance_bias is"},
      {"score=relu,groups=2,top_groups=2", "[p: groups] got 2 with relu"},
      {"selection=sinkhorn,balance_bias=sign", "[p: balance_bias] got sign with sinkhorn"},
      {"selection=sinkhorn,score=topk_softmax", "[p: score] got topk_softmax with sinkhorn"},
      {"selection=expert_choice,score=topk_softmax", "[p: score] got topk_softmax with expert_choice"},
      {"selection=expert_choice", "[p: normalize] got true with expert_choice"},
      {"selection=expert_choice,normalize=false,capacity_factor=1", "[p: capacity_factor] got 1 with expert_choice"},
      {"normalize=false,normalize_after_drop=true", "[p: normalize_after_drop] got true without normalize"},
      {"noise=gaussian", "[p: noise_scale] got 0 with noise gaussian, expected a number above 0"},
      {"noise_scale=1", "[p: noise_scale] got 1 with noise none, expected 0"},
      {"score=relu,normalize=false,noise=gaussian,noise_scale=1", "[p: noise] got gaussian with relu"},
      {"score=topk_softmax,normalize_epsilon=1", "[p: normalize_epsilon] got 1 with topk_softmax"},
      {"noise=jitter,noise_scale=1", "[p: noise_scale] got 1, expected less than 1"},
      {"noise=gumbel,noise_scale=1,balance_bias=sign", "[p: noise] got gumbel"},
      {"noise=gumbel_later,noise_scale=1,top_k=1,normalize=false",
       "[p: noise] got gumbel_later with top_k 1, expected gumbel: there is no later choice that noise could change"},
      {"target_drop=0.1", "[p: target_drop] got 0.1 without capacity_factor"},
      {"target_drop=0.1,capacity_factor=9", "[p: capacity_factor] got 9, expected 1..4"},
      {"score=sigmoid,top_k=1", "[p: top_k] got 1 with gates that sum to 1"},
      {"target_drop=1", "[p: target_drop] got 1, expected a number of at least 0 and below 1"},
  };
  for (const auto& [policy, want] : bad) EXPECT_TRUE(message(policy).starts_with(want)) << policy << ": " << message(policy);
  for (const std::string_view name : PolicyNames()) EXPECT_EQ(message(std::string(name), 64), "") << name;
}

TEST(RouterScore, EveryOneHasANameOfItsOwn) {
  EXPECT_EQ(NameIn(kRouterScores, RouterScore::kSoftmax), "softmax");
  EXPECT_EQ(NameIn(kRouterScores, RouterScore::kTopKSoftmax), "topk_softmax");
  for (const auto& [name, score] : kRouterScores) EXPECT_EQ(NameIn(kRouterScores, score), name);
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

// Chosen experts may vanish beside the largest; logits may lie as far apart as floats do; scores may be too small to divide by.
TEST(Route, GatesOfChosenThatVanishAreExact) {
  for (const char* policy : {"top_k=2,balance_bias=kept", "top_k=2,score=topk_softmax,balance_bias=kept"}) {
    Router r(ParsePolicy(policy, 3, "test").value());
    const std::vector<float> logits = {0, 1, 200}, bias = {500, 500, 0};
    RouterSaved saved;
    const Routing routing = Route(r.config, {.logits = {logits.data(), 1, 3}, .selection_bias = bias}, &saved, r.ctx).value();
    const double first = 1 / (1 + std::exp(routing.expert[0] == 0 ? 1.0 : -1.0));
    EXPECT_NEAR(routing.gate[0], first, 4 * kEpsF32) << policy;
    EXPECT_NEAR(routing.gate[1], 1 - first, 4 * kEpsF32) << policy;
    EXPECT_NEAR(r.Back(routing, saved, {1, 0})[static_cast<size_t>(routing.expert[0])], first * (1 - first), 1e-5) << policy;
  }
}

TEST(Route, ExtremeLogitsGiveFiniteNumbers) {
  for (const char* policy : {"top_k=2", "top_k=2,score=sigmoid", "top_k=2,score=relu", "top_k=2,score=relu,normalize=false",
                             "top_k=2,score=sqrt_softplus", "top_k=2,score=topk_softmax"}) {
    for (const std::vector<float>& logits :
         {std::vector<float>{3e38f, -3e38f, 0}, {1e-40f, -1, 2e-41f}, {-3e38f, -3e38f, -3e38f}}) {
      SCOPED_TRACE(fmt::format("{} {}", policy, logits[0]));
      Router r(ParsePolicy(policy, 3, "test").value());
      RouterSaved saved;
      const Routing routing = r.Run(logits, {}, &saved).value();
      const RouterAux& aux = routing.aux;
      EXPECT_TRUE(std::isfinite(aux.entropy) && std::isfinite(aux.balance_loss) && std::isfinite(aux.z_loss));
      for (const float g : routing.gate) EXPECT_TRUE(std::isfinite(g));
      for (const float d : r.Back(routing, saved, std::vector<float>(routing.gate.size(), 1.0f), 0)) {
        EXPECT_TRUE(std::isfinite(d));
      }
    }
  }
}

TEST(Route, ProbabilitiesMayTakeTheLogitsPlace) {
  Rng rng(5);
  const auto logits = NormalFloats(130 * 7, rng);
  Router a({.num_experts = 7, .top_k = 3}), b({.num_experts = 7, .top_k = 3});
  RouterSaved apart, in_place;
  std::vector<float> memory = logits;
  in_place.probs = {memory.data(), 130, 7};
  const Routing one = a.Run(logits, {}, &apart).value();
  const Routing other = Route(b.config, {.logits = in_place.probs}, &in_place, b.ctx).value();
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
