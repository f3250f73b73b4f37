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

}  // namespace
}  // namespace moe::test
