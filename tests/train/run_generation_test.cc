// What was trained is what generates: the same routing and the same logits, bit for bit.
#include <algorithm>
#include <numeric>
#include <set>

#include "moe/model/evaluate.h"
#include "moe/model/load.h"
#include "testing/matchers.h"
#include "testing/test_context.h"
#include "tests/train/run_fixture.h"

namespace moe::test {
namespace {

class RunGenerationTest : public RunTest {
 protected:
  // Trains, hundreds of steps so that biases and capacities have moved, saves and loads. Then the validation text three times:
  // what training's last evaluation wrote down of it, the loaded model's evaluation, all windows at once, and generation's
  // steps, token by token behind a cache.
  void ExpectGeneratesAsEvaluated(std::vector<std::string> sets) {
    SCOPED_TRACE(fmt::format("{}", fmt::join(sets, " ")));
    const bool bf16 = std::ranges::find(sets, "train.dtype=bf16") != sets.end();
    sets.insert(sets.end(), {"train.steps=200", "train.eval_every=0", "train.checkpoint_every=0"});
    const std::string name = fmt::format("run{}", runs_++);
    const auto summary = Run(name, false, {.sets = sets});
    ASSERT_TRUE(summary) << summary.error().Message();

    TestContext t(2);
    const auto model = LoadModel(Folder(name), {.format = bf16 ? DType::kBf16 : DType::kF32}, t.ctx);
    ASSERT_TRUE(model) << model.error().Message();
    config_ = (*model)->config();
    const size_t L = config_.layers.size();
    const auto experts_of = [&](size_t layer) { return config_.layers[layer].moe.router.num_experts; };

    std::vector<RowInfo> rows;                         // one window after the other
    std::vector<std::vector<float>> router_logits(L);  // [rows,E] each
    EvaluateOptions options;
    options.on_router_logits = [&](std::span<const RowInfo> step, std::span<const MatView<float>> logits) -> Status {
      rows.insert(rows.end(), step.begin(), step.end());
      for (size_t l = 0; l < L; ++l) Append(logits[l], router_logits[l]);
      return {};
    };
    const std::string text = TinyText(2, 300);  // the run's validation text
    const std::vector<int32_t> tokens(text.begin(), text.end());
    const Document document{tokens, std::ssize(tokens)};
    const auto evaluation = Evaluate(**model, std::span(&document, 1), options, t.ctx);
    ASSERT_TRUE(evaluation) << evaluation.error().Message();
    ASSERT_EQ(rows.size(), tokens.size());
    tokens_ = std::ssize(tokens);
    EXPECT_EQ(evaluation->loss(), summary->validation_loss);
    const nlohmann::json trained = Metrics(Folder(name)).back().at("validation_layers");
    ASSERT_EQ(trained.size(), L);
    for (size_t l = 0; l < L; ++l) EXPECT_EQ(ToJson(evaluation->layers[l]), trained[l]);

    std::vector<int32_t> all_rows(rows.size());
    std::iota(all_rows.begin(), all_rows.end(), 0);
    t.arena.Reset();
    const auto at_once = (*model)->Forward({.rows = rows, .logit_rows = all_rows}, nullptr, t.ctx);
    ASSERT_TRUE(at_once) << at_once.error().Message();
    std::vector<float> logits;
    Append(*at_once, logits);

    std::vector<float> generated_logits;
    std::vector<std::vector<float>> generated_router_logits(L);
    std::vector<Tensor> of_step;
    std::vector<MatView<float>> of_step_views;
    for (size_t l = 0; l < L; ++l) of_step_views.push_back(of_step.emplace_back(std::vector<int64_t>{1, experts_of(l)}).mat());
    StepStats generated;   // adds up
    TestContext alone(1);  // a second thread would wait for each row's few products
    KvCache cache = KvCache::Make(config_, 1, config_.context);
    for (RowInfo row : rows) {
      row.sequence = 0;
      alone.arena.Reset();
      const auto one = (*model)->Forward({.rows = std::span(&row, 1),
                                          .logit_rows = std::span(all_rows).first(1),
                                          .cache = &cache,
                                          .router_logits = of_step_views},
                                         &generated, alone.ctx);
      ASSERT_TRUE(one) << one.error().Message();
      Append(*one, generated_logits);
      for (size_t l = 0; l < L; ++l) Append(of_step_views[l], generated_router_logits[l]);
    }
    ExpectSameBits(generated_logits, logits);
    choices_.clear();
    for (size_t l = 0; l < L; ++l) {
      SCOPED_TRACE(fmt::format("layer {}", l));
      ExpectSameBits(generated_router_logits[l], router_logits[l]);
      EXPECT_EQ(generated.layers[l].tokens_per_expert, evaluation->layers[l].tokens_per_expert);
      EXPECT_EQ(generated.layers[l].num_dropped, 0);
      choices_.push_back(generated.layers[l].tokens_per_expert);
      const RouterConfig& router = config_.layers[l].moe.router;
      if (!router.has_varying_k()) {
        EXPECT_EQ(Choices(l), std::ssize(rows) * router.top_k);
      }
    }
  }

  // All of a layer in the last of them.
  int64_t Choices(size_t layer) const { return std::accumulate(choices_[layer].begin(), choices_[layer].end(), int64_t{0}); }

  static void Append(MatView<const float> rows, std::vector<float>& to) {
    for (int64_t r = 0; r < rows.rows; ++r) to.insert(to.end(), rows.row(r), rows.row(r) + rows.cols);
  }

  int runs_ = 0;
  int64_t tokens_ = 0;                         // of the text
  ModelConfig config_;                         // of the last model
  std::vector<std::vector<int64_t>> choices_;  // [L] of its experts
};

TEST_F(RunGenerationTest, Trap12_EvaluationAndGenerationRouteAlikeForEveryPolicyThatServesTokensAlone) {
  const std::vector<std::vector<std::string>> policies = {
      {},
      {"model.top_k=1", "router.normalize=false"},
      {"router.score=topk_softmax"},
      {"router.score=sigmoid", "router.balance_bias=sign", "router.bias_rate=0.01"},
      {"router.balance_bias=load", "router.bias_rate=0.5", "router.bias=true"},
      {"router.groups=2", "router.top_groups=1", "router.balance_bias=sign", "router.bias_rate=0.01"},
      {"router.selection=sinkhorn"},
      {"router.selection=hash", "router.balance_loss=0"},
      {"router.noise=jitter", "router.noise_scale=0.2"},
      {"router.noise=gumbel", "router.noise_scale=1"},
      {"router.noise=gumbel_later", "router.noise_scale=1"},
      {"router.noise=gaussian", "router.noise_scale=0.5", "router.load_loss=0.1"},
      {"router.target_drop=0.1", "router.drop=random"},
      {"router.capacity_scope=sequence", "router.drop=score", "router.normalize_after_drop=true"},
      {"router.score=relu", "router.capacity_factor=0"},
      {"router.score=sqrt_softplus", "router.sequence_loss=0.1"},
      {"router.gate=mlp", "router.gate_width=8"},
      {"router.gate=cosine", "router.gate_width=8", "router.bias=true"},
      {"router.dtype=bf16"},
      {"train.dtype=bf16"},
  };
  for (const auto& sets : policies) ExpectGeneratesAsEvaluated(sets);
}

// By the presets' own numbers; all but the capacity of evaluation, which leaves to a token's neighbours who serves it.
TEST_F(RunGenerationTest, EvaluationAndGenerationRouteAlikeForEveryPreset) {
  const std::set<std::string_view> of_the_batch = {"as-switch",           "as-gshard",         "as-megablocks",
                                                   "as-deepspeed",        "as-deepspeed-top2", "as-deepspeed-topk",
                                                   "as-megatron-capacity"};
  const RouterConfig no_preset{.selection = RouterSelection::kExpertChoice};
  EXPECT_FALSE(no_preset.serves_tokens_alone());
  std::set<std::string_view> ran_as_top_1;
  for (const std::string_view name : PolicyNames()) {
    SCOPED_TRACE(name);
    RouterConfig preset = PolicyNamed(name).value();
    EXPECT_EQ(preset.serves_tokens_alone(), !of_the_batch.contains(name));
    auto sets = PresetSets(name);
    if (of_the_batch.contains(name)) sets.emplace_back("router.eval_capacity_factor=0");
    ExpectGeneratesAsEvaluated(sets);
    if (HasFatalFailure()) return;

    preset.num_experts = kPresetExperts;
    preset.capacity.eval_factor = 0;
    for (const LayerSpec& layer : config_.layers) EXPECT_TRUE(AsServed(layer.moe.router) == AsServed(preset));
    if (Choices(0) == tokens_) ran_as_top_1.insert(name);
  }
  EXPECT_EQ(ran_as_top_1, (std::set<std::string_view>{"llama-4", "as-switch", "as-megablocks", "as-deepspeed"}));
}

TEST_F(RunGenerationTest, EvaluationAndGenerationRouteAlikeForExpertsOfEveryKind) {
  for (auto sets : ModelsOfManyKinds()) {
    sets.emplace_back("router.balance_loss=0.3");  // so that each is asked
    ExpectGeneratesAsEvaluated(sets);
    if (HasFatalFailure()) return;
    for (size_t l = 0; l < choices_.size(); ++l) {  // each was asked
      EXPECT_GT(std::ranges::min(choices_[l]), 0) << fmt::format("layer {}: {}", l, fmt::join(choices_[l], " "));
    }
  }
}

}  // namespace
}  // namespace moe::test
