// Whole steps of training and decoding.
#include <gtest/gtest.h>

#include "moe/base/rng.h"
#include "moe/model/kv_cache.h"
#include "moe/train/trainer.h"
#include "testing/test_context.h"
#include "tests/allocation/counting.h"

namespace moe::test {
namespace {

constexpr int kWarmUp = 2, kSteps = 8;

struct Case {
  Executor executor;
  DType dtype;
  bool capacity;
};

std::string Label(const Case& c) {
  const char* names[] = {"grouped", "padded", "loop", "block_sparse"};
  return fmt::format("{}_{}{}", names[static_cast<size_t>(c.executor)], Name(c.dtype), c.capacity ? "_capacity" : "");
}

class Steps : public testing::TestWithParam<Case> {
 protected:
  Recipe MakeRecipe() const {
    Recipe recipe;
    recipe.model = {.layers = 2,
                    .hidden = 48,
                    .heads = 2,
                    .kv_heads = 2,
                    .head_width = 24,
                    .context = 32,
                    .experts = 6,
                    .top_k = 2,
                    .expert_width = 48,
                    .shared_experts = 1,
                    .shared_expert_width = 32,
                    .executor = GetParam().executor};
    recipe.router.config.capacity.factor = GetParam().capacity ? 1.25 : 0;
    recipe.train.steps = 100;
    recipe.train.batch_tokens = 128, recipe.train.micro_batch_tokens = 64, recipe.train.context = 32;
    recipe.train.min_lr = 1e-4;
    recipe.train.dtype = GetParam().dtype;
    return recipe;
  }
  static constexpr int64_t kVocab = 70;
};

// Loads of experts differ from step to step, and with them what a step takes from the arena. So the first round may still grow
// it, which is all that may be allocated; the same steps once more find everything there.
TEST_P(Steps, TrainingAllocatesNothingAfterWarmUp) {
  for (const bool skip_idle : {false, true}) {
    Recipe recipe = MakeRecipe();
    recipe.train.skip_idle_experts = skip_idle;
    TestContext t(2);
    Model model(MakeModelConfig(recipe, kVocab, 0, 1, "test").value(), recipe.train.dtype, true);
    Corpus corpus;
    corpus.documents.emplace_back();
    Rng rng(1);
    for (int i = 0; i < 5000; ++i) corpus.documents[0].push_back(static_cast<int32_t>(rng.Below(kVocab)));
    corpus.num_tokens = 5000;
    Trainer trainer(recipe, corpus, std::vector<int32_t>(kVocab, 1), model);
    StepMetrics metrics;
    for (const bool again : {false, true}) {
      trainer.Restart(t.ctx);
      for (int i = 0; i < kSteps; ++i) {
        const int64_t blocks = t.arena.num_allocations();
        bool done = false;
        const int64_t allocations = AllocationsIn([&] { done = trainer.Step(metrics, t.ctx).has_value(); });
        ASSERT_TRUE(done);
        if (again || (i >= kWarmUp && t.arena.num_allocations() == blocks)) {
          EXPECT_EQ(allocations, 0) << "step " << i << (again ? " again" : "");
        }
      }
    }
  }
}

TEST_P(Steps, DecodingAllocatesNothingAfterWarmUp) {
  const Recipe recipe = MakeRecipe();
  TestContext t(2);
  Model model(MakeModelConfig(recipe, kVocab, 0, 1, "test").value(), recipe.train.dtype, false);
  model.Initialize(1, t.ctx);
  constexpr int32_t kSequences = 5;
  KvCache cache = KvCache::Make(model.config(), kSequences, 32);
  std::vector<RowInfo> rows(kSequences);
  std::vector<int32_t> logit_rows(kSequences);
  StepStats stats;
  for (const bool again : {false, true}) {
    Rng rng(2);
    for (int i = 0; i < kSteps; ++i) {
      for (int32_t s = 0; s < kSequences; ++s) {
        rows[static_cast<size_t>(s)] = {.sequence = s, .position = i, .token_id = static_cast<int32_t>(rng.Below(kVocab))};
        logit_rows[static_cast<size_t>(s)] = s;
      }
      const int64_t blocks = t.arena.num_allocations();
      bool done = false;
      const int64_t allocations = AllocationsIn([&] {
        t.arena.Reset();
        done = model.Forward({rows, logit_rows, &cache}, i % 2 == 0 ? &stats : nullptr, t.ctx).has_value();
      });
      ASSERT_TRUE(done);
      if (again || (i >= kWarmUp && t.arena.num_allocations() == blocks)) {
        EXPECT_EQ(allocations, 0) << "step " << i << (again ? " again" : "");
      }
    }
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const Executor executor : {Executor::kGrouped, Executor::kPadded, Executor::kLoop, Executor::kBlockSparse}) {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      for (const bool capacity : {false, true}) cases.push_back({executor, dtype, capacity});
    }
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(All, Steps, testing::ValuesIn(Cases()), [](const auto& c) { return Label(c.param); });

}  // namespace
}  // namespace moe::test
