#include "moe/planner/measured_routing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "moe/base/rng.h"
#include "moe/planner/step_cost.h"
#include "testing/random.h"
#include "testing/test_context.h"
#include "testing/tiny_model.h"

namespace moe {
namespace {

// One layer; token t chose choices[t]; sequences of these lengths.
RoutedText Text(int64_t experts, const std::vector<std::vector<int32_t>>& choices, std::vector<int64_t> lengths = {}) {
  if (lengths.empty()) lengths = {std::ssize(choices)};
  RoutedText text{.layers = {{.experts = experts}}, .sequence_begin = {0}};
  for (const auto& chosen : choices) {
    auto& layer = text.layers[0];
    layer.expert.insert(layer.expert.end(), chosen.begin(), chosen.end());
    layer.slot_begin.push_back(std::ssize(layer.expert));
  }
  for (const int64_t n : lengths) text.sequence_begin.push_back(text.sequence_begin.back() + n);
  return text;
}

std::vector<std::vector<int32_t>> RandomChoices(int64_t tokens, int64_t experts, int64_t top_k, uint64_t seed) {
  Rng rng(seed);
  std::vector<std::vector<int32_t>> out;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<int32_t> chosen;
    while (std::ssize(chosen) < top_k) {
      // Skewed, and often the same as before.
      const auto e = static_cast<int32_t>(std::min(rng.Below(experts), rng.Below(experts)));
      const bool again = t > 0 && rng.Uniform() < 0.5;
      const int32_t pick = again ? out.back()[static_cast<size_t>(rng.Below(top_k))] : e;
      if (std::ranges::find(chosen, pick) == chosen.end()) chosen.push_back(pick);
    }
    out.push_back(chosen);
  }
  return out;
}

double Distinct(const RoutedText& text, const Step& step, int64_t ranks = 1) {
  return DistinctExpertsOf(Summarize(text), step, ranks)[0];
}

TEST(MeasuredRouting, ChancesAreFrequencies) {
  const MeasuredRouting m = Summarize(Text(4, {{0, 1}, {1, 2}, {1, 0}, {2, 1}, {1, 2}}, {3, 2}));
  EXPECT_EQ(m.tokens, 5);
  EXPECT_EQ(m.sequences, (std::vector<int64_t>{2, 3}));
  ASSERT_EQ(m.chances[0].p.size(), 4u);
  EXPECT_DOUBLE_EQ(m.chances[0].p[0], 0.4);
  EXPECT_DOUBLE_EQ(m.chances[0].p[1], 1);
  EXPECT_DOUBLE_EQ(m.chances[0].p[2], 0.6);
  EXPECT_EQ(m.chances[0].p[3], 0);
  const MeasuredRouting big = Summarize(Text(16, RandomChoices(500, 16, 3, 1)));
  EXPECT_NEAR(std::accumulate(big.chances[0].p.begin(), big.chances[0].p.end(), 0.0), 3, 1e-12);
}

TEST(MeasuredRouting, TokensOfADecodeStepAreIndependent) {
  const RoutedText text = Text(16, RandomChoices(300, 16, 2, 2), {100, 20, 180});
  const MeasuredRouting m = Summarize(text);
  for (const int64_t batch : {1, 2, 7, 64, 1000}) {
    const double expected = DistinctExperts(m.chances[0], static_cast<double>(batch));
    EXPECT_NEAR(Distinct(text, {Phase::kDecode, batch, 64}), expected, 1e-9) << batch;
  }
}

TEST(MeasuredRouting, ConstantRunsTouchFew) {
  // 0 twenty times, then 1 twenty times: of 37 runs of 4, 3 touch both.
  std::vector<std::vector<int32_t>> choices(20, {0});
  choices.resize(40, {1});
  const RoutedText text = Text(2, choices);
  EXPECT_DOUBLE_EQ(Distinct(text, {Phase::kPrefill, 1, 8}), 1);
  EXPECT_DOUBLE_EQ(Distinct(text, {Phase::kPrefill, 4, 8}), 1 + 3.0 / 37);
  EXPECT_DOUBLE_EQ(Distinct(text, {Phase::kTrain, 4, 8}), 1 + 3.0 / 37);
  // Two runs of 4: an expert is left out by 17 of 37 of each.
  EXPECT_DOUBLE_EQ(Distinct(text, {Phase::kPrefill, 8, 4}), 2 * (1 - std::pow(17.0 / 37, 2)));
  // Two of 4 and one of 3, of which 18 of 38 leave it out.
  EXPECT_DOUBLE_EQ(Distinct(text, {Phase::kPrefill, 11, 4}), 2 * (1 - std::pow(17.0 / 37, 2) * 18 / 38));
}

TEST(MeasuredRouting, AlternatingExpertsAreSoonAllThere) {
  std::vector<std::vector<int32_t>> choices;
  for (int32_t t = 0; t < 60; ++t) choices.push_back({t % 4});
  const RoutedText text = Text(4, choices);
  for (const int64_t batch : {1, 2, 3, 4, 5, 40}) {
    EXPECT_NEAR(Distinct(text, {Phase::kPrefill, batch, 64}), static_cast<double>(std::min<int64_t>(batch, 4)), 1e-12) << batch;
  }
}

TEST(MeasuredRouting, RunsNeverCrossTheEndOfASequence) {
  std::vector<std::vector<int32_t>> choices(10, {0});
  choices.resize(20, {1});
  EXPECT_DOUBLE_EQ(Distinct(Text(2, choices, {10, 10}), {Phase::kPrefill, 10, 10}), 1);
  EXPECT_GT(Distinct(Text(2, choices), {Phase::kPrefill, 10, 10}), 1.5);
}

TEST(MeasuredRouting, ShortTextsGiveWhatTheyHave) {
  std::vector<std::vector<int32_t>> choices(6, {0});
  choices.resize(12, {1});
  choices.resize(14, {2});
  const RoutedText text = Text(3, choices, {6, 6, 2});
  const MeasuredRouting m = Summarize(text);
  EXPECT_EQ(RunOf(m, 4), 4);
  EXPECT_EQ(RunOf(m, 512), 6);
  // 13 tokens are two runs of 6 and one of 1, each of one of the two texts that are long enough.
  EXPECT_DOUBLE_EQ(Distinct(text, {Phase::kPrefill, 13, 512}), 2 * (1 - std::pow(0.5, 3)));
  // One long text beside many short ones that hold most of the tokens does not stand for all.
  std::vector<int64_t> lengths(50, 4);
  lengths.push_back(30);
  EXPECT_EQ(RunOf(Summarize(Text(4, RandomChoices(230, 4, 1, 3), lengths)), 512), 4);
  EXPECT_DOUBLE_EQ(Distinct(Text(2, {{1}}), {Phase::kPrefill, 4096, 64}), 1);
}

TEST(MeasuredRouting, DrawnRunsTouchAsManyOnAverage) {
  const auto choices = RandomChoices(400, 24, 2, 4);
  const RoutedText text = Text(24, choices, {150, 250});
  Rng rng(9);
  const Step step{Phase::kPrefill, 50, 20};
  constexpr int kDraws = 20000;
  double sum = 0;
  for (int draw = 0; draw < kDraws; ++draw) {
    uint32_t touched = 0;
    for (const int64_t run : {20, 20, 10}) {
      const bool second = rng.Below(400) >= 150;
      const int64_t length = second ? 250 : 150, start = (second ? 150 : 0) + rng.Below(length - run + 1);
      for (int64_t t = start; t < start + run; ++t) {
        for (const int32_t e : choices[static_cast<size_t>(t)]) touched |= 1u << e;
      }
    }
    sum += std::popcount(touched);
  }
  EXPECT_NEAR(Distinct(text, step), sum / kDraws, 0.05);  // about four standard errors
}

TEST(MeasuredRouting, StaysInItsBoundsAndGrowsWithTheBatch) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed, 1);
    const int64_t E = 2 + rng.Below(20), k = 1 + rng.Below(std::min<int64_t>(E, 4));
    std::vector<int64_t> lengths;
    for (int64_t n = 1 + rng.Below(6); n > 0; --n) lengths.push_back(1 + rng.Below(60));
    const RoutedText text =
        Text(E, RandomChoices(std::accumulate(lengths.begin(), lengths.end(), int64_t{0}), E, k, seed), lengths);
    const MeasuredRouting m = Summarize(text);
    const int64_t context = 1 + rng.Below(70), ranks = 1 + rng.Below(E);
    double before = 0, rank_before = 0;
    for (int64_t batch = 1; batch < 200; ++batch) {
      const Step step{seed % 2 == 0 ? Phase::kPrefill : Phase::kTrain, batch, context};
      const double distinct = DistinctExpertsOf(m, step)[0], of_rank = DistinctExpertsOf(m, step, ranks)[0];
      ASSERT_GE(distinct, std::max(before, static_cast<double>(k)) - 1e-9) << batch;
      ASSERT_LE(distinct, static_cast<double>(std::min(E, batch * k)) + 1e-9) << batch;
      ASSERT_GE(of_rank, rank_before - 1e-9) << batch;
      ASSERT_LE(of_rank, static_cast<double>((E + ranks - 1) / ranks) + 1e-9) << batch;
      before = distinct, rank_before = of_rank;
    }
  }
}

TEST(MeasuredRouting, TheBusiestRankHasItsOwnExperts) {
  const ExpertChances chances{{0.1, 0.2, 0.9, 0.3, 0.1, 0.4}};
  EXPECT_EQ(BusiestRank(chances, 1).p, chances.p);
  EXPECT_EQ(BusiestRank(chances, 3).p, (std::vector<double>{0.9, 0.3}));
  EXPECT_EQ(BusiestRank(chances, 6).p, (std::vector<double>{0.9}));
  EXPECT_EQ(BusiestRank(chances, 4).p, (std::vector<double>{0.9, 0.3}));  // blocks of 2: the fourth has none
  EXPECT_EQ(BusiestRank({}, 4).p.size(), 0u);
  // Experts 2 and 3 alternate, 0 comes now and then; each of two ranks brings a run of its own.
  std::vector<std::vector<int32_t>> choices;
  for (int32_t t = 0; t < 40; ++t) choices.push_back({t % 10 == 9 ? 0 : 2 + t % 2});
  const RoutedText text = Text(4, choices);
  EXPECT_NEAR(Distinct(text, {Phase::kPrefill, 8, 8}, 2), 2, 1e-12);
  EXPECT_NEAR(Distinct(text, {Phase::kDecode, 1, 8}, 2), 2 - std::pow(1 - 0.5, 2) - std::pow(1 - 0.4, 2), 1e-12);
}

TEST(MeasuredRouting, DenseLayersHaveNone) {
  RoutedText text = Text(2, {{0}, {1}});
  text.layers.insert(text.layers.begin(), RoutedText::Layer{});
  const MeasuredRouting m = Summarize(text);
  EXPECT_TRUE(m.chances[0].p.empty());
  EXPECT_EQ(DistinctExpertsOf(m, {Phase::kPrefill, 2, 2}), (std::vector<double>{0, 2}));
}

// --- of a model ---

TEST(MeasureRouting, AsTheModelChooses) {
  ModelConfig config = test::TinyMoe();
  config.bos_id = 0;
  config.layers.insert(config.layers.begin() + 1, {.ffn = FfnKind::kDense, .ffn_width = 32});
  test::TestContext t(2);
  Model model(config, DType::kF32, false);
  test::FillParameters(model, 5, t.ctx);
  Rng rng(8);
  const std::vector<int32_t> a = test::RandomInts(70, 41, rng), b = test::RandomInts(20, 41, rng);
  const std::vector<Document> documents = {{a, 70}, {b, 20}};
  const EvaluateOptions options{.context = 32, .batch = 2};
  const MeasuredRouting m = MeasureRouting(model, documents, options, t.ctx).value();
  EXPECT_EQ(m.tokens, 90);
  EXPECT_EQ(m.sequences, (std::vector<int64_t>{6, 20, 32, 32}));
  ASSERT_EQ(m.chances.size(), 3u);
  EXPECT_TRUE(m.chances[1].p.empty());
  const Evaluation evaluation = Evaluate(model, documents, options, t.ctx).value();
  for (const size_t l : {0u, 2u}) {
    const auto& loads = evaluation.layers[l].tokens_per_expert;
    ASSERT_EQ(m.chances[l].p.size(), loads.size());
    for (size_t e = 0; e < loads.size(); ++e) {
      EXPECT_NEAR(m.chances[l].p[e], static_cast<double>(loads[e]) / 90, 1e-12);
    }
  }
  // However much is computed at a time, and by how many threads.
  test::TestContext one(1);
  Model same(config, DType::kF32, false);
  test::FillParameters(same, 5, one.ctx);
  const MeasuredRouting again = MeasureRouting(same, documents, {.context = 32}, one.ctx).value();
  const Step step{Phase::kPrefill, 24, 16};
  EXPECT_EQ(DistinctExpertsOf(m, step), DistinctExpertsOf(again, step));
}

TEST(MeasureRouting, RefusesADenseModel) {
  ModelConfig config = test::TinyDense();
  config.bos_id = 0;
  test::TestContext t(1);
  Model model(config, DType::kF32, false);
  const std::vector<int32_t> tokens = {1, 2};
  const Document document{tokens, 2};
  const auto m = MeasureRouting(model, {&document, 1}, {}, t.ctx);
  ASSERT_FALSE(m);
  EXPECT_EQ(m.error().what, "has no experts: every layer is dense");
}

}  // namespace
}  // namespace moe
