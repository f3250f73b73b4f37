// Gates that multiply what experts read. (Against the twin: moe_layer_test.cc.)
#include "tests/mixture/layer_fixture.h"

namespace moe::test {
namespace {

LayerOptions Options(const char* policy, Executor executor, DType format = DType::kF32) {
  LayerOptions options{.format = format};
  options.config.router = ParsePolicy(policy, 4, "test").value();
  options.config.executor = executor;
  return options;
}

// Nothing of a dropped token is computed: an enormous one in its place changes nothing, and its gradient is exactly 0.
TEST(GatesInput, DroppedSlotsGetNothing) {
  for (const Executor executor : kExecutors) {
    SCOPED_TRACE(static_cast<int>(executor));
    Layer layer(Options("llama-4,capacity_factor=0.5,balance_loss=0", executor));
    Rng rng(4);
    constexpr int64_t T = 12, D = 8;
    auto x = NormalFloats(T * D, rng);
    const auto d_y = NormalFloats(T * D, rng);
    const LayerStep before = layer.Train(x, d_y);
    ASSERT_GT(before.num_dropped, 0);
    for (size_t t = 0; t < T; ++t) {
      const bool is_dropped = before.slot_row[t] < 0;
      for (size_t d = 0; d < D; ++d) {
        EXPECT_EQ(before.y[t * D + d] == 0, is_dropped) << t;
        EXPECT_EQ(before.d_x[t * D + d] == 0, is_dropped) << t;
        if (is_dropped) x[t * D + d] *= 1e20f;
      }
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

// y = FFN(g x), not g FFN(x): a gate of 1/2 halves what SwiGLU reads, which does not halve what it writes.
TEST(GatesInput, ScalesWhatTheExpertReads) {
  Layer on_input(Options("llama-4", Executor::kGrouped)), on_output(Options("llama-4,gates_input=false", Executor::kGrouped));
  for (Layer* layer : {&on_input, &on_output}) {
    std::ranges::fill(layer->parameter("router").value.span(), 0.0f);  // sigmoid(0), expert 0
    layer->Repacked();
  }
  Rng rng(2);
  const auto x = NormalFloats(3 * 8, rng);
  auto half = x, twice = x;
  for (size_t i = 0; i < x.size(); ++i) half[i] = x[i] / 2, twice[i] = x[i] * 2;
  const std::vector<float> got = on_input.Infer(x).y;
  std::vector<float> want = on_output.Infer(half).y;  // 1/2 FFN(x/2)
  for (float& v : want) v *= 2;
  ExpectSameBits(got, want);
  EXPECT_NE(got, on_output.Infer(x).y);
}

TEST(GatesInput, AllExecutorsAndThreadsGiveTheSameBits) {
  for (const DType format : {DType::kF32, DType::kBf16}) {
    for (const char* policy : {"llama-4", "top_k=3,gates_input=true,capacity_factor=0.9,noise=jitter,noise_scale=0.1"}) {
      Rng rng(5);
      constexpr int64_t T = 90, D = 8;
      const auto x = NormalFloats(T * D, rng), d_y = NormalFloats(T * D, rng);
      std::vector<uint8_t> valid(T, 1);
      valid[3] = valid[80] = 0;
      LayerOptions options = Options(policy, Executor::kGrouped, format);
      options.config.num_shared_experts = 1;
      const LayerStep want = Layer(options).Train(x, d_y, valid);
      for (const Executor executor : kExecutors) {
        SCOPED_TRACE(fmt::format("{} {} executor {}", policy, Name(format), static_cast<int>(executor)));
        options.config.executor = executor, options.threads = 2;
        Layer layer(options);
        const LayerStep got = layer.Train(x, d_y, valid);
        ExpectSameBits(got.y, want.y);
        ExpectSameBits(got.d_x, want.d_x);
        ExpectSameBits(got.d_w.router, want.d_w.router);
        ExpectSameBits(got.d_w.gate_up, want.d_w.gate_up);
        ExpectSameBits(got.d_w.down, want.d_w.down);
        ExpectSameBits(got.d_w.shared_gate_up, want.d_w.shared_gate_up);
      }
    }
  }
}

TEST(GatesInput, IsAPolicyThatInferenceFollows) {
  const RouterConfig llama = PolicyNamed("llama-4").value();
  EXPECT_TRUE(llama.gates_input);
  EXPECT_EQ(llama.top_k, 1);
  EXPECT_EQ(llama.score, RouterScore::kSigmoid);
  EXPECT_FALSE(llama.normalize);
  EXPECT_TRUE(AsServed(llama).gates_input);
}

}  // namespace
}  // namespace moe::test
