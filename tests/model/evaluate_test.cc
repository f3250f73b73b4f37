#include "moe/model/evaluate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/test_context.h"
#include "testing/tiny_model.h"

namespace moe {
namespace {

using namespace moe::test;

constexpr int32_t kBos = 40;

struct Tiny {
  TestContext t;
  Model model;
  explicit Tiny(ModelConfig config, int num_threads = 1, DType format = DType::kF32)
      : t(num_threads), model(std::move(config), format, false) {
    FillParameters(model, 3, t.ctx);
  }
};

ModelConfig WithBos(ModelConfig config) {
  config.bos_id = kBos;
  return config;
}

// One token at a time: a step of its own for every target, the loss in double from its logits.
double NaiveLoss(Tiny& tiny, std::span<const int32_t> tokens, int64_t context) {
  double sum = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const size_t window = i / static_cast<size_t>(context) * static_cast<size_t>(context);
    std::vector<RowInfo> rows = {{.sequence = 0, .position = 0, .token_id = kBos}};
    for (size_t j = window; j < i; ++j) {
      rows.push_back({.sequence = 0, .position = static_cast<int32_t>(j - window + 1), .token_id = tokens[j]});
    }
    const std::vector<int32_t> last = {static_cast<int32_t>(rows.size()) - 1};
    tiny.t.arena.Reset();
    const auto logits = tiny.model.Forward({.rows = rows, .logit_rows = last}, nullptr, tiny.t.ctx).value();
    const auto z = logits.row_span(0);
    double exp_sum = 0;
    for (const float x : z) exp_sum += std::exp(static_cast<double>(x));
    sum += std::log(exp_sum) - z[static_cast<size_t>(tokens[i])];
  }
  return sum;
}

TEST(Evaluate, EveryTokenOnceAsIfAlone) {
  Tiny tiny(WithBos(TinyMoe()));
  Rng rng(1);
  for (const int64_t size : {1, 2, 7, 8, 9, 24, 29}) {
    SCOPED_TRACE(size);
    const auto tokens = RandomInts(size, 41, rng);
    const Document document{tokens, 3 * size};
    const auto result = Evaluate(tiny.model, {&document, 1}, {.context = 8, .batch = 2}, tiny.t.ctx).value();
    const double want = NaiveLoss(tiny, tokens, 8);
    // Each loss is a float off by a few roundings of log-sum-exp over 41 logits.
    EXPECT_NEAR(result.loss_sum, want, static_cast<double>(size) * 64 * kEpsF32 * (1 + want / static_cast<double>(size)));
    EXPECT_EQ(result.num_tokens, size);
    EXPECT_EQ(result.num_bytes, 3 * size);
    EXPECT_EQ(result.loss(), result.loss_sum / static_cast<double>(size));
    EXPECT_EQ(result.perplexity(), std::exp(result.loss()));
    EXPECT_DOUBLE_EQ(result.bits_per_byte() * std::numbers::ln2 * static_cast<double>(3 * size), result.loss_sum);
    for (const ExpertLoad& load : result.layers) {
      int64_t assignments = 0;
      for (const int64_t n : load.tokens_per_expert) assignments += n;
      EXPECT_EQ(assignments, 2 * size);
      EXPECT_EQ(load.drop_rate, 0);
      EXPECT_GT(load.entropy, 0);
      EXPECT_LE(load.entropy, std::log(4.0));
      EXPECT_EQ(load.max_violation, MaxViolation(load.tokens_per_expert));
      EXPECT_EQ(load.coefficient_of_variation, CoefficientOfVariation(load.tokens_per_expert));
      EXPECT_NEAR(load.gate_mean, 0.5, 2 * kEpsF32);  // two gates that sum to 1
      EXPECT_GT(load.largest_logit, 0);
    }
  }
}

void ExpectSame(const Evaluation& a, const Evaluation& b) {
  EXPECT_EQ(a.loss_sum, b.loss_sum);
  EXPECT_EQ(a.document_loss_sum, b.document_loss_sum);
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (size_t l = 0; l < a.layers.size(); ++l) {
    EXPECT_EQ(a.layers[l].tokens_per_expert, b.layers[l].tokens_per_expert);
    EXPECT_EQ(a.layers[l].max_violation, b.layers[l].max_violation);
    EXPECT_EQ(a.layers[l].drop_rate, b.layers[l].drop_rate);
    EXPECT_EQ(a.layers[l].entropy, b.layers[l].entropy);
    EXPECT_EQ(a.layers[l].dead_experts, b.layers[l].dead_experts);
    EXPECT_EQ(a.layers[l].coefficient_of_variation, b.layers[l].coefficient_of_variation);
    EXPECT_EQ(a.layers[l].gate_mean, b.layers[l].gate_mean);
    EXPECT_EQ(a.layers[l].largest_logit, b.layers[l].largest_logit);
  }
}

// Bit for bit, in both formats.
TEST(Evaluate, NeitherBatchNorThreadsChangeTheResult) {
  Rng rng(2);
  const auto first = RandomInts(150, 41, rng), second = RandomInts(77, 41, rng);
  const std::vector<Document> documents = {{first, 150}, {}, {second, 77}};
  for (const DType format : {DType::kF32, DType::kBf16}) {
    Tiny one(WithBos(TinyMoe()), 1, format), two(WithBos(TinyMoe()), 2, format);
    const auto want = Evaluate(one.model, documents, {.context = 10, .batch = 1}, one.t.ctx).value();
    for (const int64_t batch : {0, 2, 3, 8, 1000}) {
      SCOPED_TRACE(batch);
      ExpectSame(Evaluate(one.model, documents, {.context = 10, .batch = batch}, one.t.ctx).value(), want);
      ExpectSame(Evaluate(two.model, documents, {.context = 10, .batch = batch}, two.t.ctx).value(), want);
    }
  }
}

// The logits that it hands out route as the model did, however many windows are a step.
TEST(Evaluate, HandsOutTheRoutersLogits) {
  ModelConfig config = WithBos(TinyMoe());
  config.layers[0] = {.ffn = FfnKind::kDense, .ffn_width = 32};
  Tiny tiny(config, 2);
  Rng rng(6);
  const auto tokens = RandomInts(21, 41, rng);
  const Document document{tokens, 21};
  std::vector<float> whole;
  for (const int64_t batch : {1, 2, 9}) {
    std::vector<float> logits;
    std::vector<int32_t> inputs;
    EvaluateOptions options{.context = 8, .batch = batch};
    options.on_router_logits = [&](std::span<const RowInfo> rows, std::span<const MatView<float>> layers) -> Status {
      EXPECT_EQ(layers.size(), 2u);
      EXPECT_TRUE(layers[0].empty());
      EXPECT_EQ(layers[1].rows, std::ssize(rows));
      EXPECT_EQ(layers[1].cols, 4);
      for (int64_t t = 0; t < layers[1].rows; ++t) {
        logits.insert(logits.end(), layers[1].row(t), layers[1].row(t) + 4);
        inputs.push_back(rows[static_cast<size_t>(t)].token_id);
      }
      return {};
    };
    const auto result = Evaluate(tiny.model, {&document, 1}, options, tiny.t.ctx).value();
    ASSERT_EQ(inputs.size(), 21u);
    EXPECT_EQ(inputs[8], kBos);
    EXPECT_EQ(inputs[9], tokens[8]);
    if (batch == 1) whole = logits;
    EXPECT_EQ(logits, whole);
    Arena arena;
    ExecContext own{tiny.t.ctx.pool, arena, tiny.t.ctx.kernels};
    const Routing routing = Route(config.layers[1].moe.router, {.logits = {logits.data(), 21, 4}}, nullptr, own).value();
    EXPECT_TRUE(std::ranges::equal(routing.aux.tokens_per_expert, result.layers[1].tokens_per_expert));
    EXPECT_EQ(routing.aux.largest_logit, result.layers[1].largest_logit);
    EXPECT_DOUBLE_EQ(routing.aux.entropy, result.layers[1].entropy);
  }
  EvaluateOptions refusing{.on_router_logits = [](std::span<const RowInfo>, std::span<const MatView<float>>) -> Status {
    return Err("here", "got enough");
  }};
  const auto refused = Evaluate(tiny.model, {&document, 1}, refusing, tiny.t.ctx);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().where, "here");
}

TEST(Evaluate, DocumentsAreWindowsOfTheirOwn) {
  Tiny tiny(WithBos(TinyMoe()));
  Rng rng(3);
  const auto a = RandomInts(11, 41, rng), b = RandomInts(5, 41, rng);
  const std::vector<Document> both = {{a, 11}, {b, 5}};
  const auto result = Evaluate(tiny.model, both, {.context = 4}, tiny.t.ctx).value();
  for (size_t d = 0; d < 2; ++d) {
    const auto alone = Evaluate(tiny.model, {&both[d], 1}, {.context = 4}, tiny.t.ctx).value();
    EXPECT_EQ(result.document_loss_sum[d], alone.loss_sum);
  }
  EXPECT_EQ(result.loss_sum, result.document_loss_sum[0] + result.document_loss_sum[1]);
}

// Without options the window is the model's whole context, and BOS the model's.
TEST(Evaluate, DefaultsAreTheModels) {
  Tiny tiny(WithBos(TinyMoe()));
  Rng rng(4);
  const auto tokens = RandomInts(50, 41, rng);
  const Document document{tokens, 50};
  ExpectSame(Evaluate(tiny.model, {&document, 1}, {}, tiny.t.ctx).value(),
             Evaluate(tiny.model, {&document, 1}, {.context = 32, .bos_id = kBos}, tiny.t.ctx).value());
  EXPECT_NE(Evaluate(tiny.model, {&document, 1}, {.bos_id = 0}, tiny.t.ctx).value().loss_sum,
            Evaluate(tiny.model, {&document, 1}, {}, tiny.t.ctx).value().loss_sum);
}

TEST(Evaluate, DenseLayersHaveNoLoad) {
  Tiny tiny(WithBos(TinyDense()));
  const std::vector<int32_t> tokens = {1, 2, 3};
  const Document document{tokens, 3};
  const auto result = Evaluate(tiny.model, {&document, 1}, {}, tiny.t.ctx).value();
  ASSERT_EQ(result.layers.size(), 2u);
  EXPECT_TRUE(result.layers[0].tokens_per_expert.empty());
  EXPECT_EQ(result.layers[0].max_violation, 0);
  EXPECT_EQ(result.layers[0].dead_experts, 0);
}

TEST(Evaluate, CountsDeadExperts) {
  Tiny tiny(WithBos(TinyMoe()));
  const std::vector<int32_t> tokens = {7};
  const Document document{tokens, 1};
  const auto result = Evaluate(tiny.model, {&document, 1}, {}, tiny.t.ctx).value();
  EXPECT_EQ(result.layers[0].dead_experts, 2);  // one token, top-2 of 4
  EXPECT_EQ(result.layers[0].max_violation, 1);
}

TEST(Evaluate, StopsWhenAskedTo) {
  Tiny tiny(WithBos(TinyMoe()));
  const std::vector<int32_t> tokens(40, 1);
  const Document document{tokens, 40};
  int calls = 0;
  EvaluateOptions options{.context = 4, .batch = 3};
  options.on_step = [&](int64_t done, int64_t total, double loss_sum) {
    EXPECT_EQ(done, ++calls * 12);
    EXPECT_EQ(total, 40);
    EXPECT_GT(loss_sum, 0);
    return calls < 2;
  };
  EXPECT_EQ(Evaluate(tiny.model, {&document, 1}, options, tiny.t.ctx).error().Message(),
            "[evaluation] got interrupted after 24 tokens, expected to read 40");
}

TEST(Evaluate, Errors) {
  Tiny tiny(WithBos(TinyMoe()));
  const auto message = [&](std::vector<int32_t> tokens, const EvaluateOptions& options) {
    const Document document{tokens, static_cast<int64_t>(tokens.size())};
    const auto result = Evaluate(tiny.model, {&document, 1}, options, tiny.t.ctx);
    return result ? std::string("done") : result.error().Message();
  };
  EXPECT_EQ(message({1}, {}), "done");
  EXPECT_EQ(message({}, {}), "[evaluation] got no text, expected at least one token");
  EXPECT_EQ(message({1, 41}, {}), "[evaluation] got token 41, expected 0..40");
  EXPECT_EQ(message({-1}, {}), "[evaluation] got token -1, expected 0..40");
  EXPECT_EQ(message({1}, {.context = 33}), "[evaluation] got context 33, expected 1..32");
  EXPECT_EQ(message({1}, {.batch = -1}), "[evaluation] got batch -1, expected at least 1");
  EXPECT_EQ(message({1}, {.bos_id = 41}), "[evaluation] got BOS token 41, expected 0..40");

  Tiny no_bos(TinyMoe());
  const std::vector<int32_t> tokens = {1};
  const Document document{tokens, 1};
  EXPECT_EQ(Evaluate(no_bos.model, {&document, 1}, {}, no_bos.t.ctx).error().Message(),
            "[evaluation] got BOS token -1, expected 0..40");

  tiny.model.parameters().Find("embedding")->value.data()[24 * 1] = std::numeric_limits<float>::quiet_NaN();
  tiny.model.Repack(tiny.t.ctx);
  EXPECT_NE(message({1, 1, 1}, {}), "done");
}

}  // namespace
}  // namespace moe
