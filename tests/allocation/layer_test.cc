// One MoE layer, forward with and without what backward needs, and backward.
#include "tests/allocation/counting.h"
#include "tests/mixture/layer_fixture.h"

namespace moe::test {
namespace {

void ExpectNothingOfTheHeap(const char* policy) {
  SCOPED_TRACE(policy);
  for (const Executor executor : kExecutors) {
    for (const DType format : {DType::kF32, DType::kBf16}) {
      LayerOptions options{.D = 24, .format = format, .threads = 2};
      options.config.executor = executor;
      options.config.num_shared_experts = 1;
      options.config.router = ParsePolicy(policy, 4, "test").value();
      Layer layer(options);
      Rng rng(5);
      const int64_t T = 300;
      const auto x = NormalFloats(T * 24, rng), d_y = NormalFloats(T * 24, rng);
      std::vector<float> y(x.size()), d_x(x.size());
      std::vector<uint8_t> valid(static_cast<size_t>(T), 1);
      valid[7] = 0;
      const MatView<const float> x_view(x.data(), T, 24), d_y_view(d_y.data(), T, 24);
      RouterAux aux;
      const auto step = [&] {
        layer.arena().Reset();
        MoeSaved saved;
        const bool ok =
            layer.layer().Forward(x_view, {.valid = valid}, {y.data(), T, 24}, &saved, &aux, nullptr, layer.ctx()) &&
            layer.layer().Forward(x_view, {.valid = valid}, {y.data(), T, 24}, nullptr, &aux, nullptr, layer.ctx());
        layer.layer().Backward(x_view, saved, d_y_view, 1, {d_x.data(), T, 24}, layer.ctx());
        return ok;
      };
      ASSERT_TRUE(step());
      ASSERT_TRUE(step());
      const int64_t blocks = layer.arena().num_allocations(), peak = layer.arena().peak_bytes();
      for (int i = 0; i < 3; ++i) {
        bool done = false;
        EXPECT_EQ(AllocationsIn([&] { done = step(); }), 0);
        ASSERT_TRUE(done);
      }
      EXPECT_EQ(layer.arena().num_allocations(), blocks);
      EXPECT_EQ(layer.arena().peak_bytes(), peak);
    }
  }
}

TEST(Layer, AStepAsksNothingOfTheHeapOnceTheArenaHasItsSize) {
  ExpectNothingOfTheHeap("top_k=2,capacity_factor=1");
  ExpectNothingOfTheHeap("gate=mlp,gate_width=7,gates_input=true,noise=jitter,noise_scale=0.1");
  ExpectNothingOfTheHeap("gate=cosine,gate_width=7,load_loss=1,noise=gaussian,noise_scale=1");
}

// Where tokens go changes from step to step, and with it how wide the rows are and how many there are none of.
TEST(Layer, AStepAsksNothingWhicheverExpertsItsRowsGoTo) {
  for (const Executor executor : {Executor::kGrouped, Executor::kLoop}) {
    LayerOptions options{.D = 24, .format = DType::kBf16, .threads = 2};
    GiveExperts(options.config, {"2 silu 16", "1 gelu 96 plain deep", "1 relu2 64", "2 zero", "1 copy", "1 constant"});
    options.config.executor = executor;
    options.config.num_shared_experts = 1, options.config.shared_expert_width = 16, options.config.shared_gate = true;
    Layer layer(options);
    Rng rng(5);
    const int64_t T = 300;
    std::vector<float> x = NormalFloats(T * 24, rng), y(x.size()), d_x(x.size());
    const auto d_y = NormalFloats(T * 24, rng);
    const auto step = [&](uint64_t seed) {
      Rng of_step(seed);
      for (float& v : layer.parameter("router").value.span()) v = static_cast<float>(of_step.Normal());
      layer.Repacked();
      layer.arena().Reset();
      MoeSaved saved;
      const MatView<const float> in(x.data(), T, 24);
      const bool ok = layer.layer().Forward(in, {}, {y.data(), T, 24}, &saved, nullptr, nullptr, layer.ctx()).has_value();
      layer.layer().Backward(in, saved, {d_y.data(), T, 24}, 1, {d_x.data(), T, 24}, layer.ctx());
      return ok;
    };
    ASSERT_TRUE(step(1));
    ASSERT_TRUE(step(1));
    for (uint64_t seed = 2; seed < 12; ++seed) {
      bool done = false;
      EXPECT_EQ(AllocationsIn([&] { done = step(seed); }), 0) << seed;
      ASSERT_TRUE(done);
    }
  }
}

// From a tenth of the tokens to nine tenths: the others go to an expert that gives them no row.
TEST(Layer, AStepTakesAsMuchHoweverManyTokensHaveNoRow) {
  LayerOptions options{.D = 24};
  GiveExperts(options.config, {"1 zero", "1 silu 16"});
  options.config.router.top_k = 1, options.config.router.normalize = false;
  Layer layer(options);
  const auto router = layer.parameter("router").value.mat();
  for (int64_t d = 0; d < 24; ++d) router(0, d) = d == 0 ? 1 : 0, router(1, d) = 0;
  layer.Repacked();
  Rng rng(6);
  const int64_t T = 6000;
  std::vector<float> x = NormalFloats(T * 24, rng), y(x.size()), d_x(x.size());
  const auto d_y = NormalFloats(T * 24, rng);
  const auto step = [&](int64_t rows) {
    for (int64_t t = 0; t < T; ++t) x[static_cast<size_t>(t * 24)] = t < rows ? -5.0f : 5.0f;
    layer.arena().Reset();
    MoeSaved saved;
    const MatView<const float> in(x.data(), T, 24);
    const bool ok = layer.layer().Forward(in, {}, {y.data(), T, 24}, &saved, nullptr, nullptr, layer.ctx()).has_value();
    EXPECT_EQ(saved.plan.num_rows(), rows);
    layer.layer().Backward(in, saved, {d_y.data(), T, 24}, 1, {d_x.data(), T, 24}, layer.ctx());
    return ok;
  };
  ASSERT_TRUE(step(T / 10));
  ASSERT_TRUE(step(T / 10));
  bool done = false;
  EXPECT_EQ(AllocationsIn([&] { done = step(9 * T / 10); }), 0);
  EXPECT_TRUE(done);
}

}  // namespace
}  // namespace moe::test
