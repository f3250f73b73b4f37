// What MoE implementations got wrong, each as a test: counts, choice, formats, sizes, and the experts' gradients.
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
  EXPECT_EQ(layer.layer().weights.gate.first.format(), DType::kF32);
  EXPECT_EQ(layer.layer().weights.experts[0].gate_up.format(), DType::kBf16);
}

// ---- 14: odd sizes.

TEST(Traps, Trap14_CapacityZeroDropsEverything) {
  Rng rng(14);
  constexpr int64_t T = 7, D = 8;
  const auto x = NormalFloats(T * D, rng), d_y = NormalFloats(T * D, rng);
  for (const Executor executor : kExecutors) {
    for (const char* gates : {"normalize=false", "normalize=true", "normalize_after_drop=true", "gates_input=true"}) {
      SCOPED_TRACE(fmt::format("executor {}, {}", static_cast<int>(executor), gates));
      LayerOptions options;
      options.config.executor = executor;
      options.config.router =
          ParsePolicy(fmt::format("top_k=2,balance_loss=0,z_loss=0,capacity_factor=0.01,eval_capacity_factor=0.01,"
                                  "capacity_rounding=floor,least_capacity=0,{}",
                                  gates),
                      4, "test")
              .value();
      ASSERT_EQ(ExpertCapacity(options.config.router, 0.01, T), 0);
      Layer layer(options);
      const LayerStep step = layer.Train(x, d_y), inferred = layer.Infer(x);
      EXPECT_EQ(step.num_dropped, 2 * T);
      EXPECT_EQ(inferred.num_dropped, 2 * T);
      EXPECT_EQ(step.slot_row, std::vector<int32_t>(2 * T, -1));
      EXPECT_EQ(std::accumulate(step.tokens_per_expert.begin(), step.tokens_per_expert.end(), int64_t{0}), 2 * T);
      for (const auto* zeros : {&step.y, &step.d_x, &inferred.y, &step.d_w.router, &step.d_w.gate_up, &step.d_w.down}) {
        EXPECT_FALSE(zeros->empty());
        EXPECT_TRUE(std::ranges::all_of(*zeros, [](float v) { return v == 0; }));
      }
    }
  }
}

TEST(Traps, Trap14_CapacityBeyondTheTokensIsDropless) {
  Rng rng(15);
  const auto x = NormalFloats(7 * 8, rng), d_y = NormalFloats(7 * 8, rng);
  for (const Executor executor : kExecutors) {
    LayerOptions options;
    options.config.executor = executor;
    const LayerStep dropless = Layer(options).Train(x, d_y);
    options.config.router.capacity.factor = 50;  // 175 rows
    const LayerStep roomy = Layer(options).Train(x, d_y);
    EXPECT_EQ(roomy.num_dropped, 0);
    ExpectSameBits(roomy.y, dropless.y);
    ExpectSameBits(roomy.d_x, dropless.d_x);
    ExpectSameBits(roomy.d_w.gate_up, dropless.d_w.gate_up);
  }
}

TEST(Traps, Trap14_NoTokensOneTokenAndFewerTokensThanExperts) {
  for (const Executor executor : kExecutors) {
    for (const double capacity_factor : {0.0, 1.0}) {
      for (const size_t T : {0, 1, 3}) {
        LayerOptions options;
        options.config.router.num_experts = 11;
        options.config.router.capacity.factor = capacity_factor;
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
  for (const Executor executor : kExecutors) {
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

// ---- 16: all tokens to one expert: more of them, and of their blocks, than 16 bits count.

TEST(Traps, Trap16_AllTokensToOneExpertBeyond16Bits) {
  constexpr size_t T = 66'000, D = 8;
  Rng rng(18);
  auto x = NormalFloats(T * D, rng);
  for (size_t t = 0; t < T; ++t) x[t * D] = 1;
  for (const Executor executor : kExecutors) {
    SCOPED_TRACE(static_cast<int>(executor));
    LayerOptions options;
    options.config.router = {.num_experts = 3, .top_k = 1, .normalize = false, .balance_loss = 0, .z_loss = 0};
    options.config.executor = executor;
    if (executor == Executor::kBlockSparse) options.config.expert_width = 144;  // 9 blocks in a row of them: 37,125 in all
    options.threads = 2;
    Layer layer(options);
    layer.parameter("router").value.mat()(1, 0) = 30;
    layer.Repacked();
    const LayerStep step = layer.Train(x, x);
    EXPECT_EQ(step.tokens_per_expert, (std::vector<int64_t>{0, T, 0}));
    EXPECT_EQ(step.slot_row.back(), static_cast<int32_t>(T - 1));
    // The last tokens fare as they would alone.
    const std::vector<float> tail(x.end() - 3 * D, x.end());
    ExpectSameBits(layer.Infer(tail).y, std::span(step.y).last(3 * D));
    ExpectSameBits(layer.Train(tail, tail).d_x, std::span(step.d_x).last(3 * D));
    // The weight gradient's norm grows with its tokens; nothing overflowed.
    double sum = 0;
    for (const float g : step.d_w.down) {
      ASSERT_TRUE(std::isfinite(g));
      sum += std::abs(g);
    }
    EXPECT_GT(sum, 1);
  }
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
