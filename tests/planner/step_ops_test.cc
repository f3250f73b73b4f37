#include "moe/planner/step_ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "moe/planner/step_cost.h"
#include "tests/planner/step_fixture.h"

namespace moe {
namespace {

constexpr double kEpsilon = 0x1p-52;

double Sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

struct Choice {
  int64_t experts, top_k;
};
constexpr Choice kChoices[] = {{1, 1}, {2, 1}, {4, 2}, {7, 3}, {8, 8}, {16, 4}, {60, 4}, {64, 8}, {128, 8}, {256, 1}, {256, 8}};
constexpr double kZipf[] = {0, 0.3, 0.7, 1, 1.5, 3};

TEST(ExpertChances, SumToTopKAndAreNeverAboveOne) {
  for (const auto [E, k] : kChoices) {
    const ExpertChances uniform = UniformChances(E, k);
    ASSERT_EQ(std::ssize(uniform.p), E);
    for (const double p : uniform.p) EXPECT_EQ(p, static_cast<double>(k) / static_cast<double>(E));
    for (const double s : kZipf) {
      SCOPED_TRACE(testing::Message() << E << " experts, top-" << k << ", Zipf " << s);
      const ExpertChances chances = ZipfChances(E, k, s);
      ASSERT_EQ(std::ssize(chances.p), E);
      // E terms summed here, E there for each of up to k experts that are always chosen.
      EXPECT_NEAR(Sum(chances.p), static_cast<double>(k), static_cast<double>(E * (k + 1)) * kEpsilon);
      EXPECT_LE(chances.p.front(), 1);
      EXPECT_GT(chances.p.back(), 0);
      EXPECT_TRUE(std::is_sorted(chances.p.rbegin(), chances.p.rend()));
      if (s > 0) continue;
      for (const double p : chances.p) EXPECT_NEAR(p, uniform.p[0], static_cast<double>(E) * kEpsilon);
    }
  }
}

TEST(ExpertChances, OfZipfKeepTheirRatioBelowOne) {
  const ExpertChances chances = ZipfChances(64, 8, 1.0);
  for (size_t e = 1; e < 64; ++e) {
    if (chances.p[e - 1] >= 1) continue;
    EXPECT_NEAR(chances.p[e] / chances.p[e - 1], static_cast<double>(e) / static_cast<double>(e + 1), 1e-12) << e;
  }
  EXPECT_EQ(chances.p[0], 1);  // 1.69 of its share would be needed
}

TEST(DistinctExperts, LieBetweenTopKAndAll) {
  for (const auto [E, k] : kChoices) {
    for (const double s : kZipf) {
      SCOPED_TRACE(testing::Message() << E << " experts, top-" << k << ", Zipf " << s);
      const ExpertChances chances = ZipfChances(E, k, s);
      const double most = static_cast<double>(E), tolerance = most * static_cast<double>(k + 2) * kEpsilon;
      EXPECT_EQ(DistinctExperts(chances, 0), 0);
      EXPECT_NEAR(DistinctExperts(chances, 1), static_cast<double>(k), tolerance);  // of one token exactly its own
      double last = 0;
      for (int64_t tokens = 1; tokens <= 4096; tokens += 1 + tokens / 7) {
        const double distinct = DistinctExperts(chances, static_cast<double>(tokens));
        EXPECT_GE(distinct, static_cast<double>(std::max<int64_t>(k, 1)) - tolerance) << tokens;
        EXPECT_LE(distinct, std::min(most, static_cast<double>(tokens * k)) + tolerance) << tokens;
        EXPECT_GE(distinct, last - tolerance) << tokens;
        if (s == 0) {
          // A power's relative error grows with its exponent.
          EXPECT_NEAR(distinct, UniformDistinctExperts(E, k, tokens), most * static_cast<double>(tokens + 10) * kEpsilon);
        } else {
          EXPECT_LE(distinct, UniformDistinctExperts(E, k, tokens) + tolerance) << tokens;  // skew touches fewer
        }
        last = distinct;
      }
    }
  }
}

// Binomial terms below 1e-9 are left out, at most about a hundred of each expert, each with at most a hundred rows; what has a
// mean above 40 is three pairs of points about it.
TEST(RowsOfExperts, SumToDistinctExpertsAndToTheTokensChoices) {
  for (const auto [E, k] : kChoices) {
    for (const double s : kZipf) {
      const ExpertChances chances = ZipfChances(E, k, s);
      for (int64_t tokens = 1; tokens <= 4096; tokens += 1 + tokens / 13) {
        SCOPED_TRACE(testing::Message() << E << " experts, top-" << k << ", Zipf " << s << ", " << tokens << " tokens");
        const auto T = static_cast<double>(tokens), all = static_cast<double>(E);
        double matrices = 0, rows = 0, last = 0;
        for (const RowsOfMatrices& m : RowsOfExperts(chances, T)) {
          EXPECT_GT(m.matrices, 0);
          EXPECT_GT(m.rows, last);  // ascending
          EXPECT_LE(m.rows, T * (1 + 1e-12));
          matrices += m.matrices, rows += m.matrices * m.rows, last = m.rows;
        }
        EXPECT_NEAR(matrices, DistinctExperts(chances, T), all * 1e-7);
        EXPECT_NEAR(rows, T * static_cast<double>(k), all * 1e-5 + T * static_cast<double>(k) * 1e-12);
      }
    }
  }
}

TEST(RowsOfExperts, OfFewTokensAreTheBinomialDistribution) {
  const std::vector<RowsOfMatrices> rows = RowsOfExperts(UniformChances(4, 1), 3);
  ASSERT_EQ(rows.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(rows[i].rows, static_cast<double>(i + 1));
  EXPECT_NEAR(rows[0].matrices, 4 * 3 * 9.0 / 64, 1e-12);
  EXPECT_NEAR(rows[1].matrices, 4 * 3 * 3.0 / 64, 1e-12);
  EXPECT_NEAR(rows[2].matrices, 4 * 1.0 / 64, 1e-12);
}

TEST(RowsOfExperts, AnExpertAlmostAlwaysChosenHasItsRows) {
  for (const double rarely : {1e-3, 1e-6, 1e-9, 1e-12, 1e-16}) {
    const ExpertChances chances{{1 - rarely}};
    for (const double tokens : {1, 2, 20, 40, 41, 50, 1000}) {
      double rows = 0, matrices = 0;
      for (const RowsOfMatrices& m : RowsOfExperts(chances, tokens)) matrices += m.matrices, rows += m.matrices * m.rows;
      EXPECT_NEAR(matrices, DistinctExperts(chances, tokens), 1e-7) << rarely << " " << tokens;
      EXPECT_NEAR(rows, tokens * (1 - rarely), 1e-5) << rarely << " " << tokens;
    }
  }
}

TEST(RowsOfExperts, DoNotDependOnTheOrderOfExperts) {
  ExpertChances chances = ZipfChances(16, 3, 0.8);
  const std::vector<RowsOfMatrices> before = RowsOfExperts(chances, 100);
  std::ranges::reverse(chances.p);
  std::swap(chances.p[2], chances.p[9]);
  const std::vector<RowsOfMatrices> after = RowsOfExperts(chances, 100);
  ASSERT_EQ(before.size(), after.size());
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_EQ(before[i].rows, after[i].rows);
    EXPECT_EQ(before[i].matrices, after[i].matrices);
  }
}

TEST(Step, CutsTokensIntoSequences) {
  EXPECT_EQ((Step{Phase::kDecode, 7, 100}).sequences(), 7);
  EXPECT_EQ((Step{Phase::kDecode, 7, 100}).rows_per_sequence(), 1);
  for (const Phase phase : {Phase::kPrefill, Phase::kTrain}) {
    EXPECT_EQ((Step{phase, 64, 64}).sequences(), 1);
    EXPECT_EQ((Step{phase, 65, 64}).sequences(), 2);
    EXPECT_EQ((Step{phase, 3, 64}).sequences(), 1);
    EXPECT_EQ((Step{phase, 3, 64}).rows_per_sequence(), 3);
    EXPECT_EQ((Step{phase, 5, 0}).sequences(), 5);
  }
}

// Prompts of `context` tokens, the last what is left: every token sees itself and those before it in its prompt.
TEST(Step, AttentionSeesEveryPairOfAPrompt) {
  const test::StepShape shape = test::StepShapes()[0];
  const auto width = static_cast<double>(shape.config.num_heads * shape.config.head_width);
  for (const int64_t context : {1, 7, 64}) {
    for (const int64_t batch : {1, 6, 7, 8, 63, 64, 65, 100, 128, 129}) {
      double pairs = 0, flop = 0;
      for (int64_t t = 0; t < batch; ++t) pairs += static_cast<double>(t % context + 1);
      for (const StepOp& op : OpsOf(shape.model(), {Phase::kPrefill, batch, context}).ops) {
        if (std::holds_alternative<AttentionOp>(op.op)) flop += op.flop;
      }
      EXPECT_NEAR(flop, 4 * pairs * width, 1e-9 * flop) << batch << " tokens, prompts of " << context;
    }
  }
}

class OpsOfShape : public testing::TestWithParam<test::StepShape> {};
INSTANTIATE_TEST_SUITE_P(Shapes, OpsOfShape, testing::ValuesIn(test::StepShapes()), [](const auto& p) { return p.param.name; });

// What step_cost.h counts and step_ops.h leaves out: weights of norms, of a gate on shared experts, and constant experts, which
// no product reads.
Cost NotInOps(const ModelConfig& c, int64_t batch, const std::vector<double>& distinct) {
  const auto h = static_cast<double>(c.hidden), B = static_cast<double>(batch);
  double norms = h;
  Cost cost;
  for (size_t l = 0; l < c.layers.size(); ++l) {
    norms += 2 * h;
    if (c.qk_norm == QkNorm::kPerHead) norms += 2 * static_cast<double>(c.head_width);
    if (c.layers[l].ffn != FfnKind::kMoe) continue;
    const MoeConfig& moe = c.layers[l].moe;
    if (moe.shared_gate) cost += {.bytes = 4 * h, .flop = 2 * B * h};
    for (const ExpertGroup& group : moe.experts()) {
      if (group.spec.kind != ExpertKind::kConstant) continue;
      const double share = static_cast<double>(group.count) / static_cast<double>(moe.router.num_experts);
      const double rows = share * B * static_cast<double>(moe.router.top_k);
      cost += {.bytes = share * distinct[l] * 4 * 3 * h, .flop = rows * 8 * h};
    }
  }
  return cost += {.bytes = 4 * norms};
}

TEST_P(OpsOfShape, DecodeMovesAndComputesWhatStepCostCounts) {
  const test::StepShape& shape = GetParam();
  for (const int64_t batch : {1, 2, 7, 64, 500}) {
    for (const int64_t context : {0, 1, 64, 4095}) {
      SCOPED_TRACE(testing::Message() << "batch " << batch << ", context " << context);
      const StepOps ops = OpsOf(shape.model(), {Phase::kDecode, batch, context});
      std::vector<double> distinct;
      for (const ExpertChances& chances : shape.chances()) {
        distinct.push_back(DistinctExperts(chances, static_cast<double>(batch)));
      }
      Cost counted = DecodeCost(shape.config, shape.format, {batch, context}, distinct).total();
      const Cost besides = NotInOps(shape.config, batch, distinct);
      counted.bytes -= besides.bytes, counted.flop -= besides.flop;
      Cost sum;
      for (const StepOp& op : ops.ops) sum += {.bytes = op.bytes, .flop = op.flop};
      // As RowsOfExperts.
      EXPECT_NEAR(sum.bytes, counted.bytes, 1e-6 * counted.bytes);
      EXPECT_NEAR(sum.flop, counted.flop, 1e-6 * counted.flop);
      ASSERT_EQ(ops.distinct_experts.size(), distinct.size());
      for (size_t l = 0; l < distinct.size(); ++l) EXPECT_NEAR(ops.distinct_experts[l], distinct[l], 1e-4);
    }
  }
}

TEST_P(OpsOfShape, PrefillMultipliesWhatTokensAreMultipliedWith) {
  const test::StepShape& shape = GetParam();
  const ModelConfig& c = shape.config;
  // Of one prompt: every token with all active values but embedding, norms and head; one row with the head.
  constexpr int64_t kTokens = 48;
  double flop = 0;
  for (const StepOp& op : OpsOf(shape.model(), {Phase::kPrefill, kTokens, kTokens}).ops) {
    if (std::holds_alternative<ProductOp>(op.op)) flop += op.flop;
  }
  const ParameterCount count = CountParameters(c);
  double values = static_cast<double>(count.attention + count.router + count.shared_experts + count.dense_ffn);
  for (const LayerSpec& layer : c.layers) {
    if (layer.ffn != FfnKind::kMoe) continue;
    const RouterConfig& router = layer.moe.router;
    if (layer.moe.shared_gate) values -= static_cast<double>(c.hidden);
    for (const ExpertGroup& group : layer.moe.experts()) {
      if (!group.spec.is_ffn()) continue;
      values += static_cast<double>(router.top_k * group.count * ValuesOf(group.spec, c.hidden)) /
                static_cast<double>(router.num_experts);
    }
  }
  const double expected = 2 * (kTokens * values + static_cast<double>(c.vocab_size * c.hidden));
  EXPECT_NEAR(flop, expected, 1e-6 * expected);
}

TEST_P(OpsOfShape, TrainingTakesThreeTimesTheProductsOfPrefill) {
  const test::StepShape& shape = GetParam();
  constexpr int64_t kTokens = 48;
  const auto products = [&](Phase phase) {
    double flop = 0;
    for (const StepOp& op : OpsOf(shape.model(), {phase, kTokens, kTokens}).ops) {
      if (std::holds_alternative<ProductOp>(op.op)) flop += op.flop;
    }
    return flop;
  };
  const auto head = 2 * static_cast<double>(shape.config.vocab_size * shape.config.hidden);
  const double forward = products(Phase::kPrefill) - head + kTokens * head;
  EXPECT_NEAR(products(Phase::kTrain), 3 * forward, 1e-9 * forward);
}

TEST_P(OpsOfShape, WeightBytesScaleTheMatricesAlone) {
  const test::StepShape& shape = GetParam();
  StepModel model = shape.model();
  const auto bytes = [&](double weight_bytes) {
    model.weight_bytes = weight_bytes;
    double sum = 0;
    for (const StepOp& op : OpsOf(model, {Phase::kDecode, 4, 64}).ops) sum += op.bytes;
    return sum;
  };
  // Linear, whatever else is moved.
  EXPECT_NEAR(bytes(2) - bytes(1), 2 * (bytes(1) - bytes(0.5)), 1e-9 * bytes(2));
  EXPECT_LT(bytes(0.53125), bytes(1.0625));
  EXPECT_LE(bytes(2), bytes(0));  // as packed: panels padded to 32
}

}  // namespace
}  // namespace moe
