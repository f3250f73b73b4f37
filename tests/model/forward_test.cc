// One Forward for everything: with and without a cache, alone and in company, whole and in pieces, the same bits.

#include <gtest/gtest.h>

#include <cmath>

#include "moe/model/model.h"
#include "testing/matchers.h"
#include "testing/test_context.h"
#include "testing/tiny_model.h"

namespace moe::test {
namespace {

std::vector<ModelConfig> Configs() {
  std::vector<ModelConfig> configs{TinyMoe(), TinyDense(), TinyMoe(), TinyMoe()};
  configs[1].qk_norm = QkNorm::kPerHead;
  configs[2].qk_norm = QkNorm::kWhole;
  configs[2].tie_embeddings = false;
  configs[3].layers[0] = TinyDense().layers[0];
  configs[3].layers[1].moe.num_shared_experts = 1;
  return configs;
}

// Every config in both formats on every table that runs here.
template <class Fn>
void ForEachModel(Fn&& fn) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const DType format : {DType::kF32, DType::kBf16}) {
      size_t index = 0;
      for (const ModelConfig& config : Configs()) {
        SCOPED_TRACE(fmt::format("{} {} config {}", table->name, Name(format), index++));
        TestContext t(2, table);
        Model model(config, format, /*training=*/false);
        FillParameters(model, 7, t.ctx);
        fn(model, t);
      }
    }
  }
}

std::vector<float> Logits(const Model& model, const StepBatch& batch, TestContext& t) {
  t.arena.Reset();
  const auto logits = model.Forward(batch, nullptr, t.ctx);
  EXPECT_TRUE(logits.has_value());
  std::vector<float> out;
  for (int64_t r = 0; logits && r < logits->rows; ++r) out.insert(out.end(), logits->row(r), logits->row(r) + logits->cols);
  return out;
}

TEST(Forward, TokenByTokenAndInChunksEqualsTheWhole) {
  ForEachModel([](const Model& model, TestContext& t) {
    const TinyBatch whole = RandomBatch(model.config(), {13}, 1);
    const std::vector<float> want = Logits(model, whole.step(), t);
    for (const int64_t chunk : {1, 2, 5, 13}) {
      SCOPED_TRACE(chunk);
      KvCache cache = KvCache::Make(model.config(), 3, 16);
      std::vector<float> got;
      for (size_t begin = 0; begin < whole.rows.size(); begin += static_cast<size_t>(chunk)) {
        const size_t n = std::min(whole.rows.size() - begin, static_cast<size_t>(chunk));
        TinyBatch part;
        part.rows.assign(whole.rows.begin() + static_cast<int64_t>(begin),
                         whole.rows.begin() + static_cast<int64_t>(begin + n));
        for (RowInfo& row : part.rows) row.sequence = 2;
        for (size_t i = 0; i < n; ++i) part.logit_rows.push_back(static_cast<int32_t>(i));
        const std::vector<float> logits = Logits(model, part.step(&cache), t);
        got.insert(got.end(), logits.begin(), logits.end());
      }
      ExpectSameBits(got, want);
    }
  });
}

// So many rows, of matrices so wide, that products read interleaved rows; one token's never do.
TEST(Forward, TokenByTokenEqualsALongPrompt) {
  ModelConfig config = TinyMoe();
  config.hidden = 130, config.vocab_size = 150, config.context = 256;
  for (LayerSpec& layer : config.layers) layer.moe.expert_width = 64;
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const DType format : {DType::kF32, DType::kBf16}) {
      SCOPED_TRACE(fmt::format("{} {}", table->name, Name(format)));
      TestContext t(1, table);
      Model model(config, format, /*training=*/false);
      FillParameters(model, 7, t.ctx, 0.1);
      const TinyBatch whole = RandomBatch(config, {256}, 3);
      const std::vector<float> want = Logits(model, whole.step(), t);
      KvCache cache = KvCache::Make(config, 1, 256);
      std::vector<float> got;
      for (const RowInfo& row : whole.rows) {
        TinyBatch token;
        token.rows = {row}, token.logit_rows = {0};
        const std::vector<float> logits = Logits(model, token.step(&cache), t);
        got.insert(got.end(), logits.begin(), logits.end());
      }
      ExpectSameBits(got, want);
    }
  }
}

TEST(Forward, EightTogetherEqualEightAlone) {
  ForEachModel([](const Model& model, TestContext& t) {
    // Eight users at different positions: a prompt each, then one step for all, some with two tokens (a prompt's end).
    KvCache together = KvCache::Make(model.config(), 8, 16), alone = KvCache::Make(model.config(), 8, 16);
    TinyBatch step;
    std::vector<TinyBatch> steps(8);
    for (int32_t s = 0; s < 8; ++s) {
      TinyBatch all = RandomBatch(model.config(), {s + 3}, 100 + static_cast<uint64_t>(s));
      for (RowInfo& row : all.rows) row.sequence = s;
      const size_t last = s % 3 == 0 ? 2 : 1;
      TinyBatch prompt = all;
      prompt.rows.resize(all.rows.size() - last), prompt.logit_rows.clear();
      Logits(model, prompt.step(&together), t);
      Logits(model, prompt.step(&alone), t);
      TinyBatch& own = steps[static_cast<size_t>(s)];
      own.rows.assign(all.rows.end() - static_cast<int64_t>(last), all.rows.end());
      own.logit_rows = {static_cast<int32_t>(last) - 1};
      step.rows.insert(step.rows.end(), own.rows.begin(), own.rows.end());
      step.logit_rows.push_back(static_cast<int32_t>(step.rows.size()) - 1);
    }
    const std::vector<float> got = Logits(model, step.step(&together), t);
    std::vector<float> want;
    for (const TinyBatch& own : steps) {
      const std::vector<float> logits = Logits(model, own.step(&alone), t);
      want.insert(want.end(), logits.begin(), logits.end());
    }
    ExpectSameBits(got, want);
  });
}

TEST(Forward, OnlyTheRowsAskedForHaveLogits) {
  TestContext t(1);
  Model model(TinyMoe(), DType::kF32, false);
  FillParameters(model, 7, t.ctx);
  TinyBatch batch = RandomBatch(model.config(), {5, 4}, 2);
  const std::vector<float> all = Logits(model, batch.step(), t);
  batch.logit_rows = {1, 8};
  const int64_t V = model.config().vocab_size;
  std::vector<float> want(all.begin() + V, all.begin() + 2 * V);
  want.insert(want.end(), all.begin() + 8 * V, all.begin() + 9 * V);
  ExpectSameBits(Logits(model, batch.step(), t), want);
  batch.logit_rows.clear();
  EXPECT_TRUE(Logits(model, batch.step(), t).empty());
  EXPECT_TRUE(Logits(model, StepBatch{}, t).empty());
}

TEST(Forward, PaddingIsSeenByNobodyAndCountedNowhere) {
  ForEachModel([](const Model& model, TestContext& t) {
    const TinyBatch packed = RandomBatch(model.config(), {5, 2, 1}, 3),
                    padded = RandomBatch(model.config(), {5, 2, 1}, 3, true);
    ASSERT_EQ(padded.rows.size(), 15u);
    const std::vector<float> want = Logits(model, packed.step(), t), all = Logits(model, padded.step(), t);
    std::vector<float> got;
    for (size_t r = 0; r < padded.rows.size(); ++r) {
      if (!padded.rows[r].valid) continue;
      const auto V = model.config().vocab_size, begin = static_cast<int64_t>(r) * V;
      got.insert(got.end(), all.begin() + begin, all.begin() + begin + V);
    }
    ExpectSameBits(got, want);
    StepStats a, b;
    t.arena.Reset();
    ASSERT_TRUE(model.Evaluate(packed.step(), packed.targets, &a, {}, t.ctx));
    t.arena.Reset();
    ASSERT_TRUE(model.Evaluate(padded.step(), padded.targets, &b, {}, t.ctx));
    EXPECT_EQ(a.loss_sum, b.loss_sum);
    EXPECT_EQ(a.num_targets, 5);
    EXPECT_EQ(b.num_targets, 5);
    for (size_t l = 0; l < a.layers.size(); ++l) {
      EXPECT_EQ(a.layers[l].tokens_per_expert, b.layers[l].tokens_per_expert);
      EXPECT_EQ(a.layers[l].num_tokens, b.layers[l].num_tokens);
    }
  });
}

TEST(Forward, EvaluateIsTheLossOfForwardsLogits) {
  ForEachModel([](const Model& model, TestContext& t) {
    const TinyBatch batch = RandomBatch(model.config(), {9, 4, 1}, 4);
    const std::vector<float> logits = Logits(model, batch.step(), t);
    std::vector<float> loss(batch.rows.size());
    StepStats stats;
    t.arena.Reset();
    ASSERT_TRUE(model.Evaluate(batch.step(), batch.targets, &stats, loss, t.ctx));
    double sum = 0;
    for (size_t r = 0; r < loss.size(); ++r) {
      const float* z = logits.data() + static_cast<int64_t>(r) * model.config().vocab_size;
      double want = 0, total = 0, largest = 0;
      for (int64_t v = 0; v < model.config().vocab_size; ++v) {
        total += std::exp(static_cast<double>(z[v])), largest = std::max(largest, std::abs(static_cast<double>(z[v])));
      }
      if (batch.targets[r] >= 0) want = std::log(total) - static_cast<double>(z[batch.targets[r]]);
      // The sum of V exponentials, each off by 2 u, is off by (V + 2) u; the result rounds once.
      EXPECT_NEAR(loss[r], want, static_cast<double>(model.config().vocab_size + 4) * kEpsF32 + kEpsF32 * (want + largest));
      sum += static_cast<double>(loss[r]);
    }
    EXPECT_EQ(stats.loss_sum, sum);
    EXPECT_EQ(stats.num_targets, batch.num_targets());
  });
}

TEST(Forward, StatsOfSeveralStepsAddUp) {
  TestContext t(1);
  Model model(TinyMoe(), DType::kF32, false);
  FillParameters(model, 7, t.ctx);
  const TinyBatch a = RandomBatch(model.config(), {6}, 1), b = RandomBatch(model.config(), {2}, 2);
  StepStats sum, one, two;
  for (const auto& [batch, single] : {std::pair{&a, &one}, std::pair{&b, &two}}) {
    ASSERT_TRUE(model.Evaluate(batch->step(), batch->targets, &sum, {}, t.ctx));
    ASSERT_TRUE(model.Evaluate(batch->step(), batch->targets, single, {}, t.ctx));
  }
  EXPECT_EQ(sum.loss_sum, one.loss_sum + two.loss_sum);
  EXPECT_EQ(sum.num_targets, 6);
  for (size_t l = 0; l < 2; ++l) {
    const LayerStats &s = sum.layers[l], &x = one.layers[l], &y = two.layers[l];
    EXPECT_EQ(s.num_tokens, 8);
    EXPECT_EQ(s.num_slots, 16);
    for (size_t e = 0; e < 4; ++e) EXPECT_EQ(s.tokens_per_expert[e], x.tokens_per_expert[e] + y.tokens_per_expert[e]);
    EXPECT_NEAR(s.entropy, (6 * x.entropy + 2 * y.entropy) / 8, 1e-12);
    EXPECT_NEAR(s.z_loss, (6 * x.z_loss + 2 * y.z_loss) / 8, 1e-12 * x.z_loss);
    EXPECT_NEAR(s.balance_loss, (6 * x.balance_loss + 2 * y.balance_loss) / 8, 1e-12);
    EXPECT_GT(x.gate_sum, 0);
    EXPECT_EQ(s.gate_sum, x.gate_sum + y.gate_sum);
    EXPECT_DOUBLE_EQ(s.gate_mean(), s.gate_sum / 16);
    EXPECT_EQ(s.largest_logit, std::max(x.largest_logit, y.largest_logit));
  }
  EXPECT_GT(one.layers[0].largest_logit, two.layers[0].largest_logit);  // the larger one came first
  sum.Clear();
  EXPECT_EQ(sum.layers[1].gate_sum, 0);
  EXPECT_EQ(sum.layers[1].largest_logit, 0);
  EXPECT_EQ(sum.num_targets, 0);
  EXPECT_EQ(sum.layers[1].num_tokens, 0);
  EXPECT_EQ(sum.layers[1].tokens_per_expert, std::vector<int64_t>(4, 0));
}

TEST(Forward, WorldFaultsAreErrorsInOneLine) {
  TestContext t(1);
  Model model(TinyMoe(), DType::kF32, false);
  FillParameters(model, 7, t.ctx);
  const auto error_of = [&](const TinyBatch& batch, KvCache* cache) {
    t.arena.Reset();
    const auto logits = model.Forward(batch.step(cache), nullptr, t.ctx);
    return logits ? std::string("none") : logits.error().Message();
  };
  TinyBatch batch = RandomBatch(model.config(), {3}, 1);
  batch.rows[1].token_id = 41;
  EXPECT_EQ(error_of(batch, nullptr), "[row 1] got token 41, expected one of the 41 of the vocabulary");
  batch.rows[1].token_id = -1;
  EXPECT_EQ(error_of(batch, nullptr), "[row 1] got token -1, expected one of the 41 of the vocabulary");
  EXPECT_EQ(error_of(RandomBatch(model.config(), {33}, 1), nullptr),
            "[row 32] got position 32, expected less than the context length 32");
  KvCache cache = KvCache::Make(model.config(), 1, 4);
  EXPECT_EQ(error_of(RandomBatch(model.config(), {5}, 1), &cache), "[row 4] got position 4, expected less than the cache's 4");
  batch = RandomBatch(model.config(), {3}, 1);
  batch.targets[1] = 41;
  StepStats stats;
  const Status status = model.Evaluate(batch.step(), batch.targets, &stats, {}, t.ctx);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().Message(), "[row 1] got target 41, expected one of the 41 of the vocabulary");
}

TEST(Forward, ValuesThatAreNotFiniteNameTheirLayer) {
  const TinyBatch batch = RandomBatch(TinyMoe(), {6}, 1);
  const auto error_of = [&](const ModelConfig& config, const char* parameter) {
    TestContext t(1);
    Model model(config, DType::kF32, true);
    FillParameters(model, 7, t.ctx);
    model.parameters().Find(parameter)->value.data()[0] = NAN;
    model.Repack(t.ctx);
    StepStats stats;
    const Status status = model.ForwardBackward(batch.step(), batch.targets, 1, 1, &stats, t.ctx);
    return status ? std::string("none") : status.error().Message();
  };
  EXPECT_EQ(error_of(TinyMoe(), "layers.1.moe.router").substr(0, 41), "[layer 1] router token 0: got logit nan f");
  EXPECT_EQ(error_of(TinyMoe(), "layers.1.attention.out").substr(0, 40), "[layer 1] router token 0: got logit nan ");
  EXPECT_EQ(error_of(TinyDense(), "layers.1.attention.out"),
            "[layer 1] got a value that is not finite out of its attention, row 0");
  EXPECT_EQ(error_of(TinyDense(), "layers.0.dense.down"), "[layer 0] got a value that is not finite out of its FFN, row 0");
}

}  // namespace
}  // namespace moe::test
