// What MoE implementations got wrong, each as a test.
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
  options.config.router = WithoutLosses({.num_experts = 4, .top_k = 1, .normalize = false, .capacity_factor = 0.5});
  return options;
}

TEST(Traps, Trap04_DroppedSlotsGetNoGradientInGateExpertOrInput) {
  for (const Executor executor : {Executor::kGrouped, Executor::kPadded}) {
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
  for (const Executor executor : {Executor::kGrouped, Executor::kPadded}) {
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

TEST(Traps, Trap05_BalanceLossIsComputedPerLayer) {
  // Two layers of opposite preference: each is unbalanced, though their counts together are not.
  Router first({.num_experts = 2, .top_k = 1, .normalize = false}), second = Router(first.config);
  EXPECT_GT(first.Run({4, 0, 4, 0}).value().aux.balance_loss, 1.9);
  EXPECT_GT(second.Run({0, 4, 0, 4}).value().aux.balance_loss, 1.9);
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
  options.config.router = {.num_experts = 2, .top_k = 1, .normalize = false, .capacity_factor = 1};
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

// ---- 10: counts are integers.

TEST(Traps, Trap10_TokenCountsAreExactIntegers) {
  static_assert(std::is_same_v<decltype(RouterAux::tokens_per_expert)::element_type, int64_t>);
  constexpr int64_t T = 70'001;  // bf16 would say 70144, and 257 is 256 to it
  std::vector<float> logits(T * 2);
  for (size_t t = 0; t < T; ++t) logits[2 * t + (t < 257 ? 1 : 0)] = 1;
  Router router({.num_experts = 2, .top_k = 1, .normalize = false}, 2);
  const Routing routing = router.Run(logits).value();
  EXPECT_EQ(routing.aux.tokens_per_expert[0], T - 257);
  EXPECT_EQ(routing.aux.tokens_per_expert[1], 257);
}

// ---- 11: ties go to the lowest expert, rows of an expert keep their order, and recomputing chooses alike.

TEST(Traps, Trap11_TiesGoToTheLowestExpertEveryTime) {
  constexpr int64_t T = 100, E = 33, k = 3;
  Router router({.num_experts = E, .top_k = k});
  const Routing equal = router.Run(Zeros(T * E)).value();
  for (size_t s = 0; s < equal.expert.size(); ++s) EXPECT_EQ(equal.expert[s], static_cast<int32_t>(s % k));
  // 0 and -0 tie too.
  std::vector<float> zeros(E, -0.0f);
  zeros[5] = 0;
  EXPECT_EQ(router.Run(zeros).value().expert[0], 0);
  // Two equal leaders behind one another.
  std::vector<float> pair(E, 0.0f);
  pair[31] = pair[7] = 2;
  const Routing two = router.Run(pair).value();
  EXPECT_EQ(std::vector<int32_t>(two.expert.begin(), two.expert.end()), (std::vector<int32_t>{7, 31, 0}));
}

TEST(Traps, Trap11_RecomputingChoosesAlikeForAnyNumberOfThreads) {
  Rng rng(13);
  auto logits = NormalFloats(300 * 8, rng);
  for (float& z : logits) z = std::round(z);  // many ties
  Router reference({.num_experts = 8, .top_k = 3});
  const Routing want = reference.Run(logits).value();
  for (int threads = 1; threads <= 4; ++threads) {
    Router router(reference.config, threads);
    ExpectSameBits(router.Run(logits).value().expert, want.expert);
  }
}

// ---- 12: the router multiplies in float32, whatever the experts do.

TEST(Traps, Trap12_RouterStaysInFloat32WhenExpertsAreBf16) {
  LayerOptions options;
  options.format = DType::kBf16;
  options.config.router = {.num_experts = 3, .top_k = 1, .normalize = false};
  Layer layer(options);
  const auto router = layer.parameter("router").value.mat();
  for (int64_t e = 0; e < 3; ++e) {
    for (int64_t d = 0; d < 8; ++d) router(e, d) = 0;
  }
  // In bf16 all three weights are 1, and the tie would go to expert 0.
  router(0, 0) = 1, router(1, 0) = 1.0005f, router(2, 0) = 1.001f;
  layer.Repacked();
  std::vector<float> x(8, 0.0f);
  x[0] = 1;
  const LayerStep step = layer.Train(x, std::vector<float>(8, 1.0f));
  EXPECT_EQ(step.expert, std::vector<int32_t>{2});
  EXPECT_EQ(layer.layer().weights.router_packed.format(), DType::kF32);
  EXPECT_EQ(layer.layer().weights.gate_up.format(), DType::kBf16);
}

// ---- 14: odd sizes.

TEST(Traps, Trap14_CapacityZeroDropsEverything) {
  Router router({.num_experts = 4, .top_k = 2});
  Rng rng(14);
  const Routing routing = router.Run(NormalFloats(7 * 4, rng)).value();
  const DispatchPlan plan = BuildDispatchPlan(routing, 4, 0, router.ctx);
  EXPECT_EQ(plan.num_rows(), 0);
  EXPECT_EQ(plan.num_dropped, 14);
  for (const int32_t row : plan.slot_row) EXPECT_EQ(row, -1);
}

TEST(Traps, Trap14_CapacityBeyondTheTokensIsDropless) {
  Rng rng(15);
  const auto x = NormalFloats(7 * 8, rng), d_y = NormalFloats(7 * 8, rng);
  for (const Executor executor : {Executor::kGrouped, Executor::kPadded}) {
    LayerOptions options;
    options.config.executor = executor;
    const LayerStep dropless = Layer(options).Train(x, d_y);
    options.config.router.capacity_factor = 50;  // 175 rows
    const LayerStep roomy = Layer(options).Train(x, d_y);
    EXPECT_EQ(roomy.num_dropped, 0);
    ExpectSameBits(roomy.y, dropless.y);
    ExpectSameBits(roomy.d_x, dropless.d_x);
    ExpectSameBits(roomy.d_w.gate_up, dropless.d_w.gate_up);
  }
}

TEST(Traps, Trap14_NoTokensOneTokenAndFewerTokensThanExperts) {
  for (const Executor executor : {Executor::kGrouped, Executor::kPadded}) {
    for (const double capacity_factor : {0.0, 1.0}) {
      for (const size_t T : {0, 1, 3}) {
        LayerOptions options;
        options.config.router.num_experts = 11;
        options.config.router.capacity_factor = capacity_factor;
        options.config.num_shared_experts = 1;
        options.config.executor = executor;
        Layer layer(options);
        Rng rng(16);
        const auto x = NormalFloats(static_cast<int64_t>(T * 8), rng);
        const LayerStep step = layer.Train(x, x);
        for (const float v : step.y) EXPECT_TRUE(std::isfinite(v));
        for (const float v : step.d_x) EXPECT_TRUE(std::isfinite(v));
        EXPECT_EQ(std::accumulate(step.tokens_per_expert.begin(), step.tokens_per_expert.end(), int64_t{0}),
                  static_cast<int64_t>(2 * T));
        EXPECT_EQ(layer.Infer(x).y.size(), x.size());
      }
    }
  }
}

// ---- 15: an expert without tokens: its weight gradient is written, exactly 0, and what was accumulated before stays.

TEST(Traps, Trap15_EmptyExpertsGradientIsExactlyZeroAndKeepsWhatWasThere) {
  for (const Executor executor : {Executor::kGrouped, Executor::kPadded}) {
    for (const DType format : {DType::kF32, DType::kBf16}) {
      LayerOptions options;
      options.config.router.num_experts = 8;
      options.config.executor = executor;
      options.format = format;
      Layer layer(options);
      Rng rng(17);
      const auto x = NormalFloats(2 * 8, rng), d_y = NormalFloats(2 * 8, rng);
      const LayerStep fresh = layer.Train(x, d_y);
      for (Parameter& p : layer.store().all()) {
        for (float& g : p.grad.span()) g = 3.25f;
      }
      const LayerStep added = layer.TrainMore(x, d_y, {}, 1);
      const size_t gate_up_size = 2 * 16 * 8, down_size = 8 * 16;
      int64_t num_empty = 0;
      for (size_t e = 0; e < 8; ++e) {
        SCOPED_TRACE(e);
        const bool empty = fresh.tokens_per_expert[e] == 0;
        num_empty += empty ? 1 : 0;
        const auto zero = [](std::span<const float> g, float value) {
          return std::all_of(g.begin(), g.end(), [=](float v) { return v == value; });
        };
        EXPECT_EQ(zero(std::span(fresh.d_w.gate_up).subspan(e * gate_up_size, gate_up_size), 0), empty);
        EXPECT_EQ(zero(std::span(fresh.d_w.down).subspan(e * down_size, down_size), 0), empty);
        EXPECT_EQ(zero(std::span(added.d_w.gate_up).subspan(e * gate_up_size, gate_up_size), 3.25f), empty);
        EXPECT_EQ(zero(std::span(added.d_w.down).subspan(e * down_size, down_size), 3.25f), empty);
      }
      EXPECT_GE(num_empty, 4);
    }
  }
}

// ---- 16: all tokens to one expert, more of them than 16 bits count.

TEST(Traps, Trap16_AllTokensToOneExpertBeyond16Bits) {
  LayerOptions options;
  options.config.router = {.num_experts = 3, .top_k = 1, .normalize = false};
  options.threads = 2;
  Layer layer(options);
  constexpr size_t T = 66'000, D = 8;
  Rng rng(18);
  auto x = NormalFloats(T * D, rng);
  for (size_t t = 0; t < T; ++t) x[t * D] = 1;
  layer.parameter("router").value.mat()(1, 0) = 30;
  layer.Repacked();
  const LayerStep step = layer.Train(x, x);
  EXPECT_EQ(step.tokens_per_expert, (std::vector<int64_t>{0, T, 0}));
  EXPECT_EQ(step.slot_row.back(), static_cast<int32_t>(T - 1));
  // The last tokens fare as they would alone.
  const std::vector<float> tail(x.end() - 3 * D, x.end());
  ExpectSameBits(layer.Infer(tail).y, std::span(step.y).last(3 * D));
  // The weight gradient's norm grows with its tokens; nothing overflowed.
  double sum = 0;
  for (const float g : step.d_w.down) {
    ASSERT_TRUE(std::isfinite(g));
    sum += std::abs(g);
  }
  EXPECT_GT(sum, 1);
}

// ---- 17: a logit that is no number is reported with its token, not sorted.

TEST(Traps, Trap17_NotANumberIsReportedWithItsToken) {
  for (const KernelTable* kernels : SupportedKernelTables()) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      for (const int64_t E : {1, 3, 16, 33, 64}) {
        for (const int64_t at : {int64_t{0}, E / 2, E - 1}) {
          Rng rng(19);
          auto logits = NormalFloats(150 * E, rng);
          logits[static_cast<size_t>(130 * E + at)] = bad;
          logits[static_cast<size_t>(140 * E)] = bad;  // the first one is named
          Router router({.num_experts = E, .top_k = 1, .normalize = false}, 1, kernels);
          const auto routing = router.Run(logits);
          ASSERT_FALSE(routing) << kernels->name << " " << bad;
          EXPECT_EQ(routing.error().where, "router");
          EXPECT_EQ(routing.error().what,
                    fmt::format("token 130: got logit {} for expert {}, expected finite numbers", bad, at));
        }
      }
    }
  }
}

TEST(Traps, Trap17_LayerReportsTheTokenInTrainingAndInference) {
  Layer layer({});
  std::vector<float> x(8 * 8, 0.5f);
  x[5 * 8 + 3] = NAN;
  LayerStep step;
  MoeSaved saved;
  for (MoeSaved* s : {&saved, static_cast<MoeSaved*>(nullptr)}) {
    const Status status = layer.Forward(x, {}, step, s);
    ASSERT_FALSE(status);
    EXPECT_TRUE(status.error().what.starts_with("token 5: got logit nan")) << status.error().what;
  }
}

// ---- 19: an expert's weight gradient can be wrong while outputs, input gradients and the falling loss are right.

TEST(Traps, Trap19_EveryExpertsWeightGradientMatchesTheReference) {
  for (const KernelTable* kernels : SupportedKernelTables()) {
    for (const int64_t E : {3, 6, 11}) {  // no powers of two
      LayerOptions options;
      options.kernels = kernels;
      options.config.router.num_experts = E;
      options.config.expert_width = 32;
      options.D = 40;
      options.weight_deviation = 0.15;
      Layer layer(options);
      Rng rng(20);
      const auto x = NormalFloats(60 * 40, rng), d_y = NormalFloats(60 * 40, rng);
      const LayerStep got = layer.Train(x, d_y);
      auto twin = layer.Twin<Bounded>(x);
      twin.Forward();
      twin.Backward(ToDoubles(d_y), 1);
      for (int64_t e = 0; e < E; ++e) {
        SCOPED_TRACE(fmt::format("{} expert {} of {}", kernels->name, e, E));
        EXPECT_GT(got.tokens_per_expert[static_cast<size_t>(e)], 0);
        const auto compare = [&](const std::vector<float>& g, const std::vector<Bounded>& w, int64_t size) {
          ExpectWithinBounds(std::span(g).subspan(static_cast<size_t>(e * size), static_cast<size_t>(size)),
                             {w.begin() + e * size, w.begin() + (e + 1) * size});
          double norm = 0, bound = 0;
          for (int64_t i = 0; i < size; ++i) {
            const Bounded& v = w[static_cast<size_t>(e * size + i)];
            norm += v.value * v.value, bound += v.error * v.error;
          }
          EXPECT_LT(std::sqrt(bound / norm), 1e-2);  // leaving out one of its tokens is more
        };
        compare(got.d_w.gate_up, twin.d_w.gate_up, 2 * 32 * 40);
        compare(got.d_w.down, twin.d_w.down, 40 * 32);
        compare(got.d_w.router, twin.d_w.router, 40);
      }
    }
  }
}

}  // namespace
}  // namespace moe::test
