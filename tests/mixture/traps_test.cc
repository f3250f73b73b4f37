// What MoE implementations got wrong, each as a test: gates, dropping, losses and padding.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>

#include "tests/mixture/layer_fixture.h"

namespace moe::test {
namespace {

std::vector<float> Zeros(size_t n) {
  return std::vector<float>(n, 0.0f);
}
RouterConfig WithoutLosses(RouterConfig config) {
  config.balance_loss = config.z_loss = 0;
  return config;
}

// ---- 1: a gate that is always 1 gives the router no gradient: top-1 would train like a dense layer.

TEST(Traps, Trap01_TopOneSoftmaxAfterSelectionIsRefused) {
  const RouterConfig after{.num_experts = 8, .top_k = 1, .score = RouterScore::kTopKSoftmax, .normalize = false};
  const auto status = Validate(after, "recipe");
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().where, "recipe: top_k");
  EXPECT_NE(status.error().what.find("got 1"), std::string::npos);
  EXPECT_NE(status.error().what.find("no gradient"), std::string::npos);
}

TEST(Traps, Trap01_TopOneRenormalisedIsRefused) {
  EXPECT_FALSE(Validate(RouterConfig{.num_experts = 8, .top_k = 1, .normalize = true}, "recipe"));
  EXPECT_TRUE(Validate(RouterConfig{.num_experts = 8, .top_k = 1, .normalize = false}, "recipe"));
  EXPECT_TRUE(Validate(RouterConfig{.num_experts = 1, .top_k = 1, .normalize = true}, "recipe"));  // nothing to choose
}

TEST(Traps, Trap01_TopOneWithRawProbabilitiesTrainsTheRouter) {
  Router router(WithoutLosses({.num_experts = 3, .top_k = 1, .normalize = false}));
  RouterSaved saved;
  const Routing routing = router.Run({1, 2, 0}, {}, &saved).value();
  const auto d = router.Back(routing, saved, {1});
  EXPECT_GT(std::abs(d[1]), 0.1f);  // p (1 - p)
}

// ---- 2: softmax before selection with renormalisation is softmax after it, in value; without, it is not.

TEST(Traps, Trap02_SoftmaxBeforeSelectionRenormalisedEqualsSoftmaxAfterIt) {
  Rng rng(2);
  const auto logits = NormalFloats(50 * 6, rng, 2);
  Router before({.num_experts = 6, .top_k = 3, .score = RouterScore::kSoftmax, .normalize = true});
  Router after({.num_experts = 6, .top_k = 3, .score = RouterScore::kTopKSoftmax});
  Router raw({.num_experts = 6, .top_k = 3, .score = RouterScore::kSoftmax, .normalize = false});
  const Routing a = before.Run(logits).value(), b = after.Run(logits).value(), c = raw.Run(logits).value();
  ExpectSameBits(a.gate, b.gate);
  ExpectSameBits(a.expert, c.expert);
  for (size_t s = 0; s < a.gate.size(); s += 3) {
    // Each gate a rounded division by the rounded sum of three: 5 u in all, then two more additions here.
    EXPECT_NEAR(a.gate[s] + a.gate[s + 1] + a.gate[s + 2], 1, 8 * kEpsF32);
    const double softmax = 1 / (1 + std::exp(logits[s / 3 * 6 + static_cast<size_t>(b.expert[s + 1])] -
                                             logits[s / 3 * 6 + static_cast<size_t>(b.expert[s])]));
    EXPECT_NEAR(a.gate[s] / (a.gate[s] + a.gate[s + 1]), softmax, 16 * kEpsF32);
    EXPECT_LT(c.gate[s] + c.gate[s + 1] + c.gate[s + 2], 1);
  }
}

// ---- 3: the Jacobian of renormalised gates has terms from all chosen slots; we divide before dropping, so dropped ones too.

TEST(Traps, Trap03_RenormalisedGateGradientSumsOverAllChosenDroppedOnesToo) {
  Rng rng(3);
  constexpr int64_t E = 5, k = 3;
  const auto logits = NormalFloats(E, rng);
  // Slot 1 was dropped: its gate has gradient 0, but its logit still moves the other two gates.
  const std::vector<float> d_gate = {0.7f, 0, -1.3f};
  Router router(WithoutLosses({.num_experts = E, .top_k = k}));
  RouterSaved saved;
  const Routing routing = router.Run(logits, {}, &saved).value();
  const auto got = router.Back(routing, saved, d_gate);

  const auto gates = [&](const std::vector<double>& z) {
    double sum = 0, out = 0;
    for (const int32_t e : routing.expert) sum += std::exp(z[static_cast<size_t>(e)]);
    for (size_t s = 0; s < k; ++s) out += d_gate[s] * std::exp(z[static_cast<size_t>(routing.expert[s])]) / sum;
    return out;
  };
  for (size_t e = 0; e < E; ++e) {
    auto up = ToDoubles(logits), down = up;
    up[e] += 1e-5, down[e] -= 1e-5;
    // Differences in double: 1e-10. Float32: a dozen roundings of values below 2.
    EXPECT_NEAR(got[e], (gates(up) - gates(down)) / 2e-5, 24 * kEpsF32 + 1e-9) << e;
  }
  EXPECT_NE(got[static_cast<size_t>(routing.expert[1])], 0);
}

// ---- 4: dropped slots and padding rows get exactly nothing, even where a product with 0 would be NaN.

LayerOptions DroppingOptions() {
  LayerOptions options;
  options.config.router = WithoutLosses({.num_experts = 4, .top_k = 1, .normalize = false, .capacity = {.factor = 0.5}});
  return options;
}

TEST(Traps, Trap04_DroppedSlotsGetNoGradientInGateExpertOrInput) {
  for (const Executor executor : kExecutors) {
    LayerOptions options = DroppingOptions();
    options.config.executor = executor;
    Layer layer(options);
    Rng rng(4);
    constexpr int64_t T = 12, D = 8;  // capacity 2
    auto x = NormalFloats(T * D, rng);
    const auto d_y = NormalFloats(T * D, rng);
    const LayerStep before = layer.Train(x, d_y);
    ASSERT_GT(before.num_dropped, 0);
    std::vector<size_t> dropped;
    for (size_t t = 0; t < T; ++t) {
      const bool is_dropped = before.slot_row[t] < 0;
      if (is_dropped) dropped.push_back(t);
      for (size_t d = 0; d < D; ++d) {
        EXPECT_EQ(before.y[t * D + d] == 0, is_dropped) << t;
        EXPECT_EQ(before.d_x[t * D + d] == 0, is_dropped) << t;
      }
    }
    // In a dropped token's place another, enormous one of the same choice: no one else notices, bit for bit. An expert that
    // computed it would have an infinite output, and 0 * inf is NaN.
    for (const size_t t : dropped) {
      for (size_t d = 0; d < D; ++d) x[t * D + d] *= 1e30f;
    }
    const LayerStep after = layer.Train(x, d_y);
    ASSERT_EQ(after.slot_row, before.slot_row);
    ExpectSameBits(after.y, before.y);
    ExpectSameBits(after.d_x, before.d_x);
    ExpectSameBits(after.d_w.gate_up, before.d_w.gate_up);
    ExpectSameBits(after.d_w.down, before.d_w.down);
    ExpectSameBits(after.d_w.router, before.d_w.router);
  }
}

TEST(Traps, Trap04_PaddingRowsMayHoldAnythingAndGetNothing) {
  for (const Executor executor : kExecutors) {
    for (const DType format : {DType::kF32, DType::kBf16}) {
      LayerOptions options;
      options.config.num_shared_experts = 1;
      options.config.executor = executor;
      options.format = format;
      Layer layer(options);
      Rng rng(5);
      constexpr size_t T = 9, D = 8;
      const std::vector<uint8_t> valid = {1, 0, 1, 1, 0, 1, 1, 1, 0};
      auto x = NormalFloats(T * D, rng), d_y = NormalFloats(T * D, rng);
      const LayerStep clean = layer.Train(x, d_y, valid);
      for (size_t t = 0; t < T; ++t) {
        if (valid[t] != 0) continue;
        for (size_t d = 0; d < D; ++d) {
          x[t * D + d] = d % 2 == 0 ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
          d_y[t * D + d] = std::numeric_limits<float>::quiet_NaN();
        }
      }
      const LayerStep dirty = layer.Train(x, d_y, valid);
      ExpectSameBits(dirty.y, clean.y);
      ExpectSameBits(dirty.d_x, clean.d_x);
      for (size_t t = 0; t < T; ++t) {
        if (valid[t] != 0) continue;
        ExpectSameBits(std::span(dirty.y).subspan(t * D, D), Zeros(D));
        ExpectSameBits(std::span(dirty.d_x).subspan(t * D, D), Zeros(D));
      }
      ExpectSameBits(dirty.d_w.router, clean.d_w.router);
      ExpectSameBits(dirty.d_w.gate_up, clean.d_w.gate_up);
      ExpectSameBits(dirty.d_w.down, clean.d_w.down);
      ExpectSameBits(dirty.d_w.shared_gate_up, clean.d_w.shared_gate_up);
      ExpectSameBits(dirty.d_w.shared_down, clean.d_w.shared_down);
      ExpectSameBits(layer.Infer(x, valid).y, clean.y);
    }
  }
}

// ---- 5: the balance loss is 1 at balance for every k, and its gradient flows through P only.

// Every rotation of one row of logits: each expert is chosen equally often, and P is uniform.
std::vector<float> Rotations(int64_t E) {
  std::vector<float> logits;
  for (int64_t t = 0; t < E; ++t) {
    for (int64_t e = 0; e < E; ++e) logits.push_back(0.3f * static_cast<float>((e + t) % E));
  }
  return logits;
}

TEST(Traps, Trap05_BalanceLossIsOneAtPerfectBalanceForEveryK) {
  for (const int64_t E : {2, 4, 7, 64}) {
    for (int64_t k = 1; k <= std::min<int64_t>(E, 8); ++k) {
      Router router({.num_experts = E, .top_k = k, .normalize = false});
      const Routing routing = router.Run(Rotations(E)).value();
      // P is a mean of E probabilities, each with a relative error of a few u.
      EXPECT_NEAR(routing.aux.balance_loss, 1, static_cast<double>(E + 8) * kEpsF32) << E << " " << k;
    }
  }
}

TEST(Traps, Trap05_BalanceLossGradientFlowsThroughProbabilitiesOnly) {
  Rng rng(7);
  constexpr int64_t T = 6, E = 4, k = 2;
  const auto logits = NormalFloats(T * E, rng);
  RouterConfig config{.num_experts = E, .top_k = k, .balance_loss = 0.5, .z_loss = 0};
  Router router(config);
  RouterSaved saved;
  const Routing routing = router.Run(logits, {}, &saved).value();
  const auto got = router.Back(routing, saved, Zeros(T * k), 3);
  // d/dz of 3 * 0.5 * E sum_e f_e P_e with f held still.
  for (size_t t = 0; t < T; ++t) {
    std::vector<double> p, f;
    double sum = 0, mean = 0;
    for (size_t e = 0; e < E; ++e) p.push_back(std::exp(logits[t * E + e])), sum += p[e];
    for (size_t e = 0; e < E; ++e) {
      p[e] /= sum;
      f.push_back(static_cast<double>(routing.aux.tokens_per_expert[e]) / (T * k));
      mean += p[e] * f[e];
    }
    for (size_t e = 0; e < E; ++e) {
      const double scale = 3 * 0.5 * E / static_cast<double>(T);
      EXPECT_NEAR(got[t * E + e], scale * p[e] * (f[e] - mean), 24 * kEpsF32 * scale);
    }
  }
}

// ---- 6: losses do not grow with the number of tokens, micro-batches, or recomputations.

TEST(Traps, Trap06_LossesAreMeansNotSums) {
  Rng rng(8);
  const auto once = NormalFloats(32 * 6, rng);
  auto twice = once;
  twice.insert(twice.end(), once.begin(), once.end());
  Router router({.num_experts = 6, .top_k = 2});
  const RouterAux a = router.Run(once).value().aux, b = router.Run(twice).value().aux;
  EXPECT_DOUBLE_EQ(a.balance_loss, b.balance_loss);
  EXPECT_DOUBLE_EQ(a.z_loss, b.z_loss);
  EXPECT_DOUBLE_EQ(a.entropy, b.entropy);
}

TEST(Traps, Trap06_AccumulatingMicroBatchesAddsTheLossesOnce) {
  LayerOptions options;
  options.config.router.balance_loss = 0.3, options.config.router.z_loss = 0.1;
  Layer layer(options);
  Rng rng(9);
  constexpr size_t T = 10, D = 8;
  const auto x = NormalFloats(T * D, rng);
  // Only the losses: d_y = 0. Four micro-batches of a quarter each, against one: exact, 1/4 is a power of two.
  const LayerStep one = layer.Train(x, Zeros(T * D), {}, 1);
  LayerStep last = layer.Train(x, Zeros(T * D), {}, 0.25f);
  for (int i = 1; i < 4; ++i) last = layer.TrainMore(x, Zeros(T * D), {}, 0.25f);
  double norm = 0;
  for (size_t i = 0; i < one.d_w.router.size(); ++i) {
    norm += std::abs(one.d_w.router[i]);
    EXPECT_NEAR(last.d_w.router[i], one.d_w.router[i], 8 * kEpsF32 * (1e-3 + std::abs(one.d_w.router[i])));
  }
  EXPECT_GT(norm, 1e-3);
}

TEST(Traps, Trap06_RecomputingForwardCountsTheLossesOnce) {
  Layer layer({});
  Rng rng(10);
  const auto x = NormalFloats(80, rng), d_y = NormalFloats(80, rng);
  const LayerStep plain = layer.Train(x, d_y);
  layer.store().ZeroGradients();
  LayerStep step;
  MoeSaved thrown_away;
  ASSERT_TRUE(layer.Forward(x, {}, step, &thrown_away));
  const LayerStep recomputed = layer.TrainMore(x, d_y, {}, 1);
  ExpectSameBits(recomputed.d_w.router, plain.d_w.router);
  EXPECT_EQ(recomputed.aux.balance_loss, plain.aux.balance_loss);
}

// ---- 7: padding is in no count, mean or loss.

TEST(Traps, Trap07_PaddingIsInNoCounterAndNoLoss) {
  Rng rng(11);
  constexpr int64_t T = 20, E = 5, k = 2;
  std::vector<float> all = NormalFloats(T * E, rng), tokens;
  std::vector<uint8_t> valid;
  for (int64_t t = 0; t < T; ++t) {
    valid.push_back(t % 3 != 1);
    if (valid.back()) tokens.insert(tokens.end(), all.begin() + t * E, all.begin() + (t + 1) * E);
  }
  Router router({.num_experts = E, .top_k = k});
  RouterSaved saved, saved_tokens;
  const Routing padded = router.Run(all, valid, &saved).value(), plain = router.Run(tokens, {}, &saved_tokens).value();
  EXPECT_EQ(padded.aux.num_tokens, plain.aux.num_tokens);
  EXPECT_TRUE(std::ranges::equal(padded.aux.tokens_per_expert, plain.aux.tokens_per_expert));
  ExpectSameBits(padded.gate, plain.gate);
  EXPECT_EQ(padded.aux.balance_loss, plain.aux.balance_loss);
  EXPECT_EQ(padded.aux.z_loss, plain.aux.z_loss);
  EXPECT_EQ(padded.aux.entropy, plain.aux.entropy);

  const auto d_gate = NormalFloats(plain.aux.num_tokens * k, rng);
  const auto d_padded = router.Back(padded, saved, d_gate), d_plain = router.Back(plain, saved_tokens, d_gate);
  size_t next = 0;
  for (size_t t = 0; t < T; ++t) {
    const auto row = std::span(d_padded).subspan(t * E, E);
    if (valid[t] == 0) {
      ExpectSameBits(row, Zeros(E));
    } else {
      ExpectSameBits(row, std::span(d_plain).subspan(next++ * E, E));
    }
  }
}

TEST(Traps, Trap07_PaddingTakesNoCapacity) {
  LayerOptions options;
  options.config.router = {.num_experts = 2, .top_k = 1, .normalize = false, .capacity = {.factor = 1}};
  Layer layer(options);
  Rng rng(12);
  constexpr size_t T = 12, D = 8;
  const auto x = NormalFloats(T * D, rng), d_y = NormalFloats(T * D, rng);
  std::vector<uint8_t> valid(T, 1);
  for (size_t t = 0; t < 6; ++t) valid[t] = 0;
  const LayerStep step = layer.Train(x, d_y, valid);
  EXPECT_EQ(step.tokens_per_expert[0] + step.tokens_per_expert[1], 6);
  // Capacity is that of 6 tokens, 3 rows each.
  const int64_t most = std::max(step.tokens_per_expert[0], step.tokens_per_expert[1]);
  ASSERT_GT(most, 3);
  EXPECT_EQ(step.num_dropped, most - 3);
}

}  // namespace
}  // namespace moe::test
