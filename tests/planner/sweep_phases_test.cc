// Prefill and training in a sweep, and tokens forced to experts.

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "moe/planner/sweep_runner.h"
#include "testing/test_context.h"
#include "testing/tiny_model.h"

namespace moe {
namespace {

SweepOptions Quick(Phase phase, std::vector<int64_t> batches) {
  return {.phase = phase, .batches = std::move(batches), .context = 12, .seconds = 0, .probe_bytes = 1 << 20};
}

TEST(RowsOfStep, SequencesAreFullButTheLast) {
  const auto rows = RowsOfStep({Phase::kPrefill, 29, 12});
  ASSERT_EQ(rows.size(), 29);
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i].sequence, i / 12);
    EXPECT_EQ(rows[i].position, i % 12);
  }
  const auto decode = RowsOfStep({Phase::kDecode, 3, 12});
  ASSERT_EQ(decode.size(), 3);
  for (size_t i = 0; i < decode.size(); ++i) {
    EXPECT_EQ(decode[i].sequence, i);
    EXPECT_EQ(decode[i].position, 12);
  }
}

TEST(DrawExperts, GivesEachItsChance) {
  Rng rng(3);
  for (const double s : {0.0, 1.0, 2.5}) {
    for (const auto& [E, k] : {std::pair<int64_t, int64_t>{8, 2}, {5, 5}, {64, 8}, {4, 1}}) {
      SCOPED_TRACE(testing::Message() << "s " << s << " E " << E << " k " << k);
      const ExpertChances chances = ZipfChances(E, k, s);
      constexpr int64_t kTokens = 20000;
      std::vector<int32_t> experts;
      DrawExperts(chances, kTokens, k, rng, experts);
      ASSERT_EQ(experts.size(), kTokens * k);
      std::vector<double> count(static_cast<size_t>(E));
      for (int64_t t = 0; t < kTokens; ++t) {
        std::set<int32_t> of_token;
        for (int64_t j = 0; j < k; ++j) of_token.insert(experts[static_cast<size_t>(t * k + j)]);
        EXPECT_EQ(of_token.size(), k) << "token " << t;
        for (const int32_t e : of_token) {
          ASSERT_TRUE(e >= 0 && e < E);
          ++count[static_cast<size_t>(e)];
        }
      }
      for (size_t e = 0; e < count.size(); ++e) {
        const double p = chances.p[e], mean = kTokens * p, deviation = std::sqrt(kTokens * p * (1 - p));
        EXPECT_NEAR(count[e], mean, 5 * deviation + 1e-6) << "expert " << e;
      }
    }
  }
}

TEST(MeasureSweep, MeasuresPrefillAndTraining) {
  test::TestContext machine(2);
  const ModelConfig config = test::TinyMoe();
  for (const Phase phase : {Phase::kPrefill, Phase::kTrain}) {
    for (const DType format : {DType::kF32, DType::kBf16}) {
      SCOPED_TRACE(testing::Message() << Name(phase) << " " << Name(format));
      SweepOptions options = Quick(phase, {1, 12, 29});
      options.format = format;
      const auto report = MeasureSweep(config, nullptr, options, {}, machine.ctx);
      ASSERT_TRUE(report.has_value()) << report.error().Message();
      EXPECT_EQ(report->phase, phase);
      ASSERT_EQ(report->rows.size(), 3);
      for (const SweepRow& row : report->rows) {
        ASSERT_EQ(row.cells.size(), 3);
        EXPECT_GT(row.weights_bytes_per_s, 0);
        EXPECT_GT(row.pace_flop_per_s, 0);
        for (const SweepCell& cell : row.cells) {
          EXPECT_GT(cell.s_per_step, 0);
          EXPECT_GT(cell.cost.bytes, 0);
          EXPECT_GT(cell.cost.flop, 0);
          double parts = 0;
          for (const double s : cell.part_s) parts += s;
          EXPECT_NEAR(parts, cell.s_per_step, 0.2 * cell.s_per_step);
          const double optimizer = cell.part_s[static_cast<size_t>(StepPart::kOptimizer)];
          EXPECT_EQ(optimizer > 0, phase == Phase::kTrain);
          EXPECT_GE(cell.wait_s, 0);
          EXPECT_LE(cell.wait_s, cell.s_per_step);
        }
        EXPECT_GT(row.cells[0].part_s[static_cast<size_t>(StepPart::kRouter)], 0);
        EXPECT_EQ(row.cells[1].part_s[static_cast<size_t>(StepPart::kRouter)], 0);  // a dense twin has none
      }
      const double flop = report->rows[2].cells[0].cost.flop / report->rows[1].cells[0].cost.flop;
      EXPECT_GT(flop, 2);
      EXPECT_LT(flop, 2.6);
    }
  }
}

TEST(MeasureSweep, TrainingDoesThreeTimesThePrefillsProducts) {
  test::TestContext machine(2);
  const ModelConfig config = test::TinyDense();
  const auto flop = [&](Phase phase) {
    const auto report = MeasureSweep(config, nullptr, Quick(phase, {24}), {}, machine.ctx);
    EXPECT_TRUE(report.has_value());
    return report->rows[0].cells[0].cost.flop;
  };
  // Prefill makes logits of two rows only; attention's backward has five products for two.
  EXPECT_GT(flop(Phase::kTrain), 3 * flop(Phase::kPrefill));
  EXPECT_LT(flop(Phase::kTrain), 5 * flop(Phase::kPrefill));
}

TEST(MeasureSweep, TokensGoWhereChanceSendsThem) {
  test::TestContext machine(2);
  ModelConfig config = test::TinyMoe();
  for (LayerSpec& layer : config.layers) layer.moe.router.num_experts = 16;
  for (const Phase phase : {Phase::kDecode, Phase::kPrefill, Phase::kTrain}) {
    SCOPED_TRACE(Name(phase));
    SweepOptions options = Quick(phase, {8});
    options.against = {};
    options.routing = {SweepRouting::kZipf, 10};  // the first two experts are all that anybody wants
    const auto skewed = MeasureSweep(config, nullptr, options, {}, machine.ctx);
    ASSERT_TRUE(skewed.has_value()) << skewed.error().Message();
    EXPECT_LT(skewed->rows[0].cells[0].mean_distinct_experts(config), 3);
    options.routing = {SweepRouting::kUniform};
    const auto uniform = MeasureSweep(config, nullptr, options, {}, machine.ctx);
    ASSERT_TRUE(uniform.has_value()) << uniform.error().Message();
    // 16 (1 - (7/8)^8) = 10.5 experts; steps are few, so not nearer than two of them.
    EXPECT_NEAR(uniform->rows[0].cells[0].mean_distinct_experts(config), UniformDistinctExperts(16, 2, 8), 2);
    ASSERT_EQ(uniform->chances.size(), config.layers.size());
    EXPECT_EQ(uniform->chances[0].p, UniformChances(16, 2).p);
  }
}

TEST(MeasureSweep, RefusesAPromptLongerThanTheContext) {
  test::TestContext machine(2);
  SweepOptions options = Quick(Phase::kPrefill, {4});
  options.context = 33;
  const auto report = MeasureSweep(test::TinyMoe(), nullptr, options, {}, machine.ctx);
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().Message(), "[--context] got 33, expected 1 to 32, the model's context");
  EXPECT_EQ(report.error().exit_code, 2);
}

}  // namespace
}  // namespace moe
