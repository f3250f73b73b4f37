// What is chosen by more than a token's logits, or by none of them: noise, hashing, ReLU. Also sinkhorn_test.cc and
// expert_choice_test.cc.
#include "moe/mixture/selection.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "moe/mixture/moe_layer.h"
#include "tests/mixture/layer_fixture.h"
#include "tests/mixture/router_fixture.h"

namespace moe::test {
namespace {

constexpr int64_t kTokens = 300, kExperts = 8;

Routing RouteWith(Router& r, const std::vector<float>& logits, bool training, uint64_t key = 0, RouterSaved* saved = nullptr) {
  const int64_t E = r.config.num_experts;
  return Route(r.config,
               {.logits = {logits.data(), static_cast<int64_t>(logits.size()) / E, E}, .training = training, .key = key}, saved,
               r.ctx)
      .value();
}

Routing HashWith(Router& r, const std::vector<float>& logits, const std::vector<int32_t>& ids) {
  return Route(r.config, {.logits = {logits.data(), std::ssize(ids), r.config.num_experts}, .ids = ids}, nullptr, r.ctx)
      .value();
}

TEST(Hash, IsAFunctionOfTheTokensIdAlone) {
  const RouterConfig config = ParsePolicy("selection=hash,top_k=2,balance_loss=0", kExperts, "test").value();
  Rng rng(5);
  Router r(config);
  std::vector<int32_t> ids(4000);
  std::iota(ids.begin(), ids.end(), 0);
  const auto logits = NormalFloats(std::ssize(ids) * kExperts, rng), others = NormalFloats(std::ssize(ids) * kExperts, rng);
  const auto run = [&](const std::vector<float>& z) {
    return Route(config, {.logits = {z.data(), std::ssize(ids), kExperts}, .ids = ids}, nullptr, r.ctx).value();
  };
  const Routing a = run(logits), b = run(others);
  ExpectSameBits(a.expert, b.expert);
  EXPECT_NE(Floats(a.gate), Floats(b.gate));  // the router still weighs
  for (size_t s = 0; s < a.expert.size(); s += 2) EXPECT_NE(a.expert[s], a.expert[s + 1]);
  // 8,000 slots in 8 experts, 1,000 each: five standard deviations of 30.
  for (const int64_t n : a.aux.tokens_per_expert) EXPECT_NEAR(static_cast<double>(n), 1000, 150);
}

// Where models that were saved send their tokens: another stream, or other values from it, would send them elsewhere. By a
// Python program from the definition alone.
TEST(Hash, GoesWhereItAlwaysWent) {
  struct Pin {
    int32_t id;
    int64_t E;
    std::vector<int32_t> experts;
  };
  const int32_t last = std::numeric_limits<int32_t>::max();
  const std::vector<Pin> pins = {
      {0, 3, {2, 0, 1}},
      {1, 3, {0, 1, 2}},
      {50256, 3, {0, 2, 1}},
      {last, 3, {1, 2, 0}},
      {0, 8, {4, 5}},
      {1, 8, {6, 0}},
      {50256, 8, {0, 7}},
      {last, 8, {1, 2}},
      {0, 64, {38, 24, 49, 33}},
      {1, 64, {21, 45, 27, 41}},
      {50256, 64, {47, 25, 45, 0}},
      {last, 64, {38, 24, 32, 62}},
      {0, 1024, {731, 203, 485}},
      {1, 1024, {339, 261, 660}},
      {50256, 1024, {591, 595, 327}},
      {last, 1024, {363, 317, 495}},
  };
  for (const Pin& pin : pins) {
    SCOPED_TRACE(fmt::format("token {} of {} experts", pin.id, pin.E));
    Router r(ParsePolicy(fmt::format("selection=hash,balance_loss=0,top_k={}", pin.experts.size()), pin.E, "test").value());
    const std::vector<float> logits(static_cast<size_t>(pin.E), 0.5f);
    const Routing routing = HashWith(r, logits, {pin.id});
    EXPECT_EQ(std::vector<int32_t>(routing.expert.begin(), routing.expert.end()), pin.experts);
  }
}

TEST(Hash, EveryTokenHasItsExpertsAtEverySize) {
  for (const auto& [E, k] : {std::pair<int64_t, int64_t>{1, 1}, {8, 1}, {8, 3}, {8, 8}, {1024, 4}, {1024, 1024}}) {
    for (const int64_t T : {0, 1, 3, 70}) {
      SCOPED_TRACE(fmt::format("{} of {} experts, {} tokens", k, E, T));
      Rng rng(static_cast<uint64_t>(T));
      const auto logits = NormalFloats(T * E, rng);
      const auto ids = RandomInts(T, 40, rng);
      Router r(ParsePolicy(fmt::format("selection=hash,balance_loss=0,normalize=false,top_k={}", k), E, "test").value(), 2);
      const Routing routing = HashWith(r, logits, ids);
      const auto choices = ChoicesOf(routing.slot_begin, routing.expert);
      ASSERT_EQ(std::ssize(choices), T);
      std::vector<int64_t> load(static_cast<size_t>(E));
      for (size_t t = 0; t < choices.size(); ++t) {
        ASSERT_EQ(std::ssize(choices[t]), k);
        const std::set<int64_t> distinct(choices[t].begin(), choices[t].end());
        EXPECT_EQ(std::ssize(distinct), k);
        EXPECT_TRUE(*distinct.begin() >= 0 && *distinct.rbegin() < E);
        for (const int64_t e : distinct) ++load[static_cast<size_t>(e)];
        const auto same = static_cast<size_t>(std::find(ids.begin(), ids.end(), ids[t]) - ids.begin());
        EXPECT_EQ(choices[t], choices[same]);
      }
      EXPECT_TRUE(std::ranges::equal(routing.aux.tokens_per_expert, load));
    }
  }
}

TEST(Noise, IsOfTrainingAloneAndReplaysByItsKey) {
  Rng rng(6);
  const auto logits = NormalFloats(kTokens * kExperts, rng);
  for (const char* kind : {"gaussian", "gumbel"}) {
    SCOPED_TRACE(kind);
    Router plain(ParsePolicy("top_k=2", kExperts, "test").value());
    Router r(ParsePolicy(fmt::format("top_k=2,noise={},noise_scale=1", kind), kExperts, "test").value());
    const auto clean = Floats(RouteWith(plain, logits, true).gate);
    EXPECT_EQ(Floats(RouteWith(r, logits, false, 1).gate), clean);
    const auto one = RouteWith(r, logits, true, 1);
    ExpectSameBits(RouteWith(r, logits, true, 1).gate, one.gate);
    EXPECT_NE(Floats(one.gate), clean);
    EXPECT_NE(Floats(RouteWith(r, logits, true, 2).gate), Floats(one.gate));
  }
}

TEST(Noise, GumbelChoosesInProportionToTheSoftmax) {
  // The largest of z + Gumbel is a draw from softmax(z).
  const std::vector<float> z = {0, 1, 2};
  std::vector<float> logits;
  for (int t = 0; t < 20000; ++t) logits.insert(logits.end(), z.begin(), z.end());
  Router r(ParsePolicy("top_k=1,normalize=false,noise=gumbel,noise_scale=1", 3, "test").value());
  RouterSaved saved;
  const Routing routing = RouteWith(r, logits, true, 7, &saved);
  for (int64_t e = 0; e < 3; ++e) {
    const double p = saved.probs(0, e), n = 20000;  // gates and p are of the clean logits
    EXPECT_NEAR(static_cast<double>(routing.aux.tokens_per_expert[static_cast<size_t>(e)]) / n, p,
                5 * std::sqrt(p * (1 - p) / n));
  }
  EXPECT_NEAR(saved.probs(0, 2), std::exp(2.0) / (1 + std::exp(1.0) + std::exp(2.0)), 1e-6);
}

// DeepSpeed's top-2 draws the second choice alone.
TEST(Noise, GumbelLaterLeavesTheFirstChoiceToTheLogits) {
  Rng rng(9);
  const auto logits = NormalFloats(kTokens * kExperts, rng);
  Router plain(ParsePolicy("top_k=2", kExperts, "test").value());
  Router r(ParsePolicy("top_k=2,noise=gumbel_later,noise_scale=1", kExperts, "test").value());
  const Routing clean = RouteWith(plain, logits, true), drawn = RouteWith(r, logits, true, 3);
  int64_t others = 0;
  for (size_t t = 0; t < kTokens; ++t) {
    EXPECT_EQ(drawn.expert[2 * t], clean.expert[2 * t]);
    EXPECT_NE(drawn.expert[2 * t + 1], drawn.expert[2 * t]);
    others += drawn.expert[2 * t + 1] != clean.expert[2 * t + 1] ? 1 : 0;
    const float* z = logits.data() + t * kExperts;
    const double first = 1 / (1 + std::exp(static_cast<double>(z[drawn.expert[2 * t + 1]]) - z[drawn.expert[2 * t]]));
    EXPECT_NEAR(drawn.gate[2 * t], first, 8 * kEpsF32);  // by the logits as they are
  }
  EXPECT_GT(others, kTokens / 4);
}

// A token that chose nobody is a token all the same: its shared experts run, its router learns; padding has neither.
TEST(Relu, ATokenWithoutExpertsIsNoPadding) {
  LayerOptions options;
  options.config.router = ParsePolicy("score=relu,normalize=false,z_loss=0.5", 4, "test").value();
  options.config.num_shared_experts = 1;
  constexpr int64_t D = 8;
  Layer layer(options);
  Rng rng(3);
  auto x = NormalFloats(3 * D, rng);
  const auto d_y = NormalFloats(3 * D, rng);
  for (float& w : layer.parameter("router").value.span()) w = 0.1f;
  layer.Repacked();
  for (size_t i = 0; i < D; ++i) x[i] = -1, x[D + i] = 1;  // nobody; everybody; the third row is padding or not there
  const std::vector<float> two(x.begin(), x.begin() + 2 * D), d_two(d_y.begin(), d_y.begin() + 2 * D);
  const LayerStep alone = layer.Train(two, d_two), padded = layer.Train(x, d_y, {1, 1, 0});
  EXPECT_EQ(alone.tokens_per_expert, (std::vector<int64_t>{1, 1, 1, 1}));
  EXPECT_NE(alone.y[0], 0);  // the shared expert's
  EXPECT_NE(alone.d_x[0], 0);
  ExpectSameBits(std::span(padded.y).first(2 * D), std::span(alone.y));
  ExpectSameBits(std::span(padded.d_x).first(2 * D), std::span(alone.d_x));
  ExpectSameBits(padded.d_w.router, alone.d_w.router);
  ExpectSameBits(padded.d_w.shared_down, alone.d_w.shared_down);
  for (size_t i = 2 * D; i < 3 * D; ++i) EXPECT_EQ(padded.y[i], 0);
}

// The router reads x times factors that the key makes; its gradient by x has the same factors.
TEST(Noise, JitterReplaysAndItsGradientIsThatOfTheJitteredInput) {
  LayerOptions options;
  options.config.router = ParsePolicy("top_k=4,noise=jitter,noise_scale=0.3,balance_loss=0,z_loss=0", 4, "test").value();
  Layer layer(options);
  Rng rng(8);
  constexpr int64_t T = 5, D = 8;
  const auto x = NormalFloats(T * D, rng), d_y = NormalFloats(T * D, rng);
  const auto forward = [&](const std::vector<float>& in, uint64_t key, MoeSaved* saved) {
    layer.arena().Reset();
    std::vector<float> y(in.size());
    EXPECT_TRUE(layer.layer().Forward({in.data(), T, D}, {.key = key}, {y.data(), T, D}, saved, nullptr, nullptr, layer.ctx()));
    return y;
  };
  MoeSaved saved;
  const auto y = forward(x, 3, &saved);
  std::vector<float> d_x(x.size());
  layer.store().ZeroGradients();
  layer.layer().Backward({x.data(), T, D}, saved, {d_y.data(), T, D}, 1, {d_x.data(), T, D}, layer.ctx());
  const auto d_router = Floats(layer.parameter("router").grad.span());
  const auto objective = [&](const std::vector<float>& in) {
    MoeSaved scratch;
    const auto out = forward(in, 3, &scratch);
    return std::inner_product(out.begin(), out.end(), d_y.begin(), 0.0);
  };
  for (size_t i = 0; i < x.size(); ++i) {
    auto up = x, down = x;
    up[i] += 0.01f, down[i] -= 0.01f;
    // Of a float32 program: 1e-6 / h, and h^2 times a third derivative of order 1.
    EXPECT_NEAR(d_x[i], (objective(up) - objective(down)) / (static_cast<double>(up[i]) - down[i]), 2e-3) << i;
  }
  for (size_t i = 0; i < d_router.size(); i += 3) {
    float& w = layer.parameter("router").value.data()[i];
    const float before = w;
    const auto at = [&](float value) {
      w = value;
      layer.Repacked();
      return objective(x);
    };
    const double difference = (at(before + 0.01f) - at(before - 0.01f)) / 0.02;
    w = before;
    layer.Repacked();
    EXPECT_NEAR(d_router[i], difference, 2e-3) << i;
  }
  MoeSaved again, other;
  ExpectSameBits(forward(x, 3, &again), y);
  EXPECT_NE(forward(x, 4, &other), y);
  const auto inferred = forward(x, 3, nullptr);
  ExpectSameBits(forward(x, 9, nullptr), inferred);
  EXPECT_NE(inferred, y);
}

}  // namespace
}  // namespace moe::test
