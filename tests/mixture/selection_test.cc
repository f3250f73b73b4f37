// Selections that look at more than one token's scores, or at none: Sinkhorn, expert choice, hashing, noise.
#include "moe/mixture/selection.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "moe/mixture/moe_layer.h"
#include "tests/mixture/layer_fixture.h"
#include "tests/mixture/router_fixture.h"

namespace moe::test {
namespace {

constexpr int64_t kTokens = 300, kExperts = 8;

// The definition: scale rows, then columns, of exp(z), until the columns' factors stay.
std::vector<double> NaiveSinkhorn(const std::vector<float>& logits, double tolerance, int64_t rounds) {
  std::vector<double> m, row(kTokens, 1), column(kExperts, 1);
  for (const float z : logits) m.push_back(std::exp(z));
  double change = INFINITY;
  for (int64_t i = 0; i < rounds && change > tolerance; ++i) {
    change = 0;
    for (size_t t = 0; t < kTokens; ++t) {
      double sum = 0;
      for (size_t e = 0; e < kExperts; ++e) sum += m[t * kExperts + e] * column[e];
      row[t] = 1.0 / kTokens / sum;
    }
    for (size_t e = 0; e < kExperts; ++e) {
      double sum = 0;
      for (size_t t = 0; t < kTokens; ++t) sum += m[t * kExperts + e] * row[t];
      const double next = 1.0 / kExperts / sum;
      change += std::abs(1 - column[e] / next) / kExperts;
      column[e] = next;
    }
  }
  for (size_t i = 0; i < m.size(); ++i) m[i] *= row[i / kExperts] * column[i % kExperts];
  return m;
}

RouterConfig SinkhornConfig() {
  return ParsePolicy("selection=sinkhorn,top_k=1,normalize=false", kExperts, "test").value();
}
std::vector<float> SkewedLogits(Rng& rng) {
  auto logits = NormalFloats(kTokens * kExperts, rng);
  for (size_t i = 0; i < logits.size(); i += kExperts) logits[i] += 3;  // expert 0 is everybody's favourite
  return logits;
}
Routing RouteWith(Router& r, const std::vector<float>& logits, bool training, uint64_t key = 0, RouterSaved* saved = nullptr) {
  const int64_t E = r.config.num_experts;
  return Route(r.config,
               {.logits = {logits.data(), static_cast<int64_t>(logits.size()) / E, E}, .training = training, .key = key}, saved,
               r.ctx)
      .value();
}

TEST(Sinkhorn, ChoosesTheLargestOfTheBalancedMatrix) {
  Rng rng(1);
  const auto logits = SkewedLogits(rng);
  const auto balanced = NaiveSinkhorn(logits, 1e-4, 100);
  Router r(SinkhornConfig());
  const Routing routing = RouteWith(r, logits, true);
  for (size_t t = 0; t < kTokens; ++t) {
    const auto begin = balanced.begin() + static_cast<int64_t>(t * kExperts);
    EXPECT_EQ(routing.expert[t], std::max_element(begin, begin + kExperts) - begin) << t;
  }
  // In evaluation the favourite has most of the tokens, in training about its share.
  const Routing plain = RouteWith(r, logits, false);
  EXPECT_GT(plain.aux.tokens_per_expert[0], kTokens / 2);
  EXPECT_LT(*std::ranges::max_element(routing.aux.tokens_per_expert), 2 * kTokens / kExperts);
  // Gates are the softmax all the same.
  RouterSaved saved;
  const Routing again = RouteWith(r, logits, true, 0, &saved);
  for (size_t t = 0; t < kTokens; ++t) {
    const double p = saved.probs(static_cast<int64_t>(t), again.expert[t]);
    EXPECT_NEAR(again.gate[t], p, 4 * kEpsF32 * p);
  }
}

// Of the matrix that the product's own factors make: rows are scaled to sum alike, columns then do within the tolerance.
TEST(Sinkhorn, BalancesWithinItsTolerance) {
  for (const float spread : {1.0f, 10.0f, 30.0f}) {
    SCOPED_TRACE(spread);
    Rng rng(4);
    auto logits = SkewedLogits(rng);
    for (size_t i = 0; i < logits.size(); i += kExperts) logits[i] += spread;  // further and further ahead
    RouterConfig config = SinkhornConfig();
    config.sinkhorn_rounds = 10000;
    std::vector<float> factor(kExperts);
    Router r(config);
    ASSERT_LT(Sinkhorn(config, {logits.data(), kTokens, kExperts}, {}, factor, r.ctx), config.sinkhorn_rounds);
    std::vector<double> column(kExperts);
    for (size_t t = 0; t < kTokens; ++t) {
      double largest = -INFINITY, sum = 0;
      for (size_t e = 0; e < kExperts; ++e) largest = std::max<double>(largest, logits[t * kExperts + e] + factor[e]);
      for (size_t e = 0; e < kExperts; ++e) sum += std::exp(logits[t * kExperts + e] + factor[e] - largest);
      for (size_t e = 0; e < kExperts; ++e)
        column[e] += std::exp(logits[t * kExperts + e] + factor[e] - largest) / sum / kTokens;
    }
    double off = 0;
    for (const double c : column) off += std::abs(c * kExperts - 1) / kExperts;
    EXPECT_LT(off, config.sinkhorn_tolerance + 100 * kEpsF32);  // logarithms of factors are rounded once more
    EXPECT_LT(*std::ranges::max_element(RouteWith(r, logits, true).aux.tokens_per_expert), 2 * kTokens / kExperts);
  }
}

TEST(Sinkhorn, StopsAtItsBoundAndIsTheSameForAnyThreads) {
  Rng rng(2);
  const auto logits = SkewedLogits(rng);
  RouterConfig config = SinkhornConfig();
  std::vector<float> first(kExperts), other(kExperts);
  Router one(config), three(config, 3);
  const MatView<const float> view(logits.data(), kTokens, kExperts);
  const int64_t rounds = Sinkhorn(config, view, {}, first, one.ctx);
  EXPECT_GT(rounds, 2);
  EXPECT_LT(rounds, config.sinkhorn_rounds);
  EXPECT_EQ(Sinkhorn(config, view, {}, other, three.ctx), rounds);
  ExpectSameBits(first, other);
  config.sinkhorn_rounds = 2, config.sinkhorn_tolerance = 1e-30;
  EXPECT_EQ(Sinkhorn(config, view, {}, other, one.ctx), 2);
  // Equal logits are balanced at once; padding is not looked at; no tokens, no rounds.
  std::vector<float> equal(logits.size(), 700.0f);
  std::vector<uint8_t> valid(kTokens, 1);
  equal[5 * kExperts] = NAN, valid[5] = 0;
  Sinkhorn(SinkhornConfig(), {equal.data(), kTokens, kExperts}, valid, other, one.ctx);
  for (const float x : other) EXPECT_EQ(x, other[0]);
  EXPECT_TRUE(std::isfinite(other[0]));
  EXPECT_EQ(Sinkhorn(SinkhornConfig(), {equal.data(), kTokens, kExperts}, std::vector<uint8_t>(kTokens, 0), other, one.ctx), 0);
}

TEST(Sinkhorn, NamesATokenWhoseLogitIsNotFinite) {
  Rng rng(3);
  auto logits = SkewedLogits(rng);
  logits[7 * kExperts + 2] = NAN;
  Router r(SinkhornConfig());
  const auto routing = Route(r.config, {.logits = {logits.data(), kTokens, kExperts}, .training = true}, nullptr, r.ctx);
  ASSERT_FALSE(routing);
  EXPECT_NE(routing.error().Message().find("token 7: got logit nan for expert 2"), std::string::npos);
}

TEST(ExpertChoice, EveryExpertTakesItsBestTokens) {
  for (const char* score : {"softmax", "sigmoid"}) {
    for (const int64_t T : {0, 1, 3, 50}) {
      SCOPED_TRACE(fmt::format("{} {} tokens", score, T));
      Rng rng(4);
      const auto config = ParsePolicy(
          fmt::format("selection=expert_choice,score={},normalize=false,top_k=2,allow_noncausal=true", score), 6, "test");
      Router r(config.value(), 2);
      auto logits = NormalFloats(T * 6, rng);
      for (float& z : logits) z = std::round(2 * z) / 2;  // ties
      std::vector<uint8_t> valid;
      for (int64_t t = 0; t < T; ++t) valid.push_back(T < 10 || t % 5 != 0);
      RouterSaved saved;
      const Routing routing = r.Run(logits, valid, &saved).value();
      const auto n = static_cast<int64_t>(std::count(valid.begin(), valid.end(), uint8_t{1}));
      const int64_t each = std::min(n, (n * 2 + 5) / 6);
      std::set<std::pair<int64_t, int64_t>> want;  // token, expert
      for (int64_t e = 0; e < 6; ++e) {
        std::vector<int64_t> order;
        for (int64_t t = 0; t < T; ++t) {
          if (valid[static_cast<size_t>(t)] != 0) order.push_back(t);
        }
        const auto s = [&](int64_t t) { return saved.probs(t, e) * saved.score_sum[static_cast<size_t>(t)]; };
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return s(a) > s(b); });
        for (int64_t i = 0; i < each; ++i) want.insert({order[static_cast<size_t>(i)], e});
        EXPECT_EQ(routing.aux.tokens_per_expert[static_cast<size_t>(e)], each);
      }
      std::set<std::pair<int64_t, int64_t>> got;
      for (int64_t t = 0; t < T; ++t) {
        for (auto i = static_cast<size_t>(routing.slot_begin[static_cast<size_t>(t)]);
             i < static_cast<size_t>(routing.slot_begin[static_cast<size_t>(t) + 1]); ++i) {
          got.insert({t, routing.expert[i]});
          const double gate = saved.probs(t, routing.expert[i]) * saved.score_sum[static_cast<size_t>(t)];
          EXPECT_NEAR(routing.gate[i], gate, 4 * kEpsF32 * gate);
        }
      }
      EXPECT_EQ(got, want);
      const Routing without = r.Run(logits, valid).value();
      ExpectSameBits(without.expert, routing.expert);
      ExpectSameBits(without.gate, routing.gate);
    }
  }
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
