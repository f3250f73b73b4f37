// The whole layer, forward and backward, against its twin.
#include "moe/mixture/moe_layer.h"

#include <ostream>

#include "tests/mixture/layer_fixture.h"

namespace moe::test {
namespace {

// One configuration, with the tokens it is run on.
struct Case {
  std::string name;
  LayerOptions options;
  int64_t T = 13;
  std::vector<uint8_t> valid;
  bool one_expert_takes_all = false;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  const auto add = [&](const char* name) -> Case& {
    cases.push_back({.name = name});
    cases.back().options.seed = cases.size();
    return cases.back();
  };
  add("normalised");
  add("raw").options.config.router.normalize = false;
  add("after_selection").options.config.router.score = RouterScore::kTopKSoftmax;
  {
    Case& c = add("top_one");
    c.options.config.router.top_k = 1, c.options.config.router.normalize = false;
  }
  {
    Case& c = add("all_experts");
    c.options.config.router.top_k = 4;
  }
  {
    Case& c = add("router_bias");
    c.options.config.router.bias = true;
    c.valid = {1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0};
  }
  {
    Case& c = add("many_experts_of_a_token");  // more than combine adds up at once
    c.options.config.router.num_experts = 40, c.options.config.router.top_k = 35;
    c.options.config.num_shared_experts = 1, c.T = 5, c.options.D = 70, c.options.config.router.capacity.factor = 0.8;
  }
  {
    Case& c = add("shared");
    c.options.config.num_shared_experts = 2;
  }
  {
    Case& c = add("drops");
    c.options.config.router.capacity.factor = 0.7;
  }
  {
    Case& c = add("raw_drops_shared_padding");
    c.options.config.router.normalize = false, c.options.config.router.capacity.factor = 0.6;
    c.options.config.num_shared_experts = 1, c.options.config.shared_expert_width = 32;
    c.valid = {1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 0};
  }
  {
    Case& c = add("padding");
    c.valid = {0, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0};
  }
  {
    Case& c = add("only_padding");
    c.options.config.num_shared_experts = 1;
    c.valid = std::vector<uint8_t>(13, 0);
  }
  {
    Case& c = add("empty_experts");
    c.options.config.router.num_experts = 9;
    c.T = 3;
  }
  {
    Case& c = add("one_expert_takes_all");
    c.options.config.router.top_k = 1, c.options.config.router.normalize = false;
    c.one_expert_takes_all = true;
  }
  {
    Case& c = add("one_expert");
    c.options.config.router.num_experts = c.options.config.router.top_k = 1;
  }
  for (const auto gate : {GateNetwork::kMlp, GateNetwork::kCosine}) {
    const bool mlp = gate == GateNetwork::kMlp;
    const auto with = [&](const char* of_mlp, const char* of_cosine, int64_t width) -> Case& {
      Case& c = add(mlp ? of_mlp : of_cosine);
      c.options.config.router.gate = gate, c.options.config.router.gate_width = width;
      return c;
    };
    with("mlp_gate", "cosine_gate", 5);
    {
      Case& c = with("mlp_gate_bias_padding", "cosine_gate_bias_padding", 33);
      c.options.config.router.bias = true, c.options.config.num_shared_experts = 1, c.options.D = 37;
      c.valid = {0, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0};
    }
    with("mlp_gate_one_value", "cosine_gate_one_value", mlp ? 1 : 2).T = 1;
    with("mlp_gate_no_token", "cosine_gate_no_token", 3).T = 0;
  }
  for (const bool padded : {false, true}) {
    Case& c = add(padded ? "gates_on_the_input_drops_padding" : "gates_on_the_input");
    c.options.config.router.gates_input = true;
    if (!padded) continue;
    c.options.config.router.normalize = false, c.options.config.router.capacity.factor = 0.6;
    c.options.config.num_shared_experts = 1;
    c.valid = {1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 0};
  }
  add("one_token").T = 1;
  add("no_token").T = 0;
  {
    Case& c = add("wide");
    c.options.config.router.num_experts = 5, c.options.config.expert_width = 48, c.options.D = 37;
    c.T = 70;  // more than a chunk of tokens
  }
  {
    Case& c = add("block_of_64");
    c.options.config.router.num_experts = 2, c.options.config.expert_width = 64, c.options.D = 5;
    c.T = 67;  // all to both: two blocks below each other
  }
  {
    Case& c = add("two_blocks_of_64");
    c.options.config.router.num_experts = 3, c.options.config.expert_width = 128, c.options.D = 5;
  }
  {
    Case& c = add("every_kind_of_expert");
    GiveExperts(c.options.config, {"2 silu 16", "1 relu2 32 plain", "1 gelu 16 plain deep", "1 zero", "1 copy", "1 constant"});
    c.options.config.router.top_k = 3;
  }
  {
    Case& c = add("every_activation_gated");
    GiveExperts(c.options.config, {"1 gelu 16", "1 gelu_tanh 32", "1 relu2 16", "1 silu 16 deep", "1 gelu_tanh 16 deep"});
    c.options.D = 11, c.options.config.num_shared_experts = 1, c.options.config.shared_expert_width = 16;
  }
  {
    Case& c = add("every_activation_plain_deep");
    GiveExperts(c.options.config, {"1 silu 16 plain deep", "1 gelu_tanh 16 plain", "2 relu2 16 plain deep", "1 silu 48 plain"});
    c.T = 40;
  }
  {
    Case& c = add("no_products");
    GiveExperts(c.options.config, {"2 constant", "1 zero", "1 copy", "1 constant"});
    c.options.D = 19, c.T = 70;
  }
  {
    Case& c = add("alike_but_plain");
    GiveExperts(c.options.config, {"4 relu2 16 plain"});
  }
  {
    Case& c = add("kinds_drops_padding_shared_gate");
    GiveExperts(c.options.config, {"1 zero", "2 silu 16", "1 constant", "1 copy", "1 gelu 32 plain", "1 zero"});
    c.options.config.router.top_k = 3, c.options.config.router.capacity.factor = 0.6;
    c.options.config.num_shared_experts = 2, c.options.config.shared_expert_width = 16, c.options.config.shared_gate = true;
    c.valid = {1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1};
  }
  {
    Case& c = add("zero_experts_share_no_gate");
    GiveExperts(c.options.config, {"2 zero", "1 silu 16", "1 copy"});
    c.options.config.router.normalize_after_drop = true;
  }
  {
    Case& c = add("shared_gate");
    c.options.config.num_shared_experts = 1, c.options.config.shared_gate = true;
    c.T = 70;
  }
  for (const bool more : {false, true}) {
    Case& c = add(more ? "experts_choose_shared_padding" : "experts_choose");
    const std::string policy = "selection=expert_choice,allow_noncausal=true,normalize=false,balance_loss=0.5,z_loss=0.1";
    c.options.config.router = ParsePolicy(fmt::format("{},top_k={}", policy, more ? 2 : 1), more ? 5 : 4, "test").value();
    if (!more) continue;
    c.options.config.num_shared_experts = 1, c.options.config.shared_gate = true;
    c.valid = {1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1};
  }
  return cases;
}

struct Data {
  std::vector<float> x, d_y;
};
Data MakeData(const Case& c) {
  Rng rng(c.options.seed);
  Data data{NormalFloats(c.T * c.options.D, rng), NormalFloats(c.T * c.options.D, rng)};
  return data;
}
// Expert 2's logits lead by far: its router row follows a constant feature.
void SteerTo(Layer& layer, int64_t expert, int64_t D, std::vector<float>& x) {
  for (size_t i = 0; i < x.size(); i += static_cast<size_t>(D)) x[i] = 1;
  layer.parameter("router").value.mat()(expert, 0) = 20;
  layer.Repacked();
}

void ExpectGradients(const MoeTwinWeights<float>& got, const MoeTwinWeights<Bounded>& want) {
  ExpectWithinBounds(got.router, want.router);
  ExpectWithinBounds(got.gate_up, want.gate_up);
  ExpectWithinBounds(got.down, want.down);
  ExpectWithinBounds(got.shared_gate_up, want.shared_gate_up);
  ExpectWithinBounds(got.shared_down, want.shared_down);
  ExpectWithinBounds(got.router_bias, want.router_bias);
  ExpectWithinBounds(got.router_hidden, want.router_hidden);
  ExpectWithinBounds(got.router_scale, want.router_scale);
  ExpectWithinBounds(got.shared_gate, want.shared_gate);
  ExpectWithinBounds(got.middle, want.middle);
  ExpectWithinBounds(got.constant, want.constant);
  ExpectWithinBounds(got.mix, want.mix);
}

class LayerAgainstTwin : public testing::TestWithParam<Case> {};

TEST_P(LayerAgainstTwin, ForwardAndEveryGradientLieWithinDerivedBounds) {
  Case c = GetParam();
  for (const KernelTable* kernels : SupportedKernelTables()) {
    for (const DType format : {DType::kF32, DType::kBf16}) {
      for (const Executor executor : kExecutors) {
        if (!Runs(c.options.config, executor)) continue;
        SCOPED_TRACE(fmt::format("{} {} executor {}", kernels->name, Name(format), static_cast<int>(executor)));
        c.options.kernels = kernels, c.options.format = format, c.options.config.executor = executor;
        Layer layer(c.options);
        Data data = MakeData(c);
        if (c.one_expert_takes_all) SteerTo(layer, 2, c.options.D, data.x);
        const LayerStep got = layer.Train(data.x, data.d_y, c.valid, 0.5f);
        auto twin = layer.Twin<Bounded>(data.x, c.valid);
        twin.Forward();
        twin.Backward(ToDoubles(data.d_y), 0.5);
        std::vector<int32_t> experts;
        std::vector<Bounded> gates;
        for (const auto& slots : twin.slots) {
          for (const auto& s : slots) experts.push_back(static_cast<int32_t>(s.expert)), gates.push_back(s.gate);
        }
        if (c.options.config.router.has_varying_k()) {  // as many as like it, and none
          const auto fewer = [](const auto& a, const auto& b) { return a.size() < b.size(); };
          EXPECT_EQ(std::ranges::min_element(twin.slots, fewer)->size(), 0u);
          EXPECT_GT(std::ranges::max_element(twin.slots, fewer)->size(), 1u);
        }
        EXPECT_EQ(got.expert, experts);
        EXPECT_EQ(got.tokens_per_expert, twin.tokens_per_expert);
        EXPECT_EQ(got.num_dropped, twin.num_dropped);
        ExpectWithinBounds(got.gate, gates);
        ExpectWithinBounds(got.probs, twin.probs);
        ExpectWithinBounds(got.y, twin.y);
        ExpectWithinBounds(std::vector<double>{got.aux.balance_loss, got.aux.z_loss, got.aux.entropy},
                           std::vector<Bounded>{twin.balance_loss, twin.z_loss, twin.entropy});
        ExpectWithinBounds(got.d_x, twin.d_x);
        ExpectGradients(got.d_w, twin.d_w);
      }
    }
  }
}

// The twin's backward, written by hand, against differentiation of its forward, and against central differences.
TEST_P(LayerAgainstTwin, TheTwinsOwnGradientsAreRight) {
  Case c = GetParam();
  Layer layer(c.options);
  Data data = MakeData(c);
  if (c.one_expert_takes_all) SteerTo(layer, 2, c.options.D, data.x);
  const std::vector<double> d_y = ToDoubles(data.d_y);
  auto twin = layer.Twin<double>(data.x, c.valid);
  twin.Forward();
  twin.Backward(d_y, 0.5);

  Tape tape;
  auto taped = layer.Twin<Var>(data.x, c.valid);
  const auto inputs = [&](std::vector<Var>& v) {
    for (Var& x : v) x = tape.Input(x.value);
  };
  for (auto* v : {&taped.x, &taped.w.router, &taped.w.gate_up, &taped.w.down, &taped.w.shared_gate_up, &taped.w.shared_down,
                  &taped.w.router_bias, &taped.w.router_hidden, &taped.w.router_scale, &taped.w.shared_gate, &taped.w.middle,
                  &taped.w.constant, &taped.w.mix}) {
    inputs(*v);
  }
  taped.Forward();
  const Var loss = taped.Objective(d_y, 0.5);
  auto by_difference = twin;
  const auto check = [&](const char* name, const std::vector<Var>& by, const std::vector<double>& by_hand,
                         std::vector<double>& values) {
    SCOPED_TRACE(name);
    const std::vector<double> by_tape = tape.Gradient(loss, by);
    double scale = 1e-3;
    for (const double g : by_tape) scale = std::max(scale, std::abs(g));
    ASSERT_EQ(by_hand.size(), by_tape.size());
    // Two exact gradients in double: rounding only, a few hundred operations deep.
    ExpectClose(by_hand, by_tape, Tolerance{.absolute = 1e-12 * scale});
    // Differences, at some 40 places all over the tensor so that all experts are met: truncation h^2 f''' and rounding
    // 1e-16 f / h.
    constexpr double h = 1e-5;
    for (size_t i = 0; i < values.size(); i += values.size() / 40 + 1) {
      const double at = values[i];
      values[i] = at + h, by_difference.Forward();
      const double up = by_difference.Objective(d_y, 0.5);
      values[i] = at - h, by_difference.Forward();
      const double down = by_difference.Objective(d_y, 0.5);
      values[i] = at;
      ASSERT_NEAR(by_hand[i], (up - down) / (2 * h), 1e-7 * (1 + scale)) << i;
    }
  };
  check("x", taped.x, twin.d_x, by_difference.x);
  check("router_bias", taped.w.router_bias, twin.d_w.router_bias, by_difference.w.router_bias);
  check("router_hidden", taped.w.router_hidden, twin.d_w.router_hidden, by_difference.w.router_hidden);
  check("router_scale", taped.w.router_scale, twin.d_w.router_scale, by_difference.w.router_scale);
  check("router", taped.w.router, twin.d_w.router, by_difference.w.router);
  check("gate_up", taped.w.gate_up, twin.d_w.gate_up, by_difference.w.gate_up);
  check("down", taped.w.down, twin.d_w.down, by_difference.w.down);
  check("shared_gate_up", taped.w.shared_gate_up, twin.d_w.shared_gate_up, by_difference.w.shared_gate_up);
  check("shared_down", taped.w.shared_down, twin.d_w.shared_down, by_difference.w.shared_down);
  check("shared_gate", taped.w.shared_gate, twin.d_w.shared_gate, by_difference.w.shared_gate);
  check("middle", taped.w.middle, twin.d_w.middle, by_difference.w.middle);
  check("constant", taped.w.constant, twin.d_w.constant, by_difference.w.constant);
  check("mix", taped.w.mix, twin.d_w.mix, by_difference.w.mix);
}

INSTANTIATE_TEST_SUITE_P(Cases, LayerAgainstTwin, testing::ValuesIn(Cases()), [](const auto& c) { return c.param.name; });

}  // namespace
}  // namespace moe::test
