#include "moe/planner/route_report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "moe/base/progress.h"
#include "moe/mixture/moe_metrics.h"
#include "moe/mixture/replay.h"
#include "moe/planner/route_times.h"
#include "testing/random.h"
#include "testing/test_context.h"
#include "testing/text.h"
#include "testing/tiny_model.h"

namespace moe::test {
namespace {

constexpr int32_t kBos = 258;

// Of bytes; a dense layer between two with experts.
ModelConfig Config() {
  ModelConfig config = TinyMoe();
  config.vocab_size = 259;
  config.bos_id = kBos;
  config.layers.push_back(config.layers[0]);
  config.layers[1] = {.ffn = FfnKind::kDense, .ffn_width = 32};
  config.layers[2].moe.router.num_experts = 6;
  return config;
}

struct Tiny {
  TestContext t;
  Model model;
  explicit Tiny(const ModelConfig& config, int threads = 2) : t(threads), model(config, DType::kF32, false) {
    FillParameters(model, 5, t.ctx);
  }
};

std::vector<int32_t> Tokens(int64_t n) {
  Rng rng(8);
  return RandomInts(n, 256, rng);
}

TEST(RouteReport, ExpertsThatDifferAreNamed) {
  ModelConfig config = Config();
  SetExperts({ParseExpertGroup("3 silu 16", "").value(), ParseExpertGroup("1 zero", "").value()}, config.layers[0].moe);
  Tiny tiny(config);
  const auto tokens = Tokens(60);
  const Document document{tokens, 60};
  const RouteOptions options{.evaluation = {.context = 32, .batch = 2}, .least_count = 1, .seconds = 0};
  const RouteReport report = ReportRoutes(tiny.model, {&document, 1}, options, tiny.t.ctx).value();
  const Tokenizer tokenizer = Tokenizer::Bytes();
  const std::string text = RouteText(report, tokenizer, {.columns = 100, .plain = true, .layers = {0, 2}});
  EXPECT_NE(text.find("experts: 3 silu 16, 1 zero, in this order\n"), std::string::npos) << text;
  const auto json = RouteJson(report, tokenizer);
  EXPECT_EQ(json["layers"][0]["expert_groups"], (nlohmann::json{"3 silu 16", "1 zero"}));
  EXPECT_FALSE(json["layers"][1].contains("expert_groups"));
}

TEST(RouteReport, PoliciesAreReplaysOfTheModelsLogits) {
  Tiny tiny(Config());
  const auto tokens = Tokens(150);
  const Document document{tokens, 150};
  const std::vector<std::string> policies = {"model",
                                             "top_k=1,normalize=false,capacity_factor=1",
                                             "as-gshard",
                                             "selection=sinkhorn",
                                             "capacity_factor=0.5,drop=random",
                                             "capacity_factor=1,capacity_scope=sequence",
                                             "selection=hash,balance_loss=0"};
  const RouteOptions options{
      .evaluation = {.context = 32, .batch = 2}, .policies = policies, .seed = 3, .least_count = 1, .seconds = 0};
  const RouteReport report = ReportRoutes(tiny.model, {&document, 1}, options, tiny.t.ctx).value();
  ASSERT_EQ(report.layers.size(), 2u);
  EXPECT_EQ(report.layers[1].layer, 2);
  EXPECT_EQ(report.num_layers, 3);
  EXPECT_EQ(report.step_rows, 64);
  EXPECT_EQ(report.timed_layer, -1);

  // The same logits, step by step.
  std::vector<PolicyLayer> want(policies.size());
  std::vector<int32_t> expert_of_all;
  EvaluateOptions evaluation{.context = 32, .batch = 2};
  size_t begin = 0;
  evaluation.on_router_logits = [&](std::span<const RowInfo> rows, std::span<const MatView<float>> layers) -> Status {
    std::vector<int32_t> ids, sequences;
    for (size_t t = 0; t < rows.size(); ++t) {
      ids.push_back(rows[t].token_id);
      if (rows[t].position == 0) sequences.push_back(static_cast<int32_t>(t));
    }
    sequences.push_back(static_cast<int32_t>(rows.size()));
    for (size_t i = 0; i < policies.size(); ++i) {
      Arena arena;
      ExecContext own{tiny.t.ctx.pool, arena, tiny.t.ctx.kernels};
      const RouterConfig config = PolicyOfLayer(policies[i], report.layers[1].router, "p").value();
      const ReplayOptions how{
          .training = true, .seed = MixBits(3 ^ MixBits(begin ^ MixBits(2))), .ids = ids, .sequence_begin = sequences};
      const Replay replay = ReplayPolicy(config, layers[2], {}, how, own).value();
      want[i].tokens_per_expert.resize(6);
      for (size_t e = 0; e < 6; ++e) want[i].tokens_per_expert[e] += replay.tokens_per_expert[e];
      want[i].slots += std::ssize(replay.expert), want[i].dropped += replay.num_dropped;
      want[i].bucket_rows += 6 * replay.bucket_rows, want[i].padded_rows += replay.padded_rows;
    }
    begin += rows.size();
    return {};
  };
  ASSERT_TRUE(Evaluate(tiny.model, {&document, 1}, evaluation, tiny.t.ctx));
  for (size_t i = 0; i < policies.size(); ++i) {
    SCOPED_TRACE(policies[i]);
    const PolicyRoutes& got = report.policies[i];
    EXPECT_EQ(got.policy, policies[i]);
    EXPECT_EQ(got.why, "");
    ASSERT_EQ(got.layers.size(), 2u);
    EXPECT_EQ(got.layers[1].tokens_per_expert, want[i].tokens_per_expert);
    EXPECT_EQ(got.layers[1].slots, want[i].slots);
    EXPECT_EQ(got.layers[1].dropped, want[i].dropped);
    EXPECT_EQ(got.layers[1].bucket_rows, want[i].bucket_rows);
    EXPECT_EQ(got.layers[1].padded_rows, want[i].padded_rows);
  }
  // What the layer itself did.
  EXPECT_EQ(report.policies[0].layers[1].tokens_per_expert, report.layers[1].load.tokens_per_expert);
  EXPECT_EQ(report.policies[0].drop_rate(), 0);
  EXPECT_GT(report.policies[1].drop_rate(), 0);
  EXPECT_EQ(report.policies[1].slots_per_token(150), 1);
  EXPECT_GT(report.policies[4].drop_rate(), 0.4);
  EXPECT_LT(report.policies[3].mean_violation(), report.policies[0].mean_violation());
}

TEST(RouteReport, SharesAreOfAllLayers) {
  PolicyRoutes policy;
  policy.layers = {{.tokens_per_expert = {6, 2}, .slots = 8, .dropped = 2, .bucket_rows = 8, .padded_rows = 2},
                   {.tokens_per_expert = {0, 0, 12}, .slots = 12, .dropped = 3, .bucket_rows = 12, .padded_rows = 3}};
  EXPECT_DOUBLE_EQ(policy.slots_per_token(5), 2);
  EXPECT_DOUBLE_EQ(policy.drop_rate(), 0.25);
  EXPECT_DOUBLE_EQ(policy.padded_share(), 0.25);
  EXPECT_DOUBLE_EQ(policy.mean_violation(), 1.25);
  EXPECT_DOUBLE_EQ(policy.largest_violation(), 2);
  EXPECT_EQ(PolicyRoutes().drop_rate(), 0);
  EXPECT_EQ(PolicyRoutes().slots_per_token(0), 0);
}

TEST(RouteReport, LoadsAndLikesAreOfTheTokensThatExpertsRead) {
  Tiny tiny(Config());
  const std::vector<int32_t> tokens(33, 65);  // 'A'; windows of 3: BOS A A
  const Document document{tokens, 33};
  const RouteOptions options{.evaluation = {.context = 3}, .policies = {"model"}, .least_count = 1, .seconds = 0};
  const RouteReport report = ReportRoutes(tiny.model, {&document, 1}, options, tiny.t.ctx).value();
  const LayerRoutes& first = report.layers[0];
  EXPECT_EQ(Assignments(first.load.tokens_per_expert), 66);
  int64_t bos = 0, letters = 0;
  // No list is cut, so where BOS and the letter go to different experts, each is liked by its own.
  for (const auto& liked : first.likes) {
    for (const LikedToken& token : liked) {
      EXPECT_TRUE(token.id == kBos || token.id == 65) << token.id;
      (token.id == kBos ? bos : letters) += token.count;
    }
  }
  EXPECT_LE(bos, 22);
  EXPECT_LE(letters, 44);
  EXPECT_GT(bos + letters, 0);
  EXPECT_GT(first.information.bits, 0);
}

TEST(RouteReport, DoesNotDependOnThreads) {
  const auto tokens = Tokens(200);
  const Document document{tokens, 200};
  const RouteOptions options{.evaluation = {.context = 16, .batch = 4}, .least_count = 2, .seconds = 0};
  std::vector<nlohmann::json> reports;
  const Tokenizer tokenizer = Tokenizer::Bytes();
  for (const int threads : {1, 3}) {
    Tiny tiny(Config(), threads);
    RouteReport report = ReportRoutes(tiny.model, {&document, 1}, options, tiny.t.ctx).value();
    report.seconds = 0, report.threads = 0;
    reports.push_back(RouteJson(report, tokenizer));
  }
  EXPECT_EQ(reports[0], reports[1]);
}

// Every one of them goes together with routers as recipes have them.
TEST(RouteReport, DefaultPoliciesFitTheModel) {
  for (const char* own : {"top_k=2", "score=topk_softmax", "score=sigmoid,balance_bias=sign,groups=2,top_groups=2",
                          "capacity_factor=1.25,eval_capacity_factor=2", "capacity_factor=1.25,target_drop=0.1",
                          "normalize_after_drop=true,capacity_factor=1", "noise=gumbel,noise_scale=1", "selection=sinkhorn",
                          "selection=hash,balance_loss=0", "deepseek-v3,top_k=4,groups=2,top_groups=2", "as-switch"}) {
    const RouterConfig config = ParsePolicy(own, 8, "own").value();
    const auto policies = DefaultPolicies(config);
    EXPECT_GE(policies.size(), 9u);
    for (const std::string& policy : policies) {
      const auto parsed = PolicyOfLayer(policy, config, "p");
      EXPECT_TRUE(parsed) << own << ": " << (parsed ? "" : parsed.error().Message());
    }
  }
}

TEST(RouteReport, PoliciesBeginWithTheLayersOwn) {
  const RouterConfig own = ParsePolicy("top_k=3,score=sigmoid,capacity_factor=1.5", 8, "own").value();
  EXPECT_EQ(PolicyOfLayer("model", own, "p").value(), own);
  const RouterConfig changed = PolicyOfLayer("top_k=2", own, "p").value();
  EXPECT_EQ(changed.score, RouterScore::kSigmoid);
  EXPECT_EQ(changed.top_k, 2);
  EXPECT_EQ(changed, PolicyOfLayer("model,top_k=2", own, "p").value());
  EXPECT_EQ(PolicyOfLayer("mixtral", own, "p").value(), ParsePolicy("mixtral", 8, "p").value());
  EXPECT_FALSE(PolicyOfLayer("modle", own, "p"));
  EXPECT_FALSE(PolicyOfLayer("model,", own, "p"));
}

TEST(RouteReport, WhatDoesNotGoTogetherIsSaidOrRefused) {
  ModelConfig config = Config();
  config.layers[0].moe.router = ParsePolicy("score=relu,normalize=false", 4, "p").value();
  config.layers[2].moe.router = ParsePolicy("score=relu,normalize=false", 6, "p").value();
  Tiny tiny(config);
  const auto tokens = Tokens(20);
  const Document document{tokens, 20};
  const RouteReport report = ReportRoutes(tiny.model, {&document, 1}, {.seconds = 0}, tiny.t.ctx).value();
  const auto sinkhorn = std::ranges::find(report.policies, "selection=sinkhorn", &PolicyRoutes::policy);
  ASSERT_NE(sinkhorn, report.policies.end());
  EXPECT_NE(sinkhorn->why.find("relu chooses by itself"), std::string::npos) << sinkhorn->why;
  EXPECT_TRUE(sinkhorn->layers.empty());
  const auto refused = ReportRoutes(tiny.model, {&document, 1}, {.policies = {"selection=sinkhorn"}, .seconds = 0}, tiny.t.ctx);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().where, "--policy: selection");
  Tiny dense(TinyDense());
  const auto none = ReportRoutes(dense.model, {&document, 1}, {}, dense.t.ctx);
  ASSERT_FALSE(none);
  EXPECT_NE(none.error().what.find("has no experts"), std::string::npos);
}

// A selection bias moves the model's own routing; it is no part of a policy that has none, nor of other scores.
TEST(RouteReport, ASelectionBiasIsTheModels) {
  ModelConfig config = Config();
  config.layers.resize(1);
  config.layers[0].moe.router = ParsePolicy("score=sigmoid,top_k=1,normalize=false,balance_bias=kept", 4, "p").value();
  Tiny tiny(config);
  std::ranges::copy(std::vector<float>{0, 10, 0, 0}, tiny.model.moe_layer(0).weights.selection_bias->value.span().begin());
  const auto tokens = Tokens(64);
  const Document document{tokens, 64};
  const RouteOptions options{.policies = {"model", "balance_bias=none", "score=softmax"}, .seconds = 0};
  const RouteReport report = ReportRoutes(tiny.model, {&document, 1}, options, tiny.t.ctx).value();
  EXPECT_EQ(report.policies[0].layers[0].tokens_per_expert, (std::vector<int64_t>{0, 64, 0, 0}));
  EXPECT_EQ(report.policies[0].layers[0].tokens_per_expert, report.layers[0].load.tokens_per_expert);
  EXPECT_NE(report.policies[1].layers[0].tokens_per_expert, report.policies[0].layers[0].tokens_per_expert);
  EXPECT_EQ(report.policies[2].layers[0].tokens_per_expert, report.policies[1].layers[0].tokens_per_expert);
}

// Of a model that has both, the bias of the logits is in them already.
TEST(RouteReport, TheLogitsOwnBiasIsNotAddedAgain) {
  ModelConfig config = Config();
  config.layers.resize(1);
  config.layers[0].moe.router = ParsePolicy("score=sigmoid,bias=true,balance_bias=kept", 4, "p").value();
  Tiny tiny(config);
  std::ranges::copy(std::vector<float>{0.1f, 0.3f, -0.2f, 0},
                    tiny.model.moe_layer(0).weights.selection_bias->value.span().begin());
  const auto tokens = Tokens(200);
  const Document document{tokens, 200};
  const RouteReport report =
      ReportRoutes(tiny.model, {&document, 1}, {.policies = {"model"}, .seconds = 0}, tiny.t.ctx).value();
  EXPECT_EQ(report.policies[0].layers[0].tokens_per_expert, report.layers[0].load.tokens_per_expert);
}

// What experts like is of the text, not of the steps that it was read in.
TEST(RouteReport, LikesDoNotDependOnTheBatch) {
  Tiny tiny(Config());
  const auto tokens = Tokens(150);
  const Document document{tokens, 150};
  RouteOptions options{.evaluation = {.context = 16, .batch = 1}, .policies = {"model"}, .least_count = 1, .seconds = 0};
  const RouteReport one = ReportRoutes(tiny.model, {&document, 1}, options, tiny.t.ctx).value();
  options.evaluation.batch = 4;
  const RouteReport four = ReportRoutes(tiny.model, {&document, 1}, options, tiny.t.ctx).value();
  for (size_t l = 0; l < 2; ++l) {
    EXPECT_EQ(one.layers[l].likes, four.layers[l].likes);
    EXPECT_EQ(one.layers[l].information.bits, four.layers[l].information.bits);
    EXPECT_EQ(one.layers[l].information.shuffled_bits, four.layers[l].information.shuffled_bits);
  }
  EXPECT_EQ(four.step_rows, 64);
}

// 40 experts: those of a layer that was not asked for are the most loaded.
TEST(RouteText, IsAsWideAsTheTerminalAndListsWhatIsAskedFor) {
  const Tokenizer tokenizer = Tokenizer::Bytes();
  RouteReport report{.model = "m", .num_layers = 1, .training = false};
  LayerRoutes layer{.layer = 0};
  for (int64_t e = 0; e < 40; ++e) {
    layer.load.tokens_per_expert.push_back(e == 7 ? 0 : 100 + e);
    layer.likes.emplace_back();
    for (int32_t i = 0; e != 7 && i < 9; ++i) layer.likes.back().push_back({.id = 97 + i, .count = 9, .lift = 2.5});
  }
  layer.load.dead_experts = 1;
  report.layers = {layer};
  const std::string some = RouteText(report, tokenizer, {.columns = 70});
  EXPECT_NE(some.find("and 8 experts with fewer tokens: --layer 0 lists them"), std::string::npos) << some;
  EXPECT_EQ(Count(some, "\"a\" 2.5"), 32u);
  EXPECT_EQ(some.find("(dead)"), std::string::npos);
  const std::string all = RouteText(report, tokenizer, {.columns = 70, .plain = false, .layers = {0}});
  EXPECT_EQ(Count(all, "\"a\" 2.5"), 39u);
  EXPECT_EQ(Count(all, "(dead)"), 1u);
  EXPECT_EQ(Count(all, "#"), 0u);
  EXPECT_GT(Count(some, "##"), 32u);
  EXPECT_GT(Count(RouteText(report, tokenizer, {.columns = 200}), "\"i\" 2.5"), 0u);
  // Bars and lists keep to the width; 40 loads take two lines of 8 and more.
  size_t begin = all.find("load of each expert");
  for (size_t end = all.find('\n', begin); end != std::string::npos && begin < all.find("what other");
       end = all.find('\n', begin)) {
    const std::string line = all.substr(begin, end - begin);
    if (line.find("\"a\"") != std::string::npos) {
      EXPECT_LE(DisplayWidth(line), 70) << line;
    }
    begin = end + 1;
  }
  EXPECT_GE(Count(all, "█"), 40u);
}

TEST(RouteTimes, EveryExecutorIsTimedAndTheLayerIsAsBefore) {
  Tiny tiny(Config());
  const auto tokens = Tokens(90);
  const Document document{tokens, 90};
  const double loss = Evaluate(tiny.model, {&document, 1}, {}, tiny.t.ctx)->loss_sum;
  RouteOptions options{.policies = {"model", "capacity_factor=1,normalize_after_drop=true", "selection=sinkhorn",
                                    "selection=expert_choice,normalize=false", "as-switch"},
                       .timed_layer = 2,
                       .seconds = 1e-3};
  const RouteReport report = ReportRoutes(tiny.model, {&document, 1}, options, tiny.t.ctx).value();
  EXPECT_EQ(report.timed_layer, 2);
  EXPECT_EQ(report.timed_rows, 90);  // fewer are never taken of so few
  EXPECT_EQ(report.repetitions, kTimedRepetitions);
  for (const PolicyRoutes& policy : report.policies) {
    ASSERT_EQ(policy.times.size(), std::size(kExecutors)) << policy.policy;
    for (const ExecutorTime& time : policy.times) {
      EXPECT_EQ(time.why, "");
      EXPECT_GT(time.s.min, 0);
      EXPECT_LE(time.s.min, time.s.median);
      EXPECT_LE(time.s.median, time.s.max);
    }
  }
  EXPECT_EQ(Evaluate(tiny.model, {&document, 1}, {}, tiny.t.ctx)->loss_sum, loss);
  options.go_on = [n = 0]() mutable { return ++n < 8; };
  const RouteReport stopped = ReportRoutes(tiny.model, {&document, 1}, options, tiny.t.ctx).value();
  EXPECT_EQ(stopped.policies.back().times.back().why, "stopped before it was measured");
}

// The layer does with a routing that it is given what it does with its own.
TEST(MoeLayer, TakesARoutingThatItIsGiven) {
  Tiny tiny(Config());
  const MoeLayer& layer = tiny.model.moe_layer(0);
  Rng rng(4);
  std::vector<float> x(30 * 24), own(x.size()), given(x.size()), logits(30 * 4);
  for (float& v : x) v = static_cast<float>(rng.Normal());
  const auto mat = [](std::vector<float>& v) { return MatView<float>{v.data(), 30, 24}; };
  LayerTokens tokens{.logits_out = {logits.data(), 30, 4}};
  ASSERT_TRUE(layer.Forward(mat(x), tokens, mat(own), nullptr, nullptr, nullptr, tiny.t.ctx));
  Arena arena;
  ExecContext other{tiny.t.ctx.pool, arena, tiny.t.ctx.kernels};
  Routing routing = Route(layer.config.router, {.logits = {logits.data(), 30, 4}}, nullptr, other).value();
  ASSERT_TRUE(layer.Forward(mat(x), {.routing = &routing}, mat(given), nullptr, nullptr, nullptr, tiny.t.ctx));
  EXPECT_EQ(given, own);
  std::ranges::fill(routing.gate, 0.0f);  // it is what counts
  ASSERT_TRUE(layer.Forward(mat(x), {.routing = &routing}, mat(given), nullptr, nullptr, nullptr, tiny.t.ctx));
  EXPECT_EQ(given, std::vector<float>(given.size(), 0.0f));
}

}  // namespace
}  // namespace moe::test
