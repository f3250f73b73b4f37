// Runs of every kind of routing policy.
#include <cmath>

#include "moe/model/load.h"
#include "moe/model/save.h"
#include "testing/matchers.h"
#include "testing/test_context.h"
#include "tests/train/run_fixture.h"

namespace moe::test {
namespace {

class RunPoliciesTest : public RunTest {
 protected:
  // Of each: a run in one go, and one that was stopped and went on.
  void ExpectResumedEqualsNeverStopped(const std::vector<std::vector<std::string>>& all) {
    for (size_t i = 0; i < all.size(); ++i) {
      SCOPED_TRACE(fmt::format("{}", fmt::join(all[i], " ")));
      const std::string whole = fmt::format("whole{}", i), stopped = fmt::format("stopped{}", i);
      const auto first = Run(whole, false, {.sets = all[i]});
      ASSERT_TRUE(first) << first.error().Message();
      ASSERT_TRUE(Run(stopped, false, {.sets = all[i]}, StopAfter(5)));
      const auto resumed = Run(stopped, true, {.sets = all[i]});
      ASSERT_TRUE(resumed) << resumed.error().Message();
      ExpectSameRun(Folder(stopped), Folder(whole));
    }
  }
};

// Whatever a policy keeps or draws: noise, drops by chance, biases and capacities that follow the load.
TEST_F(RunPoliciesTest, ResumedEqualsNeverStoppedForEveryPolicy) {
  ExpectResumedEqualsNeverStopped({
      {"router.noise=gaussian", "router.noise_scale=0.5"},
      {"router.noise=gumbel", "router.noise_scale=1"},
      {"router.noise=jitter", "router.noise_scale=0.2"},
      {"router.drop=random", "router.target_drop=0.02"},
      {"router.balance_bias=sign", "router.bias_rate=0.05", "router.bias=true"},
      {"router.balance_bias=load", "router.bias_rate=0.05", "router.capacity_scope=sequence", "router.drop=score"},
      {"router.groups=2", "router.top_groups=1", "router.balance_bias=sign", "router.bias_rate=0.01"},
      {"router.noise=gumbel_later", "router.noise_scale=1", "router.drop=first_choices", "router.normalize_after_drop=true"},
      {"router.gate=mlp", "router.gate_width=8", "router.noise=jitter", "router.noise_scale=0.1"},
      {"router.gate=cosine", "router.gate_width=8"},
      {"router.dtype=bf16", "router.z_loss=0"},
      {"router.noise=gaussian", "router.noise_scale=1", "router.load_loss=0.1"},
      {"router.selection=sinkhorn"},
      {"router.selection=hash", "router.balance_loss=0"},
      {"router.score=relu", "router.capacity_factor=0"},
      {"router.score=sqrt_softplus", "router.sequence_loss=0.1", "router.global_loss=0.1", "router.importance_loss=0.1"},
      {"router.selection=expert_choice", "router.allow_noncausal=true", "router.normalize=false", "router.capacity_factor=0"},
  });
}

TEST_F(RunPoliciesTest, ResumedEqualsNeverStoppedForEveryPreset) {
  std::vector<std::vector<std::string>> presets;
  for (const std::string_view name : PolicyNames()) presets.push_back(PresetSets(name));
  ExpectResumedEqualsNeverStopped(presets);
}

TEST_F(RunPoliciesTest, ResumedEqualsNeverStoppedForExpertsOfEveryKind) {
  ExpectResumedEqualsNeverStopped(ModelsOfManyKinds());
}

// A bias for selection is float32 in files of bf16 too, moves once a step however many micro-batches it has, and rests in
// evaluation.
TEST_F(RunPoliciesTest, Trap09_TheSelectionBiasMovesOnceAStepAndIsSavedInFloat32) {
  const std::vector<std::string> sets = {
      "router.balance_bias=sign", "router.bias_rate=0.001953125", "train.steps=3", "train.eval_every=1",
      "train.dtype=bf16",         "train.micro_batch_tokens=16"};
  ASSERT_TRUE(Run("run", false, {.sets = sets}));
  TestContext t(1);
  const auto model = LoadModel(Folder("run"), {.format = DType::kBf16, .training = true}, t.ctx);
  ASSERT_TRUE(model) << model.error().Message();
  std::filesystem::create_directory(dir_ / "half");
  ASSERT_TRUE(SaveModel(**model, dir_ / "half", DType::kBf16));
  const auto half = LoadModel(dir_ / "half", {.format = DType::kBf16, .training = true}, t.ctx);
  ASSERT_TRUE(half) << half.error().Message();
  for (const char* name : {"layers.0.moe.selection_bias", "layers.1.moe.selection_bias"}) {
    SCOPED_TRACE(name);
    const Parameter* bias = (*model)->parameters().Find(name);
    ASSERT_NE(bias, nullptr);
    ExpectSameBits((*half)->parameters().Find(name)->value.span(), bias->value.span());
    double most = 0;
    for (const float b : bias->value.span()) {
      // Of four experts each step adds rate * (sign - mean sign), a multiple of rate / 4 and at most 1.5 * rate.
      const double quarters = b / 0.001953125 * 4;
      EXPECT_EQ(quarters, std::round(quarters));
      most = std::max(most, std::fabs(quarters));
    }
    EXPECT_GT(most, 0);
    EXPECT_LE(most, 3 * 6);
  }
}

}  // namespace
}  // namespace moe::test
