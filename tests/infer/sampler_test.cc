#include "moe/infer/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "testing/random.h"
#include "testing/reference/sampler.h"

namespace moe {
namespace {

using test::NormalFloats;
using test::RandomInts;

// Everything off: a plain draw from softmax(logits).
SamplerConfig Plain(uint64_t seed = 0) {
  return {.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0, .seed = seed};
}

reference::SamplerSettings Settings(const SamplerConfig& c) {
  return {.temperature = c.temperature,
          .top_p = c.top_p,
          .min_p = c.min_p,
          .repeat_penalty = c.repeat_penalty,
          .top_k = c.top_k,
          .repeat_last_n = c.repeat_last_n};
}

// The probabilities by token, as the twin gives them.
std::vector<double> ByToken(const std::vector<Candidate>& candidates, size_t V) {
  std::vector<double> p(V, 0);
  for (const Candidate& c : candidates) p[static_cast<size_t>(c.token_id)] += c.probability;
  return p;
}

void ExpectLikeTwin(const SamplerConfig& config, std::span<const float> logits, std::span<const int32_t> history) {
  const auto candidates = Candidates(config, logits, history);
  ASSERT_TRUE(candidates) << candidates.error().Message();
  const auto got = ByToken(*candidates, logits.size());
  const auto want = reference::SampleDistribution(Settings(config), logits, history);
  for (size_t t = 0; t < logits.size(); ++t) {
    EXPECT_EQ(got[t] > 0, want[t] > 0) << "token " << t;
    // Both are quotients of sums of at most V exponentials, each off by a few units in the last place.
    EXPECT_NEAR(got[t], want[t], static_cast<double>(logits.size() + 8) * 0x1p-52) << "token " << t;
  }
}

TEST(Sampler, EveryMixOfStepsMatchesTheTwin) {
  for (uint32_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    const auto pick = [&](std::initializer_list<float> values) {
      return values.begin()[rng.Below(static_cast<int64_t>(values.size()))];
    };
    const int64_t V = 1 + rng.Below(70);
    auto logits = NormalFloats(V, rng, 3);
    if (seed % 3 == 0) {
      for (float& x : logits) x = std::round(x);  // ties
    }
    const auto history = RandomInts(rng.Below(20), V, rng);
    const SamplerConfig config{.temperature = pick({0, 0.3f, 0.8f, 1, 2.5f}),
                               .top_k = static_cast<int32_t>(pick({0, 1, 2, 5, 40, 1000})),
                               .top_p = pick({0, 0.1f, 0.5f, 0.95f, 1}),
                               .min_p = pick({0, 0.013f, 0.21f, 1}),
                               .repeat_penalty = pick({0.5f, 1, 1.1f, 3}),
                               .repeat_last_n = static_cast<int32_t>(pick({-1, 0, 1, 5, 64}))};
    ExpectLikeTwin(config, logits, history);
  }
}

TEST(Sampler, CandidatesComeMostLikelyFirstAndSumToOne) {
  Rng rng(1);
  const auto logits = NormalFloats(50, rng);
  const auto candidates = Candidates(Plain(), logits, {}).value();
  ASSERT_EQ(candidates.size(), 50u);
  double sum = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    sum += candidates[i].probability;
    if (i > 0) {
      EXPECT_LE(candidates[i].probability, candidates[i - 1].probability);
    }
  }
  EXPECT_NEAR(sum, 1, 50 * 0x1p-52);
}

TEST(Sampler, ZeroTemperatureIsTheArgmaxAndTiesGoToTheLowestId) {
  SamplerConfig config;
  config.temperature = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    config.seed = seed;
    EXPECT_EQ(SampleToken(config, std::vector<float>{1, 3, 2, 3}, {}, 0).value(), 1);
  }
  // The penalty still counts: 3 / 2 < 2.
  config.repeat_penalty = 2;
  EXPECT_EQ(SampleToken(config, std::vector<float>{1, 3, 2}, std::vector<int32_t>{1}, 0).value(), 2);
}

TEST(Sampler, PenaltyPushesNegativeLogitsDownToo) {
  SamplerConfig config = Plain();
  config.repeat_penalty = 2;
  const auto candidates = Candidates(config, std::vector<float>{-1, 4, 0}, std::vector<int32_t>{0, 0, 1, 2}).value();
  for (const Candidate& c : candidates) EXPECT_EQ(c.logit, c.token_id == 0 ? -2 : c.token_id == 1 ? 2 : 0);
}

TEST(Sampler, PenaltyForgetsWhatIsOlderThanItsWindow) {
  SamplerConfig config = Plain();
  config.repeat_penalty = 2;
  config.repeat_last_n = 2;
  const auto candidates = Candidates(config, std::vector<float>{4, 4, 4}, std::vector<int32_t>{0, 1, 2}).value();
  for (const Candidate& c : candidates) EXPECT_EQ(c.logit, c.token_id == 0 ? 4 : 2);
}

TEST(Sampler, TopPKeepsOneTokenAtLeast) {
  SamplerConfig config = Plain();
  config.top_p = 0;
  EXPECT_EQ(Candidates(config, std::vector<float>{0, 1, 0.5f}, {}).value().size(), 1u);
}

// Top-p comes before temperature: what is kept does not depend on it.
TEST(Sampler, TemperatureDoesNotChangeWhatIsKept) {
  Rng rng(3);
  const auto logits = NormalFloats(100, rng, 2);
  SamplerConfig config{.temperature = 0.1f, .top_k = 30, .top_p = 0.8f, .min_p = 0.02f};
  const size_t cold = Candidates(config, logits, {}).value().size();
  config.temperature = 10;
  EXPECT_EQ(Candidates(config, logits, {}).value().size(), cold);
  EXPECT_GT(cold, 1u);
  EXPECT_LT(cold, 30u);
}

// A chi-square test with a fixed seed: 20000 draws of a known distribution.
TEST(Sampler, DrawsFollowTheDistribution) {
  Rng rng(4);
  const auto logits = NormalFloats(12, rng);
  for (const SamplerConfig& config : {Plain(7), SamplerConfig{.temperature = 0.7f, .top_k = 9, .top_p = 0.97f, .seed = 8}}) {
    const auto want = reference::SampleDistribution(Settings(config), logits, {});
    const int64_t draws = 20000;
    std::vector<double> count(logits.size(), 0);
    for (int64_t i = 0; i < draws; ++i) ++count[static_cast<size_t>(SampleToken(config, logits, {}, i).value())];
    double chi_square = 0;
    int free = -1;
    for (size_t t = 0; t < want.size(); ++t) {
      if (want[t] == 0) {
        EXPECT_EQ(count[t], 0);
        continue;
      }
      const double expected = want[t] * static_cast<double>(draws);
      chi_square += (count[t] - expected) * (count[t] - expected) / expected;
      ++free;
    }
    // Mean `free`, deviation sqrt(2 free): five deviations.
    EXPECT_GT(free, 3);
    EXPECT_LT(chi_square, free + 5 * std::sqrt(2.0 * free));
  }
}

TEST(Sampler, IsAFunctionOfSeedAndTokenIndex) {
  Rng rng(5);
  const auto logits = NormalFloats(1000, rng, 0.1);
  std::vector<int32_t> first, again, other;
  for (int64_t i = 0; i < 50; ++i) first.push_back(SampleToken(Plain(1), logits, {}, i).value());
  for (int64_t i = 49; i >= 0; --i) again.insert(again.begin(), SampleToken(Plain(1), logits, {}, i).value());
  for (int64_t i = 0; i < 50; ++i) other.push_back(SampleToken(Plain(2), logits, {}, i).value());
  EXPECT_EQ(first, again);
  EXPECT_NE(first, other);
  EXPECT_GT(std::set<int32_t>(first.begin(), first.end()).size(), 25u);
}

// Pinned: the same tokens on every machine.
TEST(Sampler, IsPinned) {
  std::vector<float> logits(100);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i % 7) * 0.25f;
  std::vector<int32_t> got;
  for (int64_t i = 0; i < 8; ++i) got.push_back(SampleToken({.seed = 42}, logits, {}, i).value());
  EXPECT_EQ(got, (std::vector<int32_t>{19, 26, 48, 32, 89, 41, 40, 13}));
}

TEST(Sampler, RefusesLogitsThatAreNoNumbers) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const auto message = [](std::vector<float> logits, float temperature) {
    const auto token = SampleToken({.temperature = temperature}, logits, {}, 0);
    return token ? std::string("token") : token.error().Message();
  };
  for (const float temperature : {0.0f, 0.8f}) {
    EXPECT_EQ(message({1, nan, 2}, temperature),
              "[logits] got nan for token 1, expected a finite number; the model's weights may be damaged");
    EXPECT_EQ(message({1, 2, infinity}, temperature),
              "[logits] got inf for token 2, expected a finite number; the model's weights may be damaged");
    EXPECT_EQ(message({-infinity, -infinity}, temperature), "[logits] got no finite value among 2, expected at least one");
  }
  for (int64_t i = 0; i < 20; ++i)
    EXPECT_EQ(SampleToken(Plain(), std::vector<float>{-infinity, 1, -infinity}, {}, i).value(), 1);
}

TEST(Sampler, ValidateNamesTheFlag) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(Validate(SamplerConfig{}));
  EXPECT_EQ(Validate({.temperature = -1}).error().Message(), "[--temperature] got -1, expected 0 or a positive number");
  EXPECT_EQ(Validate({.temperature = nan}).error().Message(), "[--temperature] got nan, expected 0 or a positive number");
  EXPECT_EQ(Validate({.top_k = -1}).error().Message(), "[--top-k] got -1, expected 0 (all) or more");
  EXPECT_EQ(Validate({.top_p = 1.5f}).error().Message(), "[--top-p] got 1.5, expected 0..1");
  EXPECT_EQ(Validate({.min_p = -0.5f}).error().Message(), "[--min-p] got -0.5, expected 0..1");
  EXPECT_EQ(Validate({.repeat_penalty = 0}).error().Message(), "[--repeat-penalty] got 0, expected a positive number");
  EXPECT_EQ(Validate({.repeat_last_n = -2}).error().exit_code, 2);
}

}  // namespace
}  // namespace moe
