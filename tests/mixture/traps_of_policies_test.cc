// What goes wrong with routing policies elsewhere. docs/testing.md lists all traps.
#include <cmath>
#include <numeric>

#include "moe/mixture/balance.h"
#include "moe/mixture/capacity.h"
#include "tests/mixture/layer_fixture.h"

namespace moe::test {
namespace {

RouterConfig Policy(const std::string& policy, int64_t E) {
  return ParsePolicy(policy, E, "test").value();
}

// ---- 6: what is said of a sequence, or of a token, does not depend on how many are computed at a time.

TEST(Traps, Trap06_SequenceLossZLossAndCountersAreThoseOfTheMicroBatches) {
  constexpr int64_t E = 5, C = 8, kSequences = 4;
  for (const char* score : {"softmax", "sigmoid"}) {
    const RouterConfig config = Policy(fmt::format("top_k=2,score={},balance_loss=0,sequence_loss=0.3,z_loss=0.2", score), E);
    Rng rng(1);
    const auto logits = NormalFloats(kSequences * C * E, rng, 2);
    const std::vector<float> no_gates(kSequences * C * 2, 0.0f);
    Router whole(config);
    RouterSaved saved;
    const std::vector<int32_t> begin = {0, C, 2 * C, 3 * C, 4 * C}, only = {0, C};
    const Routing all =
        Route(config, {.logits = {logits.data(), kSequences * C, E}, .sequence_begin = begin}, &saved, whole.ctx).value();
    const auto d_all = whole.Back(all, saved, no_gates);
    double sequence = 0, z = 0;
    std::vector<int64_t> load(E);
    for (int64_t s = 0; s < kSequences; ++s) {
      Router part(config);
      RouterSaved part_saved;
      const float* rows = logits.data() + s * C * E;
      const Routing one = Route(config, {.logits = {rows, C, E}, .sequence_begin = only}, &part_saved, part.ctx).value();
      sequence += one.aux.losses.sequence, z += one.aux.z_loss;
      for (size_t e = 0; e < E; ++e) load[e] += one.aux.tokens_per_expert[e];
      const auto d_one = part.Back(one, part_saved, std::vector<float>(C * 2, 0.0f), 1.0f / kSequences);
      for (size_t i = 0; i < d_one.size(); ++i) {
        const float want = d_all[static_cast<size_t>(s * C * E) + i];
        ASSERT_NEAR(d_one[i], want, 4 * kEpsF32 * std::fabs(want)) << score << " " << s << " " << i;
      }
    }
    EXPECT_NEAR(all.aux.losses.sequence, sequence / kSequences, 1e-15 * kSequences * sequence);
    EXPECT_NEAR(all.aux.z_loss, z / kSequences, 1e-15 * kSequences * z);
    EXPECT_TRUE(std::ranges::equal(all.aux.tokens_per_expert, load));
    EXPECT_GT(std::accumulate(d_all.begin(), d_all.end(), 0.0, [](double sum, float d) { return sum + std::fabs(d); }), 1e-3);
  }
}

// ---- 8: a normalized sigmoid gate stays one, however small the scores; an epsilon would let the router hide from its loss.

TEST(Traps, Trap08_NormalizedSigmoidGatesSumToOneHoweverSmall) {
  for (const float z : {-5.0f, -40.0f, -80.0f}) {
    Router router(Policy("score=sigmoid,top_k=2,balance_loss=0,z_loss=0", 4));
    RouterSaved saved;
    const Routing routing = router.Run({z, z + 1, z + 2, z - 1}, {}, &saved).value();
    EXPECT_NEAR(routing.gate[0] + routing.gate[1], 1, 2 * kEpsF32) << z;
    EXPECT_NEAR(routing.gate[0], 1 / (1 + std::exp(-1.0)), 0.01) << z;  // sigmoid is all but exp there
    for (const float d : router.Back(routing, saved, {1, -1})) EXPECT_TRUE(std::isfinite(d));
  }
  Router nothing(Policy("score=sigmoid,top_k=2", 4));  // scores that are 0 in float32 give no gate, and no 0/0
  RouterSaved saved;
  const Routing routing = nothing.Run({-200, -200, -200, -200}, {}, &saved).value();
  EXPECT_EQ(routing.gate[0], 0);
  EXPECT_TRUE(std::isfinite(routing.aux.balance_loss));
  for (const float d : nothing.Back(routing, saved, {1, -1})) EXPECT_TRUE(std::isfinite(d));
}

// ---- 9: a bias chooses and does not weigh; it is centred; counts compare as integers.

TEST(Traps, Trap09_SelectionBiasMovesTowardTheMeanAndStaysCentred) {
  const RouterConfig config = Policy("top_k=2,balance_bias=sign,bias_rate=0.01", 4);
  std::vector<float> bias(4, 0.0f);
  // 2^53 + 1 is no double: compared as integers expert 1 is above the mean by one token.
  const int64_t many = (int64_t{1} << 53) + 1;
  UpdateSelectionBias(config, std::vector<int64_t>{many - 1, many + 1, many, many}, bias);
  EXPECT_GT(bias[0], 0);
  EXPECT_LT(bias[1], 0);
  EXPECT_EQ(bias[2], 0);
  for (int i = 0; i < 1000; ++i) UpdateSelectionBias(config, std::vector<int64_t>{9, 1, 1, 1}, bias);
  EXPECT_NEAR(std::accumulate(bias.begin(), bias.end(), 0.0), 0, 1000 * 4 * kEpsF32);
}

// ---- 13: who is dropped by score ranks by the gate, among those who chose the expert alone.

TEST(Traps, Trap13_DropsByScoreRankTheChosenByTheirGate) {
  // Logits of expert 0 fall with the token, all of them negative: against a table of zeros they would lose to tokens that chose
  // others.
  std::vector<float> logits;
  for (int t = 0; t < 4; ++t) logits.insert(logits.end(), {-1.0f - static_cast<float>(t), -9.0f});
  for (int t = 0; t < 4; ++t) logits.insert(logits.end(), {-9.0f, -1.0f});
  const RouterConfig config = Policy("top_k=1,normalize=false,score=sigmoid,capacity_factor=0.5,drop=score", 2);
  Router router(config);
  const Routing routing = router.Run(logits).value();
  const auto kept = KeepWithinCapacity(config, 0.5, routing, {}, 0, router.ctx);  // two places an expert
  EXPECT_EQ(std::vector<uint8_t>(kept.begin(), kept.end()), (std::vector<uint8_t>{1, 1, 0, 0, 1, 1, 0, 0}));
}

// ---- 14: slots that experts do not divide.

TEST(Traps, Trap14_CapacityOfSlotsThatExpertsDoNotDivide) {
  const auto rows = [](const std::string& policy, int64_t tokens) {
    const RouterConfig config = Policy("top_k=2," + policy, 3);
    return ExpertCapacity(config, config.capacity.factor, tokens);
  };
  EXPECT_EQ(rows("capacity_factor=1", 5), 4);  // 10 / 3
  EXPECT_EQ(rows("capacity_factor=1,capacity_rounding=floor", 5), 3);
  EXPECT_EQ(rows("capacity_factor=1,capacity_rounding=nearest", 5), 3);
  EXPECT_EQ(rows("capacity_factor=1.1", 15), 11);  // 11.000000000000002 in double
  EXPECT_EQ(rows("capacity_factor=0.01,capacity_rounding=floor,least_capacity=0", 5), 0);
  EXPECT_EQ(rows("capacity_factor=0.01,capacity_rounding=floor,least_capacity=0,zero_capacity_is_dropless=true", 5), -1);
}

// ---- 18: a balance loss of squares has a gradient at perfect balance, its root has none.

TEST(Traps, Trap18_ImportanceLossIsFiniteAtPerfectBalance) {
  Router router(Policy("top_k=2,importance_loss=1,balance_loss=0,z_loss=0", 4));
  RouterSaved saved;
  const Routing routing = router.Run(std::vector<float>(6 * 4, 0.25f), {}, &saved).value();
  EXPECT_EQ(routing.aux.losses.importance, 0);
  for (const float d : router.Back(routing, saved, std::vector<float>(12, 0.0f))) EXPECT_EQ(d, 0);
}

// ---- 20: a token may have no expert; what it has no gate for is not 0/0.

TEST(Traps, Trap20_ATokenWithoutExpertsIsZeroAndFinite) {
  for (const char* normalize : {"true", "false"}) {
    LayerOptions options;
    options.config.router = Policy(fmt::format("score=relu,normalize={}", normalize), 4);
    Layer layer(options);
    for (float& w : layer.parameter("router").value.span()) w = 1;
    layer.Repacked();
    const std::vector<float> x(static_cast<size_t>(options.D), -1.0f), d_y(static_cast<size_t>(options.D), 1.0f);
    const LayerStep step = layer.Train(x, d_y);  // every logit is -8
    EXPECT_TRUE(step.expert.empty());
    for (const float y : step.y) EXPECT_EQ(y, 0);
    for (const float d : step.d_x) EXPECT_TRUE(std::isfinite(d));
    for (const float d : step.d_w.router) EXPECT_TRUE(std::isfinite(d));
  }
}

// ---- 21: dropping makes a token depend on its neighbours, dropless does not; experts that choose do.

TEST(Traps, Trap21_OnlyDroplessTokensDoNotDependOnTheirNeighbours) {
  const auto alone_and_together = [](const std::string& policy) {
    LayerOptions options;
    options.config.router = Policy(policy, 4);
    Layer layer(options);
    Rng rng(4);
    const auto all = NormalFloats(40 * options.D, rng);
    const std::vector<float> last(all.end() - options.D, all.end());
    const auto together = layer.Infer(all).y;
    return std::pair{layer.Infer(last).y, std::vector<float>(together.end() - options.D, together.end())};
  };
  const auto [alone, together] = alone_and_together("top_k=2,capacity_factor=0.5");  // of training, not of inference
  ExpectSameBits(alone, together);
  const auto [kept, dropped] = alone_and_together("top_k=2,eval_capacity_factor=0.25");
  EXPECT_NE(kept, dropped);
  const auto [by_all, by_some] = alone_and_together("selection=expert_choice,allow_noncausal=true,normalize=false,top_k=1");
  EXPECT_NE(by_all, by_some);
}

// ---- 22: what forward saved, backward leaves: a second backward gives the same gradients.

TEST(Traps, Trap22_BackwardTwiceIsTheSameGradient) {
  for (const Executor executor : kExecutors) {
    LayerOptions options;
    options.config.executor = executor;
    Layer layer(options);
    Rng rng(5);
    const int64_t T = 9, D = options.D;
    const auto x = NormalFloats(T * D, rng), d_y = NormalFloats(T * D, rng);
    LayerStep step;
    MoeSaved saved;
    ASSERT_TRUE(layer.Forward(x, {}, step, &saved));
    const auto back = [&] {
      layer.store().ZeroGradients();
      std::vector<float> d_x(x.size(), -7.0f);
      layer.layer().Backward({x.data(), T, D}, saved, {d_y.data(), T, D}, 1, {d_x.data(), T, D}, layer.ctx());
      for (const char* name : {"router", "experts.gate_up", "experts.down"}) {
        const auto grad = layer.parameter(name).grad.span();
        d_x.insert(d_x.end(), grad.begin(), grad.end());
      }
      return d_x;
    };
    const auto first = back();
    ExpectSameBits(back(), first);
  }
}

// ---- 26: what is random is a function of its key, and no part of evaluation.

TEST(Traps, Trap26_NoiseAndDropsByChanceReplayAndRestInEvaluation) {
  for (const char* policy : {"top_k=2,noise=gaussian,noise_scale=1", "top_k=2,noise=gumbel,noise_scale=1",
                             "top_k=2,noise=jitter,noise_scale=0.5", "top_k=2,capacity_factor=0.5,drop=random"}) {
    SCOPED_TRACE(policy);
    LayerOptions options, plain_options;
    options.config.router = Policy(policy, 4), plain_options.config.router = Policy("top_k=2", 4);
    Layer layer(options), plain(plain_options);
    Rng rng(6);
    const int64_t T = 40, D = options.D;
    const auto x = NormalFloats(T * D, rng);
    const auto train = [&](uint64_t key) {
      layer.arena().Reset();
      std::vector<float> y(x.size());
      MoeSaved saved;
      EXPECT_TRUE(
          layer.layer().Forward({x.data(), T, D}, {.key = key}, {y.data(), T, D}, &saved, nullptr, nullptr, layer.ctx()));
      return y;
    };
    const auto first = train(1);
    EXPECT_NE(train(2), first);
    ExpectSameBits(train(1), first);
    ExpectSameBits(layer.Infer(x).y, plain.Infer(x).y);
  }
}

}  // namespace
}  // namespace moe::test
