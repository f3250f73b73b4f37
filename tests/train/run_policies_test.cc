// Runs of every kind of routing policy.
#include <cmath>

#include "moe/model/evaluate.h"
#include "moe/model/load.h"
#include "moe/model/save.h"
#include "testing/matchers.h"
#include "testing/test_context.h"
#include "tests/train/run_fixture.h"

namespace moe::test {
namespace {

// Whatever a policy keeps or draws: noise, drops by chance, biases and capacities that follow the load.
TEST_F(RunTest, ResumedEqualsNeverStoppedForEveryPolicy) {
  const std::vector<std::vector<std::string>> policies = {
      {"router.noise=gaussian", "router.noise_scale=0.5"},
      {"router.noise=gumbel", "router.noise_scale=1"},
      {"router.noise=jitter", "router.noise_scale=0.2"},
      {"router.drop=random", "router.target_drop=0.02"},
      {"router.balance_bias=sign", "router.bias_rate=0.05", "router.bias=true"},
      {"router.balance_bias=load", "router.bias_rate=0.05", "router.capacity_scope=sequence", "router.drop=score"},
      {"router.policy=deepseek-v3", "router.groups=2", "router.top_groups=1", "model.top_k=2"},
      {"router.policy=phi-3.5-moe"},
      {"router.policy=as-switch"},
      {"router.policy=as-deepspeed-top2"},
      {"router.policy=llama-4"},
      {"router.gate=mlp", "router.gate_width=8", "router.noise=jitter", "router.noise_scale=0.1"},
      {"router.gate=cosine", "router.gate_width=8"},
      {"router.dtype=bf16", "router.z_loss=0"},
      {"router.noise=gaussian", "router.noise_scale=1", "router.load_loss=0.1"},
      {"router.selection=sinkhorn"},
      {"router.selection=hash", "router.balance_loss=0"},
      {"router.score=relu", "router.capacity_factor=0"},
      {"router.score=sqrt_softplus", "router.sequence_loss=0.1", "router.global_loss=0.1", "router.importance_loss=0.1"},
      {"router.selection=expert_choice", "router.allow_noncausal=true", "router.normalize=false", "router.capacity_factor=0"},
  };
  for (size_t i = 0; i < policies.size(); ++i) {
    SCOPED_TRACE(fmt::format("{}", fmt::join(policies[i], " ")));
    const std::string whole = fmt::format("whole{}", i), stopped = fmt::format("stopped{}", i);
    const auto first = Run(whole, false, {.sets = policies[i]});
    ASSERT_TRUE(first) << first.error().Message();
    ASSERT_TRUE(Run(stopped, false, {.sets = policies[i]}, StopAfter(5)));
    const auto resumed = Run(stopped, true, {.sets = policies[i]});
    ASSERT_TRUE(resumed) << resumed.error().Message();
    ExpectSameRun(Folder(stopped), Folder(whole));
  }
}

// Trains, saves and loads; then the same text as evaluation's windows and as generation's steps, token by token. Hundreds of
// steps, so that biases and capacities have moved.
TEST_F(RunTest, Trap12_EvaluationAndGenerationRouteAlikeForEveryPolicyThatServesTokensAlone) {
  const std::vector<std::vector<std::string>> policies = {
      {},
      {"router.score=topk_softmax"},
      {"router.score=sigmoid", "router.balance_bias=sign", "router.bias_rate=0.01"},
      {"router.balance_bias=load", "router.bias_rate=0.5", "router.bias=true"},
      {"router.policy=deepseek-v3", "router.groups=2", "router.top_groups=1", "model.top_k=2"},
      {"router.policy=phi-3.5-moe"},
      {"router.policy=as-megatron"},
      {"router.selection=sinkhorn"},
      {"router.selection=hash", "router.balance_loss=0"},
      {"router.noise=jitter", "router.noise_scale=0.2"},
      {"router.noise=gumbel", "router.noise_scale=1"},
      {"router.target_drop=0.1", "router.drop=random"},
      {"router.score=relu", "router.capacity_factor=0"},
      {"router.score=sqrt_softplus", "router.sequence_loss=0.1"},
      {"router.gate=mlp", "router.gate_width=8"},
      {"router.gate=cosine", "router.gate_width=8", "router.bias=true"},
      {"router.policy=llama-4"},
      {"router.noise=gaussian", "router.noise_scale=0.5", "router.load_loss=0.1"},
      {"router.noise=gumbel_later", "router.noise_scale=1"},
      {"router.policy=as-switch", "router.eval_capacity_factor=0"},
      {"router.policy=as-gshard", "router.eval_capacity_factor=0"},
      {"router.policy=as-deepspeed-topk", "router.eval_capacity_factor=0", "model.top_k=2"},
      {"router.dtype=bf16"},
      {"train.dtype=bf16"},
  };
  for (size_t i = 0; i < policies.size(); ++i) {
    SCOPED_TRACE(fmt::format("{}", fmt::join(policies[i], " ")));
    auto sets = policies[i];
    sets.insert(sets.end(), {"train.steps=200", "train.eval_every=0", "train.checkpoint_every=0"});
    const std::string name = fmt::format("run{}", i);
    const auto summary = Run(name, false, {.sets = sets});
    ASSERT_TRUE(summary) << summary.error().Message();

    TestContext t(2);
    const DType format = policies[i] == std::vector<std::string>{"train.dtype=bf16"} ? DType::kBf16 : DType::kF32;
    const auto model = LoadModel(Folder(name), {.format = format}, t.ctx);
    ASSERT_TRUE(model) << model.error().Message();
    const ModelConfig& config = (*model)->config();
    const std::string text = TinyText(2, 300);  // the run's validation text
    const std::vector<int32_t> tokens(text.begin(), text.end());
    const Document document{tokens, std::ssize(tokens)};
    const auto evaluation = Evaluate(**model, std::span(&document, 1), {}, t.ctx);
    ASSERT_TRUE(evaluation) << evaluation.error().Message();
    EXPECT_EQ(evaluation->loss(), summary->validation_loss);

    std::vector<ExpertLoad> generated(config.layers.size());
    for (ExpertLoad& load : generated) load.tokens_per_expert.assign(4, 0);
    KvCache cache = KvCache::Make(config, 1, config.context);
    for (size_t begin = 0; begin < tokens.size(); begin += static_cast<size_t>(config.context)) {
      std::vector<RowInfo> window{{.token_id = config.bos_id}};
      std::vector<int32_t> all_rows{0};
      while (std::ssize(window) < std::min(config.context, std::ssize(tokens) - static_cast<int64_t>(begin))) {
        const auto position = static_cast<int32_t>(window.size());
        all_rows.push_back(position);
        window.push_back({.position = position, .token_id = tokens[begin + window.size() - 1]});
      }
      t.arena.Reset();
      const auto at_once = (*model)->Forward({.rows = window, .logit_rows = all_rows}, nullptr, t.ctx);
      ASSERT_TRUE(at_once);
      std::vector<float> logits(at_once->data, at_once->data + at_once->size());
      for (size_t p = 0; p < window.size(); ++p) {
        t.arena.Reset();
        StepStats stats;
        const int32_t row = 0;
        const auto one = (*model)->Forward(
            {.rows = std::span(window).subspan(p, 1), .logit_rows = std::span(&row, 1), .cache = &cache}, &stats, t.ctx);
        ASSERT_TRUE(one);
        ExpectSameBits(one->row_span(0), std::span(logits).subspan(p * one->cols, static_cast<size_t>(one->cols)));
        for (size_t l = 0; l < generated.size(); ++l) {
          for (size_t e = 0; e < 4; ++e) generated[l].tokens_per_expert[e] += stats.layers[l].tokens_per_expert[e];
        }
      }
    }
    for (size_t l = 0; l < generated.size(); ++l) {
      EXPECT_EQ(generated[l].tokens_per_expert, evaluation->layers[l].tokens_per_expert);
    }
  }
}

// A bias for selection is float32 in files of bf16 too, moves once a step however many micro-batches it has, and rests in
// evaluation.
TEST_F(RunTest, Trap09_TheSelectionBiasMovesOnceAStepAndIsSavedInFloat32) {
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

TEST_F(RunTest, ResumedEqualsNeverStoppedForExpertsOfEveryKind) {
  const std::vector<std::vector<std::string>> models = {
      {"model.expert_groups=1 silu 16, 1 relu2 32 plain, 1 gelu 16 plain deep, 1 zero, 1 copy, 1 constant", "model.experts=6",
       "model.expert_width=", "router.capacity_factor=0"},
      {"model.expert_groups=[\"2 gelu_tanh 16\", \"1 zero\", \"1 constant\"]",
       "model.expert_width=", "train.skip_idle_experts=true", "router.normalize_after_drop=true", "train.dtype=bf16"},
      {"model.layer_experts=[2, 5]", "model.layer_top_k=[2, 3]", "model.experts=", "model.top_k=", "model.shared_experts=1",
       "model.shared_expert_gate=true"},
  };
  for (size_t i = 0; i < models.size(); ++i) {
    SCOPED_TRACE(fmt::format("{}", fmt::join(models[i], " ")));
    const std::string whole = fmt::format("whole{}", i), stopped = fmt::format("stopped{}", i);
    const auto first = Run(whole, false, {.sets = models[i]});
    ASSERT_TRUE(first) << first.error().Message();
    ASSERT_TRUE(Run(stopped, false, {.sets = models[i]}, StopAfter(5)));
    const auto resumed = Run(stopped, true, {.sets = models[i]});
    ASSERT_TRUE(resumed) << resumed.error().Message();
    ExpectSameRun(Folder(stopped), Folder(whole));
  }
}

}  // namespace
}  // namespace moe::test
